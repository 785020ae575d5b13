"""The tests. docs/architecture.md says what the tests in each folder do."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

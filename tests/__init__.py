"""The tests: `unit` mirrors the package; `study`, `server`, `cluster` and `browser` need whole studies and more."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""

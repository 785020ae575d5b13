"""Provide helpers for files, locks, signals and processes of the operating system, and for patching other
libraries."""

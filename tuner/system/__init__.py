"""Provide files, locks, signals, processes and patches: the interface to the operating system and to other
libraries."""

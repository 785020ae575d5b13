"""Reads and checks the user's options and files."""

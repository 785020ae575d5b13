"""Define the methods by name, with their parts and their settings."""

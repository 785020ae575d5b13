"""Define the methods that make networks sparse, and their settings."""

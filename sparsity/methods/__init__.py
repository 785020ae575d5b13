"""The methods by name: what each consists of, and its settings."""

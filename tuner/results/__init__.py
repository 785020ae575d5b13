"""What a study has found: tables, networks, exported files, what they cost to run."""

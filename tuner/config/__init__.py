"""What a user gives: options and files, checked once."""

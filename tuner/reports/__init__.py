"""Results for people: text on the terminal, pages and pictures."""

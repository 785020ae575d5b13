"""Present results to users: text in the terminal, pages and plots."""

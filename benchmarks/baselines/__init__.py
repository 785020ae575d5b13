"""Compare the methods with the same means, and variants of the methods that compete with lpss."""

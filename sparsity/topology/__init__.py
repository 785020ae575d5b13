"""How the set of active connections changes during training: what drops, what grows, and when."""

"""What runs in a worker process: a trial, its checkpoints, and how a user's code gets there."""

"""Run trials in worker processes, write their checkpoints, and bring the user's code to the workers."""

"""Run trials in worker processes, write their checkpoints, and send the user's code to the workers."""

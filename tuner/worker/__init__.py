"""The code of a worker process: trials, their checkpoints, and the transfer of a user's code to the worker."""

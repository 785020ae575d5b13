"""Run the command: `python -m tune_sparsity` does what `tune-sparsity` does."""

from tune_sparsity.tuner.cli import entry

if __name__ == "__main__":
    entry()

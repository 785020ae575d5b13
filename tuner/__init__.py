"""Runs studies. Contains the command line, trials in Ray, the search with Optuna, logging to MLflow, and reports.

Only this package may import Ray, Optuna and MLflow. `import tune_sparsity.tuner` imports none of them, so that
`tune-sparsity --help` is quick. This package may import the packages experiments, search_spaces and sparsity.
"""

from pathlib import Path

if __name__ != "tune_sparsity.tuner":  # imported as `tuner` from the current folder
    __path__ = [str(Path(__file__).resolve().parent.parent / "src" / "tuner")]

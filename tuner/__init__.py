"""Who searches: the command line, the study, Ray trials, the Optuna searcher, the MLflow tracker, fronts and reports.

The only room in which Ray, Optuna and MLflow may be imported; it may import the other three. Importing this package
imports none of them: `tune-sparsity --help` must stay quick.
"""

from pathlib import Path

if __name__ != "tune_sparsity.tuner":  # found in the current folder
    __path__ = [str(Path(__file__).resolve().parent.parent / "src" / "tuner")]

"""Check an experiment for mistakes, as ``tune-sparsity check`` does.

``inspect(experiment)`` runs all checks::

    for finding in inspect(find("mine.py:mine")):
        print(finding.level, finding.check, finding.text)

``assert_sound(experiment)`` also runs all checks, and raises AssertionError if a check fails. Call it in a test of your
experiment. ``first_fault(experiment, data)`` runs only the quick checks, with which every study begins.
"""

from tune_sparsity.experiments.checks.suite import Check, Finding, Level, Subject
from tune_sparsity.experiments.checks.suites import CHECKS, assert_sound, first_fault, first_look, inspect

__all__ = ["CHECKS", "Check", "Finding", "Level", "Subject", "assert_sound", "first_fault", "first_look", "inspect"]

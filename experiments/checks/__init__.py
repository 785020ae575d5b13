"""Check whether an experiment is sound, as ``tune-sparsity check`` does.

``inspect(experiment)`` runs every check. ``first_fault(experiment, data)`` runs the quick checks that every study
begins with::

    for finding in inspect(find("mine.py:mine")):
        print(finding.level, finding.check, finding.text)

In a test, call ``assert_sound(experiment)``.
"""

from tune_sparsity.experiments.checks.suite import Check, Finding, Level, Subject
from tune_sparsity.experiments.checks.suites import CHECKS, assert_sound, first_fault, first_look, inspect

__all__ = ["CHECKS", "Check", "Finding", "Level", "Subject", "assert_sound", "first_fault", "first_look", "inspect"]

"""Is an experiment sound? A conformance suite for users' own ones, as ``tune-sparsity check`` runs it.

``inspect(experiment)`` runs every check, ``first_fault(experiment, data)`` the quick ones that a study begins with::

    for finding in inspect(find("mine.py:mine")):
        print(finding.level, finding.check, finding.text)

or, in a test of one's own: ``assert_sound(experiment)``.
"""

from tune_sparsity.experiments.checks.suite import Check, Finding, Level, Subject
from tune_sparsity.experiments.checks.suites import CHECKS, assert_sound, first_fault, first_look, inspect

__all__ = ["CHECKS", "Check", "Finding", "Level", "Subject", "assert_sound", "first_fault", "first_look", "inspect"]

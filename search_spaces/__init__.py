"""Read search spaces from YAML files: the parameters of each method, with their ranges and priors.

A space's file contains data, never code. This package may import `sparsity` and Optuna's distributions.
"""

from tune_sparsity.search_spaces.loading import BUILT_IN, is_built_in, load_space, space_layout, space_text
from tune_sparsity.search_spaces.priors import Prior
from tune_sparsity.search_spaces.space import Space
from tune_sparsity.search_spaces.yaml_file import BadFile, read_mapping

__all__ = [
    "BUILT_IN",
    "BadFile",
    "Prior",
    "Space",
    "is_built_in",
    "load_space",
    "read_mapping",
    "space_layout",
    "space_text",
]

if __name__ != "tune_sparsity.search_spaces":  # imported from the current folder
    raise ImportError(f"{__name__} is part of tune_sparsity: import tune_sparsity.search_spaces", name=__name__)

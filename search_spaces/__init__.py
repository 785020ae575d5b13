"""What is searched: the parameters of each method and their priors, as data files, and the one small reader of them.

This room may import `sparsity` (for the theory's suggestions) and Optuna's distributions. A space is data, never code.
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

if __name__ != "tune_sparsity.search_spaces":  # found in the current folder
    raise ImportError(f"{__name__} is part of tune_sparsity: import tune_sparsity.search_spaces", name=__name__)

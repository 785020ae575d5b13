"""What is searched: the parameters of each method and their priors, as data files, and the one small reader of them.

This room may import `sparsity` (for the theory's suggestions) and Optuna's distributions. A space is data, never code.
"""

from search_spaces.priors import Prior
from search_spaces.reader import BadFile, read_mapping
from search_spaces.space import BUILT_IN, Space, load_space, space_text

__all__ = ["BUILT_IN", "BadFile", "Prior", "Space", "load_space", "read_mapping", "space_text"]

"""A data set whose examples torch's DataLoader loads during the training. Use this if your data do not fit into memory.

tune-sparsity --target 0.9 --experiment examples/loaded_digits.py:digits --trials 8
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch.utils.data import TensorDataset

from tune_sparsity import Data
from tune_sparsity.experiments import find

_DIGITS = find("digits")


def load(data_dir: Path | None) -> Data:
    data = _DIGITS.load(data_dir)  # small data in memory; replace them with data sets that read from the disk
    return Data(*(TensorDataset(*split) for split in (data.train, data.val, data.test)), workers=1)


digits = replace(_DIGITS, name="loaded-digits", load=load)

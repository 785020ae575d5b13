"""The digits as a data set whose examples processes of torch's DataLoader load, as those do that are on a disk.

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
    data = _DIGITS.load(data_dir)
    return Data(*(TensorDataset(*split) for split in (data.train, data.val, data.test)), workers=1)


digits = replace(_DIGITS, name="loaded-digits", load=load)

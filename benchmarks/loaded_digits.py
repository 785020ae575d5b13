"""The digits as a data set that processes of torch's DataLoader load: for studies that are broken."""

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

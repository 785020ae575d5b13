"""Tensors as NumPy has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor on the CPU as an array: as float32 where NumPy has no such type, as for bfloat16."""
    import torch

    known = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if known else tensor.float()).numpy()

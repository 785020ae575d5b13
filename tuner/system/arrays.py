"""Convert tensors into NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """Convert a tensor on the CPU into an array of the same shape. Data types that NumPy lacks, such as bfloat16,
    become float32."""
    import torch

    known = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if known else tensor.float()).numpy()

"""Draw examples of a data set as small pictures for HTML pages."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tune_sparsity.experiments.base import Data, Split

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SIDE = 4  # pixels of the shorter side; an input with fewer is not shown as a picture


def pictures_of(data: Data, places: Sequence[int]) -> list[str]:
    """Return pictures of examples of the validation data, as data URLs of PNG files. The list is empty if the inputs
    are not images, or if the data are not in memory.

    Args:
        data: the study's data.
        places: the indices of the examples in the validation data.
    """
    split = data.val
    if not isinstance(split, Split) or not len(places):
        return []
    images = [_image(split.x[place], flat="flatten" in data.preprocessing) for place in places]
    return [_address(image) for image in images if image is not None]


def _image(x: Tensor, *, flat: bool) -> Tensor | None:
    """Return an example as pixels, shape (height, width) or (height, width, 3); None if the example is no image.

    Args:
        x: shape (height, width), (1 or 3, height, width), or (height * width,) of a square image; any other shape is no
            image.
        flat: whether a vector of height * width numbers is a flattened image.
    """
    if not x.is_floating_point():
        return None
    side = math.isqrt(x.numel())
    if flat and x.dim() == 1 and side * side == x.numel():
        x = x.reshape(side, side)
    if x.dim() == 3 and len(x) == 1:
        x = x[0]
    if x.dim() == 3 and len(x) == 3:
        x = x.permute(1, 2, 0)
    elif x.dim() != 2:
        return None
    return x if min(x.shape[:2]) >= _LEAST_SIDE else None


def _address(pixels: Tensor) -> str:
    """Return a data URL of a PNG file. In the picture, the smallest pixel value is black and the largest is white."""
    from PIL import Image

    low, high = float(pixels.min()), float(pixels.max())
    levels = ((pixels - low) * (255 / ((high - low) or 1.0))).round().byte()
    file = io.BytesIO()
    Image.fromarray(levels.numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

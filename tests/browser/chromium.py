"""Define a page in Chromium. Screenshots are written into tests/screenshots, where developers can look at them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from tests import ROOT

SCREENSHOTS = ROOT / "tests" / "screenshots"
PATIENCE = 120_000  # milliseconds: the machine may be busy with something else


@dataclass
class Page:
    """A page in the browser, and the addresses of all its requests."""

    page: Any
    asked: list[str]

    def hosts(self) -> set[str]:
        parts = map(urlsplit, self.asked)
        return {part.netloc for part in parts if part.scheme not in ("data", "blob", "about")}

    def kept(self, name: str, whole: bool = False) -> np.ndarray:
        """Write a screenshot into SCREENSHOTS. Return it as an array of the shape (height, width, 3)."""
        SCREENSHOTS.mkdir(exist_ok=True)
        taken = self.page.screenshot(full_page=whole, path=SCREENSHOTS / f"{name}.png")
        return np.asarray(Image.open(io.BytesIO(taken)).convert("RGB"))

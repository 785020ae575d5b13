"""Build the site of the documentation, and test its pages in a real browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.browser.chromium import Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does. A warning makes the build fail, for example a warning about a broken link."""
    pytest.importorskip("sphinx", reason="no sphinx: make install")
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--conf-dir", "docs"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("name", ["README", "docs/index", "docs/command", "docs/api", "docs/architecture"])
def test_each_documentation_page_fits_its_window_and_makes_no_network_requests(
    site: Path, opened: Page, name: str, width: int
) -> None:
    page = opened.page
    page.set_viewport_size({"width": width, "height": 900})
    page.goto((site / f"{name}.html").as_uri())
    opened.kept(f"site-{Path(name).name}-{width}")
    assert page.locator("h1").count() == 1
    assert opened.hosts() == {""}  # the address of a file has no host
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1


def test_the_reference_has_all_public_names(site: Path) -> None:
    import tune_sparsity

    text = (site / "docs" / "api.html").read_text(encoding="utf-8")
    constants = {"METHODS"}
    for name in set(tune_sparsity.__all__) - constants:
        assert f"tune_sparsity.{name}" in text, name

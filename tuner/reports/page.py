"""Write HTML pages from the templates in this folder. Each page is a single file that needs no internet
connection."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.system.files import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from jinja2 import Environment


@cache
def _templates() -> Environment:
    """Return the templates. They escape every text that is not Markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(Path(__file__).with_name("templates"))
    return Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def page(template: str, title: str, figures: Mapping[str, go.Figure], height: str = "480px", **values: Any) -> str:
    """Return a page from a template. The page contains plotly.js only once, even if it has several figures.

    Args:
        template: the name of the template's file.
        title: plain text.
        figures: name -> figure.
        height: the height of figures that do not set their own height.
        values: further values for the template.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    pictures = [
        {"name": name, "label": _title(figure, name), "drawn": Markup(_drawn(figure, name, height))}
        for name, figure in figures.items()
    ]
    made = _templates().get_template(template)
    return made.render(title=title, plotly=Markup(get_plotlyjs()), pictures=pictures, **values) + "\n"


def _title(figure: go.Figure, otherwise: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", figure.layout.title.text or otherwise))


def _drawn(figure: go.Figure, name: str, height: str) -> str:
    """Return the figure as HTML. The name is its id, so that the same study gives the same file."""
    if figure.layout.height:
        height = f"{figure.layout.height}px"
    # plotly's logo links to a web site, and the page must work offline.
    config = {"displaylogo": False, "responsive": True}
    return str(figure.to_html(config, full_html=False, include_plotlyjs=False, div_id=name, default_height=height))


def write_html(figure: go.Figure, path: Path) -> None:
    """Write the figure as one self-contained page of about 5 MB, which includes plotly.js and needs no network.

    The title of the page is that of the figure, or the name of the file if the figure has none. An existing file is
    replaced in one step.

    Raises:
        OSError: if the folder cannot be written to.
    """
    write_atomically(path, page("figure.html", _title(figure, path.stem), {"figure": figure}, height="100%"))

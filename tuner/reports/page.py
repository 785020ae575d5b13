"""Write HTML pages from the templates in the folder `templates`. Each page is a single file that works offline."""

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
    """Return the environment of the templates. The templates escape all text, except text of the type
    `markupsafe.Markup`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(Path(__file__).with_name("templates"))
    return Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def page(template: str, title: str, figures: Mapping[str, go.Figure], height: str = "480px", **values: Any) -> str:
    """Return an HTML page, filled in from a template. The page contains plotly.js only once, even with several figures.

    Args:
        template: the name of the template's file.
        title: the title of the page, as plain text.
        figures: the plotly figures by their short names, in the order of the page.
        height: the height of figures that do not set their own height, as a CSS length.
        values: more variables of the template.
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
    """Return the figure as HTML. The element's id is `name`, because an id that plotly draws at random would change the
    file each time."""
    if figure.layout.height:
        height = f"{figure.layout.height}px"
    # plotly's logo links to a web site, and the page must work offline.
    config = {"displaylogo": False, "responsive": True}
    return str(figure.to_html(config, full_html=False, include_plotlyjs=False, div_id=name, default_height=height))


def write_html(figure: go.Figure, path: Path) -> None:
    """Write the figure as an HTML page of about 5 MB. The page contains plotly.js and works offline.

    The title of the page is the title of the figure. If the figure has no title, the title of the page is the name of
    the file, without ".html". An existing file is replaced in one step.

    Raises:
        OSError: if the folder cannot be written to.
    """
    write_atomically(path, page("figure.html", _title(figure, path.stem), {"figure": figure}, height="100%"))

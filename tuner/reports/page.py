"""HTML pages, each a single file that opens without a network."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.tuner.system.files import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go


PAGE_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; color: #222; background: #fff;
  max-width: 1080px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; } .lead { font-size: 1.15rem; } .quiet { color: #555; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, td:first-child, td.text { text-align: left; }
td.text:not(:first-child), p { overflow-wrap: anywhere; } tr:has(th) ~ tr td.text { min-width: 28rem; }
th { font-weight: 600; border-bottom-color: #888; }
tr.best td { font-weight: 600; } tr.best td.text { font-weight: 400; } .wide { overflow-x: auto; }
pre { background: #f4f4f4; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
code { font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
figure { margin: 1.2rem 0; border: 1px solid #ddd; padding: .3rem; }
@media print { figure, pre, table { break-inside: avoid; } }
"""
FIGURE_STYLE = "html, body { margin: 0; height: 100%; } main { height: max(100vh, 420px); }"


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = (), best: int | None = None) -> str:
    """Rows as an HTML table, their text escaped. Without a header, and where they are long, cells are aligned as text.

    Args:
        best: the row to set off.
    """

    def kind(cell: Any) -> str:
        return ' class="text"' if not header or len(str(cell)) > 40 else ""

    head = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>\n" if header else ""
    lines = [
        f"<tr{' class=best' if i == best else ''}>"
        + "".join(f"<td{kind(cell)}>{html.escape('' if cell is None else str(cell))}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    ]
    return f'<div class="wide"><table>\n{head}' + "\n".join(lines) + "\n</table></div>"


def picture(name: str, figure: go.Figure) -> str:
    """A figure as a part of a page; its text is its accessible name."""
    label = html.escape(html.unescape(re.sub(r"<[^>]*>", " ", figure.layout.title.text or name)))
    config = {"displaylogo": False, "responsive": True}
    height = figure.layout.height or 480
    body = figure.to_html(
        config=config, full_html=False, include_plotlyjs=False, div_id=name, default_height=f"{height}px"
    )
    return f'<figure id="picture-{name}" aria-label="{label}">\n{body}\n</figure>'


def page(title: str, body: str) -> str:
    """A whole page that opens without a network: plotly.js is in it, once."""
    from plotly.offline import get_plotlyjs

    return html_page(title, PAGE_STYLE, body, get_plotlyjs())


def html_page(title: str, style: str, body: str, script: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body: what its main part holds.
        script: that runs first.
    """
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{style}</style>",
        *([f"<script>{script}</script>"] if script else []),
        "</head>",
        "<body>",
        f'<main aria-label="{html.escape(title)}">',
        body,
        "</main>",
        "<noscript>The pictures are interactive and need JavaScript; their numbers are also in the tables.</noscript>",
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def write_html(figure: go.Figure, path: Path) -> None:
    """Writes the figure as one self-contained page (about 5 MB: plotly.js is in it) that asks the network for nothing.

    The page's title is the figure's, or the file's name if it has none. An existing file is replaced in one step.

    Raises:
        OSError: if the folder cannot be written to.
    """
    written = re.sub(r"<[^>]*>", " ", figure.layout.title.text or path.stem)
    # Not displaylogo: a link to a web site has no place in a page that is read offline.
    config = {"displaylogo": False, "responsive": True}
    # A fixed id, so that the same study gives the same file.
    body = figure.to_html(config=config, full_html=False, include_plotlyjs=True, div_id="figure")
    write_atomically(path, html_page(html.unescape(written), FIGURE_STYLE, body))

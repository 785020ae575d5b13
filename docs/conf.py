"""The static site of the documentation: `make docs` writes build/site, which needs no internet connection."""

from importlib.metadata import version as version_of

project = "tune-sparsity"
author = copyright = "the tune-sparsity authors"
version = release = version_of("tune-sparsity")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "examples/*.md", "benchmarks/*.md"]

myst_heading_anchors = 3  # links to headings, as code hosts make them
suppress_warnings = ["myst.header"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
default_role = "code"  # docstrings have code between single backticks

html_theme = "furo"
html_title = "tune-sparsity"
html_show_sphinx = False
html_copy_source = html_show_sourcelink = False


def setup(app) -> None:  # type: ignore[no-untyped-def]  # Sphinx calls it
    app.connect("source-read", _add_contents)


def _add_contents(app, name: str, source: list[str]) -> None:  # type: ignore[no-untyped-def]
    """Give the first page the list of all pages, which stands at the side of each."""
    if name == root_doc:
        pages = sorted(app.env.found_docs - {root_doc}, key=lambda page: _order(page, source[0]))
        listed = "\n".join(f"/{page}" for page in pages)
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def _order(page: str, text: str) -> tuple[int, str]:
    """The place at which the first page links to a page."""
    place = text.find(f"({page.removeprefix('docs/')}.md")
    if place < 0:
        place = text.find(f"(../{page}.md")
    return (place if place >= 0 else len(text), page)

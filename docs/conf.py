"""Settings of the documentation site; `make docs` builds it."""

from sphinx.application import Sphinx

import lightning_paf

project = "lightning_paf"
author = copyright = "The lightning_paf authors"  # the names that Sphinx reads
version = release = lightning_paf.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples", "notebooks"]
default_role = "code"  # docstrings have names in single backticks
html_theme = "furo"
html_title = f"lightning_paf {version}"
suppress_warnings = ["myst.xref_missing"]  # links to files outside of docs/; tests/test_docs.py checks that they exist
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True


def setup(app: Sphinx) -> None:
    """Let docstrings use | for absolute values."""
    app.connect("autodoc-process-docstring", _escape_bars)


def _escape_bars(*arguments: object) -> None:
    lines = arguments[-1]
    assert isinstance(lines, list)
    lines[:] = [line.replace("|", r"\|") for line in lines]

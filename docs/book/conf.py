"""Sphinx's settings for the book; build.py calls it on the pages that it has put together."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for the sibling, from wherever this is called
import equations

import d3s2

project = "d3s2"
author = "the d3s2 contributors"
version = release = d3s2.__version__
html_title = f"d3s2 {d3s2.__version__}"
language = "en"

extensions = ["myst_nb"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # the notebooks as they were committed
myst_enable_extensions = ["deflist", "dollarmath"]
myst_dmath_double_inline = True  # $$ right below a line of text, as Jupyter takes it
myst_update_mathjax = False
myst_heading_anchors = 4
myst_heading_slug_func = "headings.anchor"
html_math_renderer = "mathml"

html_theme = "furo"
html_static_path = ["style.css"]
html_favicon = "favicon.svg"
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app: Sphinx) -> None:
    """Equations as MathML: no script, and nothing from the network."""
    app.add_html_math_renderer("mathml", (equations.inline, None), (equations.block, None))

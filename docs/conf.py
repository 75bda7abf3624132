"""How the documentation is built: `make docs`, which is sphinx-build with every warning an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from compal import __version__

project = "compal"
author = "The compal authors"
project_copyright = "The compal authors, Apache-2.0"
version = release = __version__

extensions = ["myst_nb", "sphinx_copybutton", "reference_pages"]
exclude_patterns = ["_ext", "_static", "**.ipynb_checkpoints"]
nitpicky = True
# Types of others, which no page here describes; what begins with our name must be found.
nitpick_ignore_regex = [(r"py:\w+", r"(?!compal\.).*")]

myst_enable_extensions = ["attrs_block", "deflist", "fieldlist"]
myst_heading_anchors = 4

# Notebooks show the outputs they are kept with; COMPAL_DOCS_NOTEBOOKS=force runs them while building.
nb_execution_mode = os.environ.get("COMPAL_DOCS_NOTEBOOKS", "off")
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300
os.environ.setdefault("PYTHONWARNINGS", "ignore:::tqdm.auto")  # it misses widgets that nothing here shows

python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "compal"
html_static_path = ["_static"]
html_css_files = ["compal.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_show_sphinx = False
html_show_sourcelink = False
pygments_style = "github-light-colorblind"
pygments_dark_style = "github-dark-colorblind"
copybutton_exclude = ".linenos, .gp, .go"

LIGHT = {
    "comment": "#57606a",
    "ink": "#1c2430",
    "soft": "#4c5766",
    "paper": "#ffffff",
    "shade": "#f6f7f9",
    "line": "#e3e6eb",
}
DARK = {
    "comment": "#9aa4b0",
    "ink": "#dde2ea",
    "soft": "#a3adbb",
    "paper": "#14181f",
    "shade": "#1b2029",
    "line": "#2c333f",
}


def _palette(colours: dict[str, str], accent: str, visited: str) -> dict[str, str]:
    return {
        "color-brand-primary": accent,
        "color-brand-content": accent,
        "color-brand-visited": visited,
        "color-foreground-primary": colours["ink"],
        "color-foreground-secondary": colours["soft"],
        "color-foreground-muted": colours["soft"],
        "color-foreground-border": colours["soft"],
        "color-background-primary": colours["paper"],
        "color-background-secondary": colours["shade"],
        "color-background-border": colours["line"],
        "color-code-background": colours["shade"],
        "color-inline-code-background": colours["shade"],
        "color-sidebar-background": colours["shade"],
        "color-sidebar-background-border": colours["line"],
        "color-api-name": accent,
        "color-api-pre-name": colours["soft"],
        "color-api-background": colours["shade"],
        "color-highlight-on-target": colours["shade"],
        "color-comment": colours["comment"],
    }


html_theme_options = {
    "light_css_variables": _palette(LIGHT, "#0b6170", "#5a4a86"),
    "dark_css_variables": _palette(DARK, "#6fc7d4", "#b9a9e6"),
    "navigation_with_keys": True,
}

linkcheck_ignore = [r"http://127\.0\.0\.1.*"]
linkcheck_timeout = 20

"""Settings of Sphinx. `make docs` builds docs/_build/html; every warning is an error.

The gallery's scripts run while the pages are built; before that, `make docs` runs the code blocks of the pages, in
tests/test_documentation.py.
"""

import os
import warnings
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

import ssmseq

ROOT = Path(__file__).resolve().parent.parent

project = "ssmseq"
author = "the ssmseq developers"
copyright = "2026, the ssmseq developers"
release = version = ssmseq.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "auto_examples/**/*.py", "auto_examples/**/*.ipynb", "sg_execution_times.rst"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's own words say more
numpydoc_show_class_members = False  # the template of classes lists them

# Links into other projects need their inventories; a build without a network leaves them out.
intersphinx_mapping = (
    {}
    if os.environ.get("SSMSEQ_DOCS_OFFLINE")
    else {
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "optuna": ("https://optuna.readthedocs.io/en/stable", None),
    }
)

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "notebook_images": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 60,
    "subsection_order": ExplicitOrder(["gallery/forecasting", "gallery/ecg", "gallery/dna"]),
    "within_subsection_order": "FileNameSortKey",
    "nested_sections": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "ssmseq"
html_static_path = ["_static"]
html_css_files = ["ssmseq.css"]
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 4,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}

# The gallery's scripts fit for a few epochs, which Lightning's and scikit-learn's advice is not about.
warnings.filterwarnings("ignore", category=UserWarning, module="lightning")


def write_cards(app):
    """Make a page of each data card in datasets/, so that the cards have one home."""
    folder = Path(app.srcdir) / "data_sets"
    folder.mkdir(exist_ok=True)
    for card in sorted((ROOT / "datasets").glob("*.md")):
        text = f"```{{include}} ../../datasets/{card.name}\n```\n"
        page = folder / card.name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def setup(app):
    """Connect what is above."""
    app.connect("builder-inited", write_cards)

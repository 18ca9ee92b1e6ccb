"""One HTML page that needs nothing beside it: sections of text, tables and pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssmseq.plots import MM_PER_INCH, data_uri

NOTICE = (
    "This page describes the output of a statistical model. It is for research and not for decisions about patients."
)


class Cell(NamedTuple):
    """A number in a table, as text, perhaps with its interval."""

    text: str
    note: str = ""
    loud: bool = False


class Bar(NamedTuple):
    """A share from 0 to 1 in a table, as a bar with a mark; the text stands in for it where it cannot be seen."""

    text: str
    share: float
    mark: float | None = None
    loud: bool = False


class Table(NamedTuple):
    """A table whose first column names its rows; cells are words, `Cell` or `Bar`."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """A figure as the address of an image; the text stands in for it where it cannot be seen."""

    text: str
    address: str
    width: float  # mm


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: Sequence[str] = ()
    alarms: Sequence[str] = ()
    tables: Sequence[Table] = ()
    sheets: Sequence[Picture] = ()  # at their own size, to scale
    pictures: Sequence[Picture] = ()  # as wide as there is room


def picture(text: str, drawn) -> Picture:
    """Return what axes of matplotlib, or a display, belong to as a picture, at its size."""
    figure = getattr(drawn, "figure_", None) or drawn.figure
    return Picture(text, data_uri(figure), figure.get_figwidth() * MM_PER_INCH)


def new_axes(width: float, height: float, *, margins: bool = True):
    """Return axes of a new figure, in inches, that pyplot does not know of; without margins they fill it."""
    from matplotlib.figure import Figure

    if not margins:
        return Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def number(value: float, digits: int = 3) -> str:
    """Return a number as text, a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"  # noqa: RUF001 (a dash in a table, as it is printed)


def with_interval(value: float, low: float, high: float) -> Cell:
    """Return a number with its interval below it, where there is one."""
    return Cell(number(value), "" if np.isnan(low) or np.isnan(value) else f"{low:.3f} to {high:.3f}")


def write_page(path: str | os.PathLike, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write the page and return its path; folders are made.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    """
    from ssmseq import __version__

    environment = _environment()
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    html = template.render(title=title, lead=lead, sections=sections, notice=NOTICE, version=__version__)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def check_packages() -> None:
    """Raise ImportError with the remedy unless matplotlib and Jinja2 are installed."""
    _environment()
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError('reports need matplotlib: pip install "ssmseq[ecg]"') from error


def _environment():
    try:
        import jinja2
    except ImportError as error:
        raise ImportError('reports need Jinja2: pip install "ssmseq[ecg]"') from error
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)

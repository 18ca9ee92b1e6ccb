"""What all plots share: matplotlib, imported when something is drawn, a palette, and figures as parts of a page."""

import base64
import io

import numpy as np

# the colours of Okabe and Ito, which people with any colour vision tell apart, without the yellow that fades on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F6B7A")
LINE_STYLES = ("-", "--", ":", "-.")
MM_PER_INCH = 25.4


def pyplot():
    """Return matplotlib.pyplot; ImportError with the remedy if there is none."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "ssmseq[plot]"') from error
    return plt


def draw_line(axis, places, values: np.ndarray, color: str, width: float, label: str | None) -> None:
    """Draw a line that breaks at missing values; a value between two of them becomes a point."""
    axis.plot(places, values, color=color, linewidth=width, label=label)
    seen = np.pad(~np.isnan(values), 1)
    alone = seen[1:-1] & ~seen[:-2] & ~seen[2:]
    if alone.any():
        axis.plot(places[alone], values[alone], ".", color=color, markersize=4)


def data_uri(figure) -> str:
    """Return a figure as the address of an SVG image that holds it whole; the same figure gives the same text."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ssmseq", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()

"""The pictures of a report, drawn with matplotlib on canvases of their own: no window, no state of pyplot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssmseq.benchmark.outcome import Frame
from ssmseq.benchmark.ranking import Ranking, import_posthocs
from ssmseq.plots import COLORS, LINE_STYLES

REFERENCE_COLOR, HISTORY_COLOR = "#000000", "#9ca3af"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 4.6  # inches: readable when a phone shows it 340 px wide
LEAST_SECONDS = 0.01  # on the logarithmic axis of training time


class Styles:
    """The colour, line and marker of each model, the same in every picture; the reference is black."""

    def __init__(self, columns: Sequence[str], reference: str | None):
        others = [c for c in columns if c != reference]
        self.of: dict[str, dict[str, Any]] = {}
        for i, column in enumerate(others):
            line = LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]
            marker = MARKERS[(i + i // len(COLORS)) % len(MARKERS)]
            self.of[column] = {"color": COLORS[i % len(COLORS)], "linestyle": line, "marker": marker}
        if reference is not None:
            self.of[reference] = {"color": REFERENCE_COLOR, "linestyle": "-", "marker": "*"}

    def line(self, column: str) -> dict[str, Any]:
        """Return colour and line style."""
        return {k: v for k, v in self.of[column].items() if k != "marker"}

    def point(self, column: str) -> dict[str, Any]:
        """Return colour and marker."""
        return {k: v for k, v in self.of[column].items() if k != "linestyle"}


def new_figure(height: float, *, width: float = WIDTH):
    """Return an empty figure, in inches; ImportError with the remedy if there is no matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures of a report need matplotlib: pip install "ssmseq[benchmark]"') from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def critical_difference(ranking: Ranking, styles: Styles):
    """Draw the average ranks on an axis; bars join models that the test of pairs does not tell apart.

    Parameters
    ----------
    ranking : Ranking
        With p-values.
    styles : Styles

    Raises
    ------
    ValueError
        If the ranking has no p-values; it says why.
    """
    if ranking.p_values is None:
        raise ValueError(f"there is no critical-difference diagram: {ranking.reason}")
    from matplotlib.ticker import MaxNLocator

    n_models = len(ranking.ranks)
    figure = new_figure(1.1 + 0.2 * n_models, width=6.4)
    axis = figure.add_subplot()
    axis.set_xlim(1, n_models)
    drawn = import_posthocs().critical_difference_diagram(
        ranking.ranks,
        ranking.p_values,
        alpha=ranking.alpha,
        ax=axis,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        label_props={"fontsize": 9},
        color_palette={name: styles.of[name]["color"] for name in ranking.ranks.index},
        crossbar_props={"color": "#374151", "linewidth": 3},
        text_h_margin=0.03 * n_models,
    )
    for label in drawn["labels"]:
        label.set_color("black")
    axis.tick_params(axis="x", labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def accuracy_against_cost(table: Frame, cost: str, styles: Styles, *, error_label: str):
    """Draw one point per model: its error over its training time, on a logarithmic axis, or over its memory.

    Parameters
    ----------
    table : pandas.DataFrame
        Models x ("error", "fit_seconds", "peak_memory_mb").
    cost : {"fit_seconds", "peak_memory_mb"}
    styles : Styles
    error_label : str
        Of the vertical axis.
    """
    figure = new_figure(3.2 + 0.17 * ((len(table) + 1) // 2))
    axis = figure.add_subplot()
    for name, error, value in zip(table.index, table["error"], table[cost], strict=True):
        x = max(value, LEAST_SECONDS) if cost == "fit_seconds" else value
        axis.plot([x], [error], **styles.point(name), linestyle="none", markersize=7, label=name)
    if cost == "fit_seconds":
        axis.set_xscale("log")
        least = f" ({LEAST_SECONDS} s and less at {LEAST_SECONDS})" if (table[cost] < LEAST_SECONDS).any() else ""
        axis.set_xlabel(f"mean training time of a run, s{least}")
    else:
        axis.set_xlabel("highest peak memory, MB")
    axis.set_ylabel(error_label)
    axis.margins(0.08)
    axis.grid(color="#e5e7eb", linewidth=0.6)
    _finish(axis, figure)
    return figure


def error_by_step(lines: Mapping[str, tuple[Sequence[int], np.ndarray]], styles: Styles, *, title: str):
    """Draw the error over the rows ahead, one line per model.

    Parameters
    ----------
    lines : dict of str to (steps, errors)
    styles : Styles
    title : str
    """
    figure = new_figure(2.9 + 0.17 * ((len(lines) + 1) // 2))
    axis = figure.add_subplot()
    for name, (steps, errors) in lines.items():
        marker = "o" if len(steps) < 3 else None
        axis.plot(steps, errors, **styles.line(name), linewidth=1.5, marker=marker, label=name)
    axis.set_xlabel("rows ahead")
    axis.set_ylabel("MSE (standardised)")
    axis.set_ylim(bottom=0)
    axis.margins(x=0)
    axis.set_title(title, fontsize=10, loc="left")
    _finish(axis, figure)
    return figure


def example_forecast(
    example: Mapping[str, Any], forecasts: Mapping[str, Sequence[float]], styles: Styles, *, title: str
):
    """Draw one window: what went before, what happened, and what models forecast, in original units.

    Parameters
    ----------
    example : dict
        "variate", "history" and "truth".
    forecasts : dict of str to sequence
        As long as the truth.
    styles : Styles
    title : str
    """
    truth = list(example["truth"])
    history = list(example["history"])[-2 * len(truth) :]
    figure = new_figure(2.7 + 0.17 * ((len(forecasts) + 3) // 2))
    axis = figure.add_subplot()
    after = np.arange(1, len(truth) + 1)
    axis.plot(np.arange(1 - len(history), 1), history, color=HISTORY_COLOR, linewidth=1.1, label="history")
    axis.plot(after, truth, color=HISTORY_COLOR, linewidth=3, alpha=0.6, label="what happened")
    for name, values in forecasts.items():
        axis.plot(after, values, **styles.line(name), linewidth=1.3, label=name)
    axis.axvline(0.5, color=HISTORY_COLOR, linewidth=0.8)
    axis.set_xlabel("rows ahead")
    axis.set_ylabel(str(example["variate"]))
    axis.margins(x=0)
    axis.set_title(title, fontsize=10, loc="left")
    _finish(axis, figure)
    return figure


def _finish(axis, figure) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)

"""Curves of each label: receiver operating characteristic, precision over recall, and reliability.

The lines are scikit-learn's displays, one for each label, on the same axes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ssmseq.base import check_choice, check_number
from ssmseq.ecg.metrics import check_scores, positive_probabilities
from ssmseq.ecg.splits import label_indicator
from ssmseq.plots import COLORS, LINE_STYLES, pyplot

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("roc", "precision_recall", "reliability")
MOST_LINES = 7  # drawn unless more are asked for
CHANCE = {"color": "#6b7280", "linewidth": 0.9, "linestyle": (0, (2, 2))}


class LabelCurvesDisplay:
    """One curve for each label.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
    y_prob : array (n, labels) of probabilities
    labels : sequence
        Names of the columns.
    kind : {"roc", "precision_recall", "reliability"}
    n_bins : int, default=10
        Of reliability: how many probabilities the curve is made of.
    strategy : {"quantile", "uniform"}
        Of reliability: whether bins hold equally many records, or are equally wide.

    Attributes
    ----------
    curves_ : dict of label to scikit-learn display
        `RocCurveDisplay`, `PrecisionRecallDisplay` or `CalibrationDisplay`, of the lines drawn.
    figure_ : matplotlib.figure.Figure
    ax_ : matplotlib.axes.Axes
    """

    def __init__(self, *, y_true, y_prob, labels, kind: str, n_bins: int = 10, strategy: str = "quantile"):
        self.y_true = y_true
        self.y_prob = y_prob
        self.labels = labels
        self.kind = kind
        self.n_bins = n_bins
        self.strategy = strategy

    @classmethod
    def from_estimator(cls, estimator, X, y, *, kind: str = "roc", **options) -> Self:
        """Predict recordings and compare with their labels.

        Parameters
        ----------
        estimator : fitted ECGMambaClassifier
        X, y : as in `fit`
            Recordings that it was not trained on. Classes that exclude each other count each against the rest.
        kind : {"roc", "precision_recall", "reliability"}
        **options
            `n_bins` and `strategy`.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a parameter out of range, or recordings and labels unlike those of `fit`.
        """
        from ssmseq.ecg.inputs import encode_targets

        prob = positive_probabilities(estimator, X)
        truth = encode_targets(y, estimator.classes_, estimator.exclusive_)
        return cls.from_predictions(truth, prob, labels=estimator.classes_.tolist(), kind=kind, **options)

    @classmethod
    def from_predictions(cls, y_true, y_prob, *, labels: Sequence | None = None, kind: str = "roc", **options) -> Self:
        """Take predictions as they are.

        Parameters
        ----------
        y_true : array or frame (n, labels) of 0, 1 or NaN
            NaN is unknown; the record then has no part in that label's curve.
        y_prob : array (n, labels) of probabilities
        labels : sequence, optional
            Names of the columns; by default those of `y_true`, or their numbers.
        kind : {"roc", "precision_recall", "reliability"}
        **options
            `n_bins` and `strategy`.

        Raises
        ------
        ValueError
            If shapes differ, an entry is something else, or a parameter is out of range.
        """
        check_choice("kind", kind, KINDS)
        truth, names = label_indicator(y_true)
        prob = check_scores("y_prob", y_prob, truth.shape)
        names = names if labels is None else list(labels)
        if len(names) != truth.shape[1]:
            raise ValueError(f"{len(names)} labels are named, and y_true has {truth.shape[1]} columns")
        display = cls(y_true=truth, y_prob=prob, labels=names, kind=kind, **options)
        check_number("n_bins", display.n_bins, minimum=2, integer=True)
        check_choice("strategy", display.strategy, ("quantile", "uniform"))
        return display

    @property
    def left_out(self) -> dict[Any, str]:
        """Labels that have no curve, with the reason."""
        found = {}
        for label, column in zip(self.labels, self.y_true.T, strict=True):
            known = column[~np.isnan(column)]
            if not len(known):
                found[label] = "not known of any record"
            elif not (known == 1).any():
                found[label] = "no positive record"
            elif not (known == 0).any():
                found[label] = "no negative record"
        return found

    def frame(self) -> "pd.DataFrame":
        """Return the points of all curves: label, x, y.

        x and y are the false and the true positive rate, recall and precision, or the mean probability and the share of
        positives of a bin.
        """
        import pandas as pd

        parts = []
        for label in self._usable():
            x, y = self._points(label)
            parts.append(pd.DataFrame({"label": pd.Series([label] * len(x), dtype=object), "x": x, "y": y}))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"label": [], "x": [], "y": []})

    def plot(self, *, labels: Sequence | None = None, ax=None) -> Self:
        """Draw one line for each label, and what chance or perfect calibration would give.

        Parameters
        ----------
        labels : sequence, optional
            Which; by default the seven with the most positive records. What is not drawn is named below the legend.
        ax : matplotlib Axes, optional
            A new figure by default.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a label has no curve, or is not there.
        """
        shown = self.default_labels if labels is None else list(labels)
        for label in shown:
            if label in self.left_out:
                raise ValueError(f"the label {label!r} has no curve: {self.left_out[label]}")
            check_choice("labels", label, self.labels)
        if ax is None:
            _, ax = pyplot().subplots(figsize=self.size(shown), layout="constrained")
        self.curves_ = {label: self._draw(ax, label, i) for i, label in enumerate(shown)}
        if self.kind != "precision_recall":
            name = "chance" if self.kind == "roc" else "perfectly calibrated"
            ax.plot([0, 1], [0, 1], **CHANCE, label=name, zorder=1)
        across, up = {
            "roc": ("false positive rate (1 - specificity)", "true positive rate (sensitivity)"),
            "precision_recall": ("recall (sensitivity)", "precision (positive predictive value)"),
            "reliability": ("mean probability given", "share of positive records"),
        }[self.kind]
        ax.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        ax.set_anchor("N")
        ax.spines[["top", "right"]].set_visible(False)
        legend = ax.legend(
            loc="upper left", bbox_to_anchor=(-0.15, -0.18), frameon=False, fontsize=8, title=self._told(shown)
        )
        legend.get_title().set_fontsize(8)
        self.figure_, self.ax_ = ax.figure, ax
        return self

    @property
    def default_labels(self) -> list:
        """The labels that are drawn unless others are asked for."""
        return self._usable()[:MOST_LINES]

    def size(self, labels: Sequence) -> tuple[float, float]:
        """Return width and height in inches of axes with room for the names of the labels below."""
        told = self._told(list(labels)) or ""
        return 4.0, 4.2 + 0.17 * (len(labels) + 1 + len(told.splitlines()))

    def _usable(self) -> list:
        """Return the labels that have a curve, those with the most positive records first."""
        counts = np.nansum(self.y_true, 0)
        return [self.labels[j] for j in np.argsort(-counts, kind="stable") if self.labels[j] not in self.left_out]

    def _column(self, label) -> tuple[np.ndarray, np.ndarray]:
        j = list(self.labels).index(label)
        known = ~np.isnan(self.y_true[:, j])
        return self.y_true[known, j].astype(int), self.y_prob[known, j]

    def _points(self, label) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.calibration import calibration_curve
        from sklearn.metrics import precision_recall_curve, roc_curve

        truth, prob = self._column(label)
        if self.kind == "roc":
            return roc_curve(truth, prob)[:2]
        if self.kind == "precision_recall":
            precision, recall, _ = precision_recall_curve(truth, prob)
            return recall, precision
        share, mean = calibration_curve(truth, prob, n_bins=self.n_bins, strategy=self.strategy)
        return mean, share

    def _draw(self, ax, label, i: int):
        from sklearn.calibration import CalibrationDisplay
        from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay, average_precision_score, roc_auc_score

        truth, prob = self._column(label)
        x, y = self._points(label)
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linewidth": 1.5}
        style["linestyle"] = LINE_STYLES[i // len(COLORS) % len(LINE_STYLES)]
        positives = f"{truth.sum()} of {len(truth)}"
        if self.kind == "roc":
            area = float(roc_auc_score(truth, prob))
            style["label"] = f"{label}: area {area:.3f} ({positives})"
            curve = RocCurveDisplay(fpr=x, tpr=y, roc_auc=area).plot(ax=ax)
        elif self.kind == "precision_recall":
            area = float(average_precision_score(truth, prob))
            style["label"] = f"{label}: area {area:.3f}, chance {truth.mean():.3f} ({positives})"
            ax.axhline(truth.mean(), **CHANCE | {"color": style["color"]}, zorder=1)
            curve = PrecisionRecallDisplay(precision=y, recall=x, average_precision=area).plot(ax=ax)
        else:
            style |= {"label": f"{label} ({positives})", "marker": "o", "markersize": 3.5}
            curve = CalibrationDisplay(y, x, prob).plot(ax=ax, ref_line=False, name=str(label))
        line: Any = curve.line_
        line.set(**style)  # after drawing, since the arguments for this differ between versions
        return curve

    def _told(self, shown: list) -> str | None:
        """Return which labels are not drawn, in a few lines, or None."""
        import textwrap

        reasons = [f"{label} ({reason})" for label, reason in self.left_out.items()]
        reasons += [str(label) for label in self._usable() if label not in shown]
        return textwrap.fill(f"Not drawn: {', '.join(reasons)}", 48) if reasons else None

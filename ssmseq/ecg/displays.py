"""Plots of electrocardiograms and of what a classifier looks at, in the shape of scikit-learn's displays."""

from typing import TYPE_CHECKING, Self

import numpy as np

from ssmseq.base import check_choice, check_number
from ssmseq.ecg import paper
from ssmseq.plots import MM_PER_INCH, draw_line, pyplot

if TYPE_CHECKING:
    import pandas as pd

MARGINS = (5.0, 12.0, 5.0, 9.0)  # mm around the grid: left, top, right, bottom
BAR = (45.0, 2.5)  # mm of the colour bar
SMOOTHING, WIDTH = 0.1, 0.2  # s


class SaliencyDisplay:
    """How far the logit of one label depends on each lead and moment of a recording.

    Parameters
    ----------
    saliency : array (leads, times)
        In logits: above 0 where the signal raises the logit. NaN where no window of the model looks.
    seconds : array (times,)
        From the beginning of the recording.
    leads : sequence of str
    label : object
        What the logit is of.
    method : {"gradient", "occlusion"}
    usable : array (leads,), optional
        Share of the windows in which the model does not mask the lead; by default 1.
    probability : float, optional
        What the model gives the label.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    ax_ : matplotlib.axes.Axes
    """

    def __init__(self, *, saliency, seconds, leads, label, method, usable=None, probability=None):
        self.saliency = saliency
        self.seconds = seconds
        self.leads = leads
        self.label = label
        self.method = method
        self.usable = usable
        self.probability = probability

    @classmethod
    def from_estimator(
        cls,
        estimator,
        record,
        *,
        label=None,
        method: str = "gradient",
        start: float = 0.0,
        stop: float | None = None,
        smoothing: float = SMOOTHING,
        width: float = WIDTH,
    ) -> Self:
        r"""Measure what the logit of a label rests on.

        "gradient" is :math:`(x_t - \bar x) \, \partial z / \partial x_t` [1]_ with the network's input x, its mean in
        the lead and window, and the logit z of the window, averaged over `smoothing`. "occlusion" [2]_ puts the mean in
        place of a segment of one lead and is what the logit loses by that; every sample of the segment has this value.
        Samples that several windows hold get the mean over these windows.

        Parameters
        ----------
        estimator : fitted ECGMambaClassifier
        record : Record, or array (leads, times) or (times,) where the estimator was fitted on arrays
            Of any length. Memory grows with the part that is asked for.
        label : optional
            One of ``estimator.classes_``; by default the most probable. Of exclusive classes the logit is that of one
            against all others.
        method : {"gradient", "occlusion"}
            Occlusion takes a pass through the network for each lead and segment; only it says what the model does
            without that part.
        start, stop : float
            The part to explain, in seconds; all of it by default. It is the same as that part of the whole.
        smoothing : float
            Length of the moving average of gradients, in seconds.
        width : float
            Length of the segments that are hidden, in seconds, counted from the beginning of the recording.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a parameter out of range, an unknown label, or a recording unlike those of `fit`.

        Notes
        -----
        It is about the model, not about the heart. Leads repeat each other (six follow from two), so hiding one leaves
        much of what it says in the others: a small value does not prove that a lead is useless. A lead that is masked
        has 0. With ``aggregate="mean"``, windows that do not overlap and a sample in one of W of them, the logit of the
        recording changes by one W-th of what is shown here.

        References
        ----------
        .. [1] Shrikumar, A. et al. (2016). Not just a black box: learning important features through propagating
           activation differences. arXiv 1605.01713. The mean of the lead takes the place of zero.
        .. [2] Zeiler, M. D. and Fergus, R. (2014). Visualizing and understanding convolutional networks. ECCV.
           arXiv 1311.2901.
        """
        from sklearn.utils.validation import check_is_fitted

        from ssmseq.ecg import saliency

        check_is_fitted(estimator)
        check_choice("method", method, saliency.METHODS)
        found = saliency.read_one(estimator, record)
        check_number("start", start, minimum=0, below=found.duration)
        stop = found.duration if stop is None else stop
        check_number("stop", stop, above=start)
        check_number("smoothing", smoothing, minimum=0)
        check_number("width", width, above=0)
        probabilities = estimator.predict_proba(saliency.as_batch(record))[0]
        labels = estimator.classes_.tolist()
        label = labels[probabilities.argmax()] if label is None else label
        check_choice("label", label, labels)
        column = labels.index(label)
        measured = saliency.measure(estimator, found, column, method, start, stop, smoothing, width)
        times = measured.first + np.arange(measured.values.shape[1])
        return cls(
            saliency=measured.values,
            seconds=times / estimator.preprocessing_.sampling_rate,
            leads=estimator.preprocessing_.leads,
            label=label,
            method=method,
            usable=measured.usable,
            probability=float(probabilities[column]),
        )

    def frame(self) -> "pd.DataFrame":
        """Return one row per lead and sample: lead, seconds, saliency."""
        import pandas as pd

        names = np.repeat(np.asarray(self.leads, dtype=object), len(self.seconds))
        columns = {"lead": names, "seconds": np.tile(self.seconds, len(self.leads))}
        return pd.DataFrame(columns | {"saliency": np.asarray(self.saliency).ravel()})

    def plot(self, *, ax=None) -> Self:
        """Draw leads from top to bottom and time from left to right.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            A new figure by default.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            size = (9, min(1.3 + 0.27 * len(self.leads), 12))
            _, ax = pyplot().subplots(figsize=size, layout="constrained")
        values = np.ma.masked_invalid(self.saliency)
        most = float(np.abs(values).max()) if values.count() else 0.0
        left, right = self._edges(self.seconds)
        image = ax.imshow(
            values,
            extent=(left, right, len(self.leads) - 0.5, -0.5),
            aspect="auto",
            cmap="RdBu_r",
            vmin=-(most or 1.0),
            vmax=most or 1.0,
            interpolation="nearest",
        )
        ax.set_facecolor("0.85")  # where no window looks
        ax.set_yticks(range(len(self.leads)), [f"{lead}{self._masked(lead)}" for lead in self.leads])
        ax.set_xlabel("seconds")
        ax.set_title(f"what raises the logit of {self._told()}", loc="left", fontsize="medium")
        words = {"gradient": "gradient times input", "occlusion": "change when hidden"}[self.method]
        ax.figure.colorbar(image, ax=ax, pad=0.02, label=f"{words}\n(logit)")
        self.figure_, self.ax_ = ax.figure, ax
        return self

    def _told(self) -> str:
        return str(self.label) if self.probability is None else f"{self.label} (probability {self.probability:.2f})"

    def _masked(self, lead: str) -> str:
        """Return what is to be said of a lead that the model did not see."""
        share = 1.0 if self.usable is None else self.usable[list(self.leads).index(lead)]
        return " (masked)" if share == 0 else " (masked in part)" if share < 1 else ""

    def _edges(self, seconds) -> tuple[float, float]:
        """Return where the first sample begins and the last one ends."""
        step = self.seconds[1] - self.seconds[0] if len(self.seconds) > 1 else 1.0
        return seconds[0] - step / 2, seconds[-1] + step / 2


class ECGDisplay:
    """An electrocardiogram as on paper: 25 mm to a second and 10 mm to a millivolt.

    Parameters
    ----------
    record : Record
    saliency : SaliencyDisplay, optional
        Drawn behind the leads as shading.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
        Of a size at which the scale is true, unless `ax` was given.
    ax_ : matplotlib.axes.Axes
        Its units are millimetres.
    """

    def __init__(self, record, *, saliency: SaliencyDisplay | None = None):
        self.record = record
        self.saliency = saliency

    @classmethod
    def from_estimator(cls, estimator, record, **options) -> Self:
        """Measure the saliency of a recording, to be drawn behind it.

        Parameters
        ----------
        estimator : fitted ECGMambaClassifier
        record : Record, or array (leads, times) or (times,) where the estimator was fitted on arrays
            Arrays count as millivolts here.
        **options
            As in `SaliencyDisplay.from_estimator`, whose errors apply: `label`, `method`, `start`, `stop`, `smoothing`,
            `width`.
        """
        from ssmseq.ecg import saliency

        found = SaliencyDisplay.from_estimator(estimator, record, **options)
        return cls(saliency.read_one(estimator, record), saliency=found)

    def frame(self) -> "pd.DataFrame":
        """Return one row per lead and sample of the recording: lead, seconds, millivolts."""
        import pandas as pd

        record = self.record
        columns = {"lead": np.repeat(np.asarray(record.lead_names, dtype=object), record.n_times)}
        columns["seconds"] = np.tile(np.arange(record.n_times) / record.sampling_rate, len(record.lead_names))
        return pd.DataFrame(columns | {"millivolts": record.signal.ravel()})

    def paper_size(self, *, start: float = 0.0, seconds: float = 10.0, layout: str = "auto") -> tuple[float, float]:
        """Return width and height in inches of the axes whose scale is true; parameters are those of `plot`."""
        sheet = self._sheet(start, seconds, layout)
        left, top, right, bottom = MARGINS
        return (left + sheet.width + right) / MM_PER_INCH, (top + sheet.height + bottom) / MM_PER_INCH

    def plot(self, *, start: float = 0.0, seconds: float = 10.0, layout: str = "auto", ax=None) -> Self:
        """Draw a part of the recording.

        Each piece of a lead stands on its own median, since electrodes drift; its place is no voltage. Rows are as high
        as the signals need, up to 4 mV on either side, and what reaches further is cut and said so. Missing samples
        leave a gap.

        Parameters
        ----------
        start : float
            In seconds from the beginning of the recording.
        seconds : float
            How long a part, at most a minute. The columns of the 12-lead layout have a quarter of it each, one after
            the other.
        layout : {"auto", "12-lead", "stack"}
            "12-lead" is I, aVR, V1, V4 over II, aVL, V2, V5 over III, aVF, V3, V6 and lead II throughout below; missing
            limb leads are derived where two others are there. "stack" has a row for each lead as recorded. "auto" takes
            the first where the recording has these twelve leads and no other layout else.
        ax : matplotlib Axes, optional
            Its scale is true if it has the size of `paper_size`; 1 s is as long as 2.5 mV in any case. By default a new
            figure.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `start` is not within the recording, or another parameter is out of range.
        """
        sheet = self._sheet(start, seconds, layout)
        left, top, right, bottom = MARGINS
        if ax is None:
            size = self.paper_size(start=start, seconds=seconds, layout=layout)
            ax = pyplot().figure(figsize=size).add_axes((0, 0, 1, 1))
        paper.draw_grid(ax, sheet)
        for baseline in dict.fromkeys(strip.baseline for strip in sheet.strips):
            paper.draw_pulse(ax, baseline)
        most = 0.0 if self.saliency is None else _largest(self.saliency.saliency)
        images = [self._shade(ax, strip, most) for strip in sheet.strips]
        for strip in sheet.strips:
            self._draw(ax, strip)
        self._describe(ax, sheet, next((image for image in images if image is not None), None))
        ax.set_xlim(-left, sheet.width + right)
        ax.set_ylim(-bottom, sheet.height + top)
        ax.set_aspect("equal")
        ax.set_axis_off()
        self.figure_, self.ax_ = ax.figure, ax
        return self

    def _sheet(self, start: float, seconds: float, layout: str) -> paper.Sheet:
        check_choice("layout", layout, paper.LAYOUTS)
        check_number("start", start, minimum=0, below=self.record.duration)
        check_number("seconds", seconds, minimum=1, maximum=60)
        return paper.lay_out(self.record, layout, start, seconds)

    def _draw(self, ax, strip: paper.Strip) -> None:
        from matplotlib.patches import Rectangle

        before = len(ax.lines)
        x = strip.x_of(strip.seconds)
        draw_line(ax, x, strip.baseline + paper.MM_PER_MV * strip.millivolts, paper.INK, 0.7, strip.lead)
        width = (strip.stop - strip.start) * paper.MM_PER_SECOND
        row = Rectangle((strip.x, strip.baseline - strip.below), width, strip.below + strip.above)
        row.set_transform(ax.transData)
        for line in ax.lines[before:]:
            line.set(clip_path=row, zorder=3, markersize=1.5)
        if strip.x > paper.SIGNAL_AT:
            ax.plot([strip.x] * 2, strip.baseline + np.array([-3.0, 3.0]), color=paper.INK, linewidth=0.5, zorder=2)
        note = f" ({strip.note})" if strip.note else ""
        if not note and self.saliency is not None and strip.lead in self.saliency.leads:
            note = self.saliency._masked(strip.lead)
        where = (strip.x + 1, strip.baseline + strip.above - 1)
        ax.text(*where, strip.lead + note, fontsize=8, fontweight="bold", color=paper.INK, va="top", zorder=4)

    def _shade(self, ax, strip: paper.Strip, most: float):
        """Draw the absolute saliency behind a strip; return the image, or None where there is nothing to draw."""
        if self.saliency is None or strip.lead not in self.saliency.leads:
            return None
        seconds = np.asarray(self.saliency.seconds)
        here = (seconds >= strip.start) & (seconds < strip.stop)
        if not here.any():
            return None
        values = np.abs(self.saliency.saliency[list(self.saliency.leads).index(strip.lead)])[here]
        left, right = (strip.x_of(edge) for edge in self.saliency._edges(seconds[here]))
        extent = (left, right, strip.baseline - strip.below, strip.baseline + strip.above)
        return ax.imshow(
            np.ma.masked_invalid(values)[None],
            extent=extent,
            cmap=_shades(),
            vmin=0,
            vmax=most or 1.0,
            interpolation="nearest",
            zorder=1,
        )

    def _describe(self, ax, sheet: paper.Sheet, image) -> None:
        """Write what is shown, the scale, and what is not as it should be; draw the colour bar."""
        from matplotlib.ticker import MaxNLocator

        name = "" if self.record.record_id is None else f"{self.record.record_id}   "
        part = f"{name}{sheet.start:g} to {min(sheet.stop, self.record.duration):g} s"
        ax.text(0, sheet.height + 6.5, part, fontsize=9, va="baseline", color=paper.INK)
        if self.saliency is not None:
            shown = f"shaded: absolute saliency for {self.saliency._told()}, {self.saliency.method}"
            ax.text(0, sheet.height + 2.2, shown, fontsize=8, va="baseline", color=paper.INK)
        cut = [strip.lead for strip in sheet.strips if strip.cut]
        told = "25 mm/s   10 mm/mV" + (f"   cut at the edge of the row: {', '.join(cut)}" if cut else "")
        ax.text(0, -2, told, fontsize=8, va="top", color=paper.INK)
        if image is not None:
            length, height = BAR
            place = ax.inset_axes((sheet.width - length - 3, -1.5 - height, length, height), transform=ax.transData)
            bar = ax.figure.colorbar(image, cax=place, orientation="horizontal", ticks=MaxNLocator(4))
            bar.ax.tick_params(labelsize=6, length=1.5, pad=1)
            ax.text(sheet.width - length - 5, -1.2, "logit", fontsize=8, ha="right", va="top", color=paper.INK)


def _largest(values) -> float:
    return float(np.fmax.reduce(np.abs(values), axis=None, initial=0.0))


def _shades():
    """Return a colour map from clear to a blue that a black line still stands out from."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("saliency", [(0.42, 0.68, 0.92, 0.0), (0.20, 0.45, 0.85, 0.85)])

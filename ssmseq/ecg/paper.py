"""The geometry of an electrocardiogram on paper, in millimetres: which lead stands where, grid, calibration pulse.

The usual scale is 25 mm to a second and 10 mm to a millivolt, on a grid of 1 mm with bolder lines every 5 mm [1]_.

References
----------
.. [1] Kligfield, P. et al. (2007). Recommendations for the standardization and interpretation of the electrocardiogram,
   part I. Circulation 115, 1306-1324. https://doi.org/10.1161/CIRCULATIONAHA.106.180200
"""

import math
from typing import NamedTuple

import numpy as np

from ssmseq.ecg.leads import STANDARD_LEADS, arrange, standard_names
from ssmseq.ecg.records import Record

MM_PER_SECOND, MM_PER_MV, BOX = 25.0, 10.0, 5.0
PAPER = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
RHYTHM_LEAD = "II"
SIGNAL_AT = 10.0  # mm from the left edge of the grid; the calibration pulse is drawn before
LEAST_BELOW, LEAST_ABOVE, MOST = 10.0, 15.0, 40.0  # mm that a row has below and above its baseline
LAYOUTS = ("auto", "12-lead", "stack")
GRID, BOLD, PAPER_COLOR, INK = "#f7d3d3", "#e9a3a3", "#fffafa", "#111827"


class Strip(NamedTuple):
    """A piece of a lead and its place; the baseline is the median of what is shown."""

    lead: str
    note: str  # "derived", "not recorded" or ""
    x: float  # mm
    baseline: float  # mm from the bottom of the grid
    below: float  # mm that its row has under the baseline
    above: float
    start: float  # s
    stop: float
    seconds: np.ndarray  # (times,) from the beginning of the recording
    millivolts: np.ndarray  # (times,) from the baseline

    def x_of(self, seconds):
        """Return the place of a moment in mm."""
        return self.x + (seconds - self.start) * MM_PER_SECOND

    @property
    def cut(self) -> bool:
        """Whether the signal reaches out of its row."""
        peaks = np.fmax.reduce(self.millivolts, initial=0), np.fmin.reduce(self.millivolts, initial=0)
        return bool(peaks[0] * MM_PER_MV > self.above or -peaks[1] * MM_PER_MV > self.below)


class Sheet(NamedTuple):
    """All strips of a recording, and the size of the grid in mm."""

    strips: list[Strip]
    width: float
    height: float
    start: float
    stop: float


def lay_out(record: Record, layout: str, start: float, seconds: float) -> Sheet:
    """Return where the leads of a recording stand; see `ECGDisplay.plot`."""
    whole = set(STANDARD_LEADS) <= set(standard_names(record.lead_names))
    if layout == "12-lead" or (layout == "auto" and whole):
        quarter = seconds / 4
        rows = [[(lead, start + i * quarter, quarter) for i, lead in enumerate(row)] for row in PAPER]
        rows.append([(RHYTHM_LEAD, start, seconds)])
        leads = STANDARD_LEADS
    else:
        seconds = min(seconds, record.duration - start)
        leads = standard_names(record.lead_names)
        rows = [[(lead, start, seconds)] for lead in leads]
    found = arrange(record, leads, derive=layout != "stack")
    strips, height = [], 0.0
    for row in reversed(rows):
        pieces = [(place, _piece(record, found.signal[list(leads).index(place[0])], *place[1:])) for place in row]
        values = [values for _, (_, values) in pieces]
        below, above = _reach([-x for x in values], LEAST_BELOW), _reach(values, LEAST_ABOVE)
        for (lead, first, length), (times, millivolts) in pieces:
            note = "derived" if lead in found.derived else "not recorded" if lead in found.missing else ""
            x = SIGNAL_AT + (first - start) * MM_PER_SECOND
            where = (x, height + below, below, above)
            strips.append(Strip(lead, note, *where, first, first + length, times, millivolts))
        height += below + above
    width = BOX * math.ceil(round((SIGNAL_AT + seconds * MM_PER_SECOND) / BOX, 6)) + BOX
    return Sheet(strips, width, height, start, start + seconds)


def _piece(record: Record, signal: np.ndarray, start: float, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the times and millivolts of a piece of a lead, whose median is zero."""
    rate = record.sampling_rate
    first, last = (math.ceil(round(seconds * rate, 6)) for seconds in (start, start + length))
    values = signal[first:last].astype(np.float64)
    seen = values[~np.isnan(values)]
    return np.arange(first, first + len(values)) / rate, values - (np.median(seen) if len(seen) else 0.0)


def _reach(pieces: list[np.ndarray], least: float) -> float:
    """Return how many mm a row needs to one side, in whole boxes."""
    highest = max((float(np.fmax.reduce(values, initial=0.0)) for values in pieces), default=0.0)
    return float(np.clip(BOX * math.ceil((highest * MM_PER_MV + 1) / BOX), least, MOST))


def draw_grid(ax, sheet: Sheet) -> None:
    """Draw the paper: lines every millimetre, bolder ones every five."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((0, 0), sheet.width, sheet.height, facecolor=PAPER_COLOR, linewidth=0, zorder=0))
    for step, color, width in ((1.0, GRID, 0.3), (BOX, BOLD, 0.6)):
        x, y = np.arange(0, sheet.width + step / 2, step), np.arange(0, sheet.height + step / 2, step)
        lines = [[(a, 0), (a, sheet.height)] for a in x] + [[(0, b), (sheet.width, b)] for b in y]
        ax.add_collection(LineCollection(lines, colors=color, linewidths=width, zorder=0.5), autolim=False)


def draw_pulse(ax, baseline: float) -> None:
    """Draw the calibration pulse of a row: 1 mV for 0.2 s."""
    x = np.array([1.0, 3.0, 3.0, 8.0, 8.0, 9.0])
    y = baseline + np.array([0.0, 0.0, MM_PER_MV, MM_PER_MV, 0.0, 0.0])
    ax.plot(x, y, color=INK, linewidth=0.8, label="1 mV", zorder=3)

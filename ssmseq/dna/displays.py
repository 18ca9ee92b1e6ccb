"""Plots of what changes of a sequence do, in the shape of scikit-learn's displays."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ssmseq.dna.alphabet import BASES, N_BASES, A, encode
from ssmseq.plots import pyplot

if TYPE_CHECKING:
    import pandas as pd

RATIO = "log-likelihood ratio"
INK, LOWERS, RAISES = "#1f2937", "#2166AC", "#B2182B"  # the latter are from the ends of the colour map
WIDTHS = (5.0, 16.0)  # inches, least and most
INCHES_PER_PLACE = 0.11
SMALLEST = 4.0  # points, of letters that can be read
TRACK = 0.5  # height of the track above the map, in heights of the map


class MutagenesisDisplay:
    """What every substitution of one base in a region changes.

    Parameters
    ----------
    changes : array (places, 4)
        With A, C, G and T at a place; 0 for the base that is there, NaN where the letter is none of the four.
    reference : str
        The letters (places,) of the region.
    start : int
        Of the region, in bases from 0.
    contig : str, optional
    quantity : str
        What changes. A log-likelihood ratio is in nats.
    label : object, optional
        The class whose log-odds change.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    ax_ : matplotlib.axes.Axes
        Of the heat map.
    mean_ax_ : matplotlib.axes.Axes
        Of the track above it.
    """

    def __init__(self, *, changes, reference, start=0, contig=None, quantity=RATIO, label: Any = None):
        self.changes = changes
        self.reference = reference
        self.start = start
        self.contig = contig
        self.quantity = quantity
        self.label = label

    @property
    def mean_changes(self) -> np.ndarray:
        """Mean (places,) over the three other bases."""
        return np.asarray(self.changes).sum(1) / (N_BASES - 1)

    def frame(self) -> "pd.DataFrame":
        """Return one row for each place and other base.

        The columns are position (from 1, as POS in VCF), ref, alt and the quantity, such as log_likelihood_ratio; of
        letters that are none of A, C, G and T there is no row.
        """
        import pandas as pd

        changes, own = np.asarray(self.changes), self._own_bases()
        place, base = np.nonzero(~np.isnan(changes) & (np.arange(N_BASES) != own[:, None]))
        letters = np.array(list(BASES), dtype=object)
        columns = {"position": self.start + 1 + place, "ref": letters[own[place]], "alt": letters[base]}
        return pd.DataFrame(columns | {self.quantity.replace("-", "_").replace(" ", "_"): changes[place, base]})

    def plot(self, *, ax=None) -> Self:
        """Draw a heat map with a row for each base and a column for each place, and above it the means of the columns.

        Red raises and blue lowers. The bases of the sequence itself are grey, and written beneath where there is room.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Of the heat map; a new figure by default.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        n = len(self.reference)
        ax, track, bar_place = self._axes(ax)
        own = np.arange(N_BASES) == self._own_bases()[:, None]
        values = np.ma.masked_where(own | np.isnan(self.changes), self.changes)
        most = float(np.abs(values).max()) if values.count() else 0.0
        image = ax.imshow(
            values.T,
            extent=(self.start + 0.5, self.start + n + 0.5, N_BASES - 0.5, -0.5),
            aspect="auto",
            cmap="RdBu_r",
            vmin=-(most or 1.0),
            vmax=most or 1.0,
            interpolation="nearest",
        )
        ax.set_facecolor("0.8")
        ax.set_yticks(range(N_BASES), list(BASES))
        self._draw_means(track)
        self._write_letters(ax)
        self._label_positions(ax)
        told = self.quantity + (" (nats)" if self.quantity == RATIO else "")
        ax.figure.colorbar(image, **bar_place, label=told.replace(" ", "\n", 1))
        what = "" if self.label is None else f" of {self.label}"
        track.set_title(f"{self.quantity}{what}: mean of the other bases", loc="left", fontsize="medium")
        self.figure_, self.ax_, self.mean_ax_ = ax.figure, ax, track
        return self

    def _own_bases(self) -> np.ndarray:
        """Return the numbers of the bases in A, C, G, T that stand in the sequence; 4 and more for other letters."""
        return encode(self.reference).astype(np.int64) - A

    def _axes(self, ax) -> tuple[Any, Any, dict]:
        """Return the axes of the map and of the track, and where the colour bar goes."""
        if ax is None:
            width = float(np.clip(1.8 + INCHES_PER_PLACE * len(self.reference), *WIDTHS))
            size, rows = (width, 3.2), {"height_ratios": (TRACK, 1), "sharex": True}
            _, (track, ax) = pyplot().subplots(2, 1, figsize=size, layout="constrained", **rows)
            return ax, track, {"ax": [track, ax], "pad": 0.01, "aspect": 30}
        from mpl_toolkits.axes_grid1 import make_axes_locatable

        divider = make_axes_locatable(ax)  # all of it within the axes that were given
        track = divider.append_axes("top", size=f"{100 * TRACK:g}%", pad=0.1, sharex=ax)
        return ax, track, {"cax": divider.append_axes("right", size=0.1, pad=0.1)}

    def _draw_means(self, track) -> None:
        positions, means = self.start + 1 + np.arange(len(self.reference)), self.mean_changes
        for chosen, color in ((means < 0, LOWERS), (means >= 0, RAISES)):
            track.bar(positions[chosen], means[chosen], width=1.0, color=color, linewidth=0)
        track.axhline(0, color=INK, linewidth=0.6)
        track.tick_params(axis="x", labelbottom=False)
        track.locator_params(axis="y", nbins=3)
        track.spines[["top", "right"]].set_visible(False)

    def _write_letters(self, ax) -> None:
        """Write the sequence beneath the map, as large as its columns let it."""
        width = ax.get_position().width * ax.figure.get_figwidth() * 72 / len(self.reference)  # points of a column
        size = min(1.3 * width, 9.0)
        if size < SMALLEST:
            return
        for i, letter in enumerate(self.reference):
            place = (self.start + 1 + i, -0.03)
            ax.text(*place, letter, size=size, ha="center", va="top", family="monospace", color=INK,
                    transform=ax.get_xaxis_transform())  # fmt: skip
        ax.tick_params(axis="x", length=0, pad=size + 2)

    def _label_positions(self, ax) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.set_xlim(self.start + 0.5, self.start + len(self.reference) + 0.5)
        ax.set_xlabel("position" if self.contig is None else f"position in {self.contig}")

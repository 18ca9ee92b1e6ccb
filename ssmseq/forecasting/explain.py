"""What a forecast rests on: the influence of every input and row of the look-back.

It is that of the model and not of the process that the model was fitted to: what the forecast would have been with
another input, not what would have happened.
"""

from typing import Any, Self

import numpy as np
import pandas as pd

from ssmseq.base import check_choice, check_number
from ssmseq.forecasting import displays
from ssmseq.forecasting.influence import chosen_series, gradients, occlusions, window_inputs
from ssmseq.forecasting.preparing import unobserved
from ssmseq.plots import pyplot

METHODS = ("gradient", "occlusion")
FILLS = ("interpolation", "mean")
MOST_LABELS, MOST_CELLS = 40, 150  # on an axis; with their number written in
SMALLEST_SHARE = 0.5  # percent; less is not written in


class InfluenceDisplay:
    """How much each input and row moves the forecast of each variate.

    Parameters
    ----------
    influence : array (V, C, R)
        On the forecast of each variate, in its units. R is the look-back L, or L + H if covariates are known in
        advance; NaN where an input is not known.
    columns : sequence
        Names of the V variates forecast.
    inputs : sequence
        Names of the C inputs: variates, past covariates, features of the calendar, future covariates.
    lags : int array (R,)
        Rows from each row to the first one forecast: L to 1 for the look-back, 0 and below over the horizon.
    method : {"gradient", "occlusion"}
    averaged : bool
        Whether these are the mean absolute influences of several forecasts.
    times : pandas.Index (R,), optional
        None if several forecasts were averaged, or if a series begins within the look-back.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    ax_ : matplotlib.axes.Axes
    """

    def __init__(self, *, influence, columns, inputs, lags, method, averaged=False, times=None):
        self.influence = influence
        self.columns = columns
        self.inputs = inputs
        self.lags = lags
        self.method = method
        self.averaged = averaged
        self.times = times

    @classmethod
    def from_estimator(
        cls,
        estimator,
        df=None,
        *,
        method: str = "gradient",
        rows=None,
        series=None,
        future=None,
        step: int | None = None,
        width: int | None = None,
        fill: str = "interpolation",
    ) -> Self:
        r"""Measure the influence of the inputs on one forecast, or on several.

        "gradient" is gradient times input [1]_: with the forecast f of a variate, averaged over the horizon, the
        influence of the input x at row t is :math:`(x_t - \bar x) \, \partial f / \partial x_t`, where the mean runs
        over the look-back of the input. Its sign says where the input moves the forecast to. "occlusion" [2]_ hides a
        stretch of one input, and is the mean over the horizon of the absolute change of the forecast; every row of the
        stretch has this value.

        Parameters
        ----------
        estimator : fitted forecaster
            Any: a network, ridge or naive.
        df : frame like that of `fit`, optional
            By default the end of the training frame.
        method : {"gradient", "occlusion"}
        rows : int or list of int, optional
            Where in `df` the forecast begins: the number of its first row, from the end if negative. Rows from there on
            are not looked at, but for covariates known in advance. Of several, the absolute influences are averaged.
            By default, the forecast begins after the last row.
        series : optional
            Which series of a long frame, by its id; the first by default.
        future : frame, optional
            The covariates known in advance of a forecast that goes beyond the frame, as in `predict`.
        step : int, optional
            Row of the horizon to explain, 1 being the first; by default the mean over all of them.
        width : int, optional
            Rows of a stretch to hide; by default a 24th of the look-back.
        fill : {"interpolation", "mean"}
            What takes the place of a hidden stretch: the line between its neighbours, or the mean of the look-back.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a parameter out of range, or a frame unlike that of `fit` or too short.

        Notes
        -----
        Where inputs go together, hiding one leaves much of what it says in the others, and a gradient may fall on
        either of them: a small influence does not prove that an input is useless. A gradient holds for small changes
        only. A hidden stretch is an input that training never saw. Neither method is causal. Missing values count with
        what they were filled with. The token of static covariates has no rows and is left out.

        References
        ----------
        .. [1] Shrikumar, Greenside, Shcherbina and Kundaje, "Not just a black box: learning important features through
           propagating activation differences", arXiv 1605.01713. The mean of the look-back takes the place of zero.
        .. [2] Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, arXiv 1311.2901.
        """
        estimator._check_fitted_sizes()
        check_choice("method", method, METHODS)
        check_choice("fill", fill, FILLS)
        lookback, horizon = estimator.lookback_, estimator.horizon_
        if step is not None:
            check_number("step", step, minimum=1, maximum=horizon, integer=True)
        width = max(1, lookback // 24) if width is None else width
        check_number("width", width, minimum=1, maximum=lookback, integer=True)
        if method == "occlusion" and fill == "interpolation" and width == lookback:
            raise ValueError(f"width={width} hides the whole look-back, which leaves no neighbours; set fill='mean'")
        explained = slice(None) if step is None else slice(step - 1, step)
        whole, layout = chosen_series(estimator, df, series)
        several = np.iterable(rows)
        starts = [len(whole)] if rows is None else np.atleast_1d(rows).tolist()
        if not starts or (rows is not None and df is None):
            raise ValueError("rows= needs a frame and at least one row")
        found: Any = 0.0
        times = pd.Index([])
        for start in starts:
            before, inputs, times = window_inputs(estimator, whole, layout, start, future)
            influence = (
                gradients(estimator, inputs, explained)
                if method == "gradient"
                else occlusions(estimator, inputs, explained, width, fill)
            )
            influence *= estimator.preparation_.scaler.of(before, layout.columns)[1][:, None, None]
            influence[unobserved([before], len(layout.columns), lookback)[0]] = np.nan
            found = found + (np.abs(influence) if several else influence) / len(starts)
        return cls(
            influence=found,
            columns=layout.columns,
            inputs=(*layout.columns, *layout.past_covariates, *estimator.calendar_, *layout.future_covariates),
            lags=lookback - np.arange(found.shape[-1]),
            method=method,
            averaged=several,
            times=times[: found.shape[-1]] if not several and len(times) == lookback + horizon else None,
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per forecast variate, input and row: forecast, input, lag, time (of one forecast), influence.

        Inputs that are not known at a row have none there.
        """
        v, c, r = self.influence.shape
        times = {} if self.times is None else {"time": self.times[np.tile(np.arange(r), v * c)]}
        names = {
            "forecast": [name for name in self.columns for _ in range(c * r)],
            "input": [name for name in self.inputs for _ in range(r)] * v,
            "lag": np.tile(self.lags, v * c),
        }
        known = np.broadcast_to(self._known(), (v, c, r)).ravel()
        whole = pd.DataFrame(names | times | {"influence": self.influence.ravel()})
        return whole.loc[known].reset_index(drop=True)

    def plot(self, column=None, *, ax=None) -> Self:
        """Draw the influence on the forecast of one variate: inputs from top to bottom, rows from left to right.

        Parameters
        ----------
        column : optional
            The variate forecast; the first by default.
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
            For an unknown column.
        """
        plt = pyplot()
        (column,) = displays.chosen_columns(None if column is None else [column], self.columns, 1)
        values = self.influence[list(self.columns).index(column)]
        if ax is None:
            size = (9, min(1.4 + 0.27 * len(self.inputs), 12))
            _, ax = plt.subplots(figsize=size, layout="constrained")
        signed = self.method == "gradient" and not self.averaged
        most = np.nanmax(np.abs(values), initial=0.0) or 1.0
        places = self._places(ax)
        image = ax.pcolormesh(
            places,
            np.arange(len(self.inputs)),
            np.ma.masked_invalid(values),
            cmap="RdBu_r" if signed else "Blues",
            vmin=-most if signed else 0,
            vmax=most,
            shading="nearest",
        )
        ax.set_facecolor("0.92")  # where an input is not known
        n_past = int((self.lags > 0).sum())
        if n_past < len(places):
            ax.axvline(places[n_past - 1 : n_past + 1].mean(), color="black", linewidth=1, linestyle="--")
        _label_inputs(ax.yaxis, self.inputs)
        ax.invert_yaxis()
        ax.set_title(f"influence on the forecast of {column}", loc="left", fontsize="medium")
        label = {"gradient": "gradient times input", "occlusion": "change when hidden"}[self.method]
        absolute = "absolute " if self.method == "gradient" and self.averaged else ""
        ax.figure.colorbar(image, ax=ax, pad=0.02, label=f"{absolute}{label}\n(units of {column})")
        self.figure_, self.ax_ = ax.figure, ax
        return self

    def plot_matrix(self, *, relative: bool = True, ax=None) -> Self:
        """Draw the absolute influence of each input on each variate, summed over the rows.

        Parameters
        ----------
        relative : bool
            Draw the share of each input in percent, so that the inputs of a variate sum to 100, or the sums in the
            units of the variates.
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
        plt = pyplot()
        sums = np.where(self._known(), np.abs(self.influence), 0.0).sum(-1)
        if relative:
            total = sums.sum(1, keepdims=True)
            sums = 100 * sums / np.where(total == 0, 1.0, total)
        v, c = sums.shape
        if ax is None:
            size = (min(3.2 + 0.45 * c, 14), min(1.8 + 0.38 * v, 11))
            _, ax = plt.subplots(figsize=size, layout="constrained")
        image = ax.pcolormesh(np.arange(c), np.arange(v), sums, cmap="Blues", vmin=0, shading="nearest")
        _label_inputs(ax.xaxis, self.inputs, rotation=90 if c > 4 else 0)
        _label_inputs(ax.yaxis, self.columns)
        ax.invert_yaxis()
        ax.set_xlabel("input")
        ax.set_ylabel("forecast")
        if relative and v * c <= MOST_CELLS:
            half = np.nanmax(sums, initial=0.0) / 2
            for i, j in np.argwhere(sums >= SMALLEST_SHARE):
                color = "white" if sums[i, j] > half else displays.BLUE
                ax.text(j, i, f"{sums[i, j]:.0f}", ha="center", va="center", color=color, size="small")
        label = "share of the absolute\ninfluence (%)" if relative else "absolute influence\n(units of the forecast)"
        ax.figure.colorbar(image, ax=ax, pad=0.02, label=label)
        self.figure_, self.ax_ = ax.figure, ax
        return self

    def _known(self) -> np.ndarray:
        """Return which input is known at which row, (C, R); over the horizon no influence at all is NaN."""
        never = np.isnan(self.influence).all(0)
        return ~never | (self.lags > 0)

    def _places(self, ax) -> np.ndarray:
        """Return where each row stands on the horizontal axis, and label that axis."""
        if self.times is None:
            ax.set_xlabel("rows before the forecast begins")
            ax.xaxis.set_major_formatter(lambda x, _: f"{-x:g}")
            return -self.lags
        if not isinstance(self.times, pd.DatetimeIndex | pd.PeriodIndex):
            ax.set_xlabel("row")
            return np.asarray(self.times)
        from matplotlib.dates import date2num

        ax.xaxis_date(getattr(self.times, "tz", None))
        displays.format_times(ax, self.times)
        return date2num(displays.plottable(self.times))


def _label_inputs(axis, names, rotation: float = 0) -> None:
    """Name the ticks of an axis, every so many if there are too many to read."""
    shown = np.arange(0, len(names), -(-len(names) // MOST_LABELS))
    axis.set_ticks(shown, [str(names[i]) for i in shown], rotation=rotation, fontsize="small")

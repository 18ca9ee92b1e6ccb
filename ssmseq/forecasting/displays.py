"""Plots of forecasts, in the shape of scikit-learn's displays; every plot can hand back its numbers."""

from typing import Any, Self

import numpy as np
import pandas as pd

from ssmseq.forecasting.frames import read_frame

GREY, BLUE, ORANGE = "#6b7280", "#1f2937", "#d9480f"


class ForecastDisplay:
    """A forecast beside what happened.

    Parameters
    ----------
    history_times, times : pandas.Index
        Of the rows before the forecast (L) and of the forecast (H).
    history : array (L, V)
    actual, forecast : array (H, V)
    columns : sequence
        Names of the variates.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : array of matplotlib.axes.Axes
        One per variate drawn.
    """

    def __init__(self, *, history_times, history, times, actual, forecast, columns):
        self.history_times = history_times
        self.history = history
        self.times = times
        self.actual = actual
        self.forecast = forecast
        self.columns = columns

    @classmethod
    def from_estimator(cls, estimator, df) -> Self:
        """Forecast the last `horizon` rows of a frame from the rows before them.

        Parameters
        ----------
        estimator : fitted forecaster
        df : frame like that of `fit`
            At least ``lookback + horizon`` rows.

        Raises
        ------
        ValueError
            If the frame is too short, or unlike that of `fit`.
        """
        estimator._check_fitted_sizes()
        values, times, _ = read_frame(df, estimator.time_col, estimator.layout_)
        horizon, lookback = estimator.horizon_, estimator.lookback_
        if len(values) < lookback + horizon:
            raise ValueError(f"the frame has {len(values)} rows, too few for lookback={lookback} + horizon={horizon}")
        past = slice(len(values) - horizon - lookback, len(values) - horizon)
        return cls(
            history_times=times[past],
            history=values[past],
            times=times[-horizon:],
            actual=values[-horizon:],
            forecast=estimator._forecast_rows(values[past], times[past]),
            columns=estimator.layout_.columns,
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per time and variate: time, column, actual, forecast."""
        n_rows, n_columns = self.forecast.shape
        return pd.DataFrame(
            {
                "time": np.repeat(self.times, n_columns),
                "column": list(self.columns) * n_rows,
                "actual": self.actual.ravel(),
                "forecast": self.forecast.ravel(),
            }
        )

    def plot(self, *, columns=None, ax=None) -> Self:
        """Draw history, actual values and forecast, one panel per variate.

        Parameters
        ----------
        columns : list of column names, optional
            Variates to draw; the first four by default.
        ax : matplotlib Axes or sequence of them, optional
            One per variate drawn; a new figure by default.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            For an unknown column, or another number of axes than of columns.
        """
        plt = _matplotlib()
        shown = list(self.columns[:4]) if columns is None else list(columns)
        unknown = [c for c in shown if c not in self.columns]
        if unknown:
            raise ValueError(f"{unknown} are not columns of the forecast; those are {list(self.columns)}")
        if ax is None:
            figure, axes = plt.subplots(
                len(shown), 1, sharex=True, squeeze=False, figsize=(9, 0.8 + 1.7 * len(shown)), layout="constrained"
            )
            axes = axes[:, 0]
        else:
            axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
            figure = axes[0].figure
        if len(axes) != len(shown):
            raise ValueError(f"{len(shown)} columns need as many axes, got {len(axes)}")
        for axis, column in zip(axes, shown, strict=True):
            self._draw(axis, list(self.columns).index(column), column)
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2)
        if isinstance(self.times, pd.DatetimeIndex | pd.PeriodIndex):
            self._format_dates(axes[-1])
        if ax is None:
            figure.align_ylabels()
        self.figure_, self.axes_ = figure, axes
        return self

    def _draw(self, axis, i: int, name) -> None:
        past, future = (_plottable(t) for t in (self.history_times, self.times))
        axis.plot(past, self.history[:, i], color=GREY, linewidth=1, label="history")
        axis.plot(future, self.actual[:, i], color=BLUE, linewidth=1.2, label="actual")
        axis.plot(future, self.forecast[:, i], color=ORANGE, linewidth=1.6, label="forecast")
        axis.axvspan(future[0], future[-1], color=ORANGE, alpha=0.05, linewidth=0)
        axis.set_ylabel(str(name))
        axis.margins(x=0)
        axis.spines[["top", "right"]].set_visible(False)

    @staticmethod
    def _format_dates(axis) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _plottable(times: pd.Index) -> Any:
    return times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times


def _matplotlib():
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "ssmseq[plot]"') from error
    return plt

"""Plots of forecasts and of their errors, in the shape of scikit-learn's displays; each can hand back its numbers."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from ssmseq.base import check_choice
from ssmseq.forecasting.frames import Series
from ssmseq.forecasting.intervals import check_levels
from ssmseq.forecasting.preparing import check_length
from ssmseq.forecasting.scoring import forecasts
from ssmseq.plots import draw_line, pyplot

GREY, BLUE, ORANGE, GREEN, VIOLET = "#6b7280", "#1f2937", "#d9480f", "#2b8a3e", "#7048e8"
LINES = (ORANGE, BLUE, GREEN, VIOLET, GREY)  # colours of estimators beside each other
MOST_PANELS = 4  # drawn unless more are asked for
METRICS = {"mse": "mean squared error", "mae": "mean absolute error"}


class ForecastDisplay:
    """A forecast beside what happened, one panel per variate, or per series of a long frame.

    Parameters
    ----------
    history_times, times : pandas.Index, or list of them
        Of the rows before the forecast (L) and of the forecast (H); of a long frame one for each panel.
    history : array (L, panels)
        NaN where nothing was observed, also before the first row of a short series.
    actual, forecast : array (H, panels)
    columns : sequence
        Names of the panels: the variates, or the ids of a long frame ("ID/VARIATE" if it has several variates).
    levels : sequence of int
        Percentages of the prediction intervals.
    bounds : array (H, panels, levels, 2), optional
        Their lower and upper ends.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : array of matplotlib.axes.Axes
        One per panel drawn.
    """

    def __init__(self, *, history_times, history, times, actual, forecast, columns, levels=(), bounds=None):
        self.history_times = history_times
        self.history = history
        self.times = times
        self.actual = actual
        self.forecast = forecast
        self.columns = columns
        self.levels = levels
        self.bounds = bounds

    @classmethod
    def from_estimator(cls, estimator, df, *, level=()) -> Self:
        """Forecast the last `horizon` rows of a frame from the rows before them.

        Covariates known in advance are those of these last rows.

        Parameters
        ----------
        estimator : fitted forecaster
        df : frame like that of `fit`
            At least ``lookback + horizon`` rows. Of a long frame, series without a row before the last `horizon` are
            left out.
        level : list of int
            Percentages of prediction intervals, such as ``[80, 95]``, as in `predict`.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If the frame is too short, or unlike that of `fit`; or if there is nothing to take intervals from.
        """
        estimator._check_fitted_sizes()
        levels = check_levels(level)
        found, layout = estimator._read(df)
        horizon, lookback, columns = estimator.horizon_, estimator.lookback_, layout.columns
        series = [s for s in found if len(s) >= horizon + (1 if layout.is_long else lookback)]
        if not series:
            raise ValueError(
                f"the frame has {max(map(len, found))} rows, too few for lookback={lookback} + horizon={horizon}"
            )
        past = [s.rows(slice(0, len(s) - horizon)) for s in series]
        outputs = estimator._forecast_series(
            past, [future_covariates(s, -horizon, layout) for s in series], columns, levels
        )
        outputs = np.concatenate(outputs).transpose(1, 0, 2)  # (H, panels, 1 + 2 levels)
        before = [s.tail(lookback) for s in past for _ in columns]
        after = [s.tail(horizon) for s in series for _ in columns]
        history = np.full((lookback, len(before)), np.nan)
        for i, s in enumerate(before):
            history[lookback - len(s) :, i] = s.values[:, i % len(columns)]
        names = columns
        if layout.is_long:
            names = [s.id if len(columns) == 1 else f"{s.id}/{c}" for s in series for c in columns]
        return cls(
            history_times=[s.times for s in before] if layout.is_long else before[0].times,
            history=history,
            times=[s.times for s in after] if layout.is_long else after[0].times,
            actual=np.column_stack([s.values[:, i % len(columns)] for i, s in enumerate(after)]),
            forecast=outputs[..., 0],
            columns=names,
            levels=levels,
            bounds=outputs[..., 1 : 1 + 2 * len(levels)].reshape(*outputs.shape[:2], len(levels), 2),
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per time and panel: time, column, actual, forecast, and lo-80, hi-80 for each level."""
        n_rows, n_panels = self.forecast.shape
        columns = {"actual": self.actual, "forecast": self.forecast}
        for i, p in enumerate(self.levels):
            columns |= {f"{side}-{p}": np.asarray(self.bounds)[:, :, i, end] for end, side in enumerate(("lo", "hi"))}
        if isinstance(self.times, pd.Index):
            labels = {"time": self.times.repeat(n_panels), "column": list(self.columns) * n_rows}
            return pd.DataFrame(labels | {name: x.ravel() for name, x in columns.items()})
        times = self.times[0].append(list(self.times[1:]))
        labels = {"time": times, "column": [c for c in self.columns for _ in range(n_rows)]}
        return pd.DataFrame(labels | {name: x.T.ravel() for name, x in columns.items()})

    def plot(self, *, columns=None, ax=None) -> Self:
        """Draw history, actual values, forecast and intervals, one panel per variate or series.

        Parameters
        ----------
        columns : list of names, optional
            Variates, or ids of a long frame, to draw; the first four by default.
        ax : matplotlib Axes or sequence of them, optional
            One per panel drawn; a new figure by default.

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
        plt = pyplot()
        shown = chosen_columns(columns, self.columns, MOST_PANELS)
        together = isinstance(self.times, pd.Index)
        if ax is None:
            size = (9, 0.8 + (1.7 if together else 2) * len(shown))
            figure, axes = plt.subplots(
                len(shown), 1, sharex=together, squeeze=False, figsize=size, layout="constrained"
            )
            axes = axes[:, 0]
        else:
            axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
            figure = axes[0].figure
        if len(axes) != len(shown):
            raise ValueError(f"{len(shown)} columns need as many axes, got {len(axes)}")
        for axis, column in zip(axes, shown, strict=True):
            self._draw(axis, list(self.columns).index(column), column)
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False, borderaxespad=0.2)
        for axis, column in zip(axes, shown, strict=True):
            if not together or axis is axes[-1]:
                format_times(axis, self._times(list(self.columns).index(column))[1])
        if ax is None:
            figure.align_ylabels()
        self.figure_, self.axes_ = figure, axes
        return self

    def _times(self, i: int) -> tuple[pd.Index, pd.Index]:
        if isinstance(self.times, pd.Index):
            return self.history_times, self.times
        return self.history_times[i], self.times[i]

    def _draw(self, axis, i: int, name) -> None:
        past, future = (plottable(t) for t in self._times(i))
        draw_line(axis, past, self.history[len(self.history) - len(past) :, i], GREY, 1, "history")
        draw_line(axis, future, self.actual[:, i], BLUE, 1.2, "actual")
        draw_line(axis, future, self.forecast[:, i], ORANGE, 1.6, "forecast")
        for n, k in enumerate(sorted(range(len(self.levels)), key=lambda k: -self.levels[k])):
            lower, upper = np.asarray(self.bounds)[:, i, k].T
            depth = 0.2 + 0.3 * n / max(len(self.levels) - 1, 1)  # the outer band is the lightest
            axis.fill_between(
                future, lower, upper, color=_paler(ORANGE, depth), linewidth=0, label=f"{self.levels[k]} %"
            )
        axis.axvspan(future[0], future[-1], color=GREY, alpha=0.08, linewidth=0, zorder=0)
        axis.set_ylabel(str(name))
        axis.margins(x=0)
        axis.spines[["top", "right"]].set_visible(False)


class HorizonErrorDisplay:
    """How the error grows over the horizon, of one forecaster or of several beside each other.

    Parameters
    ----------
    errors : pandas.DataFrame
        One row per estimator and step: estimator, step (1 is the row after the look-back), mse, mae, and count, the
        number of values that the means are of.
    scaled : bool
        Whether errors are of scaled values.
    freq : str or int
        Distance of the rows.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    ax_ : matplotlib.axes.Axes
    """

    def __init__(self, *, errors, scaled, freq):
        self.errors = errors
        self.scaled = scaled
        self.freq = freq

    @classmethod
    def from_estimators(cls, estimators, df, *, scaled: bool = True) -> Self:
        """Forecast every window of a frame, one row apart, and average the errors of each step.

        Means run over windows and variates; missing targets do not count. Windows are those of `evaluate`, whose "mse"
        and "mae" are the means over the steps, weighted by the counts. If look-backs differ, every estimator is
        measured on the windows that the longest leaves.

        Parameters
        ----------
        estimators : fitted forecaster, or dict of them by name
            Fitted on the same rows, so that their scales agree.
        df : frame like that of `fit`
            At least ``lookback + horizon`` rows.
        scaled : bool
            Measure on the scale of each estimator's fitted scaler, or in the original units.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            As in `evaluate`.
        """
        named = estimators if isinstance(estimators, Mapping) else {type(estimators).__name__: estimators}
        if not named:
            raise ValueError("there is no estimator to measure")
        for estimator in named.values():
            estimator._check_fitted_sizes()
        longest = max(estimator.lookback_ for estimator in named.values())
        parts = [_step_errors(estimator, df, longest, scaled=scaled) for estimator in named.values()]
        errors = pd.concat(parts, keys=list(named), names=["estimator"]).reset_index(level=0).reset_index(drop=True)
        return cls(errors=errors, scaled=scaled, freq=next(iter(named.values())).layout_.freq)

    def frame(self) -> pd.DataFrame:
        """Return one row per estimator and step: estimator, step, mse, mae, count."""
        return self.errors.copy()

    def plot(self, *, metric: str = "mse", ax=None) -> Self:
        """Draw one line per estimator over the steps of the horizon.

        Parameters
        ----------
        metric : {"mse", "mae"}
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
            For another metric.
        """
        check_choice("metric", metric, tuple(METRICS))
        if ax is None:
            _, ax = pyplot().subplots(figsize=(7, 3.6), layout="constrained")
        for i, (name, rows) in enumerate(self.errors.groupby("estimator", sort=False)):
            style = {"linestyle": ("-", "--", ":")[i // len(LINES) % 3], "marker": "o" if len(rows) < 3 else None}
            ax.plot(rows["step"], rows[metric], color=LINES[i % len(LINES)], linewidth=1.6, label=str(name), **style)
        unit = "" if isinstance(self.freq, int) else f" (freq: {self.freq})"
        of = "scaled values" if self.scaled else "original units"
        ax.set_xlabel(f"rows ahead{unit}")
        ax.set_ylabel(f"{METRICS[metric]} ({of})")
        ax.set_ylim(bottom=0)
        ax.margins(x=0)
        ax.locator_params(axis="x", integer=True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0.2)
        self.figure_, self.ax_ = ax.figure, ax
        return self


def _step_errors(estimator, df, longest: int, *, scaled: bool) -> pd.DataFrame:
    """Return step, mse, mae and count, over the windows that a look-back of `longest` rows leaves."""
    series, layout = estimator._read(df)
    lookback, horizon = estimator.lookback_, estimator.horizon_
    check_length("frame", series, series, layout, longest, horizon)
    spared = longest - lookback  # rows before which only a longer look-back begins
    series = [s.rows(slice(max(min(spared, len(s) - lookback - horizon), 0), len(s))) for s in series]
    windows = estimator.preparation_.windows(series)
    if not len(windows):
        raise ValueError("the frame has no window with an observed value in look-back and horizon")
    units = torch.from_numpy(np.stack([estimator.preparation_.scaler.of(s, layout.columns)[1] for s in series]))
    sums = torch.zeros(3, horizon, dtype=torch.float64)
    for _, point, truth, _, owner in forecasts(estimator, windows, range(len(windows))):
        observed = ~torch.isnan(truth)
        error = torch.where(observed, point - truth, 0.0) * (1.0 if scaled else units[owner].unsqueeze(-1))
        sums += torch.stack([x.sum((0, 1)) for x in (error.square(), error.abs(), observed.double())])
    squared, absolute, count = sums.numpy()
    with np.errstate(invalid="ignore"):
        errors = {"mse": squared / count, "mae": absolute / count}
    return pd.DataFrame({"step": np.arange(1, horizon + 1), **errors, "count": count.astype(np.int64)})


def future_covariates(series: Series, start: int, layout) -> np.ndarray | None:
    """Return the covariates known in advance, from row `start` on, or None if there are none."""
    n_future = len(layout.future_covariates)
    return series.values[start:, series.values.shape[1] - n_future :] if n_future else None


def chosen_columns(asked, columns, most: int) -> list:
    """Return the columns to draw, the first ones unless asked for others; ValueError for an unknown one."""
    shown = list(columns[:most]) if asked is None else list(asked)
    unknown = [c for c in shown if c not in columns]
    if unknown:
        raise ValueError(f"{unknown} are not columns of the forecast; those are {list(columns)}")
    return shown


def format_times(axis, times: pd.Index) -> None:
    """Label the horizontal axis with short dates if times are stamps or periods."""
    if not isinstance(times, pd.DatetimeIndex | pd.PeriodIndex):
        axis.set_xlabel(axis.get_xlabel() or "row")
        return
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    zone = getattr(times, "tz", None)
    locator = AutoDateLocator(tz=zone)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))


def plottable(times: pd.Index) -> Any:
    """Return times that matplotlib takes."""
    return times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times


def _paler(color: str, share: float) -> tuple[float, ...]:
    """Return a colour thinned with white to a share of itself."""
    return tuple(1 - share * (1 - int(color[i : i + 2], 16) / 255) for i in (1, 3, 5))

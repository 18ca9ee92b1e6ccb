"""The parts that KARMA splits a look-back and its forecast into."""

from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from ssmseq.forecasting.displays import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VIOLET,
    chosen_columns,
    format_times,
    plottable,
)
from ssmseq.forecasting.influence import chosen_series, window_inputs
from ssmseq.forecasting.karma import KarmaForecaster
from ssmseq.forecasting.preparing import unobserved
from ssmseq.plots import draw_line, pyplot

TEAL = "#0b7285"
PARTS = {"trend": VIOLET, "low band": GREEN, "high band": BLUE}
MOST_VARIATES = 2  # drawn unless more are asked for


class DecompositionDisplay:
    """A look-back with the trend and season that KARMA splits it into, and what the parts of the network add.

    The share of a part is the forecast less the forecast of the network with that part set to zero: the tokens of the
    trend, or the low or high band of the other tokens. A normalisation lies between the bands and the last map, so the
    shares do not add up to the forecast.

    The wavelet splits the channels of learned tokens and not the rows of the series: its bands are no frequencies of
    the series, low no slow movement and high no fast one.

    Parameters
    ----------
    history_times, times : pandas.Index
        Of the look-back (L, or fewer rows of a short series) and the forecast (H).
    history : array (L, V)
        NaN where nothing was observed.
    trend, season : array (L, V) or None
        In the units of the variates; None without a decomposition. Those of the moving average add up to the look-back
        (with gaps filled); those of "atcd" need not.
    forecast : array (H, V)
    shares : dict of array (H, V)
        By part: "trend" (with a decomposition), "low band", "high band".
    columns : sequence
        Names of the variates.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
    axes_ : array (2, variates drawn) of matplotlib.axes.Axes
    """

    def __init__(self, *, history_times, history, trend, season, times, forecast, shares, columns):
        self.history_times = history_times
        self.history = history
        self.trend = trend
        self.season = season
        self.times = times
        self.forecast = forecast
        self.shares = shares
        self.columns = columns

    @classmethod
    def from_estimator(cls, estimator, df=None, *, series=None, future=None) -> Self:
        """Take the last look-back of a frame, and the forecast that follows, apart.

        Parameters
        ----------
        estimator : fitted KarmaForecaster
        df : frame like that of `fit`, optional
            By default the end of the training frame.
        series : optional
            Which series of a long frame, by its id; the first by default.
        future : frame, optional
            The covariates known in advance, as in `predict`.

        Raises
        ------
        TypeError
            For another forecaster.
        NotFittedError
            If `fit` has not run.
        ValueError
            If the frame is too short, or unlike that of `fit`.
        """
        if not isinstance(estimator, KarmaForecaster):
            raise TypeError(f"only KarmaForecaster splits a series, {type(estimator).__name__} does not")
        estimator._check_fitted_sizes()
        whole, layout = chosen_series(estimator, df, series)
        before, inputs, times = window_inputs(estimator, whole, layout, len(whole), future)
        v, lookback = len(layout.columns), estimator.lookback_
        mean, scale, _ = estimator.preparation_.scaler.of(before, layout.columns)
        (unseen,) = unobserved([before], v, lookback)

        def forecast() -> np.ndarray:
            point = estimator._point(estimator._forecast(inputs)).double().cpu().numpy()[0]
            return np.where(unseen, np.nan, point.T * scale)

        (usual, trend, season), network = _split(estimator.network_, forecast), estimator.network_
        zeroed: dict[str, Any] = {"low band": (network.layers[-1], _without(1))}
        zeroed["high band"] = network.layers[-1], _without(2)
        if trend is not None:
            zeroed = {"trend": (network.trend_projection, _without(None)), **zeroed}
        shares = {}
        for part, (module, hook) in zeroed.items():
            with _hooked([module], hook):
                shares[part] = usual - forecast()
        n_rows = min(len(before), lookback)  # a series of a long frame may begin within the look-back
        return cls(
            history_times=times[: -estimator.horizon_],
            history=before.values[-n_rows:, :v],
            trend=None if trend is None else trend[-n_rows:] * scale + mean,
            season=None if season is None else season[-n_rows:] * scale,
            times=times[-estimator.horizon_ :],
            forecast=usual + mean,
            shares=shares,
            columns=layout.columns,
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per time, variate and part: time, column, part, value.

        Parts are "look-back", "trend", "season", "forecast", and "share of trend" and so on.
        """
        past = {"look-back": self.history, "trend": self.trend, "season": self.season}
        following = {"forecast": self.forecast} | {f"share of {part}": x for part, x in self.shares.items()}
        blocks = [(self.history_times, part, x) for part, x in past.items() if x is not None]
        blocks += [(self.times, part, x) for part, x in following.items()]
        v = len(self.columns)
        return pd.concat(
            [
                pd.DataFrame(
                    {"time": t.repeat(v), "column": list(self.columns) * len(t), "part": part, "value": x.ravel()}
                )
                for t, part, x in blocks
            ],
            ignore_index=True,
        )

    def plot(self, *, columns=None, ax=None) -> Self:
        """Draw look-back, trend and season above, and the forecast with the shares of the parts below.

        Season and shares lie about zero; they are drawn about the mean of the look-back, the dashed line.

        Parameters
        ----------
        columns : list of names, optional
            Variates to draw, from left to right; the first two by default.
        ax : array (2, variates drawn) of matplotlib Axes, optional
            A new figure by default.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            For an unknown column, or another number of axes.
        """
        plt = pyplot()
        shown = chosen_columns(columns, self.columns, MOST_VARIATES)
        n = len(shown)
        if ax is None:
            _, ax = plt.subplots(2, n, squeeze=False, figsize=(1 + 4.6 * n, 5.6), layout="constrained")
        axes = np.asarray(ax, dtype=object)
        if axes.size != 2 * n:
            raise ValueError(f"{n} columns need axes (2, {n}), got {axes.size}")
        axes = axes.reshape(2, n)
        for (upper, lower), column in zip(axes.T, shown, strict=True):
            self._draw(upper, lower, list(self.columns).index(column))
            upper.set_ylabel(str(column))
            lower.set_ylabel(f"forecast of {column}")
        for axis in axes[:, 0]:
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", frameon=False)
        self.figure_, self.axes_ = axes[0, 0].figure, axes
        return self

    def _draw(self, upper, lower, i: int) -> None:
        mean = np.nanmean(self.history[:, i]) if not np.isnan(self.history[:, i]).all() else 0.0
        above = [("look-back", self.history, GREY, 0.0)]
        if self.trend is not None:
            above += [("season", self.season, TEAL, mean), ("trend", self.trend, VIOLET, 0.0)]
        below = [("forecast", self.forecast, ORANGE, 0.0)]
        below += [(f"share of {part}", x, PARTS[part], mean) for part, x in self.shares.items()]
        for axis, times, lines in ((upper, self.history_times, above), (lower, self.times, below)):
            for label, values, color, shift in lines:
                draw_line(axis, plottable(times), values[:, i] + shift, color, 1.4, label)
            label = "mean of the look-back" if axis is upper else None
            axis.axhline(mean, color="black", linewidth=0.8, linestyle="--", zorder=1, label=label)
            format_times(axis, times)
            axis.margins(x=0)
            axis.spines[["top", "right"]].set_visible(False)


def _split(network, forecast) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return a forecast, and the trend and season (L, V) that the network found on its way, on its scale."""
    found = {}

    def keep(module, given, output):
        found[module] = output

    with _hooked([m for m in (network.window_norm, network.decomposition) if m is not None], keep):
        usual = forecast()
    if network.decomposition is None:
        return usual, None, None
    (season, trend), (_, statistics) = found[network.decomposition], found[network.window_norm]
    with torch.inference_mode():
        back = [network.window_norm.inverse(x, statistics) for x in (trend, season, torch.zeros_like(season))]
    trend, season, nothing = (x.double().cpu().numpy()[0].T for x in back)
    return usual, trend, season - nothing


def _without(part: int | None):
    """Return a hook that sets an output to zero, or the one at this place of a tuple."""

    def hook(module, given, output):
        if part is None:
            return torch.zeros_like(output)
        return tuple(torch.zeros_like(x) if i == part else x for i, x in enumerate(output))

    return hook


@contextmanager
def _hooked(modules, hook):
    """Let a forward hook change the outputs of modules for a while."""
    handles = [m.register_forward_hook(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

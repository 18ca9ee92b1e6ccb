"""The scale of each series and covariate, found in the training rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from ssmseq.forecasting.covariates import season_length
from ssmseq.forecasting.frames import FrameLayout, Series


@dataclass
class Scaler:
    """Means and standard deviations of the training rows, and how far the seasonal naive forecast is off there.

    Variates of a wide frame are scaled by their column, those of a long frame by their series; covariates by their
    column over all series. A series or variate that `fit` did not see is scaled by the history that it comes with.
    """

    kind: str  # "standard" or "none"
    columns: tuple
    ids: list[Any]
    mean: np.ndarray  # (series, V)
    scale: np.ndarray  # (series, V)
    naive_error: np.ndarray  # (series, V): mean absolute difference to the season before
    covariate_mean: np.ndarray  # (P + F,)
    covariate_scale: np.ndarray
    static_mean: np.ndarray  # (S,)
    static_scale: np.ndarray
    season: int  # rows

    @classmethod
    def fit(cls, series: list[Series], layout: FrameLayout, kind: str) -> "Scaler":
        """Find the statistics of training rows."""
        v = len(layout.columns)
        season = season_length(max(series, key=len).times)
        found = [_moments(s.values[:, :v], kind) for s in series]
        covariates = _moments(np.concatenate([s.values[:, v:] for s in series]), kind)
        static = _moments(np.stack([s.static for s in series]), kind)
        errors = [_naive_error(s.values[:, :v], season) for s in series]
        mean, scale = (np.stack([f[i] for f in found]) for i in (0, 1))
        return cls(
            kind, layout.columns, [s.id for s in series], mean, scale, np.stack(errors), *covariates, *static, season
        )

    def __post_init__(self):
        self._places = {name: i for i, name in enumerate(self.ids)}

    def of(self, series: Series, columns: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, scale and naive error (V,) of a series with these variates."""
        mine = self._places.get(series.id)
        if columns == self.columns and mine is not None:
            return self.mean[mine], self.scale[mine], self.naive_error[mine]
        values = series.values[:, : len(columns)]
        found = np.stack([*_moments(values, self.kind), _naive_error(values, self.season)])
        if mine is not None:
            for i, column in enumerate(columns):
                if column in self.columns:
                    at = self.columns.index(column)
                    found[:, i] = self.mean[mine, at], self.scale[mine, at], self.naive_error[mine, at]
        return found[0], found[1], found[2]

    def scaled(self, series: Series, columns: tuple, like: Series | None = None) -> np.ndarray:
        """Return the scaled values (T, C) of variates and covariates, at the scale of `like` if it is new."""
        mean, scale, _ = self.of(series if like is None else like, columns)
        if len(self.covariate_mean):
            mean = np.concatenate([mean, self.covariate_mean])
            scale = np.concatenate([scale, self.covariate_scale])
        return (series.values - mean) / scale

    def scaled_static(self, series: Series) -> np.ndarray:
        """Return the scaled static numbers (S,)."""
        return (series.static - self.static_mean) / self.static_scale


def _moments(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    n = values.shape[1]
    if kind == "none" or not n:
        return np.zeros(n), np.ones(n)
    if np.isnan(values).all(0).any():  # nothing observed: leave that column as it is
        mean, scale = np.zeros(n), np.ones(n)
        seen = ~np.isnan(values).all(0)
        mean[seen], scale[seen] = _moments(values[:, seen], kind)
        return mean, scale
    fitted = StandardScaler().fit(values)  # a constant column gets scale 1; NaN does not count
    return np.asarray(fitted.mean_), np.asarray(fitted.scale_)


def _naive_error(values: np.ndarray, season: int) -> np.ndarray:
    """Return the mean absolute difference (V,) to the season before; NaN where there is none."""
    difference = np.abs(values[season:] - values[:-season])
    counts = (~np.isnan(difference)).sum(0)
    return np.where(counts > 0, np.nansum(difference, 0) / np.maximum(counts, 1), np.nan)

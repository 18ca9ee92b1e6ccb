r"""Prediction intervals by split conformal calibration.

A window's score is its absolute error divided by the standard deviation of its look-back, so that intervals are wide
where the series moves much. Of n windows that were not trained on, the score at rank :math:`\lceil (n + 1) p / 100
\rceil` bounds the next one with a probability of at least p percent, if windows are exchangeable. Windows of a series
overlap and drift, so they are not quite; measure the coverage, and calibrate again as new rows come.

Source: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, "Distribution-free predictive inference for regression", JASA
2018 (locally weighted split conformal).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_WINDOWS = 1400  # the latest ones count; older errors are those of other times
MOST_SCORES = 2**27  # numbers held at once
PERCENTS = torch.arange(1, 100)
SPREAD_FLOOR = 0.01  # added to the standard deviation of a look-back, on the scale of the scaler


def check_levels(level) -> tuple[int, ...]:
    """Return percentages as a tuple; ValueError unless they are whole numbers from 1 to 99."""
    levels: tuple[Any, ...] = tuple(level) if np.iterable(level) and not isinstance(level, str) else (level,)
    for p in levels:
        if isinstance(p, bool | str) or not 1 <= p <= 99 or p % 1:
            raise ValueError(f"level must hold whole percentages from 1 to 99, got {level!r}")
    return tuple(int(p) for p in levels)


def window_spread(lookback: Tensor) -> Tensor:
    """Return what the error of a window is measured in, (B, V, 1), from its look-back (B, V, L)."""
    return lookback.std(-1, keepdim=True, unbiased=False) + SPREAD_FLOOR


def window_scores(forecast: Tensor, truth: Tensor, lookback: Tensor) -> Tensor:
    """Return the scores (B, V, H) of forecasts; NaN where the truth is missing."""
    return (forecast - truth).abs() / window_spread(lookback)


def score_bounds(scores: Tensor, *, pooled: bool) -> Tensor:
    """Return the bound of each whole percentage: (99, V, H), or (99, 1, H) over all variates if `pooled`.

    A bound is infinite where there are too few windows for its percentage.
    """
    if pooled:
        scores = scores.flatten(0, 1).unsqueeze(1)
    ordered = scores.sort(0).values  # NaN comes last
    count = (~torch.isnan(scores)).sum(0)
    rank = torch.ceil((count + 1) * (PERCENTS[:, None, None] / 100) - 1e-9).long()
    found = ordered.gather(0, (rank - 1).clamp(0, len(scores) - 1))
    return torch.where(rank <= count, found, torch.inf)


def calibration_windows(n_windows: int, n_values: int, *, pooled: bool) -> Tensor:
    """Return which windows to calibrate on: the latest of one series, or some of all series."""
    most = max(1, min(MOST_WINDOWS, MOST_SCORES // max(n_values, 1)))
    if n_windows <= most:
        return torch.arange(n_windows)
    if pooled:
        return torch.linspace(0, n_windows - 1, most).long()
    return torch.arange(n_windows - most, n_windows)

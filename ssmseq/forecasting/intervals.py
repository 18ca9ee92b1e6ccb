r"""Prediction intervals by split conformal calibration.

A window's score is its absolute error divided by the standard deviation of its look-back, so that intervals are wide
where the series moves much. Of n windows that were not trained on, the score at rank :math:`\lceil (n + 1) p / 100
\rceil` bounds the next one with a probability of at least p percent, if windows are exchangeable. Windows of a series
overlap and drift, so they are not quite; measure the coverage, and calibrate again as new rows come.

Bounds that are renewed follow the drift in two ways: from every row the scores of all steps that forecast it are taken
as soon as it is known, before the windows that it lies in have ended; and where the intervals issued so far held more
or fewer rows than they should, a smaller or larger percentage is asked of the scores from then on.

Sources: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, "Distribution-free predictive inference for regression", JASA
2018 (locally weighted split conformal); Gibbs and Candès, "Adaptive conformal inference under distribution shift",
NeurIPS 2021 (the percentage that is moved).
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


def renewed_bounds(known: np.ndarray, renewals: range, levels: tuple[int, ...]) -> np.ndarray:
    """Return bounds that are renewed as rows become known, (levels, renewals, V, H).

    Parameters
    ----------
    known : ndarray (V, H, rows)
        ``known[v, h, t]`` is the score of row t in the window that forecasts it as its step h; NaN where there is none.
    renewals : range
        Rows before which the bounds are renewed, from the rows before alone. The windows that start at one of them or
        later, and before the next, use them.
    levels : tuple of int
        Percentages.

    Notes
    -----
    Every step h of a forecast has a percentage of its own. Whether its bounds held is seen h rows after their issue; so
    it moves by the miss in coverage over the renewals in that time, or it would swing.
    """
    steps = np.arange(known.shape[1])
    nominal = np.array(levels) / 100
    share = np.repeat(nominal[:, None], len(steps), 1)
    gain = 1 / (1 + steps / renewals.step)
    bounds = np.empty((len(levels), len(renewals), *known.shape[:2]), np.float32)
    for n, now in enumerate(renewals):
        if n:
            rows = np.arange(renewals[n - 1], now)
            issue = (rows - steps[:, None] - renewals.start) // renewals.step  # (H, rows): which bounds were in force
            truth = known[..., rows]
            counts = (issue >= 0) & ~np.isnan(truth)
            issued = np.moveaxis(bounds[:, issue.clip(0), :, steps[:, None]], (2, 3), (0, 1))  # (levels, V, H, rows)
            miss = np.where(counts, nominal[:, None, None, None] - (truth <= issued), 0).sum((1, 3))
            share += gain * miss / counts.sum((0, 2)).clip(1)  # beyond 1 too: what the largest score misses is owed
        past = np.sort(known[..., max(0, now - MOST_WINDOWS) : now])  # NaN comes last
        count = (~np.isnan(past)).sum(-1)
        for i, wanted in enumerate(share):
            rank = np.ceil((count + 1) * wanted - 1e-9).astype(int).clip(1, np.maximum(count, 1))
            bounds[i, n] = np.take_along_axis(past, rank[..., None] - 1, -1)[..., 0]
            short = np.ceil((count + 1) * nominal[i] - 1e-9) > count  # too few rows for the percentage itself
            bounds[i, n][short] = np.inf
    return bounds

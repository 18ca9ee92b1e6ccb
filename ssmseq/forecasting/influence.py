"""How far the scaled forecasts of one window depend on each input: by gradients, and by hiding stretches."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssmseq.base import check_number
from ssmseq.forecasting.covariates import future_rows
from ssmseq.forecasting.displays import future_covariates
from ssmseq.forecasting.frames import FrameLayout, Series
from ssmseq.forecasting.scoring import BATCH_VALUES
from ssmseq.forecasting.times import future_times
from ssmseq.forecasting.windows import fill_gaps

BACKWARD = 8  # a backward pass holds the activations of every layer, so it gets so many times fewer windows


def chosen_series(estimator, df, name) -> tuple[Series, FrameLayout]:
    """Read a frame, or take the end of the training frame, and return one of its series."""
    found, layout = (estimator.tail_, estimator.layout_) if df is None else estimator._read(df)
    if name is None:
        return found[0], layout
    for s in found:
        if s.id == name:
            return s, layout
    raise ValueError(f"the frame has no series {name!r}; it has {[s.id for s in found][:10]}")


def window_inputs(
    estimator, whole: Series, layout: FrameLayout, row, future
) -> tuple[Series, dict[str, Tensor], pd.Index]:
    """Return the rows before a forecast, the inputs of the model, and the times of look-back and horizon.

    The forecast begins at `row` of the series; nothing from there on is used but covariates known in advance.
    """
    n_rows, lookback, horizon = len(whole), estimator.lookback_, estimator.horizon_
    check_number("rows", row, minimum=-n_rows, maximum=n_rows, integer=True)
    start = row + n_rows if row < 0 else row
    if start < (1 if layout.is_long else lookback):
        raise ValueError(f"a forecast that begins at row {start} has too few rows before it for lookback={lookback}")
    before = whole.rows(slice(0, start))
    following = future_times(before.times, layout.freq, horizon)
    known = None
    if layout.future_covariates and start + horizon <= n_rows:
        known = future_covariates(whole.rows(slice(0, start + horizon)), start, layout)
    elif layout.future_covariates:
        (known,) = future_rows(future, layout, [(whole.id, following)])
    elif future is not None:
        raise ValueError("future= was given, but this model was fitted without future_covariates")
    inputs = estimator.preparation_.last_inputs([before], [known], layout.columns)
    return before, inputs, before.times[-lookback:].append(following)


def gradients(estimator, inputs: dict[str, Tensor], explained: slice) -> np.ndarray:
    """Return gradient times (input - mean) of each scaled forecast, (V, C, R); NaN where an input is not known."""
    network = getattr(estimator, "network_", None)
    forecast = estimator._forecast
    if network is not None:
        forecast, dtype = network.to(estimator._device()), next(network.parameters()).dtype
        inputs = {name: x.to(estimator._device(), dtype) for name, x in inputs.items()}
    varied = {name: inputs[name] for name in ("past", "future") if name in inputs}
    n_variates = len(estimator.layout_.columns)
    at_once = max(1, BATCH_VALUES // BACKWARD // sum(x.numel() for x in varied.values()))
    found = {name: [] for name in varied}
    for variates in torch.arange(n_variates).split(at_once):
        n = len(variates)
        batch = {name: x.expand(n, *x.shape[1:]) for name, x in inputs.items()}
        leaves = {name: batch[name].clone().requires_grad_() for name in varied}
        with torch.enable_grad():
            y = estimator._point(forecast(**(batch | leaves)) if network is not None else forecast(batch | leaves))
            total = y[torch.arange(n), variates][:, explained].mean(-1).sum()
            slopes = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        for name, slope in zip(leaves, slopes, strict=True):
            mean = varied[name][..., : estimator.lookback_].mean(-1, keepdim=True)
            found[name].append((slope * (varied[name] - mean)).double().cpu())
    return _together({name: torch.cat(parts) for name, parts in found.items()})


def occlusions(estimator, inputs: dict[str, Tensor], explained: slice, width: int, fill: str) -> np.ndarray:
    """Return the absolute change of each scaled forecast when a stretch of an input is hidden, (V, C, R)."""

    def forecast(given):
        return estimator._point(estimator._forecast(given)).double().cpu()[..., explained]

    lookback, usual = estimator.lookback_, forecast(inputs)
    at_once = max(1, BATCH_VALUES // sum(x.numel() for x in inputs.values()))
    found = {}
    for name in ("past", "future"):
        if name not in inputs:
            continue
        x = inputs[name]
        n_rows = x.shape[-1]
        stretches = [(max(end - width, 0), end) for end in range(lookback, 0, -width)]
        stretches += [(start, min(start + width, n_rows)) for start in range(lookback, n_rows, width)]
        hidden = [(c, *stretch) for c in range(x.shape[1]) for stretch in stretches]
        found[name] = torch.empty(usual.shape[1], *x.shape[1:], dtype=torch.float64)
        for i in range(0, len(hidden), at_once):
            some = hidden[i : i + at_once]
            batch = {n: other.expand(len(some), *other.shape[1:]) for n, other in inputs.items()}
            mask = torch.zeros(batch[name].shape, dtype=torch.bool)
            for k, (c, start, end) in enumerate(some):
                mask[k, c, start:end] = True
            mean = x[..., :lookback].mean(-1, keepdim=True)
            batch[name] = fill_gaps(batch[name], mask) if fill == "interpolation" else torch.where(mask, mean, x)
            change = (forecast(batch) - usual).abs().mean(-1)
            for k, (c, start, end) in enumerate(some):
                found[name][:, c, start:end] = change[k, :, None]
    return _together(found)


def _together(found: dict[str, Tensor]) -> np.ndarray:
    """Put the influence of past inputs (V, C, L) and of those known in advance (V, F, L + H) beneath each other."""
    past, *future = (x.numpy() for x in found.values())
    if not future:
        return past
    unknown = np.full((*past.shape[:2], future[0].shape[-1] - past.shape[-1]), np.nan)
    return np.concatenate([np.concatenate([past, unknown], -1), future[0]], 1)

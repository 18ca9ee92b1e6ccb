"""Scores of all test windows, batch by batch: standardised, in original units, of intervals, and by step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmseq.forecasting import scoring
from ssmseq.forecasting.frames import Roles, read_frame
from ssmseq.forecasting.scaling import Scaler

LEVELS = (80, 95)
DECILE_LEVELS = (20, 40, 60, 80)  # the intervals whose ends are the deciles, beside the median
MOST_STEPS = 48  # rows ahead at which errors are kept


@dataclass
class Batch:
    """Forecasts of some windows in original units; tensors (B, V, H) but for `owner` (B,)."""

    point: Tensor
    truth: Tensor  # NaN where missing
    owner: Tensor  # which series
    quantiles: tuple[float, ...] = ()
    quantile_values: Tensor | None = None  # (B, V, H, quantiles)
    half_widths: dict[int, Tensor] | None = None  # of the intervals, by percentage


class Scores:
    """Sums over windows, variates and steps.

    Parameters
    ----------
    scale, naive_error : Tensor (series, V)
        Of the training part: its standard deviation, and the mean absolute error of its seasonal naive forecast of one
        step.
    horizon : int
    """

    def __init__(self, scale: Tensor, naive_error: Tensor, horizon: int):
        self.scale, self.naive_error = scale, naive_error
        self.sums: dict[str, Any] = dict.fromkeys(("squared", "absolute", "original", "size", "count", "pinball"), 0.0)
        self.covered: dict[int, float] = {}
        self.squared_by_step = torch.zeros(2, horizon, dtype=torch.float64)
        self.absolute_by_series = torch.zeros(2, *scale.shape, dtype=torch.float64)
        self.n_windows = 0
        self.example: dict[str, list[float]] | None = None

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        seen = ~torch.isnan(batch.truth)
        unit = self.scale[batch.owner].unsqueeze(-1)
        original = torch.where(seen, batch.point - batch.truth, 0.0).abs()
        error = original / unit
        found = {
            "squared": error.square(),
            "absolute": error,
            "original": original,
            "size": torch.where(seen, batch.truth, 0.0).abs(),
            "count": seen.double(),
        }
        if batch.quantile_values is not None:
            q = torch.tensor(batch.quantiles, dtype=torch.float64)
            short = torch.where(seen.unsqueeze(-1), batch.truth.unsqueeze(-1) - batch.quantile_values, 0.0)
            found["pinball"] = 2 * torch.maximum(q * short, (q - 1) * short).mean(-1) / unit
        for name, values in found.items():
            self.sums[name] += values.sum().item()
        for p, half in (batch.half_widths or {}).items():
            self.covered[p] = self.covered.get(p, 0.0) + ((original <= half) & seen).sum().item()
        self.squared_by_step[0] += found["squared"].sum((0, 1))
        self.squared_by_step[1] += found["count"].sum((0, 1))
        self.absolute_by_series[0].index_add_(0, batch.owner, original.sum(-1))
        self.absolute_by_series[1].index_add_(0, batch.owner, found["count"].sum(-1))
        self.n_windows += len(batch.truth)
        # The latest window and the last variate, which many sets call the target.
        self.example = {"truth": batch.truth[-1, -1].tolist(), "forecast": batch.point[-1, -1].tolist()}

    def result(self, *, with_quantiles: bool) -> dict[str, Any]:
        """Return the means; what was not measured is None."""
        count, sums = self.sums["count"], self.sums
        if not count:
            raise ValueError("the test part has no window with an observed value")
        ratios = self.absolute_by_series[0] / self.absolute_by_series[1] / self.naive_error
        ratios = ratios[torch.isfinite(ratios)]
        by_step = self.squared_by_step[0] / self.squared_by_step[1]
        steps = np.unique(np.linspace(1, len(by_step), min(MOST_STEPS, len(by_step))).round().astype(int))
        return {
            "mse": sums["squared"] / count,
            "mae": sums["absolute"] / count,
            "mae_original": sums["original"] / count,
            "mase": ratios.mean().item() if len(ratios) else None,
            "wape": sums["original"] / sums["size"] if sums["size"] else None,
            "crps": sums["pinball"] / count if with_quantiles else None,
            **{f"coverage_{p}": self.covered[p] / count if p in self.covered else None for p in LEVELS},
            "n_windows": self.n_windows,
            "steps": steps.tolist(),
            "mse_by_step": [round(by_step[s - 1].item(), 5) for s in steps],
        }


def batches_of(estimator, frame) -> Iterator[Batch]:
    """Yield the forecasts of every window of a frame by one of this library's estimators, with its intervals."""
    series, layout = estimator._read(frame)
    windows = estimator.preparation_.windows(series, layout.columns)
    found = [estimator.preparation_.scaler.of(s, layout.columns) for s in series]
    mean, scale = (torch.from_numpy(np.stack([f[i] for f in found])) for i in (0, 1))
    levels = _usable_levels(estimator.interval_bounds_)
    for forecast, point, truth, lookback, owner in scoring.forecasts(estimator, windows, range(len(windows))):
        unit, centre = scale[owner].unsqueeze(-1), mean[owner].unsqueeze(-1)
        point, truth = point * unit + centre, truth * unit + centre
        widths = scoring.half_widths(estimator.interval_bounds_, lookback, levels, point.shape[1])
        halves = {p: width * unit for p, width in zip(levels, widths, strict=True)}
        batch = Batch(point, truth, owner, half_widths={p: h for p, h in halves.items() if p in LEVELS})
        if estimator.quantiles is not None:
            batch.quantiles = tuple(estimator.quantiles)
            batch.quantile_values = forecast * unit.unsqueeze(-1) + centre.unsqueeze(-1)
        elif set(DECILE_LEVELS) <= set(levels):
            low = [point - halves[p] for p in reversed(DECILE_LEVELS)]
            batch.quantiles = tuple(round(i / 10, 1) for i in range(1, 10))
            batch.quantile_values = torch.stack([*low, point, *(point + halves[p] for p in DECILE_LEVELS)], -1)
        yield batch


def score(model, data, *, lookback: int, horizon: int) -> dict[str, Any]:
    """Forecast every test window and return the scores, the milliseconds per window and an example.

    Parameters
    ----------
    model : fitted estimator, or an adapter of `ssmseq.benchmark.peers`
    data : BenchmarkData
        With the columns that the model was fitted on.
    lookback, horizon : int

    Raises
    ------
    RuntimeError
        If the number of windows scored is not that of the formula: nothing may be dropped.
    """
    frame = data.with_history(data.test, lookback)
    mean, scale, naive_error = training_statistics(data)
    scores = Scores(scale, naive_error, horizon)
    ours = hasattr(model, "preparation_")
    batches = batches_of(model, frame) if ours else _of_adapter(model, frame, mean, scale)
    seconds, quantiles = 0.0, False
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        seconds += time.perf_counter() - started
        if batch is None:
            break
        quantiles |= batch.quantile_values is not None
        scores.add(batch)
    expected = data.n_windows(horizon)
    if scores.n_windows != expected:
        raise RuntimeError(f"{scores.n_windows} windows were scored, the test part has {expected}")
    found = scores.result(with_quantiles=quantiles)
    found |= {"n_windows_expected": expected, "ms_per_window": 1000 * seconds / expected}
    return found | {"example": _example(scores, frame, data, horizon)}


def training_statistics(data) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, population standard deviation and seasonal naive error of each series and variate, (series, V)."""
    series, layout = read_frame(data.train, Roles(target=data.targets or None))
    found = Scaler.fit(series, layout, "standard")
    return tuple(torch.from_numpy(x) for x in (found.mean, found.scale, found.naive_error))  # type: ignore[return-value]


def _of_adapter(adapter, frame, mean: Tensor, scale: Tensor) -> Iterator[Batch]:
    """Yield what an adapter forecasts; it speaks of values standardised by the training part."""
    for standardised in adapter.forecasts(frame):
        forecast, truth = (torch.from_numpy(np.array(x, dtype=np.float64)) for x in standardised)
        unit, centre = scale[0].unsqueeze(-1), mean[0].unsqueeze(-1)
        yield Batch(forecast * unit + centre, truth * unit + centre, torch.zeros(len(truth)).long())


def _example(scores: Scores, frame, data, horizon: int) -> dict[str, Any]:
    """Return the last window of the last variate, with as many rows before it, in original units."""
    column = (data.targets or [c for c in frame.columns if c not in ("unique_id", "ds")])[-1]
    rows = frame[frame["unique_id"] == frame["unique_id"].iloc[-1]] if data.is_long else frame
    history = rows[column].to_numpy(float)[-2 * horizon : -horizon]
    parts = {"history": history.tolist(), **(scores.example or {})}
    return {"variate": str(column)} | {name: [float(f"{x:.5g}") for x in part] for name, part in parts.items()}


def _usable_levels(bounds: Tensor | None) -> tuple[int, ...]:
    """Return the percentages that there were enough validation windows for."""
    if bounds is None:
        return ()
    return tuple(p for p in sorted({*LEVELS, *DECILE_LEVELS}) if not torch.isinf(bounds[p - 1]).any())

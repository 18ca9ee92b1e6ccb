"""How good forecasts are: errors over all windows of a frame, the calibration of intervals, and backtests."""

from collections.abc import Iterator
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from torch import Tensor

from ssmseq.base import check_number
from ssmseq.forecasting.frames import Series
from ssmseq.forecasting.intervals import (
    MOST_WINDOWS,
    calibration_windows,
    renewed_bounds,
    score_bounds,
    window_scores,
    window_spread,
)
from ssmseq.forecasting.preparing import check_length
from ssmseq.forecasting.tables import polars_times
from ssmseq.forecasting.windows import Windows

BATCH_VALUES = 2**21  # values of the windows forecast at a time


def calibrate(estimator, windows: Windows, chosen: Tensor | None = None) -> Tensor:
    """Return the bounds (99, V or 1, H) of scaled scores on windows that the model was not trained on."""
    pooled = estimator.layout_.is_long
    if chosen is None:
        chosen = calibration_windows(len(windows), windows.n_targets * windows.horizon, pooled=pooled)
    scores = [window_scores(point, y, x) for _, point, y, x, _ in forecasts(estimator, windows, chosen)]
    return score_bounds(torch.cat(scores), pooled=pooled)


def outputs(estimator, forecast: Tensor, halves: list[Tensor]) -> Tensor:
    """Return scaled outputs (B, V, H, 1 + 2 levels [+ Q]): point forecast, lower and upper bounds, quantiles."""
    point = estimator._point(forecast)
    columns = [point]
    for half in halves:
        columns += [point - half, point + half]
    stacked = torch.stack(columns, -1)
    return stacked if estimator.quantiles is None else torch.cat([stacked, forecast], -1)


def half_widths(bounds: Tensor | None, lookback: Tensor, levels: tuple, n_variates: int) -> list[Tensor]:
    """Return half the scaled widths (B, V, H) of the intervals of some percentages."""
    if not levels:
        return []
    if bounds is None:
        raise ValueError(
            "level= needs validation windows to calibrate on: fit with validation_fraction above 0, or validation="
        )
    if bounds.shape[1] not in (1, n_variates):
        raise ValueError("level= is calibrated for the variates of fit; leave it out for others")
    remedy = "needs more validation windows than there were; validate on more rows"
    return [_scaled_by_spread(bounds[p - 1], lookback, f"level={p} {remedy}") for p in levels]


def _scaled_by_spread(bound: Tensor, lookback: Tensor, complaint: str) -> Tensor:
    if torch.isinf(bound).any():
        raise ValueError(complaint)
    return bound * window_spread(lookback.double())


def forecasts(estimator, windows: Windows, chosen) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Yield forecast, point forecast, truth, look-back of the variates (scaled, float64) and series, batch by batch."""
    at_once = max(1, BATCH_VALUES // (windows.view.shape[1] * windows.view.shape[2]))
    for start in range(0, len(chosen), at_once):
        indices = torch.as_tensor(chosen[start : start + at_once])
        inputs, targets = windows.__getitems__(indices)
        forecast = estimator._forecast(inputs).cpu().double()
        lookback = inputs["past"][:, : windows.n_targets].double()
        yield forecast, estimator._point(forecast), targets.double(), lookback, windows.owners[indices]


def evaluate(estimator, df, *, scaled: bool, levels: tuple, other_columns: bool) -> dict[str, float]:
    """Measure the errors of all windows; see `BaseForecaster.evaluate`."""
    series, layout = estimator._read(df, other_columns=other_columns)
    check_length("frame", series, series, layout, estimator.lookback_, estimator.horizon_)
    windows = estimator.preparation_.windows(series, layout.columns)
    if not len(windows):
        raise ValueError("the frame has no window with an observed value in look-back and horizon")
    found = [estimator.preparation_.scaler.of(s, layout.columns) for s in series]
    mean, scale, naive = (torch.from_numpy(np.stack(x)) for x in zip(*found, strict=True))
    sums: dict[str, Any] = dict.fromkeys(["squared", "absolute", "quantile", "size", "error", "count"], 0.0)
    by_series = torch.zeros(2, *scale.shape, dtype=torch.float64)  # absolute errors of each series, and their number
    for forecast, point, truth, lookback, owner in forecasts(estimator, windows, range(len(windows))):
        observed = ~torch.isnan(truth)
        unit = scale[owner].unsqueeze(-1)
        measured = 1.0 if scaled else unit
        error = torch.where(observed, point - truth, 0.0)
        absolute = error.abs() * unit
        sums["squared"] += (error * measured).square().sum().item()
        sums["absolute"] += (error * measured).abs().sum().item()
        sums["size"] += torch.where(observed, truth * unit + mean[owner].unsqueeze(-1), 0.0).abs().sum().item()
        sums["error"] += absolute.sum().item()
        sums["count"] += int(observed.sum())
        by_series[0].index_add_(0, owner, absolute.sum(-1))
        by_series[1].index_add_(0, owner, observed.sum(-1).double())
        if estimator.quantiles is not None:
            q = torch.tensor(list(estimator.quantiles), dtype=torch.float64)
            short = torch.where(observed, truth, 0.0).unsqueeze(-1) - torch.where(observed.unsqueeze(-1), forecast, 0.0)
            pinball = torch.maximum(q * short, (q - 1) * short).mean(-1)
            sums["quantile"] += 2 * (pinball * measured).sum().item()
        for p, half in zip(
            levels, half_widths(estimator.interval_bounds_, lookback, levels, scale.shape[1]), strict=True
        ):
            inside = (error.abs() <= half) & observed
            sums[f"coverage_{p}"] = sums.get(f"coverage_{p}", 0.0) + inside.sum().item()
            sums[f"width_{p}"] = sums.get(f"width_{p}", 0.0) + (2 * half * measured * observed).sum().item()
    return _means(sums, by_series, naive, len(windows), with_crps=estimator.quantiles is not None)


def _means(sums: dict, by_series: Tensor, naive: Tensor, n_windows: int, *, with_crps: bool) -> dict[str, float]:
    count = sums["count"]
    ratios = by_series[0] / by_series[1] / naive  # of a constant series 0 / 0
    ratios = ratios[torch.isfinite(ratios)]
    found = {
        "mse": sums["squared"] / count,
        "mae": sums["absolute"] / count,
        "wape": sums["error"] / sums["size"] if sums["size"] else float("nan"),
        "mase": ratios.mean().item() if len(ratios) else float("nan"),
        "n_windows": n_windows,
    }
    if with_crps:
        found["crps"] = sums["quantile"] / count
    return found | {k: v / count for k, v in sums.items() if k.startswith(("coverage_", "width_"))}


def backtest(estimator, df, *, n_windows: int, step, refit, levels: tuple, recalibrate) -> Any:
    """Forecast the last windows of a frame; see `BaseForecaster.backtest`."""
    step = estimator.horizon_ if step is None else step
    for name, value in (("n_windows", n_windows), ("step", step), ("refit", int(refit)), ("recalibrate", recalibrate)):
        if value is not None:
            check_number(name, value, minimum=0 if name == "refit" else 1, integer=True)
    series, layout = estimator._read(df)
    if recalibrate and (refit or layout.is_long):
        raise ValueError("recalibrate is for one fitted model and a wide frame; leave it out for refit and long frames")
    size = estimator.lookback_ + estimator.horizon_
    need = size + (n_windows - 1) * step + (int(refit) > 0) * estimator.horizon_
    for s in series:
        if len(s) < need:
            raise ValueError(
                f"{f'series {s.id!r}' if layout.is_long else 'the frame'} has {len(s)} rows; n_windows={n_windows} "
                f"cutoffs with step={step}, lookback={estimator.lookback_} and horizon={estimator.horizon_} need {need}"
            )
    # Rows from the end of each series to the cutoff, from the first cutoff to the last.
    left = [estimator.horizon_ + i * step for i in reversed(range(n_windows))]
    model, blocks = estimator, []
    every = int(refit) or n_windows
    for i in range(0, n_windows, every):
        if refit:
            model = clone(estimator)._fit_series([s.rows(slice(0, len(s) - left[i])) for s in series], layout)
        blocks += _backtest_windows(model, series, left[i : i + every], levels, recalibrate)
    return _long_frame(blocks, type(estimator).__name__, levels, layout)


def _backtest_windows(model, series: list[Series], left: list[int], levels: tuple, recalibrate) -> list[dict]:
    """Return the columns of a backtest, a dict for each series and cutoff."""
    windows = model.preparation_.windows(series)
    ends = np.cumsum(windows.lengths)
    starts = torch.as_tensor(np.add.outer(ends, -np.array(left)).ravel() - model.lookback_)
    chosen = windows.at(starts)
    parts = [(f, x) for f, _, _, x, _ in forecasts(model, chosen, range(len(chosen)))]
    forecast, lookback = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    if recalibrate:
        halves = _renewed_half_widths(model, windows, starts, lookback, levels, recalibrate)
    else:
        halves = half_widths(model.interval_bounds_, lookback, levels, lookback.shape[1])
    found = outputs(model, forecast, halves)
    blocks = []
    for n, (s, rows) in enumerate((s, rows) for s in series for rows in left):
        mean, scale, _ = model.preparation_.scaler.of(s, model.layout_.columns)
        mine = found[n].numpy() * scale[:, None, None] + mean[:, None, None]
        future = slice(len(s) - rows, len(s) - rows + model.horizon_)
        truth = s.values[future, : len(scale)].T
        blocks.append({"series": s, "times": s.times[future], "cutoff": s.times[future.start - 1], "truth": truth})
        blocks[-1]["outputs"] = mine[..., : 1 + 2 * len(levels)]
    return blocks


def _renewed_half_widths(model, windows: Windows, starts: Tensor, lookback, levels: tuple, every: int) -> list[Tensor]:
    """Return half the widths (B, V, H) of each level's intervals, renewed when so many rows have passed."""
    first = max(0, int(starts[0]) - model.horizon_ - MOST_WINDOWS + 1)
    if first > int(starts[0]) - model.horizon_:
        raise ValueError("recalibrate needs windows that end before the first cutoff; give more rows before it")
    scored = windows.at(torch.arange(first, int(starts[-1])))
    known = np.full((windows.n_targets, model.horizon_, len(scored) + model.horizon_ - 1), np.nan, np.float32)
    steps, done = np.arange(model.horizon_), 0
    for _, point, y, x, _ in forecasts(model, scored, range(len(scored))):
        rows = np.arange(done, done := done + len(y))
        known[:, steps, rows[:, None] + steps] = window_scores(point, y, x).permute(1, 0, 2).float().numpy()
    renewals = range(int(starts[0]) - first, int(starts[-1]) - first + 1, every)
    bounds = torch.from_numpy(renewed_bounds(known, renewals, levels))
    in_force = (starts - starts[0]) // every
    remedy = "needs more windows before the first cutoff than there are; give more rows before it, or fewer n_windows"
    return [_scaled_by_spread(bounds[i, in_force], lookback, f"level={p} {remedy}") for i, p in enumerate(levels)]


def _long_frame(blocks: list[dict], model: str, levels: tuple, layout) -> Any:
    names = [model, *(f"{model}-{side}-{p}" for p in levels for side in ("lo", "hi"))]
    parts = []
    for block in blocks:
        for v, column in enumerate(layout.columns):
            name = column if not layout.is_long else block["series"].id
            name = f"{name}/{column}" if layout.is_long and len(layout.columns) > 1 else name
            columns = {"unique_id": name, "ds": block["times"], "cutoff": block["cutoff"], "y": block["truth"][v]}
            found = dict(zip(names, block["outputs"][v].T, strict=True))
            parts.append(pd.DataFrame(columns | found))
    frame = pd.concat(parts, ignore_index=True)
    if layout.library != "polars":
        return frame
    columns = {c: frame[c].to_numpy() for c in frame.columns if c not in ("unique_id", "ds", "cutoff")}
    times = {c: polars_times(pd.Index(frame[c]), c, layout.time_dtype) for c in ("ds", "cutoff")}
    names = nw.new_series("unique_id", frame["unique_id"].tolist(), backend="polars")
    rest = nw.from_dict(columns, backend="polars")
    return rest.select(names, *times.values(), *(rest.get_column(c) for c in columns)).to_native()

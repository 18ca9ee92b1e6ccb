"""Forecasters as graphs that take a look-back and give a forecast, both in the units of the training frame."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.export import ServingGraph, TensorSpec, for_serving
from ssmseq.forecasting.preparing import Preparation
from ssmseq.forecasting.windows import fill_gaps

CALENDAR_FORMULAS = {  # of ssmseq.forecasting.covariates.CALENDAR, in words
    "minute": "minute / 59 - 0.5",
    "hour": "hour / 23 - 0.5",
    "day_of_week": "day_of_week / 6 - 0.5, Monday is 0",
    "day_of_month": "(day - 1) / 30 - 0.5",
    "day_of_year": "(day_of_year - 1) / 365 - 0.5",
    "month": "(month - 1) / 11 - 0.5",
}


def serving_graph(estimator) -> ServingGraph:
    """Return the graph of a fitted forecaster."""
    estimator._check_fitted_sizes()
    layout, prepared = estimator.layout_, estimator.preparation_
    inputs = _inputs(prepared)
    network = for_serving(estimator.network_) if hasattr(estimator, "network_") else None
    shape = ("batch", estimator.horizon_, len(layout.columns))
    meaning = "forecast of the rows that follow, in the units of the variates; NaN where nothing was observed"
    metadata = {
        "lookback": estimator.lookback_,
        "horizon": estimator.horizon_,
        "variates": layout.columns,
        "frequency": layout.freq,
    }
    if estimator.quantiles is not None:
        shape += (len(estimator.quantiles),)
        metadata["quantiles"] = list(estimator.quantiles)
    if layout.is_long:
        metadata["series"] = prepared.scaler.ids
    return ServingGraph(
        module=ForecastGraph(prepared, network, estimator._forecast),
        inputs=inputs,
        output=("forecast", TensorSpec(shape, "float32", meaning)),
        example=lambda n_batch, _: _example(estimator, inputs, n_batch),
        metadata=metadata,
    )


class ForecastGraph(nn.Module):
    """From rows in their own units to forecasts in their own units: scaling, gaps, network, and the scale again.

    Parameters
    ----------
    prepared : Preparation
    network : Module or None
    forecast : callable
        Maps the inputs that `ssmseq.forecasting.tokens` lists to scaled forecasts, where there is no network.
    """

    mean: Tensor
    scale: Tensor
    covariate_mean: Tensor
    covariate_scale: Tensor
    static_mean: Tensor
    static_scale: Tensor

    def __init__(self, prepared: Preparation, network: nn.Module | None, forecast: Callable):
        super().__init__()
        self.network, self.forecast = network, forecast
        scaler = prepared.scaler
        self.n_variates, self.standardises = len(scaler.columns), scaler.kind == "standard"
        self.n_past = len(prepared.layout.past_covariates)
        self.dtype = torch.from_numpy(np.empty(0, prepared.dtype)).dtype
        for name in ("mean", "scale", "covariate_mean", "covariate_scale", "static_mean", "static_scale"):
            values = torch.from_numpy(np.array(getattr(scaler, name), np.float64))
            if values.numel():  # torch.export.save refuses several empty ones
                self.register_buffer(name, values)

    def forward(
        self, history: Tensor, past_covariates=None, calendar=None, future=None, static=None, series=None
    ) -> Tensor:
        """Map the inputs that `serving_graph` describes to forecasts (B, H, V) or (B, H, V, Q)."""
        # In double, as in training: a standardised value is the small difference of large numbers.
        values = history.double()
        mean, scale = self._moments(values, series)
        rows = [(values - mean[:, None]) / scale[:, None]]
        if past_covariates is not None:
            rows.append(self._scaled(past_covariates, slice(0, self.n_past)))
        if calendar is not None:
            rows.append(calendar.double())
        past = torch.cat(rows, -1).transpose(1, 2).to(self.dtype)
        gaps = torch.isnan(past)
        inputs = {"past": fill_gaps(past, gaps, _running_maximum), "missing": gaps[:, : self.n_variates].to(self.dtype)}
        if future is not None:
            inputs["future"] = self._scaled(future, slice(self.n_past, None)).transpose(1, 2).to(self.dtype)
        if static is not None:
            inputs["static"] = ((static.double() - self.static_mean) / self.static_scale).to(self.dtype)
        y = self._forecast(inputs).double()
        shape = (*mean.shape, *[1] * (y.dim() - 2))
        y = y * scale.reshape(shape) + mean.reshape(shape)
        unseen = gaps[:, : self.n_variates].all(-1).reshape(-1, self.n_variates, *[1] * (y.dim() - 2))
        return y.masked_fill(unseen, torch.nan).transpose(1, 2).float()

    def _forecast(self, inputs: dict[str, Tensor]) -> Tensor:
        if self.network is None:
            return self.forecast(inputs)
        dtype = next(self.network.parameters()).dtype
        return self.network(**{name: x.to(dtype) for name, x in inputs.items()})

    def _moments(self, values: Tensor, series: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and scale (B or 1, V): of the variates, of known series, or else of the look-back itself."""
        if series is None:
            return self.mean, self.scale
        known, place = (series >= 0)[:, None], series.clamp(min=0)
        if not self.standardises:
            return self.mean[place], self.scale[place]
        mean, scale = _standardising(values)
        return torch.where(known, self.mean[place], mean), torch.where(known, self.scale[place], scale)

    def _scaled(self, x: Tensor, part: slice) -> Tensor:
        return (x.double() - self.covariate_mean[part]) / self.covariate_scale[part]


def _running_maximum(x: Tensor) -> Tensor:
    """Do what `running_maximum` does, which ONNX lacks, in steps that double."""
    step, lowest = 1, -x.shape[-1] - 1
    while step < x.shape[-1]:
        x = torch.maximum(x, F.pad(x[..., :-step], (step, 0), value=lowest))
        step *= 2
    return x


def _standardising(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (B, V) of rows (B, L, V), as `StandardScaler` finds them."""
    seen = ~torch.isnan(values)
    n = seen.sum(1)
    mean = torch.where(seen, values, 0).sum(1) / n.clamp(min=1)
    variance = torch.where(seen, values - mean[:, None], 0).square().sum(1) / n.clamp(min=1)
    eps = torch.finfo(torch.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps).square()
    return mean, torch.where(constant, 1.0, variance.sqrt())


def _inputs(prepared: Preparation) -> dict[str, TensorSpec]:
    layout, lookback, whole = prepared.layout, prepared.lookback, prepared.lookback + prepared.horizon

    def rows(n_rows: int, names: tuple, meaning: str) -> TensorSpec:
        return TensorSpec(("batch", n_rows, len(names)), "float32", f"{meaning}: {', '.join(map(str, names))}")

    gaps = "the last rows, oldest first, in the units of the training frame; NaN is missing"
    found = {"history": rows(lookback, layout.columns, f"variates in {gaps}")}
    if layout.past_covariates:
        found["past_covariates"] = rows(lookback, layout.past_covariates, f"covariates in {gaps}")
    if prepared.calendar:
        formulas = tuple(f"{name} = {CALENDAR_FORMULAS[name]}" for name in prepared.calendar)
        found["calendar"] = rows(lookback, formulas, "times of the last rows")
    if layout.future_covariates:
        known = "covariates in the last rows and those to forecast, in their units; none may be missing"
        found["future"] = rows(whole, layout.future_covariates, known)
    if len(prepared.scaler.static_mean):
        names = tuple(n for name, found in layout.levels for n in ([name] if found is None else _each(name, found)))
        meaning = f"numbers of the series: {', '.join(names)}"
        found["static"] = TensorSpec(("batch", len(names)), "float32", meaning)
    if layout.is_long:
        meaning = "place of the series among those of fit (see series); -1 is a new one, scaled by its look-back"
        found["series"] = TensorSpec(("batch",), "int64", meaning)
    return found


def _each(name, categories: tuple) -> list[str]:
    return [f"1 if {name} is {category}, else 0" for category in categories]


def _example(estimator, inputs: dict[str, TensorSpec], n_batch: int) -> dict[str, Tensor]:
    """Return the end of the training rows, shifted a little for each row of the batch."""
    prepared, lookback = estimator.preparation_, estimator.lookback_
    v, p = len(prepared.layout.columns), len(prepared.layout.past_covariates)
    rng = np.random.default_rng(0)
    values = np.stack([_last_rows(estimator.tail_[i % len(estimator.tail_)], lookback) for i in range(n_batch)])
    spread = np.nanstd(values, axis=(0, 1))
    values = values + 0.1 * np.where(np.isfinite(spread), spread, 0) * rng.normal(size=values.shape)
    found: dict[str, Any] = {"history": values[..., :v], "past_covariates": values[..., v : v + p]}
    if "calendar" in inputs:
        found["calendar"] = rng.uniform(-0.5, 0.5, (n_batch, lookback, len(prepared.calendar)))
    if "future" in inputs:
        known = np.nan_to_num(values[..., v + p :])
        found["future"] = np.concatenate([known, np.resize(known, (n_batch, prepared.horizon, known.shape[2]))], 1)
    found["static"] = np.stack([estimator.tail_[i % len(estimator.tail_)].static for i in range(n_batch)])
    found["series"] = np.arange(n_batch) % (len(prepared.scaler.ids) + 1) - 1
    return {name: torch.from_numpy(found[name].astype(spec.dtype)) for name, spec in inputs.items()}


def _last_rows(series, lookback: int) -> np.ndarray:
    values = series.values[-lookback:]
    return np.pad(values, ((lookback - len(values), 0), (0, 0)), constant_values=np.nan)

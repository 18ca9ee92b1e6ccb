"""A fitted forecaster as plain values and tensors, and back."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssmseq.forecasting.frames import FrameLayout, Series
from ssmseq.forecasting.preparing import Preparation
from ssmseq.forecasting.scaling import Scaler

SCALER_ARRAYS = ("mean", "scale", "naive_error", "covariate_mean", "covariate_scale", "static_mean", "static_scale")


def export_state(estimator) -> tuple[dict, dict[str, Tensor]]:
    """Return what JSON can hold, and the tensors."""
    layout, scaler = estimator.layout_, estimator.preparation_.scaler
    labels = (*layout.columns, *layout.past_covariates, *layout.future_covariates, layout.time_name, layout.id_name)
    for label in (*labels, *scaler.ids):
        if not isinstance(label, str | int | float | np.integer | None):
            raise TypeError(f"{label!r} cannot be written to JSON; rename the column or series to text or a number")
    history = getattr(estimator, "history_", None)
    stored = {
        "layout": layout.as_dict(),
        "ids": [_plain(name) for name in scaler.ids],
        "season": scaler.season,
        "tail_ids": [_plain(s.id) for s in estimator.tail_],
        "tail_times": [_times_as_dict(s.times) for s in estimator.tail_],
        "calendar": list(estimator.calendar_),
        "horizon": estimator.horizon_,
        "lookback": estimator.lookback_,
        "has_gaps": estimator.has_gaps_,
        "history": None if history is None else history.astype(object).where(history.notna(), None).to_dict("list"),
    }
    arrays = {name: getattr(scaler, name) for name in SCALER_ARRAYS}
    arrays["tail"] = np.concatenate([s.values for s in estimator.tail_])
    arrays["tail_static"] = np.stack([s.static for s in estimator.tail_])
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    if estimator.interval_bounds_ is not None:
        tensors["interval_bounds"] = estimator.interval_bounds_
    if hasattr(estimator, "network_"):
        tensors |= {f"network.{k}": v.cpu() for k, v in estimator.network_.state_dict().items()}
    return stored, tensors


def import_state(estimator, stored: dict, tensors: dict[str, Tensor]) -> None:
    """Make an unfitted estimator with the right parameters a fitted one."""
    layout = FrameLayout.from_dict(stored["layout"])
    arrays = {name: tensors[name].numpy() for name in SCALER_ARRAYS}
    scaler = Scaler(kind=estimator.scaler, columns=layout.columns, ids=stored["ids"], season=stored["season"], **arrays)
    n_columns = len(layout.columns)
    shapes = {x.shape for x in (scaler.mean, scaler.scale, scaler.naive_error)}
    if shapes != {(len(scaler.ids), n_columns)}:
        raise ValueError(f"{n_columns} columns are described, but the scaler has {scaler.mean.shape[1]}")
    estimator.layout_, estimator.calendar_ = layout, tuple(stored["calendar"])
    estimator.horizon_, estimator.lookback_ = stored["horizon"], stored["lookback"]
    estimator.has_gaps_ = stored["has_gaps"]
    estimator.mean_, estimator.scale_ = (x if layout.is_long else x[0] for x in (scaler.mean, scaler.scale))
    estimator.preparation_ = Preparation(
        layout, scaler, estimator.calendar_, estimator.lookback_, estimator.horizon_, estimator.window_dtype
    )
    estimator.tail_ = _tail(stored, tensors)
    n_all = n_columns + len(layout.past_covariates) + len(layout.future_covariates)
    if any(s.values.shape != (len(s.times), n_all) for s in estimator.tail_):
        raise ValueError(f"{n_all} columns are described, but the stored history has {tensors['tail'].shape[1]}")
    estimator.interval_bounds_ = tensors.get("interval_bounds")
    estimator._set_feature_names()
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    if weights:
        with torch.random.fork_rng():
            sizes = estimator._input_sizes(estimator.preparation_, has_gaps=estimator.has_gaps_)
            network = estimator._build_network(sizes)
        network.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        estimator.network_ = network.eval()
    if stored["history"] is not None:
        losses = [c for c in stored["history"] if c != "epoch"]
        estimator.history_ = pd.DataFrame(stored["history"]).astype(dict.fromkeys(losses, float))
        estimator.n_iter_ = len(estimator.history_)


def _tail(stored: dict, tensors: dict[str, Tensor]) -> list[Series]:
    times = [_times_from_dict(t) for t in stored["tail_times"]]
    blocks = np.split(tensors["tail"].numpy(), np.cumsum([len(t) for t in times])[:-1])
    static = tensors["tail_static"].numpy()
    return [Series(*parts) for parts in zip(stored["tail_ids"], times, blocks, static, strict=True)]


def _plain(label):
    return label.item() if isinstance(label, np.generic) else label


def _times_as_dict(times: pd.Index) -> dict[str, Any]:
    if isinstance(times, pd.DatetimeIndex):
        zone = None if times.tz is None else str(times.tz)
        try:
            pd.DatetimeIndex([], tz=zone)
        except Exception as error:
            raise TypeError(f"the time zone {times.tz!r} has no name to save; convert the times to one") from error
        return {"kind": "stamps", "values": times.asi8.tolist(), "unit": times.unit, "tz": zone}
    if isinstance(times, pd.PeriodIndex):
        return {"kind": "periods", "values": times.asi8.tolist(), "freq": times.freqstr}
    return {"kind": "numbers", "values": [int(t) for t in times]}


def _times_from_dict(fields: dict[str, Any]) -> pd.Index:
    values = np.array(fields["values"], dtype=np.int64)
    if fields["kind"] == "stamps":
        stamps = pd.DatetimeIndex(values.view(f"datetime64[{fields['unit']}]"))
        return stamps.tz_localize("UTC").tz_convert(fields["tz"]) if fields["tz"] else stamps
    if fields["kind"] == "periods":
        return pd.PeriodIndex.from_ordinals(values, freq=fields["freq"])
    return pd.Index(values)

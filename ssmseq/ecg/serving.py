"""`ECGMambaClassifier` as a graph that takes one window of signal in mV and gives probabilities."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssmseq.ecg.network import N_METADATA
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.export import ServingGraph, TensorSpec, for_serving

PREPARED = (
    "leads in the order of leads, resampled to sampling_rate, gaps up to max_gap bridged by straight lines, then "
    "filtered by band and notch forward and backward, as preprocessing has them; not normalised"
)
ABSENT = "NaN in all leads after the recording's end; a lead with another NaN, or a flat one, is masked"
WHOLE = "a window is taken as a whole recording: of a longer recording, take the windows one by one"


def serving_graph(estimator) -> ServingGraph:
    """Return the graph of a fitted classifier."""
    preprocessing, labels = estimator.preprocessing_, estimator.classes_
    n_times = preprocessing.n_times or 1  # a fitted one has a window
    unit = "mV" if preprocessing.largest_amplitude is not None else "the unit of the training signals"
    signal = TensorSpec(
        ("batch", len(preprocessing.leads), n_times), "float32", f"signal in {unit}: {PREPARED}; {ABSENT}"
    )
    inputs = {"signal": signal}
    if estimator.metadata:
        meaning = "age in centuries, 1 if it is known, sex (1 F, -1 M), 1 if it is known; 0 for what is not known"
        inputs["metadata"] = TensorSpec(("batch", N_METADATA), "float32", meaning)
    how = "calibrated " if estimator.calibrator_ is not None else ""
    kind = "of each class; they sum to 1" if estimator.exclusive_ else "of each label by itself"
    output = TensorSpec(("batch", len(labels)), "float32", f"{how}probability {kind}, in the order of labels")
    return ServingGraph(
        module=WindowGraph(estimator),
        inputs=inputs,
        output=("probabilities", output),
        example=lambda n_batch, _: _example(inputs, (n_batch, len(preprocessing.leads), n_times)),
        metadata={
            "labels": labels.tolist(),
            "exclusive": bool(estimator.exclusive_),
            "thresholds": np.asarray(estimator.thresholds_, float).tolist(),
            "leads": preprocessing.leads,
            "sampling_rate": preprocessing.sampling_rate,
            "preprocessing": preprocessing.to_dict(),
            "longer_recordings": WHOLE,
        },
    )


class WindowGraph(nn.Module):
    """Mask, normalise, classify and calibrate windows that are whole recordings.

    Parameters
    ----------
    estimator : ECGMambaClassifier
        Fitted.
    """

    def __init__(self, estimator):
        super().__init__()
        preprocessing: Preprocessing = estimator.preprocessing_
        self.network = for_serving(estimator.network_)
        self.normalisation, self.flat_range = preprocessing.normalisation, preprocessing.flat_range
        self.mean, self.scale = float(estimator.mean_), float(estimator.scale_)
        self.exclusive = bool(estimator.exclusive_)
        self.calibrations = None if estimator.calibrator_ is None else estimator.calibrator_.parameters_

    def forward(self, signal: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Map signals (B, leads, times), and age and sex (B, 4), to probabilities (B, K)."""
        x = signal.double()
        absent = torch.isnan(x)
        n_valid = _length(absent)
        inside = (torch.arange(x.shape[-1]) < n_valid[:, None])[:, None]
        highest, lowest = (x.masked_fill(absent, -s * torch.inf).mul(s).amax(-1) for s in (1, -1))
        lively = highest + lowest > self.flat_range
        usable = lively & ~(absent & inside).any(-1)
        x = self._normalised(x.masked_fill(absent, 0), ~absent & inside & lively[..., None])
        dtype = next(self.network.parameters()).dtype
        x = ((x.float().double() - self.mean) / self.scale).to(dtype)  # the preprocessing gives float32
        more = {} if metadata is None else {"metadata": metadata.to(dtype)}
        return self._probabilities(self.network(x, usable.to(dtype), n_valid, **more).double()).float()

    def _normalised(self, x: Tensor, counted: Tensor) -> Tensor:
        if self.normalisation == "none":
            return x
        axes = (2,) if self.normalisation == "lead" else (1, 2)
        n = counted.sum(axes, keepdim=True).clamp(min=1)
        mean = (x * counted).sum(axes, keepdim=True) / n
        scale = (((x - mean) * counted).square().sum(axes, keepdim=True) / n).sqrt()
        return (x - mean) / torch.where(scale > 0, scale, 1.0)

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.calibrations is None:
            return logits.softmax(-1) if self.exclusive else logits.sigmoid()
        logits = _log_odds(logits) if self.exclusive else logits
        columns = zip(logits.unbind(1), self.calibrations, strict=True)
        found = torch.stack([_calibrated(column, parameters) for column, parameters in columns], 1)
        if not self.exclusive:
            return found
        total = found.sum(1, keepdim=True)
        return torch.where(total > 0, found / torch.where(total > 0, total, 1.0), 1 / found.shape[1])


def _length(absent: Tensor) -> Tensor:
    """Return the samples (B,) before the end of each recording, where all leads (B, leads, times) are absent."""
    places = torch.arange(1, absent.shape[-1] + 1)
    last = torch.where(absent.all(1), 0, places).amax(-1)
    return torch.where(last > 0, last, absent.shape[-1])


def _log_odds(logits: Tensor) -> Tensor:
    """Return the logit (B, K) of the probability of each class against all others."""
    own = torch.eye(logits.shape[1], dtype=torch.bool)
    return logits - logits[:, None].masked_fill(own, -torch.inf).logsumexp(-1)


def _calibrated(logits: Tensor, found: dict[str, Any]) -> Tensor:
    """Return the probabilities (B,) of one label, by the parameters that `LabelCalibrator` found."""
    if "slope" in found:
        return (found["slope"] * logits + found["intercept"]).sigmoid()
    if "temperature" in found:
        return (logits / found["temperature"]).sigmoid()
    if not found:
        return logits.sigmoid()
    x, y = (torch.tensor(found[name], dtype=logits.dtype) for name in ("x", "y"))
    if len(x) == 1:
        return y.expand_as(logits)
    # Linear between knots, constant beyond them, as numpy's interp.
    p = logits.sigmoid().clamp(x[0], x[-1])
    before = ((p[:, None] >= x).sum(1) - 1).clamp(0, len(x) - 2)
    share = (p - x[before]) / (x[before + 1] - x[before])
    return y[before] + share * (y[before + 1] - y[before])


def _example(inputs: dict[str, TensorSpec], shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return smooth noise of the size of an electrocardiogram; the last recording of a batch is short by a third."""
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=0.1, size=shape)
    signal = np.cumsum(steps, -1) - 0.5 * np.cumsum(np.roll(steps, 3, -1), -1)
    signal[-1, :, -(shape[2] // 3) :] = np.nan
    known = np.array([0.5, 1, 1, 1]) * np.ones((shape[0], 1))
    given = {"signal": signal, "metadata": known}
    return {name: torch.from_numpy(given[name].astype(spec.dtype)) for name, spec in inputs.items()}

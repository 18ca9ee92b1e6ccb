r"""How far the logit of a label depends on each lead and moment of a recording: by gradients, and by hiding segments.

"gradient" is gradient times input [1]_: with the logit z of a window and the network's input x, the saliency of a
sample is :math:`(x_t - \bar x) \, \partial z / \partial x_t`, where :math:`\bar x` is the mean of the lead in the
window. "occlusion" [2]_ puts that mean in place of a segment of one lead, and is how much of the logit goes with it.
The first is what the second would be if the network were linear. Both are positive where the signal raises the logit.

References
----------
.. [1] Shrikumar, A. et al. (2016). Not just a black box: learning important features through propagating activation
   differences. arXiv 1605.01713. The mean of the lead takes the place of zero.
.. [2] Zeiler, M. D. and Fergus, R. (2014). Visualizing and understanding convolutional networks. ECCV. arXiv 1311.2901.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmseq.ecg.inputs import n_times_of, read_metadata, read_recordings
from ssmseq.ecg.records import Record

METHODS = ("gradient", "occlusion")


class Saliency(NamedTuple):
    """How far a logit depends on a part of a recording, at the rate of the network."""

    values: np.ndarray  # (leads, times) float64, in logits; NaN where no window of the model looks
    first: int  # sample of the recording that `values` begin with
    usable: np.ndarray  # (leads,): share of the windows in which the lead is not masked


class _Input(NamedTuple):
    first: int  # sample that the window begins with
    n_valid: int  # samples of it before the padding
    tensors: dict[str, Tensor]  # of a batch of one


def as_batch(record):
    """Return one recording, a Record or an array (leads, times) or (times,), in a form that `predict` takes."""
    return [record] if isinstance(record, Record) else np.asarray(record)[None]


def read_one(estimator, record) -> Record:
    """Return one recording as a Record; ValueError if it does not fit what the estimator was fitted on."""
    (found,), _ = read_recordings(estimator, as_batch(record), estimator.layout_)
    return found


def measure(
    estimator, record: Record, column: int, method: str, start: float, stop: float, smoothing: float, width: float
) -> Saliency:
    """Return the saliency of the samples from `start` to `stop` for the label of a column, all times in seconds.

    Memory grows with the part that is asked for, not with the recording. Each sample gets the mean over the windows
    that hold it; a window that masks a lead counts with zero. Gradients are then averaged over `smoothing` around each
    sample. Occlusion hides segments of `width`, which are counted from the beginning of the recording.
    """
    rate = estimator.preprocessing_.sampling_rate
    n_times = n_times_of(record, rate)
    first, last = int(np.floor(start * rate)), min(int(np.ceil(stop * rate)), n_times)
    reach = round(smoothing * rate / 2) if method == "gradient" else 0
    low, high = max(first - reach, 0), min(last + reach, n_times)
    step = max(round(width * rate), 1)
    sums = np.zeros((len(estimator.preprocessing_.leads), high - low))
    counts, usable, n_windows = np.zeros(high - low), np.zeros(len(sums)), 0
    for window in _inputs(estimator, record, low, high):
        if method == "gradient":
            found = _gradients(estimator, window, column)
        else:
            found = _occlusions(estimator, window, column, step, low, high)
        a, b = max(window.first, low), min(window.first + window.n_valid, high)
        sums[:, a - low : b - low] += found[:, a - window.first : b - window.first]
        counts[a - low : b - low] += 1
        usable += window.tensors["lead_mask"][0].double().cpu().numpy()
        n_windows += 1
    values = _smoothed(sums, counts, reach)[:, first - low : last - low]
    return Saliency(values, first, usable / max(n_windows, 1))


def _inputs(estimator, record: Record, low: int, high: int) -> Iterator[_Input]:
    """Yield the windows that hold any of the samples [low, high), as the network sees them."""
    device, dtype = estimator._device(), next(estimator.network_.parameters()).dtype
    rate = estimator.preprocessing_.sampling_rate
    n_times = n_times_of(record, rate)
    metadata = read_metadata([record], required=False) if estimator.metadata else None
    for window in estimator.preprocessing_.windows(record):
        first = round(window.start * rate)
        n_valid = min(n_times - first, window.signal.shape[1])
        if first >= high:
            return
        if first + n_valid <= low:
            continue
        signal = (window.signal.astype(np.float64) - estimator.mean_) / estimator.scale_
        arrays = {"signal": signal[None], "lead_mask": window.mask[None]}
        arrays |= {} if metadata is None else {"metadata": metadata}
        tensors = {name: torch.from_numpy(x).to(device, dtype) for name, x in arrays.items()}
        yield _Input(first, n_valid, tensors | {"n_valid": torch.tensor([n_valid], device=device)})


def _logits(estimator, column: int) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return a function from inputs to the logit (B,) of a label, or of a class against all others."""
    network = estimator.network_.to(estimator._device()).eval()

    def of(tensors: dict[str, Tensor]) -> Tensor:
        z = network(**tensors).double()
        if not estimator.exclusive_:
            return z[:, column]
        others = torch.cat([z[:, :column], z[:, column + 1 :]], 1)
        return z[:, column] - torch.logsumexp(others, 1)

    return of


def _means(window: _Input) -> Tensor:
    """Return the mean of each lead in the window, without the padding, (leads, 1)."""
    return window.tensors["signal"][0, :, : window.n_valid].mean(-1, keepdim=True)


def _gradients(estimator, window: _Input, column: int) -> np.ndarray:
    signal = window.tensors["signal"].clone().requires_grad_()
    with torch.enable_grad():
        logit = _logits(estimator, column)(window.tensors | {"signal": signal}).sum()
        (slope,) = torch.autograd.grad(logit, signal)
    found = slope[0] * (window.tensors["signal"][0] - _means(window)) * window.tensors["lead_mask"][0, :, None]
    return found.double().cpu().numpy()


def _occlusions(estimator, window: _Input, column: int, step: int, low: int, high: int) -> np.ndarray:
    logits, mean = _logits(estimator, column), _means(window)
    end = window.first + window.n_valid
    edges = [max(k * step, window.first) for k in range(window.first // step, -(-end // step))]
    segments = [(a, b) for a, b in itertools.pairwise([*edges, end]) if a < high and b > low]
    places = [(a - window.first, b - window.first) for a, b in segments]
    leads = torch.nonzero(window.tensors["lead_mask"][0]).flatten().tolist()
    hidden = [(lead, a, b) for lead in leads for a, b in places]
    found = np.zeros(window.tensors["signal"].shape[1:])
    with torch.inference_mode():
        usual = logits(window.tensors)
        for i in range(0, len(hidden), estimator.batch_size):
            part = hidden[i : i + estimator.batch_size]
            batch = {name: x.expand(len(part), *x.shape[1:]) for name, x in window.tensors.items()}
            batch["signal"] = batch["signal"].clone()
            for row, (lead, a, b) in enumerate(part):
                batch["signal"][row, lead, a:b] = mean[lead]
            for (lead, a, b), change in zip(part, (usual - logits(batch)).tolist(), strict=True):
                found[lead, a:b] = change
    return found


def _smoothed(sums: np.ndarray, counts: np.ndarray, reach: int) -> np.ndarray:
    """Return the means (leads, times), averaged over `reach` samples to either side; NaN where nothing was counted."""
    from scipy.ndimage import uniform_filter1d

    def around(values: np.ndarray) -> np.ndarray:
        return uniform_filter1d(values, 2 * reach + 1, axis=-1, mode="constant")

    seen = counts > 0
    weight = around(seen.astype(np.float64))
    means = around(sums / np.maximum(counts, 1)) / np.where(seen, weight, 1)
    return np.where(seen, means, np.nan)

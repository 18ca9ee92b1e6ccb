"""From windows to the scores and probabilities of recordings."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logsumexp, softmax
from torch import nn

from ssmseq.ecg.calibration import LabelCalibrator
from ssmseq.ecg.inputs import cut_windows
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.ecg.records import Record


def score_records(
    network: nn.Module,
    preprocessing: Preprocessing,
    records: list[Record],
    metadata: np.ndarray | None,
    *,
    mean: float,
    scale: float,
    exclusive: bool,
    aggregate: str,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Return one logit for each record and label (n, K) float64, aggregated over the record's windows.

    Memory does not grow with the length of a recording.
    """
    network = network.to(device).eval()
    dtype = next(network.parameters()).dtype
    total: Any = None
    for cuts in _batches(cut_windows(preprocessing, records), batch_size):
        rows = np.array([cut.record for cut in cuts])
        signal = (np.stack([cut.signal for cut in cuts]).astype(np.float64) - mean) / scale
        inputs = {"signal": signal, "lead_mask": np.stack([cut.mask for cut in cuts])}
        if metadata is not None:
            inputs["metadata"] = metadata[rows]
        tensors = {name: torch.from_numpy(x).to(device, dtype) for name, x in inputs.items()}
        n_valid = torch.tensor([cut.n_valid for cut in cuts], device=device)
        with torch.inference_mode():
            logits = network(**tensors, n_valid=n_valid).double().cpu().numpy()
        total = Aggregate(len(records), logits.shape[1], aggregate, exclusive) if total is None else total
        total.add(rows, logits)
    return total.result()


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


class Aggregate:
    """Makes one logit of those of several windows, as they come.

    Parameters
    ----------
    n_records, n_labels : int
    how : {"mean", "max", "mean_probability"}
        Of the logits, or the logit of the mean probability.
    exclusive : bool
        Probabilities are those of a softmax, and their logits its logarithm.
    """

    def __init__(self, n_records: int, n_labels: int, how: str, exclusive: bool):
        self.how, self.exclusive = how, exclusive
        self.count = np.zeros((n_records, 1))
        self.values = np.full((n_records, n_labels), -np.inf if how == "max" else 0.0)
        self.others = np.zeros((n_records, n_labels))  # mean of 1 - p, whose logarithm is exact where p is near 1

    def add(self, rows: np.ndarray, logits: np.ndarray) -> None:
        """Take in the logits (B, K) of windows of the records `rows` (B,)."""
        np.add.at(self.count, rows, 1)
        if self.how == "max":
            np.maximum.at(self.values, rows, logits)
        elif self.how == "mean":
            np.add.at(self.values, rows, logits)
        elif self.exclusive:
            np.add.at(self.values, rows, probabilities(logits, exclusive=True))
        else:
            np.add.at(self.values, rows, probabilities(logits, exclusive=False))
            np.add.at(self.others, rows, probabilities(-logits, exclusive=False))

    def result(self) -> np.ndarray:
        """Return the logits (n, K)."""
        if self.how == "max":
            return self.values
        mean = self.values / self.count
        if self.how == "mean":
            return mean
        return np.log(mean) if self.exclusive else np.log(mean) - np.log(self.others / self.count)


def probabilities(logits: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Return the softmax over the last axis, or the sigmoid of each."""
    return softmax(logits, axis=-1) if exclusive else expit(logits)


def calibrated(logits: np.ndarray, calibrator: LabelCalibrator | None, *, exclusive: bool) -> np.ndarray:
    """Return the probabilities (n, K) of logits; of classes they sum to 1."""
    if calibrator is None:
        return probabilities(logits, exclusive=exclusive)
    if not exclusive:
        return calibrator.predict(logits)
    found = calibrator.predict(log_odds(logits))
    total = found.sum(1, keepdims=True)
    return np.where(total > 0, found / np.where(total > 0, total, 1), 1 / found.shape[1])


def log_odds(logits: np.ndarray) -> np.ndarray:
    """Return the logit of the probability of each class against all others."""
    found = np.empty_like(logits)
    for k in range(logits.shape[1]):
        found[:, k] = logits[:, k] - logsumexp(np.delete(logits, k, 1), axis=1)
    return found

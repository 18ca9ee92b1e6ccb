"""The parts of `ECGMambaClassifier.fit`: who validates, a network on some recordings, thresholds and calibration.

Nothing here is ever evaluated on what it was fitted to: the scaler and the network see the training rows of their part,
and scores that thresholds and calibrators are made of belong to rows that their network did not train on.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from ssmseq.base import draw_seed
from ssmseq.ecg.calibration import LabelCalibrator
from ssmseq.ecg.losses import classification_loss
from ssmseq.ecg.metrics import check_thresholds
from ssmseq.ecg.network import Ensemble
from ssmseq.ecg.preparing import Prepared, needs_held_out, tunes_thresholds
from ssmseq.ecg.scoring import calibrated, log_odds, score_records
from ssmseq.ecg.splits import GroupedMultilabelStratifiedKFold
from ssmseq.ecg.thresholds import tune_thresholds
from ssmseq.ecg.training_data import Crops, read_augmentations, window_starts
from ssmseq.sampling import mixed_seed

SPLITS = 20  # a validation part is made of as many of these folds as come closest to its share


@dataclass(frozen=True)
class Part:
    """A network and the scaler that goes with it."""

    network: nn.Module
    history: pd.DataFrame
    mean: float
    scale: float


def fit_parts(estimator, data: Prepared) -> tuple[Part, tuple[np.ndarray, np.ndarray] | None]:
    """Fit the network; return it with held-out rows and their scores, where thresholds or calibration need them."""
    from ssmseq.checkpoints import resumable_seed

    n_folds = estimator.n_folds if needs_held_out(estimator) else 0
    rows = np.arange(len(data.records))
    seed = resumable_seed(_in_folder(estimator, "fold-0" if n_folds else ""), draw_seed(estimator.random_state))
    held_out = None
    if n_folds:
        scores = np.empty(data.labels.shape)
        folds = GroupedMultilabelStratifiedKFold(n_folds, shuffle=True, random_state=seed)
        for k, (others, test) in enumerate(folds.split(rows, data.labels, data.groups)):
            train, valid = hold_out(data, others, estimator.validation_fraction, seed + k)
            part = fit_part(estimator, data, train, valid, seed + k, f"fold-{k}")
            scores[test] = score_part(estimator, part, data, test)
        held_out = rows, scores
    train, valid = hold_out(data, rows, estimator.validation_fraction, seed + n_folds)
    part = fit_part(estimator, data, train, valid, seed + n_folds, "")
    if needs_held_out(estimator) and valid is not None and not n_folds:
        held_out = valid, score_part(estimator, part, data, valid)
    return part, held_out


def score_part(estimator, part: Part, data: Prepared, rows: np.ndarray) -> np.ndarray:
    """Return the logits of some rows, by the very way of `predict`."""
    return score_records(
        part.network,
        data.preprocessing,
        [data.records[i] for i in rows],
        None if data.metadata is None else data.metadata[rows],
        mean=part.mean,
        scale=part.scale,
        exclusive=data.exclusive,
        aggregate=estimator.aggregate,
        batch_size=estimator.batch_size,
        device=estimator._device(),
    )


def calibrate(estimator, data: Prepared, held_out) -> tuple[LabelCalibrator | None, Any]:
    """Return the calibrator, and the threshold of each label, from rows that were held out and their scores."""
    fixed = not tunes_thresholds(estimator)
    thresholds = check_thresholds(estimator.thresholds, len(data.classes)).copy() if fixed else None
    if held_out is None:
        return None, thresholds
    rows, scores = held_out
    calibrator = None
    if estimator.calibration is not None:
        odds = log_odds(scores) if data.exclusive else scores
        calibrator = LabelCalibrator(estimator.calibration, from_logits=True).fit(odds, data.labels[rows])
    if thresholds is None:
        found = calibrated(scores, calibrator, exclusive=data.exclusive)
        names = [str(name) for name in data.classes]
        thresholds = tune_thresholds(data.labels[rows], found, estimator.thresholds, labels=names)
    return calibrator, thresholds


def _in_folder(estimator, subfolder: str):
    worker = copy.copy(estimator)
    if estimator.checkpoint_folder is not None:
        worker.checkpoint_folder = str(Path(estimator.checkpoint_folder) / subfolder)
    return worker


def hold_out(data: Prepared, rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Split rows into a training and a validation part that share no patient and are alike in their labels."""
    if fraction == 0:
        return rows, None
    groups = None if data.groups is None else data.groups[rows]
    n_groups = len(rows) if groups is None else len(np.unique(groups))
    n_splits = min(SPLITS, n_groups)
    if n_splits < 2:
        raise ValueError(
            f"validation_fraction={fraction} needs at least two patients, and the {len(rows)} recordings to train on "
            "are of one: set validation_fraction=0, or give more"
        )
    folds = GroupedMultilabelStratifiedKFold(n_splits, shuffle=True, random_state=seed)
    parts = [test for _, test in folds.split(rows, data.labels[rows], groups)]
    sizes = np.cumsum([len(part) for part in parts[:-1]])  # folds are balanced by labels: their sizes differ
    chosen = np.sort(np.concatenate(parts[: 1 + np.abs(sizes - fraction * len(rows)).argmin()]))
    return np.delete(rows, chosen), rows[chosen]


def fit_part(estimator, data: Prepared, train: np.ndarray, valid: np.ndarray | None, seed: int, subfolder: str) -> Part:
    """Fit scaler and networks on some rows; `subfolder` is added to the checkpoint folder, if there is one."""
    mean, scale = 0.0, 1.0
    if estimator.normalisation == "dataset":
        mean, scale = signal_statistics([data.signals[i] for i in train], data.masks[train], data.weights[train])
    with torch.random.fork_rng():  # also of every CUDA device, so that the caller's generators stay as they are
        torch.manual_seed(seed)
        network = estimator._build_network(
            len(data.preprocessing.leads), data.preprocessing.n_times, data.labels.shape[1]
        )
        network = network.float()  # whatever torch's default dtype is
        if estimator.warm_start and hasattr(estimator, "network_") and subfolder == "":
            _take_over(network, estimator.network_)
        histories = []
        members = list(getattr(network, "members", [network]))
        for k, member in enumerate(members):
            title = _title(estimator, subfolder, k, len(members))
            worker = _in_folder(estimator, str(Path(subfolder, f"network-{k}" if k else "")))
            own_seed = mixed_seed(seed, k) if k else seed
            histories.append(_fit_network(worker, member, data, (train, valid), (mean, scale), title, own_seed))
            if "interrupted" in histories[-1].attrs:
                break
    return Part(*_finished(network, histories), mean, scale)


def _title(estimator, subfolder: str, k: int, n_members: int) -> str:
    """What the lines of progress are about, where there is more than one network to train."""
    fold = [f"fold {int(subfolder.removeprefix('fold-')) + 1} of {estimator.n_folds}"] if subfolder else []
    return ", ".join(fold + [f"network {k + 1} of {n_members}"] * (n_members > 1))


def _fit_network(
    worker, network: nn.Module, data: Prepared, parts: tuple, scaler: tuple, title: str, seed: int
) -> pd.DataFrame:
    from ssmseq.training import fit_network

    train, valid = parts
    loss = classification_loss(
        worker.loss,
        exclusive=data.exclusive,
        focusing=worker.focusing,
        positive_weights=positive_weights(worker.positive_weights, data, train),
    )
    crops = _crops(worker, data, train, scaler, seed, fixed=False)
    windows = None if valid is None else _crops(worker, data, valid, scaler, seed, fixed=True)
    return fit_network(network, worker, crops, windows, {"train_loss": loss, "valid_loss": loss}, seed, title)


def _finished(network: nn.Module, histories: list[pd.DataFrame]) -> tuple[nn.Module, pd.DataFrame]:
    """Leave out networks that an interrupt kept from their end, but for the first; put the histories together."""
    if not isinstance(network, Ensemble):
        return network, histories[0]
    n_trained = max(len(histories) - ("interrupted" in histories[-1].attrs), 1)
    network.members = network.members[:n_trained]
    numbered = [h.assign(network=k) for k, h in enumerate(histories[:n_trained], 1)]
    return network, pd.concat(numbered, ignore_index=True).reindex(columns=["network", *histories[0].columns])


def epochs_of(history: pd.DataFrame) -> int:
    """Return how many epochs were run, of several networks the most."""
    return max(history["epoch"], default=0)


def _crops(estimator, data: Prepared, rows: np.ndarray, scaler: tuple, seed: int, *, fixed: bool) -> Crops:
    weights = data.weights[rows] / data.weights[rows].mean()
    labels = data.labels[rows]
    signals = [data.signals[i] for i in rows]
    n_times = data.preprocessing.n_times or 1
    stride = data.preprocessing.stride
    step = n_times if stride is None else max(round(stride * data.preprocessing.sampling_rate), 1)
    return Crops(
        signals,
        data.masks[rows],
        None if data.metadata is None else data.metadata[rows],
        np.stack([labels, np.where(np.isnan(labels), np.nan, weights[:, None])], 1),
        n_times=n_times,
        mean=scaler[0],
        scale=scaler[1],
        dtype=np.float64 if "64" in str(estimator.precision) else np.float32,
        sampling_rate=data.preprocessing.sampling_rate,
        augmentations=read_augmentations(estimator.augment),
        max_epochs=estimator.max_epochs,
        seed=seed,
        starts=window_starts([s.shape[1] for s in signals], n_times, step) if fixed else None,
    )


def signal_statistics(signals: list[np.ndarray], masks: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation over all samples of usable leads, in float64; a scale of 1 for constants."""
    count = total = squares = 0.0
    for signal, mask, weight in zip(signals, masks, weights, strict=True):
        count += weight * signal[mask].size
        total += weight * signal[mask].sum(dtype=np.float64)
    mean = total / max(count, 1e-300)
    for signal, mask, weight in zip(signals, masks, weights, strict=True):
        squares += weight * np.square(signal[mask].astype(np.float64) - mean).sum()
    scale = float(np.sqrt(squares / max(count, 1e-300)))
    return float(mean), scale if scale > 0 else 1.0


def positive_weights(chosen, data: Prepared, rows: np.ndarray) -> torch.Tensor | None:
    """Return the weight of each label's positives, or of each class, made from the training rows where "balanced"."""
    if chosen is None:
        return None
    labels, weights = data.labels[rows], data.weights[rows, None]
    if not isinstance(chosen, str):
        found = np.asarray(chosen, np.float64)
        if found.shape != (labels.shape[1],) or not (np.isfinite(found) & (found > 0)).all():
            raise ValueError(
                f"positive_weights must be None, 'balanced' or {labels.shape[1]} numbers above 0, one for each label, "
                f"got {chosen!r}"
            )
        return torch.from_numpy(found)
    positive, known = np.nansum(weights * labels, 0), (weights * ~np.isnan(labels)).sum(0)
    other = known / labels.shape[1] if data.exclusive else known - positive
    # A label that all or none of the rows have has nothing to balance.
    return torch.from_numpy(np.where((positive > 0) & (other > 0), other / np.maximum(positive, 1e-300), 1.0))


def _take_over(network: nn.Module, earlier: nn.Module) -> None:
    try:
        network.load_state_dict(earlier.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"warm_start=True cannot go on from the network of the last fit: {error}; set it to False to start afresh"
        ) from error

"""What `ECGMambaClassifier.fit` is given, checked, read and preprocessed."""

import dataclasses
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.utils import check_consistent_length

from ssmseq.base import check_choice, check_number
from ssmseq.ecg.inputs import Layout, read_groups, read_metadata, read_recordings, read_targets
from ssmseq.ecg.losses import LOSSES
from ssmseq.ecg.metrics import check_thresholds
from ssmseq.ecg.network import ENCODERS, POOLINGS
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.ecg.records import Record
from ssmseq.ecg.thresholds import METRICS
from ssmseq.ecg.training_data import read_augmentations

CALIBRATIONS = (None, "platt", "isotonic", "temperature")
CHOICES = {
    "encoder": ENCODERS,
    "stem": ("dense", "strided"),
    "positions": (True, False),
    "pooling": POOLINGS,
    "metadata": (True, False),
    "normalisation": ("dataset", "record", "lead", "none"),
    "aggregate": ("mean", "max", "mean_probability"),
    "loss": LOSSES,
    "calibration": CALIBRATIONS,
    "warm_start": (True, False),
}
FLAT_RANGE = 1e-3  # mV


@dataclass(frozen=True)
class Prepared:
    """Recordings that are ready to be cropped, with all that is known of them."""

    records: list[Record]
    signals: list[np.ndarray]  # of (leads, times) float32
    masks: np.ndarray  # (n, leads) bool
    metadata: np.ndarray | None  # (n, 4)
    labels: np.ndarray  # (n, K); NaN is unknown
    weights: np.ndarray  # (n,), above 0
    groups: np.ndarray | None  # (n,)
    classes: np.ndarray  # (K,)
    exclusive: bool  # one class for each recording
    preprocessing: Preprocessing  # with a window


def check_parameters(e) -> None:
    """Raise ValueError for a parameter of the estimator that cannot work, before anything is read."""
    for name, choices in CHOICES.items():
        check_choice(name, getattr(e, name), choices)
    for name in ("stem_kernel", "stem_stride", "d_model", "d_state", "expand", "n_layers", "n_networks"):
        check_number(name, getattr(e, name), minimum=1, integer=True)
    if e.stem_kernel % 2 == 0:
        raise ValueError(f"stem_kernel must be odd, so that tokens are centred on their samples, got {e.stem_kernel}")
    if e.d_conv is not None:
        check_number("d_conv", e.d_conv, minimum=1, integer=True)
    for name in ("dropout", "drop_path", "validation_fraction"):
        check_number(name, getattr(e, name), minimum=0, below=1)
    for name in ("window", "stride"):
        if getattr(e, name) is not None:
            check_number(name, getattr(e, name), above=0)
    if e.focusing is not None:
        check_number("focusing", e.focusing, minimum=0)
    if e.encoder == "cnn" and e.pooling == "class_token":
        raise ValueError(
            "pooling='class_token' is a token of the Mamba encoders; set 'mean' or 'max' for encoder='cnn'"
        )
    check_number("n_folds", e.n_folds, minimum=0, integer=True)
    if e.n_folds == 1:
        raise ValueError("n_folds must be 0, or 2 and more, got 1: one fold leaves nothing to train on")
    if isinstance(e.positive_weights, str):
        check_choice("positive_weights", e.positive_weights, ("balanced",))
    if isinstance(e.thresholds, str):
        check_choice("thresholds", e.thresholds, METRICS)
    read_augmentations(e.augment)
    if needs_held_out(e) and e.n_folds == 0 and e.validation_fraction == 0:
        wanted = f"thresholds={e.thresholds!r}" if tunes_thresholds(e) else f"calibration={e.calibration!r}"
        raise ValueError(
            f"{wanted} needs recordings that the network was not trained on: set n_folds to 2 or more (5 is usual), or "
            "validation_fraction above 0"
        )


def tunes_thresholds(e) -> bool:
    """Whether `fit` is to choose the thresholds."""
    return isinstance(e.thresholds, str) or callable(e.thresholds)


def needs_held_out(e) -> bool:
    """Whether `fit` needs scores of recordings that the network was not trained on."""
    return tunes_thresholds(e) or e.calibration is not None


def prepare(estimator, X, y, groups, sample_weight) -> tuple[Prepared, Layout]:
    """Read and preprocess what `fit` is given. Sets `n_features_in_` and `feature_names_in_`.

    Recordings of weight 0 are left out, and classes that only they have.
    """
    records, layout = read_recordings(estimator, X)
    targets = read_targets(y)
    check_consistent_length(records, targets.indicator)
    weights = _read_weights(sample_weight, len(records))
    kept = np.flatnonzero(weights > 0)
    labels, classes = targets.indicator[kept], targets.classes
    if targets.exclusive:
        there = labels.any(0)
        labels, classes = labels[:, there], classes[there]
        if len(classes) < 2:
            raise ValueError(f"y must hold at least two classes, got {len(classes)} class: {classes.tolist()}")
        _check_exclusive(estimator)
    elif not tunes_thresholds(estimator):
        check_thresholds(estimator.thresholds, len(classes))
    patients = read_groups(groups, records)
    records = [records[i] for i in kept]
    preprocessing = _preprocessing(estimator, layout)
    windows = preprocessing.prepare(records)
    lengths = [window.signal.shape[1] for window in windows]
    if estimator.window is None:
        preprocessing = dataclasses.replace(preprocessing, window=max(lengths) / preprocessing.sampling_rate)
    _check_windows(windows, preprocessing)
    data = Prepared(
        records,
        [window.signal for window in windows],
        np.stack([window.mask for window in windows]),
        read_metadata(records, required=True) if estimator.metadata else None,
        labels,
        weights[kept],
        None if patients is None else patients[kept],
        classes,
        targets.exclusive,
        preprocessing,
    )
    return data, layout


def _check_exclusive(e) -> None:
    if e.loss != "cross_entropy":
        raise ValueError(f"loss={e.loss!r} is for labels that may hold together; y has classes: set 'cross_entropy'")
    if tunes_thresholds(e) or np.ndim(e.thresholds) or e.thresholds != 0.5:
        raise ValueError(
            f"thresholds={e.thresholds!r} is for labels that may hold together; y has classes, of which predict gives "
            "the most probable: leave 0.5, or use sklearn.model_selection.TunedThresholdClassifierCV"
        )


def _read_weights(sample_weight, n: int) -> np.ndarray:
    if sample_weight is None:
        return np.ones(n)
    weights = np.asarray(sample_weight, np.float64)
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have the shape ({n},), one for each recording, got {weights.shape}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("sample_weight must be finite and not below 0")
    if not weights.any():
        raise ValueError("sample_weight is zero for every recording; give some a weight above 0")
    return weights


def _preprocessing(e, layout: Layout) -> Preprocessing:
    named = layout.named
    return Preprocessing(
        sampling_rate=layout.sampling_rate,
        leads=layout.leads,
        band=e.band,
        notch=e.notch,
        normalisation="none" if e.normalisation == "dataset" else e.normalisation,
        window=e.window,
        stride=e.stride,
        too_short=e.too_short,
        max_gap=e.max_gap,
        long_gaps=e.long_gaps,
        missing_leads=e.missing_leads,
        # Of leads without names neither the unit is known nor what they are.
        limb_leads=e.limb_leads if named else "ignore",
        largest_amplitude=e.largest_amplitude if named else None,
        flat_range=FLAT_RANGE if named else 0.0,
    )


def _check_windows(windows: list, preprocessing: Preprocessing) -> None:
    """Refuse recordings that are too short, and warn of those that have nothing to learn from."""
    n_times = preprocessing.n_times or 1
    for i, window in enumerate(windows):
        if preprocessing.too_short == "refuse" and window.signal.shape[1] < n_times:
            raise ValueError(
                f"recording {i} has {window.signal.shape[1]} samples at {preprocessing.sampling_rate:g} Hz, less than "
                f"the {n_times} of a window; leave it out, or set too_short='pad'"
            )
    blank = [i for i, window in enumerate(windows) if not window.mask.any()]
    if blank:
        shown = ", ".join(map(str, blank[:5])) + (f" and {len(blank) - 5} more" if len(blank) > 5 else "")
        warnings.warn(f"no lead is usable in recording {shown}; see quality_report", stacklevel=4)

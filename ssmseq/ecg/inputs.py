"""What `ECGMambaClassifier` may be given, X and y in their forms, brought into one: records, and an indicator."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, validate_data

from ssmseq.ecg.filtering import resampling_ratio
from ssmseq.ecg.leads import plan_leads, recorded_rows, standard_names
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.ecg.records import Record, as_records
from ssmseq.ecg.splits import label_indicator

METADATA_UNIT = 100.0  # years


@dataclasses.dataclass(frozen=True)
class Layout:
    """How recordings were given to `fit`, which those of `predict` are held against."""

    leads: tuple[str, ...]
    named: bool  # the leads have names of their own, and are not just counted
    table: bool  # (n, times), one lead
    sampling_rate: float  # of arrays, in Hz


@dataclasses.dataclass(frozen=True)
class Targets:
    """Labels as an indicator."""

    classes: np.ndarray  # (K,)
    exclusive: bool  # exactly one of them holds
    indicator: np.ndarray  # (n, K) float64; NaN is unknown


def read_recordings(estimator, X, layout: Layout | None = None) -> tuple[list[Record], Layout]:
    """Return X as records, and how it was given.

    Parameters
    ----------
    estimator : ECGMambaClassifier
        Its `leads` and `sampling_rate` count for arrays. Without a layout its `n_features_in_` is set.
    X : list of Record, array (n, leads, times) or (n, times), or list of arrays (leads, times)
    layout : Layout, optional
        Of the recordings of `fit`.

    Raises
    ------
    ValueError
        If arrays are not numeric and finite (but for NaN), have another number of leads than those of `fit` or
        than `leads` names, or records come to a model that was fitted on leads without names.
    """
    items = [X] if isinstance(X, Record) else X
    if isinstance(items, list | tuple) and any(isinstance(item, Record) for item in items):
        records = as_records(items)
        if layout is not None and not layout.named:
            raise ValueError(
                "X holds records, but this model was fitted on arrays without lead names, so that leads cannot be "
                "matched: give arrays in the same form, or fit with leads=[...] or on records"
            )
        chosen = estimator.leads if estimator.leads is not None else records[0].lead_names
        layout = layout or _set_layout(estimator, Layout(standard_names(chosen), True, False, estimator.sampling_rate))
        return records, layout
    if _holds_signals(items):
        n_leads = _lead_count(items[0])
        if layout is not None and n_leads != len(layout.leads):
            raise ValueError(f"X has {n_leads} leads, but {type(estimator).__name__} was fitted on {len(layout.leads)}")
        found = layout or _set_layout(estimator, _array_layout(estimator, n_leads, table=False))
    else:
        items, found = _read_array(estimator, items, layout)
    return as_records(items, sampling_rate=found.sampling_rate, lead_names=found.leads), found


def _read_array(estimator, X: Any, layout: Layout | None):
    X = X if hasattr(X, "shape") else np.asarray(X)
    if layout is not None and not layout.table and len(X.shape) == 2:
        X = np.asarray(X)[:, None]
    if layout is not None and layout.table and len(X.shape) == 3:
        raise ValueError("X is (n, leads, times), but this model was fitted on an array (n, times); give X[:, 0]")
    found: Any = validate_data(estimator, X, reset=layout is None, allow_nd=True, ensure_all_finite="allow-nan")
    if found.ndim > 3:
        raise ValueError(f"X must be an array (n, leads, times) or (n, times), got {found.ndim} axes: {found.shape}")
    return found, layout or _array_layout(estimator, 1 if found.ndim == 2 else found.shape[1], table=found.ndim == 2)


def _array_layout(estimator, n_leads: int, *, table: bool) -> Layout:
    if estimator.leads is None:
        return Layout(tuple(f"channel {i}" for i in range(n_leads)), False, table, estimator.sampling_rate)
    names = standard_names(estimator.leads)
    if len(names) != n_leads:
        raise ValueError(f"X has {n_leads} leads, but leads names {len(names)}: {', '.join(names)}")
    return Layout(names, True, table, estimator.sampling_rate)


def _set_layout(estimator, layout: Layout) -> Layout:
    estimator.n_features_in_ = len(layout.leads)
    vars(estimator).pop("feature_names_in_", None)
    return layout


def _holds_signals(X) -> bool:
    """Whether X is a list of separate signals, and not an array written as a list."""
    if not isinstance(X, list | tuple) or not X:
        return False
    shapes = [item.shape for item in X if hasattr(item, "shape")]
    if len(shapes) < len(X) or not all(1 <= len(shape) <= 2 for shape in shapes):
        return False
    return len(set(shapes)) > 1 or len(shapes[0]) == 2


def _lead_count(item) -> int:
    return 1 if len(item.shape) == 1 else item.shape[0]


def read_targets(y) -> Targets:
    """Return y as an indicator.

    Parameters
    ----------
    y : array or frame (n, labels) of 0, 1 and NaN, list of n sets of labels, or array (n,) of classes

    Raises
    ------
    ValueError
        If y is missing, continuous, or holds something else.
    """
    if y is None:
        raise ValueError("this classifier requires y to be passed, but the target y is None")
    if not hasattr(y, "shape") and not isinstance(y, list | tuple):
        y = np.asarray(y)
    if _is_multilabel(y):
        indicator, names = label_indicator(y)
        return Targets(np.asarray(names), exclusive=False, indicator=indicator)
    y = column_or_1d(y, warn=True)
    if y.dtype.kind == "f":
        assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    return Targets(classes, exclusive=True, indicator=np.eye(len(classes))[codes])


def encode_targets(y, classes: np.ndarray, exclusive: bool) -> np.ndarray:
    """Return y as an indicator (n, K) with a column for each fitted class.

    Raises
    ------
    ValueError
        If y has another form than the y of `fit`, or labels that it had not.
    """
    found = read_targets(y)
    if found.exclusive != exclusive:
        kinds = {True: "one class for each recording", False: "an indicator or label sets"}
        raise ValueError(f"y holds {kinds[found.exclusive]}, but that of fit held {kinds[exclusive]}")
    known = classes.tolist()
    if not found.exclusive and hasattr(y, "shape") and not hasattr(y, "columns") and len(np.shape(y)) == 2:
        if found.indicator.shape[1] != len(known):
            raise ValueError(f"y has {found.indicator.shape[1]} labels, but that of fit had {len(known)}")
        return found.indicator
    columns = found.classes.tolist()
    missing = [label for label in columns if label not in known]
    if missing:
        raise ValueError(f"y has the labels {missing}, which that of fit had not; leave them out")
    encoded = np.zeros((len(found.indicator), len(known)))
    encoded[:, [known.index(label) for label in columns]] = found.indicator
    return encoded


def _is_multilabel(y) -> bool:
    if hasattr(y, "toarray") or hasattr(y, "columns") or len(getattr(y, "shape", (0,))) > 1:
        shape = y.shape
        return not (len(shape) == 2 and shape[1] == 1) or bool(np.isnan(np.asarray(y, float)).any())
    return any(isinstance(row, set | frozenset | list | tuple | np.ndarray) for row in y)


def read_groups(groups, records: list[Record]) -> np.ndarray | None:
    """Return the patient of each record as numbers, from `groups` or else from the records; None if none is known.

    Records without a patient count as patients of their own.
    """
    if groups is None:
        patients = [record.patient_id for record in records]
        if all(patient is None for patient in patients):
            return None
        groups = [("record", i) if patient is None else ("patient", patient) for i, patient in enumerate(patients)]
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    check_consistent_length(records, groups)
    return np.unique(column_or_1d(groups), return_inverse=True)[1]


def read_metadata(records: list[Record], *, required: bool) -> np.ndarray:
    """Return age and sex (n, 4) float32, each with whether it is known.

    Raises
    ------
    ValueError
        If no record has either, and one is required.

    Warns
    -----
    UserWarning
        If no record has either, and none is required.
    """
    found = np.zeros((len(records), 4), np.float32)
    for row, record in zip(found, records, strict=True):
        if record.age is not None:
            row[:2] = record.age / METADATA_UNIT, 1
        if record.sex is not None:
            row[2:] = 1 if record.sex == "F" else -1, 1
    if not found.any():
        if required:
            raise ValueError("metadata=True, but no record has age or sex: set metadata=False, or give records that do")
        warnings.warn("no record has age or sex, which this model was fitted with; they count as unknown", stacklevel=4)
    return found


class Cut(NamedTuple):
    """A window of a recording, and what the network must know of it."""

    record: int
    signal: np.ndarray  # (leads, times) float32
    mask: np.ndarray  # (leads,) bool
    n_valid: int


def cut_windows(preprocessing: Preprocessing, records: list[Record]) -> Iterator[Cut]:
    """Yield the windows of all records, one record after the other, in memory that does not grow with their length."""
    _warn_of_missing_leads(records, preprocessing)
    for i, record in enumerate(records):
        with warnings.catch_warnings():  # said above, for all of them
            warnings.filterwarnings("ignore", message=".*the leads .* are missing in")
            windows = preprocessing.windows(record if record.record_id else _numbered(record, i))
        n_times = n_times_of(record, preprocessing.sampling_rate)
        for window in windows:
            yield Cut(i, window.signal, window.mask, min(n_times, window.signal.shape[1]))


def n_times_of(record: Record, sampling_rate: float) -> int:
    """Return how many samples a record has at another rate."""
    up, down = resampling_ratio(record.sampling_rate, sampling_rate)
    return -(-record.n_times * up // down)


def _numbered(record: Record, i: int) -> Record:
    """Give a record a name for error messages."""
    return dataclasses.replace(record, record_id=f"recording {i}")


def _warn_of_missing_leads(records: list[Record], preprocessing: Preprocessing) -> None:
    """Warn once of the leads that some records lack; records are processed one by one, and each would warn."""
    lacking: dict[str, int] = {}
    for record in records:
        names = [record.lead_names[i] for i in recorded_rows(record.signal)]
        missing = plan_leads(names, preprocessing.leads).missing if names else preprocessing.leads
        for name in missing:
            lacking[name] = lacking.get(name, 0) + 1
    if lacking and preprocessing.missing_leads == "mask":
        told = ", ".join(f"{name} in {count}" for name, count in lacking.items())
        warnings.warn(
            f"leads are missing in some of the {len(records)} recordings ({told}); they are masked", stacklevel=4
        )

"""Recordings of an electrocardiogram with what is known about them, and reading them from files."""

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssmseq.base import check_choice, check_number
from ssmseq.ecg import other_formats, wfdb_format
from ssmseq.ecg.leads import standard_name, standard_names

# Factor and divisor that turn a unit into millivolts; two numbers, so that both steps are exact where they can be.
_UNITS = {"mV": (1, 1), "mv": (1, 1), "V": (1000, 1), "v": (1000, 1), "nV": (1, 1_000_000)}
_UNITS |= dict.fromkeys(("uV", "uv", "\u00b5V", "\u03bcV", "microvolt", "microvolts"), (1, 1000))  # two letters mu
_FOREIGN = (".scp", ".xml", ".ecg")  # formats that nothing here reads


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Record:
    """One recording.

    Parameters
    ----------
    signal : ndarray (leads, times), float32 or float64
        In mV; NaN where a sample is missing.
    sampling_rate : float
        In Hz.
    lead_names : tuple of str
        One name for each row of `signal`.
    record_id, patient_id, source : str, optional
        The recording's and the patient's identifiers, and the database or institution that it comes from.
    age : float, optional
        In years.
    sex : {"F", "M"}, optional
    labels : tuple of str, optional
        Codes of the diagnoses (SNOMED CT, SCP-ECG, ...). None means that no labels are known, ``()`` that none applies.
    comments : tuple of str
        Other lines of the file.

    Raises
    ------
    TypeError
        If the signal is not an array of floats, or names and labels are not strings.
    ValueError
        If shapes, names, rates or values are impossible; the message says which.
    """

    signal: np.ndarray
    sampling_rate: float
    lead_names: tuple[str, ...]
    record_id: str | None = None
    patient_id: str | None = None
    source: str | None = None
    age: float | None = None
    sex: str | None = None
    labels: tuple[str, ...] | None = None
    comments: tuple[str, ...] = ()

    def __post_init__(self):
        which = "" if self.record_id is None else f"record {self.record_id}: "
        try:
            self._check()
        except (ValueError, TypeError) as error:
            raise type(error)(f"{which}{error}") from None

    def _check(self) -> None:
        if not isinstance(self.signal, np.ndarray) or self.signal.dtype not in (np.float32, np.float64):
            kind = getattr(self.signal, "dtype", type(self.signal).__name__)
            raise TypeError(
                f"signal must be an array of float32 or float64 in mV, got {kind}; integers are usually converter "
                "units: subtract the baseline and divide by the gain"
            )
        if self.signal.ndim != 2 or 0 in self.signal.shape:
            raise ValueError(f"signal must have the shape (leads, times) and hold samples, got {self.signal.shape}")
        check_number("sampling_rate", self.sampling_rate, above=0)
        object.__setattr__(self, "lead_names", _strings("lead_names", self.lead_names))
        if len(self.lead_names) != len(self.signal):
            turned = "; is it transposed?" if len(self.lead_names) == self.signal.shape[1] else ""
            raise ValueError(
                f"{len(self.lead_names)} lead names {list(self.lead_names)} do not fit a signal of shape "
                f"(leads, times) = {self.signal.shape}{turned}"
            )
        standard_names(self.lead_names)
        if np.isinf([np.fmax.reduce(self.signal, axis=1), np.fmin.reduce(self.signal, axis=1)]).any():
            raise ValueError("signal holds infinite values: mark missing samples with NaN")
        if self.age is not None:
            check_number("age", self.age, minimum=0, maximum=wfdb_format.OLDEST)
        check_choice("sex", self.sex, ("F", "M", None))
        object.__setattr__(self, "comments", _strings("comments", self.comments))
        if self.labels is not None:
            object.__setattr__(self, "labels", _strings("labels", self.labels))

    @property
    def n_times(self) -> int:
        """Number of samples of each lead."""
        return self.signal.shape[1]

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.n_times / self.sampling_rate

    def __repr__(self) -> str:
        names = ", ".join(self.lead_names) if len(self.lead_names) <= 12 else f"{len(self.lead_names)} leads"
        parts = [f"{self.duration:.6g} s at {self.sampling_rate:g} Hz", names]
        for name in ("record_id", "patient_id", "source", "age", "sex", "labels"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value!r}")
        return f"<Record {'; '.join(parts)}>"


def read_record(
    path,
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    unit: str | None = None,
    leads: Sequence[str] | None = None,
    dtype: str = "float64",
    mismatch: str = "warn",
) -> Record:
    """Read one recording from a file.

    WFDB records (``.hea`` with ``.dat`` or ``.mat``) need no further package unless they have several segments or a
    rare storage format, for which the package wfdb is used if it is installed. Comments of the header give age, sex
    and diagnoses in both spellings of the PhysioNet/CinC challenges (``#Age: 74`` and ``# Age: 74``). CSV files have a
    header of lead names and one row per sample. NumPy files hold an array (leads, times): a ``.npy``, or a ``.npz``
    with the only array or one called `signal`, and perhaps `sampling_rate` and `lead_names`. EDF, BDF and DICOM
    waveforms are read by edfio and pydicom (extra `ecg`), with patient, age and sex where the file has them.

    Parameters
    ----------
    path : str or path
        The ``.hea``, ``.mat`` or ``.dat`` file of a WFDB record or its name without an ending; or a ``.csv``, ``.npy``,
        ``.npz``, ``.edf``, ``.bdf`` or ``.dcm`` file.
    sampling_rate : float, optional
        In Hz, for files that do not state it. One that contradicts the file is refused.
    lead_names : sequence of str, optional
        Names of the rows of a NumPy array.
    unit : {"mV", "uV", "V", "nV"}, default="mV"
        Of the values in a CSV or NumPy file. The other formats state it themselves.
    leads : sequence of str, optional
        Read these leads only, in this order. Channels that are no voltages can so be left out.
    dtype : {"float64", "float32"}
        Of the signal. In float64, values equal those of the package wfdb bit for bit.
    mismatch : {"warn", "error", "ignore"}
        What to do where a file contradicts itself, as by another checksum or length than its header states.

    Returns
    -------
    Record
        In mV, with the leads' usual names (`standard_name`); missing samples are NaN.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ImportError
        If the package that reads the format is not installed.
    ValueError
        If a file is truncated, damaged or contradicts its header, the sampling rate or the lead names are unknown, or a
        unit is no voltage; the message says what helps.

    References
    ----------
    .. [1] Moody, G. B. WFDB applications guide. https://physionet.org/physiotools/wag/
    """
    record, remarks = read_with_remarks(
        path, sampling_rate=sampling_rate, lead_names=lead_names, unit=unit, leads=leads, dtype=dtype
    )
    report_remarks(remarks, mismatch)
    return record


def read_with_remarks(path, *, sampling_rate=None, lead_names=None, unit=None, leads=None, dtype="float64"):
    """Read as `read_record`; return the record and a list of what disagrees with its header."""
    check_choice("dtype", dtype, ("float32", "float64"))
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    known: dict[str, Any] = {}
    if kind in (".csv", ".npy", ".npz"):
        read = _read_csv if kind == ".csv" else _read_numpy
        signal, rate, names = read(path, sampling_rate, lead_names)
        units, comments, remarks, record_id = [unit or "mV"] * len(names), (), [], path.stem
    elif unit is not None or lead_names is not None:
        raise ValueError(f"{path}: the file states units and lead names itself; leave unit and lead_names out")
    elif kind in other_formats.READERS:
        choose = partial(_chosen_rows, path, leads=leads)
        rate, names, units, signal, known, remarks = other_formats.READERS[kind](path, choose)
        comments, record_id = (), path.stem
    else:
        header = path.with_suffix(".hea") if kind in (".hea", ".mat", ".dat") else path.with_name(path.name + ".hea")
        record_id = header.stem
        rate, names, units, signal, comments, remarks = _read_wfdb(header, leads)
    rate = _agreed_rate(path, rate, sampling_rate)
    rows = _chosen_rows(path, names, leads)
    told, more = wfdb_format.parse_comments(comments)
    rows_mv = [to_millivolts(signal[i], units[i], f"{path}, lead {names[i]!r}") for i in rows]
    record = Record(
        signal=np.stack(rows_mv).astype(dtype, copy=False),
        sampling_rate=rate,
        lead_names=tuple(standard_name(names[i]) for i in rows),
        record_id=record_id,
        comments=tuple(comments),
        **(known | told),
    )
    return record, remarks + [f"{path.name}: {text}" for text in more]


def report_remarks(remarks: list[str], mismatch: str) -> None:
    """Warn of remarks, raise them as a ValueError, or do nothing, as the parameter `mismatch` says."""
    check_choice("mismatch", mismatch, ("warn", "error", "ignore"))
    if not remarks or mismatch == "ignore":
        return
    told = "; ".join(remarks[:5]) + (f"; and {len(remarks) - 5} more" if len(remarks) > 5 else "")
    advice = "mismatch='ignore' accepts this in silence, mismatch='error' refuses it"
    if mismatch == "error":
        raise ValueError(f"{told}; get the files again, or read them with mismatch='warn'")
    warnings.warn(f"{told} ({advice})", stacklevel=3)


def to_millivolts(values: np.ndarray, unit: str, what: str) -> np.ndarray:
    """Convert values of a voltage unit; ValueError naming `what` if the unit is unknown."""
    if unit not in _UNITS:
        known = ", ".join(_UNITS)
        raise ValueError(
            f"{what} has the unit {unit!r}, which is not one of {known}; correct the unit, or name the leads to read "
            "with leads=[...] to leave this one out"
        )
    factor, divisor = _UNITS[unit]
    return values if factor == divisor else values * factor / divisor


def as_records(
    X, *, sampling_rate: float | None = None, lead_names: Sequence[str] | None = None, unit: str = "mV"
) -> list[Record]:
    """Return a list of records for whatever an estimator may be given.

    Parameters
    ----------
    X : Record, list of Record, array (n, leads, times) or (n, times), or list of arrays (leads, times)
        An array (n, times) has one lead. Arrays may be of any real dtype and are taken as being in `unit`.
    sampling_rate : float, optional
        In Hz; needed for arrays. Records state theirs, and one that differs is refused.
    lead_names : sequence of str, optional
        Needed for arrays. Records state theirs.
    unit : {"mV", "uV", "V", "nV"}, default="mV"
        Of arrays.

    Returns
    -------
    list of Record

    Raises
    ------
    ValueError
        If arrays come without a rate or names, records have another rate than `sampling_rate`, or shapes are wrong.
    """
    if isinstance(X, Record):
        X = [X]
    items = list(X)
    if not items:
        raise ValueError("no recordings were given")
    if all(isinstance(item, Record) for item in items):
        for i, record in enumerate(items):
            if sampling_rate is not None and record.sampling_rate != sampling_rate:
                raise ValueError(
                    f"record {record.record_id or i} has {record.sampling_rate:g} Hz, but sampling_rate="
                    f"{sampling_rate:g} was given; leave sampling_rate out, since records state their own"
                )
        return items
    if any(isinstance(item, Record) for item in items):
        raise TypeError("give either records or arrays, not both in one list")
    if sampling_rate is None or lead_names is None:
        raise ValueError(
            "arrays state neither their sampling rate nor their leads: give sampling_rate= and lead_names="
        )
    names = tuple(standard_names(lead_names))
    return [_from_array(item, i, sampling_rate, names, unit) for i, item in enumerate(items)]


def _from_array(item, number: int, sampling_rate: float, names: tuple[str, ...], unit: str) -> Record:
    values = np.asarray(item)
    values = values[None] if values.ndim == 1 else values
    if values.dtype.kind not in "iuf" or values.ndim != 2:
        raise ValueError(
            f"recording {number} must be an array (leads, times) of numbers, got shape {np.shape(item)} and dtype "
            f"{values.dtype}"
        )
    values = values.astype(np.float64 if values.dtype != np.float32 else np.float32, copy=False)
    values = to_millivolts(values, unit, f"recording {number}")
    try:
        return Record(signal=values, sampling_rate=sampling_rate, lead_names=names)
    except (ValueError, TypeError) as error:
        raise type(error)(f"recording {number}: {error}") from None


def _read_wfdb(path: Path, leads):
    """Return rate, names, units, signals (channels, times), comments and remarks of a WFDB record by its header."""
    if Path(path.stem).suffix.lower() in _FOREIGN:
        raise ValueError(
            f"{path.with_suffix('')}: such files are not read here; convert it to WFDB, EDF or CSV, or make a "
            "Record from what the format's own library returns"
        )
    try:
        header = wfdb_format.read_header(path)
    except wfdb_format.UnsupportedRecordError as error:
        rate, names, units, signals, comments = wfdb_format.read_with_wfdb(path, str(error))
        return rate, names, units, signals, tuple(filter(None, map(str.strip, comments))), []
    names = [channel.name for channel in header.channels]
    units = [channel.unit for channel in header.channels]
    wanted = _chosen_rows(path, names, leads)
    for i in wanted:  # before the samples are read, which may take long
        to_millivolts(np.empty(0), units[i], f"{path}, lead {names[i]!r}")
    read, remarks = wfdb_format.read_signals(header, wanted)
    signals = dict(zip(wanted, read, strict=True))
    return header.sampling_rate, names, units, signals, header.comments, remarks


def _read_csv(path: Path, sampling_rate, lead_names):
    import pandas as pd

    if lead_names is not None:
        raise ValueError(f"{path}: the header of a CSV file names its leads; leave lead_names out")
    frame = pd.read_csv(path)
    names = [str(column) for column in frame.columns]
    for name in names:
        if name.strip().lower() in ("", "t", "time", "times", "seconds", "sample", "index") or name[:8] == "Unnamed:":
            raise ValueError(f"{path}: the column {name!r} is no lead; remove it, and give the rate as sampling_rate=")
        if frame[name].dtype.kind not in "iuf":
            raise ValueError(f"{path}: the column {name!r} holds values that are not numbers")
    return frame.to_numpy(np.float64).T.copy(), None, names


def _read_numpy(path: Path, sampling_rate, lead_names):
    try:
        content = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is truncated, damaged or no plain array ({error}); write it again") from error
    rate = None
    if path.suffix.lower() == ".npz":
        with content as stored:
            arrays = {name: stored[name] for name in stored.files}
        rate = float(arrays.pop("sampling_rate")) if "sampling_rate" in arrays else None
        stored_names = arrays.pop("lead_names", None)
        if stored_names is not None and lead_names is not None and list(stored_names) != list(lead_names):
            raise ValueError(f"{path} names its leads {list(stored_names)}, not {list(lead_names)}")
        lead_names = list(map(str, stored_names)) if stored_names is not None else lead_names
        if "signal" not in arrays and len(arrays) != 1:
            raise ValueError(f"{path} must hold one array, or one called 'signal'; it holds {sorted(arrays)}")
        content = arrays["signal"] if "signal" in arrays else next(iter(arrays.values()))
    if lead_names is None:
        raise ValueError(f"{path} does not name its leads: give lead_names=")
    if content.ndim != 2 or content.dtype.kind not in "iuf" or len(content) != len(lead_names):
        raise ValueError(
            f"{path} must hold numbers of shape (leads, times) with {len(lead_names)} leads {list(lead_names)}, got "
            f"{content.dtype} of shape {content.shape}"
        )
    return content.astype(np.float64), rate, list(lead_names)


def _agreed_rate(path: Path, stated: float | None, given: float | None) -> float:
    if stated is not None and given is not None and stated != given:
        raise ValueError(f"{path} states a sampling rate of {stated:g} Hz, but sampling_rate={given:g} was given")
    rate = given if stated is None else stated
    if rate is None:
        raise ValueError(f"{path} does not state its sampling rate: give sampling_rate= in Hz")
    return float(rate)


def _chosen_rows(path: Path, names: Sequence[str], leads: Sequence[str] | None) -> list[int]:
    """Return the numbers of the channels to read."""
    if leads is None:
        return list(range(len(names)))
    found = [standard_name(name) for name in names]
    for lead in leads:
        if standard_name(lead) not in found:
            raise ValueError(f"{path} has no lead {lead!r}; it has {list(names)}")
    return [found.index(name) for name in standard_names(leads)]


def _strings(name: str, values) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} must be a list of strings, got {values!r}")
    return tuple(values)

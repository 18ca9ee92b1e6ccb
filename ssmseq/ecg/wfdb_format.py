"""Records in the WFDB format [1]_, read with NumPy and SciPy alone.

A record is a text header (``.hea``) and signals: interleaved integers (``.dat``), or a MATLAB file (``.mat``) with a
matrix `val` of leads x times, as the PhysioNet challenges of 2017, 2020 and 2021 have it. The physical value of a
sample is (sample - baseline) / gain.

The reader covers the formats 16, 24, 32, 61, 80, 160 and 212. Records of several segments, several samples per frame,
skewed or compressed signals raise `UnsupportedRecordError`; the package wfdb reads those (`read_with_wfdb`).

References
----------
.. [1] Moody, G. B. WFDB applications guide: header(5) and signal(5). https://physionet.org/physiotools/wag/
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_GAIN = 200.0  # units per mV, by the standard, of a signal whose header gives no gain
_ALIGNED = {16: ("<i2", 0), 32: ("<i4", 0), 61: (">i2", 0), 80: ("u1", 128), 160: ("<u2", 32768)}  # type, offset
OLDEST = 130.0  # years; a larger age is a code or a typing error
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_UNKNOWN = ("", "unknown", "unk", "nan", "none", "n/a", "na")
_BITS = {16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12}
_GAIN = re.compile(r"(?P<gain>[-+.\deE]+)(\((?P<baseline>[-+]?\d+)\))?(/(?P<unit>\S+))?")
_FORMAT = re.compile(r"(?P<code>\d+)(x(?P<per_frame>\d+))?(:(?P<skew>\d+))?(\+(?P<offset>\d+))?")


class UnsupportedRecordError(ValueError):
    """A WFDB record uses a feature that this reader does not cover."""


@dataclass(frozen=True)
class Channel:
    """One signal line of a header."""

    name: str
    file: str
    code: int  # the storage format
    offset: int  # of the first sample in the file, in bytes
    gain: float  # units per physical unit
    baseline: int
    unit: str
    checksum: int | None  # sum of all samples modulo 65536


@dataclass(frozen=True)
class Header:
    """What a header file says."""

    path: Path
    sampling_rate: float | None  # in Hz
    n_times: int | None
    channels: tuple[Channel, ...]
    comments: tuple[str, ...]


def read_header(path: Path) -> Header:
    """Read a ``.hea`` file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    UnsupportedRecordError
        If it describes something that this reader does not cover.
    ValueError
        If a line is not written as the format asks, or the number of signal lines is not the one stated.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a WFDB record needs its header beside its signals")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # of older headers
    lines = [line.strip() for line in text.splitlines()]
    comments = tuple(text for line in lines if line.startswith("#") and (text := line.lstrip("#").strip()))
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} is empty: it holds no record line")
    fields = lines[0].split()
    if "/" in fields[0]:
        raise UnsupportedRecordError(f"{path} describes a record of several segments")
    try:
        n_channels = int(fields[1])
        rate = float(re.split(r"[/(]", fields[2])[0]) if len(fields) > 2 else None
        n_times = int(fields[3]) if len(fields) > 3 else 0
    except (IndexError, ValueError):
        form = "'name leads rate samples'"
        raise ValueError(f"{path}: the first line must read {form}, but is {lines[0]!r}") from None
    if n_channels != len(lines) - 1:
        raise ValueError(f"{path} states {n_channels} leads but has {len(lines) - 1} signal lines: repair the header")
    channels = tuple(_channel(path, line, number) for number, line in enumerate(lines[1:], 1))
    return Header(path, rate, n_times or None, channels, comments)


def _channel(path: Path, line: str, number: int) -> Channel:
    fields = line.split(maxsplit=8)
    fields += [""] * (9 - len(fields))
    stored = _FORMAT.fullmatch(fields[1])
    scale = _GAIN.fullmatch(fields[2] or "0")
    try:
        if stored is None or scale is None:
            raise ValueError
        zero = int(fields[4] or 0)
        gain = float(scale["gain"])
        checksum = int(fields[6]) if fields[6] else None
    except ValueError:
        raise ValueError(f"{path}: signal line {number} cannot be understood: {line!r}") from None
    if not np.isfinite(gain):
        raise ValueError(f"{path}: signal line {number} has the gain {gain}: repair the header")
    code = int(stored["code"])
    special = code not in _BITS or int(stored["per_frame"] or 1) != 1 or int(stored["skew"] or 0) or fields[0] == "~"
    if special or (fields[0].endswith(".mat") and code != 16):
        raise UnsupportedRecordError(f"{path}: signal line {number} has the format {fields[1]!r} in {fields[0]}")
    return Channel(
        name=fields[8] or f"channel {number}",
        file=fields[0],
        code=code,
        offset=int(stored["offset"] or 0),
        gain=gain,
        baseline=int(scale["baseline"] or zero),
        unit=scale["unit"] or "mV",
        checksum=checksum,
    )


def read_signals(header: Header, wanted: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """Read some channels in the physical units of the header.

    Parameters
    ----------
    header : Header
    wanted : sequence of int
        Numbers of the channels to return, in this order.

    Returns
    -------
    signals : ndarray (channels, times) float64
        In each channel's own unit; NaN where the file marks a sample as missing.
    remarks : list of str
        Disagreements of the data with the header: checksum, length, no gain.

    Raises
    ------
    FileNotFoundError
        If a signal file is missing.
    ValueError
        If a file is truncated or damaged, or holds another number of leads or samples than the header states.
    """
    rows: dict[int, np.ndarray] = {}
    remarks = []
    for numbers in _by_file(header):
        group = [header.channels[i] for i in numbers]
        samples, more = _read_file(header, group)
        remarks += more
        for number, channel, digital in zip(numbers, group, samples, strict=True):
            if number in wanted:
                rows[number], more = _physical(header, channel, digital)
                remarks += more
    lengths = {len(row) for row in rows.values()}
    if len(lengths) > 1:
        raise ValueError(f"{header.path}: the signal files differ in length ({sorted(lengths)} samples)")
    return np.stack([rows[i] for i in wanted]), remarks


def read_with_wfdb(path: Path, reason: str) -> tuple[float, list[str], list[str], np.ndarray, list[str]]:
    """Read a record with the package wfdb; return its rate, names, units, signals (channels, times) and comments.

    Raises
    ------
    UnsupportedRecordError
        If the package is not installed.
    """
    try:
        wfdb = importlib.import_module("wfdb")
    except ImportError:
        raise UnsupportedRecordError(
            f"{reason}, which this library does not read by itself: install the package wfdb, as in "
            'pip install "ssmseq[ecg]"'
        ) from None
    record = wfdb.rdrecord(str(path.with_suffix("")))
    signals = np.ascontiguousarray(record.p_signal.T)
    return float(record.fs), list(record.sig_name), list(record.units), signals, list(record.comments)


def parse_comments(comments: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Find age, sex and labels in the comments of a header.

    Returns
    -------
    known : dict
        `age` (float), `sex` ("F" or "M") and `labels` (tuple of str), each where a line ``Age:``, ``Sex:`` or ``Dx:``
        gives it. Empty and repeated codes are dropped.
    remarks : list of str
        Values that make no sense, and were left out.
    """
    known: dict[str, Any] = {}
    remarks = []
    for comment in comments:
        name, _, text = (part.strip() for part in comment.partition(":"))
        name = name.lower()
        if name == "dx":
            codes = [code for part in re.split(r"[,\s]+", text) if (code := part.strip())]
            known["labels"] = tuple(dict.fromkeys(code for code in codes if code.lower() not in _UNKNOWN))
        elif name == "sex" and text.lower() not in _UNKNOWN:
            known["sex"] = _SEXES.get(text.lower())
        elif name == "age" and text.lower() not in _UNKNOWN:
            known["age"] = _years(text)
        if name in ("sex", "age") and known.get(name, "") is None:
            del known[name]
            remarks.append(f"the {name} {text!r} makes no sense and is left out")
    return known, remarks


def _by_file(header: Header) -> Iterator[list[int]]:
    """Yield the numbers of channels that are interleaved in one file."""
    numbered = range(len(header.channels))
    for _, numbers in groupby(numbered, key=lambda i: (header.channels[i].file, header.channels[i].offset)):
        yield list(numbers)


def _read_file(header: Header, group: list[Channel]) -> tuple[np.ndarray, list[str]]:
    """Return the samples (channels, times) of one file, and what disagrees with the header."""
    first = group[0]
    path = header.path.parent / first.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but {header.path} names it")
    if path.suffix == ".mat":
        return _matlab(path, len(group), header.n_times), []
    if len({channel.code for channel in group}) > 1:
        raise ValueError(f"{header.path}: the leads of {first.file} must have one format, not several")
    width = _BITS[first.code] * len(group)  # of one frame, in bits
    size = path.stat().st_size - first.offset
    n_times = header.n_times or max(size, 0) * 8 // width
    needed = -(-width * n_times // 8)
    if size < needed or not n_times:
        raise ValueError(
            f"{path} is truncated: {n_times or 'one or more'} samples of {len(group)} leads in format {first.code} "
            f"need {first.offset + needed} bytes, it has {max(size, 0) + first.offset}; get the file again"
        )
    raw = np.fromfile(path, np.uint8, needed, offset=first.offset)
    remarks = []
    if size - needed >= max(width // 8, 1):
        remarks.append(f"{path.name} holds {size - needed} bytes more than {header.path.name} describes")
    return _unpacked(raw, first.code, n_times * len(group)).reshape(n_times, len(group)).T, remarks


def _unpacked(raw: np.ndarray, code: int, count: int) -> np.ndarray:
    """Return the samples that bytes of one storage format hold."""
    if code in _ALIGNED:
        dtype, zero = _ALIGNED[code]
        return raw.view(dtype).astype(np.int64) - zero
    triples = np.pad(raw, (0, -len(raw) % 3)).reshape(-1, 3).T.astype(np.int64)
    if code == 24:
        values, sign = triples[0] + (triples[1] << 8) + (triples[2] << 16), 1 << 23
    else:  # 212: two samples of 12 bits in three bytes; the middle byte has the high bits of both
        first, second = triples[0] + ((triples[1] & 15) << 8), triples[2] + ((triples[1] >> 4) << 8)
        values, sign = np.stack([first, second], axis=1).ravel()[:count], 1 << 11
    return values - ((values & sign) << 1)


def _matlab(path: Path, n_leads: int, n_times: int | None) -> np.ndarray:
    """Return the matrix `val` of a MATLAB file (version 4 to 7)."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:
        raise ValueError(f"{path} is a MATLAB 7.3 (HDF5) file: save it again as version 7 or older") from None
    except Exception as error:  # SciPy's errors for damaged files have many types
        raise ValueError(f"{path} is truncated or damaged ({error}); get the file again") from error
    if "val" not in content:
        names = [name for name in content if not name.startswith("__")]
        raise ValueError(f"{path} has no matrix 'val', only {names}: it is no file of a WFDB record")
    values = content["val"]
    wanted = (n_leads, values.shape[1] if n_times is None else n_times)
    if values.shape != wanted or values.dtype.kind not in "iuf":
        raise ValueError(
            f"{path} holds {values.dtype} values of shape {values.shape}, but the header states {n_leads} leads x "
            f"{n_times or 'any number of'} samples: header and signals do not belong together"
        )
    return values


def _physical(header: Header, channel: Channel, digital: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the physical values of a channel, and what disagrees with the header."""
    remarks = []
    place = f"{header.path.name}, lead {channel.name}"
    # Many headers write 0 for a checksum that nobody computed.
    if channel.checksum and not _has_checksum(digital, channel.checksum):
        remarks.append(f"{place}: the sum of the samples is not the header's checksum {channel.checksum}")
    if channel.gain == 0:
        remarks.append(f"{place}: the header gives no gain, so {DEFAULT_GAIN:g} units per {channel.unit} are assumed")
    values = digital.astype(np.float64)
    missing = values == -(2 ** (_BITS[channel.code] - 1))
    values -= channel.baseline
    values /= channel.gain or DEFAULT_GAIN
    values[missing] = np.nan
    return values, remarks


def _has_checksum(digital: np.ndarray, checksum: int) -> bool:
    total = digital.sum(dtype=np.int64) if digital.dtype.kind in "iu" else digital.sum()
    return not np.isnan(total) and int(total) % 65536 == checksum % 65536


def _years(text: str) -> float | None:
    match = re.fullmatch(r"\d+(\.\d+)?", text)
    years = float(text) if match else -1.0
    return years if 0 <= years <= OLDEST else None

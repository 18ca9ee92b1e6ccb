"""Recordings for the tests: consistent 12-lead signals, and files in every storage format, written sample by sample."""

import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ssmseq.ecg.leads import STANDARD_LEADS
from ssmseq.ecg.records import Record

BITS = {16: 16, 24: 24, 32: 32, 61: 16, 80: 8, 160: 16, 212: 12}


def twelve_leads(n_times: int, *, rate: float = 100.0, seed: int = 0) -> np.ndarray:
    """Twelve leads (12, n_times) in mV: beats, drift and noise; the limb leads follow from I and II."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_times) / rate
    beat = np.exp(-(((t % 0.8) - 0.3) ** 2) / (2 * 0.015**2))
    x = rng.uniform(0.3, 1.2, (12, 1)) * rng.choice([-1, 1], (12, 1)) * beat
    x += 0.05 * np.sin(2 * np.pi * rng.uniform(0.5, 8, (12, 1)) * t + rng.uniform(0, 6, (12, 1)))
    x += 0.01 * rng.normal(size=x.shape)
    one, two = x[0], x[1]
    x[2:6] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return x


def record(n_times: int = 1000, *, rate: float = 100.0, seed: int = 0, leads=STANDARD_LEADS, **known) -> Record:
    """A record with some of the twelve leads."""
    rows = [STANDARD_LEADS.index(lead) for lead in leads]
    signal = twelve_leads(n_times, rate=rate, seed=seed)[rows]
    return Record(signal=signal, sampling_rate=rate, lead_names=tuple(leads), **known)


def encode(samples, code: int) -> bytes:
    """Whole numbers as the bytes of a WFDB storage format, one after the other."""
    samples = [int(sample) for sample in samples]
    if code == 212:  # pairs as 24 bits: low byte of the first, both high halves, low byte of the second
        out = bytearray()
        for i in range(0, len(samples), 2):
            pair = [sample % 4096 for sample in samples[i : i + 2]]
            second = pair[1] if len(pair) == 2 else 0
            out += bytes([pair[0] % 256, pair[0] // 256 + second // 256 * 16, second % 256][: len(pair) + 1])
        return bytes(out)
    packers = {16: "<h", 32: "<i", 61: ">h"}
    if code in packers:
        return b"".join(struct.pack(packers[code], s) for s in samples)
    if code == 80:
        return bytes(s + 128 for s in samples)
    if code == 160:
        return b"".join(struct.pack("<H", s + 32768) for s in samples)
    return b"".join(s.to_bytes(3, "little", signed=True) for s in samples)


def matlab_bytes(values: np.ndarray, name: str = "val") -> bytes:
    """A MATLAB version 4 file with one matrix of 16-bit integers."""
    head = struct.pack("<5i", 30, *values.shape, 0, len(name) + 1)
    return head + name.encode() + b"\0" + values.astype("<i2").tobytes(order="F")


def checksums(digital: np.ndarray) -> list[int]:
    """Signed 16-bit sums, as headers have them."""
    return [(int(sum(map(int, row))) + 32768) % 65536 - 32768 for row in digital]


def write_wfdb(
    folder: Path,
    digital: np.ndarray,
    *,
    name: str = "r1",
    rate="100",
    gain="1000/mV",
    code: int = 16,
    names=STANDARD_LEADS,
    comments=(),
    matlab: bool = False,
    sums=None,
    offset: int = 0,
) -> Path:
    """Write a record of integers (leads, times); return its header's path."""
    file = f"{name}.mat" if matlab else f"{name}.dat"
    stored = f"{code}+24" if matlab else f"{code}+{offset}" if offset else str(code)
    sums = checksums(digital) if sums is None else sums
    gains = [gain] * len(digital) if isinstance(gain, str) else gain
    lines = [f"{name} {len(digital)} {rate} {digital.shape[1]}".rstrip()]
    for row, lead, scale, total in zip(digital, names, gains, sums, strict=False):
        lines.append(f"{file} {stored} {scale} {BITS[code]} 0 {row[0]} {total} 0 {lead}")
    lines += comments
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = matlab_bytes(digital) if matlab else b"\x7f" * offset + encode(digital.T.ravel(), code)
    (folder / file).write_bytes(content)
    return folder / f"{name}.hea"


def same_bits(a, b) -> None:
    """Both are float64 and equal to the last bit, NaN included."""
    assert a.dtype == b.dtype == np.float64
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.int64), np.ascontiguousarray(b).view(np.int64))


def data_folder() -> Path:
    """The folder of real recordings, or skip."""
    folder = Path(os.environ.get("SSMSEQ_DATA", "")) / "ecg"
    if not os.environ.get("SSMSEQ_DATA") or not folder.is_dir():
        pytest.skip("set SSMSEQ_DATA to a folder with the recordings in ecg/ to run this")
    return folder


def unpack_ptbxl(folder: Path) -> Path:
    """Unpack the 500 recordings of PTB-XL into an empty folder, with their tables beside them."""
    source = data_folder() / "ptbxl500"
    with tarfile.open(source / "records100.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder

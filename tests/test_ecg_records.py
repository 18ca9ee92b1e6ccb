"""Records, and reading them from CSV and NumPy files: every mistake has its message."""

import warnings

import numpy as np
import pandas as pd
import pytest
from ecg_cases import (
    record,
    same_bits,
    twelve_leads,
)

from ssmseq.ecg.leads import (
    STANDARD_LEADS,
)
from ssmseq.ecg.records import Record, as_records, read_record

# CSV and NumPy --------------------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    x = twelve_leads(50)
    pd.DataFrame(x.T * 1000, columns=[name.upper() for name in STANDARD_LEADS]).to_csv(tmp_path / "a.csv", index=False)
    found = read_record(tmp_path / "a.csv", sampling_rate=128, unit="uV")
    np.testing.assert_allclose(found.signal, x, rtol=1e-12)
    assert (found.lead_names, found.record_id, found.sampling_rate) == (STANDARD_LEADS, "a", 128.0)
    assert read_record(tmp_path / "a.csv", sampling_rate=128, leads=["V6", "I"]).signal.shape == (2, 50)
    with pytest.raises(ValueError, match="a.csv does not state its sampling rate"):
        read_record(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="names its leads; leave lead_names out"):
        read_record(tmp_path / "a.csv", sampling_rate=128, lead_names=["I"])
    pd.DataFrame({"time": [0, 1], "I": [0, 1]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match="the column 'time' is no lead; remove it"):
        read_record(tmp_path / "t.csv", sampling_rate=1)
    (tmp_path / "b.csv").write_text("I,II\n1,x\n")
    with pytest.raises(ValueError, match="the column 'II' holds values that are not numbers"):
        read_record(tmp_path / "b.csv", sampling_rate=1)
    (tmp_path / "c.csv").write_text("I,II\n1,2\n,4\n")
    np.testing.assert_array_equal(read_record(tmp_path / "c.csv", sampling_rate=1).signal, [[1, np.nan], [2, 4]])


def test_numpy_files(tmp_path):
    x = twelve_leads(50)
    np.save(tmp_path / "a.npy", x)
    given = {"sampling_rate": 100, "lead_names": STANDARD_LEADS}
    same_bits(read_record(tmp_path / "a.npy", **given).signal, x)
    for lacking, message in [("sampling_rate", "give sampling_rate= in Hz"), ("lead_names", "give lead_names=")]:
        with pytest.raises(ValueError, match=message):
            read_record(tmp_path / "a.npy", **{k: v for k, v in given.items() if k != lacking})
    np.save(tmp_path / "t.npy", x.T)
    with pytest.raises(ValueError, match=r"\(leads, times\) with 12 leads .*got float64 of shape \(50, 12\)"):
        read_record(tmp_path / "t.npy", **given)
    np.savez(tmp_path / "b.npz", x[:2])
    assert read_record(tmp_path / "b.npz", sampling_rate=100, lead_names=["I", "II"]).n_times == 50
    np.savez(tmp_path / "c.npz", signal=x, sampling_rate=257, lead_names=STANDARD_LEADS, other=1)
    same_bits(read_record(tmp_path / "c.npz").signal, x)
    with pytest.raises(ValueError, match="states a sampling rate of 257 Hz, but sampling_rate=100"):
        read_record(tmp_path / "c.npz", sampling_rate=100)
    with pytest.raises(ValueError, match="names its leads .*not"):
        read_record(tmp_path / "c.npz", lead_names=STANDARD_LEADS[::-1])
    np.savez(tmp_path / "d.npz", a=x, b=x)
    with pytest.raises(ValueError, match="must hold one array, or one called 'signal'"):
        read_record(tmp_path / "d.npz", **given)
    np.save(tmp_path / "e.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "f.npz").write_bytes((tmp_path / "c.npz").read_bytes()[:300])
    (tmp_path / "g.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:300])
    for name in ("e.npy", "f.npz", "g.npy"):
        with pytest.raises(ValueError, match=f"{name} is truncated, damaged or no plain array"):
            read_record(tmp_path / name, **given)


# Record ---------------------------------------------------------------------------------------------------------------


def test_record_shows_what_it_is():
    found = record(1500, rate=500.0, record_id="A1", age=74.0, sex="M", labels=["59118001"])
    assert repr(found) == (
        "<Record 3 s at 500 Hz; I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6; record_id='A1'; age=74.0; sex='M'; "
        "labels=('59118001',)>"
    )
    assert (found.duration, found.n_times) == (3.0, 1500)
    assert "15 leads" in repr(Record(signal=np.ones((15, 2)), sampling_rate=1, lead_names=[f"x{i}" for i in range(15)]))
    with pytest.raises(AttributeError):
        found.age = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"signal": np.ones((2, 5), int)}, TypeError, "float32 or float64 in mV, got int64; integers are usually"),
        ({"signal": [[1.0], [2.0]]}, TypeError, "got list"),
        ({"signal": np.ones(5)}, ValueError, r"shape \(leads, times\).*got \(5,\)"),
        ({"signal": np.ones((2, 0))}, ValueError, r"hold samples, got \(2, 0\)"),
        ({"signal": np.ones((5, 2))}, ValueError, r"2 lead names .*= \(5, 2\); is it transposed\?"),
        ({"signal": np.ones((3, 5))}, ValueError, r"2 lead names \['I', 'II'\] do not fit"),
        ({"signal": np.array([[1.0, np.inf], [np.nan, 1]])}, ValueError, "infinite values: mark missing samples"),
        ({"signal": np.array([[1.0, np.inf], [-np.inf, 1]])}, ValueError, "infinite values"),
        ({"lead_names": ("I", "i")}, ValueError, "the lead names 'I' and 'i' both mean lead I"),
        ({"lead_names": ("V1", "C1")}, ValueError, "both mean lead V1"),
        ({"lead_names": ("I", " ")}, ValueError, "must not be empty"),
        ({"lead_names": "II"}, TypeError, "lead_names must be a list of strings, got 'II'"),
        ({"sampling_rate": 0}, ValueError, "sampling_rate must be a number above 0, got 0"),
        ({"sampling_rate": float("nan")}, ValueError, "sampling_rate"),
        ({"sex": "male"}, ValueError, "sex must be one of 'F', 'M', None, got 'male'"),
        ({"age": 300.0}, ValueError, "age must be a number at least 0 and at most 130.0, got 300.0"),
        ({"age": -1}, ValueError, "age must be"),
        ({"labels": "NORM"}, TypeError, "labels must be a list of strings"),
        ({"labels": [59118001]}, TypeError, "labels must be a list of strings"),
    ],
)
def test_impossible_records(change, error, message):
    good = {"signal": np.ones((2, 5)), "sampling_rate": 100, "lead_names": ("I", "II"), "record_id": "r7"}
    Record(**good)
    with pytest.raises(error, match="record r7: .*" + message):
        Record(**good | change)


def test_missing_samples_are_allowed():
    signal = np.full((2, 5), np.nan, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Record(signal=signal, sampling_rate=100, lead_names=("I", "II")).signal is signal


def test_as_records():
    x = twelve_leads(40)
    given = {"sampling_rate": 100, "lead_names": STANDARD_LEADS}
    one = record(40)
    assert as_records(one) == [one]
    assert as_records([one], sampling_rate=100.0) == [one]
    same_bits(as_records(x[None], **given)[0].signal, x)
    assert [r.n_times for r in as_records([x, x[:, :30]], **given)] == [40, 30]
    assert [r.signal.shape for r in as_records(x, sampling_rate=100, lead_names=["II"])] == [(1, 40)] * 12
    np.testing.assert_array_equal(as_records(x[None] * 1000, unit="uV", **given)[0].signal, x * 1000 / 1000)
    assert as_records(x[None].astype(np.float32), **given)[0].signal.dtype == np.float32
    assert as_records(np.ones((1, 12, 3), int), **given)[0].signal.dtype == np.float64
    for bad, options, message in [
        ([one], {"sampling_rate": 500}, "record 0 has 100 Hz, but sampling_rate=500 was given"),
        ([one, x], given, "either records or arrays"),
        (x[None], {"sampling_rate": 100}, "give sampling_rate= and lead_names="),
        (x[None], {"lead_names": STANDARD_LEADS}, "give sampling_rate= and lead_names="),
        (x[None, None], given, r"recording 0 must be an array \(leads, times\) of numbers, got shape \(1, 12, 40\)"),
        ([x.astype(str)], given, "recording 0 must be an array"),
        ([x, x[:3]], given, "recording 1: 12 lead names"),
        (x[None], {**given, "unit": "mmHg"}, "recording 0 has the unit 'mmHg'"),
        ([], given, "no recordings were given"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            as_records(bad, **options)

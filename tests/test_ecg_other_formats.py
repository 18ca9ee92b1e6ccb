"""EDF, BDF and DICOM: files of their own libraries, against the digits that went in and against wfdb's reader."""

import datetime
import struct
import sys
import tempfile
import warnings
from pathlib import Path

import edfio
import numpy as np
import pydicom
import pytest
import wfdb.io.convert.edf as wfdb_edf
from ecg_cases import twelve_leads
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from ssmseq.ecg import read_record
from ssmseq.ecg.leads import STANDARD_LEADS, limb_lead_deviation

FACTOR = {"mV": 1.0, "uV": 1e-3, "V": 1e3}
PATIENT = {"code": "P7", "sex": "F", "birthdate": datetime.date(1950, 6, 1), "name": "X"}


def edf_signal(digits, *, rate=100, label="ECG I", unit="mV", bits=16, step=1e-4, kind=edfio.EdfSignal):
    """A channel whose physical values are its digits times a step."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    signal = kind(
        np.asarray(digits) * step,
        rate,
        label=label,
        physical_dimension=unit,
        physical_range=(low * step, high * step),
        digital_range=(low, high),
    )
    return signal


def write_edf(path, signals, **options):
    kind = edfio.Bdf if str(path).endswith(".bdf") else edfio.Edf
    kind(signals, **options).write(path)
    return path


@pytest.fixture
def digits():
    return np.round(twelve_leads(500) * 1e4).astype(int)


def test_edf_holds_what_was_written(tmp_path, digits):
    names = [f"ECG {lead}" if lead != "V1" else "C1" for lead in STANDARD_LEADS]
    signals = [edf_signal(row, label=name) for row, name in zip(digits, names, strict=True)]
    recording = edfio.Recording(startdate=datetime.date(2020, 6, 1))
    path = write_edf(tmp_path / "a.edf", signals, patient=edfio.Patient(**PATIENT), recording=recording)
    found = read_record(path)
    assert (found.record_id, found.sampling_rate, found.lead_names) == ("a", 100.0, STANDARD_LEADS)
    assert (found.patient_id, found.sex, found.labels) == ("P7", "F", None)
    assert found.age == pytest.approx(70, abs=0.01)
    np.testing.assert_allclose(found.signal, digits * 1e-4, rtol=0, atol=1e-9)
    by_wfdb = wfdb_edf.read_edf(str(path)).p_signal.T
    np.testing.assert_allclose(found.signal, by_wfdb, rtol=0, atol=1.01e-4)  # whose zero is off by one digit
    assert read_record(path, leads=["V2", "I"], dtype="float32").signal.dtype == np.float32
    np.testing.assert_array_equal(read_record(path, leads=["V2", "I"]).signal, found.signal[[7, 0]])


@settings(max_examples=15, deadline=None)
@given(
    n_leads=st.integers(1, 12),
    seconds=st.integers(1, 7),
    rate=st.sampled_from([1, 100, 257]),
    unit=st.sampled_from(list(FACTOR)),
    seed=st.integers(0, 99),
)
def test_edf_of_any_size_and_unit(n_leads, seconds, rate, unit, seed):
    drawn = np.random.default_rng(seed).integers(-32768, 32768, (n_leads, seconds * rate))
    with tempfile.TemporaryDirectory() as folder:
        names = STANDARD_LEADS[:n_leads]
        signals = [edf_signal(row, rate=rate, label=n, unit=unit) for row, n in zip(drawn, names, strict=True)]
        found = read_record(write_edf(Path(folder) / "a.EDF", signals))
    np.testing.assert_allclose(found.signal, drawn * 1e-4 * FACTOR[unit], rtol=1e-9, atol=1e-12)
    assert (found.sampling_rate, found.patient_id, found.age, found.sex) == (rate, None, None, None)


def test_bdf_has_24_bits(tmp_path):
    drawn = np.random.default_rng(0).integers(-(2**23), 2**23, 300)
    signal = edf_signal(drawn, bits=24, unit="uV", step=1, kind=edfio.BdfSignal)
    found = read_record(write_edf(tmp_path / "a.bdf", [signal]))
    np.testing.assert_allclose(found.signal[0], drawn * 1e-3, rtol=0, atol=1e-9)


def test_channels_that_are_no_leads(tmp_path, digits):
    others = [
        edf_signal(digits[0][:50], rate=10, label="Resp", unit="%"),
        edf_signal(digits[0], label="SpO2", unit="%"),
    ]
    annotation = edfio.EdfAnnotation(1.0, None, "noisy")
    path = write_edf(tmp_path / "night.edf", [edf_signal(digits[1], label="II"), *others], annotations=[annotation])
    with pytest.raises(ValueError, match=r"night.edf has channels of several rates .*'Resp' 10 Hz.*leads=\["):
        read_record(path)
    with pytest.raises(ValueError, match=r"night.edf, lead 'SpO2' has the unit '%'"):
        read_record(path, leads=["II", "SpO2"])
    with pytest.raises(ValueError, match=r"night.edf has no lead 'I'; it has \['II', 'Resp', 'SpO2'\]"):
        read_record(path, leads=["I"])
    assert read_record(path, leads=["II"]).signal.shape == (1, 500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("P7 M 01-JUN-1950 Some_One", ("P7", "M", None)),  # the start of the recording is unknown
        ("X X X X", (None, None, None)),
        ("X F 31-FEB-1950 X", (None, "F", None)),
        ("Mary F. 61 years", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_patients_of_edf(tmp_path, digits, text, expected):
    path = write_edf(tmp_path / "a.edf", [edf_signal(digits[0])])
    content = path.read_bytes()
    path.write_bytes(content[:8] + text.ljust(80).encode() + content[88:])
    found = read_record(path)
    assert (found.patient_id, found.sex, found.age) == expected


def test_edf_files_that_cannot_be_trusted(tmp_path, digits):
    path = write_edf(tmp_path / "a.edf", [edf_signal(digits[0])], patient=edfio.Patient(**PATIENT))
    content = path.read_bytes()
    (tmp_path / "gaps.edf").write_bytes(content[:192] + b"EDF+D" + content[197:])
    with pytest.raises(ValueError, match=r"gaps.edf is an interrupted recording \(EDF\+D\): cut it"):
        read_record(tmp_path / "gaps.edf")
    (tmp_path / "cut.edf").write_bytes(content[:-250])  # one and a quarter seconds
    with pytest.warns(UserWarning, match=r"cut.edf: .*truncated.*cut.edf: EDF header indicates 5"):
        assert read_record(tmp_path / "cut.edf").n_times == 300
    with pytest.raises(ValueError, match=r"cut.edf: .*truncated"):
        read_record(tmp_path / "cut.edf", mismatch="error")
    (tmp_path / "text.edf").write_text("this is no recording")
    with pytest.raises(ValueError, match=r"text.edf cannot be read as EDF \(.*damaged or of another kind"):
        read_record(tmp_path / "text.edf")
    with pytest.raises(FileNotFoundError, match="none.edf does not exist"):
        read_record(tmp_path / "none.edf")
    with pytest.raises(ValueError, match="a.edf: the file states units and lead names itself"):
        read_record(path, unit="uV")
    with pytest.raises(ValueError, match="a.edf states a sampling rate of 100 Hz, but sampling_rate=500"):
        read_record(path, sampling_rate=500)


@pytest.mark.parametrize(("name", "suffix"), [("edfio", "edf"), ("edfio", "bdf"), ("pydicom", "dcm")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"0")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"a\.{suffix} files are read by the package {name}.*ssmseq\[ecg\]"[2:]):
        read_record(tmp_path / f"a.{suffix}")


# DICOM ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dicom():
    """A real 12-lead recording of 10 s at 1000 Hz that pydicom brings."""
    return pydicom.dcmread(get_testdata_file("waveform_ecg.dcm"))


def saved(file, path):
    file.save_as(path)
    return path


def raw(group) -> np.ndarray:
    """Samples of a group as (channels, times), by the standard's order of the bytes."""
    n = group.NumberOfWaveformChannels * group.NumberOfWaveformSamples
    values = struct.unpack(f"<{n}h", bytes(group.WaveformData)[: 2 * n])
    return np.array(values).reshape(-1, group.NumberOfWaveformChannels).T


def test_dicom_in_millivolts(dicom, tmp_path):
    with warnings.catch_warnings(action="error"):  # the median beat beside the rhythm is derived and needs no word
        found = read_record(saved(dicom, tmp_path / "a.dcm"))
    assert (found.lead_names, found.sampling_rate, found.duration) == (STANDARD_LEADS, 1000.0, 10.0)
    assert (found.patient_id, found.age, found.sex) == ("642341", 42.0, "F")
    np.testing.assert_allclose(found.signal, raw(dicom.WaveformSequence[0]) * 1.25e-3, rtol=1e-12)
    assert limb_lead_deviation(found.signal, found.lead_names) < 0.01  # the limb leads of a real heart agree
    np.testing.assert_array_equal(read_record(tmp_path / "a.dcm", leads=["V6"]).signal[0], found.signal[11])


def test_dicom_scales_and_gaps(dicom, tmp_path):
    group = dicom.WaveformSequence[0]
    lead = group.ChannelDefinitionSequence[1]
    lead.ChannelSensitivity, lead.ChannelSensitivityCorrectionFactor, lead.ChannelBaseline = "0.002", "1.5", "0.25"
    lead.ChannelSensitivityUnitsSequence[0].CodeValue = "mV"
    samples = raw(group)
    missing = samples == samples[3, 77]
    group.add_new("WaveformPaddingValue", "OW", struct.pack("<h", samples[3, 77]))
    found = read_record(saved(dicom, tmp_path / "a.dcm")).signal
    np.testing.assert_array_equal(np.isnan(found), missing)
    np.testing.assert_allclose(found[1], np.where(missing[1], np.nan, samples[1] * 0.003 + 0.25), rtol=1e-12)


@pytest.mark.parametrize(
    ("age", "sex", "expected"),
    [
        ("006M", "M", (0.5, "M")),
        ("026W", "O", (182 / 365.25, None)),
        ("old", "", (None, None)),
        ("200Y", "F", (None, "F")),
    ],
)
def test_dicom_patients(dicom, tmp_path, age, sex, expected):
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of an age that is none
        dicom.PatientAge, dicom.PatientSex = age, sex
        del dicom.PatientID
        found = read_record(saved(dicom, tmp_path / "a.dcm"))
    assert (found.age, found.sex, found.patient_id) == (expected[0] and pytest.approx(expected[0]), expected[1], None)


def test_dicom_with_several_recordings_and_with_none(dicom, tmp_path):
    dicom.WaveformSequence[1].WaveformOriginality = "ORIGINAL"
    with pytest.warns(UserWarning, match="a.dcm: holds 2 original waveforms, of which number 1 is read"):
        read_record(saved(dicom, tmp_path / "a.dcm"))
    dicom.WaveformSequence.reverse()
    with pytest.warns(UserWarning, match="number 2 is read"):
        assert read_record(saved(dicom, tmp_path / "a.dcm")).duration == 10
    del dicom.WaveformSequence[1].ChannelDefinitionSequence[0].ChannelSensitivityUnitsSequence
    with pytest.raises(ValueError, match="lead 'Lead I' has the unit ''"):
        read_record(tmp_path / saved(dicom, tmp_path / "a.dcm"))
    dicom.WaveformSequence[1].WaveformData = b"1234"
    with pytest.raises(ValueError, match="a.dcm cannot be read as a DICOM waveform"):
        read_record(saved(dicom, tmp_path / "a.dcm"))
    del dicom.WaveformSequence
    with pytest.raises(ValueError, match="a.dcm holds no original waveform: it is a DICOM file of something else"):
        read_record(saved(dicom, tmp_path / "a.dcm"))
    (tmp_path / "b.dcm").write_text("text")
    with pytest.raises(ValueError, match="b.dcm cannot be read as DICOM"):
        read_record(tmp_path / "b.dcm")

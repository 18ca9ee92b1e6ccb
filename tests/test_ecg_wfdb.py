"""Reading WFDB records: against the package wfdb to the last bit, and every format written by hand."""

import hashlib
import sys

import numpy as np
import pytest
from ecg_cases import (
    BITS,
    data_folder,
    encode,
    same_bits,
    twelve_leads,
    unpack_ptbxl,
    write_wfdb,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.ecg.folders import read_folder
from ssmseq.ecg.leads import (
    STANDARD_LEADS,
    limb_lead_deviation,
    standard_name,
)
from ssmseq.ecg.records import read_record

# sha256 of the float64 signals (leads, times) that wfdb 4.3.1 reads, of all files in the order of their paths. The two
# headers of Georgia, whose first line wfdb refuses, were corrected for it; a103l without its channel of no unit.
READ_BY_WFDB = {
    "ci_small/cinc2021": (8, "f6ca55679b903107254c02f06458599fab32931b7e5fe7dded5318b9965d9058"),
    "cinc2017/wfdb_300hz_sample": (24, "5869d678f0d5906f0920f4b3b833e66253df207542ba12d4323d5af0557553e6"),
    "ci_small/ptbxl": (46, "46bb2b26f5c597e13824836476f2dddfbc5ba90d23238086328f91ebabf32cdb"),
    "wfdb_samples/100.hea": (1, "8dc0cc5908217ada723675a2e51a550a9bdf624ff9f981e16a58009861e81ced"),
    "wfdb_samples/s0010_re.hea": (1, "0281e0894363323629fbb32e70b286162f37747e57cf217c1320366eb39e511a"),
    "wfdb_samples/a103l.hea": (1, "5eaa87e2b98b148a1b7d2d4f7eef9ea1709a51ac9f96c5588084e70d239e04c1"),
}
PTBXL_500_READ_BY_WFDB = "0db2cd715dd029b659350d930db31cece3f51ef8d7e91536150496b69ecee473"
LEADS_OF = {"a103l": ["II", "V"]}


def sample_files(place):
    path = data_folder() / place
    return [path] if path.suffix == ".hea" else sorted(path.rglob("*.hea"))


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory):
    return unpack_ptbxl(tmp_path_factory.mktemp("ptbxl"))


@pytest.fixture
def digital():
    return np.round(twelve_leads(250) * 1000).astype(int)


@pytest.fixture
def no_wfdb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wfdb", None)


# Against wfdb ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", READ_BY_WFDB)
def test_samples_are_those_that_wfdb_reads(place, no_wfdb):
    paths = sample_files(place)
    n_files, sha256 = READ_BY_WFDB[place]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(read_record(path, leads=LEADS_OF.get(path.stem), mismatch="ignore").signal.tobytes())
    assert (len(paths), digest.hexdigest()) == (n_files, sha256)


def test_ptbxl_is_what_wfdb_reads(ptbxl, no_wfdb):
    records = read_folder(ptbxl, dtype="float64", mismatch="error")
    assert len(records) == 500
    assert hashlib.sha256(b"".join(r.signal.tobytes() for r in records)).hexdigest() == PTBXL_500_READ_BY_WFDB
    assert max(limb_lead_deviation(r.signal, r.lead_names) for r in records) < 0.02


@pytest.mark.parametrize("place", READ_BY_WFDB)
def test_wfdb_itself_reads_the_same(place):
    wfdb = pytest.importorskip("wfdb")
    n_read = 0
    for path in sample_files(place):
        if path.read_text(errors="replace").startswith(f"{path.stem}.mat "):
            continue  # a first line that wfdb refuses
        theirs = wfdb.rdrecord(str(path.with_suffix("")))
        ours = read_record(path, leads=LEADS_OF.get(path.stem), mismatch="ignore")
        rows = [i for i, unit in enumerate(theirs.units) if unit != "NU"]
        same_bits(ours.signal, theirs.p_signal.T[rows])
        assert ours.sampling_rate == theirs.fs
        assert ours.lead_names == tuple(standard_name(theirs.sig_name[i]) for i in rows)
        assert list(ours.comments) == [text.strip() for text in theirs.comments if text.strip()]
        n_read += 1
    assert n_read


@pytest.mark.parametrize("code", [16, 24, 32, 80, 212])
def test_what_wfdb_writes_is_read(tmp_path, code):
    wfdb = pytest.importorskip("wfdb")
    signal = twelve_leads(333)
    signal[2, 20:40] = np.nan
    wfdb.wrsamp(
        "w1", 128, ["mV"] * 12, list(STANDARD_LEADS), p_signal=signal.T, fmt=[str(code)] * 12, write_dir=str(tmp_path)
    )
    ours = read_record(tmp_path / "w1", mismatch="error")
    same_bits(ours.signal, wfdb.rdrecord(str(tmp_path / "w1")).p_signal.T)
    assert np.isnan(ours.signal[2, 20:40]).all()
    np.testing.assert_allclose(ours.signal, signal, atol=3e-2 if code == 80 else 2e-3)


def test_segments_need_wfdb_and_are_read_with_it(tmp_path, digital):
    wfdb = pytest.importorskip("wfdb")
    for name, part in (("s1", digital[:, :100]), ("s2", digital[:, 100:])):
        write_wfdb(tmp_path, part, name=name)
    (tmp_path / "m.hea").write_text("m/2 12 100 250\ns1 100\ns2 150\n")
    same_bits(read_record(tmp_path / "m").signal, wfdb.rdrecord(str(tmp_path / "m")).p_signal.T)


# Formats, written by hand ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data(), code=st.sampled_from(sorted(BITS)), n_leads=st.integers(1, 5), n_times=st.integers(1, 9))
def test_every_format_is_decoded(tmp_path_factory, data, code, n_leads, n_times):
    limit = 2 ** (BITS[code] - 1)
    values = data.draw(st.lists(st.integers(-limit, limit - 1), min_size=n_leads * n_times, max_size=n_leads * n_times))
    digital = np.array(values).reshape(n_leads, n_times)
    folder = tmp_path_factory.mktemp("formats")
    offset = data.draw(st.sampled_from([0, 24]))
    path = write_wfdb(folder, digital, code=code, names=[f"x{i}" for i in range(5)], gain="7(3)/mV", offset=offset)
    expected = np.array([np.nan if v == -limit else (v - 3) / 7 for v in values]).reshape(n_leads, n_times)
    same_bits(read_record(path, mismatch="error").signal, expected)


@pytest.mark.parametrize("code", sorted(BITS))
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 3), (3, 4)])
def test_extreme_samples_of_every_format_in_odd_numbers(tmp_path, code, shape):
    limit = 2 ** (BITS[code] - 1)
    values = np.resize([limit - 1, -1, 1 - limit, limit // 3, -limit // 3], shape[0] * shape[1])
    for shift in range(5):
        digital = np.roll(values, shift).reshape(shape)
        found = read_record(write_wfdb(tmp_path, digital, code=code, gain="1/mV"), mismatch="error")
        np.testing.assert_array_equal(found.signal, digital)


@pytest.mark.parametrize("ending", ["", ".hea", ".dat"])
def test_any_name_of_the_record_will_do(tmp_path, digital, ending):
    write_wfdb(tmp_path, digital)
    found = read_record(str(tmp_path / "r1") + ending, mismatch="error")
    same_bits(found.signal, digital / 1000)
    assert (found.record_id, found.sampling_rate, found.lead_names) == ("r1", 100.0, STANDARD_LEADS)
    assert (found.labels, found.age, found.sex) == (None, None, None)


def test_name_with_a_dot(tmp_path, digital):
    write_wfdb(tmp_path, digital, name="rec.2")
    assert read_record(tmp_path / "rec.2").record_id == "rec.2"


@pytest.mark.parametrize("version", ["4 by hand", "4", "5"])
def test_matlab_files(tmp_path, digital, version):
    from scipy.io import savemat

    path = write_wfdb(tmp_path, digital, matlab=True)
    if version != "4 by hand":
        savemat(tmp_path / "r1.mat", {"val": digital.astype(np.int16)}, format=version)
    same_bits(read_record(path, mismatch="error").signal, digital / 1000)
    same_bits(read_record(tmp_path / "r1.mat").signal, digital / 1000)


def test_invalid_code_is_missing_in_matlab_too(tmp_path, digital):
    digital[3, 7] = -32768
    found = read_record(write_wfdb(tmp_path, digital, matlab=True), mismatch="error")
    assert np.argwhere(np.isnan(found.signal)).tolist() == [[3, 7]]


def test_several_files_and_baselines(tmp_path):
    (tmp_path / "two.hea").write_text(
        "# before the record line\n\ntwo 3 250/250(0) 4 10:00:00 1/1/2000\n"
        "a.dat 16 200(10)/mV 12 5 0 0 0 I\na.dat 16 100 12 5 0 0 0 II\nb.dat 80+2 50/uV 8 0 0 0 0 V1\n# 69 M\n"
    )
    (tmp_path / "a.dat").write_bytes(encode([10, 5, 210, 105, -190, -95, 30, 25], 16))
    (tmp_path / "b.dat").write_bytes(b"xx" + encode([50, -50, 100, 0], 80))
    found = read_record(tmp_path / "two")
    # A baseline in the gain field comes before the zero of the converter, which stands in where there is none.
    np.testing.assert_array_equal(found.signal[:2], [[0, 1, -1, 0.1], [0, 1, -1, 0.2]])
    np.testing.assert_array_equal(found.signal[2], [0.001, -0.001, 0.002, 0])
    assert (found.sampling_rate, found.comments) == (250.0, ("before the record line", "69 M"))


@pytest.mark.parametrize(
    ("gain", "factor"),
    [
        ("1/mV", 1),
        ("1/mv", 1),
        ("1/uV", 1e-3),
        ("1/\u00b5V", 1e-3),
        ("1/\u03bcV", 1e-3),
        ("1/V", 1000),
        ("1/nV", 1e-6),
    ],
)
def test_units_become_millivolts(tmp_path, digital, gain, factor):
    found = read_record(write_wfdb(tmp_path, digital, gain=gain))
    np.testing.assert_allclose(found.signal, digital * factor, rtol=1e-15)


def test_length_comes_from_the_file_where_the_header_is_silent(tmp_path, digital):
    for code in (16, 212, 24):
        path = write_wfdb(tmp_path, digital, code=code)
        path.write_text(path.read_text().replace("r1 12 100 250", "r1 12 100"))
        same_bits(read_record(path, mismatch="error").signal, digital / 1000)


def test_missing_gain_is_the_standards_with_a_warning(tmp_path, digital):
    with pytest.warns(UserWarning, match="r1.hea, lead I: the header gives no gain, so 200 units per mV"):
        found = read_record(write_wfdb(tmp_path, digital, gain="0"))
    same_bits(found.signal, digital / 200)


def test_leads_are_chosen_in_order_and_single_precision_is_rounded(tmp_path, digital):
    path = write_wfdb(tmp_path, digital)
    found = read_record(path, leads=["v2", "AVR"], dtype="float32")
    assert found.signal.dtype == np.float32
    np.testing.assert_array_equal(found.signal, (digital[[7, 3]] / 1000).astype(np.float32))
    assert found.lead_names == ("V2", "aVR")

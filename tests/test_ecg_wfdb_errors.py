"""Damaged and unusual WFDB records: what is wrong must be said."""

import sys
import warnings

import numpy as np
import pytest
from ecg_cases import (
    checksums,
    matlab_bytes,
    same_bits,
    twelve_leads,
    write_wfdb,
)

from ssmseq.ecg.records import read_record


@pytest.fixture
def digital():
    return np.round(twelve_leads(250) * 1000).astype(int)


@pytest.fixture
def no_wfdb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wfdb", None)


@pytest.mark.parametrize("matlab", [True, False])
@pytest.mark.parametrize("kept", [0, 20, 30, 1000])
def test_truncated_file(tmp_path, digital, matlab, kept):
    path = write_wfdb(tmp_path, digital, matlab=matlab)
    file = path.with_suffix(".mat" if matlab else ".dat")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{file.name} is truncated.*get the file again"):
        read_record(path)


def test_truncated_file_names_both_sizes(tmp_path, digital):
    path = write_wfdb(tmp_path, digital)
    file = path.with_suffix(".dat")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="250 samples of 12 leads in format 16 need 6000 bytes, it has 5999"):
        read_record(path)


def test_checksum_mismatch_warns_errs_or_is_ignored(tmp_path, digital):
    sums = checksums(digital)
    path = write_wfdb(tmp_path, digital, sums=[sums[0] + 1, *sums[1:]])
    message = f"r1.hea, lead I: the sum of the samples is not the header's checksum {sums[0] + 1}"
    with pytest.warns(UserWarning, match=message):
        read_record(path)
    with pytest.raises(ValueError, match=message):
        read_record(path, mismatch="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_record(path, mismatch="ignore")
        read_record(path, leads=["II"])  # a lead that is not read is not compared
        read_record(write_wfdb(tmp_path, digital, name="zero", sums=[0] * 12))  # written where nobody computed one
        read_record(write_wfdb(tmp_path, digital, name="unsigned", sums=[s % 65536 for s in sums]))


def test_more_samples_than_the_header_says(tmp_path, digital):
    path = write_wfdb(tmp_path, digital)
    path.write_text(path.read_text().replace("100 250", "100 240"))
    with pytest.raises(ValueError, match="r1.dat holds 240 bytes more than r1.hea describes"):
        read_record(path, mismatch="error")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("r1 12 100 250", "r1 12"), r"does not state its sampling rate: give sampling_rate="),
        (("r1 12 100 250", "r1 11 100 250"), "states 11 leads but has 12 signal lines"),
        (("r1 12 100 250", "r1 13 100 250"), "states 13 leads but has 12 signal lines"),
        (("r1 12 100 250", "r1 twelve 100 250"), "the first line must read"),
        (("r1 12 100 250", "r1"), "the first line must read"),
        (("r1 12 100 250", "r1 12 0 250"), "sampling_rate must be a number above 0"),
        (("r1.dat 16 1000/mV", "r1.dat 16 fast"), "signal line 1 cannot be understood"),
        (("r1.dat 16 1000/mV", "r1.dat sixteen 1000/mV"), "signal line 1 cannot be understood"),
        (("r1.dat 16 1000/mV", "r1.dat 16 1e999/mV"), "signal line 1 has the gain inf"),
        (("r1.dat 16 1000/mV", "r1.dat 16 1000/mmHg"), r"lead 'I' has the unit 'mmHg'.*leads=\[...\]"),
        (("r1.dat 16 1000/mV", "r1.dat 32 1000/mV"), "the leads of r1.dat must have one format"),
        (("r1.dat 16 1000/mV", "r9.dat 16 1000/mV"), "r9.dat does not exist, but .*r1.hea names it"),
        ((" 0 II\n", " 0 i\n"), "the lead names 'I' and 'I' both mean lead I"),
    ],
)
def test_headers_that_are_wrong(tmp_path, digital, change, message):
    path = write_wfdb(tmp_path, digital)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_record(path)


def test_rate_may_be_given_where_it_lacks_and_must_agree_where_it_does_not(tmp_path, digital):
    path = write_wfdb(tmp_path, digital, rate="257")
    with pytest.raises(ValueError, match="states a sampling rate of 257 Hz, but sampling_rate=500 was given"):
        read_record(path, sampling_rate=500)
    path.write_text(path.read_text().replace("r1 12 257 250", "r1 12"))
    found = read_record(path, sampling_rate=257)
    assert (found.sampling_rate, found.n_times) == (257.0, 250)
    with pytest.raises(ValueError, match="leave unit and lead_names out"):
        read_record(path, unit="uV")


def test_matlab_file_of_another_shape(tmp_path, digital):
    path = write_wfdb(tmp_path, digital, matlab=True)
    for values, message in [
        (digital[:8], r"shape \(8, 250\), but the header states 12 leads x 250 samples"),
        (digital.T, r"shape \(250, 12\), but the header states 12 leads"),
        (digital[:, :249], r"shape \(12, 249\), but the header states 12 leads x 250"),
    ]:
        path.with_suffix(".mat").write_bytes(matlab_bytes(values))
        with pytest.raises(ValueError, match=message):
            read_record(path)
    path.with_suffix(".mat").write_bytes(matlab_bytes(digital, name="ecg"))
    with pytest.raises(ValueError, match=r"no matrix 'val', only \['ecg'\]"):
        read_record(path)
    path.with_suffix(".mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"MATLAB 7.3 \(HDF5\)"):
        read_record(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r1/2 12 100 250", "a record of several segments"),
        ("r1.dat 16x4 1000/mV", "signal line 1 has the format '16x4'"),
        ("r1.dat 16:3 1000/mV", "signal line 1 has the format '16:3'"),
        ("r1.dat 516 1000/mV", "signal line 1 has the format '516'"),
        ("r1.mat 80+24 1000/mV", "signal line 1 has the format '80.24' in r1.mat"),
    ],
)
def test_what_only_wfdb_reads_names_it(tmp_path, digital, no_wfdb, line, message):
    path = write_wfdb(tmp_path, digital)
    before = "r1 12 100 250" if "/2" in line else "r1.dat 16 1000/mV"
    path.write_text(path.read_text().replace(before, line, 1))
    with pytest.raises(ValueError, match=message + r'.*install the package wfdb, as in pip install "ssmseq\[ecg\]"'):
        read_record(path)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.hea does not exist"):
        read_record(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"a.scp: such files are not read here; convert"):
        read_record(tmp_path / "a.scp")
    (tmp_path / "empty.hea").write_text("# only this\n")
    with pytest.raises(ValueError, match="empty.hea is empty"):
        read_record(tmp_path / "empty")


# Age, sex and diagnoses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comments", "age", "sex", "labels"),
    [
        (["#Age: 74", "#Sex: Male", "#Dx: 59118001,426783006"], 74.0, "M", ("59118001", "426783006")),
        (["# Age: 74", "# Sex: F", "# Dx: 59118001"], 74.0, "F", ("59118001",)),
        (["#age: 3.5", "#sex: female", "#Dx: 1,, 2 ,1,"], 3.5, "F", ("1", "2")),
        (["#Age: NaN", "#Sex: Unknown", "#Dx: Unknown"], None, None, ()),
        (["#Dx:"], None, None, ()),
        (["#Rx: Unknown"], None, None, None),
    ],
)
def test_both_spellings_of_the_challenge(tmp_path, digital, comments, age, sex, labels):
    found = read_record(write_wfdb(tmp_path, digital, comments=comments, matlab=True), mismatch="error")
    assert (found.age, found.sex, found.labels) == (age, sex, labels)


def test_senseless_age_and_sex_are_left_out_and_told(tmp_path, digital):
    path = write_wfdb(tmp_path, digital, comments=["#Age: 300", "#Sex: 7"])
    with pytest.warns(UserWarning, match="the age '300' makes no sense and is left out; r1.hea: the sex '7'"):
        found = read_record(path)
    assert (found.age, found.sex) == (None, None)


def test_header_in_another_encoding(tmp_path, digital):
    path = write_wfdb(tmp_path, digital, gain="1000/uV")
    path.write_bytes(path.read_bytes().replace(b"/uV", "/\u00b5V".encode("latin-1")))
    same_bits(read_record(path).signal, digital / 1000 / 1000)

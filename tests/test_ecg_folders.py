"""Folders of recordings: the challenges and PTB-XL, with labels worked out by hand."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from ecg_cases import (
    data_folder,
    twelve_leads,
    unpack_ptbxl,
    write_wfdb,
)

from ssmseq.ecg.challenge_labels import challenge_indicator, scored_labels
from ssmseq.ecg.folders import iterate_folder, read_cinc, read_cinc2017, read_folder, read_ptbxl
from ssmseq.ecg.leads import (
    STANDARD_LEADS,
)


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory):
    return unpack_ptbxl(tmp_path_factory.mktemp("ptbxl"))


@pytest.fixture
def digital():
    return np.round(twelve_leads(250) * 1000).astype(int)


def test_folder_in_order_with_one_warning_for_all(tmp_path, digital):
    (tmp_path / "sub").mkdir()
    for name in ("b", "a", "c"):
        write_wfdb(tmp_path / "sub", digital, name=name, sums=[9] * 12)
    with pytest.warns(UserWarning, match="checksum") as told:
        records = read_folder(tmp_path)
    assert len(told) == 1
    assert "a.hea, lead I" in str(told[0].message)
    assert "and 31 more" in str(told[0].message)
    assert [r.record_id for r in records] == ["a", "b", "c"]
    assert records[0].signal.dtype == np.float32
    with pytest.raises(ValueError, match="checksum"):
        read_folder(tmp_path, mismatch="error")
    assert next(iterate_folder(tmp_path, mismatch="ignore", leads=["V1"])).lead_names == ("V1",)
    with pytest.raises(FileNotFoundError, match=r"holds no file \*\.csv"):
        read_folder(tmp_path, pattern="*.csv")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        read_folder(tmp_path / "none")


def test_progress_is_shown_on_demand(tmp_path, digital, capsys):
    write_wfdb(tmp_path, digital)
    read_folder(tmp_path)
    assert capsys.readouterr() == ("", "")
    read_folder(tmp_path, progress=True)
    assert "1/1" in capsys.readouterr().err


def test_scored_labels_are_the_official_ones():
    folder = data_folder() / "challenge_scoring"
    for year, column in ((2020, "SNOMED CT Code"), (2021, "SNOMEDCTCode")):
        table = pd.read_csv(folder / f"{year}_dx_mapping_scored.csv", dtype=str)
        abbreviations = dict(zip(table[column], table["Abbreviation"], strict=True))
        ours = {}
        for codes, names in scored_labels(year).items():
            ours |= dict(zip(codes.split("|"), names.split("|"), strict=True))
            if "|" in codes:
                notes = table.loc[table[column] == codes.split("|")[0], "Notes"].item()
                assert all(code in notes for code in codes.split("|"))
        assert ours == abbreviations
        assert table["Notes"].notna().sum() == sum(len(c.split("|")) for c in scored_labels(year) if "|" in c)
    weights = pd.read_csv(folder / "2021_weights.csv", index_col=0)
    assert list(scored_labels(2021)) == list(weights.columns)
    short = pd.read_csv(folder / "2021_weights_abbreviations.csv", index_col=0)
    assert sorted(scored_labels(2021).values()) == sorted(short.columns)
    assert [len(scored_labels(year)) for year in (2020, 2021)] == [24, 26]
    unscored = pd.read_csv(folder / "2021_dx_mapping_unscored.csv", dtype=str)["SNOMEDCTCode"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not challenge_indicator([unscored]).to_numpy().any()
    with pytest.raises(ValueError, match="year must be one of 2020, 2021, got 2022"):
        scored_labels(2022)


def test_equivalent_codes_are_one_class():
    sets = [("59118001",), ("713427006", "59118001"), ("733534002",), ("6374002",), (), ("164951009", "426783006")]
    y = challenge_indicator(sets, year=2021, index=list("abcdef"))
    assert y.shape == (6, 26)
    assert [list(y.columns[row.astype(bool)]) for row in y.to_numpy()] == [
        ["713427006|59118001"],
        ["713427006|59118001"],
        ["733534002|164909002"],
        ["6374002"],
        [],
        ["426783006"],
    ]
    y = challenge_indicator(sets, year=2020)
    assert y.shape == (6, 24)
    assert y.sum(axis=1).tolist() == [1, 1, 0, 0, 0, 1]


def test_unknown_codes_are_listed_once_or_refused():
    sets = [("251238007", "426783006"), ("6180003", "251238007")]
    with pytest.warns(UserWarning, match=r"unknown diagnosis codes are left out: 251238007, 6180003") as told:
        y = challenge_indicator(sets)
    assert len(told) == 1
    assert y.sum(axis=1).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"unknown diagnosis codes \['251238007', '6180003'\]"):
        challenge_indicator(sets, unknown="error")


def test_challenge_folder():
    found = read_cinc(data_folder() / "ci_small" / "cinc2021", mismatch="error", unknown="error")
    assert [r.record_id for r in found.records] == list(found.y.index)
    assert found.y.shape == (8, 26)
    assert found.sources.tolist() == ["CPSC"] + ["Georgia"] * 2 + ["PTB_XL"] * 2 + ["Ningbo"] * 3
    first, jumble = found.records[0], found.y.loc["JS20002"]
    assert (first.age, first.sex, first.labels, first.source, first.n_times) == (74, "M", ("59118001",), "CPSC", 7500)
    assert sorted(jumble.index[jumble == 1]) == ["164934002", "284470004|63593006", "59931005"]
    assert found.y.loc["JS20002"].sum() == 3  # 251187003 is known and not scored


def test_challenge_header_without_diagnoses(tmp_path, digital):
    for name, comments in (
        ("A0001", ["#Dx: 426783006"]),
        ("E2", ["#Age: 3"]),
        ("JS10646", ["# Dx: 59118001,"]),
        ("Q1", ["#Dx:"]),
    ):
        write_wfdb(tmp_path, digital, name=name, comments=comments, matlab=True)
    with pytest.raises(ValueError, match="the header of record E2 has no line '#Dx': .*unlabelled='drop'"):
        read_cinc(tmp_path)
    found = read_cinc(tmp_path, unlabelled="drop", year=2020)
    assert list(found.y.index) == ["A0001", "JS10646", "Q1"]
    assert found.sources.tolist() == ["CPSC", "Chapman_Shaoxing", "CPSC_Extra"]
    assert found.y.shape == (3, 24)
    assert found.y.sum(axis=1).tolist() == [1, 1, 0]


def test_ptbxl_superclasses(ptbxl):
    found = read_ptbxl(ptbxl)
    assert found.y.sum().to_dict() == {"CD": 78, "HYP": 40, "MI": 73, "NORM": 297, "STTC": 96}
    assert (found.y.sum(axis=1) > 1).sum() == 73
    assert len(found.records) == len(found.folds) == len(found.groups) == len(found.metadata) == 488
    assert found.y.dtypes.unique().tolist() == [np.int8]
    one = found.records[0]
    assert (one.record_id, one.patient_id, one.age, one.sex) == ("00001_lr", "15709", 56.0, "F")
    assert one.labels == ("NORM", "LVOLT", "SR")
    assert (one.sampling_rate, one.signal.shape, one.signal.dtype) == (100.0, (12, 1000), np.float32)
    assert one.lead_names == STANDARD_LEADS
    # Each recording with its own row of the tables.
    for record_, ecg_id, group, fold in zip(found.records, found.y.index, found.groups, found.folds, strict=True):
        row = found.metadata.loc[ecg_id]
        assert record_.record_id == f"{ecg_id:05d}_lr"
        assert (record_.patient_id, group) == (str(int(row.patient_id)),) * 2
        assert record_.labels == tuple(json.loads(row.scp_codes.replace("'", '"')))
        assert fold == row.strat_fold
    # No patient is in two folds.
    assert pd.Series(found.folds).groupby(found.groups).nunique().max() == 1
    kept = read_ptbxl(ptbxl, unlabelled="keep")
    assert (len(kept.records), (kept.y.sum(axis=1) == 0).sum(), len(set(kept.groups))) == (500, 12, 466)
    assert sum(r.age is None for r in kept.records) == 4
    assert pd.Series([r.sex for r in kept.records]).value_counts().to_dict() == {"F": 251, "M": 249}


@pytest.mark.parametrize(
    ("labels", "n_classes"),
    [("superdiagnostic", 5), ("subdiagnostic", 23), ("diagnostic", 44), ("form", 19), ("rhythm", 12), ("all", 71)],
)
def test_ptbxl_aggregation_by_hand(ptbxl, labels, n_classes):
    """Each recording's labels written out with loops over the two tables."""
    found = read_ptbxl(ptbxl, labels=labels, unlabelled="keep")
    assert found.y.shape == (500, n_classes)
    assert list(found.y.columns) == sorted(found.y.columns)
    statements = pd.read_csv(ptbxl / "scp_statements.csv", index_col=0)
    for ecg_id, text in found.metadata["scp_codes"].items():
        expected = set()
        for code in json.loads(text.replace("'", '"')):
            row = statements.loc[code]
            if labels == "all" or (labels in ("diagnostic", "form", "rhythm") and row[labels] == 1):
                expected.add(code)
            elif row["diagnostic"] == 1 and labels == "superdiagnostic":
                expected.add(row["diagnostic_class"])
            elif row["diagnostic"] == 1 and labels == "subdiagnostic":
                expected.add(row["diagnostic_subclass"])
        assert set(found.y.columns[found.y.loc[ecg_id] == 1]) == expected


@pytest.fixture
def tiny_ptbxl(tmp_path, digital):
    for folder, rate, ending in (("records100", "100", "lr"), ("records500", "500", "hr")):
        (tmp_path / folder).mkdir()
        for i in (1, 2):
            write_wfdb(tmp_path / folder, digital, name=f"{i}_{ending}", rate=rate)
    (tmp_path / "ptbxl_database.csv").write_text(
        "ecg_id,patient_id,age,sex,scp_codes,strat_fold,filename_lr,filename_hr\n"
        "1,7.0,300.0,0,\"{'NORM': 0.0, 'SR': 0.0}\",3,records100/1_lr,records500/1_hr\n"
        "2,8.0,,1,\"{'SR': 100.0}\",10,records100/2_lr,records500/2_hr\n"
    )
    (tmp_path / "scp_statements.csv").write_text(
        ",diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nNORM,1.0,,,NORM,NORM\nSR,,,1.0,MI,MI\n"
    )
    return tmp_path


def test_ptbxl_likelihood_zero_counts_and_ages(tiny_ptbxl):
    found = read_ptbxl(tiny_ptbxl, unlabelled="keep")
    assert found.y.to_dict() == {"NORM": {1: 1, 2: 0}}
    assert [(r.age, r.sex, r.patient_id) for r in found.records] == [(90.0, "M", "7"), (None, "F", "8")]
    assert len(read_ptbxl(tiny_ptbxl).records) == 1
    fast = read_ptbxl(tiny_ptbxl, sampling_rate=500, labels="rhythm")
    assert [r.sampling_rate for r in fast.records] == [500.0, 500.0]
    assert [r.record_id for r in fast.records] == ["1_hr", "2_hr"]


def test_ptbxl_errors(tiny_ptbxl):
    with pytest.raises(ValueError, match="sampling_rate must be one of 100, 500, got 250"):
        read_ptbxl(tiny_ptbxl, sampling_rate=250)
    (tiny_ptbxl / "records100" / "1_lr.hea").unlink()
    with pytest.raises(FileNotFoundError, match="1_lr.hea does not exist"):
        read_ptbxl(tiny_ptbxl)
    text = (tiny_ptbxl / "scp_statements.csv").read_text()
    (tiny_ptbxl / "scp_statements.csv").write_text(text.replace("SR,", "SRX,"))
    with pytest.raises(ValueError, match=r"does not have the statements \['SR'\]"):
        read_ptbxl(tiny_ptbxl)
    (tiny_ptbxl / "ptbxl_database.csv").unlink()
    with pytest.raises(FileNotFoundError, match="holds no ptbxl_database.csv"):
        read_ptbxl(tiny_ptbxl)


def test_packed_challenge_2017():
    folder = data_folder() / "cinc2017"
    found = read_cinc2017(folder)
    assert len(found.records) == 8528
    assert dict(zip(*np.unique(found.y, return_counts=True), strict=True)) == {"A": 758, "N": 5076, "O": 2415, "~": 279}
    truth = pd.read_csv(folder / "REFERENCE-v3.csv", header=None)
    assert truth[0].tolist() == [r.record_id for r in found.records]
    assert truth[1].tolist() == found.y.tolist()
    assert {r.sampling_rate for r in found.records} == {100.0}
    # The packed recordings are the raw ones at a third of their rate; filters differ at the ends and on sharp waves.
    by_name = {r.record_id: r for r in found.records}
    raw = read_folder(folder / "wfdb_300hz_sample", dtype="float64", mismatch="ignore")
    for one in raw:
        from scipy.signal import resample_poly

        packed = by_name[one.record_id].signal[0]
        expected = resample_poly(one.signal[0], 1, 3)
        assert abs(len(packed) - len(expected)) <= 1
        n = min(len(packed), len(expected))
        assert np.corrcoef(packed[:n], expected[:n])[0, 1] > 0.99, one.record_id
        assert np.std(packed[:n]) == pytest.approx(np.std(expected[:n]), rel=0.02)


def test_challenge_2017_as_it_is_distributed(tmp_path):
    for name in ("A00001", "A00004"):
        write_wfdb(tmp_path, np.arange(30)[None], name=name, rate="300", names=["ECG"], matlab=True)
    with pytest.raises(FileNotFoundError, match="holds neither cinc2017_100hz.npz nor REFERENCE-v3.csv"):
        read_cinc2017(tmp_path)
    (tmp_path / "REFERENCE.csv").write_text("A00001,N\nA00004,~\n")
    found = read_cinc2017(tmp_path)
    assert found.y.tolist() == ["N", "~"]
    assert [r.labels for r in found.records] == [("N",), ("~",)]
    assert found.records[0].sampling_rate == 300
    (tmp_path / "REFERENCE-v3.csv").write_text("A00001,O\n")
    with pytest.raises(ValueError, match="has no label for record A00004"):
        read_cinc2017(tmp_path)


def test_damaged_packed_file(tmp_path):
    parts = {"delta_lo": np.zeros(9, "u1"), "delta_hi": np.zeros(9, "u1"), "offsets": np.array([0, 10])}
    np.savez(tmp_path / "cinc2017_100hz.npz", record=np.array(["a"]), label=np.array(["N"]), fs=100, **parts)
    with pytest.raises(ValueError, match="its offsets end at 10, but it has 9 samples"):
        read_cinc2017(tmp_path)


def test_reading_loads_neither_torch_nor_wfdb():
    code = (
        "import sys, ssmseq.ecg.folders, ssmseq.ecg.quality, ssmseq.ecg.preprocessing;"
        "print([m for m in ('torch', 'wfdb', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

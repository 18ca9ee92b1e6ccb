"""`ssmseq ecg predict` and `report`, and the errors of all its commands."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from ecg_cases import twelve_leads, write_wfdb
from ecg_cli import SMALL, fit_files, write_files

import ssmseq
from ssmseq.cli import ecg, main
from ssmseq.cli.ecg_data import parse_folds
from ssmseq.ecg.records import read_record


def read_parquet(path) -> pd.DataFrame:
    return pd.DataFrame(pl.read_parquet(path).to_dict(as_series=False))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def model(files, tmp_path_factory):
    return fit_files(files, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def fail(capsys):
    """Run a command that must fail; return its exit code and its last line on stderr, the only one but for bars."""

    def run(*argv):
        code = main(["ecg", *map(str, argv)])
        out, err = capsys.readouterr()
        *bars, last = err.splitlines()
        assert (out, last[:15], "Traceback" in err) == ("", "ssmseq: error: ", False), err
        assert all("record/s" in line for line in bars if line), err
        return code, last

    return run


# Predictions ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(files, tmp_path):
    """Good recordings among a missing one, a broken one and one in microvolts."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("r01", "r04", "r05"):
        for suffix in ("hea", "dat"):
            shutil.copy(files / f"{name}.{suffix}", folder)
    (folder / "r02.hea").write_text("r02 twelve 100\n")
    digital = np.round(twelve_leads(300) * 1000).astype(int)
    write_wfdb(folder, digital, name="r03", gain="1/mV")
    return [folder, folder / "gone.edf"]


def test_recordings_that_fail_have_a_row_with_a_reason(mixed, model, tmp_path, capsys):
    output = tmp_path / "out.csv"
    assert main(["ecg", "predict", str(model), *map(str, mixed), "--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"6 recordings, 3 failed: {output}"
    assert "6/6" in err
    assert "record/s" in err
    table = pd.read_csv(output, index_col="record")
    assert table.columns.tolist() == ["p_AF", "p_LBBB", "predicted", "reason", "message"]
    assert table["reason"].dropna().to_dict() == {"r02": "unreadable", "r03": "refused", "gone": "missing"}
    assert "r02.hea: the first line must read" in table.loc["r02", "message"]
    assert "largest_amplitude" in table.loc["r03", "message"]
    estimator = ssmseq.load(model)
    good = ["r01", "r04", "r05"]
    expected = estimator.predict_proba([read_record(mixed[0] / f"{name}.hea", dtype="float32") for name in good])
    np.testing.assert_allclose(table.loc[good, ["p_AF", "p_LBBB"]], expected, atol=1e-6)
    named = [";".join(estimator.classes_[row >= estimator.thresholds_]) for row in expected]
    assert table.loc[good, "predicted"].fillna("").tolist() == named
    assert table.loc[["r02", "r03", "gone"], ["p_AF", "predicted"]].isna().all(axis=None)


def test_tables_as_parquet_and_json(mixed, model, tmp_path, capsys):
    argv = ["ecg", "predict", str(model), *map(str, mixed), "--quiet"]
    assert main(argv) == 1
    (tmp_path / "out.csv").write_text(capsys.readouterr().out)
    expected = pd.read_csv(tmp_path / "out.csv")
    for name in ("out.parquet", "out.json"):
        assert main([*argv, "--output", str(tmp_path / name), "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert (document["records"], document["failed"], document["predictions"]) == (6, 3, None)
        assert document["labels"] == ["AF", "LBBB"]
    table = read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(table.fillna(np.nan), expected.fillna(np.nan), check_dtype=False)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["record"] for row in rows] == expected["record"].tolist()
    assert [row["reason"] for row in rows] == expected["reason"].astype(object).where(
        expected["reason"].notna(), None
    ).tolist()
    assert [row["probabilities"]["AF"] for row in rows[:1]] == expected["p_AF"][:1].tolist()
    assert rows[1]["probabilities"] is None


def test_thresholds_on_the_command_line(files, model, capsys):
    for words, expected in ((["0"], "AF;LBBB"), (["1.1"], ""), (["0", "1.1"], "AF")):
        assert main(["ecg", "predict", str(model), str(files / "r01.hea"), "--thresholds", *words, "--quiet"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split(",")[3] == expected


def test_recordings_are_read_in_batches(files, model, monkeypatch, capsys):
    held = []
    estimator = ssmseq.load(model)
    original = type(estimator).predict_proba
    monkeypatch.setattr(type(estimator), "predict_proba", lambda self, X: held.append(len(X)) or original(self, X))
    assert main(["ecg", "predict", str(model), str(files), "--batch", "5", "--quiet"]) == 0
    assert held == [5, 5, 2]
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_an_interrupted_prediction_keeps_its_rows(files, model, tmp_path, monkeypatch, capsys):
    original = ecg._batch
    batches = iter([original, original])

    def batch(estimator, chunk):
        try:
            return next(batches)(estimator, chunk)
        except StopIteration:
            raise KeyboardInterrupt from None

    for name in ("a.csv", "a.parquet"):
        batches = iter([original, original])
        monkeypatch.setattr(ecg, "_batch", batch)
        output = tmp_path / name
        assert (
            main(["ecg", "predict", str(model), str(files), "--batch", "3", "--output", str(output), "--quiet"]) == 130
        )
        table = pd.read_csv(output) if name == "a.csv" else read_parquet(output)
        assert table["record"].tolist() == [f"r{i:02}" for i in range(6)]
        assert "interrupted; 6 of 12 recordings are written" in capsys.readouterr().err


def test_many_warnings_become_one(model, tmp_path, capsys):
    for i in range(4):
        digital = np.round(twelve_leads(300, seed=i)[: 8 + i % 2] * 1000).astype(int)
        write_wfdb(tmp_path, digital, name=f"r{i}", sums=[i] * 9)
    assert main(["ecg", "predict", str(model), str(tmp_path), "--batch", "1", "--quiet"]) == 0
    err = capsys.readouterr().err
    assert err.count("ssmseq: warning: ") == err.count("\n") == 1
    assert "checksum" in err
    assert "more warnings)" in err


def test_refused_recordings_are_left_out_of_an_evaluation(mixed, files, model, tmp_path, capsys):
    (mixed[0] / "r02.hea").unlink()
    names = ["r01", "r03", "r04", "r05"]
    pd.DataFrame({"record": names, "AF": [1, 0, 1, 0], "LBBB": [0, 1, 0, 1]}).to_csv(tmp_path / "l.csv", index=False)
    argv = ["ecg", "evaluate", str(model), str(mixed[0]), "--labels", str(tmp_path / "l.csv"), "--json", "--quiet"]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["records"], [f["record"] for f in document["failures"]]) == (3, ["r03"])
    assert "ssmseq: refused: r03: " in err
    assert document["labels"][1]["prevalence"] == pytest.approx(1 / 3)


def test_reports(files, model, tmp_path, capsys, monkeypatch):
    from ssmseq.ecg import report

    seen = []
    monkeypatch.setattr(report, "write_model_report", lambda *a, **k: seen.append((a, k)))
    monkeypatch.setattr(report, "write_record_report", lambda *a, **k: seen.append((a, k)))
    argv = ["ecg", "report", str(model), str(files), "--output", "x.html", "--title", "T", "--quiet"]
    assert main([*argv, "--labels", str(files / "wide.csv")]) == 0
    assert main([*argv, "--record", "r03", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "model": str(model),
        "record": "r03",
        "output": "x.html",
    }
    (estimator, X, y, path), more = seen[0]
    assert (len(X), y.columns.tolist(), path, more) == (12, ["AF", "LBBB"], "x.html", {"title": "T"})
    assert X[2].patient_id == "p1"
    (estimator, record, path), more = seen[1]
    assert (estimator.classes_.tolist(), record.record_id, path, more) == (
        ["AF", "LBBB"],
        "r03",
        "x.html",
        {"title": "T"},
    )


def test_reports_are_pages(files, model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    for words in (["--labels", str(files / "wide.csv")], ["--record", "r03"]):
        output = tmp_path / "page.html"
        output.unlink(missing_ok=True)
        assert main(["ecg", "report", str(model), str(files), "--output", str(output), *words]) == 0
        assert "<html" in output.read_text()
        assert capsys.readouterr().err.splitlines()[-1] == f"written: {output}"


# Errors ---------------------------------------------------------------------------------------------------------------


def test_folds_as_text():
    assert parse_folds("1-8") == tuple(range(1, 9))
    assert parse_folds("9,10,2-3,9") == (2, 3, 9, 10)
    assert parse_folds("none") == ()
    for text in ("", "a", "0", "11", "3-", "-3", "8-1", "1,,2"):
        with pytest.raises(ValueError, match="folds must be"):
            parse_folds(text)


WRONG = {
    "": "required: action",
    "train": "'train'",
    "fit --save m": "required: data",
    "fit x": "required: save",
    "fit x --save m --preset big": "--preset must be one of dense, vim, hydra, cnn, got 'big'",
    "fit x --save m --d_model wide": "--d_model must be int, got 'wide'",
    "fit x --save m --encoder lstm": "--encoder must be 'vim', 'add', 'hydra', 'cnn', got 'lstm'",
    "fit x --save m --folds 0-3": "folds must be from 1 to 10, got '0-3'",
    "fit x --save m --callbacks 3": "--callbacks",
    "predict m": "DATA",
    "predict m x --batch 0": "--batch must be at least 1, got 0",
    "predict m x --output x.txt": "--output must end in .csv, .json or .parquet, got 'x.txt'",
    "evaluate m x --level 100": "--level must be above 0 and below 100, got 100",
    "evaluate m x --resamples 0": "--resamples must be at least 1, got 0",
    "report m x": "--output",
    "predict m x --thresholds some": "--thresholds",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_exit_2(line, fail):
    code, err = fail(*line.split())
    assert (code, WRONG[line] in err) == (2, True), err


def test_failures_are_exit_1(files, model, tmp_path, fail):
    def table(name, text):
        (tmp_path / name).write_text(text)
        return ["fit", files, "--save", tmp_path / "m", *SMALL, "--labels", tmp_path / name]

    whole = (files / "classes.csv").read_text()
    forecaster = tmp_path / "f"
    ssmseq.NaiveForecaster(horizon=1, lookback=2).fit(np.eye(9)).save(forecaster)
    cases = {
        "l1.csv must have a column 'record' with an entry in each row; it has ['name', 'label']": table(
            "l1.csv", "name,label\nr00,AF\n"
        ),
        "l2.csv has no row for": table("l2.csv", "record,label\nr00,AF\n"),
        "l3.csv: record 'r99': DATA has no such file": table("l3.csv", whole + "r99,AF\n"),
        "l4.csv: the columns of labels may hold 0, 1 or nothing; it has ['AF']": table(
            "l4.csv",
            whole.replace("label", "AF").replace("AF\n", "2\n").replace("NSR", "1").replace("record,2", "record,AF"),
        ),
        "l5.csv: record 'r00' has two rows": table(
            "l5.csv", "record,AF\nr00,1\n" + whole.replace("record,label\n", "")
        ),
        "--unlabelled drop": table("l6.csv", "record,label\nr00,AF\n"),
        "give the labels of the recordings with --labels FILE.csv": [
            "fit",
            files / "r00.hea",
            "--save",
            tmp_path / "m",
        ],
        "--statements is for PTB-XL": [*table("l7.csv", whole), "--statements", "all"],
        "--held_out_folds is for PTB-XL": [*table("l7.csv", whole), "--held_out_folds", "9"],
        "--labels is for files of any kind": [*table("l8.csv", whole), "--protocol", "cinc2021"],
        "no recording is from PTB; the databases of DATA are unknown": [*table("l9.csv", whole), "--sources", "PTB"],
        "has no line '#Dx'": ["fit", files, "--save", tmp_path / "m", "--protocol", "cinc2020"],
        "is not a folder that can be written to": ["fit", files, "--save", files / "wide.csv" / "m"],
        "holds no saved model": ["predict", tmp_path / "none", files],
        "holds a NaiveForecaster: give the folder of an ECGMambaClassifier": ["predict", forecaster, files],
        "y has the labels ['NSR'], which that of fit had not": [
            "evaluate",
            model,
            files,
            "--labels",
            files / "classes.csv",
        ],
        "--record r77: DATA has 0 recordings": ["report", model, files, "--record", "r77", "--output", tmp_path / "x"],
    }
    for word, argv in cases.items():
        code, err = fail(*argv)
        assert (code, word in err) == (1, True), (word, err)
    assert not (tmp_path / "m").exists()
    code, err = fail("predict", model, files, "--thresholds", "0.1", "0.2", "0.3")
    assert (code, "one number or one for each of 2 labels" in err) == (2, True)


def test_missing_data_are_exit_3(files, model, tmp_path, fail):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "ptb" / "ptbxl_database.csv").write_text("ecg_id\n")
    (tmp_path / "ptb" / "records500").mkdir()
    save = ["--save", tmp_path / "m"]
    cases = {
        "none does not exist: give a folder": ["predict", model, tmp_path / "none"],
        "--labels no.csv: there is no such file": ["fit", files, *save, "--labels", "no.csv"],
        "empty holds no recording": ["predict", model, tmp_path / "empty"],
        "no folder records100, PTB-XL's signals at 100 Hz: add it, or take those at 500 Hz with --signals 500": [
            "fit",
            tmp_path / "ptb",
            *save,
        ],
    }
    for word, argv in cases.items():
        code, err = fail(*argv)
        assert (code, word in err) == (3, True), (word, err)


def test_help_and_imports(capsys):
    assert main(["ecg", "--help"]) == 0
    assert "Not a medical device" in capsys.readouterr().out
    for action in ecg.ACTIONS:
        assert main(["ecg", action, "--help"]) == 0
        assert "DATA" in capsys.readouterr().out
    code = "import sys; from ssmseq.cli import main; main(['ecg', 'predict', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not {"torch", "lightning", "numpy", "pandas", "edfio", "pydicom", "matplotlib"} & set(done.stdout.split())

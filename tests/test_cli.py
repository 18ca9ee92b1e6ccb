"""The command line: its results against the Python interface, its streams, its exit codes, and what it loads."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
import torch
import yaml

import ssmseq
from ssmseq.cli import COMMANDS, contract, demo, fit, main, predict
from ssmseq.datasets import files, make_transformer_load
from ssmseq.persistence import FORECASTERS

SIZES = {"horizon": 4, "lookback": 8, "d_model": 16, "d_ff": 16, "n_layers": 1, "max_epochs": 2, "random_state": 0}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
MAIN = [sys.executable, "-c", "import sys; from ssmseq.cli import main; sys.exit(main())"]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def fit_small(source, folder, *words) -> int:
    return main(["fit", "SMambaForecaster", str(source), "--save", str(folder), *SMALL, *words])


@pytest.fixture(scope="module")
def frame():
    return make_transformer_load(200, 3)


@pytest.fixture(scope="module")
def csv(frame, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "load.csv"
    frame.to_csv(path)
    return str(path)


@pytest.fixture(scope="module")
def model(csv, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("models") / "model")
    assert fit_small(csv, folder, "--quiet") == 0
    return folder


@pytest.fixture
def fail(capsys):
    """Run a command that must fail; return its exit code and its one line on stderr."""

    def run(*argv):
        code = main(argv)
        out, err = capsys.readouterr()
        assert (out, err[:15], err.count("\n")) == ("", "ssmseq: error: ", 1)
        return code, err

    return run


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry of one file that calls itself ETTh1, SSMSEQ_DATA holds it, and there is no network."""
    content = b"date,a\n2020-01-01 00:00:00,1\n2020-01-02 00:00:00,2\n"
    sizes = {"bytes": len(content), "rows": 2, "columns": 1, "split_ends": (1, 1, 2)}
    texts = dict.fromkeys(("url", "licence", "citation", "homepage", "description"), "none")
    sha256 = hashlib.sha256(content).hexdigest()
    entry = files.DatasetFile(name="ETTh1", file="ETTh1.csv", sha256=sha256, **sizes, **texts)

    def offline(*args, **kwargs):
        raise OSError("no network in this test")

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ETTh1.csv").write_bytes(content)
    monkeypatch.setenv("SSMSEQ_DATA", str(tmp_path / "home"))
    monkeypatch.setattr(files, "registry", lambda: {"ETTh1": entry})
    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("pooch.retrieve", offline)
    return tmp_path / "home" / "ETTh1.csv"


def test_fit_and_predict_equal_the_python_interface(csv, model, capsys):
    frame = pd.read_csv(csv, index_col="date", parse_dates=True)
    expected = ssmseq.SMambaForecaster(**SIZES).fit(frame).predict()
    assert main(["predict", model]) == 0
    out, err = capsys.readouterr()
    header, *rows = [line.split(",") for line in out.splitlines()]
    assert (header, err) == (["date", *frame.columns], "")
    assert [pd.Timestamp(row[0]) for row in rows] == expected.index.tolist()
    assert [[float(x) for x in row[1:]] for row in rows] == expected.to_numpy().tolist()


def test_predict_from_new_history(frame, csv, model, tmp_path, capsys):
    past, output = str(tmp_path / "past.csv"), str(tmp_path / "out.csv")
    frame[:150].to_csv(past)
    assert main(["predict", model, past, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["columns"] == ["date", *frame.columns]
    assert [row["date"] for row in document["forecast"]] == [t.isoformat() for t in frame.index[150:154]]
    expected = ssmseq.load(model).predict(frame[:150])
    assert [row["OT"] for row in document["forecast"]] == expected["OT"].tolist()
    assert main(["predict", model, past]) == 0
    on_stdout = capsys.readouterr().out
    assert main(["predict", model, past, "--output", output]) == 0
    assert capsys.readouterr() == ("", f"4 rows written to {output}\n")
    assert Path(output).read_text() == on_stdout


def test_forecasts_keep_the_columns_of_the_training_table(frame, tmp_path, capsys):
    table = pl.DataFrame({"at": frame.index.to_numpy(), "x": frame["OT"].to_numpy(), "y": frame["load_1"].to_numpy()})
    for data, header in ((table, "at,x,y"), (frame.to_numpy(), "0,1,2"), (frame.reset_index(drop=True), None)):
        ssmseq.NaiveForecaster(horizon=2, lookback=8).fit(data).save(tmp_path)
        assert main(["predict", str(tmp_path)]) == 0
        assert capsys.readouterr().out.splitlines()[0] == (header or ",".join(frame.columns))


def test_every_kind_of_table_gives_the_same_model(frame, csv, model, tmp_path, monkeypatch):
    times = {"date": frame.index.to_pydatetime().tolist()}
    pl.DataFrame(times | {c: frame[c].to_numpy() for c in frame}).write_parquet(tmp_path / "load.parquet")
    frame.to_csv(tmp_path / "load.csv.gz")
    expected = ssmseq.load(model).predict()
    for source in (tmp_path / "load.parquet", tmp_path / "load.csv.gz", "-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(Path(csv).read_text()))
        assert fit_small(source, tmp_path / "m", "--quiet") == 0
        pd.testing.assert_frame_equal(ssmseq.load(tmp_path / "m").predict(), expected, check_dtype=False)


def test_options_of_fit_reach_the_estimator(frame, tmp_path):
    frame[:160].to_csv(tmp_path / "train.csv")
    frame[160:].to_csv(tmp_path / "valid.csv")
    frame.reset_index(drop=True)[:160].to_csv(tmp_path / "bare.csv", index=False)
    words = ["--time_features", "false", "--patience", "null", "--validation", str(tmp_path / "valid.csv"), "--quiet"]
    assert fit_small(tmp_path / "train.csv", tmp_path / "m", *words, "--time_col", "date") == 0
    found = ssmseq.load(tmp_path / "m")
    expected = ssmseq.SMambaForecaster(**SIZES, time_features=False, patience=None, time_col="date")
    assert found.get_params() == expected.get_params()
    expected.fit(frame[:160].reset_index(), validation=frame[160:].reset_index())
    pd.testing.assert_frame_equal(found.history_.drop(columns="seconds"), expected.history_.drop(columns="seconds"))
    assert fit_small(tmp_path / "bare.csv", tmp_path / "m", "--quiet") == 0
    assert ssmseq.load(tmp_path / "m").layout_.time_kind == "numbers"


def test_summary_and_progress_of_fit(csv, tmp_path, capsys):
    folder = str(tmp_path / "m")
    assert fit_small(csv, folder, "--json") == 0
    out, err = capsys.readouterr()
    document, history = json.loads(out), ssmseq.load(folder).history_
    assert document.pop("seconds") > 0
    expected = {"schema_version": 1, "estimator": "SMambaForecaster", "rows": 200, "columns": 3, "epochs": 2}
    expected |= {"best_validation_loss": history["valid_loss"].min(), "interrupted": False, "folder": folder}
    assert document == expected
    for line, (i, row) in zip(err.splitlines(), history.iterrows(), strict=True):
        losses = f"train_loss {row['train_loss']:.4f}  valid_loss {row['valid_loss']:.4f}"
        assert line.startswith(f"epoch {i + 1}/2  {losses}  ")
    assert fit_small(csv, folder, "--quiet") == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1], err) == (f"saved in {folder}", "")


def test_a_bar_on_a_terminal(csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert fit_small(csv, tmp_path / "m") == 0
    out, err = capsys.readouterr()
    assert ("%|" in err, "%|" in out) == (True, False)
    assert "\nepoch 1/2  train_loss" not in err
    assert ssmseq.load(tmp_path / "m").verbose == 0


def test_only_the_main_process_saves(csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fit, "fit_in_sight", lambda *a, **k: fit.FitOutcome(is_main_process=False))
    assert fit_small(csv, tmp_path / "m") == 0
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "m").exists()


def test_config_files(csv, tmp_path, capsys):
    assert main(["fit", "SMambaForecaster", *SMALL, "--patience", "null", "--print_config"]) == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text)
    params = ssmseq.SMambaForecaster(**SIZES, patience=None).get_params()
    assert printed == {k: v for k, v in params.items() if k not in fit.NO_OPTIONS}
    config = tmp_path / "run.yaml"
    config.write_text(text + f"data: {csv}\nsave: {tmp_path / 'm'}\n")
    assert main(["fit", "SMambaForecaster", "--horizon", "5", "--config", str(config), "--quiet"]) == 0
    params = ssmseq.load(tmp_path / "m").get_params()
    assert {k: params[k] for k in printed} == printed | {"horizon": 5}


def test_an_interrupted_fit_saves_its_best_weights(csv, tmp_path):
    words = ["--save", str(tmp_path / "m"), *SMALL, "--max_epochs", "100000", "--patience", "null", "--json"]
    command = [*MAIN, "fit", "SMambaForecaster", csv, *words]
    process = subprocess.Popen(command, **PIPES, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr.readline().startswith("epoch 1/100000")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["interrupted"] is True
    assert ("warning: fit was interrupted" in err, "Traceback" in err) == (True, False)
    assert len(ssmseq.load(tmp_path / "m").predict()) == 4


FIT = "fit SMambaForecaster x.csv --save m"
WRONG = {
    "": "a command is missing",
    "forecast": "'forecast'",
    "info --colour": "--colour",
    "fit": "SMambaForecaster, KarmaForecaster, TSM2Forecaster, NaiveForecaster, RidgeForecaster, LinearForecaster",
    "fit Mamba9Forecaster x.csv": "LinearForecaster; got 'Mamba9Forecaster'",
    "fit SMambaForecaster --save m": "required: data",
    "fit SMambaForecaster x.csv": "required: save",
    f"{FIT} --horizn 3": "--horizn",
    f"{FIT} --horizon many": "--horizon must be int, got 'many'",
    f"{FIT} --patience some": "--patience must be int or null, got 'some'",
    f"{FIT} --loss mape": "--loss must be 'mse', 'mae', 'huber', 'fredf', got 'mape'",
    f"{FIT} --time_features 2": "--time_features must be bool or 'auto' or list, got '2'",
    f"{FIT} --callbacks 3": "--callbacks",
    f"{FIT} --config none.yaml": "none.yaml",
    "predict": "FOLDER",
    "data drop": "'drop'",
    "data list ETTh9": "ETTh9; choose from ETTh1, ETTh2",
    "data list --data_home no/folder": "no/folder is not a folder",
    "demo --epochs 0": "at least 1, got '0'",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_exit_2(line, fail):
    code, err = fail(*line.split())
    assert (code, WRONG[line] in err) == (2, True), err


def test_failures_are_exit_1(frame, csv, model, tmp_path, fail):
    frame.assign(load_1=float("inf")).to_csv(tmp_path / "endless.csv")
    frame[:5].to_csv(tmp_path / "short.csv")
    (tmp_path / "text.csv").write_text("town,a\nBern,1\nBasel,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "half.csv.gz").write_bytes(b"\x1f\x8b\x08\x00half")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")

    def fit_on(source, *words):
        return ["fit", "SMambaForecaster", str(tmp_path / source), "--save", str(tmp_path / "m"), *SMALL, *words]

    cases = {
        "'load_1'": fit_on("endless.csv"),
        "'town'": fit_on("text.csv"),
        "empty.csv": fit_on("empty.csv"),
        "half.csv.gz": fit_on("half.csv.gz"),
        "horizon=150": fit_on(csv, "--horizon", "150"),
        "'day'": fit_on(csv, "--time_col", "day"),
        "accelerator='abacus'": fit_on(csv, "--accelerator", "abacus"),
        f"{csv} is not a folder": fit_on(csv, "--save", f"{csv}/model"),
        "holds no saved model": ["predict", str(tmp_path / "nothing")],
        "not the description of a saved model": ["predict", str(tmp_path)],
        "lookback=8": ["predict", model, str(tmp_path / "short.csv")],
    }
    for word, argv in cases.items():
        code, err = fail(*argv)
        assert (code, word in err) == (1, True), err
    assert not (tmp_path / "m").exists()


def test_missing_data_are_exit_3(model, tmp_path, fail, registry):
    code, err = fail("fit", "NaiveForecaster", str(tmp_path / "no.csv"), "--save", str(tmp_path / "m"))
    assert (code, "no.csv" in err, "ETTh1" in err) == (3, True, True)
    registry.unlink()
    for line in (f"predict {model} ETTh1", "data fetch", "data verify", "data verify ETTh1"):
        assert fail(*line.split())[0] == 3


def test_a_wrong_checksum_is_exit_3(tmp_path, monkeypatch, fail, registry):
    registry.write_bytes(registry.read_bytes() + b"2020-01-03 00:00:00,3\n")
    monkeypatch.chdir(tmp_path)
    for line in ("fit NaiveForecaster ETTh1 --save m", "data fetch ETTh1", "demo"):
        code, err = fail(*line.split())
        assert (code, "sha256" in err) == (3, True), line
    assert os.listdir(tmp_path) == ["home"]


def test_an_interrupt_elsewhere_is_exit_130(monkeypatch, model, csv, capsys):
    monkeypatch.setattr(predict, "read_table", lambda *a, **k: signal.raise_signal(signal.SIGINT))
    assert main(["predict", model, csv]) == 130
    assert capsys.readouterr() == ("", "ssmseq: interrupted\n")


def test_debug_shows_the_traceback(capsys):
    assert main(["predict", "nothing", "--debug"]) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first[:9], last[:15]) == ("Traceback", "ssmseq: error: ")


def test_a_reader_that_goes_away_is_no_error_to_talk_about():
    process = subprocess.Popen([*MAIN, "data", "list"], **PIPES)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_help_describes_commands_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert all(f"\n  {code} " in out for code in contract.EXIT_CODES)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ssmseq {ssmseq.__version__}\n"


def loaded_after(*lines) -> set[str]:
    code = "import sys; from ssmseq.cli import main\nfor line in sys.argv[1:]: assert main(line.split()) == 0, line\n"
    command = [sys.executable, "-c", code + "print(*sys.modules, file=sys.stderr)", *lines]
    return set(subprocess.run(command, **PIPES, check=True).stderr.split())


def test_help_and_lists_load_nothing_heavy():
    helps = [f"{name} --help" for name in COMMANDS]
    loaded = loaded_after("--help", "--version", *helps, "data list", "data list --json")
    assert not {"torch", "lightning", "pandas", "sklearn", "numpy"} & loaded
    assert "ssmseq.cli.demo" in loaded


def test_help_of_an_estimator_names_its_parameters(capsys):
    assert main(["fit", "SMambaForecaster", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ssmseq.SMambaForecaster().get_params():
        assert (f"--{name} " in out) == (name not in fit.NO_OPTIONS), name
    assert all(text in out for text in ("State size of each channel", "{halve,cosine,constant,warmup_cosine}"))
    assert set(fit.ESTIMATORS) == set(FORECASTERS)
    assert "lightning" not in loaded_after("fit SMambaForecaster --help")


def test_data_sets(registry, capsys):
    assert main(["data", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert [(e["name"], e["rows"], e["path"]) for e in document["datasets"]] == [("ETTh1", 2, str(registry))]
    assert main(["data", "list"]) == 0
    words = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert words == [["name", "rows", "columns"], ["ETTh1", "2", "1"]]
    assert main(["data", "fetch", "ETTh1"]) == 0
    assert capsys.readouterr() == (f"ETTh1  {registry}\n", "")
    assert main(["data", "verify"]) == 0
    assert capsys.readouterr() == (f"ETTh1  ok  {registry}\n", "")
    registry.write_bytes(registry.read_bytes() + b"2020-01-03 00:00:00,3\n")
    assert main(["data", "verify", "ETTh1", "--json"]) == 3
    (result,) = json.loads(capsys.readouterr().out)["datasets"]
    assert (result["ok"], result["rows"], result["expected_rows"]) == (False, 3, 2)


def test_info(capsys):
    from ssmseq_kernels import available_backends

    assert main(["info", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ssmseq"], document["packages"]["pandas"]) == (ssmseq.__version__, pd.__version__)
    assert document["scan"] == available_backends()
    assert len(document["cuda_devices"]) == torch.cuda.device_count()
    assert main(["info"]) == 0
    by_command = capsys.readouterr().out
    assert available_backends()["cpu"] in by_command
    ssmseq.show_versions()
    assert capsys.readouterr().out == by_command


@pytest.fixture
def small_demo(monkeypatch, tmp_path):
    """The demo with a small model, in a folder of its own."""
    sizes = {"horizon": 96, "lookback": 96, "d_model": 16, "d_ff": 16, "n_layers": 1, "random_state": 0}
    monkeypatch.setattr(demo, "_forecaster", lambda epochs: ssmseq.SMambaForecaster(**sizes, max_epochs=epochs))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "demo-output"


def test_demo_on_generated_data_says_why(small_demo, monkeypatch, capsys, registry):
    registry.unlink()
    monkeypatch.setattr(demo, "GENERATED_ROWS", 2000)
    assert main(["demo", "--epochs", "1"]) == 0
    out, err = capsys.readouterr()
    assert ("make_transformer_load" in out, "no network in this test" in err, "epoch 1/1" in err) == (True,) * 3
    assert "demo-output/forecast.png" in out
    assert (small_demo / "forecast.png").read_bytes().startswith(b"\x89PNG")
    assert ssmseq.load(small_demo / "model").predict().shape == (96, 7)


@pytest.mark.skipif(not os.environ.get("SSMSEQ_DATA"), reason="set SSMSEQ_DATA to a folder with ETTh1 to run this")
def test_demo_measures_the_test_part_of_etth1(small_demo, capsys):
    data = ssmseq.datasets.fetch_ett("h1", download_if_missing=False)
    assert main(["demo", "--epochs", "1", "--json", "--quiet", "--output", "elsewhere"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["data"], err) == ("ETTh1", "")
    start, stop = data.splits["test"]
    expected = ssmseq.load(document["model"]).evaluate(data.frame[start - 96 : stop])
    assert document["errors"]["SMambaForecaster"] == expected
    repeated = document["errors"]["repeat_last"]  # known from the literature's protocol
    assert (round(repeated["mse"], 2), round(repeated["mae"], 2), repeated["n_windows"]) == (1.29, 0.71, 2785)
    assert Path(document["plot"]).is_file()

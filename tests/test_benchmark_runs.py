"""Runs of a suite: their scores against the estimators' own and against formulas, and how they can end."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ssmseq import NaiveForecaster, RidgeForecaster
from ssmseq.benchmark import runner, running, scores
from ssmseq.benchmark.data import BenchmarkData
from ssmseq.benchmark.suites import load_suite
from ssmseq.cli import main

SUITE = """
title: Small
lookback: 8
horizons: [2]
seeds: 2
trials: 3
datasets:
  mine: {csv: mine.csv, season: 4}
models:
  naive: {estimator: NaiveForecaster}
  daily: {estimator: NaiveForecaster, params: {season_length: season}}
  ridge: {estimator: RidgeForecaster}
  linear: {estimator: LinearForecaster, params: {max_epochs: 1}}
"""


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        np.cumsum(rng.normal(size=(300, 3)), 0) * [1, 10, 100],
        columns=["a", "b", "c"],
        index=pd.date_range("2024-01-01", periods=300, freq="h", name="when"),
    )


@pytest.fixture
def wide(frame):
    return BenchmarkData("mine", frame[:180], frame[180:220], frame[220:], season=24)


@pytest.fixture
def suite(frame, tmp_path):
    frame.to_csv(tmp_path / "mine.csv")
    (tmp_path / "small.yaml").write_text(SUITE)
    return load_suite(str(tmp_path / "small.yaml"))


def run_suite(suite, tmp_path, *words) -> int:
    return main(["benchmark", "run", str(tmp_path / "small.yaml"), "--results", str(tmp_path / "out"), *words])


@pytest.mark.parametrize("estimator", [NaiveForecaster(horizon=5, lookback=30), RidgeForecaster(horizon=5, lookback=9)])
def test_scores_are_those_of_the_estimator(estimator, wide):
    estimator.fit(wide.train, validation=wide.validation)
    found = scores.score(estimator, wide, lookback=estimator.lookback_, horizon=5)
    history = wide.with_history(wide.test, estimator.lookback_)
    scaled, original = (estimator.evaluate(history, scaled=s, level=[80, 95]) for s in (True, False))
    names = ("mse", "mae", "mase", "wape", "coverage_80")
    np.testing.assert_allclose([found[n] for n in names], [scaled[n] for n in names], rtol=1e-12)
    assert found["mae_original"] == pytest.approx(original["mae"], rel=1e-12)
    assert found["n_windows"] == found["n_windows_expected"] == scaled["n_windows"] == 76
    assert found["coverage_95"] is None or found["coverage_95"] == scaled["coverage_95"]
    assert found["steps"] == [1, 2, 3, 4, 5]
    assert np.mean(found["mse_by_step"]) == pytest.approx(found["mse"], abs=1e-5)


def test_errors_written_out(wide):
    """Repeating the last value: every metric from its definition, with plain loops."""
    estimator = NaiveForecaster(horizon=4, lookback=6).fit(wide.train, validation=wide.validation)
    found = scores.score(estimator, wide, lookback=6, horizon=4)
    values = wide.with_history(wide.test, 6).to_numpy()
    scale = wide.train.to_numpy().std(0)
    errors = np.array([values[i + 6 : i + 10] - values[i + 5] for i in range(len(wide.test) - 3)])
    assert found["mse"] == pytest.approx(np.mean((errors / scale) ** 2))
    assert found["mae_original"] == pytest.approx(np.abs(errors).mean())
    np.testing.assert_allclose(found["mse_by_step"], ((errors / scale) ** 2).mean((0, 2)), atol=1e-5)
    truth = np.array([values[i + 6 : i + 10] for i in range(len(errors))])
    assert found["wape"] == pytest.approx(np.abs(errors).sum() / np.abs(truth).sum())
    day_before = np.abs(wide.train.to_numpy()[24:] - wide.train.to_numpy()[:-24]).mean(0)
    assert found["mase"] == pytest.approx((np.abs(errors).mean((0, 1)) / day_before).mean())
    assert found["example"]["variate"] == "c"
    assert found["example"]["truth"] == pytest.approx(truth[-1, :, -1], rel=1e-4)
    assert found["example"]["history"] == pytest.approx(values[-8:-4, -1], rel=1e-4)
    assert found["example"]["forecast"] == pytest.approx([values[-5, -1]] * 4, rel=1e-4)


def test_crps_is_the_quantile_loss_of_the_deciles(wide):
    estimator = NaiveForecaster(horizon=2, lookback=6).fit(wide.train, validation=wide.validation)
    found = scores.score(estimator, wide, lookback=6, horizon=2)
    history = wide.with_history(wide.test, 6)
    total, count = 0.0, 0
    scale = wide.train.std(ddof=0)
    for i in range(len(wide.test) - 1):
        forecast = estimator.predict(history[i : i + 6], level=[20, 40, 60, 80])
        for column in history:
            truth = history[column].to_numpy()[i + 6 : i + 8]
            for q in range(1, 10):
                side, level = ("lo", 100 - 20 * q) if q < 5 else ("hi", 20 * q - 100)
                name = column if q == 5 else f"{column}-{side}-{level}"
                short = truth - forecast[name].to_numpy()
                total += 2 * np.maximum(q / 10 * short, (q / 10 - 1) * short).sum() / scale[column]
                count += 2
    assert found["crps"] == pytest.approx(total / count, rel=1e-9)


def test_panels_are_scaled_by_all_their_training_rows():
    """An estimator holds out rows and scales by fewer; the scores are on the scale of the whole training part."""
    rng = np.random.default_rng(2)
    parts = []
    for k, n in (("b", 90), ("a", 70)):
        y = np.cumsum(rng.normal(size=n)) * (10 if k == "a" else 1)
        parts.append(pd.DataFrame({"unique_id": k, "ds": pd.date_range("2024", periods=n, freq="h"), "y": y}))
    frame = pd.concat(parts)
    last = frame.groupby("unique_id").cumcount(ascending=False) < 3
    panel = BenchmarkData("panel", frame[~last], None, frame[last], season=24)
    estimator = NaiveForecaster(horizon=3, lookback=4).fit(panel.train)
    found = scores.score(estimator, panel, lookback=4, horizon=3)
    errors = []
    for _, g in frame.groupby("unique_id"):
        y = g["y"].to_numpy()
        errors.append((y[-3:] - y[-4]) / y[:-3].std())
    assert found["mse"] == pytest.approx(np.square(errors).mean())
    assert found["n_windows"] == 2


def test_a_window_that_is_not_scored_is_an_error(wide):
    estimator = NaiveForecaster(horizon=2, lookback=6).fit(wide.train, validation=wide.validation)
    gappy = wide.test.copy()
    gappy.iloc[-2:] = np.nan
    with pytest.raises(RuntimeError, match="78 windows were scored, the test part has 79"):
        scores.score(estimator, replace(wide, test=gappy), lookback=6, horizon=2)


def test_peers_are_scored_like_estimators(wide):
    class Adapter:
        lookback_ = 6

        def forecasts(self, frame):
            values = ((frame - wide.train.mean()) / wide.train.std(ddof=0)).to_numpy()
            windows = np.lib.stride_tricks.sliding_window_view(values, 8, axis=0)
            for part in np.array_split(windows, 3):
                yield np.repeat(part[..., 5:6], 2, -1), part[..., 6:]

    found = scores.score(Adapter(), wide, lookback=6, horizon=2)
    estimator = NaiveForecaster(horizon=2, lookback=6).fit(wide.train, validation=wide.validation)
    expected = scores.score(estimator, wide, lookback=6, horizon=2)
    names = ("mse", "mae", "mae_original", "mase", "wape", "n_windows")
    np.testing.assert_allclose([found[n] for n in names], [expected[n] for n in names])
    assert found["crps"] is found["coverage_80"] is None


def test_a_row_says_all_that_repeats_it(suite):
    run = next(r for r in suite.runs if r.model == "linear" and r.seed == 1)
    row = running.perform(run, device="cpu")
    assert json.loads(json.dumps(row)) == row
    assert row["key"] == run.key
    known = {"loss": "mse", "epochs": 1, "lookback": 8, "status": "ok", "device": "cpu", "seed": 1, "example": None}
    assert {k: row[k] for k in known} == known
    assert row["versions"]["torch"]
    assert row["parameters"] == 2 * 8 + 2 + 6
    assert row["backend"] is None  # no scan in it
    again = running.perform(run, device="cpu")
    assert (again["mse"], again["mse_by_step"]) == (row["mse"], row["mse_by_step"])


def test_search_chooses_on_validation_alone(suite):
    run = next(r for r in suite.runs if r.model == "ridge")
    spec = {**run.spec, "search": {"lookback": [4, 8, 16], "alpha": [0.0, 50.0]}, "trials": 6}
    row = running.perform(replace(run, spec=spec), device="cpu")
    from ssmseq.benchmark.data import load

    found = load(run.dataset, run.data, folder=run.folder)
    errors = {}
    for lookback in (4, 8, 16):
        for alpha in (0.0, 50.0):
            fitted = RidgeForecaster(horizon=2, lookback=lookback, alpha=alpha)
            fitted.fit(found.train, validation=found.validation)
            errors[lookback, alpha] = fitted.evaluate(found.with_history(found.validation, lookback))["mse"]
    best = min(errors, key=errors.__getitem__)
    assert row["selected"] == dict(zip(("lookback", "alpha"), best, strict=True))
    fitted = RidgeForecaster(horizon=2, lookback=best[0], alpha=best[1]).fit(found.train, validation=found.validation)
    assert row["mse"] == pytest.approx(fitted.evaluate(found.with_history(found.test, best[0]))["mse"])
    fewer = running.perform(replace(run, spec={**spec, "trials": 2}), device="cpu")
    assert set(fewer["selected"]) == {"lookback", "alpha"}


def test_a_suite_runs_and_is_not_repeated(suite, tmp_path, capsys):
    assert run_suite(suite, tmp_path, "--model", "naive", "ridge", "--jobs", "2") == 0
    out, err = capsys.readouterr()
    assert out.startswith("small: 2 performed, 0 skipped, 0 failed")
    assert "[2/2] mine, 2 ahead, " in err
    path = tmp_path / "out" / "small.jsonl"
    first = path.read_text()
    rows = [json.loads(line) for line in first.splitlines()]
    assert {r["model"] for r in rows} == {"naive", "ridge"}
    assert {r["suite"] for r in rows} == {"small"}
    assert "--dataset mine --model" in rows[0]["command"]
    assert run_suite(suite, tmp_path, "--model", "naive", "ridge", "--json", "--quiet") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) | {"results": ""} == {
        **{"schema_version": 1, "suite": "small", "results": "", "absent": {}},
        **{"performed": 0, "skipped": 2, "failed": 0},
    }
    assert err == ""
    assert path.read_text() == first


def test_a_killed_suite_goes_on_and_ends_with_the_same_rows(suite, tmp_path):
    command = [sys.executable, "-c", "import sys; from ssmseq.cli import main; sys.exit(main())", "benchmark", "run"]
    command += [str(tmp_path / "small.yaml"), "--model", "naive", "daily", "ridge", "--threads", "1", "--results"]
    paths = [tmp_path / name / "small.jsonl" for name in ("interrupted", "whole")]
    process = subprocess.Popen([*command, str(paths[0].parent)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[1/3]"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert 1 <= len(runner.Results(paths[0]).rows()) < 3
    with paths[0].open("a") as file:
        file.write('{"key": "torn')  # what a writer leaves that loses its power
    assert [subprocess.run([*command, str(path.parent)], check=False).returncode for path in paths] == [0, 0]
    resumed, whole = ({r["key"]: r["mse"] for r in runner.Results(path).rows()} for path in paths)
    assert resumed == whole
    assert len(whole) == 3


def test_a_failure_costs_one_row_and_is_tried_again(suite, tmp_path, capsys):
    text = (tmp_path / "small.yaml").read_text()
    (tmp_path / "small.yaml").write_text(text.replace("{max_epochs: 1}", "{max_epochs: -1}"))
    words = ("--model", "naive", "linear", "--seed", "0")
    assert run_suite(suite, tmp_path, *words) == 1
    out, err = capsys.readouterr()
    assert out.startswith("small: 1 performed, 0 skipped, 1 failed")
    assert "FAILED: ValueError: max_epochs must be an integer at least 1, got -1" in err
    rows = runner.Results(tmp_path / "out" / "small.jsonl").rows()
    assert [r["status"] for r in rows] == ["ok", "failed"]
    assert rows[-1]["reason"].startswith("ValueError: max_epochs")
    assert run_suite(suite, tmp_path, *words) == 1
    assert capsys.readouterr().out.startswith("small: 0 performed, 1 skipped, 1 failed")


def test_a_killed_run_is_named():
    assert runner._reason(-9, "") == "ended by SIGKILL (the system ended it: most likely out of memory)"
    assert runner._reason(-11, "") == "ended by SIGSEGV"
    assert runner._reason(1, "Traceback\n  x\nMemoryError: 3 GiB\n\n") == "MemoryError: 3 GiB"
    assert runner._reason(7, "") == "exit code 7 without a message"


def test_shards_part_the_runs(suite):
    parts = [runner.share_of(suite.runs, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(r.key for part in parts for r in part) == sorted(r.key for r in suite.runs)
    for wrong in ("0/3", "4/3", "3", "a/b", "1/", "-1/2"):
        with pytest.raises(ValueError, match="shard must be i/n"):
            runner.share_of(suite.runs, wrong)


def test_the_last_row_of_a_key_counts(tmp_path):
    results = runner.Results(tmp_path / "deep" / "rows.jsonl")
    assert results.rows() == []
    results.append({"key": "a", "status": "failed"})
    results.append({"key": "b", "status": "ok"})
    results.append({"key": "a", "status": "ok"})
    assert results.rows() == [{"key": "a", "status": "ok"}, {"key": "b", "status": "ok"}]
    assert results.done() == {"a", "b"}
    whole = results.path.read_text()
    results.path.write_text(whole.rstrip("\n"))
    results.append({"key": "c", "status": "ok"})
    assert len(results.rows()) == 3
    results.path.write_text(whole + "no json\n")
    with pytest.raises(ValueError, match=r"rows.jsonl, line 4, is not JSON"):
        results.rows()


def test_time_left_is_that_of_the_runs_left(suite):
    naive, *linear = (r for r in suite.runs if r.model in ("naive", "linear"))
    clock = runner.Clock([{"status": "ok", "model": "linear", "dataset": "mine", "wall_seconds": 600}], jobs=2)
    assert clock.left([]) == ""
    assert clock.left(linear) == "; about 10 min left"
    clock.ended(naive, 3.0)
    assert clock.left([naive]) == "; about 1 min left"
    assert clock.left(linear * 10) == "; about 1.7 h left"


def test_data_and_packages_that_are_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSMSEQ_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--offline", "--dataset", "ETTh1", "--model", "naive", "--results", str(tmp_path)]
    assert main(["benchmark", "run", "quick", *words]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("quick: 0 performed")
    assert "not run: ETTh1: " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nothing"], "there is no suite 'nothing'"),
        (["run", "quick", "--model", "oracle"], "suite quick has no model oracle; it has naive"),
        (["run", "quick", "--shard", "3/2"], "shard must be i/n"),
        (["run", "quick", "--jobs", "0"], "--jobs must be at least 1"),
        (["run", "quick", "--horizon", "x"], "invalid int value"),
        (["fly"], "invalid choice"),
        ([], "action"),
    ],
)
def test_wrong_usage(words, message, capsys):
    assert main(["benchmark", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_the_plan_of_a_suite(suite, tmp_path, capsys):
    assert run_suite(suite, tmp_path, "--dry_run", "--model", "naive", "linear") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=2)[2] == "mine, 2 ahead, naive, seed 0"
    assert [line[:4] for line in lines] == ["open"] * 3
    assert main(["benchmark", "list", "--json"]) == 0
    assert "quick" in [s["name"] for s in json.loads(capsys.readouterr().out)["suites"]]


def test_runs_on_a_ray_cluster(suite, tmp_path, monkeypatch):
    """A lost worker costs an attempt and not the row; one that is lost every time costs its own row only."""
    ray = pytest.importorskip("ray", reason="needs Ray, which comes with the extra ray")
    marker, real = tmp_path / "lost once", runner.run_in_process

    def dying(run, threads, device):  # in the worker, which takes the task's process with it
        if run.model == "daily" or (run.model == "naive" and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(run, threads, device)

    monkeypatch.setattr(runner, "run_in_process", dying)
    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        runs = [r for r in suite.runs if r.model != "linear"]
        found = {r.model: row for r, row in runner._on_ray(runs, 1, 1, "cpu")}
    finally:
        ray.shutdown()
    assert marker.exists()
    expected = {r.model: running.perform(r, device="cpu")["mse"] for r in runs if r.model != "daily"}
    assert {m: found[m]["mse"] for m in expected} == expected
    assert found["daily"]["status"] == "failed"
    assert found["daily"]["reason"].startswith("Ray: ")


def test_report_and_comparison_of_rows(suite, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run_suite(suite, tmp_path, "--quiet", "--model", "naive", "daily", "ridge") == 0
    capsys.readouterr()
    words = [str(tmp_path / "small.yaml"), "--results", str(tmp_path / "out"), "--json"]
    assert main(["benchmark", "report", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3
    assert all(os.path.getsize(path) for path in found["files"])
    rows = str(tmp_path / "out" / "small.jsonl")
    assert main(["benchmark", "compare", rows, rows]) == 0
    assert "ridge" in capsys.readouterr().out
    assert main(["benchmark", "report", str(tmp_path / "small.yaml"), "--results", str(tmp_path)]) == 1
    assert "has no rows: run `ssmseq benchmark run" in capsys.readouterr().err

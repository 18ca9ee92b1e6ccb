"""Suites, their data and the models they ask for: against the published splits, window counts and settings."""

import json

import numpy as np
import pandas as pd
import pytest

from ssmseq.benchmark import data, models
from ssmseq.benchmark.suites import Run, load_suite, suite_names
from ssmseq.datasets import files

SUITE = """
title: A table of my own
lookback: 8
horizons: [2, 4]
seeds: 2
trials: 2
datasets:
  mine: {csv: mine.csv, time_col: when, splits: [0.6, 0.2, 0.2], season: 6}
  known: {csv: mine.csv, targets: [a], covariates: [b], splits: [60, 30, 20], horizons: [3], seeds: 1}
models:
  naive: {estimator: NaiveForecaster, params: {season_length: season}}
  linear:
    estimator: LinearForecaster
    params: {max_epochs: 1}
    datasets: {known: {max_epochs: 2}}
  informed: {estimator: SMambaForecaster, covariates: future, only: [known]}
unranked: [known]
warnings: {mine: Made up., elsewhere: Not here.}
"""
WINDOWS = {  # forecasting literature, all test windows at the four horizons
    "ETTh1": (2785, 2689, 2545, 2161),
    "ETTm2": (11425, 11329, 11185, 10801),
    "weather": (10444, 10348, 10204, 9820),
    "exchange_rate": (1422, 1326, 1182, 798),
}


@pytest.fixture
def suite(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(110, 2)), columns=["a", "b"])
    frame.insert(0, "when", pd.date_range("2024-01-01", periods=110, freq="h"))
    frame.to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "own.yaml").write_text(SUITE)
    return load_suite(str(tmp_path / "own.yaml"))


def need(*names):
    found = files.locate([files.lookup(n) for n in names])
    if len(found) < len(names):
        pytest.skip(f"needs {', '.join(names)} in the folder that SSMSEQ_DATA names")


def test_a_suite_lists_every_run_once(suite):
    assert (suite.name, suite.title, suite.warnings) == ("own", "A table of my own", {"mine": "Made up."})
    found = [(r.model, r.dataset, r.horizon, r.seed) for r in suite.runs]
    assert found == [
        *[("naive", "mine", 2, 0), ("naive", "mine", 4, 0), ("naive", "known", 3, 0)],
        *[("linear", "mine", h, s) for h in (2, 4) for s in (0, 1)],
        *[("linear", "known", 3, 0), ("informed", "known", 3, 0)],
    ]
    assert {r.lookback for r in suite.runs} == {8}
    assert suite.unranked == suite.only(model=["naive"]).unranked == ("known",)
    assert [r.spec["params"] for r in suite.runs if r.model == "linear"][-2:] == [{"max_epochs": 1}, {"max_epochs": 2}]
    assert len({r.key for r in suite.runs}) == len(suite.runs)
    assert [e["key"] for e in suite.expected] == [r.key for r in suite.runs]


def test_the_key_covers_what_decides_the_numbers_and_nothing_else(suite):
    run = suite.runs[3]
    same = Run(**{**vars(run), "model": "another name", "folder": "/elsewhere"})
    assert same.key == run.key
    changes = {"dataset": "x", "horizon": 9, "lookback": 9, "seed": 9, "data": {}, "spec": {**run.spec, "params": {}}}
    keys = {Run(**{**vars(run), name: value}).key for name, value in changes.items()}
    assert len(keys | {run.key}) == len(changes) + 1
    assert Run(**{k: v for k, v in json.loads(json.dumps(run.as_dict())).items() if k != "key"}).key == run.key


def test_a_part_of_a_suite(suite):
    part = suite.only(dataset=["mine"], horizon=[4], seed=None)
    assert [(r.model, r.seed) for r in part.runs] == [("naive", 0), ("linear", 0), ("linear", 1)]
    with pytest.raises(ValueError, match="suite own has no model rige; it has naive, linear, informed"):
        suite.only(model=["naive", "rige"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title:", "titel:"), "the suite has unknown keys titel"),
        (("horizons: [2, 4]\n", ""), "data set mine needs a lookback and horizons"),
        (("estimator: LinearForecaster", "params: {}"), "own.yaml"),
        (("splits: [0.6", "split: [0.6"), "data set mine has unknown keys split"),
        (("only: [known]", "only: [unknown]"), "model informed names data sets that the suite lacks: unknown"),
        (("unranked: [known]", "unranked: [x]"), "unranked names data sets that the suite lacks: x"),
        (("title: A table of my own", "title: [A"), "own.yaml"),
    ],
)
def test_what_is_wrong_with_a_suite_is_named(suite, tmp_path, change, message):
    (tmp_path / "own.yaml").write_text(SUITE.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        load_suite(str(tmp_path / "own.yaml"))


def test_unknown_suites_are_named():
    with pytest.raises(ValueError, match="there is no suite 'quik': choose one of .*quick"):
        load_suite("quik")


@pytest.mark.parametrize("name", suite_names())
def test_the_suites_that_come_with_the_package_can_be_read(name):
    suite = load_suite(name)
    assert suite.runs
    assert suite.title
    assert suite.description
    assert len({(r.dataset, r.model, r.horizon, r.seed) for r in suite.runs}) == len(suite.runs)


def test_quick_is_a_part_of_the_fixed_suite():
    whole = {r.key for r in load_suite("ltsf-96").runs}
    assert {r.key for r in load_suite("quick").runs} <= whole


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_the_literature(name):
    need(name)
    found = data.load(name, download=False)
    assert tuple(found.n_windows(h) for h in (96, 192, 336, 720)) == WINDOWS[name]
    history = found.with_history(found.test, 96)
    assert len(history) == len(found.test) + 96
    assert history.index[96] == found.test.index[0]
    assert found.validation is not None
    looking_back = found.with_history(found.validation, 10)
    pd.testing.assert_frame_equal(looking_back[:10], found.train[-10:])


def test_weather_is_put_on_even_stamps_in_training_alone():
    need("weather")
    from ssmseq.datasets import fetch_weather

    bunch = fetch_weather(download_if_missing=False)
    found = data.load("weather", download=False)
    assert len(found.train) == bunch.splits["train"][1] + 8
    pd.testing.assert_frame_equal(found.test, bunch.frame[bunch.splits["test"][0] :], check_freq=False)
    whole = pd.concat([found.train, found.validation, found.test])
    assert set(np.diff(whole.index)) == {np.timedelta64(10, "m")}
    known = found.train.index.intersection(bunch.frame.index)
    assert len(found.train) - len(known) == 9
    twice = bunch.frame.index.duplicated()
    pd.testing.assert_frame_equal(found.train.loc[known], bunch.frame[~twice].loc[known])


def test_a_table_of_ones_own(suite):
    run = suite.runs[0]
    found = data.load(run.dataset, run.data, folder=run.folder)
    assert [len(x) for x in (found.train, found.validation, found.test)] == [66, 22, 22]
    assert (found.season, found.targets, found.n_windows(4)) == (6, [], 19)
    run = suite.runs[-1]
    found = data.load(run.dataset, run.data, folder=run.folder)
    assert [len(x) for x in (found.train, found.validation, found.test)] == [60, 30, 20]
    assert (found.season, found.targets, found.covariates) == (24, ["a"], ["b"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"csv": "absent.csv"}, "there is no file .*absent.csv"),
        ({"csv": "mine.csv", "time_col": "then"}, "has no column 'then'; it has when, a, b"),
        ({"csv": "mine.csv", "splits": [0.7, 0.2, 0.2]}, "sum to 1.1"),
        ({"csv": "mine.csv", "splits": [100, 10, 10]}, "ask for 120 rows, the data have 110"),
        ({"csv": "mine.csv", "splits": [0.7, 0.3]}, "three positive shares"),
        ({"csv": "mine.csv", "targets": ["c"]}, "has no column 'c'"),
        ({"generator": "weather_report"}, "no generator 'weather_report'"),
        ({}, "data set 'x' is unknown"),
    ],
)
def test_what_is_wrong_with_data_is_named(suite, spec, message):
    with pytest.raises(ValueError, match=message):
        data.load("x", spec, folder=suite.runs[0].folder)


def test_histories_of_a_panel():
    lengths = {"b": 30, "a": 25}
    frame = pd.concat(
        [pd.DataFrame({"unique_id": k, "ds": range(1, n + 1), "y": np.arange(n) * 1.0}) for k, n in lengths.items()]
    )
    last = frame.groupby("unique_id").cumcount(ascending=False) < 5
    found = data.BenchmarkData("panel", frame[~last], None, frame[last], season=1)
    assert (found.is_long, found.n_windows(5), found.n_windows(4)) == (True, 2, 4)
    history = found.with_history(found.test, 3)
    assert {k: g["ds"].tolist() for k, g in history.groupby("unique_id")} == {
        k: list(range(n - 7, n + 1)) for k, n in lengths.items()
    }


def test_models_get_what_the_run_the_data_and_the_search_say(suite):
    naive, linear, informed = (next(r for r in suite.runs if r.model == m) for m in ("naive", "linear", "informed"))
    mine, known = (data.load(r.dataset, r.data, folder=r.folder) for r in (naive, informed))
    assert models.build(naive, mine).season_length == 6
    found = models.build(linear, mine, device="cpu", lookback=5, learning_rate=0.5)
    asked = ("horizon", "lookback", "max_epochs", "learning_rate", "random_state", "accelerator", "target")
    assert [getattr(found, name) for name in asked] == [2, 5, 1, 0.5, 0, "cpu", None]
    found = models.build(informed, known)
    assert (found.target, found.future_covariates, found.past_covariates) == (["a"], ["b"], None)


def test_presets_are_those_of_the_data_set_and_horizon():
    runs = {(r.model, r.dataset, r.horizon): r for r in load_suite("ltsf-96").runs}
    unread = data.BenchmarkData("x", pd.DataFrame(), None, pd.DataFrame(), 1)
    found = models.build(runs["S-Mamba", "ETTm2", 336], unread)
    assert (found.d_model, found.learning_rate, found.batch_size, found.d_state) == (128, 3e-5, 32, 2)
    found = models.build(runs["S-Mamba", "exchange_rate", 96], unread)
    assert (found.d_model, found.learning_rate, found.batch_size, found.d_state) == (128, 1e-4, 16, 32)
    found = models.build(runs["S-Mamba", "national_illness", 24], unread)
    assert (found.lookback, found.learning_rate) == (36, 1e-3)
    found = models.build(runs["KARMA paper", "ETTh1", 720], unread)
    assert (found.decomposition, found.d_model, found.loss) == ("atcd", 512, "fredf")


def test_models_that_there_are_not(suite):
    run = suite.runs[0]
    mine = data.load(run.dataset, run.data, folder=run.folder)
    for changed, message in (
        ({"estimator": "OracleForecaster"}, "model naive: ssmseq has no estimator 'OracleForecaster'"),
        ({"estimator": "load"}, "ssmseq has no estimator 'load'"),
        ({"estimator": "prophet.Prophet"}, "prophet is not among the peers"),
        ({"params": {"seazon": 3}}, "NaiveForecaster has no parameter seazon"),
        ({"covariates": "future"}, "of a data set that has covariates"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build(Run(**{**vars(run), "spec": {**run.spec, **changed}}), mine)

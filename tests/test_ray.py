"""Fan-out on a Ray cluster of two worker processes: results as without it, also when a worker is killed."""

import contextlib
import io
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import ray_cases
import yaml
from dna_networks import random_dna
from ecg_cli import fit_files, write_files
from optuna.trial import TrialState
from tuning_cases import RIDGE, address, formula_space, wave

import ssmseq
from ssmseq import fanout
from ssmseq.cli import dna, dna_write, main, predict
from ssmseq.fanout import Share, fan_out, share_of
from ssmseq.tuning import open_storage, tune
from ssmseq.tuning.cluster import _check_reach, _take_part, search_on_ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two cores of this machine as a cluster, whose workers find the modules of the tests."""
    ray = pytest.importorskip("ray", reason="needs Ray, which comes with the extra ray")
    folder = tmp_path_factory.getbasetemp().parent / "r"  # the address of a socket has at most 107 letters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path[:1]]))
        options = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        before = signal.getsignal(signal.SIGTERM)
        ray.init(address="local", num_cpus=2, _temp_dir=str(folder), **options)
        yield ray
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)  # Ray leaves its own, which keeps forked pools of later tests from ending


@pytest.fixture
def both(cluster, capsys):
    """Run a command without Ray and on it; return the exit code and the output of each."""

    def run(*words, code=0):
        found = []
        capsys.readouterr()
        for engine in ([], ["--engine", "ray", "--workers", "2"]):
            assert main([*map(str, words), *engine]) == code
            found.append(capsys.readouterr().out)
        return found

    return run


# The pieces of work ---------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_nothing_but_time(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"factor": 3, "deadly": 7, "folder": tmp_path}
    with pytest.warns(UserWarning, match="is odd") as seen:
        found = list(fan_out(ray_cases.scaled, model, range(40), workers=2))
    assert (tmp_path / "died").exists()
    assert [value for value, _, _ in found] == [3 * piece for piece in range(40)]
    processes = {process for _, process, _ in found}
    assert len(processes) in (2, 3)  # the survivor may be through before another is there
    assert os.getpid() not in processes
    assert {folder for _, _, folder in found} == {str(tmp_path)}
    assert [str(w.message) for w in seen] == [f"piece {piece} is odd" for piece in range(1, 40, 2)]


@pytest.mark.slow
def test_errors_are_those_of_the_function_and_leave_no_worker(cluster):
    found = fan_out(ray_cases.scaled, {"factor": 1, "wrong": 2}, [0, 2, 4], workers=1)
    assert next(found)[0] == 0
    with pytest.raises(ValueError, match="^piece 2 is wrong\n") as caught:
        next(found)
    assert "in scaled" in caught.value.__notes__[0]
    until = time.monotonic() + 20
    while cluster.available_resources().get("CPU") != 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert cluster.available_resources()["CPU"] == 2


class AnyFirst:
    """In place of Ray: of what was begun any may end first, and two workers die at each of the pieces in `deadly`."""

    exceptions = SimpleNamespace(RayError=ArithmeticError)

    def __init__(self, deadly=(), slow=None):
        self.losses, self.hired, self.begun = dict.fromkeys(deadly, 2), 0, []
        self.chance, self.slow, self.waits_for = random.Random(0), slow, None

    def hire(self):
        self.hired += 1
        return SimpleNamespace(
            start=SimpleNamespace(remote=lambda: lambda: None), perform=SimpleNamespace(remote=self._perform)
        )

    def _perform(self, piece):
        self.begun.append(piece)

        def end():
            self.losses[piece] = self.losses.get(piece, 0) - 1
            if self.losses[piece] >= 0:
                raise ArithmeticError("killed")
            return piece * 2, None, []

        if piece == self.slow:
            self.waits_for = end
        return end

    def wait(self, references, num_returns):
        chosen = self.chance.choice([r for r in references if r is not self.waits_for] or references)
        return [chosen], [r for r in references if r is not chosen]

    def get(self, reference):
        return reference()


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_pieces(n_workers):
    ray = AnyFirst(deadly=[0, 5, 39])
    found, ahead = [], []
    for result in fanout._in_order(ray, ray.hire, range(40), n_workers):
        found.append(result)
        ahead.append(max(ray.begun) - len(found) + 1)
    assert found == [2 * piece for piece in range(40)]
    assert sorted(ray.begun) == sorted([*range(40), *[0, 5, 39] * 2])
    assert ray.hired == n_workers + 6
    assert n_workers - 1 <= max(ahead) <= 8 * n_workers


def test_a_slow_piece_holds_the_others_up_at_last():
    """Or else the results of all of them would wait for it in memory."""
    ray = AnyFirst(slow=1)
    found = fanout._in_order(ray, ray.hire, range(99), 2)
    assert [next(found), next(found)] == [0, 2]
    assert sorted(ray.begun) == list(range(1 + 8 * 2))
    assert list(found) == [2 * piece for piece in range(2, 99)]


def test_what_dies_a_fourth_time_is_given_up():
    ray = AnyFirst(deadly=[3])
    ray.losses[3] = 4
    found = fanout._in_order(ray, ray.hire, range(9), 1)
    assert [next(found) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(OSError, match="4 workers of the Ray cluster died at piece 4 of the work; .* Ray says: killed"):
        next(found)
    assert ray.begun.count(3) == 4


@pytest.mark.slow
def test_a_piece_that_kills_every_worker_is_given_up(cluster):
    found = fan_out(ray_cases.scaled, {"factor": 1, "fatal": 2}, [0, 4, 2, 6], workers=2)
    assert [next(found)[0], next(found)[0]] == [0, 4]
    with pytest.raises(OSError, match="4 workers of the Ray cluster died at piece 3 of the work; too little memory"):
        next(found)


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([(8, 0), (8, 0)], {"workers": None}, Share(16, 1, 0)),
        ([(8, 0), (8, 0)], {"workers": None, "by_node": True}, Share(2, 8, 0)),
        ([(8, 0), (8, 0)], {"workers": 3}, Share(3, 4, 0)),  # 5 cores each would leave the third without room
        ([(8, 0), (8, 0)], {"workers": 1}, Share(1, 8, 0)),
        ([(0, 0), (7, 0)], {"workers": None, "by_node": True}, Share(1, 7, 0)),
        ([(8, 2), (9, 1)], {"workers": None, "accelerator": "auto"}, Share(3, 4, 1)),
        ([(8, 2), (9, 1)], {"workers": 2, "accelerator": "auto"}, Share(2, 8, 1)),
        ([(8, 2), (9, 1)], {"workers": None}, Share(17, 1, 0)),
        ([(4, 0)], {"workers": None, "accelerator": "auto"}, Share(4, 1, 0)),
    ],
)
def test_the_share_of_a_worker(nodes, options, expected):
    assert share_of(nodes, options.pop("workers"), **{"accelerator": "cpu", **options}) == expected


@pytest.mark.parametrize("workers", [0, 5, -1])
def test_more_workers_than_room(workers):
    with pytest.raises(ValueError, match=f"from 1 to what the Ray cluster has, 4 cores; got {workers}"):
        share_of([(3, 0), (1, 0)], workers, accelerator="gpu")
    if workers > 0:
        with pytest.raises(ValueError, match="2 GPUs with a core each; got 5"):
            share_of([(3, 2), (4, 0)], workers, accelerator="gpu")


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "ssmseq\[ray\]"'):
        next(fan_out(ray_cases.scaled, {}, [1]))


def test_a_folder_that_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="start from a folder that all its machines share"):
        fanout.settle(str(tmp_path / "absent"), 1)


# The commands ---------------------------------------------------------------------------------------------------------


def panel(folder):
    """Write nine series as a long table, and a model fitted on it."""
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"unique_id": f"s{i}", "ds": pd.date_range("2024-01-01", periods=40 + i, freq="h")})
        for i in rng.permutation(9)
    ]
    table = pd.concat(frames, ignore_index=True)
    table["y"] = rng.normal(size=len(table)).cumsum()
    table.to_csv(folder / "panel.csv", index=False)
    ssmseq.RidgeForecaster(horizon=4, lookback=8).fit(table).save(folder / "model")


def test_forecasts_of_many_series_though_a_worker_is_killed(both, tmp_path, monkeypatch):
    panel(tmp_path)
    monkeypatch.setattr(predict, "SERIES_AT_ONCE", 2)
    monkeypatch.setattr(predict, "_forecast_some", ray_cases.Deadly(predict._forecast_some, tmp_path))
    alone, on_ray = both("predict", tmp_path / "model", tmp_path / "panel.csv", "--level", "80", "--quiet")
    assert (tmp_path / "died").exists()
    expected, found = (pd.read_csv(io.StringIO(text)) for text in (alone, on_ray))
    assert len(expected) == 36
    assert expected["unique_id"].tolist() != sorted(expected["unique_id"])
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_recordings_in_batches_some_of_which_fail(both, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    model = fit_files(write_files(tmp_path / "files"), tmp_path / "model")
    (tmp_path / "files" / "r02.hea").write_text("r02 twelve 100\n")
    alone, on_ray = both("ecg", "predict", model, "files", "--batch", "2", "--quiet", code=1)
    assert "r02,,,,unreadable" in alone
    assert len(alone.splitlines()) > 5
    expected, found = (pd.read_csv(io.StringIO(text)) for text in (alone, on_ray))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_scores_and_embeddings_of_sequences(both, tmp_path, monkeypatch):
    letters = {f"c{i}": random_dna(90 + 10 * i, i) for i in range(7)}
    (tmp_path / "some.fa").write_text("".join(f">{name}\n{found}\n" for name, found in letters.items()))
    sizes = {"d_model": 8, "n_layers": 1, "d_state": 4, "length": 64, "max_epochs": 1, "random_state": 0}
    ssmseq.DNALanguageModel(**sizes, accelerator="cpu").fit(list(letters.values())).save(tmp_path / "model")
    for module in (dna, dna_write):
        monkeypatch.setattr(module, "BASES_AT_ONCE", 250)  # here, where the groups are made
    alone, on_ray = both("dna", "score", tmp_path / "model", tmp_path / "some.fa", "--quiet")
    expected, found = (pd.read_csv(io.StringIO(text)) for text in (alone, on_ray))
    assert found["name"].tolist() == list(letters)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)
    monkeypatch.setattr(dna_write, "_embeddings", ray_cases.Deadly(dna_write._embeddings, tmp_path))
    rows = []
    for name, engine in (("a.npy", []), ("b.npy", ["--engine", "ray", "--workers", "1"])):
        words = ["dna", "embed", tmp_path / "model", tmp_path / "some.fa", "--output", tmp_path / name, "--quiet"]
        assert main([*map(str, words), *engine]) == 0
        rows.append(np.load(tmp_path / name))
    assert (tmp_path / "died").exists()  # the only worker, so that another one took its place
    assert rows[0].shape == (7, 8)
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predict", "wide", "--engine", "ray"], 1, "forecasts the columns of a wide one together: leave --engine out"),
        (["predict", "wide", "--workers", "2"], 2, "--workers 2 must be at least 1, and goes with --engine ray"),
        (["ecg", "predict", "m", "d", "--engine", "ray", "--workers", "0"], 2, "--workers 0 must be at least 1"),
        (["dna", "score", "m", "f", "--workers", "1"], 2, "goes with --engine ray"),
        (["dna", "embed", "m", "f", "--output", "x.npy", "--bin_length", "8", "--engine", "ray"], 2, "whole sequences"),
        (["tune", "RidgeForecaster", "d.csv", "--study", "s", "--workers", "1"], 2, "goes with --engine ray"),
        (["predict", "wide", "--engine", "dask"], 2, "invalid choice: 'dask'"),
    ],
)
def test_wrong_usage(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ssmseq.NaiveForecaster(horizon=2, lookback=2).fit(wave()).save("wide")
    assert main(words) == code
    assert message in capsys.readouterr().err


# The search -----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_the_search_no_trial(cluster, tmp_path):
    url, lines = address("sqlite", tmp_path), []
    task = ray_cases.DeadlyTask(tmp_path)
    study = search_on_ray(
        task, formula_space(), url, study="s", n_trials=12, workers=2, heartbeat=0.3, say=lines.append
    )
    assert (tmp_path / "died").exists()
    assert [t.number for t in study.trials] == list(range(12))
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}
    for trial in study.trials:
        assert trial.value == pytest.approx((trial.params["x"] - 0.3) ** 2 + trial.params["y"], rel=1e-12)
    assert [t.user_attrs.get("losses") for t in study.trials].count(1) == 1
    assert "a worker of the Ray cluster was lost, and another one takes its place" in lines
    assert lines[-1].startswith("12/12 trials: 12 done, 0 pruned, 0 failed, 0 running; best error")


def test_an_interrupt_ends_the_workers_and_puts_their_trials_back(cluster, tmp_path):
    url = address("sqlite", tmp_path)
    (tmp_path / "died").touch()
    task = ray_cases.DeadlyTask(tmp_path, seconds=600)

    def interrupt():
        until = time.monotonic() + 300
        while time.monotonic() < until:
            time.sleep(0.2)
            with contextlib.suppress(KeyError, ValueError):  # the study is not there yet
                trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials
                if [t.state for t in trials].count(TrialState.RUNNING) == 2:
                    break
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        search_on_ray(task, formula_space(), url, study="s", n_trials=5, workers=2)
    trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials
    assert [t.state for t in trials] == [TrialState.WAITING] * 2


@pytest.mark.slow
def test_search_by_the_command_line(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(wave(), columns=["a", "b"]).to_csv("waves.csv", index=False)
    Path("space.yaml").write_text(yaml.safe_dump(RIDGE))
    words = ["tune", "RidgeForecaster", "waves.csv", "--trials", "5", "--config", "space.yaml"]
    assert main([*words, "--study", "alone"]) == 0
    capsys.readouterr()
    assert main([*words, "--study", "ray", "--engine", "ray", "--workers", "2", "--refit", "model", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["trials"] == {"asked": 5, "done": 5, "pruned": 0, "failed": 0, "running": 0}
    assert "5/5 trials: 5 done" in err
    alone, on_ray = (
        optuna.load_study(study_name=name, storage=open_storage(f"sqlite:///{name}.db")) for name in ("alone", "ray")
    )
    assert alone.user_attrs["baselines"] == on_ray.user_attrs["baselines"]
    assert on_ray.trials[0].params == alone.trials[0].params
    assert on_ray.trials[0].value == pytest.approx(alone.trials[0].value, rel=1e-6)
    assert ssmseq.load("model").get_params()["alpha"] == document["best"]["settings"]["alpha"]
    assert main([*words, "--study", "alone", "--engine", "ray", "--metric", "mae"]) == 1
    assert "was made with another metric" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ray"}, "needs the address of a storage that its workers can open too.*got storage=None"),
        ({"workers": 2}, "workers=2 is for engine='ray'"),
        ({"engine": "spark"}, "engine must be one of"),
    ],
)
def test_arguments_of_tune(options, message):
    with pytest.raises(ValueError, match=message):
        tune("RidgeForecaster", wave(), **options)


def test_a_file_for_one_machine_does_not_serve_several():
    _check_reach("sqlite:///s.db", {"10.0.0.1"})
    _check_reach("postgresql://host/name", {"10.0.0.1", "10.0.0.2"})
    with pytest.raises(ValueError, match="is a file for one machine, and the Ray cluster has 2: give journal:///"):
        _check_reach("sqlite:///s.db", {"10.0.0.1", "10.0.0.2"})


def test_a_machine_that_does_not_see_the_study_makes_none_of_its_own(tmp_path):
    url = address("sqlite", tmp_path)
    with pytest.raises(ValueError, match="does not see the study 's': a storage that is a file must lie on a disk"):
        _take_part((ray_cases.DeadlyTask(tmp_path), formula_space()), url, os.getcwd(), 1, {"study": "s"})
    assert open_storage(url).get_all_studies() == []

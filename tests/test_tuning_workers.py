"""Workers of one study: exactly so many trials, whoever dies, on whatever storage; and the storages themselves."""

import datetime
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tuning_cases import address, take_part

from ssmseq.tuning.storage import default_url, locked, open_storage
from ssmseq.tuning.trials import Silence

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["sqlite", "journal"])
def url(request, tmp_path):
    return address(request.param, tmp_path)


def start(*arguments, **options):
    process = FORK.Process(target=take_part, args=arguments, kwargs=options, daemon=True)
    process.start()
    return process


def found_in(url):
    return optuna.load_study(study_name="s", storage=open_storage(url)).trials


def make_together(url, n_trials):
    """Let two processes share a study; return its trials."""
    workers = [start(url, n_trials, pause=0.03, heartbeat=0.5) for _ in range(2)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return found_in(url)


def make_with_a_death(url, n_trials):
    """Kill a worker in its second trial and let another one finish; return all trials and the one it died in."""

    def sleepy(estimator):
        time.sleep(0 if estimator.x == 0 else 60)

    victim = start(url, n_trials, before=sleepy, heartbeat=0.2)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.05)
        try:
            running = [t for t in found_in(url) if t.state == TrialState.RUNNING and t.params.get("x")]
        except (KeyError, ValueError):
            continue  # the study is not there yet
        if running:
            break
    assert running, "the worker never came to a trial that lasts"
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    take_part(url, n_trials, heartbeat=0.2)
    return found_in(url), running[0]


def check_shared(trials, n_trials):
    assert [t.number for t in trials] == list(range(n_trials))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert len({t.user_attrs["alive"]["worker"] for t in trials}) == 2
    for trial in trials:
        assert trial.value == pytest.approx((trial.params["x"] - 0.3) ** 2 + trial.params["y"], rel=1e-12)


def check_survived(trials, died, n_trials):
    assert [t.number for t in trials] == list(range(n_trials))
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    again = trials[died.number]
    assert (again.params, again.user_attrs["losses"]) == (died.params, 1)
    assert again.user_attrs["alive"]["worker"] != died.user_attrs["alive"]["worker"]
    assert not any("losses" in t.user_attrs for t in trials if t.number != died.number)


def test_two_processes_make_exactly_n_trials(url):
    check_shared(make_together(url, 9), 9)


def test_a_killed_worker_costs_no_trial(url):
    check_survived(*make_with_a_death(url, 4), 4)


@pytest.fixture(scope="module")
def server():
    """The address of a PostgreSQL server of our own."""
    pytest.importorskip("psycopg", reason="the tests of PostgreSQL need psycopg")
    path = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    initdb, control = shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)
    if initdb is None or control is None:
        pytest.skip("the tests of PostgreSQL need initdb and pg_ctl on the PATH or under /usr/lib/postgresql")
    with tempfile.TemporaryDirectory(prefix="ssmseq-postgresql-") as folder:
        who = {}
        if os.geteuid() == 0:  # the server refuses to run as root, and pytest's folders are closed to others
            shutil.chown(folder, "nobody")
            who = {"user": "nobody"}
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **who}
        data, port = f"{folder}/data", 20000 + os.getpid() % 20000
        subprocess.run([initdb, "-D", data, "-U", "tuner", "-A", "trust", "--no-sync"], **quiet)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        subprocess.run([control, "-D", data, "-l", f"{folder}/log", "-o", options, "-w", "start"], **quiet)
        yield f"postgresql+psycopg://tuner@127.0.0.1:{port}/"
        subprocess.run([control, "-D", data, "-m", "immediate", "stop"], **quiet)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_together, make_with_a_death])
def test_a_server_serves_as_well(server, make):
    import psycopg

    name = make.__name__
    with psycopg.connect(server.replace("+psycopg", "") + "postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    if make is make_together:
        check_shared(make(server + name, 25), 25)
    else:
        check_survived(*make(server + name, 5), 5)


def test_a_trial_whose_workers_keep_dying_fails(tmp_path):
    url = address("journal", tmp_path)
    study = take_part(url, 1)
    lost = create_trial(state=TrialState.RUNNING, user_attrs={"losses": 3, "alive": {"worker": "gone", "every": 0.05}})
    study.add_trial(lost)
    lines = []
    take_part(url, 3, heartbeat=0.05, say=lines.append)
    done, failed, new = found_in(url)
    assert (failed.state, new.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert re.search("worker was lost 4 times .* memory", failed.user_attrs["reason"])
    assert any("trial 1" in line and "failed" in line for line in lines)


def test_a_worker_that_wakes_up_leaves_the_trial_to_its_new_owner(tmp_path):
    url = address("journal", tmp_path)
    storage, robberies = open_storage(url), []

    def robbed(estimator):
        trials = storage.get_all_trials(storage.get_study_id_from_name("s"))
        if len(trials) == 2 and not robberies:
            trial = trials[1]
            robberies.append(trial.number)
            storage.set_trial_user_attr(trial._trial_id, "alive", {"worker": "other", "beats": 7, "every": 0.05})

    trials = take_part(url, 3, before=robbed, heartbeat=0.05).trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    assert trials[1].user_attrs["losses"] == 1  # "other" never gave a sign of life


def test_the_lock_lets_one_in_at_a_time(url):
    inside, most = [], []

    def enter():
        storage = open_storage(url)
        for _ in range(3):
            with locked(storage, "s"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.02)
                inside.pop()

    open_storage(url)
    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 9
    assert open_storage(url).get_all_studies() == []  # nothing of the lock is left


def test_the_lock_of_a_dead_worker_is_taken_away(tmp_path):
    storage = open_storage(address("journal", tmp_path))
    storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s (lock)")
    started = time.monotonic()
    with locked(storage, "s", held_too_long=0.4):
        assert 0.4 < time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("study.db", ValueError, "must begin with sqlite:///"),
        ("redis://host/0", ValueError, "must begin with sqlite:///"),
        ("sqlite:////no/such/folder/s.db", ValueError, "cannot be opened: unable to open database file"),
        ("journal:///no/such/folder/s.log", ValueError, "must name a file in a folder that exists"),
        ("journal://s.log", ValueError, "must name a file in a folder that exists"),
        ("grpc://host", ValueError, "must name host and port"),
        ("postgresql+nothing://host/name", ValueError, "is no address of a database"),
        ("mysql+pymysql://me:secret@host/name", ImportError, r"me:\*\*\*@host.* pip install .pymysql."),
        ("postgresql+psycopg://host/name", ImportError, r"pip install .psycopg\[binary\]"),
        ("grpc://host:13000", ImportError, "pip install grpcio"),
    ],
)
def test_addresses_that_cannot_be_opened(monkeypatch, url, error, message):
    for driver in ("pymysql", "psycopg", "grpc"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    monkeypatch.setattr("ssmseq.tuning.storage.OPENINGS", 1)
    with pytest.raises(error, match=message):
        open_storage(url)


def test_default_address_is_a_file_named_after_the_study():
    assert default_url("S-Mamba on ETTh1/96") == "sqlite:///S-Mamba_on_ETTh1_96.db"


def test_only_silence_for_four_heartbeats_counts_as_loss(monkeypatch):
    clock, silence, start = [0.0], Silence(), datetime.datetime(2026, 1, 1)
    monkeypatch.setattr("ssmseq.tuning.trials.time.monotonic", lambda: clock[0])

    def is_lost(seconds, **alive):
        clock[0] = seconds
        attributes = {"alive": {"every": 10.0, **alive}} if alive else {}
        trial = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        trial.datetime_start = start
        return bool(silence.lost([trial], heartbeat=1.0))

    assert [is_lost(0), is_lost(4), is_lost(4.1)] == [False, False, True]  # no sign yet: by this worker's own heartbeat
    assert [is_lost(5, beats=1), is_lost(45, beats=1)] == [False, False]
    assert [is_lost(46, beats=2), is_lost(86, beats=2), is_lost(86.1, beats=2)] == [False, False, True]

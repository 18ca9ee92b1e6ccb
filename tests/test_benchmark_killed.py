"""No run goes on after the suite that started it, however that ended."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pandas as pd
import pytest

from ssmseq.benchmark import runner
from ssmseq.benchmark.suites import load_suite

SUITE = """
title: Endless
lookback: 8
horizons: [2]
seeds: 2
datasets:
  mine: {csv: mine.csv, season: 4}
models:
  linear: {estimator: LinearForecaster, params: {max_epochs: 1000000, patience: null, checkpoint_folder: CHECKPOINTS}}
"""
STARTER = """
import subprocess, sys
from ssmseq.benchmark import runner
from ssmseq.cli import main

real, pipe = subprocess.Popen, int(sys.argv[1])
runner.subprocess.Popen = lambda *args, **kwargs: real(*args, **kwargs, pass_fds=[pipe])
main(["benchmark", "run", sys.argv[2], "--results", sys.argv[3]])
"""


@pytest.fixture
def checkpoints(tmp_path):
    """Write the suite; return the folder of its runs' checkpoints."""
    index = pd.date_range("2024-01-01", periods=300, freq="h", name="when")
    values = np.random.default_rng(0).normal(size=(300, 2))
    pd.DataFrame(values, columns=["a", "b"], index=index).to_csv(tmp_path / "mine.csv")
    (tmp_path / "endless.yaml").write_text(SUITE.replace("CHECKPOINTS", str(tmp_path / "checkpoints")))
    return tmp_path / "checkpoints"


def test_nothing_is_left_running_when_a_suite_is_killed(tmp_path, checkpoints):
    alive, held = os.pipe()  # at its end once every process that holds the other side has ended
    command = [sys.executable, "-c", STARTER, str(held), str(tmp_path / "endless.yaml"), str(tmp_path / "out")]
    with subprocess.Popen(command, pass_fds=[held], stderr=subprocess.DEVNULL) as process:
        os.close(held)
        deadline = time.monotonic() + 120
        while not list(checkpoints.rglob("*.ckpt")):  # the run is in the midst of its epochs
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert select.select([alive], [], [], 60)[0], "the run is still there"
    assert os.read(alive, 1) == b""
    os.close(alive)


@pytest.mark.parametrize("moment", ["a run starts", "another thread is interrupted", "runs are submitted"])
def test_nothing_is_left_running_after_an_interrupt(tmp_path, checkpoints, monkeypatch, moment):
    endless = load_suite(str(tmp_path / "endless.yaml")).runs
    started: list[subprocess.Popen] = []
    start, submit = runner._start, runner.ThreadPoolExecutor.submit

    def noted(environment):
        started.append(start(environment))
        if moment != "runs are submitted":
            here = moment == "another thread is interrupted"
            thread = threading.current_thread() if here else threading.main_thread()
            os.kill(thread.native_id or 0, signal.SIGINT)
            time.sleep(0.5)  # the interrupted thread is at its end by now
        return started[-1]

    def submitting(pool, *args):
        submit(pool, *args)
        while not started:
            time.sleep(0.01)
        pool._threads.clear()  # as when the interrupt comes before the pool has noted its new thread
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_start", noted)
    if moment == "runs are submitted":
        monkeypatch.setattr(runner.ThreadPoolExecutor, "submit", submitting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            next(runner._in_processes(endless, 1, 1, "cpu"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1
    assert started[0].wait(60) == -signal.SIGKILL


def test_no_process_starts_after_the_end(monkeypatch):
    monkeypatch.setattr(runner, "_start", lambda environment: pytest.fail("started"))
    processes = runner.Processes()
    processes.end()
    with pytest.raises(CancelledError, match="interrupted"):
        processes.start({})

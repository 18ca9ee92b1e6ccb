"""A run's process ends with the one that started it, however that ended."""

import os
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd

SUITE = """
title: Endless
lookback: 8
horizons: [2]
seeds: 1
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


def test_nothing_is_left_running_when_a_suite_is_killed(tmp_path):
    index = pd.date_range("2024-01-01", periods=300, freq="h", name="when")
    values = np.random.default_rng(0).normal(size=(300, 2))
    pd.DataFrame(values, columns=["a", "b"], index=index).to_csv(tmp_path / "mine.csv")
    checkpoints = tmp_path / "checkpoints"
    (tmp_path / "endless.yaml").write_text(SUITE.replace("CHECKPOINTS", str(checkpoints)))
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

"""Small frames and small models for the tests of the estimators; memory and instruction sets for those of kernels."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from ssmseq_kernels import ops

SMALL = {
    "horizon": 4,
    "lookback": 8,
    "d_model": 16,
    "d_ff": 16,
    "n_layers": 1,
    "max_epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "random_state": 0,
    "accelerator": "cpu",
}


@pytest.fixture
def small():
    """A function that makes an unfitted forecaster of the smallest useful size; arguments replace the defaults."""
    from ssmseq import SMambaForecaster

    return lambda **changes: SMambaForecaster(**SMALL | changes)


@pytest.fixture
def waves() -> pd.DataFrame:
    """Three noisy waves on different scales, 200 hourly rows."""
    noise = np.random.default_rng(0).normal(size=(200, 3))
    values = np.sin(np.arange(200)[:, None] / [3, 5, 9]) + 0.1 * noise
    index = pd.date_range("2021-01-01", periods=200, freq="h", name="time")
    return pd.DataFrame(values * [1, 20, 0.5] + [0, 100, -3], index=index, columns=["a", "b", "c"])


@pytest.fixture
def polar_waves(waves) -> pl.DataFrame:
    """The same rows for polars, with the times in the first column."""
    return pl.DataFrame({"time": waves.index.to_numpy(), **{c: waves[c].to_numpy() for c in waves}})


@pytest.fixture(scope="session")
def fitted():
    """A fitted forecaster that no test may change."""
    from ssmseq import SMambaForecaster

    values = np.sin(np.arange(200)[:, None] / [3, 5, 9])
    frame = pd.DataFrame(values, index=pd.date_range("2021-01-01", periods=200, freq="h"), columns=["a", "b", "c"])
    return SMambaForecaster(**SMALL).fit(frame)


@pytest.fixture
def no_training(monkeypatch):
    """Let the test fail as soon as anything trains."""

    def train(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr("lightning.pytorch.Trainer.fit", train)


@pytest.fixture
def poisoned_memory():
    """Fill every uninitialised tensor with NaN, so that an element no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ops.cpu._cpu.runnable_isas() if ops.cpu else ["none"])
def isa(request):
    """Each instruction set of the compiled kernels that this machine can run, in turn."""
    assert ops.cpu is not None, ops.CPU_MISSING
    before = ops.cpu._cpu.set_isa(request.param)
    yield request.param
    ops.cpu._cpu.set_isa(before)


def pytest_collection_modifyitems(items):
    """Begin with the tests that take minutes, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: item.name not in ("test_in_the_interpreter", "test_compiled_for_a_gpu"))

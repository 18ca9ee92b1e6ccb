"""What the tests of the search share: a task whose truth is a formula, and small series."""

import time
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator

from ssmseq.tuning.search import search
from ssmseq.tuning.spaces import Space, load_space
from ssmseq.tuning.storage import open_storage
from ssmseq.tuning.tasks import Task


class Point(BaseEstimator):
    """An estimator whose error is a formula of its parameters."""

    def __init__(self, *, x: float = 0.0, y: int = 0):
        self.x, self.y = x, y


class FormulaTask(Task):
    """``(x - 0.3)^2 + y``; `before` is called with each estimator, and may sleep or fail."""

    metrics = {"error": "minimize", "gain": "maximize"}  # noqa: RUF012
    checksum = "none"

    def __init__(self, metric=None, before=lambda estimator: None):
        super().__init__(Point, {}, metric)
        self.before = before

    def fit(self, estimator):
        self.before(estimator)

    def fit_all(self, estimator):
        return estimator

    def measure(self, estimator):
        error = (estimator.x - 0.3) ** 2 + estimator.y
        return error if self.metric == "error" else -error

    def baselines(self):
        return {"half": 0.5 if self.metric == "error" else -0.5}


def formula_space() -> Space:
    from optuna.distributions import FloatDistribution, IntDistribution

    return Space({"x": FloatDistribution(-1, 1), "y": IntDistribution(0, 2)}, {})


def take_part(url: str, n_trials: int, *, pause: float = 0.0, heartbeat: float = 30.0, before=None, **options):
    """Take part in the study "s" of the formula."""
    task = FormulaTask(before=before or (lambda estimator: time.sleep(pause)))
    storage = open_storage(url)
    return search(task, formula_space(), storage, study="s", n_trials=n_trials, heartbeat=heartbeat, **options)


def address(kind: str, folder: Path) -> str:
    return f"sqlite:///{folder}/s.db" if kind == "sqlite" else f"journal://{folder}/s.log"


def wave(n: int = 240) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.sin(np.arange(n)[:, None] / np.array([4, 7])) + 0.1 * rng.normal(size=(n, 2))


RIDGE = {
    "space": {"lookback": {"type": "categorical", "choices": [6, 12]}},
    "fixed": {"horizon": 3},
}
TINY = {
    "space": {
        **{name: None for name in load_space("SMambaForecaster").entries if name != "learning_rate"},
        "learning_rate": {"type": "float", "low": 0.00001, "high": 0.01, "log": True},
    },
    "fixed": {"horizon": 3, "lookback": 8, "d_model": 8, "d_ff": 8, "n_layers": 1, "accelerator": "cpu"},
}

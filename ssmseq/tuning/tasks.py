"""What a trial does with the data: fit, measure what was held out, and what a baseline makes of the same.

A task is made once and fits many times. It never shows the held-out part to a fit, and all trials have the same one.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np


class Task(ABC):
    """Data with a way to fit an estimator on them and to measure it.

    Parameters
    ----------
    estimator_type : class
    fixed : dict
        Arguments of the constructor that no trial changes.
    metric : str, optional
        One of `metrics`; the first of them by default.

    Attributes
    ----------
    checksum : str
        Digest of the data.
    """

    metrics: dict[str, str] = {}  # noqa: RUF012  name -> direction; the first is the default
    checksum: str

    def __init__(self, estimator_type: type, fixed: dict[str, Any], metric: str | None):
        self.estimator_type, self.fixed = estimator_type, fixed
        self.metric = next(iter(self.metrics)) if metric is None else metric
        if self.metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}, got {metric!r}")
        self.parameters = set(estimator_type().get_params(deep=False))

    @property
    def direction(self) -> str:
        """Return "minimize" or "maximize"."""
        return self.metrics[self.metric]

    @property
    def trains(self) -> bool:
        """Whether the estimator has epochs that can be watched and cut short."""
        return "callbacks" in self.parameters

    def build(self, params: dict[str, Any]):
        """Return an estimator that is not fitted."""
        return self.estimator_type(**params)

    def refit(self, params: dict[str, Any], epochs: int | None):
        """Return the estimator fitted on all data, for as many epochs as the best trial's best weights had."""
        last = {"validation_fraction": 0.0, "max_epochs": epochs, "patience": None}
        if epochs is None:  # no epochs: the estimator may still choose between candidates on its validation part
            last = {}
        return self.fit_all(self.build({**params, **{k: v for k, v in last.items() if k in self.parameters}}))

    @abstractmethod
    def fit(self, estimator) -> None:
        """Fit on what is not held out."""

    @abstractmethod
    def fit_all(self, estimator) -> Any:
        """Fit on everything and return the estimator."""

    @abstractmethod
    def measure(self, estimator) -> float:
        """Return the metric of a fitted estimator on what was held out."""

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """Return the metric of each simple model on the same held-out part."""


class HeldOutTask(Task):
    """Examples, of which some are held out for good; the estimator stops early by others, which it chooses itself."""

    held: np.ndarray  # (n,) of bool

    def __init__(self, estimator_type, fixed: dict[str, Any], metric: str | None, X, y, groups):
        super().__init__(estimator_type, fixed, metric)
        check_held_out(self.build(fixed))
        if y is None:
            raise ValueError(f"{estimator_type.__name__} needs labels: pass y")
        self.X, self.y, self.groups = X, y, groups

    def _part(self, rows: np.ndarray) -> tuple[Any, Any, Any]:
        return take(self.X, rows), take(self.y, rows), take(self.groups, rows)

    def _divided(self) -> tuple[np.ndarray, np.ndarray]:
        return np.flatnonzero(~self.held), np.flatnonzero(self.held)


def digest(parts: Iterable) -> str:
    """Return a digest of arrays and strings, in their order."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else np.ascontiguousarray(part)
        if isinstance(content, np.ndarray):
            found.update(f"{content.dtype}{content.shape}".encode())
            content = repr(content.tolist()).encode() if content.dtype.hasobject else content.tobytes()
        found.update(content + b"\0")
    return found.hexdigest()[:32]


def check_held_out(template) -> None:
    """Raise ValueError if an estimator would hold nothing out."""
    if not template.validation_fraction:
        raise ValueError(
            "validation_fraction=0 leaves nothing to compare trials on: set it under `fixed`, such as 0.2, or leave it "
            "to its default"
        )


def take(values, rows: np.ndarray):
    """Return some rows of a frame, an array or a list; None of None."""
    if values is None:
        return None
    if hasattr(values, "iloc"):
        return values.iloc[rows]
    return values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows]


def make_task(estimator: str, fixed: dict[str, Any], metric: str | None, X, y=None, **data) -> Task:
    """Return the task of an estimator, by the name of its class; see the modules beside this one.

    Raises
    ------
    ValueError
        If data or settings cannot be used.
    TypeError
        If `data` holds something that the estimator's task does not take.
    """
    import ssmseq

    estimator_type = getattr(ssmseq, estimator)
    if estimator == "ECGMambaClassifier":
        from ssmseq.tuning.ecg import ECGTask

        return ECGTask(estimator_type, fixed, metric, X, y, **data)
    if estimator.startswith("DNA"):
        from ssmseq.tuning import dna

        if estimator == "DNAClassifier":
            return dna.DNAClassTask(estimator_type, fixed, metric, X, y, **data)
        return dna.DNALanguageTask(estimator_type, fixed, metric, X, **data)
    from ssmseq.tuning.forecasting import ForecastTask

    return ForecastTask(estimator_type, fixed, metric, X, **data)

"""How far a study is: its trials by their end, the best against the baselines, epochs spared, time left."""

import math
import time
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

ENDS = {
    "done": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def counts(trials: list[FrozenTrial]) -> dict[str, int]:
    """Return how many trials are done, pruned, failed and running."""
    return {name: sum(trial.state == state for trial in trials) for name, state in ENDS.items()}


def best_of(study: optuna.Study, trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial with the best value among those that ran to their end; None if none did."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    return min(done, key=lambda trial: sign * trial.value) if done else None  # type: ignore[operator]


def best_baseline(study: optuna.Study) -> tuple[str, float] | None:
    """Return name and metric of the baseline that is hardest to beat."""
    found = {name: v for name, v in study.user_attrs.get("baselines", {}).items() if math.isfinite(v)}
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    return min(found.items(), key=lambda pair: sign * pair[1]) if found else None


def beats(study: optuna.Study, value: float, other: float) -> bool:
    """Whether a value of the metric is better than another."""
    return value < other if study.direction == StudyDirection.MINIMIZE else value > other


def epochs_spared(trials: list[FrozenTrial]) -> dict[str, Any]:
    """Return what pruning spared.

    Returns
    -------
    dict
        "epochs", those run; "without_pruning", what pruned trials would have made of it had each run as long as the
        trials that were not pruned did on average, early stopping included; "share" spared. The latter two are None as
        long as no trial ran to its end.
    """
    run = sum(trial.user_attrs.get("epochs", 0) for trial in trials)
    whole = [t.user_attrs["epochs"] for t in trials if t.state == TrialState.COMPLETE and "epochs" in t.user_attrs]
    if not whole:
        return {"epochs": run, "without_pruning": None, "share": None}
    mean = sum(whole) / len(whole)
    pruned = [t.user_attrs.get("epochs", 0) for t in trials if t.state == TrialState.PRUNED]
    otherwise = run + sum(max(mean - n, 0.0) for n in pruned)
    return {"epochs": run, "without_pruning": round(otherwise), "share": 1 - run / otherwise if otherwise else 0.0}


class Standing:
    """Makes the lines of progress of one worker, or of a process that watches a known number of them."""

    def __init__(
        self, study: optuna.Study, n_trials: int, deadline: float | None = None, *, workers: int | None = None
    ):
        self.study, self.n_trials, self.deadline, self.workers = study, n_trials, deadline, workers

    def finished(self) -> int:
        """Return how many trials have ended for good."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False)[: self.n_trials])

    def line(self) -> str:
        """Return one line: trials by their end, the best against the baselines, and the time left."""
        trials = self.study.get_trials(deepcopy=False)[: self.n_trials]
        found, finished = counts(trials), self.finished()
        parts = [f"{finished}/{self.n_trials} trials: " + ", ".join(f"{n} {name}" for name, n in found.items())]
        parts.append(describe_best(self.study, trials))
        left = self._seconds_left(trials, self.n_trials - finished)
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return "; ".join(part for part in parts if part)

    def _seconds_left(self, trials: list[FrozenTrial], n_left: int) -> float | None:
        seconds = [t.user_attrs["seconds"] for t in trials if "seconds" in t.user_attrs]
        if not n_left or not seconds:
            return None
        # The worker that asks has just ended a trial, and is not among those running.
        workers = min(self.workers or counts(trials)["running"] + 1, n_left)
        left = sum(seconds) / len(seconds) * n_left / workers
        return left if self.deadline is None else min(left, max(self.deadline - time.monotonic(), 0.0))


def describe_best(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    """Return the best value so far beside the best baseline."""
    best, baseline = best_of(study, trials), best_baseline(study)
    words = [] if best is None else [f"best {study.user_attrs['metric']} {best.value:.4f} in trial {best.number}"]
    if baseline is not None:
        name, value = baseline
        better = best is not None and beats(study, best.values[0], value)
        words.append(f"{'better than' if better else 'to beat:'} {name} {value:.4f}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

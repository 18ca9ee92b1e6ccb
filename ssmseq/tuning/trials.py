"""One trial: its settings, the fit, the curve that it may be pruned by, and the sign of life of its worker.

A trial that has to be taken up again goes back to waiting, with its number, its settings and its curve: whoever takes
it runs it as it would have been run, so that a study never has more trials than were asked for.
"""

import math
import os
import socket
import threading
import time
import uuid
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ssmseq.tuning.spaces import Space
from ssmseq.tuning.tasks import Task

SILENT_BEATS = 4  # heartbeats without a sign of life after which a worker counts as lost
MOST_LOSSES = 3  # times that a trial is taken up again; a further loss is likely its own doing, as of too little memory
Outcome = Literal["complete", "pruned", "failed", "lost", "interrupted"]


def worker_name() -> str:
    """Return a name that no other worker has."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


@dataclass
class Worker:
    """One process that takes part in a study.

    Attributes
    ----------
    task : Task
    space : Space
    study : optuna.Study
    storage : optuna.storages.BaseStorage
        That of the study.
    heartbeat : float
        Seconds between signs of life.
    name : str
        That no other worker has.
    """

    task: Task
    space: Space
    study: optuna.Study
    storage: BaseStorage
    heartbeat: float
    name: str = field(default_factory=worker_name)

    def run(self, trial_id: int) -> Outcome:
        """Run a trial that this worker has claimed, and record how it ended.

        Parameters
        ----------
        trial_id : int
            Of the storage.

        Returns
        -------
        str
            "complete", "pruned", "failed" (with the user attribute "reason"), "interrupted" (the trial waits again), or
            "lost" (another worker has it, since this one was silent for too long).
        """
        started = time.perf_counter()
        with Heartbeat(self, trial_id) as beat:
            trial = optuna.trial.Trial(self.study, trial_id)
            watch = _Watch(trial, beat, sign=1 if self.task.direction == "minimize" else -1)
            try:
                value = self._fit_and_measure(trial, watch)
            except optuna.TrialPruned:
                return self._end(trial, watch, started, TrialState.PRUNED)
            except KeyboardInterrupt:
                if not beat.is_lost():
                    self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
                return "interrupted"
            except _LostError:
                return "lost"
            except StorageInternalError:
                raise
            except Exception as error:  # whatever a combination of settings breaks costs that trial alone
                reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
                return self._end(trial, watch, started, TrialState.FAIL, reason=reason)
            return self._end(trial, watch, started, TrialState.COMPLETE, value=value)

    def take_back(self, trial: FrozenTrial) -> Outcome:
        """Let a trial of a lost worker wait again, or fail it if that has happened too often."""
        losses = trial.user_attrs.get("losses", 0) + 1
        self.storage.set_trial_user_attr(trial._trial_id, "losses", losses)
        if losses <= MOST_LOSSES:
            self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            return "lost"
        reason = f"its worker was lost {losses} times in this trial; too little memory is the usual cause"
        self.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        self.study.tell(trial.number, state=TrialState.FAIL)
        return "failed"

    def _fit_and_measure(self, trial: optuna.Trial, watch: "_Watch") -> float:
        estimator = self.task.build(self.space.suggest(trial))
        if self.task.trains:
            estimator.set_params(callbacks=[_callback(watch)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fit was interrupted")
            self.task.fit(estimator)
        if watch.interrupted:
            raise KeyboardInterrupt
        value = self.task.measure(estimator)
        if not math.isfinite(value):
            raise ValueError(f"the metric {self.task.metric} is {value}")
        return value

    def _end(self, trial, watch: "_Watch", started: float, state: TrialState, *, value=None, reason=None) -> Outcome:
        if watch.beat.is_lost():
            return "lost"
        losses = watch.losses
        attributes: dict[str, Any] = {"seconds": round(time.perf_counter() - started, 3)}
        if reason is not None:
            attributes["reason"] = reason
        if losses:
            attributes |= {"epochs": len(losses), "best_epoch": min(losses, key=losses.__getitem__)}
        for name, found in attributes.items():
            trial.set_user_attr(name, found)
        self.study.tell(trial, value, state=state)
        outcomes: dict[TrialState, Outcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        return outcomes.get(state, "failed")


class _LostError(Exception):
    """Another worker has taken the trial."""


@dataclass
class _Watch:
    """The validation losses of a trial, by epoch from 1 on."""

    trial: optuna.Trial
    beat: "Heartbeat"
    sign: int  # the pruner compares in the direction of the metric, and a loss is better the lower it is
    losses: dict[int, float] = field(default_factory=dict)
    interrupted: bool = False

    def __post_init__(self):
        frozen = self.trial.storage.get_trial(self.trial._trial_id)
        self.reported = set(frozen.intermediate_values)  # by a worker that had the trial before

    def epoch_ended(self, epoch: int, loss: float, *, last: bool = False) -> None:
        """Report a loss; raise TrialPruned if others had lower ones by then, unless there is nothing left to spare."""
        if self.beat.is_lost():
            raise _LostError
        if not math.isfinite(loss):
            return  # the fit itself says that it diverged
        self.losses[epoch] = loss
        if epoch not in self.reported:
            self.trial.report(self.sign * loss, epoch)
        if not last and self.trial.should_prune():
            raise optuna.TrialPruned


def _callback(watch: _Watch):
    from ssmseq.training import Callback  # made here, because it costs the import of Lightning

    class Curve(Callback):
        """Hands the validation loss of each epoch on."""

        def on_train_epoch_end(self, trainer, pl_module):
            found = trainer.callback_metrics.get("valid_loss")
            if found is not None:
                epoch = trainer.current_epoch + 1
                watch.epoch_ended(epoch, float(found), last=epoch == trainer.max_epochs)

        def on_exception(self, trainer, pl_module, exception):
            watch.interrupted = isinstance(exception, KeyboardInterrupt)

    return Curve()


class Heartbeat:
    """Writes a sign of life of a trial's worker into the user attribute "alive", in a thread of its own."""

    def __init__(self, worker: "Worker", trial_id: int):
        self.storage, self.trial_id, self.worker, self.every = worker.storage, trial_id, worker.name, worker.heartbeat
        self.beats, self.lost = 0, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self):
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def is_lost(self) -> bool:
        """Whether the trial is another worker's by now."""
        found = self.storage.get_trial(self.trial_id)
        owner = found.user_attrs.get("alive", {}).get("worker")
        self.lost = self.lost or found.state != TrialState.RUNNING or owner != self.worker
        return self.lost

    def _write(self) -> None:
        self.beats += 1
        alive = {"worker": self.worker, "beats": self.beats, "every": self.every}
        self.storage.set_trial_user_attr(self.trial_id, "alive", alive)

    def _run(self) -> None:
        while not self._ended.wait(self.every) and not self.lost:
            try:
                if not self.is_lost():
                    self._write()
            except StorageInternalError:
                continue  # a server that does not answer may do so next time; if not, the trial itself will fail


class Silence:
    """Finds trials whose worker is lost, by watching their signs of life; clocks of machines are not compared."""

    def __init__(self):
        self.seen: dict[int, tuple[Any, float]] = {}

    def lost(self, running: list[FrozenTrial], heartbeat: float) -> list[FrozenTrial]:
        """Return the trials without a new sign of life for four heartbeats, of their worker's or else of this one."""
        now, found = time.monotonic(), []
        for trial in running:
            alive = trial.user_attrs.get("alive", {})
            sign = (trial.datetime_start, alive)
            if trial._trial_id not in self.seen or self.seen[trial._trial_id][0] != sign:
                self.seen[trial._trial_id] = (sign, now)
            elif now - self.seen[trial._trial_id][1] > SILENT_BEATS * alive.get("every", heartbeat):
                found.append(trial)
        return found

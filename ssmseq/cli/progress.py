"""Fitting in sight of a user, and what became of it afterwards."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class FitOutcome:
    """How a fit ended."""

    seconds: float = 0.0
    interrupted: bool = False
    is_main_process: bool = True  # with several devices every process runs the command, and one reports


def fit_in_sight(estimator, X, *, quiet: bool = False, bar: Callable[[], Any] | None = None, **arguments) -> FitOutcome:
    """Fit with progress on stderr; nothing of that stays in the estimator's parameters.

    Parameters
    ----------
    estimator : estimator
        Those without training, which take no callbacks, show no progress.
    X : object
        As `fit` takes it.
    quiet : bool
        Show nothing.
    bar : callable, optional
        Makes the callback that shows progress, in place of the bar of steps.
    **arguments
        Others of `fit`.

    Returns
    -------
    FitOutcome
    """
    outcome = FitOutcome()
    before = estimator.get_params(deep=False)
    trains = "callbacks" in before
    if trains:
        callbacks = [_watcher(outcome), *([bar()] if bar is not None and not quiet else [])]
        estimator.set_params(callbacks=callbacks, verbose=int(not quiet and bar is None))
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
            estimator.fit(X, **arguments)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "lightning":
            raise
        raise ValueError(str(error)) from error  # what Lightning itself raises is about the parameters it was given
    finally:
        if trains:
            estimator.set_params(callbacks=before["callbacks"], verbose=before["verbose"])
        outcome.seconds = time.perf_counter() - started
    return outcome


def _watcher(outcome: FitOutcome):
    from ssmseq.training import Callback  # made here, because it costs the import of Lightning

    class Watcher(Callback):
        """Notes how the fit ends."""

        def setup(self, trainer, pl_module, stage):
            outcome.is_main_process = trainer.is_global_zero

        def on_exception(self, trainer, pl_module, exception):
            outcome.interrupted = isinstance(exception, KeyboardInterrupt)

    return Watcher()

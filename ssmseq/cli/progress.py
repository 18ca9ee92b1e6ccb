"""Fitting in sight of a user: a bar on a terminal, a line per epoch elsewhere, and what became of it afterwards."""

import contextlib
import sys
import time
from dataclasses import dataclass

from ssmseq.cli.contract import remark


@dataclass
class FitOutcome:
    """How a fit ended."""

    seconds: float = 0.0
    interrupted: bool = False
    is_main_process: bool = True  # with several devices every process runs the command, and one reports


def fit_in_sight(estimator, frame, *, validation=None, quiet: bool = False) -> FitOutcome:
    """Fit with progress on stderr; nothing of that stays in the estimator's parameters.

    Parameters
    ----------
    estimator : forecaster
        Those without training, which take no callbacks, show no progress.
    frame, validation : pandas.DataFrame
        As `fit` takes them.
    quiet : bool
        Show nothing.

    Returns
    -------
    FitOutcome
    """
    outcome = FitOutcome()
    before = estimator.get_params(deep=False)
    trains = "callbacks" in before
    on_terminal = sys.stderr.isatty()
    if trains:
        lines = not quiet and not on_terminal
        estimator.set_params(callbacks=[_watcher(outcome, lines)], verbose=int(on_terminal and not quiet))
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Lightning draws its bar on stdout
            estimator.fit(frame, validation=validation)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "lightning":
            raise
        raise ValueError(str(error)) from error  # what Lightning itself raises is about the parameters it was given
    finally:
        if trains:
            estimator.set_params(callbacks=before["callbacks"], verbose=before["verbose"])
        outcome.seconds = time.perf_counter() - started
    return outcome


def _watcher(outcome: FitOutcome, lines: bool):
    from ssmseq.training import Callback  # made here, because it costs the import of Lightning

    class Watcher(Callback):
        """Notes how the fit ends, and prints a line per epoch if asked to."""

        started = None

        def setup(self, trainer, pl_module, stage):
            outcome.is_main_process = trainer.is_global_zero

        # An epoch's losses are complete only after all of its hooks, that is when the next one begins or training ends.
        def on_train_epoch_start(self, trainer, pl_module):
            self.report(trainer, trainer.current_epoch)
            self.started = time.perf_counter()

        def on_train_end(self, trainer, pl_module):
            self.report(trainer, trainer.current_epoch)

        def on_exception(self, trainer, pl_module, exception):
            outcome.interrupted = isinstance(exception, KeyboardInterrupt)

        def report(self, trainer, epoch: int):
            if self.started is None or not lines or not trainer.is_global_zero:
                return
            names = ("train_loss", "valid_loss")
            losses = [f"{n} {float(trainer.callback_metrics[n]):.4f}" for n in names if n in trainer.callback_metrics]
            seconds = time.perf_counter() - self.started
            remark("  ".join([f"epoch {epoch}/{trainer.max_epochs}", *losses, f"{seconds:.1f} s"]))

    return Watcher()

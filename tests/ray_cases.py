"""What the tests of Ray give its workers, which find it by its name."""

import os
import signal
import time
import warnings
from pathlib import Path

from tuning_cases import FormulaTask


def die_once(folder: Path, name: str = "died") -> None:
    """Kill this process as the kernel would for want of memory; the second time, live on."""
    if not (folder / name).exists():
        (folder / name).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def scaled(model: dict, piece: int) -> tuple[int, int, str]:
    """A function of a model and a piece; later pieces may end sooner."""
    time.sleep(0.2 if piece % 5 == 0 else 0)
    if piece == model.get("deadly"):
        die_once(model["folder"])
    if piece == model.get("fatal"):
        os.kill(os.getpid(), signal.SIGKILL)
    if piece == model.get("wrong"):
        raise ValueError(f"piece {piece} is wrong")
    if piece % 2:
        warnings.warn(f"piece {piece} is odd", UserWarning, stacklevel=1)
    return model["factor"] * piece, os.getpid(), os.getcwd()


class Deadly:
    """Kills the first worker that calls it, and otherwise does what a function does; here it always does that."""

    def __init__(self, function, folder: Path):
        self.function, self.folder, self.here = function, folder, os.getpid()

    def __call__(self, *arguments, **options):
        if os.getpid() != self.here:
            die_once(self.folder)
        return self.function(*arguments, **options)


class DeadlyTask(FormulaTask):
    """Kills its worker in the first trial whose x is not zero."""

    def __init__(self, folder: Path, seconds: float = 0.0):
        super().__init__()
        self.folder, self.seconds = folder, seconds

    def fit(self, estimator):
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:  # Ray interrupts Python, and no long sleep
            time.sleep(0.01)
        if estimator.x != 0:
            die_once(self.folder)

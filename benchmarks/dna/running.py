"""What the scripts of this folder share: options, and fits that can be cut short and gone on with."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ssmseq.training import Callback

sys.path.append(str(Path(__file__).resolve().parents[1]))
from rows import RESULTS, Rows, checkpoint, finish

__all__ = ["RESULTS", "OutOfTime", "Rows", "add_options", "checkpoint", "data_file", "finish", "fit"]
STARTED = time.perf_counter()


def add_options(parser: argparse.ArgumentParser, file: str) -> None:
    """Add what all scripts take."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="of this call; call it again to go on")
    parser.add_argument("--data", type=Path, help="folder of the genomics data (default: genomics below SSMSEQ_DATA)")
    parser.add_argument("--out", type=Path, default=RESULTS / file, help="rows; what has one is passed over")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ssmseq-dna-checkpoints",
        help="where a run that is cut short leaves its state; deleted when its row is written",
    )


def data_file(options, *parts: str) -> Path:
    """Return a file of the genomics data, which --data or SSMSEQ_DATA names."""
    path = (options.data or Path(os.environ.get("SSMSEQ_DATA", "."), "genomics")).joinpath(*parts)
    if not path.is_file():
        raise SystemExit(f"there is no {path}: give --data, or set SSMSEQ_DATA to the folder that holds genomics/")
    return path


class OutOfTime(Exception):
    """The minutes of this call are over, or it was interrupted; the next call goes on."""


def fit(model, key: dict[str, Any], options, *data, **more) -> dict[str, Any]:
    """Fit a model in place, from where an earlier call was cut short; return what its row says of the fit.

    Raises
    ------
    OutOfTime
        If the fit was cut short: it has no row, and the next call goes on with it, from its last whole epoch.
    """
    clock = _Clock(options.max_minutes)
    model.set_params(checkpoint_folder=str(checkpoint(key, options)), callbacks=[clock], verbose=1, accelerator="cpu")
    processed = time.process_time()
    model.fit(*data, **more)
    processed = time.process_time() - processed
    if clock.stopped:
        raise OutOfTime
    history = model.history_
    seconds = float(history["seconds"].sum())  # of all calls that it took
    return {
        "epochs": len(history),
        "seconds": round(seconds, 1),
        "cpu_seconds_of_this_call": round(processed, 1),
        "tokens": clock.tokens * len(history),
        "tokens_per_second": round(clock.tokens * len(history) / seconds) if seconds else None,
        "parameters": sum(p.numel() for p in model.network_.parameters()),
        "losses": {c: [round(x, 5) for x in history[c]] for c in ("train_loss", "valid_loss") if c in history},
    }


class _Clock(Callback):
    """Cuts a fit short when the minutes of the call are over, and knows the tokens of an epoch."""

    def __init__(self, minutes: float):
        self.minutes, self.stopped, self.tokens = minutes, False, 0

    def on_train_start(self, trainer, pl_module):
        """Note how much an epoch reads: steps of batches of windows, or of whole sequences."""
        loader = trainer.train_dataloader
        self.tokens = int(trainer.num_training_batches) * loader.batch_size * loader.dataset.length

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Look at the clock."""
        if time.perf_counter() - STARTED > 60 * self.minutes:
            raise KeyboardInterrupt

    def on_exception(self, trainer, pl_module, exception):
        """Note the interruption, which the estimator turns into a warning."""
        self.stopped = self.stopped or isinstance(exception, KeyboardInterrupt)

"""What the scripts of this folder share: their options, and the way to fit one model."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

import ssmseq

sys.path.append(str(Path(__file__).resolve().parents[1]))
from rows import RESULTS, Rows, checkpoint, finish

__all__ = ["Rows", "add_options", "changes", "data_folder", "finish", "fit", "rounded"]


def add_options(parser: argparse.ArgumentParser, file: str) -> None:
    """Add what both scripts take."""
    parser.add_argument("--max-epochs", type=int, help="in place of the preset's")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other changes of the preset")
    parser.add_argument("--records", type=int, help="train and test on so many recordings only, to try the script")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help="folder of the recordings (default: below SSMSEQ_DATA)")
    parser.add_argument("--out", type=Path, default=RESULTS / file)
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ssmseq-ecg-checkpoints",
        help="where a run that is cut short leaves its state; deleted when its row is written",
    )


def changes(options) -> dict[str, Any]:
    """Return what the command line changes of a preset."""
    found = dict(text.split("=", 1) for text in options.set)
    found = {name: yaml.safe_load(value) for name, value in found.items()}
    return found if options.max_epochs is None else {**found, "max_epochs": options.max_epochs}


def data_folder(options, name: str) -> Path:
    """Return the folder of a data set, which --data or SSMSEQ_DATA names."""
    folder = options.data or Path(os.environ.get("SSMSEQ_DATA", ".")) / "ecg" / name
    if not folder.is_dir():
        raise SystemExit(
            f"{folder} is not a folder: give --data, or set SSMSEQ_DATA to the folder that holds ecg/{name}"
        )
    return folder


def fit(key: dict[str, Any], options, records: list, y, **more) -> tuple[Any, dict[str, Any]]:
    """Fit one model, going on from where an earlier call was cut short; return it and what its row says of the fit.

    Raises
    ------
    KeyboardInterrupt
        If the fit was interrupted: it has no row, and the next call goes on with it.
    """
    stop = _Interrupted()
    estimator = ssmseq.ECGMambaClassifier.from_preset(
        key["preset"],
        **{"random_state": key["seed"], "accelerator": "cpu", "verbose": 1, **key["changes"], **more},
        checkpoint_folder=str(checkpoint(key, options)),
        callbacks=[stop.callback()],
    )
    started, processed = time.perf_counter(), time.process_time()
    estimator.fit(records, y)
    if stop.seen:
        raise KeyboardInterrupt
    history = estimator.history_
    losses = history["valid_loss"].tolist() if "valid_loss" in history else []
    return estimator, {
        "epochs": estimator.n_iter_,
        "best_epoch": int(history["epoch"].iloc[losses.index(min(losses))]) if losses else estimator.n_iter_,
        "seconds": round(float(history["seconds"].sum()), 1),  # of all calls that it took
        "seconds_of_this_call": round(time.perf_counter() - started, 1),
        "cpu_seconds_of_this_call": round(time.process_time() - processed, 1),
        "seconds_per_epoch": round(float(history["seconds"].median()), 2),
        "parameters": sum(p.numel() for p in estimator.network_.parameters()),
    }


class _Interrupted:
    """Notes that a fit was cut short, which keeps its best weights and returns."""

    def __init__(self):
        self.seen = False

    def callback(self):
        """Return the callback that notes it."""
        from ssmseq.training import Callback

        outer = self

        class Watcher(Callback):
            """Sees how the fit ends."""

            def on_exception(self, trainer, pl_module, exception):
                """Note an interruption."""
                outer.seen = outer.seen or isinstance(exception, KeyboardInterrupt)

        return Watcher()


def rounded(values: Iterable[float], digits: int = 4) -> list[float | None]:
    """Return numbers that JSON can hold: NaN, of what is undefined, as null."""
    return [None if value != value else round(float(value), digits) for value in values]

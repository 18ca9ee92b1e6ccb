"""What ecg/, dna/ and estimator_costs.py share: a file of rows, where each comes from, states of fits."""

import datetime
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import ssmseq
from ssmseq_kernels import available_backends

RESULTS = Path(__file__).resolve().parent / "results"
PLACES = ("--out", "--checkpoints", "--data", "--plot")


class Rows:
    """Rows of one file, each known by its key; a run that has a row is not repeated."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the row of a key, if there is one."""
        key = json.loads(json.dumps(key))  # tuples are lists in a file
        return next((row for row in self.rows if row["key"] == key), None)

    def add(self, key: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Append a row, on the disk when this returns."""
        row = json.loads(json.dumps({"key": key, **values, **origin()}, allow_nan=False))
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row


def origin() -> dict[str, Any]:
    """Return what a row must say of where it comes from."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()
    return {
        "command": _command(sys.argv),
        "commit": commit,
        "versions": {"ssmseq": ssmseq.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "kernel": available_backends()["cpu"],
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
    }


def _command(words: list[str]) -> str:
    """Return the command without the options that only say where files lie."""
    left, words = ["python"], list(words)
    while words:
        word = words.pop(0)
        if word in PLACES:
            words[:1] = []
        elif word.partition("=")[0] not in PLACES:
            left.append(word)
    return shlex.join(left)


def checkpoint(key: dict[str, Any], options) -> Path:
    """Return the folder of a run's state."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return options.checkpoints / name


def finish(key: dict[str, Any], options) -> None:
    """Delete the state of a run whose row is written."""
    shutil.rmtree(checkpoint(key, options), ignore_errors=True)

"""The file that a training run is resumed from: tensors, numbers and text, read without unpickling.

A folder holds one run, in `last.ckpt`. With it goes a fingerprint of all that shapes the result, so that no run is
resumed with other parameters or other data.
"""

import dataclasses
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

FILE = "last.ckpt"
FORMAT = 1
# Where and how a run computes, and what is shown of it. `max_epochs` counts with a schedule that depends on it.
WITHOUT_EFFECT = {"accelerator", "devices", "strategy", "num_nodes", "num_workers", "callbacks", "logger", "verbose"}
HELD_APART = {"checkpoint_folder", "warm_start", "random_state", "max_epochs"}
HASHED_WHOLE = 1 << 28  # bytes of a tensor; of a larger one as many are hashed, in blocks spread over it
BLOCK = 1 << 20


def folder_of(estimator) -> Path | None:
    """Return the folder of an estimator's checkpoint, or None if it keeps none."""
    folder = getattr(estimator, "checkpoint_folder", None)
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise TypeError(f"checkpoint_folder must be a path or None, got {folder!r}")
    return None if folder is None else Path(folder)


def resumable_seed(estimator, drawn: int) -> int:
    """Return the seed of the run to resume, or `drawn` if there is none or `random_state` is a number.

    Parameters
    ----------
    estimator : SequenceEstimator
        Its `checkpoint_folder` and `random_state` are read.
    drawn : int
        From `random_state`.

    Returns
    -------
    int
    """
    folder = folder_of(estimator)
    if folder is None or isinstance(estimator.random_state, Integral):
        return drawn
    found = read(folder)
    return drawn if found is None else found["fingerprint"]["seed"]


def read(folder: Path) -> dict[str, Any] | None:
    """Read the checkpoint in a folder; None if there is none.

    Raises
    ------
    ValueError
        If the file is damaged or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many, by the place of the damage
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}); delete it to train from the "
            "start, or set checkpoint_folder to another folder"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of this version of ssmseq; delete it to train from the start, or set "
            "checkpoint_folder to another folder"
        )
    return state


def write(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder in one step: whatever happens meanwhile, the last whole one stays."""
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f"{FILE}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())  # also a machine that loses power must find the content behind the new name
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / FILE)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def open_folder(folder: Path, fingerprint: dict[str, Any], max_epochs: int) -> dict[str, Any] | None:
    """Make sure that a folder can be written to; return the state to resume from, or None.

    Raises
    ------
    ValueError
        If the folder cannot be written to, or its checkpoint is of another run.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"checkpoint_folder={str(folder)!r} cannot be written to ({error.strerror}); set it to a folder that can"
        ) from error
    state = read(folder)
    if state is None:
        return None
    remedy = f"set checkpoint_folder to another folder, or delete {folder / FILE} to train from the start"
    if differing := list(_differences(state["fingerprint"], fingerprint)):
        raise ValueError(f"{folder} holds the checkpoint of another run: {'; '.join(differing)}; {remedy}")
    if state["epoch"] > max_epochs:
        raise ValueError(
            f"{folder} holds a run of {state['epoch']} epochs, more than max_epochs={max_epochs}; {remedy}"
        )
    return state


def run_state(trainer, network: nn.Module) -> dict[str, Any]:
    """Return what Lightning's trainer holds of a run at the end of an epoch."""
    loop = trainer.fit_loop.epoch_loop
    return {
        "epoch": trainer.current_epoch + 1,
        "network": network.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),  # it has made its step of this epoch
        "precision": trainer.precision_plugin.state_dict(),
        "callbacks": callback_states(trainer),
        "metrics": dict(trainer.callback_metrics),  # callbacks read the last ones, also where no validation was since
        "should_stop": trainer.should_stop,
        "batches": loop.batch_progress.state_dict(),
        "steps": loop.automatic_optimization.optim_progress.state_dict(),
        "logged": loop.on_save_checkpoint(),
    }


def restore(trainer, network: nn.Module, state: dict[str, Any]) -> None:
    """Put the state of `run_state` into a trainer that is about to train."""
    network.load_state_dict(state["network"])
    trainer.optimizers[0].load_state_dict(state["optimizer"])
    trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["schedule"])
    trainer.precision_plugin.load_state_dict(state["precision"])
    for callback in trainer.callbacks:
        if found := state["callbacks"].get(callback.state_key):
            callback.load_state_dict(found)
    trainer.callback_metrics.update(state["metrics"])
    trainer.should_stop = state["should_stop"]
    # The counters stand as in a run that goes on. Lightning's own restart would, where workers load the data, shuffle
    # the first epoch as if it were epoch 0.
    for counter in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
        counter.ready = counter.started = counter.processed = counter.completed = state["epoch"]
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.load_state_dict(state["batches"])
    loop.automatic_optimization.optim_progress.load_state_dict(state["steps"])
    loop.on_load_checkpoint(state["logged"])


def callback_states(trainer) -> dict[str, dict]:
    """Return the states of a trainer's callbacks; TypeError for one that a checkpoint cannot hold."""
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
    for key, state in states.items():
        if state and not _can_hold(state):
            raise TypeError(
                f"checkpoint_folder cannot keep the state of the callback {key}, only tensors and plain values: leave "
                "out the callback, or set checkpoint_folder=None"
            )
    return states


def _can_hold(value) -> bool:
    """Whether a checkpoint with this value in it could be read again."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # of pickle, of torch, or of the value's own
        return False
    return True


def _differences(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*now, *then]):
        before, after = then.get(name), now.get(name)
        if name == "parameters":
            yield from _differences(before or {}, after or {})
        elif before != after:
            yield f"{name} was {before!r} and is {after!r}"


def fingerprint(estimator, network: nn.Module, train: Dataset, valid: Dataset | None, seed: int) -> dict[str, Any]:
    """Describe all that shapes the result of a run, in plain values.

    A run may be prolonged by a larger `max_epochs`, unless its learning rates depend on it (schedules of a cosine).
    The network's weights count if `warm_start` is set; otherwise the seed makes them.
    """
    params = estimator.get_params(deep=False)
    kept = {k: _plain(v) for k, v in params.items() if k not in WITHOUT_EFFECT | HELD_APART}
    if params["lr_schedule"].endswith("cosine"):
        kept["max_epochs"] = _plain(params["max_epochs"])
    warm = getattr(estimator, "warm_start", False)
    return {
        "estimator": type(estimator).__name__,
        "parameters": kept,
        "seed": seed,
        "training windows": len(train),  # type: ignore[arg-type]
        "training data": _checksum(train),
        "validation windows": 0 if valid is None else len(valid),  # type: ignore[arg-type]
        "validation data": None if valid is None else _checksum(valid),
        "starting weights": _checksum(network.state_dict()) if warm else None,
    }


def _plain(value) -> Any:
    """Give a value as plain numbers, text and containers; of other objects, their class stands for them."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _checksum(value) -> str:
    digest, seen = hashlib.blake2b(digest_size=8), set()
    _hash(value, digest, seen)
    if not seen:
        raise TypeError(f"{type(value).__name__} holds no tensor that a checkpoint could know it by")
    return digest.hexdigest()


def _hash(value, digest, seen: set) -> None:
    """Hash the tensors, arrays and plain values of datasets and containers; whatever else they hold is no data."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        with warnings.catch_warnings(action="ignore"):  # the array may be read-only
            value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        _hash_tensor(value.detach(), digest, seen)
    elif isinstance(value, Dataset) or dataclasses.is_dataclass(value):
        _hash(vars(value), digest, seen)
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _hash(value[name], digest, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            _hash(item, digest, seen)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(repr(value).encode())


def _hash_tensor(x: Tensor, digest, seen: set) -> None:
    digest.update(f"{tuple(x.shape)} {x.stride()} {x.dtype}".encode())
    if not x.numel():
        return
    # Windows are views that overlap: the stretch of memory under them is hashed, and once.
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    flat = x.as_strided((span,), (1,), x.storage_offset()).view(torch.uint8)
    place = (flat.device, flat.data_ptr(), flat.numel())
    if place in seen:
        return
    seen.add(place)
    if flat.numel() <= HASHED_WHOLE:
        digest.update(flat.cpu().numpy().data)
        return
    for start in np.linspace(0, flat.numel() - BLOCK, HASHED_WHOLE // BLOCK).astype(np.int64):
        digest.update(flat[start : start + BLOCK].cpu().numpy().data)

"""Fits a network: the one LightningModule and the one Trainer of the library, and the only file that imports Lightning.

Silent and file-free by default: no logger, no checkpoint, no model summary. The best weights are kept in memory.

Shuffling and dropout of an epoch depend on the seed and the epoch's number alone, so that a resumed run needs no stored
generators to end in the weights of one that was never cut.
"""

import contextlib
import logging
import math
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ProgressBar
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ssmseq import checkpoints
from ssmseq.base import check_choice, check_number
from ssmseq.memory import apply_network, check_memory
from ssmseq.nn.losses import Loss
from ssmseq.sampling import EpochSampler, PartSampler, mixed_seed
from ssmseq.schedules import SCHEDULES, scheduler

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
NAMED = {"max_epochs", "accelerator", "devices", "strategy", "num_nodes", "precision", "callbacks", "logger"}
OWNED = {"enable_checkpointing", "enable_model_summary", "enable_progress_bar", "num_sanity_val_steps"}
OWNED |= {"use_distributed_sampler"}


def _check_parameters(e) -> None:
    check_number("learning_rate", e.learning_rate, above=0)
    check_number("batch_size", e.batch_size, minimum=1, integer=True)
    check_number("max_epochs", e.max_epochs, minimum=1, integer=True)
    check_number("weight_decay", e.weight_decay, minimum=0)
    check_number("num_workers", e.num_workers, minimum=0, integer=True)
    if e.patience is not None:
        check_number("patience", e.patience, minimum=1, integer=True)
    check_choice("optimizer", e.optimizer, tuple(OPTIMIZERS))
    check_choice("lr_schedule", e.lr_schedule, SCHEDULES)
    for key in e.trainer_params or {}:
        if key in NAMED:
            raise ValueError(f"trainer_params may not hold {key!r}; it is a parameter of its own: set {key}=")
        if key in OWNED:
            raise ValueError(f"trainer_params may not hold {key!r}; the library decides it (progress by `verbose`)")
    if not isinstance(e.callbacks or [], list | tuple):
        raise TypeError(f"callbacks must be a list of lightning.pytorch callbacks, got {type(e.callbacks).__name__}")
    for callback in e.callbacks or []:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks must be lightning.pytorch callbacks, got {type(callback).__module__}."
                f"{type(callback).__name__}; import them from lightning.pytorch, not from pytorch_lightning"
            )


class _Module(pl.LightningModule):
    def __init__(self, network: nn.Module, estimator, losses: dict[str, Loss], samplers):
        super().__init__()
        self.network, self.estimator, self.losses = network, estimator, losses
        self.sampler, self.valid_sampler = samplers
        self.sums = {}

    def setup(self, stage):
        self.sampler.seed = self.trainer.strategy.broadcast(self.sampler.seed)  # all processes share one permutation
        for sampler in (self.sampler, self.valid_sampler):
            sampler.share(self.trainer.global_rank, self.trainer.world_size)

    def on_train_epoch_start(self):
        # Dropout draws from the global generators, which the caller of `fit_network` gives back as they were.
        torch.manual_seed(mixed_seed(self.sampler.seed, self.current_epoch, self.global_rank + 1))

    def _step(self, part: str, batch):
        inputs, targets = batch
        loss = self.losses[part](apply_network(self.network, inputs), targets)
        n_observed = (~targets.isnan()).sum()
        total, count = self.sums.get(part, (0.0, 0))
        wide = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))  # a sum in bfloat16 would stand still
        self.sums[part] = (total + wide * n_observed, count + n_observed)
        return loss

    def training_step(self, batch, _):
        return self._step("train_loss", batch)

    def validation_step(self, batch, _):
        self._step("valid_loss", batch)

    def log_mean(self, part: str) -> None:
        # Summed here and logged once an epoch: logging every step would cost more Python than a small step computes.
        total, count = self.sums.pop(part)
        sums = torch.stack([total, torch.as_tensor(count, dtype=total.dtype, device=total.device)])
        total, count = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.log(part, total / count, prog_bar=True, sync_dist=self.trainer.world_size > 1)

    def on_validation_epoch_end(self):
        self.log_mean("valid_loss")

    def configure_optimizers(self):
        e = self.estimator
        decayed, kept = [], []
        for parameter in self.network.parameters():
            (kept if getattr(parameter, "_no_weight_decay", False) else decayed).append(parameter)
        groups = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
        optimizer = OPTIMIZERS[e.optimizer](
            [g for g in groups if g["params"]], lr=e.learning_rate, weight_decay=e.weight_decay, fused=_can_fuse(self)
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler(e.lr_schedule, optimizer, self.trainer)}


def _can_fuse(module) -> bool:
    clips = getattr(module.trainer, "gradient_clip_val", None)
    return module.device.type in ("cpu", "cuda") and not (clips and "mixed" in str(module.trainer.precision))


class _Progress(Callback):
    """A bar over all steps on stderr; one line per epoch where stderr is not a terminal."""

    bar: tqdm

    def __init__(self, title: str):
        self.title = f"{title}: " if title else ""

    def on_train_start(self, trainer, pl_module):
        steps = int(trainer.num_training_batches)
        hidden = not (sys.stderr.isatty() and trainer.is_global_zero)
        done, total = steps * trainer.current_epoch, steps * trainer.max_epochs if trainer.max_epochs else None
        self.bar = tqdm(initial=done, total=total, file=sys.stderr, disable=hidden, unit="step")

    def on_train_epoch_start(self, trainer, pl_module):
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.bar.update()

    def on_train_epoch_end(self, trainer, pl_module):
        found = trainer.callback_metrics
        losses = [f"{k} {float(found[k]):.4f}" for k in ("train_loss", "valid_loss") if k in found]
        line = "  ".join([f"{self.title}epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", *losses])
        if not self.bar.disable:
            self.bar.set_description(line)
        elif trainer.is_global_zero:
            print(f"{line}  {time.perf_counter() - self.started:.1f} s", file=sys.stderr, flush=True)

    def teardown(self, trainer, pl_module, stage):
        if hasattr(self, "bar"):
            self.bar.close()


class _Patience(EarlyStopping):
    """Early stopping that a user's own EarlyStopping may stand beside, and that waits for the first validation."""

    def __init__(self, patience: int):
        super().__init__("valid_loss", patience=patience, strict=False)

    @property
    def state_key(self) -> str:
        return "ssmseq.patience"


class _Recorder(Callback):
    """One row per epoch, the best weights, and whether the user interrupted."""

    def __init__(self, validates: bool):
        self.validates = validates
        self.rows: list[dict] = []
        self.best: dict | None = None
        self.best_loss, self.interrupted = float("inf"), False
        self.started, self.rate = 0.0, 0.0

    def on_train_epoch_start(self, trainer, pl_module: Any):
        self.started = time.perf_counter()
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the epoch's end it is already the next one's

    def on_validation_end(self, trainer, pl_module: Any):
        loss = float(trainer.callback_metrics["valid_loss"])
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {k: v.detach().clone() for k, v in pl_module.network.state_dict().items()}

    def on_train_epoch_end(self, trainer, pl_module: Any):
        pl_module.log_mean("train_loss")
        parts = ("train_loss", "valid_loss")[: 1 + self.validates]
        losses = {k: float(trainer.callback_metrics.get(k, "nan")) for k in parts}  # validation may skip epochs
        seconds = time.perf_counter() - self.started
        self.rows.append({"epoch": trainer.current_epoch + 1, **losses, "learning_rate": self.rate, "seconds": seconds})

    def diverged(self) -> bool:
        """Whether the last epoch, whose weights would be kept, ended without a finite loss."""
        return bool(self.rows) and not math.isfinite(self.rows[-1]["train_loss"])

    def on_exception(self, trainer, pl_module, exception):
        self.interrupted = isinstance(exception, KeyboardInterrupt)


class _Keeper(Checkpoint):
    """Writes the state of the run after every epoch, and takes it up again.

    Lightning runs callbacks of this kind last: after the recorder, and after patience has counted the epoch.
    """

    def __init__(self, folder: Path, fingerprint: dict, recorder: _Recorder, state: dict | None):
        self.folder, self.fingerprint, self.recorder, self.state = folder, fingerprint, recorder, state

    def on_fit_start(self, trainer, pl_module: Any):
        strategy = trainer.strategy
        if not (isinstance(strategy, SingleDeviceStrategy) or type(strategy) is DDPStrategy):
            raise ValueError(
                f"checkpoint_folder needs the whole network in every process, which {type(strategy).__name__} does not "
                "promise: set strategy='ddp', or callbacks=[ModelCheckpoint()] in place of checkpoint_folder"
            )
        checkpoints.callback_states(trainer)  # an error now is better than after the first epoch
        if self.state is not None:
            checkpoints.restore(trainer, pl_module.network, self.state)
            vars(self.recorder).update(self.state["recorder"])
            if pl_module.estimator.verbose and trainer.is_global_zero:
                ended = trainer.should_stop or self.state["epoch"] == trainer.max_epochs
                line = f"after epoch {self.state['epoch']} of {trainer.max_epochs} from {self.folder}"
                print("nothing left to train" if ended else "resuming", line, file=sys.stderr, flush=True)
            self.state = None  # as large as weights and optimiser together

    def on_train_epoch_end(self, trainer, pl_module: Any):
        if trainer.is_global_zero:
            recorder = {name: getattr(self.recorder, name) for name in ("rows", "best", "best_loss")}
            state = checkpoints.run_state(trainer, pl_module.network)
            checkpoints.write(self.folder, {"fingerprint": self.fingerprint, "recorder": recorder, **state})


def fit_network(
    network: nn.Module, estimator, train: Dataset, valid: Dataset | None, losses: dict[str, Loss], seed: int, title=""
) -> pd.DataFrame:
    """Train a network in place and leave the best weights in it.

    Parameters
    ----------
    network : torch.nn.Module
        Maps a batch of inputs to a batch of predictions.
    estimator : SequenceEstimator
        Its training parameters are read: learning_rate, batch_size, max_epochs, patience, ...
    train, valid : torch.utils.data.Dataset
        Fetched a batch at a time through ``__getitems__``, giving (inputs, targets); inputs are a tensor, or tensors by
        the names of the network's arguments. Targets hold NaN where nothing was observed. A `train` whose attribute
        `numbers_epochs` is true is asked for item ``epoch * len(train) + i``, so that it can draw anew. Without `valid`
        there is no early stopping and the last weights stay.
    losses : dict of callable
        "train_loss" and "valid_loss" map predictions and targets to the mean over the targets observed.
    seed : int
        Of shuffling and dropout, by way of `checkpoints.resumable_seed`; the caller seeds the rest, and keeps torch's
        global generators apart (``fork_rng``).
    title : str
        Begins the lines of progress.

    Returns
    -------
    history : pandas.DataFrame
        Columns epoch, train_loss, valid_loss, learning_rate, seconds; one row per finished epoch. ``attrs`` holds
        "interrupted" if the user did.

    Raises
    ------
    ValueError
        For a training parameter that cannot work, or a `checkpoint_folder` that cannot be written to or is of another
        run, before any training; or if the validation loss is never finite.
    TypeError
        For a callback of another namespace than lightning.pytorch.
    MemoryError
        If a step would take more memory than is free, before any training.

    Warns
    -----
    UserWarning
        If interrupted; the network then holds the best weights so far.
    """
    _check_parameters(estimator)
    network.train()
    recorder = _Recorder(valid is not None)
    keeper = _keeper(network, estimator, train, valid, seed, recorder)
    sampler = EpochSampler(len(train), seed, numbers_epochs=getattr(train, "numbers_epochs", False))  # type: ignore[arg-type]
    samplers = sampler, PartSampler(0 if valid is None else len(valid))  # type: ignore[arg-type]
    with _quiet(), _interruptible(recorder):
        trainer = _trainer(estimator, recorder, keeper, title)
        window, _ = train.__getitems__([0])  # type: ignore[attr-defined]
        device, precision = trainer.strategy.root_device, trainer.precision
        check_memory(network, window, estimator.batch_size, device=device, precision=precision)
        module = _Module(network, estimator, losses, samplers)
        trainer.fit(module, *_loaders(estimator, train, valid, samplers, trainer.world_size))
    if recorder.best is not None:
        network.load_state_dict(recorder.best)
    elif not recorder.interrupted and recorder.diverged():
        raise ValueError(
            f"training diverged: the loss was never finite, or not at the end, in {len(recorder.rows)} epoch(s); lower "
            f"learning_rate (now {estimator.learning_rate}) or look for extreme values in the data"
        )
    if recorder.interrupted:
        kept = "the best weights so far" if recorder.best is not None else "its last weights"
        warnings.warn(f"fit was interrupted after {len(recorder.rows)} epochs; it keeps {kept}", stacklevel=5)
    network.eval()
    columns = ["epoch", "train_loss", *(["valid_loss"] if valid is not None else []), "learning_rate", "seconds"]
    history = pd.DataFrame(recorder.rows, columns=columns)
    if recorder.interrupted:
        history.attrs["interrupted"] = True
    return history


def _keeper(network, estimator, train, valid, seed: int, recorder: _Recorder) -> _Keeper | None:
    folder = checkpoints.folder_of(estimator)
    if folder is None:
        return None
    fingerprint = checkpoints.fingerprint(estimator, network, train, valid, seed)
    state = checkpoints.open_folder(folder, fingerprint, estimator.max_epochs)
    return _Keeper(folder, fingerprint, recorder, state)


def _loaders(estimator, train, valid, samplers, world_size: int) -> tuple[DataLoader, DataLoader | None]:
    size = estimator.batch_size
    # A loader draws from its generator whenever it starts; without one of its own it would take torch's.
    common = {
        "batch_size": size,
        "num_workers": estimator.num_workers,
        "collate_fn": _as_it_is,
        "generator": torch.Generator(),
    }
    shuffled = DataLoader(train, sampler=samplers[0], drop_last=len(train) // world_size >= size, **common)
    return shuffled, None if valid is None else DataLoader(valid, sampler=samplers[1], **common)


def _as_it_is(batch):
    return batch


def _trainer(estimator, recorder: _Recorder, keeper: _Keeper | None, title: str) -> pl.Trainer:
    e = estimator
    callbacks = [*(e.callbacks or []), recorder, *([keeper] if keeper else [])]
    if recorder.validates and e.patience is not None:
        callbacks.append(_Patience(e.patience))
    if e.verbose:
        callbacks.append(_Progress(title))
    return pl.Trainer(
        max_epochs=e.max_epochs,
        accelerator=e.accelerator,
        devices=e.devices,
        strategy=e.strategy,
        num_nodes=e.num_nodes,
        precision=e.precision,
        callbacks=callbacks,
        logger=e.logger,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # `EpochSampler` and `PartSampler` know the processes
        **(e.trainer_params or {}),
    )


@contextlib.contextmanager
def _quiet():
    """Keep Lightning from advertising and from advising on loaders that are as they are on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*")
            warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def _interruptible(recorder: _Recorder):
    """Swallow the exit that Lightning makes of an interrupt, and give the signal handler back, which it takes away."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not recorder.interrupted:
            raise
    finally:
        if in_main and handler is not None:
            signal.signal(signal.SIGINT, handler)

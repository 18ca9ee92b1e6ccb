"""Checkpoints: a run that was cut, by Ctrl-C or by force, ends bit for bit as one that never was."""

import os
import pickle
import random
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import ssmseq.training
from ssmseq import checkpoints
from ssmseq.sampling import EpochSampler

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Interrupt(Callback):
    """Presses Ctrl-C in the middle of an epoch, counted from 1."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch - 1 and batch_idx == 2:
            raise KeyboardInterrupt


class Steps(Callback):
    """Counts steps."""

    count = 0

    def on_train_batch_end(self, *args):
        self.count += 1


def keeping(est, folder):
    est.checkpoint_folder = folder
    return est


def cut(est, folder, epoch: int):
    """Fit and interrupt in an epoch."""
    callbacks = est.callbacks
    est.set_params(callbacks=[*(callbacks or []), Interrupt(epoch)])
    with pytest.warns(UserWarning, match=f"interrupted after {epoch - 1} epoch"):
        keeping(est, folder).fit(est.frame)
    assert sorted(os.listdir(folder)) == (["last.ckpt"] if epoch > 1 else [])


def assert_same(one, other) -> None:
    ours, theirs = (e.network_.state_dict() for e in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype
        assert torch.equal(weight, theirs[name]), name
    histories = [e.history_.drop(columns="seconds") for e in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


@pytest.fixture
def runs(small, waves):
    """A function that makes forecasters of four epochs with dropout, which hold their frame."""

    def make(**changes):
        est = small(**{"max_epochs": 4, "dropout": 0.1, "lr_schedule": "halve"} | changes)
        est.frame = waves
        return est

    return make


# The same end ---------------------------------------------------------------------------------------------------------


CASES = [
    {},
    {"num_workers": 1},
    {"lr_schedule": "cosine"},
    {"validation_fraction": 0},
    {"precision": "64-true"},
    {"precision": "bf16-mixed"},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"trainer_params": {"accumulate_grad_batches": 3}},
    {"trainer_params": {"val_check_interval": 0.5}},
    {"trainer_params": {"check_val_every_n_epoch": 2}},
    {"trainer_params": {"max_steps": 21}},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_run_cut_by_ctrl_c_ends_as_one_that_was_not(runs, waves, tmp_path, changes):
    whole = runs(**changes).fit(waves)
    for epoch in (2, 3):
        folder = tmp_path / str(epoch)
        cut(runs(**changes), folder, epoch)
        assert_same(keeping(runs(**changes), folder).fit(waves), whole)


def test_a_run_cut_again_and_again_ends_as_one_that_was_not(runs, waves, tmp_path):
    for epoch in (1, 2, 2, 3, 4):
        cut(runs(), tmp_path, epoch)
    assert_same(keeping(runs(), tmp_path).fit(waves), runs().fit(waves))


def test_an_interrupted_estimator_goes_on_when_fitted_again(runs, waves, tmp_path):
    est = runs()
    cut(est, tmp_path, 3)
    est.set_params(callbacks=None).fit(waves)
    assert_same(est, runs().fit(waves))


KILLED = """
import os, signal, sys, numpy as np, torch
from lightning.pytorch import Callback
from ssmseq import SMambaForecaster
moment, folder = sys.argv[1:]
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
class Kill(Callback):
    def on_train_epoch_start(self, trainer, module):
        if moment == "between" and trainer.current_epoch == 2:
            kill()
save = torch.save
def save_half(state, file):
    if moment == "writing" and state.get("epoch") == 3:
        file.write(b"PK half of a checkpoint")
        file.flush()
        kill()
    save(state, file)
torch.save = save_half
est = SMambaForecaster(horizon=4, lookback=8, d_model=16, d_ff=16, n_layers=1, max_epochs=4, batch_size=16,
                       learning_rate=1e-3, random_state=0, accelerator="cpu", callbacks=[Kill()])
est.checkpoint_folder = folder
est.fit(np.sin(np.arange(200.0)[:, None] / [3, 5, 9]))
"""


@pytest.mark.parametrize("moment", ["between", "writing"])
def test_a_killed_process_leaves_its_last_full_epoch(runs, tmp_path, moment):
    command = [sys.executable, "-c", KILLED, moment, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert len(list(tmp_path.glob("*.partial"))) == (moment == "writing")
    assert checkpoints.read(tmp_path)["epoch"] == 2
    frame, steps = np.sin(np.arange(200.0)[:, None] / [3, 5, 9]), Steps()
    est = keeping(runs(callbacks=[steps]), tmp_path).fit(frame)
    assert_same(est, runs().fit(frame))
    assert steps.count == 2 * (149 // 16)  # of 160 training rows, those of two epochs


def test_patience_counts_on_over_the_cut(runs, tmp_path):
    noise = np.random.default_rng(1).normal(size=(200, 3))  # nothing to learn: the validation loss soon rises
    options = {"learning_rate": 3e-2, "patience": 3, "max_epochs": 20, "lr_schedule": "constant"}
    whole = runs(**options).fit(noise)
    stopped, best = len(whole.history_), whole.history_["valid_loss"].idxmin() + 1
    assert best + 3 == stopped < 20
    for epoch in (best + 2, best + 3):  # one or two epochs without progress lie before the cut
        est = runs(**options)
        est.frame = noise
        cut(est, tmp_path / str(epoch), epoch)
        assert_same(keeping(runs(**options), tmp_path / str(epoch)).fit(noise), whole)


def test_a_finished_run_is_taken_up_without_a_step(runs, waves, tmp_path):
    for name, changes in {"full": {}, "stopped": {"learning_rate": 1e-12, "patience": 1}}.items():
        whole = keeping(runs(**changes), tmp_path / name).fit(waves)
        assert len(whole.history_) == 4 or name == "stopped"
        content, steps = (tmp_path / name / "last.ckpt").read_bytes(), Steps()
        again = keeping(runs(callbacks=[steps], **changes), tmp_path / name).fit(waves)
        assert_same(again, whole)
        assert again.history_["seconds"].equals(whole.history_["seconds"])
        assert steps.count == 0
        assert not again.network_.training
        assert (tmp_path / name / "last.ckpt").read_bytes() == content


def test_a_checkpoint_changes_nothing_in_the_run(runs, waves, tmp_path):
    assert_same(keeping(runs(), tmp_path).fit(waves), runs().fit(waves))


def test_a_longer_run_prolongs_a_shorter_one(runs, waves, tmp_path):
    keeping(runs(max_epochs=2), tmp_path).fit(waves)
    assert_same(keeping(runs(max_epochs=5), tmp_path).fit(waves), runs(max_epochs=5).fit(waves))
    with pytest.raises(ValueError, match="holds a run of 5 epochs, more than max_epochs=4; set checkpoint_folder"):
        keeping(runs(), tmp_path).fit(waves)
    keeping(runs(lr_schedule="cosine"), tmp_path / "cosine").fit(waves)
    with pytest.raises(ValueError, match="another run: max_epochs was 4 and is 5;"):
        keeping(runs(lr_schedule="cosine", max_epochs=5), tmp_path / "cosine").fit(waves)


def test_states_of_callbacks_go_on(runs, waves, tmp_path):
    def options(folder):
        stop = EarlyStopping("train_loss", patience=2, min_delta=0.02)
        return {"max_epochs": 9, "patience": None, "callbacks": [stop, ModelCheckpoint(dirpath=tmp_path / folder)]}

    whole = runs(**options("a")).fit(waves)
    assert 3 < len(whole.history_) < 9
    cut(runs(**options("b")), tmp_path / "kept", len(whole.history_))
    assert_same(keeping(runs(**options("b")), tmp_path / "kept").fit(waves), whole)
    for folder in ("a", "b"):
        (file,) = (tmp_path / folder).glob("*.ckpt")
        assert torch.load(file, weights_only=False)["epoch"] == len(whole.history_) - 1


# What is said and kept ------------------------------------------------------------------------------------------------


def test_resuming_is_told_in_one_line_and_the_bar_starts_there(runs, waves, tmp_path, capfd, monkeypatch):
    cut(runs(), tmp_path, 3)
    capfd.readouterr()
    bars, tqdm = [], ssmseq.training.tqdm
    monkeypatch.setattr("ssmseq.training.tqdm", lambda **options: bars.append(options) or tqdm(**options))
    keeping(runs(verbose=1), tmp_path).fit(waves)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert lines[0] == f"resuming after epoch 2 of 4 from {tmp_path}"
    assert [line.split("  ")[0] for line in lines[1:]] == ["epoch 3/4", "epoch 4/4"]
    assert out == ""
    steps = 149 // 16
    assert [(bar["initial"], bar["total"]) for bar in bars] == [(2 * steps, 4 * steps)]
    keeping(runs(verbose=1), tmp_path).fit(waves)
    assert capfd.readouterr().err == f"nothing left to train after epoch 4 of 4 from {tmp_path}\n"
    keeping(runs(), tmp_path).fit(waves)
    assert capfd.readouterr() == ("", "")


def test_global_generators_stay_untouched(runs, waves, tmp_path):
    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    before = states()
    cut(runs(), tmp_path, 2)
    assert states() == before
    keeping(runs(), tmp_path).fit(waves)
    assert states() == before


def test_the_file_holds_tensors_and_plain_values_alone(runs, waves, tmp_path):
    keeping(runs(), str(tmp_path / "new" / "folder")).fit(waves)  # which is made
    (file,) = (tmp_path / "new" / "folder").iterdir()
    state = torch.load(file, weights_only=True)
    assert (state["format"], state["epoch"]) == (1, 4)


def test_dropout_does_not_depend_on_how_often_is_validated(runs, waves):
    losses = [
        runs(patience=None, **options).fit(waves).history_["train_loss"].tolist()
        for options in ({}, {"trainer_params": {"val_check_interval": 0.25}}, {"num_workers": 1})
    ]
    assert losses[0] == losses[1] == losses[2]


def test_lightning_sets_the_epoch_also_after_resuming(runs, waves, tmp_path, monkeypatch):
    drawn, iterate = [], EpochSampler.__iter__
    monkeypatch.setattr(EpochSampler, "__iter__", lambda self: drawn.append(self.epoch) or iterate(self))
    cut(runs(), tmp_path, 3)
    assert drawn == [0, 1, 2]
    drawn.clear()
    keeping(runs(), tmp_path).fit(waves)
    assert drawn == [2, 3]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(runs, tmp_path):
    """A folder with the checkpoint of one epoch."""
    cut(runs(), tmp_path / "kept", 2)
    return tmp_path / "kept"


CHANGES = {
    "learning_rate": 2e-3,
    "batch_size": 15,
    "patience": 2,
    "dropout": 0.2,
    "loss": "mae",
    "optimizer": "adamw",
    "precision": "64-true",
    "trainer_params": {"gradient_clip_val": 1.0},
    "d_model": 24,
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_parameter_is_refused_by_name(runs, waves, kept, no_training, name):
    old, new = getattr(runs(), name), CHANGES[name]
    with pytest.raises(ValueError) as error:
        keeping(runs(**{name: new}), kept).fit(waves)
    remedy = f"set checkpoint_folder to another folder, or delete {kept / 'last.ckpt'} to train from the start"
    assert (
        str(error.value) == f"{kept} holds the checkpoint of another run: {name} was {old!r} and is {new!r}; {remedy}"
    )


def test_other_data_another_seed_and_another_class_are_refused(runs, waves, kept, no_training):
    def refuse(match, frame=waves, validation=None, **changes):
        with pytest.raises(ValueError, match=f"another run: {match}.*to another folder, or delete"):
            keeping(runs(**changes), kept).fit(frame, validation=validation)

    changed = waves.copy()
    changed.iloc[5, 1] *= 1.001
    refuse("training data was '[0-9a-f]{16}' and is '[0-9a-f]{16}'", changed)
    changed = waves.copy()
    changed.iloc[-1, 1] *= 1.001
    refuse("validation data was", changed)
    refuse("training windows was 149 and is 145", waves.iloc[5:])
    refuse("seed was", random_state=1)
    est = type("Other", (type(runs()),), {"__init__": type(runs()).__init__})(**runs().get_params())
    with pytest.raises(ValueError, match="estimator was 'SMambaForecaster' and is 'Other'"):
        keeping(est, kept).fit(waves)


def test_what_does_not_shape_the_result_may_differ(runs, waves, kept):
    changes = {"verbose": 1, "num_workers": 1, "devices": 1, "callbacks": [Steps()], "accelerator": "auto"}
    assert_same(keeping(runs(**changes), kept).fit(waves), runs().fit(waves))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", None, {"format": 0}, [1]], ids=str)
def test_a_damaged_or_foreign_file_is_refused(runs, waves, kept, no_training, content):
    path = kept / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.write_bytes(path.read_bytes()[:-500])
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"last\.ckpt (cannot be read|is not) .*checkpoint.*delete it to train"):
        keeping(runs(), kept).fit(waves)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_never_run(runs, waves, kept, tmp_path, no_training):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    for save in (partial(torch.save, Trap()), lambda file: file.write_bytes(pickle.dumps(Trap()))):
        save(kept / "last.ckpt")
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            keeping(runs(), kept).fit(waves)
    assert not (tmp_path / "sprung").exists()


# Seeds ----------------------------------------------------------------------------------------------------------------


def test_a_run_without_a_random_state_keeps_the_seed_that_it_drew(runs, kept, tmp_path):
    stored = checkpoints.read(kept)["fingerprint"]["seed"]
    for state in (None, np.random.RandomState(0)):
        assert checkpoints.resumable_seed(keeping(runs(random_state=state), kept), stored + 1) == stored
        assert checkpoints.resumable_seed(keeping(runs(random_state=state), tmp_path / "none"), 7) == 7
        assert checkpoints.resumable_seed(runs(random_state=state), 7) == 7
    for state in (3, np.int64(3)):
        assert checkpoints.resumable_seed(keeping(runs(random_state=state), kept), 7) == 7

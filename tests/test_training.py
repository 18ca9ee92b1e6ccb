"""Training: silence, interrupts, divergence, Lightning's own options, processes side by side."""

import io
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar

LIGHTNING_LOGS = ("lightning", "lightning.pytorch", "lightning.fabric")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Counter(Callback):
    """Counts epochs; its state is the test's evidence."""

    def __init__(self):
        self.epochs = 0

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs += 1


class Interrupt(Callback):
    """Presses Ctrl-C in the middle of an epoch, counted from 1."""

    def __init__(self, epoch: int, real: bool = False):
        self.epoch, self.real = epoch, real

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch - 1 and batch_idx == 2:
            if self.real:
                signal.raise_signal(signal.SIGINT)
            raise KeyboardInterrupt


# Silence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"validation_fraction": 0}, {"precision": "64-true"}, {"batch_size": 1000}], ids=str
)
def test_fitting_is_silent_and_leaves_no_file(small, waves, capfd, caplog, tmp_path, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        est = small(**changes).fit(waves)
        est.predict()
        est.evaluate(waves)
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")
    assert [str(w.message) for w in caught] == []
    assert not list(tmp_path.iterdir())


def test_verbose_writes_a_line_per_epoch_to_stderr(small, waves, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    est = small(verbose=1).fit(waves)
    out, err = capfd.readouterr()
    lines = [line.rpartition("  ")[0] for line in err.splitlines()]  # without the seconds
    rows = est.history_.itertuples()
    assert lines == [f"epoch {r.epoch}/2  train_loss {r.train_loss:.4f}  valid_loss {r.valid_loss:.4f}" for r in rows]
    assert out == ""
    assert not list(tmp_path.iterdir())


def test_verbose_draws_a_bar_on_a_terminal(small, waves, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    est = small(verbose=1).fit(waves)
    text = terminal.getvalue()
    assert "100%" in text
    assert f"valid_loss {est.history_['valid_loss'][1]:.4f}" in text.splitlines()[-1]
    assert text.endswith("\n")


def test_filters_levels_handlers_and_defaults_come_back(small, waves):
    small(max_epochs=1).fit(waves)  # importing Lightning sets its own up, once

    def state():
        levels = [logging.getLogger(name).level for name in LIGHTNING_LOGS]
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        torchs = torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()
        return levels, handlers, torchs, list(warnings.filters), dict(os.environ), torch.get_num_threads()

    level = logging.getLogger("lightning.pytorch").level
    logging.getLogger("lightning.pytorch").setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.resetwarnings()  # no filter at all: one that is left behind cannot hide among others
            before = state()
            small(precision="64-true").fit(waves)
            assert state() == before
            with pytest.warns(UserWarning, match="interrupted"):
                small(callbacks=[Interrupt(1)]).fit(waves)
            assert state() == before
            with pytest.raises(ValueError, match="diverged"):
                small(learning_rate=1e30).fit(waves)
            assert state() == before
    finally:
        logging.getLogger("lightning.pytorch").setLevel(level)


# Interrupts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [False, True], ids=["exception", "signal"])
def test_interrupt_keeps_the_best_epoch(small, waves, real):
    handler = signal.getsignal(signal.SIGINT)
    first = small(max_epochs=1).fit(waves)
    with pytest.warns(UserWarning, match="interrupted after 1 epoch.*best weights") as caught:
        est = small(max_epochs=5, callbacks=[Interrupt(2, real)]).fit(waves)
    assert [w.filename for w in caught if "interrupted" in str(w.message)] == [__file__]
    assert est.history_["epoch"].tolist() == [1]
    assert est.n_iter_ == 1
    for name, weight in first.network_.state_dict().items():
        assert torch.equal(weight, est.network_.state_dict()[name]), name
    assert (est.predict() == first.predict()).all(axis=None)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not est.network_.training


def test_interrupt_in_the_first_epoch_still_gives_a_fitted_estimator(small, waves):
    with pytest.warns(UserWarning, match="interrupted after 0 epochs.*last weights"):
        est = small(callbacks=[Interrupt(1)]).fit(waves)
    assert len(est.history_) == 0
    assert list(est.history_.columns) == ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]
    assert np.isfinite(est.predict()).all(axis=None)
    assert np.isfinite(est.evaluate(waves)["mse"])


def test_interrupt_without_validation_says_which_weights_it_keeps(small, waves):
    with pytest.warns(UserWarning, match="interrupted after 2 epochs") as caught:
        est = small(max_epochs=4, validation_fraction=0, callbacks=[Interrupt(3)]).fit(waves)
    assert len(est.history_) == 2
    assert not [w for w in caught if "first epoch" in str(w.message)]


def test_other_exceptions_pass_through(small, waves):
    for error in (RuntimeError("boom"), SystemExit(3)):
        callback = Callback()
        callback.on_train_epoch_end = lambda trainer, pl_module, error=error: (_ for _ in ()).throw(error)
        est = small(callbacks=[callback])
        with pytest.raises(type(error), match=str(error)):
            est.fit(waves)
        assert not hasattr(est, "network_")


INTERRUPTED = """
import sys, warnings, numpy as np
from lightning.pytorch import Callback
from ssmseq import SMambaForecaster
class Tell(Callback):
    def on_train_epoch_end(self, trainer, module):
        print("epoch", flush=True)
est = SMambaForecaster(horizon=4, lookback=8, d_model=16, d_ff=16, max_epochs=100_000, lr_schedule="constant",
                       patience=None, accelerator="cpu", callbacks=[Tell()])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    est.fit(np.sin(np.arange(400.0))[:, None])
print("kept", len(est.history_), est.predict().shape, [str(w.message) for w in caught if "interr" in str(w.message)])
"""


def test_ctrl_c_sent_to_a_process_ends_the_fit_and_not_the_process(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    try:
        assert child.stdout.readline() == "epoch\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 0, err
    assert err == ""
    kept = out.splitlines()[-1].split(maxsplit=2)
    assert kept[0] == "kept"
    assert int(kept[1]) >= 1
    assert "(4, 1)" in kept[2]
    assert "best weights" in kept[2]
    assert not list(tmp_path.iterdir())


# Divergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"validation_fraction": 0}, {"patience": None}], ids=str)
def test_divergence_is_an_error_that_names_the_learning_rate(small, waves, changes):
    with pytest.raises(ValueError, match=r"diverged.*learning_rate \(now 1e\+30\)"):
        small(learning_rate=1e30, **changes).fit(waves)


# Losses and schedules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_every_loss_trains(small, waves, loss):
    history = small(loss=loss, max_epochs=5, learning_rate=1e-2, lr_schedule="constant").fit(waves).history_
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
    assert history["valid_loss"].iloc[-1] < 0.7 * history["valid_loss"].iloc[0]


def test_learning_rates_follow_the_schedule(small, waves):
    schedules = {
        "halve": [1, 1, 0.5, 0.25, 0.125],
        "cosine": [0.5 * (1 + math.cos(math.pi * e / 5)) for e in range(5)],
        "constant": [1] * 5,
    }
    for name, factors in schedules.items():
        history = small(lr_schedule=name, max_epochs=5, learning_rate=2e-3, patience=None).fit(waves).history_
        np.testing.assert_allclose(history["learning_rate"], 2e-3 * np.array(factors), rtol=1e-6)


def test_warm_up_cosine_goes_by_steps(small, waves):
    rates = []

    class Watcher(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    options = {"lr_schedule": "warmup_cosine", "max_epochs": 5, "learning_rate": 2e-3, "patience": None}
    small(**options, callbacks=[Watcher()]).fit(waves)
    n = len(rates)
    top = round(n / 10)
    falling = [0.1 + 0.45 * (1 + math.cos(math.pi * i / (n - top))) for i in range(n - top)]
    assert n > 20
    np.testing.assert_allclose(rates, 2e-3 * np.array([(i + 1) / top for i in range(top)] + falling), rtol=1e-6)


# Options of Lightning -------------------------------------------------------------------------------------------------


def test_callbacks_are_kept_and_called_by_every_fit(small, waves):
    counter = Counter()
    est = small(callbacks=[counter]).fit(waves)
    assert est.callbacks == [counter]
    est.fit(waves)
    assert est.callbacks == [counter]
    assert counter.epochs == 4


@pytest.mark.parametrize("make", [EarlyStopping, ModelCheckpoint, TQDMProgressBar], ids=lambda c: c.__name__)
def test_lightnings_own_callbacks_can_be_given(small, waves, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    options = {EarlyStopping: {"monitor": "valid_loss"}, ModelCheckpoint: {"dirpath": tmp_path}}.get(make, {})
    assert len(small(callbacks=[make(**options)]).fit(waves).history_) == 2


def test_callbacks_of_another_kind_are_refused(small, waves):
    with pytest.raises(TypeError, match=r"callbacks must be lightning\.pytorch callbacks, got builtins\.str"):
        small(callbacks=["stop"]).fit(waves)
    foreign = type("EarlyStopping", (), {"__module__": "pytorch_lightning.callbacks"})()
    with pytest.raises(TypeError, match=r"got pytorch_lightning\.callbacks\.EarlyStopping; import them from lightning"):
        small(callbacks=[foreign]).fit(waves)
    with pytest.raises((TypeError, ValueError), match=r"callbacks.*list"):
        small(callbacks=Counter()).fit(waves)


@pytest.mark.parametrize("name", ["max_epochs", "accelerator", "callbacks", "logger", "precision", "num_nodes"])
def test_trainer_params_may_not_repeat_a_parameter(small, waves, name):
    with pytest.raises(ValueError, match=f"may not hold '{name}'; it is a parameter of its own: set {name}="):
        small(trainer_params={name: 1}).fit(waves)


@pytest.mark.parametrize("name", ["enable_checkpointing", "enable_model_summary", "num_sanity_val_steps"])
def test_trainer_params_may_not_hold_what_the_library_decides(small, waves, name):
    with pytest.raises(ValueError, match=f"trainer_params may not hold '{name}'"):
        small(trainer_params={name: 1}).fit(waves)
    with pytest.raises(ValueError, match="'enable_progress_bar'.*`verbose`"):
        small(trainer_params={"enable_progress_bar": True}).fit(waves)


TRAINER_PARAMS = [
    {"gradient_clip_val": 1.0},
    {"accumulate_grad_batches": 2},
    {"check_val_every_n_epoch": 2},
    {"val_check_interval": 0.5},
    {"limit_train_batches": 3, "limit_val_batches": 1},
    {"max_steps": 5},
    {"max_time": {"minutes": 1}},
]


@pytest.mark.parametrize("params", TRAINER_PARAMS, ids=str)
def test_trainer_params_reach_the_trainer(small, waves, params):
    kept = dict(params)
    est = small(trainer_params=params).fit(waves)
    assert params == kept
    assert np.isfinite(est.predict()).all(axis=None)
    assert 1 <= est.n_iter_ == len(est.history_) <= 2


def test_a_logger_gets_the_losses(small, waves, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    est = small(logger=CSVLogger(tmp_path), callbacks=[LearningRateMonitor()]).fit(waves)
    (metrics,) = tmp_path.rglob("metrics.csv")
    text = metrics.read_text()
    assert "valid_loss" in text.splitlines()[0]
    assert f"{est.history_['valid_loss'][0]:.4f}"[:6] in text


def test_weight_decay_spares_the_scan(small, waves):
    """A huge decay with a tiny rate shrinks every weight by the same factor, the scan's own parameters by none."""
    options = {"optimizer": "adamw", "learning_rate": 1e-12, "max_epochs": 1, "batch_size": 1000}
    plain, decayed = (small(weight_decay=w, **options).fit(waves).network_.state_dict() for w in (0.0, 1e11))
    for name, weight in plain.items():
        factor = 1.0 if name.endswith(("A_log", ".D")) else 0.9
        torch.testing.assert_close(decayed[name], weight * factor, rtol=1e-4, atol=1e-7, msg=name)


def test_workers_change_nothing(small, waves):
    alone, helped = (small(max_epochs=1, num_workers=n).fit(waves) for n in (0, 1))
    assert (alone.predict() == helped.predict()).all(axis=None)


def test_fit_works_outside_the_main_thread(small, waves):
    found = []
    thread = threading.Thread(target=lambda: found.append(small().fit(waves).predict()))
    thread.start()
    thread.join(60)
    assert (found[0] == small().fit(waves).predict()).all(axis=None)


BESIDE = """
import sys, numpy as np
from ssmseq import SMambaForecaster
est = SMambaForecaster(horizon=4, lookback=8, d_model=16, d_ff=16, max_epochs=3, random_state=0, accelerator="cpu")
frame = np.sin(np.arange(300.0))[:, None]
est.fit(frame)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    est.fit(frame)
print(est.predict().tobytes().hex())
"""


def test_fits_in_processes_side_by_side_neither_meet_nor_leave_files(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = np.sin(np.arange(300.0))[:, None]
    est = small(n_layers=2, max_epochs=3, batch_size=32, learning_rate=1e-4)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    child = subprocess.Popen([sys.executable, "-c", BESIDE], text=True, env=ENVIRONMENT, **pipes)
    try:
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()
        for _ in range(5):
            est.fit(frame)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, err) == (0, "")
    assert out.strip() == est.predict().tobytes().hex()
    assert not list(tmp_path.iterdir())

"""The adapters of peers: all windows, none with what comes after it, on the scale of the training part."""

import logging
import os
import random
import subprocess
import sys
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch

from ssmseq import NaiveForecaster
from ssmseq.benchmark import peers
from ssmseq.benchmark.peers import LOCAL, NETWORKS, PEERS, Adapter, available
from ssmseq.datasets import fetch_ett

LOOKBACK, HORIZON = 32, 5
SMALL = {
    "iTransformer": {"hidden_size": 8, "d_ff": 8, "n_heads": 2},
    "PatchTST": {"hidden_size": 8, "linear_hidden_size": 8, "n_heads": 2, "encoder_layers": 1},
    "TimesNet": {"hidden_size": 4, "conv_hidden_size": 4, "top_k": 2, "num_kernels": 2},
    "TimeMixer": {"d_model": 4, "d_ff": 4, "down_sampling_layers": 2},
    "DLinear": {},
    "xLSTM": {"encoder_hidden_size": 8, "encoder_n_blocks": 1, "decoder_hidden_size": 8},
}
PUBLISHED = {  # mean squared and absolute error on ETTh1, horizon 96; the papers are named in ssmseq.benchmark.peers
    ("DLinear", 96): (0.386, 0.400),  # as arXiv 2310.06625 reports it
    ("iTransformer", 96): (0.386, 0.405),
}


def make(name, **params):
    reason = available(name)
    if reason:
        pytest.skip(reason)
    if name in LOCAL:
        return Adapter(name, HORIZON, LOOKBACK, **{"season_length": 4} | params)
    fast = {"max_epochs": 2, "batch_size": 64, "accelerator": "cpu"}
    return Adapter(name, HORIZON, LOOKBACK, **{"random_state": 0} | SMALL[name] | fast | params)


@pytest.fixture(scope="module")
def frame():
    noise = np.random.default_rng(1).normal(size=(330, 3))
    values = np.sin(np.arange(330)[:, None] / [3, 5, 9]) + 0.2 * noise
    return pd.DataFrame(values * [1, 20, 0.5] + [0, 100, -3], columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def parts(frame):
    return frame[:200], frame[200:260]


def gathered(adapter, frame):
    found = list(adapter.forecasts(frame))
    return np.concatenate([f for f, _ in found]), np.concatenate([t for _, t in found])


def windows_of(adapter, train, frame):
    """Every window of standardised rows, cut one by one."""
    scaled = ((frame - train.mean()) / train.std(ddof=0)).to_numpy()
    n = len(frame) - LOOKBACK - HORIZON + 1
    return np.stack([scaled[i : i + LOOKBACK + HORIZON].T for i in range(n)])


@pytest.mark.parametrize("name", PEERS)
def test_every_window_is_forecast_from_its_lookback_alone(name, frame, parts, monkeypatch):
    adapter = make(name).fit(*parts)
    test = frame[260 - LOOKBACK : 291]
    monkeypatch.setattr(peers, "BATCH_VALUES", 7 * 3 * (LOOKBACK + HORIZON))  # seven windows, so that batches meet
    forecast, truth = gathered(adapter, test)
    cut = windows_of(adapter, parts[0], test)
    assert forecast.shape == truth.shape == (len(test) - LOOKBACK - HORIZON + 1, 3, HORIZON) == (27, 3, 5)
    np.testing.assert_allclose(truth, cut[..., LOOKBACK:], atol=1e-12)
    for i in (0, 6, 7, 26):
        changed = test[max(0, i - 3) : i + LOOKBACK + HORIZON].copy()
        changed.iloc[-HORIZON:] = 1e4 * np.arange(1, HORIZON + 1)[:, None]
        alone, _ = gathered(adapter, changed[-LOOKBACK - HORIZON :])
        np.testing.assert_allclose(alone[0], forecast[i], atol=2e-5)
        among, _ = gathered(adapter, changed)
        np.testing.assert_allclose(among[-1], forecast[i], atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_keeps_its_best_epoch_and_repeats(name, frame, parts):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    adapter = make(name, learning_rate=0.03, max_epochs=8, patience=1, lr_schedule="constant").fit(*parts)
    losses = [loss for _, loss in adapter.model_.valid_trajectories]
    assert adapter.n_iter_ == len(losses) == min(8, int(np.argmin(losses)) + 2)
    held_out = frame[200 - LOOKBACK : 260] if name != "TimesNet" else frame[:60]
    forecast, truth = gathered(adapter, held_out)
    if name != "TimesNet":  # whose validation runs in batches, as its training does
        assert np.square(forecast - truth).mean() == pytest.approx(min(losses), rel=1e-3)
    if name == "DLinear":
        assert adapter.n_parameters_ == 2 * (LOOKBACK + 1) * HORIZON
    assert (adapter.lookback_, adapter.loss, adapter.device_) == (LOOKBACK, "mse", "cpu")
    again = make(name, learning_rate=0.03, max_epochs=8, patience=1, lr_schedule="constant").fit(*parts)
    np.testing.assert_array_equal(gathered(again, held_out)[0], forecast)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert (before[2] == after[2]).all()


def test_some_network_ends_after_its_best_epoch(parts):
    """Else the test above could not tell the best epoch from the last, nor that training ends early."""
    adapter = make("DLinear", learning_rate=0.5, max_epochs=8, patience=1, lr_schedule="constant").fit(*parts)
    losses = [loss for _, loss in adapter.model_.valid_trajectories]
    assert np.argmin(losses) < len(losses) - 1 < 7


def test_another_seed_is_another_network(frame, parts):
    first, second = (gathered(make("DLinear", random_state=seed).fit(*parts), frame)[0] for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(("schedule", "rates"), [("halve", [1, 1, 0.5, 0.25]), ("decay", [1, 1, 1, 0.9])])
def test_rates_and_epochs_are_those_of_the_literature(parts, schedule, rates):
    adapter = make("DLinear", lr_schedule=schedule, max_epochs=4, patience=None, learning_rate=0.01, batch_size=50)
    seen = []
    adapter._protocol, protocol = (lambda *args: watched(protocol(*args), seen)), adapter._protocol
    adapter.fit(*parts)
    steps = (200 - LOOKBACK - HORIZON + 1) // 50  # of complete windows of the training part
    assert seen == pytest.approx(np.repeat(np.multiply(rates, 0.01), steps))


def watched(protocol, seen):
    from pytorch_lightning.callbacks import LambdaCallback

    def note(trainer, model, *args):
        seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    protocol["callbacks"].append(LambdaCallback(on_train_batch_start=note))
    return protocol


def test_networks_train_on_complete_windows_before_the_validation_part(parts):
    """Windows that run out of the training part would have a mask with zeros, or values that it does not hold."""
    adapter = make("DLinear", max_epochs=1, batch_size=8)
    found = []
    adapter._protocol, protocol = (lambda *args: caught(protocol(*args), found)), adapter._protocol
    adapter.fit(*parts)
    seen = np.concatenate([np.concatenate([x, y], 1) for x, y in found])
    train = windows_of(adapter, parts[0], parts[0]).reshape(-1, LOOKBACK + HORIZON)
    assert len(seen) == 164 // 8 * 8 * 3
    distances = np.abs(seen[:, None] - train[None]).max(2).min(1)
    assert distances.max() < 1e-5


def caught(protocol, found):
    kind = type(protocol["loss"])

    class Caught(kind):
        def __call__(self, y, y_hat, y_insample=None, mask=None):
            if torch.is_grad_enabled():
                assert mask.min() == 1
                found.append((y_insample.detach().numpy()[..., 0], y.detach().numpy()[..., 0]))
            return super().__call__(y, y_hat, y_insample, mask)

    protocol["loss"] = Caught()
    return protocol


@pytest.mark.skipif(not os.environ.get("SSMSEQ_DATA"), reason="set SSMSEQ_DATA to a folder with ETT to run this")
@pytest.mark.parametrize(("season", "published"), [(1, (1.294, 0.713)), (24, (0.512, 0.433))])
def test_the_seasonal_naive_of_statsforecast_is_ours(season, published):
    pytest.importorskip("statsforecast")
    data = fetch_ett(variant="h1")
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    scored = data.frame[test.start - 96 : test.stop]
    peer = Adapter("SeasonalNaive", 96, 96, season_length=season).fit(data.frame[train], data.frame[valid])
    forecast, truth = gathered(peer, scored)
    ours = NaiveForecaster(horizon=96, lookback=96, season_length=season).fit(data.frame[train]).evaluate(scored)
    assert len(forecast) == ours["n_windows"] == 2785
    error = forecast - truth
    assert (np.square(error).mean(), np.abs(error).mean()) == pytest.approx((ours["mse"], ours["mae"]), rel=1e-9)
    assert (ours["mse"], ours["mae"]) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("times", ["stamps", "numbers"])
def test_panels_are_forecast_series_by_series(times):
    pytest.importorskip("statsforecast")
    lengths = {"x": 31, "y": 50}
    series = []
    for i, (name, n) in enumerate(lengths.items()):
        ds = pd.date_range("2020-01-06", periods=n, freq="h") if times == "stamps" else np.arange(3, 3 + n)
        series.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": np.arange(n) ** 2.0 + i}))
    adapter = Adapter("SeasonalNaive", 3, 12, season_length=4)
    found = adapter.panel_forecast(pd.concat(series), 6)
    for mine in series:
        rows = found[found["unique_id"] == mine["unique_id"][0]]
        season = mine["y"].to_numpy()[-4:]
        np.testing.assert_allclose(rows["SeasonalNaive"], [*season, *season[:2]])
        step = mine["ds"].iloc[1] - mine["ds"].iloc[0]
        assert rows["ds"].tolist() == [mine["ds"].iloc[-1] + step * k for k in range(1, 7)]


@pytest.mark.parametrize("name", ["AutoETS", "AutoTheta"])
def test_local_models_are_fitted_to_the_end_of_each_variate(name, frame, parts):
    adapter = make(name, fit_rows=60).fit(*parts)
    forecast, _ = gathered(adapter, frame[200:240])
    cut = windows_of(adapter, parts[0], frame[200:240])
    train = ((parts[0] - parts[0].mean()) / parts[0].std(ddof=0)).to_numpy()
    for v in range(3):
        model = getattr(import_module("statsforecast.models"), name)(season_length=4).fit(train[-60:, v].copy())
        expected = [model.forward(y.copy(), HORIZON)["mean"] for y in cut[:, v, :LOOKBACK]]
        np.testing.assert_allclose(forecast[:, v], expected, rtol=1e-6, atol=1e-9)
    assert (adapter.n_parameters_, adapter.n_iter_, adapter.loss) == (None, None, LOCAL[name])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.assign(b=f["b"].where(f["b"] > 95)), "column 'b' of the training frame has a missing"),
        (lambda f: f.assign(unique_id="x"), "the training frame is long"),
        (lambda f: f[:36], "the training frame has 36 rows, lookback=32 and horizon=5 need 37"),
    ],
)
def test_frames_that_do_not_fit_are_refused(change, told, parts):
    with pytest.raises(ValueError, match=told):
        make("SeasonalNaive").fit(change(parts[0]), parts[1])


def test_later_frames_that_do_not_fit_are_refused(parts):
    train, valid = parts
    with pytest.raises(ValueError, match="the validation frame has 4 rows"):
        make("SeasonalNaive").fit(train, valid[:4])
    adapter = make("SeasonalNaive").fit(train, valid)
    with pytest.raises(ValueError, match="the given frame has the columns"):
        adapter.forecasts(valid[["b", "a", "c"]])
    with pytest.raises(ValueError, match="the given frame has 36 rows"):
        adapter.forecasts(valid[:36])


def test_wrong_parameters_are_named(parts):
    with pytest.raises(ValueError, match="name must be one of 'iTransformer'.*'Prophet'"):
        Adapter("Prophet", 5, 32)
    with pytest.raises(ValueError, match="name must be one of"):
        available("Prophet")
    with pytest.raises(ValueError, match="SeasonalNaive needs season_length"):
        Adapter("SeasonalNaive", 5, 32)
    with pytest.raises(ValueError, match="horizon must be an integer at least 1"):
        Adapter("DLinear", 0, 32)
    with pytest.raises(ValueError, match="lr_schedule must be one of"):
        Adapter("DLinear", 5, 32, lr_schedule="step")
    with pytest.raises(ValueError, match="max_epochs must be an integer at least 1"):
        Adapter("DLinear", 5, 32, max_epochs=0)
    with pytest.raises(ValueError, match="AutoETS has no parameter 'seasons' in statsforecast"):
        make("AutoETS", seasons=3).fit(*parts)
    with pytest.raises(ValueError, match="DLinear has no parameter 'depth' in neuralforecast"):
        make("DLinear", depth=3).fit(*parts)
    with pytest.raises(ValueError, match="DLinear: max_steps is decided by the protocol"):
        make("DLinear", max_steps=3).fit(*parts)


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_package_is_named_with_the_remedy(name, parts, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    told = f"{name} needs (neural|stats)forecast, which is not installed: pip install 'ssmseq\\[peers\\]'"
    with pytest.raises(ImportError, match=told):
        Adapter(name, 5, 32, season_length=4).fit(*parts)


def test_an_old_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: True)
    monkeypatch.setattr(peers.metadata, "version", lambda package: "1.7.9")
    assert available("DLinear") == f"DLinear needs neuralforecast>={peers.FLOORS['neuralforecast']}, but 1.7.9 is " + (
        "installed: pip install 'ssmseq[peers]'"
    )
    monkeypatch.setattr(peers.metadata, "version", lambda package: "10.0")
    assert available("DLinear") is None


def test_xlstm_needs_a_package_of_its_own(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None if package == "xlstm" else True)
    monkeypatch.setattr(peers.metadata, "version", lambda package: "10.0")
    assert "needs xlstm, which is not installed" in (available("xLSTM") or "")
    assert available("DLinear") is None


def test_peers_are_imported_only_when_asked_for():
    code = (
        "import sys; from ssmseq.benchmark import peers; peers.available('DLinear'); peers.Adapter('DLinear', 5, 32);"
        "print([m for m in ('neuralforecast', 'statsforecast', 'torch', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_is_silent_and_leaves_no_files(parts, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    adapter = make("DLinear")
    import_module("neuralforecast")
    said, handler = [], logging.Handler()
    handler.emit = said.append
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    for logger in loggers:
        logger.addHandler(handler)
    gathered(adapter.fit(*parts), parts[0])
    for logger in loggers:
        logger.removeHandler(handler)
    assert not said
    assert capfd.readouterr() == ("", "")
    assert os.listdir() == []
    assert logging.root.manager.disable == 0


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SSMSEQ_DATA"), reason="set SSMSEQ_DATA to a folder with ETT to run this")
@pytest.mark.parametrize(("name", "lookback"), PUBLISHED)
def test_a_peer_reaches_its_published_row(name, lookback):
    reason = available(name)
    if reason:
        pytest.skip(reason)
    torch.set_num_threads(1)
    data = fetch_ett(variant="h1")
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    adapter = Adapter(name, 96, lookback, random_state=0, accelerator="cpu").fit(data.frame[train], data.frame[valid])
    forecast, truth = gathered(adapter, data.frame[test.start - lookback : test.stop])
    found = np.square(forecast - truth).mean(), np.abs(forecast - truth).mean()
    assert len(forecast) == 2785
    assert found == pytest.approx(PUBLISHED[name, lookback], rel=0.02)

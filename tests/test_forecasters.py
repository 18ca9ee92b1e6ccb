"""Forecasters: bad input, units, leakage, validation, the schedule, and S-Mamba against its written formulas."""

import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import ssmseq.training
from ssmseq import NaiveForecaster
from ssmseq.forecasting.smamba import SMambaNetwork


def naive(**changes) -> NaiveForecaster:
    return NaiveForecaster(**{"horizon": 4, "lookback": 8} | changes)


def slow_errors(est, frame: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """Forecast every window by its own call of `predict`; return scaled forecasts and scaled truth (windows, H, V)."""
    found, truth = [], []
    for start in range(len(frame) - est.lookback - est.horizon + 1):
        middle = start + est.lookback
        found.append((est.predict(frame.iloc[start:middle]).to_numpy() - est.mean_) / est.scale_)
        truth.append((frame.iloc[middle : middle + est.horizon].to_numpy() - est.mean_) / est.scale_)
    return torch.tensor(np.array(found)), torch.tensor(np.array(truth))


# Bad input ------------------------------------------------------------------------------------------------------------

BAD_FRAMES = {
    "text column": (lambda df: df.assign(b="x"), ["'b'", "not numeric", "drop or convert"]),
    "time column": (lambda df: df.assign(b=df.index), ["'b'", "not numeric"]),
    "missing value": (lambda df: df.assign(b=df["b"].where(df.index != df.index[7])), ["'b'", "07:00", "fill"]),
    "infinite value": (lambda df: df.assign(c=df["c"].where(df.index != df.index[3], np.inf)), ["'c'", "inf", "fill"]),
    "missing flag": (lambda df: df.assign(b=pd.array([True, None] * 100, dtype="boolean")), ["'b'"]),
    "missing count": (lambda df: df.assign(b=pd.array([1, None] * 100, dtype="Int64")), ["'b'", "100", "fill"]),
    "duplicate time": (lambda df: pd.concat([df, df[3:4]]), ["03:00", "2 rows", "keep one"]),
    "gap": (lambda df: df.drop(df.index[50]), ["2021-01-03 01:00", "03:00", "asfreq"]),
    "jitter": (
        lambda df: df.set_axis(df.index + pd.to_timedelta(1.0 * (np.arange(200) == 9), "min")),
        ["09:01", "asfreq"],
    ),
    "no time": (lambda df: df.set_axis([*df.index[:5], pd.NaT, *df.index[6:]]), ["index", "row 5"]),
    "same name twice": (lambda df: df.set_axis(["a", "b", "a"], axis=1), ["'a'"]),
    "no rows": (lambda df: df[:0], ["no rows"]),
    "one row": (lambda df: df[:1], ["1 row"]),
    "no columns": (lambda df: df[[]], ["no column"]),
    "too short": (lambda df: df[:11], ["11", "lookback=8", "horizon=4"]),
    "too short to validate": (lambda df: df[:16], ["0.2", "16", "3 rows", "horizon=4", "validation_fraction"]),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_are_refused_before_training(small, waves, no_training, name):
    change, words = BAD_FRAMES[name]
    for est in (small(), *([] if name == "too short to validate" else [naive()])):
        with pytest.raises(ValueError) as caught:
            est.fit(change(waves))
        assert not [w for w in words if w not in str(caught.value)], caught.value
        assert not hasattr(est, "layout_")


@pytest.mark.parametrize("n_rows", [2, 8, 11])
def test_too_few_rows_names_both_sizes_and_the_remedy(small, waves, no_training, n_rows):
    with pytest.raises(ValueError, match=r"(?s)(?=.*\b12\b)(?=.*lookback)(?=.*(give|shorten))"):
        small(validation_fraction=0).fit(waves[:n_rows])


BAD_OPTIONS = {
    "horizon": [0, -3, 2.0, True, None, "4"],
    "lookback": [0, -1, 8.0],
    "d_model": [0, 16.0],
    "d_state": [0],
    "d_conv": [0],
    "expand": [0, 1.5],
    "n_layers": [0],
    "d_ff": [-16],
    "dropout": [1, -0.1, "x", math.nan],
    "activation": ["tanh", None],
    "normalize": ["yes", 2],
    "time_features": ["hour", None],
    "scaler": ["minmax", None],
    "learning_rate": [0, -1e-3, math.nan, math.inf, "x"],
    "batch_size": [0, 2.5],
    "max_epochs": [0, 1.0, -1],
    "patience": [0, 1.5],
    "validation_fraction": [1, -0.1, 0.001, math.nan],
    "lr_schedule": ["linear", None],
    "loss": ["rmse", None],
    "fredf_weight": [-0.1, 1.5, "x"],
    "optimizer": ["sgd"],
    "weight_decay": [-1],
    "num_workers": [-1, 0.5],
    "random_state": [-1],
    "time_col": ["when"],
    "accelerator": ["abacus"],
    "precision": ["12-true"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_OPTIONS.items() for value in values])
def test_bad_options_are_refused_by_name_before_training(small, waves, no_training, name, value):
    with pytest.raises(ValueError, match=rf"(?is){name}.*{value if value != 0.001 else ''}"):
        small(**{name: value}).fit(waves)


def test_season_longer_than_the_history_is_refused(waves):
    with pytest.raises(ValueError, match=r"season_length=9 .* lookback=8"):
        naive(season_length=9).fit(waves)


def test_unknown_options_are_refused_by_name(small, waves, no_training):
    with pytest.raises(ValueError, match="'warmth'"):
        small().set_params(warmth=1)
    with pytest.raises(TypeError, match="'warmth'"):
        small(warmth=1)
    with pytest.raises((TypeError, ValueError), match="'gradient_clip'"):
        small(trainer_params={"gradient_clip": 1}).fit(waves)


@pytest.mark.parametrize("frame", [[[1.0, 2.0]], pd.Series([1.0, 2.0]), "wave.csv", None, torch.ones(9, 2)], ids=type)
def test_other_things_than_frames_are_refused(small, no_training, frame):
    with pytest.raises(TypeError, match="DataFrame or a two-dimensional array, got"):
        small().fit(frame)


def test_frames_unlike_that_of_fit_are_refused(fitted, waves):
    with pytest.raises(ValueError, match=r"lacks \['b'\]: fit saw 3 columns .* has 2"):
        fitted.predict(waves.drop(columns="b"))
    with pytest.raises(ValueError, match=r"has \['z'\] besides: fit saw 3 columns .* has 4"):
        fitted.predict(waves.assign(z=1.0))
    with pytest.raises(ValueError, match=r"lacks \['a'\] and has \['A'\]"):
        fitted.evaluate(waves.rename(columns={"a": "A"}))
    with pytest.raises(ValueError, match=r"'h' that fit saw"):
        fitted.predict(waves.asfreq("2h"))
    with pytest.raises(ValueError, match=r"numbers.*stamps"):
        fitted.predict(waves.reset_index(drop=True))
    with pytest.raises(ValueError, match=r"lookback=8.*has 7"):
        fitted.predict(waves[:7])
    with pytest.raises(ValueError, match=r"11 rows.*lookback=8.*horizon=4.*12"):
        fitted.evaluate(waves[:11])
    with pytest.raises(ValueError, match="'b' holds 1 NaN"):
        fitted.predict(waves.assign(b=waves["b"].where(waves.index != waves.index[9])))


BAD_VALIDATION = {
    "too short": (lambda df: df[100:103], "validation frame.*11 rows.*12"),
    "too short after a gap": (lambda df: df[101:112], "validation frame.*11 rows.*12"),
    "other columns": (lambda df: df[100:][["a"]], r"lacks \['b', 'c'\]"),
    "other frequency": (lambda df: df[100:].asfreq("2h"), "'h' that fit saw"),
    "missing value": (lambda df: df[100:].assign(a=df["a"].where(df.index != df.index[150])), "'a' holds 1 NaN"),
}


@pytest.mark.parametrize("name", BAD_VALIDATION)
def test_bad_validation_frames_are_refused_before_training(small, waves, no_training, name):
    change, words = BAD_VALIDATION[name]
    with pytest.raises(ValueError, match=words):
        small().fit(waves[:100], validation=change(waves))


# What a fit may depend on ---------------------------------------------------------------------------------------------


def test_order_of_rows_and_columns_does_not_matter(small, waves):
    est, shuffled = small().fit(waves), waves.sample(frac=1, random_state=0)
    assert not shuffled.index.is_monotonic_increasing
    pd.testing.assert_frame_equal(small().fit(shuffled).predict(), est.predict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(est.predict(shuffled[["c", "a", "b"]]), est.predict(), rtol=0, atol=0)
    assert est.evaluate(shuffled[["b", "c", "a"]]) == est.evaluate(waves)


def test_forecasts_are_in_the_units_of_the_frame(small, waves):
    scale, shift = np.array([50.0, 1e-3, 7.0]), np.array([-1000.0, 2.0, 1e5])
    plain, moved = small().fit(waves), small().fit(waves * scale + shift)
    expected = plain.predict() * scale + shift
    assert ((moved.predict() - expected).abs() < 1e-4 * scale * waves.std().to_numpy()).all(axis=None)
    first, second = plain.evaluate(waves), moved.evaluate(waves * scale + shift)
    assert first["mse"] == pytest.approx(second["mse"], rel=1e-4)
    truth = waves[["a"]] * 50
    alone = naive().fit(waves[["a"]])
    assert naive().fit(truth).evaluate(truth, scaled=False)["mae"] == pytest.approx(
        50 * alone.scale_[0] * alone.evaluate(waves[["a"]])["mae"]
    )


@pytest.mark.parametrize("value", [0.0, 3.1, 1e9 / 3])
def test_constant_columns_train(small, waves, value):
    est = small().fit(waves.assign(b=value))
    assert np.isfinite(est.predict()).all(axis=None)
    assert est.scale_[1] == 1
    assert np.isfinite(est.history_).all(axis=None)


@pytest.mark.parametrize("scaler", ["standard", "none"])
def test_scaler_sees_the_training_rows_only(small, waves, scaler):
    changed = waves.copy()
    changed.iloc[160:] = 1e6
    est = small(scaler=scaler, max_epochs=1).fit(changed)
    expected = (waves[:160].mean(), waves[:160].std(ddof=0)) if scaler == "standard" else (0, 1)
    np.testing.assert_allclose(est.mean_, np.broadcast_to(expected[0], 3), rtol=1e-12)
    np.testing.assert_allclose(est.scale_, np.broadcast_to(expected[1], 3), rtol=1e-12)
    whole = small(validation_fraction=0, max_epochs=1).fit(waves)
    np.testing.assert_allclose(whole.mean_, waves.mean(), rtol=1e-12)


def test_validation_rows_do_not_touch_the_weights(small, waves):
    changed = waves.copy()
    changed.iloc[160:] *= -5
    plain, other = (small(max_epochs=1).fit(df) for df in (waves, changed))
    assert plain.history_["valid_loss"][0] != other.history_["valid_loss"][0]
    for name, weight in plain.network_.state_dict().items():
        assert torch.equal(weight, other.network_.state_dict()[name]), name


@pytest.mark.parametrize("make", ["naive", "small"])
def test_evaluate_equals_a_loop_over_predict(small, waves, make):
    est = naive(season_length=3) if make == "naive" else small()
    est.fit(waves[:120])
    found, truth = slow_errors(est, waves[120:150])
    result = est.evaluate(waves[120:150])
    assert result["n_windows"] == len(found) == 30 - 8 - 4 + 1
    assert result["mse"] == pytest.approx(F.mse_loss(found, truth).item(), rel=1e-5)
    assert result["mae"] == pytest.approx(F.l1_loss(found, truth).item(), rel=1e-5)
    scale = torch.tensor(est.scale_)
    raw = est.evaluate(waves[120:150], scaled=False)
    assert raw["mse"] == pytest.approx(F.mse_loss(found * scale, truth * scale).item(), rel=1e-5)
    assert est.score(waves[120:150]) == -result["mse"]


@pytest.mark.parametrize("batch", [1, 5, 19])
def test_evaluate_does_not_depend_on_its_batches(fitted, waves, monkeypatch, batch):
    whole = fitted.evaluate(waves[:30])
    monkeypatch.setattr("ssmseq.forecasting.base.PREDICT_BATCH", batch)
    assert fitted.evaluate(waves[:30]) == pytest.approx(whole, rel=1e-6)


# Validation, early stopping, schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "fredf"])
@pytest.mark.parametrize(("first", "n_windows"), [(150, 50 - 4 + 1), (151, 49 - 8 - 4 + 1)])
def test_validation_frame_counts_exactly_its_own_targets(small, waves, monkeypatch, loss, first, n_windows):
    seen, train = [], ssmseq.training.fit_network
    monkeypatch.setattr("ssmseq.training.fit_network", lambda *a: seen.append((len(a[2]), len(a[3]))) or train(*a))
    est = small(loss=loss, max_epochs=1, batch_size=10).fit(waves[:150], validation=waves[first:])
    assert seen == [(150 - 8 - 4 + 1, n_windows)]
    found, truth = slow_errors(est, waves[142:] if first == 150 else waves[first:])
    assert len(found) == n_windows
    assert est.history_["valid_loss"][0] == pytest.approx(F.mse_loss(found, truth).item(), rel=1e-4)


def test_without_validation_every_row_trains_for_all_epochs(small, waves):
    est = small(validation_fraction=0, max_epochs=3, patience=1).fit(waves)
    assert list(est.history_.columns) == ["epoch", "train_loss", "learning_rate", "seconds"]
    assert est.history_["epoch"].tolist() == [1, 2, 3]
    assert est.n_iter_ == 3


@pytest.mark.parametrize("patience", [1, 2, None])
def test_early_stopping_restores_the_best_epoch(small, waves, patience):
    from lightning.pytorch import Callback

    class Spoil(Callback):  # from the fourth epoch on, so that the best one is not the last
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch >= 3:
                pl_module.network.projection.weight.data.mul_(5)

    est = small(lr_schedule="constant", max_epochs=9, patience=patience, callbacks=[Spoil()])
    est.fit(waves[:150], validation=waves[150:])
    losses = est.history_["valid_loss"]
    assert (best := losses.argmin()) <= 2
    assert len(losses) == (9 if patience is None else best + 1 + patience) < 10
    assert est.n_iter_ == len(losses)
    assert est.evaluate(waves[142:])["mse"] == pytest.approx(losses.min(), rel=1e-5)
    assert abs(losses.iloc[-1] / losses.min() - 1) > 1e-3


# S-Mamba and the baseline against their formulas ----------------------------------------------------------------------

LIVE_PARAMETERS = {  # lookback, horizon, d_model = d_ff, d_state, n_layers: published count without the unused modules
    "ETTh1": ((96, 96, 256, 2, 2), 1_145_696),
    "ETTm1": ((96, 192, 128, 2, 2), 314_944),
    "Electricity, 96": ((96, 96, 512, 16, 3), 6_760_032),
    "Electricity, 192": ((96, 192, 512, 32, 3), 6_956_736),
    "Traffic": ((96, 96, 512, 32, 4), 9_176_672),
    "Weather": ((96, 96, 512, 2, 3), 6_631_008),
    "Solar": ((96, 96, 512, 32, 2), 4_638_304),
    "Exchange": ((96, 96, 128, 32, 2), 348_640),
    "PEMS04": ((96, 12, 1024, 32, 4), 35_568_652),
}


def network(n_variates, lookback, horizon, d_model, d_state, n_layers, **changes) -> SMambaNetwork:
    sizes = {"d_model": d_model, "d_state": d_state, "d_ff": d_model, "n_layers": n_layers, "d_conv": 2, "expand": 1}
    rest = {"dropout": 0.1, "activation": "gelu", "normalize": True} | changes
    return SMambaNetwork(n_variates=n_variates, lookback=lookback, horizon=horizon, **sizes | rest)


@pytest.mark.parametrize("name", LIVE_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    sizes, expected = LIVE_PARAMETERS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in network(7, *sizes).parameters()) == expected


def written_out_mamba(w: dict, x):
    """Scan tokens x (B, M, D) one after another; the convolution is two taps wide, the inner width is D."""
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    before = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], 1)
    u = before * w["conv1d.weight"][:, 0, 0] + u * w["conv1d.weight"][:, 0, 1] + w["conv1d.bias"]
    u = u * torch.sigmoid(u)
    rank, n_state = w["dt_proj.weight"].shape[1], w["A_log"].shape[1]
    step, into, out = (u @ w["x_proj.weight"].T).split([rank, n_state, n_state], -1)
    step = torch.log1p(torch.exp(step @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    state, rows = u.new_zeros(*u[:, 0].shape, n_state), []
    for t in range(u.shape[1]):
        decay = torch.exp(-step[:, t, :, None] * torch.exp(w["A_log"]))
        state = decay * state + (step[:, t] * u[:, t])[..., None] * into[:, t, None, :]
        rows.append((state * out[:, t, None, :]).sum(-1) + w["D"] * u[:, t])
    return (torch.stack(rows, 1) * z * torch.sigmoid(z)) @ w["out_proj.weight"].T


def written_out_smamba(w: dict, x, n_variates: int, n_layers: int, normalize: bool):
    """Forecast windows x (B, V + K, L) from the weights of a network, row by row of the published table."""

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}

    def norm(y, name: str):
        centred = y - y.mean(-1, keepdim=True)
        return (
            centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    values, marks = x[:, :n_variates], x[:, n_variates:]
    mean, scale = 0, 1
    if normalize:
        mean = values.sum(-1, keepdim=True) / x.shape[-1]
        scale = torch.sqrt(((values - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1] + 1e-5)
    tokens = torch.cat([(values - mean) / scale, marks], 1) @ w["embedding.weight"].T + w["embedding.bias"]
    for i in range(n_layers):
        forwards = written_out_mamba(part(f"layers.{i}.mixer.forwards."), tokens)
        backwards = written_out_mamba(part(f"layers.{i}.mixer.backwards."), tokens.flip(1)).flip(1)
        tokens = norm(tokens + forwards + backwards, f"layers.{i}.mixer_norm")
        ff = part(f"layers.{i}.feed_forward.")
        hidden = tokens @ ff["0.weight"].T + ff["0.bias"]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = norm(tokens + hidden @ ff["3.weight"].T + ff["3.bias"], f"layers.{i}.feed_forward_norm")
    forecast = norm(tokens, "norm") @ w["projection.weight"].T + w["projection.bias"]
    return forecast[:, :n_variates] * scale + mean


@pytest.mark.parametrize("n_marks", [0, 4])
@pytest.mark.parametrize("normalize", [True, False])
def test_network_equals_its_formulas(n_marks, normalize):
    torch.manual_seed(0)
    model = network(5, 24, 12, 32, 3, 2, normalize=normalize).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 5 + n_marks, 24) * torch.rand(3, 5 + n_marks, 1) * 4 + torch.randn(3, 5 + n_marks, 1)
    weights = {k: v.double() for k, v in model.state_dict().items()}
    truth = written_out_smamba(weights, x.double(), 5, 2, normalize)
    found = model(x).double()
    assert found.shape == (3, 5, 12)
    assert ((found - truth).norm() / truth.norm()).item() < 1e-5
    assert ((model.double()(x.double()) - truth).norm() / truth.norm()).item() < 1e-12


@pytest.mark.parametrize("season_length", [1, 3, 8])
def test_naive_forecast_repeats_the_season(waves, season_length):
    est = naive(season_length=season_length, horizon=7).fit(waves[:150])
    expected = [waves.iloc[149 - season_length + 1 + step % season_length] for step in range(7)]
    np.testing.assert_allclose(est.predict(), expected, rtol=1e-6)
    swapped = naive(season_length=season_length, horizon=7).fit(waves.iloc[:150, [2, 0, 1]]).predict()
    pd.testing.assert_frame_equal(swapped[["a", "b", "c"]], est.predict())


REFERENCE = """
import sys
sys.modules["ssmseq_kernels._cpu"] = None  # as after an installation without a compiler
import numpy as np
from ssmseq import SMambaForecaster
est = SMambaForecaster(horizon=4, lookback=8, d_model=16, d_ff=16, max_epochs=1, random_state=0, accelerator="cpu")
print(*est.fit(np.sin(np.arange(200.0))[:, None]).predict().ravel())
"""


def test_the_same_model_is_trained_without_the_compiled_kernel(small):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", REFERENCE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    est = small(n_layers=2, max_epochs=1, batch_size=32, learning_rate=1e-4).fit(np.sin(np.arange(200.0))[:, None])
    np.testing.assert_allclose(np.array(done.stdout.split(), float), est.predict().ravel(), rtol=1e-4, atol=1e-5)

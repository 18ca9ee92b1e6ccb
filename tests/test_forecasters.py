"""Forecasters: bad input, units, leakage, validation, and early stopping."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import ssmseq.training
from ssmseq import NaiveForecaster


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
    "complex column": (lambda df: df.assign(b=1j), ["'b'", "not numeric", "drop or convert"]),
    "infinite value": (
        lambda df: df.assign(c=df["c"].where(df.index != df.index[3], -np.inf)),
        ["'c' holds 1 infinite", "03:00", "replace"],
    ),
    "infinite count": (lambda df: df.assign(b=pd.array([1.0, np.inf] * 100, dtype="Float64")), ["'b' holds 100 inf"]),
    "no value": (lambda df: df.assign(b=np.nan), ["'b' has no value", "drop it", "fill"]),
    "no nullable value": (lambda df: df.assign(b=pd.array([None] * 200, dtype="Int64")), ["'b' has no value"]),
    "duplicate time": (lambda df: pd.concat([df, df[3:4]]), ["03:00", "2 rows", "keep one"]),
    "duplicate time beside a gap": (lambda df: pd.concat([df[:50], df[51:], df[3:4]]), ["03:00", "2 rows"]),
    "jitter": (
        lambda df: df.set_axis(df.index + pd.to_timedelta(1.0 * (np.arange(200) == 9), "min")),
        ["not evenly spaced", "08:00:00 comes", "09:01", "parameter freq", "resample"],
    ),
    "jitter beside a gap": (
        lambda df: df.set_axis(df.index + pd.to_timedelta(1.0 * (np.arange(200) == 9), "min")).drop(df.index[50]),
        ["not evenly spaced", "09:01", "parameter freq"],
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


def test_missing_flags_counts_and_rows_are_no_obstacle(small, waves):
    frame = waves.assign(
        a=pd.array([True, False, None, True] * 50, dtype="boolean"),
        b=pd.array([1, 2, 3, None] * 50, dtype="Int64"),
    ).drop(waves.index[50])
    for est in (small(max_epochs=1), naive()):
        forecast = est.fit(frame).predict()
        assert np.isfinite(forecast).all(axis=None)
        assert forecast.index[0] == waves.index[-1] + pd.Timedelta("1h")
        assert est.evaluate(frame)["n_windows"] == 200 - 8 - 4 + 1


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
    "time_features": ["hour", None, 2, ["century"]],
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
    "warm_start": ["yes", None],
    "quantiles": [0.5, [0.1, 0.9], [0.5, 1.5]],
    "accelerator": ["abacus"],
    "precision": ["12-true"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_OPTIONS.items() for value in values])
def test_bad_options_are_refused_by_name_before_training(small, waves, no_training, name, value):
    shown = re.escape(str(value)) if isinstance(value, str | int | float) and value != 0.001 else ""
    with pytest.raises(ValueError, match=rf"(?is){name}.*{shown}"):
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
    with pytest.raises(ValueError, match=r"2 steps apart.*'h' that fit saw.*set freq='h'"):
        fitted.predict(waves.asfreq("2h"))
    with pytest.raises(ValueError, match=r"not evenly spaced.*'h'"):
        fitted.predict(waves.set_axis(pd.date_range("2021", periods=200, freq="30min")))
    with pytest.raises(ValueError, match=r"numbers.*stamps"):
        fitted.predict(waves.reset_index(drop=True))
    with pytest.raises(ValueError, match=r"lookback=8.*has 7"):
        fitted.predict(waves[:7])
    with pytest.raises(ValueError, match=r"11 rows.*lookback=8.*horizon=4.*12"):
        fitted.evaluate(waves[:11])
    with pytest.raises(ValueError, match="'b' holds 1 infinite values.*09:00"):
        fitted.predict(waves.assign(b=waves["b"].where(waves.index != waves.index[9], np.inf)))
    with pytest.raises(ValueError, match="future= was given.*without future_covariates"):
        fitted.predict(future=waves)


def test_rows_of_a_coarser_frequency_count_as_gaps_where_freq_says_so(small, waves):
    est, sparse = small(max_epochs=1, freq="h").fit(waves), waves.asfreq("2h")
    assert len(est.predict(sparse)) == 4
    found = est.predict(sparse[-6:])
    filled = sparse.asfreq("h")[-8:].interpolate(limit_direction="both")
    np.testing.assert_allclose(found, est.predict(filled), rtol=1e-4)
    assert (found.index == pd.date_range(sparse.index[-1], periods=5, freq="h")[1:]).all()


BAD_VALIDATION = {
    "too short": (lambda df: df[100:103], "validation frame.*11 rows.*12"),
    "too short after a gap": (lambda df: df[101:112], "validation frame.*11 rows.*12"),
    "other columns": (lambda df: df[100:][["a"]], r"lacks \['b', 'c'\]"),
    "other frequency": (lambda df: df[100:].asfreq("2h"), "'h' that fit saw"),
    "infinite value": (
        lambda df: df[100:].assign(a=df["a"].where(df.index != df.index[150], np.inf)),
        "'a' holds 1 infinite values",
    ),
    "no value": (lambda df: df[100:] * np.nan, "the validation part has no window .* with an observed value"),
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
    monkeypatch.setattr("ssmseq.forecasting.scoring.BATCH_VALUES", batch * 7 * 12)  # 3 variates, 4 of the calendar
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
                pl_module.network.head.projection.weight.data.mul_(5)

    est = small(lr_schedule="constant", max_epochs=9, patience=patience, callbacks=[Spoil()])
    est.fit(waves[:150], validation=waves[150:])
    losses = est.history_["valid_loss"]
    assert (best := losses.argmin()) <= 2
    assert len(losses) == (9 if patience is None else best + 1 + patience) < 10
    assert est.n_iter_ == len(losses)
    assert est.evaluate(waves[142:])["mse"] == pytest.approx(losses.min(), rel=1e-5)
    assert abs(losses.iloc[-1] / losses.min() - 1) > 1e-3


# Other ways to the same forecast ------------------------------------------------------------------------------------


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

"""Forecasters: bad input, units, leakage, validation, the schedule, and S-Mamba against its written formulas."""

import math
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import ssmseq.training
from ssmseq import NaiveForecaster
from ssmseq.forecasting.windows import calendar_features

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


@pytest.fixture
def no_training(monkeypatch):
    """Let the test fail as soon as anything trains."""

    def train(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr("lightning.pytorch.Trainer.fit", train)


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
    "jitter": (lambda df: df.set_axis(df.index + pd.to_timedelta(np.arange(200) == 9, "min")), ["09:01", "asfreq"]),
    "no time": (lambda df: df.set_axis([*df.index[:5], pd.NaT, *df.index[6:]]), ["index", "row 5"]),
    "same name twice": (lambda df: df.set_axis(["a", "b", "a"], axis=1), ["'a'"]),
    "no rows": (lambda df: df[:0], ["no rows"]),
    "one row": (lambda df: df[:1], ["one row"]),
    "no columns": (lambda df: df[[]], ["no column"]),
    "too short": (lambda df: df[:11], ["11", "lookback=8", "horizon=4"]),
    "too short to validate": (lambda df: df[:19], ["0.2", "19", "4 rows", "horizon=4", "validation_fraction"]),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_are_refused_before_training(small, waves, no_training, name):
    change, words = BAD_FRAMES[name]
    for est in (small(), *([] if name == "too short to validate" else [naive()])):
        with pytest.raises(ValueError) as caught:
            est.fit(change(waves))
        assert not [w for w in words if w not in str(caught.value)], caught.value
        assert not hasattr(est, "layout_")


@pytest.mark.parametrize("n_rows", [1, 8, 11])
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
    "optimizer": ["sgd"],
    "weight_decay": [-1],
    "num_workers": [-1, 0.5],
    "random_state": [-1],
    "time_col": ["when"],
    "accelerator": ["abacus"],
    "devices": [0],
    "precision": ["12-true"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_OPTIONS.items() for value in values])
def test_bad_options_are_refused_by_name_before_training(small, waves, no_training, name, value):
    with pytest.raises(ValueError, match=rf"(?is){name}.*{value if value != 0.001 else ''}"):
        small(**{name: value}).fit(waves)


def test_season_longer_than_the_history_is_refused(waves):
    with pytest.raises(ValueError, match="season_length=9 .* lookback=8"):
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
    with pytest.raises(ValueError, match="'h' that fit saw"):
        fitted.predict(waves.asfreq("2h"))
    with pytest.raises(ValueError, match="numbers.*stamps"):
        fitted.predict(waves.reset_index(drop=True))
    with pytest.raises(ValueError, match="lookback=8.*has 7"):
        fitted.predict(waves[:7])
    with pytest.raises(ValueError, match="11 rows.*lookback=8.*horizon=4.*12"):
        fitted.evaluate(waves[:11])
    with pytest.raises(ValueError, match="'b' holds 1 NaN"):
        fitted.predict(waves.assign(b=waves["b"].where(waves.index != waves.index[9])))


BAD_VALIDATION = {
    "too short": (lambda df: df[100:103], "validation frame.*11 rows.*12"),
    "too short after a gap": (lambda df: df[101:112], "validation frame.*11 rows.*12"),
    "other columns": (lambda df: df[100:][["a"]], r"lacks \['b', 'c'\]"),
    "other frequency": (lambda df: df[100:].asfreq("2h"), "'h' that fit saw"),
    "missing value": (lambda df: df[100:].where(df.index[100:] != df.index[150], axis=0), "'a' holds 1 NaN"),
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


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("first", "n_windows"), [(150, 50 - 4 + 1), (151, 49 - 8 - 4 + 1)])
def test_validation_frame_counts_exactly_its_own_targets(small, waves, monkeypatch, loss, first, n_windows):
    seen, train = [], ssmseq.training.fit_network
    monkeypatch.setattr("ssmseq.training.fit_network", lambda *a: seen.append((len(a[2]), len(a[3]))) or train(*a))
    est = small(loss=loss, max_epochs=1, batch_size=10).fit(waves[:150], validation=waves[first:])
    assert seen == [(150 - 8 - 4 + 1, n_windows)]
    found, truth = slow_errors(est, waves[142:] if first == 150 else waves[first:])
    assert len(found) == n_windows
    assert est.history_["valid_loss"][0] == pytest.approx(LOSSES[loss](found, truth).item(), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains(small, waves, loss):
    history = small(loss=loss, max_epochs=5, learning_rate=1e-2, lr_schedule="constant").fit(waves).history_
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
    assert history["valid_loss"].iloc[-1] < 0.7 * history["valid_loss"].iloc[0]


def test_without_validation_every_row_trains_for_all_epochs(small, waves):
    est = small(validation_fraction=0, max_epochs=3, patience=1).fit(waves)
    assert list(est.history_.columns) == ["epoch", "train_loss", "learning_rate", "seconds"]
    assert est.history_["epoch"].tolist() == [1, 2, 3]
    assert est.n_iter_ == 3


@pytest.mark.parametrize("patience", [1, 2, None])
def test_early_stopping_restores_the_best_epoch(small, waves, patience):
    est = small(learning_rate=0.3, lr_schedule="constant", max_epochs=9, patience=patience, batch_size=8)
    est.fit(waves[:150], validation=waves[150:])
    losses = est.history_["valid_loss"]
    best = losses.argmin()
    assert best < len(losses) - 1, "this test needs a run whose last epoch is not its best"
    if patience is None:
        assert len(losses) == 9
    else:
        assert (losses[-patience:] > losses[: len(losses) - patience].min()).all()
        assert len(losses) < 9
    assert est.n_iter_ == len(losses)
    assert est.evaluate(waves[142:])["mse"] == pytest.approx(losses.min(), rel=1e-5)
    assert abs(losses.iloc[-1] / losses.min() - 1) > 1e-3


def test_learning_rates_follow_the_schedule(small, waves):
    schedules = {
        "halve": [1, 1, 0.5, 0.25, 0.125],
        "cosine": [0.5 * (1 + math.cos(math.pi * e / 5)) for e in range(5)],
        "constant": [1] * 5,
    }
    for name, factors in schedules.items():
        history = small(lr_schedule=name, max_epochs=5, learning_rate=2e-3, patience=None).fit(waves).history_
        np.testing.assert_allclose(history["learning_rate"], 2e-3 * np.array(factors), rtol=1e-6)


# Calendar -------------------------------------------------------------------------------------------------------------


def test_calendar_features_are_the_published_formulas():
    start = datetime(2020, 1, 1)
    stamps = [start + timedelta(hours=h) for h in range(2 * 366 * 24)]
    expected = [
        (t.hour / 23 - 0.5, t.weekday() / 6 - 0.5, (t.day - 1) / 30 - 0.5, (t.timetuple().tm_yday - 1) / 365 - 0.5)
        for t in stamps
    ]
    for times in (
        pd.DatetimeIndex(stamps),
        pd.PeriodIndex(stamps, freq="h"),
        pd.DatetimeIndex(stamps, tz="Asia/Tokyo"),
    ):
        np.testing.assert_allclose(calendar_features(times), expected, rtol=0, atol=1e-15)
    assert np.min(expected, 0).tolist() == [-0.5] * 4
    assert np.max(expected, 0).tolist() == [0.5] * 4


@pytest.mark.parametrize(("option", "uses"), [(True, True), ("auto", True), (False, False)])
def test_calendar_counts_when_asked_for(small, waves, option, uses):
    est = small(time_features=option).fit(waves)
    later = waves.set_axis(waves.index + pd.Timedelta("12h"))
    assert (est.predict(later).to_numpy() == est.predict(waves).to_numpy()).all() != uses


def test_numbered_rows_have_no_calendar(small, waves, no_training):
    with pytest.raises(ValueError, match=r"time_features=True needs time stamps.*DatetimeIndex"):
        small(time_features=True).fit(waves.to_numpy())


def test_numbered_rows_train_without_calendar(small, waves):
    auto, without = (small(time_features=option).fit(waves.to_numpy()) for option in ("auto", False))
    np.testing.assert_array_equal(auto.predict(), without.predict())

"""The baselines: ridge against least squares on explicit windows, the linear network, and every loss by its formula."""

import functools
import json
import os
import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit

import ssmseq.training
from ssmseq import ForecastDisplay, LinearForecaster, NaiveForecaster, RidgeForecaster, load
from ssmseq.cli import main
from ssmseq.forecasting.linear import LinearNetwork
from ssmseq.forecasting.moments import centred_moments
from ssmseq.forecasting.tokens import InputSizes
from ssmseq.nn.losses import LOSSES, loss_of

TRAINING = {"batch_size": 16, "max_epochs": 15, "random_state": 0, "accelerator": "cpu"}


def ridge(**changes) -> RidgeForecaster:
    return RidgeForecaster(**{"horizon": 4, "lookback": 8, "alpha": 0.01, "validation_fraction": 0} | changes)


def linear(**changes) -> LinearForecaster:
    return LinearForecaster(**{"horizon": 4, "lookback": 8, **TRAINING} | changes)


def explicit_windows(values: np.ndarray, lookback: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut every window of every column, one after another; return centred look-backs (n, L) and targets (n, H)."""
    inputs, targets = [], []
    for column in values.T:
        for start in range(len(column) - lookback - horizon + 1):
            middle = start + lookback
            mean = column[start:middle].mean()
            inputs.append(column[start:middle] - mean)
            targets.append(column[middle : middle + horizon] - mean)
    return np.array(inputs), np.array(targets)


def scaled(frame: pd.DataFrame, like: pd.DataFrame) -> np.ndarray:
    return ((frame - like.mean()) / like.std(ddof=0)).to_numpy()


@pytest.mark.parametrize(("lookback", "horizon"), [(8, 4), (1, 1), (1, 5), (2, 1), (30, 3), (5, 40)])
def test_without_a_penalty_it_is_least_squares(waves, lookback, horizon):
    est = ridge(lookback=lookback, horizon=horizon, alpha=0).fit(waves)
    inputs, targets = explicit_windows(scaled(waves, waves), lookback, horizon)
    expected = np.linalg.lstsq(inputs, targets)[0].T
    assert est.coef_.shape == (horizon, lookback)
    np.testing.assert_allclose(est.coef_, expected, rtol=1e-8, atol=1e-10)
    last = scaled(waves, waves)[-lookback:]
    forecast = expected @ (last - last.mean(0)) + last.mean(0)
    np.testing.assert_allclose(est.predict(), forecast * est.scale_ + est.mean_, rtol=1e-9)


@pytest.mark.parametrize("alpha", [1e-6, 0.03, 2.0, 1e3])
def test_the_penalty_is_scikit_learns_per_window_and_variate(waves, alpha):
    inputs, targets = explicit_windows(scaled(waves, waves), 8, 4)
    expected = Ridge(alpha=alpha * len(inputs), fit_intercept=False).fit(inputs, targets)
    np.testing.assert_allclose(ridge(alpha=alpha).fit(waves).coef_, expected.coef_, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("n_columns", [1, 3])
@pytest.mark.parametrize("block", [1, 10, 10**6])
@pytest.mark.parametrize("n_rows", [12, 13, 60])
def test_moments_are_those_of_explicit_windows_whatever_the_block(monkeypatch, n_columns, block, n_rows):
    monkeypatch.setattr("ssmseq.forecasting.moments.BLOCK", block)
    values = np.random.default_rng(0).normal(size=(n_rows, n_columns)) + 1e4
    both = np.hstack(explicit_windows(values, 8, 4))
    np.testing.assert_allclose(centred_moments([values], 8, 4), both.T @ both / len(both), rtol=1e-7, atol=1e-9)
    blocks = [values, values[:11], 2 * values[:12]]  # the second is too short for a window
    both = np.vstack([both, np.hstack(explicit_windows(blocks[2], 8, 4))])
    np.testing.assert_allclose(centred_moments(blocks, 8, 4), both.T @ both / len(both), rtol=1e-7, atol=1e-9)


def test_errors_in_the_table_are_those_of_explicit_windows(waves):
    est = ridge(alpha=[0, 0.5], lookback=[3, 8]).fit(waves[:150], validation=waves[150:])
    assert list(est.cv_results_.columns) == ["lookback", "alpha", "train_mse", "valid_mse"]
    assert est.cv_results_[["lookback", "alpha"]].to_numpy().tolist() == [[3, 0], [3, 0.5], [8, 0], [8, 0.5]]
    for row in est.cv_results_.itertuples():
        alone = ridge(alpha=row.alpha, lookback=row.lookback).fit(waves[:150])
        assert row.train_mse == pytest.approx(alone.evaluate(waves[:150])["mse"], rel=1e-9)
        assert row.valid_mse == pytest.approx(alone.evaluate(waves[150 - row.lookback :])["mse"], rel=1e-9)
        assert alone.cv_results_.to_dict("list") == {
            "lookback": [row.lookback],
            "alpha": [row.alpha],
            "train_mse": [pytest.approx(row.train_mse)],
        }


def test_recurrences_are_forecast_exactly():
    time = np.arange(120.0)
    frame = np.column_stack([np.sin(time / 3), 5 + 40 * np.cos(time / 3) + 1e-3 * np.sin(time)])  # a faint wave counts
    est = ridge(alpha=0, scaler="none").fit(frame[:100])
    np.testing.assert_allclose(est.predict(), frame[100:104], rtol=1e-6, atol=1e-6)
    assert est.evaluate(frame)["mse"] < 1e-12


def test_a_far_off_level_costs_no_accuracy(waves):
    near = ridge(scaler="none", alpha=0).fit(waves[["a"]])
    far = ridge(scaler="none", alpha=0).fit(waves[["a"]] + 1e6)
    np.testing.assert_allclose(far.coef_, near.coef_, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 3.1, 1e9 / 3])
def test_constant_columns_stay_where_they_are(waves, value):
    forecast = ridge(alpha=0).fit(waves.assign(b=value)).predict()
    np.testing.assert_allclose(forecast["b"], value)
    assert np.isfinite(forecast).all(axis=None)


def test_forecasts_follow_scale_and_shift(waves):
    scale, shift = np.array([50.0, 1e-3, 7.0]), np.array([-1000.0, 2.0, 1e5])
    plain, moved = ridge().fit(waves), ridge().fit(waves * scale + shift)
    np.testing.assert_allclose(moved.coef_, plain.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(moved.predict(), plain.predict() * scale + shift, rtol=1e-7)


def test_order_of_the_columns_only_orders_the_forecast(waves):
    est, other = ridge().fit(waves), ridge().fit(waves[["c", "a", "b"]])
    assert list(other.predict().columns) == ["c", "a", "b"]
    pd.testing.assert_frame_equal(other.predict()[["a", "b", "c"]], est.predict(), rtol=1e-10)


def test_rows_after_the_training_part_change_the_choice_alone(waves):
    changed = waves.copy()
    changed.iloc[160:] = np.random.default_rng(1).normal(size=(40, 3)) * 50
    options = {"validation_fraction": 0.2, "alpha": [0, 1, 1e4], "lookback": [2, 8]}
    first, second = ridge(**options).fit(waves), ridge(**options).fit(changed)
    pd.testing.assert_series_equal(first.cv_results_["train_mse"], second.cv_results_["train_mse"])
    assert (first.cv_results_["valid_mse"] != second.cv_results_["valid_mse"]).all()
    np.testing.assert_array_equal(first.mean_, second.mean_)
    np.testing.assert_allclose(first.mean_, waves[:160].mean())
    assert (first.lookback_, first.alpha_) != (second.lookback_, second.alpha_)
    same = [ridge(validation_fraction=0.2).fit(df) for df in (waves, changed)]
    np.testing.assert_array_equal(same[0].coef_, same[1].coef_)
    np.testing.assert_array_equal(same[0].coef_, ridge().fit(waves[:160]).coef_)


def test_the_candidate_with_the_least_validation_error_wins(waves):
    options = {"lookback": [2, 16, 8], "alpha": (1e4, 1e-3, 1.0)}
    est = ridge(**options, validation_fraction=0.25).fit(waves)
    best = est.cv_results_.loc[est.cv_results_["valid_mse"].idxmin()]
    assert (est.lookback_, est.alpha_) == (best["lookback"], best["alpha"]) == (16, 1e-3)
    assert len(est.tail_[0]) == 16
    outside = ridge(**options).fit(waves[:150], validation=waves[150:])
    pd.testing.assert_frame_equal(outside.cv_results_, est.cv_results_)
    np.testing.assert_array_equal(outside.coef_, est.coef_)
    alone = ridge(lookback=16, alpha=1e-3).fit(waves[:150])
    np.testing.assert_array_equal(alone.coef_, est.coef_)
    pd.testing.assert_frame_equal(alone.predict(waves), est.predict(waves))
    shorter, alone = (ridge(lookback=n, alpha=1e4).fit(waves[:150], validation=waves[150:]) for n in ([40, 2], 2))
    assert (shorter.lookback_, len(shorter.tail_[0])) == (2, 2)
    pd.testing.assert_frame_equal(shorter.predict(), alone.predict())
    noise = waves[150:] * 0 + np.random.default_rng(0).normal(size=(50, 3)) * 1e3
    assert ridge(**options).fit(waves[:150], validation=noise).alpha_ == 1e4  # nothing beats the mean of the window


def test_every_candidate_is_measured_on_the_same_targets(waves):
    spiked = waves[150:].copy()
    spiked.iloc[0] = 1e6  # the first validation row: a target of one window of every candidate, however long
    table = ridge(lookback=[1, 8, 40], alpha=1e6).fit(waves[:150], validation=spiked).cv_results_
    plain = ridge(lookback=[1, 8, 40], alpha=1e6).fit(waves[:150], validation=waves[150:]).cv_results_
    assert (table["valid_mse"] > 1e6 * plain["valid_mse"]).all()
    gap = ridge(lookback=[2, 8], alpha=0.01).fit(waves[:140], validation=waves[150:])
    alone = ridge(lookback=2, alpha=0.01).fit(waves[:140])
    assert gap.cv_results_["valid_mse"][0] == pytest.approx(alone.evaluate(waves[156:])["mse"])


def test_a_search_over_candidates_agrees_with_scikit_learns(waves, polar_waves):
    folds = TimeSeriesSplit(3, test_size=20)
    grid = {"alpha": np.array([1e-3, 1e4]), "lookback": [4, 8]}
    search = GridSearchCV(ridge(), grid, cv=folds, error_score="raise").fit(waves)
    assert search.best_params_["alpha"] == 1e-3
    again = GridSearchCV(ridge(), grid, cv=folds, error_score="raise").fit(polar_waves)
    np.testing.assert_array_equal(again.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"])
    inner = GridSearchCV(ridge(validation_fraction=0.2), {"alpha": [[0.1, 1.0], [0.01]]}, cv=folds).fit(waves)
    assert inner.best_params_["alpha"] == [0.01]


def test_frames_come_back_as_they_went_in(waves, polar_waves):
    forecast = ridge().fit(waves).predict()
    assert forecast.index[0] == waves.index[-1] + pd.Timedelta("1h")
    polar = ridge().fit(polar_waves).predict()
    assert polar.columns == ["time", "a", "b", "c"]
    np.testing.assert_array_equal(polar.drop("time").to_numpy(), forecast)
    np.testing.assert_array_equal(ridge().fit(waves.to_numpy()).predict(), forecast)
    est = ridge(lookback=[40, 2], alpha=1e4).fit(waves[:150], validation=waves[150:])
    display = ForecastDisplay.from_estimator(est, waves)
    assert len(display.history) == est.lookback_ == 2
    np.testing.assert_array_equal(display.forecast, est.predict(waves[:-4]))


def test_memory_does_not_grow_with_the_number_of_windows():
    frame = np.random.default_rng(0).normal(size=(20_000, 100))
    tracemalloc.start()
    ridge(lookback=60, horizon=40).fit(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * frame.nbytes, f"{peak / frame.nbytes:.1f} times the frame; all windows would take 100 times"


BAD = {
    "lookback": [0, -1, 8.0, None, "8", [], [8, 0], [[8]], True],
    "alpha": [-1, None, "x", [], (0.1, -2), np.inf, np.array([np.nan])],
    "horizon": [0, 1.5],
    "validation_fraction": [1, -0.5],
    "scaler": ["minmax"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_options_are_refused_by_name(waves, name, value):
    est = ridge(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name} must be .*got"):
        est.fit(waves)
    assert not hasattr(est, "coef_")


def test_a_choice_needs_a_validation_part(waves):
    for changes in ({"alpha": [0, 1]}, {"lookback": [4, 8]}):
        with pytest.raises(ValueError, match="validation_fraction=0 .*validation= .*one number"):
            ridge(**changes).fit(waves)
    assert ridge(alpha=[0.5], lookback=[4]).fit(waves).lookback_ == 4


def test_frames_too_short_for_the_longest_candidate_are_refused(waves):
    with pytest.raises(ValueError, match=r"43 rows.*lookback=40 \+ horizon=4 need at least 44"):
        ridge(lookback=[4, 40]).fit(waves[:43])
    est = ridge(lookback=[4, 40], validation_fraction=0.2).fit(waves)
    with pytest.raises(ValueError, match=f"lookback={est.lookback_} rows of history, the frame has 3"):
        est.predict(waves[:3])
    with pytest.raises(ValueError, match=r"lookback was set to \[3\] after fit"):
        est.set_params(lookback=[3]).predict()


def test_round_trip_without_pickle(waves, tmp_path, monkeypatch):
    est = ridge(lookback=[4, 8], alpha=[0.2, 0.1], validation_fraction=0.2).fit(waves)
    monkeypatch.setattr(pickle, "dumps", None)
    monkeypatch.setattr(pickle, "loads", None)
    loaded = load(est.save(tmp_path) and tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert {n for n in vars(loaded) if n.endswith("_")} == {n for n in vars(est) if n.endswith("_")}
    assert (loaded.lookback_, loaded.alpha_) == (est.lookback_, est.alpha_)
    np.testing.assert_array_equal(loaded.coef_, est.coef_)
    pd.testing.assert_frame_equal(loaded.cv_results_, est.cv_results_)
    pd.testing.assert_frame_equal(loaded.predict(), est.predict(), rtol=0, atol=0)
    arrays = ridge(lookback=np.array([4, 8]), alpha=np.array([0, 0.1]), validation_fraction=0.2).fit(waves)
    assert load(arrays.save(tmp_path) and tmp_path).alpha == [0.0, 0.1]


def test_a_map_of_another_size_is_refused(waves, tmp_path):
    ridge().fit(waves).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["fitted"]["horizon"] = config["params"]["horizon"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit RidgeForecaster: the map is of shape \(4, 8\)"):
        load(tmp_path)


def test_pickles_forecast_the_same_and_hold_no_training_rows(waves):
    content = pickle.dumps(est := ridge().fit(waves))
    pd.testing.assert_frame_equal(pickle.loads(content).predict(), est.predict(), rtol=0, atol=0)
    assert len(content) < 10_000


def test_command_line_takes_candidates_and_tells_the_choice(waves, tmp_path, capsys):
    waves.to_csv(tmp_path / "x.csv")
    words = ["fit", "RidgeForecaster", str(tmp_path / "x.csv"), "--save", str(tmp_path / "m"), "--horizon", "4"]
    assert main([*words, "--lookback", "[2, 8]", "--alpha", "0.5"]) == 0
    est = ridge(lookback=[2, 8], alpha=0.5, validation_fraction=0.2).fit(waves)
    best = est.cv_results_["valid_mse"].min()
    out, err = capsys.readouterr()
    assert (f"best validation loss {best:.4f} with lookback={est.lookback_}, alpha=0.5\n" in out, err) == (True, "")
    np.testing.assert_array_equal(load(tmp_path / "m").predict()[["a", "b", "c"]], est.predict())
    assert main([*words, "--alpha", "many"]) == 2
    assert "--alpha must be float or list, got 'many'" in capsys.readouterr().err


def test_linear_network_equals_its_formulas_and_has_the_published_size():
    torch.manual_seed(0)
    network = LinearNetwork(InputSizes(n_variates=3, lookback=8, horizon=4)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    w = {name: value.numpy() for name, value in network.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(5, 3, 8)) * 3 + 2
    mean, spread = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    scale, shift = w["window_norm.scale"], w["window_norm.shift"]
    y = ((x - mean) / spread * scale + shift) @ w["head.projection.weight"].T + w["head.projection.bias"]
    expected = (y - shift) / (scale + 1e-10) * spread + mean
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)), expected, rtol=1e-9)
    published = {96: 9_326, 720: 69_854}
    for horizon, n_parameters in published.items():
        full = LinearNetwork(InputSizes(n_variates=7, lookback=96, horizon=horizon))
        assert sum(p.numel() for p in full.parameters()) == n_parameters


@pytest.mark.parametrize("loss", LOSSES)
def test_linear_forecaster_learns_a_linear_recurrence(loss, tmp_path):
    time = np.arange(400.0)
    frame = pd.DataFrame({"x": np.sin(time / 3), "y": 100 + 9 * np.cos(time / 3)})
    est = linear(loss=loss, max_epochs=30, learning_rate=1e-2, lr_schedule="cosine").fit(frame[:300])
    found, repeated = (e.evaluate(frame[292:])["mse"] for e in (est, NaiveForecaster(horizon=4, lookback=8).fit(frame)))
    assert found < repeated / 100
    assert est.history_["valid_loss"].min() == pytest.approx(est.evaluate(frame[300 - 60 - 8 : 300])["mse"], rel=1e-4)
    pd.testing.assert_frame_equal(load(est.save(tmp_path) and tmp_path).predict(), est.predict(), rtol=0, atol=0)


def written_out(loss: str, weight: float, found: np.ndarray, truth: np.ndarray) -> float:
    """Compute a loss of arrays (B, V, H) by its formula, the Fourier coefficients as sums of cosines and sines."""
    error = found - truth
    steps = np.arange(error.shape[-1])
    angles = 2 * np.pi * np.outer(steps, np.arange(len(steps) // 2 + 1)) / len(steps)
    distance = np.sqrt((error @ np.cos(angles)) ** 2 + (error @ np.sin(angles)) ** 2)
    small = np.abs(error) <= 1
    return {
        "mse": np.mean(error**2),
        "mae": np.mean(np.abs(error)),
        "huber": np.mean(np.where(small, error**2 / 2, np.abs(error) - 0.5)),
        "fredf": (1 - weight) * np.mean(error**2) + weight * np.mean(distance),
    }[loss]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("horizon", [1, 7, 24])
@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "fredf"])
def test_losses_equal_their_formulas_and_have_finite_gradients(loss, horizon, dtype):
    generator = torch.Generator().manual_seed(horizon)
    found, truth = (2 * torch.randn(3, 5, horizon, generator=generator) for _ in range(2))
    found[0] = truth[0]  # no error at all: the distance of the Fourier coefficients has a corner there
    found, truth = found.to(dtype).requires_grad_(), truth.to(dtype)
    for weight in (0.0, 0.3, 0.8, 1.0):
        value = loss_of(linear(loss=loss, fredf_weight=weight))(found, truth)
        expected = written_out(loss, weight, found.detach().double().numpy(), truth.double().numpy())
        assert value.item() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 2e-2)
        (gradient,) = torch.autograd.grad(value, found)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


def test_training_uses_the_loss_and_validation_the_squared_error(waves, monkeypatch):
    options = {"max_epochs": 1, "batch_size": 1000, "learning_rate": 1e-12}
    runs = {loss: linear(loss=loss, **options).fit(waves).history_.iloc[0] for loss in LOSSES}
    half = linear(loss="fredf", fredf_weight=0.4, **options).fit(waves).history_.iloc[0]
    assert len({run["train_loss"] for run in runs.values()}) == len(LOSSES)
    assert len({run["valid_loss"] for run in runs.values()}) == 1
    assert runs["mse"]["train_loss"] == pytest.approx(2 * half["train_loss"] - runs["fredf"]["train_loss"], rel=1e-5)
    monkeypatch.setattr(ssmseq.training.pl.Trainer, "fit", None)
    with pytest.raises(ValueError, match="loss must be one of 'mse', 'mae', 'huber', 'fredf', got 'log'"):
        linear(loss="log").fit(waves)


MEASURED = {  # (data, horizon): MSE and MAE at look-back 96, then with the look-back chosen on validation
    ("h1", 96): (0.383, 0.392, 512, 0.366, 0.391),
    ("h1", 192): (0.434, 0.421, 336, 0.403, 0.411),
    ("h1", 336): (0.475, 0.441, 336, 0.426, 0.424),
    ("h1", 720): (0.461, 0.456, 336, 0.422, 0.443),
    ("h2", 96): (0.288, 0.337, 336, 0.272, 0.334),
    ("h2", 192): (0.374, 0.389, 96, 0.374, 0.389),
    ("h2", 336): (0.413, 0.423, 96, 0.413, 0.423),
    ("h2", 720): (0.415, 0.435, 96, 0.415, 0.435),
    ("exchange", 96): (0.082, 0.197, 96, 0.082, 0.197),
    ("exchange", 192): (0.169, 0.290, 96, 0.169, 0.290),
    ("exchange", 336): (0.311, 0.401, 336, 0.313, 0.403),
    ("exchange", 720): (0.813, 0.678, 96, 0.813, 0.678),
}


@pytest.mark.skipif(not os.environ.get("SSMSEQ_DATA"), reason="set SSMSEQ_DATA to a folder with ETT to run this")
@pytest.mark.parametrize(("name", "horizon"), MEASURED)
def test_real_data_give_the_figures_of_an_independent_solution(name, horizon):
    from ssmseq import datasets

    exchange = name == "exchange"
    fetch = datasets.fetch_exchange_rate if exchange else functools.partial(datasets.fetch_ett, name)
    try:
        data = fetch(download_if_missing=False)
    except datasets.DatasetNotFoundError as error:
        pytest.skip(str(error))
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    mse, mae, chosen, tuned_mse, tuned_mae = MEASURED[name, horizon]
    tuned = [96, 192, 336, 512, 720] if name == "h1" and horizon < 720 else [96, 336, 512]
    for lookback, expected in ((96, (96, mse, mae)), (tuned, (chosen, tuned_mse, tuned_mae))):
        est = RidgeForecaster(horizon=horizon, lookback=lookback, alpha=[0, 0.01])
        est.fit(data.frame[train], validation=data.frame[valid])
        found = est.evaluate(data.frame[test.start - est.lookback_ : test.stop])
        assert found["n_windows"] == test.stop - test.start - horizon + 1
        assert (est.lookback_, found["mse"], found["mae"]) == pytest.approx(expected, abs=0.002)

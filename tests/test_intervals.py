"""Quantiles that do not cross, intervals that hold what they promise, backtests that others' code can read."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_pinball_loss
from utilsforecast import losses
from utilsforecast.evaluation import evaluate

from ssmseq import KarmaForecaster, LinearForecaster, NaiveForecaster, RidgeForecaster
from ssmseq.datasets import fetch_ett
from ssmseq.forecasting.intervals import renewed_bounds, score_bounds

LEVELS = [50, 80, 95]


def test_bounds_are_the_order_statistics_of_split_conformal():
    scores = torch.rand(37, 2, 3, dtype=torch.float64)
    scores[30:, 1, 2] = torch.nan
    bounds = score_bounds(scores, pooled=False)
    for p in (1, 50, 80, 95, 97):
        for v, h, n in ((0, 0, 37), (1, 1, 37), (1, 2, 30)):
            rank = -(-(n + 1) * p // 100)
            expected = np.sort(scores[:n, v, h])[rank - 1] if rank <= n else np.inf
            assert bounds[p - 1, v, h] == expected
    pooled = score_bounds(scores, pooled=True)
    assert pooled.shape == (99, 1, 3)
    assert pooled[79, 0, 0] == np.sort(scores[:, :, 0].ravel())[-(-75 * 80 // 100) - 1]


@pytest.mark.parametrize("level", [50, 80, 95])
def test_coverage_of_exchangeable_windows_is_at_least_nominal(level):
    """Independent noise around a constant: n calibration scores cover at least, and hardly more than, what they say."""
    rng = np.random.default_rng(0)
    hits = [
        (
            rng.standard_exponential(1)
            <= score_bounds(torch.from_numpy(rng.standard_exponential((60, 1, 1))), pooled=False)[
                level - 1, 0, 0
            ].item()
        )[0]
        for _ in range(1500)
    ]
    expected = -(-61 * level // 100) / 61
    assert abs(np.mean(hits) - expected) < 3.3 * np.sqrt(expected * (1 - expected) / 1500)


def test_intervals_are_nested_around_the_forecast(waves):
    est = NaiveForecaster(horizon=4, lookback=8).fit(waves[:120], validation=waves[120:])
    found = est.predict(level=LEVELS)
    assert list(found.columns[:7]) == ["a", "a-lo-50", "a-hi-50", "a-lo-80", "a-hi-80", "a-lo-95", "a-hi-95"]
    pd.testing.assert_frame_equal(found[["a", "b", "c"]], est.predict())
    for c in "abc":
        for narrow, wide in ((50, 80), (80, 95)):
            assert (found[f"{c}-lo-{wide}"] < found[f"{c}-lo-{narrow}"]).all()
            assert (found[f"{c}-hi-{wide}"] > found[f"{c}-hi-{narrow}"]).all()
        np.testing.assert_allclose((found[f"{c}-lo-80"] + found[f"{c}-hi-80"]) / 2, found[c], rtol=1e-9)


def test_evaluate_measures_the_coverage_of_predict(waves):
    # Not rows of the calibration: the error that sets a width is its bound exactly, in or out by rounding.
    est = RidgeForecaster(horizon=4, lookback=8).fit(waves[:150])
    found = est.evaluate(waves[150:], level=[80], scaled=False)
    inside, widths = [], []
    for start in range(50 - 11):
        rows = waves[150 + start : 162 + start]
        bounds = est.predict(rows[:8], level=[80])
        for c in "abc":
            low, high = bounds[f"{c}-lo-80"].to_numpy(), bounds[f"{c}-hi-80"].to_numpy()
            inside.append((rows[c][8:].to_numpy() >= low) & (rows[c][8:].to_numpy() <= high))
            widths.append(high - low)
    assert found["coverage_80"] == pytest.approx(np.mean(inside))
    assert found["width_80"] == pytest.approx(np.mean(widths))


@pytest.mark.parametrize("horizon", [96, 720])
def test_recalibrated_intervals_cover_etth1_within_two_points(horizon):
    data = fetch_ett(variant="h1")
    frame = data.frame[: data.splits["test"][1]]
    train, valid = (data.frame[slice(*data.splits[p])] for p in ("train", "validation"))
    est = RidgeForecaster(horizon=horizon, lookback=96).fit(train, validation=valid)
    n_windows = (2880 - horizon) // 8 + 1
    found = est.backtest(frame, n_windows=n_windows, step=8, level=[80, 95], recalibrate=24)
    for level in (80, 95):
        inside = found["y"].between(found[f"RidgeForecaster-lo-{level}"], found[f"RidgeForecaster-hi-{level}"])
        assert abs(100 * inside.mean() - level) < 2


def known_scores(scores):
    """Lay the scores (windows, V, H) of windows that start at row 0, 1, ... out by the rows that they are of."""
    n, n_variates, horizon = scores.shape
    known = np.full((n_variates, horizon, n + horizon - 1), np.nan, np.float32)
    for i, v, h in np.ndindex(scores.shape):
        known[v, h, i + h] = scores[i, v, h]
    return known


def test_renewed_bounds_are_those_of_the_rule_window_by_window():
    scores = np.random.default_rng(0).gamma(2.0, size=(70, 2, 5)).astype(np.float32)
    scores[33, 1, 2] = np.nan
    first, every = 30, 4
    found = renewed_bounds(known_scores(scores), range(first, 71, every), (80,))[0]
    share, issued = np.full(5, 0.8), {}
    for n, now in enumerate(range(first, 71, every)):
        for h in range(5):
            hits = []
            for start in range(first, now):  # windows since the first renewal, whose row h ahead has just become known
                if max(first, now - every) <= start + h < now:
                    hits += [scores[start, v, h] <= issued[start][v, h] for v in (0, 1) if scores[start, v, h] >= 0]
            if hits:
                share[h] += (0.8 - np.mean(hits)) / (1 + h / every)
        bounds = np.empty((2, 5))
        for v, h in np.ndindex(2, 5):
            past = sorted(s for s in scores[: max(0, now - h), v, h] if s >= 0)
            rank = int(np.ceil((len(past) + 1) * share[h] - 1e-9))
            bounds[v, h] = past[min(max(rank, 1), len(past)) - 1]
        np.testing.assert_array_equal(found[n], bounds.astype(np.float32))
        issued |= dict.fromkeys(range(now, now + every), bounds)


@pytest.mark.parametrize("level", [50, 80, 95])
@pytest.mark.parametrize("growth", [1.0, -0.8])
def test_renewed_bounds_hold_what_they_promise_where_errors_grow_or_shrink(level, growth):
    rng = np.random.default_rng(level)
    size = 1 + growth * np.arange(3000) / 3000
    scores = np.abs(rng.normal(size=(3000, 2, 6))) * size[:, None, None]
    bounds = renewed_bounds(known_scores(scores), range(1000, 3000, 10), (level,))[0]
    held = scores[1000:] <= bounds[np.arange(2000) // 10]
    fixed = scores[1000:] <= np.percentile(scores[:1000], level, axis=0)
    assert abs(100 * held.mean() - level) < 0.7
    assert abs(100 * fixed.mean() - level) > 2


def test_a_percentage_needs_as_many_rows_as_one_alone():
    scores = np.random.default_rng(0).gamma(2.0, size=(40, 1, 2))
    bounds = renewed_bounds(known_scores(scores), range(10, 41, 10), (80, 95))
    assert np.isfinite(bounds[0]).all()
    assert np.isinf(bounds[1, 0]).all()
    assert np.isfinite(bounds[1, 2:]).all()


def test_levels_that_cannot_be_are_refused(waves):
    est = RidgeForecaster(horizon=4, lookback=8).fit(waves)
    for level in (0, 100, 80.5, [80, "x"]):
        with pytest.raises(ValueError, match="whole percentages from 1 to 99"):
            est.predict(level=level)
    with pytest.raises(ValueError, match="level=99 needs more validation windows"):
        est.predict(level=[99])
    with pytest.raises(ValueError, match="validation_fraction above 0"):
        RidgeForecaster(horizon=4, lookback=8, alpha=0, validation_fraction=0).fit(waves).predict(level=[80])


# Quantiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["smamba", "karma", "linear"])
def test_quantiles_do_not_cross_and_the_median_is_the_forecast(small, waves, make):
    options = {"horizon": 4, "lookback": 8, "max_epochs": 1, "random_state": 0, "quantiles": [0.05, 0.5, 0.8]}
    est = {
        "smamba": lambda: small(**options),
        "karma": lambda: KarmaForecaster(d_model=16, loss="mse", **options),
        "linear": lambda: LinearForecaster(**options),
    }[make]().fit(waves)
    found = est.predict(quantiles=True)
    assert list(found.columns[:4]) == ["a", "a-q0.05", "a-q0.5", "a-q0.8"]
    for c in "abc":
        np.testing.assert_array_equal(found[c], found[f"{c}-q0.5"])
        assert (found[f"{c}-q0.05"] <= found[c]).all()
        assert (found[c] <= found[f"{c}-q0.8"]).all()


def test_quantile_training_finds_the_quantiles_of_noise():
    noise = np.random.default_rng(0).standard_exponential((12000, 1))
    options = {"max_epochs": 6, "batch_size": 256, "learning_rate": 1e-2, "lr_schedule": "cosine", "random_state": 0}
    est = LinearForecaster(horizon=1, lookback=32, quantiles=[0.1, 0.5, 0.9], **options).fit(noise[:10000])
    truth = noise[10032:]
    found = est.evaluate(noise[10000:], scaled=False)["crps"]
    constant = [np.full_like(truth, np.quantile(truth, q)) for q in est.quantiles]
    best = np.mean([2 * mean_pinball_loss(truth, c, alpha=q) for c, q in zip(constant, est.quantiles, strict=True)])
    assert best < found < 1.1 * best  # the mean and deviation of 32 rows, by which windows are normalised, are noise
    medians = est.backtest(noise[10000:], n_windows=1900, step=1)
    assert abs((medians["y"] < medians["LinearForecaster"]).mean() - 0.5) < 0.05


def test_crps_is_twice_the_mean_pinball_loss(small, waves):
    est = small(quantiles=[0.1, 0.5, 0.7], max_epochs=1).fit(waves)
    losses = []
    for start in range(30 - 11):
        rows = waves[170 + start : 182 + start]
        found = est.predict(rows[:8], quantiles=True)
        losses += [mean_pinball_loss(rows[c][8:], found[f"{c}-q{q:g}"], alpha=q) for c in "abc" for q in est.quantiles]
    assert est.evaluate(waves[170:], scaled=False)["crps"] == pytest.approx(2 * np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("quantiles", [[0.1, 0.9], [0.5, 0.1], [0.5, 0.5], [0, 0.5], []])
def test_quantiles_that_cannot_be_are_refused(small, waves, no_training, quantiles):
    with pytest.raises(ValueError, match="quantiles must"):
        small(quantiles=quantiles).fit(waves)


def test_quantiles_are_not_there_for_models_of_a_point(small, waves):
    with pytest.raises(ValueError, match="needs a model fitted with quantiles"):
        small(max_epochs=1).fit(waves).predict(quantiles=True)


# Backtests ------------------------------------------------------------------------------------------------------------


def test_backtest_equals_predict_before_each_cutoff(waves, polar_waves):
    est = RidgeForecaster(horizon=4, lookback=8).fit(waves)
    found = est.backtest(waves, n_windows=3, step=5, level=[80])
    names = ["unique_id", "ds", "cutoff", "y", "RidgeForecaster", "RidgeForecaster-lo-80", "RidgeForecaster-hi-80"]
    assert list(found.columns) == names
    assert len(found) == 3 * 4 * 3
    for cutoff, rows in found.groupby("cutoff"):
        expected = est.predict(waves[:cutoff], level=[80])
        for c, mine in rows.groupby("unique_id"):
            assert mine["ds"].tolist() == expected.index.tolist()
            np.testing.assert_allclose(mine["RidgeForecaster"], expected[c], rtol=1e-9)
            np.testing.assert_allclose(mine["RidgeForecaster-lo-80"], expected[f"{c}-lo-80"], rtol=1e-9)
            np.testing.assert_array_equal(mine["y"], waves[c][mine["ds"]])
    assert found["ds"].max() == waves.index[-1]
    other = (
        RidgeForecaster(horizon=4, lookback=8).fit(polar_waves).backtest(polar_waves, n_windows=3, step=5, level=[80])
    )
    assert other["ds"].to_list() == found["ds"].tolist()
    np.testing.assert_array_equal(other["RidgeForecaster"].to_numpy(), found["RidgeForecaster"].to_numpy())


def test_refits_see_nothing_after_their_cutoff(waves):
    est = RidgeForecaster(horizon=4, lookback=8, alpha=0.01, validation_fraction=0).fit(waves)
    found = est.backtest(waves, n_windows=4, refit=2)
    for i, (cutoff, rows) in enumerate(found.groupby("cutoff")):
        if i % 2 == 0:
            model = RidgeForecaster(horizon=4, lookback=8, alpha=0.01, validation_fraction=0).fit(waves[:cutoff])
        expected = model.predict(waves[:cutoff]).to_numpy().T.ravel()
        np.testing.assert_allclose(rows["RidgeForecaster"], expected, rtol=1e-9)


def test_recalibration_with_too_few_rows_names_the_remedy(waves):
    est = RidgeForecaster(horizon=4, lookback=8).fit(waves)
    with pytest.raises(ValueError, match="level=95 needs more windows before the first cutoff .* give more rows"):
        est.backtest(waves.iloc[:40], n_windows=4, level=[95], recalibrate=1)


def test_recalibration_uses_only_rows_before_the_cutoff(waves):
    est = RidgeForecaster(horizon=4, lookback=8).fit(waves)
    options = {"n_windows": 6, "step": 2, "level": [80], "recalibrate": 2}
    found = est.backtest(waves, **options)
    cutoff = found["cutoff"].unique()[2]
    changed = waves.copy()
    changed.loc[changed.index > cutoff] += 100
    again = est.backtest(changed, **options)
    early = found["cutoff"] <= cutoff
    columns = [c for c in found if c.startswith("Ridge")]
    pd.testing.assert_frame_equal(found.loc[early, columns], again.loc[early, columns])
    assert not found["RidgeForecaster-hi-80"].equals(again["RidgeForecaster-hi-80"])


def test_utilsforecast_reads_a_backtest(small, waves):
    est = small().fit(waves)
    found = est.backtest(waves, n_windows=5, step=1)
    scores = evaluate(found, metrics=[losses.mse, losses.mae])
    errors = found["SMambaForecaster"] - found["y"]
    by_hand = (errors**2).groupby(found["unique_id"]).mean()
    mse = scores[scores["metric"] == "mse"].groupby("unique_id")["SMambaForecaster"].mean()
    np.testing.assert_allclose(mse, by_hand)


def test_too_many_windows_are_refused_with_the_rows_they_need(small, waves):
    with pytest.raises(ValueError, match="the frame has 200 rows; n_windows=50 cutoffs with step=4.*need 208"):
        small(max_epochs=1).fit(waves).backtest(waves, n_windows=50)


def test_mase_and_wape_are_their_formulas(waves):
    est = RidgeForecaster(horizon=4, lookback=8, alpha=0.1, validation_fraction=0).fit(waves[:150])
    found = est.evaluate(waves[140:])
    backtest = est.backtest(waves[140:], n_windows=49, step=1)
    error = (backtest["y"] - backtest["RidgeForecaster"]).abs()
    assert found["wape"] == pytest.approx(error.sum() / backtest["y"].abs().sum(), rel=1e-6)
    naive = waves[:150].diff(24).abs().mean()
    assert found["mase"] == pytest.approx((error.groupby(backtest["unique_id"]).mean() / naive).mean(), rel=1e-6)

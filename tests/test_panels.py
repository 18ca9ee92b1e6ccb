"""Several series beneath each other in one long frame: one model, each with its own times, length and scale."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ssmseq import KarmaForecaster, NaiveForecaster, RidgeForecaster, load

LENGTHS = {"long": 160, "middle": 90, "short": 40}


@pytest.fixture
def panel() -> pd.DataFrame:
    """Three waves of different length, start, scale and order."""
    rng = np.random.default_rng(1)
    parts = []
    for i, (name, n) in enumerate(LENGTHS.items()):
        times = pd.date_range(f"2021-01-0{i + 1}", periods=n, freq="h")
        y = (np.sin(np.arange(n) / 3) + 0.1 * rng.normal(size=n)) * 10**i + 100 * i
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": y}))
    return pd.concat(parts, ignore_index=True)


def test_forecasts_come_back_long_in_the_order_of_the_series_with_the_times_that_follow(small, panel):
    forecast = small().fit(panel).predict()
    assert list(forecast.columns) == ["unique_id", "ds", "y"]
    assert forecast["unique_id"].tolist() == [name for name in LENGTHS for _ in range(4)]
    for name, rows in forecast.groupby("unique_id"):
        last = panel.loc[panel["unique_id"] == name, "ds"].iloc[-1]
        assert rows["ds"].tolist() == list(pd.date_range(last, periods=5, freq="h")[1:])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_any_names_any_order_of_columns_and_rows(small, panel, library):
    expected = small().fit(panel).predict()
    renamed = panel.rename(columns={"unique_id": "shop", "ds": "hour", "y": "sales"})[["hour", "sales", "shop"]]
    shuffled = renamed.sample(frac=1, random_state=0).sort_values("shop", key=lambda s: s.map(list(LENGTHS).index))
    shuffled["unused"] = 1.0
    frame = shuffled if library == "pandas" else pl.DataFrame({c: shuffled[c].to_numpy() for c in shuffled})
    est = small(id_col="shop", time_col="hour", target="sales").fit(frame)
    found = est.predict()
    assert list(found.columns) == ["hour", "sales", "shop"]
    assert isinstance(found, pd.DataFrame if library == "pandas" else pl.DataFrame)
    np.testing.assert_array_equal(found["sales"].to_numpy(), expected["y"].to_numpy())
    assert found["shop"].to_list() == expected["unique_id"].tolist()


def test_each_series_has_its_own_scale_and_a_shifted_one_the_same_forecast(small, panel):
    est = small(validation_fraction=0.0, scaler="standard").fit(panel)
    for i, name in enumerate(LENGTHS):
        y = panel.loc[panel["unique_id"] == name, "y"]
        assert est.mean_[i, 0] == pytest.approx(y.mean())
        assert est.scale_[i, 0] == pytest.approx(y.std(ddof=0))
    moved = panel.assign(y=panel["y"] * 3 + 7)
    found = small(validation_fraction=0.0).fit(moved).predict()["y"]
    np.testing.assert_allclose(found, est.predict()["y"] * 3 + 7, rtol=1e-4)


def test_a_forecast_does_not_depend_on_the_other_series_it_is_asked_with(small, panel):
    est = small().fit(panel)
    together = est.predict(panel).set_index("unique_id")["y"]
    for name in LENGTHS:
        alone = est.predict(panel[panel["unique_id"] == name])
        np.testing.assert_allclose(alone["y"], together[name], rtol=1e-5)


def test_series_that_fit_never_saw_are_forecast_with_the_scale_of_their_history(small, panel):
    est = small().fit(panel)
    known = panel[panel["unique_id"] == "long"]
    new = known.assign(unique_id="new", y=known["y"] * 50 - 3)
    expected = est.predict(known)["y"] * 50 - 3
    np.testing.assert_allclose(est.predict(new)["y"], expected, rtol=1e-4)


def test_histories_shorter_than_the_lookback_are_filled_up_as_missing(small, panel):
    est = small(lookback=16).fit(panel)
    short = panel[panel["unique_id"] == "long"].tail(5)
    assert np.isfinite(est.predict(short)["y"]).all()
    two = small(lookback=38, horizon=4, validation_fraction=0.0).fit(
        panel
    )  # the shortest has 40 rows: 42 are asked for
    assert two.has_gaps_


def test_numbered_rows_count_on_within_each_series(panel):
    plain = panel.drop(columns="ds")
    found = NaiveForecaster(horizon=2, lookback=4, season_length=4, id_col="unique_id").fit(plain).predict()
    assert list(found.columns) == ["unique_id", "y"]
    ends = panel.groupby("unique_id", sort=False)["y"].apply(lambda y: y.iloc[-4:-2].tolist())
    assert found["y"].to_numpy() == pytest.approx(np.concatenate(ends.tolist()))


def test_several_targets_of_each_series(small, panel):
    wide = panel.assign(z=panel["y"] ** 2)
    est = small(id_col="unique_id", time_col="ds", target=["y", "z"]).fit(wide)
    assert list(est.predict().columns) == ["unique_id", "ds", "y", "z"]
    assert est.mean_.shape == (3, 2)


def test_evaluate_equals_a_loop_over_the_series(small, panel):
    est = small().fit(panel)
    whole = est.evaluate(panel)
    parts = [est.evaluate(panel[panel["unique_id"] == name]) for name in LENGTHS]
    n = np.array([p["n_windows"] for p in parts])
    assert n.tolist() == [length - 11 for length in LENGTHS.values()]
    assert whole["n_windows"] == n.sum()
    assert whole["mse"] == pytest.approx((n * [p["mse"] for p in parts]).sum() / n.sum(), rel=1e-6)
    assert whole["mase"] == pytest.approx(np.mean([p["mase"] for p in parts]), rel=1e-6)


def test_ridge_pools_the_windows_of_all_series(panel):
    est = RidgeForecaster(horizon=3, lookback=6, alpha=0.01, validation_fraction=0).fit(panel)
    inputs, targets = [], []
    for i, name in enumerate(LENGTHS):
        y = (panel.loc[panel["unique_id"] == name, "y"].to_numpy() - est.mean_[i, 0]) / est.scale_[i, 0]
        windows = np.lib.stride_tricks.sliding_window_view(y, 9)
        centre = windows[:, :6].mean(1, keepdims=True)
        inputs.append(windows[:, :6] - centre)
        targets.append(windows[:, 6:] - centre)
    x, y = np.concatenate(inputs), np.concatenate(targets)
    penalised = x.T @ x / len(x) + 0.01 * np.eye(6)
    np.testing.assert_allclose(est.coef_, np.linalg.solve(penalised, x.T @ y / len(x)).T, atol=1e-6)


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_saved_panels_forecast_the_same(small, panel, tmp_path, kind):
    frame = panel if kind == "pandas" else pl.DataFrame({c: panel[c].to_numpy() for c in panel})
    est = small(quantiles=[0.1, 0.5]).fit(frame)
    est.save(tmp_path)
    again = load(tmp_path)
    assert again.predict(level=[50], quantiles=True).equals(est.predict(level=[50], quantiles=True))
    assert again.predict(frame[:50]).equals(est.predict(frame[:50]))


def test_validation_frames_continue_the_series_of_their_name(small, panel):
    train = panel.groupby("unique_id", sort=False).head(30)
    valid = panel.groupby("unique_id", sort=False).nth(slice(30, 40))
    est = small(batch_size=2, max_epochs=1).fit(train, validation=valid)
    assert est.interval_bounds_.shape == (99, 1, 4)
    expected = est.evaluate(panel.groupby("unique_id", sort=False).nth(slice(22, 40)))
    assert est.history_["valid_loss"].iloc[0] == pytest.approx(expected["mse"], rel=1e-5)
    assert expected["n_windows"] == 3 * 7


def test_faults_of_long_frames_are_named(small, panel, no_training):
    with pytest.raises(ValueError, match=r"'y' is not|lacks the columns \['y2'\]"):
        small(target="y2").fit(panel)
    twice = pd.concat([panel, panel[panel["unique_id"] == "middle"].head(1)])
    with pytest.raises(ValueError, match="series 'middle'.*stands in 2 rows"):
        small().fit(twice)
    odd = panel.copy()
    odd.loc[odd.index[-3], "ds"] += pd.Timedelta("7min")
    with pytest.raises(ValueError, match="series 'short'.*does not fit the frequency 'h'"):
        small().fit(odd)
    with pytest.raises(ValueError, match="no id in row 3"):
        small().fit(panel.assign(unique_id=panel["unique_id"].where(panel.index != 3)))
    with pytest.raises(ValueError, match="more than one role"):
        small(past_covariates=["y"]).fit(panel)
    with pytest.raises(ValueError, match="no series is long enough"):
        small(validation_fraction=0.05).fit(panel[panel["unique_id"] == "short"])


def test_karma_with_numbers_of_its_own_takes_other_series_but_not_other_variates(panel, waves):
    sizes = {"horizon": 4, "lookback": 8, "d_model": 16, "n_layers": 1, "max_epochs": 1, "random_state": 0}
    est = KarmaForecaster(**sizes, affine=False).fit(waves)
    assert est.predict(waves[["b", "a"]], other_columns=True).shape == (4, 2)
    est = KarmaForecaster(**sizes).fit(waves)
    with pytest.raises(ValueError, match="numbers of its own for each variate"):
        est.predict(waves[["b", "a"]], other_columns=True)
    assert np.isfinite(KarmaForecaster(**sizes).fit(panel).predict()["y"]).all()

"""Missing values and missing rows: filled within a look-back, told to the network, left out of losses and scores."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq import KarmaForecaster, LinearForecaster, NaiveForecaster, RidgeForecaster
from ssmseq.datasets import fetch_ett
from ssmseq.forecasting.windows import fill_gaps

KINDS = {
    "karma": lambda **k: KarmaForecaster(d_model=16, n_layers=1, max_epochs=1, random_state=0, **k),
    "linear": lambda **k: LinearForecaster(max_epochs=1, random_state=0, **k),
    "naive": NaiveForecaster,
    "ridge": RidgeForecaster,
}


@pytest.fixture
def punched(waves) -> pd.DataFrame:
    """The waves with a tenth of the values missing, and a stretch longer than a look-back."""
    rng = np.random.default_rng(0)
    found = waves.mask(rng.random(waves.shape) < 0.1)
    found.iloc[60:75, 0] = np.nan
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-9, 9) | st.just(float("nan")), min_size=1, max_size=12))
def test_gaps_are_filled_as_numpy_interpolates(values):
    x = np.array(values)
    observed = ~np.isnan(x)
    expected = np.interp(np.arange(len(x)), np.flatnonzero(observed), x[observed]) if observed.any() else 0 * observed
    found = fill_gaps(torch.from_numpy(x)[None, None], torch.from_numpy(~observed)[None, None])
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("freq", ["h", "15min", "D", "B", "W-MON", "MS", "ME"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_missing_rows_are_put_in(small, freq, zone):
    times = pd.date_range("2021-01-04", periods=120, freq=freq, tz=zone)
    frame = pd.DataFrame({"a": np.sin(np.arange(120.0))}, index=times)
    sparse = frame.drop(index=times[[5, 6, 50, 51, 52, 100]])
    punched = frame.copy()
    punched.iloc[[5, 6, 50, 51, 52, 100]] = np.nan
    options = {"freq": freq} if freq in ("W-MON", "ME") else {}  # of these two, the gaps hide what is meant
    pd.testing.assert_frame_equal(
        small(max_epochs=1, **options).fit(sparse).predict(),
        small(max_epochs=1).fit(punched).predict(),
        check_freq=False,
    )


def test_numbered_rows_and_periods_may_have_gaps_too(small, waves):
    for index in (pd.RangeIndex(0, 400, 2), pd.period_range("2020-01", periods=200, freq="M")):
        frame = waves.set_axis(index)
        punched = frame.copy()
        punched.iloc[7] = np.nan
        expected = small(max_epochs=1).fit(punched).predict()
        pd.testing.assert_frame_equal(small(max_epochs=1).fit(frame.drop(index=frame.index[7])).predict(), expected)


def test_polars_nulls_and_nans_are_missing(small, polar_waves):
    punched = polar_waves.with_columns(a=pl.when(pl.col("a") > 0.9).then(None).otherwise(pl.col("a")))
    nans = punched.with_columns(pl.col("a").fill_null(float("nan")))
    assert small(max_epochs=1).fit(punched).predict().equals(small(max_epochs=1).fit(nans).predict())


def test_missing_targets_neither_train_nor_count(small, waves):
    """Whatever is written where something is missing has no effect: the values themselves are never read."""
    base = waves.copy()
    base.iloc[100:104, 1] = np.nan
    est = small().fit(base)
    windows = est.evaluate(base)
    assert windows["n_windows"] == len(waves) - 11
    errors, count = 0.0, 0
    for start in range(len(base) - 11):
        part = base.iloc[start : start + 8]
        truth = base.iloc[start + 8 : start + 12]
        error = ((est.predict(part) - truth) / est.scale_).to_numpy()
        errors += np.nansum(error**2)
        count += (~np.isnan(error)).sum()
    assert windows["mse"] == pytest.approx(errors / count, rel=1e-5)


def test_nothing_after_the_cutoff_changes_a_forecast(small, punched):
    est = small().fit(punched)
    before = est.backtest(punched, n_windows=5, step=3)
    future = punched.copy()
    cutoff = before["cutoff"].iloc[0]
    future.loc[future.index > cutoff] = 1e6
    after = est.backtest(future, n_windows=5, step=3)
    first = before["cutoff"] == cutoff
    np.testing.assert_array_equal(before.loc[first, "SMambaForecaster"], after.loc[first, "SMambaForecaster"])


def test_the_network_is_told_which_values_are_missing(small, punched, waves):
    est = small().fit(punched)
    assert est.has_gaps_
    history = waves.tail(8).copy()
    history.iloc[3, 0] = (history.iloc[2, 0] + history.iloc[4, 0]) / 2  # as it would be filled
    gap = history.copy()
    gap.iloc[3, 0] = np.nan
    assert not np.allclose(est.predict(gap), est.predict(history), rtol=1e-3)
    with torch.no_grad():
        est.network_.tokens.missing.weight.zero_()
    np.testing.assert_allclose(est.predict(gap), est.predict(history), rtol=1e-5)
    whole = small().fit(punched.interpolate(limit_direction="both"))
    assert not whole.has_gaps_
    assert whole.network_.tokens.missing is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_forecaster_takes_gaps_in_fit_predict_and_evaluate(punched, waves, kind, tmp_path):
    from ssmseq import load

    est = KINDS[kind](horizon=4, lookback=8).fit(punched)
    assert np.isfinite(est.predict()).all(axis=None)
    assert np.isfinite(est.evaluate(punched)["mse"])
    clean = KINDS[kind](horizon=4, lookback=8).fit(waves)
    assert np.isfinite(clean.predict(punched)).all(axis=None)
    assert load(est.save(tmp_path) and tmp_path).predict(punched).equals(est.predict(punched))


def test_a_variate_without_any_value_in_its_lookback_is_forecast_as_missing(small, waves):
    est = small().fit(waves)
    history = waves.copy()
    history.iloc[-8:, 1] = np.nan
    found = est.predict(history)
    assert found["b"].isna().all()
    assert np.isfinite(found[["a", "c"]]).all(axis=None)


def test_columns_and_frames_without_any_value_are_refused_by_name(small, waves, no_training):
    with pytest.raises(ValueError, match=r"column 'b' has no value in the 160 rows to train on; drop it"):
        small().fit(waves.assign(b=np.nan))
    with pytest.raises(ValueError, match="column 'b' holds 1 infinite values.*2021-01-01 05:00:00"):
        small().fit(waves.assign(b=waves["b"].where(np.arange(200) != 5, np.inf)))


def test_a_tenth_of_etth1_missing_costs_less_than_a_tenth_of_the_error():
    data = fetch_ett(variant="h1")
    train, test = data.frame[:8640], data.frame[11520 - 96 : 14400]
    punched = train.mask(np.random.default_rng(0).random(train.shape) < 0.1)
    holes = test.mask(np.random.default_rng(1).random(test.shape) < 0.1)
    whole = RidgeForecaster(horizon=96, lookback=96).fit(train).evaluate(test)["mse"]
    assert RidgeForecaster(horizon=96, lookback=96).fit(punched).evaluate(holes)["mse"] < 1.1 * whole

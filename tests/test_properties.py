"""What holds for forecasts whatever the data: order of columns, no look into the future, shifts and scales."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssmseq import KarmaForecaster, LinearForecaster, NaiveForecaster, RidgeForecaster, SMambaForecaster, TSM2Forecaster

SIZE = {"horizon": 4, "lookback": 8}
NETWORK = {**SIZE, "max_epochs": 1, "random_state": 0, "accelerator": "cpu"}
UNMIXED = {
    "naive": lambda: NaiveForecaster(**SIZE, season_length=3),
    "ridge": lambda: RidgeForecaster(**SIZE),
    "linear": lambda: LinearForecaster(**NETWORK),
}
MIXED = {
    "smamba": lambda: SMambaForecaster(**NETWORK, d_model=16, d_ff=16, n_layers=1),
    "karma": lambda: KarmaForecaster(**NETWORK, d_model=16, n_layers=1),
    "tsm2": lambda: TSM2Forecaster(**NETWORK, d_model=8, d_state=2, n_layers=1, patch_len=4, stride=2),
}
ALL = UNMIXED | MIXED


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = np.sin(np.arange(120)[:, None] / [3, 5, 9]) + 0.1 * rng.normal(size=(120, 3))
    return pd.DataFrame(values, index=pd.date_range("2021-01-01", periods=120, freq="h"), columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def models(frame):
    return {name: make().fit(frame) for name, make in ALL.items()}


@pytest.mark.parametrize("name", UNMIXED)
def test_shuffled_columns_shuffle_the_forecast_of_models_that_mix_none(frame, models, name):
    order = ["c", "a", "b"]
    found = UNMIXED[name]().fit(frame[order]).predict()
    pd.testing.assert_frame_equal(found, models[name].predict()[order], rtol=1e-4)


@pytest.mark.parametrize("name", MIXED)
def test_other_variates_change_the_forecast_of_models_that_mix(frame, models, name):
    moved = frame.copy()
    moved.iloc[-8:, 1:] = np.random.default_rng(1).normal(size=(8, 2))
    assert not np.allclose(models[name].predict(moved)["a"], models[name].predict(frame)["a"], rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_windows=st.integers(1, 6), step=st.integers(1, 5), spoiled=st.integers(0, 5))
def test_what_comes_after_a_cutoff_never_changes_its_forecast(frame, models, name, n_windows, step, spoiled):
    model = models[name]
    before = model.backtest(frame, n_windows=n_windows, step=step)
    cutoff = before["cutoff"].unique()[min(spoiled, n_windows - 1)]
    future = frame.copy()
    future.loc[future.index > cutoff] = np.random.default_rng(spoiled).normal(size=3) * 1e3
    after = model.backtest(future, n_windows=n_windows, step=step)
    known = before["cutoff"] <= cutoff
    column = type(model).__name__
    np.testing.assert_allclose(after.loc[known, column], before.loc[known, column], rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scale=st.floats(0.2, 50), shift=st.floats(-30, 30))
def test_shifted_and_scaled_histories_have_shifted_and_scaled_forecasts(frame, models, name, scale, shift):
    model = models[name]
    expected = model.predict(frame) * scale + shift
    found = model.predict(frame * scale + shift)
    tolerance = 2e-3 * scale if name in MIXED or name == "linear" else 1e-5 * (scale + abs(shift))
    np.testing.assert_allclose(found, expected, atol=tolerance)

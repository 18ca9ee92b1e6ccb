"""The parts of KARMA: against the moving average of pandas, and against networks that lack a part."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ssmseq import DecompositionDisplay, KarmaForecaster

plt = pytest.importorskip("matplotlib.pyplot")
KARMA = {"horizon": 4, "lookback": 12, "moving_average": 5, "d_model": 16, "max_epochs": 2, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def karma():
    """Fit a small network on the first 180 rows of `waves`, once for each decomposition."""
    fitted = {}

    def fit(frame, decomposition="moving_average"):
        if decomposition not in fitted:
            est = KarmaForecaster(decomposition=decomposition, random_state=0, accelerator="cpu", **KARMA)
            fitted[decomposition] = est.fit(frame[:180])
        return deepcopy(fitted[decomposition])

    return fit


def in_double(est):
    """Compute everything in float64, so that small differences are no rounding."""
    est = deepcopy(est)
    est.preparation_ = replace(est.preparation_, dtype=np.float64)
    est.network_.double()
    return est


def test_trend_and_season_of_the_moving_average(karma, waves):
    display = DecompositionDisplay.from_estimator(karma(waves), waves)
    past = waves[-12:].to_numpy()
    np.testing.assert_array_equal(display.history, past)
    np.testing.assert_allclose(display.trend + display.season, past, rtol=1e-5, atol=1e-5)
    padded = np.pad(past, ((2, 2), (0, 0)), mode="edge")
    expected = pd.DataFrame(padded).rolling(5, center=True).mean()[2:-2]
    np.testing.assert_allclose(display.trend, expected, rtol=1e-5, atol=1e-5)
    assert display.history_times.equals(waves.index[-12:])
    assert display.times[0] == waves.index[-1] + pd.Timedelta("1h")


@pytest.mark.parametrize("decomposition", ["moving_average", "atcd", "none"])
def test_shares_are_what_the_forecast_loses_without_a_part(karma, waves, decomposition):
    est = in_double(karma(waves, decomposition))
    display = DecompositionDisplay.from_estimator(est, waves)
    usual = est.predict(waves).to_numpy()
    np.testing.assert_allclose(display.forecast, usual, rtol=1e-6)
    width = est.network_.wavelet.width
    for part, columns in (("low band", slice(0, width)), ("high band", slice(width, None))):
        other = deepcopy(est)
        other.network_.wavelet.synthesis[:, columns] = 0
        expected = usual - other.predict(waves).to_numpy()
        assert np.abs(expected).max() > 1e-5
        np.testing.assert_allclose(display.shares[part], expected, rtol=1e-8, atol=1e-12)
    if decomposition == "none":
        assert list(display.shares) == ["low band", "high band"]
        assert display.trend is None
        assert display.season is None
        return
    # The last map is linear, so the share of the trend is its map of the tokens.
    other = deepcopy(est)
    found = []
    other.network_.trend_projection.register_forward_hook(lambda module, given, output: found.append(output))
    other.predict(waves)
    norm, past = other.network_.window_norm, (waves[-12:].to_numpy() - est.mean_) / est.scale_
    with torch.inference_mode():
        share = (found[0][0] @ other.network_.head.projection.weight.T / norm.scale).numpy().T
    expected = share * np.sqrt(past.var(0) + 1e-5) * est.scale_
    np.testing.assert_allclose(display.shares["trend"], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(est.predict(waves), usual)  # the parts are back in their places


def test_the_adaptive_decomposition_in_the_units_of_the_frame(karma, waves):
    est = karma(waves, "atcd")
    display = DecompositionDisplay.from_estimator(est, waves)
    past = torch.tensor(((waves[-12:] - est.mean_) / est.scale_).to_numpy().T[None], dtype=torch.float32)
    norm = est.network_.window_norm
    with torch.inference_mode():
        scaled, (mean, spread) = norm(past)
        season, trend = est.network_.decomposition(scaled)
        trend = ((trend - norm.shift) / norm.scale * spread + mean)[0].T.numpy() * est.scale_ + est.mean_
        season = (season / norm.scale * spread)[0].T.numpy() * est.scale_
    np.testing.assert_allclose(display.trend, trend, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(display.season, season, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decomposition", ["moving_average", "none"])
def test_rows_and_panels_of_the_parts(karma, waves, polar_waves, decomposition):
    display = DecompositionDisplay.from_estimator(karma(waves, decomposition), waves)
    frame = display.frame()
    parted = decomposition != "none"
    assert len(frame) == 3 * (12 * (3 if parted else 1) + 4 * (4 if parted else 3))
    one = frame[(frame["column"] == "b") & (frame["part"] == "share of low band")]
    np.testing.assert_array_equal(one["value"], display.shares["low band"][:, 1])
    assert list(one["time"]) == list(display.times)
    axes = display.plot().axes_
    assert axes.shape == (2, 2)
    assert [a.get_ylabel() for a in axes[:, 1]] == ["b", "forecast of b"]
    labels = [line.get_label() for line in axes[0, 0].lines]
    assert labels == ["look-back", *(["season", "trend"] if parted else []), "mean of the look-back"]
    mean = waves["a"][-12:].mean()
    lines = {line.get_label(): line.get_ydata() for axis in axes[:, 0] for line in axis.lines}
    np.testing.assert_allclose(lines["share of high band"] - mean, display.shares["high band"][:, 0], atol=1e-12)
    np.testing.assert_array_equal(lines["forecast"], display.forecast[:, 0])
    if parted:
        np.testing.assert_array_equal(lines["trend"], display.trend[:, 0])
    assert display.plot(columns=["c"]).axes_.shape == (2, 1)
    with pytest.raises(ValueError, match=r"1 columns need axes \(2, 1\), got 4"):
        display.plot(columns=["c"], ax=axes)


def test_parts_of_polars_and_long_frames(waves, polar_waves):
    params = {**KARMA, "decomposition": "moving_average", "max_epochs": 1, "random_state": 0, "accelerator": "cpu"}
    polar = DecompositionDisplay.from_estimator(KarmaForecaster(**params).fit(polar_waves), polar_waves)
    plain = DecompositionDisplay.from_estimator(KarmaForecaster(**params).fit(waves))
    pd.testing.assert_frame_equal(polar.frame(), plain.frame(), check_dtype=False)
    long = pd.concat([waves.assign(shop=i)[:n].reset_index() for i, n in ((0, 200), (1, 9))])
    est = KarmaForecaster(id_col="shop", time_col="time", **params).fit(long)
    gaps = long.copy()
    gaps.iloc[-4, 1] = np.nan
    display = DecompositionDisplay.from_estimator(est, gaps, series=1)
    assert display.history.shape == display.trend.shape == (9, 3)
    assert np.isnan(display.history[5, 0])
    seen = ~np.isnan(display.history)
    np.testing.assert_allclose((display.trend + display.season)[seen], display.history[seen], rtol=1e-4, atol=1e-4)
    expected = est.predict(gaps).query("shop == 1")
    np.testing.assert_allclose(display.forecast, expected[["a", "b", "c"]], rtol=1e-5)
    display.plot().figure_.canvas.draw()


def test_only_karma_is_taken_apart(fitted, waves):
    with pytest.raises(TypeError, match="SMambaForecaster does not"):
        DecompositionDisplay.from_estimator(fitted, waves)

"""What a forecast rests on: influences against coefficients, finite differences and plain loops."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ssmseq import InfluenceDisplay, KarmaForecaster, LinearForecaster, NaiveForecaster, RidgeForecaster
from ssmseq.forecasting import influence

plt = pytest.importorskip("matplotlib.pyplot")
KARMA = {"horizon": 4, "lookback": 12, "moving_average": 5, "d_model": 16, "max_epochs": 2, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def in_double(est):
    """Compute everything in float64, so that small differences are no rounding."""
    est = deepcopy(est)
    est.preparation_ = replace(est.preparation_, dtype=np.float64)
    est.network_.double()
    return est


def differences(est, frame, lookback, forecast, size=1e-5):
    """Return central differences of forecasts (V,) by each value of the last rows, (V, C, rows)."""
    found = []
    for c in range(frame.shape[1]):
        for row in range(len(frame) - lookback, len(frame)):
            up, down = frame.copy(), frame.copy()
            h = size * est.scale_[0]
            up.iloc[row, c] += h
            down.iloc[row, c] -= h
            found.append((forecast(up) - forecast(down)) / (2 * h))
    return np.stack(found, -1).reshape(-1, frame.shape[1], lookback)


def from_mean(frame, lookback):
    past = frame[-lookback:].to_numpy().T
    return past - past.mean(-1, keepdims=True)


@pytest.mark.parametrize("step", [None, 1, 3])
def test_gradients_of_ridge_are_its_coefficients(waves, step):
    est = RidgeForecaster(horizon=4, lookback=8, alpha=0.1).fit(waves)
    found = InfluenceDisplay.from_estimator(est, waves, step=step).influence
    slope = 1 / 8 + (est.coef_.mean(0) if step is None else est.coef_[step - 1])  # the mean is put back
    for v in range(3):
        for c in range(3):
            expected = slope * from_mean(waves, 8)[c] if v == c else np.zeros(8)
            np.testing.assert_allclose(found[v, c], expected, rtol=1e-9, atol=1e-12 * (v == c))


def test_naive_forecasts_rest_on_the_last_season(waves):
    est = NaiveForecaster(horizon=4, lookback=8, season_length=2).fit(waves)
    found = InfluenceDisplay.from_estimator(est).influence
    assert (found[:, :, :6] == 0).all()
    np.testing.assert_allclose(found[1, 1, 6:], from_mean(waves, 8)[1, 6:] / 2, rtol=1e-4)
    hidden = InfluenceDisplay.from_estimator(est, step=1, method="occlusion", fill="mean", width=1).influence
    np.testing.assert_allclose(hidden[1, 1, 6], np.abs(from_mean(waves, 8)[1, 6]), rtol=1e-4)
    assert np.count_nonzero(hidden) == 3


@pytest.mark.parametrize("network", ["s-mamba", "moving_average", "atcd"])
def test_gradients_of_networks_equal_finite_differences(small, waves, network):
    if network == "s-mamba":
        est = small(time_features=False, max_epochs=3)
    else:
        est = KarmaForecaster(decomposition=network, random_state=0, accelerator="cpu", **KARMA)
    est = in_double(est.fit(waves))
    lookback = est.lookback_
    for step, rows in ((None, slice(None)), (2, slice(1, 2))):
        found = InfluenceDisplay.from_estimator(est, waves, step=step).influence[:, :3]
        slopes = differences(est, waves, lookback, lambda x, rows=rows: est.predict(x)[rows].mean().to_numpy())
        np.testing.assert_allclose(found, slopes * from_mean(waves, lookback), rtol=1e-4, atol=1e-7)
        assert np.abs(found[~np.eye(3, dtype=bool)]).max() > 1e-5
    assert all(p.grad is None for p in est.network_.parameters())
    assert not any(m._forward_hooks for m in est.network_.modules())


def test_covariates_known_in_advance_count_over_the_horizon(small, waves):
    frame = waves.rename(columns={"b": "past", "c": "known"})
    params = {"past_covariates": ["past"], "future_covariates": ["known"], "time_features": ["hour"]}
    est = in_double(small(**params).fit(frame))
    before, known = frame[:-4], frame[["known"]][-4:]
    display = InfluenceDisplay.from_estimator(est, before, future=known)
    assert display.inputs == ("a", "past", "hour", "known")
    assert display.influence.shape == (1, 4, 12)
    assert list(display.lags) == [*range(8, 0, -1), 0, -1, -2, -3]
    assert display.times.equals(frame.index[-12:])

    def forecast(x):
        return est.predict(x[:-4], future=x[["known"]][-4:]).mean().to_numpy()

    middle = frame["known"].iloc[-12:-4].mean()
    slopes = differences(est, frame, 12, forecast)
    np.testing.assert_allclose(
        display.influence[0, 3], slopes[0, 2] * (frame["known"].iloc[-12:] - middle), rtol=1e-4, atol=1e-8
    )
    np.testing.assert_allclose(
        display.influence[0, 1, :8], slopes[0, 1, :8] * from_mean(before, 8)[1], rtol=1e-4, atol=1e-8
    )
    assert np.isnan(display.influence[0, :3, 8:]).all()
    whole = display.frame()
    assert len(whole) == 3 * 8 + 12
    assert list(whole) == ["forecast", "input", "lag", "time", "influence"]
    assert whole["influence"].notna().all()
    inside = InfluenceDisplay.from_estimator(est, frame, rows=-4)
    np.testing.assert_array_equal(inside.influence, display.influence)
    hidden = InfluenceDisplay.from_estimator(est, frame, rows=-4, method="occlusion", width=3)
    assert (hidden.influence[0, 3] > 0).all()
    other = frame.copy()
    other.iloc[-2, 2] = np.interp(1, [0, 2], frame["known"].iloc[[-3, -1]])
    np.testing.assert_allclose(
        InfluenceDisplay.from_estimator(est, frame, rows=-4, method="occlusion", width=1).influence[0, 3, -2],
        np.abs(est.predict(before, future=other[-4:]) - est.predict(before, future=known)).to_numpy().mean(),
    )
    axis = display.plot().ax_
    assert len(axis.lines) == 1  # where the forecast begins
    display.plot_matrix()
    with pytest.raises(ValueError, match="known"):
        InfluenceDisplay.from_estimator(est, before)
    with pytest.raises(ValueError, match="without future_covariates"):
        InfluenceDisplay.from_estimator(RidgeForecaster(horizon=4, lookback=8, alpha=1).fit(waves), future=known)


@pytest.mark.parametrize("fill", ["interpolation", "mean"])
@pytest.mark.parametrize("step", [None, 2])
def test_occlusions_equal_a_plain_loop(small, waves, monkeypatch, fill, step):
    est = in_double(small(time_features=False).fit(waves))
    monkeypatch.setattr(influence, "BATCH_VALUES", 3 * 8 * 4)  # four windows at a time
    width = 3
    found = InfluenceDisplay.from_estimator(est, waves, method="occlusion", width=width, fill=fill, step=step).influence
    rows = slice(None) if step is None else slice(step - 1, step)
    usual = est.predict(waves)[rows].to_numpy()
    for c in range(3):
        for stretch in ([0, 1], [2, 3, 4], [5, 6, 7]):
            past = waves.iloc[-8:, c].to_numpy()
            kept = [i for i in range(8) if i not in stretch]
            instead = np.interp(stretch, kept, past[kept]) if fill == "interpolation" else past.mean()
            other = waves.copy()
            other.iloc[[200 - 8 + i for i in stretch], c] = instead
            expected = np.abs(est.predict(other)[rows].to_numpy() - usual).mean(0)
            for i in stretch:
                np.testing.assert_allclose(found[:, c, i], expected, rtol=1e-7, atol=1e-12)


def test_batches_change_nothing(fitted, waves, monkeypatch):
    for method in ("gradient", "occlusion"):
        once = InfluenceDisplay.from_estimator(fitted, waves, method=method).influence
        with monkeypatch.context() as patch:
            patch.setattr(influence, "BATCH_VALUES", 1)
            one_by_one = InfluenceDisplay.from_estimator(fitted, waves, method=method).influence
        np.testing.assert_allclose(one_by_one, once, rtol=1e-3, atol=1e-5)


def test_the_usual_stretch_is_a_24th_of_the_look_back(waves):
    est = RidgeForecaster(horizon=2, lookback=50, alpha=1).fit(waves)
    found = InfluenceDisplay.from_estimator(est, method="occlusion").influence[0, 0]
    np.testing.assert_array_equal(found[::2], found[1::2])
    assert len(np.unique(found)) == 25


def test_what_a_model_ignores_has_no_influence(waves):
    est = LinearForecaster(horizon=4, lookback=8, max_epochs=1, random_state=0, accelerator="cpu").fit(waves)
    others = ~np.eye(3, dtype=bool)
    assert (InfluenceDisplay.from_estimator(est).influence[others] == 0).all()
    hidden = InfluenceDisplay.from_estimator(est, method="occlusion").influence
    np.testing.assert_allclose(hidden[others], 0, atol=1e-5 * hidden.max())
    assert (hidden[~others] > 0).all()


def test_nothing_is_looked_at_from_the_first_row_of_the_forecast_on(fitted, waves):
    for method in ("gradient", "occlusion"):
        expected = InfluenceDisplay.from_estimator(fitted, waves[:150], method=method)
        other = waves.copy()
        other[150:] = 1e6
        found = InfluenceDisplay.from_estimator(fitted, other, method=method, rows=150)
        np.testing.assert_array_equal(found.influence, expected.influence)
        assert found.times.equals(waves.index[142:150])
        np.testing.assert_array_equal(
            InfluenceDisplay.from_estimator(fitted, waves, method=method, rows=-50).influence, expected.influence
        )


def test_several_forecasts_are_averaged(fitted, waves):
    several = InfluenceDisplay.from_estimator(fitted, waves, rows=[50, 120, 199])
    each = [InfluenceDisplay.from_estimator(fitted, waves[:n]).influence for n in (50, 120, 199)]
    np.testing.assert_allclose(several.influence, np.mean(np.abs(each), 0), rtol=1e-12)
    assert several.times is None
    assert list(several.frame()) == ["forecast", "input", "lag", "influence"]
    axis = several.plot("b").ax_
    assert axis.get_xlabel() == "rows before the forecast begins"
    assert axis.collections[0].get_clim() == (0, several.influence[1].max())


def test_rows_of_the_frame(fitted, waves, polar_waves):
    display = InfluenceDisplay.from_estimator(fitted, waves)
    frame = display.frame()
    assert len(frame) == 3 * 7 * 8  # hour, day of week, of month, of year
    assert list(frame["forecast"].unique()) == ["a", "b", "c"]
    assert list(frame["input"].unique()) == ["a", "b", "c", *fitted.calendar_]
    one = frame[(frame["forecast"] == "b") & (frame["input"] == "a")]
    np.testing.assert_array_equal(one["influence"], display.influence[1, 0])
    np.testing.assert_array_equal(one["lag"], np.arange(8, 0, -1))
    assert list(one["time"]) == list(waves.index[-8:])
    ridge = [RidgeForecaster(horizon=4, lookback=8, alpha=1).fit(x) for x in (waves, polar_waves)]
    plain, polar = (
        InfluenceDisplay.from_estimator(e, x).frame() for e, x in zip(ridge, (waves, polar_waves), strict=True)
    )
    pd.testing.assert_frame_equal(plain, polar, check_dtype=False)


def test_series_of_a_long_frame(waves):
    parts = [
        pd.DataFrame({"unique_id": c, "ds": waves.index[:n], "y": waves[c][:n]}) for c, n in (("a", 200), ("b", 7))
    ]
    long = pd.concat(parts, ignore_index=True)
    est = RidgeForecaster(horizon=2, lookback=8, alpha=0.1, validation_fraction=0).fit(long)
    short = InfluenceDisplay.from_estimator(est, long, series="b")
    assert short.influence.shape == (1, 1, 8)
    assert short.times is None  # a row of the look-back has none
    short.plot()
    past = waves["b"][:7].to_numpy()
    past = np.concatenate([past[:1], past])
    np.testing.assert_allclose(
        short.influence[0, 0], (est.coef_.mean(0) + 1 / 8) * (past - past.mean()), rtol=1e-6, atol=1e-8
    )
    first = InfluenceDisplay.from_estimator(est, long)
    np.testing.assert_array_equal(first.influence, InfluenceDisplay.from_estimator(est, series="a").influence)
    with pytest.raises(ValueError, match=r"no series 'z'; it has \['a', 'b'\]"):
        InfluenceDisplay.from_estimator(est, long, series="z")


def test_a_variate_that_was_not_observed_has_no_influence_to_show(fitted, waves):
    frame = waves.copy()
    frame.iloc[-8:, 1] = np.nan
    frame.iloc[-3, 0] = np.nan
    for method in ("gradient", "occlusion"):
        display = InfluenceDisplay.from_estimator(fitted, frame, method=method)
        assert np.isnan(display.influence[1]).all()
        assert np.isfinite(display.influence[[0, 2]]).all()
        assert len(display.frame()) == 3 * 7 * 8
        display.plot("b").figure_.canvas.draw()
        display.plot_matrix().figure_.canvas.draw()


def test_quantile_networks_are_explained_by_their_median(small, waves):
    est = in_double(small(quantiles=[0.1, 0.5, 0.9], time_features=False).fit(waves))
    slopes = differences(est, waves, 8, lambda x: est.predict(x).mean().to_numpy())
    found = InfluenceDisplay.from_estimator(est, waves).influence
    np.testing.assert_allclose(found, slopes * from_mean(waves, 8), rtol=1e-4, atol=1e-7)


def test_plots_of_influence(fitted, waves):
    display = InfluenceDisplay.from_estimator(fitted, waves)
    axis = display.plot("c").ax_
    low, high = axis.collections[0].get_clim()
    assert -low == high == np.abs(display.influence[2]).max()
    np.testing.assert_array_equal(axis.collections[0].get_array(), display.influence[2])
    assert [t.get_text() for t in axis.get_yticklabels()] == list(display.inputs)
    assert display.figure_.axes[1].get_ylabel() == "gradient times input\n(units of c)"
    assert display.plot().ax_.get_title(loc="left") == "influence on the forecast of a"
    shares = display.plot_matrix().ax_.collections[0].get_array()
    np.testing.assert_allclose(shares.sum(1), 100)
    sums = display.plot_matrix(relative=False).ax_.collections[0].get_array()
    np.testing.assert_allclose(sums, np.abs(display.influence).sum(-1))
    np.testing.assert_allclose(shares, 100 * sums / sums.sum(1, keepdims=True))
    with pytest.raises(ValueError, match=r"\['z'\] are not columns"):
        display.plot("z")


BAD = [
    ({"method": "shap"}, "method must be one of 'gradient', 'occlusion'"),
    ({"fill": "zero"}, "fill must be one of"),
    ({"step": 5}, "step must be an integer at least 1 and at most 4"),
    ({"step": 0}, "step must be"),
    ({"width": 9}, "width must be an integer at least 1 and at most 8"),
    ({"width": 8, "method": "occlusion"}, "fill='mean'"),
    ({"rows": 7}, "row 7 has too few rows before it for lookback=8"),
    ({"rows": 201}, "rows must be an integer at least -200 and at most 200"),
    ({"rows": []}, "at least one row"),
    ({"rows": 100, "df": None}, "rows= needs a frame"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_errors_say_what_is_wrong(fitted, waves, changes, message):
    with pytest.raises(ValueError, match=message):
        InfluenceDisplay.from_estimator(fitted, **{"df": waves, **changes})

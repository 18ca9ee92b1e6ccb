"""Forecasts and errors beside each other: the numbers behind the plots, and what the plots hold."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ssmseq import ForecastDisplay, HorizonErrorDisplay, NaiveForecaster, RidgeForecaster
from ssmseq.forecasting import displays

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def ridge(**changes):
    return RidgeForecaster(**{"horizon": 4, "lookback": 8, "alpha": 0.1} | changes)


def panel(waves) -> pd.DataFrame:
    """Three series of 200, 150 and 6 rows."""
    rows = {"a": 200, "b": 150, "c": 6}
    parts = [
        pd.DataFrame({"unique_id": c, "ds": waves.index[:n], "y": waves[c].to_numpy()[:n]}) for c, n in rows.items()
    ]
    return pd.concat(parts, ignore_index=True)


def test_intervals_are_those_of_predict(fitted, waves, polar_waves):
    display = ForecastDisplay.from_estimator(fitted, waves, level=[50, 80])
    expected = fitted.predict(waves[:-4], level=[50, 80])
    frame = display.frame()
    assert list(frame) == ["time", "column", "actual", "forecast", "lo-50", "hi-50", "lo-80", "hi-80"]
    assert len(frame) == 4 * 3
    for column in waves:
        mine = frame[frame["column"] == column].set_index("time")
        assert mine.index.equals(waves.index[-4:])
        np.testing.assert_array_equal(mine["actual"], waves[column][-4:])
        for here, there in (("forecast", ""), ("lo-50", "-lo-50"), ("hi-50", "-hi-50"), ("lo-80", "-lo-80")):
            np.testing.assert_array_equal(mine[here], expected[column + there])
    assert (frame["lo-80"] < frame["lo-50"]).all()
    polar = ForecastDisplay.from_estimator(ridge().fit(polar_waves), polar_waves, level=[50])
    plain = ForecastDisplay.from_estimator(ridge().fit(waves), waves, level=[50])
    pd.testing.assert_frame_equal(polar.frame(), plain.frame(), check_names=False, check_freq=False, check_dtype=False)
    assert list(ForecastDisplay.from_estimator(fitted, waves).frame()) == ["time", "column", "actual", "forecast"]


def test_a_long_frame_has_a_panel_for_each_series(waves):
    long = panel(waves)
    est = ridge().fit(long)
    display = ForecastDisplay.from_estimator(est, long, level=[80])
    before = long.groupby("unique_id", sort=False).head(-4)
    expected = est.predict(before, level=[80])
    frame = display.frame()
    assert display.columns == ["a", "b", "c"]
    assert len(frame) == 4 * 3
    np.testing.assert_array_equal(frame["time"], expected["ds"])
    np.testing.assert_array_equal(frame["column"], expected["unique_id"])
    np.testing.assert_array_equal(frame["actual"], long.groupby("unique_id", sort=False).tail(4)["y"])
    for here, there in (("forecast", "y"), ("lo-80", "y-lo-80"), ("hi-80", "y-hi-80")):
        np.testing.assert_array_equal(frame[here], expected[there])
    assert np.isnan(display.history[:6, 2]).all()  # series c has but two rows before the forecast
    np.testing.assert_array_equal(display.history[6:, 2], waves["c"][:2])
    axes = display.plot(columns=["c", "a"]).axes_
    assert [axis.get_ylabel() for axis in axes] == ["c", "a"]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), waves["c"][:2])
    with pytest.raises(ValueError, match=r"\['d'\].*\['a', 'b', 'c'\]"):
        display.plot(columns=["d"])
    short = long.groupby("unique_id", sort=False).head(4)
    with pytest.raises(ValueError, match="4 rows.*lookback=8.*horizon=4"):
        ForecastDisplay.from_estimator(est, short)
    one = pd.concat([long[long["unique_id"] == "a"], short[short["unique_id"] == "b"]])
    assert ForecastDisplay.from_estimator(est, one).columns == ["a"]
    same = pl.DataFrame({c: long[c].to_list() for c in long})
    polar = ForecastDisplay.from_estimator(ridge().fit(same), same, level=[80])
    np.testing.assert_array_equal(polar.frame()["lo-80"], frame["lo-80"])


def test_several_targets_of_a_long_frame(waves):
    long = pd.concat([waves.assign(shop=name)[:n].reset_index() for name, n in (("x", 200), ("y", 120))])
    est = ridge(id_col="shop", time_col="time").fit(long)
    display = ForecastDisplay.from_estimator(est, long)
    assert display.columns == ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c"]
    np.testing.assert_array_equal(display.actual[:, 4], waves["b"][116:120])
    expected = est.predict(pd.concat([long[:196], long[200:316]]))
    np.testing.assert_array_equal(display.forecast[:, 4], expected["b"][4:])


def test_known_covariates_are_those_of_the_forecast_rows(small, waves):
    frame = waves.rename(columns={"c": "holiday"})
    est = small(future_covariates=["holiday"]).fit(frame)
    display = ForecastDisplay.from_estimator(est, frame)
    expected = est.predict(frame[:-4], future=frame[["holiday"]][-4:])
    np.testing.assert_array_equal(display.forecast, expected)
    other = frame.copy()
    other.iloc[-4:, :2] = 1e3  # what happens in the end is not known
    np.testing.assert_array_equal(ForecastDisplay.from_estimator(est, other).forecast, expected)


def test_bands_are_nested_and_lighter_outside(fitted, waves):
    display = ForecastDisplay.from_estimator(fitted, waves, level=[50, 95, 80]).plot(columns=["b"])
    (axis,) = display.axes_
    outer, middle, inner = axis.collections
    assert [band.get_label() for band in axis.collections] == ["95 %", "80 %", "50 %"]
    assert outer.get_facecolor().sum() > middle.get_facecolor().sum() > inner.get_facecolor().sum()
    for wide, narrow in ((outer, middle), (middle, inner)):
        assert wide.get_paths()[0].get_extents().height > narrow.get_paths()[0].get_extents().height
    np.testing.assert_allclose(
        outer.get_paths()[0].get_extents().ymax, display.frame()["hi-95"][display.frame()["column"] == "b"].max()
    )
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["history", "actual", "forecast", "95 %", "80 %", "50 %"]


def test_gaps_are_drawn_as_gaps(waves):
    frame = waves.copy()
    frame.iloc[-10:-8, 0] = np.nan
    frame.iloc[-7, 0] = np.nan
    frame.iloc[-3, 0] = np.nan
    est = ridge().fit(waves)
    display = ForecastDisplay.from_estimator(est, frame).plot(columns=["a"])
    history, alone, actual, *_ = display.axes_[0].lines
    assert list(np.flatnonzero(np.isnan(history.get_ydata()))) == [2, 3, 5]
    assert alone.get_ydata() == frame["a"].iloc[-8]  # a line through one point would not show
    assert list(np.flatnonzero(np.isnan(actual.get_ydata()))) == [1]
    assert np.isfinite(display.forecast).all()
    lacking = waves.drop(waves.index[-10:-8])
    np.testing.assert_array_equal(np.isnan(ForecastDisplay.from_estimator(est, lacking).history)[2:4], True)


def test_axes_of_ones_own(fitted, waves):
    display = ForecastDisplay.from_estimator(fitted, waves)
    figure, axes = plt.subplots(2)
    assert display.plot(columns=["a", "c"], ax=axes).figure_ is figure
    with pytest.raises(ValueError, match="1 columns need as many axes, got 2"):
        display.plot(columns=["a"], ax=axes)
    with pytest.raises(ValueError, match="8 rows.*lookback=8.*horizon=4"):
        ForecastDisplay.from_estimator(fitted, waves[:8])


@pytest.mark.parametrize("kind", ["periods", "numbers", "zone"])
def test_every_kind_of_times_can_be_drawn(waves, kind):
    times = {
        "periods": waves.index.to_period("h"),
        "numbers": np.arange(5, 205),
        "zone": waves.index.tz_localize("Asia/Tokyo"),
    }
    frame = waves.set_index(pd.Index(times[kind]))
    est = ridge().fit(frame)
    display = ForecastDisplay.from_estimator(est, frame, level=[80]).plot(columns=["a"])
    display.figure_.canvas.draw()
    assert (display.axes_[0].get_xlabel() == "row") == (kind == "numbers")
    if kind == "zone":
        assert str(display.axes_[0].xaxis.get_major_formatter()._tz) == "Asia/Tokyo"


def test_errors_of_the_steps_add_up_to_those_of_evaluate(fitted, waves):
    frame = waves.copy()
    frame.iloc[30:33, 0] = np.nan
    frame.iloc[90, 1] = np.nan
    rivals = {"network": fitted, "naive": NaiveForecaster(horizon=4, lookback=8, season_length=3).fit(waves)}
    for scaled in (True, False):
        display = HorizonErrorDisplay.from_estimators(rivals, frame, scaled=scaled)
        assert list(display.frame()) == ["estimator", "step", "mse", "mae", "count"]
        assert len(display.frame()) == 2 * 4
        for name, est in rivals.items():
            expected = est.evaluate(frame, scaled=scaled)
            found = display.frame()[display.frame()["estimator"] == name]
            assert list(found["step"]) == [1, 2, 3, 4]
            for metric in ("mse", "mae"):
                np.testing.assert_allclose(
                    np.average(found[metric], weights=found["count"]), expected[metric], rtol=1e-12
                )
    (name,) = HorizonErrorDisplay.from_estimators(fitted, waves).frame()["estimator"].unique()
    assert name == "SMambaForecaster"


def test_errors_of_a_step_equal_a_plain_loop(waves, polar_waves):
    frame = waves.copy()
    frame.iloc[40:60, 2] = np.nan
    est = ridge().fit(waves)
    errors = []
    for start in range(len(frame) - 12 + 1):
        window = frame[start : start + 8]
        forecast = est.predict(window)
        forecast.loc[:, window.isna().all()] = np.nan_to_num(est.mean_[window.isna().all()])  # scored as scaled 0
        errors.append(((forecast - frame[start + 8 : start + 12]) / est.scale_).to_numpy())
    errors = np.stack(errors)
    found = HorizonErrorDisplay.from_estimators(est, frame).frame()
    np.testing.assert_allclose(found["mse"], np.nanmean(errors**2, (0, 2)), rtol=1e-9)
    np.testing.assert_allclose(found["mae"], np.nanmean(np.abs(errors), (0, 2)), rtol=1e-9)
    np.testing.assert_array_equal(found["count"], np.isfinite(errors).sum((0, 2)))
    polar = HorizonErrorDisplay.from_estimators(ridge().fit(polar_waves), polar_waves).frame()
    pd.testing.assert_frame_equal(polar, HorizonErrorDisplay.from_estimators(est, waves).frame())


def test_all_look_backs_are_measured_on_the_same_windows(waves):
    last = {f"{n} rows": NaiveForecaster(horizon=4, lookback=n).fit(waves) for n in (2, 30)}
    short, long = (
        rows.reset_index(drop=True)
        for _, rows in HorizonErrorDisplay.from_estimators(last, waves).frame().groupby("estimator", sort=False)
    )
    pd.testing.assert_frame_equal(short.drop(columns="estimator"), long.drop(columns="estimator"))
    assert short["count"][0] == 3 * (200 - 34 + 1)
    series = panel(waves)  # of 6 rows there is a window only because its look-back is filled up
    last = {f"{n} rows": NaiveForecaster(horizon=4, lookback=n).fit(series) for n in (2, 30)}
    counts = HorizonErrorDisplay.from_estimators(last, series).frame().groupby("estimator")["count"].first()
    assert counts.to_list() == [200 - 34 + 1 + 150 - 34 + 1 + 1] * 2
    with pytest.raises(ValueError, match="frame has 33 rows.*lookback=30"):
        HorizonErrorDisplay.from_estimators({"l": NaiveForecaster(horizon=4, lookback=30).fit(waves)}, waves[:33])
    with pytest.raises(ValueError, match="no estimator"):
        HorizonErrorDisplay.from_estimators({}, waves)


def test_errors_are_drawn_as_one_line_per_estimator(fitted, waves):
    rivals = {"network": fitted, "naive": NaiveForecaster(horizon=4, lookback=8).fit(waves)}
    display = HorizonErrorDisplay.from_estimators(rivals, waves)
    for metric, label in (
        ("mse", "mean squared error (scaled values)"),
        ("mae", "mean absolute error (scaled values)"),
    ):
        axis = display.plot(metric=metric).ax_
        assert axis.get_ylabel() == label
        assert axis.get_xlabel() == "rows ahead (freq: h)"
        assert [line.get_label() for line in axis.lines] == ["network", "naive"]
        np.testing.assert_array_equal(axis.lines[1].get_ydata(), display.frame()[metric][4:])
    with pytest.raises(ValueError, match="metric must be one of 'mse', 'mae', got 'rmse'"):
        display.plot(metric="rmse")


def test_a_missing_matplotlib_is_named(fitted, waves, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"ssmseq\[plot\]"):
        displays.pyplot()

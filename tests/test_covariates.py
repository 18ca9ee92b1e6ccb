"""What is known beside the targets: past, future and static covariates, and the calendar."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ssmseq import KarmaForecaster, SMambaForecaster, load
from ssmseq.forecasting.covariates import calendar_features, fitting_features, season_length

SIZES = {"horizon": 4, "lookback": 8, "d_model": 16, "n_layers": 1, "max_epochs": 1, "random_state": 0}
KINDS = {
    "smamba": lambda **k: SMambaForecaster(d_ff=16, **SIZES | k),
    "karma": lambda **k: KarmaForecaster(**SIZES | k),
}
FUTURE = {"target": ["a", "b"], "future_covariates": ["c"]}


def following(frame: pd.DataFrame, n_rows: int, **values) -> pd.DataFrame:
    times = pd.date_range(frame.index[-1], periods=n_rows + 1, freq="h", name=frame.index.name)[1:]
    return pd.DataFrame(values, index=times)


@pytest.mark.parametrize("kind", KINDS)
def test_future_covariates_are_asked_for_and_count(waves, kind):
    est = KINDS[kind](**FUTURE).fit(waves)
    low, high = (est.predict(future=following(waves, 4, c=c)) for c in (-3.0, 3.0))
    assert list(low.columns) == ["a", "b"]
    assert not np.allclose(low, high)
    later = following(waves, 9, c=[-3.0] * 4 + [50.0] * 5)
    pd.testing.assert_frame_equal(est.predict(future=later), low)


@pytest.mark.parametrize("kind", KINDS)
def test_past_covariates_count_and_nothing_of_the_future_is_asked_for(waves, kind):
    est = KINDS[kind](target=["a"], past_covariates=["b", "c"]).fit(waves)
    assert est.predict().shape == (4, 1)
    moved = waves.copy()
    moved.iloc[-3:, 1] += 50
    assert not np.allclose(est.predict(moved), est.predict())


@pytest.mark.parametrize("kind", KINDS)
def test_static_covariates_tell_series_apart(kind):
    times = pd.date_range("2021-01-01", periods=60, freq="h")
    wave = np.sin(np.arange(60) / 3)
    parts = [
        pd.DataFrame({"unique_id": name, "ds": times, "y": wave, "size": size, "colour": colour})
        for name, size, colour in (("p", 1.0, "red"), ("q", 5.0, "green"), ("r", 2.0, "red"))
    ]
    frame = pd.concat(parts)
    plain = KINDS[kind]().fit(frame.drop(columns=["size", "colour"])).predict()["y"].to_numpy().reshape(3, 4)
    np.testing.assert_allclose(plain[0], plain[1], rtol=1e-5)
    est = KINDS[kind](static_covariates=["size", "colour"]).fit(frame)
    found = est.predict()["y"].to_numpy().reshape(3, 4)
    assert not np.allclose(found[0], found[1])
    new = frame[frame["unique_id"] == "p"].assign(unique_id="new")
    np.testing.assert_allclose(est.predict(new)["y"], found[0], rtol=1e-5)
    with pytest.raises(ValueError, match="'colour' is 'blue', which fit did not see; it saw .'green', 'red'."):
        est.predict(new.assign(colour="blue"))
    with pytest.raises(ValueError, match="series 'q' are missing or change"):
        KINDS[kind](static_covariates=["size"]).fit(
            frame.assign(size=np.where(frame["unique_id"] == "q", wave.repeat(3), 1))
        )


def test_covariates_of_a_panel(small):
    times = pd.date_range("2021-01-01", periods=60, freq="h")
    frame = pd.concat(
        [
            pd.DataFrame({"unique_id": n, "ds": times, "y": np.sin(np.arange(60) / k), "x": k})
            for n, k in (("p", 3), ("q", 5))
        ]
    )
    est = small(future_covariates=["x"]).fit(frame)
    after = pd.date_range(times[-1], periods=5, freq="h")[1:]
    future = pd.concat([pd.DataFrame({"unique_id": n, "ds": after, "x": x}) for n, x in (("q", 5), ("p", 3))])
    expected = est.predict(future=future)
    assert expected["unique_id"].tolist() == ["p"] * 4 + ["q"] * 4
    other = future.assign(x=future["x"].where(future["unique_id"] == "q", 30))
    found = est.predict(future=other)
    same = found["y"] == expected["y"]
    assert same[4:].all()
    assert not same[:4].any()
    with pytest.raises(ValueError, match=r"no 'x' of series 'p' at 2021-01-03 12:00:00"):
        est.predict(future=future[future["unique_id"] == "q"])


def test_missing_future_covariates_are_named(waves):
    est = KINDS["smamba"](**FUTURE).fit(waves)
    with pytest.raises(ValueError, match=r"needs the covariates \['c'\] of the 4 rows after the history"):
        est.predict()
    with pytest.raises(ValueError, match=r"lacks \['c'\]"):
        est.predict(future=following(waves, 4, d=0.0))
    with pytest.raises(ValueError, match="no 'c' at 2021-01-09 10:00:00"):
        est.predict(future=following(waves, 2, c=0.0))
    with pytest.raises(ValueError, match="no 'c' at 2021-01-09 09:00:00"):
        est.predict(future=following(waves, 4, c=[0.0, np.nan, 0, 0]))
    with pytest.raises(ValueError, match="future covariate 'c' has no value at 2021-01-01 03:00:00"):
        KINDS["smamba"](**FUTURE).fit(waves.assign(c=waves["c"].where(np.arange(200) != 3)))
    with pytest.raises(ValueError, match="fitted without future_covariates"):
        KINDS["smamba"]().fit(waves).predict(future=waves)


def test_misnamed_covariates_are_refused(waves, no_training):
    with pytest.raises(ValueError, match=r"lacks the columns \['d'\]"):
        KINDS["smamba"](future_covariates=["d"]).fit(waves)
    with pytest.raises(TypeError, match="past_covariates must be a list of column names, got 'b'"):
        KINDS["smamba"](past_covariates="b").fit(waves)
    with pytest.raises(ValueError, match="need a long frame"):
        KINDS["smamba"](static_covariates=["b"]).fit(waves)
    with pytest.raises(ValueError, match="no column to forecast"):
        KINDS["smamba"](past_covariates=["a", "b", "c"]).fit(waves)


def test_evaluate_and_backtest_take_the_covariates_of_the_frame(waves):
    est = KINDS["smamba"](**FUTURE).fit(waves)
    backtest = est.backtest(waves, n_windows=2, step=3)
    first = backtest["cutoff"] == backtest["cutoff"].iloc[0]
    cut = waves.index.get_loc(backtest["cutoff"].iloc[0]) + 1
    by_hand = est.predict(waves[:cut], future=waves[cut:])
    np.testing.assert_allclose(backtest.loc[first, "SMambaForecaster"], by_hand.to_numpy().T.ravel(), rtol=1e-6)
    changed = waves.copy()
    changed.iloc[-1, 2] += 9
    assert est.evaluate(changed)["mse"] != est.evaluate(waves)["mse"]


def test_saved_models_keep_their_covariates(waves, tmp_path):
    future = following(waves, 4, c=0.5)
    est = KINDS["karma"](**FUTURE, past_covariates=None).fit(waves)
    est.save(tmp_path)
    assert load(tmp_path).predict(future=future).equals(est.predict(future=future))


def test_polars_frames_carry_covariates(polar_waves, waves):
    est = KINDS["smamba"](**FUTURE).fit(polar_waves)
    after = following(waves, 4, c=0.5)
    future = pl.DataFrame({"time": after.index.to_numpy(), "c": after["c"].to_numpy()})
    found = est.predict(future=future)
    expected = KINDS["smamba"](**FUTURE).fit(waves).predict(future=after)
    np.testing.assert_array_equal(found.select("a", "b").to_numpy(), expected.to_numpy())


@pytest.mark.parametrize(
    ("freq", "names", "season"),
    [
        ("10min", ("minute", "hour", "day_of_week", "day_of_month", "day_of_year"), 144),
        ("h", ("hour", "day_of_week", "day_of_month", "day_of_year"), 24),
        ("6h", ("hour", "day_of_week", "day_of_month", "day_of_year"), 4),
        ("D", ("day_of_week", "day_of_month", "day_of_year"), 7),
        ("B", ("day_of_week", "day_of_month", "day_of_year"), 5),
        ("W-SUN", ("day_of_month", "day_of_year"), 52),
        ("MS", ("month",), 12),
        ("QS", ("month",), 4),
        ("YS", ("month",), 1),
    ],
)
def test_calendar_and_season_fit_the_frequency(freq, names, season):
    times = pd.date_range("2021-01-03", periods=40, freq=freq)
    assert fitting_features(times) == names
    assert season_length(times) == season
    found = calendar_features(times, names)
    assert found.shape == (40, len(names))
    assert np.abs(found).max() <= 0.5


def test_named_features_are_taken_as_they_are(waves):
    est = KINDS["smamba"](time_features=["minute", "month"]).fit(waves)
    assert est.calendar_ == ("minute", "month")
    with pytest.raises(ValueError, match="time_features must be one of 'minute'.*got 'second'"):
        KINDS["smamba"](time_features=["second"]).fit(waves)

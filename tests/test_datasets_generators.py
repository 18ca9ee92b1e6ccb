"""The synthetic transformer load: repeatable, seasonal, coupled, with changing noise and inert oil."""

import random

import numpy as np
import pandas as pd
import pytest

from ssmseq import datasets


def autocorrelation(values, lag):
    values = values - values.mean()
    return (values[lag:] * values[:-lag]).sum() / (values * values).sum()


def lagged_correlation(frame, day, longest):
    """Largest correlation of load_2 with an earlier load_1, of week-to-week differences: without seasons and trend."""
    change = frame.to_numpy()[7 * day :] - frame.to_numpy()[: -7 * day]
    return max(np.corrcoef(change[lag:, 1], change[:-lag, 0])[0, 1] for lag in range(1, longest + 1))


def test_load_has_the_promised_shape_and_index():
    frame = datasets.make_transformer_load(n_rows=100, n_variates=4, freq="15min")
    assert frame.shape == (100, 4)
    assert list(frame.columns) == ["load_1", "load_2", "load_3", "OT"]
    pd.testing.assert_index_equal(frame.index, pd.date_range("2020-01-01", periods=100, freq="15min", name="date"))
    assert (frame.dtypes == "float64").all()
    assert np.isfinite(frame.to_numpy()).all()
    assert datasets.make_transformer_load(n_rows=1, n_variates=2).shape == (1, 2)


def test_load_repeats_by_seed_and_leaves_the_global_state_alone():
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    before, before_python = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = datasets.make_transformer_load(200, 3, random_state=5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert random.getstate() == before_python
    pd.testing.assert_frame_equal(first, datasets.make_transformer_load(200, 3, random_state=5))
    pd.testing.assert_frame_equal(first, datasets.make_transformer_load(200, 3, random_state=np.random.default_rng(5)))
    assert not first.equals(datasets.make_transformer_load(200, 3, random_state=6))


@pytest.mark.parametrize(("freq", "day"), [("h", 24), ("30min", 48)])
@pytest.mark.parametrize("column", ["load_1", "load_4", "OT"])
def test_load_has_days_and_weeks(freq, day, column):
    values = datasets.make_transformer_load(n_rows=70 * day, freq=freq)[column].to_numpy()
    values = values - np.polyval(np.polyfit(np.arange(len(values)), values, 2), np.arange(len(values)))
    hour = day // 24
    daily = autocorrelation(values, day)
    assert daily > 0.3
    assert all(daily > autocorrelation(values, day + shift * hour) for shift in (-12, -6, -3, 3, 6, 12))
    weekly = autocorrelation(values, 7 * day)
    assert all(weekly > autocorrelation(values, days * day) for days in (3, 4, 5, 9, 10))


def test_coupling_is_measurable_and_absent_at_zero():
    correlation = {
        coupling: lagged_correlation(datasets.make_transformer_load(coupling=coupling, random_state=1), 24, 6)
        for coupling in (0.0, 0.3, 0.8)
    }
    assert abs(correlation[0.0]) < 0.12
    assert correlation[0.3] > correlation[0.0] + 0.1
    assert correlation[0.8] > correlation[0.3] + 0.2


def test_noise_switches_between_two_states():
    quiet = datasets.make_transformer_load(noise=0.0, random_state=2)["load_1"]
    noise = (datasets.make_transformer_load(noise=0.1, random_state=2)["load_1"] - quiet).to_numpy()
    level = np.sqrt((noise[: len(noise) // 12 * 12].reshape(-1, 12) ** 2).mean(axis=1))
    assert np.quantile(level, 0.95) > 3 * np.median(level)
    assert 0.05 < np.median(level) < 0.15
    # Rough half-days stand together: the states last for days.
    assert autocorrelation(level, 1) > 0.3


def test_oil_follows_the_load_with_inertia():
    frame = datasets.make_transformer_load(random_state=4)
    oil, heat = frame["OT"].diff(168).dropna(), (frame.drop(columns="OT") ** 2).mean(axis=1).diff(168).dropna()
    later = [oil.corr(heat.shift(lag)) for lag in (0, 2, 24)]
    assert later[1] > later[0] > later[2] + 0.2
    load, oil = frame["load_1"], frame["OT"]
    assert oil.diff().std() / oil.std() < 0.6 * load.diff().std() / load.std()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_rows": 0}, "n_rows=0"),
        ({"n_rows": 10.5}, "n_rows=10.5"),
        ({"n_variates": 1}, "n_variates=1"),
        ({"n_variates": True}, "n_variates=True"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"coupling": 1.0}, r"coupling=1.0"),
        ({"coupling": float("nan")}, "coupling=nan"),
        ({"freq": "ME"}, "freq='ME'"),
        ({"freq": "fortnight"}, "freq='fortnight'"),
        ({"freq": "D"}, "freq='D'"),
        ({"freq": "10s"}, "freq='10s'"),
    ],
)
def test_load_refuses_what_it_cannot_make(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_transformer_load(**arguments)

"""The synthetic series: a transformer's load, with days, weeks, coupling and inert oil, and Lorenz's chaotic ring."""

import itertools
import random

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp

from ssmseq import datasets
from ssmseq.datasets.generators import _lorenz96


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


# The ring of Lorenz


def derivative(time, x, forcing):
    """Give dx/dt of every variate, written down from the paper and not as the library does it."""
    n = len(x)
    return np.array([(x[(j + 1) % n] - x[j - 2]) * x[j - 1] - x[j] + forcing for j in range(n)])


@pytest.fixture(scope="module")
def ring():
    """A state of 40 variates on the attractor at a forcing of 8."""
    return datasets.make_lorenz96(1, random_state=7).to_numpy()[0]


def test_lorenz_has_the_promised_shape_index_and_columns():
    frame = datasets.make_lorenz96(50, 7)
    assert list(frame.columns) == [f"x_{j}" for j in range(1, 8)]
    pd.testing.assert_index_equal(frame.index, pd.date_range("2000-01-01", periods=50, freq="h", name="date"))
    assert (frame.dtypes == "float64").all()
    assert datasets.make_lorenz96(1, 4).shape == (1, 4)


@pytest.mark.parametrize(
    ("n_variates", "forcing", "dt", "n_rows", "tolerance"),
    [(40, 8.0, 0.05, 11, 3e-4), (5, 8.0, 0.013, 21, 1e-5), (12, 3.0, 0.2, 6, 1e-6), (9, 25.0, 0.05, 5, 1.5e-4)],
)
def test_lorenz_agrees_with_a_solver_of_order_8(n_variates, forcing, dt, n_rows, tolerance):
    # The span is short and the tolerance thrice the largest error of 60 seeds: rounding sends the burn-in, and with it
    # the first row, elsewhere on every machine.
    values = datasets.make_lorenz96(n_rows, n_variates, forcing=forcing, dt=dt, random_state=3).to_numpy()
    times = dt * np.arange(n_rows)
    span = (0, times[-1])
    solution = solve_ivp(derivative, span, values[0], "DOP853", times, args=(forcing,), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(values, solution.y.T, rtol=0, atol=tolerance)


def test_error_of_the_integration_is_of_order_4(ring):
    exact = solve_ivp(derivative, (0, 0.5), ring, method="DOP853", args=(8.0,), rtol=1e-13, atol=1e-13).y[:, -1]
    # Where dt is at most 0.01 and the forcing at most 8, dt is the step.
    errors = [np.abs(_lorenz96(ring, round(0.5 / dt) + 1, dt, 8.0)[-1] - exact).max() for dt in (0.01, 0.005)]
    assert 13 < errors[0] / errors[1] < 19


@pytest.mark.parametrize("forcing", [8.0, 2.5])
def test_products_conserve_energy(ring, forcing):
    # d/dt of sum x^2 / 2 is F sum x - sum x^2: what the products of the equations add is zero.
    step = 1e-4
    before, now, after = _lorenz96(ring, 3, step, forcing)
    change = ((after**2).sum() - (before**2).sum()) / 2 / (2 * step)
    assert change == pytest.approx(forcing * now.sum() - (now**2).sum(), rel=2e-5)


@pytest.mark.parametrize("shift", [1, 2, 17])
def test_turning_the_ring_turns_the_trajectory(ring, shift):
    turned = _lorenz96(np.roll(ring, shift), 200, 0.05, 8.0)
    np.testing.assert_array_equal(turned, np.roll(_lorenz96(ring, 200, 0.05, 8.0), shift, axis=1))


def test_lorenz_parts_at_the_known_rate(ring):
    # 1.68 in the literature for 40 variates and a forcing of 8. The error is brought back to its size every half unit.
    state, error, growth = ring, np.random.default_rng(0).standard_normal(40), []
    for _ in range(620):
        error *= 1e-6 / np.linalg.norm(error)
        twin = _lorenz96(state + error, 2, 0.5, 8.0)[1]
        state = _lorenz96(state, 2, 0.5, 8.0)[1]
        error = twin - state
        growth.append(np.log(np.linalg.norm(error) / 1e-6) / 0.5)
    assert np.mean(growth[20:]) == pytest.approx(1.68, abs=0.15)


def test_lorenz_is_stationary_from_the_first_row():
    first = np.stack([datasets.make_lorenz96(10, random_state=seed).to_numpy() for seed in range(20)])
    later = datasets.make_lorenz96(4000, random_state=99).to_numpy()
    assert first.mean() == pytest.approx(later.mean(), abs=0.35)
    assert first.std() == pytest.approx(later.std(), rel=0.06)


def test_lorenz_repeats_by_seed_to_the_bit_and_leaves_the_global_state_alone():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = datasets.make_lorenz96(300, 6, noise=0.1, shuffle=True, random_state=5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    again = datasets.make_lorenz96(300, 6, noise=0.1, shuffle=True, random_state=np.random.default_rng(5))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    other = datasets.make_lorenz96(300, 6, noise=0.1, shuffle=True, random_state=6)
    assert not np.allclose(first, other[first.columns])
    longer = datasets.make_lorenz96(400, 6, random_state=5)[:300]
    pd.testing.assert_frame_equal(longer, datasets.make_lorenz96(300, 6, random_state=5), check_exact=True)


def test_shuffling_moves_the_columns_and_nothing_else():
    plain = datasets.make_lorenz96(50, 30, noise=0.2, random_state=1)
    shuffled = datasets.make_lorenz96(50, 30, noise=0.2, shuffle=True, random_state=1)
    pd.testing.assert_frame_equal(shuffled[plain.columns], plain, check_exact=True)
    place = [int(name.removeprefix("x_")) for name in shuffled.columns]
    assert sum(abs(one - other) in (1, 29) for one, other in itertools.pairwise(place)) < 6
    assert list(datasets.make_lorenz96(1, 30, shuffle=True, random_state=2)) != list(shuffled)


def test_noise_is_white_and_of_the_promised_size():
    clean = datasets.make_lorenz96(3000, 5, random_state=1).to_numpy()
    noise = datasets.make_lorenz96(3000, 5, noise=0.5, random_state=1).to_numpy() - clean
    assert noise.std() == pytest.approx(0.5, rel=0.03)
    assert abs(noise.mean()) < 0.02
    assert all(abs(autocorrelation(column, 1)) < 0.08 for column in noise.T)
    assert np.abs(np.corrcoef(noise.T) - np.eye(5)).max() < 0.08


def test_weak_forcing_brings_the_ring_to_rest():
    values = datasets.make_lorenz96(400, 9, forcing=0.5, dt=0.1).to_numpy()
    np.testing.assert_allclose(values[-1], 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_rows": 0}, "n_rows=0"),
        ({"n_rows": 2.5}, "n_rows=2.5"),
        ({"n_variates": 3}, "n_variates=3"),
        ({"forcing": 0.0}, r"forcing=0.0 must lie in \(0, 100\]"),
        ({"forcing": 101}, "forcing=101"),
        ({"forcing": float("nan")}, "forcing=nan"),
        ({"dt": 0}, r"dt=0 must lie in \(0, 1\]"),
        ({"dt": 1.1}, "dt=1.1"),
        ({"dt": float("nan")}, "dt=nan"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"noise": float("inf")}, "noise=inf"),
    ],
)
def test_lorenz_refuses_what_it_cannot_make(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_lorenz96(**arguments)

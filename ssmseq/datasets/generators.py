"""Synthetic series for tests, examples, demonstrations and benchmarks without a download.

The oil temperature follows the shape of the thermal model of IEC 60076-7 [1]_: a rise over the ambient temperature that
grows with the losses, reached with the oil's time constant. The parameters are of its order of magnitude, not tabulated
values, and the loads are invented. The chaotic ring is the system of Lorenz [2]_ as published. The DNA comes from a
random Markov chain.

References
----------
.. [1] IEC 60076-7:2018, Power transformers, part 7: Loading guide for mineral-oil-immersed power transformers.
.. [2] Lorenz, E. N. (1996). Predictability: A problem partly solved. Proceedings of the Seminar on Predictability,
   ECMWF, vol. 1, 1-18.
"""

import math
import numbers
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_START = "2020-01-01"
_START_WEEKDAY = 2  # a Wednesday
_LOAD_MEMORY = 3.0  # correlation time of the load noise, hours
_AMBIENT_MEMORY = 48.0  # correlation time of the weather, hours
_OIL_TIME_CONSTANT = 3.0  # hours
_LONGEST_LAG = 6.0  # hours
_CALM_DAYS, _ROUGH_DAYS, _ROUGH_FACTOR = 4.0, 1.0, 3.0
_LORENZ_STEP = 0.01  # a fifth of the step that Lorenz used, for his forcing of 8
_LORENZ_BURN_IN = 20.0  # units of model time
_BASE_CONCENTRATION = 0.6  # of the Dirichlet distribution of the probabilities in each context


def make_transformer_load(
    n_rows: int = 4000,
    n_variates: int = 7,
    *,
    freq: str = "h",
    noise: float = 0.1,
    coupling: float = 0.3,
    random_state: "int | np.random.Generator | None" = 0,
) -> "pd.DataFrame":
    r"""Make a transformer's coupled loads and its oil temperature.

    Parameters
    ----------
    n_rows : int, default=4000
        Number of time steps, at least 1.
    n_variates : int, default=7
        Number of columns, at least 2: ``n_variates - 1`` loads and the oil temperature.
    freq : str, default="h"
        Distance of the rows as a pandas frequency, from "1min" to "12h".
    noise : float, default=0.1
        Standard deviation of a load's own noise in its calm state, as a share of the rated load. In the rough state it
        is three times that. The noise of the weather scales with it.
    coupling : float, default=0.3
        Share of the previous load's deviation that a load takes over some hours later, from 0 (independent) to below 1.
    random_state : int, numpy Generator or None, default=0
        Seed, or generator to draw from; None gives another series each time. The global state is never touched.

    Returns
    -------
    pandas.DataFrame of shape (n_rows, n_variates)
        Columns "load_1", "load_2", ... in units of the rated load and last "OT" in degrees Celsius; float64. The index
        is a DatetimeIndex "date" that starts at 2020-01-01 00:00 with frequency `freq`.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    With :math:`t` in hours, load :math:`j` is

    .. math:: x_j(t) = b_j + s_j(t) + g_j(t) + \sigma(t) e_j(t) + c\,(x_{j-1}(t - \ell_j) - b_{j-1})

    with base :math:`b_j`, a daily profile that is lower at weekends :math:`s_j`, a slow trend with a yearly cycle
    :math:`g_j`, noise :math:`e_j` with a memory of 3 hours, the coupling :math:`c` and a lag :math:`\ell_j` of 1 to 6
    hours (at least one row). All loads share the state :math:`\sigma(t)`, a Markov chain that stays calm for 4 days
    and rough for 1 day on average. The loads' mean square :math:`K^2` heats the oil, with a time constant of 3 hours,
    towards the ambient temperature plus :math:`45\,((1 + 6 K^2) / 7)^{0.8}`.

    References
    ----------
    .. [1] IEC 60076-7:2018, Power transformers, part 7: Loading guide for mineral-oil-immersed power transformers.

    Examples
    --------
    >>> from ssmseq.datasets import make_transformer_load
    >>> frame = make_transformer_load(n_rows=48, n_variates=3)
    >>> frame.shape, list(frame.columns)
    ((48, 3), ['load_1', 'load_2', 'OT'])
    """
    import pandas as pd

    _check_count("n_rows", n_rows, 1)
    _check_count("n_variates", n_variates, 2)
    step = _step_hours(freq)
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise={noise!r} must be a finite number of at least 0; use 0 for a noise-free series.")
    if not 0 <= coupling < 1:
        raise ValueError(f"coupling={coupling!r} must lie in [0, 1), or deviations grow along the chain of loads.")
    rng = np.random.default_rng(random_state)

    # Lags and inertia need a past: two days, and the longest lag for every link of the chain of loads.
    n_past = math.ceil((48.0 + _LONGEST_LAG * (n_variates - 1)) / step)
    hours_L = step * np.arange(-n_past, n_rows)
    loads_LV = _loads(rng, hours_L, step, n_variates - 1, noise, coupling)
    oil_L = _oil_temperature(rng, hours_L, step, loads_LV, noise)
    return pd.DataFrame(
        np.column_stack([loads_LV, oil_L])[n_past:],
        index=pd.date_range(_START, periods=n_rows, freq=freq, name="date"),
        columns=pd.Index([f"load_{j}" for j in range(1, n_variates)] + ["OT"]),
    )


def make_lorenz96(
    n_rows: int = 4000,
    n_variates: int = 40,
    *,
    forcing: float = 8.0,
    dt: float = 0.05,
    noise: float = 0.0,
    shuffle: bool = False,
    random_state: "int | np.random.Generator | None" = 0,
) -> "pd.DataFrame":
    r"""Make a trajectory of the chaotic system of Lorenz (1996), in which every variate drives its neighbours.

    Parameters
    ----------
    n_rows : int, default=4000
        Number of time steps, at least 1.
    n_variates : int, default=40
        Number of columns, at least 4.
    forcing : float, default=8.0
        The system's :math:`F`, above 0 and at most 100.
    dt : float, default=0.05
        Model time between two rows, above 0 and at most 1. Lorenz reads 0.05 as six hours of weather.
    noise : float, default=0.0
        Standard deviation of the white Gaussian noise added to every value, in the units of the values, whose own
        standard deviation is about 3.6 at the default forcing.
    shuffle : bool, default=False
        Whether the columns stand in an order drawn at random. In order, neighbours in the frame are neighbours in the
        ring, which a model could exploit by the position alone.
    random_state : int, numpy Generator or None, default=0
        Seed, or generator to draw from; None gives another series each time. The global state is never touched.

    Returns
    -------
    pandas.DataFrame of shape (n_rows, n_variates)
        Columns "x_1", "x_2", ..., named by their place in the ring whatever their order; float64. The index is an
        hourly DatetimeIndex "date" from 2000-01-01 00:00, which has no meaning.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    With the indices taken round a ring of :math:`V` variates,

    .. math:: \frac{dx_j}{dt} = (x_{j+1} - x_{j-2})\,x_{j-1} - x_j + F

    The product conserves the energy :math:`\sum_j x_j^2 / 2`, the linear term dissipates and the forcing supplies it.
    Below :math:`F = 8/9` all variates come to rest at :math:`F`. At the defaults the motion is chaotic: two
    trajectories part as :math:`e^{1.69 t}` (over 6,000 units of time; the tests repeat a shorter measurement), so that
    small errors double in 0.41 units, or 8 rows, and the value of a variate that is known to one part in a thousand is
    lost after some 80 rows.

    The equations are integrated in float64 by the classical Runge-Kutta method of order 4 with steps of at most 0.01,
    or less in proportion where `forcing` exceeds 8. The start is drawn about :math:`F`, and 20 units of time pass
    before the first row. Being chaotic, the same seed gives the same values on one machine, but other rounding, on
    another machine or with another numpy, gives another trajectory after some hundred rows.

    References
    ----------
    .. [1] Lorenz, E. N. (1996). Predictability: A problem partly solved. Proceedings of the Seminar on Predictability,
       ECMWF, vol. 1, 1-18.
    .. [2] Lorenz, E. N., Emanuel, K. A. (1998). Optimal sites for supplementary weather observations: Simulation with a
       small model. Journal of the Atmospheric Sciences 55(3), 399-414.

    Examples
    --------
    >>> from ssmseq.datasets import make_lorenz96
    >>> make_lorenz96(n_rows=1000, n_variates=8).shape
    (1000, 8)
    """
    import pandas as pd

    _check_count("n_rows", n_rows, 1)
    _check_count("n_variates", n_variates, 4)
    if not 0 < forcing <= 100:
        raise ValueError(f"forcing={forcing!r} must lie in (0, 100]; use for example 8, where the motion is chaotic.")
    if not 0 < dt <= 1:
        raise ValueError(f"dt={dt!r} must lie in (0, 1] units of model time; use for example 0.05.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise!r} must be a finite number of at least 0; use 0 for a noise-free series.")
    rng = np.random.default_rng(random_state)

    order_V = rng.permutation(n_variates)
    start_V = forcing + rng.standard_normal(n_variates)
    values_LV = _lorenz96(_lorenz96(start_V, 2, _LORENZ_BURN_IN, forcing)[-1], n_rows, dt, forcing)
    if noise:
        values_LV += noise * rng.standard_normal(values_LV.shape)
    frame = pd.DataFrame(
        values_LV,
        index=pd.date_range("2000-01-01", periods=n_rows, freq="h", name="date"),
        columns=pd.Index([f"x_{j}" for j in range(1, n_variates + 1)]),
    )
    return frame.iloc[:, order_V] if shuffle else frame


def make_markov_sequence(
    order: int = 3, length: int = 100_000, *, random_state: "int | np.random.Generator | None" = 0
) -> tuple[str, float]:
    r"""Make DNA from a random Markov chain, whose entropy no model can go below.

    Parameters
    ----------
    order : int, default=3
        Number of bases that the next one depends on, from 0 to 10.
    length : int, default=100_000
        In bases, at least 1.
    random_state : int, numpy Generator or None, default=0
        Seed, or generator to draw from; None gives another sequence each time. The global state is never touched.

    Returns
    -------
    sequence : str
        Of A, C, G and T, from a chain in its stationary state.
    entropy : float
        Of a base given all before it, in bits; between 0 and 2.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    Each context :math:`c` of `order` bases has probabilities :math:`p(b \mid c)` of the next base, drawn from a
    Dirichlet distribution with concentration 0.6. With the stationary distribution :math:`\pi`, the entropy rate [1]_
    is :math:`-\sum_c \pi(c) \sum_b p(b \mid c) \log_2 p(b \mid c)`.

    References
    ----------
    .. [1] Shannon, C. E. (1948). A mathematical theory of communication. Bell System Technical Journal 27, 379-423.

    Examples
    --------
    >>> from ssmseq.datasets import make_markov_sequence
    >>> sequence, entropy = make_markov_sequence(order=2, length=8)
    >>> len(sequence), 0 < entropy < 2
    (8, True)
    """
    _check_count("order", order, 0)
    _check_count("length", length, 1)
    if order > 10:
        raise ValueError(f"order={order!r} must be at most 10, or the chain has more than four million contexts.")
    rng = np.random.default_rng(random_state)
    chances = rng.dirichlet(np.full(4, _BASE_CONCENTRATION), 4**order)
    stationary = _stationary_contexts(chances)
    surprise = -np.log2(chances, where=chances > 0, out=np.zeros_like(chances))
    entropy = float(stationary @ (chances * surprise).sum(1))

    context = int(rng.choice(4**order, p=stationary))
    bases = [context >> 2 * place & 3 for place in reversed(range(order))]
    # The last threshold is left out: rounding may put it below 1.
    thresholds, n_contexts = chances.cumsum(1)[:, :3].tolist(), 4**order
    for draw in rng.random(max(length - order, 0)).tolist():
        below = thresholds[context]
        base = (draw >= below[0]) + (draw >= below[1]) + (draw >= below[2])
        bases.append(base)
        context = (4 * context + base) % n_contexts
    return np.frombuffer(b"ACGT", np.uint8)[bases[:length]].tobytes().decode(), entropy


def _stationary_contexts(chances: np.ndarray) -> np.ndarray:
    """Return the share of time that a chain with rows (4**order, 4) of probabilities spends in each context."""
    shares = np.full(len(chances), 1 / len(chances))
    for _ in range(100_000):
        # A step forgets the first base of the context and appends the one drawn, except at order 0, which has none.
        moved = (shares[:, None] * chances).reshape(4, -1).sum(0) if len(chances) > 1 else shares
        if np.abs(moved - shares).sum() < 1e-13:
            return moved / moved.sum()
        shares = moved
    raise ValueError("the drawn chain mixes too slowly for its entropy to be found; use another random_state.")


def _lorenz96(start_V: np.ndarray, n_rows: int, dt: float, forcing: float) -> np.ndarray:
    """Return `n_rows` states at distances of `dt`, the start being the first."""
    n_steps = math.ceil(dt * max(1.0, forcing / 8) / _LORENZ_STEP)
    step = dt / n_steps
    # Two cells before the ring and one after it hold its other end, which spares the copies that np.roll would make.
    ring = np.empty(len(start_V) + 3)

    def tendency(x_V: np.ndarray) -> np.ndarray:
        ring[:2], ring[2:-1], ring[-1] = x_V[-2:], x_V, x_V[0]
        return (ring[3:] - ring[:-3]) * ring[1:-2] - x_V + forcing

    states_LV = np.empty((n_rows, len(start_V)))
    states_LV[0] = x_V = start_V
    for row in range(1, n_rows):
        for _ in range(n_steps):
            k1_V = tendency(x_V)
            k2_V = tendency(x_V + step / 2 * k1_V)
            k3_V = tendency(x_V + step / 2 * k2_V)
            k4_V = tendency(x_V + step * k3_V)
            x_V = x_V + step / 6 * (k1_V + 2 * (k2_V + k3_V) + k4_V)
        states_LV[row] = x_V
    return states_LV


def _loads(
    rng: np.random.Generator, hours_L: np.ndarray, step: float, n_loads: int, noise: float, coupling: float
) -> np.ndarray:
    base_V = rng.uniform(0.45, 0.65, n_loads)
    deviation_LV = _profile(rng, hours_L, n_loads) + _trend(rng, hours_L, n_loads)
    state_L = _noise_scale(rng, len(hours_L), step)
    deviation_LV += noise * state_L[:, None] * _autoregression(rng, (len(hours_L), n_loads), step / _LOAD_MEMORY)
    lags_V = np.maximum(1, np.rint(rng.uniform(1.0, _LONGEST_LAG, n_loads) / step)).astype(int)
    for load in range(1, n_loads):
        lag = lags_V[load]
        deviation_LV[lag:, load] += coupling * deviation_LV[:-lag, load - 1]
    return base_V + deviation_LV


def _profile(rng: np.random.Generator, hours_L: np.ndarray, n_loads: int) -> np.ndarray:
    day_L1 = (2 * np.pi / 24) * hours_L[:, None]
    peak_V = (2 * np.pi / 24) * rng.normal(17.0, 2.0, n_loads)
    second_peak_V = rng.uniform(0, 2 * np.pi, n_loads)
    daily_LV = rng.uniform(0.2, 0.3, n_loads) * np.cos(day_L1 - peak_V)
    daily_LV += rng.uniform(0.05, 0.1, n_loads) * np.cos(2 * day_L1 - second_peak_V)
    weekend_L1 = ((np.floor(hours_L / 24) + _START_WEEKDAY) % 7 >= 5)[:, None]
    return np.where(weekend_L1, 0.6 * daily_LV - rng.uniform(0.05, 0.15, n_loads), daily_LV)


def _trend(rng: np.random.Generator, hours_L: np.ndarray, n_loads: int) -> np.ndarray:
    years_L1 = hours_L[:, None] / (24 * 365.25)
    cycle_LV = np.cos(2 * np.pi * (years_L1 - rng.uniform(0, 0.1, n_loads)))
    return rng.normal(0.03, 0.03, n_loads) * years_L1 + rng.uniform(0.03, 0.08, n_loads) * cycle_LV


def _noise_scale(rng: np.random.Generator, n_rows: int, step: float) -> np.ndarray:
    # The time a Markov chain stays in a state is geometric, so whole stays are drawn instead of single steps. The
    # first stay, cut off by the start, has the same law as the others: the distribution has no memory.
    mean_stays = np.maximum(1.0, 24 / step * np.array([_CALM_DAYS, _ROUGH_DAYS]))
    rough = int(rng.random() < _ROUGH_DAYS / (_CALM_DAYS + _ROUGH_DAYS))
    scales, drawn = [], 0
    while drawn < n_rows:
        stay = int(rng.geometric(1 / mean_stays[rough]))
        scales.append(np.full(stay, _ROUGH_FACTOR if rough else 1.0))
        drawn, rough = drawn + stay, 1 - rough
    return np.concatenate(scales)[:n_rows]


def _autoregression(rng: np.random.Generator, shape: tuple[int, ...], decay: float) -> np.ndarray:
    from scipy.signal import lfilter

    memory = math.exp(-decay)
    shocks = rng.standard_normal(shape)
    # The first row has the stationary variance already, so there is no run-in.
    shocks[1:] *= math.sqrt(1 - memory**2)
    return np.asarray(lfilter([1.0], [1.0, -memory], shocks, axis=0))


def _oil_temperature(
    rng: np.random.Generator, hours_L: np.ndarray, step: float, loads_LV: np.ndarray, noise: float
) -> np.ndarray:
    from scipy.signal import lfilter

    ambient_L = 10 - 10 * np.cos(2 * np.pi * hours_L / (24 * 365.25)) + 4 * np.cos(2 * np.pi * (hours_L - 15) / 24)
    ambient_L += 20 * noise * _autoregression(rng, hours_L.shape, step / _AMBIENT_MEMORY)
    target_L = ambient_L + 45 * ((1 + 6 * np.mean(loads_LV**2, axis=1)) / 7) ** 0.8
    memory = math.exp(-step / _OIL_TIME_CONSTANT)
    oil_L, _ = lfilter([1 - memory], [1.0, -memory], target_L, zi=np.array([memory * target_L[0]]))
    return oil_L


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}; the default works.")


def _step_hours(freq: str) -> float:
    import pandas as pd

    try:
        step = pd.Timedelta(pd.tseries.frequencies.to_offset(freq)).total_seconds() / 3600
    except (TypeError, ValueError) as error:
        raise ValueError(f"freq={freq!r} has no fixed length; use for example 'h', '30min' or '15min'.") from error
    if not 1 / 60 <= step <= 12:
        raise ValueError(f"freq={freq!r} must lie between '1min' and '12h'; use for example 'h' or '15min'.")
    return step

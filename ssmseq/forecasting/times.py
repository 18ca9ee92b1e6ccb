"""The time axis of a frame: what counts as times, how far apart they are, and which come next.

Times are a pandas index of stamps, of periods, or of whole numbers. Their distance, `freq`, is an alias such as "h" or
"MS" for stamps, an alias with a count such as "2M" for periods, and an int for numbers.
"""

import re
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

DAY = pd.Timedelta("1D")
SPARSEST = 10  # a grid may have so many times as many rows as were given, before they count as irregular


def as_times(index: pd.Index, where: str) -> pd.Index:
    """Return an index of stamps, periods or int64 numbers; ValueError naming `where` if it holds none of them."""
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        times = index
    elif pd.api.types.is_integer_dtype(index.dtype) and not index.hasnans:
        times = pd.Index(index.to_numpy(dtype=np.int64), name=index.name)
    elif pd.api.types.is_numeric_dtype(index.dtype) or isinstance(index, pd.MultiIndex):
        raise ValueError(f"{where} holds no time stamps or whole numbers, but {_sample(index)}")
    else:
        try:
            times = pd.DatetimeIndex(_quietly(pd.to_datetime, index), name=index.name)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where} holds no time stamps or whole numbers, but {_sample(index)}") from error
    if times.hasnans:
        raise ValueError(f"{where} has no time in row {int(np.flatnonzero(times.isna())[0])}; drop or fill that row")
    return times


def kind_of(times: pd.Index) -> str:
    """Return "stamps", "periods" or "numbers"."""
    if isinstance(times, pd.DatetimeIndex):
        return "stamps"
    return "periods" if isinstance(times, pd.PeriodIndex) else "numbers"


def regular_grid(times: pd.Index, freq=None) -> tuple[pd.Index, np.ndarray | None, Any]:
    """Find the evenly spaced times that sorted times belong to.

    Parameters
    ----------
    times : pandas.Index (T,)
        Sorted.
    freq : optional
        The distance of rows that must hold; otherwise it is inferred.

    Returns
    -------
    grid : pandas.Index
        From the first time to the last.
    places : int array (T,) or None
        Where each time stands in the grid; None if it has no gaps.
    freq
        An alias, or an int for numbered rows.

    Raises
    ------
    ValueError
        If times are duplicated, or do not fit one grid (it names the first that does not), or cannot have that `freq`.
    """
    _reject_duplicates(times)
    freq = _inferred(times) if freq is None else _checked(times, freq)
    if _is_even(times, freq):
        return times, None, freq
    grid = _grid(times, freq)
    places = grid.get_indexer(times)
    if (places < 0).any():
        at = int(np.flatnonzero(places < 0)[0])
        if len(times) == 1:
            raise ValueError(f"the time {times[0]} does not fit the frequency {freq!r}")
        raise ValueError(_irregular(times, max(at - 1, 0), f"the frequency {freq!r}"))
    return grid, places, freq


def _checked(times: pd.Index, freq):
    """Return a frequency in the form of those that are inferred; ValueError if such times cannot have it."""
    if kind_of(times) == "numbers":
        if not isinstance(freq, Integral) or freq < 1:
            raise ValueError(f"the rows are numbered, so freq must be a whole number of at least 1, got {freq!r}")
        return int(freq)
    try:
        if not isinstance(times, pd.PeriodIndex):
            offset: Any = to_offset(freq)
            if offset.n < 1:
                raise ValueError(f"freq must be positive, got {freq!r}")
            return offset.freqstr
        alias = _quietly(lambda: pd.PeriodIndex.from_ordinals([0], freq=freq).freqstr)
    except (ValueError, TypeError) as error:
        raise ValueError(f"freq={freq!r} is not the distance of {kind_of(times)}: {error}") from error
    if _unit(alias) != _unit(times.freqstr):
        raise ValueError(f"the rows are periods of {times.freqstr!r}, but the frequency is {freq!r}")
    return alias


def even_step(places: np.ndarray) -> int:
    """Return how far apart all of some places in a grid are; 1 if they differ, or are too few to tell."""
    steps = np.diff(places)
    return int(steps[0]) if len(steps) > 1 and (steps == steps[0]).all() else 1


def _is_even(times: pd.Index, freq) -> bool:
    if isinstance(times, pd.DatetimeIndex):
        expected = pd.date_range(times[0], periods=len(times), freq=freq)
        return bool(np.array_equal(expected.asi8, times.as_unit(expected.unit).asi8))
    return bool((np.diff(_ordinals(times)) == _count(freq)).all())


def _grid(times: pd.Index, freq) -> pd.Index:
    if isinstance(times, pd.DatetimeIndex):
        return pd.date_range(times[0], times[-1], freq=freq).as_unit(times.unit)
    first, last = _ordinals(times)[[0, -1]]
    steps = np.arange(first, last + 1, _count(freq))
    if isinstance(times, pd.PeriodIndex):
        return pd.PeriodIndex.from_ordinals(steps, freq=times.freq)
    return pd.Index(steps, name=times.name)


def _inferred(times: pd.Index):
    """Return the distance of the rows: of even ones exactly, of others the one that leaves the fewest gaps."""
    given = getattr(times, "freq", None) if isinstance(times, pd.DatetimeIndex) else None
    if given is not None and given.n > 0:
        return given.freqstr
    if len(times) == 1:
        raise ValueError("one row is too few to find the time step; give more rows, or the parameter freq")
    if not isinstance(times, pd.DatetimeIndex):
        step, _ = _commonest_step(times)
        _require_multiples(times, step, f"a step of {step}")
        return f"{step}{_unit(times.freqstr)}" if isinstance(times, pd.PeriodIndex) else step
    # Days, weeks and months keep the wall clock, which may move against the step of a day when clocks change.
    wall = times.tz_localize(None)
    step, at = _commonest_step(wall)
    distance: Any = pd.Timedelta(step, times.unit)
    if distance % DAY:
        _require_multiples(times, step, f"a step of {distance}")
        return to_offset(distance).freqstr
    absolute, uneven = _commonest_step(times)
    if at is not None and uneven is None:  # days of 24 hours, whatever the clocks do
        return f"{int(pd.Timedelta(absolute, times.unit).total_seconds() / 60)}min"
    found = _quietly(pd.infer_freq, wall) if len(wall) > 2 else None
    if found is not None:
        return getattr(found, "freqstr", found)  # pandas is about to return the offset itself
    if at is None:
        return f"{distance // DAY}D"
    months = max(int(np.gcd.reduce(np.diff(wall.year * 12 + wall.month))), 1)
    tried = [to_offset(freq).freqstr for freq in (f"{distance // DAY}D", "B", f"{months}MS", f"{months}ME")]
    grids = {freq: pd.date_range(wall[0], wall[-1], freq=freq) for freq in tried}
    fitting = {freq: len(grid) for freq, grid in grids.items() if wall.isin(grid).all()}
    if not fitting or min(fitting.values()) > SPARSEST * len(times):
        raise ValueError(_irregular(times, at, f"a step of {distance}"))
    return min(fitting, key=lambda freq: fitting[freq])


def _require_multiples(times: pd.Index, step: int, expected: str) -> None:
    steps = np.diff(_ordinals(times))
    wrong = np.flatnonzero(steps % step)
    if len(wrong) or steps.sum() > SPARSEST * step * len(times):
        at = wrong[0] if len(wrong) else steps.argmax()
        raise ValueError(_irregular(times, int(at), expected))


def future_times(times: pd.Index, freq, n_rows: int) -> pd.Index:
    """Return the `n_rows` times that follow the last one."""
    last: Any = times[-1]
    if isinstance(times, pd.DatetimeIndex):
        return pd.date_range(last, periods=n_rows + 1, freq=freq)[1:].as_unit(times.unit)
    steps = np.arange(1, n_rows + 1) * _count(freq)
    if isinstance(times, pd.PeriodIndex):
        return pd.PeriodIndex.from_ordinals(last.ordinal + steps, freq=times.freq)
    return pd.RangeIndex(last + freq, last + freq * (n_rows + 1), freq)


def _quietly(function, *arguments):
    """Call a pandas function without its advice on formats and on what later versions return."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def _count(freq) -> int:
    return freq if isinstance(freq, int) else int(re.match(r"\d*", freq).group() or 1)  # type: ignore[union-attr]


def _unit(alias: str) -> str:
    """Return the alias of a period without its count."""
    return re.sub(r"^\d+", "", alias)


def _sample(index: pd.Index) -> str:
    return f"{index[0]!r} (dtype {index.dtype})" + (
        "; convert it with pd.to_datetime" if pd.api.types.is_object_dtype(index.dtype) else ""
    )


def _ordinals(times: pd.Index) -> np.ndarray:
    return times.asi8 if isinstance(times, pd.DatetimeIndex | pd.PeriodIndex) else np.asarray(times)


def _commonest_step(times: pd.Index) -> tuple[int, int | None]:
    """Return the commonest step, and the row after which another first occurs, if any does."""
    steps = np.diff(_ordinals(times))
    found, counts = np.unique(steps, return_counts=True)
    step = found[counts.argmax()]
    return int(step), None if len(found) == 1 else int(np.flatnonzero(steps != step)[0])


def _reject_duplicates(times: pd.Index) -> None:
    duplicated = times.duplicated()
    if duplicated.any():
        first = times[duplicated][0]
        raise ValueError(
            f"the time {first} stands in {int((times == first).sum())} rows; keep one row per time step, for example "
            "by frame.groupby(level=0).mean()"
        )


def _irregular(times: pd.Index, at: int, expected: str) -> str:
    return (
        f"the rows are not evenly spaced: after {times[at]} comes {times[at + 1]}, which does not fit {expected}. "
        "Give the parameter freq if the rows have gaps, bring them to a regular grid first "
        "(frame.resample(...).mean()), or drop the times (frame.reset_index(drop=True)) to take the rows as evenly "
        "spaced"
    )

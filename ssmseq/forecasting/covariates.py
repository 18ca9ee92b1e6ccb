"""What is known beside the values to forecast: the calendar, covariates of the future, features of a series."""

from typing import Any

import numpy as np
import pandas as pd

from ssmseq.forecasting.tables import as_pandas, find_times, numeric_values, series_of_rows

CALENDAR = {  # of stamps or periods, each from -0.5 to 0.5
    "minute": lambda t: t.minute / 59,
    "hour": lambda t: t.hour / 23,
    "day_of_week": lambda t: t.day_of_week / 6,
    "day_of_month": lambda t: (t.day - 1) / 30,
    "day_of_year": lambda t: (t.day_of_year - 1) / 365,
    "month": lambda t: (t.month - 1) / 11,
}
DAY = pd.Timedelta("1D")


def calendar_features(times: Any, names) -> np.ndarray:
    """Return (T, K): the features named, each scaled to [-0.5, 0.5]."""
    return np.column_stack([np.asarray(CALENDAR[name](times)) - 0.5 for name in names])


def fitting_features(times: Any) -> tuple[str, ...]:
    """Return the features that tell rows of this distance apart: of months only the month, of hours no minute."""
    stamps = times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times
    step: Any = (stamps[1:] - stamps[:-1]).min() if len(stamps) > 1 else DAY
    names = ("minute", "hour", "day_of_week", "day_of_month", "day_of_year")
    if step > 27 * DAY:
        return ("month",)
    if step > DAY:
        return ("day_of_month", "day_of_year") if step % (7 * DAY) == pd.Timedelta(0) else names[2:]
    return names[2:] if step == DAY else names[1:] if step >= pd.Timedelta("1h") else names


def static_columns(table: pd.DataFrame, names: tuple, known: dict) -> tuple[np.ndarray, tuple]:
    """Return covariates as numbers (T, S), text as one column per category, and (name, categories or None) of each.

    `known` holds the categories that `fit` saw, by name.
    """
    parts, levels = [np.empty((len(table), 0))], []
    for name in names:
        if name not in table.columns:
            raise ValueError(f"the frame lacks the static covariate {name!r}")
        column: Any = table[name]
        if pd.api.types.is_numeric_dtype(column.dtype):
            parts.append(column.to_numpy(dtype=np.float64, na_value=np.nan)[:, None])
            levels.append((name, None))
            continue
        categories = known.get(name) or tuple(sorted(column.dropna().astype(str).unique()))
        codes = pd.Index(categories).get_indexer(column.astype(str))
        if (codes < 0).any():
            odd = column[codes < 0].iloc[0]
            raise ValueError(f"static covariate {name!r} is {odd!r}, which fit did not see; it saw {list(categories)}")
        parts.append(np.eye(len(categories))[codes])
        levels.append((name, categories))
    return np.column_stack(parts), tuple(levels)


def future_rows(frame, layout, wanted: list[tuple[Any, pd.Index]]) -> list[np.ndarray]:
    """Read the covariates known in advance.

    Parameters
    ----------
    frame : pandas.DataFrame or polars.DataFrame
        With the columns `layout.future_covariates`, the times and the ids; other columns and rows do not matter.
    layout : FrameLayout
        Of the frame that the estimator was fitted on.
    wanted : list of (id, times)
        The rows that must be there.

    Returns
    -------
    list of array (H, F)

    Raises
    ------
    ValueError
        If there is no frame, or it lacks a column, a time or a value; the message names the first.
    """
    names = layout.future_covariates
    if frame is None:
        raise ValueError(
            f"the forecast needs the covariates {list(names)} of the {len(wanted[0][1])} rows after the history: "
            "predict(..., future=frame with these columns and the times)"
        )
    _, table, _ = as_pandas(frame)
    missing = [c for c in (*names, *([layout.id_name] if layout.is_long else [])) if c not in table.columns]
    if missing:
        raise ValueError(f"the frame of the future lacks {missing}; it needs {list(names)}")
    time_col = layout.time_name if layout.time_name in table.columns else None
    times, _ = find_times(table, time_col, numbered=True)
    assert times is not None
    values = numeric_values(table, names)
    codes, ids, _ = series_of_rows(table, layout.id_name if layout.is_long else None)
    places = {name: i for i, name in enumerate(ids)}
    found = []
    for name, rows in wanted:
        mine = codes == places[name] if name in places else np.zeros(len(codes), bool)
        at = pd.Index(times[mine]).get_indexer(rows)
        block = (
            np.where((at >= 0)[:, None], values[mine][at], np.nan) if mine.any() else np.full((len(rows), 1), np.nan)
        )
        if np.isnan(block).any():
            row, column = np.argwhere(np.isnan(block))[0]
            whose = f" of series {name!r}" if layout.is_long else ""
            raise ValueError(f"the frame of the future has no {names[column]!r}{whose} at {rows[row]}")
        found.append(block)
    return found


def season_length(times: pd.Index) -> int:
    """Return the rows of the usual season: a day of what is shorter than a day, a week of days, a year of months."""
    if not isinstance(times, pd.DatetimeIndex | pd.PeriodIndex) or len(times) < 2:
        return 1
    stamps = times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times
    steps = pd.Series(stamps[1:] - stamps[:-1])
    step = steps.median()
    if step < DAY:
        return max(1, round(DAY / step))
    if step == DAY:
        return 7 if steps.max() == DAY else 5  # business days skip the weekend
    return max(1, round(pd.Timedelta("365.25D") / step))

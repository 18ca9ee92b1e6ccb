"""Frames of any library as pandas, and what their columns hold: numbers, times, ids."""

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from ssmseq.forecasting.times import as_times


def as_pandas(frame) -> tuple[str, pd.DataFrame, dict[Any, str]]:
    """Return the library, a pandas frame, and the names of the dtypes of polars columns that pandas cannot hold."""
    if isinstance(frame, pd.DataFrame):
        library, table, dtypes = "pandas", frame, {}
    elif isinstance(frame, np.ndarray):
        if frame.ndim != 2:
            raise ValueError(f"an array must be (rows, variates), got shape {frame.shape}")
        library, table, dtypes = "numpy", pd.DataFrame(frame), {}
    else:
        library, table, dtypes = _polarsas_pandas(frame)
    if len(table) == 0:
        raise ValueError("the frame has no rows")
    return library, table, dtypes


def _polarsas_pandas(frame) -> tuple[str, pd.DataFrame, dict[Any, str]]:
    try:
        table = nw.from_native(frame, eager_only=True)
    except TypeError:
        table = None
    if table is None or table.implementation.value != "polars":
        remedy = "; call .to_frame() on it" if hasattr(frame, "to_frame") else ""
        remedy = "; call .collect() on it" if hasattr(frame, "collect") else remedy
        raise TypeError(
            f"expected a pandas or polars DataFrame or a two-dimensional array, got {type(frame).__module__}."
            f"{type(frame).__name__}{remedy}"
        )
    columns, dtypes = {}, {}
    for series in table.iter_columns():
        array = pd.Series(series.to_numpy())
        zone = getattr(series.dtype, "time_zone", None)
        if zone is not None:  # polars hands out UTC without saying so
            array = array.dt.tz_localize("UTC").dt.tz_convert(zone)
        columns[series.name] = array
        if series.dtype == nw.Date or series.dtype.is_integer():
            dtypes[series.name] = type(series.dtype).__name__
    return "polars", pd.DataFrame(columns), dtypes


def polars_times(times: pd.Index, name, dtype: str | None):
    """Return times as a series of polars, cast to a dtype that pandas cannot hold if one is named."""
    zone = getattr(times, "tz", None)
    if isinstance(times, pd.DatetimeIndex):
        plain = times if zone is None else times.tz_convert("UTC").tz_localize(None)
        plain = plain.as_unit("ms") if times.unit == "s" else plain  # polars has no seconds
        series = nw.new_series(name, plain.to_numpy(), backend="polars")
    else:
        series = nw.new_series(name, np.asarray(times), backend="polars")
    if zone is not None:
        series = series.dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
    return series if dtype is None else series.cast(getattr(nw, dtype))


def find_times(table: pd.DataFrame, time_col, *, numbered: bool) -> tuple[pd.Index | None, int | None]:
    """Return the times, and the position of their column or None; nothing at all where rows only have numbers."""
    index = table.index
    if time_col is None and not isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        temporal = [c for c in table.columns if _is_temporal(table[c].dtype)]
        if len(temporal) > 1:
            raise ValueError(f"the columns {temporal} all hold times; say which one counts with time_col=")
        time_col = temporal[0] if temporal else None
    if time_col is None:
        plain = not numbered and pd.api.types.is_integer_dtype(index.dtype)
        return (None if plain else as_times(index, "the index")), None
    if time_col not in table.columns:
        raise ValueError(f"time_col={time_col!r} is not a column; the columns are {list(table.columns)}")
    return as_times(pd.Index(table[time_col]), f"column {time_col!r}"), table.columns.get_loc(time_col)  # type: ignore


def _is_temporal(dtype) -> bool:
    return pd.api.types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype)


def numeric_values(table: pd.DataFrame, columns: tuple) -> np.ndarray:
    """Return numeric columns as float64 (T, C); NaN is missing, infinity is refused."""
    for c in columns:
        dtype = table[c].dtype
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            text = pd.api.types.is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype)
            raise ValueError(
                f"column {c!r} is not numeric (dtype {dtype}); drop or convert it"
                + (f", or pass time_col={c!r} if it holds the times" if text else "")
                + (f", or id_col={c!r} if it tells several series apart" if text else "")
            )
    values = np.column_stack([table[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in columns])
    bad = np.isinf(values)
    if bad.any():
        column = int(np.flatnonzero(bad.any(0))[0])
        row = int(np.flatnonzero(bad[:, column])[0])
        raise ValueError(
            f"column {columns[column]!r} holds {int(bad[:, column].sum())} infinite values, the first in row "
            f"{table.index[row]}; replace them (NaN counts as missing)"
        )
    return values


def series_of_rows(table: pd.DataFrame, id_col) -> tuple[np.ndarray, list, int | None]:
    """Return the number of each row's series, the ids, and the position of their column."""
    if id_col is None:
        return np.zeros(len(table), dtype=np.int64), [None], None
    codes, ids = pd.factorize(table[id_col])
    if (codes < 0).any():
        raise ValueError(f"column {id_col!r} has no id in row {int(np.flatnonzero(codes < 0)[0])}")
    return codes, list(ids), table.columns.get_loc(id_col)  # type: ignore[return-value]

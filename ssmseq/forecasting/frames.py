"""Wide frames to arrays and back: pandas, polars, or a plain two-dimensional array.

A wide frame has one numeric column per variate and one row per time step. Its times are, in this order: the column
named `time_col`; a pandas index of stamps or periods; the only column with a temporal dtype; a pandas index of whole
numbers; the row number.
"""

from dataclasses import asdict, dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from ssmseq.forecasting.times import as_times, frequency, future_times, kind_of

__all__ = ["FrameLayout", "future_times", "read_frame", "write_frame"]


@dataclass(frozen=True)
class FrameLayout:
    """How a frame was laid out, so that a forecast can be laid out the same."""

    library: str  # "pandas", "polars" or "numpy"
    columns: tuple[Any, ...]  # the variates, in order
    time_name: Any  # of the index or the column
    time_at: int | None  # position of the column of times; None if they were in the index, or nowhere
    time_kind: str  # "stamps", "periods" or "numbers"
    time_dtype: str | None  # of a polars column that pandas cannot hold: "Date", "Int32", ...
    freq: Any  # distance of the rows: an alias, or the step of numbered rows

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "FrameLayout":
        """Rebuild a layout from `as_dict`."""
        return cls(**{**fields, "columns": tuple(fields["columns"])})


def read_frame(frame, time_col=None, layout: FrameLayout | None = None) -> tuple[np.ndarray, pd.Index, FrameLayout]:
    """Check a wide frame and take it apart.

    Parameters
    ----------
    frame : pandas.DataFrame, polars.DataFrame or array (T, V)
    time_col : column name, optional
    layout : FrameLayout, optional
        Of the frame that the estimator was fitted on: the columns and the frequency must be the same.

    Returns
    -------
    values : float64 array (T, V)
        Rows in the order of time.
    times : pandas.Index (T,)
    layout : FrameLayout

    Raises
    ------
    TypeError
        If it is not a frame.
    ValueError
        If a column is not numeric, missing, new, or holds NaN or infinity; or if times are duplicated or irregular.
    """
    library, table, dtypes = _as_pandas(frame)
    if not table.columns.is_unique:
        raise ValueError(f"column names must differ, got {list(table.columns)}")
    times, time_at = _find_times(table, time_col)
    time_name = table.index.name if time_at is None else table.columns[time_at]
    table = table if time_at is None else table.drop(columns=time_name)
    values, columns = _numeric_values(table, None if layout is None else layout.columns)
    if not times.is_monotonic_increasing:
        order = times.argsort()
        times, values = times[order], values[order]
    _reject_missing(values, columns, times)
    kind = kind_of(times)
    if layout is not None and kind != layout.time_kind:
        raise ValueError(f"the times of this frame are {kind}, but those that fit saw were {layout.time_kind}")
    freq = frequency(times, None if layout is None else layout.freq)
    return values, times, FrameLayout(library, columns, time_name, time_at, kind, dtypes.get(time_name), freq)


def write_frame(values: np.ndarray, times: pd.Index, layout: FrameLayout):
    """Lay an array (T, V) out as `layout` says."""
    if layout.library == "numpy":
        return values
    columns = dict(zip(layout.columns, values.T, strict=True))
    if layout.library == "polars":
        frame = nw.from_dict(columns, backend="polars")
        if layout.time_at is not None:
            series = [frame.get_column(c) for c in layout.columns]
            series.insert(layout.time_at, _polars_times(times, layout))
            frame = frame.select(*series)
        return frame.to_native()
    if layout.time_at is None:
        return pd.DataFrame(columns, index=times.rename(layout.time_name))
    frame = pd.DataFrame(columns)
    frame.insert(layout.time_at, layout.time_name, times)
    return frame


def _as_pandas(frame) -> tuple[str, pd.DataFrame, dict[Any, str]]:
    """Return the library, a pandas frame, and the names of the dtypes of polars columns that pandas cannot hold."""
    if isinstance(frame, pd.DataFrame):
        library, table, dtypes = "pandas", frame, {}
    elif isinstance(frame, np.ndarray):
        if frame.ndim != 2:
            raise ValueError(f"an array must be (rows, variates), got shape {frame.shape}")
        library, table, dtypes = "numpy", pd.DataFrame(frame), {}
    else:
        library, table, dtypes = _polars_as_pandas(frame)
    if len(table) == 0:
        raise ValueError("the frame has no rows")
    return library, table, dtypes


def _polars_as_pandas(frame) -> tuple[str, pd.DataFrame, dict[Any, str]]:
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


def _polars_times(times: pd.Index, layout: FrameLayout):
    zone = getattr(times, "tz", None)
    if isinstance(times, pd.DatetimeIndex):
        plain = times if zone is None else times.tz_convert("UTC").tz_localize(None)
        plain = plain.as_unit("ms") if times.unit == "s" else plain  # polars has no seconds
        series = nw.new_series(layout.time_name, plain.to_numpy(), backend="polars")
    else:
        series = nw.new_series(layout.time_name, np.asarray(times), backend="polars")
    if zone is not None:
        series = series.dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
    return series if layout.time_dtype is None else series.cast(getattr(nw, layout.time_dtype))


def _find_times(table: pd.DataFrame, time_col) -> tuple[pd.Index, int | None]:
    """Return the times, and the position of their column or None."""
    index = table.index
    if time_col is None and not isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        temporal = [c for c in table.columns if _is_temporal(table[c].dtype)]
        if len(temporal) > 1:
            raise ValueError(f"the columns {temporal} all hold times; say which one counts with time_col=")
        time_col = temporal[0] if temporal else None
    if time_col is None:
        return as_times(index, "the index"), None
    if time_col not in table.columns:
        raise ValueError(f"time_col={time_col!r} is not a column; the columns are {list(table.columns)}")
    return as_times(pd.Index(table[time_col]), f"column {time_col!r}"), table.columns.get_loc(time_col)  # type: ignore


def _is_temporal(dtype) -> bool:
    return pd.api.types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype)


def _numeric_values(table: pd.DataFrame, wanted: tuple | None) -> tuple[np.ndarray, tuple]:
    columns = tuple(table.columns)
    if wanted is not None:
        missing, new = [c for c in wanted if c not in columns], [c for c in columns if c not in wanted]
        if missing or new:
            told = [f"lacks {missing}"] * bool(missing) + [f"has {new} besides"] * bool(new)
            raise ValueError(
                f"the frame {' and '.join(told)}: fit saw {len(wanted)} columns {list(wanted)}, this frame has "
                f"{len(columns)}; give the same columns, or fit again"
            )
        columns = tuple(wanted)
    if not columns:
        raise ValueError("the frame has no column beside the times")
    for c in columns:
        dtype = table[c].dtype
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            text = pd.api.types.is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype)
            raise ValueError(
                f"column {c!r} is not numeric (dtype {dtype}); drop or convert it"
                + (f", or pass time_col={c!r} if it holds the times" if text else "")
            )
    values = np.column_stack([table[c].to_numpy(dtype=np.float64, na_value=np.nan) for c in columns])
    return values, columns


def _reject_missing(values: np.ndarray, columns: tuple, times: pd.Index) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        column = int(np.flatnonzero(bad.any(0))[0])
        row = int(np.flatnonzero(bad[:, column])[0])
        raise ValueError(
            f"column {columns[column]!r} holds {int(bad[:, column].sum())} NaN or infinite values, the first "
            f"({values[row, column]}) at {times[row]}; fill them first (frame.interpolate())"
        )

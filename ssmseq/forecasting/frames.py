"""Wide frames to arrays and back: pandas, polars, or a plain two-dimensional array.

A wide frame has one numeric column per variate and one row per time step. Its times are, in this order: the column
named `time_col`; the index of a pandas frame, if it holds times; the only column with a temporal dtype; the row number.
"""

from dataclasses import asdict, dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset


@dataclass(frozen=True)
class FrameLayout:
    """How a frame was laid out, so that a forecast can be laid out the same."""

    library: str  # "pandas", "polars" or "numpy"
    columns: tuple[Any, ...]  # the variates, in order
    time_name: Any  # of the index or the column
    time_in: str  # "index", "column" or "nowhere"
    time_kind: str  # "stamps", "dates" (without a time of day), "periods" or "numbers"
    freq: Any  # alias of the offset, or the step of a numbered index

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
    if isinstance(frame, np.ndarray):
        if frame.ndim != 2:
            raise ValueError(f"an array must be (rows, variates), got shape {frame.shape}")
        frame, library = pd.DataFrame(frame), "numpy"
    else:
        library = "pandas" if isinstance(frame, pd.DataFrame) else _library(frame)
    if len(frame) == 0:
        raise ValueError("the frame has no rows")
    times, time_name, time_in, table = _split_times(frame, library, time_col)
    values, columns = _numeric_values(table, None if layout is None else layout.columns)
    order = np.argsort(times, kind="stable")
    if (order[1:] < order[:-1]).any():
        times, values = times[order], values[order]
    _reject_missing(values, columns, times)
    kind = _time_kind(times, frame, time_name)
    if layout is not None and kind != layout.time_kind:
        raise ValueError(f"the times of this frame are {kind}, but those that fit saw were {layout.time_kind}")
    freq = _frequency(times, None if layout is None else layout.freq)
    return values, times, FrameLayout(library, columns, time_name, time_in, kind, freq)


def _time_kind(times: pd.Index, frame, time_name) -> str:
    if isinstance(times, pd.PeriodIndex):
        return "periods"
    if not isinstance(times, pd.DatetimeIndex):
        return "numbers"
    table = nw.from_native(frame, eager_only=True)
    return "dates" if time_name in table.columns and table.get_column(time_name).dtype == nw.Date else "stamps"


def future_times(times: pd.Index, freq, n_rows: int) -> pd.Index:
    """Return the `n_rows` times that follow the last one."""
    last: Any = times[-1]
    if isinstance(times, pd.DatetimeIndex):
        found = pd.date_range(last, periods=n_rows + 1, freq=freq)
        return found[1:].as_unit(times.unit)
    if isinstance(times, pd.PeriodIndex):
        return pd.period_range(last, periods=n_rows + 1)[1:]
    return pd.RangeIndex(last + freq, last + freq * (n_rows + 1), freq)


def write_frame(values: np.ndarray, times: pd.Index, layout: FrameLayout):
    """Lay an array (T, V) out as `layout` says."""
    if layout.library == "numpy":
        return values
    columns = {c: values[:, i] for i, c in enumerate(layout.columns)}
    if layout.library == "pandas" and layout.time_in == "column":
        return pd.DataFrame({layout.time_name: times, **columns})
    if layout.library == "pandas":
        return pd.DataFrame(columns, index=times.rename(layout.time_name))
    frame = nw.from_dict(columns, backend="polars")
    if layout.time_in == "column":
        frame = frame.select(_as_series(times, layout), nw.all())
    return frame.to_native()


def _as_series(times: pd.Index, layout: FrameLayout):
    zone = getattr(times, "tz", None)
    stamps = times.tz_convert("UTC").tz_localize(None) if zone is not None else times  # type: ignore[attr-defined]
    series = nw.new_series(layout.time_name, stamps.to_numpy(), backend="polars")
    if zone is not None:
        return series.dt.replace_time_zone("UTC").dt.convert_time_zone(str(zone))
    return series.cast(nw.Date()) if layout.time_kind == "dates" else series


def _library(frame) -> str:
    try:
        library = nw.from_native(frame, eager_only=True).implementation.value
    except TypeError:
        library = ""
    if library != "polars":
        remedy = "; call .to_frame() on it" if hasattr(frame, "to_frame") else ""
        raise TypeError(
            f"expected a pandas or polars DataFrame or a two-dimensional array, got {type(frame).__module__}."
            f"{type(frame).__name__}{remedy}"
        )
    return library


def _split_times(frame, library: str, time_col) -> tuple[pd.Index, Any, str, Any]:
    """Return the times, their name, where they were, and the rest as a narwhals frame."""
    table = nw.from_native(frame, eager_only=True)
    if len(set(table.columns)) != len(table.columns):
        raise ValueError(f"column names must differ, got {list(table.columns)}")
    if time_col is None and library == "pandas" and not _is_plain_range(frame.index):
        return _as_times(frame.index, "the index"), frame.index.name, "index", table
    if time_col is None:
        temporal = [c for c in table.columns if table.get_column(c).dtype.is_temporal()]
        if len(temporal) > 1:
            raise ValueError(f"columns {temporal} all hold times; say which one counts with time_col=")
        time_col = temporal[0] if temporal else None
    if time_col is None:
        return pd.RangeIndex(len(table)), None, "index" if library == "pandas" else "nowhere", table
    if time_col not in table.columns:
        raise ValueError(f"time_col={time_col!r} is not a column; the columns are {list(table.columns)}")
    return _column_times(table.get_column(time_col)), time_col, "column", table.drop(time_col)


def _column_times(series) -> pd.Index:
    values = pd.Index(series.to_numpy())
    zone = getattr(series.dtype, "time_zone", None)
    if zone is not None and getattr(values, "tz", None) is None:  # polars hands out UTC without saying so
        values = pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(zone)
    return _as_times(values, f"column {series.name!r}")


def _is_plain_range(index: pd.Index) -> bool:
    return isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1


def _as_times(index: pd.Index, where: str) -> pd.Index:
    if not isinstance(index, pd.DatetimeIndex | pd.PeriodIndex) and not pd.api.types.is_integer_dtype(index.dtype):
        try:
            index = pd.DatetimeIndex(pd.to_datetime(index))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where} holds no time stamps or whole numbers: {error}") from error
    if index.hasnans:
        raise ValueError(f"{where} has no time in row {int(np.flatnonzero(index.isna())[0])}")
    return index


def _numeric_values(table, wanted: tuple | None) -> tuple[np.ndarray, tuple]:
    columns = tuple(table.columns)
    if wanted is not None:
        missing, new = [c for c in wanted if c not in columns], [c for c in columns if c not in wanted]
        if missing or new:
            told = [f"lacks {missing}"] * bool(missing) + [f"has {new} besides"] * bool(new)
            raise ValueError(
                f"the frame {' and '.join(told)}: fit saw {len(wanted)} columns {list(wanted)}, this frame has "
                f"{len(columns)}"
            )
        columns = wanted
    if not columns:
        raise ValueError("the frame has no column beside the times")
    for c in columns:
        dtype = table.get_column(c).dtype
        if not (dtype.is_numeric() or dtype == nw.Boolean):
            raise ValueError(
                f"column {c!r} is not numeric (dtype {dtype}); drop or convert it"
                + (f", or pass time_col={c!r} if it holds the times" if dtype in (nw.String, nw.Object) else "")
            )
    values = np.column_stack([table.get_column(c).to_numpy().astype(np.float64) for c in columns])
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


def _frequency(times: pd.Index, known):
    duplicated = times.duplicated()
    if duplicated.any():
        raise ValueError(
            f"the time {times[duplicated][0]} stands in {int((times == times[duplicated][0]).sum())} rows; keep one "
            "row per time step (frame.groupby(level=0).mean())"
        )
    if len(times) == 1:
        if known is None:
            raise ValueError("one row is too few to find the time step; give at least lookback + horizon rows")
        return known
    if not isinstance(times, pd.DatetimeIndex):
        numbers = times.asi8 if isinstance(times, pd.PeriodIndex) else np.asarray(times)
        step, at = _first_irregular(np.diff(numbers))
        if at is not None or (known is not None and step != known):
            at = 0 if at is None else at
            raise ValueError(_irregular(times, at, f"a step of {step if known is None else known}"))
        return int(step)
    if known is not None:
        expected = pd.date_range(times[0], periods=len(times), freq=known)
        wrong = np.flatnonzero(np.asarray(expected != times))
        if len(wrong):
            raise ValueError(_irregular(times, max(int(wrong[0]) - 1, 0), f"the frequency {known!r} that fit saw"))
        return known
    step, at = _first_irregular(np.diff(times.asi8))
    if at is None:
        return to_offset(pd.Timedelta(step, times.unit)).freqstr  # type: ignore[call-overload]
    freq = pd.infer_freq(times) if len(times) > 2 else None
    if freq is None:
        raise ValueError(_irregular(times, at, f"a step of {pd.Timedelta(int(step), times.unit)}"))
    return freq


def _first_irregular(steps: np.ndarray) -> tuple[int, int | None]:
    """Return the commonest step, and where another first occurs, if any does."""
    found, counts = np.unique(steps, return_counts=True)
    step = found[counts.argmax()]
    return int(step), None if len(found) == 1 else int(np.flatnonzero(steps != step)[0])


def _irregular(times: pd.Index, at: int, expected: str) -> str:
    return (
        f"the rows are not evenly spaced: after {times[at]} comes {times[at + 1]}, which does not fit {expected}. "
        "Bring them to a regular grid first (frame.asfreq(...), frame.resample(...).mean()), or drop the times "
        "(frame.reset_index(drop=True)) to take the rows as evenly spaced"
    )

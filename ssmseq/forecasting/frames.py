"""Frames to arrays and back: pandas, polars, or a plain two-dimensional array; wide or long.

A wide frame has one numeric column per variate and one row per time step: one series of many variates. A long frame
holds several series beneath each other, told apart by a column of ids, each with its own times and length. Times are,
in this order: the column named `time_col`; a pandas index of stamps or periods; the only column with a temporal dtype;
a pandas index of whole numbers; the row number (within each series). Rows that the frequency asks for and the frame
lacks are put in as missing.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd

from ssmseq.forecasting.covariates import static_columns
from ssmseq.forecasting.tables import as_pandas, find_times, numeric_values, polars_times, series_of_rows
from ssmseq.forecasting.times import even_step, kind_of, regular_grid

LONG = ("unique_id", "ds", "y")  # a frame with these three columns is long without a word


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What the columns of a frame are, as an estimator's parameters say."""

    time_col: Any = None
    id_col: Any = None
    target: Any = None  # name or names; None is every column without another role
    past_covariates: tuple = ()
    future_covariates: tuple = ()
    static_covariates: tuple = ()
    freq: Any = None

    @classmethod
    def of(cls, estimator) -> "Roles":
        """Read the parameters of an estimator that have these names."""
        found: dict[str, Any] = {f.name: getattr(estimator, f.name, f.default) for f in fields(cls)}
        for name in ("past_covariates", "future_covariates", "static_covariates"):
            found[name] = _names(name, found[name])
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class FrameLayout:
    """How a frame was laid out, so that a forecast can be laid out the same."""

    library: str  # "pandas", "polars" or "numpy"
    columns: tuple[Any, ...]  # the variates, in order
    time_name: Any  # of the index or the column
    time_at: int | None  # position of the column of times; None if they were in the index, or nowhere
    time_kind: str  # "stamps", "periods" or "numbers"
    time_dtype: str | None  # of a polars column that pandas cannot hold: "Date", "Int32", ...
    freq: Any  # distance of the rows: an alias, or the step of numbered rows
    id_name: Any = None  # of the column of ids of a long frame
    id_at: int | None = None
    past_covariates: tuple[Any, ...] = ()
    future_covariates: tuple[Any, ...] = ()
    levels: tuple[tuple[Any, tuple | None], ...] = ()  # static covariates, and the categories of those that are text

    @property
    def is_long(self) -> bool:
        """Whether the frame holds several series beneath each other."""
        return self.id_at is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "FrameLayout":
        """Rebuild a layout from `as_dict`, also after a way through JSON."""
        tuples = {k: tuple(v) for k, v in stored.items() if isinstance(v, list | tuple)}
        levels = tuple((name, None if found is None else tuple(found)) for name, found in stored["levels"])
        return cls(**{**stored, **tuples, "levels": levels})


@dataclass(frozen=True)
class Series:
    """One series of a frame: even times, and NaN where nothing was observed."""

    id: Any  # None in a wide frame
    times: pd.Index  # (T,)
    values: np.ndarray  # (T, C) float64: variates, past covariates, future covariates
    static: np.ndarray  # (S,)

    def __len__(self) -> int:
        return len(self.times)

    def rows(self, part: slice) -> "Series":
        """Return some of the rows."""
        return Series(self.id, self.times[part], self.values[part], self.static)

    def tail(self, n_rows: int) -> "Series":
        """Return a copy of the last rows; a view would keep the whole frame alive."""
        start = max(len(self) - n_rows, 0)
        return Series(self.id, self.times[start:].copy(deep=True), self.values[start:].copy(), self.static)

    def followed_by(self, other: "Series") -> "Series":
        """Return both, one after the other."""
        times, values = self.times.append(other.times), np.concatenate([self.values, other.values])
        return Series(self.id, times, values, self.static)


def read_frame(
    frame, roles: Roles, layout: FrameLayout | None = None, *, other_columns: bool = False
) -> tuple[list[Series], FrameLayout]:
    """Check a frame and take it apart.

    Parameters
    ----------
    frame : pandas.DataFrame, polars.DataFrame or array (T, V)
    roles : Roles
    layout : FrameLayout, optional
        Of the frame that the estimator was fitted on: the columns and the frequency must be the same.
    other_columns : bool
        Take other variates than those of `layout`.

    Returns
    -------
    series : list of Series
        One of a wide frame; those of a long one in the order in which they first occur.
    layout : FrameLayout

    Raises
    ------
    TypeError
        If it is not a frame.
    ValueError
        If a column is not numeric, missing, new or infinite; or if times are duplicated or irregular.
    """
    library, table, dtypes = as_pandas(frame)
    if not table.columns.is_unique:
        raise ValueError(f"column names must differ, got {list(table.columns)}")
    roles = _completed(roles, table, layout)
    times, time_at = find_times(table, roles.time_col, numbered=roles.id_col is None)
    time_name = table.index.name if time_at is None else table.columns[time_at]
    columns, targets = _columns(table, roles, time_at, layout, other_columns=other_columns)
    values = numeric_values(table, columns)
    static, levels = static_columns(table, roles.static_covariates, {} if layout is None else dict(layout.levels))
    codes, ids, id_at = series_of_rows(table, roles.id_col)
    if times is None:
        times = pd.Index(pd.Series(codes).groupby(codes).cumcount().to_numpy())
    kind = kind_of(times)
    if layout is not None and kind != layout.time_kind:
        raise ValueError(f"the times of this frame are {kind}, but those that fit saw were {layout.time_kind}")
    freq = roles.freq if layout is None else layout.freq
    series, freq = _split_by_series(
        times, values, static, codes, ids, freq, inferred=layout is not None and roles.freq is None
    )
    found = FrameLayout(
        library=library,
        columns=targets,
        time_name=time_name,
        time_at=time_at,
        time_kind=kind,
        time_dtype=dtypes.get(time_name),
        freq=freq,
        id_name=roles.id_col,
        id_at=id_at,
        past_covariates=roles.past_covariates,
        future_covariates=roles.future_covariates,
        levels=levels,
    )
    return series, found


def write_frame(forecasts: dict[Any, np.ndarray], times: pd.Index, layout: FrameLayout, ids=None):
    """Lay columns (T,) out as `layout` says, with the id of each row in a long frame."""
    if layout.library == "numpy":
        return np.column_stack(list(forecasts.values()))
    columns: dict[Any, Any] = dict(forecasts)
    placed: list[Any] = [] if layout.time_at is None else [(layout.time_at, layout.time_name, times)]
    if layout.id_at is not None:
        placed.append((layout.id_at, layout.id_name, ids))
    placed = sorted(placed, key=lambda column: column[0])
    if layout.library == "polars":
        frame = nw.from_dict({**columns, **({layout.id_name: list(ids)} if ids is not None else {})}, backend="polars")
        order = [frame.get_column(c) for c in columns]
        for at, name, content in placed:
            is_time = layout.time_at is not None and name == layout.time_name
            order.insert(
                min(at, len(order)),
                polars_times(content, name, layout.time_dtype) if is_time else frame.get_column(name),
            )
        return frame.select(*order).to_native()
    frame = pd.DataFrame(columns, index=times.rename(layout.time_name) if layout.time_at is None else None)
    for at, name, content in placed:
        frame.insert(min(at, frame.shape[1]), name, content)
    return frame


def _names(parameter: str, value) -> tuple:
    if value is None:
        return ()
    if isinstance(value, str) or not np.iterable(value):
        raise TypeError(f"{parameter} must be a list of column names, got {value!r}")
    return tuple(value)


def _completed(roles: Roles, table: pd.DataFrame, layout: FrameLayout | None) -> Roles:
    """Fill in the roles of a frame that has the usual names, or those that fit saw."""
    given = {f.name: getattr(roles, f.name) for f in fields(roles)}
    if layout is not None and layout.is_long:
        given["id_col"] = layout.id_name
        if given["time_col"] is None and layout.time_at is not None:
            given["time_col"] = layout.time_name
    elif layout is None and roles.id_col is None and set(LONG) <= set(table.columns):
        given["id_col"] = LONG[0]
    if given["id_col"] == LONG[0] and given["time_col"] is None and LONG[1] in table.columns:
        given["time_col"] = LONG[1]
    if given["id_col"] is not None and given["target"] is None and LONG[2] in table.columns:
        given["target"] = LONG[2]
    named = [*_tuple(given["target"]), *roles.past_covariates, *roles.future_covariates, *roles.static_covariates]
    twice = [c for i, c in enumerate(named) if c in named[:i]]
    if twice:
        raise ValueError(f"the column {twice[0]!r} has more than one role among target and the covariates")
    wanted = [*named, *([] if given["id_col"] is None else [given["id_col"]])]
    lacking = [c for c in wanted if c not in table.columns]
    if lacking and layout is None:
        raise ValueError(f"the frame lacks the columns {lacking}; its columns are {list(table.columns)}")
    if roles.static_covariates and given["id_col"] is None:
        raise ValueError("static_covariates tell series apart, so they need a long frame: name its ids with id_col=")
    return Roles(**given)


def _tuple(names) -> tuple:
    return () if names is None else tuple(names) if isinstance(names, list | tuple | np.ndarray) else (names,)


def _columns(table, roles: Roles, time_at, layout, *, other_columns: bool) -> tuple[tuple, tuple]:
    """Return the numeric columns in their order, and the targets among them."""
    covariates = (*roles.past_covariates, *roles.future_covariates)
    taken = {*covariates, *roles.static_covariates, roles.id_col}
    if time_at is not None:
        taken.add(table.columns[time_at])
    rest = tuple(c for c in table.columns if c not in taken)
    targets = rest if roles.target is None else _tuple(roles.target)
    if layout is not None and not other_columns:
        targets = layout.columns
        lacking = [c for c in (*targets, *covariates) if c not in table.columns]
        # With named targets, further columns of a frame have no role and do no harm.
        new = [c for c in rest if c not in targets] if roles.target is None else []
        if lacking or new:
            told = [f"lacks {lacking}"] * bool(lacking) + [f"has {new} besides"] * bool(new)
            n_seen = len(targets) + len(covariates)
            n_here = n_seen - len(lacking) + len(new)
            raise ValueError(
                f"the frame {' and '.join(told)}: fit saw {n_seen} columns {[*targets, *covariates]}, this frame has "
                f"{n_here}; give the same columns, or fit again"
            )
    if not targets:
        raise ValueError("the frame has no column to forecast beside the times and covariates")
    return (*targets, *covariates), targets


def _split_by_series(times, values, static, codes, ids, freq, *, inferred) -> tuple[list[Series], Any]:
    """Sort the rows of each series by time, find the frequency they share, and put missing rows in.

    Rows of a coarser frequency than one that `fit` inferred are refused, since most of them would count as missing.
    """
    order = np.argsort(codes, kind="stable")
    parts = []
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        mine = times[rows] if len(rows) < len(times) or len(ids) > 1 else times
        if not mine.is_monotonic_increasing:
            by_time = mine.argsort()
            mine, rows = mine[by_time], rows[by_time]
        parts.append((mine, rows))
    longest = max(range(len(parts)), key=lambda i: len(parts[i][0]))
    series: list[Any] = [None] * len(parts)
    steps = []
    for i in (longest, *(i for i in range(len(parts)) if i != longest)):
        mine, rows = parts[i]
        try:
            grid, places, freq = regular_grid(mine, freq)
        except ValueError as error:
            if len(ids) == 1:
                raise
            raise ValueError(f"series {ids[i]!r}: {error}") from error
        steps.append(1 if places is None else even_step(places))
        found = values if len(parts) == 1 and np.array_equal(rows, np.arange(len(values))) else values[rows]
        if places is not None:
            whole = np.full((len(grid), values.shape[1]), np.nan)
            whole[places] = found
            found = whole
        odd = np.flatnonzero((static[rows] != static[rows[0]]).any(1))
        if len(odd) or np.isnan(static[rows[0]]).any():
            raise ValueError(f"the static covariates of series {ids[i]!r} are missing or change in the course of it")
        series[i] = Series(ids[i], grid, found, static[rows[0]])
    if inferred and min(steps) > 1:
        raise ValueError(
            f"the rows are {min(steps)} steps apart, each of the frequency {freq!r} that fit saw; give rows of that "
            f"frequency, or set freq={freq!r} if those between are missing"
        )
    return series, freq

"""Reading frames for the commands, and writing what they return."""

import json
import sys
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


def print_json(document: dict[str, Any]) -> None:
    """Print one document on stdout, with the version of its keys."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, ensure_ascii=False, default=str))


def read_table(source: str, time_col: str | None):
    """Read a frame from a file, from stdin, or from the data sets.

    Parameters
    ----------
    source : str
        A CSV (also .gz) or Parquet file, ``-`` for CSV on stdin, or the name of a data set.
    time_col : str or None
        The column of times; by default the first column, if it is not numeric and parses as times.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    FileNotFoundError
        If there is neither such a file nor such a data set.
    ValueError
        If the file is empty or not a table.
    """
    import pandas as pd

    from ssmseq.datasets import list_datasets

    if source in {entry["name"] for entry in list_datasets()} and not Path(source).exists():
        return fetch_frame(source)
    if source != "-" and not Path(source).is_file():
        names = ", ".join(entry["name"] for entry in list_datasets())
        raise FileNotFoundError(f"there is no file {source!r}, and the data sets are {names}")
    try:
        if source.endswith((".parquet", ".pq")):
            return pd.read_parquet(source)
        frame = pd.read_csv(sys.stdin if source == "-" else source)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{'stdin' if source == '-' else source} is not a table: {error}") from error
    return _parse_times(frame, time_col)


def fetch_frame(name: str):
    """Return the frame of a data set by its name, downloading it where it is missing."""
    from ssmseq.datasets import fetch_ett, fetch_exchange_rate, fetch_national_illness, fetch_weather

    if name.startswith("ETT"):
        return fetch_ett(variant=name.removeprefix("ETT")).frame  # type: ignore[arg-type]
    fetchers = {
        "weather": fetch_weather,
        "exchange_rate": fetch_exchange_rate,
        "national_illness": fetch_national_illness,
    }
    return fetchers[name]().frame


def write_csv(frame, output: str | None) -> None:
    """Write a frame as CSV to a file, or to stdout; an index that holds times becomes the first column."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        frame = frame.to_pandas() if hasattr(frame, "to_pandas") else pd.DataFrame(frame)
    timed = isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex)
    frame.to_csv(sys.stdout if output is None else output, index=timed)


def _parse_times(frame, time_col: str | None):
    import pandas as pd

    first = frame.columns[0]
    column = first if time_col is None else time_col
    if column not in frame.columns or pd.api.types.is_numeric_dtype(frame[column]):
        return frame
    try:
        return frame.assign(**{column: pd.to_datetime(frame[column])})
    except (ValueError, TypeError) as error:
        if time_col is None:
            return frame  # the estimator then names the column that is not numeric
        raise ValueError(f"column {column!r} does not hold times: {error}") from error

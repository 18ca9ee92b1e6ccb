"""Tables in and out: CSV, Parquet, stdin, or a benchmark data set by its name; pandas frames inside."""

import contextlib
import os
import sys
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmseq.cli.contract import DataMissingError
from ssmseq.datasets import files

if TYPE_CHECKING:
    import pandas as pd

PARQUET = (".parquet", ".pq")


def read_table(
    source: str, time_col: str | None = None, id_col: str | None = None, *, quiet: bool = False
) -> "pd.DataFrame":
    """Read a table, with its times parsed.

    Parameters
    ----------
    source : str
        Path of a CSV file (also compressed) or a Parquet file, "-" for CSV on stdin, or the name of a data set.
    time_col : str, optional
        Column of the times. Without it, the first column counts as times if it is not numeric and parses as dates.
    id_col : str, optional
        Column of the ids of a long table, which are no dates, whatever they look like; "unique_id" needs no word.
    quiet : bool
        Download without a word.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    DataMissingError
        If there is no such file or data set, or the copy of a data set has a wrong checksum.
    ValueError
        If the file cannot be read as a table.
    """
    if source in files.registry():
        frame = _read_dataset(source, quiet)
        return frame.reset_index() if time_col is not None and time_col == frame.index.name else frame
    if source != "-" and not Path(source).is_file():
        raise DataMissingError(
            f"there is no file {source!r}, nor a data set of that name; those are {', '.join(files.registry())}"
        )
    try:
        frame = _read_file(source)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        where = "stdin" if source == "-" else source
        raise ValueError(f"{where} cannot be read as a table: {error}") from error
    first = frame.columns[0] if len(frame.columns) else None
    return frame if time_col is not None or first in (id_col, "unique_id") else _parse_first_column(frame)


@contextlib.contextmanager
def fetching(*, quiet: bool):
    """Surround the fetching of a known data set: a wrong checksum becomes `DataMissingError`; pooch may be silenced."""
    with contextlib.ExitStack() as stack:
        if quiet:
            import pooch

            logger = pooch.get_logger()
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel("ERROR")
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            yield
        except ValueError as error:  # the name is known, so it is the content that is wrong
            raise DataMissingError(str(error)) from error


def write_table(table: "pd.DataFrame", path: str | None) -> None:
    """Write a table as CSV on stdout, or to a file: Parquet by its suffix, otherwise CSV."""
    if path is not None and Path(path).suffix in PARQUET:
        table.to_parquet(path, index=False)
    else:
        table.to_csv(sys.stdout if path is None else path, index=False)


def with_time_column(forecast: Any, columns) -> "pd.DataFrame":
    """Make a pandas frame of a forecast in any library, with its time stamps, if it has any, in the first column."""
    import pandas as pd

    if not hasattr(forecast, "columns"):  # an array: the model was fitted on one
        return pd.DataFrame(forecast, columns=[str(c) for c in columns])
    if not isinstance(forecast, pd.DataFrame):
        return _from_polars(forecast)
    if not isinstance(forecast.index, pd.DatetimeIndex | pd.PeriodIndex):
        return forecast
    return forecast.rename_axis(index=forecast.index.name or "time").reset_index()


def _read_dataset(name: str, quiet: bool) -> "pd.DataFrame":
    from ssmseq import datasets

    with fetching(quiet=quiet):
        if name.startswith("M4_hourly"):  # the file has one series a row
            return datasets.fetch_m4_hourly()[name.removeprefix("M4_hourly_")]
        return datasets.fetch_dataset(name).frame


def _read_file(source: str) -> "pd.DataFrame":
    import pandas as pd

    if source == "-":
        return pd.read_csv(sys.stdin)
    return _read_parquet(source) if Path(source).suffix in PARQUET else pd.read_csv(source)


def _read_parquet(path: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except ImportError as missing:
        try:
            import polars
        except ImportError:
            raise ImportError("reading Parquet needs pyarrow or polars: pip install pyarrow") from missing
        return _from_polars(polars.read_parquet(path))


def _from_polars(frame) -> "pd.DataFrame":
    import pandas as pd

    # polars' own to_pandas needs pyarrow, and its to_numpy loses time zones.
    columns = {s.name: s.to_numpy() if s.dtype.is_numeric() else s.to_list() for s in frame.get_columns()}
    return pd.DataFrame(columns)


def _parse_first_column(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Turn the first column into time stamps if it holds some; what is wrong with any other text, `fit` says."""
    import pandas as pd

    if not len(frame.columns) or not isinstance(frame.index, pd.RangeIndex) or not _is_text(frame.iloc[:, 0]):
        return frame
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # text that is no date is tried in vain, and that is all
            times = pd.to_datetime(frame.iloc[:, 0])
    except (ValueError, TypeError):
        return frame
    return pd.concat([times, frame.iloc[:, 1:]], axis=1)


def _is_text(column: "pd.Series") -> bool:
    import pandas as pd

    return pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)

"""A data set by its registered name: its file is found, checked, and read by the layout that the registry gives it."""

import io
import os
import zipfile
import zlib
from typing import TYPE_CHECKING

from ssmseq.datasets.files import DatasetFile, lookup, obtain

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from sklearn.utils import Bunch


def fetch_dataset(
    name: str, *, data_home: str | os.PathLike | None = None, download_if_missing: bool = True
) -> "Bunch":
    """Load a data file by its registered name.

    Parameters
    ----------
    name : str
        A name that `list_datasets` gives, such as "ETTh1" or "PEMS04".
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        As from the function that is named after the data set; see `fetch_ett`. The two files of M4 are given as they
        are, each with one series a row, NaN after its last value, and no `splits`: `fetch_m4_hourly` joins them.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded. It is an OSError.
    ValueError
        If the name is unknown, `data_home` is not a folder, or a file's content has another checksum.
    """
    from sklearn.utils import Bunch

    entry = lookup(name)
    path, content = obtain(name, data_home=data_home, download_if_missing=download_if_missing)
    return Bunch(
        frame=read_frame(entry, content),
        splits=entry.splits,
        DESCR=entry.description,
        licence=entry.licence,
        citation=entry.citation,
        source=str(path),
    )


def read_frame(entry: DatasetFile, content: bytes) -> "pd.DataFrame":
    """Return a file's values as float64; ValueError unless there are as many rows and columns as registered."""
    read = {"dated": _read_dated, "bare": _read_bare, "series": _read_series, "npz": _read_npz}[entry.layout]
    frame = read(entry, content).astype("float64")
    if frame.shape != (entry.rows, entry.columns):
        raise ValueError(
            f"{entry.file} holds {frame.shape[0]} rows of {frame.shape[1]} values, but {entry.rows} rows of "
            f"{entry.columns} are registered under its checksum. The entry {entry.name!r} of ssmseq/datasets/"
            "registry.toml is wrong: correct it there, or report it."
        )
    return frame


def count_rows(entry: DatasetFile, content: bytes) -> int:
    """Return the number of rows; ValueError if the content is unreadable."""
    if entry.layout == "npz":
        return len(_array(entry, content))
    return len(content.splitlines()) - (entry.layout != "bare")


def _read_dated(entry: DatasetFile, content: bytes) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(content), index_col="date")
    frame.columns = frame.columns.str.strip()
    frame.index = pd.DatetimeIndex(pd.to_datetime(frame.index, format=entry.date_format), name="date")
    return frame


def _read_bare(entry: DatasetFile, content: bytes) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(io.BytesIO(content), header=None).rename(columns=str)


def _read_series(entry: DatasetFile, content: bytes) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(io.BytesIO(content), index_col=0).rename_axis("unique_id")


def _read_npz(entry: DatasetFile, content: bytes) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(_array(entry, content)[:, :, 0]).rename(columns=str)


def _array(entry: DatasetFile, content: bytes) -> "np.ndarray":
    import numpy as np

    try:
        with np.load(io.BytesIO(content)) as archive:
            array = archive["data"]
    except (KeyError, TypeError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{entry.file} is no npz file with an array 'data' ({error}): replace it.") from error
    if array.ndim != 3:
        raise ValueError(f"'data' in {entry.file} has shape {array.shape}, not (rows, columns, channels): replace it.")
    return array

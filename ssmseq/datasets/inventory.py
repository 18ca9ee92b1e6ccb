"""What data sets there are, which of them lie on this machine, and whether a copy is intact."""

import os
from typing import Any

from ssmseq.datasets import files
from ssmseq.datasets.loading import count_rows


def list_datasets(*, data_home: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """List the registered data files and where each was found; nothing is read or downloaded.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search before the one in SSMSEQ_DATA and the cache.

    Returns
    -------
    list of dict
        For each file `name`, `rows` and `columns` (of values; the date is not counted), `bytes` (uncompressed),
        `licence`, `url`, and `path`: the file that would be read as a string, or None where none was found.

    Raises
    ------
    ValueError
        If `data_home` is not a folder.

    Examples
    --------
    >>> from ssmseq.datasets import list_datasets
    >>> [entry["name"] for entry in list_datasets()][:4]
    ['ETTh1', 'ETTh2', 'ETTm1', 'ETTm2']
    """
    found = files.locate(files.registry().values(), data_home=data_home)
    return [
        {
            "name": entry.name,
            "rows": entry.rows,
            "columns": entry.columns,
            "bytes": entry.bytes,
            "licence": entry.licence,
            "url": entry.url,
            "path": str(found[entry.name]) if entry.name in found else None,
        }
        for entry in files.registry().values()
    ]


def verify_dataset(name: str, *, data_home: str | os.PathLike | None = None) -> dict[str, Any]:
    """Recompute the checksum and the number of rows of a data file; nothing is downloaded.

    Parameters
    ----------
    name : str
        A name that `list_datasets` gives, such as "ETTh1".
    data_home : path-like, optional
        A folder to search before the one in SSMSEQ_DATA and the cache.

    Returns
    -------
    dict
        `name`, `path`, `sha256` and `rows` as found, `expected_sha256` and `expected_rows` as registered, and `ok`:
        whether the rows agree and the checksum is the registered one or that of a copy with other line ends.

    Raises
    ------
    DatasetNotFoundError
        If no copy was found.
    ValueError
        If the name is unknown, `data_home` is not a folder, or the file is damaged gzip or npz.
    """
    entry = files.lookup(name)
    path = files.locate([entry], data_home=data_home).get(name)
    if path is None:
        raise files.DatasetNotFoundError(
            f"No copy of {entry.file} was found to verify: fetch {name} first, or set SSMSEQ_DATA to its folder."
        )
    content = files.read_content(path)
    sha256 = files.sha256_of(content)
    rows = count_rows(entry, content)
    return {
        "name": name,
        "path": str(path),
        "sha256": sha256,
        "expected_sha256": entry.sha256,
        "rows": rows,
        "expected_rows": entry.rows,
        "ok": entry.accepts(sha256) and rows == entry.rows,
    }

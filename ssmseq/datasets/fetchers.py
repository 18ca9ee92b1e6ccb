"""The forecasting benchmarks as data frames with their standard splits.

Splits follow the protocol that the long-horizon forecasting literature shares since Informer [1]_ and Autoformer [2]_,
but the parts given here do not overlap: whoever makes windows adds the look-back rows before a part's first target.

References
----------
.. [1] Zhou, H. et al. (2021). Informer: Beyond efficient transformer for long sequence time-series forecasting. AAAI.
   https://arxiv.org/abs/2012.07436
.. [2] Wu, H. et al. (2021). Autoformer: Decomposition transformers with auto-correlation for long-term series
   forecasting. NeurIPS. https://arxiv.org/abs/2106.13008
"""

import io
import os
from typing import TYPE_CHECKING, Literal

from ssmseq.datasets.files import lookup, obtain

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.utils import Bunch

_ETT_NAMES = {"h1": "ETTh1", "h2": "ETTh2", "m1": "ETTm1", "m2": "ETTm2"}


def fetch_ett(
    variant: Literal["h1", "h2", "m1", "m2"] = "h1",
    *,
    data_home: str | os.PathLike | None = None,
    download_if_missing: bool = True,
) -> "Bunch":
    """Load an electricity transformer series (ETT): six loads and the oil temperature "OT".

    Parameters
    ----------
    variant : {"h1", "h2", "m1", "m2"}, default="h1"
        Transformer 1 or 2, hourly (h, 17,420 rows) or every 15 minutes (m, 69,680 rows).
    data_home : path-like, optional
        A folder to search first, recursively, for the file or its ``.gz``. Then follow the folder that the environment
        variable SSMSEQ_DATA names, and the cache.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        `frame` : DataFrame of shape (n_rows, 7), float64, with a DatetimeIndex "date" without a frequency;
        `splits` : dict of (start, stop) row numbers of "train", "validation" and "test", without look-back overlap;
        `DESCR`, `licence`, `citation` : str;
        `source` : path of the file that was read.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded. It is an OSError.
    ValueError
        If `variant` is unknown, `data_home` is not a folder, or a file's content has another checksum.

    Notes
    -----
    The licence, CC BY-ND 4.0, permits verbatim copies only: do not publish a changed file.

    References
    ----------
    .. [1] Zhou, H. et al. (2021). Informer: Beyond efficient transformer for long sequence time-series forecasting.
       AAAI. https://arxiv.org/abs/2012.07436
    """
    if variant not in _ETT_NAMES:
        raise ValueError(f"variant={variant!r} is unknown; choose one of {', '.join(_ETT_NAMES)}.")
    return _fetch(_ETT_NAMES[variant], data_home, download_if_missing)


def fetch_weather(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the Jena weather series: 21 variables every 10 minutes of the year 2020.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`; `frame` has shape (52696, 21).

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    The values are those of the published file, since every published result was computed on them:

    - 81 values are -9999, the station's mark of a missing value, all in training rows. They inflate the training
      standard deviation of "OT" from 18 to 384, so that on standardised data this variate hardly counts.
    - The row of 2020-05-12 06:00 stands twice, and nine rows are missing before 2020-05-29 11:10: `frame.index` is
      neither unique nor regular.
    - Three column names hold U+FFFD in place of a character of their unit. The file's line ends are CRLF.

    References
    ----------
    .. [1] Wu, H. et al. (2021). Autoformer: Decomposition transformers with auto-correlation for long-term series
       forecasting. NeurIPS. https://arxiv.org/abs/2106.13008
    """
    return _fetch("weather", data_home, download_if_missing)


def fetch_exchange_rate(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the daily exchange rates of eight currencies in US dollars.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`, but `frame`, of shape (7588, 8), has a RangeIndex and the columns "0" to "7": the file has
        neither dates nor a header.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    Repeating the last value is hard to beat on this set, so report that baseline beside every model.

    References
    ----------
    .. [1] Lai, G. et al. (2018). Modeling long- and short-term temporal patterns with deep neural networks. SIGIR.
       https://arxiv.org/abs/1703.07015
    """
    return _fetch("exchange_rate", data_home, download_if_missing)


def fetch_national_illness(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the weekly counts of influenza-like illness (ILI) in the United States, 2002 to 2020.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`; `frame` has shape (966, 7).

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    The literature uses a look-back of 36 or 104 rows and horizons of 24, 36, 48 and 60. Its older loaders dropped the
    last incomplete batch of the test windows, which changes the results visibly on a test part of 193 rows.

    References
    ----------
    .. [1] Wu, H. et al. (2021). Autoformer: Decomposition transformers with auto-correlation for long-term series
       forecasting. NeurIPS. https://arxiv.org/abs/2106.13008
    """
    return _fetch("national_illness", data_home, download_if_missing)


def _fetch(name: str, data_home: str | os.PathLike | None, download_if_missing: bool) -> "Bunch":
    from sklearn.utils import Bunch

    entry = lookup(name)
    path, content = obtain(name, data_home=data_home, download_if_missing=download_if_missing)
    return Bunch(
        frame=_read_dated(content) if entry.header else _read_bare(content),
        splits=entry.splits,
        DESCR=entry.description,
        licence=entry.licence,
        citation=entry.citation,
        source=str(path),
    )


def _read_dated(content: bytes) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(content), index_col="date").astype("float64")
    frame.index = pd.DatetimeIndex(pd.to_datetime(frame.index, format="%Y-%m-%d %H:%M:%S"), name="date")
    return frame


def _read_bare(content: bytes) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(content), header=None).astype("float64")
    frame.columns = pd.Index([str(column) for column in frame.columns])
    return frame

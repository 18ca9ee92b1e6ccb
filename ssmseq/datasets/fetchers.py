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

import os
from typing import TYPE_CHECKING, Literal

from ssmseq.datasets.loading import fetch_dataset

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.utils import Bunch

_ETT_NAMES = {"h1": "ETTh1", "h2": "ETTh2", "m1": "ETTm1", "m2": "ETTm2"}
_MARKETS = ("NP", "PJM")


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
    return fetch_dataset(_ETT_NAMES[variant], data_home=data_home, download_if_missing=download_if_missing)


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
    return fetch_dataset("weather", data_home=data_home, download_if_missing=download_if_missing)


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
    return fetch_dataset("exchange_rate", data_home=data_home, download_if_missing=download_if_missing)


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
    return fetch_dataset("national_illness", data_home=data_home, download_if_missing=download_if_missing)


def fetch_epf(
    market: Literal["NP", "PJM"] = "NP",
    *,
    data_home: str | os.PathLike | None = None,
    download_if_missing: bool = True,
) -> "Bunch":
    """Load hourly day-ahead electricity prices (EPF) with two forecasts that are known before them.

    Parameters
    ----------
    market : {"NP", "PJM"}, default="NP"
        Nord Pool, or the zone COMED of Pennsylvania-New Jersey-Maryland.
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`; `frame` has shape (52416, 3): two forecasts for the hour, then the price "OT".

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `market` is unknown, `data_home` is not a folder, or a file's content has another checksum.

    Notes
    -----
    The two forecasts, of load and wind power (NP) or of two loads (PJM), are published on the day before, so a
    forecaster may take them as future covariates. The literature forecasts "OT" alone, 24 rows from 168.

    The hours are local time, made regular by the compilers: the hour that daylight saving skips is interpolated, the
    one that it repeats averaged.

    References
    ----------
    .. [1] Lago, J. et al. (2021). Forecasting day-ahead electricity prices: A review of state-of-the-art algorithms,
       best practices and an open-access benchmark. Applied Energy 293, 116983.
       https://doi.org/10.1016/j.apenergy.2021.116983
    """
    if market not in _MARKETS:
        raise ValueError(f"market={market!r} is unknown; choose one of {', '.join(_MARKETS)}.")
    return fetch_dataset(f"EPF_{market}", data_home=data_home, download_if_missing=download_if_missing)


def fetch_m4_hourly(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the 414 hourly series of the M4 competition, of 700 or 960 training rows and 48 test rows.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether files found nowhere are downloaded into the cache.

    Returns
    -------
    sklearn.utils.Bunch
        `train`, `test` : DataFrames of 353,500 and 19,872 rows in the long format, with the columns "unique_id" (str,
        "H1" to "H414"), "ds" (int64) and "y" (float64);
        `DESCR`, `licence`, `citation` : str;
        `sources` : paths of the files that were read, training rows first.

    Raises
    ------
    DatasetNotFoundError
        If a file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    The source gives no dates: "ds" counts the rows of each series from 1, and the test rows go on where the training
    rows end. The competition scored with the sMAPE and with the MASE, whose scale is the mean absolute error of the
    seasonal naive forecast of season 24 within the training rows of a series.

    References
    ----------
    .. [1] Makridakis, S., Spiliotis, E., Assimakopoulos, V. (2020). The M4 Competition: 100,000 time series and 61
       forecasting methods. International Journal of Forecasting 36(1), 54-74.
       https://doi.org/10.1016/j.ijforecast.2019.04.014
    """
    from sklearn.utils import Bunch

    train, test = (
        fetch_dataset(f"M4_hourly_{part}", data_home=data_home, download_if_missing=download_if_missing)
        for part in ("train", "test")
    )
    return Bunch(
        train=_long_format(train.frame, 0),
        test=_long_format(test.frame, train.frame.notna().sum(axis=1).loc[test.frame.index]),
        DESCR=train.DESCR,
        licence=train.licence,
        citation=train.citation,
        sources=[train.source, test.source],
    )


def _long_format(wide: "pd.DataFrame", n_before: "pd.Series | int") -> "pd.DataFrame":
    """Turn rows of series, padded with NaN, into "unique_id", "ds" and "y"; "ds" counts on from `n_before`."""
    import numpy as np
    import pandas as pd

    present = wide.notna().to_numpy()
    ds = np.reshape(n_before, (-1, 1)) + present.cumsum(axis=1)
    ids = np.repeat(wide.index.to_numpy(), present.sum(axis=1))
    return pd.DataFrame({"unique_id": ids, "ds": ds[present], "y": wide.to_numpy()[present]})

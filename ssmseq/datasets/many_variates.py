"""The forecasting benchmarks of 137 to 883 variates, as data frames with their standard splits.

The splits and what they leave to whoever makes windows are those of `ssmseq.datasets.fetchers`.
"""

import os
from typing import TYPE_CHECKING, Literal

from ssmseq.datasets.loading import fetch_dataset

if TYPE_CHECKING:
    from sklearn.utils import Bunch

_DISTRICTS = ("03", "04", "07", "08")


def fetch_electricity(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the hourly electricity consumption of 321 clients (ECL).

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache (96 MB).

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`; `frame` has shape (26304, 321) and the columns "0" to "319" and "OT", in kWh by the
        compilers' word.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    The measurements are of 2012 to 2014, but the file counts its hours from 2016-07-01 02:00: the weekdays, seasons and
    holidays of its index are not those of the measurements.

    References
    ----------
    .. [1] Lai, G. et al. (2018). Modeling long- and short-term temporal patterns with deep neural networks. SIGIR.
       https://arxiv.org/abs/1703.07015
    .. [2] Wu, H. et al. (2021). Autoformer: Decomposition transformers with auto-correlation for long-term series
       forecasting. NeurIPS. https://arxiv.org/abs/2106.13008
    """
    return fetch_dataset("electricity", data_home=data_home, download_if_missing=download_if_missing)


def fetch_traffic(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the hourly road occupancy at 862 detectors of the San Francisco Bay area.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache (136 MB).

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`; `frame` has shape (17544, 862) and the columns "0" to "860" and "OT", as a share from 0 to
        1.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    The measurements are of 2015 and 2016, but the file counts its hours from 2016-07-01 02:00: the weekdays, seasons
    and holidays of its index are not those of the measurements.

    References
    ----------
    .. [1] Lai, G. et al. (2018). Modeling long- and short-term temporal patterns with deep neural networks. SIGIR.
       https://arxiv.org/abs/1703.07015
    .. [2] Wu, H. et al. (2021). Autoformer: Decomposition transformers with auto-correlation for long-term series
       forecasting. NeurIPS. https://arxiv.org/abs/2106.13008
    """
    return fetch_dataset("traffic", data_home=data_home, download_if_missing=download_if_missing)


def fetch_solar(*, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> "Bunch":
    """Load the power of 137 photovoltaic plants in Alabama, every 10 minutes of the year 2006.

    Parameters
    ----------
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache (180 MB there).

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`, but `frame`, of shape (52560, 137), has a RangeIndex and the columns "0" to "136": the file
        has neither dates nor a header. The source states no unit.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `data_home` is not a folder or a file's content has another checksum.

    Notes
    -----
    The series are simulated from weather records, and zero at night: a metric relative to the value is undefined there.

    References
    ----------
    .. [1] Lai, G. et al. (2018). Modeling long- and short-term temporal patterns with deep neural networks. SIGIR.
       https://arxiv.org/abs/1703.07015
    """
    return fetch_dataset("solar", data_home=data_home, download_if_missing=download_if_missing)


def fetch_pems(
    variant: Literal["03", "04", "07", "08"] = "03",
    *,
    data_home: str | os.PathLike | None = None,
    download_if_missing: bool = True,
) -> "Bunch":
    """Load the traffic flow at the detectors of one Californian district (PEMS), every 5 minutes.

    Parameters
    ----------
    variant : {"03", "04", "07", "08"}, default="03"
        District 3 (26,208 rows of 358 detectors), 4 (16,992 of 307), 7 (28,224 of 883) or 8 (17,856 of 170).
    data_home : path-like, optional
        A folder to search first, as in `fetch_ett`.
    download_if_missing : bool, default=True
        Whether a file found nowhere is downloaded into the cache (16 to 44 MB).

    Returns
    -------
    sklearn.utils.Bunch
        As from `fetch_ett`, but `frame` has a RangeIndex and the columns "0", "1", ...: the file has neither dates nor
        names. The values are vehicles in 5 minutes, the first of the file's channels.

    Raises
    ------
    DatasetNotFoundError
        If the file was found nowhere and was not, or could not be, downloaded.
    ValueError
        If `variant` is unknown, `data_home` is not a folder, or a file's content has another checksum.

    Notes
    -----
    The literature forecasts 12, 24, 48 or 96 rows. Here alone it takes no look-back rows from before a part: with a
    look-back of L rows the first L rows of the test part are never forecast, so there are L test windows fewer.

    References
    ----------
    .. [1] Guo, S. et al. (2019). Attention based spatial-temporal graph convolutional networks for traffic flow
       forecasting. AAAI. https://doi.org/10.1609/aaai.v33i01.3301922
    .. [2] Song, C. et al. (2020). Spatial-temporal synchronous graph convolutional networks: A new framework for
       spatial-temporal network data forecasting. AAAI. https://doi.org/10.1609/aaai.v34i01.5438
    .. [3] Liu, Y. et al. (2024). iTransformer: Inverted transformers are effective for time series forecasting. ICLR.
       https://arxiv.org/abs/2310.06625
    """
    if variant not in _DISTRICTS:
        raise ValueError(f"variant={variant!r} is unknown; choose one of {', '.join(_DISTRICTS)}.")
    return fetch_dataset(f"PEMS{variant}", data_home=data_home, download_if_missing=download_if_missing)

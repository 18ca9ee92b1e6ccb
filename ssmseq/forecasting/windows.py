"""Sliding windows over one series, gathered a batch at a time from a view: no copy per window, no Python per window."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

CALENDAR = ("hour", "day of week", "day of month", "day of year")


class Windows(Dataset):
    """Every window of a series, one row apart.

    Parameters
    ----------
    series : array (T, C)
        Variates, then covariates, in columns.
    n_targets : int
        The first columns, which are also forecast.
    lookback, horizon : int
        In rows. There are ``T - lookback - horizon + 1`` windows.
    dtype : numpy dtype
        Of the values.

    Attributes
    ----------
    series : Tensor (T, C)
        The whole series.
    view : Tensor (windows, C, lookback + horizon)
        All windows; it shares the memory of `series`.
    """

    def __init__(self, series: np.ndarray, *, n_targets: int, lookback: int, horizon: int, dtype: Any = np.float32):
        self.series = torch.from_numpy(np.ascontiguousarray(series, dtype=dtype))
        self.view = self.series.unfold(0, lookback + horizon, 1)
        self.n_targets, self.lookback = n_targets, lookback

    def __len__(self) -> int:
        return self.view.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices) -> tuple[Tensor, Tensor]:
        """Return the inputs (B, C, lookback) and the targets (B, n_targets, horizon) of some windows."""
        batch = self.view[torch.as_tensor(indices)]
        return batch[..., : self.lookback], batch[:, : self.n_targets, self.lookback :]


def calendar_features(times: pd.DatetimeIndex | pd.PeriodIndex) -> np.ndarray:
    """Return (T, 4): hour, day of week, day of month and day of year, each scaled to [-0.5, 0.5].

    The four are those of S-Mamba's code, whatever the frequency of the data (for daily data the hour is constant).
    """
    columns = [times.hour / 23, times.day_of_week / 6, (times.day - 1) / 30, (times.day_of_year - 1) / 365]
    return np.column_stack(columns) - 0.5

"""Second moments of every window of a series, without making any window.

Least squares over all windows of all variates needs one matrix only, the mean outer product of a window with itself.
Its first row is found by one pass over the series for each lag. The entries along a diagonal differ by the rows that
enter and leave at the two ends of the series, so every other row follows from the one above it. Time grows with T V S
for T rows, V variates and windows of S rows, and memory does not grow with the number of windows.
"""

from collections.abc import Sequence

import numpy as np

BLOCK = 2**17  # values that pass through a processor's cache at a time


def centred_moments(blocks: Sequence[np.ndarray], lookback: int, horizon: int) -> np.ndarray:
    r"""Return the mean of :math:`(z - \bar x)(z - \bar x)^\top` over all windows z of all columns.

    Here :math:`\bar x` is the mean of the first `lookback` values of the window. Adding a constant to a column changes
    nothing.

    Parameters
    ----------
    blocks : sequence of array (T, V)
        Series, rows one after another. Those shorter than ``lookback + horizon`` have no window; one at least has.
    lookback, horizon : int
        In rows.

    Returns
    -------
    array (lookback + horizon, lookback + horizon)
        In float64.
    """
    size = lookback + horizon
    blocks = [block for block in blocks if len(block) >= size]
    n_windows = sum((len(block) - size + 1) * block.shape[1] for block in blocks)
    moments = sum((_moments(block, size) for block in blocks), np.zeros((size, size))) / n_windows
    with_mean = moments[:lookback].mean(0)
    return moments - with_mean[:, None] - with_mean + with_mean[:lookback].mean()


def _moments(series: np.ndarray, size: int) -> np.ndarray:
    """Return the sum of the outer products of all windows (size,), after each column is brought to a mean of zero."""
    shift = series.mean(0, dtype=np.float64)
    head, tail = series[: size - 1] - shift, series[-size + 1 :] - shift
    change = tail @ tail.T - head @ head.T
    moments = np.empty((size, size))
    moments[0] = _lagged_products(series, size, shift)
    for i in range(size - 1):
        moments[i + 1, i + 1 :] = moments[i, i:-1] + change[i, i:]
    upper = np.triu(moments)
    return upper + np.triu(upper, 1).T


def _lagged_products(series: np.ndarray, size: int, shift: np.ndarray) -> np.ndarray:
    """Return, for each lag below `size`, the sum over windows of their first value times the value `lag` rows on."""
    n_windows, n_columns = len(series) - size + 1, series.shape[1]
    n_rows = max(1, BLOCK // n_columns)
    sums = np.zeros(size)
    for start in range(0, n_windows, n_rows):
        stop = min(start + n_rows, n_windows)
        values = (series[start : stop + size - 1] - shift).ravel()
        first = values[: (stop - start) * n_columns]
        for lag in range(size):
            sums[lag] += first @ values[lag * n_columns : lag * n_columns + len(first)]
    return sums

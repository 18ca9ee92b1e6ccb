"""Windows of one or more series: all of them, none across a border, as views, with gaps filled from within."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssmseq.forecasting.windows import Windows


def numbered(*lengths: int, n_columns: int = 1) -> list[np.ndarray]:
    """Series whose values all differ, so that each tells where it came from."""
    blocks, first = [], 0
    for n_rows in lengths:
        blocks.append(np.arange(first, first + n_rows * n_columns, dtype=np.float64).reshape(n_rows, n_columns))
        first += n_rows * n_columns
    return blocks


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    lookback=st.integers(1, 12),
    horizon=st.integers(1, 12),
    spare=st.lists(st.integers(-5, 20), min_size=1, max_size=4),
)
def test_windows_are_all_windows_with_the_right_rows(data, lookback, horizon, spare):
    assume(max(spare) >= 0)
    n_columns = data.draw(st.integers(1, 5))
    n_targets = data.draw(st.integers(1, n_columns))
    n_future = data.draw(st.integers(0, n_columns - n_targets))
    size = lookback + horizon
    series = numbered(*(max(1, size + s) for s in spare), n_columns=n_columns)
    static = np.arange(2.0 * len(series)).reshape(-1, 2)
    options = {"n_targets": n_targets, "n_future": n_future, "lookback": lookback, "horizon": horizon}
    windows = Windows(series, static=static, **options)
    places = [(i, first) for i, x in enumerate(series) for first in range(len(x) - size + 1)]
    assert len(windows) == len(places) == sum(s + 1 for s in spare if s >= 0)
    assert windows.owners.tolist() == [i for i, _ in places]
    chosen = data.draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=8))
    inputs, targets = windows.__getitems__(chosen)
    assert set(inputs) == {"past", "static", *(["future"] if n_future else [])}
    assert inputs["past"].shape == (len(chosen), n_columns - n_future, lookback)
    assert targets.shape == (len(chosen), n_targets, horizon)
    for row, number in enumerate(chosen):
        i, first = places[number]
        rows = series[i][first : first + size]
        np.testing.assert_array_equal(inputs["past"][row], rows[:lookback, : n_columns - n_future].T)
        np.testing.assert_array_equal(inputs["static"][row], static[i])
        if n_future:
            np.testing.assert_array_equal(inputs["future"][row], rows[:, n_columns - n_future :].T)
        np.testing.assert_array_equal(targets[row], rows[lookback:, :n_targets].T)
        one_input, one_target = windows[number]
        assert all(torch.equal(one_input[name], x[row]) for name, x in inputs.items())
        assert torch.equal(one_target, targets[row])


def test_windows_share_one_copy_of_the_series():
    series = np.ones((1000, 3), np.float32)
    windows = Windows([series], n_targets=3, lookback=96, horizon=96)
    assert windows.view.untyped_storage().nbytes() == series.nbytes
    assert windows.view[7].data_ptr() == series[7].ctypes.data
    several = Windows([series[:400], series[400:]], n_targets=3, lookback=96, horizon=96)
    assert several.view.untyped_storage().nbytes() == series.nbytes
    assert several.view[7].data_ptr() == several.series[7].data_ptr()


def test_gaps_are_filled_from_within_the_lookback_and_marked():
    series = numbered(12, n_columns=3)[0]
    series[2, 0] = series[4:, 0] = series[:4, 2] = np.nan
    windows = Windows([series], n_targets=2, lookback=4, horizon=2, dtype=np.float64)
    assert windows.has_gaps
    inputs, targets = windows[0]
    assert inputs["past"].tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [0, 0, 0, 0]]
    assert inputs["missing"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.isnan(targets[0]).all()
    assert targets[1].tolist() == [13, 16]
    inputs, _ = windows[2]
    assert inputs["past"].tolist() == [[9, 9, 9, 9], [7, 10, 13, 16], [14, 14, 14, 17]]
    assert inputs["missing"].tolist() == [[1, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_windows_with_nothing_observed_in_lookback_or_horizon_are_left_out(seed):
    rng = np.random.default_rng(seed)
    blocks = numbered(30, 25, n_columns=3)
    for block in blocks:
        block[rng.random(block.shape) < 0.75] = np.nan
        block[:, 2] = 1.0  # a covariate observes nothing
    windows = Windows(blocks, n_targets=2, lookback=3, horizon=2)
    expected, before = [], 0
    for block in blocks:
        observed = ~np.isnan(block[:, :2]).all(1)
        for first in range(len(block) - 5 + 1):
            if observed[first : first + 3].any() and observed[first + 3 : first + 5].any():
                expected.append(before + first)
        before += len(block)
    assert 0 < len(expected) < 26 + 21
    assert windows.starts.tolist() == expected

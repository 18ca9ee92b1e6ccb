"""Sliding windows over series, gathered a batch at a time from a view: no copy per window, no Python per window."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Windows(Dataset):
    """Every window of one or more series, one row apart.

    Parameters
    ----------
    blocks : sequence of array (T, C)
        The series: variates, past covariates, then future covariates in columns. NaN is missing.
    n_targets : int
        The first columns, V, which are also forecast.
    n_future : int
        The last columns, F, which are known over the horizon.
    lookback, horizon : int
        In rows. A series of T rows has ``T - lookback - horizon + 1`` windows, less those with nothing observed in
        look-back or horizon.
    static : array (series, S), optional
    dtype : numpy dtype
        Of the values.

    Attributes
    ----------
    series : Tensor (T, C)
        All series, one after another.
    view : Tensor (windows, C, lookback + horizon)
        All windows, also those across the border of two series; it shares the memory of `series`.
    starts : Tensor (windows,)
        The rows that windows begin at.
    has_gaps : bool
        Whether anything is missing.
    """

    def __init__(
        self,
        blocks: Sequence[np.ndarray],
        *,
        n_targets: int,
        lookback: int,
        horizon: int,
        n_future: int = 0,
        static: np.ndarray | None = None,
        dtype: Any = np.float32,
    ):
        whole = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        self.series = torch.from_numpy(np.ascontiguousarray(whole, dtype=dtype))
        self.view = self.series.unfold(0, lookback + horizon, 1)
        self.n_targets, self.lookback, self.horizon, self.n_future = n_targets, lookback, horizon, n_future
        self.lengths = [len(block) for block in blocks]
        self.has_gaps = bool(torch.isnan(self.series).any())
        self.starts = self._starts()
        self.static = None if static is None or not static.shape[1] else torch.from_numpy(static.astype(dtype))

    @property
    def owners(self) -> Tensor:
        """Which series each window is of."""
        return self._owners(self.starts)

    def _owners(self, starts: Tensor) -> Tensor:
        return torch.searchsorted(torch.as_tensor(np.cumsum(self.lengths)), starts, right=True)

    def at(self, starts: Tensor) -> "Windows":
        """Return the windows that begin at these rows, whatever they hold."""
        other = copy(self)
        other.starts = starts
        return other

    def _starts(self) -> Tensor:
        size = self.lookback + self.horizon
        ends = np.cumsum(self.lengths)
        ranges = [torch.arange(e - n, e - size + 1) for e, n in zip(ends, self.lengths, strict=True) if n >= size]
        starts = torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)
        if not self.has_gaps:
            return starts
        observed = (~torch.isnan(self.series[:, : self.n_targets])).any(1)
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), observed.cumsum(0)])
        middle = starts + self.lookback
        return starts[(counts[middle] > counts[starts]) & (counts[starts + size] > counts[middle])]

    def blocks(self) -> list[Tensor]:
        """Return the series (T, C) apart."""
        return list(self.series.split(self.lengths))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs, targets = self.__getitems__([index])
        return {name: x[0] for name, x in inputs.items()}, targets[0]

    def __getitems__(self, indices) -> tuple[dict[str, Tensor], Tensor]:
        """Return the inputs of a network and the targets (B, V, H), NaN where missing, of some windows."""
        indices = torch.as_tensor(indices)
        batch = self.view[self.starts[indices]]
        static = None if self.static is None else self.static[self._owners(self.starts[indices])]
        inputs = network_inputs(
            batch,
            static,
            n_targets=self.n_targets,
            n_future=self.n_future,
            lookback=self.lookback,
            has_gaps=self.has_gaps,
        )
        return inputs, batch[:, : self.n_targets, self.lookback :]


def network_inputs(
    batch: Tensor, static: Tensor | None, *, n_targets: int, n_future: int, lookback: int, has_gaps: bool
) -> dict[str, Tensor]:
    """Take windows (B, C, L + H) apart into the inputs that `ssmseq.forecasting.tokens` lists."""
    n_past = batch.shape[1] - n_future
    past = batch[:, :n_past, :lookback]
    inputs = {"past": past}
    if has_gaps:
        missing = torch.isnan(past)
        inputs = {"past": fill_gaps(past, missing), "missing": missing[:, :n_targets].to(past.dtype)}
    if n_future:
        inputs["future"] = batch[:, n_past:]
    if static is not None:
        inputs["static"] = static
    return inputs


def running_maximum(x: Tensor) -> Tensor:
    """Return the largest value so far along the last axis."""
    return x.cummax(-1).values


def fill_gaps(x: Tensor, missing: Tensor, largest: Callable[[Tensor], Tensor] = running_maximum) -> Tensor:
    """Interpolate missing values linearly along the last axis; the ends repeat, and nothing observed becomes 0.

    Only what lies within the window counts, so no value of the horizon leaks into the look-back. `largest` may replace
    `running_maximum` where torch's cummax is not to be had.
    """
    length = x.shape[-1]
    at = torch.arange(length, device=x.device).expand(x.shape)
    before = largest(torch.where(missing, -1, at))
    after = -largest(-torch.where(missing, length, at).flip(-1)).flip(-1)
    first = torch.where(before < 0, after, before).clamp(max=length - 1)
    last = torch.where(after == length, before, after).clamp(min=0)
    known = torch.where(missing, 0.0, x)
    share = (at - first).to(x.dtype) / (last - first).clamp(min=1)
    low, high = known.gather(-1, first), known.gather(-1, last)
    return torch.where(missing, low + (high - low) * share, x)

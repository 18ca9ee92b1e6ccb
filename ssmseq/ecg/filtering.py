"""Resampling, filters and gaps: the numerical steps of `Preprocessing`, on arrays (leads, times)."""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np

HALF_TAPS = 16  # of the resampler on each side, in samples of the lower rate; with the window below 80 dB from 1.2 x
_WINDOW = ("kaiser", 8.0)  # its Nyquist frequency on, and within 0.001 dB up to 0.8 x
_NOTCH_QUALITY = 30.0
_SETTLED = 1e-7  # share of a filter's response that is left when it counts as settled
_LARGEST_FACTOR = 10_000


def resampling_ratio(rate: float, target: float) -> tuple[int, int]:
    """Return the exact (up, down) in lowest terms; ValueError if one is too large for a filter."""
    ratio = Fraction(str(target)) / Fraction(str(rate))
    if max(ratio.numerator, ratio.denominator) > _LARGEST_FACTOR:
        raise ValueError(
            f"resampling from {rate:.12g} to {target:.12g} Hz needs the ratio {ratio}, whose terms are above "
            f"{_LARGEST_FACTOR}: correct the rate, or choose a sampling_rate that shares a factor with it"
        )
    return ratio.numerator, ratio.denominator


def resample(signal: np.ndarray, up: int, down: int) -> np.ndarray:
    """Return a signal (leads, times) at up / down of its rate; beyond its ends it counts as zero."""
    if up == down:
        return signal
    from scipy.signal import resample_poly

    return resample_poly(signal, up, down, axis=1, window=_resampler(max(up, down)))


@functools.lru_cache(maxsize=16)
def _resampler(factor: int) -> Any:
    from scipy.signal import firwin

    return firwin(2 * HALF_TAPS * factor + 1, 1 / factor, window=cast(Any, _WINDOW))


class Filter(NamedTuple):
    """A digital filter and how long it rings."""

    sections: np.ndarray  # (sections, 6), second order
    settling: int  # samples after which its response has died away


@functools.lru_cache(maxsize=16)
def design_filters(
    sampling_rate: float, band: tuple[float | None, float | None] | None, order: int, notch: float | None
) -> tuple[Filter, ...]:
    """Return the Butterworth filter of a pass band and the notch, those that are wanted."""
    from scipy.signal import butter, iirnotch, sos2zpk, tf2sos

    found: list[Any] = []
    if band is not None:
        low, high = band
        kind, edges = ("highpass", low) if high is None else ("lowpass", high) if low is None else ("bandpass", band)
        found.append(butter(order, cast(Any, edges), kind, fs=sampling_rate, output="sos"))
    if notch is not None:
        found.append(tf2sos(*iirnotch(notch, _NOTCH_QUALITY, fs=sampling_rate)))
    slowest = [float(np.max(np.abs(cast(Any, sos2zpk(sections)[1])))) for sections in found]
    return tuple(
        Filter(sections, math.ceil(math.log(_SETTLED) / math.log(pole)))
        for sections, pole in zip(found, slowest, strict=True)
    )


def apply_filters(signal: np.ndarray, filters: Sequence[Filter]) -> np.ndarray:
    """Return a signal (leads, times) after each filter, forward and backward."""
    from scipy.signal import sosfiltfilt

    for one in filters:
        # Each end is continued by its reflection until the filter settles, as far as the signal reaches.
        signal = sosfiltfilt(one.sections, signal, axis=1, padlen=min(one.settling, signal.shape[1] - 1))
    return signal


def fill_gaps(signal: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill missing samples of a signal (leads, times).

    Runs of at most `longest` samples become straight lines. Longer ones, which are marked, take the nearest sample's
    value, so that what a filter carries out of a gap depends on its neighbourhood only. Leads without any sample become
    zeros.

    Returns
    -------
    filled : ndarray (leads, times)
    invalid : ndarray (leads, times) bool
        The samples of long runs.
    """
    filled, invalid = signal.copy(), np.zeros(signal.shape, bool)
    where = np.arange(signal.shape[1])
    for row, marks in zip(filled, invalid, strict=True):
        missing = np.isnan(row)
        seen = np.flatnonzero(~missing)
        if not len(seen):
            row[:], marks[:] = 0, True
        if len(seen) in (0, len(row)):
            continue
        following = np.searchsorted(seen, where)  # number in `seen` of the first sample at or after each
        edges = np.concatenate([[-1], seen, [len(row)]])
        marks[:] = missing & (edges[following + 1] - edges[following] - 1 > longest)
        left, right = seen[np.maximum(following - 1, 0)], seen[np.minimum(following, len(seen) - 1)]
        nearest = np.where(np.abs(where - left) <= np.abs(right - where), left, right)
        line = np.interp(where, seen, row[seen])
        row[missing] = np.where(marks, row[nearest], line)[missing]
    return filled, invalid

"""One recording on its way through a `Preprocessing`: block by block, into windows.

Blocks are processed together with their neighbourhood, as far as filters reach. Windows that are cut from blocks
therefore equal those cut from the whole recording.
"""

import functools
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssmseq.ecg.filtering import (
    HALF_TAPS,
    apply_filters,
    design_filters,
    fill_gaps,
    resample,
    resampling_ratio,
)
from ssmseq.ecg.leads import LeadPlan, limb_lead_deviation, plan_leads, recorded_rows
from ssmseq.ecg.records import Record

if TYPE_CHECKING:
    from ssmseq.ecg.preprocessing import Preprocessing

BLOCK_SECONDS = 60.0  # processed at once
# Of 509 recordings from five databases the right order gave at most 0.016; of their 7,635 swaps of two limb leads the
# smallest gave 0.10, of the 3,054 inverted limb leads 0.32.
LIMB_TOLERANCE = 0.1


class Window(NamedTuple):
    """A piece of a recording, ready for a network."""

    start: float  # in seconds from the recording's first sample
    signal: np.ndarray  # (leads, times) float32, zero in unusable leads and after the recording's end
    mask: np.ndarray  # (leads,) bool: the lead is usable throughout


class Source:
    """One recording on its way through a `Preprocessing`."""

    def __init__(self, settings: "Preprocessing", record: Record, name: str):
        self.settings, self.record, self.name = settings, record, name
        self.up, self.down = resampling_ratio(record.sampling_rate, settings.sampling_rate)
        self.n_times = -(-record.n_times * self.up // self.down)
        self.rows = recorded_rows(record.signal)
        names = [record.lead_names[i] for i in self.rows]
        self.plan: LeadPlan | None = plan_leads(names, settings.leads) if names else None
        self.missing = settings.leads if self.plan is None else self.plan.missing

    def check(self) -> None:
        """Refuse amplitudes and limb leads that cannot be right, judged by the first minute."""
        settings, record = self.settings, self.record
        head = record.signal[:, : math.ceil(BLOCK_SECONDS * record.sampling_rate)]
        rows = recorded_rows(head)
        if not len(rows):
            return
        peaks = [np.nanmax(np.abs(head[i] - np.nanmedian(head[i]))) for i in rows]
        limit = settings.largest_amplitude
        if limit is not None and np.median(peaks) > limit:
            raise ValueError(
                f"{self.name}: the leads reach {np.median(peaks):.4g} mV, above largest_amplitude={limit:g} mV, which "
                "looks like microvolts or converter units; divide by the gain, give unit='uV', or raise the limit"
            )
        if settings.limb_leads == "ignore":
            return
        deviation = limb_lead_deviation(head, record.lead_names, flat_range=settings.flat_range)
        if deviation > LIMB_TOLERANCE:
            told = (
                f"{self.name}: the limb leads contradict III = II - I and the like by {deviation:.0%} of their size, "
                f"which a wrong lead order or polarity does; the names are {', '.join(record.lead_names)}"
            )
            if settings.limb_leads == "refuse":
                raise ValueError(f"{told}. Correct them, or accept this with limb_leads='warn'")
            warnings.warn(told, stacklevel=4)

    def cut(self, starts: list[int], length: int) -> Iterator[Window]:
        """Yield windows that start at these samples of the result."""
        block = max(round(BLOCK_SECONDS * self.settings.sampling_rate), length)
        whole = self.region(0, self.n_times) if self.n_times <= block else None
        center, scale = self.statistics([whole] if whole else self.blocks(block))
        first, held = 0, whole
        for i, start in enumerate(starts):
            if whole is None and (held is None or start + length > first + held[0].shape[1]):
                # One block serves all further windows that end within it.
                reach = max(s + length for s in starts[i:] if s + length <= start + block)
                first, held = start, self.region(start, min(reach, self.n_times))
            signal, valid = (part[:, start - first : start - first + length] for part in held)  # type: ignore[union-attr]
            mask = self.usable(start, start + length, valid)
            out = np.zeros((len(mask), length), np.float32)
            out[:, : signal.shape[1]] = (signal - center) / scale
            out[~mask] = 0
            yield Window(start / self.settings.sampling_rate, out, mask)

    def blocks(self, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the whole recording piece by piece."""
        for first in range(0, self.n_times, block):
            yield self.region(first, min(first + block, self.n_times))

    def region(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return samples [first, last) of the filtered result (leads, times), and which of them are valid."""
        settings, up, down = self.settings, self.up, self.down
        filters = design_filters(settings.sampling_rate, settings.band, settings.filter_order, settings.notch)
        settling = sum(one.settling for one in filters)
        a, b = max(first - settling, 0), min(last + settling, self.n_times)
        longest = round(settings.max_gap * self.record.sampling_rate)
        reach = (math.ceil(HALF_TAPS * max(up, down) / up) if up != down else 0) + longest + 1
        # The first input sample is a multiple of `down`, so that it coincides with an output sample.
        i = (a * down // up - reach) // down * down
        j = (b * down) // up + reach + 1
        chunk, invalid = fill_gaps(self.raw(max(i, 0), min(j, self.record.n_times)), longest)
        if settings.long_gaps == "refuse" and self.plan is not None and invalid[self.plan.present].any():
            raise ValueError(
                f"{self.name} has a gap longer than max_gap={settings.max_gap:g} s; leave it out, or set "
                "long_gaps='mask'"
            )
        chunk = np.pad(chunk, ((0, 0), (max(-i, 0), max(j - self.record.n_times, 0))), mode="edge")
        signal = resample(chunk, up, down)[:, a - i // down * up : b - i // down * up]
        signal = apply_filters(signal, filters)[:, first - a : last - a]
        nearest = (np.arange(first, last) * 2 * down + up) // (2 * up) - max(i, 0)
        return signal, ~invalid[:, np.minimum(nearest, invalid.shape[1] - 1)]

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Return samples of the wanted leads (leads, times) at the recording's own rate."""
        if self.plan is None:
            return np.full((len(self.settings.leads), stop - start), np.nan)
        return self.plan.apply(self.record.signal[self.rows, start:stop].astype(np.float64))

    def usable(self, start: int, stop: int, valid: np.ndarray) -> np.ndarray:
        """Return which leads (leads,) are valid and not flat between two samples of the result."""
        raw = self.raw(start * self.down // self.up, min(-(-stop * self.down // self.up), self.record.n_times))
        return valid.all(1) & (np.fmax.reduce(raw, axis=1) - np.fmin.reduce(raw, axis=1) > self.settings.flat_range)

    def statistics(self, blocks: Iterable) -> tuple[np.ndarray | float, np.ndarray | float]:
        """Return the mean and the standard deviation that normalise, each (leads, 1) or a number."""
        how = self.settings.normalisation
        if how == "none":
            return 0.0, 1.0
        n, mean, squares = 0.0, 0.0, 0.0
        for signal, valid in blocks:
            # Leads that are flat throughout are masked anyway, and would only make the others look larger.
            weight = valid & self.lively[:, None]
            axis = 1 if how == "lead" else None
            m = weight.sum(axis, keepdims=True)
            here = np.where(weight, signal, 0).sum(axis, keepdims=True) / np.maximum(m, 1)
            spread = (np.where(weight, signal - here, 0) ** 2).sum(axis, keepdims=True)
            total = np.maximum(n + m, 1)
            squares = squares + spread + (here - mean) ** 2 * n * m / total
            mean, n = mean + (here - mean) * m / total, n + m
        scale = np.sqrt(squares / np.maximum(n, 1))
        return mean, np.where(scale > 0, scale, 1)

    @functools.cached_property
    def lively(self) -> np.ndarray:
        """Which leads (leads,) are not flat in the whole recording."""
        step = math.ceil(BLOCK_SECONDS * self.record.sampling_rate)
        highest = np.full(len(self.settings.leads), np.nan)
        lowest = highest.copy()
        for start in range(0, self.record.n_times, step):
            raw = self.raw(start, min(start + step, self.record.n_times))
            highest = np.fmax(highest, np.fmax.reduce(raw, axis=1))
            lowest = np.fmin(lowest, np.fmin.reduce(raw, axis=1))
        return highest - lowest > self.settings.flat_range

"""The way from recordings to arrays that a network takes, as one object that is saved with the model.

In this order: leads are picked by name, gaps filled, the signal resampled to one rate, filtered at that rate, cut into
windows, normalised and padded. Filters run forward and backward, so they shift nothing. Recordings of any length are
processed in blocks, whose neighbourhood is processed with them until the filters have settled; windows of a long
recording therefore equal those cut from the whole, to about 1e-6 of its amplitude.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ssmseq.base import check_choice, check_number
from ssmseq.ecg.leads import STANDARD_LEADS, standard_names
from ssmseq.ecg.records import as_records
from ssmseq.ecg.windows import Source, Window


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to recordings before a network sees them; two equal objects do the same.

    Parameters
    ----------
    sampling_rate : float, default=100.0
        In Hz, of the result. Recordings are resampled by the exact ratio of the rates, also 257 to 500 Hz.
    leads : tuple of str, default=STANDARD_LEADS
        Names and order of the result's leads. Limb leads that a recording lacks are derived where two others are there.
    band : (low, high) or None, default=(0.5, 45.0)
        Pass band in Hz of a Butterworth filter; its edges are at half power each way, so 6 dB down in total. Either may
        be None.
    filter_order : int, default=3
        Of the Butterworth filter, 1 to 10; running it both ways doubles the slope.
    notch : float or None, default=None
        Frequency of the power line in Hz (50 or 60) to remove with a quality factor of 30.
    normalisation : {"record", "lead", "none"}, default="record"
        Subtract the mean and divide by the standard deviation of the recording's usable samples: over all leads at
        once, lead by lead, or not at all (mV). They are those of the whole recording, also for its windows.
    window : float or None, default=10.0
        Length of the result in seconds. None keeps the length of recordings.
    stride : float, optional
        Between the starts of two windows in seconds; `window` unless given.
    too_short : {"pad", "refuse"}
        What to do about recordings shorter than the window. Padding adds zeros at the end, after normalisation.
    too_long : {"center", "start", "refuse"}
        Which part `transform` takes of recordings longer than the window.
    max_gap : float, default=0.2
        Longest run of missing samples in seconds that is bridged by a straight line.
    long_gaps : {"mask", "refuse"}
        What to do about longer ones: mark the lead as unusable in the windows concerned, or raise.
    missing_leads : {"mask", "refuse"}
        What to do about leads that a recording lacks. Marking them gives one warning.
    flat_range : float, default=0.001
        A lead whose range within a window is not above this, in mV, is unusable there.
    limb_leads : {"refuse", "warn", "ignore"}
        What to do where limb leads contradict each other, as they do in a wrong order; see `limb_lead_deviation`. Chest
        leads are independent, so their order is checked by name only.
    largest_amplitude : float or None, default=20.0
        In mV. A recording whose median lead deviates further from its median is refused: it is probably in microvolts.

    Raises
    ------
    TypeError, ValueError
        If a parameter is impossible; the message names it.
    """

    sampling_rate: float = 100.0
    leads: tuple[str, ...] = STANDARD_LEADS
    band: tuple[float | None, float | None] | None = (0.5, 45.0)
    filter_order: int = 3
    notch: float | None = None
    normalisation: str = "record"
    window: float | None = 10.0
    stride: float | None = None
    too_short: str = "pad"
    too_long: str = "center"
    max_gap: float = 0.2
    long_gaps: str = "mask"
    missing_leads: str = "mask"
    flat_range: float = 1e-3
    limb_leads: str = "refuse"
    largest_amplitude: float | None = 20.0

    def __post_init__(self):
        object.__setattr__(self, "leads", standard_names(self.leads))
        check_number("sampling_rate", self.sampling_rate, above=0)
        nyquist = self.sampling_rate / 2
        if self.band is not None:
            low, high = self.band
            for name, edge in (("low", low), ("high", high)):
                if edge is not None:
                    check_number(f"the {name} edge of band", edge, above=0, below=nyquist)
            if low == high or (low is not None and high is not None and low > high):
                raise ValueError(f"band must be (low, high) in Hz with low < high, or None, got {self.band}")
            object.__setattr__(self, "band", (low, high))
        check_number("filter_order", self.filter_order, minimum=1, maximum=10, integer=True)
        if self.notch is not None:
            check_number("notch", self.notch, above=0, below=nyquist)
        if self.window is not None:
            check_number("window", self.window, minimum=1 / self.sampling_rate)
        if self.stride is not None:
            check_number("stride", self.stride, minimum=1 / self.sampling_rate)
        for name in ("max_gap", "flat_range"):
            check_number(name, getattr(self, name), minimum=0)
        if self.largest_amplitude is not None:
            check_number("largest_amplitude", self.largest_amplitude, above=0)
        check_choice("normalisation", self.normalisation, ("record", "lead", "none"))
        check_choice("too_long", self.too_long, ("center", "start", "refuse"))
        check_choice("too_short", self.too_short, ("pad", "refuse"))
        check_choice("limb_leads", self.limb_leads, ("refuse", "warn", "ignore"))
        for name in ("long_gaps", "missing_leads"):
            check_choice(name, getattr(self, name), ("mask", "refuse"))

    @property
    def n_times(self) -> int | None:
        """Samples of a window."""
        return None if self.window is None else max(round(self.window * self.sampling_rate), 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as values that JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """Rebuild from `to_dict`, also after a way through JSON; ValueError if a parameter is unknown or missing."""
        known = {field.name for field in dataclasses.fields(cls)}
        if set(stored) != known:
            raise ValueError(f"a preprocessing has the parameters {sorted(known)}, got {sorted(stored)}")
        params: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**params)

    def transform(
        self, X, *, sampling_rate: float | None = None, lead_names: Sequence[str] | None = None, unit: str = "mV"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Process recordings, one window each.

        Parameters
        ----------
        X : Record, list of Record, array (n, leads, times) or (n, times), or list of arrays (leads, times)
            Records may have any rates and lead orders.
        sampling_rate : float, optional
            In Hz; needed for arrays.
        lead_names : sequence of str, optional
            Of arrays; without it they must have the leads of this object in its order.
        unit : {"mV", "uV", "V", "nV"}
            Of arrays.

        Returns
        -------
        signals : ndarray (n, leads, times) float32
            Zero in unusable leads.
        mask : ndarray (n, leads) bool
            Whether a lead is usable: recorded or derived, without long gaps, and not flat.

        Raises
        ------
        ValueError
            If a recording is refused for its rate, unit, leads, order, gaps or length; the message names it.
        """
        sources = self._sources(X, sampling_rate, lead_names, unit)
        n_times = self.n_times or sources[0].n_times
        signals = np.zeros((len(sources), len(self.leads), n_times), np.float32)
        mask = np.zeros(signals.shape[:2], bool)
        for i, source in enumerate(sources):
            if source.n_times != n_times and self.window is None:
                raise ValueError(
                    f"{source.name} has {source.n_times} samples at {self.sampling_rate:g} Hz, the first recording "
                    f"{n_times}: set window to a length in seconds, so that all become equal"
                )
            (_, signals[i], mask[i]) = next(source.cut([self._start(source, n_times)], n_times))
        unusable = [source.name for source, usable in zip(sources, mask, strict=True) if not usable.any()]
        if unusable:
            warnings.warn(f"no lead is usable in {_listed(unusable)}; see quality_report", stacklevel=2)
        return signals, mask

    def prepare(
        self, X, *, sampling_rate: float | None = None, lead_names: Sequence[str] | None = None, unit: str = "mV"
    ) -> list[Window]:
        """Process whole recordings, each at its own length, to draw crops from.

        Parameters
        ----------
        X, sampling_rate, lead_names, unit
            As in `transform`.

        Returns
        -------
        list of Window
            Each starts at 0 and is as long as its recording; its mask says which leads are usable throughout.

        Raises
        ------
        ValueError
            As `transform`.
        """
        sources = self._sources(X, sampling_rate, lead_names, unit)
        return [next(source.cut([0], source.n_times)) for source in sources]

    def windows(
        self, X, *, sampling_rate: float | None = None, lead_names: Sequence[str] | None = None, unit: str = "mV"
    ) -> Iterator[Window]:
        """Yield all windows of one recording, in memory that does not grow with its length.

        Windows start every `stride` seconds; a last one ends with the recording where those would leave a rest. A
        recording shorter than one window is padded or refused.

        Parameters
        ----------
        X : Record or array (leads, times)
        sampling_rate, lead_names, unit
            As in `transform`.

        Yields
        ------
        Window
            `start` in seconds, `signal` (leads, times) float32 and `mask` (leads,) bool.

        Raises
        ------
        ValueError
            As `transform`; and if there is no window length.
        """
        one = [X] if isinstance(X, np.ndarray) else X
        (source, *more) = self._sources(one, sampling_rate, lead_names, unit)
        if more:
            raise ValueError(f"windows takes one recording, got {len(more) + 1}: call it for each")
        if self.n_times is None:
            raise ValueError("windows needs a length: set window to seconds")
        return source.cut(self._starts(source), self.n_times)

    def _sources(self, X, sampling_rate, lead_names, unit) -> list[Source]:
        records = as_records(X, sampling_rate=sampling_rate, lead_names=lead_names or self.leads, unit=unit)
        sources = [Source(self, record, record.record_id or f"recording {i}") for i, record in enumerate(records)]
        missing = [source for source in sources if source.missing]
        if missing:
            names = sorted({name for source in missing for name in source.missing}, key=self.leads.index)
            told = f"the leads {', '.join(names)} are missing in {_listed([source.name for source in missing])}"
            if self.missing_leads == "refuse":
                raise ValueError(f"{told}; leave those recordings out, or set missing_leads='mask'")
            warnings.warn(f"{told}; they are masked", stacklevel=3)
        for source in sources:
            source.check()
        return sources

    def _start(self, source: Source, n_times: int) -> int:
        if source.n_times > n_times and self.too_long == "refuse":
            raise ValueError(
                f"{source.name} lasts {source.n_times / self.sampling_rate:g} s, longer than the window of "
                f"{self.window:g} s; cut it, or set too_long='center'"
            )
        self._check_length(source, n_times)
        return max(source.n_times - n_times, 0) // 2 if self.too_long == "center" else 0

    def _starts(self, source: Source) -> list[int]:
        n_times = self.n_times or 1
        self._check_length(source, n_times)
        step = max(round((self.stride or self.window or 0) * self.sampling_rate), 1)
        last = max(source.n_times - n_times, 0)
        starts = list(range(0, last + 1, step))
        return starts if starts[-1] == last else [*starts, last]

    def _check_length(self, source: Source, n_times: int) -> None:
        if source.n_times < n_times and self.too_short == "refuse":
            raise ValueError(
                f"{source.name} lasts {source.n_times / self.sampling_rate:g} s, shorter than the window of "
                f"{n_times / self.sampling_rate:g} s; leave it out, or set too_short='pad'"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

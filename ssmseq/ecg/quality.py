"""What is wrong with recordings, lead by lead: gaps, flat and saturated stretches, drift, hum, suspicious units."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssmseq.base import check_number
from ssmseq.ecg.filtering import fill_gaps
from ssmseq.ecg.leads import limb_lead_deviation, standard_name
from ssmseq.ecg.records import Record, as_records

if TYPE_CHECKING:
    import pandas as pd

_LIMBS = ("I", "II", "III", "aVR", "aVL", "aVF")
_LINES = (50.0, 60.0)  # frequencies of power lines in Hz
_LINE_WIDTH = 1.0  # Hz on either side


def quality_report(
    X: Record | Iterable,
    *,
    sampling_rate: float | None = None,
    lead_names: Sequence[str] | None = None,
    unit: str = "mV",
    min_duration: float = 2.0,
    max_nan_share: float = 0.01,
    max_flat_share: float = 0.1,
    max_clipped_share: float = 0.01,
    max_amplitude: float = 20.0,
    min_range: float = 0.02,
    max_baseline_wander: float = 0.5,
    max_powerline: float = 0.1,
    max_limb_deviation: float = 0.1,
    flat_seconds: float = 1.0,
    clipped_seconds: float = 0.03,
    baseline_below: float = 0.5,
) -> "pd.DataFrame":
    """Measure every lead of every recording and say which are suspicious.

    Nothing is changed or left out: the frame is for looking, sorting and filtering. The thresholds are plain and meant
    to be adapted to a device.

    Parameters
    ----------
    X : Record, iterable of Record, array (n, leads, times) or (n, times), or list of arrays (leads, times)
        An iterator, such as `iterate_folder` gives, is read one recording at a time.
    sampling_rate, lead_names, unit
        Of arrays, as in `Preprocessing.transform`.
    min_duration : float, default=2.0
        In seconds; shorter is "short".
    max_nan_share : float, default=0.01
        Largest share of missing samples; more is "missing".
    max_flat_share : float, default=0.1
        Largest share of samples in flat runs, those of one value for at least `flat_seconds`; more is "flat".
    max_clipped_share : float, default=0.01
        Largest share of samples in plateaus, runs at the lead's largest or smallest value for at least
        `clipped_seconds` and three samples, that are no flat runs; more is "clipped".
    max_amplitude : float, default=20.0
        In mV. Leads that deviate further from their median have suspicious "units", probably microvolts or converter
        units.
    min_range : float, default=0.02
        In mV. Leads that are not flat and whose range is below have suspicious "units" too, probably volts.
    max_baseline_wander : float, default=0.5
        In mV, root mean square of what lies below `baseline_below`; more is "wander".
    max_powerline : float, default=0.1
        In mV, root mean square of what lies within 1 Hz of 50 or 60 Hz, whichever is more; more is "hum".
    max_limb_deviation : float, default=0.1
        See `limb_lead_deviation`; more is "limbs" on all limb leads: a wrong order, polarity or electrode.
    flat_seconds, clipped_seconds : float
        Shortest flat run and plateau, in seconds.
    baseline_below : float, default=0.5
        In Hz.

    Returns
    -------
    DataFrame
        One row per recording and lead. `record` (its identifier or number), `lead`, `duration` (s), `nan_share`,
        `flat_share`, `clipped_share`, `minimum`, `maximum` and `range` (mV), `baseline_wander` and `powerline` (mV; the
        latter NaN where the sampling rate cannot show it), `limb_deviation` (share; NaN for other leads), `units`
        ("uV" or "V" as the suspected unit, else ""), and `verdict`: "good", or the names in quotes above, joined by
        commas.

    Raises
    ------
    ValueError
        If a threshold is impossible, or arrays come without rate or names.
    """
    import pandas as pd

    limits = {
        "min_duration": min_duration,
        "max_nan_share": max_nan_share,
        "max_flat_share": max_flat_share,
        "max_clipped_share": max_clipped_share,
        "max_amplitude": max_amplitude,
        "min_range": min_range,
        "max_baseline_wander": max_baseline_wander,
        "max_powerline": max_powerline,
        "max_limb_deviation": max_limb_deviation,
        "flat_seconds": flat_seconds,
        "clipped_seconds": clipped_seconds,
        "baseline_below": baseline_below,
    }
    for name, value in limits.items():
        check_number(name, value, minimum=0)
    rows = []
    for number, record in enumerate(_records(X, sampling_rate, lead_names, unit)):
        limbs = limb_lead_deviation(record.signal, record.lead_names)
        for lead, signal in zip(record.lead_names, record.signal, strict=True):
            row: dict[str, Any] = {"record": number if record.record_id is None else record.record_id, "lead": lead}
            row |= _measure(signal.astype(np.float64), record.sampling_rate, limits)
            row["limb_deviation"] = limbs if standard_name(lead) in _LIMBS else np.nan
            row["units"] = _suspected_unit(row, limits)
            row["verdict"] = _verdict(row, limits)
            del row["excursion"]
            rows.append(row)
    return pd.DataFrame(rows)


def _records(X, sampling_rate, lead_names, unit) -> Iterable[Record]:
    if isinstance(X, Record | np.ndarray | list | tuple):
        return as_records(X, sampling_rate=sampling_rate, lead_names=lead_names, unit=unit)
    options = {"sampling_rate": sampling_rate, "lead_names": lead_names, "unit": unit}
    return (record for item in X for record in as_records([item], **options))


def _measure(signal: np.ndarray, rate: float, limits: dict[str, float]) -> dict[str, float]:
    """Return the figures of one lead (times,) in mV."""
    seen = signal[~np.isnan(signal)]
    if not len(seen):
        seen = np.full(1, np.nan)
    lengths = _run_lengths(signal)
    flat = lengths >= max(limits["flat_seconds"] * rate, 2)
    extreme = (signal == seen.max()) | (signal == seen.min())
    clipped = extreme & ~flat & (lengths >= max(limits["clipped_seconds"] * rate, 3))
    wander, hum = _powers(fill_gaps(signal[None], 0)[0][0], rate, limits["baseline_below"])
    return {
        "duration": len(signal) / rate,
        "nan_share": float(np.isnan(signal).mean()),
        "flat_share": float(flat.mean()),
        "clipped_share": float(clipped.mean()),
        "minimum": float(seen.min()),
        "maximum": float(seen.max()),
        "range": float(seen.max() - seen.min()),
        "excursion": float(np.abs(seen - np.median(seen)).max()),
        "baseline_wander": wander,
        "powerline": hum,
    }


def _run_lengths(signal: np.ndarray) -> np.ndarray:
    """Return for each sample the length of the run of equal values it is in; 1 for NaN."""
    starts = np.flatnonzero(np.concatenate([[True], signal[1:] != signal[:-1]]))
    lengths = np.diff(np.append(starts, len(signal)))
    return np.repeat(lengths, lengths)


def _powers(signal: np.ndarray, rate: float, below: float) -> tuple[float, float]:
    """Return the root mean squares in mV of what lies below a frequency, and of the stronger power line."""
    from scipy.signal import periodogram

    if len(signal) < 2:
        return 0.0, float("nan")
    frequencies, density = periodogram(signal, rate, window="hann", detrend="constant")
    power = density * frequencies[1]
    wander = np.sqrt(power[frequencies < below].sum())
    lines = [power[np.abs(frequencies - f) <= _LINE_WIDTH].sum() for f in _LINES if f + _LINE_WIDTH < rate / 2]
    return float(wander), float(np.sqrt(max(lines))) if lines else float("nan")


def _suspected_unit(row: dict[str, Any], limits: dict[str, float]) -> str:
    if row["excursion"] > limits["max_amplitude"]:
        return "uV"
    return "V" if 0 < row["range"] < limits["min_range"] else ""


def _verdict(row: dict[str, Any], limits: dict[str, float]) -> str:
    reasons = {
        "short": row["duration"] < limits["min_duration"],
        "missing": row["nan_share"] > limits["max_nan_share"],
        "flat": row["flat_share"] > limits["max_flat_share"],
        "clipped": row["clipped_share"] > limits["max_clipped_share"],
        "units": bool(row["units"]),
        "wander": row["baseline_wander"] > limits["max_baseline_wander"],
        "hum": row["powerline"] > limits["max_powerline"],
        "limbs": row["limb_deviation"] > limits["max_limb_deviation"],
    }
    return ", ".join(name for name, found in reasons.items() if found) or "good"

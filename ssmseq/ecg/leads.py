"""Leads by their names: standard spellings, order, and the limb leads that follow from two others.

The six limb leads are differences of three electrode potentials, so any two of them give the other four [1]_:
III = II - I, aVR = -(I + II) / 2, aVL = I - II / 2 and aVF = II - I / 2.

References
----------
.. [1] Malmivuo, J. and Plonsey, R. (1995). Bioelectromagnetism, chapter 15: 12-lead ECG system. Oxford University
   Press.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Each limb lead as a * I + b * II.
_LIMB = {
    "I": (1.0, 0.0),
    "II": (0.0, 1.0),
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}
_SMALLEST_SIZE = 0.05  # mV
_PREFIXES = ("MDC_ECG_LEAD_", "LEAD_", "LEAD ", "ECG_", "ECG ")
_SPELLINGS = {
    **{name.upper(): name for name in (*STANDARD_LEADS, "Vx", "Vy", "Vz", "MLII")},
    **{f"C{i}": f"V{i}" for i in range(1, 7)},  # IEC's names of the chest leads
    **{"DI": "I", "DII": "II", "DIII": "III"},  # usual in Portuguese and Spanish
}


def standard_name(name: str) -> str:
    """Return the usual spelling of a lead's name, or the stripped name itself where it is no known one.

    Parameters
    ----------
    name : str
        As a file or a device spells it: "AVR", "avr", "MDC_ECG_LEAD_AVR", "Lead aVR", "C1" (for V1), "DII".

    Returns
    -------
    str
        "aVR", "V1", "II", ... A modified lead such as "MLII" keeps its own name: it is not lead II.
    """
    found = name.strip()
    bare = found.upper()
    for prefix in _PREFIXES:
        bare = bare.removeprefix(prefix)
    return _SPELLINGS.get(bare, found)


def standard_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the usual spellings of several names, which must mean different leads.

    Raises
    ------
    TypeError
        If it is a string in place of a list of names, or holds something else than strings.
    ValueError
        If there are none, one is empty, or two mean the same lead.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"lead names must be a list of strings, got {names!r}")
    found = tuple(map(standard_name, names))
    if not found or not all(found):
        raise ValueError(f"lead names must be given and must not be empty, got {list(names)}")
    for i, name in enumerate(found):
        if name in found[:i]:
            first = names[found.index(name)]
            raise ValueError(f"the lead names {first!r} and {names[i]!r} both mean lead {name}: give each lead once")
    return found


@dataclass(frozen=True)
class LeadPlan:
    """How wanted leads come out of a recording's leads: a matrix, with rows of zeros for those that cannot."""

    leads: tuple[str, ...]
    weights: np.ndarray  # (leads, recorded leads)
    present: np.ndarray  # (leads,) bool
    derived: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the leads that the recording neither holds nor determines."""
        return tuple(name for name, there in zip(self.leads, self.present, strict=True) if not there)

    def apply(self, signal: np.ndarray) -> np.ndarray:
        """Return the wanted leads (leads, times) of a signal (recorded leads, times); missing ones are NaN."""
        out = np.full((len(self.leads), signal.shape[1]), np.nan, signal.dtype)
        for row, weights in zip(out, self.weights, strict=True):
            # Only leads that take part are touched: NaN in another one must not spread, and a copy must be exact.
            terms = [w * signal[i] if w != 1 else signal[i] for i, w in enumerate(weights) if w]
            if terms:
                row[:] = sum(terms[1:], start=terms[0])
        return out


def plan_leads(recorded: Sequence[str], leads: Sequence[str], *, derive: bool = True) -> LeadPlan:
    """Find out how the wanted leads follow from the recorded ones, by their names.

    Parameters
    ----------
    recorded, leads : sequence of str
        Names of the leads that there are and of those wanted, in any spelling that `standard_name` knows.
    derive : bool, default=True
        Compute missing limb leads from two others. Where more than two are recorded, the first two of I, II, III, aVR,
        aVL and aVF count.

    Returns
    -------
    LeadPlan
    """
    have, want = standard_names(recorded), standard_names(leads)
    basis = [name for name in _LIMB if name in have][:2]
    weights = np.zeros((len(want), len(have)))
    derived = []
    for row, name in zip(weights, want, strict=True):
        if name in have:
            row[have.index(name)] = 1
        elif derive and name in _LIMB and len(basis) == 2:
            row[[have.index(lead) for lead in basis]] = _combination(name, basis)
            derived.append(name)
    return LeadPlan(want, weights, np.asarray(weights.any(1)), tuple(derived))


@dataclass(frozen=True)
class ArrangedLeads:
    """Leads in a wanted order, and where each comes from."""

    signal: np.ndarray  # (leads, times) in mV, NaN in missing leads
    present: np.ndarray  # (leads,) bool: recorded or derived
    derived: tuple[str, ...]
    missing: tuple[str, ...]


def arrange(record, leads: Sequence[str] = STANDARD_LEADS, *, derive: bool = True) -> ArrangedLeads:
    """Bring a record's leads into a wanted order, with limb leads derived where they are missing.

    A lead that is NaN throughout counts as missing.

    Parameters
    ----------
    record : Record
        With leads in any order.
    leads : sequence of str, default=STANDARD_LEADS
        Names in the wanted order, in any spelling that `standard_name` knows.
    derive : bool, default=True
        Compute missing limb leads from any two others; see `plan_leads`.

    Returns
    -------
    ArrangedLeads
        `signal` (leads, times) in mV, `present` (leads,) and the names of the `derived` and the `missing` leads.

    Raises
    ------
    ValueError
        If two names mean the same lead, or none is given.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmseq.ecg.records import Record
    >>> record = Record(signal=np.array([[1.0, 2.0], [3.0, 5.0]]), sampling_rate=100, lead_names=("II", "I"))
    >>> found = arrange(record, ["I", "III", "V1"])
    >>> found.signal[1], found.derived, found.missing
    (array([-2., -3.]), ('III',), ('V1',))
    """
    rows = recorded_rows(record.signal)
    plan = plan_leads([record.lead_names[i] for i in rows], leads, derive=derive) if len(rows) else None
    if plan is None:
        want = standard_names(leads)
        return ArrangedLeads(
            np.full((len(want), record.n_times), np.nan, record.signal.dtype), np.zeros(len(want), bool), (), want
        )
    return ArrangedLeads(plan.apply(record.signal[rows]), plan.present, plan.derived, plan.missing)


def recorded_rows(signal: np.ndarray) -> np.ndarray:
    """Return which rows of a signal (leads, times) hold any value that is not NaN."""
    return np.flatnonzero(~np.isnan(np.fmax.reduce(signal, axis=1)))


def limb_lead_deviation(signal: np.ndarray, lead_names: Sequence[str], *, flat_range: float = 1e-3) -> float:
    """Return how far the limb leads are from following from each other, as a share of their size.

    The first two usable limb leads predict every other one. Of each difference the root mean square is taken after its
    median was removed (electrodes drift apart by a constant in some devices), and divided by that of the largest limb
    lead, or by 0.05 mV where that is more, since rounding is no contradiction. Leads in the right order give some
    hundredths at most; swapped leads or a wrong sign give about one.

    Parameters
    ----------
    signal : array (leads, times) in mV
        NaN is left out.
    lead_names : sequence of str
        Of the rows.
    flat_range : float, default=1e-3
        Leads whose range is not above this, in mV, are left out: a loose electrode is no wrong order.

    Returns
    -------
    float
        NaN where fewer than three limb leads are usable.
    """
    names = standard_names(lead_names)
    limbs = {}
    for name in _LIMB:
        if name in names:
            lead = np.asarray(signal[names.index(name)], np.float64)
            if np.fmax.reduce(lead) - np.fmin.reduce(lead) > flat_range:
                limbs[name] = lead
    if len(limbs) < 3:
        return float("nan")
    basis, others = list(limbs)[:2], list(limbs)[2:]
    size = max(_SMALLEST_SIZE, *map(_spread, limbs.values()))
    worst = 0.0
    for name in others:
        a, b = _combination(name, basis)
        worst = max(worst, _spread(limbs[name] - a * limbs[basis[0]] - b * limbs[basis[1]]) / size)
    return worst


def _combination(name: str, basis: Sequence[str]) -> tuple[float, float]:
    """Return the weights of two limb leads that give a third; every pair of the six is independent."""
    (p, q), (r, s), (x, y) = (_LIMB[lead] for lead in (*basis, name))
    # Cramer's rule: all terms are halves, so that only the last division rounds.
    return (x * s - y * r) / (p * s - q * r), (p * y - q * x) / (p * s - q * r)


def _spread(values: np.ndarray) -> float:
    seen = values[~np.isnan(values)]
    return float(np.sqrt(np.mean((seen - np.median(seen)) ** 2))) if len(seen) else 0.0

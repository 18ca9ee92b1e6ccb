"""Leads by name: spellings, order, and limb leads derived from electrode potentials."""

import numpy as np
import pytest
from ecg_cases import (
    record,
    same_bits,
    twelve_leads,
)

from ssmseq.ecg.leads import (
    STANDARD_LEADS,
    arrange,
    limb_lead_deviation,
    plan_leads,
    standard_name,
    standard_names,
)
from ssmseq.ecg.records import Record


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("AVR", "aVR"), ("avl", "aVL"), ("MDC_ECG_LEAD_AVF", "aVF"), ("Lead aVR", "aVR"), ("ECG II", "II"), ("i", "I"),
        ("mdc_ecg_lead_V3", "V3"), ("C4", "V4"), ("DIII", "III"), (" V5 ", "V5"), ("MLII", "MLII"), ("vx", "Vx"),
        ("-aVR", "-aVR"), ("V", "V"), ("ECG", "ECG"), ("V3R", "V3R"), ("V7", "V7"),
    ],
)  # fmt: skip
def test_spellings(spelling, name):
    assert standard_name(spelling) == name


def test_names_must_differ():
    with pytest.raises(ValueError, match="'DI' and 'Lead I' both mean lead I"):
        standard_names(["DI", "II", "Lead I"])
    with pytest.raises(ValueError, match="must be given"):
        standard_names([])


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(6))
def test_any_two_limb_leads_give_the_others(first, second):
    if first == second:
        return
    # The truth comes from electrode potentials: each lead is a difference.
    right, left, foot = np.random.default_rng(0).normal(size=(3, 20))
    truth = np.array(
        [
            left - right,
            foot - right,
            foot - left,
            right - (left + foot) / 2,
            left - (right + foot) / 2,
            foot - (right + left) / 2,
        ]
    )
    kept = [first, second]
    given = Record(signal=truth[kept], sampling_rate=100, lead_names=[STANDARD_LEADS[i].upper() for i in kept])
    found = arrange(given, [*STANDARD_LEADS[:6], "V1"])
    np.testing.assert_allclose(found.signal[:6], truth, atol=1e-12)
    assert np.isnan(found.signal[6]).all()
    assert found.present.tolist() == [True] * 6 + [False]
    assert found.missing == ("V1",)
    assert found.derived == tuple(lead for i, lead in enumerate(STANDARD_LEADS[:6]) if i not in kept)
    same_bits(found.signal[kept], truth[kept])
    assert limb_lead_deviation(found.signal, [*STANDARD_LEADS[:6], "V1"]) < 1e-12


def test_derivation_can_be_left_out_and_needs_two():
    assert arrange(record(9, leads=["I", "II"]), ["III"], derive=False).missing == ("III",)
    assert arrange(record(9, leads=["I", "V1"]), ["III", "I"]).missing == ("III",)
    assert plan_leads(["V2", "V1"], ["V1", "V2"]).weights.tolist() == [[0, 1], [1, 0]]


def test_empty_lead_counts_as_missing_and_gaps_stay_in_their_leads():
    x = twelve_leads(30)
    x[0], x[7], x[4, 5] = np.nan, np.nan, np.nan
    found = arrange(Record(signal=x, sampling_rate=100, lead_names=STANDARD_LEADS))
    assert (found.derived, found.missing) == (("I",), ("V2",))
    np.testing.assert_allclose(found.signal[0], twelve_leads(30)[0], atol=1e-12)  # from II and III
    assert np.argwhere(np.isnan(found.signal)).tolist() == [[4, 5], *([7, i] for i in range(30))]
    nothing = Record(signal=np.full((1, 4), np.nan), sampling_rate=100, lead_names=["I"])
    assert arrange(nothing, ["I", "II"]).missing == ("I", "II")


def test_wrong_order_shows_in_the_limb_leads():
    x = twelve_leads(500)
    assert limb_lead_deviation(x, STANDARD_LEADS) < 1e-12
    for i in range(6):
        for j in range(i):
            y = x.copy()
            y[[i, j]] = y[[j, i]]
            assert limb_lead_deviation(y, STANDARD_LEADS) > 0.1, (i, j)
    y = x.copy()
    y[2] *= -1
    assert limb_lead_deviation(y, STANDARD_LEADS) > 0.5
    y[2] = 0  # a loose electrode is no wrong order
    assert limb_lead_deviation(y, STANDARD_LEADS) < 1e-12
    assert limb_lead_deviation(x + np.arange(12)[:, None], STANDARD_LEADS) < 1e-9  # nor is an offset
    assert np.isnan(limb_lead_deviation(x[:2], STANDARD_LEADS[:2]))
    assert limb_lead_deviation(np.round(x * 0.03, 3), STANDARD_LEADS) < 0.05  # nor is rounding

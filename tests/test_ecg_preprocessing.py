"""Preparing recordings: normalisation, policies, and refusing what cannot be right."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from ecg_cases import record, twelve_leads

from ssmseq.ecg.leads import STANDARD_LEADS
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.ecg.records import Record

PLAIN = {"band": None, "normalisation": "none", "window": None, "leads": ("ECG",)}


def one_lead(signal, rate=100.0, **known) -> Record:
    signal = np.atleast_2d(signal).astype(float)
    return Record(signal=signal, sampling_rate=rate, lead_names=("ECG",), **known)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Normalisation --------------------------------------------------------------------------------------------------------


def test_normalisation_against_numpy():
    source = record(2000)
    raw, _ = Preprocessing(normalisation="none", window=None).transform(source)
    x = raw[0].astype(float)
    by_record, _ = Preprocessing(window=None).transform(source)
    np.testing.assert_allclose(by_record[0], (x - x.mean()) / x.std(), atol=2e-5)
    by_lead, _ = Preprocessing(normalisation="lead", window=None).transform(source)
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(by_lead[0], expected, atol=2e-5)
    # A part is normalised as the whole is.
    part, _ = Preprocessing(window=5.0).transform(source)
    np.testing.assert_allclose(part[0], by_record[0][:, 750:1250], atol=1e-6)


def test_unusable_leads_do_not_count():
    x = twelve_leads(1500)
    x[6], x[7] = 0.4, np.nan
    x[8, 200:900] = np.nan
    source = Record(signal=x, sampling_rate=100, lead_names=STANDARD_LEADS)
    settings_ = Preprocessing(window=None, band=None)
    with pytest.warns(UserWarning, match="the leads V2 are missing in recording 0; they are masked"):
        signals, mask = settings_.transform(source)
    usable = x.copy()
    usable[6] = np.nan
    expected = (usable - np.nanmean(usable)) / np.nanstd(usable)
    assert mask[0].tolist() == [True] * 6 + [False] * 3 + [True] * 3
    np.testing.assert_allclose(signals[0][mask[0]], expected[mask[0]], atol=1e-5)
    assert not signals[0][~mask[0]].any()


# Gaps, flat and missing leads -----------------------------------------------------------------------------------------


def test_gap_policies():
    x = np.sin(np.arange(1000) / 20)
    x[400:420], x[700:721] = np.nan, np.nan
    source = one_lead(x, record_id="gappy")
    base = PLAIN | {"window": 3.0, "max_gap": 0.2}
    masks = {w.start: bool(w.mask[0]) for w in Preprocessing(**base).windows(source)}
    assert masks == {0: True, 3: True, 6: False, 7: False}
    bridged = next(iter(Preprocessing(**base | {"stride": 3.5}).windows(source)))
    np.testing.assert_allclose(bridged.signal[0], x[:300].astype(np.float32))
    second = list(Preprocessing(**base).windows(source))[1].signal[0]
    line = np.linspace(x[399], x[420], 22)[1:-1]
    np.testing.assert_allclose(second[100:120], line, atol=1e-6)
    with pytest.raises(ValueError, match=r"gappy has a gap longer than max_gap=0.2 s; .*long_gaps='mask'"):
        Preprocessing(**base, long_gaps="refuse").transform(source)
    x[700:721] = 0
    signals, mask = Preprocessing(**base, long_gaps="refuse").transform(one_lead(x))
    assert mask.all()
    # A lead that the recording lacks is no gap.
    lacking = Preprocessing(long_gaps="refuse", leads=("I", "V1"), missing_leads="mask")
    with pytest.warns(UserWarning, match="V1"):
        assert lacking.transform(record(leads=["I"]))[1].tolist() == [[True, False]]


def test_gap_does_not_disturb_other_leads_nor_later_windows():
    x = twelve_leads(6000)
    y = x.copy()
    y[9, 1000:1500] = np.nan
    settings_ = Preprocessing(normalisation="none", window=10.0, stride=10.0)
    clean, gappy = (
        list(settings_.windows(Record(signal=z, sampling_rate=100, lead_names=STANDARD_LEADS))) for z in (x, y)
    )
    for a, b in zip(clean, gappy, strict=True):
        np.testing.assert_array_equal(np.delete(a.signal, 9, 0), np.delete(b.signal, 9, 0))
    np.testing.assert_allclose(clean[4].signal[9], gappy[4].signal[9], atol=1e-5)
    assert [bool(w.mask[9]) for w in gappy] == [True, False, True, True, True, True]


def test_flat_is_judged_before_the_filters_and_within_the_window():
    x = np.random.default_rng(0).normal(size=3000)
    x[1000:2000] = 7.0
    found = list(Preprocessing(**PLAIN | {"window": 10.0, "band": (0.5, 45.0)}).windows(one_lead(x)))
    assert [bool(w.mask[0]) for w in found] == [True, False, True]
    assert not found[1].signal.any()
    assert found[0].signal.any()
    tiny = one_lead(1e-3 * np.arange(1000) / 999)
    for flat_range, usable in ((1e-3, False), (9e-4, True)):
        settings_ = Preprocessing(**PLAIN | {"flat_range": flat_range})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert settings_.transform(tiny)[1].all() == usable


def test_recording_without_any_usable_lead_is_told():
    dead = one_lead(np.zeros(1000), record_id="dead")
    with pytest.warns(UserWarning, match="no lead is usable in dead; see quality_report"):
        signals, mask = Preprocessing(**PLAIN).transform([dead, one_lead(np.random.default_rng(0).normal(size=1000))])
    assert mask.tolist() == [[False], [True]]
    assert not signals[0].any()
    empty = Record(signal=np.full((1, 1000), np.nan), sampling_rate=100, lead_names=("ECG",))
    with pytest.warns(UserWarning, match="no lead is usable"), pytest.warns(UserWarning, match="ECG are missing"):
        assert not Preprocessing(**PLAIN).transform(empty)[1].any()


def test_missing_leads_are_masked_with_a_warning_or_refused():
    known = [lead for lead in STANDARD_LEADS if lead not in ("V6", "aVL")]
    records = [record(seed=1), record(seed=2, leads=known, record_id="short")]
    with pytest.warns(UserWarning, match="the leads V6 are missing in short; they are masked") as told:
        signals, mask = Preprocessing().transform(records)
    assert len(told) == 1
    assert mask.tolist() == [[True] * 12, [True] * 11 + [False]]
    assert not signals[1, 11].any()
    with pytest.raises(ValueError, match=r"V6 are missing in short; leave those recordings out, or set missing_leads="):
        Preprocessing(missing_leads="refuse").transform(records)
    # aVL was derived: the same as if it had been recorded.
    everything, _ = Preprocessing(normalisation="none").transform(record(seed=2))
    with pytest.warns(UserWarning, match="V6"):
        derived, _ = Preprocessing(normalisation="none").transform(records[1])
    np.testing.assert_allclose(derived[0, :11], everything[0, :11], atol=1e-6)


# Order, units, rates --------------------------------------------------------------------------------------------------


def test_leads_are_found_by_name_whatever_their_order(quiet):
    order = np.random.default_rng(0).permutation(12)
    source = record()
    names = tuple(STANDARD_LEADS[i].upper() for i in order)
    shuffled = Record(signal=source.signal[order], sampling_rate=100.0, lead_names=names)
    for a, b in zip(Preprocessing().transform(source), Preprocessing().transform(shuffled), strict=True):
        np.testing.assert_array_equal(a, b)
    array, _ = Preprocessing().transform(source.signal[order][None], sampling_rate=100, lead_names=names)
    np.testing.assert_array_equal(array, Preprocessing().transform(source)[0])


def test_wrong_order_is_refused():
    x = twelve_leads(1000)[None]
    Preprocessing().transform(x, sampling_rate=100)
    # The order of a data set in circulation: I, II, V1 to V6, III, aVR, aVL, aVF.
    wrong = x[:, [0, 1, *range(6, 12), 2, 3, 4, 5]]
    with pytest.raises(ValueError, match=r"recording 0: the limb leads contradict III = II - I.*wrong lead order"):
        Preprocessing().transform(wrong, sampling_rate=100)
    with pytest.raises(ValueError, match="wrong lead order"):
        Preprocessing().windows(wrong[0], sampling_rate=100)
    with pytest.warns(UserWarning, match="wrong lead order"):
        Preprocessing(limb_leads="warn").transform(wrong, sampling_rate=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Preprocessing(limb_leads="ignore").transform(wrong, sampling_rate=100)


def test_microvolts_are_refused_or_converted():
    x = twelve_leads(1000)[None]
    with pytest.raises(
        ValueError, match=r"recording 0: the leads reach .* mV, above largest_amplitude=20 mV.*unit='uV'"
    ):
        Preprocessing().transform(x * 1000, sampling_rate=100)
    converted, _ = Preprocessing().transform(x * 1000, sampling_rate=100, unit="uV")
    np.testing.assert_allclose(converted, Preprocessing().transform(x, sampling_rate=100)[0], atol=1e-5)
    Preprocessing(largest_amplitude=None).transform(x * 1000, sampling_rate=100)
    offset = x + 300  # an electrode offset is no amplitude
    assert Preprocessing(leads=["V1"]).transform(offset[:, 6:7], sampling_rate=100)[1].all()
    x[0, 6, 5] = 90.0  # nor is one spike
    Preprocessing().transform(x, sampling_rate=100)


def test_rates_are_stated_once():
    source = record(2570, rate=257.0, record_id="i1")
    with pytest.raises(ValueError, match="record i1 has 257 Hz, but sampling_rate=500 was given"):
        Preprocessing().transform(source, sampling_rate=500)
    assert Preprocessing().transform(source)[0].shape == (1, 12, 1000)
    with pytest.raises(ValueError, match="give sampling_rate="):
        Preprocessing().transform(twelve_leads(100)[None])
    with pytest.raises(ValueError, match="12 lead names"):
        Preprocessing().transform(twelve_leads(100)[None, :3], sampling_rate=100)


def test_kinds_of_input_give_the_same():
    x = twelve_leads(1000)[6]
    settings_ = Preprocessing(leads=["V1"])
    expected, _ = settings_.transform(Record(signal=x[None], sampling_rate=100, lead_names=["V1"]))
    for given_ in (x[None], x[None, None], [x[None]], [x]):
        np.testing.assert_array_equal(settings_.transform(given_, sampling_rate=100)[0], expected)
    single, _ = settings_.transform(x[None].astype(np.float32), sampling_rate=100)
    np.testing.assert_allclose(single, expected, atol=1e-5)


# The object -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"band": None, "window": None}, {"band": (None, 40), "leads": ["DI", "v1"]}])
def test_survives_json(change):
    one = Preprocessing(**change)
    again = Preprocessing.from_dict(json.loads(json.dumps(one.to_dict())))
    assert again == one
    assert hash(again) == hash(one)
    assert dataclasses.replace(again, stride=1.0) != one
    assert Preprocessing(band=[0.5, 45.0], leads=list(STANDARD_LEADS)) == Preprocessing()


def test_foreign_parameters_are_refused():
    stored = Preprocessing().to_dict()
    for bad in ({**stored, "extra": 1}, {k: v for k, v in stored.items() if k != "band"}):
        with pytest.raises(ValueError, match="a preprocessing has the parameters"):
            Preprocessing.from_dict(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate must be a number above 0, got 0"),
        ({"leads": []}, "lead names must be given"),
        ({"leads": ("V1", "C1")}, "both mean lead V1"),
        ({"band": (0.5, 50)}, "the high edge of band must be a number above 0 and below 50.0, got 50"),
        ({"band": (0, 40)}, "the low edge of band must be a number above 0"),
        ({"band": (40, 0.5)}, r"band must be \(low, high\) in Hz with low < high"),
        ({"band": (None, None)}, r"band must be \(low, high\)"),
        ({"filter_order": 2.5}, "filter_order must be an integer"),
        ({"notch": 50}, "notch must be a number above 0 and below 50.0, got 50"),
        ({"window": 0.001}, "window must be a number at least 0.01"),
        ({"stride": 0}, "stride must be a number at least 0.01"),
        ({"max_gap": -1}, "max_gap must be"),
        ({"flat_range": "no"}, "flat_range must be"),
        ({"largest_amplitude": 0}, "largest_amplitude must be"),
        ({"normalisation": "z"}, "normalisation must be one of 'record', 'lead', 'none', got 'z'"),
        ({"too_short": "crop"}, "too_short must be one of"),
        ({"too_long": "crop"}, "too_long must be one of"),
        ({"long_gaps": "fill"}, "long_gaps must be one of"),
        ({"missing_leads": "fill"}, "missing_leads must be one of"),
        ({"limb_leads": "swap"}, "limb_leads must be one of"),
    ],
)
def test_impossible_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**change)

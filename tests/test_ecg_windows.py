"""Windows of long recordings: blocks give what the whole gives, in memory that does not grow."""

import tracemalloc
import warnings

import numpy as np
import pytest
from ecg_cases import record, twelve_leads

from ssmseq.ecg import windows as windows_module
from ssmseq.ecg.leads import STANDARD_LEADS
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.ecg.records import Record

PLAIN = {"band": None, "normalisation": "none", "window": None, "leads": ("ECG",)}


def one_lead(signal, rate=100.0, **known) -> Record:
    signal = np.atleast_2d(signal).astype(float)
    return Record(signal=signal, sampling_rate=rate, lead_names=("ECG",), **known)


def long_record(seconds=70.0, rate=257.0, seed=3):
    """A recording with short and long gaps, also at its ends, a flat stretch and an empty lead."""
    n = round(seconds * rate)
    x = twelve_leads(n, rate=rate, seed=seed) + 0.3 * np.sin(np.arange(n) / rate)
    x[2:6] = x[1] - x[0], -(x[0] + x[1]) / 2, x[0] - x[1] / 2, x[1] - x[0] / 2
    x[6, 3000:3010] = np.nan
    x[7, 5000:9000] = np.nan
    x[8, :60] = np.nan
    x[8, -30:] = np.nan
    x[9, 4000:10_000] = 0.25
    x[10] = np.nan
    return Record(signal=x, sampling_rate=rate, lead_names=STANDARD_LEADS)


@pytest.mark.parametrize("normalisation", ["none", "record", "lead"])
@pytest.mark.parametrize(("target", "notch"), [(100.0, None), (500.0, 50.0), (257.0, 60.0)])
@pytest.mark.filterwarnings("ignore:the leads V5 are missing")
def test_blocks_give_what_the_whole_gives(monkeypatch, normalisation, target, notch):
    source = long_record()
    settings_ = Preprocessing(
        sampling_rate=target, notch=notch, normalisation=normalisation, window=4.0, stride=3.3, max_gap=0.1
    )
    monkeypatch.setattr(windows_module, "BLOCK_SECONDS", 1000.0)
    expected = list(settings_.windows(source))
    monkeypatch.setattr(windows_module, "BLOCK_SECONDS", 9.0)
    found = list(settings_.windows(source))
    assert [w.start for w in found] == [w.start for w in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)
        np.testing.assert_allclose(ours.signal, theirs.signal, atol=5e-6)
    assert np.abs(np.concatenate([w.signal for w in expected])).max() > 0.5
    masked = {STANDARD_LEADS[i]: sum(not w.mask[i] for w in expected) for i in range(12)}
    assert masked["V5"] == len(expected)
    assert masked["V1"] == masked["I"] == 0
    assert 0 < masked["V2"] < len(expected)
    assert 2 <= masked["V3"] <= 3  # a long gap at the start, one at the end
    assert 0 < masked["V4"] < len(expected)


@pytest.mark.parametrize("rate", [100.0, 257.0])
@pytest.mark.parametrize("length", [10, 20, 21, 60])
def test_gaps_across_the_ends_of_blocks_count_in_full(monkeypatch, rate, length):
    """Without filters nothing but the gap's own length makes a block look beyond its ends."""
    settings_ = Preprocessing(**PLAIN | {"window": 1.0}, max_gap=20 / rate)
    for shift in (-length, 5 - length, -length // 2, -5, 0):
        x = np.sin(np.arange(round(5 * rate)) / 7)
        x[round(2 * rate) + shift :][:length] = np.nan
        monkeypatch.setattr(windows_module, "BLOCK_SECONDS", 1000.0)
        expected = list(settings_.windows(one_lead(x, rate)))
        monkeypatch.setattr(windows_module, "BLOCK_SECONDS", 1.0)
        found = list(settings_.windows(one_lead(x, rate)))
        assert [w.mask.tolist() for w in found] == [w.mask.tolist() for w in expected]
        assert all(w.mask.all() for w in found) == (length <= 20)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.signal, theirs.signal, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the leads V5 are missing")
def test_windows_are_pieces_of_the_prepared_recording():
    source = long_record()
    settings_ = Preprocessing(window=7.0, stride=2.5)
    prepared = settings_.prepare(source)[0]
    assert prepared.start == 0
    for found in settings_.windows(source):
        start = round(found.start * 100)
        both = prepared.mask & found.mask  # a lead may be flat in a window and not in the whole
        assert both.sum() >= 8
        np.testing.assert_allclose(found.signal[both], prepared.signal[both, start : start + 700], atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "window", "stride", "starts"),
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (10, 4, None, [0, 4, 6]),
        (10, 10, None, [0]),
        (10.01, 10, None, [0, 0.01]),
        (3, 10, None, [0]),
        (10, 3, 5, [0, 5, 7]),
    ],
)
def test_windows_cover_the_recording(seconds, window, stride, starts):
    settings_ = Preprocessing(**PLAIN | {"window": window, "stride": stride})
    x = np.random.default_rng(0).normal(size=round(seconds * 100))
    found = list(settings_.windows(one_lead(x)))
    assert [w.start for w in found] == pytest.approx(starts)
    for w in found:
        piece = x[round(w.start * 100) :][: round(window * 100)]
        np.testing.assert_array_equal(w.signal[0, : len(piece)], piece.astype(np.float32))
        assert not w.signal[0, len(piece) :].any()
        assert w.signal.shape == (1, round(window * 100))
    assert [w.start for w in settings_.windows(np.array([x]), sampling_rate=100)] == [w.start for w in found]


def test_memory_does_not_grow_with_the_recording():
    settings_ = Preprocessing(stride=5.0)

    def peak(minutes):
        source = record(round(minutes * 60 * 257), rate=257.0)
        tracemalloc.start()
        n_windows = sum(1 for _ in settings_.windows(source))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory, n_windows

    (short, n_short), (long, n_long) = peak(2.5), peak(10)
    assert n_long > 3.9 * n_short
    assert long < 1.1 * short + 2e5


def test_windows_takes_one_recording_with_a_length():
    with pytest.raises(ValueError, match="windows takes one recording, got 2: call it for each"):
        Preprocessing().windows([record(), record()])
    with pytest.raises(ValueError, match="windows needs a length: set window to seconds"):
        Preprocessing(window=None).windows(record())


def test_length_policies():
    x = np.random.default_rng(0).normal(size=500)
    base = PLAIN | {"window": 3.0}
    for policy, start in (("center", 100), ("start", 0)):
        signals, _ = Preprocessing(**base, too_long=policy).transform(one_lead(x))
        np.testing.assert_array_equal(signals[0, 0], x[start : start + 300].astype(np.float32))
    with pytest.raises(ValueError, match="r9 lasts 5 s, longer than the window of 3 s; cut it, or set too_long"):
        Preprocessing(**base, too_long="refuse").transform(one_lead(x, record_id="r9"))
    short = one_lead(x[:200] + 3, record_id="r8")
    signals, mask = Preprocessing(**base | {"normalisation": "lead"}).transform(short)
    np.testing.assert_allclose(signals[0, 0, :200], (x[:200] - x[:200].mean()) / x[:200].std(), atol=1e-5)
    assert not signals[0, 0, 200:].any()
    assert mask.all()
    refusing = Preprocessing(**base, too_short="refuse")
    with pytest.raises(
        ValueError, match="r8 lasts 2 s, shorter than the window of 3 s; leave it out, or set too_short"
    ):
        refusing.transform(short)
    with pytest.raises(ValueError, match="r8 lasts 2 s, shorter"):
        refusing.windows(short)
    with pytest.raises(ValueError, match="recording 1 has 200 samples at 100 Hz, the first recording 500: set window"):
        Preprocessing(**PLAIN).transform([one_lead(x), one_lead(x[:200])])
    prepared = Preprocessing(**PLAIN).prepare([one_lead(x), one_lead(x[:200])])
    assert [w.signal.shape for w in prepared] == [(1, 500), (1, 200)]


@pytest.mark.parametrize("n_times", [1, 2, 3, 7])
def test_very_short_recordings(n_times):
    x = twelve_leads(n_times)
    given_ = Record(signal=x, sampling_rate=100, lead_names=STANDARD_LEADS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one sample is flat
        signals, mask = Preprocessing().transform(given_)
    assert np.isfinite(signals).all()
    assert mask.any() == (n_times > 1)

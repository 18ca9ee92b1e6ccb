"""Filters against their formulas, resampling against sinusoids, gaps written out."""

import warnings

import numpy as np
import pytest
from ecg_cases import record, twelve_leads
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.ecg.filtering import fill_gaps, resampling_ratio
from ssmseq.ecg.preprocessing import Preprocessing
from ssmseq.ecg.records import Record

PLAIN = {"band": None, "normalisation": "none", "window": None, "leads": ("ECG",)}


def one_lead(signal, rate=100.0, **known) -> Record:
    signal = np.atleast_2d(signal).astype(float)
    return Record(signal=signal, sampling_rate=rate, lead_names=("ECG",), **known)


def whole(settings_, signal, rate=100.0):
    """The processed signal of one lead at its full length."""
    return settings_.prepare(one_lead(signal, rate))[0].signal[0].astype(float)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Filters --------------------------------------------------------------------------------------------------------------


def butterworth_power(frequency, band, order, rate):
    """|H|^2 of the digital filter from the analogue formula, with frequencies warped by the bilinear transform."""
    low, high = (None if edge is None else np.tan(np.pi * edge / rate) for edge in band)
    w = np.tan(np.pi * frequency / rate)
    with np.errstate(divide="ignore"):
        if low is None:
            distance = w / high
        elif high is None:
            distance = low / w
        else:
            distance = (w**2 - low * high) / (w * (high - low))
    return 1 / (1 + distance ** (2 * order))


@pytest.mark.parametrize("band", [(0.5, 45.0), (3.0, 20.0), (None, 40.0), (0.67, None)])
@pytest.mark.parametrize("order", [1, 3, 4])
@pytest.mark.parametrize("rate", [100.0, 500.0])
def test_pass_band_has_the_butterworth_response_once_each_way(band, order, rate):
    n = round(80 * rate)
    impulse = np.zeros(n)
    impulse[n // 2] = 1
    response = whole(Preprocessing(**PLAIN | {"band": band}, filter_order=order, sampling_rate=rate), impulse, rate)
    found = np.abs(np.fft.rfft(response))
    frequencies = np.fft.rfftfreq(n, 1 / rate)
    np.testing.assert_allclose(found, butterworth_power(frequencies, band, order, rate), atol=1e-5)
    np.testing.assert_allclose(response[1:], response[1:][::-1], atol=1e-6)  # symmetric: nothing is shifted


@pytest.mark.parametrize("line", [50.0, 60.0])
def test_notch_has_the_formulas_response(line):
    rate, n = 500.0, 20_000
    impulse = np.zeros(n)
    impulse[n // 2] = 1
    response = whole(Preprocessing(**PLAIN, notch=line, sampling_rate=rate), impulse, rate)
    w, w0 = 2 * np.pi * np.fft.rfftfreq(n), 2 * np.pi * line / rate
    away = (np.cos(w) - np.cos(w0)) ** 2
    expected = away / (away + (np.tan(w0 / 30 / 2) * np.sin(w)) ** 2)
    np.testing.assert_allclose(np.abs(np.fft.rfft(response)), expected, atol=1e-5)


def test_filters_are_the_same_whatever_the_source_rate():
    t = {rate: np.arange(round(30 * rate)) / rate for rate in (200.0, 360.0, 1000.0)}
    settings_ = Preprocessing(**PLAIN | {"band": (0.5, 40.0)}, notch=48.0)
    results = [whole(settings_, np.sin(2 * np.pi * 7 * t[r]) + 0.3 * np.sin(2 * np.pi * 0.1 * t[r]), r) for r in t]
    for result in results:
        expected = butterworth_power(7.0, (0.5, 40.0), 3, 100.0) * np.sin(2 * np.pi * 7 * np.arange(3000) / 100)
        np.testing.assert_allclose(result[1000:2000], expected[1000:2000], atol=2e-3)


def test_nothing_to_do_changes_nothing(quiet):
    x = twelve_leads(777)
    settings_ = Preprocessing(band=None, normalisation="none", window=None)
    signals, mask = settings_.transform(record(777))
    np.testing.assert_array_equal(signals[0], x.astype(np.float32))
    assert (signals.dtype, signals.shape, mask.dtype, mask.shape) == (np.float32, (1, 12, 777), bool, (1, 12))
    assert mask.all()


# Resampling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "target"),
    [(257, 500), (500, 100), (1000, 500), (360, 100), (300, 100), (128, 100), (100, 500), (257, 100), (250.5, 100)],
)
def test_sinusoids_are_resampled_to_themselves(rate, target):
    n = round(20 * rate) + 3
    t = np.arange(n) / rate
    settings_ = Preprocessing(**PLAIN, sampling_rate=target)
    for share in (0.02, 0.3, 0.7):
        frequency = share * min(rate, target) / 2
        result = whole(settings_, np.sin(2 * np.pi * frequency * t + 0.4), rate)
        up, down = resampling_ratio(rate, target)
        assert up * rate == down * target
        assert len(result) == -(-n * up // down)
        expected = np.sin(2 * np.pi * frequency * np.arange(len(result)) / target + 0.4)
        inner = slice(target, -target)
        np.testing.assert_allclose(result[inner], expected[inner], atol=2e-4)


@pytest.mark.parametrize(("rate", "target"), [(500, 100), (257, 100), (1000, 500)])
def test_what_the_new_rate_cannot_show_is_removed(rate, target):
    t = np.arange(20 * rate) / rate
    result = whole(Preprocessing(**PLAIN, sampling_rate=target), np.sin(2 * np.pi * 0.62 * target * t), rate)
    assert np.abs(result[target:-target]).max() < 1.2e-4


def test_constants_stay_to_the_ends():
    x = np.full(900, 5.0)
    x[450] = 5.1  # else it would be flat
    result = whole(Preprocessing(**PLAIN, sampling_rate=500), x, 257)
    np.testing.assert_allclose(result[:600], 5, atol=2e-4)
    np.testing.assert_allclose(result[-600:], 5, atol=2e-4)


@pytest.mark.parametrize(
    ("rate", "target", "ratio"), [(257, 500, (500, 257)), (333.3, 100, (1000, 3333)), (100, 100.0, (1, 1))]
)
def test_ratios_are_exact(rate, target, ratio):
    assert resampling_ratio(rate, target) == ratio


def test_odd_ratio_is_refused():
    with pytest.raises(ValueError, match="resampling from 499.98765 to 100 Hz needs the ratio 2000000/9999753"):
        Preprocessing(**PLAIN).transform(one_lead(twelve_leads(50)[0], 499.98765))


# Gaps -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=30),
    longest=st.integers(0, 6),
)
def test_gaps_are_filled_as_written_out(values, longest):
    x = np.array([np.nan if v is None else v for v in values], float)
    filled, invalid = fill_gaps(x[None], longest)
    seen = [i for i, v in enumerate(values) if v is not None]
    for i, value in enumerate(values):
        if value is not None:
            assert filled[0, i] == value
            assert not invalid[0, i]
            continue
        before, after = max((s for s in seen if s < i), default=None), min((s for s in seen if s > i), default=None)
        if before is None and after is None:
            assert filled[0, i] == 0
            assert invalid[0, i]
            continue
        length = (len(values) if after is None else after) - (-1 if before is None else before) - 1
        assert invalid[0, i] == (length > longest)
        if before is None or after is None:
            assert filled[0, i] == x[after if before is None else before]
        elif length > longest:
            assert filled[0, i] == x[before if i - before <= after - i else after]
        else:
            share = (i - before) / (after - before)
            assert filled[0, i] == pytest.approx(x[before] * (1 - share) + x[after] * share)

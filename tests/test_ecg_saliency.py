"""What the logit of a label rests on: saliency against finite differences, hidden segments and planted bumps."""

import tracemalloc

import numpy as np
import pytest
import torch
from ecg_waves import RATE, as_records, copied, small, waves
from scipy.special import logsumexp

from ssmseq import Record
from ssmseq.ecg import SaliencyDisplay, saliency

METHODS = ("gradient", "occlusion")


@pytest.fixture(scope="module")
def fitted():
    """Fitted on records, windows of a second that overlap, everything in float64; no test may change it."""
    X, y = waves()
    return in_double(small(window=1.0, stride=0.5, limb_leads="ignore", max_epochs=3).fit(as_records(X), y))


@pytest.fixture(scope="module")
def bumps():
    """Recordings with a bump in lead V2 or none, and a classifier that tells them apart; the bump is at `where`."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    where = rng.uniform(0.4, 1.6, 60)
    X = 0.1 * rng.standard_normal((60, 3, 100))
    X[:, 1] += y[:, None] * np.exp(-(((np.arange(100) / RATE - where[:, None]) / 0.06) ** 2))
    est = small(leads=("I", "V2", "V5"), max_epochs=15, encoder="cnn", pooling="max").fit(
        X, y[:, None] * [1, 0] + [0, 1]
    )
    return est, X, y, where


def in_double(est):
    est = copied(est)
    est.network_.double()
    return est


def one_record(n_times=50, seed=3, **known) -> Record:
    return as_records(waves(4, n_times, seed)[0], **known)[0]


def changed(record: Record, values) -> Record:
    return Record(signal=values, sampling_rate=record.sampling_rate, lead_names=record.lead_names)


def logit(est, record, column) -> float:
    """Return the logit of a recording from its public outputs."""
    z = est.decision_function([record])[0]
    return float(z[column]) if not est.exclusive_ else float(z[column] - logsumexp(np.delete(z, column)))


def test_gradients_are_those_of_finite_differences(fitted):
    record = one_record()
    found = SaliencyDisplay.from_estimator(fitted, record, label=1, smoothing=0)
    assert found.saliency.shape == (3, 50)
    for lead, t in ((0, 0), (1, 17), (2, 49)):
        shift = np.zeros((3, 50))
        shift[lead, t] = 1e-3  # windows are float32
        up, down = (logit(fitted, changed(record, record.signal + sign * shift), 1) for sign in (1, -1))
        from_mean = record.signal[lead, t] - record.signal[lead].mean()
        np.testing.assert_allclose(found.saliency[lead, t], from_mean * (up - down) / 2e-3, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("label", [0, 1])
def test_occlusion_is_the_change_of_the_logit(fitted, label):
    record = one_record()
    found = SaliencyDisplay.from_estimator(fitted, record, label=label, method="occlusion", width=0.3)
    assert found.probability == fitted.predict_proba([record])[0, label]
    for lead in range(3):
        for a, b in ((0, 15), (15, 30), (30, 45), (45, 50)):
            values = record.signal.copy()
            values[lead, a:b] = values[lead].mean()
            expected = logit(fitted, record, label) - logit(fitted, changed(record, values), label)
            np.testing.assert_allclose(found.saliency[lead, a:b], expected, rtol=1e-5, atol=1e-9)


def test_exclusive_classes_are_measured_against_all_others():
    X, y = waves(48, 50)
    est = in_double(small(limb_leads="ignore", max_epochs=3).fit(as_records(X), np.array(["a", "b", "c"])[y.sum(1)]))
    record = one_record()
    found = SaliencyDisplay.from_estimator(est, record, label="b", method="occlusion", width=0.5)
    values = record.signal.copy()
    values[1, :25] = values[1].mean()
    z, other = (est.decision_function([r])[0] for r in (record, changed(record, values)))
    expected = (z[1] - logsumexp(z[[0, 2]])) - (other[1] - logsumexp(other[[0, 2]]))
    np.testing.assert_allclose(found.saliency[1, :25], expected, rtol=1e-5)
    default = SaliencyDisplay.from_estimator(est, record)
    assert default.label == est.predict([record])[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_maximum_falls_on_a_planted_bump(bumps, method):
    est, X, y, where = bumps
    for i in np.flatnonzero(y)[:6]:
        found = SaliencyDisplay.from_estimator(est, X[i], label=0, method=method, width=0.1)
        lead, t = np.unravel_index(found.saliency.argmax(), found.saliency.shape)
        assert found.leads[lead] == "V2"
        assert abs(found.seconds[t] - where[i]) < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_windows_are_averaged_where_they_overlap(fitted, method):
    record = one_record(75)  # windows start at 0 and 0.5 s
    options = {"label": 0, "method": method, "smoothing": 0, "width": 0.1}
    found = SaliencyDisplay.from_estimator(fitted, record, **options).saliency
    first, second = (
        SaliencyDisplay.from_estimator(fitted, changed(record, record.signal[:, a : a + 50]), **options).saliency
        for a in (0, 25)
    )
    np.testing.assert_allclose(found[:, :25], first[:, :25], rtol=1e-9)
    np.testing.assert_allclose(found[:, 50:], second[:, 25:], rtol=1e-9)
    shared = 50 if method == "gradient" else 30  # the windows' own ends cut segments in other places from there on
    np.testing.assert_allclose(found[:, 25:shared], (first[:, 25:shared] + second[:, : shared - 25]) / 2, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_part_is_that_part_of_the_whole(fitted, method):
    record = one_record(333)
    whole = SaliencyDisplay.from_estimator(fitted, record, label=0, method=method, smoothing=0.3)
    part = SaliencyDisplay.from_estimator(fitted, record, label=0, method=method, smoothing=0.3, start=1.31, stop=4.5)
    np.testing.assert_array_equal(part.seconds, whole.seconds[65:225])
    np.testing.assert_allclose(part.saliency, whole.saliency[:, 65:225], rtol=1e-9, atol=1e-15)


def test_smoothing_is_a_moving_average(fitted):
    record = one_record(80)
    raw, smooth = (SaliencyDisplay.from_estimator(fitted, record, label=0, smoothing=s).saliency for s in (0, 0.2))
    for t in (0, 3, 40, 79):
        np.testing.assert_allclose(smooth[:, t], raw[:, max(t - 5, 0) : t + 6].mean(1), rtol=1e-9)


def test_batches_change_nothing(fitted):
    record = one_record()
    est = copied(fitted)
    est.batch_size = 7
    for method in METHODS:
        once, parts = (
            SaliencyDisplay.from_estimator(e, record, label=0, method=method).saliency for e in (fitted, est)
        )
        np.testing.assert_allclose(parts, once, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:.*missing")
@pytest.mark.parametrize("method", METHODS)
def test_masked_leads_have_none(fitted, method):
    record = one_record(150)
    values = record.signal.copy()
    values[1], values[2, :60] = 0.5, np.nan
    found = SaliencyDisplay.from_estimator(fitted, changed(record, values), label=0, method=method, smoothing=0)
    assert (found.saliency[1] == 0).all()
    assert found.usable.tolist() == [1, 0, 0.4]  # windows start at 0, 0.5, 1, 1.5 and 2 s; the gap ends at 1.2 s
    assert (found.saliency[2, :60] == 0).all()
    assert (found.saliency[0] != 0).mean() > 0.9
    assert [found._masked(lead) for lead in ("I", "II", "III")] == ["", " (masked)", " (masked in part)"]
    missing = Record(signal=record.signal[:1], sampling_rate=RATE, lead_names=("I",))
    found = SaliencyDisplay.from_estimator(fitted, missing, label=0, method=method)
    assert (found.saliency[1:] == 0).all()


def test_padding_is_no_part_of_it(fitted):
    for method in METHODS:
        found = SaliencyDisplay.from_estimator(fitted, one_record(31), label=0, method=method)
        assert found.saliency.shape == (3, 31)
        assert np.isfinite(found.saliency).all()
    record = one_record(31)
    values = record.signal.copy()
    values[0, 25:] = values[0].mean()
    whole = SaliencyDisplay.from_estimator(fitted, record, label=0, method="occlusion", width=0.5)
    expected = logit(fitted, record, 0) - logit(fitted, changed(record, values), 0)
    np.testing.assert_allclose(whole.saliency[0, 25:], expected, rtol=1e-5)


def test_where_no_window_looks_nothing_is_known():
    X, y = waves(24, 100)
    est = small(window=0.5, stride=1.0, max_epochs=1).fit(as_records(X), y)
    found = SaliencyDisplay.from_estimator(est, one_record(100), label=0).saliency
    looked = np.zeros(100, bool)
    for start in (0, 50, 75):
        looked[start : start + 25] = True
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(~looked, (3, 100)))


def test_metadata_and_scales_are_those_of_predict():
    X, y = waves(24, 50)
    records = as_records(3 * X + 1, age=60.0, sex="F")
    est = in_double(small(metadata=True, max_epochs=2, limb_leads="ignore").fit(records, y))
    record = records[0]
    found = SaliencyDisplay.from_estimator(est, record, label=1, method="occlusion", width=0.5)
    values = record.signal.copy()
    values[2, :25] = values[2].mean()
    other = Record(signal=values, sampling_rate=RATE, lead_names=record.lead_names, age=60.0, sex="F")
    np.testing.assert_allclose(found.saliency[2, :25], logit(est, record, 1) - logit(est, other, 1), rtol=1e-5)


def test_rates_differ(fitted):
    X = waves(1, 400, 5)[0]
    found = SaliencyDisplay.from_estimator(fitted, as_records(X, sampling_rate=200.0)[0], label=0)
    np.testing.assert_allclose(found.seconds, np.arange(100) / RATE)


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_recording(fitted, method):
    def peak(n_times: int) -> int:
        record = one_record(n_times)
        tracemalloc.start()
        SaliencyDisplay.from_estimator(fitted, record, label=0, method=method, start=0, stop=2)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(6000)
    short, long = peak(6000), peak(24_000)
    assert long < 1.3 * short


def test_the_network_is_left_as_it_was(fitted):
    before = {k: v.clone() for k, v in fitted.network_.state_dict().items()}
    SaliencyDisplay.from_estimator(fitted, one_record(), method="gradient")
    assert all(torch.equal(v, before[k]) for k, v in fitted.network_.state_dict().items())
    assert all(p.grad is None for p in fitted.network_.parameters())


def test_arrays_of_leads_without_names():
    X, y = waves(24, 50)
    est = small(max_epochs=1).fit(X, y)
    found = SaliencyDisplay.from_estimator(est, X[0])
    assert found.leads == ("channel 0", "channel 1", "channel 2")
    assert found.label == est.classes_[est.predict_proba(X[:1])[0].argmax()]
    table = small(max_epochs=1).fit(X[:, 0], y)
    assert SaliencyDisplay.from_estimator(table, X[0, 0]).saliency.shape == (1, 50)


def test_rows_of_the_frame(fitted):
    found = SaliencyDisplay.from_estimator(fitted, one_record(), label=0)
    frame = found.frame()
    assert list(frame) == ["lead", "seconds", "saliency"]
    rows = frame[frame["lead"] == "II"]
    np.testing.assert_array_equal(rows["saliency"], found.saliency[1])
    np.testing.assert_array_equal(rows["seconds"], found.seconds)


BAD = [
    ({"method": "shap"}, "method must be one of 'gradient', 'occlusion'"),
    ({"label": "MI"}, "label must be one of 0, 1, got 'MI'"),
    ({"start": 1.0}, "start must be"),
    ({"start": 0.5, "stop": 0.5}, "stop must be a number above 0.5"),
    ({"smoothing": -1}, "smoothing must be"),
    ({"width": 0}, "width must be a number above 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_errors_say_what_is_wrong(fitted, options, message):
    with pytest.raises(ValueError, match=message):
        SaliencyDisplay.from_estimator(fitted, one_record(), **options)


def test_another_number_of_leads_is_refused(fitted):
    assert saliency.read_one(fitted, one_record()).lead_names == ("I", "II", "III")
    with pytest.raises(ValueError, match="expecting 3 features"):
        SaliencyDisplay.from_estimator(fitted, np.zeros((2, 50)))

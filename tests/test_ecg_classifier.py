"""ECGMambaClassifier on waves whose labels are known: forms of X and y, leads, rates and units, windows, errors."""

import dataclasses
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ecg_waves import RATE, as_records, copied, small, waves
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from ssmseq import ECGMambaClassifier, Record
from ssmseq.ecg.leads import STANDARD_LEADS


@pytest.fixture(scope="module")
def data():
    return waves()


@pytest.fixture(scope="module")
def fitted(data):
    """Fitted on records; no test may change it."""
    X, y = data
    return small(window=1.0, stride=0.5).fit(as_records(X), y)


def test_it_learns_which_waves_are_there():
    X, y = waves(140, n_times=50)
    est = small(max_epochs=15, validation_fraction=0.2).fit(X[:100], y[:100])
    assert roc_auc_score(y[100:], est.predict_proba(X[100:])) > 0.95
    assert est.score(X[100:], y[100:]) > 0.7
    assert est.history_["valid_loss"].min() < 0.6 * est.history_["valid_loss"].iloc[0]
    assert list(est.history_.columns) == ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]


@pytest.mark.parametrize("encoder", ["add", "hydra", "cnn"])
def test_other_encoders_train_and_predict(data, encoder):
    X, y = data
    est = small(encoder=encoder, max_epochs=3).fit(X, y)
    assert est.history_["train_loss"].iloc[-1] < est.history_["train_loss"].iloc[0]
    assert est.predict_proba(X).shape == y.shape


def test_forms_of_y_are_the_same_labels(data):
    X, y = data
    found = small(max_epochs=1).fit(X, y)
    assert found.classes_.tolist() == [0, 1]
    frame = pd.DataFrame(y, columns=["fast", "slow"])
    sets = [{name for name, there in zip(frame, row, strict=True) if there} for row in y]
    for form in (frame, sets, [tuple(s) for s in sets], [list(s) for s in sets]):
        est = small(max_epochs=1).fit(X, form)
        assert est.classes_.tolist() == ["fast", "slow"]
        np.testing.assert_array_equal(est.predict_proba(X), found.predict_proba(X))
        assert est.score(X, form) == found.score(X, y) == (est.predict(X) == y).all(1).mean()
    assert found.predict(X).dtype == np.int64
    reversed_frame = frame[["slow", "fast"]]
    assert est.score(X, reversed_frame) == found.score(X, y)


def test_forms_of_x_are_the_same_recordings(data):
    X, y = data
    expected = small(max_epochs=1).fit(X, y)
    probabilities = expected.predict_proba(X)
    assert expected.n_features_in_ == 3
    listed = small(max_epochs=1).fit(list(X), y)
    named = small(max_epochs=1, leads=("I", "II", "III")).fit(X, y)
    records = small(max_epochs=1).fit(as_records(X), y)
    for est in (listed, named, records):
        np.testing.assert_array_equal(est.predict_proba(X), probabilities)
        np.testing.assert_array_equal(est.predict_proba(list(X)), probabilities)
        assert est.n_features_in_ == 3
    np.testing.assert_array_equal(records.predict_proba(as_records(X)), probabilities)
    np.testing.assert_array_equal(records.predict_proba(as_records(X)[3]), records.predict_proba(X[3:4]))
    one = X[:, 0]
    table, single = small(max_epochs=1).fit(one, y), small(max_epochs=1).fit(one[:, None], y)
    assert (table.n_features_in_, single.n_features_in_) == (100, 1)
    np.testing.assert_array_equal(table.predict_proba(one), single.predict_proba(one[:, None]))
    np.testing.assert_array_equal(single.predict_proba(one), single.predict_proba(one[:, None]))
    np.testing.assert_array_equal(single.predict_proba(list(one)), single.predict_proba(one[:, None]))


def test_lists_may_hold_unequal_lengths():
    X, y = waves(24)
    cut = [x[:, : 100 - 3 * i] for i, x in enumerate(X)]
    est = small(max_epochs=2).fit(cut, y)
    assert est.preprocessing_.n_times == 100
    together = est.decision_function(cut)
    alone = np.concatenate([est.decision_function([x]) for x in cut])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    flat = [x[0] for x in cut]
    assert small(max_epochs=1).fit(flat, y).predict_proba(flat).shape == (24, 2)


def test_the_network_is_given_normalised_and_padded_windows(data):
    X, y = data
    est = small(max_epochs=1, metadata=False).fit(7 * X + 3, y)
    short = 7 * X[:4, :, :70] + 3
    signal = np.zeros((4, 3, 100))
    signal[..., :70] = (short.astype(np.float32).astype(float) - est.mean_) / est.scale_
    with torch.inference_mode():
        expected = est.network_(torch.from_numpy(signal).float(), torch.ones(4, 3), torch.full((4,), 70))
    np.testing.assert_array_equal(est.decision_function(short), expected.double())
    assert abs(est.mean_) > 1


@pytest.mark.parametrize(("normalisation", "factor"), [("record", 3.0), ("lead", [[3.0], [0.5], [2.0]]), ("none", 1.0)])
def test_normalised_recordings_may_be_scaled(data, normalisation, factor):
    X, y = data
    est = small(max_epochs=2, normalisation=normalisation).fit(X, y)
    np.testing.assert_allclose(est.decision_function(factor * X), est.decision_function(X), atol=1e-5)
    assert np.abs(est.decision_function(X * [[1.0], [7.0], [1.0]]) - est.decision_function(X)).max() > 1e-3 or (
        normalisation == "lead"
    )


@pytest.mark.parametrize("filters", [{"notch": 9.0}, {"band": (None, 6.0)}], ids=["notch", "band"])
def test_filters_hide_what_they_remove(data, filters):
    X, y = data
    hum = X + np.sin(2 * np.pi * 9 * np.arange(100) / RATE)
    moved = {}
    for name, changes in (("plain", {}), ("filtered", filters)):
        est = small(max_epochs=2, **changes).fit(X, y)
        moved[name] = (
            np.abs(est.decision_function(hum) - est.decision_function(X)).mean() / est.decision_function(X).std()
        )
    assert moved["filtered"] < 0.3 * moved["plain"]


def test_a_later_fit_forgets_the_columns_of_an_earlier_one(data):
    X, y = data
    frame = pd.DataFrame(X[:, 0], columns=[f"t{i}" for i in range(100)])
    est = small(max_epochs=1).fit(frame, y)
    assert est.feature_names_in_[3] == "t3"
    assert est.n_features_in_ == 100
    with pytest.raises(ValueError, match="feature names"):
        est.predict(frame.rename(columns={"t3": "t100"}))
    for form in (as_records(X), list(X)):
        est.fit(frame, y).fit(form, y)
        assert not hasattr(est, "feature_names_in_")
        assert est.n_features_in_ == 3


@pytest.mark.parametrize("aggregate", ["mean", "max", "mean_probability"])
def test_long_recordings_are_aggregated_over_windows(fitted, aggregate):
    X, _ = waves(5, n_times=195, seed=3)
    est = copied(fitted).set_params(aggregate=aggregate)
    starts = [*range(0, 145, 25), 145]  # windows of 50 samples, 25 apart, and the last one
    parts = np.stack([est.decision_function(X[..., s : s + 50]) for s in starts])
    expected = {
        "mean": parts.mean(0),
        "max": parts.max(0),
        "mean_probability": logit(expit(parts).mean(0)),
    }[aggregate]
    np.testing.assert_allclose(est.decision_function(X), expected, atol=2e-5)
    np.testing.assert_allclose(est.predict_proba(as_records(X)), expit(expected), atol=1e-5)


def test_classes_that_exclude_each_other_share_a_softmax(data):
    X, y = data
    kind = np.array(["none", "slow", "fast", "both"])[y @ [1, 2]]
    est = small().fit(X, kind)
    assert est.classes_.tolist() == ["both", "fast", "none", "slow"]
    found, scores = est.predict_proba(X), est.decision_function(X)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(found, np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
    assert (est.predict(X) == est.classes_[found.argmax(1)]).all()
    assert est.score(X, kind) == (est.predict(X) == kind).mean()
    binary = small(max_epochs=1).fit(X, y[:, 0].astype(bool))
    assert binary.decision_function(X).shape == (48,)
    np.testing.assert_allclose(binary.predict_proba(X)[:, 1], expit(binary.decision_function(X)))
    averaged = copied(est).set_params(aggregate="mean_probability").predict_proba(X)
    np.testing.assert_allclose(averaged, found, atol=1e-12)  # of one window


def test_records_are_brought_into_the_order_of_the_model(fitted, data):
    X, _ = data
    expected = fitted.predict_proba(as_records(X))
    shuffled = as_records(X[:, [2, 0, 1]], lead_names=("III", "DI", "MDC_ECG_LEAD_II"))
    np.testing.assert_array_equal(fitted.predict_proba(shuffled), expected)
    derived = as_records(X[:, :2], lead_names=("I", "II"))
    np.testing.assert_allclose(fitted.predict_proba(derived), expected, atol=1e-6)


def test_arrays_in_another_order_or_unit_are_refused(fitted, data):
    X, y = data
    with pytest.raises(ValueError, match="limb leads contradict"):
        fitted.predict(X[:, [1, 0, 2]])
    with pytest.raises(ValueError, match="microvolts.*unit='uV'"):
        fitted.predict(1000 * X)
    with pytest.raises(ValueError, match="microvolts"):
        fitted.predict(as_records(1000 * X))
    with pytest.raises(ValueError, match="X has 2 features, but ECGMambaClassifier is expecting 3"):
        fitted.predict(X[:, :2])
    with pytest.raises(ValueError, match="X has 2 leads"):
        fitted.predict(list(X[:, :2]))
    unnamed = small(max_epochs=1).fit(X, y)
    unnamed.predict(1000 * X[:, [1, 0, 2]])  # nothing is known of unit and names
    with pytest.raises(ValueError, match="fitted on arrays without lead names"):
        unnamed.predict(as_records(X))
    with pytest.raises(ValueError, match="leads names 2: I, II"):
        small(leads=("I", "II")).fit(X, y)


def test_records_of_another_rate_are_resampled(fitted, data):
    X, _ = data
    spectrum = np.fft.rfft(X)
    finer = np.fft.irfft(spectrum, 514) * 514 / 100  # 257 Hz
    found = fitted.decision_function(as_records(finer[..., :], sampling_rate=257.0))
    expected = fitted.decision_function(X)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    assert np.abs(found - fitted.decision_function(finer)).max() > 10 * np.abs(found - expected).mean()


def test_missing_leads_are_masked_with_one_warning_or_refused(data):
    X, y = data
    names = ("V1", "V2", "V6")
    est = small(max_epochs=2, window=1.0).fit(as_records(X, lead_names=names), y)
    two = as_records(X[:, :2], lead_names=names[:2])
    with pytest.warns(UserWarning, match="leads are missing.*V6 in 48") as told:
        found = est.predict_proba(two)
    assert len(told) == 1
    blank = X.copy()
    blank[:, 2] = np.nan
    with pytest.warns(UserWarning, match="V6 in 48"):
        np.testing.assert_array_equal(est.predict_proba(as_records(blank, lead_names=names)), found)
    strict = small(max_epochs=1, missing_leads="refuse").fit(as_records(X, lead_names=names), y)
    with pytest.raises(ValueError, match="V6 are missing"):
        strict.predict(two)


def test_gaps_are_bridged_or_masked_and_infinity_is_refused(fitted, data):
    X, _ = data
    expected = fitted.decision_function(X)
    gap = X.copy()
    gap[:, :, 30:33] = np.nan
    assert 0 < np.abs(fitted.decision_function(gap) - expected).mean() < 0.3 * expected.std()
    gap[:, :, 30:60] = np.nan
    gap[1:] = X[1:]
    found = fitted.decision_function(gap)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-5)
    gap[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        fitted.predict(gap)


def test_short_recordings_are_padded_or_refused(data):
    X, y = data
    with pytest.raises(ValueError, match="recording 0 has 100 samples at 50 Hz, less than the 150"):
        small(window=3.0, too_short="refuse").fit(X, y)
    est = small(window=2.0, too_short="refuse", max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match=r"recording 0 lasts 1\.8 s, shorter"):
        est.predict(X[..., :90])


def test_half_an_hour_of_twelve_leads_takes_the_memory_of_a_minute():
    X, y = waves(12)
    twelve = np.concatenate([X, np.tile(X[:, :1], (1, 9, 1))], 1)
    names = STANDARD_LEADS
    a, b = twelve[:, 0], twelve[:, 1]
    twelve[:, 3], twelve[:, 4], twelve[:, 5] = -(a + b) / 2, a - b / 2, b - a / 2
    est = small(window=2.0, max_epochs=1, d_model=4, batch_size=8).fit(as_records(twelve, lead_names=names), y)
    rng = np.random.default_rng(0)
    peaks = {}
    for minutes in (2, 30):
        signal = rng.standard_normal((12, minutes * 60 * 257), dtype=np.float32)
        record = Record(signal=signal, sampling_rate=257.0, lead_names=names)
        est.set_params(limb_leads="ignore")
        est.preprocessing_ = dataclasses.replace(est.preprocessing_, limb_leads="ignore")
        est.predict_proba(record)  # filters are designed once
        tracemalloc.start()
        found = est.predict_proba(record)
        peaks[minutes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.isfinite(found).all()
    assert peaks[30] < 1.5 * peaks[2] + 2e6
    assert peaks[30] < signal.nbytes


@pytest.mark.parametrize("preset", ["vim", "dense", "hydra", "cnn"])
def test_presets_train_with_changes(preset):
    X, y = waves(16, n_times=160)
    changes = {"d_model": 8, "n_layers": 2, "max_epochs": 1, "sampling_rate": RATE, "random_state": 0}
    est = ECGMambaClassifier.from_preset(preset, **changes, accelerator="cpu").fit(X, y)
    assert est.predict_proba(X).shape == y.shape
    assert est.preprocessing_.n_times == (819 if preset == "vim" else 125)
    with pytest.raises(ValueError, match="preset must be one of 'vim'"):
        ECGMambaClassifier.from_preset("resnet")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder": "lstm"}, "encoder must be one of"),
        ({"stem_kernel": 4}, "stem_kernel must be odd"),
        ({"d_model": 0}, "d_model"),
        ({"dropout": 1.0}, "dropout"),
        ({"window": 0.0}, "window"),
        ({"band": (30.0, 20.0)}, "band must be"),
        ({"band": (0.5, 45.0)}, "high edge of band"),
        ({"encoder": "cnn", "pooling": "class_token"}, "class_token"),
        ({"encoder": "hydra", "d_conv": 4}, "d_conv must be odd"),
        ({"n_folds": 1}, "n_folds must be 0, or 2"),
        ({"thresholds": "f1"}, "thresholds='f1' needs recordings"),
        ({"calibration": "platt"}, "calibration='platt' needs recordings"),
        ({"thresholds": "f2"}, "thresholds must be one of"),
        ({"thresholds": [0.5] * 3}, "one for each of 2 labels"),
        ({"positive_weights": [1.0]}, "positive_weights must be"),
        ({"positive_weights": "even"}, "positive_weights must be one of"),
        ({"loss": "mse"}, "loss must be one of"),
        ({"augment": ["flip"]}, "'flip'"),
        ({"stem": "strided", "window": 0.1}, "too short for the strided stem"),
        ({"n_folds": 60, "calibration": "platt"}, "n_splits=60|n_folds"),
        ({"learning_rate": -1}, "learning_rate"),
    ],
    ids=str,
)
def test_errors_name_the_parameter(data, changes, match):
    X, y = data
    with pytest.raises(ValueError, match=match):
        small(**changes).fit(X, y)


@pytest.mark.parametrize(
    ("y", "changes", "match"),
    [
        (np.zeros(48), {}, "at least two classes"),
        (np.arange(48) % 2, {"loss": "focal"}, "loss='focal' is for labels"),
        (np.arange(48) % 2, {"thresholds": 0.3}, "TunedThresholdClassifierCV"),
        (2 * np.ones((48, 2)), {}, "entries must be 0, 1 or NaN"),
        (np.linspace(0, 1, 48), {}, "Unknown label type"),
        (np.zeros((47, 2)), {}, "inconsistent numbers of samples"),
        (None, {}, "y to be passed"),
    ],
)
def test_errors_name_what_is_wrong_with_y(data, y, changes, match):
    with pytest.raises(ValueError, match=match):
        small(**changes).fit(data[0], y)


def test_scores_of_other_labels_are_refused(data):
    X, y = data
    est = small(max_epochs=1).fit(X, [{"a"} if row[0] else {"b"} for row in y])
    with pytest.raises(ValueError, match="labels \\['c'\\]"):
        est.score(X, [{"c"}] * 48)
    with pytest.raises(ValueError, match="y holds one class"):
        est.score(X, y[:, 0])
    with pytest.raises(ValueError, match="3 labels"):
        est.score(X, np.zeros((48, 3)))
    assert est.score(X, [{"a"}] * 48) == (est.predict(X) == [1, 0]).all(1).mean()


def test_recordings_without_a_usable_lead_are_named(data):
    X, y = data
    flat = X.copy()
    flat[5] = 0.25
    with pytest.warns(UserWarning, match="no lead is usable in recording 5"):
        small(max_epochs=1, leads=("I", "II", "III")).fit(flat, y)


@pytest.mark.skipif(
    not (Path(os.environ.get("SSMSEQ_DATA", "")) / "ecg" / "ci_small").is_dir(),
    reason="SSMSEQ_DATA has no ecg/ci_small",
)
def test_the_small_collection_trains_in_seconds():
    from ssmseq.ecg.folders import read_ptbxl

    found = read_ptbxl(Path(os.environ["SSMSEQ_DATA"]) / "ecg" / "ci_small" / "ptbxl", sampling_rate=100)
    est = ECGMambaClassifier(window=2.5, max_epochs=10, batch_size=8, random_state=0, accelerator="cpu")
    est.fit(found.records, found.y)
    assert est.classes_.tolist() == ["CD", "HYP", "MI", "NORM", "STTC"]
    assert est.preprocessing_.leads == STANDARD_LEADS
    probabilities = est.predict_proba(found.records)
    assert probabilities.shape == (46, 5)
    assert roc_auc_score(found.y.to_numpy(), probabilities, average="macro") > 0.6
    signal = found.records[0].signal[[1, 0, *range(2, 12)]]
    with pytest.raises(ValueError, match="limb leads contradict"):
        est.predict(dataclasses.replace(found.records[0], signal=signal))

"""What ECGMambaClassifier fits to what: scaler, folds by patient, thresholds, calibration, unknown labels, weights."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from ecg_waves import RATE, as_records, small, waves
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from ssmseq import Record
from ssmseq.ecg import fitting
from ssmseq.ecg.calibration import LabelCalibrator
from ssmseq.ecg.thresholds import tune_thresholds


@pytest.fixture(scope="module")
def data():
    return waves()


def test_the_scaler_knows_the_training_samples_only(data, monkeypatch):
    X, y = data
    seen = {}
    fit_part = fitting.fit_part

    def spy(estimator, prepared, train, valid, seed, subfolder):
        seen["train"], seen["valid"] = train, valid
        return fit_part(estimator, prepared, train, valid, seed, subfolder)

    monkeypatch.setattr(fitting, "fit_part", spy)
    est = small(max_epochs=1, validation_fraction=0.25).fit(7 * X + 3, y)
    assert 11 <= len(seen["valid"]) <= 13
    assert len(seen["train"]) + len(seen["valid"]) == 48
    rows = (7 * X + 3)[seen["train"]].astype(np.float32).astype(float)
    assert est.mean_ == pytest.approx(rows.mean(), rel=1e-9)
    assert est.scale_ == pytest.approx(rows.std(), rel=1e-9)
    plain = small(max_epochs=1, normalisation="none").fit(X, y)
    assert (plain.mean_, plain.scale_) == (0, 1)


@pytest.mark.parametrize("patients", ["groups", "records", "none"])
def test_no_patient_is_on_both_sides(data, monkeypatch, patients):
    X, y = data
    patient = np.arange(48) // 3
    calls, scored = [], []
    fit_part, score_part = fitting.fit_part, fitting.score_part

    def spy_fit(estimator, prepared, train, valid, seed, subfolder):
        part = fit_part(estimator, prepared, train, valid, seed, subfolder)
        calls.append((part, train, valid, subfolder))
        return part

    def spy_score(estimator, part, prepared, rows):
        (mine,) = [c for c in calls if c[0] is part]
        scored.append((mine, rows))
        return score_part(estimator, part, prepared, rows)

    monkeypatch.setattr(fitting, "fit_part", spy_fit)
    monkeypatch.setattr(fitting, "score_part", spy_score)
    records = as_records(X)
    if patients == "records":
        records = [dataclasses.replace(r, patient_id=f"p{p}") for r, p in zip(records, patient, strict=True)]
    groups = patient if patients == "groups" else None
    est = small(max_epochs=1, n_folds=3, thresholds="f1", validation_fraction=0.2)
    est.fit(records, y, groups=groups)
    assert [c[3] for c in calls] == ["fold-0", "fold-1", "fold-2", ""]
    ids = patient if patients != "none" else np.arange(48)
    for (_, train, valid, _), rows in scored:
        assert not set(ids[train]) & set(ids[valid])
        assert not set(ids[rows]) & set(ids[np.concatenate([train, valid])])
        assert len(train) + len(valid) + len(rows) == 48
    assert sorted(np.concatenate([rows for _, rows in scored])) == list(range(48))


def test_thresholds_and_calibration_are_made_of_out_of_fold_scores(data, monkeypatch):
    X, y = data
    kept = {}
    calibrate = fitting.calibrate
    monkeypatch.setattr(
        fitting, "calibrate", lambda est, prepared, held: kept.update(held=held) or calibrate(est, prepared, held)
    )
    est = small(max_epochs=3, n_folds=3, thresholds="f1", calibration="platt").fit(X, y)
    rows, scores = kept["held"]
    assert rows.tolist() == list(range(48))
    own = LabelCalibrator("platt", from_logits=True).fit(scores, y)
    assert est.calibrator_.parameters_ == own.parameters_
    np.testing.assert_array_equal(est.thresholds_, tune_thresholds(y, own.predict(scores), "f1"))
    np.testing.assert_array_equal(est.predict_proba(X), own.predict(est.decision_function(X)))
    np.testing.assert_array_equal(est.predict(X), est.predict_proba(X) >= est.thresholds_)
    assert np.abs(scores - est.decision_function(X)).max() > 1e-2  # those of the final fit are others
    held = small(max_epochs=3, validation_fraction=0.25, thresholds="youden").fit(X, y)
    rows, scores = kept["held"]
    assert 11 <= len(rows) <= 13
    np.testing.assert_array_equal(scores, held.decision_function(X[rows]))
    np.testing.assert_array_equal(held.thresholds_, tune_thresholds(y[rows], expit(scores), "youden"))


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_calibrated_classes_still_sum_to_one(data, method):
    X, y = data
    est = small(max_epochs=2, n_folds=2, calibration=method).fit(X, y.sum(1))
    found = est.predict_proba(X)
    np.testing.assert_allclose(found.sum(1), 1)
    odds = logit(np.exp(est.decision_function(X)) / np.exp(est.decision_function(X)).sum(1, keepdims=True))
    each = est.calibrator_.predict(odds)
    np.testing.assert_allclose(found, each / each.sum(1, keepdims=True), atol=1e-6)
    assert np.abs(each - expit(odds)).max() > 1e-3
    assert (est.predict(X) == est.classes_[found.argmax(1)]).all()


def test_given_thresholds_and_those_of_a_challenge(data):
    X, y = data
    est = small(max_epochs=1, thresholds=[0.1, 0.9]).fit(X, y)
    np.testing.assert_array_equal(est.predict(X), est.predict_proba(X) >= [0.1, 0.9])
    frame = pd.DataFrame(y, columns=["426783006", "164889003"])  # sinus rhythm and atrial fibrillation
    tuned = small(max_epochs=1, thresholds="challenge2021", n_folds=2).fit(X, frame)
    assert tuned.thresholds_.shape == (2,)
    assert tuned.classes_.tolist() == ["426783006", "164889003"]


def test_unknown_labels_are_masked(data):
    X, y = data
    unknown = y.astype(float)
    unknown[::3, 0] = np.nan
    est = small(max_epochs=3, thresholds="f1", n_folds=2).fit(X, unknown)
    assert np.isfinite(est.predict_proba(X)).all()
    right = (est.predict(X) == unknown) | np.isnan(unknown)
    assert est.score(X, unknown) == right.all(1).mean()
    # A label that nobody knows changes nothing for the other one.
    without = small(max_epochs=3).fit(X, np.column_stack([unknown[:, 0], np.full(48, np.nan)]))
    assert (without.predict_proba(X)[:, 1] != 0.5).all()
    weights = without.network_.head.weight.detach()
    again = small(max_epochs=3, weight_decay=0.0).fit(X, np.column_stack([np.full(48, np.nan), unknown[:, 0]]))
    assert weights.isfinite().all()
    assert again.history_["train_loss"].notna().all()


def test_weights_leave_out_repeat_and_balance():
    X, y = waves(16)
    exact = {"precision": "64-true", "batch_size": 64, "max_epochs": 8}
    weight = np.arange(16) % 4
    repeated = small(**exact).fit(X.repeat(weight, 0), y.repeat(weight, 0))
    weighted = small(**exact).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(weighted.decision_function(X), repeated.decision_function(X), rtol=1e-6)
    assert np.abs(small(**exact).fit(X, y).decision_function(X) - weighted.decision_function(X)).max() > 1e-3
    rare = np.zeros((16, 2), int)
    rare[:2, 0], rare[:12, 1] = 1, 1
    balanced = small(**exact, positive_weights="balanced").fit(X, rare)
    given = small(**exact, positive_weights=[7.0, 1 / 3]).fit(X, rare)
    np.testing.assert_allclose(balanced.decision_function(X), given.decision_function(X))
    assert balanced.predict_proba(X)[:, 0].mean() > small(**exact).fit(X, rare).predict_proba(X)[:, 0].mean() + 0.1
    classes = np.repeat([0, 1, 2], [8, 6, 2])
    by_class = small(**exact, positive_weights="balanced").fit(X, classes)
    same = small(**exact, positive_weights=[16 / 24, 16 / 18, 16 / 6]).fit(X, classes)
    np.testing.assert_allclose(by_class.decision_function(X), same.decision_function(X))


def test_every_epoch_draws_anew_every_recording(data, monkeypatch):
    X, y = data
    seen = []
    drawn = fitting.Crops._drawn
    monkeypatch.setattr(
        fitting.Crops, "_drawn", lambda self, epoch, i: seen.append((epoch, i)) or drawn(self, epoch, i)
    )
    small(max_epochs=3, window=1.0).fit(X, y)
    seen.remove((0, 0))  # of which the memory was estimated
    assert sorted(seen) == [(epoch, i) for epoch in range(3) for i in range(48)]


def test_recordings_of_weight_zero_leave_no_trace(data):
    X, y = data
    weight = np.ones(48)
    weight[40:] = 0
    classes = np.where(weight > 0, y[:, 0], 7)
    longer = [*X[:40], *np.tile(X[40:], (1, 1, 2))]
    est = small(max_epochs=1, n_folds=2, calibration="platt").fit(longer, classes, sample_weight=weight)
    assert est.classes_.tolist() == [0, 1]
    assert est.preprocessing_.n_times == 100
    without = small(max_epochs=1, n_folds=2, calibration="platt").fit(list(X[:40]), classes[:40])
    np.testing.assert_array_equal(est.predict_proba(X), without.predict_proba(X))
    with pytest.raises(ValueError, match=r"shape \(48,\)"):
        small().fit(X, y, sample_weight=weight[:3])
    with pytest.raises(ValueError, match="not below 0"):
        small().fit(X, y, sample_weight=-weight)


def test_age_and_sex_can_be_all_that_tells_labels_apart():
    rng = np.random.default_rng(0)
    X, y = waves(60)
    X[:] = rng.normal(size=X.shape)
    X[:, 2] = X[:, 1] - X[:, 0]
    records = [
        Record(signal=x, sampling_rate=RATE, lead_names=("I", "II", "III"), age=30 + 50 * a, sex="F" if b else "M")
        for x, (a, b) in zip(X, y, strict=True)
    ]
    est = small(metadata=True, max_epochs=40, learning_rate=3e-2).fit(records[:40], y[:40])
    assert roc_auc_score(y[40:], est.predict_proba(records[40:])) > 0.95
    with pytest.warns(UserWarning, match="no record has age or sex"):
        est.predict(as_records(X[:3]))
    with pytest.raises(ValueError, match="metadata=True, but no record"):
        small(metadata=True).fit(as_records(X), y)


def test_a_run_without_mixup_may_be_prolonged(data, tmp_path):
    X, y = data
    options = {"lr_schedule": "constant", "augment": ["noise"]}
    whole = small(max_epochs=3, **options).fit(X, y)
    for epochs in (1, 3):
        resumed = small(max_epochs=epochs, checkpoint_folder=str(tmp_path), **options).fit(X, y)
    assert (resumed.predict_proba(X) == whole.predict_proba(X)).all()
    with pytest.raises(ValueError, match="another run"):
        small(max_epochs=4, checkpoint_folder=str(tmp_path), **options | {"augment": ["mixup"]}).fit(X, y)

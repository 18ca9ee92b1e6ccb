"""scikit-learn's contract for ECGMambaClassifier: all of its checks, none expected to fail; searching, pipelines."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from ssmseq import ECGMambaClassifier, Record
from ssmseq.ecg.splits import GroupedMultilabelStratifiedKFold

# In float32 a batch of another size rounds otherwise, which the checks of subsets are too strict for.
CHECKED = ECGMambaClassifier(
    d_model=8,
    n_layers=1,
    d_state=2,
    max_epochs=10,
    learning_rate=2e-2,
    precision="64-true",
    random_state=0,
    accelerator="cpu",
)


@parametrize_with_checks([CHECKED])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_scikit_learns_checks_with_the_default_sizes():
    results = check_estimator(ECGMambaClassifier(precision="64-true", random_state=0), on_fail=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []
    assert sum(r["status"] == "passed" for r in results) > 60


def multilabel(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, 2))
    y[:4] = [[0, 0], [0, 1], [1, 0], [1, 1]]
    level = np.repeat(y, [10, 10], axis=1)  # each half of the signal tells one label
    return level + 0.3 * rng.standard_normal((n, 20)), y


def test_tags_say_what_it_takes():
    tags = get_tags(ECGMambaClassifier())
    assert is_classifier(ECGMambaClassifier())
    assert tags.classifier_tags.multi_label
    assert tags.input_tags.two_d_array
    assert tags.input_tags.three_d_array
    assert tags.input_tags.allow_nan
    assert tags.target_tags.required
    assert tags.non_deterministic
    assert not get_tags(CHECKED).non_deterministic


def test_cross_validation_scores_labels_by_folds():
    X, y = multilabel()
    est = clone(CHECKED)
    folds = GroupKFold(3)
    patients = np.arange(60) // 2
    scores = cross_val_score(est, X, y, scoring="roc_auc", cv=folds, groups=patients)
    by_hand = []
    for train, test in folds.split(X, y, patients):
        fitted = clone(est).fit(X[train], y[train])
        positive = fitted.predict_proba(X[test])
        pairs = [
            (positive[a, k] > positive[b, k])
            for k in range(2)
            for a in range(len(test))
            for b in range(len(test))
            if y[test][a, k] > y[test][b, k]
        ]
        counts = [sum(y[test][:, k]) * sum(1 - y[test][:, k]) for k in range(2)]
        by_hand.append((sum(pairs[: counts[0]]) / counts[0] + sum(pairs[counts[0] :]) / counts[1]) / 2)
    np.testing.assert_allclose(scores, by_hand)
    assert scores.mean() > 0.8
    stratified = GroupedMultilabelStratifiedKFold(3)
    found = cross_val_predict(est, X, y, cv=stratified, method="predict_proba", groups=patients)
    assert found.shape == (60, 2)


def test_grid_search_keeps_the_rate_that_learns():
    X, y = multilabel()
    search = GridSearchCV(clone(CHECKED), {"learning_rate": [1e-6, 2e-2]}, scoring="roc_auc", cv=2, error_score="raise")
    search.fit(X, y)
    assert search.best_params_ == {"learning_rate": 2e-2}
    np.testing.assert_array_equal(
        search.predict_proba(X), clone(CHECKED).set_params(learning_rate=2e-2).fit(X, y).predict_proba(X)
    )


def test_grid_search_takes_records():
    X, y = multilabel(24)
    records = [Record(signal=x[None], sampling_rate=100.0, lead_names=("I",)) for x in X]
    search = GridSearchCV(clone(CHECKED), {"pooling": ["mean", "max"]}, cv=2, error_score="raise").fit(records, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_last_step_of_a_pipeline():
    X, y = multilabel()
    pipeline = make_pipeline(StandardScaler(), clone(CHECKED)).fit(X, y)
    alone = clone(CHECKED).fit(StandardScaler().fit_transform(X), y)
    np.testing.assert_array_equal(pipeline.predict_proba(X), alone.predict_proba(StandardScaler().fit_transform(X)))
    named = make_pipeline(FunctionTransformer(), clone(CHECKED))
    named.fit(X, y, ecgmambaclassifier__groups=np.arange(60) // 2)
    assert named.score(X, y) > 0.5


def test_clone_is_unfitted_and_has_the_same_parameters():
    X, y = make_blobs(n_samples=30, n_features=6, random_state=0)
    fitted = clone(CHECKED).set_params(leads=["I"], band=(0.5, 20.0), augment={"noise": 0.1}).fit(X, y)
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not [name for name in vars(copied) if name.endswith("_")]
    for method in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(copied, method)(X)
    with pytest.raises(NotFittedError):
        copied.score(X, y)
    with pytest.raises(NotFittedError):
        copied.save("nowhere")


def test_repr_shows_changed_parameters_only():
    assert repr(ECGMambaClassifier(window=2.5)) == "ECGMambaClassifier(window=2.5)"

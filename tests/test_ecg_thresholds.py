"""Thresholds against an exhaustive search, and calibration against scikit-learn's on single columns."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import fbeta_score, log_loss

from ssmseq.ecg.calibration import LabelCalibrator
from ssmseq.ecg.challenge import scored_columns
from ssmseq.ecg.challenge_labels import scored_labels
from ssmseq.ecg.metrics import calibration_error_per_label, macro_f_measure
from ssmseq.ecg.thresholds import apply_thresholds, tune_thresholds


def problem(seed, n=30, k=3, decimals=1):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, k)) < 0.35).astype(float)
    return y, np.round(np.clip(0.6 * rng.random((n, k)) + 0.4 * y * rng.random((n, k)), 0, 1), decimals)


def all_thresholds(prob):
    """A threshold at every distinct value, each of which is another prediction, and one above all."""
    return [*np.unique(prob), np.inf]


def f1(truth, pred):
    return 2 * (truth * pred).sum() / (truth.sum() + pred.sum())


def youden(truth, pred):
    return (truth * pred).sum() / truth.sum() - ((1 - truth) * pred).sum() / (1 - truth).sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 40]), st.sampled_from([1, 2, 9]))
def test_thresholds_of_single_labels_are_the_best_there_are(seed, n, decimals):
    y, prob = problem(seed, n, 4, decimals)
    y[:, 3][np.random.default_rng(seed).random(n) < 0.4] = np.nan
    for name, metric in (("f1", f1), ("youden", youden)):
        found = tune_thresholds(y, prob, name)
        for j in range(4):
            known = ~np.isnan(y[:, j])
            truth, p = y[known, j].astype(int), prob[known, j]
            if len(set(truth)) < 2:
                assert found[j] == 0.5
                continue
            best = max(metric(truth, (p >= t).astype(int)) for t in all_thresholds(p))
            assert metric(truth, (p >= found[j]).astype(int)) == pytest.approx(best, abs=1e-12)


def test_thresholds_lie_in_the_middle_and_near_a_half():
    assert tune_thresholds([[0], [0], [1], [1]], [[0.1], [0.2], [0.3], [0.9]]).tolist() == [0.25]
    # F1 is 2/3 for 1 hit of 1 and for 2 of 4: the cuts above the fourth and above the first are equally good.
    y, prob = [[0], [1], [0], [0], [1]], np.array([[0.1], [0.2], [0.3], [0.8], [0.9]])
    assert tune_thresholds(y, prob - 0.09).tolist() == pytest.approx([0.76])
    assert tune_thresholds(y, prob + 0.09).tolist() == pytest.approx([0.24])
    first = np.nextafter(0.3, 1)
    second = np.nextafter(first, 1)
    for low, high in ((0.3, first), (first, second)):  # halfway is one of the two, once the upper and once the lower
        found = tune_thresholds([[0], [1]], [[low], [high]])
        assert apply_thresholds([[low], [high]], found).tolist() == [[0], [1]]


def test_thresholds_at_the_ends_are_finite_and_mean_all_or_none():
    inverted = np.array([[1.0], [1.0], [0.0], [0.0]])
    y = np.array([[0], [0], [1], [1]])
    assert apply_thresholds(inverted, tune_thresholds(y, inverted)).ravel().tolist() == [1, 1, 1, 1]
    # Youden's index is 0 for all and for none, and lower between.
    found = tune_thresholds(y, inverted, "youden")
    assert np.isfinite(found).all()
    assert apply_thresholds(inverted, found).sum() in (0, 4)
    none = tune_thresholds(y, inverted, lambda truth, pred: -pred.sum())
    assert np.isfinite(none).all()
    assert apply_thresholds(inverted, none).sum() == 0


def test_labels_without_positives_or_negatives_get_a_half():
    y = np.array([[0, 1, 1, np.nan], [0, 1, 0, 1], [0, 1, np.nan, np.nan]])
    prob = np.array([[0.1, 0.9, 0.3, 0.2], [0.2, 0.8, 0.1, 0.2], [0.7, 0.1, 0.6, 0.2]])
    for metric in ("f1", "youden", macro_f_measure):
        found = tune_thresholds(y, prob, metric)
        assert found[[0, 1, 3]].tolist() == [0.5, 0.5, 0.5]
        assert 0.1 < found[2] <= 0.3
    found = tune_thresholds(y, prob, "challenge2021", labels=["AF", "NSR", "AFL", "PVC"])
    assert found[[0, 1, 3]].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("year", [2020, 2021])
def test_no_single_change_improves_the_challenge_metric_and_most_ends_are_the_best_of_all(year):
    labels = ["NSR", "AF", "164890007"]
    columns, hits = scored_columns(labels, year=year), 0
    for seed in range(10):
        y, prob = problem(seed)
        if seed % 3 == 0:
            y[np.random.default_rng(seed).random(y.shape) < 0.15] = np.nan
        found = tune_thresholds(y, prob, f"challenge{year}", labels=labels)

        def score(t, y=y, prob=prob):
            return columns.score(y, apply_thresholds(prob, t))

        reached = score(found)
        for j in range(3):
            for cut in all_thresholds(prob[:, j]):
                assert score(np.where(np.arange(3) == j, cut, found)) <= reached + 1e-9
        best = max(score(t) for t in itertools.product(*(all_thresholds(p) for p in prob.T)))
        hits += reached >= best - 1e-9
        assert reached >= max(score(np.full(3, 0.5)), score(tune_thresholds(y, prob))) - 1e-9
    assert hits >= 9


@pytest.mark.parametrize(("n", "seed"), [(10, 6), (10, 16), (15, 30), (15, 49)])
def test_the_search_starts_from_two_places(n, seed):
    """From 0.5 alone it ends below the best in the second and third problem, from the best for F1 in the others."""
    y, prob = problem(seed, n)
    columns = scored_columns(["NSR", "AF", "AFL"])
    found = tune_thresholds(y, prob, "challenge2021", labels=["NSR", "AF", "AFL"])
    best = max(columns.score(y, apply_thresholds(prob, t)) for t in itertools.product(*map(all_thresholds, prob.T)))
    assert columns.score(y, apply_thresholds(prob, found)) == pytest.approx(best, abs=1e-12)


def test_challenge_thresholds_know_columns_of_one_diagnosis_and_of_none():
    labels = ["NSR", "CRBBB", "RBBB", "164931005", "PVC"]  # the fourth is not scored
    columns = scored_columns(labels)
    for seed in (0, 1, 7, 12):
        y, prob = problem(seed, n=10, k=5)
        found = tune_thresholds(y, prob, "challenge2021", labels=labels)
        assert found[3] == 0.5
        reached = columns.score(y, apply_thresholds(prob, found))
        for j in np.flatnonzero(y.any(0)):
            for cut in all_thresholds(prob[:, j]):
                changed = np.where(np.arange(5) == j, cut, found)
                assert columns.score(y, apply_thresholds(prob, changed)) <= reached + 1e-9


def test_the_year_of_the_challenge_counts():
    y, prob = problem(7, n=60, k=2)
    labels = ["NSR", "PRWP"]  # scored in 2021 only
    assert tune_thresholds(y, prob, "challenge2020", labels=labels)[1] == 0.5
    assert tune_thresholds(y, prob, "challenge2021", labels=labels)[1] != 0.5


def test_a_callable_is_maximised_and_agrees_with_the_exact_way():
    y, prob = problem(3, n=60, k=4, decimals=2)
    exact = tune_thresholds(y, prob)
    by_search = apply_thresholds(prob, tune_thresholds(y, prob, macro_f_measure))
    assert macro_f_measure(y, by_search) == macro_f_measure(y, apply_thresholds(prob, exact))

    def f2(truth, pred):
        return fbeta_score(truth, pred, beta=2, average="macro")

    found = tune_thresholds(y, prob, f2)
    best = [
        max(fbeta_score(t, p >= cut, beta=2) for cut in all_thresholds(p)) for t, p in zip(y.T, prob.T, strict=True)
    ]
    assert f2(y, apply_thresholds(prob, found)) == pytest.approx(np.mean(best), abs=1e-12)
    # With fewer cuts than probabilities the search is coarser, and still no worse than its starts.
    coarse = tune_thresholds(y, prob, f2, max_cuts=4)
    assert f2(y, apply_thresholds(prob, exact)) <= f2(y, apply_thresholds(prob, coarse)) + 1e-12
    assert f2(y, apply_thresholds(prob, coarse)) <= np.mean(best) + 1e-12
    asked = []
    tune_thresholds(y, prob, lambda t, p: asked.append(p) or 0.0, max_cuts=4)
    assert len(asked) == 2 * (1 + 4 * 4)


def test_tuning_repeats_itself():
    y, prob = problem(9, n=200, k=26, decimals=3)
    runs = [tune_thresholds(y, prob, "challenge2021", labels=list(scored_labels(2021))) for _ in range(2)]
    np.testing.assert_array_equal(*runs)


def test_thresholds_refuse_what_they_cannot_do():
    y, prob = problem(0)
    with pytest.raises(ValueError, match="metric must be one of 'f1', 'youden', 'challenge2020', 'challenge2021'"):
        tune_thresholds(y, prob, "accuracy")
    with pytest.raises(ValueError, match="or a callable, got 1"):
        tune_thresholds(y, prob, 1)
    with pytest.raises(ValueError, match="'challenge2020' needs labels, the names of the 3 columns"):
        tune_thresholds(y, prob, "challenge2020")
    with pytest.raises(ValueError, match="must be a probability"):
        tune_thresholds(y, prob * 2)
    with pytest.raises(ValueError, match="NaN for some thresholds"):
        tune_thresholds(y, prob, lambda t, p: float("nan"))
    with pytest.raises(ValueError, match="max_cuts"):
        tune_thresholds(y, prob, macro_f_measure, max_cuts=1)


def test_a_probability_equal_to_its_threshold_is_positive():
    assert apply_thresholds([[0.5, 0.2]], 0.5).tolist() == [[1, 0]]
    assert apply_thresholds([[0.5, 0.2]], [0.6, 0.2]).tolist() == [[0, 1]]
    assert apply_thresholds(np.float32([[0.1]]), np.float64(np.float32(0.1))).dtype == np.int8
    with pytest.raises(ValueError, match="one for each of 2 labels"):
        apply_thresholds([[0.5, 0.2]], [0.5, 0.5, 0.5])


def scores(seed, n=800, slope=0.6, intercept=0.4):
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 2, size=n)
    return z, (rng.random(n) < expit(slope * z + intercept)).astype(int)


class FromLogit(LogisticRegression):
    """A fitted classifier whose decision function is its input."""

    def __init__(self):
        super().__init__()
        self.classes_, self.coef_, self.intercept_ = np.array([0, 1]), np.ones((1, 1)), np.zeros(1)
        self.n_features_in_ = 1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("method", "theirs"), [("platt", "sigmoid"), ("isotonic", "isotonic")])
def test_calibration_equals_calibrated_classifier_cv(seed, method, theirs):
    z, y = scores(seed)
    new = np.linspace(-9, 9, 101)[:, None]
    expected = CalibratedClassifierCV(FrozenEstimator(FromLogit()), method=theirs, ensemble=False).fit(z[:, None], y)
    found = LabelCalibrator(method, from_logits=True).fit(z[:, None], y[:, None]).predict(new)
    # Theirs stops at a larger gradient, and interpolates over logits where ours does over probabilities.
    if method == "platt":
        np.testing.assert_allclose(found, expected.predict_proba(new)[:, 1:], atol=1e-5)
    else:
        at_records = LabelCalibrator(method, from_logits=True).fit(z[:, None], y[:, None]).predict(z[:, None])
        np.testing.assert_allclose(at_records, expected.predict_proba(z[:, None])[:, 1:], atol=1e-12)


def test_platt_is_at_the_minimum_of_its_loss():
    """Each record counts as a positive and as a negative one, with the two parts of its target as weights."""
    z, y = scores(4, n=300)
    positives, negatives = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    found = LabelCalibrator(from_logits=True).fit(z[:, None], y[:, None]).parameters_[0]
    gap = expit(found["slope"] * z + found["intercept"]) - target
    assert abs(gap.sum()) < 1e-9
    assert abs(gap @ z) < 1e-9
    X, twice = np.concatenate((z, z))[:, None], np.repeat([1, 0], len(z))
    truth = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky")
    truth.fit(X, twice, sample_weight=np.concatenate((target, 1 - target)))
    assert found["slope"] == pytest.approx(truth.coef_[0, 0], abs=1e-8)
    assert found["intercept"] == pytest.approx(truth.intercept_[0], abs=1e-8)


def test_platt_finds_its_minimum_past_an_outlier():
    """Full steps of Newton's method run away where one logit is far out and positives are few."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        z = np.append(rng.normal(size=100), 300)
        y = (rng.random(101) < 0.15).astype(float)
        y[-1] = 1
        found = LabelCalibrator(from_logits=True, min_positives=5).fit(z[:, None], y[:, None]).parameters_[0]
        target = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
        gap = expit(found["slope"] * z + found["intercept"]) - target
        assert abs(gap.sum()) < 1e-6
        assert abs(gap @ z) < 1e-4


def test_temperature_is_at_the_minimum_of_the_log_loss():
    z, y = scores(5, slope=0.5, intercept=0)
    found = LabelCalibrator("temperature", from_logits=True).fit(z[:, None], y[:, None]).parameters_[0]["temperature"]
    truth = minimize(lambda t: log_loss(y, expit(z / t[0])), [1.0], method="Nelder-Mead", options={"xatol": 1e-9})
    assert found == pytest.approx(truth.x[0], abs=1e-6)
    assert found == pytest.approx(2, abs=0.3)
    calibrator = LabelCalibrator.from_parameters([{"temperature": 2.0}], from_logits=True)
    np.testing.assert_allclose(calibrator.predict(z[:, None])[:, 0], expit(z / 2), atol=1e-15)
    small = np.where(y == 1, 1e-3, -1e-3)[:, None]  # any temperature is too high for these, or too low
    for scores_, limit in ((small, 1e-3), (-small, 1e3)):
        found = LabelCalibrator("temperature", from_logits=True).fit(scores_, y[:, None])
        assert found.parameters_ == [{"temperature": limit}]


def test_calibrated_probabilities_are_calibrated():
    rng = np.random.default_rng(6)
    truth = rng.uniform(0.02, 0.9, size=(30_000, 2))
    y = (rng.random(truth.shape) < truth).astype(float)
    prob = expit(2.5 * logit(truth) + [1, -1])  # too sure, and shifted each in its own way
    train, test = slice(0, 20_000), slice(20_000, None)
    before = calibration_error_per_label(y[test], prob[test])
    unavoidable = calibration_error_per_label(y[test], truth[test])  # shares of so many records are not exact
    assert (before > 0.08).all()
    for method in ("platt", "isotonic"):
        found = LabelCalibrator(method).fit(prob[train], y[train]).predict(prob[test])
        assert (calibration_error_per_label(y[test], found) < unavoidable + 0.008).all()
    platt = LabelCalibrator().fit(prob[train], y[train]).parameters_
    assert [p["slope"] for p in platt] == pytest.approx([0.4, 0.4], abs=0.02)
    assert [p["intercept"] for p in platt] == pytest.approx([-0.4, 0.4], abs=0.05)


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_calibration_survives_json_to_the_last_bit(method):
    y, prob = problem(2, n=400, k=3, decimals=6)
    y[:, 2] = 0
    calibrator = LabelCalibrator(method).fit(prob, y)
    text = json.dumps(calibrator.parameters_, allow_nan=False)
    again = LabelCalibrator.from_parameters(json.loads(text))
    assert again.method == method
    new = np.random.default_rng(0).random((50, 3))
    np.testing.assert_array_equal(again.predict(new), calibrator.predict(new))
    found = calibrator.predict(new)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_array_equal(found[:, 2], new[:, 2])  # no positives: as they were
    assert not np.allclose(found[:, 0], new[:, 0])


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_probabilities_and_logits_are_two_forms_of_the_same(method):
    z, y = scores(7)
    z, y = z[:, None], y[:, None]
    from_logits = LabelCalibrator(method, from_logits=True).fit(z, y).predict(z)
    np.testing.assert_allclose(LabelCalibrator(method).fit(expit(z), y).predict(expit(z)), from_logits, atol=1e-9)


def test_few_positives_or_negatives_keep_probabilities():
    rng = np.random.default_rng(0)
    prob = rng.random((100, 4))
    y = np.zeros((100, 4))
    y[:9, 0], y[:10, 1], y[:91, 2], y[:90, 3] = 1, 1, 1, 1
    assert [bool(p) for p in LabelCalibrator().fit(prob, y).parameters_] == [False, True, False, True]
    assert [bool(p) for p in LabelCalibrator(min_positives=9).fit(prob, y).parameters_] == [True] * 4
    y[0, 1] = np.nan
    found = LabelCalibrator().fit(prob, y)
    assert found.parameters_[1] == {}
    z = LabelCalibrator(from_logits=True).fit(logit(prob), np.zeros((100, 4))).predict(logit(prob))
    np.testing.assert_allclose(z, prob, atol=1e-12)


def test_unknown_labels_have_no_part():
    z, y = scores(8)
    y = y.astype(float)
    more_z, more_y = np.append(z, np.full(200, 3.0)), np.append(y, np.full(200, np.nan))
    for method in ("platt", "isotonic", "temperature"):
        first, second = (
            LabelCalibrator(method, from_logits=True).fit(a[:, None], b[:, None]).parameters_
            for a, b in ((z, y), (more_z, more_y))
        )
        assert first == second


@pytest.mark.parametrize("method", ["platt", "isotonic", "temperature"])
def test_extreme_scores_stay_finite(method):
    y = np.repeat([[0.0], [1.0]], 20, axis=0)
    cases = {
        "separable": y.copy(),
        "inverted": 1 - y,
        "constant": np.full_like(y, 0.3),
        "half": np.full_like(y, 0.5),  # of which all logits are 0
        "saturated": np.float32(y) * np.float32(1.0),
    }
    for name, prob in cases.items():
        calibrator = LabelCalibrator(method).fit(prob, y)
        found = calibrator.predict(np.array([[0.0], [0.3], [1.0]]))
        assert np.isfinite(found).all(), name
        json.dumps(calibrator.parameters_, allow_nan=False)
    huge = LabelCalibrator(method, from_logits=True).fit(np.where(y == 1, 700.0, -700.0), y)
    assert np.isfinite(huge.predict([[-1e4], [0.0], [1e4]])).all()
    # Platt's targets: 20 of 20 positives are taken for 21 of 22.
    separable = LabelCalibrator().fit(y, y).predict(y)
    np.testing.assert_allclose(separable.ravel(), np.repeat([1 / 22, 21 / 22], 20), atol=1e-6)
    constant = LabelCalibrator().fit(cases["constant"], y).predict(cases["constant"])
    np.testing.assert_allclose(constant, 0.5, atol=1e-6)
    # 30 negatives for 1/32 each and 10 positives for 11/12.
    uneven = LabelCalibrator().fit(np.full((40, 1), 0.5), np.repeat([[0], [1]], [30, 10], axis=0)).predict([[0.5]])
    np.testing.assert_allclose(uneven, (30 / 32 + 110 / 12) / 40, atol=1e-6)


def test_isotonic_knots_are_scikit_learns():
    z, y = scores(9)
    prob = expit(z)
    found = LabelCalibrator("isotonic").fit(prob[:, None], y[:, None]).parameters_[0]
    truth = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(prob, y)
    new = np.linspace(0, 1, 201)
    np.testing.assert_allclose(np.interp(new, found["x"], found["y"]), truth.predict(new), atol=1e-12)


def test_calibrators_refuse_what_they_cannot_do():
    y, prob = problem(0, n=60)
    assert clone(LabelCalibrator("isotonic", min_positives=3)).min_positives == 3
    with pytest.raises(NotFittedError):
        LabelCalibrator().predict(prob)
    with pytest.raises(ValueError, match="method must be one of 'platt', 'isotonic', 'temperature'"):
        LabelCalibrator("beta").fit(prob, y)
    with pytest.raises(ValueError, match="min_positives"):
        LabelCalibrator(min_positives=0).fit(prob, y)
    with pytest.raises(ValueError, match="must be a probability"):
        LabelCalibrator().fit(prob * 3, y)
    with pytest.raises(ValueError, match=r"scores have shape \(60, 2\); the calibration is for \(n, 3\)"):
        LabelCalibrator().fit(prob, y).predict(prob[:, :2])
    with pytest.raises(ValueError, match=r"scores holds nan in row 0, column 1"):
        LabelCalibrator().fit(prob, y).predict([[0.1, np.nan, 0.2]])
    with pytest.raises(ValueError, match=r"parameters of label 1 are \['slope'\]"):
        LabelCalibrator.from_parameters([{}, {"slope": 1.0}])

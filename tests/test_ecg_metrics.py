"""Scores of multilabel classifiers: equal to scikit-learn's where it has them, and to the challenges' own scripts."""

import pickle
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from ssmseq.ecg import metrics
from ssmseq.ecg.challenge import challenge_score, cinc2017_score, cinc2017_scorer, make_challenge_scorer, scored_columns
from ssmseq.ecg.challenge_labels import scored_labels
from ssmseq.ecg.metrics import SCORERS, label_report, macro_auprc, macro_auroc, macro_f_measure

NSR = "426783006"
CODES = [code for name in scored_labels(2021) for code in name.split("|")]
# What the organisers' scripts printed for challenge_case(seed), run once: the challenge metric, macro AUROC, macro
# AUPRC, macro F-measure and accuracy.
OFFICIAL = {
    (1, 2020): (0.2405410988154035, 0.6172639870605591, 0.2743712556112974, 0.1490916490916491, 0.0),
    (1, 2021): (0.2722564702339625, 0.6188380171447606, 0.2823972002094148, 0.16731475595111958, 0.0),
    (2, 2020): (0.09815950920245393, 0.6304073364947977, 0.25118493767572375, 0.12647198480531813, 0.075),
    (2, 2021): (0.12048968630083949, 0.6348713086761333, 0.24665200098515813, 0.12382478632478633, 0.05),
    (3, 2020): (0.17198491214077882, 0.6505547721027597, 0.304433239082178, 0.12079947343105238, 0.075),
    (3, 2021): (0.18829190037486335, 0.6689466262026145, 0.34104201597258976, 0.13349040645691362, 0.075),
}


def challenge_case(seed, n=40):
    """Columns of codes, one of them unscored and some scored ones missing; ties; rows without labels or outputs."""
    rng = np.random.default_rng(seed)
    labels = [c for c in [*CODES, "164931005"] if rng.random() > 0.2]
    shape = (n, len(labels))
    y_true = (rng.random(shape) < 0.08) & (rng.random((n, 1)) > 0.15)
    y_prob = np.round(0.7 * rng.random(shape) + 0.3 * y_true * rng.random(shape), 1 + seed % 2)
    y_pred = (y_prob > 0.6) & (rng.random((n, 1)) > 0.1)
    return labels, y_true.astype(int), y_prob, y_pred.astype(int)


def masked(rng, n=60, k=5, unknown=0.2):
    y = (rng.random((n, k)) < 0.3).astype(float)
    y_prob = np.round(np.clip(rng.random((n, k)) * 0.7 + 0.3 * y, 0, 1), 1)
    y[rng.random((n, k)) < unknown] = np.nan
    return y, y_prob


def by_loops(y_true, y_pred, labels, year):
    """The challenge metric record by record and pair by pair, from its description."""
    table = pd.read_csv(metrics.__file__.replace("metrics.py", "challenge_weights.csv"), index_col=0)
    classes = [set(name.split("|")) for name in scored_labels(year)]

    def worth(a, b):
        row = next(i for i, name in enumerate(table.index) if a & set(name.split("|")))
        return table.iloc[row, next(i for i, name in enumerate(table.columns) if b & set(name.split("|")))]

    def pick(row):
        return [any(v == 1 and label in c for v, label in zip(row, labels, strict=True)) for c in classes]

    found = right = nothing = 0.0
    for true_row, pred_row in zip(y_true, y_pred, strict=True):
        truth = pick(true_row)
        for which, answer in (("found", pick(pred_row)), ("right", truth), ("nothing", [NSR in c for c in classes])):
            n = max(1, sum(a or b for a, b in zip(truth, answer, strict=True)))
            credit = 0.0
            for a, is_true in zip(classes, truth, strict=True):
                for b, is_put_out in zip(classes, answer, strict=True):
                    if is_true and is_put_out:
                        credit += worth(a, b) / n
            found, right, nothing = (
                found + credit * (which == "found"),
                right + credit * (which == "right"),
                nothing + credit * (which == "nothing"),
            )
    return (found - nothing) / (right - nothing) if right != nothing else 0.0


@pytest.mark.parametrize(("seed", "year"), OFFICIAL)
def test_scores_equal_those_of_the_official_scripts(seed, year):
    labels, y_true, y_prob, y_pred = challenge_case(seed)
    score, auroc, auprc, f_measure, accuracy = OFFICIAL[seed, year]
    assert challenge_score(y_true, y_pred, labels, year=year) == pytest.approx(score, abs=1e-12)
    members = [[i for i, c in enumerate(labels) if c in name.split("|")] for name in scored_labels(year)]
    truth = np.column_stack([y_true[:, m].any(1) for m in members]).astype(float)
    pred = np.column_stack([y_pred[:, m].any(1) for m in members]).astype(float)
    prob = np.column_stack([y_prob[:, m].mean(1) if m else np.zeros(len(y_prob)) for m in members])
    assert macro_auroc(truth, prob) == pytest.approx(auroc, abs=1e-12)
    assert macro_auprc(truth, prob) == pytest.approx(auprc, abs=1e-12)
    assert macro_f_measure(truth, pred) == pytest.approx(f_measure, abs=1e-12)
    assert metrics.subset_accuracy(truth, pred) == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("year", [2020, 2021])
@pytest.mark.parametrize("seed", [11, 12])
def test_challenge_score_equals_its_description_in_loops(seed, year):
    labels, y_true, _, y_pred = challenge_case(seed, n=12)
    expected = by_loops(y_true, y_pred, labels, year)
    assert challenge_score(y_true, y_pred, labels, year=year) == pytest.approx(expected, abs=1e-12)


def test_challenge_score_of_right_and_of_inactive_answers():
    labels, y_true, _, _ = challenge_case(4)
    i = labels.index(NSR)
    inactive = np.zeros_like(y_true)
    inactive[:, i] = 1
    assert challenge_score(y_true, y_true, labels) == 1
    assert challenge_score(y_true, inactive, labels) == 0
    assert challenge_score(y_true, np.zeros_like(y_true), labels) < 0
    assert challenge_score(inactive, y_true, labels) == 0  # nothing to gain: the denominator is 0
    assert challenge_score(np.zeros_like(y_true), y_true, labels) == 0


def test_records_without_a_scored_label_leave_the_challenge_score_alone():
    labels, y_true, _, y_pred = challenge_case(5)
    more = np.vstack((y_true, np.zeros((7, len(labels)), int)))
    assert challenge_score(more, np.vstack((y_pred, y_pred[:7])), labels) == pytest.approx(
        challenge_score(y_true, y_pred, labels), abs=1e-12
    )


def test_columns_may_be_abbreviations_and_several_codes_of_one_diagnosis():
    _, y_true, _, y_pred = challenge_case(6)
    y_true, y_pred = y_true[:, :3], y_pred[:, :3]
    expected = challenge_score(y_true, y_pred, [NSR, "713427006", "59118001"])
    assert challenge_score(y_true, y_pred, ["NSR", "CRBBB", "RBBB"]) == expected
    both = [np.column_stack((y[:, 0], y[:, 1:].any(1))) for y in (y_true, y_pred)]
    for name in ("CRBBB|RBBB", "713427006|59118001", "59118001", "RBBB | CRBBB"):
        assert challenge_score(*both, ["NSR", name]) == expected
    order = [2, 0, 1]
    assert challenge_score(y_true[:, order], y_pred[:, order], ["RBBB", "NSR", "CRBBB"]) == pytest.approx(expected)


def test_classes_of_2021_alone_do_not_count_in_2020():
    y_true, y_pred = np.eye(3, dtype=int), np.eye(3, dtype=int)[[0, 1, 0]]
    labels = ["AF", "NSR", "BBB"]
    kept = challenge_score(y_true[:, :2], y_pred[:, :2], labels[:2], year=2020)
    assert challenge_score(y_true, y_pred, labels, year=2020) == kept
    assert challenge_score(y_true, y_pred, labels, year=2021) != kept
    assert [scored_columns(["LBBB", "CLBBB"], year=y).classes.sum() for y in (2020, 2021)] == [1, 2]


def test_unknown_labels_count_neither_as_truth_nor_as_output():
    labels = ["NSR", "AF", "AFL", "PVC"]
    y_true = np.array([[1, 0, 0, 0], [0, 1, 0, np.nan], [np.nan, 0, 1, 0]])
    y_pred = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    without = np.where(np.isnan(y_true), 0, y_pred)
    columns = scored_columns(labels)
    credit = columns.credit(*columns.read_truth(y_true), y_pred @ columns.classes > 0)
    np.testing.assert_allclose(credit, [1, 1, 1])
    # Of the third record sinus rhythm is unknown, so that the inactive answer is left out there, too.
    assert challenge_score(y_true, y_pred, labels) == 1
    assert challenge_score(y_true, without, labels) == 1
    # A diagnosis that one of its columns says is there is known, whatever the other column says.
    truth, unknown = scored_columns(["CRBBB", "RBBB", "AF"]).read_truth([[1, np.nan, 0], [0, np.nan, 0]])
    assert truth.sum(0)[scored_columns(["RBBB"]).classes[0] == 1] == 1
    assert unknown.sum(1).tolist() == [0, 1]


def test_weights_of_ones_own():
    y_true, y_pred = np.eye(2, dtype=int)[[0, 1, 1, 0]], np.eye(2, dtype=int)[[1, 1, 0, 0]]
    weights = [[1.0, np.nan], [0.5, 2.0]]  # rows are the truth; NaN counts as 0
    found, right, nothing = 0 + 2 + 0.25 + 1, 1 + 2 + 2 + 1, 1 + 0.25 + 0.25 + 1
    score = challenge_score(y_true, y_pred, ["NSR", "mine"], weights=weights)
    assert score == pytest.approx((found - nothing) / (right - nothing), abs=1e-15)
    with pytest.raises(ValueError, match="one label must be NSR"):
        challenge_score(y_true, y_pred, ["AF", "mine"], weights=weights)


def test_wrong_labels_of_the_challenge_are_named():
    y = np.eye(2, dtype=int)
    with pytest.raises(ValueError, match="Afib"):
        challenge_score(y, y, ["NSR", "Afib"])
    with pytest.raises(ValueError, match="NSR are given twice"):
        make_challenge_scorer(["NSR", "NSR"])
    with pytest.raises(ValueError, match="2 columns, and 3 labels"):
        challenge_score(y, y, ["NSR", "AF", "AFL"])
    with pytest.raises(ValueError, match="year must be one of 2020, 2021"):
        challenge_score(y, y, ["NSR", "AF"], year=2017)
    with pytest.raises(ValueError, match="apply thresholds"):
        challenge_score(y, y * 0.7, ["NSR", "AF"])
    with pytest.raises(ValueError, match="y_pred has shape"):
        challenge_score(y, y[:1], ["NSR", "AF"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 17, 90]), st.sampled_from([0, 0.3]))
def test_areas_equal_scikit_learns_one_column_at_a_time(seed, n, unknown):
    rng = np.random.default_rng(seed)
    y, prob = masked(rng, n=n, k=4, unknown=unknown)
    y[:, 3] = np.where(np.isnan(y[:, 3]), np.nan, 1)  # no negatives
    auroc, auprc = metrics.auroc_per_label(y, prob), metrics.average_precision_per_label(y, prob)
    for j in range(4):
        known = ~np.isnan(y[:, j])
        truth, p = y[known, j], prob[known, j]
        if 0 < truth.sum() < len(truth):
            assert auroc[j] == pytest.approx(roc_auc_score(truth, p), abs=1e-12)
        else:
            assert np.isnan(auroc[j])
        if truth.sum():
            assert auprc[j] == pytest.approx(average_precision_score(truth, p), abs=1e-12)
        else:
            assert np.isnan(auprc[j])


def test_macro_means_leave_undefined_labels_out():
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    prob = np.array([[0.9, 0.1, 0.4], [0.2, 0.2, 0.3], [0.15, 0.3, 0.2], [0.1, 0.4, 0.1]])
    assert macro_auroc(y, prob) == roc_auc_score(y[:, 0], prob[:, 0]) == 0.75
    assert macro_auprc(y, prob) == pytest.approx((average_precision_score(y[:, 0], prob[:, 0]) + 1) / 2)
    assert np.isnan(macro_auroc(y[:, 1:], prob[:, 1:]))


def test_an_absent_label_scores_zero_once_it_is_predicted_and_is_skipped_before():
    y = np.array([[1, 0], [0, 0], [1, 0]])
    pred = np.array([[1, 0], [0, 0], [0, 0]])
    assert macro_f_measure(y, pred) == pytest.approx(2 / 3)
    pred[1, 1] = 1
    assert macro_f_measure(y, pred) == pytest.approx(1 / 3)
    assert metrics.f_measure_per_label(y, pred).tolist() == pytest.approx([2 / 3, 0])


def test_decisions_on_known_entries_equal_scikit_learns():
    y, prob = masked(np.random.default_rng(3))
    pred = (prob > 0.5).astype(int)
    f1, brier = metrics.f_measure_per_label(y, pred), metrics.brier_per_label(y, prob)
    for j in range(y.shape[1]):
        known = ~np.isnan(y[:, j])
        assert f1[j] == pytest.approx(f1_score(y[known, j], pred[known, j]), abs=1e-12)
        assert brier[j] == pytest.approx(brier_score_loss(y[known, j], prob[known, j]), abs=1e-12)
    assert metrics.macro_brier(y, prob) == pytest.approx(brier.mean())
    whole = np.where(np.isnan(y), 0, y)
    assert metrics.subset_accuracy(whole, pred) == accuracy_score(whole, pred)
    assert metrics.subset_accuracy(y, np.where(np.isnan(y), pred, y)) == 1
    assert metrics.subset_accuracy([[1, np.nan], [np.nan, np.nan], [0, 1]], [[1, 0], [1, 1], [1, 1]]) == 0.5
    assert np.isnan(metrics.subset_accuracy([[np.nan]], [[1]]))


def test_calibration_error_by_hand():
    y = np.array([[0], [1], [1], [np.nan], [0]])
    prob = np.array([[0.1], [0.2], [0.7], [0.9], [1.0]])
    # Two bins: 0.1 and 0.2 (mean 0.15, share 0.5) and 0.7 and 1.0 (mean 0.85, share 0.5).
    assert metrics.calibration_error_per_label(y, prob, n_bins=2)[0] == pytest.approx(0.5 * 0.35 + 0.5 * 0.35)
    assert metrics.calibration_error_per_label(y, prob, n_bins=1)[0] == pytest.approx(0)
    rng = np.random.default_rng(0)
    truth = rng.random((200_000, 1))
    calibrated = (rng.random(truth.shape) < truth).astype(int)
    assert metrics.calibration_error_per_label(calibrated, truth)[0] < 0.01


def test_cinc2017_counts_noise_as_error_but_not_as_a_class():
    names = np.array(["N", "A", "O", "~"])
    counts = np.array([[50, 1, 8, 2], [2, 20, 3, 1], [9, 2, 30, 4], [3, 1, 2, 5]])  # rows are the truth
    y_true = np.repeat(np.repeat(names, 4), counts.ravel())
    y_pred = np.repeat(np.tile(names, 4), counts.ravel())
    expected = np.mean([2 * counts[i, i] / (counts[i].sum() + counts[:, i].sum()) for i in range(3)])
    assert cinc2017_score(y_true, y_pred) == pytest.approx(expected, abs=1e-15)
    quiet = y_true != "~"
    assert cinc2017_score(y_true[quiet], y_pred[quiet]) > expected
    assert np.isnan(cinc2017_score(["N", "A"], ["N", "A"]))
    with pytest.raises(ValueError, match="y_true holds the classes P"):
        cinc2017_score(["N", "P"], ["N", "A"])
    assert cinc2017_score([0, 1, 2, 3], [0, 1, 2, 0], scored=(0, 1, 2), noise=3) == pytest.approx((2 / 3 + 2) / 3)


def test_label_report_equals_scikit_learns_figures():
    y, prob = masked(np.random.default_rng(8), n=90, k=3)
    y[:, 2] = 0
    thresholds = [0.4, 0.6, 0.5]
    found = label_report(pd.DataFrame(y, columns=["AF", "LBBB", "none"]), prob, thresholds)
    assert found.index.tolist() == ["AF", "LBBB", "none"]
    for j, name in enumerate(["AF", "LBBB"]):
        known = ~np.isnan(y[:, j])
        truth, p = y[known, j].astype(int), prob[known, j]
        pred = (p >= thresholds[j]).astype(int)
        expected = {
            "n": known.sum(),
            "prevalence": truth.mean(),
            "auroc": roc_auc_score(truth, p),
            "auprc": average_precision_score(truth, p),
            "f1": f1_score(truth, pred),
            "sensitivity": recall_score(truth, pred),
            "specificity": recall_score(1 - truth, 1 - pred),
            "ppv": precision_score(truth, pred),
            "threshold": thresholds[j],
            "brier": brier_score_loss(truth, p),
        }
        for column, value in expected.items():
            assert found.loc[name, column] == pytest.approx(value, abs=1e-12), column
    assert set(found.columns) == {*expected, "ece"}
    np.testing.assert_array_equal(found["ece"], metrics.calibration_error_per_label(y, prob))
    assert found.loc["none", ["auroc", "auprc", "sensitivity"]].isna().all()
    assert found.loc["none", "prevalence"] == 0
    assert found.loc["none", "specificity"] == pytest.approx((prob[:, 2] < 0.5).mean())
    assert (label_report(y, prob).threshold == 0.5).all()
    with pytest.raises(ValueError, match="2 labels are named, and y_true has 3"):
        label_report(y, prob, labels=["a", "b"])
    with pytest.raises(ValueError, match="one for each of 3 labels"):
        label_report(y, prob, [0.1, 0.2])


def test_bad_input_is_named():
    y, prob = masked(np.random.default_rng(0), unknown=0)
    with pytest.raises(ValueError, match=r"y_prob has shape \(60, 4\)"):
        macro_auroc(y, prob[:, :4])
    with pytest.raises(ValueError, match="shape \\(60,\\)"):
        macro_auroc(y[:, 0], prob[:, 0])
    prob[7, 2] = np.nan
    with pytest.raises(ValueError, match="nan in row 7, column 2"):
        macro_auroc(y, prob)
    prob[7, 2] = 1.5
    assert np.isfinite(macro_auroc(y, prob))
    with pytest.raises(ValueError, match="1.5 in row 7, column 2"):
        metrics.macro_brier(y, prob)
    y[3, 1] = 2
    with pytest.raises(ValueError, match=r"y_true holds 2\.0 in row 3, column 1"):
        macro_auroc(y, np.zeros_like(y))
    with pytest.raises(ValueError, match="must hold numbers"):
        macro_auroc([["AF"], ["NSR"]], [[0.1], [0.2]])


@pytest.mark.parametrize("n_labels", [2, 3])
def test_scorers_work_in_cross_validation_with_both_forms_of_probabilities(n_labels):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 5))
    y = (X[:, :n_labels] + rng.normal(size=(150, n_labels)) > 0.7).astype(int)
    groups = np.arange(150) // 3
    scoring = {k: SCORERS[k] for k in SCORERS} | {"challenge": make_challenge_scorer(["NSR", "AF", "LBBB"][:n_labels])}
    models = (
        MLPClassifier((4,), max_iter=30, random_state=0),
        RandomForestClassifier(5, random_state=0),
        MultiOutputClassifier(LogisticRegression()),
    )
    for model in models:
        with pytest.warns() if isinstance(model, MLPClassifier) else nullcontext():
            found = cross_validate(
                model,
                X,
                y,
                groups=groups,
                cv=GroupKFold(3),
                scoring=scoring,
                return_estimator=True,
                error_score="raise",
            )
        for i, (_, test) in enumerate(GroupKFold(3).split(X, y, groups)):
            fitted = found["estimator"][i]
            prob = fitted.predict_proba(X[test])
            prob = np.column_stack([p[:, 1] for p in prob]) if isinstance(prob, list) else prob
            assert found["test_macro_auroc"][i] == pytest.approx(roc_auc_score(y[test], prob, average="macro"))
            assert found["test_macro_auprc"][i] == pytest.approx(
                average_precision_score(y[test], prob, average="macro")
            )
            assert found["test_neg_macro_brier"][i] == pytest.approx(-((prob - y[test]) ** 2).mean())
            assert found["test_subset_accuracy"][i] == accuracy_score(y[test], fitted.predict(X[test]))
    for scorer in scoring.values():
        assert pickle.loads(pickle.dumps(scorer))(found["estimator"][0], X, y) == scorer(found["estimator"][0], X, y)


def test_a_label_that_was_constant_in_training_has_the_probability_of_its_one_class():
    X = np.random.default_rng(0).normal(size=(30, 2))
    y = np.column_stack((X[:, 0] > 0, np.zeros(30), np.ones(30))).astype(int)
    prob = metrics.positive_probabilities(RandomForestClassifier(5, random_state=0).fit(X, y), X)
    assert prob.shape == (30, 3)
    assert (prob[:, 1] == 0).all()
    assert (prob[:, 2] == 1).all()
    assert roc_auc_score(y[:, 0], prob[:, 0]) > 0.9


def test_challenge_scorers_keep_their_year_and_weights():
    X, y = np.arange(6.0)[:, None], np.eye(2, dtype=int)[[0, 1, 0, 1, 1, 1]]
    model, labels = KNeighborsClassifier(3).fit(X, y), ["NSR", "PRWP"]
    for options in ({"year": 2020}, {"year": 2021}, {"weights": [[1.0, 0.0], [0.3, 5.0]]}):
        expected = challenge_score(y, model.predict(X), labels, **options)
        assert make_challenge_scorer(labels, **options)(model, X, y) == expected
    assert make_challenge_scorer(labels, year=2020)(model, X, y) != make_challenge_scorer(labels)(model, X, y)


def test_cinc2017_scorer_takes_classes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 2))
    y = np.where(X[:, 0] > 0.5, "A", np.where(X[:, 1] > 0, "N", "O"))
    model = LogisticRegression().fit(X, y)
    assert cinc2017_scorer(model, X, y) == pytest.approx(f1_score(y, model.predict(X), average="macro"))

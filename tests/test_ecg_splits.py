"""Folds that share no patient and spread the labels evenly; intervals from resampled patients."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from ecg_cases import data_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, LeaveOneGroupOut, cross_val_predict, cross_val_score

from ssmseq.ecg.folders import read_cinc
from ssmseq.ecg.metrics import auroc_per_label, bootstrap_interval, macro_auroc
from ssmseq.ecg.splits import (
    GroupedMultilabelStratifiedKFold,
    PatientLeakageError,
    check_disjoint,
    label_indicator,
    leave_one_source_out,
    ptbxl_folds,
)


def cohort(seed, n_patients=150, n_labels=6):
    """Patients with one to several records, of which the labels are alike; some labels are rare."""
    rng = np.random.default_rng(seed)
    records = rng.geometric(0.5, size=n_patients)
    groups = np.repeat(np.arange(n_patients), records)
    tendency = rng.random((n_patients, n_labels)) < np.geomspace(0.05, 0.5, n_labels)
    y = (rng.random((len(groups), n_labels)) < np.where(tendency[groups], 0.9, 0.03)).astype(int)
    mixed = rng.permutation(len(groups))
    return y[mixed], groups[mixed]


def deviation(y, folds):
    """How far the labels' counts in the test parts are from equal ones, on average, as a share of these."""
    counts = np.array([y[test].sum(0) for _, test in folds])
    return np.mean(np.abs(counts - y.sum(0) / len(counts)) / (y.sum(0) / len(counts)))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(6, 40),
    st.integers(0, 5),
    st.booleans(),
)
def test_groups_stay_whole_and_every_record_is_tested_once(seed, n_splits, n_patients, n_labels, shuffle):
    rng = np.random.default_rng(seed)
    groups = np.concatenate((np.arange(n_patients), rng.integers(n_patients, size=rng.integers(0, 60))))
    y = (rng.random((len(groups), max(1, n_labels))) < 0.3) * (n_labels > 0)  # without labels, too
    cv = GroupedMultilabelStratifiedKFold(n_splits, shuffle=shuffle, random_state=seed if shuffle else None)
    folds = list(cv.split(np.zeros(len(groups)), y, groups))
    assert len(folds) == n_splits == cv.get_n_splits()
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(len(groups)))
    for train, test in folds:
        assert len(test) > 0
        np.testing.assert_array_equal(np.sort(np.concatenate((train, test))), np.arange(len(groups)))
        assert not set(groups[train]) & set(groups[test])
        check_disjoint(groups[train], groups[test])


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_are_spread_better_than_by_random_folds_of_groups(shuffle):
    ours, others, sizes = [], [], []
    for seed in range(20):
        y, groups = cohort(seed)
        X = np.zeros(len(y))
        cv = GroupedMultilabelStratifiedKFold(5, shuffle=shuffle, random_state=seed if shuffle else None)
        ours.append(deviation(y, cv.split(X, y, groups)))
        others.append(deviation(y, GroupKFold(5, shuffle=True, random_state=seed).split(X, y, groups)))
        sizes += [len(test) * 5 / len(y) - 1 for _, test in cv.split(X, y, groups)]
    assert np.mean(ours) < np.mean(others) / 3
    assert max(np.subtract(ours, others)) < 0
    assert np.abs(sizes).mean() < 0.1


def test_single_records_come_out_even_to_one():
    """Without groups and with one label each, counts of folds differ by at most one, as in StratifiedKFold."""
    y = np.random.default_rng(0).permutation(np.repeat(["N", "A", "O"], [57, 11, 32]))
    folds = [test for _, test in GroupedMultilabelStratifiedKFold(5).split(y, y)]
    counts = np.array([[(y[test] == c).sum() for c in "NAO"] for test in folds])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert np.ptp([len(test) for test in folds]) <= 1


def test_the_rarest_label_is_dealt_out_first_and_largest_groups_before_small_ones():
    # Eight records: four patients with one and, after them, one with four.
    groups, y = np.array([0, 1, 2, 3, 4, 4, 4, 4]), np.ones((8, 1), int)
    folds = [test.tolist() for _, test in GroupedMultilabelStratifiedKFold(2).split(y, y, groups)]
    assert folds == [[4, 5, 6, 7], [0, 1, 2, 3]]
    # Both records of label 0 have label 1, too: were label 1 dealt out first, in order, they could meet in one fold.
    y = np.zeros((8, 2), int)
    y[:, 1] = 1
    y[[0, 2], 0] = 1
    assert [y[test].sum(0).tolist() for _, test in GroupedMultilabelStratifiedKFold(2).split(y, y)] == [[1, 4], [1, 4]]
    # What is equal is dealt out in the order in which it comes.
    folds = [test.tolist() for _, test in GroupedMultilabelStratifiedKFold(4).split(range(100), ["a"] * 100)]
    assert folds == [list(range(k, 100, 4)) for k in range(4)]


def test_records_without_labels_even_out_the_sizes():
    y = np.zeros((23, 2), int)
    y[:3, 0] = 1
    assert sorted(len(test) for _, test in GroupedMultilabelStratifiedKFold(4).split(y, y)) == [5, 6, 6, 6]


def test_forms_of_labels_give_the_same_folds():
    sets = [{"AF"}, {"AF", "LBBB"}, set(), {"LBBB"}, {"NSR"}, {"NSR"}, {"AF"}, {"NSR", "LBBB"}]
    frame = pd.DataFrame([[int(c in s) for c in ("AF", "LBBB", "NSR")] for s in sets], columns=["AF", "LBBB", "NSR"])
    forms = [
        sets,
        [sorted(s) for s in sets],
        pd.Series([frozenset(s) for s in sets]),
        frame,
        frame.to_numpy(),
        frame.to_numpy(bool),
        frame.to_numpy().tolist(),
        csr_array(frame.to_numpy()),
        frame.astype(float).replace(0, np.nan),  # unknown counts as absent
    ]
    X = np.zeros((8, 3))
    cv = GroupedMultilabelStratifiedKFold(2)
    expected = [test.tolist() for _, test in cv.split(X, forms[0])]
    for y in forms[1:]:
        assert [test.tolist() for _, test in cv.split(X, y)] == expected
    for y in forms[:4]:
        assert label_indicator(y)[1] == ["AF", "LBBB", "NSR"]
        np.testing.assert_array_equal(label_indicator(y)[0], frame)
    found, names = label_indicator(np.array(["b", "a", "b"]))
    assert (found.tolist(), names) == ([[0, 1], [1, 0], [0, 1]], ["a", "b"])
    assert label_indicator(frame.to_numpy())[1] == [0, 1, 2]


def test_wrong_labels_are_named():
    with pytest.raises(TypeError, match="y has label sets, but 'AF' in row 1"):
        label_indicator([{"AF"}, "AF"])
    with pytest.raises(ValueError, match=r"y holds 3\.0 in row 0, column 1"):
        label_indicator([[1, 3], [0, 0]])
    with pytest.raises(ValueError, match="row 1 has none"):
        label_indicator(np.array(["a", None], object))
    with pytest.raises(ValueError, match="no records"):
        label_indicator([])
    with pytest.raises(ValueError, match="y is needed"):
        next(GroupedMultilabelStratifiedKFold(2).split([1, 2]))
    with pytest.raises(ValueError, match="X has 3 records and y 2"):
        next(GroupedMultilabelStratifiedKFold(2).split([1, 2, 3], ["a", "b"]))
    with pytest.raises(ValueError, match="2 groups cannot fill n_splits=3 folds"):
        next(GroupedMultilabelStratifiedKFold(3).split([1, 2, 3], ["a", "b", "a"], ["p", "q", "q"]))
    with pytest.raises(ValueError, match="groups must have an entry for each of 3 records; it has 2"):
        next(GroupedMultilabelStratifiedKFold(2).split([1, 2, 3], ["a", "b", "a"], ["p", "q"]))
    with pytest.raises(ValueError, match="n_splits must be an integer at least 2"):
        next(GroupedMultilabelStratifiedKFold(1).split([1, 2], ["a", "b"]))


def test_shuffling_repeats_itself_and_changes_with_the_seed():
    y, groups = cohort(3)

    def tests(**changes):
        return [t.tolist() for _, t in GroupedMultilabelStratifiedKFold(4, **changes).split(y, y, groups)]

    assert tests() == tests()
    assert tests(shuffle=True, random_state=1) == tests(shuffle=True, random_state=1)
    assert tests(shuffle=True, random_state=1) != tests(shuffle=True, random_state=2)


def test_scikit_learn_takes_the_splitter():
    y, groups = cohort(1)
    X = np.random.default_rng(0).normal(size=(len(y), 3)) + y[:, :1]
    cv = GroupedMultilabelStratifiedKFold(3)
    assert repr(cv) == "GroupedMultilabelStratifiedKFold(n_splits=3, random_state=None, shuffle=False)"
    scores = cross_val_score(LogisticRegression(), X, y[:, 0], groups=groups, cv=cv)
    for (train, test), score in zip(cv.split(X, y[:, 0], groups), scores, strict=True):
        assert LogisticRegression().fit(X[train], y[train, 0]).score(X[test], y[test, 0]) == score
    assert cross_val_predict(LogisticRegression(), X, y[:, 0], groups=groups, cv=cv).shape == (len(y),)
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=cv).fit(X, y[:, 0], groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cross_val_score(LogisticRegression(), X, y[:, 0], params={"groups": groups}, cv=cv)
    np.testing.assert_array_equal(routed, scores)


def test_leave_one_source_out_names_its_splits():
    sources = np.array(["PTB", "Georgia", "PTB", "Ningbo", "Georgia"])
    found = leave_one_source_out(sources)
    assert list(found) == ["PTB", "Georgia", "Ningbo"]
    assert {k: (a.tolist(), b.tolist()) for k, (a, b) in found.items()} == {
        "PTB": ([1, 3, 4], [0, 2]),
        "Georgia": ([0, 2, 3], [1, 4]),
        "Ningbo": ([0, 1, 2, 4], [3]),
    }
    X, y = np.arange(5.0)[:, None], np.array([0, 1, 1, 0, 0])
    assert len(cross_val_score(LogisticRegression(), X, y, cv=list(found.values()))) == 3
    leave_one_source_out(sources, groups=["a", "b", "a", "c", "b"])
    with pytest.raises(PatientLeakageError, match="'a'"):
        leave_one_source_out(sources, groups=["a", "b", "d", "a", "c"])
    with pytest.raises(ValueError, match="1 source is given"):
        leave_one_source_out(["PTB", "PTB"])
    with pytest.raises(ValueError, match="row 1 has none"):
        leave_one_source_out(["PTB", None, "Georgia"])


def test_leave_one_source_out_of_challenge_recordings():
    data = read_cinc(data_folder() / "ci_small" / "cinc2021")
    sources = [record.source for record in data.records]
    found = leave_one_source_out(sources)
    expected = {sources[test[0]]: (train, test) for train, test in LeaveOneGroupOut().split(sources, groups=sources)}
    assert list(found) == list(dict.fromkeys(sources)) == ["CPSC", "Georgia", "PTB_XL", "Ningbo"]
    for source, parts in found.items():
        for mine, theirs in zip(parts, expected[source], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert {data.records[i].source for i in parts[1]} == {source}
        assert source not in {data.records[i].source for i in parts[0]}
    X = np.stack([record.signal[:, :2000].std(1) for record in data.records])
    scores = cross_val_score(DummyClassifier(), X, np.arange(len(X)) % 2, cv=list(found.values()))
    assert len(scores) == 4


def test_ptbxl_folds():
    strat_fold = np.array([10, 1, 8, 9, 3, 10, 9])
    found = ptbxl_folds(pd.Series(strat_fold))
    assert [part.tolist() for part in found] == [[1, 2, 4], [3, 6], [0, 5]]
    assert found.test is found[2]
    with pytest.raises(ValueError, match="in row 2; PTB-XL's folds are 1 to 10"):
        ptbxl_folds([1, 9, 0, 10])
    with pytest.raises(ValueError, match="folds of validation and test"):
        ptbxl_folds([1, 2])


def test_a_patient_on_both_sides_is_named():
    check_disjoint(["a", "b", "b"], ["c"])
    with pytest.raises(PatientLeakageError, match=r"2 patients .* training and in the test part: 7, 5\."):
        check_disjoint([7, 1, 5, 7], np.array([5, 7, 2]), names=("training", "test"))
    with pytest.raises(PatientLeakageError, match=r"12 patients .*: 0, 1, .* 9, \.\.\."):
        check_disjoint(range(12), range(20))
    with pytest.raises(ValueError, match="groups of the second part .* row 1 has none"):
        check_disjoint(["a"], ["b", None])
    assert issubclass(PatientLeakageError, ValueError)


def predicted(seed, n=60, k=5):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, k)) < 0.3).astype(float)
    return y, np.round(0.7 * rng.random((n, k)) + 0.3 * y, 1)


def mean(y_true, y_prob):
    return y_prob.mean()


def test_bootstrap_of_a_mean_has_the_width_that_theory_gives():
    rng = np.random.default_rng(1)
    values = rng.exponential(size=(400, 1))
    y = np.tile([[0], [1]], (200, 1))
    found = bootstrap_interval(mean, y, values, n_resamples=2000)
    error = values.std() / 20
    assert found.point == values.mean()
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert (found.high + found.low) / 2 == pytest.approx(found.point, abs=0.2 * error)
    narrow = bootstrap_interval(mean, y, values, n_resamples=2000, level=50)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(0.6745 * error, rel=0.08)


def test_bootstrap_resamples_patients_not_records():
    """Ten equal records of each patient tell no more than one of them."""
    rng = np.random.default_rng(2)
    values, y = rng.normal(size=(60, 1)), np.tile([[0], [1]], (30, 1))
    one = bootstrap_interval(mean, y, values, n_resamples=200)
    patients = np.repeat([f"p{i}" for i in range(60)], 10)
    ten = bootstrap_interval(
        mean, np.repeat(y, 10, axis=0), np.repeat(values, 10, axis=0), groups=patients, n_resamples=200
    )
    np.testing.assert_allclose(ten, one, atol=1e-12)
    records = bootstrap_interval(mean, np.repeat(y, 10, axis=0), np.repeat(values, 10, axis=0), n_resamples=200)
    assert records.high - records.low < 0.5 * (one.high - one.low)
    mixed = rng.permutation(600)  # a patient's records need not stand together
    found = bootstrap_interval(
        mean, np.repeat(y, 10, axis=0)[mixed], np.repeat(values, 10, axis=0)[mixed], groups=patients[mixed]
    )
    assert found.high - found.low == pytest.approx(one.high - one.low, rel=0.25)


def test_bootstrap_draws_again_until_every_class_is_there():
    y = np.zeros((30, 2))
    y[:2, 0], y[:15, 1] = 1, 1
    y[20, 1] = np.nan
    y_prob = np.random.default_rng(0).random((30, 2))
    seen = []

    def watched(truth, prob):
        seen.append([set(np.unique(c[~np.isnan(c)])) for c in truth.T])
        return macro_auroc(truth, prob)

    found = bootstrap_interval(watched, y, y_prob, n_resamples=100)
    assert len(seen) == 101
    assert all(s == [{0, 1}, {0, 1}] for s in seen)
    assert found.low <= found.point <= found.high
    strings = np.array(["N"] * 20 + ["A"] * 2 + ["O"] * 8)
    kept = []
    bootstrap_interval(lambda t, p: kept.append(set(t)) or 0.0, strings, strings, n_resamples=50)
    assert all(k == {"N", "A", "O"} for k in kept)


def test_bootstrap_draws_again_where_the_metric_is_undefined():
    y, y_prob = np.tile([[0], [1]], (10, 1)), np.arange(20.0)[:, None]

    def fussy(truth, prob):
        return float("nan") if not (prob == 0).any() else prob.mean()

    found = bootstrap_interval(fussy, y, y_prob, n_resamples=300)
    assert np.isfinite(found).all()
    # Only draws with the record of the lowest score are left.
    assert found.high < bootstrap_interval(mean, y, y_prob, n_resamples=300).high
    with pytest.raises(ValueError, match="NaN on the data itself"):
        bootstrap_interval(macro_auroc, np.ones((5, 1)), y_prob[:5])


def test_bootstrap_of_arrays_and_of_differences():
    y, prob = predicted(5, n=80, k=3)
    y[:, 2] = 0
    per_label = bootstrap_interval(auroc_per_label, y, prob, n_resamples=50)
    assert np.isnan([per_label.point[2], per_label.low[2], per_label.high[2]]).all()
    assert (per_label.low[:2] < per_label.point[:2]).all()
    assert (per_label.point[:2] < per_label.high[:2]).all()
    first = bootstrap_interval(lambda t, p: auroc_per_label(t, p)[0], y, prob, n_resamples=50)
    np.testing.assert_allclose(first, [x[0] for x in per_label])
    stacked = np.stack((prob, prob), axis=2)
    same = bootstrap_interval(lambda t, p: macro_auroc(t, p[..., 0]) - macro_auroc(t, p[..., 1]), y, stacked)
    assert tuple(same) == (0, 0, 0)


def test_bootstrap_repeats_itself_and_refuses_what_it_cannot_do():
    y, prob = predicted(6)
    runs = [bootstrap_interval(macro_auroc, y, prob, n_resamples=20, random_state=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    with pytest.raises(ValueError, match="row 4 has none"):
        bootstrap_interval(macro_auroc, y, prob, groups=[None if i == 4 else i for i in range(60)])
    with pytest.raises(ValueError, match="needs two groups"):
        bootstrap_interval(macro_auroc, y, prob, groups=["p"] * 60)
    with pytest.raises(ValueError, match="y_prob 59"):
        bootstrap_interval(macro_auroc, y, prob[:59])
    with pytest.raises(ValueError, match="level must be a number above 0 and below 100"):
        bootstrap_interval(macro_auroc, y, prob, level=100)
    # Ten labels, each in one of ten patients: a draw of all ten comes once in 2756.
    with pytest.raises(ValueError, match="only 1 of 10 groups"):
        bootstrap_interval(macro_auroc, np.eye(10), np.eye(10) * 0.5, n_resamples=10)

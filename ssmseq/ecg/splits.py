"""Splits of multilabel records into training and test parts that share no patient.

scikit-learn's stratified splitters take no multilabel target. This one balances the labels over folds by iterative
stratification [1]_, with whole groups (patients) in place of single records: the rarest label is dealt out first, the
group with most of its records first, each to the fold that lacks most of that label.

References
----------
.. [1] Sechidis, K., Tsoumakas, G. and Vlahavas, I. (2011). On the stratification of multi-label data. ECML PKDD.
   https://doi.org/10.1007/978-3-642-23808-6_10
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import BaseCrossValidator
from sklearn.preprocessing import MultiLabelBinarizer

from ssmseq.base import check_number, draw_seed


class PatientLeakageError(ValueError):
    """Records of one patient lie on both sides of a split."""


class GroupedMultilabelStratifiedKFold(BaseCrossValidator):
    """Folds that share no group and hold about the same share of every label.

    Parameters
    ----------
    n_splits : int, default=5
    shuffle : bool, default=False
        Draw the order in which groups with equally many records of a label are dealt out. Without it that is the order
        in which they come.
    random_state : int, generator or None, default=None
        Of the drawing; without effect unless `shuffle`.

    Notes
    -----
    A label that fewer groups have than there are folds is missing from some test parts. An entry of the indicator that
    is NaN (unknown) counts as absent here.

    References
    ----------
    .. [1] Sechidis, K., Tsoumakas, G. and Vlahavas, I. (2011). On the stratification of multi-label data. ECML PKDD.

    Examples
    --------
    >>> import numpy as np
    >>> cv = GroupedMultilabelStratifiedKFold(n_splits=2)
    >>> y = [{"AF"}, {"AF", "LBBB"}, {"NSR"}, {"NSR"}, {"LBBB"}, {"AF"}]
    >>> patients = ["a", "a", "b", "c", "d", "e"]
    >>> [test.tolist() for _, test in cv.split(np.zeros(6), y, patients)]
    [[0, 1, 2], [3, 4, 5]]
    """

    # scikit-learn's name for it: with metadata routing, cross_validate hands over groups unasked.
    __metadata_request__split = {"groups": True}  # noqa: RUF012

    def __init__(self, n_splits: int = 5, *, shuffle: bool = False, random_state=None):
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state

    def get_n_splits(self, X=None, y=None, groups=None) -> int:
        """Return the number of folds; the arguments are ignored."""
        return self.n_splits

    def split(self, X, y=None, groups=None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the row numbers of the training and the test part of each fold.

        Parameters
        ----------
        X : array or list of n records
            Only its length counts.
        y : array (n, labels), frame, list of label sets, or array (n,) of classes
            See `label_indicator`.
        groups : array (n,), optional
            The patient of each record. Without it every record is a group of its own.

        Yields
        ------
        train, test : array of int

        Raises
        ------
        ValueError
            If lengths differ, labels are missing, or there are fewer groups than folds.
        """
        check_number("n_splits", self.n_splits, minimum=2, integer=True)
        if y is None:
            raise ValueError("y is needed: folds are balanced by its labels; without labels use GroupKFold")
        labels, _ = label_indicator(y)
        n = len(X) if not hasattr(X, "shape") else X.shape[0]
        if len(labels) != n:
            raise ValueError(f"X has {n} records and y {len(labels)}; give labels for each record")
        group = group_codes("groups", np.arange(n) if groups is None else groups, n)
        if group.max() + 1 < self.n_splits:
            raise ValueError(f"{group.max() + 1} groups cannot fill n_splits={self.n_splits} folds; lower n_splits")
        sizes = np.bincount(group)
        counts = np.stack([np.bincount(group, weights=column == 1) for column in labels.T], axis=1)
        rng = np.random.default_rng(draw_seed(self.random_state)) if self.shuffle else None
        fold = _deal(counts.astype(np.int64), sizes, self.n_splits, rng)[group]
        for k in range(self.n_splits):
            yield np.flatnonzero(fold != k), np.flatnonzero(fold == k)


def _deal(counts: np.ndarray, sizes: np.ndarray, n_folds: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return the fold of each group, from the records of each label (groups, labels) and all records (groups,)."""
    order = np.arange(len(sizes)) if rng is None else rng.permutation(len(sizes))
    counts = np.column_stack((counts, sizes))  # the last column is all records
    remaining = counts.sum(0)
    held = np.zeros((n_folds, len(remaining)), np.int64)  # folds are to be equal: who holds least lacks most
    fold = np.full(len(sizes), -1)
    while (fold < 0).any():
        rarest = np.flatnonzero(remaining[:-1] > 0)
        label = rarest[np.argmin(remaining[rarest])] if len(rarest) else -1
        mine = order[(fold[order] < 0) & (counts[order, label] > 0)]
        for g in mine[np.argsort(-counts[mine, label], kind="stable")]:
            fold[g] = np.lexsort((held[:, -1], held[:, label]))[0]
            held[fold[g]] += counts[g]
            remaining -= counts[g]
    return fold


def leave_one_source_out(sources, *, groups=None) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Return splits that each hold out all records of one source (hospital, device, database).

    A model that is tested on records from where it was trained looks better than it is elsewhere [1]_.

    Parameters
    ----------
    sources : array (n,)
        Where each record is from.
    groups : array (n,), optional
        The patient of each record; checked to lie in one source only.

    Returns
    -------
    dict of source to (train, test)
        Row numbers, in the order in which the sources appear. Pass ``list(splits.values())`` as `cv` to scikit-learn.

    Raises
    ------
    ValueError
        If an entry is missing, or there is only one source.
    PatientLeakageError
        If a patient has records in two sources.

    References
    ----------
    .. [1] Reyna, M. A. et al. (2021). Will two do? Varying dimensions in electrocardiography: the PhysioNet/Computing
       in Cardiology Challenge 2021. https://doi.org/10.23919/CinC53138.2021.9662687

    Examples
    --------
    >>> leave_one_source_out(["Georgia", "PTB", "PTB"])["PTB"]
    (array([0]), array([1, 2]))

    Of records and any classifier, one score for each source; scikit-learn's LeaveOneGroupOut makes the same splits.

    >>> from sklearn.dummy import DummyClassifier
    >>> from sklearn.model_selection import cross_val_score
    >>> from ssmseq.ecg import Record
    >>> common = {"sampling_rate": 100.0, "lead_names": ("I",)}
    >>> records = [Record(signal=np.zeros((1, 9)), source=name, **common) for name in ("Georgia", "PTB", "PTB")]
    >>> splits = leave_one_source_out([record.source for record in records])
    >>> scores = cross_val_score(DummyClassifier(), np.zeros((3, 1)), ["AF", "AF", "NSR"], cv=list(splits.values()))
    >>> [f"{source}: {score:.1f}" for source, score in zip(splits, scores)]
    ['Georgia: 1.0', 'PTB: 0.5']
    """
    sources = np.asarray(sources)
    codes = group_codes("sources", sources, len(sources))
    if codes.max(initial=-1) < 1:
        raise ValueError(f"{codes.max(initial=-1) + 1} source is given; leaving one out needs two or more")
    splits = {}
    for k in range(codes.max() + 1):
        train, test = np.flatnonzero(codes != k), np.flatnonzero(codes == k)
        if groups is not None:
            check_disjoint(np.asarray(groups)[train], np.asarray(groups)[test], names=("training", "test"))
        splits[sources[test[0]]] = train, test
    return splits


class Folds(NamedTuple):
    """Row numbers of the three parts of a data set."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def ptbxl_folds(strat_fold) -> Folds:
    """Return the parts that PTB-XL recommends: folds 1 to 8 to train on, 9 to validate, 10 to test.

    Parameters
    ----------
    strat_fold : array (n,) of int
        The column of that name in the data set's table; folds share no patient.

    Returns
    -------
    Folds
        ``train, validation, test``, row numbers.

    Raises
    ------
    ValueError
        If an entry is not from 1 to 10, or a part would be empty.

    References
    ----------
    .. [1] Wagner, P. et al. (2020). PTB-XL, a large publicly available electrocardiography dataset. Scientific Data 7,
       154. https://doi.org/10.1038/s41597-020-0495-6
    """
    fold = np.asarray(strat_fold)
    wrong = np.flatnonzero(~np.isin(fold, np.arange(1, 11)))
    if len(wrong):
        raise ValueError(f"strat_fold holds {fold.flat[wrong[0]]!r} in row {wrong[0]}; PTB-XL's folds are 1 to 10")
    found = Folds(np.flatnonzero(fold <= 8), np.flatnonzero(fold == 9), np.flatnonzero(fold == 10))
    empty = [name for name, rows in found._asdict().items() if not len(rows)]
    if empty:
        raise ValueError(f"no record is in the folds of {' and '.join(empty)}; pass strat_fold of all records")
    return found


def check_disjoint(groups_a, groups_b, *, names: tuple[str, str] = ("first", "second")) -> None:
    """Raise unless no patient has records in both of two parts.

    Parameters
    ----------
    groups_a, groups_b : array (n,)
        The patients of the records of each part.
    names : tuple of str, default=("first", "second")
        What the parts are called in the error.

    Raises
    ------
    PatientLeakageError
        A ValueError that lists the patients, the first ten of them if there are more.
    ValueError
        If a record has no patient, so that there is nothing to check.
    """
    a, b = (np.asarray(groups) for groups in (groups_a, groups_b))
    for name, groups in zip(names, (a, b), strict=True):
        group_codes(f"the groups of the {name} part", groups, len(groups))
    others = set(b.tolist())
    shared = [patient for patient in dict.fromkeys(a.tolist()) if patient in others]
    if shared:
        shown = ", ".join(map(repr, shared[:10])) + (", ..." if len(shared) > 10 else "")
        raise PatientLeakageError(
            f"{len(shared)} patients have records in the {names[0]} and in the {names[1]} part: {shown}. "
            "Split by patient, as GroupedMultilabelStratifiedKFold does"
        )


def label_indicator(y) -> tuple[np.ndarray, list]:
    """Return labels in any of their forms as an indicator, and the names of its columns.

    Parameters
    ----------
    y : array (n, labels), frame, list of label sets, or array (n,) of classes
        Numbers in two dimensions are an indicator. Sets, and lists or tuples of strings, are label sets. Anything else
        is one class for each record.

    Returns
    -------
    indicator : array (n, labels) of float64
        1 where a record has a label, NaN where an indicator says that this is unknown.
    names : list
        The frame's columns, the column numbers of an array, or the sorted labels.

    Raises
    ------
    ValueError
        If an indicator holds something else than 0, 1 and NaN, a class is missing, or there are no records.
    TypeError
        If some records have label sets and others do not.
    """
    if hasattr(y, "toarray"):  # a sparse matrix
        y = y.toarray()
    table = hasattr(y, "columns") or getattr(y, "ndim", 1) > 1
    rows = [] if table else list(y)
    sets = [isinstance(r, set | frozenset) or _is_list_of_strings(r) for r in rows]
    if any(sets):
        if not all(sets):
            raise TypeError(f"y has label sets, but {rows[sets.index(False)]!r} in row {sets.index(False)}")
        binarizer = MultiLabelBinarizer()
        return np.asarray(binarizer.fit_transform(rows), np.float64), list(binarizer.classes_)
    values = np.asarray(y)
    if values.ndim > 1:
        return check_indicator("y", values), list(getattr(y, "columns", range(values.shape[1])))
    return _one_of_each_class(values)


def check_indicator(name: str, values, *, unknown: bool = True) -> np.ndarray:
    """Return an indicator as an array (n, labels) of float64; ValueError unless it holds 0, 1 and, if allowed, NaN."""
    found = np.asarray(values)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"{name} must be an indicator of shape (n, labels), got shape {found.shape}")
    try:
        found = found.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must hold numbers, one column for each label: {error}") from error
    wrong = ~np.isin(found, (0, 1)) & ~(np.isnan(found) & unknown)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        allowed = "0, 1 or NaN (unknown)" if unknown else "0 or 1; apply thresholds to probabilities first"
        raise ValueError(f"{name} holds {found[row, column]} in row {row}, column {column}; entries must be {allowed}")
    return found


def group_codes(name: str, groups, n: int) -> np.ndarray:
    """Return groups as numbers 0, 1, ... in the order of their appearance; ValueError if one is missing."""
    import pandas as pd

    codes, _ = pd.factorize(np.asarray(groups))
    if codes.shape != (n,) or (codes < 0).any():
        missing = f", and row {np.flatnonzero(codes < 0)[0]} has none" if (codes < 0).any() else ""
        raise ValueError(f"{name} must have an entry for each of {n} records; it has {len(codes)}{missing}")
    return codes


def _is_list_of_strings(row) -> bool:
    return isinstance(row, list | tuple) and all(isinstance(label, str) for label in row)


def _one_of_each_class(values: np.ndarray) -> tuple[np.ndarray, list]:
    code = group_codes("y", values, len(values))
    if not len(code):
        raise ValueError("y has no records")
    names, code = np.unique(values, return_inverse=True)
    return (code[:, None] == np.arange(len(names))).astype(np.float64), names.tolist()

"""How good multilabel predictions are: areas under curves, F-measures, calibration, and intervals by patient.

Macro averages follow the scoring code of the PhysioNet/CinC challenges [1]_: a label that has no value (no positive
record, say) is left out of the mean. scikit-learn's ``average="macro"`` has no such rule. A label may be unknown for a
record: NaN in `y_true`, and that entry counts nowhere.

References
----------
.. [1] Reyna, M. A. et al. (2021). Will two do? Varying dimensions in electrocardiography: the PhysioNet/Computing in
   Cardiology Challenge 2021. https://doi.org/10.23919/CinC53138.2021.9662687
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import make_scorer

from ssmseq.base import check_number, draw_seed
from ssmseq.ecg.splits import check_indicator, group_codes

if TYPE_CHECKING:
    import pandas as pd


def check_scores(name: str, values, shape: tuple[int, ...], *, probability: bool = True) -> np.ndarray:
    """Return scores as float64; ValueError unless they have the shape, are finite and, if asked, lie in [0, 1]."""
    found = np.asarray(values, np.float64)
    if found.shape != tuple(shape):
        raise ValueError(f"{name} has shape {found.shape}, and y_true {tuple(shape)}; both must be (n, labels)")
    wrong = ~np.isfinite(found) | (((found < 0) | (found > 1)) & probability)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        must = "a probability from 0 to 1" if probability else "finite"
        raise ValueError(f"{name} holds {found[row, column]} in row {row}, column {column}; it must be {must}")
    return found


def auroc_per_label(y_true, y_prob) -> np.ndarray:
    """Return the area under the ROC curve of each label; NaN where it has no positive or no negative record.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
    y_prob : array (n, labels)
        Probabilities, or any scores that rise with them.

    Returns
    -------
    array (labels,)

    Raises
    ------
    ValueError
        If shapes differ, `y_true` holds something else, or `y_prob` is not finite.
    """
    ranked = _Ranked(y_true, y_prob)
    negatives = ranked.false[-1]
    above = (ranked.at_start(ranked.false) + ranked.at_end(ranked.false)) / 2  # a tie counts one half
    return _ratio((ranked.positive * (negatives - above)).sum(0), ranked.true[-1] * negatives)


def average_precision_per_label(y_true, y_prob) -> np.ndarray:
    """Return the area under the precision-recall curve of each label, as a step function; NaN without positives.

    Parameters, errors and the returned array are those of `auroc_per_label`.
    """
    ranked = _Ranked(y_true, y_prob)
    found = ranked.at_end(ranked.true)
    precision = found / np.maximum(found + ranked.at_end(ranked.false), 1)
    return _ratio((ranked.positive * precision).sum(0), ranked.true[-1])


class _Ranked:
    """Labels in the order of falling scores, all columns at once.

    scikit-learn's roc_auc_score and average_precision_score give the same numbers for one column without NaN, in ten
    times the time, which a bootstrap over thousands of resamples cannot afford.
    """

    def __init__(self, y_true, y_prob):
        y_true = check_indicator("y_true", y_true)
        y_prob = check_scores("y_prob", y_prob, y_true.shape, probability=False)
        order = np.argsort(-y_prob, axis=0)
        labels, scores = (np.take_along_axis(x, order, axis=0) for x in (y_true, y_prob))
        self.positive = (labels == 1).astype(np.float64)
        self.true, self.false = np.cumsum(self.positive, axis=0), np.cumsum(labels == 0, axis=0, dtype=np.float64)
        rows, new = np.arange(len(scores))[:, None], scores[1:] != scores[:-1]
        edge = np.ones((1, scores.shape[1]), bool)
        self._start = np.maximum.accumulate(np.where(np.vstack((edge, new)), rows, 0), axis=0)
        ends = np.where(np.vstack((new, edge)), rows, len(scores))
        self._end = np.minimum.accumulate(ends[::-1], axis=0)[::-1]

    def at_end(self, counts: np.ndarray) -> np.ndarray:
        """Return running counts at the last of the records that share a record's score."""
        return np.take_along_axis(counts, self._end, axis=0)

    def at_start(self, counts: np.ndarray) -> np.ndarray:
        """Return running counts just before the first of the records that share a record's score."""
        return np.take_along_axis(np.vstack((np.zeros((1, counts.shape[1])), counts)), self._start, axis=0)


def f_measure_per_label(y_true, y_pred) -> np.ndarray:
    """Return the F1 of each label; NaN only where no record has it and none is predicted to have it.

    A label that no record has scores 0 as soon as one is predicted to have it, as in the challenges.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
    y_pred : array (n, labels) of 0 or 1

    Returns
    -------
    array (labels,)

    Raises
    ------
    ValueError
        If shapes differ or an entry is something else.
    """
    true, pred, known = _check_decisions(y_true, y_pred)
    both = (true & pred).sum(0)
    return _ratio(2 * both, true.sum(0) + (pred & known).sum(0))


def brier_per_label(y_true, y_prob) -> np.ndarray:
    """Return the mean squared difference of probability and truth of each label; NaN where no truth is known.

    Parameters and errors are those of `auroc_per_label`, and probabilities must lie in [0, 1].
    """
    y_true = check_indicator("y_true", y_true)
    y_prob = check_scores("y_prob", y_prob, y_true.shape)
    return _ratio(np.nansum((y_prob - y_true) ** 2, axis=0), (~np.isnan(y_true)).sum(0))


def calibration_error_per_label(y_true, y_prob, *, n_bins: int = 10) -> np.ndarray:
    """Return the expected calibration error of each label: how far shares are from the probabilities that were given.

    Records fall into bins of equal width by their probability. The error is the mean over records of the absolute
    difference between the mean probability of a record's bin and the share of positives in it [1]_.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
    y_prob : array (n, labels) of probabilities
    n_bins : int, default=10

    Returns
    -------
    array (labels,)
        NaN where no truth is known.

    Raises
    ------
    ValueError
        If shapes differ, an entry is something else, or `n_bins` is below 1.

    References
    ----------
    .. [1] Naeini, M. P., Cooper, G. F. and Hauskrecht, M. (2015). Obtaining well calibrated probabilities using
       Bayesian binning. AAAI.
    """
    check_number("n_bins", n_bins, minimum=1, integer=True)
    y_true = check_indicator("y_true", y_true)
    y_prob = check_scores("y_prob", y_prob, y_true.shape)
    bins = np.minimum((y_prob * n_bins).astype(int), n_bins - 1)
    gap = np.nan_to_num(y_prob - y_true)  # of an unknown truth nothing
    sums = [np.abs(np.bincount(bins[:, j], weights=gap[:, j])).sum() for j in range(y_true.shape[1])]
    return _ratio(np.array(sums), (~np.isnan(y_true)).sum(0))


def macro_auroc(y_true, y_prob) -> float:
    """Return the mean of `auroc_per_label` over the labels that have one; NaN if none has."""
    return _mean(auroc_per_label(y_true, y_prob))


def macro_auprc(y_true, y_prob) -> float:
    """Return the mean of `average_precision_per_label` over the labels that have one; NaN if none has."""
    return _mean(average_precision_per_label(y_true, y_prob))


def macro_f_measure(y_true, y_pred) -> float:
    """Return the mean of `f_measure_per_label` over the labels that have one; NaN if none has."""
    return _mean(f_measure_per_label(y_true, y_pred))


def macro_brier(y_true, y_prob) -> float:
    """Return the mean of `brier_per_label` over the labels of which any truth is known; lower is better."""
    return _mean(brier_per_label(y_true, y_prob))


def subset_accuracy(y_true, y_pred) -> float:
    """Return the share of records all of whose known labels are predicted; NaN if no label is known.

    Records of which no label is known are left out. Parameters and errors are those of `f_measure_per_label`.
    """
    true, pred, known = _check_decisions(y_true, y_pred)
    right = ((true == pred) | ~known).all(1)[known.any(1)]
    return float(right.mean()) if len(right) else float("nan")


def label_report(y_true, y_prob, thresholds=0.5, *, labels=None, n_bins: int = 10) -> "pd.DataFrame":
    """Return how well each label is predicted, as a table with a row for each.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
    y_prob : array (n, labels) of probabilities
    thresholds : float or array (labels,), default=0.5
        A record is predicted to have a label if its probability is at least the threshold.
    labels : sequence of str, optional
        Names of the labels; by default the columns of `y_true` if it is a frame, else their numbers.
    n_bins : int, default=10
        Of the expected calibration error.

    Returns
    -------
    DataFrame (labels, 11)
        n (records with a known label), prevalence, auroc, auprc, f1, sensitivity, specificity, ppv (positive
        predictive value), threshold, brier and ece (see `calibration_error_per_label`). NaN where undefined.

    Raises
    ------
    ValueError
        If shapes differ or an entry is something else.
    """
    import pandas as pd

    names = getattr(y_true, "columns", None) if labels is None else labels
    y_true = check_indicator("y_true", y_true)
    y_prob = check_scores("y_prob", y_prob, y_true.shape)
    names = range(y_true.shape[1]) if names is None else list(names)
    if len(names) != y_true.shape[1]:
        raise ValueError(f"{len(names)} labels are named, and y_true has {y_true.shape[1]} columns")
    thresholds = check_thresholds(thresholds, y_true.shape[1])
    true, pred, known = _check_decisions(y_true, (y_prob >= thresholds).astype(int))
    hits, false = (true & pred).sum(0), ~true & known
    table = {
        "n": known.sum(0),
        "prevalence": _ratio(true.sum(0), known.sum(0)),
        "auroc": auroc_per_label(y_true, y_prob),
        "auprc": average_precision_per_label(y_true, y_prob),
        "f1": f_measure_per_label(y_true, pred),
        "sensitivity": _ratio(hits, true.sum(0)),
        "specificity": _ratio((false & ~pred).sum(0), false.sum(0)),
        "ppv": _ratio(hits, (known & pred).sum(0)),
        "threshold": thresholds,
        "brier": brier_per_label(y_true, y_prob),
        "ece": calibration_error_per_label(y_true, y_prob, n_bins=n_bins),
    }
    return pd.DataFrame(table, index=pd.Index(names, name="label"))


def check_thresholds(thresholds, n_labels: int) -> np.ndarray:
    """Return thresholds as an array (labels,); ValueError unless it is one number, or a number for each label."""
    found = np.asarray(thresholds, np.float64)
    if found.shape not in ((), (n_labels,)) or np.isnan(found).any():
        raise ValueError(f"thresholds must be one number or one for each of {n_labels} labels, got {thresholds!r}")
    return np.broadcast_to(found, n_labels).copy()


class Interval(NamedTuple):
    """A figure with its interval; arrays where the metric returns one."""

    point: float
    low: float
    high: float


def bootstrap_interval(
    metric: Callable, y_true, y_prob, *, groups=None, n_resamples: int = 1000, level: float = 95, random_state=0
) -> Interval:
    """Return a metric with the percentiles of its values over resampled patients.

    Recordings of one patient are alike, so that resampling recordings makes intervals too narrow; whole patients are
    drawn, with replacement, as many as there are [1]_. A draw that lost every record of a class, or all its negatives,
    is repeated, as in the benchmark of PTB-XL [2]_: its macro average would be over other labels.

    Parameters
    ----------
    metric : callable
        ``metric(y_true, y_prob)`` with the resampled rows of both; returns a number or an array.
    y_true : array (n, ...) of labels
    y_prob : array (n, ...)
        Probabilities, or whatever the metric takes. Two models are compared on the same resamples by stacking their
        probabilities, (n, labels, 2), and a metric that returns a difference.
    groups : array (n,), optional
        The patient of each record. Without it every record is a patient of its own.
    n_resamples : int, default=1000
    level : float, default=95
        In percent: the interval is from percentile (100 - level) / 2 to (100 + level) / 2.
    random_state : int, generator or None, default=0

    Returns
    -------
    Interval
        ``point, low, high``. Where the metric is an array, entries that are NaN in all of the data stay NaN.

    Raises
    ------
    ValueError
        If lengths differ, a group is missing, there are fewer than two, the metric is NaN on the data itself, or a
        hundred times `n_resamples` draws were not enough because a class has too few patients.

    References
    ----------
    .. [1] Davison, A. C. and Hinkley, D. V. (1997). Bootstrap methods and their application, section 3.8.
    .. [2] Strodthoff, N. et al. (2021). Deep learning for ECG analysis: benchmarks and insights from PTB-XL. IEEE
       Journal of Biomedical and Health Informatics 25(5). https://doi.org/10.1109/JBHI.2020.3022989
    """
    check_number("n_resamples", n_resamples, minimum=1, integer=True)
    check_number("level", level, above=0, below=100)
    y_true, y_prob = np.asarray(y_true), np.asarray(y_prob)
    group = group_codes("groups", np.arange(len(y_true)) if groups is None else groups, len(y_true))
    n_groups = group.max() + 1
    if len(y_prob) != len(y_true) or n_groups < 2:
        raise ValueError(
            f"y_true has {len(y_true)} records of {n_groups} groups and y_prob {len(y_prob)}; "
            "lengths must agree, and a bootstrap needs two groups"
        )
    point = metric(y_true, y_prob)
    undefined = np.isnan(point)
    if undefined.all():
        raise ValueError("the metric is NaN on the data itself; leave out labels without positives or negatives")
    classes = _classes(y_true, group, n_groups)
    rng = np.random.default_rng(draw_seed(random_state))
    values = []
    for _ in range(100 * n_resamples):
        drawn = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)
        if (classes @ drawn).all():
            rows = np.repeat(np.arange(len(y_true)), drawn[group])
            value = metric(y_true[rows], y_prob[rows])
            if not (np.isnan(value) & ~undefined).any():
                values.append(value)
        if len(values) == n_resamples:
            break
    else:
        raise ValueError(
            f"only {len(values)} of {100 * n_resamples} resamples kept every class: one has records of only "
            f"{(classes > 0).sum(1).min()} of {n_groups} groups. Leave such labels out"
        )
    low, high = np.percentile(values, [50 - level / 2, 50 + level / 2], axis=0)
    return Interval(*(x if np.ndim(x) else float(x) for x in (point, low, high)))


def _classes(y_true: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Return how often each group has each value of each column: (values of all columns, groups)."""
    columns = y_true.reshape(len(y_true), -1).T
    found = [c == value for c in columns for value in np.unique(c[c == c])]  # NaN differs from itself
    return np.array([np.bincount(group, weights=rows, minlength=n_groups) for rows in found])


def _check_decisions(y_true, y_pred) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is true, what is predicted and what is known, as arrays (n, labels) of bool."""
    y_true = check_indicator("y_true", y_true)
    y_pred = check_indicator("y_pred", y_pred, unknown=False)
    check_scores("y_pred", y_pred, y_true.shape)
    return y_true == 1, y_pred == 1, ~np.isnan(y_true)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return a / b, NaN where b is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def _mean(values: np.ndarray) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else float("nan")


def positive_probabilities(estimator, X) -> np.ndarray:
    """Return the probability of each label (n, labels) that a fitted multilabel classifier gives.

    scikit-learn's classifiers return either that array or, as forests and neighbours do, a list of arrays (n, 2).
    """
    found = estimator.predict_proba(X)
    if not isinstance(found, list):
        return np.asarray(found)
    # A label that was constant in training has one column; which one it is, only its classes tell.
    columns = [p[:, np.asarray(c) == 1].sum(1) for p, c in zip(found, estimator.classes_, strict=True)]
    return np.column_stack(columns)


def _score_probabilities(estimator, X, y, *, metric: Callable, sign: int = 1) -> float:
    # Not make_scorer: of two labels it would take them for the two classes of one, and pass on half of the columns.
    return sign * metric(y, positive_probabilities(estimator, X))


SCORERS: dict[str, Callable] = {
    "macro_auroc": partial(_score_probabilities, metric=macro_auroc),
    "macro_auprc": partial(_score_probabilities, metric=macro_auprc),
    "neg_macro_brier": partial(_score_probabilities, metric=macro_brier, sign=-1),
    "macro_f_measure": make_scorer(macro_f_measure),
    "subset_accuracy": make_scorer(subset_accuracy),
}

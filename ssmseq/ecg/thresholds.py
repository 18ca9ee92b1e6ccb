"""Thresholds that turn probabilities into labels, chosen for a metric.

A record gets a label if its probability is at least the label's threshold. Metrics that are a mean over labels are
maximised exactly, label by label, over all cuts between neighbouring probabilities. The challenge metric of CinC 2020
and 2021 ties the labels of a record together; there one threshold at a time is moved to its best place, until none
moves [1]_. That ends in a point that no single change improves, which need not be the best of all.

Tune on probabilities of records that the model was not trained on, out-of-fold for all of them or of a validation part.
On training records probabilities are too good, and thresholds come out too high.

References
----------
.. [1] Lipton, Z. C., Elkan, C. and Narayanaswamy, B. (2014). Optimal thresholding of classifiers to maximize F1
   measure. ECML PKDD. https://doi.org/10.1007/978-3-662-44851-9_15
"""

from collections.abc import Callable, Sequence

import numpy as np

from ssmseq.base import check_choice, check_number
from ssmseq.ecg.challenge import scored_columns
from ssmseq.ecg.metrics import check_scores, check_thresholds
from ssmseq.ecg.splits import check_indicator

METRICS = ("f1", "youden", "challenge2020", "challenge2021")
_SLACK = 1e-12  # sums over records in different orders differ by this much
_Cuts = tuple[np.ndarray, np.ndarray]  # thresholds from low to high, and what the metric is at each


def tune_thresholds(
    y_true, y_prob, metric: str | Callable = "f1", *, labels: Sequence[str] | None = None, max_cuts: int = 100
) -> np.ndarray:
    """Return the threshold of each label that is best for a metric.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
        NaN is unknown; the record then has no part in that label's threshold.
    y_prob : array (n, labels) of probabilities
        Of records that the model was not trained on.
    metric : {"f1", "youden", "challenge2020", "challenge2021"} or callable, default="f1"
        "f1" is the F-measure and "youden" sensitivity + specificity - 1, each for every label by itself. A callable is
        ``metric(y_true, y_pred)``, larger is better, with all labels.
    labels : sequence of str, optional
        Names of the columns, which the challenge metrics need; see `challenge_score`.
    max_cuts : int, default=100
        For a callable, how many thresholds are tried of each label in a round: quantiles, where there are more
        distinct probabilities. The other metrics try them all.

    Returns
    -------
    array (labels,)
        Halfway between two neighbouring probabilities. Of equally good ones that nearest to 0.5. A label that has no
        positive or no negative record, or that the challenge does not score, gets 0.5: there is nothing to choose by.

    Raises
    ------
    ValueError
        If shapes differ, an entry is something else, the metric is unknown or NaN, or labels are missing.

    Notes
    -----
    The same input gives the same thresholds: nothing is drawn. For n records and K labels the separable metrics take
    O(K n log n) and a round of a challenge metric O(n K^3); rounds are few.

    Examples
    --------
    >>> tune_thresholds([[0], [0], [1], [1]], [[0.1], [0.2], [0.3], [0.9]]).tolist()
    [0.25]
    """
    y_true = check_indicator("y_true", y_true)
    y_prob = check_scores("y_prob", y_prob, y_true.shape)
    check_number("max_cuts", max_cuts, minimum=2, integer=True)
    usable = [j for j in range(y_true.shape[1]) if {0, 1} <= set(np.unique(y_true[:, j]))]
    if isinstance(metric, str):
        check_choice("metric", metric, METRICS)
        if metric.startswith("challenge"):
            return _tune_challenge(y_true, y_prob, usable, labels, int(metric[-4:]))
        return _tune_each(y_true, y_prob, usable, _f1 if metric == "f1" else _youden)
    if not callable(metric):
        raise ValueError(f"metric must be one of {', '.join(METRICS)} or a callable, got {metric!r}")

    def score(pred: np.ndarray) -> float:
        found = float(metric(y_true, pred.astype(np.int8)))
        if np.isnan(found):
            raise ValueError("the metric is NaN for some thresholds; give one that is defined for any prediction")
        return found

    def line(pred: np.ndarray, j: int) -> _Cuts:
        cuts = _cuts(y_prob[:, j])
        cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, max_cuts).round().astype(int))]
        values = []
        for cut in cuts:
            pred[:, j] = y_prob[:, j] >= cut
            values.append(score(pred))
        return cuts, np.array(values)

    return _ascend(y_true, y_prob, usable, score, line)


def apply_thresholds(y_prob, thresholds) -> np.ndarray:
    """Return the labels that probabilities stand for: 1 where one is at least its label's threshold.

    Parameters
    ----------
    y_prob : array (n, labels)
    thresholds : float or array (labels,)

    Returns
    -------
    array (n, labels) of int8
    """
    y_prob = np.asarray(y_prob)
    return (y_prob >= check_thresholds(thresholds, y_prob.shape[-1])).astype(np.int8)


def _tune_each(y_true: np.ndarray, y_prob: np.ndarray, usable: list[int], value: Callable) -> np.ndarray:
    """Maximise a metric of single labels, given what it is from counts at each cut."""
    found = np.full(y_true.shape[1], 0.5)
    for j in usable:
        known = ~np.isnan(y_true[:, j])
        truth, prob = y_true[known, j], y_prob[known, j]
        cuts = _cuts(prob)
        hits, false = _sums_above(prob, truth), _sums_above(prob, 1 - truth)
        found[j] = _best(cuts, value(hits, false, truth.sum(), (1 - truth).sum()))
    return found


def _f1(hits: np.ndarray, false: np.ndarray, positives: float, negatives: float) -> np.ndarray:
    return 2 * hits / (hits + false + positives)


def _youden(hits: np.ndarray, false: np.ndarray, positives: float, negatives: float) -> np.ndarray:
    return hits / positives - false / negatives


def _tune_challenge(y_true: np.ndarray, y_prob: np.ndarray, usable: list[int], labels, year: int) -> np.ndarray:
    if labels is None:
        raise ValueError(f"metric='challenge{year}' needs labels, the names of the {y_true.shape[1]} columns")
    columns = scored_columns(labels, year=year)
    truth, unknown = columns.read_truth(y_true)
    usable = [j for j in usable if columns.classes[j].any()]

    def credit(pred: np.ndarray) -> np.ndarray:
        return columns.credit(truth, unknown, pred @ columns.classes > 0) / len(truth)

    def line(pred: np.ndarray, j: int) -> _Cuts:
        # The credit is a sum over records, and each record's depends on this label by one bit: all cuts in one sum.
        pred[:, j] = 0
        without = credit(pred)
        pred[:, j] = 1
        return _cuts(y_prob[:, j]), without.sum() + _sums_above(y_prob[:, j], credit(pred) - without)

    return _ascend(y_true, y_prob, usable, lambda pred: float(credit(pred).sum()), line)


def _ascend(y_true: np.ndarray, y_prob: np.ndarray, usable: list[int], score: Callable, line: Callable) -> np.ndarray:
    """Move one threshold at a time to its best place, from 0.5 and from the best for F1; return the better end."""
    ends = []
    for found in (np.full(y_true.shape[1], 0.5), _tune_each(y_true, y_prob, usable, _f1)):
        best, moved = score(_decide(y_prob, found)), True
        while moved:
            moved = False
            for j in usable:
                cuts, values = line(_decide(y_prob, found), j)
                if values.max() > best + _SLACK:
                    found[j], best, moved = _best(cuts, values), values.max(), True
        ends.append((best, found))
    return ends[0][1] if ends[0][0] >= ends[1][0] - _SLACK else ends[1][1]


def _decide(y_prob: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return (y_prob >= thresholds).astype(np.float64)


def _cuts(prob: np.ndarray) -> np.ndarray:
    """Return a threshold between all neighbouring distinct probabilities, and one below and one above all of them."""
    seen = np.unique(prob)
    low, high = np.append(0.0, seen), np.append(seen, 1.0)
    cuts = (low + high) / 2
    cuts[1:] = np.where(cuts[1:] <= seen, high[1:], cuts[1:])  # halfway between neighbouring floats is one of them
    cuts[-1] = cuts[-1] if cuts[-1] > seen[-1] else np.nextafter(1.0, 2.0)
    return cuts


def _sums_above(prob: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the sums of values over the records that are positive at each of `_cuts`."""
    seen, position = np.unique(prob, return_inverse=True)
    sums = np.bincount(position, weights=values, minlength=len(seen))
    return np.append(np.cumsum(sums[::-1])[::-1], 0.0)


def _best(cuts: np.ndarray, values: np.ndarray) -> float:
    equal = cuts[values >= values.max() - _SLACK]
    return float(equal[np.argmin(np.abs(equal - 0.5))])

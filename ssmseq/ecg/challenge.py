r"""The scores of the PhysioNet/CinC challenges of 2020 and 2021 (twelve leads, many labels) and of 2017 (one lead).

The challenge metric of 2020 and 2021 [1]_ [2]_ gives credit where a wrong diagnosis would lead to a similar treatment.
A record with labels L and outputs O (rows of indicators) adds :math:`L_j O_k / |L \cup O|` to entry (j, k) of a matrix
A; the credit is :math:`\sum_{jk} W_{jk} A_{jk}` with the weights W of the challenge, scaled such that the right answers
score 1 and sinus rhythm for every record scores 0.

The organisers' script loops over records; here it is a product of matrices, to the same figures. The weights are
theirs, under the licence beside the file. Both years' scripts know more than one code for some diagnoses, and so does
this module. Their scores of 2020 are those of 2021 without two classes: the weights of the others are equal.

References
----------
.. [1] Alday, E. A. P. et al. (2020). Classification of 12-lead ECGs: the PhysioNet/Computing in Cardiology Challenge
   2020. Physiological Measurement 41, 124003. https://doi.org/10.1088/1361-6579/abc960
.. [2] Reyna, M. A. et al. (2021). Will two do? Varying dimensions in electrocardiography: the PhysioNet/Computing in
   Cardiology Challenge 2021. https://doi.org/10.23919/CinC53138.2021.9662687
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score, make_scorer

from ssmseq.ecg.challenge_labels import challenge_indicator, scored_labels
from ssmseq.ecg.splits import check_indicator

_WEIGHTS = Path(__file__).with_name("challenge_weights.csv")
_SINUS_RHYTHM = "426783006"


def challenge_score(y_true, y_pred, labels: Sequence[str], *, year: int = 2021, weights=None) -> float:
    """Return the challenge metric of 2020 or 2021.

    Parameters
    ----------
    y_true : array (n, labels) of 0, 1 or NaN
        Where a diagnosis is unknown (NaN), neither it nor an output for it counts.
    y_pred : array (n, labels) of 0 or 1
    labels : sequence of str
        What the columns are: SNOMED CT codes or the challenge's abbreviations, several of the same diagnosis joined by
        "|". Columns of one diagnosis count as one, positive if any of them is. Codes that the challenge does not score
        are left out; classes without a column count as never predicted and never true.
    year : {2021, 2020}
    weights : array (labels, labels), optional
        Weights of your own, in the order of `labels`, in place of the challenge's; NaN counts as 0. One label must
        then be sinus rhythm, and each column is a class.

    Returns
    -------
    float
        1 for the right answers, 0 for sinus rhythm everywhere, below 0 for worse; 0 also where these two are equal.

    Raises
    ------
    ValueError
        If shapes differ, an entry is something else, or a label is unknown or given twice.

    Examples
    --------
    >>> y_true = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    >>> y_pred = [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    >>> round(challenge_score(y_true, y_pred, ["NSR", "AF", "AFL"]), 4)
    0.5714
    """
    return scored_columns(labels, year=year, weights=weights).score(y_true, y_pred)


def make_challenge_scorer(labels: Sequence[str], *, year: int = 2021, weights=None) -> Callable:
    """Return `challenge_score` as a scorer for scikit-learn's `scoring` parameters; it calls the model's `predict`.

    Parameters are those of `challenge_score`.
    """
    scored_columns(labels, year=year, weights=weights)  # a wrong label is an error here, not in every fold
    return make_scorer(challenge_score, labels=tuple(labels), year=year, weights=weights)


@dataclass(frozen=True)
class ScoredColumns:
    """Which classes of a challenge the columns of an indicator belong to, and what confusing two classes is worth."""

    classes: np.ndarray  # (labels, classes): 1 where a column is of a class
    weights: np.ndarray  # (classes, classes), rows of truth
    sinus_rhythm: int

    def score(self, y_true, y_pred) -> float:
        """Return the challenge metric; see `challenge_score`."""
        truth, unknown = self.read_truth(y_true)
        outputs = check_indicator("y_pred", y_pred, unknown=False)
        if outputs.shape != (len(truth), len(self.classes)):
            raise ValueError(f"y_pred has shape {outputs.shape}, and y_true {(len(truth), len(self.classes))}")
        inactive = np.zeros_like(truth)
        inactive[:, self.sinus_rhythm] = True
        found, right, nothing = (
            self.credit(truth, unknown, answer).sum() for answer in (outputs @ self.classes > 0, truth, inactive)
        )
        return float((found - nothing) / (right - nothing)) if right != nothing else 0.0

    def read_truth(self, y_true) -> tuple[np.ndarray, np.ndarray]:
        """Return which classes are true and which unknown, (n, classes) of bool, from the columns of an indicator."""
        y_true = check_indicator("y_true", y_true)
        if y_true.shape[1] != len(self.classes):
            raise ValueError(f"y_true has {y_true.shape[1]} columns, and {len(self.classes)} labels are named")
        truth = (y_true == 1) @ self.classes > 0
        return truth, (np.isnan(y_true) @ self.classes > 0) & ~truth

    def credit(self, truth: np.ndarray, unknown: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return the credit of each record (n,) for the classes that are put out, (n, classes) of bool."""
        outputs = outputs & ~unknown
        n = np.maximum((truth | outputs).sum(1), 1)
        return ((truth @ self.weights) * outputs).sum(1) / n


def scored_columns(labels: Sequence[str], *, year: int = 2021, weights=None) -> ScoredColumns:
    """Return how columns of these names are scored; parameters and errors are those of `challenge_score`."""
    labels = [str(label) for label in labels]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"the labels {', '.join(twice)} are given twice; name each column once")
    scored, codes = list(scored_labels(year)), [_codes(label) for label in labels]
    if weights is None:
        membership = challenge_indicator(codes, year=year, unknown="error").to_numpy(np.float64)
        return ScoredColumns(membership, _weights(scored), scored.index(_SINUS_RHYTHM))
    weights = np.nan_to_num(np.asarray(weights, np.float64))
    sinus = [i for i, these in enumerate(codes) if _SINUS_RHYTHM in these]
    if weights.shape != (len(labels),) * 2 or not sinus:
        raise ValueError(
            f"weights of shape {weights.shape} for {len(labels)} labels, {len(sinus)} of them sinus rhythm; "
            f"they must be square, in the order of labels, and one label must be NSR or {_SINUS_RHYTHM}"
        )
    return ScoredColumns(np.eye(len(labels)), weights, sinus[0])


def _codes(label: str) -> list[str]:
    """Return the codes that a column's name stands for: it may hold abbreviations, codes or both."""
    known = {}
    for codes, names in scored_labels(2021).items():
        known |= dict(zip(names.split("|"), codes.split("|"), strict=True))
    return [known.get(part.strip(), part.strip()) for part in label.split("|")]


def _weights(scored: list[str]) -> np.ndarray:
    """Return the weights of some classes, each of which may be named by only some of its codes."""
    import pandas as pd

    table = pd.read_csv(_WEIGHTS, index_col=0)
    rows = {code: i for i, name in enumerate(table.columns) for code in name.split("|")}
    kept = [rows[name.split("|")[0]] for name in scored]
    return np.nan_to_num(table.to_numpy(np.float64)[np.ix_(kept, kept)])


def cinc2017_score(y_true, y_pred, *, scored=("N", "A", "O"), noise="~") -> float:
    """Return the score of the challenge of 2017: the mean F1 of normal rhythm, atrial fibrillation and other rhythm.

    Noisy recordings have no F1 of their own, and are not left out: one that is called normal is a false positive of
    normal, and a normal one that is called noisy is missed [1]_.

    Parameters
    ----------
    y_true, y_pred : array (n,) of classes
    scored : sequence of classes, default=("N", "A", "O")
    noise : class, default="~"

    Returns
    -------
    float
        NaN if a scored class neither occurs nor is predicted, as in the challenge's own code.

    Raises
    ------
    ValueError
        If lengths differ, or there is a class that is neither scored nor noise.

    References
    ----------
    .. [1] Clifford, G. D. et al. (2017). AF classification from a short single lead ECG recording: the
       PhysioNet/Computing in Cardiology Challenge 2017. https://doi.org/10.22489/CinC.2017.065-469
    """
    for name, values in (("y_true", y_true), ("y_pred", y_pred)):
        odd = sorted({str(v) for v in np.unique(values) if v not in (*scored, noise)})
        if odd:
            raise ValueError(
                f"{name} holds the classes {', '.join(odd)}, and the challenge of 2017 has {(*scored, noise)}; "
                "rename the classes, or give yours in scored and noise"
            )
    found = f1_score(y_true, y_pred, labels=list(scored), average=None, zero_division=np.nan)  # type: ignore[arg-type]
    return float(np.mean(found))


cinc2017_scorer = make_scorer(cinc2017_score)

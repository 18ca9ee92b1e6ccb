"""A classifier's predictions beside the truth: figures of each label and of all, with intervals by patient."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ssmseq.ecg.inputs import encode_targets, read_groups, read_recordings
from ssmseq.ecg.metrics import (
    auroc_per_label,
    average_precision_per_label,
    bootstrap_interval,
    f_measure_per_label,
    label_report,
    macro_auprc,
    macro_auroc,
    macro_brier,
    macro_f_measure,
    positive_probabilities,
    subset_accuracy,
)
from ssmseq.ecg.records import Record
from ssmseq.ecg.thresholds import apply_thresholds

OF_LABELS = ("auroc", "auprc", "f1", "sensitivity", "specificity")
OF_ALL: dict[str, Callable] = {
    "macro AUROC": lambda truth, prob, pred: macro_auroc(truth, prob),
    "macro AUPRC": lambda truth, prob, pred: macro_auprc(truth, prob),
    "macro F1": lambda truth, prob, pred: macro_f_measure(truth, pred),
    "macro Brier score": lambda truth, prob, pred: macro_brier(truth, prob),
    "subset accuracy": lambda truth, prob, pred: subset_accuracy(truth, pred),
}
_SMALLEST = float(np.finfo(np.float32).eps)  # probabilities are bounded by it, so that a loss stays finite


@dataclass(frozen=True)
class Evaluation:
    """Predictions of some recordings beside their labels."""

    records: list[Record]
    labels: list
    truth: np.ndarray  # (n, K) of 0, 1 and NaN
    prob: np.ndarray  # (n, K)
    pred: np.ndarray  # (n, K) of 0 and 1
    groups: np.ndarray | None  # (n,), the patients
    exclusive: bool

    @property
    def names(self) -> list[str]:
        """Name of each recording: its identifier, or its number in X, counted from 0."""
        return [f"recording {i}" if r.record_id is None else r.record_id for i, r in enumerate(self.records)]

    def table(self, thresholds: Any) -> pd.DataFrame:
        """Return `label_report`; of exclusive classes the decisions are the most probable class, without thresholds."""
        found = label_report(self.truth, self.prob, thresholds, labels=self.labels)
        if self.exclusive:
            decided = label_report(self.truth, self.pred.astype(np.float64), 0.5, labels=self.labels)
            found = found.assign(**{name: decided[name] for name in ("f1", "sensitivity", "specificity", "ppv")})
            found["threshold"] = np.nan
        return found

    def label_intervals(self, n_resamples: int, random_state) -> tuple[pd.DataFrame, dict[str, str]]:
        """Return low and high of the figures of each label, and the reason for each label that has none.

        Labels are resampled one by one: a draw of patients need then not keep every class of all labels.

        Returns
        -------
        DataFrame (labels, 10)
            Columns are pairs: (name of the figure, "low" or "high"). NaN where there is no interval.
        dict of str to str
        """
        columns = pd.MultiIndex.from_product([OF_LABELS, ("low", "high")])
        found = pd.DataFrame(np.nan, index=pd.Index(self.labels, name="label"), columns=columns)
        reasons = {}
        for j, label in enumerate(self.labels):
            known = ~np.isnan(self.truth[:, j])
            if known.sum() < 2:
                reasons[str(label)] = f"it is known of {known.sum()} recordings, and a bootstrap needs two patients"
                continue
            both = np.stack([self.prob[known, j], self.pred[known, j]], axis=1)
            groups = None if self.groups is None else self.groups[known]
            try:
                interval = bootstrap_interval(
                    _of_label,
                    self.truth[known, j][:, None],
                    both,
                    groups=groups,
                    n_resamples=n_resamples,
                    random_state=random_state,
                )
            except ValueError as error:
                reasons[str(label)] = str(error)
                continue
            found.iloc[j] = np.stack([interval.low, interval.high], axis=1).ravel()
        return found, reasons

    def overall(self, n_resamples: int, random_state) -> tuple[pd.DataFrame, str]:
        """Return point, low and high of the figures over all labels; if there are no intervals, the reason."""
        both = np.stack([self.prob, self.pred], axis=2)
        point = _of_all(self.truth, both)
        reason = ""
        try:
            _, low, high = bootstrap_interval(
                _of_all, self.truth, both, groups=self.groups, n_resamples=n_resamples, random_state=random_state
            )
        except ValueError as error:
            low, high, reason = np.nan, np.nan, str(error)
        return pd.DataFrame({"point": point, "low": low, "high": high}, index=pd.Index(list(OF_ALL))), reason

    def worst(self, most: int) -> pd.DataFrame:
        """Return the wrong decisions that the model was surest of: record, label, truth, probability, loss.

        The loss is the cross entropy of the label, whose probability is kept 1.2e-7 away from 0 and 1.
        """
        prob = np.clip(self.prob, _SMALLEST, 1 - _SMALLEST)
        with np.errstate(invalid="ignore"):
            loss = np.where(self.truth == 1, -np.log(prob), -np.log1p(-prob))
        wrong = (self.pred != self.truth) & ~np.isnan(self.truth)
        rows, columns = np.nonzero(wrong)
        order = np.argsort(-loss[rows, columns], kind="stable")[:most]
        rows, columns = rows[order], columns[order]
        found = {"record": [self.names[i] for i in rows], "label": [str(self.labels[j]) for j in columns]}
        found |= {"truth": self.truth[rows, columns].astype(int), "probability": self.prob[rows, columns]}
        return pd.DataFrame(found | {"loss": loss[rows, columns]})


def evaluate(estimator, X, y, groups=None) -> Evaluation:
    """Predict recordings and put the labels beside it.

    Parameters
    ----------
    estimator : fitted ECGMambaClassifier
    X, y, groups : as in `fit`

    Raises
    ------
    NotFittedError
        If `fit` has not run.
    ValueError
        If recordings or labels are unlike those of `fit`, or their numbers differ.
    """
    from sklearn.utils import check_consistent_length

    prob = positive_probabilities(estimator, X)
    records, _ = read_recordings(estimator, X, estimator.layout_)
    truth = encode_targets(y, estimator.classes_, estimator.exclusive_)
    check_consistent_length(records, truth)
    if estimator.exclusive_:
        pred = np.eye(prob.shape[1], dtype=np.int8)[prob.argmax(1)]
    else:
        pred = apply_thresholds(prob, estimator.thresholds_)
    return Evaluation(
        records,
        estimator.classes_.tolist(),
        truth,
        prob,
        pred,
        read_groups(groups, records),
        estimator.exclusive_,
    )


def _of_label(truth: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Return the figures of one label from its truth (n, 1), and probability and decision (n, 2)."""
    prob, pred = both[:, :1], both[:, 1:]
    ranks = auroc_per_label(truth, prob)[0], average_precision_per_label(truth, prob)[0]
    shares = [pred[truth == 1].mean() if (truth == 1).any() else np.nan]
    shares.append(1 - pred[truth == 0].mean() if (truth == 0).any() else np.nan)
    return np.array([*ranks, f_measure_per_label(truth, pred)[0], *shares])


def _of_all(truth: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Return the figures over all labels from truth (n, K), and probabilities and decisions (n, K, 2)."""
    return np.array([figure(truth, both[..., 0], both[..., 1]) for figure in OF_ALL.values()])

"""The task of a classifier of electrocardiograms: whole patients are held out."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssmseq.ecg import ECGMambaClassifier, metrics
from ssmseq.ecg.inputs import encode_targets, read_groups, read_recordings, read_targets
from ssmseq.ecg.splits import GroupedMultilabelStratifiedKFold
from ssmseq.tuning.tasks import HeldOutTask, digest, take


class ECGTask(HeldOutTask):
    """Recordings with labels; whole patients are held out, a fifth unless `held_out` says which recordings."""

    metrics = {"macro_auroc": "maximize", "macro_auprc": "maximize", "macro_brier": "minimize"}  # noqa: RUF012

    def __init__(self, estimator_type, fixed: dict[str, Any], metric: str | None, X, y, groups=None, held_out=None):
        super().__init__(estimator_type, fixed, metric, X, y, groups)
        self.records, _ = read_recordings(self.build(fixed), X)
        self.targets = read_targets(y)
        groups = read_groups(groups, self.records)
        if held_out is None:
            folds = GroupedMultilabelStratifiedKFold(5, shuffle=True, random_state=0)
            _, rows = next(iter(folds.split(np.arange(len(self.records)), self.targets.indicator, groups)))
            held_out = np.isin(np.arange(len(self.records)), rows)
        self.held = np.asarray(held_out, bool)
        self.checksum = digest([r.signal for r in self.records] + [self.targets.indicator, self.targets.classes])

    def build(self, params: dict[str, Any]):
        """Return a classifier that is not fitted."""
        return build_classifier(params)

    def fit(self, estimator) -> None:
        """Fit on the patients that are not held out."""
        estimator.fit(*self._part(self._divided()[0]))

    def fit_all(self, estimator):
        """Fit on all recordings."""
        return estimator.fit(self.X, self.y, self.groups)

    def measure(self, estimator) -> float:
        """Return the metric over labels, on the recordings held out."""
        X, y, _ = self._part(self._divided()[1])
        return self._score(estimator.predict_proba(X), y, estimator.classes_, estimator.exclusive_)

    def baselines(self) -> dict[str, float]:
        """Return the metric of the labels' prevalence, and of logistic regressions on statistics of the leads."""
        train, held = self._divided()
        known = self.targets.indicator[train]
        prevalence = np.broadcast_to(np.nanmean(known, 0), (len(held), known.shape[1]))
        y, classes = take(self.y, held), self.targets.classes
        found = {"prevalence": self._score(prevalence, y, classes, self.targets.exclusive)}
        if len({len(record.signal) for record in self.records}) == 1:
            features = np.stack([_lead_statistics(record.signal) for record in self.records])
            scores = _logistic_per_label(features[train], known, features[held])
            found["logistic regression"] = self._score(scores, y, classes, self.targets.exclusive)
        return found

    def _score(self, probabilities, y, classes, exclusive: bool) -> float:
        return getattr(metrics, self.metric)(encode_targets(y, classes, exclusive), probabilities)


def build_classifier(params: dict[str, Any]) -> ECGMambaClassifier:
    """Return a classifier that starts from the preset, if one is named."""
    rest = {name: value for name, value in params.items() if name != "preset"}
    preset = params.get("preset")
    return ECGMambaClassifier(**rest) if preset is None else ECGMambaClassifier.from_preset(preset, **rest)


def _lead_statistics(signal: np.ndarray) -> np.ndarray:
    """Return spread, extremes and roughness of each lead (leads, times), flat."""
    signal = np.nan_to_num(np.asarray(signal, np.float64))
    steps = np.abs(np.diff(signal, axis=1))
    found = [signal.std(1), signal.min(1), signal.max(1), np.median(signal, 1), steps.mean(1), steps.max(1)]
    return np.concatenate(found)


def _logistic_per_label(train: np.ndarray, labels: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return the probability (n, K) of each label, from a regression of its own on the recordings it is known of."""
    found = np.empty((len(held), labels.shape[1]))
    for k, label in enumerate(labels.T):
        known = ~np.isnan(label)
        if len(np.unique(label[known])) < 2:
            found[:, k] = label[known].mean()
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        found[:, k] = model.fit(train[known], label[known]).predict_proba(held)[:, 1]
    return found

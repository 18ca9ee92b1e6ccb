"""The tasks of the DNA estimators: whole contigs, strings or groups of sequences are held out."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from ssmseq.dna.fasta import Fasta
from ssmseq.dna.inputs import is_path, read_strings
from ssmseq.dna.markov import markov_table
from ssmseq.dna.regions import hold_out, read_regions
from ssmseq.tuning.tasks import HeldOutTask, Task, check_held_out, digest


class DNALanguageTask(Task):
    """A FASTA or strings, of which whole contigs or strings are held out."""

    metrics = {"bits_per_base": "minimize"}  # noqa: RUF012

    def __init__(self, estimator_type, fixed: dict[str, Any], metric: str | None, X, regions=None, validation=None):
        super().__init__(estimator_type, fixed, metric)
        template = self.build(fixed)
        self.causal = not template.bidirectional
        if validation is None:
            check_held_out(template)
            validation = template.validation_fraction
        self.X, self.regions, self.train_regions = X, regions, None
        if is_path(X):
            fasta = Fasta(X)
            self.train_regions, self.validation = hold_out(read_regions(regions, fasta), fasta, validation)
            self.parts = [_tokens(fasta, part) for part in (self.train_regions, self.validation)]
            self.checksum = digest([t for part in self.parts for t in part])
            return
        strings = read_strings(X)
        self.checksum = digest(strings)
        if isinstance(validation, float):
            held = _last_share(strings, validation)
            strings, validation = (
                [s for s, out in zip(strings, held, strict=True) if not out],
                [s for s, out in zip(strings, held, strict=True) if out],
            )
        self.validation, self.parts = list(validation), [strings, list(validation)]

    def fit(self, estimator) -> None:
        """Fit on what is not held out."""
        X = self.parts[0] if self.train_regions is None else self.X
        estimator.fit(X, regions=self.train_regions, validation=self.validation)

    def fit_all(self, estimator):
        """Fit on everything."""
        return estimator.fit(self.X, regions=self.regions)

    def measure(self, estimator) -> float:
        """Return the loss of the best epoch on the windows held out."""
        return float(estimator.history_["valid_loss"].min())

    def baselines(self) -> dict[str, float]:
        """Return the bits of the best Markov model; none where bases are seen from both sides."""
        if not self.causal:
            return {}
        largest = int(np.clip(np.log2(sum(map(len, self.parts[0]))) / 2, 1, 12))
        table = markov_table(self.parts[0], self.parts[1], orders=range(largest + 1))
        best = table.loc[table["bits_per_base"].idxmin()]
        return {f"Markov model of order {int(best['order'])}": float(best["bits_per_base"])}


class DNAClassTask(HeldOutTask):
    """Sequences with classes, of which a fifth is held out; whole groups, such as contigs, where they are given."""

    metrics = {"accuracy": "maximize", "mcc": "maximize", "log_loss": "minimize"}  # noqa: RUF012

    def __init__(self, estimator_type, fixed: dict[str, Any], metric: str | None, X, y, groups=None):
        super().__init__(estimator_type, fixed, metric, read_strings(X), None if y is None else np.asarray(y), groups)
        folds = StratifiedKFold if groups is None else StratifiedGroupKFold
        _, rows = next(iter(folds(5, shuffle=True, random_state=0).split(self.X, self.y, groups)))
        self.held = np.isin(np.arange(len(self.y)), rows)
        self.checksum = digest([*self.X, *map(str, self.y)])

    def fit(self, estimator) -> None:
        """Fit on the sequences that are not held out."""
        X, y, _ = self._part(self._divided()[0])
        estimator.fit(X, y)

    def fit_all(self, estimator):
        """Fit on all sequences."""
        return estimator.fit(self.X, self.y)

    def measure(self, estimator) -> float:
        """Return the metric on the sequences held out."""
        X, y, _ = self._part(self._divided()[1])
        return self._score(y, estimator.predict_proba(X), estimator.classes_)

    def baselines(self) -> dict[str, float]:
        """Return the metric of the classes' prevalence, and of a logistic regression on counts of four letters."""
        (X, y, _), (X_held, y_held, _) = (self._part(rows) for rows in self._divided())
        counts = CountVectorizer(analyzer="char", ngram_range=(1, 4))
        models = {"prevalence": DummyClassifier(), "logistic regression of 4-mers": LogisticRegression(max_iter=1000)}
        found = {}
        for name, model in models.items():
            model = make_pipeline(counts, MaxAbsScaler(), model).fit(X, y)
            found[name] = self._score(y_held, model.predict_proba(X_held), model.classes_)
        return found

    def _score(self, y, probabilities, classes) -> float:
        if self.metric == "log_loss":
            return float(metrics.log_loss(y, probabilities, labels=classes))
        measures: dict[str, Callable] = {"accuracy": metrics.accuracy_score, "mcc": metrics.matthews_corrcoef}
        return float(measures[self.metric](y, classes[probabilities.argmax(1)]))


def _tokens(fasta, regions) -> list[np.ndarray]:
    return [fasta.tokens(r.contig, r.start, r.end) for r in regions.itertuples()]


def _last_share(strings: list[str], fraction: float) -> np.ndarray:
    """Return which strings are held out: the last ones that make the share of the bases, one at least."""
    if len(strings) < 2:
        raise ValueError("holding out whole strings needs two at least: pass validation=, or the path of a FASTA")
    after = np.cumsum([len(s) for s in strings][::-1])[::-1]
    held = after <= fraction * after[0]
    held[-1] = True
    return held

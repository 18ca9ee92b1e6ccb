"""The way of a classification: recordings in, windows, network, probabilities of labels out."""

import copy
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from ssmseq.base import SequenceEstimator
from ssmseq.ecg import fitting, preparing, scoring, serving, state
from ssmseq.ecg.inputs import encode_targets, read_metadata, read_recordings
from ssmseq.ecg.network import ECGMambaNetwork, Ensemble
from ssmseq.ecg.thresholds import apply_thresholds


class BaseECGClassifier(ClassifierMixin, SequenceEstimator):
    """What `ECGMambaClassifier` does with its parameters; it gives them, and `_build_network`."""

    accelerator: Any
    aggregate: Any
    batch_size: Any
    metadata: Any

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = tags.input_tags.three_d_array = tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X, y, groups=None, sample_weight=None) -> Self:
        """Fit on recordings.

        Parameters
        ----------
        X : list of Record, array (n, leads, times) or (n, times), or list of arrays (leads, times)
            Lengths may differ in lists. NaN is a missing sample. Arrays state neither rate nor leads: they must have
            `sampling_rate` and `leads`. For others see `as_records`.
        y : array or frame (n, labels) of 0, 1 or NaN (unknown), list of n sets of labels, or array (n,) of classes
        groups : array (n,), optional
            The patient of each recording; by default that of the records. No patient is on both sides of a split.
        sample_weight : array (n,), optional
            0 leaves a recording out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a parameter, recording or label that cannot be used; the message names it and the remedy.

        Warns
        -----
        UserWarning
            If leads are missing, recordings have no usable lead, or the fit was interrupted.
        """
        preparing.check_parameters(self)
        reader = copy.copy(self)  # a fit that fails must leave an earlier one whole
        data, layout = preparing.prepare(reader, X, y, groups, sample_weight)
        part, held_out = fitting.fit_parts(self, data)
        calibrator, thresholds = fitting.calibrate(self, data, held_out)
        vars(self).pop("feature_names_in_", None)
        vars(self).update({k: v for k, v in vars(reader).items() if k in ("n_features_in_", "feature_names_in_")})
        self.layout_, self.preprocessing_ = layout, data.preprocessing
        self.classes_, self.exclusive_ = data.classes, data.exclusive
        self.network_, self.mean_, self.scale_ = part.network, part.mean, part.scale
        self.history_, self.n_iter_ = part.history, fitting.epochs_of(part.history)
        self.calibrator_, self.thresholds_ = calibrator, thresholds
        return self

    def decision_function(self, X) -> np.ndarray:
        """Return the logits, aggregated over windows and before calibration.

        Parameters
        ----------
        X : as in `fit`
            Records are resampled, reordered and checked by what `preprocessing_` holds. Arrays must have the rate and
            the leads of `fit`, since they cannot tell.

        Returns
        -------
        array (n, labels), or (n,) for two classes
            Of the latter the logit of the second less that of the first.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If a recording does not fit what the model was fitted on; the message names it.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if self.exclusive_ and logits.shape[1] == 2 else logits

    def predict_proba(self, X) -> np.ndarray:
        """Return the probability of each label, (n, labels); of classes they sum to 1. X as in `decision_function`."""
        return scoring.calibrated(self._logits(X), self.calibrator_, exclusive=self.exclusive_)

    def predict(self, X) -> np.ndarray:
        """Return the labels as an indicator (n, labels) of int, or the classes (n,). X as in `decision_function`."""
        found = self.predict_proba(X)
        if self.exclusive_:
            return self.classes_[found.argmax(1)]
        return apply_thresholds(found, self.thresholds_).astype(np.int64)

    def score(self, X, y, sample_weight=None) -> float:
        """Return the share of recordings whose class, or whose known labels all, are predicted rightly."""
        check_is_fitted(self)
        truth, found = encode_targets(y, self.classes_, self.exclusive_), self.predict(X)
        if self.exclusive_:
            return float(accuracy_score(self.classes_[truth.argmax(1)], found, sample_weight=sample_weight))
        return float(np.average(((truth == found) | np.isnan(truth)).all(1), weights=sample_weight))

    def _logits(self, X) -> np.ndarray:
        check_is_fitted(self)
        records, _ = read_recordings(self, X, self.layout_)
        return scoring.score_records(
            self.network_,
            self.preprocessing_,
            records,
            read_metadata(records, required=False) if self.metadata else None,
            mean=self.mean_,
            scale=self.scale_,
            exclusive=self.exclusive_,
            aggregate=self.aggregate,
            batch_size=self.batch_size,
            device=self._device(),
        )

    def _device(self) -> torch.device:
        gpu = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def _serving_graph(self):
        return serving.serving_graph(self)

    def _export_state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        return state.export_state(self)

    def _import_state(self, stored: dict, tensors: dict[str, torch.Tensor]) -> None:
        state.import_state(self, stored, tensors)

    def _build_network(self, n_leads: int, n_times: int, n_labels: int) -> ECGMambaNetwork | Ensemble:
        raise TypeError(f"{type(self).__name__} has no network")

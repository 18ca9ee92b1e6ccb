r"""Calibration of probabilities, label by label, kept as plain numbers.

With the logit z of a probability, Platt's calibration [1]_ is :math:`\sigma(a z + b)`, temperature scaling [2]_ is
:math:`\sigma(z / T)`, and isotonic calibration [3]_ a non-decreasing function of the probability, linear between knots.
Platt fits against targets slightly inside 0 and 1, which keeps a and b finite where the labels are separable; Newton's
method follows [4]_.

Fit on probabilities of records that the model was not trained on, out-of-fold for all of them or of a validation part.

References
----------
.. [1] Platt, J. (1999). Probabilistic outputs for support vector machines and comparisons to regularized likelihood
   methods. Advances in Large Margin Classifiers.
.. [2] Guo, C., Pleiss, G., Sun, Y. and Weinberger, K. Q. (2017). On calibration of modern neural networks. ICML.
.. [3] Zadrozny, B. and Elkan, C. (2002). Transforming classifier scores into accurate multiclass probability estimates.
   KDD. https://doi.org/10.1145/775047.775151
.. [4] Lin, H.-T., Lin, C.-J. and Weng, R. C. (2007). A note on Platt's probabilistic outputs for support vector
   machines. Machine Learning 68, 267-276. https://doi.org/10.1007/s10994-007-5018-6
"""

from typing import Any, Self

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logit
from sklearn.base import BaseEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.utils.validation import check_is_fitted

from ssmseq.base import check_choice, check_number
from ssmseq.ecg.metrics import check_scores
from ssmseq.ecg.splits import check_indicator

# Probabilities are mostly computed in float32, where a sigmoid rounds to 0 or 1 from about here on.
_SMALLEST = float(np.finfo(np.float32).eps)
_TEMPERATURES = (1e-3, 1e3)


class LabelCalibrator(BaseEstimator):
    """Calibration of the probability of each label by itself.

    Parameters
    ----------
    method : {"platt", "isotonic", "temperature"}, default="platt"
        Isotonic calibration needs the most records (a thousand or more), and its steps make ties.
    from_logits : bool, default=False
        Whether `fit` and `predict` get logits in place of probabilities.
    min_positives : int, default=10
        A label with fewer positive, or fewer negative, records keeps its probabilities as they are.

    Attributes
    ----------
    parameters_ : list of dict
        Of each label: {} where probabilities are kept, else ``{"slope": a, "intercept": b}``,
        ``{"temperature": T}`` or ``{"x": [...], "y": [...]}``, all of Python's own numbers: what JSON can hold.

    Notes
    -----
    Probabilities are clipped to [1.2e-7, 1 - 1.2e-7] for Platt's and temperature calibration, so that their logits are
    finite; temperatures lie between 0.001 and 1000. Platt's slope is below 0 where probabilities are worse than chance.

    References
    ----------
    .. [1] Platt, J. (1999). Probabilistic outputs for support vector machines and comparisons to regularized
       likelihood methods. Advances in Large Margin Classifiers.
    .. [2] Guo, C. et al. (2017). On calibration of modern neural networks. ICML.
    .. [3] Zadrozny, B. and Elkan, C. (2002). Transforming classifier scores into accurate multiclass probability
       estimates. KDD. https://doi.org/10.1145/775047.775151

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.random((20_000, 1))
    >>> y = (rng.random(truth.shape) < truth).astype(int)
    >>> too_sure = truth**3 / (truth**3 + (1 - truth) ** 3)
    >>> found = LabelCalibrator("temperature").fit(too_sure, y)
    >>> round(found.parameters_[0]["temperature"])
    3
    """

    def __init__(self, method: str = "platt", *, from_logits: bool = False, min_positives: int = 10):
        self.method = method
        self.from_logits = from_logits
        self.min_positives = min_positives

    def fit(self, scores, y) -> Self:
        """Fit to records that the model was not trained on.

        Parameters
        ----------
        scores : array (n, labels)
            Probabilities, or logits if `from_logits`.
        y : array (n, labels) of 0, 1 or NaN
            NaN is unknown; the record then has no part in that label's calibration.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of its range, shapes differ, or an entry is something else.
        """
        fit = {"platt": _fit_platt, "isotonic": _fit_isotonic, "temperature": _fit_temperature}
        check_choice("method", self.method, fit)
        check_number("min_positives", self.min_positives, minimum=1, integer=True)
        y = check_indicator("y", y)
        scores = check_scores("scores", scores, y.shape, probability=not self.from_logits)
        self.parameters_: list[dict[str, Any]] = []
        for prob, truth in zip(scores.T, y.T, strict=True):
            known = ~np.isnan(truth)
            prob, truth = prob[known], truth[known]
            enough = min((truth == 1).sum(), (truth == 0).sum()) >= self.min_positives
            self.parameters_.append(fit[self.method](*self._both(prob), truth) if enough else {})
        return self

    def predict(self, scores) -> np.ndarray:
        """Return calibrated probabilities.

        Parameters
        ----------
        scores : array (n, labels)
            Probabilities, or logits if `from_logits`.

        Returns
        -------
        array (n, labels) of float64

        Raises
        ------
        NotFittedError
            If neither `fit` nor `from_parameters` has run.
        ValueError
            If there are not as many columns as labels, or an entry is no probability.
        """
        check_is_fitted(self)
        shape = np.shape(scores)
        if len(shape) != 2 or shape[1] != len(self.parameters_):
            raise ValueError(f"scores have shape {shape}; the calibration is for (n, {len(self.parameters_)})")
        scores = check_scores("scores", scores, shape, probability=not self.from_logits)
        return np.column_stack(
            [_apply(*self._both(column), found) for column, found in zip(scores.T, self.parameters_, strict=True)]
        )

    @classmethod
    def from_parameters(cls, parameters: list[dict[str, Any]], *, from_logits: bool = False) -> Self:
        """Return a fitted calibration with the `parameters_` of another one, as read from a file.

        Raises
        ------
        ValueError
            If an entry is not one that `fit` writes.
        """
        kinds = ({}, {"slope", "intercept"}, {"temperature"}, {"x", "y"})
        for i, found in enumerate(parameters):
            if set(found) not in map(set, kinds):
                raise ValueError(f"the parameters of label {i} are {sorted(found)}; expected one of {kinds}")
        names = {"temperature": "temperature", "x": "isotonic"}
        method = next((names.get(key, "platt") for found in parameters for key in found), "platt")
        calibrator = cls(method, from_logits=from_logits)
        calibrator.parameters_ = parameters
        return calibrator

    def _both(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return scores as probabilities and as finite logits."""
        if self.from_logits:
            return expit(scores), scores
        return scores, logit(np.clip(scores, _SMALLEST, 1 - _SMALLEST))


def _apply(prob: np.ndarray, z: np.ndarray, found: dict[str, Any]) -> np.ndarray:
    if "slope" in found:
        return expit(found["slope"] * z + found["intercept"])
    if "temperature" in found:
        return expit(z / found["temperature"])
    return np.interp(prob, found["x"], found["y"]) if found else prob


def _fit_platt(prob: np.ndarray, z: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    positives, negatives = truth.sum(), (1 - truth).sum()
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    features = np.column_stack((z, np.ones_like(z)))

    def loss(found: np.ndarray) -> float:
        value = features @ found
        return -(target * log_expit(value) + (1 - target) * log_expit(-value)).sum()

    found = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    for _ in range(100):
        p = expit(features @ found)
        gradient = features.T @ (p - target)
        if np.abs(gradient).max() < 1e-9 * len(z):
            break
        # The ridge is for equal logits, which leave the slope open.
        hessian = features.T @ (features * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
        step, size, here = np.linalg.solve(hessian, gradient), 1.0, loss(found)
        while loss(found - size * step) > here - 1e-4 * size * (gradient @ step) and size > 1e-10:
            size /= 2
        found = found - size * step
    return {"slope": float(found[0]), "intercept": float(found[1])}


def _fit_temperature(prob: np.ndarray, z: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    def gradient(inverse: float) -> float:  # of the log loss, non-decreasing
        return float(((expit(inverse * z) - truth) * z).sum())

    low, high = (1 / t for t in reversed(_TEMPERATURES))
    if gradient(low) >= 0:
        return {"temperature": _TEMPERATURES[1]}
    if gradient(high) <= 0:
        return {"temperature": _TEMPERATURES[0]}
    return {"temperature": 1 / float(brentq(gradient, low, high, xtol=1e-12))}  # type: ignore[arg-type]


def _fit_isotonic(prob: np.ndarray, z: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(prob, truth)
    return {"x": found.X_thresholds_.tolist(), "y": found.y_thresholds_.tolist()}

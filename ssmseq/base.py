"""What every estimator shares: parameter checks, pickling, saving. scikit-learn's contract, nothing of its own."""

import math
import numbers
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted


class SequenceEstimator(BaseEstimator):
    """Base of all estimators: holds a plain network in `network_` once fitted, and can be saved.

    Subclasses list their parameters in their own constructor, as scikit-learn asks.
    """

    network_: Any

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # the input is a frame, a record or a sequence: not a plain table
        tags.target_tags.required = False
        tags.non_deterministic = self.get_params().get("random_state", 0) is None
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {**super().__getstate__()}  # type: ignore[dict-item]
        if "network_" in state:
            state["network_"] = state["network_"].cpu()
        return state

    def save(self, folder, *, card: bool = False) -> Self:
        """Write the fitted estimator to a folder: config.json and model.safetensors.

        Parameters
        ----------
        folder : str or path
            Created if missing. Files of an earlier model in it are replaced.
        card : bool
            Write README.md too: what the model is, how it was trained, what it is not for.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        """
        from ssmseq.persistence import save

        check_is_fitted(self)
        save(self, folder, card=card)
        return self

    def export(self, path, *, check: bool = True, tolerance: float = 1e-4) -> Self:
        """Write the fitted estimator as one graph that runs without this library, in the units that a user has.

        The file says what its inputs and outputs are: an .onnx in its metadata, a .pt2 in its extra file metadata.json.
        Any size of batch will do, and of DNA any length. Networks of another precision are written in float32.

        Parameters
        ----------
        path : str or path
            Ends in .onnx, or in .pt2 for `torch.export`. An existing file is replaced once the new one is complete.
        check : bool
            Run the file on an example, .onnx by onnxruntime, and compare with this estimator's network before it gets
            its name.
        tolerance : float
            Largest difference that the check accepts, as a share of the largest output.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For another suffix, an .onnx of more than 2 GB, or if the check finds a larger difference.
        FileNotFoundError
            If the folder does not exist.
        TypeError
            If this estimator has no graph.
        ImportError
            If a package is missing, or torch is too old; the message names it.
        """
        from ssmseq.export import export

        check_is_fitted(self)
        export(self, path, check=check, tolerance=tolerance)
        return self

    def _serving_graph(self):
        raise TypeError(f"{type(self).__name__} cannot be exported: it has no graph that runs without this library")


def check_number(
    name: str, value, *, minimum=None, maximum=None, above=None, below=None, integer: bool = False
) -> None:
    """Raise ValueError naming the parameter, its value and the allowed range, unless value lies in it."""
    kind = numbers.Integral if integer else numbers.Real
    limits = {"at least": minimum, "above": above, "at most": maximum, "below": below}
    bounds = [f"{words} {limit}" for words, limit in limits.items() if limit is not None]
    good = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    good = good and (minimum is None or value >= minimum) and (above is None or value > above)
    good = good and (maximum is None or value <= maximum) and (below is None or value < below)
    if not good:
        noun = "an integer" if integer else "a number"
        raise ValueError(f"{name} must be {noun} {' and '.join(bounds)}".rstrip() + f", got {value!r}")


def check_choice(name: str, value, choices) -> None:
    """Raise ValueError naming the parameter, its value and the choices, unless value is one of them."""
    value = value.item() if isinstance(value, np.generic) else value  # grids are often arrays
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def draw_seed(random_state) -> int:
    """Return a seed from an int, a numpy generator, or fresh entropy; numpy's global generator is left alone."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    try:
        return int(np.random.default_rng(random_state).integers(2**31))
    except (ValueError, TypeError) as error:
        message = f"random_state must be a non-negative integer, a numpy generator or None, got {random_state!r}"
        raise ValueError(message) from error

"""A fitted `ECGMambaClassifier` as plain values and tensors, and back."""

import dataclasses

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ssmseq.ecg.calibration import LabelCalibrator
from ssmseq.ecg.fitting import epochs_of
from ssmseq.ecg.inputs import Layout
from ssmseq.ecg.network import Ensemble
from ssmseq.ecg.preprocessing import Preprocessing


def export_state(estimator) -> tuple[dict, dict[str, Tensor]]:
    """Return what JSON can hold, and the tensors."""
    labels = estimator.classes_.tolist()
    for label in labels:
        if not isinstance(label, str | int | float | bool):
            raise TypeError(f"the label {label!r} cannot be written to JSON; rename it to text or a number")
    history = estimator.history_
    stored = {
        "classes": labels,
        "classes_dtype": "object" if estimator.classes_.dtype == object else estimator.classes_.dtype.str,
        "exclusive": estimator.exclusive_,
        "layout": dataclasses.asdict(estimator.layout_),
        "preprocessing": estimator.preprocessing_.to_dict(),
        "n_features_in": estimator.n_features_in_,
        "feature_names_in": list(getattr(estimator, "feature_names_in_", [])),
        "calibration": None if estimator.calibrator_ is None else estimator.calibrator_.parameters_,
        "history": history.astype(object).where(history.notna(), None).to_dict("list"),
    }
    scaler = np.array([estimator.mean_, estimator.scale_])
    tensors = {"scaler": torch.from_numpy(scaler), "thresholds": torch.from_numpy(estimator.thresholds_.copy())}
    tensors |= {f"network.{k}": v.cpu() for k, v in estimator.network_.state_dict().items()}
    return stored, tensors


def import_state(estimator, stored: dict, tensors: dict[str, Tensor]) -> None:
    """Make an unfitted estimator with the right parameters a fitted one."""
    layout = stored["layout"]
    estimator.layout_ = Layout(**{**layout, "leads": tuple(layout["leads"])})
    estimator.preprocessing_ = Preprocessing.from_dict(stored["preprocessing"])
    estimator.classes_ = np.array(stored["classes"], dtype=np.dtype(stored["classes_dtype"]))
    estimator.exclusive_ = stored["exclusive"]
    estimator.n_features_in_ = stored["n_features_in"]
    if stored["feature_names_in"]:
        estimator.feature_names_in_ = np.array(stored["feature_names_in"], dtype=object)
    found = stored["calibration"]
    estimator.calibrator_ = None if found is None else LabelCalibrator.from_parameters(found, from_logits=True)
    estimator.mean_, estimator.scale_ = tensors["scaler"].tolist()
    estimator.thresholds_ = tensors["thresholds"].numpy().copy()
    if estimator.thresholds_.shape != estimator.classes_.shape:
        raise ValueError(f"{len(estimator.classes_)} labels have {estimator.thresholds_.shape} thresholds")
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    with torch.random.fork_rng():
        network = estimator._build_network(
            len(estimator.preprocessing_.leads), estimator.preprocessing_.n_times, len(estimator.classes_)
        )
    if isinstance(network, Ensemble):  # an interrupted fit has fewer
        network.members = network.members[: len({k.split(".")[1] for k in weights})]
    dtype = next(w.dtype for name, w in weights.items() if name.endswith("head.weight"))
    network.to(dtype).load_state_dict(weights)
    estimator.network_ = network.eval()
    losses = [c for c in stored["history"] if c not in ("network", "epoch")]
    estimator.history_ = pd.DataFrame(stored["history"]).astype(dict.fromkeys(losses, float))
    estimator.n_iter_ = epochs_of(estimator.history_)

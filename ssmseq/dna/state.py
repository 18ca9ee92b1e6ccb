"""Fitted DNA estimators as plain values and tensors, and back."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

# Parameters of `DNALanguageModel` that shape its network.
ARCHITECTURE = {"architecture", "bidirectional", "reverse_complement", "d_model", "n_layers", "d_state", "d_conv"}
ARCHITECTURE |= {"expand", "head_dim", "d_ff", "attention_period", "attention_offset", "n_heads", "n_kv_heads"}
ARCHITECTURE |= {"swap_strands"}


def export_state(estimator) -> tuple[dict, dict[str, Tensor]]:
    """Return of a `DNALanguageModel` what JSON can hold, and the tensors."""
    stored = {**_export_classes(estimator), "history": export_history(estimator.history_)}
    return stored, _export_weights(estimator.network_)


def import_state(estimator, stored: dict, tensors: dict[str, Tensor]) -> None:
    """Make an unfitted `DNALanguageModel` with the right parameters a fitted one."""
    _import_classes(estimator, stored)
    with torch.random.fork_rng():
        network = estimator._build_network(len(estimator.classes_))
    estimator.network_ = _import_weights(network, tensors)
    estimator.history_ = import_history(stored["history"])
    estimator.n_iter_, estimator.n_features_out_ = len(estimator.history_), estimator._n_columns()


def export_fine_tuned(estimator) -> tuple[dict, dict[str, Tensor]]:
    """Return of a `DNAClassifier` or `DNARegressor` what JSON can hold, and the tensors."""
    base = estimator.base_params_
    stored = {
        "language_model": {name: base[name] for name in sorted(base) if name in ARCHITECTURE},
        "n_labels": estimator.n_labels_,
        "length": estimator.length_,
        "history": export_history(estimator.history_),
    }
    if hasattr(estimator, "classes_"):
        stored |= _export_classes(estimator)
    else:
        stored |= {"mean": estimator.mean_, "scale": estimator.scale_}
    return stored, _export_weights(estimator.network_)


def import_fine_tuned(estimator, stored: dict, tensors: dict[str, Tensor]) -> None:
    """Make an unfitted `DNAClassifier` or `DNARegressor` with the right parameters a fitted one."""
    from ssmseq.dna.head import SequenceHead
    from ssmseq.dna.language_model import DNALanguageModel

    n_outputs = 1
    if "classes" in stored:
        _import_classes(estimator, stored)
        n_outputs = len(estimator.classes_)
    else:
        estimator.mean_, estimator.scale_ = stored["mean"], stored["scale"]
    estimator.base_params_, estimator.n_labels_ = stored["language_model"], stored["n_labels"]
    with torch.random.fork_rng():
        base = DNALanguageModel(**stored["language_model"])._build_network(stored["n_labels"])
        network = SequenceHead(base, pooling=estimator.pooling, n_outputs=n_outputs, dropout=estimator.dropout)
    estimator.network_, estimator.length_ = _import_weights(network, tensors), stored["length"]
    estimator.history_ = import_history(stored["history"])
    estimator.n_iter_ = len(estimator.history_)


def _export_weights(network: nn.Module) -> dict[str, Tensor]:
    return {f"network.{k}": v.cpu() for k, v in network.state_dict().items()}


def _import_weights(network: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    weights = {k.removeprefix("network."): v for k, v in tensors.items()}
    network.to(next(iter(weights.values())).dtype).load_state_dict(weights)
    return network.eval()


def _export_classes(estimator) -> dict:
    labels = estimator.classes_.tolist()
    for label in labels:
        if not isinstance(label, str | int | float | bool):
            raise TypeError(f"the label {label!r} cannot be written to JSON; rename it to text or a number")
    dtype = estimator.classes_.dtype
    return {"classes": labels, "classes_dtype": "object" if dtype.kind == "O" else dtype.str}


def _import_classes(estimator, stored: dict) -> None:
    estimator.classes_ = np.array(stored["classes"], dtype=np.dtype(stored["classes_dtype"]))


def export_history(history: pd.DataFrame) -> dict[str, list]:
    """Return the columns, with None for NaN."""
    return history.astype(object).where(history.notna(), None).to_dict("list")


def import_history(columns: dict[str, list]) -> pd.DataFrame:
    """Return the frame of `export_history`."""
    return pd.DataFrame(columns).astype({name: float for name in columns if name != "epoch"})

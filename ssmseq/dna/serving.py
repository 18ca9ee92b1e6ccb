"""DNA estimators as graphs that take numbers of letters."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.dna.alphabet import BASES, BOS, CLS, COMPLEMENT, PAD, TOKENS, VOCAB_SIZE, A, N
from ssmseq.dna.head import SequenceHead
from ssmseq.export import ServingGraph, TensorSpec, for_serving

LETTERS = "numbers of tokens: A 7, C 8, G 9, T (and U) 10, other letters of the IUPAC code 11"
IDS = ("batch", "length")


def language_model_graph(estimator) -> ServingGraph:
    """Return the graph of a fitted `DNALanguageModel`: one strand, as it is read."""
    if estimator.bidirectional:
        ids = f"{LETTERS}; 3 [MASK] where a base is to be restored"
        rows = "row t is about the base at t, from both sides of it"
    else:
        ids = f"{LETTERS}; the first is 2 [BOS], or the token of a label"
        rows = "row t is about the base after the token at t"
    tokens = dict(enumerate(TOKENS)) | {VOCAB_SIZE + i: f"label {c}" for i, c in enumerate(estimator.classes_.tolist())}
    output = TensorSpec((*IDS, len(BASES)), "float32", f"log-probability of {', '.join(BASES)} in nats; {rows}")
    first = () if estimator.bidirectional else (BOS,)
    return ServingGraph(
        module=LogProbabilities(for_serving(estimator.network_)),
        inputs={"ids": TensorSpec(IDS, "int64", ids)},
        output=("log_probabilities", output),
        example=lambda n_batch, length: {"ids": _letters(n_batch, length, first)},
        metadata={"vocabulary": list(BASES), "tokens": tokens, "bidirectional": bool(estimator.bidirectional)},
    )


def head_graph(estimator) -> ServingGraph:
    """Return the graph of a fitted `DNAClassifier` or `DNARegressor`."""
    length = estimator.length_
    ids = f"{LETTERS}; 4 [PAD] after the end of shorter sequences, none of which may be empty"
    if hasattr(estimator, "classes_"):
        labels = {"labels": estimator.classes_.tolist()}
        name, shape = "probabilities", ("batch", len(estimator.classes_))
        meaning = "probability of each class, in the order of labels; they sum to 1"
    else:
        labels, name, shape = {}, "values", ("batch",)
        meaning = "value of each sequence, in the unit of the targets"
    return ServingGraph(
        module=HeadGraph(estimator),
        inputs={"ids": TensorSpec(IDS, "int64", ids)},
        output=(name, TensorSpec(shape, "float32", meaning)),
        example=lambda n_batch, n: {"ids": _letters(n_batch, n, ())},
        metadata={**labels, "tokens": dict(enumerate(TOKENS)), "training_length": length},
    )


class ServedHead:
    """The graph of `DNAClassifier` and `DNARegressor`."""

    def _serving_graph(self) -> ServingGraph:
        return head_graph(self)


class LogProbabilities(nn.Module):
    """Log-probabilities of the bases by the scores of a network."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        """Map tokens (B, L) to (B, L, 4)."""
        return self.network(ids).log_softmax(-1).float()


class HeadGraph(nn.Module):
    """From letters to probabilities or values, on one strand or both.

    Parameters
    ----------
    estimator : DNAClassifier or DNARegressor
        Fitted.
    """

    complement: Tensor

    def __init__(self, estimator):
        super().__init__()
        self.network: SequenceHead = for_serving(estimator.network_)  # type: ignore[assignment]
        self.length, self.averages = estimator.length_, estimator.reverse_complement == "average"
        self.moments = None if hasattr(estimator, "classes_") else (float(estimator.mean_), float(estimator.scale_))
        self.register_buffer("complement", torch.from_numpy(COMPLEMENT.copy()))

    def forward(self, ids: Tensor) -> Tensor:
        """Map letters (B, L), with padding at the end, to (B, n_outputs), or (B,) of values."""
        lengths = (ids != PAD).sum(1)
        found = self._outputs(ids, lengths)
        if self.averages:
            found = (found + self._outputs(self._other_strand(ids, lengths), lengths)) / 2
        if self.moments is None:
            return found.softmax(-1).float()
        mean, scale = self.moments
        return (found[:, 0] * scale + mean).float()

    def _outputs(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Put [BOS], [CLS] and padding where `pad_sequences` puts them."""
        causal, with_class = self.network.causal, self.network.pooling == "class"
        if not causal:  # a causal network does not see what stands after a sequence
            width = torch.sym_max(ids.shape[1], self.length)
            ids = F.pad(ids, (0, self.length), value=PAD)[:, :width]
        tokens = F.pad(ids, (0, int(with_class)), value=PAD)
        if with_class:
            tokens = torch.where(torch.arange(tokens.shape[1]) == lengths[:, None], CLS, tokens)
        return self.network(F.pad(tokens, (int(causal), 0), value=BOS), lengths).double()

    def _other_strand(self, ids: Tensor, lengths: Tensor) -> Tensor:
        places = lengths[:, None] - 1 - torch.arange(ids.shape[1])
        return torch.where(places < 0, PAD, self.complement[ids.gather(1, places.clamp(min=0))])


def _letters(n_batch: int, length: int, first: tuple[int, ...]) -> Tensor:
    letters = np.random.default_rng(0).integers(A, N + 1, (n_batch, length))
    letters[:, : len(first)] = first
    return torch.from_numpy(letters)

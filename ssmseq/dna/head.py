"""A head on a DNA network: one output for each class or target of a whole sequence, and low-rank tuning."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import Dataset

from ssmseq.dna.alphabet import BOS, CLS, PAD, reverse_complement_tokens
from ssmseq.dna.network import DNANetwork, reads_both_ways
from ssmseq.nn.linear import Linear
from ssmseq.sampling import mixed_seed

POOLINGS = ("mean", "max", "last", "class")
TUNED = ("in_proj", "x_proj", "dt_proj", "out_proj", "fc1", "fc2")  # linear maps that get a low-rank part


class SequenceHead(nn.Module):
    """Pool the hidden states of a network and map them to outputs.

    Parameters
    ----------
    network : DNANetwork
    pooling : {"mean", "max", "last", "class"}
        Over the letters; or the state of the last letter, or of a [CLS] token after it.
    n_outputs : int
    dropout : float
        Share of pooled channels zeroed.
    """

    def __init__(self, network: DNANetwork, *, pooling: str, n_outputs: int, dropout: float):
        super().__init__()
        self.network, self.pooling = network, pooling
        self.causal = not reads_both_ways(network.core)
        self.d_model = network.core.embedding.embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.d_model, n_outputs)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Map tokens (B, L), of which `lengths` (B,) are of the sequence, to outputs (B, n_outputs)."""
        hidden = self.network.hidden(tokens)
        if hidden.shape[-1] != self.d_model:  # both strands count alike, whichever was given
            first, second = hidden.chunk(2, dim=-1)
            hidden = (first + second.flip(-1)) / 2
        return self.head(self.dropout(self._pool(hidden, lengths)))

    def _pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        first = int(self.causal)  # behind the token that a causal network reads first
        if self.pooling in ("last", "class"):
            place = lengths + first - int(self.pooling == "last")
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
        places = torch.arange(hidden.shape[1], device=hidden.device)
        chosen = ((places >= first) & (places < first + lengths[:, None])).unsqueeze(-1)
        if self.pooling == "max":
            return hidden.masked_fill(~chosen, -torch.inf).amax(1)
        return (hidden * chosen).sum(1) / lengths[:, None]


class Sequences(Dataset):
    """Whole sequences and their targets, of which each epoch may draw the other strand.

    Parameters
    ----------
    sequences : sequence of array (L,) of token numbers
    targets : array (n, ...) of float
    length : int
        Shorter sequences are padded to it.
    causal : bool
        Put [BOS] in front.
    with_class : bool
        Put [CLS] behind.
    both_strands : bool
        Draw a strand in each epoch, by the seed, the epoch and the number of the sequence alone.
    seed : int
    """

    numbers_epochs = True

    def __init__(self, sequences, targets, *, length, causal, with_class, both_strands, seed):
        self.sequences, self.targets, self.length = sequences, targets, length
        self.causal, self.with_class, self.both_strands, self.seed = causal, with_class, both_strands, seed

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return {"tokens": (B, L), "lengths": (B,)} and the targets."""
        rows = [number % len(self) for number in numbers]
        chosen = [
            reverse_complement_tokens(self.sequences[row]) if self._turns(number) else self.sequences[row]
            for number, row in zip(numbers, rows, strict=True)
        ]
        inputs = pad_sequences(chosen, length=self.length, causal=self.causal, with_class=self.with_class)
        return inputs, torch.from_numpy(self.targets[rows])

    def _turns(self, number: int) -> bool:
        return self.both_strands and mixed_seed(self.seed, number) % 2 == 1


def pad_sequences(sequences: Sequence[np.ndarray], *, length: int, causal: bool, with_class: bool) -> dict[str, Tensor]:
    """Return the inputs of a `SequenceHead`: rows of one length, at least `length` letters."""
    lengths = [len(s) for s in sequences]
    width = max([length, *lengths])
    tokens = np.full((len(sequences), causal + width + with_class), PAD, np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        if causal:
            row[0] = BOS
        row[causal : causal + len(sequence)] = sequence
        if with_class:
            row[causal + len(sequence)] = CLS
    return {"tokens": torch.from_numpy(tokens), "lengths": torch.tensor(lengths)}


class _LowRank(nn.Module):
    """Add ``up @ down`` to a weight; it begins at zero."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        rank = min(rank, *weight.shape)
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], dtype=weight.dtype) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def freeze(network: nn.Module) -> None:
    """Let no gradient reach the weights of a network."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)


def add_low_rank(network: nn.Module, rank: int) -> None:
    """Freeze a network and give its linear maps trainable low-rank parts.

    References
    ----------
    Hu et al., "LoRA: low-rank adaptation of large language models", arXiv 2106.09685.
    """
    freeze(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, Linear | nn.Linear) and name.rsplit(".", 1)[-1] in TUNED:
            parametrize.register_parametrization(module, "weight", _LowRank(module.weight, rank))


def merge_low_rank(network: nn.Module) -> None:
    """Add the low-rank parts to the weights, and leave plain linear maps."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)

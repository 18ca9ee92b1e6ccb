"""Embeddings: hidden states of a network, pooled over a sequence or for each of its bases."""

from collections.abc import Sequence

import numpy as np
import torch

from ssmseq.dna.alphabet import CLS, reverse_complement_tokens
from ssmseq.dna.likelihood import hidden_states
from ssmseq.dna.network import DNANetwork

POOLINGS = ("mean", "last", "class", "echo")


def embed_strands(
    network: DNANetwork, sequences: Sequence[np.ndarray], *, pooling: str, average: bool, **reading
) -> np.ndarray:
    """Return `pool` of the sequences; with `average` its mean over the strands.

    An equivariant network has read both strands at once, and their states are averaged; without `average` the other
    strand's are in the second half of the channels.
    """
    found = pool(network, sequences, pooling=pooling, **reading)
    if not average:
        return found
    d_model = network.core.embedding.embedding_dim
    if network.d_hidden > d_model:
        return (found[:, :d_model] + found[:, d_model:][:, ::-1]) / 2
    others = [reverse_complement_tokens(s) for s in sequences]
    return (found + pool(network, others, pooling=pooling, **reading)) / 2


def pool(network: DNANetwork, sequences: Sequence[np.ndarray], *, pooling: str, **reading) -> np.ndarray:
    """Return one embedding for each sequence.

    Parameters
    ----------
    network : DNANetwork
    sequences : sequence of array (L,) of token numbers, none of them empty
    pooling : {"mean", "last", "class", "echo"}
        The mean over all letters; the state of the last; that of a [CLS] token after it; or the mean over a second
        copy of the sequence, which a causal network reads with the first one in mind.
    **reading
        Arguments of `hidden_states`.

    Returns
    -------
    array (n, d_hidden) of float32
    """
    lengths = np.array([len(s) for s in sequences])
    first = {"mean": 0 * lengths, "last": lengths - 1, "class": lengths, "echo": lengths}[pooling]
    last = {"mean": lengths, "last": lengths, "class": lengths + 1, "echo": 2 * lengths}[pooling]
    if pooling == "class":
        sequences = [np.append(s, np.uint8(CLS)) for s in sequences]
    elif pooling == "echo":
        sequences = [np.concatenate([s, s]) for s in sequences]
    found = np.zeros((len(sequences), network.d_hidden))
    for rows, chunks in hidden_states(network, sequences, **reading):
        for start, states in chunks:
            places = np.arange(start, start + states.shape[1])
            chosen = (places >= first[rows, None]) & (places < last[rows, None])
            weights = torch.from_numpy(chosen / (last - first)[rows, None]).to(states.device)
            found[rows] += torch.einsum("bl,bld->bd", weights, states.double()).cpu().numpy()
    return found.astype(np.float32)


def base_embeddings(network: DNANetwork, sequences: Sequence[np.ndarray], **reading) -> list[np.ndarray]:
    """Return the hidden state of each letter of each sequence: a list of array (L, d_hidden) of float32."""
    found = [np.empty((len(s), network.d_hidden), np.float32) for s in sequences]
    for rows, chunks in hidden_states(network, sequences, **reading):
        for start, states in chunks:
            for row, values in zip(rows, states.float().cpu().numpy(), strict=True):
                found[row][start : start + len(values)] = values[: max(len(found[row]) - start, 0)]
    return found

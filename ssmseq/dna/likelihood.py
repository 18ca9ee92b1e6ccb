"""Log-probabilities of bases, and hidden states, of sequences of any length.

Causal networks read a sequence chunk by chunk and carry their state from one to the next, which is exact: memory does
not grow with the length (but for attention, which keeps the keys and values of all that it has read). What a sequence
is given with changes nothing: sequences end in padding, which comes after all that is read of them, and networks that
read from both ends get sequences of one length at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssmseq.dna.alphabet import BOS, MASK, PAD, A, T
from ssmseq.dna.network import DNANetwork

TOKENS_AT_ONCE = 1 << 16  # tokens of a batch, all its sequences together


def causal_log_probabilities(
    network: DNANetwork,
    sequences: Sequence[np.ndarray],
    *,
    chunk_length: int,
    prompt: int = BOS,
    device: torch.device,
) -> list[np.ndarray]:
    """Return the log-probability of each base given all bases before it.

    Parameters
    ----------
    network : DNANetwork
        Causal.
    sequences : sequence of array (L,) of token numbers
        Lengths may differ, and may be 0.
    chunk_length : int
        Tokens of a sequence that are read at once; changes memory and speed alone.
    prompt : int
        The token before the first base.
    device : torch.device

    Returns
    -------
    list of array (L,) of float64
        In nats; NaN where the letter is none of A, C, G and T.
    """
    found = [np.full(len(s), np.nan) for s in sequences]
    for rows, tokens in padded_batches(sequences, chunk_length, prompt=prompt):
        caches = network.empty_caches()
        for start in range(0, tokens.shape[1] - 1, chunk_length):
            part = tokens[:, start : start + chunk_length + 1].to(device)
            log_p = base_log_probabilities(network(part[:, :-1], caches), part[:, 1:]).cpu().numpy()
            for row, values in zip(rows, log_p, strict=True):
                found[row][start : start + chunk_length] = values[: max(len(found[row]) - start, 0)]
    return found


def masked_log_probabilities(
    network: DNANetwork, sequences: Sequence[np.ndarray], *, spacing: int, device: torch.device
) -> list[np.ndarray]:
    """Return the log-probability of each base given the bases on both sides, of which every `spacing`-th is masked too.

    Each sequence is read `spacing` times, with another part of its bases masked. As `causal_log_probabilities` else.

    References
    ----------
    Salazar et al., "Masked language model scoring", arXiv 1910.14659.
    """
    found = [np.full(len(s), np.nan) for s in sequences]
    for rows, tokens in batches_of_one_length(sequences):
        tokens = tokens.to(device)
        for phase in range(min(spacing, tokens.shape[1])):
            masked = tokens.clone()
            masked[:, phase::spacing] = torch.where(is_base(tokens[:, phase::spacing]), MASK, tokens[:, phase::spacing])
            log_p = base_log_probabilities(network(masked)[:, phase::spacing], tokens[:, phase::spacing])
            for row, values in zip(rows, log_p.cpu().numpy(), strict=True):
                found[row][phase::spacing] = values
    return found


def hidden_states(
    network: DNANetwork,
    sequences: Sequence[np.ndarray],
    *,
    chunk_length: int,
    prompt: int = BOS,
    causal: bool,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, Iterator[tuple[int, Tensor]]]]:
    """Yield rows of `sequences` and an iterator over the hidden states of their tokens.

    The iterator yields the place of a chunk's first token and the states (B, tokens, D) of the chunk; the token at
    place i is the letter i, and those beyond the end of a sequence are to be left out. In a causal network the prompt
    has been read before, and in others there is none.
    """
    if causal:
        for rows, tokens in padded_batches(sequences, chunk_length, prompt=prompt):
            yield rows, _carried_states(network, tokens.to(device), chunk_length)
    else:
        for rows, tokens in batches_of_one_length(sequences):
            yield rows, iter([(0, network.hidden(tokens.to(device)))])


def _carried_states(network: DNANetwork, tokens: Tensor, chunk_length: int) -> Iterator[tuple[int, Tensor]]:
    caches = network.empty_caches()
    network.hidden(tokens[:, :1], caches)
    for start in range(1, tokens.shape[1], chunk_length):
        yield start - 1, network.hidden(tokens[:, start : start + chunk_length], caches)


def base_log_probabilities(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability (B, L) in float64 of each token, by scores (B, L, 4); NaN where it is no base."""
    bases = is_base(tokens)
    index = torch.where(bases, tokens - A, 0).unsqueeze(-1)
    found = scores.double().log_softmax(-1).gather(-1, index).squeeze(-1)
    return torch.where(bases, found, torch.nan)


def is_base(tokens: Tensor) -> Tensor:
    """Whether tokens are A, C, G or T."""
    return (tokens >= A) & (tokens <= T)


def padded_batches(
    sequences: Sequence[np.ndarray], chunk_length: int, *, prompt: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield rows of `sequences` and their tokens (B, 1 + L), sorted by length: prompt, letters, padding."""
    order = np.argsort([len(s) for s in sequences], kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * min(len(sequences[order[stop]]) + 1, chunk_length) <= (
            TOKENS_AT_ONCE
        ):
            stop += 1
        rows = order[start:stop]
        tokens = torch.full((len(rows), 1 + len(sequences[rows[-1]])), PAD)
        tokens[:, 0] = prompt
        for place, row in enumerate(rows):
            tokens[place, 1 : 1 + len(sequences[row])] = torch.from_numpy(sequences[row].astype(np.int64))
        yield rows, tokens
        start = stop


def batches_of_one_length(sequences: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield rows of `sequences` that are of one length, and their tokens (B, L)."""
    lengths = np.array([len(s) for s in sequences])
    for length in np.unique(lengths[lengths > 0]):
        rows = np.flatnonzero(lengths == length)
        for part in np.array_split(rows, -(-len(rows) * int(length) // TOKENS_AT_ONCE)):
            yield part, torch.from_numpy(np.stack([sequences[row] for row in part]).astype(np.int64))

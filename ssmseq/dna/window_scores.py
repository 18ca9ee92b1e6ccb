"""Scores of pairs of windows by a network: their log-likelihood ratio, and their mean states.

A causal network reads what the two windows begin with once, and goes on with both from copies of its state. Windows
that share equally much of their beginning make a batch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq.dna.alphabet import BOS, MASK
from ssmseq.dna.likelihood import base_log_probabilities, is_base
from ssmseq.dna.network import DNANetwork


def causal_scores(
    network: DNANetwork,
    pairs: np.ndarray,
    shared: np.ndarray,
    *,
    chunk_length: int,
    batch_size: int,
    with_means: bool,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Score pairs of windows by a causal network, which reads what both begin with once.

    Parameters
    ----------
    network : DNANetwork
    pairs : array (n, 2, L) of token numbers
        With REF and with ALT.
    shared : array (n,) of int
        How many letters the two begin with; those of equal windows have the ratio 0.
    chunk_length : int
        Letters of a window that are read at once; changes memory and speed alone.
    batch_size : int
        Pairs that are read at once.
    with_means : bool
    device : torch.device

    Returns
    -------
    ratios : array (n,) of float64
        Log-likelihood of the second less that of the first, in nats.
    means : array (n, 2, D) of float64, or None
        Mean state of all letters.
    """
    ratios = np.zeros(len(pairs))
    means = np.empty((len(pairs), 2, network.d_hidden)) if with_means else None
    for part in _parts_of_a_kind(shared, batch_size):
        n_shared = int(shared[part[0]])
        if means is None and n_shared == pairs.shape[2]:
            continue
        tokens = torch.from_numpy(pairs[part].astype(np.int64)).to(device)
        sums = torch.zeros(2 * len(part), network.d_hidden, dtype=torch.float64, device=device)
        found = _part_ways(network, tokens, n_shared, chunk_length, sums if with_means else None)
        ratios[part] = (found[1::2] - found[::2]).cpu().numpy()
        if means is not None:
            means[part] = sums.unflatten(0, (-1, 2)).cpu().numpy() / pairs.shape[2]
    return ratios, means


def _parts_of_a_kind(kinds: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield rows that are of one kind, at most `batch_size` at once."""
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        yield from np.array_split(rows, -(-len(rows) // batch_size))


def _part_ways(network, pairs: Tensor, shared: int, chunk_length: int, sums: Tensor | None) -> Tensor:
    """Return the log-likelihood (2 B,) of what windows (B, 2, L) have after their shared beginning."""
    caches = network.empty_caches()
    before = F.pad(pairs[:, 0, :shared], (1, 0), value=BOS)
    hidden = before.new_empty(0)
    for start in range(0, before.shape[1], chunk_length):
        hidden = network.hidden(before[:, start : start + chunk_length], caches)
        if sums is not None:
            letters = hidden[:, 1:] if start == 0 else hidden
            sums += letters.double().sum(1).repeat_interleave(2, 0)
    scores = network.score_hidden(hidden[:, -1:]).repeat_interleave(2, 0)
    rest = pairs[:, :, shared:].flatten(0, 1)
    return continued_log_likelihood(
        network, copied_caches(caches, 2), scores, rest, chunk_length=chunk_length, sums=sums
    )


def copied_caches(caches: list[dict[str, Tensor]], n: int) -> list[dict[str, Tensor]]:
    """Return caches in which each sequence stands n times."""
    return [{name: tensor.repeat_interleave(n, 0) for name, tensor in cache.items()} for cache in caches]


def continued_log_likelihood(
    network: DNANetwork,
    caches: list[dict[str, Tensor]],
    scores: Tensor,
    tokens: Tensor,
    *,
    chunk_length: int,
    sums: Tensor | None = None,
) -> Tensor:
    """Return the log-likelihood of letters after those that have been read.

    Parameters
    ----------
    network : DNANetwork
        Causal.
    caches : list of dict
        What has been read; used up.
    scores : Tensor (B, 1, 4)
        Of the first letter.
    tokens : Tensor (B, L) of int64
        [PAD] behind the end.
    chunk_length : int
    sums : Tensor (B, D) of float64, optional
        Where the states of the letters are added; the last letter is then read too.

    Returns
    -------
    Tensor (B,) of float64
        In nats; letters other than A, C, G and T do not count.
    """
    found = base_log_probabilities(scores, tokens[:, :1]).nansum(1)
    for start in range(0, tokens.shape[1] - (sums is None), chunk_length):
        stop = min(start + chunk_length, tokens.shape[1] - (sums is None))
        hidden = network.hidden(tokens[:, start:stop], caches)
        following = tokens[:, start + 1 : stop + 1]
        found += base_log_probabilities(network.score_hidden(hidden[:, : following.shape[1]]), following).nansum(1)
        if sums is not None:
            sums += hidden.double().sum(1)
    return found


def masked_scores(
    network: DNANetwork,
    pairs: np.ndarray,
    edits: np.ndarray,
    *,
    spacing: int,
    batch_size: int,
    with_means: bool,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Score pairs of windows by a network that restores masked letters.

    Alleles of one length are masked where they differ, and the letters of both compared there [1]_. Others are scored
    by the pseudo-log-likelihood of both windows [2]_, with every `spacing`-th letter masked at once. Letters are
    counted anew behind the alleles, so that each is masked together with the same others in both windows.

    Parameters
    ----------
    network : DNANetwork
    pairs : array (n, 2, L) of token numbers
    edits : array (n, 4) of int
        How many letters the two begin with, the first letter of the alleles, and where REF and ALT end.
    spacing, batch_size : int
    with_means : bool
    device : torch.device

    Returns
    -------
    As `causal_scores`.

    References
    ----------
    .. [1] Meier et al., "Language models enable zero-shot prediction of the effects of mutations on protein function",
       NeurIPS 2021.
    .. [2] Salazar et al., "Masked language model scoring", arXiv 1910.14659.
    """
    ratios = np.zeros(len(pairs))
    means = np.empty((len(pairs), 2, network.d_hidden)) if with_means else None
    substitutes = edits[:, 2] == edits[:, 3]
    for part in _parts_of_a_kind(substitutes, batch_size):
        tokens = torch.from_numpy(pairs[part].astype(np.int64)).to(device)
        if means is not None:
            states = network.hidden(tokens.flatten(0, 1)).double().mean(1)
            means[part] = states.unflatten(0, (-1, 2)).cpu().numpy()
        if substitutes[part[0]]:
            ratios[part] = _masked_ratio(network, tokens).cpu().numpy()
        else:
            classes = torch.from_numpy(_mask_classes(edits[part], pairs.shape[2], spacing)).to(device)
            found = _pseudo_log_likelihood(network, tokens.flatten(0, 1), classes, spacing)
            ratios[part] = (found[1::2] - found[::2]).cpu().numpy()
    return ratios, means


def _masked_ratio(network: DNANetwork, pairs: Tensor) -> Tensor:
    """Mask windows (B, 2, L) where they differ, and return the ratio (B,) of the letters there."""
    ref, alt = pairs.unbind(1)
    differ = ref != alt
    scores = network(torch.where(differ, MASK, ref))
    change = base_log_probabilities(scores, alt) - base_log_probabilities(scores, ref)
    return torch.where(differ, change, 0).sum(1)


def _mask_classes(edits: np.ndarray, length: int, spacing: int) -> np.ndarray:
    """Return with which others each letter of the windows (2 n, length) is masked, as a number below `spacing`."""
    place = np.arange(length)
    _, first, *ends = edits.T
    found = np.empty((2 * len(edits), length), np.int64)
    for i, end in enumerate(ends):
        inside = np.where(place < end[:, None], place - first[:, None], place - end[:, None])
        found[i::2] = np.where(place < first[:, None], place, inside) % spacing
    return found


def _pseudo_log_likelihood(network: DNANetwork, tokens: Tensor, classes: Tensor, spacing: int) -> Tensor:
    found = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for number in range(min(spacing, tokens.shape[1])):
        chosen = (classes == number) & is_base(tokens)
        log_p = base_log_probabilities(network(torch.where(chosen, MASK, tokens)), tokens)
        found += torch.where(chosen, log_p, 0).sum(1)
    return found

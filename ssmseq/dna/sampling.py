"""New sequences from a causal network: token by token, with the state of the scans carried in constant memory."""

import numpy as np
import torch
from torch import Tensor

from ssmseq.base import check_number
from ssmseq.dna.alphabet import N_BASES, A
from ssmseq.dna.network import DNANetwork


def check_sampling(n, length, temperature, top_k, top_p) -> None:
    """Raise ValueError for what nothing can be drawn with."""
    check_number("n", n, minimum=1, integer=True)
    check_number("length", length, minimum=1, integer=True)
    check_number("temperature", temperature, minimum=0)
    if top_k is not None:
        check_number("top_k", top_k, minimum=1, integer=True)
    if top_p is not None:
        check_number("top_p", top_p, above=0, maximum=1)


def draw_sequences(
    network: DNANetwork,
    prompt: np.ndarray,
    *,
    n: int,
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
    device: torch.device,
) -> np.ndarray:
    """Return n continuations of a prompt, (n, length) of token numbers.

    Parameters
    ----------
    network : DNANetwork
        Causal.
    prompt : array (L,) of token numbers
        At least the one that a sequence begins with.
    n, length : int
    temperature : float
        0 takes the most probable base.
    top_k, top_p : int and float, optional
        Draw among the k most probable bases, or among the fewest whose probabilities sum to p.
    generator : torch.Generator
        On the CPU, so that draws are the same on all devices.
    device : torch.device
    """
    caches = network.empty_caches()
    read = torch.from_numpy(prompt.astype(np.int64)).repeat(n, 1).to(device)
    found = np.empty((n, length), np.uint8)
    for i in range(length):
        scores = network.score_hidden(network.hidden(read, caches)[:, -1]).double().cpu()
        bases = A + draw_bases(scores, temperature, top_k, top_p, generator)
        found[:, i] = bases.numpy()
        read = bases.unsqueeze(1).to(device)
    return found


def draw_bases(
    scores: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """Draw one base 0..3 for each row of scores (B, 4)."""
    if temperature == 0:
        return scores.argmax(-1)
    # Shifted before it is scaled: a small temperature would else overflow.
    p = ((scores - scores.amax(-1, keepdim=True)) / temperature).softmax(-1)
    ordered, order = p.sort(-1, descending=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if top_k is not None:
        kept[:, min(top_k, N_BASES) :] = False
    if top_p is not None:
        kept &= ordered.cumsum(-1) - ordered < top_p  # the base that passes the sum is still one of them
    drawn = torch.multinomial(ordered * kept, 1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1)

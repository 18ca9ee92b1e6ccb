"""What windows of DNA should be, a letter at a time."""

import numpy as np
import torch
from dna_cases import tokens_of

from ssmseq.dna.windows import SequenceWindows

BOS, MASK, PAD = 2, 3, 4  # numbers of tokens, as HyenaDNA and Caduceus have them
NAN = float("nan")


def letters(size: int, alphabet: str = "ACGT", seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(alphabet), size))


def everything(windows: SequenceWindows, epoch: int = 0):
    n = len(windows)
    return windows.__getitems__(range(epoch * n, epoch * n + n))


def expected(texts: list[str], length: int, weight: float = 1.0):
    """Tokens and targets of a causal model, a letter at a time."""
    tokens = torch.full((len(texts), length), PAD)
    targets = torch.full((len(texts), 2, length), NAN)
    for row, text in enumerate(texts):
        for place, letter in enumerate(text):
            if letter.upper() in "ACGT":
                targets[row, 0, place] = "ACGT".index(letter.upper())
                targets[row, 1, place] = weight if letter.islower() else 1
        tokens[row, : len(text) + 1] = torch.tensor([BOS, *tokens_of(text)])[:length]
    return tokens, targets


def equal(found, truth) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(found, truth, strict=True)
    )


def chunks(text: str, length: int, least: int = 1) -> list[str]:
    found = [text[start : start + length] for start in range(0, len(text), length)]
    return [chunk for chunk in found if len(chunk) >= least]

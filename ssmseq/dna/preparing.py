"""From what `DNALanguageModel.fit` is given to data sets of windows, and the loss on them."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq.base import check_choice, check_number
from ssmseq.dna.alphabet import VOCAB_SIZE
from ssmseq.dna.embedding import POOLINGS
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.inputs import is_path, read_strings
from ssmseq.dna.regions import hold_out, read_regions
from ssmseq.dna.windows import SequenceWindows

ARCHITECTURES = ("mamba", "mamba2", "hybrid")
REVERSE_COMPLEMENT = ("none", "augment", "average", "equivariant")
INTEGERS = ("d_model", "n_layers", "expand", "head_dim", "attention_period", "n_heads", "n_kv_heads", "length")
INTEGERS += ("chunk_length", "mask_spacing")
UNOBSERVED = -100  # an index that cross entropy leaves out


def check_parameters(e) -> None:
    """Raise ValueError naming the first parameter of a `DNALanguageModel` that cannot work."""
    check_choice("architecture", e.architecture, ARCHITECTURES)
    check_choice("reverse_complement", e.reverse_complement, REVERSE_COMPLEMENT)
    check_choice("pooling", e.pooling, POOLINGS)
    for name in INTEGERS:
        check_number(name, getattr(e, name), minimum=1, integer=True)
    for name in ("d_state", "d_conv"):
        if getattr(e, name) is not None:
            check_number(name, getattr(e, name), minimum=1, integer=True)
    if e.d_ff is not None:
        check_number("d_ff", e.d_ff, minimum=0, integer=True)
    check_number("attention_offset", e.attention_offset, minimum=0, maximum=e.attention_period - 1, integer=True)
    check_number("dropout", e.dropout, minimum=0, below=1)
    check_number("soft_mask_weight", e.soft_mask_weight, minimum=0)
    check_number("mask_fraction", e.mask_fraction, above=0, below=1)
    check_number("validation_fraction", e.validation_fraction, minimum=0, below=1)
    if e.gradient_clip is not None:
        check_number("gradient_clip", e.gradient_clip, above=0)
    if e.reverse_complement == "equivariant" and not e.bidirectional:
        raise ValueError(
            'reverse_complement="equivariant" reads both strands at once, where a causal model would see the base that '
            'it predicts: set bidirectional=True, or reverse_complement="average"'
        )
    if e.swap_strands and (e.reverse_complement != "equivariant" or e.architecture != "mamba" or e.dropout or e.d_ff):
        raise ValueError(
            "swap_strands=True is the published Caduceus-PS: it goes with architecture='mamba', bidirectional=True, "
            "reverse_complement='equivariant', and without dropout and d_ff"
        )
    if e.architecture == "hybrid" and e.n_layers <= e.attention_offset:
        raise ValueError(
            f"a hybrid of n_layers={e.n_layers} has no attention layer with attention_offset={e.attention_offset}: "
            "give more layers or a smaller offset"
        )


def prepare(
    estimator, X, y, regions, validation, seed: int
) -> tuple[SequenceWindows, SequenceWindows | None, np.ndarray]:
    """Return windows to train on, windows to validate with or None, and the sorted labels."""
    common = {"length": estimator.length, "masked": estimator.bidirectional}
    common |= {"mask_fraction": estimator.mask_fraction, "seed": seed}
    drawn = {
        "shift": True,
        "reverse_complement": estimator.reverse_complement in ("augment", "average"),
        "soft_mask_weight": estimator.soft_mask_weight,
        "lengths": estimator.length_schedule,
        "max_epochs": estimator.max_epochs,
    }
    if is_path(X):
        if y is not None:
            raise ValueError("y labels strings: read the sequences of the file, and give them as a list beside their y")
        fasta = Fasta(X)
        chosen = read_regions(regions, fasta)
        held_out = None
        if validation is not None or estimator.validation_fraction > 0:
            given = estimator.validation_fraction if validation is None else validation
            chosen, held_out = hold_out(chosen, fasta, given)
        train = SequenceWindows(fasta, chosen, **drawn, **common)
        valid = None if held_out is None else SequenceWindows(fasta, held_out, **common)
        return train, valid, np.array([])
    if regions is not None:
        raise ValueError("regions are of a FASTA file: cut the strings themselves, or give the path of a FASTA")
    strings = read_strings(X)
    classes, prompts = _read_labels(y, len(strings), estimator.bidirectional)
    (strings, prompts), held_out = _hold_out_strings(estimator, strings, prompts, validation, seed)
    train = SequenceWindows(strings, prompts=prompts, **drawn, **common)
    valid = None if held_out is None else SequenceWindows(held_out[0], prompts=held_out[1], **common)
    return train, valid, classes


def _read_labels(y, n: int, bidirectional: bool) -> tuple[np.ndarray, Any]:
    """Return the sorted labels, and the first token of each of n strings."""
    if y is None:
        return np.array([]), None
    if bidirectional:
        raise ValueError("y gives labels that a causal model reads first: leave it out, or set bidirectional=False")
    labels = np.asarray(y)
    if labels.shape != (n,):
        raise ValueError(f"y must hold one label for each of the {n} sequences, got shape {labels.shape}")
    classes, index = np.unique(labels, return_inverse=True)
    return classes, VOCAB_SIZE + index.ravel()


def _hold_out_strings(estimator, strings: list[str], prompts, validation, seed: int):
    """Split strings and prompts into a part to train on, and one to validate with or None; whole strings each."""
    if validation is not None:
        if prompts is not None:
            raise ValueError("validation strings have no labels: with y, set validation_fraction instead")
        return (strings, prompts), (read_strings(validation), None)
    if not estimator.validation_fraction:
        return (strings, prompts), None
    if len(strings) < 2:
        raise ValueError(
            f"validation_fraction={estimator.validation_fraction} holds out whole strings, and X has {len(strings)}: "
            "give validation= strings of their own, or set validation_fraction=0"
        )
    order = np.random.default_rng(seed).permutation(len(strings))
    # The least number of strings with the share of the bases that was asked for, but not all.
    bases = np.cumsum([len(strings[i]) for i in order])
    n = min(int(np.searchsorted(bases, estimator.validation_fraction * bases[-1])) + 1, len(strings) - 1)

    def part(rows) -> tuple[list[str], Any]:
        rows = np.sort(rows)
        return [strings[i] for i in rows], None if prompts is None else prompts[rows]

    return part(order[n:]), part(order[:n])


def bits_per_base(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the weighted mean of ``-log2 p`` over the bases observed.

    Parameters
    ----------
    scores : Tensor (B, L, 4)
    targets : Tensor (B, 2, L)
        Index of the base and its weight; NaN where there is none.
    """
    index, weight = targets.unbind(1)
    known = ~index.isnan()
    index = torch.where(known, index, UNOBSERVED).long()
    loss = F.cross_entropy(scores.flatten(0, 1), index.flatten(), reduction="none", ignore_index=UNOBSERVED)
    weight = torch.where(known, weight, 0).flatten().to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp_min(torch.finfo(loss.dtype).tiny) / math.log(2)

"""Variants of a small genome, and models with random weights to score them, for the tests."""

import numpy as np
import pandas as pd
from dna_networks import CAUSAL, KINDS, random_dna, small_network

from ssmseq import DNALanguageModel

RATIO, FORWARD, REVERSE = (f"log_likelihood_ratio{strand}" for strand in ("", "_forward", "_reverse"))
BOTH_WAYS = [kind for kind in KINDS if kind not in CAUSAL]
CLOSE = {"rtol": 0, "atol": 1e-5}
ONE = random_dna(70, 5) + "AAAAAAAA" + random_dna(60, 6).lower() + "NNN" + random_dna(61, 7)
CONTIGS = {"one": ONE, "two": random_dna(23, 8), "x": "ACGTTGCATA"}


def ready(kind: str, *, average: bool = False, **parameters) -> DNALanguageModel:
    """A model with random weights."""
    way = "equivariant" if KINDS[kind].get("equivariant") else "none"
    options = {"reverse_complement": "average" if average else way, "length": 30, "accelerator": "cpu", **parameters}
    model = DNALanguageModel(bidirectional=kind not in CAUSAL, **options)
    model.network_, model.classes_ = small_network(kind), np.array([])
    return model


def variant(contig: str, pos0: int, n_ref: int, alt: str) -> tuple[str, int, str, str]:
    ref = CONTIGS[contig][pos0 : pos0 + n_ref].upper()
    assert ref != alt
    return contig, pos0 + 1, ref, alt


def other(base: str) -> str:
    return {"A": "G", "C": "T", "G": "C", "T": "A"}[base.upper()]


SUBSTITUTIONS = [
    variant(c, i, 1, other(CONTIGS[c][i]))
    for c, i in [
        ("one", 0),
        ("one", 1),
        ("one", 14),
        ("one", 99),
        ("one", len(ONE) - 1),
        ("two", 11),
        ("x", 9),
        ("x", 0),
    ]
]
ADJACENT = [
    variant("one", 20, 3, "".join(map(other, ONE[20:23]))),
    variant("two", 21, 2, other(CONTIGS["two"][21]) + other(CONTIGS["two"][22])),
]


def written_left(whole: str, pos0: int, ref: str, alt: str) -> tuple[int, str, str]:
    """The shortest way of writing a variant, and of those the leftmost, found by trying all."""
    changed = whole[:pos0] + alt + whole[pos0 + len(ref) :]
    grown = len(changed) - len(whole)
    for n_ref in range(1, len(ref) + 2):
        for start in range(len(whole) - n_ref + 1):
            new = changed[start : start + n_ref + grown]
            if new and whole[:start] + new + whole[start + n_ref :] == changed:
                return start, whole[start : start + n_ref], new
    raise AssertionError("there is always the way it came")


def indel(contig: str, pos0: int, n_ref: int, alt: str) -> tuple[str, int, str, str]:
    whole = CONTIGS[contig].upper()
    place, ref, alt = written_left(whole, pos0, whole[pos0 : pos0 + n_ref], alt)
    return contig, place + 1, ref, alt


INDELS = [
    indel("one", 25, 1, ONE[25] + "GTC"),
    indel("one", 30, 5, ONE[30]),
    indel("one", 40, 4, ONE[40] + other(ONE[41])),
    indel("one", ONE.index("AAAAAAAA") + 2, 1, "AAAA"),
    indel("two", 21, 2, CONTIGS["two"][21]),
    indel("x", 0, 1, "GA"),
    indel("x", 3, 7, "T"),
]


def frame_of(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=pd.Index(["chrom", "pos", "ref", "alt"]))

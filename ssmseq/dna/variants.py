"""Scores of variants: how much more probable a language model finds the window with ALT than the window with REF.

A file of variants is read, scored and written block by block, so that its size does not matter.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from ssmseq.base import check_choice, check_number
from ssmseq.dna import likelihood
from ssmseq.dna.alleles import (
    Allele,
    Reason,
    VariantRecord,
    check_reference,
    equal_windows,
    fits_window,
    left_normalise,
)
from ssmseq.dna.alphabet import encode
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.network import DNANetwork
from ssmseq.dna.tracks import base_bar
from ssmseq.dna.vcf import InfoField, VariantReader, VCFWriter, allele_frame, write_alleles
from ssmseq.dna.window_scores import causal_scores, masked_scores

RATIO, L2, COSINE = "log_likelihood_ratio", "embedding_l2", "embedding_cosine"
STRAND_RATIOS = {"+": f"{RATIO}_forward", "-": f"{RATIO}_reverse"}
INFO_FIELDS = {
    RATIO: InfoField("SSMSEQ_LLR", "A", "Float", "Log-likelihood of the window with ALT less that with REF, in nats"),
    STRAND_RATIOS["+"]: InfoField("SSMSEQ_LLR_FWD", "A", "Float", "SSMSEQ_LLR of the forward strand"),
    STRAND_RATIOS["-"]: InfoField("SSMSEQ_LLR_REV", "A", "Float", "SSMSEQ_LLR of the reverse strand"),
    L2: InfoField("SSMSEQ_L2", "A", "Float", "Euclidean distance of the embeddings of the two windows"),
    COSINE: InfoField("SSMSEQ_COSINE", "A", "Float", "Cosine distance of the embeddings of the two windows"),
}
REASON_FIELD = InfoField("SSMSEQ_REASON", "A", "String", "ok, or why there is no score, or with what change")
TABLES, VCFS = (".tsv", ".tsv.gz", ".parquet", ".pq"), (".vcf", ".vcf.gz")
BATCHES_AT_ONCE = 32  # of records, so that the rarer beginnings too find others of their length


class Options(NamedTuple):
    """How variants are scored.

    Attributes
    ----------
    length : int
        Of the windows, in bases.
    strands : tuple of {"+", "-"}
    embeddings : bool
    batch_size : int
        Variants that the network reads at once.
    """

    length: int
    strands: tuple[str, ...]
    embeddings: bool
    batch_size: int

    @property
    def columns(self) -> list[str]:
        """Names of the values of an allele."""
        each = [STRAND_RATIOS[strand] for strand in self.strands] if len(self.strands) > 1 else []
        return [RATIO, *each, *([L2, COSINE] if self.embeddings else [])]


def score_variants(
    model, variants, fasta, *, length, strands, reference, embeddings, output, batch_size
) -> pd.DataFrame | pd.Series:
    """Do the work of `DNALanguageModel.score_variants`, which describes it."""
    length = model.length if length is None else length
    check_number("length", length, minimum=1, integer=True)
    check_choice("reference", reference, ("error", "warn", "flip", "skip"))
    if batch_size is None:
        batch_size = max(likelihood.TOKENS_AT_ONCE // (2 * min(length, model.chunk_length)), 1)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    options = Options(length, ("+", "-") if model._averages(strands) else ("+",), embeddings, batch_size)
    path = None if output is None else _output_path(output)
    reader, fasta = VariantReader(variants), fasta if isinstance(fasta, Fasta) else Fasta(fasta)
    scored = _scored_records(model, reader, fasta, reference, options)
    if path is None:
        return allele_frame(_rows(scored), columns=options.columns)
    if reader.path is not None and path.exists() and path.samefile(reader.path):
        raise ValueError(f"{path} is read while it would be written: choose another output")
    counts = Counter()
    partial = path.with_name(f".partial-{path.name}")  # a run that fails leaves nothing that looks complete
    try:
        _write(partial, reader, _counted(scored, counts), options)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return pd.Series(counts, dtype=np.int64, name="alleles").rename_axis("reason")


def _output_path(output) -> Path:
    path = Path(output).expanduser()
    if not path.name.endswith(TABLES + VCFS):
        raise ValueError(f"output={str(path)!r} names no known format: let it end in {', '.join(VCFS + TABLES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write output={str(path)!r} to: make it first")
    return path


def _write(path: Path, reader: VariantReader, scored, options: Options) -> None:
    if path.name.endswith(TABLES):
        write_alleles(path, _rows(scored), columns=options.columns)
        return
    fields = {column: INFO_FIELDS[column] for column in options.columns}
    with VCFWriter(path, reader, [*fields.values(), REASON_FIELD]) as writer:
        for record, alleles, values in scored:
            info: dict = {field.key: [one[column] for one in values] for column, field in fields.items()}
            writer.write(record, info | {REASON_FIELD.key: [str(allele.reason) for allele in alleles]})


Scored = tuple[VariantRecord, list[Allele], list[dict[str, float]]]


def _rows(scored: Iterator[Scored]) -> Iterator[tuple[Allele, dict[str, float]]]:
    for _, alleles, values in scored:
        yield from zip(alleles, values, strict=True)


def _counted(scored: Iterator[Scored], counts: Counter) -> Iterator[Scored]:
    for record, alleles, values in scored:
        counts.update(str(allele.reason) for allele in alleles)
        yield record, alleles, values


def _scored_records(model, reader: VariantReader, fasta: Fasta, reference, options: Options) -> Iterator[Scored]:
    """Yield each record, its alleles, and their values; NaN where there is no score."""
    records, shown = iter(reader), bool(model.verbose)
    with base_bar(reader.count() if shown else None, shown, unit="record") as bar:
        while block := list(islice(records, BATCHES_AT_ONCE * options.batch_size)):
            alleles = [[_placed(a, fasta, options.length) for a in check_reference(r, fasta, reference)] for r in block]
            chosen = [allele for own in alleles for allele in own if allele[0].reason.scored]
            values = iter(_values(model, fasta, [place for _, place in chosen], options))
            missing = dict.fromkeys(options.columns, np.nan)
            for record, own in zip(block, alleles, strict=True):
                found = [allele for allele, _ in own]
                yield record, found, [next(values) if allele.reason.scored else missing for allele in found]
                bar.update()


Place = tuple[str, int, str, str]  # contig, place from 0, REF, ALT


def _placed(allele: Allele, fasta: Fasta, length: int) -> tuple[Allele, Place]:
    """Return an allele, and the one way of writing it by which its windows are cut."""
    place = (allele.contig, allele.pos0, allele.ref, allele.alt)
    if not allele.reason.scored:
        return allele, place
    if allele.reason is not Reason.REF_MISMATCH_KEPT:  # of that, no letter can be left to the reference
        place = (allele.contig, *left_normalise(fasta, *place))
    if not fits_window(place[2], place[3], length):
        allele = dataclasses.replace(allele, reason=Reason.TOO_LONG)
    return allele, place


def _values(model, fasta: Fasta, places: list[Place], options: Options) -> list[dict[str, float]]:
    """Return the values of alleles by their columns."""
    if not places:
        return []
    device = model._device()
    network = model.network_.to(device)
    ratios, means = [], []
    with torch.inference_mode():
        for strand in options.strands:
            pairs, edits = _windows(fasta, places, options.length, strand)
            common = {"batch_size": options.batch_size, "with_means": options.embeddings, "device": device}
            if model.bidirectional:
                ratio, mean = masked_scores(network, pairs, edits, spacing=model.mask_spacing, **common)
            else:
                ratio, mean = causal_scores(network, pairs, edits[:, 0], chunk_length=model.chunk_length, **common)
            ratios.append(ratio)
            means.append(mean if len(options.strands) == 1 else _one_strand(network, mean))
    found = dict(zip((STRAND_RATIOS[strand] for strand in options.strands), ratios, strict=True))
    found[RATIO] = np.mean(ratios, axis=0)
    if options.embeddings:
        found[L2], found[COSINE] = _distances(np.mean(means, axis=0))
    return [{column: float(found[column][i]) for column in options.columns} for i in range(len(places))]


def _windows(fasta: Fasta, places: list[Place], length: int, strand) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens (n, 2, length) of the windows with REF and with ALT, and where they part.

    The latter is (n, 4): how many letters both begin with, the first letter of the alleles, and where REF and ALT end.
    """
    pairs, edits = np.empty((len(places), 2, length), np.uint8), np.empty((len(places), 4), np.int64)
    for i, (contig, pos0, ref, alt) in enumerate(places):
        windows = equal_windows(fasta, contig, pos0, ref, alt, length, strand)
        try:
            pairs[i] = encode(windows.ref), encode(windows.alt)
        except ValueError as error:
            raise ValueError(f"{fasta.path} around {contig}:{pos0 + 1}: {error}") from error
        first = windows.index if strand == "+" else windows.index + 1 - len(ref)
        edits[i] = windows.shared_prefix, first, first + len(ref), first + len(alt)
    return pairs, edits


def _one_strand(network: DNANetwork, means: np.ndarray | None) -> np.ndarray | None:
    """Average the two halves of the channels where each belongs to a strand."""
    d_model = network.core.embedding.embedding_dim
    if means is None or means.shape[-1] == d_model:
        return means
    return (means[..., :d_model] + means[..., : d_model - 1 : -1]) / 2


def _distances(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Euclidean and the cosine distance of embeddings (n, 2, D)."""
    ref, alt = means[:, 0], means[:, 1]
    norms = np.linalg.norm(means, axis=-1)
    with np.errstate(invalid="ignore"):
        return np.linalg.norm(alt - ref, axis=-1), 1 - (ref * alt).sum(-1) / norms.prod(-1)

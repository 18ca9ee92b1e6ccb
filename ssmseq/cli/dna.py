"""`ssmseq dna`: fit language models of DNA, score with them, embed, sample, and write genome-wide tracks."""

import argparse
import math
import sys
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssmseq.cli.contract import (
    OK,
    DataMissingError,
    Parser,
    UsageError,
    add_common_options,
    add_engine_options,
    check_engine,
    print_json,
    remark,
    spread,
)
from ssmseq.cli.tables import write_table

if TYPE_CHECKING:
    from ssmseq.dna import Fasta

ACTIONS = {
    "fit": "train a language model on a FASTA file and compare it with Markov models",
    "score": "write a table with the log-likelihood of each sequence",
    "variants": "score the variants of a VCF file",
    "embed": "write an embedding of each sequence, or of each bin of a genome",
    "sample": "draw new sequences, as FASTA on stdout",
    "tracks": "write likelihoods along a genome as bedGraph, wig or bigWig",
}
MODEL_HELP = "folder that `ssmseq dna fit --save` or estimator.save made"
FASTA_HELP = "FASTA file, plain or packed by bgzip or gzip"
ORDERS_HELP = "orders of the Markov models, such as 0-12 or 0,4,8; or none"
STRANDS_HELP = "read the sequence, or average over both strands (default: as the model was fitted)"
BASES_AT_ONCE = 1 << 18  # of sequences that are scored together
Part = tuple[str, int, int, str]  # contig, start, end, strand
LINE = 60  # letters of a line of FASTA


def run(argv: list[str]) -> int:
    """Run ``ssmseq dna``."""
    if argv and argv[0] in ACTIONS:
        from ssmseq.cli import dna_fit, dna_write

        actions = {"fit": dna_fit.run, "score": _score, "sample": _sample}
        actions |= {"variants": dna_write.variants, "embed": dna_write.embed, "tracks": dna_write.tracks}
        return actions[argv[0]](argv[1:])
    width = max(map(len, ACTIONS))
    actions = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in ACTIONS.items())
    parser = Parser(
        prog="ssmseq dna",
        usage="ssmseq dna ACTION [options]",
        description=f"Language models of DNA.\n\nactions:\n{actions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=ACTIONS, help="; ".join(f"{k}: {v}" for k, v in ACTIONS.items()))
    parser.parse_args(argv)
    raise AssertionError("a known action was dispatched above")


def load_model(folder: str):
    """Load a saved model; ValueError if it is no language model of DNA."""
    import ssmseq

    if not Path(folder).is_dir():
        raise DataMissingError(f"there is no folder {folder}: give {MODEL_HELP}")
    model = ssmseq.load(folder)
    if not isinstance(model, ssmseq.DNALanguageModel):
        raise ValueError(f"{folder} holds a {type(model).__name__}: give the folder of a DNALanguageModel")
    return model


def open_fasta(path: str) -> "Fasta":
    """Open a FASTA file; `DataMissingError` if there is none."""
    from ssmseq.dna import Fasta

    try:
        return Fasta(path)
    except FileNotFoundError as error:
        raise DataMissingError(str(error)) from error


def parse_orders(text: str, prog: str) -> list[int]:
    """Return the orders that an option names, sorted; `UsageError` if it is none of 0 to 12."""
    from ssmseq.dna.markov import MAX_ORDER

    if text == "none":
        return []
    try:
        ends = [[int(end) for end in word.split("-")] for word in text.split(",")]
        orders = sorted({order for end in ends for order in range(end[0], end[-1] + 1)})
    except ValueError:
        orders = []
    if not orders or orders[0] < 0 or orders[-1] > MAX_ORDER:
        raise UsageError(f"orders of Markov models are like 0-12 or 0,4,8, up to {MAX_ORDER}; got {text!r}", prog)
    return orders


def read_letters(fasta: "Fasta", contig: str, start: int, end: int) -> str:
    """Return letters as the models read them; an error about one names the file."""
    from ssmseq.dna.alphabet import decode

    return decode(fasta.tokens(contig, start, end))


def both_strands(model) -> bool:
    """Whether the Markov models beside a model count both strands: if the model was trained on both."""
    return model.reverse_complement != "none"


class Score(NamedTuple):
    """What a model says of one sequence."""

    bases: int  # A, C, G and T
    log_likelihood: float  # nats

    @property
    def bits_per_base(self) -> float | None:
        """``-log2 p`` of a base; None of a sequence without any."""
        return -self.log_likelihood / math.log(2) / self.bases if self.bases else None


def score_parts(model, fasta: "Fasta", parts: list[Part], strands, bar) -> Iterator[Score]:
    """Yield the score of each part; long ones are streamed, short ones scored together.

    A bidirectional model reads each part as a whole.
    """
    for long, members in grouped_parts(model, parts, strands):
        yield from _scores(model, (long, members), fasta, strands, bar.update)


def grouped_parts(model, parts: list[Part], strands) -> Iterator[tuple[bool, list[Part]]]:
    """Yield parts that are scored together, and whether they are so long that each is streamed."""
    averages, before = model._averages(strands), 0

    def group(part: Part) -> tuple[bool, int]:
        nonlocal before
        _, start, end, strand = part
        long = end - start > BASES_AT_ONCE and not model.bidirectional and (strand != "-" or averages)
        place, before = before // BASES_AT_ONCE, before + end - start
        return long, place

    for (long, _), members in groupby(parts, group):
        yield long, list(members)


def _scores(model, group: tuple[bool, list[Part]], fasta: "Fasta", strands, advance=lambda n: None) -> list[Score]:
    """Return the score of each part of a group of `grouped_parts`."""
    import numpy as np

    from ssmseq.dna.alphabet import reverse_complement
    from ssmseq.dna.streaming import stream_log_probabilities

    long, members = group
    scores = []
    if long:
        for contig, start, end, _ in members:
            total, n = 0.0, 0
            for _, values in stream_log_probabilities(model, fasta, contig, start, end, strands=strands):
                total, n = total + float(np.nansum(values)), n + int(np.count_nonzero(~np.isnan(values)))
                advance(len(values))
            scores.append(Score(n, total))
        return scores
    strings = []
    for contig, start, end, strand in members:
        letters = read_letters(fasta, contig, start, end)
        strings.append(reverse_complement(letters) if strand == "-" else letters)
    for values in model.log_likelihood(strings, per_base=True, strands=strands):
        scores.append(Score(int(np.count_nonzero(~np.isnan(values))), float(np.nansum(values))))
        advance(len(values))
    return scores


def _scores_on_ray(model, fasta: "Fasta", parts: list[Part], options, bar) -> list[Score]:
    groups = list(grouped_parts(model, parts, options.strands))
    function = partial(_scores, fasta=fasta, strands=options.strands)  # so that each worker opens the file once
    scores: list[Score] = []
    for (_, members), found in zip(groups, spread(function, model, groups, options), strict=True):
        scores += found
        bar.update(sum(end - start for _, start, end, _ in members))
    return scores


def total_of(scores: list[Score]) -> Score:
    """Return the score of several sequences as one."""
    return Score(sum(s.bases for s in scores), math.fsum(s.log_likelihood for s in scores))


def _score(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq dna score",
        description="Write one row for each sequence: name, length, bases (A, C, G and T), log_likelihood in nats, and "
        "bits_per_base; of a bidirectional model the pseudo-log-likelihood. With --train also the bits per base of "
        "Markov models that counted that file, markov_0 to markov_12. The figures of all sequences go to stderr.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("fasta", metavar="FASTA", help=FASTA_HELP)
    parser.add_argument("--train", metavar="FASTA", help="what the model was trained on, for Markov models to count")
    parser.add_argument("--markov", metavar="ORDERS", default="0-12", help=f"{ORDERS_HELP} (default: 0-12)")
    parser.add_argument("--strands", choices=("forward", "average"), help=STRANDS_HELP)
    parser.add_argument("--output", metavar="FILE", help=".csv or .parquet by its suffix; by default CSV on stdout")
    add_engine_options(parser, workers="one for each GPU, or else for each core")
    add_common_options(parser)
    options = parser.parse_args(argv)
    check_engine(options, parser.prog)
    orders = parse_orders(options.markov, parser.prog) if options.train is not None else []
    model, fasta = load_model(options.model), open_fasta(options.fasta)
    counted = None if options.train is None else open_fasta(options.train)

    from ssmseq.dna.tracks import base_bar

    parts = [(name, 0, size, "+") for name, size in fasta.contigs.items()]
    with base_bar(sum(fasta.contigs.values()), not options.quiet) as bar:
        if options.engine == "ray":
            scores = _scores_on_ray(model, fasta, parts, options, bar)
        else:
            scores = list(score_parts(model, fasta, parts, options.strands, bar))
    rows = [
        {
            "name": name,
            "length": end,
            "bases": s.bases,
            "log_likelihood": s.log_likelihood,
            "bits_per_base": s.bits_per_base,
        }
        for (name, _, end, _), s in zip(parts, scores, strict=True)
    ]
    total = total_of(scores)
    totals: dict[str, Any] = {"bases": total.bases, "log_likelihood": total.log_likelihood}
    totals["bits_per_base"] = total.bits_per_base
    for order, found in _markov_scores(model, counted, fasta, orders, options.quiet):
        for row, s in zip(rows, found, strict=True):
            row[f"markov_{order}"] = s.bits_per_base
        totals[f"markov_{order}"] = total_of(found).bits_per_base
    _write_scores(rows, totals, options)
    return OK


def _markov_scores(model, counted, fasta: "Fasta", orders: list[int], quiet: bool) -> Iterator[tuple[int, list[Score]]]:
    """Yield each order and what its Markov model says of each sequence."""
    import numpy as np

    from ssmseq.dna import MarkovBaseline

    for order in orders:
        remark(f"Markov model of order {order} ...", quiet=quiet)
        markov = MarkovBaseline(order=order, both_strands=both_strands(model)).fit(str(counted.path))
        values = (markov.log_likelihood(fasta.tokens(c, 0, n), per_base=True)[0] for c, n in fasta.contigs.items())
        yield order, [Score(int(np.count_nonzero(~np.isnan(v))), float(np.nansum(v))) for v in values]


def _write_scores(rows: list[dict], totals: dict[str, Any], options) -> None:
    import pandas as pd

    table = pd.DataFrame(rows)
    if options.output is not None:
        write_table(table, options.output)
    if options.json:
        print_json({"model": options.model, "total": totals, "scores": None if options.output else rows})
    elif options.output is None:
        write_table(table, None)
    bits = {"model": totals["bits_per_base"]} | {k: v for k, v in totals.items() if k.startswith("markov_")}
    said = ", ".join(f"{name} {value:.4f}" for name, value in bits.items() if value is not None)
    remark(f"bits per base of all {totals['bases']:,} bases: {said or 'none'}", quiet=options.quiet)


def _sample(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq dna sample",
        description="Draw new sequences from a causal model and print them as FASTA. The prompt is not part of them.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("-n", metavar="N", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument("--length", metavar="BASES", type=int, default=1000, help="of each (default: 1000)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="below 1 sharpens the distribution, 0 takes the likeliest base"
    )
    parser.add_argument("--top_k", metavar="K", type=int, help="draw among the K likeliest bases")
    parser.add_argument("--top_p", metavar="P", type=float, help="draw among the likeliest bases that sum to P")
    parser.add_argument("--prompt", metavar="BASES", default="", help="bases that the sequences continue")
    parser.add_argument("--label", help="one of the labels that the model was fitted with")
    parser.add_argument("--seed", type=int, help="repeats a run")
    add_common_options(parser)
    options = parser.parse_args(argv)
    model = load_model(options.model)
    label = None
    if options.label is not None:
        known = {str(label): label for label in model.classes_.tolist()}
        if options.label not in known:
            given = ", ".join(known) or "none: it was fitted without labels"
            raise ValueError(f"--label {options.label} is no label of {options.model}; it has {given}")
        label = known[options.label]
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "prompt")}
    sequences = model.sample(options.n, options.length, **sampling, label=label, random_state=options.seed)
    if options.json:
        print_json({"model": options.model, "label": options.label, **sampling, "sequences": sequences})
        return OK
    about = "" if label is None else f" label={options.label}"
    for i, letters in enumerate(sequences, 1):
        lines = [letters[start : start + LINE] for start in range(0, len(letters), LINE)]
        sys.stdout.write("\n".join([f">sample_{i}{about}", *lines]) + "\n")
    return OK

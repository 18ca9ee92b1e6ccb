"""`ssmseq dna variants`, `embed` and `tracks`: what a model says of a genome, in files."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
from ssmseq.cli.dna import BASES_AT_ONCE, FASTA_HELP, MODEL_HELP, STRANDS_HELP, load_model, open_fasta, read_letters

POOLINGS = ("mean", "last", "class", "echo")


def variants(argv: list[str]) -> int:
    """Run ``ssmseq dna variants``."""
    parser = Parser(
        prog="ssmseq dna variants",
        description="Score the variants of a VCF file by the log-likelihood of a window with ALT less that with REF, "
        "and print how many alleles were scored or left out, and why.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("vcf", metavar="VCF", help="VCF file, also packed")
    parser.add_argument("fasta", metavar="FASTA", help=f"{FASTA_HELP}: the genome that VCF is about")
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="VCF with the scores (.vcf, .vcf.gz), or a table (.tsv, .parquet)",
    )
    parser.add_argument(
        "--reference",
        choices=("error", "warn", "flip", "skip"),
        default="error",
        help="what to do where REF is not what the genome has (default: error)",
    )
    parser.add_argument("--length", metavar="BASES", type=int, help="of the window (default: that of the training)")
    parser.add_argument("--strands", choices=("forward", "average"), help=STRANDS_HELP)
    parser.add_argument("--embeddings", action="store_true", help="add distances of the windows' embeddings")
    add_common_options(parser)
    options = parser.parse_args(argv)
    if not Path(options.vcf).is_file():
        raise DataMissingError(f"there is no VCF file {options.vcf}: check the path")
    model, fasta = load_model(options.model), open_fasta(options.fasta)
    model.set_params(verbose=0 if options.quiet else 1)
    started = time.perf_counter()
    counts: Any = model.score_variants(
        options.vcf,
        fasta,
        length=options.length,
        strands=options.strands,
        reference=options.reference,
        embeddings=options.embeddings,
        output=options.output,
    )
    seconds = time.perf_counter() - started
    found = {str(reason): int(n) for reason, n in counts.items()}
    n = sum(found.values())
    if options.json:
        print_json({"model": options.model, "output": options.output, "alleles": found, "seconds": round(seconds, 3)})
    else:
        for reason, count in found.items():
            print(f"{reason:<24} {count:>10}")
    remark(
        f"{n} alleles in {seconds:.1f} s, {n / max(seconds, 1e-9):.1f} per second: {options.output}",
        quiet=options.quiet,
    )
    return OK


def embed(argv: list[str]) -> int:
    """Run ``ssmseq dna embed``."""
    parser = Parser(
        prog="ssmseq dna embed",
        description="Write one embedding for each sequence, or with --bin_length for each bin of each sequence, in "
        "memory that does not grow with it. Of .npy, a BED file beside it (FILE.npy.bed) says what the rows are.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("fasta", metavar="FASTA", help=FASTA_HELP)
    parser.add_argument("--output", metavar="FILE", required=True, help=".npy, .csv or .parquet by its suffix")
    parser.add_argument("--bin_length", metavar="BASES", type=int, help="embed bins of so many letters")
    parser.add_argument("--pooling", choices=POOLINGS, help="of a whole sequence (default: the model's)")
    parser.add_argument("--contigs", metavar="NAME", nargs="+", help="only these sequences")
    parser.add_argument("--strands", choices=("forward", "average"), help=STRANDS_HELP)
    add_engine_options(parser, workers="one for each GPU, or else for each core")
    add_common_options(parser)
    options = parser.parse_args(argv)
    check_engine(options, parser.prog)
    if options.bin_length is not None and options.engine == "ray":
        raise UsageError("--engine ray shares whole sequences out: leave --bin_length or --engine out", parser.prog)
    if options.bin_length is not None and options.pooling not in (None, "mean"):
        raise UsageError("--bin_length takes the mean over each bin: leave --pooling out", parser.prog)
    if Path(options.output).suffix not in (".npy", ".csv", ".parquet"):
        raise UsageError(f"--output must end in .npy, .csv or .parquet, got {options.output}", parser.prog)
    model, fasta = load_model(options.model), open_fasta(options.fasta)
    if options.bin_length is None:
        n = _embed_sequences(model, fasta, options)
    else:
        from ssmseq.dna.tracks import write_embeddings

        shared = {"contigs": options.contigs, "strands": options.strands, "progress": not options.quiet}
        n = write_embeddings(model, fasta, options.output, bin_length=options.bin_length, **shared)
    if options.json:
        print_json({"model": options.model, "rows": n, "output": options.output})
    remark(f"{n} embeddings: {options.output}", quiet=options.quiet)
    return OK


def _embed_sequences(model, fasta, options) -> int:
    from ssmseq.dna.tracks import base_bar, chosen_sizes, write_rows

    sizes = chosen_sizes(fasta, options.contigs)
    groups: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if groups[-1] and sum(groups[-1].values()) + size > BASES_AT_ONCE:
            groups.append({})
        groups[-1][name] = size
    function = partial(_embeddings, fasta=fasta, pooling=options.pooling, strands=options.strands)
    found = []
    with base_bar(sum(sizes.values()), not options.quiet) as bar:
        for group, rows in zip(groups, spread(function, model, groups, options), strict=True):
            found.append(rows)
            bar.update(sum(group.values()))
    rows = np.concatenate(found)
    write_rows(model, options.output, sizes, rows)
    return len(rows)


def _embeddings(model, sizes: dict[str, int], fasta, pooling: str | None, strands: str | None) -> np.ndarray:
    """Return the embeddings of some sequences, by their names and lengths."""
    strings = [read_letters(fasta, name, 0, size) for name, size in sizes.items()]
    return model.embed(strings, pooling=pooling, strands=strands)


def tracks(argv: list[str]) -> int:
    """Run ``ssmseq dna tracks``."""
    parser = Parser(
        prog="ssmseq dna tracks",
        description="Write what a causal model says of each base of a genome, in memory that does not grow with it. "
        "With both strands averaged, 8 bytes per base of the longest contig go to a temporary file.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("fasta", metavar="FASTA", help=FASTA_HELP)
    parser.add_argument(
        "--output", metavar="FILE", required=True, help=".bedGraph, .bg, .wig (also with .gz), .bw or .bigWig"
    )
    parser.add_argument(
        "--kind",
        choices=("log_likelihood", "bits", "entropy"),
        default="log_likelihood",
        help="log-probability of the base in nats, the same as -log2 p, or the entropy of the distribution in bits "
        "(default: log_likelihood)",
    )
    parser.add_argument(
        "--resolution", metavar="BASES", type=int, default=1, help="means of so many bases (default: 1)"
    )
    parser.add_argument("--contigs", metavar="NAME", nargs="+", help="only these sequences")
    parser.add_argument("--strands", choices=("forward", "average"), help=STRANDS_HELP)
    add_common_options(parser)
    options = parser.parse_args(argv)
    model, fasta = load_model(options.model), open_fasta(options.fasta)

    from ssmseq.dna.tracks import write_track

    chosen: dict[str, Any] = {"contigs": options.contigs, "strands": options.strands}
    chosen |= {"kind": options.kind, "resolution": options.resolution}
    started = time.perf_counter()
    n = write_track(model, fasta, options.output, **chosen, progress=not options.quiet)
    seconds = time.perf_counter() - started
    if options.json:
        about = {"kind": options.kind, "resolution": options.resolution, "output": options.output}
        print_json({"model": options.model, **about, "intervals": n, "seconds": round(seconds, 3)})
    remark(f"{n} intervals in {seconds:.1f} s: {options.output}", quiet=options.quiet)
    return OK

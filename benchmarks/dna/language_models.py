"""Bits per base of small language models on held-out DNA, beside Markov models that counted the same training bases.

    python benchmarks/dna/language_models.py                                      # all four, 1.5 hours on two cores
    python benchmarks/dna/language_models.py --experiments ecoli --threads 2
    python benchmarks/dna/language_models.py --bases 20000 --max-epochs 1 --out tried.jsonl     # does it run at all?

"source" is a random Markov chain of order 3, whose entropy nothing can go below. "ecoli" holds out the last tenth of
E. coli K-12, and "ecoli-long" trains a larger model on the same. "human" holds out the last fifth of the bases of the
first megabase of chromosome 1. The held-out part is scored once, with the weights that the training ended with, or in
"human" those of the epoch that was best on the last tenth of the training part. It is read from its first base on, with
the state carried through it and nothing known of what lies before.

A row per experiment goes to benchmarks/results/dna_language.jsonl. Experiments that have one are passed over, and one
that --max-minutes or an interrupt cut short goes on with the epoch that it was in.
"""

import argparse
import gzip
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from running import OutOfTime, Rows, add_options, checkpoint, data_file, finish, fit

from ssmseq import DNALanguageModel
from ssmseq.datasets import make_markov_sequence
from ssmseq.dna import Fasta
from ssmseq.dna.alphabet import A, T
from ssmseq.dna.markov import markov_table
from ssmseq.dna.tracks import stream_log_probabilities

SMALL = {"d_model": 64, "n_layers": 3, "length": 1024, "batch_size": 16}
LARGE = {"d_model": 128, "n_layers": 4, "length": 1024, "batch_size": 16}
SOURCE = {"d_model": 32, "n_layers": 2, "length": 256, "batch_size": 32, "reverse_complement": "none"}
EXPERIMENTS = {  # share held out, changes of the estimator's defaults, bits per base to get below
    "source": (0.2, {**SOURCE, "max_epochs": 4, "validation_fraction": 0.0}, None),
    "human": (0.2, {**SMALL, "max_epochs": 10, "dropout": 0.1}, 1.90),
    "ecoli": (0.1, {**SMALL, "max_epochs": 15, "validation_fraction": 0.0}, 1.9328),
    "ecoli-long": (0.1, {**LARGE, "max_epochs": 20, "validation_fraction": 0.0}, 1.925),
}
FILES = {"human": ("small", "hg38_1m.fa.gz"), "ecoli": ("ecoli", "GCF_000005845.2_ASM584v2_genomic.fna.gz")}
SOURCE_BASES, SOURCE_EXCESS = 1_000_000, 0.01


def read(name: str, options, folder: Path) -> tuple[Path, str, int, float | None]:
    """Return a FASTA, its contig, how much of it is used, and the entropy of its source if that is known."""
    entropy = None
    if name == "source":
        path = folder / "source.fa"
        letters, entropy = make_markov_sequence(3, options.bases or SOURCE_BASES, random_state=0)
        path.write_text(f">source\n{letters}\n")
    else:
        packed = data_file(options, *FILES[name.removesuffix("-long")])
        path = folder / f"{name}.fa"
        with gzip.open(packed) as file:
            path.write_bytes(file.read())  # no package is needed for a file by bgzip, and no cache for one by gzip
    (contig,) = Fasta(path).contigs
    size = Fasta(path).contigs[contig]
    if options.bases is None or options.bases >= size:
        return path, contig, size, entropy
    letters = Fasta(path).fetch(contig, size - options.bases, size)  # chromosomes begin with N
    path = folder / "part.fa"
    path.write_text(f">{contig}\n{letters}\n")
    return path, contig, options.bases, entropy


def run(name: str, key: dict, options, folder: Path) -> dict:
    """Return what the row of an experiment says."""
    path, contig, size, entropy = read(name, options, folder)
    tokens = Fasta(path).tokens(contig, 0, size)
    bases = np.cumsum((tokens >= A) & (tokens <= T))
    border = int(np.searchsorted(bases, round((1 - key["held_out"]) * bases[-1]))) + 1
    bed = folder / "train.bed"
    bed.write_text(f"{contig}\t0\t{border}\n")
    model = DNALanguageModel(**key["settings"], random_state=key["seed"])
    facts = fit(model, key, options, str(path), regions=str(bed))
    started, total, n = time.perf_counter(), 0.0, 0
    for _, values in stream_log_probabilities(model, path, contig, border, size):
        total, n = total + float(np.nansum(values)), n + int(np.count_nonzero(~np.isnan(values)))
    seconds = time.perf_counter() - started
    both = model.reverse_complement != "none"
    table = markov_table([tokens[:border]], [tokens[border:]], both_strands=both)
    return {
        "bits_per_base": round(-total / n / np.log(2), 5),
        "entropy": None if entropy is None else round(entropy, 5),
        "target": round(entropy + SOURCE_EXCESS, 5) if entropy is not None else EXPERIMENTS[name][2],
        "markov_on_both_strands": both,
        "markov": {
            int(order): round(bits, 5) for order, bits in zip(table["order"], table["bits_per_base"], strict=True)
        },
        "bases": [int(bases[border - 1]), n],
        "scored_bases_per_second": round(n / seconds),
        **facts,
    }


def show(row: dict) -> None:
    """Print one row."""
    bits, target = row["bits_per_base"], row["target"]
    best = min(row["markov"], key=row["markov"].get)
    verdict = "below" if bits < target else "NOT below"
    print(f"{row['key']['experiment']}: {bits:.4f} bits per base, {verdict} the target {target:.4f}")
    print(f"  Markov order 6 {row['markov']['6']:.4f}, best order {best} {row['markov'][best]:.4f}")
    speed = f"{row['tokens']:,} tokens in {row['seconds']:.0f} s, {row['tokens_per_second']:,} per second"
    print(f"  {row['parameters']:,} parameters, {speed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, help="in place of the experiment's")
    parser.add_argument("--bases", type=int, help="use only so many of the last bases, to try the script")
    add_options(parser, "dna_language.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = Rows(options.out)
    for name in options.experiments:
        held_out, settings, _ = EXPERIMENTS[name]
        settings = settings if options.max_epochs is None else {**settings, "max_epochs": options.max_epochs}
        key = {"experiment": name, "settings": settings, "held_out": held_out, "seed": options.seed}
        key |= {"bases": options.bases}
        if (row := rows.find(key)) is None:
            print(f"{name}: {settings}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    row = rows.add(key, run(name, key, options, Path(folder)))
                except OutOfTime:
                    print(f"{name}: cut short; call again to go on (state in {checkpoint(key, options)})")
                    return
            finish(key, options)
        show(row)


if __name__ == "__main__":
    main()

"""What attention adds: a block of random bases, and then the same block again, or its reverse complement.

    python benchmarks/dna/repeat_copying.py --plot repeats.png                  # all four models, 20 minutes
    python benchmarks/dna/repeat_copying.py --blocks 4 8 --rows 64 --out tried.jsonl        # does it run at all?

The first half has 2 bits per base, and nothing can predict it. The second half has none, for a model that remembers the
block and finds its place in it. "mamba2" must hold the block in its state; "hybrid" has attention in the second of its
four layers, and is the same else. Both see short blocks first: one pass over fresh sequences for each block length, on
from the weights of the last one. Measured on fresh sequences of the longest block.

A row per model and kind of repeat goes to benchmarks/results/dna_repeats.jsonl; what has one is passed over.
"""

import argparse

import numpy as np
import torch
from running import RESULTS, OutOfTime, Rows, add_options, finish, fit

from ssmseq import DNALanguageModel
from ssmseq.dna.alphabet import reverse_complement

SIZES = {"d_model": 64, "n_layers": 4, "d_state": 32, "head_dim": 32, "d_ff": 0, "n_heads": 4, "n_kv_heads": 4}
MODELS = {
    "mamba2": {"architecture": "mamba2"},
    "hybrid": {"architecture": "hybrid", "attention_period": 4, "attention_offset": 1},
}
KINDS = ("direct", "inverted")
N_TEST = 500


def sequences(kind: str, block: int, n: int, rng: np.random.Generator) -> list[str]:
    """Draw blocks and repeat each."""
    rows = np.frombuffer(b"ACGT", np.uint8)[rng.integers(4, size=(n, block))]
    blocks = [row.tobytes().decode() for row in rows]
    return [b + (b if kind == "direct" else reverse_complement(b)) for b in blocks]


def run(key: dict, options) -> dict:
    """Return what the row of a model says."""
    rng = np.random.default_rng(key["seed"])
    model = DNALanguageModel(
        **SIZES,
        **MODELS[key["model"]],
        reverse_complement="none",
        validation_fraction=0.0,
        max_epochs=1,
        batch_size=32,
        learning_rate=2e-3,  # attention does not bear Mamba's 8e-3
        random_state=key["seed"],
        warm_start=True,
    )
    facts = []
    for block in key["blocks"]:
        model.set_params(length=2 * block)
        facts.append(fit(model, {**key, "stage": block}, options, sequences(key["kind"], block, key["rows"], rng)))
    for block in key["blocks"]:  # kept until now: a call that is cut short passes over the stages that are done
        finish({**key, "stage": block}, options)
    test = sequences(key["kind"], key["blocks"][-1], N_TEST, np.random.default_rng(key["seed"] + 1_000_000))
    bits = -np.stack(model.log_likelihood(test, per_base=True)).mean(0) / np.log(2)
    half = len(bits) // 2
    return {
        "bits_of_first_half": round(float(bits[:half].mean()), 4),
        "bits_of_second_half": round(float(bits[half:].mean()), 4),
        "bits_of_last_quarter": round(float(bits[half + half // 2 :].mean()), 4),
        "bits_by_position": [round(float(b), 4) for b in bits],
        "seconds": round(sum(f["seconds"] for f in facts), 1),
        "tokens": sum(f["tokens"] for f in facts),
        "parameters": facts[-1]["parameters"],
    }


def plot(rows: list[dict], path) -> None:
    """Draw the bits of each position."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        for row in (row for row in rows if row["key"]["kind"] == kind):
            axis.plot(row["bits_by_position"], label=f"{row['key']['model']}, {row['parameters']:,} parameters")
            axis.axvline(len(row["bits_by_position"]) / 2, color="grey", linewidth=0.8)
        axis.set(title=f"{kind} repeat", xlabel="position (bases)", ylim=(0, 2.3))
        axis.axhline(2, color="grey", linewidth=0.8, linestyle=":")
        axis.legend(frameon=False, loc="center right", fontsize=8, handlelength=1)
    axes[0].set_ylabel("bits per base")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--blocks", nargs="+", type=int, default=[8, 16, 32, 64], help="lengths, one after another")
    parser.add_argument("--rows", type=int, default=60_000, help="sequences of each length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help=f"write a figure of the rows here, such as {RESULTS.name}/dna_repeats.png")
    add_options(parser, "dna_repeats.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, shown = Rows(options.out), []
    for kind in options.kinds:
        for name in options.models:
            key = {"kind": kind, "model": name, "blocks": options.blocks, "rows": options.rows, "seed": options.seed}
            if (row := rows.find(key)) is None:
                print(f"{kind}, {name}: blocks of {options.blocks} bases", flush=True)
                try:
                    row = rows.add(key, run(key, options))
                except OutOfTime:
                    print(f"{kind}, {name}: cut short; call again to go on")
                    return
            shown.append(row)
            halves = (row["bits_of_first_half"], row["bits_of_second_half"], row["bits_of_last_quarter"])
            print(f"{kind}, {name}: first half {halves[0]}, second {halves[1]}, last quarter {halves[2]} bits per base")
    if options.plot:
        plot(shown, options.plot)


if __name__ == "__main__":
    main()

"""Time and memory by the length of a sequence: forward at once, forward in chunks with state, and a training step.

    python benchmarks/dna/long_context.py --plot long.png                       # 2^12 to 2^17 bases, some minutes
    python benchmarks/dna/long_context.py --lengths 1024 2048 --out tried.jsonl      # does it run at all?

Each measurement has a process of its own, so that its peak of memory is its own: the maximum resident size, and the
same less what was there before the first step. Time is the process's CPU time of one step, the median of --repeats
after an untimed one. The fitted slope is that of log2(seconds) over log2(bases): 1 is linear, 2 quadratic.

A row per measurement goes to benchmarks/results/dna_long_context.jsonl; what has one is passed over.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from running import Rows, add_options

from ssmseq import DNALanguageModel
from ssmseq.dna.alphabet import BOS, A
from ssmseq.dna.preparing import bits_per_base

ARCHITECTURES = {"mamba": {}, "mamba2": {}, "hybrid": {"attention_period": 3, "attention_offset": 1}}
WORK = ("forward", "chunks", "training")
CHUNK = 8192
MEMORY = 1 << 20  # of Linux' KiB in a GiB


def child(key: dict) -> None:
    """Measure one thing and print it."""
    torch.set_num_threads(key["threads"])
    torch.manual_seed(0)
    sizes = {"d_model": key["d_model"], "n_layers": key["n_layers"]}
    model = DNALanguageModel(architecture=key["architecture"], **ARCHITECTURES[key["architecture"]], **sizes)
    network = model._build_network(0)
    tokens = torch.randint(A, A + 4, (1, key["bases"] + 1))
    tokens[0, 0] = BOS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = {"forward": forward, "chunks": chunks, "training": training}[key["work"]](network, tokens)
    seconds = []
    for _ in range(key["repeats"] + 1):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "seconds": statistics.median(seconds[1:]),
        "peak_gib": peak / MEMORY,
        "added_gib": (peak - before) / MEMORY,
    }
    print(json.dumps(found))


def forward(network, tokens):
    def step():
        with torch.inference_mode():
            network(tokens[:, :-1])

    return step


def chunks(network, tokens):
    def step():
        caches = network.empty_caches()
        with torch.inference_mode():
            for start in range(0, tokens.shape[1] - 1, CHUNK):
                network(tokens[:, start : min(start + CHUNK, tokens.shape[1] - 1)], caches)

    return step


def training(network, tokens):
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    index = (tokens[:, 1:] - A).float()
    targets = torch.stack([index, torch.ones_like(index)], 1)

    def step():
        optimizer.zero_grad(set_to_none=True)
        bits_per_base(network(tokens[:, :-1]), targets).backward()
        optimizer.step()

    return step


def slope(rows: list[dict], what: str) -> float | None:
    """Return the slope of a line through the logarithms, of three lengths at least."""
    points = [(row["key"]["bases"], row[what]) for row in rows if row[what] > 0]
    return float(np.polyfit(*np.log2(np.array(points).T), 1)[0]) if len(points) > 2 else None


def plot(groups: dict[tuple[str, str], list[dict]], path) -> None:
    """Draw time and memory over the length."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (what, label) in zip(
        axes, (("seconds", "CPU seconds"), ("added_gib", "added memory (GiB)")), strict=True
    ):
        for (architecture, work), rows in groups.items():
            fitted = slope(rows, what)
            name = f"{architecture}, {work}" + ("" if fitted is None else f" (slope {fitted:.2f})")
            axis.plot([row["key"]["bases"] for row in rows], [row[what] for row in rows], "o-", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set(xlabel="bases", ylabel=label)
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["mamba", "hybrid"])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--lengths", nargs="+", type=int, default=[1 << n for n in range(12, 18)], help="in bases")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--n-layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", help="write a figure of the rows here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_options(parser, "dna_long_context.jsonl")
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    rows, groups = Rows(options.out), {}
    torch.set_num_threads(options.threads)
    sizes = {"d_model": options.d_model, "n_layers": options.n_layers, "threads": options.threads}
    for architecture in options.architectures:
        for work in options.work:
            for bases in options.lengths:
                key = {"architecture": architecture, "work": work, "bases": bases, "repeats": options.repeats, **sizes}
                if (row := rows.find(key)) is None:
                    command = [sys.executable, __file__, "--child", json.dumps(key)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:  # such as no memory left
                        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
                        print(f"{architecture} {work} {bases}: exit code {done.returncode}, {reason}", flush=True)
                        continue
                    row = rows.add(key, json.loads(done.stdout))
                groups.setdefault((architecture, work), []).append(row)
                figures = f"{row['seconds']:9.3f} s  {row['added_gib']:7.3f} GiB added"
                print(f"{architecture:<7} {work:<9} {bases:>7}  {figures}", flush=True)
    for (architecture, work), found in groups.items():
        fits = {what: slope(found, what) for what in ("seconds", "added_gib")}
        said = ", ".join(f"{what} {value:.2f}" for what, value in fits.items() if value is not None)
        print(f"{architecture}, {work}: fitted slopes {said or 'need three lengths'}")
    if options.plot:
        plot(groups, options.plot)


if __name__ == "__main__":
    main()

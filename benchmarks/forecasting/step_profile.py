"""Where an S-Mamba training step on ETTh1 spends its time: the scan, the matrix products, and the rest.

    python benchmarks/forecasting/step_profile.py

Two views, both on one thread by default. In turn in one process, A B C A B C: the step as it is; with the scan replaced
by one elementwise expression of its inputs (the difference is what any faster scan could still gain); with every matrix
product left to torch, with and without the scan; with the convolution by torch; and under bfloat16 autocast. And
torch's profiler, by kind of operator. One row per width is appended to benchmarks/results/step_profile.jsonl.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import ssmseq
import ssmseq.nn.bidirectional as bidirectional
import ssmseq.nn.linear as linear
import ssmseq.nn.mamba as mamba
from ssmseq.forecasting.smamba import SMambaNetwork
from ssmseq.forecasting.tokens import InputSizes
from ssmseq_kernels import available_backends
from ssmseq_kernels.reference import causal_conv1d_reference

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "step_profile.jsonl"
KINDS = {
    "scan": ("selective_scan",),
    "convolution": ("causal_conv1d",),
    "matrix products": ("mkldnn::", "aten::mm", "aten::addmm", "aten::bmm"),
    "optimiser": ("aten::_fused_adam",),
    "dropout": ("aten::bernoulli", "aten::native_dropout"),
    "normalisation": ("aten::native_layer_norm",),
}


AUTOCAST = False


def elementwise_instead_of_scan(*directions):
    """Touch every input once, at the cost of elementwise products."""
    return tuple(
        (u * D + (delta + delta_bias)) * z + (B.sum(-1, keepdim=True) + C.sum(-1, keepdim=True) + A.sum())
        for u, delta, A, B, C, D, z, delta_bias in directions
    )


def make_step(d_model: int, d_state: int):
    torch.manual_seed(0)
    sizes = {"d_model": d_model, "d_ff": d_model, "d_state": d_state, "d_conv": 2, "expand": 1, "n_layers": 2}
    network = SMambaNetwork(
        InputSizes(n_variates=7, lookback=96, horizon=96, n_past=4),
        dropout=0.1,
        activation="gelu",
        normalize=True,
        **sizes,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    inputs, targets = torch.randn(32, 11, 96), torch.randn(32, 7, 96)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST):
            outputs = network(inputs)
        F.mse_loss(outputs.float(), targets).backward()
        optimizer.step()

    return step


def seconds(step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def convolution_by_torch(x, weight, bias, *, activation, reverse):
    """Shifted products and SiLU, each a torch operator: what the block ran before it had a kernel."""
    return causal_conv1d_reference(x, weight[:, 0], bias, silu=activation == "silu", reverse=reverse)


SCAN_REMOVED = (bidirectional, "bidirectional_selective_scan", elementwise_instead_of_scan)
TORCHS_PRODUCTS = (linear, "ONEDNN", False)
VARIANTS = {
    "step": [],
    "scan removed": [SCAN_REMOVED],
    "torch's products": [TORCHS_PRODUCTS],
    "torch's products, scan removed": [TORCHS_PRODUCTS, SCAN_REMOVED],
    "bfloat16 autocast": [(sys.modules[__name__], "AUTOCAST", True)],
    "torch's convolution": [(mamba, "causal_conv1d", convolution_by_torch)],
}


def side_by_side(step, repeats: int) -> dict[str, float]:
    """Median process CPU seconds of the step in each variant, taken in turn."""
    times = {name: [] for name in VARIANTS}
    for _ in range(repeats + 5):
        for name, changes in VARIANTS.items():
            before = [(module, attribute, getattr(module, attribute)) for module, attribute, _ in changes]
            for module, attribute, value in changes:
                setattr(module, attribute, value)
            times[name].append(seconds(step))
            for module, attribute, value in before:
                setattr(module, attribute, value)
    return {name: statistics.median(t[5:]) for name, t in times.items()}


def shares(step, repeats: int) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            step()
    found = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiled.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "other")
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {k: round(v / total, 4) for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    heads = ["d_model, d_state", *VARIANTS, *KINDS, "other"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for d_model, d_state in ((256, 2), (256, 16), (512, 2), (512, 16)):
        step = make_step(d_model, d_state)
        medians, part = side_by_side(step, args.repeats), shares(step, args.repeats)
        row = {
            "d_model": d_model,
            "d_state": d_state,
            "milliseconds": {name: round(1e3 * v, 2) for name, v in medians.items()},
            "shares": part,
            "threads": args.threads,
            "backend": available_backends()["cpu"],
            "ssmseq": ssmseq.__version__,
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        cells = [f"{1e3 * v:.1f} ms" for v in medians.values()] + [f"{100 * v:.1f} %" for v in part.values()]
        print(f"| {d_model}, {d_state} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

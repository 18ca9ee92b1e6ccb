"""Where an S-Mamba training step on ETTh1 spends its time: the scan, the matrix products, and the rest.

    python benchmarks/forecasting/step_profile.py

Two views, both on one thread by default. Side by side in one process, A B C A B C: the step as it is; the same step
with the scan replaced by one elementwise expression of its inputs (the difference is what any faster scan could still
gain); and the step with every matrix product left to torch. And torch's profiler, by kind of operator. One row per
width is appended to benchmarks/results/step_profile.jsonl.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import ssmseq
import ssmseq.nn.linear as linear
import ssmseq.nn.mamba as mamba
from ssmseq.forecasting.smamba import SMambaNetwork

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "step_profile.jsonl"
KINDS = {
    "scan": ("ssmseq::",),
    "matrix products": ("mkldnn::", "aten::mm", "aten::addmm", "aten::bmm"),
    "optimiser": ("aten::_fused_adam",),
    "dropout": ("aten::bernoulli", "aten::native_dropout"),
    "normalisation": ("aten::native_layer_norm",),
}


def elementwise_instead_of_scan(u, delta, A, B, C, D, *, z, delta_bias, reverse):
    """Touch every input once, at the cost of elementwise products."""
    return (u * D + (delta + delta_bias)) * z + (B.sum(-1, keepdim=True) + C.sum(-1, keepdim=True) + A.sum())


def make_step(d_model: int, d_state: int):
    torch.manual_seed(0)
    sizes = {"d_model": d_model, "d_ff": d_model, "d_state": d_state, "d_conv": 2, "expand": 1, "n_layers": 2}
    network = SMambaNetwork(
        n_variates=7, lookback=96, horizon=96, dropout=0.1, activation="gelu", normalize=True, **sizes
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    inputs, targets = torch.randn(32, 11, 96), torch.randn(32, 7, 96)

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(network(inputs), targets).backward()
        optimizer.step()

    return step


def seconds(step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def side_by_side(step, repeats: int) -> tuple[float, ...]:
    """Median process CPU seconds of the step as it is, without the scan, and with torch's own matrix products."""
    scan, onednn, times = mamba.selective_scan, linear.ONEDNN, ([], [], [])
    try:
        for i in range(3 * (repeats + 5)):
            mamba.selective_scan = elementwise_instead_of_scan if i % 3 == 1 else scan
            linear.ONEDNN = onednn and i % 3 != 2
            times[i % 3].append(seconds(step))
    finally:
        mamba.selective_scan, linear.ONEDNN = scan, onednn
    return tuple(statistics.median(t[5:]) for t in times)


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
    heads = ["d_model, d_state", "step", "scan removed", "cost of the scan", "torch's products", *KINDS, "other"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for d_model, d_state in ((256, 2), (256, 16), (512, 2), (512, 16)):
        step = make_step(d_model, d_state)
        with_scan, without, torch_products = side_by_side(step, args.repeats)
        part = shares(step, args.repeats)
        row = {
            "d_model": d_model,
            "d_state": d_state,
            "step_ms": round(1e3 * with_scan, 2),
            "step_without_scan_ms": round(1e3 * without, 2),
            "step_with_torch_products_ms": round(1e3 * torch_products, 2),
            "shares": part,
            "threads": args.threads,
            "backend": ssmseq_backend(),
            "ssmseq": ssmseq.__version__,
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"| {d_model}, {d_state} | {1e3 * with_scan:.1f} ms | {1e3 * without:.1f} ms | "
            f"{100 * (with_scan / without - 1):+.1f} % | {1e3 * torch_products:.1f} ms | "
            + " | ".join(f"{100 * v:.1f} %" for v in part.values()),
            "|",
        )


def ssmseq_backend() -> str:
    from ssmseq_kernels import available_backends

    return available_backends()["cpu"]


if __name__ == "__main__":
    main()

"""Mamba-2's scan on a CPU: against other ways to compute it, and as a share of the machine's rate of matrix products.

    python benchmarks/kernels/bench_ssd.py [--threads 1] [--repeats 7] [--shape lm ...]

All methods run in turn in one process; medians of process CPU time on one thread, of wall time on more. Ours is what a
CPU gets, the compiled scan; `products` is the chunked form that other devices get. Rivals: the minimal chunked form of
the Mamba-2 paper, written for this benchmark in torch; the loop over time that defines the scan; and a whole Mamba-2
block beside the slow path of transformers with the same weights. The rate is that of a 1024 x 1024 product of torch,
measured in the same turns; the work counted is that of the dense chunked form with chunks of 64. One step of generation
is timed beside torch's operators. One row per cell goes to benchmarks/results/kernels_ssd.jsonl.
"""

import argparse
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from rows import ROOT, Rows, common_facts
from ssd_cases import CHUNK, PER_STEP, SHAPES, loop, make_inputs, minimal, operations, products
from timing import clock_for, take_turns
from torch import Tensor

from ssmseq.nn.mamba2 import Mamba2
from ssmseq_kernels import ops, ssd_scan, ssd_state_update

LONGEST_LOOP = 600  # steps
STEP_SIZES = ((1, 8, 64, 64), (64, 8, 64, 64), (1, 32, 64, 128), (8, 32, 64, 128))  # batch, heads, channels, states
STEPS_AT_ONCE = 20  # of a timed run


def with_mode(call: Callable[..., Tensor], tensors: list[Tensor], mode: str) -> Callable[[], object]:
    if mode == "forward":
        return torch.no_grad()(lambda: call(*tensors))
    leaves = [t.detach().requires_grad_() for t in tensors]
    return lambda: torch.autograd.grad(call(*leaves).sum(), leaves)


def blocks(shape: tuple[int, ...]) -> dict[str, torch.nn.Module]:
    """Our Mamba-2 block, and that of transformers with its weights, if it is installed."""
    _, _, heads, dim, groups, n_state = shape
    d_model = heads * dim // 2
    sizes: Any = {"d_state": n_state, "expand": 2, "head_dim": dim, "n_groups": groups}
    found: dict[str, torch.nn.Module] = {"block": Mamba2(d_model=d_model, d_conv=4, **sizes)}
    if find_spec("transformers"):
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        sizes = {"state_size": n_state, "num_heads": heads, "conv_kernel": 4, "chunk_size": CHUNK}
        config = Mamba2Config(hidden_size=d_model, head_dim=dim, n_groups=groups, **sizes)
        found["block of transformers"] = Mamba2Mixer(config, layer_idx=0)
        found["block of transformers"].load_state_dict(found["block"].state_dict())
    return found


def block_call(block: torch.nn.Module, x: Tensor, mode: str) -> Callable[[], object]:
    if mode == "forward":
        return torch.no_grad()(lambda: block(x))
    leaves = [x.detach().requires_grad_(), *block.parameters()]
    return lambda: torch.autograd.grad(block(leaves[0]).sum(), leaves)


def measure(rows: Rows, name: str, mode: str, arguments: argparse.Namespace) -> None:
    shape = SHAPES[name]
    n_batch, length, heads, dim = shape[:4]
    inputs = [x for name, x in make_inputs(shape).items() if name != "dt_bias"]
    methods = {"ours": ssd_scan, "minimal": minimal, "products": products}
    if length <= LONGEST_LOOP:
        methods["loop"] = loop
    truth = ssd_scan(*inputs)
    for method, call in methods.items():
        error = ((call(*inputs) - truth).norm() / truth.norm()).item()
        if error > 1e-4:
            raise SystemExit(f"{method} computes something else at {name}: relative difference {error:.1e}")
    calls = {method: with_mode(call, inputs, mode) for method, call in methods.items()}
    x, square = torch.randn(n_batch, length, heads * dim // 2), torch.randn(1024, 1024)
    calls |= {k: block_call(v, x, mode) for k, v in blocks(shape).items()}
    calls["product"] = lambda: square @ square
    times = take_turns(calls, arguments.repeats, arguments.budget, clock_for(arguments.threads))
    seconds = {method: statistics.median(taken) for method, taken in times.items()}
    rate = 2 * 1024**3 / seconds.pop("product")
    work = operations(shape) * (1 if mode == "forward" else 3)
    for method, value in seconds.items():
        cell = {"what": "ssd", "shape": name, "sizes": list(shape), "mode": mode, "method": method}
        against = seconds["block" if method.startswith("block") else "ours"]
        values = {"ms": round(1e3 * value, 3), "times_ours": round(value / against, 2)}
        if method in ("ours", "products"):
            values |= {"gflops": round(work / value / 1e9, 1), "product_gflops": round(rate / 1e9, 1)}
            values["share_of_product"] = round(work / value / rate, 3)
        rows.add({**cell, "threads": arguments.threads}, values)


def by_operators(state: Tensor, *tensors: Tensor) -> Tensor:
    """One step as on a device without kernels."""
    serve, ops.cpu = ops.cpu, None
    kernels, ops.has_kernel = ops.has_kernel, lambda device: False
    try:
        return ssd_state_update(state, *tensors)
    finally:
        ops.cpu, ops.has_kernel = serve, kernels


def measure_step(rows: Rows, sizes: tuple[int, int, int, int], arguments: argparse.Namespace) -> None:
    """One step of generation, from x to dt_bias, with a gate."""
    n_batch, heads, dim, n_state = sizes
    inputs = make_inputs((n_batch, 1, heads, dim, 1, n_state))
    row = [x[:, 0] if name in PER_STEP else x for name, x in inputs.items()]
    states = {name: torch.zeros(sizes) for name in ("ours", "operators")}
    steps = {"ours": ssd_state_update, "operators": by_operators}
    first, second = (steps[name](states[name], *row) for name in steps)
    if (first - second).norm() > 1e-5 * first.norm():
        raise SystemExit(f"the ways to take a step differ at {sizes}")
    calls = {name: lambda name=name: [steps[name](states[name], *row) for _ in range(STEPS_AT_ONCE)] for name in steps}
    times = take_turns(calls, arguments.repeats, arguments.budget, clock_for(arguments.threads))
    us = {name: 1e6 * statistics.median(taken) / STEPS_AT_ONCE for name, taken in times.items()}
    for name, value in us.items():
        cell = {"what": "ssd_step", "shape": "x".join(map(str, sizes)), "sizes": list(sizes), "mode": "step"}
        values = {"us": round(value, 2), "times_ours": round(value / us["ours"], 2)}
        rows.add({**cell, "method": name, "threads": arguments.threads}, values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="`--device cuda -h` for the other one")
    parser.add_argument(
        "--shape", nargs="*", choices=SHAPES, default=list(SHAPES), help="of the scan; none: only steps"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each method")
    parser.add_argument("--budget", type=float, default=20, help="seconds for the runs of one method")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = common_facts() | {"repeats": arguments.repeats, "budget": arguments.budget}
    rows = Rows(ROOT / "benchmarks" / "results" / "kernels_ssd.jsonl", facts)
    for name in arguments.shape:
        for mode in ("forward", "forward+backward"):
            measure(rows, name, mode, arguments)
    for sizes in STEP_SIZES:
        measure_step(rows, sizes, arguments)

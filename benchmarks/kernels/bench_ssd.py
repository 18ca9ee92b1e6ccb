"""Mamba-2's scan on a CPU: against other ways to compute it, and as a share of the machine's rate of matrix products.

    python benchmarks/kernels/bench_ssd.py [--threads 1] [--repeats 7] [--shape lm ...]

All methods run in turn in one process; medians of process CPU time on one thread, of wall time on more. Ours is what a
CPU gets, the compiled scan; `products` is the chunked form that other devices get. Rivals: the minimal chunked form of
the Mamba-2 paper, written for this benchmark in torch; the loop over time that defines the scan; and a whole Mamba-2
block beside the slow path of transformers with the same weights. The rate is that of a 1024 x 1024 product of torch,
measured in the same turns; the work counted is that of the dense chunked form with chunks of 64. One row per cell goes
to benchmarks/results/kernels_ssd.jsonl.
"""

import argparse
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from rows import ROOT, Rows, common_facts
from timing import clock_for, take_turns
from torch import Tensor
from torch.nn import functional as F

from ssmseq.nn.mamba2 import Mamba2
from ssmseq_kernels import ssd, ssd_scan
from ssmseq_kernels.reference import ssd_scan_reference

CHUNK = 64
LONGEST_LOOP = 600  # steps
SHAPES = {  # batch, steps, heads, channels of a head, groups, states
    "lm": (1, 4096, 24, 64, 1, 128),
    "dna": (2, 2048, 16, 64, 1, 64),
    "ecg": (8, 1250, 8, 64, 1, 64),
    "groups": (2, 1024, 16, 64, 8, 128),
    "short": (32, 96, 8, 64, 1, 64),
}


def minimal(x, dt, A, B, C, D, z):
    """The chunked form as the paper lists it: sums of every stretch by masked sums, states by one more such matrix."""
    dt = F.softplus(dt)
    heads = x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(heads, 2) for t in (B, C))
    pad = -x.shape[1] % CHUNK
    v, a, B, C = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x * dt[..., None], dt * A, B, C))
    v, a, B, C = (t.unflatten(1, (-1, CHUNK)) for t in (v, a, B, C))
    a = a.permute(0, 3, 1, 2)
    within = torch.exp(stretches(a))
    y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, within, v)
    total = a.cumsum(-1)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, torch.exp(total[..., -1:] - total), v)
    states = F.pad(states, (0, 0, 0, 0, 0, 0, 1, 0))
    across = torch.exp(stretches(F.pad(total[..., -1], (1, 0))))
    states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
    y = y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(total))
    return (y.flatten(1, 2)[:, : x.shape[1]] + x * D[:, None]) * F.silu(z)


def stretches(a: Tensor) -> Tensor:
    """Sums of a over every stretch that ends at one step and begins after another, (..., L, L)."""
    length = a.shape[-1]
    spread = a[..., None].expand(*a.shape, length)
    below = torch.ones(length, length, dtype=torch.bool).tril(-1)
    sums = spread.masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(~below.logical_or(torch.eye(length, dtype=torch.bool)), -torch.inf)


def loop(x, dt, A, B, C, D, z):
    """The definition, step after step."""
    return ssd_scan_reference(x, dt, A, B, C, D, z)[0]


def products(*tensors):
    """Ours as on a device without the compiled scan."""
    serves, ssd.has_scan = ssd.has_scan, lambda device: False
    try:
        return ssd_scan(*tensors)
    finally:
        ssd.has_scan = serves


def make_inputs(shape: tuple[int, ...]) -> list[Tensor]:
    n_batch, length, heads, dim, groups, n_state = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator)

    rows = (n_batch, length)
    mixers = [normal(*rows, groups, n_state) for _ in range(2)]
    A = -(1 + 15 * torch.rand(heads, generator=generator))
    return [normal(*rows, heads, dim), normal(*rows, heads) - 4, A, *mixers, normal(heads), normal(*rows, heads, dim)]


def operations(shape: tuple[int, ...]) -> float:
    """Floating-point operations of the chunked form forward."""
    n_batch, length, heads, dim, groups, n_state = shape
    chunk = min(CHUNK, length)
    return n_batch * length * (2 * chunk * n_state * groups + 2 * chunk * heads * dim + 4 * heads * dim * n_state)


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
    inputs = make_inputs(shape)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
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


if __name__ == "__main__":
    main()

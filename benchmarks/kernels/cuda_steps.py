"""Whole layers and whole training steps on a GPU: time, tokens per second, peak memory, and the scan's share."""

import statistics
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from cuda_cases import DTYPES
from cuda_device import Call
from cuda_peers import mamba_module, missing
from cuda_special import fields
from cuda_speed import Bench, make_call
from cuda_timing import summary, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

import ssmseq.nn.bidirectional as bidirectional
import ssmseq.nn.mamba as mamba
from ssmseq.nn import BidirectionalMamba, Mamba

LAYERS = {  # B, L, d_model, N; two inner channels for one of the model
    "R1": (8, 4096, 1024, 16),
    "R2": (1, 2048, 768, 16),
    "R7": (256, 96, 64, 16),
}
STEPS = {  # B, L or variates, d_model, N
    "S-Mamba": (16, 862, 512, 32),
    "ECG": (8, 1250, 128, 16),
    "DNA": (8, 8192, 256, 16),
}
LONGEST = (1, 1 << 20, 256, 16)
SMALL = (1, 3, 4, 2)
N_LAYERS, LOOKBACK, LEADS, CLASSES, TOKENS = 4, 96, 12, 5, 16
SCAN_MODULES = ("ssmseq_kernels.triton_scan", "ssmseq_kernels.triton_scan_backward")
STEPS_PROFILED = 5
FEW = 20  # timed steps, at most


class Residual(nn.Module):
    """Add what a block makes of its normalised input."""

    def __init__(self, block: nn.Module, d_model: int):
        super().__init__()
        self.norm, self.block = nn.LayerNorm(d_model), block

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model)."""
        return x + self.block(self.norm(x))


class Pool(nn.Module):
    """Mean over time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, D)."""
        return x.mean(1)


def smamba(sizes, device) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """The forecasting network on windows of many variates."""
    from ssmseq.forecasting.smamba import SMambaNetwork  # brings data frames, which the rest does without
    from ssmseq.forecasting.tokens import InputSizes

    n_batch, n_variates, d_model, n = sizes
    network = SMambaNetwork(
        InputSizes(n_variates=n_variates, lookback=LOOKBACK, horizon=LOOKBACK),
        d_model=d_model,
        d_state=n,
        d_conv=2,
        expand=2,
        n_layers=N_LAYERS,
        d_ff=d_model,
        dropout=0.1,
        activation="gelu",
        normalize=True,
    )
    x, target = (torch.randn(n_batch, n_variates, LOOKBACK, device=device) for _ in range(2))
    return network.to(device), x, lambda y: F.mse_loss(y.float(), target)


def ecg(sizes, device) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """A classifier of 12-lead records, read from both ends."""
    n_batch, length, d_model, n = sizes
    size: Any = {"d_model": d_model, "d_state": n, "d_conv": 4, "expand": 2, "style": "add"}
    blocks = [Residual(BidirectionalMamba(**size), d_model) for _ in range(N_LAYERS)]
    network = nn.Sequential(nn.Linear(LEADS, d_model), *blocks, Pool(), nn.Linear(d_model, CLASSES))
    x = torch.randn(n_batch, length, LEADS, device=device)
    target = torch.randint(2, (n_batch, CLASSES), device=device).float()
    return network.to(device), x, lambda y: F.binary_cross_entropy_with_logits(y.float(), target)


def dna(sizes, device) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """A language model of bases, four layers."""
    n_batch, length, d_model, n = sizes
    size: Any = {"d_model": d_model, "d_state": n, "d_conv": 4, "expand": 2, "reverse": False}
    blocks = [Residual(Mamba(**size), d_model) for _ in range(N_LAYERS)]
    network = nn.Sequential(nn.Embedding(TOKENS, d_model), *blocks, nn.LayerNorm(d_model), nn.Linear(d_model, TOKENS))
    x, target = (torch.randint(TOKENS, (n_batch, length), device=device) for _ in range(2))
    return network.to(device), x, lambda y: F.cross_entropy(y.float().flatten(0, 1), target.flatten())


NETWORKS = {"S-Mamba": smamba, "ECG": ecg, "DNA": dna}


def precision(device: torch.device, dtype: torch.dtype):
    """Autocast with float32 weights, as networks are trained; nothing for float32."""
    return torch.autocast(device.type, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32)


def measure_layer(bench: Bench) -> None:
    """One Mamba layer, ours and mamba_ssm's with the same weights."""
    for name, dtype in bench.dtypes.items():
        for shape, sizes in LAYERS.items():
            sizes = SMALL if bench.device.rehearsing else sizes
            for mode in ("forward", "forward+backward"):
                cell = {"what": "layer", "shape": shape, "sizes": sizes, "mode": mode}
                for method in ("ours", "mamba_ssm layer"):
                    bench.attempt(cell | fields(method, dtype), partial(_layer, bench, method, sizes, name, mode))
        sizes = SMALL if bench.device.rehearsing else LONGEST
        cell = {"what": "layer", "shape": "1048576 tokens", "sizes": sizes, "mode": "forward+backward"}
        measure = partial(_layer, bench, "ours", sizes, name, "forward+backward")
        bench.attempt(cell | fields("ours", dtype), measure)


def _layer(bench: Bench, method: str, sizes, dtype: str, mode: str) -> dict[str, Any]:
    if method != "ours" and (reason := missing(method)):
        return {"skipped": reason}
    device = bench.device.device
    n_batch, length, d_model, n = sizes
    torch.manual_seed(0)
    layer = Mamba(d_model=d_model, d_state=n, d_conv=4, expand=2, reverse=False)
    if method != "ours":
        peer = mamba_module("modules.mamba_simple").Mamba(d_model=d_model, d_state=n, d_conv=4, expand=2)
        peer.load_state_dict(layer.state_dict())
        layer = peer
    layer = layer.to(device)
    x = torch.randn(n_batch, length, d_model, device=device)

    def run(x: Tensor, *_: Tensor) -> Tensor:
        with precision(device, DTYPES[dtype]):
            return layer(x)

    call = make_call(run, [x, *layer.parameters()], mode)
    return _timed(bench, call, n_batch * length)


def _timed(bench: Bench, call: Call, tokens: int) -> dict[str, Any]:
    """Time, rate and memory of a call; the memory is that of a second run, as the first one compiles."""
    call()
    peak, beyond = bench.device.peak_of(call)
    times = take_turns(bench.device, {"it": [call]}, min(bench.repeats, FEW), bench.budget)["it"]
    rate = {"tokens_per_s": tokens / statistics.median(times)}
    return summary(times) | rate | {"peak_gb": peak / 1e9, "beyond_gb": beyond / 1e9}


def measure_steps(bench: Bench) -> None:
    """Forward, backward and optimiser of three networks."""
    for name, dtype in bench.dtypes.items():
        for shape, sizes in STEPS.items():
            sizes = SMALL if bench.device.rehearsing else sizes
            cell = {"what": "steps", "shape": shape, "sizes": sizes, "mode": "training step"} | fields("ours", dtype)
            bench.attempt(cell, partial(_step, bench, shape, sizes, name))


def _step(bench: Bench, shape: str, sizes, dtype: str) -> dict[str, Any]:
    device = bench.device.device
    torch.manual_seed(0)
    try:
        network, x, loss_of = NETWORKS[shape](sizes, device)
    except ImportError as error:
        return {"skipped": f"not installed: {error}; pip install ssmseq brings it"}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision(device, DTYPES[dtype]):
            y = network(x)
        loss_of(y).backward()
        optimizer.step()

    values = _timed(bench, step, sizes[0] * sizes[1])
    without = _without_scan(bench, step)
    values |= {"without_scan_us": without, "share_by_removal": 1 - without / values["median_us"]}
    share, failure = bench.guarded(lambda: {"share_of_scan": scan_share(step, bench.device)})
    return values | (share or {"profiler": failure})


def elementwise(u, delta, A, B, C, D, z, delta_bias, **_) -> Tensor:
    """Touch every input once: the least that any scan could cost."""
    mixed = B.sum(-1, keepdim=True) + C.sum(-1, keepdim=True) + A.sum()
    return ((u * D + (delta + delta_bias)) * z + mixed).to(u.dtype)


def _without_scan(bench: Bench, step: Call) -> float:
    """Median microseconds of the step with an elementwise expression in the place of each scan."""
    places: list[tuple[Any, str, Any]] = [
        (mamba, "selective_scan", elementwise),
        (bidirectional, "bidirectional_selective_scan", lambda *both: tuple(elementwise(*x) for x in both)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    try:
        for module, name, value in places:
            setattr(module, name, value)
        times = take_turns(bench.device, {"it": [step]}, min(bench.repeats, FEW), bench.budget)["it"]
    finally:
        for module, name, value in before:
            setattr(module, name, value)
    return 1e6 * statistics.median(times)


def scan_share(step: Call, device) -> float | None:
    """Share of the scan's kernels in the device time of a step; None where nothing ran on a GPU."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if not device.rehearsing:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiled:
        for _ in range(STEPS_PROFILED):
            step()
        device.synchronize()
    averages: Any = profiled.key_averages()
    return share_of([(e.key, e.self_device_time_total) for e in averages if e.device_type.name == "CUDA"])


def share_of(events: list[tuple[str, float]]) -> float | None:
    """Share of the scan's kernels in a list of kernel names and times; None if the list is empty."""
    scans = {name for module in SCAN_MODULES for name in vars(import_module(module)) if name.endswith("_kernel")}
    total = sum(time for _, time in events)
    return sum(time for name, time in events if name in scans) / total if total else None

"""What the GPU benchmark compares: our kernels, mamba_ssm's CUDA kernel, a scan by association, PyTorch on the GPU.

Every scan is ``f(u, delta, A, B, C, D, z, delta_bias) -> y`` with softplus on; `Method` says how its tensors lie.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import peers
import torch
from cuda_cases import MODES, Sizes
from torch import Tensor

import ssmseq_kernels

BUILD = "build it: see 'mamba_ssm as a rival' in benchmarks/README.md"
UNPACK = "put its sources on PYTHONPATH: see 'mamba_ssm as a rival' in benchmarks/README.md"
# Upper bounds of the memory beyond the inputs, in float32 tensors of (B, L, D) and of (B, L, D, N): forward, and both.
FOOTPRINT = {
    "eager_loop": ((12, 0), (12, 4)),
    "chunked": ((3, 0.5), (7, 1)),
    "transformers_slow": ((4, 5), (8, 11)),
}


@dataclass(frozen=True)
class Method:
    """One way to scan: how its tensors lie, and whether it is a kernel or PyTorch operators, which run in float32."""

    name: str
    scan: Callable[..., Tensor]
    layout: str = "BLD"
    kernel: bool = True
    modes: tuple[str, ...] = MODES

    def dtype(self, asked: torch.dtype) -> torch.dtype:
        """The dtype it runs in: operators do not mix half precision with float32 weights."""
        return asked if self.kernel else torch.float32

    def fields(self, asked: torch.dtype) -> dict[str, str]:
        """Return what a row says of the method."""
        return {"method": self.name, "layout": self.layout, "dtype": str(self.dtype(asked)).removeprefix("torch.")}


def ours(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    return ssmseq_kernels.selective_scan(u, delta, A, B, C, D, z, delta_bias)


def mamba_ssm(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Run mamba_ssm's CUDA kernel, on (B, D, L) and (B, N, L)."""
    return mamba_module("ops.selective_scan_interface").selective_scan_fn(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus=True
    )


_best: dict[tuple, tuple[int, int, int]] = {}  # configuration of the associative scan, by shape and dtype


def associative(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """Run the associative scan in the configuration that `tune_associative` has found for the shape."""
    key = (tuple(u.shape), u.dtype)
    return import_module("associative_peer").associative_scan(u, delta, A, B, C, D, z, delta_bias, _best.get(key))


def tune_associative(device, args: list[Tensor]) -> None:
    """Try each configuration once, compiled beforehand, and remember the fastest."""
    peer = import_module("associative_peer")
    times = {}
    for config in peer.CONFIGS:
        peer.associative_scan(*args, config)
        times[config] = device.timed(lambda config=config: peer.associative_scan(*args, config))
    _best[tuple(args[0].shape), args[0].dtype] = min(times, key=lambda config: times[config])


METHODS = {
    method.name: method
    for method in (
        Method("ours", ours),
        Method("mamba_ssm", mamba_ssm, layout="BDL"),
        Method("associative", associative, modes=("forward",)),
        *(Method(name, peers.SCANS[name], kernel=False) for name in FOOTPRINT),
    )
}


def mamba_module(name: str) -> Any:
    """Import one module of mamba_ssm without the package's own imports, which want every model and its packages.

    An extension built for some dtypes only lacks symbols of the others; it loads when they are looked up late.
    """
    if "mamba_ssm" not in sys.modules:
        spec = find_spec("mamba_ssm")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("mamba_ssm is not on the path")
        package = ModuleType("mamba_ssm")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["mamba_ssm"] = package
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_LOCAL)
    try:
        return import_module(f"mamba_ssm.{name}")
    finally:
        sys.setdlopenflags(before)


@cache
def missing(name: str) -> str | None:
    """Say why a rival cannot run and what to do; None if it can."""
    wanted = {
        "mamba_ssm": "ops.selective_scan_interface",
        "mamba_ssm step": "ops.triton.selective_state_update",
        "mamba_ssm ssd": "ops.triton.ssd_combined",
        "mamba_ssm layer": "modules.mamba_simple",
    }
    if name in wanted:
        try:
            mamba_module(wanted[name])
        except Exception as error:  # a foreign package may fail in any way
            remedy = UNPACK if ".triton." in wanted[name] else BUILD
            return f"not installed: {remedy} ({type(error).__name__}: {error})"
        return None
    reason = peers.missing(name)
    return reason and f"not installed: {reason}"


def outdated(row: dict[str, Any]) -> bool:
    """Whether a row says that a rival is not installed which is there by now."""
    absent = str(row.get("skipped", "")).startswith("not installed")
    return absent and missing(str(row.get("method")).split(",")[0]) is None


def refusal(method: Method, mode: str, sizes: Sizes, free: int) -> str | None:
    """Say why a method must not run on this shape: it is not there, or memory would not do; None if it may."""
    reason = missing(method.name)
    if reason or method.name not in FOOTPRINT:
        return reason
    n_batch, length, d, n = sizes
    rows, states = FOOTPRINT[method.name][mode != "forward"]
    return too_large(4.0 * n_batch * length * d * (3 + rows + states * n), free)


def too_large(needed: float, free: int) -> str | None:
    """Say that so many bytes do not fit those that are free; None if they do."""
    return f"would take about {needed / 1e9:.0f} GB of {free / 1e9:.0f} free" if needed > 0.8 * free else None

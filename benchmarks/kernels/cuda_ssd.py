"""Mamba-2's scan (SSD) on a GPU: our kernels, those of mamba_ssm, and torch's operators.

The rival's kernels are Triton, too: its unpacked sources and einops suffice, nothing is built. A call without a gate is
that of a Mamba-2 block, which gates in its norm; the modes that say "gated" give z. Torch's ways run in float32 and
without a gate: a product more or less does not change what they say.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from cuda_cases import MODES, STEP_BATCHES, Inputs
from cuda_device import Call
from cuda_peers import Method, mamba_module, missing, too_large
from cuda_special import PEER, compared, fields, no_grad_step, step_rates, time_operations, timed_side_by_side
from cuda_speed import Bench, Group, distance, make_call
from cuda_timing import copies_for
from ssd_cases import CHUNK, NAMES, PER_STEP, SsdSizes, make_inputs, minimal, operations, products
from torch import Tensor

from ssmseq_kernels import ssd_scan, ssd_state_update
from ssmseq_kernels.reference import ssd_scan_reference

SSD_SHAPES: dict[str, SsdSizes] = {  # batch, steps, heads, channels of a head, groups, states
    "G13": (8, 4096, 32, 64, 1, 128),  # a language model
    "prompt": (1, 4096, 32, 64, 1, 128),
    "dna": (1, 131072, 16, 64, 1, 64),
    "groups": (8, 2048, 32, 64, 8, 128),
    "ecg": (32, 1250, 8, 64, 1, 64),
    "short": (256, 96, 8, 64, 1, 64),
}
SMALL_SHAPES: dict[str, SsdSizes] = dict.fromkeys(SSD_SHAPES, (1, 5, 1, 4, 1, 4)) | {  # of a rehearsal
    "dna": (1, 130, 1, 4, 1, 4),
    "groups": (1, 5, 4, 4, 2, 4),
}
CHECKS: dict[str, tuple[SsdSizes, bool, bool]] = {  # and whether in reverse, and packed
    "plain": ((2, 300, 4, 64, 1, 128), False, False),
    "reverse": ((2, 300, 4, 64, 1, 128), True, False),
    "packed": ((2, 300, 4, 64, 1, 128), False, True),
    "groups": ((1, 300, 6, 40, 3, 48), False, False),
}
SMALL_CHECK = (1, 20, 2, 4, 1, 4)
OP_SIZES = (32, 96, 8, 64, 1, 64)
STEP_SIZES = (32, 64, 128)  # heads, channels of a head, states
PEER_CHUNK = 256  # as mamba_ssm's block has it
SSD_PEER, STEP_PEER = f"{PEER} ssd", f"{PEER} step"
PASSES = {"forward": 1, "backward": 2, "forward+backward": 3}  # products of the work, in those of a forward pass
# Upper bounds of the memory beyond the inputs: float32 numbers of each step and head, by the numbers in its matrices.
FOOTPRINT = {"minimal": (2.6, 5.1), "products": (2.0, 4.3)}


def mamba_ssm(x, dt, A, B, C, D, z, dt_bias) -> Tensor:
    scan = mamba_module("ops.triton.ssd_combined").mamba_chunk_scan_combined
    return scan(x, dt, A, B, C, PEER_CHUNK, D=D, z=z, dt_bias=dt_bias, dt_softplus=True)


SSD_METHODS = {
    method.name: method
    for method in (
        Method("ours", ssd_scan, "BLHP"),
        Method(SSD_PEER, mamba_ssm, "BLHP"),
        Method("minimal", minimal, "BLHP", kernel=False),
        Method("products", products, "BLHP", kernel=False),
    )
}


def moved_bytes(mode: str, sizes: SsdSizes, itemsize: int, gated: bool) -> int:
    """Bytes of the inputs, outputs and gradients of a run, each read or written once; weights have four."""
    n_batch, length, heads, dim, groups, n_state = sizes
    rows, step_sizes = n_batch * length * heads * dim * itemsize, n_batch * length * heads * itemsize
    mixers, weights = 2 * n_batch * length * groups * n_state * itemsize, 3 * 4 * heads
    forward = (2 + gated) * rows + step_sizes + mixers + weights
    backward = (3 + 2 * gated) * rows + 2 * (step_sizes + mixers + weights)
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[mode]


def step_bytes(sizes: tuple[int, int, int, int], itemsize: int) -> int:
    """Bytes of one decode step of B, H, P, N: the float32 state read and written, rows, mixers and weights."""
    n_batch, heads, dim, n_state = sizes
    rows = n_batch * (2 * heads * dim + heads + 2 * n_state)
    return 8 * n_batch * heads * dim * n_state + itemsize * rows + 3 * 4 * heads


def footprint(name: str, mode: str, sizes: SsdSizes) -> float:
    """Bytes that one of torch's ways takes at most beside its inputs."""
    n_batch, length, heads, dim, _, n_state = sizes
    chunks = -(-length // CHUNK)
    matrices = dim + n_state + CHUNK + dim * n_state / CHUNK + chunks**2 / length
    numbers = 3 * dim + FOOTPRINT[name][mode != "forward"] * matrices
    return 4 * n_batch * length * heads * numbers


_tuned_for: Any = None  # sizes and dtype


def tune_anew(case: Any) -> None:
    """Let mamba_ssm's kernels look for their best configuration again if the case is another one than before.

    Their own keys know neither batch nor length: what was best for a shape before would be taken for this one, too.
    """
    global _tuned_for
    if case == _tuned_for:
        return
    modules = [module for name, module in sys.modules.items() if name.startswith("mamba_ssm.ops.triton.")]
    for kernel in (x for module in modules for x in vars(module).values()):
        if type(kernel).__name__ == "Autotuner":
            kernel.cache.clear()
    _tuned_for = case


class SsdGroup(Group):
    """Cells of one shape, mode and dtype of Mamba-2's scan, with a gate or without."""

    ours, per_step = SSD_METHODS["ours"], PER_STEP

    def __init__(self, *args: Any, gated: bool):
        self.gated = gated
        super().__init__(*args)

    def input_bytes(self) -> int:
        """Bytes of one copy of the inputs: what a forward pass moves, without y."""
        size = self.dtype.itemsize
        return moved_bytes("forward", self.sizes, size, self.gated) - math.prod(self.sizes[:4]) * size

    def make_inputs(self, seed: int) -> Inputs:
        """Return one copy of the inputs."""
        inputs = make_inputs(self.sizes, self.dtype, self.device.device, seed)
        return inputs if self.gated else {name: x for name, x in inputs.items() if name != "z"}

    def args(self, method: Method, inputs: Inputs) -> list[Tensor | None]:
        """Return the inputs as a method takes them."""
        kind = method.dtype(self.dtype)
        given = {name: x.detach().to(kind if name in PER_STEP else x.dtype) for name, x in inputs.items()}
        return in_order(given)

    def tune(self, method: Method, args: list[Any]) -> None:
        """Let the rival tune itself for these sizes."""
        if method.name == SSD_PEER:
            tune_anew((self.sizes, self.dtype))

    def refusal(self, method: Method) -> str | None:
        """Say why a method must not run on this shape; None if it may."""
        reason = missing(method.name)
        if reason or method.name not in FOOTPRINT:
            return reason
        return too_large(footprint(method.name, self.mode, self.sizes), self.device.free_memory())

    def columns(self, seconds: float) -> dict[str, Any]:
        """Return the rate of the chunked form's operations, the bytes, and the share of their floor."""
        moved = moved_bytes(self.mode, self.sizes, self.dtype.itemsize, self.gated)
        found = {"tflops": 1e-12 * PASSES[self.mode] * operations(self.sizes) / seconds, "bytes": moved}
        if self.bench.rates:
            floor = moved / self.bench.rates.bytes
            found |= {"memory_floor_us": round(1e6 * floor, 3), "share": round(floor / seconds, 4)}
        return found


def in_order(inputs: Inputs) -> list[Tensor | None]:
    """Return the inputs as positional arguments, None where there is no gate."""
    return [inputs.get(name) for name in NAMES]


def measure_ssd(bench: Bench, shapes: Sequence[str], names: Sequence[str]) -> None:
    """Time the scan forward, backward and both, without a gate and with one."""
    methods = [SSD_METHODS[name] for name in names if name in SSD_METHODS]
    for shape in (x for x in shapes if x in SSD_SHAPES):
        sizes = (SMALL_SHAPES if bench.device.rehearsing else SSD_SHAPES)[shape]
        for dtype in bench.dtypes.values():
            for mode, gated in ((mode, gated) for gated in (False, True) for mode in MODES):
                cell = {"what": "ssd", "shape": shape, "sizes": sizes, "mode": f"{mode}{', gated' if gated else ''}"}
                cells = {m: cell | m.fields(dtype) for m in methods if m.kernel or not gated}
                cells = {m: x for m, x in cells.items() if not bench.has(x)}
                if cells:
                    SsdGroup(bench, sizes, mode, dtype, cells, gated=gated).measure()
                    bench.device.free_memory()


def measure_ssd_check(bench: Bench) -> None:
    """Compare y and every gradient with the definition in float64, before any time is believed."""
    for dtype in dict.fromkeys([torch.float32, *bench.dtypes.values()]):
        for mode, (sizes, reverse, packed) in CHECKS.items():
            if bench.device.rehearsing:
                sizes = SMALL_CHECK if mode != "groups" else SMALL_SHAPES[mode]
            cell = {"what": "ssd_check", "shape": "x".join(map(str, sizes)), "sizes": sizes, "mode": mode}
            measure = partial(errors, bench.device.device, sizes, dtype, reverse, packed)
            bench.attempt(cell | fields("ours", dtype, "BLHP"), measure)


def errors(device: torch.device, sizes: SsdSizes, dtype: torch.dtype, reverse: bool, packed: bool) -> dict[str, Any]:
    """Relative L2 errors of y and of the worst gradient, that of the initial state among them."""
    n_batch, length, heads, dim, _, n_state = sizes
    inputs = make_inputs(sizes, dtype, device)
    inputs["initial_state"] = torch.randn(n_batch, heads, dim, n_state, device=device)
    options: dict[str, Any] = {"reverse": reverse}
    if packed:
        numbers = torch.arange(length, device=device) // (length // 4 + 1)
        options["seq_idx"] = numbers.int().expand(n_batch, length).contiguous()

    def scan(*args: Tensor) -> Tensor:
        return ssd_scan(*args[:-1], initial_state=args[-1], **options)

    def reference(*args: Tensor) -> Tensor:
        return ssd_scan_reference(*args[:-1], initial_state=args[-1], **options)[0]

    return compared(scan, reference, inputs)


def measure_ssd_op(bench: Bench) -> None:
    """The whole operation as a caller sees it, Python included, where the kernels themselves take little."""
    sizes = SMALL_SHAPES["short"] if bench.device.rehearsing else OP_SIZES
    for dtype in bench.dtypes.values():
        for mode in ("forward", "forward+backward"):
            cell = {"what": "ssd_op", "shape": "x".join(map(str, sizes)), "sizes": sizes, "mode": mode}
            cells = {name: cell | SSD_METHODS[name].fields(dtype) for name in ("ours", SSD_PEER)}
            if all(bench.has(x) for x in cells.values()):
                continue

            def make(name: str, dtype=dtype, mode=mode) -> Call:
                inputs = make_inputs(sizes, dtype, bench.device.device)
                del inputs["z"]
                tune_anew((sizes, dtype))
                return make_call(SSD_METHODS[name].scan, in_order(inputs), mode)

            time_operations(bench, cells, make)


def measure_ssd_step(bench: Bench) -> None:
    """One step of generation: what it moves, at which rate."""
    batches, shape = (1, 2), (2, 4, 4)
    if not bench.device.rehearsing:
        batches, shape = STEP_BATCHES, STEP_SIZES
    for dtype in bench.dtypes.values():
        for sizes in ((n_batch, *shape) for n_batch in batches):
            cell = {"what": "ssd_step", "shape": "x".join(map(str, sizes)), "sizes": sizes, "mode": "step"}
            cells = {name: cell | fields(name, dtype, "BHP") for name in STEPS}
            if all(bench.has(x) for x in cells.values()):
                continue

            def make(name: str, seed: int, sizes=sizes, dtype=dtype) -> Call:
                return partial(no_grad_step, STEPS[name], *step_inputs(sizes, dtype, bench.device.device, seed))

            moved = step_bytes(sizes, dtype.itemsize)
            values, ways = timed_side_by_side(bench, cells, make, copies_for(moved, bench.device.cache), "ours")
            for name, x in cells.items():
                if name in ways and "median_us" in values[name]:
                    values[name] |= step_rates(bench, moved, values[name]["median_us"], ways[name])
                if name in ways and name != "ours":
                    found, reason = bench.guarded(lambda name=name: distance(make(name, 0)(), make("ours", 0)()))
                    values[name]["difference"] = found if found is not None else next(iter(reason.values()))
                bench.add(x, values[name])


def step_inputs(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """Return a float32 state (B, H, P, N) and the inputs of one step, from x to dt_bias without a gate."""
    n_batch, heads, dim, n_state = sizes
    inputs = make_inputs((n_batch, 1, heads, dim, 1, n_state), dtype, device, seed)
    del inputs["z"]
    state = torch.randn(sizes, device=device, generator=torch.Generator(device).manual_seed(seed))
    return state, [x[:, 0].contiguous() if name in PER_STEP else x for name, x in inputs.items()]


def own_step(state, x, dt, A, B, C, D, dt_bias) -> Tensor:
    return ssd_state_update(state, x, dt, A, B, C, D, dt_bias=dt_bias)


def peer_step(state, x, dt, A, B, C, D, dt_bias) -> Tensor:
    """Run mamba_ssm's step; what a head shares is expanded, without copies, by which it knows that it is shared."""
    update = mamba_module("ops.triton.selective_state_update").selective_state_update
    rates, step_sizes = A[:, None, None].expand(state.shape[1:]), dt[..., None].expand(x.shape)
    skip, bias = (weight[:, None].expand(x.shape[1:]) for weight in (D, dt_bias))
    return update(state, x, step_sizes, rates, B, C, skip, dt_bias=bias, dt_softplus=True)


STEPS: dict[str, Callable[..., Tensor]] = {"ours": own_step, STEP_PEER: peer_step}

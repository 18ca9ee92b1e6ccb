"""What the device can do at most, measured in the run that quotes it: copying, exp2, and issuing instructions."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false
# The language of the kernels is not the Python that a type checker knows.

import statistics

import torch
import triton
import triton.language as tl
from roofline import WARP, Rates

BLOCK = 1024  # values of a program of four warps: eight independent chains in a thread, which hide the latency
WARPS = 4
PROGRAMS_PER_PROCESSOR = 64
STEPS = 4096
COPY_BYTES = 2 << 30  # of the source; several times any cache
UNROLLED = tl.constexpr(16)


@triton.jit
def exp2_kernel(out, start, steps, BLOCK: tl.constexpr):
    """Take exp2 of its own negated result, 16 times in each step; the minus is free in the special function unit."""
    x = start + tl.arange(0, BLOCK).to(tl.float32) / BLOCK
    for _ in range(0, steps, UNROLLED):
        for _ in tl.static_range(UNROLLED):
            x = tl.exp2(-x)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), x)


@triton.jit
def issue_kernel(out, factor, addend, steps, BLOCK: tl.constexpr):
    """Multiply and add, 16 times in each step: one instruction of a warp for 32 values."""
    x = tl.arange(0, BLOCK).to(tl.float32)
    for _ in range(0, steps, UNROLLED):
        for _ in tl.static_range(UNROLLED):
            x = tl.fma(x, factor, addend)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), x)


def measure_rates(device, repeats: int) -> Rates:
    """Return bytes copied (read plus written), special functions and warp instructions per second.

    Parameters
    ----------
    device : Cuda or Rehearsal
    repeats : int
        Timed runs of each, of which the median counts.
    """
    n_programs = device.processors * PROGRAMS_PER_PROCESSOR
    steps, n_bytes = STEPS, min(COPY_BYTES, device.free_memory() // 4)
    if device.rehearsing:
        n_programs, steps, n_bytes = 2, 2 * UNROLLED.value, 1 << 16
    source = torch.empty(n_bytes // 4, device=device.device).normal_()
    target = torch.empty_like(source)
    out = torch.empty(n_programs * BLOCK, device=device.device)
    options = {"BLOCK": BLOCK, "num_warps": WARPS, "enable_fp_fusion": True}
    calls = {
        "copy": lambda: target.copy_(source),
        "exp2": lambda: exp2_kernel[(n_programs,)](out, 0.5, steps, **options),
        "issue": lambda: issue_kernel[(n_programs,)](out, 0.999, 0.001, steps, **options),
    }
    took = {name: _median(device, call, repeats) for name, call in calls.items()}
    done = n_programs * BLOCK * steps
    return Rates(2 * 4 * source.numel() / took["copy"], done / took["exp2"], done / WARP / took["issue"])


def _median(device, call, repeats: int) -> float:
    for _ in range(2):  # the first run compiles
        device.timed(call)
    return statistics.median(device.timed(call) for _ in range(repeats))

"""A rival of the scan on a GPU: the same recurrence by `tl.associative_scan`, forward only.

This is how a scan is usually written in Triton. One program serves one batch element and a block of channels; it walks
over blocks of time, scans the pairs (decay, input) of a block for all states at once, and hands the last state on. The
tile is (steps, channels, states). The work per element is several times that of the plain recurrence: each level of the
scan combines pairs, and values move between threads.

References
----------
Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false
# The language of the kernels is not the Python that a type checker knows.

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
CONFIGS = ((32, 16, 8), (16, 16, 4), (64, 4, 4), (128, 1, 1))  # steps, channels, warps; the benchmark takes the fastest


@triton.jit
def combine(decay_left, state_left, decay_right, state_right):
    """Join two neighbouring spans of time."""
    return decay_left * decay_right, decay_right * state_left + state_right


@triton.jit
def associative_kernel(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    y,
    length,
    n_channels,
    n_state,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Scan one block of channels of one batch element; all tensors are contiguous, channels last."""
    blocks = tl.cdiv(n_channels, CHANNELS)
    batch = tl.full([], 0, tl.int64) + tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    live, states = d < n_channels, n < n_state
    tile = live[:, None] & states[None, :]
    A2 = tl.load(A + d[:, None] * n_state + n[None, :], mask=tile, other=0.0).to(tl.float32) * LOG2E
    skip = tl.load(D + d, mask=live, other=0.0).to(tl.float32)
    shift = tl.load(bias + d, mask=live, other=0.0).to(tl.float32)
    h = tl.zeros([CHANNELS, STATES], tl.float32)
    for start in range(0, length, STEPS):
        t = start + tl.arange(0, STEPS)
        here = t < length
        row = (batch * length + t)[:, None] * n_channels + d[None, :]
        both = here[:, None] & live[None, :]
        x = tl.load(u + row, mask=both, other=0.0).to(tl.float32)
        step = tl.load(delta + row, mask=both, other=0.0).to(tl.float32) + shift[None, :]
        dt = tl.maximum(step, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(step) * LOG2E)) * LN2
        dt = tl.where(both, dt, 0.0)
        mix = (batch * length + t)[:, None] * n_state + n[None, :]
        mixed = here[:, None] & states[None, :]
        enters = tl.load(B + mix, mask=mixed, other=0.0).to(tl.float32)
        leaves = tl.load(C + mix, mask=mixed, other=0.0).to(tl.float32)
        decay = tl.exp2(dt[:, :, None] * A2[None, :, :])
        drive = (dt * x)[:, :, None] * enters[:, None, :]
        through, reached = tl.associative_scan((decay, drive), 0, combine)
        reached += through * h[None, :, :]
        last = (tl.arange(0, STEPS) == STEPS - 1)[:, None, None]
        h = tl.sum(tl.where(last, reached, 0.0), axis=0)
        value = tl.sum(reached * leaves[:, None, :], axis=2) + skip[None, :] * x
        gate = tl.load(z + row, mask=both, other=0.0).to(tl.float32)
        value *= gate / (1.0 + tl.exp2(-gate * LOG2E))
        tl.store(y + row, value.to(y.dtype.element_ty), mask=both)


def associative_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor, config=None
) -> Tensor:
    """Scan forward; there is no derivative.

    Parameters
    ----------
    u, delta, z : Tensor (B, L, D)
        Contiguous, as are all others.
    A : Tensor (D, N)
    B, C : Tensor (B, L, N)
    D, delta_bias : Tensor (D,)
    config : tuple of int, optional
        Steps, channels and warps of a program; the first of CONFIGS if not given.

    Returns
    -------
    Tensor (B, L, D)

    Raises
    ------
    ValueError
        If a tensor is not contiguous.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    strided = [name for name, x in tensors.items() if not x.is_contiguous()]
    if strided:
        raise ValueError(f"the associative scan takes contiguous tensors; call .contiguous() on {', '.join(strided)}")
    n_batch, length, n_channels = u.shape
    steps, channels, warps = config or CONFIGS[0]
    y = torch.empty_like(u)
    associative_kernel[(n_batch * triton.cdiv(n_channels, channels),)](
        *tensors.values(),
        y,
        length,
        n_channels,
        A.shape[1],
        STATES=triton.next_power_of_2(A.shape[1]),
        CHANNELS=channels,
        STEPS=steps,
        num_warps=warps,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return y

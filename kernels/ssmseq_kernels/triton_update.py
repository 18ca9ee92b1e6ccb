"""One step of the scan in place, in Triton, for generation."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

from typing import Any

import torch
import triton
import triton.language as tl

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.reference import selective_state_update_reference
from ssmseq_kernels.results import contiguous
from ssmseq_kernels.triton_common import LOG2E, ceil_div, channels_of, sigmoid, softplus, vector
from ssmseq_kernels.triton_replay import Replayed


@common.Kernel
@triton.jit
def update_kernel(
    state,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    y,
    strides,
    n_channels,
    n_state,
    blocks,
    per_group,
    smallest,
    largest,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FULL: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEAD: tl.constexpr,
    SKIP_HEAD: tl.constexpr,
    ONE_RATE: tl.constexpr,
    LIMITED: tl.constexpr,
):
    """Advance the state of one block of channels of one batch element.

    Channels of a HEAD have delta, bias and A in common, and with ONE_RATE A is of a head; SKIP_HEAD of them share D.
    """
    ss, su, sdelta, sA, sB, sC, sz, sy = strides
    n_blocks = n_channels // per_group * blocks
    pid = tl.program_id(0)
    batch = tl.full([], 0, tl.int64) + pid // n_blocks
    group, d, live = channels_of(pid % n_blocks, blocks, per_group, CHANNELS, FULL)
    n = tl.arange(0, STATES)
    n_mask = n < n_state
    tile = n_mask[:, None] & live[None, :]
    place = state + batch * ss[0] + d[None, :] * ss[1] + n[:, None] * ss[2]
    h = tl.load(place, mask=tile, other=0.0)
    head = d // HEAD
    if ONE_RATE:
        A2 = tl.load(A + head * sA[0], mask=live, other=0.0)[None, :] * LOG2E
    else:
        A2 = tl.load(A + d[None, :] * sA[0] + n[:, None] * sA[1], mask=tile, other=0.0) * LOG2E
    x = tl.load(u + batch * su[0] + d * su[1], mask=live, other=0.0).to(tl.float32)
    dt = tl.load(delta + batch * sdelta[0] + head * sdelta[1], mask=live, other=0.0).to(tl.float32)
    dt += vector(bias, head, live, HAS_BIAS)
    if SOFTPLUS:
        dt, _ = softplus(dt)
    if LIMITED:  # so that what is no number stays none
        dt = tl.where(dt < smallest, smallest, dt)
        dt = tl.where(dt > largest, largest, dt)
    across = n[:, None]
    enters = tl.load(B + batch * sB[0] + group * sB[1] + across * sB[2], mask=n_mask[:, None], other=0.0)
    leaves = tl.load(C + batch * sC[0] + group * sC[1] + across * sC[2], mask=n_mask[:, None], other=0.0)
    h = tl.exp2(dt[None, :] * A2) * h + (dt * x)[None, :] * enters.to(tl.float32)
    tl.store(place, h, mask=tile)
    value = tl.sum(h * leaves.to(tl.float32), axis=0) + vector(D, d // SKIP_HEAD, live, HAS_D) * x
    if HAS_Z:
        gate = tl.load(z + batch * sz[0] + d * sz[1], mask=live, other=0.0).to(tl.float32)
        value *= gate * sigmoid(gate)
    tl.store(y + batch * sy[0] + d * sy[1], value.to(y.dtype.element_ty), mask=live)


@Replayed
def update_checked(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Advance state (B, D, N) by one step in place; return y (B, D)."""
    if state.stride(2) != 1 and state.shape[2] > 1:
        raise ValueError(f"the last axis of state must have stride 1, got strides {state.stride()}")
    y = torch.empty_like(u)
    if not u.numel():
        return y
    if state.dtype == torch.float64:
        rest: Any = (D, z, delta_bias)
        return y.copy_(selective_state_update_reference(state, u, delta, A, B, C, *rest, delta_softplus=delta_softplus))
    _launch(state, u, delta, A, B, C, D, z, delta_bias, y, delta_softplus, None)
    return y


def update_heads(state, x, dt, A, B, C, D, z, dt_bias, *, softplus, limit):
    """Advance state (B, H, P, N) by one step of Mamba-2 in place; return y (B, H, P).

    None if the state is float64 or does not lie as one of (B, H P, N), or has more numbers than a program takes.
    """
    return _update_heads(state, x, dt, A, B, C, D, z, dt_bias, softplus, limit)


@Replayed
def _update_heads(state, x, dt, A, B, C, D, z, dt_bias, softplus, limit):
    n_batch, n_heads, dim, n_state = state.shape
    lies = state.stride(1) == dim * state.stride(2) and state.stride(3) == 1
    if state.dtype != torch.float32 or not lies or n_state > max(common.FORWARD_TILES):
        return None
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() and n_state:
        flat = state.view(n_batch, n_heads * dim, n_state)
        D = D if D is None else D.flatten()
        z = z if z is None else z.flatten(1)
        _launch(flat, x.flatten(1), dt, A, B, C, D, z, dt_bias, y.flatten(1), softplus, limit)
    return y


def _launch(state, u, delta, A, B, C, D, z, delta_bias, y, softplus, limit) -> None:
    """Launch a step of channels, or, with A (H,), of heads."""
    D, delta_bias = contiguous(D, delta_bias)
    n_batch, n_channels = u.shape
    head = n_channels // delta.shape[1]
    per_group = n_channels // B.shape[1]
    tile = common.tile_of(state.shape[2], common.FORWARD_TILES)
    blocks = ceil_div(per_group, tile.channels)
    strides = [(u if x is None else x).stride() for x in (state, u, delta, A, B, C, z, y)]
    named = common.constants(
        tile.warps,
        SOFTPLUS=softplus,
        HAS_D=D is not None,
        HAS_Z=z is not None,
        HAS_BIAS=delta_bias is not None,
        FULL=per_group % tile.channels == 0,
        STATES=tile.states,
        CHANNELS=tile.channels,
        HEAD=head,
        SKIP_HEAD=1 if D is None else n_channels // D.shape[0],
        ONE_RATE=A.dim() == 1,
        LIMITED=limit is not None,
    )
    others = [u if x is None else x for x in (D, z, delta_bias)]
    numbers = (tuple(strides), n_channels, state.shape[2], blocks, per_group, *(limit or (0.0, 0.0)))
    programs = n_batch * B.shape[1] * blocks
    update_kernel.launch(programs, (state, u, delta, A, B, C, *others, y), numbers, named)

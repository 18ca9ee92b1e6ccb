"""The selective scan forward in Triton: one program walks a block of channels through time, states in registers.

Where batch times channels make too few programs, time is cut into parts: a first pass finds the state that each part
hands on when it starts from zero, and the sum of its steps, whose exponential is the part's whole decay; the parts are
linked one after the other, and the scan itself then runs over all parts side by side.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

import triton
import triton.language as tl

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import (
    LOG2E,
    channels_of,
    chosen,
    decay,
    decays_of,
    fetch,
    mixer_at,
    mixer_fixed,
    mixer_row,
    pinned,
    row,
    rows_at,
    sigmoid,
    source_at,
    vector,
    when,
    where_less,
)

CHUNK = tl.constexpr(common.CHUNK)
COUNT = tl.constexpr(common.FORWARD_POINTERS)
UNSPECIALIZED = ("length", "blocks", "parts", "part_steps", "zero")


@triton.jit
def fetch_output(j, count, outlet, live, n_mask, HAS_Z, CONST_C, ALL):
    """C of the j-th step, and the gate's factor."""
    C, sC, fixed, z, sz = outlet
    mixer = mixer_row(C, fixed, tl.minimum(j, count - 1) * sC, n_mask, CONST_C, ALL)
    gate = tl.full(live.shape, 1.0, tl.float32)
    if HAS_Z:
        gate = row(z, j * sz, where_less(live, j, count))
        gate = gate * sigmoid(gate)
    return mixer, gate


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    first,
    second,
    strides,
    sy,
    length,
    n_channels,
    n_state,
    blocks,
    per_group,
    parts,
    part_steps,
    zero,
    DIRECTION: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr,
    CONST_C: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    KEEP: tl.constexpr,
    FINAL: tl.constexpr,
    LINKED: tl.constexpr,
    FULL: tl.constexpr,
    ALL: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Scan one part of time for one block of channels of one batch element."""
    n_blocks = n_channels // per_group * blocks
    pid = tl.program_id(0)
    back = DIRECTION
    if DIRECTION == 2:
        back = pid % 2
        pid = pid // 2
    own = first
    if DIRECTION == 2:
        own = chosen(first, second, back, COUNT)
    block, part = pid % n_blocks, pid // n_blocks % parts
    batch = tl.full([], 0, tl.int64) + pid // n_blocks // parts
    group, d, live = channels_of(block, blocks, per_group, CHANNELS, FULL)
    n = tl.arange(0, STATES)
    n_mask = n < n_state
    tile = n_mask[:, None] & live[None, :]

    across = n[:, None] * tl.full([], n_channels, tl.int64) + d[None, :] + zero
    size = tl.full([], n_channels, tl.int64) * n_state
    sz, sC, sh = strides[2], strides[5], strides[6]
    A2 = decays_of(own, strides, d, n, tile)
    h = tl.zeros([STATES, CHANNELS], tl.float32)
    if LINKED:
        h = tl.load(own[13] + (batch * parts + part) * size + across, mask=tile, other=0.0)
    elif HAS_STATE:
        h0 = own[8] + batch * sh[0] + d[None, :] * sh[1] + n[:, None] * sh[2]
        h = tl.load(h0, mask=tile, other=0.0).to(tl.float32)
    fixed_B = mixer_fixed(own[3], strides[4], d, n, tile, A2, CONST_B)
    fixed_C = mixer_fixed(own[4], sC, d, n, tile, A2, CONST_C)
    pin = pinned(own[2], n[:, None] * n_channels + d.to(tl.int32)[None, :] + zero, zero)
    A2, h, fixed_B, fixed_C = A2 + pin, h + pin, fixed_B + pin, fixed_C + pin
    bias = vector(own[7], d, live, HAS_BIAS)
    skip = vector(own[5], d, live, HAS_D)
    C, z, y = own[4], own[6], own[10]
    kept = own[12] + batch * ((length + CHUNK - 1) // CHUNK - 1) * size

    sign = 1 - 2 * back
    begin = part * part_steps
    end = tl.minimum(begin + part_steps, length)
    for start in range(begin, end, CHUNK):
        count = tl.minimum(CHUNK, end - start)
        place = when(start, length, back)
        source = source_at(own, strides, sign, batch, group, place, d, n, bias, fixed_B)
        leaves = mixer_at(C, batch, group, sC, place, n)
        outlet = (leaves, sC[1] * sign, fixed_C, rows_at(z, batch, sz, place, d), sz[1] * sign)
        rows, sr = rows_at(y, batch, sy, place, d), sy[1] * sign
        for j in range(0, count, UNROLL):
            moves, outs = (), ()
            for k in tl.static_range(UNROLL):
                moves += (fetch(j + k, count, start, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B, ALL),)
                outs += (fetch_output(j + k, count, outlet, live, n_mask, HAS_Z, CONST_C, ALL),)
            for k in tl.static_range(UNROLL):
                x, dt, _slope, enters, restart = moves[k]
                C_now, gate = outs[k]
                h = decay(dt, A2, restart, HAS_SEQ) * h + (dt * x)[None, :] * enters
                value = (tl.sum(h * C_now, axis=0) + skip * x) * gate
                tl.store(rows + (j + k) * sr, value.to(y.dtype.element_ty), mask=where_less(live, j + k, count))
        if KEEP:
            tl.store(kept + (start // CHUNK) * size + across, h, mask=where_less(tile, start + count, length))
    if FINAL:
        final = own[11] + batch * size + d[None, :] * n_state + n[:, None]
        tl.store(final, h, mask=where_less(tile, length, end + 1))


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def ends_kernel(
    first,
    second,
    strides,
    length,
    n_channels,
    n_state,
    blocks,
    per_group,
    parts,
    part_steps,
    zero,
    DIRECTION: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    FULL: tl.constexpr,
    ALL: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Find the state that a part (not the last) hands on from zero, its sum of steps, and whether none begins anew."""
    n_blocks = n_channels // per_group * blocks
    pid = tl.program_id(0)
    back = DIRECTION
    if DIRECTION == 2:
        back = pid % 2
        pid = pid // 2
    own = first
    if DIRECTION == 2:
        own = chosen(first, second, back, COUNT)
    block, part = pid % n_blocks, pid // n_blocks % (parts - 1)
    batch = tl.full([], 0, tl.int64) + pid // n_blocks // (parts - 1)
    group, d, live = channels_of(block, blocks, per_group, CHANNELS, FULL)
    n = tl.arange(0, STATES)
    n_mask = n < n_state
    tile = n_mask[:, None] & live[None, :]
    across = n[:, None] * tl.full([], n_channels, tl.int64) + d[None, :] + zero
    A2 = decays_of(own, strides, d, n, tile)
    fixed = mixer_fixed(own[3], strides[4], d, n, tile, A2, CONST_B)
    pin = pinned(own[2], n[:, None] * n_channels + d.to(tl.int32)[None, :] + zero, zero)
    A2, fixed = A2 + pin, fixed + pin
    bias = vector(own[7], d, live, HAS_BIAS)
    h = pin
    total = tl.zeros([CHANNELS], tl.float32)
    opened = tl.full([CHANNELS], 1.0, tl.float32)
    sign = 1 - 2 * back
    begin = part * part_steps
    for start in range(begin, begin + part_steps, CHUNK):
        place = when(start, length, back)
        source = source_at(own, strides, sign, batch, group, place, d, n, bias, fixed)
        for j in range(0, CHUNK, UNROLL):
            moves = ()
            for k in tl.static_range(UNROLL):
                moves += (fetch(j + k, CHUNK, start, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B, ALL),)
            for k in tl.static_range(UNROLL):
                x, dt, _slope, enters, restart = moves[k]
                h = decay(dt, A2, restart, HAS_SEQ) * h + (dt * x)[None, :] * enters
                total += dt
                if HAS_SEQ:
                    opened = tl.where(restart, 0.0, opened)
    slot = batch * parts + part
    tl.store(own[13] + slot * n_state * n_channels + across, h, mask=tile)
    sums = own[14] + slot * 2 * n_channels + d
    tl.store(sums, total, mask=live)
    tl.store(sums + n_channels, opened, mask=live)


@common.Kernel
@triton.jit(do_not_specialize=("parts",))
def link_kernel(
    first,
    second,
    sA,
    se,
    n_channels,
    n_state,
    parts,
    DIRECTION: tl.constexpr,
    HAS_EDGE: tl.constexpr,
    ADJOINT: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Replace what each part hands on by what it receives, part after part (from the last one for the adjoint)."""
    pid = tl.program_id(0)
    back = DIRECTION
    if DIRECTION == 2:
        back = pid % 2
        pid = pid // 2
    own = first
    if DIRECTION == 2:
        own = chosen(first, second, back, 4)
    n_blocks = tl.cdiv(n_channels, CHANNELS)
    d = tl.full([], 0, tl.int64) + (pid % n_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.full([], 0, tl.int64) + pid // n_blocks
    live = d < n_channels
    n = tl.arange(0, STATES)
    tile = (n < n_state)[:, None] & live[None, :]
    carries, sums, A, edge = own
    A += d[None, :] * sA[0] + n[:, None] * sA[1]
    A2 = tl.load(A, mask=tile, other=0.0).to(tl.float32) * LOG2E
    state = tl.zeros([STATES, CHANNELS], tl.float32)
    if HAS_EDGE:
        edge += batch * se[0] + d[None, :] * se[1] + n[:, None] * se[2]
        state = tl.load(edge, mask=tile, other=0.0).to(tl.float32)
    across = n[:, None] * tl.full([], n_channels, tl.int64) + d[None, :]
    for i in range(0, parts):
        part = i
        if ADJOINT:
            part = parts - 1 - i
        slot = batch * parts + part
        carry = carries + slot * n_state * n_channels + across
        from_zero = tl.load(carry, mask=where_less(tile, i + 1, parts), other=0.0)
        tl.store(carry, state, mask=tile)
        place = sums + slot * 2 * n_channels + d
        total = tl.load(place, mask=where_less(live, i + 1, parts), other=0.0)
        opened = tl.load(place + n_channels, mask=where_less(live, i + 1, parts), other=0.0)
        state = from_zero + tl.where(opened[None, :] > 0, tl.exp2(total[None, :] * A2) * state, 0.0)

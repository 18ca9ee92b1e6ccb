"""The selective scan backward in Triton: states of one chunk are recomputed, then the adjoint runs back through them.

A chunk starts from the state that the forward pass kept. It is walked once to find the state that enters each of its
segments; then, from the last segment to the first, the states of a segment are recomputed into memory of the program,
which stays in the caches, and read back in reverse. The state before a step is read itself, never found by subtraction.
Sums over channels (for B and C) go to memory of each block of channels, those over time (for A, D and the bias) are
taken chunk by chunk; the launcher adds them up in one order.

Programs take block after block, so that the memory for states does not grow with the batch. Where time is cut into
parts, a first pass finds the adjoint that each part hands to the part before it.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

import triton
import triton.language as tl

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import (
    LN2,
    channels_of,
    decay,
    fetch,
    mixer_base,
    mixer_fixed,
    mixer_row,
    pick,
    row,
    sigmoid,
    source_of,
    vector,
    when,
    where_less,
)

CHUNK = tl.constexpr(common.CHUNK)
SEGMENT = tl.constexpr(common.SEGMENT)
UNSPECIALIZED = ("length", "blocks", "parts", "part_steps", "n_tiles")


@triton.jit
def locate(index, direction, n_blocks, parts):
    """Direction, block, part and batch element of a piece of work."""
    back = direction
    if direction == 2:
        back = index % 2
        index = index // 2
    batch = tl.full([], 0, tl.int64) + index // n_blocks // parts
    return back, index % n_blocks, index // n_blocks % parts, batch


@triton.jit
def inlet_of(first, second, strides, one, sg, back, batch, group, d, n, tile, otherwise, CONST_C):
    """What the adjoint is moved by: the gradient of y, C and the gate, at time zero."""
    sz, sC = strides[2], strides[5]
    C = mixer_base(pick(first[4], second[4], back), batch, group, n, d, one, sC, CONST_C)
    fixed = mixer_fixed(C, tile, otherwise, CONST_C)
    z = pick(first[6], second[6], back) + batch * sz[0] + d * sz[2]
    grad = pick(first[10], second[10], back) + batch * sg[0] + d * sg[2]
    return C, sC[1], fixed, z, sz[1], grad, sg[1]


@triton.jit
def fetch_gradient(place, inlet, live, n_mask, HAS_Z, CONST_C):
    """Gradient of y before the gate, gradient of y, gate, its logistic function, and C of one step."""
    C, sC, fixed, z, sz, grad, sg = inlet
    mixer = mixer_row(C, fixed, place, sC, n_mask[:, None], CONST_C)
    out = row(grad, place, sg, live)
    before, gate, s = out, out, out
    if HAS_Z:
        gate = row(z, place, sz, live)
        s = sigmoid(gate)
        before = out * gate * s
    return before, out, gate, s, mixer


@triton.jit
def rows_sum(pointer, value, n, n_mask):
    """Store the sum over channels of a tile."""
    tl.store(pointer + n, tl.sum(value, axis=1), mask=n_mask)


@triton.jit
def add_to(pointer, value, mask):
    """Add to memory that no other program touches."""
    tl.store(pointer, tl.load(pointer, mask=mask, other=0.0) + value, mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    first,
    second,
    strides,
    result_strides,
    scratch,
    n_tiles,
    n_batch,
    length,
    n_channels,
    n_state,
    blocks,
    per_group,
    parts,
    part_steps,
    one,
    DIRECTION: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr,
    CONST_C: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    HAS_EDGE: tl.constexpr,
    LINKED: tl.constexpr,
    FULL: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Find all gradients for pieces of work (block, part, batch element), one after the other."""
    n_blocks = n_channels // per_group * blocks
    sh = strides[6]
    sg, se, sdu, sdd, sdz, sdh = result_strides
    n = tl.arange(0, STATES)
    n_mask = n < n_state
    size = tl.full([], n_channels, tl.int64) * n_state
    local = n[:, None] * CHANNELS + (tl.arange(0, CHANNELS) * one)[None, :]
    slots = scratch + (tl.full([], 0, tl.int64) + tl.program_id(0)) * ((SEGMENT + CHUNK // SEGMENT) * STATES * CHANNELS)
    for index in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        back, block, part, batch = locate(index, DIRECTION, n_blocks, parts)
        group, d, live = channels_of(block, blocks, per_group, CHANNELS, FULL)
        tile = n_mask[:, None] & live[None, :]
        across = n[:, None] * n_channels + d.to(tl.int32)[None, :]
        source = source_of(
            first, second, strides, one, back, batch, group, d, n, n_state, live, HAS_BIAS, HAS_SEQ, CONST_B
        )
        A2 = source[10]
        inlet = inlet_of(first, second, strides, one, sg, back, batch, group, d, n, tile, A2, CONST_C)
        skip = vector(pick(first[5], second[5], back), d, live, HAS_D)
        du = pick(first[15], second[15], back) + batch * sdu[0] + d * sdu[2]
        ddelta = pick(first[16], second[16], back) + batch * sdd[0] + d * sdd[2]
        dz = pick(first[17], second[17], back) + batch * sdz[0] + d * sdz[2]
        slot = batch * parts + part
        dA = pick(first[19], second[19], back) + slot * size
        rows = ((block % blocks) * n_batch + batch) * length * (n_channels // per_group) + group
        dB, dC = pick(first[20], second[20], back), pick(first[21], second[21], back)
        if CONST_B:
            dB += slot * size
        else:
            dB += rows * n_state
        if CONST_C:
            dC += slot * size
        else:
            dC += rows * n_state
        kept = pick(first[12], second[12], back) + batch * ((length + CHUNK - 1) // CHUNK - 1) * size
        per_step = tl.full([], 0, tl.int64) + n_channels // per_group * n_state

        g = tl.zeros([STATES, CHANNELS], tl.float32)
        if LINKED:
            g = tl.load(pick(first[13], second[13], back) + slot * size + across, mask=tile, other=0.0)
        elif HAS_EDGE:
            edge = (
                pick(first[11], second[11], back)
                + batch * se[0]
                + (d * one)[None, :] * se[1]
                + (n * one)[:, None] * se[2]
            )
            g = tl.load(edge, mask=tile, other=0.0).to(tl.float32)
        sum_D = tl.zeros([CHANNELS], tl.float32)
        sum_bias = tl.zeros([CHANNELS], tl.float32)

        begin = part * part_steps
        end = tl.minimum(begin + part_steps, length)
        chunks = (end - begin + CHUNK - 1) // CHUNK
        for i in range(0, chunks):
            start = begin + (chunks - 1 - i) * CHUNK
            stop = tl.minimum(start + CHUNK, end)
            h = tl.load(kept + (start // CHUNK - 1) * size + across, mask=where_less(tile, 0, start), other=0.0)
            if HAS_STATE:
                h0 = (
                    pick(first[8], second[8], back)
                    + batch * sh[0]
                    + (d * one)[None, :] * sh[1]
                    + (n * one)[:, None] * sh[2]
                )
                h += tl.load(h0, mask=where_less(tile, start, 1), other=0.0).to(tl.float32)
            segments = (stop - start + SEGMENT - 1) // SEGMENT
            tl.store(slots + SEGMENT * STATES * CHANNELS + local, h)
            for j in range(0, segments - 1):
                for t in range(start + j * SEGMENT, start + (j + 1) * SEGMENT, UNROLL):
                    moves = ()
                    for k in tl.static_range(UNROLL):
                        moves += (fetch(t + k, stop, length, back, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B),)
                    for k in tl.static_range(UNROLL):
                        x, dt, slope, B, restart = moves[k]
                        h = decay(dt, A2, restart, HAS_SEQ) * h + (dt * x)[None, :] * B
                tl.store(slots + (SEGMENT + 1 + j) * STATES * CHANNELS + local, h)
            sum_A = tl.zeros([STATES, CHANNELS], tl.float32)
            sum_B, sum_C = sum_A, sum_A
            part_D = tl.zeros([CHANNELS], tl.float32)
            part_bias = tl.zeros([CHANNELS], tl.float32)
            for j in range(0, segments):
                at = start + (segments - 1 - j) * SEGMENT
                until = tl.minimum(at + SEGMENT, stop)
                tl.debug_barrier()
                h = tl.load(slots + (SEGMENT + segments - 1 - j) * STATES * CHANNELS + local)
                for t in range(at, until, UNROLL):
                    moves = ()
                    for k in tl.static_range(UNROLL):
                        moves += (fetch(t + k, until, length, back, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B),)
                    for k in tl.static_range(UNROLL):
                        x, dt, slope, B, restart = moves[k]
                        tl.store(slots + (t - at + k) * STATES * CHANNELS + local, h)
                        h = decay(dt, A2, restart, HAS_SEQ) * h + (dt * x)[None, :] * B
                tl.debug_barrier()
                for r in range(0, until - at):
                    t = until - 1 - r
                    place = when(t, length, back)
                    before = tl.load(slots + (t - at) * STATES * CHANNELS + local)
                    x, dt, slope, B, restart = fetch(
                        t, until, length, back, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B
                    )
                    dy, dout, gate, s, C = fetch_gradient(place, inlet, live, n_mask, HAS_Z, CONST_C)
                    if HAS_Z:
                        value = tl.sum(h * C, axis=0) + skip * x
                        grad_z = dout * value * s * (1.0 + gate * (1.0 - s))
                        tl.store(dz + place * sdz[1], grad_z.to(dz.dtype.element_ty), mask=live)
                    adjoint = C * dy[None, :] + g
                    if CONST_C:
                        sum_C += h * dy[None, :]
                    else:
                        rows_sum(dC + place * per_step, h * dy[None, :], n, n_mask)
                    if CONST_B:
                        sum_B += adjoint * (dt * x)[None, :]
                    else:
                        rows_sum(dB + place * per_step, adjoint * (dt * x)[None, :], n, n_mask)
                    g = decay(dt, A2, restart, HAS_SEQ) * adjoint
                    through = g * before
                    sum_A += through * dt[None, :]
                    along = tl.sum(adjoint * B, axis=0)
                    grad_dt = tl.sum(through * A2, axis=0) * LN2 + along * x
                    if SOFTPLUS:
                        grad_dt = grad_dt * slope
                    grad_u = skip * dy + dt * along
                    tl.store(du + place * sdu[1], grad_u.to(du.dtype.element_ty), mask=live)
                    tl.store(ddelta + place * sdd[1], grad_dt.to(ddelta.dtype.element_ty), mask=live)
                    part_D += dy * x
                    part_bias += grad_dt
                    h = before
            add_to(dA + across, sum_A, tile)
            if CONST_B:
                add_to(dB + across, sum_B, tile)
            if CONST_C:
                add_to(dC + across, sum_C, tile)
            sum_D += part_D
            sum_bias += part_bias
        sums = pick(first[22], second[22], back) + slot * 2 * n_channels + d
        tl.store(sums, sum_D, mask=live)
        tl.store(sums + n_channels, sum_bias, mask=live)
        if HAS_STATE:
            dh = (
                pick(first[18], second[18], back)
                + batch * sdh[0]
                + (d * one)[None, :] * sdh[1]
                + (n * one)[:, None] * sdh[2]
            )
            tl.store(dh, g.to(dh.dtype.element_ty), mask=where_less(tile, part, 1))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def adjoint_ends_kernel(
    first,
    second,
    strides,
    sg,
    length,
    n_channels,
    n_state,
    blocks,
    per_group,
    parts,
    part_steps,
    one,
    DIRECTION: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr,
    CONST_C: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    FULL: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Find the adjoint that a part (not the first) hands on from zero, its sum of steps, and if none begins anew."""
    n_blocks = n_channels // per_group * blocks
    back, block, part, batch = locate(tl.program_id(0), DIRECTION, n_blocks, parts - 1)
    part += 1
    group, d, live = channels_of(block, blocks, per_group, CHANNELS, FULL)
    n = tl.arange(0, STATES)
    n_mask = n < n_state
    tile = n_mask[:, None] & live[None, :]
    source = source_of(first, second, strides, one, back, batch, group, d, n, n_state, live, HAS_BIAS, HAS_SEQ, CONST_B)
    A2 = source[10]
    inlet = inlet_of(first, second, strides, one, sg, back, batch, group, d, n, tile, A2, CONST_C)
    g = tl.zeros([STATES, CHANNELS], tl.float32)
    total = tl.zeros([CHANNELS], tl.float32)
    opened = tl.full([CHANNELS], 1.0, tl.float32)
    begin = part * part_steps
    end = tl.minimum(begin + part_steps, length)
    for r in range(0, end - begin):
        t = end - 1 - r
        _x, dt, _slope, _B, restart = fetch(t, end, length, back, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B)
        dy, _dout, _gate, _s, C = fetch_gradient(when(t, length, back), inlet, live, n_mask, HAS_Z, CONST_C)
        g = decay(dt, A2, restart, HAS_SEQ) * (C * dy[None, :] + g)
        total += dt
        if HAS_SEQ:
            opened = tl.where(restart, 0.0, opened)
    slot = batch * parts + part
    across = (n * one)[:, None] * tl.full([], n_channels, tl.int64) + (d * one)[None, :]
    tl.store(pick(first[13], second[13], back) + slot * n_state * n_channels + across, g, mask=tile)
    sums = pick(first[14], second[14], back) + slot * 2 * n_channels + d
    tl.store(sums, total, mask=live)
    tl.store(sums + n_channels, opened, mask=live)

"""The selective scan backward in Triton: states of one chunk are recomputed, then the adjoint runs back through them.

A chunk starts from the state that the forward pass kept. It is walked once to find the state that enters each of its
segments, of a few steps; these go to memory of the program, which stays in the caches. Then, from the last segment to
the first, the states of a segment are found again and held in registers while the adjoint passes its steps in reverse.
The state before a step is used itself, never found by subtraction. Sums over channels (for B and C) go to memory of
each block of channels, those over time (for A, D and the bias) are taken chunk by chunk; the launcher adds them up in
one order.

Threads own four neighbouring states of some channels: sums over states and sums over channels then both cross only a
few threads. Programs take block after block, so that the memory for states does not grow with the batch. Where time is
cut into parts, a first pass finds the adjoint that each part hands to the part before it.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false
# The language of the kernels is not the Python that a type checker knows.

import triton
import triton.language as tl

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import (
    LN2,
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
COUNT = tl.constexpr(common.BACKWARD_POINTERS)
UNSPECIALIZED = ("length", "blocks", "parts", "part_steps", "n_tiles", "zero")


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
def inlet_at(own, strides, sg, sign, batch, group, place, d, n, fixed):
    """What moves the adjoint from a place on the time axis on: C, the gate and the gradient of y."""
    sz, sC = strides[2], strides[5]
    return (
        mixer_at(own[4], batch, group, sC, place, n),
        sC[1] * sign,
        rows_at(own[6], batch, sz, place, d),
        sz[1] * sign,
        rows_at(own[10], batch, sg, place, d),
        sg[1] * sign,
        fixed,
    )


@triton.jit
def fetch_gradient(j, count, inlet, live, n_mask, HAS_Z, CONST_C, ALL):
    """Gradient of y before the gate, gradient of y, gate, its logistic function, and C of the j-th step."""
    C, sC, z, sz, grad, sg, fixed = inlet
    here = where_less(live, j, count)
    mixer = mixer_row(C, fixed, tl.minimum(j, count - 1) * sC, n_mask, CONST_C, ALL)
    out = row(grad, j * sg, here)
    before, gate, s = out, out, out
    if HAS_Z:
        gate = row(z, j * sz, here)
        s = sigmoid(gate)
        before = out * gate * s
    return before, out, gate, s, mixer


@triton.jit
def rows_sum(pointer, value, n, mask):
    """Store the sum over channels of a tile."""
    tl.store(pointer + n[:, None], tl.sum(value, axis=1)[:, None], mask=mask)


@triton.jit
def add_to(pointer, value, mask, times):
    """Add to memory that no other program touches, and that nothing was added to if `times` is zero."""
    tl.store(pointer, tl.load(pointer, mask=where_less(mask, 0, times), other=0.0) + value, mask=mask)


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    first,
    second,
    scratch,
    strides,
    result_strides,
    n_tiles,
    n_batch,
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
    HAS_EDGE: tl.constexpr,
    LINKED: tl.constexpr,
    FULL: tl.constexpr,
    ALL: tl.constexpr,
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
    local = tl.arange(0, CHANNELS)[None, :] * STATES + n[:, None]
    slots = scratch[0] + (tl.full([], 0, tl.int64) + tl.program_id(0)) * (CHUNK // UNROLL * STATES * CHANNELS)
    for index in range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        back, block, part, batch = locate(index, DIRECTION, n_blocks, parts)
        own = first
        if DIRECTION == 2:
            own = chosen(first, second, back, COUNT)
        sign = 1 - 2 * back
        group, d, live = channels_of(block, blocks, per_group, CHANNELS, FULL)
        tile = n_mask[:, None] & live[None, :]
        across = n[:, None] * n_channels + d.to(tl.int32)[None, :]
        A2 = decays_of(own, strides, d, n, tile)
        slot = batch * parts + part
        g = tl.zeros([STATES, CHANNELS], tl.float32)
        if LINKED:
            g = tl.load(own[13] + slot * size + across, mask=tile, other=0.0)
        elif HAS_EDGE:
            edge = own[11] + batch * se[0] + d[None, :] * se[1] + n[:, None] * se[2]
            g = tl.load(edge, mask=tile, other=0.0).to(tl.float32)
        fixed_B = mixer_fixed(own[3], strides[4], d, n, tile, A2, CONST_B)
        fixed_C = mixer_fixed(own[4], strides[5], d, n, tile, A2, CONST_C)
        pin = pinned(slots, local, zero)
        A2, g, fixed_B, fixed_C = A2 + pin, g + pin, fixed_B + pin, fixed_C + pin
        bias = vector(own[7], d, live, HAS_BIAS)
        skip = vector(own[5], d, live, HAS_D)
        du, ddelta = own[15], own[16]
        dz = own[17]
        dA = own[19] + slot * size
        dB, dC = own[20], own[21]
        groups = n_channels // per_group
        rows = (((block % blocks) * n_batch + batch) * length * groups + group) * n_state
        kept = own[12] + batch * ((length + CHUNK - 1) // CHUNK - 1) * size
        sum_D = tl.zeros([CHANNELS], tl.float32)
        sum_bias = tl.zeros([CHANNELS], tl.float32)

        begin = part * part_steps
        end = tl.minimum(begin + part_steps, length)
        chunks = (end - begin + CHUNK - 1) // CHUNK
        for i in range(0, chunks):
            start = begin + (chunks - 1 - i) * CHUNK
            count = tl.minimum(CHUNK, end - start)
            place = when(start, length, back)
            source = source_at(own, strides, sign, batch, group, place, d, n, bias, fixed_B)
            inlet = inlet_at(own, strides, sg, sign, batch, group, place, d, n, fixed_C)
            du_now, ddelta_now = rows_at(du, batch, sdu, place, d), rows_at(ddelta, batch, sdd, place, d)
            dz_now = rows_at(dz, batch, sdz, place, d)
            mixers = rows + place * (groups * n_state)
            per_step = sign * (groups * n_state)
            h = tl.load(kept + (start // CHUNK - 1) * size + across, mask=where_less(tile, 0, start), other=0.0)
            if HAS_STATE:
                h0 = own[8] + batch * sh[0] + d[None, :] * sh[1] + n[:, None] * sh[2]
                h += tl.load(h0, mask=where_less(tile, start, 1), other=0.0).to(tl.float32)
            h += pinned(slots, local, zero)
            segments = (count + UNROLL - 1) // UNROLL
            tl.store(slots + local, h)
            for segment in range(1, segments):
                moves = ()
                for k in tl.static_range(UNROLL):
                    j = (segment - 1) * UNROLL + k
                    moves += (fetch(j, count, start, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B, ALL),)
                for k in tl.static_range(UNROLL):
                    x, dt, slope, B, restart = moves[k]
                    h = decay(dt, A2, restart, HAS_SEQ) * h + (dt * x)[None, :] * B
                tl.store(slots + segment * (STATES * CHANNELS) + local, h)
            tl.debug_barrier()
            sum_A = tl.zeros([STATES, CHANNELS], tl.float32)
            sum_B, sum_C = sum_A, sum_A
            part_D = tl.zeros([CHANNELS], tl.float32)
            part_bias = tl.zeros([CHANNELS], tl.float32)
            for r in range(0, segments):
                at = (segments - 1 - r) * UNROLL
                h = tl.load(slots + (segments - 1 - r) * (STATES * CHANNELS) + local)
                moves, outs, states = (), (), ()
                for k in tl.static_range(UNROLL):
                    moves += (fetch(at + k, count, start, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B, ALL),)
                    outs += (fetch_gradient(at + k, count, inlet, live, n_mask, HAS_Z, CONST_C, ALL),)
                for k in tl.static_range(UNROLL):
                    x, dt, slope, B, restart = moves[k]
                    states += (h,)
                    h = decay(dt, A2, restart, HAS_SEQ) * h + (dt * x)[None, :] * B
                for k in tl.static_range(UNROLL - 1, -1, -1):
                    j = at + k
                    here = where_less(live, j, count)
                    in_row = where_less(n_mask[:, None], j, count)
                    x, dt, slope, B, restart = moves[k]
                    dy, dout, gate, s, C = outs[k]
                    if HAS_Z:
                        value = tl.sum(h * C, axis=0) + skip * x
                        grad_z = dout * value * s * (1.0 + gate * (1.0 - s))
                        tl.store(dz_now + j * (sdz[1] * sign), grad_z.to(dz.dtype.element_ty), mask=here)
                    adjoint = C * dy[None, :] + g
                    if CONST_C:
                        sum_C += h * dy[None, :]
                    else:
                        rows_sum(dC + mixers + j * per_step, h * dy[None, :], n, in_row)
                    if CONST_B:
                        sum_B += adjoint * (dt * x)[None, :]
                    else:
                        rows_sum(dB + mixers + j * per_step, adjoint * (dt * x)[None, :], n, in_row)
                    g = decay(dt, A2, restart, HAS_SEQ) * adjoint
                    through = g * states[k]
                    sum_A += through * dt[None, :]
                    along = tl.sum(adjoint * B, axis=0)
                    grad_dt = tl.sum(through * A2, axis=0) * LN2 + along * x
                    if SOFTPLUS:
                        grad_dt = grad_dt * slope
                    grad_u = skip * dy + dt * along
                    tl.store(du_now + j * (sdu[1] * sign), grad_u.to(du.dtype.element_ty), mask=here)
                    tl.store(ddelta_now + j * (sdd[1] * sign), grad_dt.to(ddelta.dtype.element_ty), mask=here)
                    part_D += dy * x
                    part_bias += tl.where(here, grad_dt, 0.0)
                    h = states[k]
            tl.debug_barrier()
            add_to(dA + across, sum_A, tile, i)
            if CONST_B:
                add_to(dB + slot * size + across, sum_B, tile, i)
            if CONST_C:
                add_to(dC + slot * size + across, sum_C, tile, i)
            sum_D += part_D
            sum_bias += part_bias
        sums = own[22] + slot * 2 * n_channels + d
        tl.store(sums, sum_D, mask=live)
        tl.store(sums + n_channels, sum_bias, mask=live)
        if HAS_STATE:
            dh = own[18] + batch * sdh[0] + d[None, :] * sdh[1] + n[:, None] * sdh[2]
            tl.store(dh, g.to(dh.dtype.element_ty), mask=where_less(tile, part, 1))


@common.Kernel
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
    zero,
    DIRECTION: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CONST_B: tl.constexpr,
    CONST_C: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    FULL: tl.constexpr,
    ALL: tl.constexpr,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Find the adjoint that a part (not the first) hands on from zero, its sum of steps, and if none begins anew."""
    n_blocks = n_channels // per_group * blocks
    back, block, part, batch = locate(tl.program_id(0), DIRECTION, n_blocks, parts - 1)
    own = first
    if DIRECTION == 2:
        own = chosen(first, second, back, COUNT)
    sign = 1 - 2 * back
    part += 1
    group, d, live = channels_of(block, blocks, per_group, CHANNELS, FULL)
    n = tl.arange(0, STATES)
    n_mask = n < n_state
    tile = n_mask[:, None] & live[None, :]
    A2 = decays_of(own, strides, d, n, tile)
    across = n[:, None] * tl.full([], n_channels, tl.int64) + d[None, :]
    fixed_B = mixer_fixed(own[3], strides[4], d, n, tile, A2, CONST_B)
    fixed_C = mixer_fixed(own[4], strides[5], d, n, tile, A2, CONST_C)
    pin = pinned(own[13], tl.arange(0, CHANNELS)[None, :] * STATES + n[:, None], zero)
    A2, fixed_B, fixed_C = A2 + pin, fixed_B + pin, fixed_C + pin
    bias = vector(own[7], d, live, HAS_BIAS)
    g = pin
    total = tl.zeros([CHANNELS], tl.float32)
    opened = tl.full([CHANNELS], 1.0, tl.float32)
    begin = part * part_steps
    end = tl.minimum(begin + part_steps, length)
    chunks = (end - begin + CHUNK - 1) // CHUNK
    for i in range(0, chunks):
        start = begin + (chunks - 1 - i) * CHUNK
        count = tl.minimum(CHUNK, end - start)
        place = when(start, length, back)
        source = source_at(own, strides, sign, batch, group, place, d, n, bias, fixed_B)
        inlet = inlet_at(own, strides, sg, sign, batch, group, place, d, n, fixed_C)
        for r in range(0, count, UNROLL):
            at = (count + UNROLL - 1) // UNROLL * UNROLL - UNROLL - r
            moves, outs = (), ()
            for k in tl.static_range(UNROLL):
                moves += (fetch(at + k, count, start, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B, ALL),)
                outs += (fetch_gradient(at + k, count, inlet, live, n_mask, HAS_Z, CONST_C, ALL),)
            for k in tl.static_range(UNROLL - 1, -1, -1):
                _x, dt, _slope, _B, restart = moves[k]
                dy, _dout, _gate, _s, C = outs[k]
                g = decay(dt, A2, restart, HAS_SEQ) * (C * dy[None, :] + g)
                total += dt
                if HAS_SEQ:
                    opened = tl.where(restart, 0.0, opened)
    slot = batch * parts + part
    tl.store(own[13] + slot * n_state * n_channels + across, g, mask=tile)
    sums = own[14] + slot * 2 * n_channels + d
    tl.store(sums, total, mask=live)
    tl.store(sums + n_channels, opened, mask=live)


@triton.jit
def total_of(source, size, pieces, begin, live, PIECES: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over pieces of `size` elements, in double, of those from `begin` on; so many pieces are fetched together."""
    total = tl.zeros([BLOCK], tl.float64)
    source += begin + tl.arange(0, BLOCK)
    for first in range(0, pieces, PIECES):
        values = ()
        for k in tl.static_range(PIECES):
            given = where_less(live, first + k, pieces)
            values += (tl.load(source + size * (first + k), mask=given, other=0.0),)
        for k in tl.static_range(PIECES):
            total += values[k].to(tl.float64)
    return total


@common.Kernel
@triton.jit(do_not_specialize=("pieces", "blocks", "n_mixed"))
def total_kernel(
    first,
    second,
    n_channels,
    n_state,
    pieces,
    blocks,
    n_mixed,
    PAIR: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CONST_B: tl.constexpr,
    CONST_C: tl.constexpr,
    SUM_B: tl.constexpr,
    SUM_C: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up what `backward_kernel` left of the gradients of A, B, C, D and the bias, each by programs of its own."""
    pid = tl.program_id(0)
    own = first
    if PAIR:
        own = chosen(first, second, pid % 2, 9)
        pid = pid // 2
    of_A, of_B, of_C, of_vectors, dA, dB, dC, dD, dbias = own
    begin = tl.full([], BLOCK, tl.int64) * pid
    local = tl.arange(0, BLOCK)
    size, width = tl.full([], n_channels, tl.int64) * n_state, tl.full([], n_channels, tl.int64) * 2
    if begin < size:
        e = pid * BLOCK + local
        live = e < n_channels * n_state
        turned = e % n_channels * n_state + e // n_channels
        total = total_of(of_A, size, pieces, begin, live, PIECES, BLOCK)
        tl.store(dA + turned, total.to(tl.float32), mask=live)
        if CONST_B:
            total = total_of(of_B, size, pieces, begin, live, PIECES, BLOCK)
            tl.store(dB + turned, total.to(dB.dtype.element_ty), mask=live)
        if CONST_C:
            total = total_of(of_C, size, pieces, begin, live, PIECES, BLOCK)
            tl.store(dC + turned, total.to(dC.dtype.element_ty), mask=live)
    if begin < width:
        e = pid * BLOCK + local
        live = e < 2 * n_channels
        total = total_of(of_vectors, width, pieces, begin, live, PIECES, BLOCK).to(tl.float32)
        if HAS_D:
            tl.store(dD + e, total, mask=e < n_channels)
        if HAS_BIAS:
            tl.store(dbias + (e - n_channels), total, mask=(e >= n_channels) & live)
    mixed = tl.full([], 0, tl.int64) + n_mixed
    live = local < tl.minimum(tl.maximum(mixed - begin, 0), BLOCK).to(tl.int32)
    if SUM_B:
        total = total_of(of_B, mixed, blocks, begin, live, PIECES, BLOCK)
        tl.store(dB + begin + local, total.to(dB.dtype.element_ty), mask=live)
    if SUM_C:
        total = total_of(of_C, mixed, blocks, begin, live, PIECES, BLOCK)
        tl.store(dC + begin + local, total.to(dC.dtype.element_ty), mask=live)

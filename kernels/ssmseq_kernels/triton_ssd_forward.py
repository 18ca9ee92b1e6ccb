"""Kernels of Mamba-2's scan in Triton: what a chunk adds to the state, states from chunk to chunk, and y.

A chunk is read tile by tile. The first kernel serves the state and its adjoint, with other tensors and weights, and the
second hands both on, in opposite orders.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
# The language of the kernels is not the Python that a type checker knows.

import triton
import triton.language as tl

from ssmseq_kernels import triton_common as common

UNSPECIALIZED = ("length", "n_chunks")
AHEAD = tl.constexpr(4)  # chunks whose states are fetched together, to wait for memory once


@triton.jit
def locate(pid, n_chunks, n_heads):
    """Batch element, chunk and head of a program, in int64 as all that is multiplied to an address."""
    wide = tl.full([], 0, tl.int64)
    return wide + pid // n_heads // n_chunks, wide + pid // n_heads % n_chunks, wide + pid % n_heads


@triton.jit
def fetch(pointer, rows, columns, strides, n_rows, n_columns):
    """A matrix, zero outside."""
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(pointer + rows[:, None] * strides[0] + columns[None, :] * strides[1], mask=mask, other=0.0)


@triton.jit
def put(pointer, value, rows, columns, strides, n_rows, n_columns):
    """Store a matrix where it is not outside."""
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    place = pointer + rows[:, None] * strides[0] + columns[None, :] * strides[1]
    tl.store(place, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def split(value):
    """High and low part of a double in float32."""
    high = value.to(tl.float32)
    return high, (value - high.to(tl.float64)).to(tl.float32)


@triton.jit
def decays_at(sums, numbers, steps, chunk, length, HAS_SEQ: tl.constexpr, REVERSE: tl.constexpr, Q: tl.constexpr):
    """Decays from the chunk's start to each step, from each step to the chunk's end, and across it.

    Zero where another sequence begins on the way. What comes in from outside continues the first sequence.
    """
    last = 0 if REVERSE else Q - 1
    high, low = split(tl.load(sums + steps))
    high_all, low_all = split(tl.load(sums + last))
    from_start, to_end = tl.exp2(high), tl.exp2((high_all - high) + (low_all - low))
    across = tl.exp2(high_all)
    if HAS_SEQ:
        here = chunk * Q
        own = number_at(numbers, here + steps, length)
        at_end = number_at(numbers, here + last, length)
        before = number_at(numbers, here + (Q if REVERSE else -1), length)
        from_start = tl.where(own == before, from_start, 0.0)
        to_end = tl.where(own == at_end, to_end, 0.0)
        across = tl.where(before == at_end, across, 0.0)
    return from_start, to_end, across


@triton.jit
def number_at(numbers, place, length):
    """Number of the sequence of a step; steps beyond the ends belong to the sequence there."""
    pointer, stride = numbers
    return tl.load(pointer + tl.minimum(tl.maximum(place, 0), length - 1) * stride).to(tl.int32)


@triton.jit
def decays_between(
    sums,
    numbers,
    rows,
    columns,
    chunk,
    length,
    EXACT: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    REVERSE: tl.constexpr,
    Q: tl.constexpr,
):
    """Decays from some steps of a chunk (columns) to others (rows), zero where a column is later than a row."""
    high, low = split(tl.load(sums + rows))
    high_before, low_before = split(tl.load(sums + columns))
    exponent = high[:, None] - high_before[None, :]
    if EXACT:
        exponent += low[:, None] - low_before[None, :]
    inside = rows[:, None] <= columns[None, :] if REVERSE else rows[:, None] >= columns[None, :]
    if HAS_SEQ:
        own = number_at(numbers, chunk * Q + rows, length)
        inside = inside & (own[:, None] == number_at(numbers, chunk * Q + columns, length)[None, :])
    return tl.exp2(tl.where(inside, exponent, float("-inf")))


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def states_kernel(
    values,
    mixers,
    sizes,
    sums,
    numbers,
    added,
    value_strides,
    mixer_strides,
    number_strides,
    length,
    n_chunks,
    n_heads,
    n_dim,
    n_state,
    heads,
    ADJOINT: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    REVERSE: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    Q: tl.constexpr,
    T: tl.constexpr,
    DIMS: tl.constexpr,
    STATES: tl.constexpr,
):
    """What a chunk adds to the state (from x and B), or to its adjoint (from the gradient of y and C)."""
    across_dims, across_states = tl.cdiv(n_dim, DIMS), tl.cdiv(n_state, STATES)
    block = tl.program_id(0) % (across_dims * across_states)
    piece = tl.program_id(0) // (across_dims * across_states)
    batch, chunk, head = locate(piece, n_chunks, n_heads)
    p = block // across_states * DIMS + tl.arange(0, DIMS)
    n = block % across_states * STATES + tl.arange(0, STATES)
    left = length - chunk * Q
    line = ((batch * n_heads + head) * n_chunks + chunk) * Q
    sums += line
    own = (numbers + batch * number_strides[0], number_strides[1])
    values += batch * value_strides[0] + chunk * Q * value_strides[1] + head * value_strides[2]
    mixers += batch * mixer_strides[0] + chunk * Q * mixer_strides[1] + head // heads * mixer_strides[2]
    found = tl.zeros([DIMS, STATES], tl.float32)
    for first in range(0, Q, T):
        steps = first + tl.arange(0, T)
        weight, to_end, _across = decays_at(sums, own, steps, chunk, length, HAS_SEQ, REVERSE, Q)
        if not ADJOINT:
            weight = to_end * tl.load(sizes + line + steps)
        value = fetch(values, steps, p, (value_strides[1], value_strides[3]), left, n_dim).to(tl.float32)
        mixer = fetch(mixers, steps, n, (mixer_strides[1], mixer_strides[3]), left, n_state).to(KIND)
        weighted = tl.trans((value * weight[:, None]).to(KIND))
        found = tl.dot(weighted, mixer, found, input_precision=PRECISION)
    size = tl.full([], 0, tl.int64) + n_dim * n_state
    put(added + piece * size, found, p, n, (n_state, 1), n_dim, n_state)


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def pass_kernel(
    added,
    entering,
    edge,
    final,
    sums,
    numbers,
    edge_strides,
    number_strides,
    length,
    n_chunks,
    n_heads,
    n_state,
    size,
    ADJOINT: tl.constexpr,
    HAS_EDGE: tl.constexpr,
    FINAL: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    REVERSE: tl.constexpr,
    Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Hand states from chunk to chunk in the order of the scan, their adjoints in the opposite one."""
    blocks = tl.cdiv(size, BLOCK)
    row = tl.program_id(0) // blocks
    batch, _chunk, head = locate(row, 1, n_heads)
    inside = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = inside < size
    state = tl.zeros([BLOCK], tl.float32)
    if HAS_EDGE:
        place = batch * edge_strides[0] + head * edge_strides[1]
        place += inside // n_state * edge_strides[2] + inside % n_state * edge_strides[3]
        state = tl.load(edge + place, mask=live, other=0.0).to(tl.float32)
    own = (numbers + batch * number_strides[0], number_strides[1])
    sums += (batch * n_heads + head) * n_chunks * Q
    for first in range(0, n_chunks, AHEAD):
        fetched = ()
        for k in tl.static_range(AHEAD):
            chunk = tl.minimum(first + k, n_chunks - 1)
            if REVERSE != ADJOINT:
                chunk = n_chunks - 1 - chunk
            chunk = tl.full([], 0, tl.int64) + chunk
            slot = ((batch * n_chunks + chunk) * n_heads + head) * size
            _from, _to, across = decays_at(sums + chunk * Q, own, tl.arange(0, 1), chunk, length, HAS_SEQ, REVERSE, Q)
            mask = common.where_less(live, first + k, n_chunks)
            fetched += ((slot, tl.load(added + slot + inside, mask=mask, other=0.0), across, mask),)
        for k in tl.static_range(AHEAD):
            slot, own_part, across, mask = fetched[k]
            tl.store(entering + slot + inside, state.to(entering.dtype.element_ty), mask=mask)
            state = tl.where(mask, own_part + across * state, state)
    if FINAL:
        tl.store(final + row * (tl.full([], 0, tl.int64) + size) + inside, state, mask=live)


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def output_kernel(
    x,
    sizes,
    sums,
    B,
    C,
    D,
    z,
    numbers,
    entering,
    y,
    ungated,
    sx,
    sB,
    sC,
    sD,
    sz,
    number_strides,
    sy,
    length,
    n_chunks,
    n_heads,
    n_dim,
    n_state,
    heads,
    LINKED: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    KEEP: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    REVERSE: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    Q: tl.constexpr,
    T: tl.constexpr,
    DIMS: tl.constexpr,
    STATES: tl.constexpr,
    ALL_STATES: tl.constexpr,
):
    """Find y of some steps of a chunk of one head, for a block of its channels; and y before the gate, if to KEEP."""
    blocks = tl.cdiv(n_dim, DIMS)
    p = tl.program_id(0) % blocks * DIMS + tl.arange(0, DIMS)
    tile = tl.program_id(0) // blocks % (Q // T)
    piece = tl.program_id(0) // blocks // (Q // T)
    batch, chunk, head = locate(piece, n_chunks, n_heads)
    left = length - chunk * Q
    line = ((batch * n_heads + head) * n_chunks + chunk) * Q
    sums += line
    sizes += line
    own = (numbers + batch * number_strides[0], number_strides[1])
    B += batch * sB[0] + chunk * Q * sB[1] + head // heads * sB[2]
    C += batch * sC[0] + chunk * Q * sC[1] + head // heads * sC[2]
    x += batch * sx[0] + chunk * Q * sx[1] + head * sx[2]
    entering += piece * (tl.full([], 0, tl.int64) + n_dim * n_state)
    rows = tile * T + tl.arange(0, T)
    value = tl.zeros([T, DIMS], tl.float32)
    if LINKED:
        for first in range(0, ALL_STATES, STATES):
            n = first + tl.arange(0, STATES)
            leaves = fetch(C, rows, n, (sC[1], sC[3]), left, n_state).to(KIND)
            state = fetch(entering, p, n, (n_state, 1), n_dim, n_state).to(KIND)
            value = tl.dot(leaves, tl.trans(state), value, input_precision=PRECISION)
        from_start, _to_end, _across = decays_at(sums, own, rows, chunk, length, HAS_SEQ, REVERSE, Q)
        value *= from_start[:, None]
    begin, end = 0, tile + 1
    if REVERSE:
        begin, end = tile, Q // T
    for k in range(begin, end):
        columns = k * T + tl.arange(0, T)
        scores = tl.zeros([T, T], tl.float32)
        for first in range(0, ALL_STATES, STATES):
            n = first + tl.arange(0, STATES)
            leaves = fetch(C, rows, n, (sC[1], sC[3]), left, n_state).to(KIND)
            enters = fetch(B, columns, n, (sB[1], sB[3]), left, n_state).to(KIND)
            scores = tl.dot(leaves, tl.trans(enters), scores, input_precision=PRECISION)
        size = tl.load(sizes + columns)
        scores *= decays_between(sums, own, rows, columns, chunk, length, EXACT, HAS_SEQ, REVERSE, Q) * size[None, :]
        u = fetch(x, columns, p, (sx[1], sx[3]), left, n_dim).to(KIND)
        value = tl.dot(scores.to(KIND), u, value, input_precision=PRECISION)
    if HAS_D:
        skip = tl.load(D + head * sD[0] + p * sD[1], mask=p < n_dim, other=0.0).to(tl.float32)
        value += skip[None, :] * fetch(x, rows, p, (sx[1], sx[3]), left, n_dim).to(tl.float32)
    place = batch * sy[0] + chunk * Q * sy[1] + head * sy[2]
    if HAS_Z:
        if KEEP:
            put(ungated + place, value, rows, p, (sy[1], sy[3]), left, n_dim)
        z += batch * sz[0] + chunk * Q * sz[1] + head * sz[2]
        gate = fetch(z, rows, p, (sz[1], sz[3]), left, n_dim).to(tl.float32)
        value *= gate * common.sigmoid(gate)
    put(y + place, value, rows, p, (sy[1], sy[3]), left, n_dim)

"""Gradients of Mamba-2's scan in Triton: all of a chunk's gradients from its inputs and two states.

The states that enter the chunks are found again, the adjoints of those that leave them alike; with both at hand, chunks
know nothing of each other. One kernel takes each head for itself and finds the gradients of x, of the step sizes and of
their sums over time; another takes the heads of a group one after the other, for B and C.

The derivative of a sum over time up to a step is a difference, what flows to the step (a row) minus what flows from it
(a column), whose sums over later steps cancel. So it is taken in double, without the diagonal, which is in both.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false
# The language of the kernels is not the Python that a type checker knows.

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import ceil_div
from ssmseq_kernels.triton_replay import Replayed
from ssmseq_kernels.triton_ssd import Chunks, Inputs, block
from ssmseq_kernels.triton_ssd_forward import UNSPECIALIZED, decays_at, decays_between, fetch, locate, put
from ssmseq_kernels.triton_ssd_steps import WARPS, gate_kernel, sizes_gradient_kernel
from ssmseq_kernels.triton_sums import add_up

WIDTH_OF_GATE = 64  # channels of a program
PROGRAMS_WANTED = 264  # two for each of 132 multiprocessors; with fewer, the heads of a group are shared out


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def head_kernel(
    x,
    sizes,
    sums,
    B,
    C,
    numbers,
    grad,
    entering,
    leaving,
    D,
    dx,
    dsizes,
    dsums,
    of_D,
    sx,
    sB,
    sC,
    number_strides,
    sg,
    sD,
    sdx,
    length,
    n_chunks,
    n_heads,
    n_dim,
    n_state,
    heads,
    LINKED: tl.constexpr,
    HAS_D: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    REVERSE: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    Q: tl.constexpr,
    DIMS: tl.constexpr,
    STATES: tl.constexpr,
    ALL_DIMS: tl.constexpr,
    ALL_STATES: tl.constexpr,
):
    """Find the gradients of x, the step sizes and their sums times A, of one chunk of one head, and its part of D's."""
    piece = tl.program_id(0)
    batch, chunk, head = locate(piece, n_chunks, n_heads)
    group = head // heads
    steps = tl.arange(0, Q)
    left = length - chunk * Q
    line = ((batch * n_heads + head) * n_chunks + chunk) * Q
    sums += line
    own = (numbers + batch * number_strides[0], number_strides[1])
    B += batch * sB[0] + chunk * Q * sB[1] + group * sB[2]
    C += batch * sC[0] + chunk * Q * sC[1] + group * sC[2]
    x += batch * sx[0] + chunk * Q * sx[1] + head * sx[2]
    grad += batch * sg[0] + chunk * Q * sg[1] + head * sg[2]
    dx += batch * sdx[0] + chunk * Q * sdx[1] + head * sdx[2]
    states = tl.full([], 0, tl.int64) + n_dim * n_state
    entering += piece * states
    leaving += piece * states
    sizes += line + steps
    from_start, to_end, across = decays_at(sums, own, steps, chunk, length, HAS_SEQ, REVERSE, Q)

    scores = tl.zeros([Q, Q], tl.float32)
    for first in range(0, ALL_STATES, STATES):
        n = first + tl.arange(0, STATES)
        leaves = fetch(C, steps, n, (sC[1], sC[3]), left, n_state).to(KIND)
        enters = fetch(B, steps, n, (sB[1], sB[3]), left, n_state).to(KIND)
        scores = tl.dot(leaves, tl.trans(enters), scores, input_precision=PRECISION)
    scores *= decays_between(sums, own, steps, steps, chunk, length, EXACT, HAS_SEQ, REVERSE, Q)

    flows = tl.zeros([Q, Q], tl.float32)
    grad_size = tl.zeros([Q], tl.float32)
    arrived = tl.zeros([Q], tl.float32)
    departed = tl.zeros([Q], tl.float32)
    passed = tl.zeros([DIMS], tl.float32)
    for first_dim in range(0, ALL_DIMS, DIMS):
        p = first_dim + tl.arange(0, DIMS)
        dy = fetch(grad, steps, p, (sg[1], sg[3]), left, n_dim).to(KIND)
        u = fetch(x, steps, p, (sx[1], sx[3]), left, n_dim).to(KIND)
        flows = tl.dot(dy, tl.trans(u), flows, input_precision=PRECISION)
        value = tl.zeros([Q, DIMS], tl.float32)
        if LINKED:
            before = tl.zeros([Q, DIMS], tl.float32)
            for first in range(0, ALL_STATES, STATES):
                n = first + tl.arange(0, STATES)
                state = fetch(entering, p, n, (n_state, 1), n_dim, n_state)
                adjoint = fetch(leaving, p, n, (n_state, 1), n_dim, n_state)
                passed += tl.sum(state.to(tl.float32) * adjoint.to(tl.float32), axis=1)
                leaves = fetch(C, steps, n, (sC[1], sC[3]), left, n_state).to(KIND)
                enters = fetch(B, steps, n, (sB[1], sB[3]), left, n_state).to(KIND)
                before = tl.dot(leaves, tl.trans(state.to(KIND)), before, input_precision=PRECISION)
                value = tl.dot(enters, tl.trans(adjoint.to(KIND)), value, input_precision=PRECISION)
            value *= to_end[:, None]
            arrived += tl.sum(dy.to(tl.float32) * before, axis=1)
            departed += tl.sum(u.to(tl.float32) * value, axis=1)
        value = tl.dot(tl.trans(scores.to(KIND)), dy, value, input_precision=PRECISION)
        grad_size += tl.sum(u.to(tl.float32) * value, axis=1)
        value *= tl.load(sizes)[:, None]
        if HAS_D:
            skipped = tl.sum(u.to(tl.float32) * dy.to(tl.float32), axis=0)
            tl.store(of_D + (tl.full([], 0, tl.int64) + piece) * n_dim + p, skipped, mask=p < n_dim)
            skip = tl.load(D + head * sD[0] + p * sD[1], mask=p < n_dim, other=0.0).to(tl.float32)
            value += skip[None, :] * dy.to(tl.float32)
        put(dx, value, steps, p, (sdx[1], sdx[3]), left, n_dim)
    tl.store(dsizes + line + steps, grad_size)

    flows = tl.where(steps[:, None] == steps[None, :], 0.0, flows * scores * tl.load(sizes)[None, :])
    if EXACT:
        result = tl.sum(flows.to(tl.float64), axis=1) - tl.sum(flows.to(tl.float64), axis=0)
    else:
        result = (tl.sum(flows, axis=1) - tl.sum(flows, axis=0)).to(tl.float64)
    if LINKED:
        departed = (departed * tl.load(sizes)).to(tl.float64)
        last = 0 if REVERSE else Q - 1
        whole = tl.sum(departed, axis=0) + across * tl.sum(passed.to(tl.float64), axis=0)
        result += (arrived * from_start).to(tl.float64) - departed + tl.where(steps == last, whole, 0.0)
    tl.store(dsums + line + steps, result)


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def group_kernel(
    x,
    sizes,
    sums,
    B,
    C,
    numbers,
    grad,
    entering,
    leaving,
    dB,
    dC,
    sx,
    sB,
    sC,
    number_strides,
    sg,
    sdB,
    sdC,
    length,
    n_chunks,
    n_heads,
    n_dim,
    n_state,
    heads,
    shares,
    per_share,
    LINKED: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    REVERSE: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    Q: tl.constexpr,
    DIMS: tl.constexpr,
    STATES: tl.constexpr,
    ALL_DIMS: tl.constexpr,
):
    """Find the gradients of B and C of one chunk and a block of states, from a share of the heads of a group."""
    blocks = tl.cdiv(n_state, STATES)
    n = tl.program_id(0) % blocks * STATES + tl.arange(0, STATES)
    row = tl.program_id(0) // blocks
    share, row = row % shares, row // shares
    batch, chunk, group = locate(row, n_chunks, n_heads // heads)
    steps = tl.arange(0, Q)
    left = length - chunk * Q
    own = (numbers + batch * number_strides[0], number_strides[1])
    x += batch * sx[0] + chunk * Q * sx[1]
    grad += batch * sg[0] + chunk * Q * sg[1]
    states = tl.full([], 0, tl.int64) + n_dim * n_state

    flows = tl.zeros([Q, Q], tl.float32)
    into_B = tl.zeros([Q, STATES], tl.float32)
    into_C = tl.zeros([Q, STATES], tl.float32)
    begin = share * per_share
    for k in range(begin, tl.minimum(begin + per_share, heads)):
        head = tl.full([], 0, tl.int64) + group * heads + k
        piece = (batch * n_chunks + chunk) * n_heads + head
        line = ((batch * n_heads + head) * n_chunks + chunk) * Q
        here = sums + line
        from_start, to_end, _across = decays_at(here, own, steps, chunk, length, HAS_SEQ, REVERSE, Q)
        flow = tl.zeros([Q, Q], tl.float32)
        for first_dim in range(0, ALL_DIMS, DIMS):
            p = first_dim + tl.arange(0, DIMS)
            dy = fetch(grad + head * sg[2], steps, p, (sg[1], sg[3]), left, n_dim).to(KIND)
            u = fetch(x + head * sx[2], steps, p, (sx[1], sx[3]), left, n_dim).to(KIND)
            flow = tl.dot(dy, tl.trans(u), flow, input_precision=PRECISION)
            if LINKED:
                state = fetch(entering + piece * states, p, n, (n_state, 1), n_dim, n_state).to(KIND)
                adjoint = fetch(leaving + piece * states, p, n, (n_state, 1), n_dim, n_state).to(KIND)
                dy = (dy.to(tl.float32) * from_start[:, None]).to(KIND)
                u = (u.to(tl.float32) * (to_end * tl.load(sizes + line + steps))[:, None]).to(KIND)
                into_C = tl.dot(dy, state, into_C, input_precision=PRECISION)
                into_B = tl.dot(u, adjoint, into_B, input_precision=PRECISION)
        flow *= decays_between(here, own, steps, steps, chunk, length, EXACT, HAS_SEQ, REVERSE, Q)
        # The mask changes nothing, but with it ptxas spills no registers.
        flow *= tl.load(sizes + line + steps, mask=steps < left, other=0.0)[None, :]
        flows += flow

    B += batch * sB[0] + chunk * Q * sB[1] + group * sB[2]
    C += batch * sC[0] + chunk * Q * sC[1] + group * sC[2]
    enters = fetch(B, steps, n, (sB[1], sB[3]), left, n_state).to(KIND)
    leaves = fetch(C, steps, n, (sC[1], sC[3]), left, n_state).to(KIND)
    into_C = tl.dot(flows.to(KIND), enters, into_C, input_precision=PRECISION)
    into_B = tl.dot(tl.trans(flows.to(KIND)), leaves, into_B, input_precision=PRECISION)
    dB += share * sdB[0] + batch * sdB[1] + chunk * Q * sdB[2] + group * sdB[3]
    dC += share * sdC[0] + batch * sdC[1] + chunk * Q * sdC[2] + group * sdC[3]
    put(dB, into_B, steps, n, (sdB[2], sdB[4]), left, n_state)
    put(dC, into_C, steps, n, (sdC[2], sdC[4]), left, n_state)


@Replayed
def backward(numbers, options, ungated, grad, grad_final, *tensors) -> tuple[Tensor | None, ...]:
    """Return the gradients of all inputs, from that of y (and y before the gate) and of the final state."""
    return gradients(Chunks(Inputs(*tensors), numbers, options, backward=True), ungated, grad, grad_final)


def gradients(scan: Chunks, ungated: Tensor | None, grad: Tensor | None, grad_final: Tensor | None) -> Inputs:
    """Do so for a scan as the kernels take it."""
    x, dt, A, B, C, D, z, bias, state = scan.inputs
    grad, dz = (torch.zeros_like(x), None) if grad is None else _through_gate(scan, grad, ungated)
    entering = leaving = scan.sums
    first = None
    if scan.linked:
        entering, _ = scan.entering(x, B, state, False, False)
        leaving, first = scan.entering(grad, C, grad_final, True, state is not None)
    given = (x, scan.sizes, scan.sums, B, C, scan.numbers, grad, entering, leaving)
    strides = (x.stride(), B.stride(), C.stride(), scan.number_strides, grad.stride())
    dx, dsizes, dsums, of_D = _head_gradients(scan, given, strides)
    dB, dC = _group_gradients(scan, given, strides)
    ddt, dA, dbias = _step_gradients(scan, dsizes, dsums)
    dD = None if D is None else torch.empty_like(D, memory_format=torch.contiguous_format)
    if dD is not None:
        width = scan.n_dim if dD.dim() == 1 else 1
        add_up(of_D, dD, width=width)
    dstate = None if state is None or first is None else first.to(state.dtype)
    dz = torch.zeros_like(z) if z is not None and dz is None else dz
    return Inputs(dx, ddt, dA, dB, dC, dD, dz, dbias, dstate)


def _through_gate(scan: Chunks, grad: Tensor, ungated: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradient of y before the gate, and of z; without a gate, as it came."""
    z = scan.inputs.z
    if z is None or ungated is None:
        return grad, None
    passed, dz = torch.empty_like(ungated), torch.empty_like(z)
    dims = block(scan.n_dim, WIDTH_OF_GATE)
    tensors = (grad, z, ungated, passed, dz)
    gate_kernel.launch(
        scan.pieces * ceil_div(scan.n_dim, dims),
        tensors,
        (*(t.stride() for t in tensors), *scan.shape()[:4]),
        common.constants(WARPS, Q=scan.steps, DIMS=dims),
    )
    return passed, dz


def _head_gradients(scan: Chunks, given: tuple, strides: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the step sizes and of the sums of size A; and that of D by chunks, (chunks, H, P)."""
    x, D, (skip, skipping) = scan.inputs.x, scan.inputs.D, scan.skip()
    dx, dsizes, dsums = torch.empty_like(x), torch.empty_like(scan.sizes), torch.empty_like(scan.sums)
    of_D = dsizes if D is None else dsizes.new_empty(scan.n_batch * scan.n_chunks, scan.n_heads, scan.n_dim)
    most_dims, most_states, warps = scan.tiles.head
    dims, states = block(scan.n_dim, most_dims), block(scan.n_state, most_states)
    padded = {"ALL_DIMS": ceil_div(scan.n_dim, dims) * dims, "ALL_STATES": ceil_div(scan.n_state, states) * states}
    named = scan.order | scan.kind | {"DIMS": dims, "STATES": states} | padded | {"HAS_D": D is not None}
    head_kernel.launch(
        scan.pieces,
        (*given, skip, dx, dsizes, dsums, of_D),
        (*strides, skipping, dx.stride(), *scan.shape()),
        common.constants(warps, LINKED=scan.linked, EXACT=scan.exact, **named),
    )
    return dx, dsizes, dsums, of_D


def _step_gradients(scan: Chunks, dsizes: Tensor, dsums: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of dt, A and the bias from those of the step sizes and of the sums of size A."""
    (dt, A, bias), given = scan.steppers(), scan.inputs.dt_bias
    ddt = torch.empty_like(dt)
    of_A, of_bias = (dsums.new_empty(scan.n_batch * scan.n_chunks, scan.n_heads) for _ in range(2))
    tensors = (dt, A, bias, dsizes, dsums, ddt, of_A, of_bias)
    scan.by_steps(sizes_gradient_kernel, tensors, (dt.stride(), ddt.stride()))
    dA, dbias = torch.empty_like(A), None if given is None else torch.empty_like(bias)
    add_up(of_A, dA)
    if dbias is not None:
        add_up(of_bias, dbias)
    return ddt, dA, dbias


def _group_gradients(scan: Chunks, given: tuple, strides: tuple) -> tuple[Tensor, Tensor]:
    """Gradients of B and C; where groups are few, from shares of their heads, added up in one order."""
    B, C = scan.inputs.B, scan.inputs.C
    most_dims, most_states, warps = scan.tiles.group
    dims, states = block(scan.n_dim, most_dims), block(scan.n_state, most_states)
    blocks, heads = ceil_div(scan.n_state, states), scan.n_heads // scan.groups
    programs = scan.n_batch * scan.n_chunks * scan.groups * blocks
    per_share = ceil_div(heads, min(heads, ceil_div(PROGRAMS_WANTED, programs)))
    shares = ceil_div(heads, per_share)
    results = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (B, C)]
    room = [t.new_empty(shares, *t.shape, dtype=torch.float32) if shares > 1 else t.unsqueeze(0) for t in results]
    named = scan.order | scan.kind | {"DIMS": dims, "STATES": states, "ALL_DIMS": ceil_div(scan.n_dim, dims) * dims}
    group_kernel.launch(
        programs * shares,
        (*given, *room),
        (*strides, *(t.stride() for t in room), *scan.shape(), shares, per_share),
        common.constants(warps, LINKED=scan.linked, EXACT=scan.exact, **named),
    )
    if shares > 1:
        for of, total in zip(room, results, strict=True):
            add_up(of, total)
    return results[0], results[1]

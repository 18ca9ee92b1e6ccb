"""Kernels of Mamba-2's scan in Triton that need no matrices: step sizes and their sums over time, and the gate.

Step sizes and sums lie by chunks, (B, H, chunks, Q), and steps beyond the end have no size. What is found of a weight
in each chunk is added up afterwards, in double and in one order.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
# The language of the kernels is not the Python that a type checker knows.

import triton
import triton.language as tl

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import LOG2E, sigmoid, softplus
from ssmseq_kernels.triton_ssd_forward import UNSPECIALIZED, fetch, locate, put

MOST_HEADS = 16  # of a program
WARPS = 4


@triton.jit
def heads_of(n_chunks, n_heads, Q: tl.constexpr, HEADS: tl.constexpr):
    """Batch element, chunk and heads of a program; which are there; and where their chunk begins, [HEADS, 1]."""
    blocks = tl.cdiv(n_heads, HEADS)
    batch, chunk, block = locate(tl.program_id(0), n_chunks, blocks)
    h = block * HEADS + tl.arange(0, HEADS)
    line = ((batch * n_heads + h) * n_chunks + chunk) * Q
    return batch, chunk, h, h < n_heads, line[:, None]


@triton.jit
def step_size(
    dt,
    bias,
    strides,
    batch,
    place,
    h,
    mask,
    live,
    smallest,
    largest,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    LIMITED: tl.constexpr,
):
    """Step sizes [HEADS, Q] after bias, softplus and limits; and their derivative by dt."""
    rows = dt + batch * strides[0] + place * strides[1] + h[:, None] * strides[2]
    value = tl.load(rows, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + h, mask=live, other=0.0).to(tl.float32)[:, None]
    slope = tl.full(value.shape, 1.0, tl.float32)
    if SOFTPLUS:
        value, slope = softplus(value)
    if LIMITED:  # so that what is no number stays none
        slope = tl.where((value < smallest) | (value > largest), 0.0, slope)
        value = tl.where(value < smallest, smallest, value)
        value = tl.where(value > largest, largest, value)
    return tl.where(mask, value, 0.0), tl.where(mask, slope, 0.0)


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def sizes_kernel(
    dt,
    A,
    bias,
    sizes,
    sums,
    strides,
    length,
    n_chunks,
    n_heads,
    smallest,
    largest,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    LIMITED: tl.constexpr,
    REVERSE: tl.constexpr,
    Q: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Find the step sizes of a chunk, and the sums of size A log2(e) up to and with each step, in double."""
    batch, chunk, h, live, line = heads_of(n_chunks, n_heads, Q, HEADS)
    steps = tl.arange(0, Q)[None, :]
    place = chunk * Q + steps
    mask = live[:, None] & (place < length)
    size, _slope = step_size(
        dt, bias, strides, batch, place, h, mask, live, smallest, largest, HAS_BIAS, SOFTPLUS, LIMITED
    )
    rate = tl.load(A + h, mask=live, other=0.0).to(tl.float64) * LOG2E
    found = tl.cumsum(size.to(tl.float64) * rate[:, None], axis=1, reverse=REVERSE)
    tl.store(sizes + line + steps, size, mask=live[:, None])
    tl.store(sums + line + steps, found, mask=live[:, None])


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def sizes_gradient_kernel(
    dt,
    A,
    bias,
    dsizes,
    dsums,
    ddt,
    of_A,
    of_bias,
    strides,
    ddt_strides,
    length,
    n_chunks,
    n_heads,
    smallest,
    largest,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    LIMITED: tl.constexpr,
    REVERSE: tl.constexpr,
    Q: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Find the gradient of dt from those of a chunk's step sizes and sums of size A, and the chunk's of A and bias."""
    batch, chunk, h, live, line = heads_of(n_chunks, n_heads, Q, HEADS)
    steps = tl.arange(0, Q)[None, :]
    place = chunk * Q + steps
    mask = live[:, None] & (place < length)
    size, slope = step_size(
        dt, bias, strides, batch, place, h, mask, live, smallest, largest, HAS_BIAS, SOFTPLUS, LIMITED
    )
    along = tl.cumsum(tl.load(dsums + line + steps, mask=live[:, None], other=0.0), axis=1, reverse=not REVERSE)
    rate = tl.load(A + h, mask=live, other=0.0).to(tl.float64)
    grad = tl.load(dsizes + line + steps, mask=live[:, None], other=0.0).to(tl.float64) + along * rate[:, None]
    grad *= slope.to(tl.float64)
    rows = ddt + batch * ddt_strides[0] + place * ddt_strides[1] + h[:, None] * ddt_strides[2]
    tl.store(rows, grad.to(ddt.dtype.element_ty), mask=mask)
    own = (batch * n_chunks + chunk) * n_heads + h
    tl.store(of_A + own, tl.sum(along * size.to(tl.float64), axis=1), mask=live)
    if HAS_BIAS:
        tl.store(of_bias + own, tl.sum(grad, axis=1), mask=live)


@common.Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def gate_kernel(
    grad,
    z,
    ungated,
    passed,
    dz,
    sg,
    sz,
    su,
    sp,
    sdz,
    length,
    n_chunks,
    n_heads,
    n_dim,
    Q: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Take the gradient of y through silu(z): what comes to y before the gate, and the gradient of z."""
    blocks = tl.cdiv(n_dim, DIMS)
    batch, chunk, head = locate(tl.program_id(0) // blocks, n_chunks, n_heads)
    p = tl.program_id(0) % blocks * DIMS + tl.arange(0, DIMS)
    steps = tl.arange(0, Q)
    left = length - chunk * Q
    grad += batch * sg[0] + chunk * Q * sg[1] + head * sg[2]
    z += batch * sz[0] + chunk * Q * sz[1] + head * sz[2]
    ungated += batch * su[0] + chunk * Q * su[1] + head * su[2]
    passed += batch * sp[0] + chunk * Q * sp[1] + head * sp[2]
    dz += batch * sdz[0] + chunk * Q * sdz[1] + head * sdz[2]
    dy = fetch(grad, steps, p, (sg[1], sg[3]), left, n_dim).to(tl.float32)
    gate = fetch(z, steps, p, (sz[1], sz[3]), left, n_dim).to(tl.float32)
    value = fetch(ungated, steps, p, (su[1], su[3]), left, n_dim).to(tl.float32)
    share = sigmoid(gate)
    put(passed, dy * gate * share, steps, p, (sp[1], sp[3]), left, n_dim)
    put(dz, dy * value * share * (1.0 + gate * (1.0 - share)), steps, p, (sdz[1], sdz[3]), left, n_dim)

"""The causal depthwise convolution in Triton, forward, backward and one step, each tap a shifted load.

Time is counted in the order of the convolution, from the end if reversed. The backward pass first finds the gradient
before the activation and the sums for the taps, then convolves that gradient against the direction of time.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

from typing import Any

import torch
import triton
import triton.language as tl

from ssmseq_kernels.reference import causal_conv1d_reference
from ssmseq_kernels.results import contiguous
from ssmseq_kernels.triton_common import Kernel, ceil_div, constants, sigmoid, when
from ssmseq_kernels.triton_replay import Replayed
from ssmseq_kernels.triton_sums import add_up

STEPS, CHANNELS = 16, 64  # of a program
UNSPECIALIZED = ("length", "blocks")


@triton.jit
def _place(t, length, back):
    return when(t, length, back)[:, None]


@triton.jit
def _chain(seq, stride, t, length, back, unbroken, GIVEN: tl.constexpr):
    """Whether steps t and t + 1 are of one sequence too; steps before the first belong to the first."""
    if GIVEN:
        known = (t >= 0) & (t + 1 < length)
        now = tl.load(seq + when(t, length, back) * stride, mask=known, other=0)
        after = tl.load(seq + when(t + 1, length, back) * stride, mask=known, other=0)
        return unbroken & (now == after)
    else:
        return unbroken


@triton.jit
def _input(x, sx, before, sb, s, length, back, live, WIDTH: tl.constexpr, HAS_STATE: tl.constexpr):
    """Input of steps s, which may lie before the first."""
    value = tl.load(x + _place(s, length, back) * sx, mask=((s >= 0) & (s < length))[:, None] & live, other=0.0)
    value = value.to(tl.float32)
    if HAS_STATE:
        early = ((s < 0) & (s > -WIDTH))[:, None] & live
        value += tl.load(before + (s + (WIDTH - 1))[:, None] * sb, mask=early, other=0.0).to(tl.float32)
    return value


@triton.jit
def _tap(weight, d, live, j, WIDTH: tl.constexpr):
    """Weight of the input j steps ago, [1, channels]."""
    return tl.load(weight + d * WIDTH + (WIDTH - 1 - j), mask=live, other=0.0)


@Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def conv_kernel(
    x,
    weight,
    bias,
    before,
    seq,
    grad_y,
    result,
    sums,
    strides,
    length,
    n_channels,
    blocks,
    tiles,
    BACK: tl.constexpr,
    SILU: tl.constexpr,
    BACKWARD: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Convolve a block of steps and channels; or find the gradient before the activation and the sums for the taps."""
    sx, sb, sseq, sg, sr = strides
    pid = tl.program_id(0)
    batch = tl.full([], 0, tl.int64) + pid // (blocks * tiles)
    t = (pid // blocks) % tiles * STEPS + tl.arange(0, STEPS)
    d = tl.full([], 0, tl.int64) + (pid % blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    live = d < n_channels
    x += batch * sx[0] + d * sx[2]
    before += batch * sb[0] + d * sb[2]
    seq += batch * sseq[0]
    pre = tl.zeros([STEPS, CHANNELS], tl.float32)
    if HAS_BIAS:
        pre += tl.load(bias + d, mask=live, other=0.0)
    unbroken = t < length
    for j in tl.static_range(WIDTH):
        if j > 0:
            unbroken = _chain(seq, sseq[1], t - j, length, back=BACK, unbroken=unbroken, GIVEN=HAS_SEQ)
        value = _input(x, sx[1], before, sb[1], t - j, length, BACK, live, WIDTH, HAS_STATE)
        pre += tl.where(unbroken[:, None], value, 0.0) * _tap(weight, d, live, j, WIDTH)
    out = pre
    here = (t < length)[:, None] & live
    place = _place(t, length, BACK)
    if SILU:
        s = sigmoid(pre)
        out = pre * s
    if BACKWARD:
        grad = tl.load(grad_y + batch * sg[0] + place * sg[1] + d * sg[2], mask=here, other=0.0).to(tl.float32)
        out = grad
        if SILU:
            out = grad * s * (1.0 + pre * (1.0 - s))
        sums += ((batch * tiles + (pid // blocks) % tiles) * (WIDTH + 1)) * n_channels + d
        tl.store(sums + WIDTH * n_channels, tl.sum(out, axis=0)[None, :], mask=live)
        unbroken = t < length
        for j in tl.static_range(WIDTH):
            if j > 0:
                unbroken = _chain(seq, sseq[1], t - j, length, back=BACK, unbroken=unbroken, GIVEN=HAS_SEQ)
            value = _input(x, sx[1], before, sb[1], t - j, length, BACK, live, WIDTH, HAS_STATE)
            part = tl.sum(tl.where(unbroken[:, None], out * value, 0.0), axis=0)
            tl.store(sums + (WIDTH - 1 - j) * n_channels, part[None, :], mask=live)
    target = result + batch * sr[0] + place * sr[1] + d * sr[2]
    tl.store(target, out.to(result.dtype.element_ty), mask=here)


@Kernel
@triton.jit(do_not_specialize=UNSPECIALIZED)
def transposed_kernel(
    grad,
    weight,
    seq,
    result,
    early,
    strides,
    length,
    n_channels,
    blocks,
    tiles,
    BACK: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_SEQ: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of the inputs, and of those before the first step: each collects from the WIDTH steps it reached."""
    sg, sseq, sr, se = strides
    pid = tl.program_id(0)
    batch = tl.full([], 0, tl.int64) + pid // (blocks * tiles)
    t = (pid // blocks) % tiles * STEPS + tl.arange(0, STEPS) - (WIDTH - 1)
    d = tl.full([], 0, tl.int64) + (pid % blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    live = d < n_channels
    grad += batch * sg[0] + d * sg[2]
    seq += batch * sseq[0]
    total = tl.zeros([STEPS, CHANNELS], tl.float32)
    unbroken = t < length
    for j in tl.static_range(WIDTH):
        if j > 0:
            unbroken = _chain(seq, sseq[1], t + j - 1, length, back=BACK, unbroken=unbroken, GIVEN=HAS_SEQ)
        reached = unbroken & (t + j >= 0) & (t + j < length)
        place = _place(t + j, length, BACK)
        value = tl.load(grad + place * sg[1], mask=reached[:, None] & live, other=0.0).to(tl.float32)
        total += value * _tap(weight, d, live, j, WIDTH)
    here = ((t >= 0) & (t < length))[:, None] & live
    target = result + batch * sr[0] + _place(t, length, BACK) * sr[1] + d * sr[2]
    tl.store(target, total.to(result.dtype.element_ty), mask=here)
    if HAS_STATE:
        target = early + batch * se[0] + (t + (WIDTH - 1))[:, None] * se[1] + d * se[2]
        tl.store(target, total.to(early.dtype.element_ty), mask=(t < 0)[:, None] & live)


@Kernel
@triton.jit
def step_kernel(
    x,
    state,
    weight,
    bias,
    y,
    strides,
    n_channels,
    blocks,
    SILU: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Convolve one step and shift it into the state."""
    sx, ss, sy = strides
    pid = tl.program_id(0)
    batch = tl.full([], 0, tl.int64) + pid // blocks
    d = tl.full([], 0, tl.int64) + pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    live = d < n_channels
    state += batch * ss[0] + d * ss[2]
    now = tl.load(x + batch * sx[0] + d * sx[1], mask=live, other=0.0)
    value = now.to(tl.float32) * _tap(weight, d, live, 0, WIDTH)
    if HAS_BIAS:
        value += tl.load(bias + d, mask=live, other=0.0)
    for k in tl.static_range(WIDTH - 1):
        old = tl.load(state + k * ss[1], mask=live, other=0.0)
        value += old.to(tl.float32) * _tap(weight, d, live, WIDTH - 1 - k, WIDTH)
        if k > 0:
            tl.store(state + (k - 1) * ss[1], old, mask=live)
    if WIDTH > 1:
        tl.store(state + (WIDTH - 2) * ss[1], now, mask=live)
    if SILU:
        value *= sigmoid(value)
    tl.store(y + batch * sy[0] + d * sy[1], value.to(y.dtype.element_ty), mask=live)


def _grid(x, first: int = 0) -> tuple[int, int, int]:
    """Programs in all, blocks of channels, and tiles of time that starts `first` steps early."""
    blocks, tiles = ceil_div(x.shape[2], CHANNELS), ceil_div(x.shape[1] + first, STEPS)
    return x.shape[0] * blocks * tiles, blocks, tiles


def _convolve(x, weight, bias, before, seq_idx, silu, reverse, result, grad_y=None, sums=None):
    weight, bias = contiguous(weight, bias)
    programs, blocks, tiles = _grid(x)
    given = [x if t is None else t for t in (bias, before, seq_idx, grad_y)]
    strides = tuple([t.stride() for t in (x, given[1], given[2], given[3], result)])
    named = constants(
        4,
        BACK=int(reverse),
        SILU=silu,
        BACKWARD=grad_y is not None,
        WIDTH=weight.shape[1],
        HAS_BIAS=bias is not None,
        HAS_STATE=before is not None,
        HAS_SEQ=seq_idx is not None,
        STEPS=STEPS,
        CHANNELS=CHANNELS,
    )
    tensors = (x, weight, *given, result, x if sums is None else sums)
    conv_kernel.launch(programs, tensors, (strides, x.shape[1], x.shape[2], blocks, tiles), named)


@Replayed
def conv_forward(x, weight, bias, initial_state, seq_idx, silu, reverse):
    """Return y (B, L, D)."""
    y = torch.empty_like(x)
    if x.numel() and weight.dtype == torch.float64:
        return y.copy_(_by_reference(x, weight, bias, initial_state, seq_idx, silu, reverse))
    if x.numel():
        _convolve(x, weight, bias, initial_state, seq_idx, silu, reverse, y)
    return y


@Replayed
def conv_backward(grad_y, x, weight, bias, initial_state, seq_idx, silu, reverse):
    """Return the gradients of x, weight, bias and initial_state; empty where there is nothing to derive by."""
    dx, dweight = torch.empty_like(x), torch.empty_like(weight, memory_format=torch.contiguous_format)
    dbias = weight.new_empty(0 if bias is None else bias.shape)
    early = x.new_empty(0) if initial_state is None else initial_state.new_empty(initial_state.shape)
    tensors = (x, weight, bias, initial_state)
    if not x.numel():
        for result in (dweight, dbias, early):
            result.zero_()
    elif weight.dtype == torch.float64:
        _copy_gradients((dx, dweight, dbias, early), grad_y, tensors, seq_idx, silu, reverse)
    else:
        width = weight.shape[1]
        sums = weight.new_empty(x.shape[0] * _grid(x)[2], width + 1, x.shape[2])
        grad = torch.empty_like(x, dtype=torch.float32)
        _convolve(*tensors, seq_idx, silu, reverse, grad, grad_y, sums)
        _transposed(grad, weight, seq_idx, reverse, dx, None if initial_state is None else early)
        add_up(sums, dweight, turned=True)
        if bias is not None:
            add_up(sums, dbias, start=width * x.shape[2])
    return dx, dweight, dbias, early


def _transposed(grad, weight, seq_idx, reverse, dx, early):
    (weight,) = contiguous(weight)
    programs, blocks, tiles = _grid(dx, weight.shape[1] - 1)
    numbers, first = dx if seq_idx is None else seq_idx, dx if early is None else early
    named = constants(
        4,
        BACK=int(reverse),
        WIDTH=weight.shape[1],
        HAS_STATE=early is not None,
        HAS_SEQ=seq_idx is not None,
        STEPS=STEPS,
        CHANNELS=CHANNELS,
    )
    strides = (grad.stride(), numbers.stride(), dx.stride(), first.stride())
    sizes = (strides, dx.shape[1], dx.shape[2], blocks, tiles)
    transposed_kernel.launch(programs, (grad, weight, numbers, dx, first), sizes, named)


@Replayed
def conv_update(x, state, weight, bias, silu):
    """Return y (B, D) of one step; shift x into state (B, width - 1, D)."""
    y = torch.empty_like(x)
    if x.numel() and weight.dtype == torch.float64:
        rows: Any = torch.cat([state, x.unsqueeze(1)], 1)
        y.copy_(_by_reference(rows[:, -1:], weight, bias, rows[:, :-1], None, silu, False)[:, 0])
        state.copy_(rows[:, 1:])
    elif x.numel():
        weight, bias = contiguous(weight, bias)
        blocks = ceil_div(x.shape[1], CHANNELS)
        tensors = (x, state, weight, x if bias is None else bias, y)
        named = constants(1, SILU=silu, WIDTH=weight.shape[1], HAS_BIAS=bias is not None, CHANNELS=CHANNELS)
        numbers = ((x.stride(), state.stride(), y.stride()), x.shape[1], blocks)
        step_kernel.launch(x.shape[0] * blocks, tensors, numbers, named)
    return y


def _by_reference(x, weight, bias, before, seq_idx, silu, reverse):
    options = {"initial_state": before, "seq_idx": seq_idx, "silu": silu, "reverse": reverse}
    return causal_conv1d_reference(x, weight, bias, **options)


def _copy_gradients(results, grad_y, tensors, seq_idx, silu, reverse):
    leaves: Any = [None if x is None else x.detach().requires_grad_() for x in tensors]
    with torch.enable_grad():
        y = _by_reference(*leaves, seq_idx, silu, reverse)
    grads = iter(torch.autograd.grad(y, [x for x in leaves if x is not None], grad_y))
    for result, leaf in zip(results, leaves, strict=True):
        if leaf is not None:
            result.copy_(next(grads))

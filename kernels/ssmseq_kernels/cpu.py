"""The compiled CPU kernels: allocates results, hands addresses and strides to C++.

Nothing here touches autograd; `ops` registers these functions for CPU tensors. Tensors of any strides are read and
written where they lie. Half-precision tensors are converted inside the kernels; small weights have been brought to the
dtype of the arithmetic by the caller.
"""

import torch
from torch import Tensor

from ssmseq_kernels import _cpu

KINDS = {torch.bfloat16: 1, torch.float16: 2}  # as in kernels.h; any other dtype is that of the arithmetic: 0


def _rows(x: Tensor | None):
    """(address, kind, strides of batch, time and channel) of a (B, L, D) tensor."""
    return None if x is None or not x.numel() else (x.data_ptr(), KINDS.get(x.dtype, 0), *x.stride())


def _states(x: Tensor | None):
    """The same for a (B, D, N) tensor, whose states take the place of time."""
    if x is None or not x.numel():
        return None
    batch, channel, state = x.stride()
    return (x.data_ptr(), KINDS.get(x.dtype, 0), batch, state, channel)


def _rates(A: Tensor):
    channel, state = A.stride()
    return (A.data_ptr(), 0, 0, state, channel)


def _flat(x: Tensor | None) -> int:
    return 0 if x is None or not x.numel() else x.data_ptr()


def _sequence(x: Tensor | None):
    return None if x is None or not x.numel() else (x.data_ptr(), *x.stride())


def _sizes(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    groups = next((x.shape[2] for x in (B, C) if x.dim() == 4), 1)
    return (*u.shape, A.shape[1], groups)


def checkpoint_shape(u: Tensor, A: Tensor, keep: bool) -> tuple[int, ...]:
    """Shape (B, chunks - 1, N, D) of the states that the forward pass keeps for the backward pass."""
    n_batch, length, n_channels = u.shape
    chunks = (length + _cpu.CHUNK - 1) // _cpu.CHUNK
    return (n_batch, max(chunks - 1, 0) if keep else 0, A.shape[1], n_channels)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in tensors]


def _inputs(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse):
    sizes = _sizes(u, A, B, C)
    mixers = (_rows(B), _rows(C))
    given = (_flat(D), _rows(z), _flat(delta_bias), _states(initial_state), _sequence(seq_idx))
    return (sizes, _rows(u), _rows(delta), _rates(A), *mixers, *given, delta_softplus, reverse)


def _forward(scans: list[tuple], keep: bool, return_state: bool):
    calls, results, alive = [], [], []
    for u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, softplus, reverse in scans:
        D, delta_bias = _contiguous(D, delta_bias)
        alive.append((D, delta_bias))
        y = torch.empty_like(u)
        state = A.new_empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,))
        kept = A.new_empty(checkpoint_shape(u, A, keep))
        inputs = _inputs(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, softplus, reverse)
        calls.append((*inputs, _rows(y), _states(state), _flat(kept)))
        results.append((y, state, kept))
    _cpu.forward(scans[0][2].dtype == torch.float64, tuple(calls), torch.get_num_threads())
    return results


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse, return_state, keep
):
    """Return y (B, L, D), the final state (B, D, N) or an empty tensor, and the kept states."""
    scan = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse)
    return _forward([scan], keep, return_state)[0]


def forward_pair(*args):
    """Scan the first ten tensors forward and the next ten in reverse; return both results, one after the other."""
    softplus, return_state, keep = args[20:]
    first, second = _forward([(*args[:10], softplus, False), (*args[10:20], softplus, True)], keep, return_state)
    return (*first, *second)


def _backward(scans: list[tuple]):
    calls, results, alive = [], [], []
    for grad_y, grad_state, *tensors, kept, softplus, reverse in scans:
        grads = empty_gradients(*tensors)
        results.append(grads)
        u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx = tensors
        if not u.numel():  # no time step or no batch element: the final state is the initial one
            for grad in grads:
                grad.zero_()
            if grad_state is not None and initial_state is not None:
                grads[8].copy_(grad_state)
            continue
        D, delta_bias = _contiguous(D, delta_bias)
        alive.append((D, delta_bias))
        inputs = _inputs(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, softplus, reverse)
        du, ddelta, dA, dB, dC, dD, dz, dbias, dstate = grads
        given = (_rows(grad_y), _states(grad_state), _flat(kept))
        outputs = (_rows(du), _rows(ddelta), _flat(dA), _rows(dB), _rows(dC), _flat(dD), _rows(dz), _flat(dbias))
        calls.append((*inputs, *given, *outputs, _states(dstate)))
    if calls:
        _cpu.backward(scans[0][4].dtype == torch.float64, tuple(calls), torch.get_num_threads())
    return results


def empty_gradients(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx=None) -> tuple[Tensor, ...]:
    """Uninitialised gradients, laid out as the kernel writes them; empty where there is nothing to derive by."""
    nothing = u.new_empty(0)
    rows = [nothing if x is None else torch.empty_like(x) for x in (u, delta, z, initial_state)]
    flat = [nothing if x is None else x.new_empty(x.shape) for x in (A, B, C, D, delta_bias)]
    du, ddelta, dz, dstate = rows
    dA, dB, dC, dD, dbias = flat
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dstate


def backward(*args):
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; empty where not wanted.

    Takes the gradients of y and of the final state (or None), the ten tensors, the kept states, and two flags.
    """
    return _backward([args])[0]


def backward_pair(*args):
    """Return the gradients of both scans, one after the other: twice the arguments of `backward`, less the flags."""
    softplus = args[26]
    first, second = _backward([(*args[:13], softplus, False), (*args[13:26], softplus, True)])
    return (*first, *second)


def update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Advance state (B, D, N) by one step in place; return y (B, D)."""
    n_batch, n_channels = u.shape
    if state.stride(2) != 1 and state.shape[2] > 1:
        raise ValueError(f"the last axis of state must have stride 1, got strides {state.stride()}")
    y = torch.empty((n_batch, n_channels), dtype=u.dtype)
    if not y.numel():
        return y
    A, D, delta_bias = _contiguous(A, D, delta_bias)
    call = (
        (n_batch, n_channels, A.shape[1], B.shape[1]),
        _states(state),
        *(_step(x) for x in (u, delta)),
        _rates(A),
        *(_step_mixer(x) for x in (B, C)),
        _flat(D),
        _step(z),
        _flat(delta_bias),
        delta_softplus,
        _step(y),
    )
    _cpu.update(A.dtype == torch.float64, call, torch.get_num_threads())
    return y


def _step(x: Tensor | None):
    if x is None:
        return None
    batch, channel = x.stride()
    return (x.data_ptr(), KINDS.get(x.dtype, 0), batch, 0, channel)


def _step_mixer(x: Tensor):
    batch, group, state = x.stride()
    return (x.data_ptr(), KINDS.get(x.dtype, 0), batch, 0, group, state)


def _convolve(what, x, weight, bias, before, seq_idx, silu, reverse, *results):
    sizes = (*x.shape, weight.shape[1])
    given = (_rows(x), _flat(weight), _flat(bias), _rows(before), _sequence(seq_idx))
    _cpu.convolve(
        what, weight.dtype == torch.float64, (sizes, *given, silu, reverse, *results), torch.get_num_threads()
    )


def conv_forward(x, weight, bias, initial_state, seq_idx, silu, reverse):
    """Return y (B, L, D)."""
    weight, bias = _contiguous(weight, bias)
    y = torch.empty_like(x)
    if x.numel():
        results = (_rows(y), None, 0, 0, None)
        _convolve("forward", x, weight, bias, initial_state, seq_idx, silu, reverse, *results)
    return y


def conv_backward(grad_y, x, weight, bias, initial_state, seq_idx, silu, reverse):
    """Return the gradients of x, weight, bias and initial_state; empty where there is nothing to derive by."""
    weight, bias = _contiguous(weight, bias)
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
    dbias = weight.new_zeros(0 if bias is None else bias.shape)
    dbefore = x.new_empty(0) if initial_state is None else initial_state.new_zeros(initial_state.shape)
    if x.numel():
        results = (_rows(dx), _rows(grad_y), _flat(dweight), _flat(dbias), _rows(dbefore))
        _convolve("backward", x, weight, bias, initial_state, seq_idx, silu, reverse, *results)
    return dx, dweight, dbias, dbefore


def conv_update(x, state, weight, bias, silu):
    """Return y (B, D) of one step; shift x into state (B, width - 1, D)."""
    weight, bias = _contiguous(weight, bias)
    y = torch.empty(x.shape, dtype=x.dtype)
    if x.numel():
        rows = x.unsqueeze(1)
        results = (_rows(y.unsqueeze(1)), None, 0, 0, None)
        _convolve("update", rows, weight, bias, state, None, silu, False, *results)
    return y

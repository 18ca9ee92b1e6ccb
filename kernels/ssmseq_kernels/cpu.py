"""The compiled CPU kernels: allocates results and hands tensors to C++.

Nothing here touches autograd; `ops` registers these functions for CPU tensors. Tensors of any strides are read and
written where they lie. Half-precision tensors are converted inside the kernels; small weights have been brought to the
dtype of the arithmetic by the caller.
"""

from typing import Any

import torch

from ssmseq_kernels import _cpu
from ssmseq_kernels.results import contiguous, empty_gradients, kept_shape, settle_empty

CHUNK = _cpu.CHUNK  # steps between kept states
replayed: Any = None  # calls are not made again, as they are on a GPU


def _inputs(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse):
    D, delta_bias = contiguous(D, delta_bias)
    return (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse)


def _forward(scans: list[Any], keep: bool, return_state: bool):
    calls, results = [], []
    for scan in scans:
        u, _, A, *_ = scan
        y = torch.empty_like(u)
        state = A.new_empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,))
        kept = A.new_empty(kept_shape(u, A, keep, CHUNK))
        calls.append((*_inputs(*scan), y, state, kept))
        results.append((y, state, kept))
    _cpu.forward(tuple(calls), torch.get_num_threads())
    return results


def forward(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse, return_state, keep):
    """Return y (B, L, D), the final state (B, D, N) or an empty tensor, and the kept states."""
    scan = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse)
    return _forward([scan], keep, return_state)[0]


def forward_pair(*args):
    """Scan the first ten tensors forward and the next ten in reverse; return both results, one after the other."""
    softplus, return_state, keep = args[20:]
    first, second = _forward([(*args[:10], softplus, False), (*args[10:20], softplus, True)], keep, return_state)
    return (*first, *second)


def _backward(scans: list[Any]):
    calls, results = [], []
    for grad_y, grad_state, *tensors, kept, softplus, reverse in scans:
        inputs: Any = (*tensors, softplus, reverse)
        grads = empty_gradients(*tensors)
        results.append(grads)
        if tensors[0].numel():
            calls.append((*_inputs(*inputs), grad_y, grad_state, kept, *grads))
            continue
        settle_empty(grads, grad_state, tensors[8] is not None)
    if calls:
        _cpu.backward(tuple(calls), torch.get_num_threads())
    return results


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


def update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, limit=None):
    """Advance state (B, D, N) by one step in place; return y (B, D), or None if the tensors are not as they must be."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    threads = torch.get_num_threads()
    return y if _cpu.update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, limit, y, threads) else None


def update_heads(state, x, dt, A, B, C, D, z, dt_bias, *, softplus, limit):
    """Advance state (B, H, P, N) by one step of Mamba-2, whose A is (H,); return y (B, H, P), or None likewise."""
    return update(state, x, dt, A, B, C, D, z, dt_bias, softplus, limit)


def update_checked(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Do the same with tensors whose shapes are right; those of awkward strides are copied, the state excepted."""
    if state.stride(2) != 1 and state.shape[2] > 1:
        raise ValueError(f"the last axis of state must have stride 1, got strides {state.stride()}")
    A, D, delta_bias = contiguous(A, D, delta_bias)
    y = update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    assert y is not None, "checked by the caller"
    return y


def _convolve(what, x, weight, bias, before, seq_idx, silu, reverse, *results):
    call = (x, weight, bias, before, seq_idx, silu, reverse, *results)
    _cpu.convolve(what, call, torch.get_num_threads())


def conv_forward(x, weight, bias, initial_state, seq_idx, silu, reverse):
    """Return y (B, L, D)."""
    weight, bias = contiguous(weight, bias)
    y = torch.empty_like(x)
    if x.numel():
        _convolve("forward", x, weight, bias, initial_state, seq_idx, silu, reverse, y, None, None, None, None)
    return y


def conv_backward(grad_y, x, weight, bias, initial_state, seq_idx, silu, reverse):
    """Return the gradients of x, weight, bias and initial_state; empty where there is nothing to derive by."""
    weight, bias = contiguous(weight, bias)
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight)
    dbias = weight.new_zeros(0 if bias is None else bias.shape)
    dbefore = x.new_empty(0) if initial_state is None else initial_state.new_zeros(initial_state.shape)
    if x.numel():
        results = (dx, grad_y, dweight, dbias, dbefore)
        _convolve("backward", x, weight, bias, initial_state, seq_idx, silu, reverse, *results)
    return dx, dweight, dbias, dbefore


def conv_update(x, state, weight, bias, silu):
    """Return y (B, D) of one step; shift x into state (B, width - 1, D)."""
    weight, bias = contiguous(weight, bias)
    y = torch.empty_like(x)
    if x.numel():
        rows = (x.unsqueeze(1), weight, bias, state, None, silu, False, y.unsqueeze(1))
        _convolve("update", *rows, None, None, None, None)
    return y

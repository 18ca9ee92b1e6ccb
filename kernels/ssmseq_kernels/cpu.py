"""The compiled CPU scan: allocates results, hands addresses and strides to the C++ kernel.

Nothing here touches autograd; `ops` registers these two functions for CPU tensors.
"""

import torch
from torch import Tensor

from ssmseq_kernels import _cpu

DTYPES = (torch.float32, torch.float64)


def _unit_last_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strided(x: Tensor | None) -> tuple[int, ...] | None:
    """Address and every stride but the last, which is one."""
    return None if x is None or not x.numel() else (x.data_ptr(), *x.stride()[:-1])


def _flat(x: Tensor | None) -> tuple[int] | None:
    return None if x is None or not x.numel() else (x.data_ptr(),)


def _sizes(u: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
    return (*u.shape, A.shape[1], B.shape[2])


def _prepare(u, delta, A, B, C, D, z, delta_bias, initial_state):
    """Bring the inputs into the layout of the kernel; a copy is made only where the last axis is strided."""
    rows = [_unit_last_stride(x) for x in (u, delta, B, C)]
    z = None if z is None else _unit_last_stride(z)
    flat = [None if x is None else x.contiguous() for x in (A, D, delta_bias, initial_state)]
    return rows[0], rows[1], flat[0], rows[2], rows[3], flat[1], z, flat[2], flat[3]


def _addresses(u, delta, A, B, C, D, z, delta_bias, initial_state):
    mixers, rows = (_strided(B), _strided(C)), (_strided(u), _strided(delta))
    return (*rows, _flat(A), *mixers, _flat(D), _strided(z), _flat(delta_bias), _flat(initial_state))


def checkpoint_shape(u: Tensor, A: Tensor, keep: bool) -> tuple[int, ...]:
    """Shape (B, chunks - 1, N, D) of the states that the forward pass keeps for the backward pass."""
    n_batch, length, n_channels = u.shape
    chunk = _cpu.chunk_length(A.shape[1])
    return (n_batch, max((length + chunk - 1) // chunk - 1, 0) if keep else 0, A.shape[1], n_channels)


def forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse, return_state, keep):
    """Return y (B, L, D), the final state (B, D, N) or an empty tensor, and the kept states."""
    inputs = _prepare(u, delta, A, B, C, D, z, delta_bias, initial_state)
    y = torch.empty(u.shape, dtype=u.dtype)
    state = torch.empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,), dtype=u.dtype)
    kept = torch.empty(checkpoint_shape(u, A, keep), dtype=u.dtype)
    _cpu.forward(
        u.dtype == torch.float64,
        _sizes(u, A, B),
        _addresses(*inputs),
        (_strided(y), _flat(state), _flat(kept)),
        delta_softplus,
        reverse,
        torch.get_num_threads(),
    )
    return y, state, kept


def backward(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, initial_state, kept, delta_softplus, reverse):
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; empty where not wanted."""
    inputs = _prepare(u, delta, A, B, C, D, z, delta_bias, initial_state)
    grad_y = _unit_last_stride(grad_y)
    grad_state = None if grad_state is None else grad_state.contiguous()
    optional = [torch.empty(0 if x is None else x.shape, dtype=u.dtype) for x in (D, z, delta_bias, initial_state)]
    du, ddelta, dA, dB, dC = (torch.empty(x.shape, dtype=u.dtype) for x in (u, delta, A, B, C))
    grads = (du, ddelta, dA, dB, dC, *optional)
    if not u.numel():  # no time step or no batch element: the final state is the initial one
        for grad in grads:
            grad.zero_()
        if grad_state is not None and optional[3].numel():
            optional[3].copy_(grad_state)
        return grads
    _cpu.backward(
        u.dtype == torch.float64,
        _sizes(u, A, B),
        _addresses(*inputs),
        (_strided(grad_y), _flat(grad_state), _flat(kept)),
        _addresses(*grads),
        delta_softplus,
        reverse,
        torch.get_num_threads(),
    )
    return grads


def conv_forward(x, weight, bias, silu, reverse):
    """Return y (B, L, D)."""
    x = _unit_last_stride(x)
    flat = (weight.contiguous(), None if bias is None else bias.contiguous())
    y = torch.empty(x.shape, dtype=x.dtype)
    inputs = (_strided(x), _flat(flat[0]), _flat(flat[1]), None)
    _convolve(x, weight, inputs, (_strided(y), None, None), silu, reverse)
    return y


def conv_backward(grad_y, x, weight, bias, silu, reverse):
    """Return the gradients of x, weight and bias; that of a missing bias is empty."""
    x, grad_y = _unit_last_stride(x), _unit_last_stride(grad_y)
    flat = (weight.contiguous(), None if bias is None else bias.contiguous())
    dx, dweight = torch.empty(x.shape, dtype=x.dtype), torch.zeros(weight.shape, dtype=x.dtype)
    dbias = torch.zeros(0 if bias is None else bias.shape, dtype=x.dtype)
    if x.numel():
        inputs = (_strided(x), _flat(flat[0]), _flat(flat[1]), _strided(grad_y))
        _convolve(x, weight, inputs, (_strided(dx), _flat(dweight), _flat(dbias)), silu, reverse)
    return dx, dweight, dbias


def _convolve(x, weight, inputs, outputs, silu, reverse):
    sizes = (*x.shape, weight.shape[1])
    _cpu.convolve(x.dtype == torch.float64, sizes, inputs, outputs, silu, reverse, torch.get_num_threads())

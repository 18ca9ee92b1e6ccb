"""Where the kernels of every device put their results: shapes and layouts, also of tensors that are only traced."""

from typing import Any

import torch
from torch import Tensor


def contiguous(*tensors: Tensor | None) -> Any:
    """Copy what is not contiguous."""
    return [x if x is None or x.is_contiguous() else x.contiguous() for x in tensors]


def kept_shape(u: Tensor, A: Tensor, keep: bool, chunk: int) -> tuple[int, ...]:
    """Shape (B, chunks - 1, N, D) of the states between chunks that a forward pass keeps for the backward pass."""
    n_batch, length, n_channels = u.shape
    chunks = (length + chunk - 1) // chunk
    return (n_batch, max(chunks - 1, 0) if keep else 0, A.shape[1], n_channels)


def empty_gradients(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx=None) -> tuple[Tensor, ...]:
    """Uninitialised gradients, laid out as the kernels write them; empty where there is nothing to derive by."""
    nothing = u.new_empty(0)
    rows = [nothing if x is None else torch.empty_like(x) for x in (u, delta, z, initial_state)]
    layout = torch.contiguous_format
    flat = [nothing if x is None else torch.empty_like(x, memory_format=layout) for x in (A, B, C, D, delta_bias)]
    du, ddelta, dz, dstate = rows
    dA, dB, dC, dD, dbias = flat
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dstate


def settle_empty(grads: tuple[Tensor, ...], grad_state: Tensor | None, has_state: bool) -> None:
    """Fill the gradients of a scan of no step or no batch element: its final state is the initial one."""
    for grad in grads:
        grad.zero_()
    if grad_state is not None and has_state:
        grads[8].copy_(grad_state)

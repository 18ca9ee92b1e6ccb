"""The scans in torch's own operators, for graphs that run where this package is not installed.

A custom operator stays one opaque node of an exported graph, and a loop over time would be unrolled into thousands of
nodes of one fixed length. Here a scan is torch's higher-order operator ``scan``: one node with the step as its body,
for sequences of any length, which becomes one ``Scan`` node in ONNX.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq_kernels import ops, scan, ssd_products
from ssmseq_kernels.reference import SOFTPLUS_THRESHOLD

_lock = threading.RLock()


@contextmanager
def portable_operators() -> Iterator[None]:
    """Let every scan and convolution of the package run in torch's own operators, while a graph is exported.

    It holds for all threads of the process: networks that run elsewhere meanwhile give the same numbers, many times
    slower. Packed sequences (`seq_idx`) raise ValueError.
    """
    with _lock, ExitStack() as stack:
        for module, name, replacement in (
            (ops, "has_kernel", lambda device: False),
            (scan, "selective_scan_reference", _selective_scan),
            (scan, "_warn_once", lambda device: None),
            (ssd_products, "chunked", _scan_by_head),
        ):
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield


def _selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, *, delta_softplus, initial_state, seq_idx, reverse
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan_reference` does, which explains the arguments."""
    _refuse_packed(seq_idx)
    dt = delta if delta_bias is None else delta + delta_bias
    dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD) if delta_softplus else dt
    n_channels, n_state = A.shape
    B, C = (t.expand(*u.shape[:2], -1, -1) if t.dim() == 2 else t for t in (B, C))

    def step(state, dt, dtu, B, C, A):
        B, C = _shared(B, n_channels), _shared(C, n_channels)
        state = torch.exp(dt[..., None] * A) * state + dtu[..., None] * B
        return [state, (state * C).sum(-1)]

    start = u.new_zeros(u.shape[0], n_channels, n_state) if initial_state is None else initial_state
    y, state = _over_time(step, start, [dt, dt * u, B, C], A, reverse=reverse)
    y = y if D is None else y + D * u
    return y if z is None else y * F.silu(z), state


def _scan_by_head(x, steps, B, C, state, seq_idx, *, reverse=False, final=False, strict=False) -> tuple[Tensor, Tensor]:
    """Do what `ssd_products.chunked` does, which explains the arguments."""
    _refuse_packed(seq_idx)
    n_heads, n_dim = x.shape[2:]

    def step(state, decay, x, B, C):
        B, C = (_shared(t, n_heads)[:, :, None] for t in (B, C))
        kept = decay[..., None, None] * state
        state = kept + x[..., None] * B
        return [state, ((kept if strict else state) * C).sum(-1)]

    start = x.new_zeros(x.shape[0], n_heads, n_dim, B.shape[3]) if state is None else state
    return _over_time(step, start, [torch.exp2(steps).to(x.dtype), x, B, C], reverse=reverse)


def _over_time(step: Callable, start: Tensor, rows: list[Tensor], *fixed: Tensor, reverse: bool) -> tuple:
    """Run a step along the second axis of the rows: the outputs in the order of time, and the last state."""
    rows = [t.movedim(1, 0) for t in rows]
    rows = [t.flip(0) for t in rows] if reverse else rows
    state, y = torch.ops.higher_order.scan(step, [start], rows, fixed)
    return (y.flip(0) if reverse else y).movedim(0, 1), state


def _shared(mixer: Tensor, n: int) -> Tensor:
    """Give each of n channels or heads the B or C (B, G, N) of its group; a single group is left to broadcasting."""
    groups = mixer.shape[1]
    return mixer if groups in (1, n) else mixer[:, :, None].expand(-1, -1, n // groups, -1).flatten(1, 2)


def _refuse_packed(seq_idx: Tensor | None) -> None:
    if seq_idx is not None:
        raise ValueError("packed sequences (seq_idx) cannot be exported: give each sequence a row of its own")

"""The products of Mamba-2's scan: one decay per head makes whole chunks of time matrix products.

Time is cut into chunks. Within a chunk, y is (C B^T, masked and decayed) x; what enters a chunk is a state of N times
all channels, so that its part of y, and what the chunk adds to it, are products with every head side by side. A head's
decays within a chunk are exponentials of differences of one sum over time, taken in double and never as quotients.

Torch's own operators do the work, on any device, and torch differentiates them, but for the decayed mask, whose
derivative is written out: it saves no matrix that can be made again.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64  # steps
WEIGHTS_AT_ONCE = 1 << 18  # numbers; a megabyte in float32
LOG2E, LN2 = math.log2(math.e), math.log(2.0)


def log2_decays(dt: Tensor, A: Tensor) -> Tensor:
    """Return dt A / log(2) in double, (B, L, H): the logarithm to base 2 of the decay of each step."""
    return dt.double() * (A.double() * LOG2E)


def chunked(x, steps, B, C, state, seq_idx, *, reverse=False, final=False, strict=False) -> tuple[Tensor, Any]:
    r"""Scan :math:`h_t = 2^{s_t} h_{t-1} + x_t B_t^\top, y_t = h_t C_t`.

    `steps` (B, L, H) holds s in double. `strict` leaves out of :math:`y_t` what step t itself adds. The state after the
    last step is only found if `final`, or if there is one to start from, or more than one chunk.
    """
    n_batch, length, n_heads, n_dim = x.shape
    groups, n_state = B.shape[2:]
    if not x.numel() or not n_state:
        return torch.zeros_like(x), x.new_zeros(n_batch, n_heads, n_dim, n_state) if state is None else state
    chunk = min(CHUNK, length)
    n_chunks = -(-length // chunk)
    pad = n_chunks * chunk - length
    numbers = None if seq_idx is None else numbered(seq_idx, pad).view(n_batch, n_chunks, chunk)
    if pad:  # steps that neither decay nor add
        x, steps, B, C = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x, steps, B, C))
    sums = _sums(steps.view(n_batch, n_chunks, chunk, n_heads), reverse)
    x = x.view(n_batch, n_chunks, chunk, n_heads, n_dim)
    B, C = (t.reshape(n_batch, n_chunks, chunk, groups, n_state) for t in (B, C))

    scores = torch.einsum("bcign,bcjgn->bcgij", C, B)
    if strict:
        scores = scores.triu(1) if reverse else scores.tril(-1)
    y = _Within.apply(scores, sums, numbers, x, reverse)
    if n_chunks > 1 or state is not None or final:
        by_group = (n_batch, n_chunks, chunk, groups, -1)  # heads of a group side by side: one wide product for all
        decays = _decays(sums, numbers, reverse, x.dtype)
        added = torch.einsum("bcqgn,bcqgp->bcgnp", B, (x * decays["to_end"]).view(by_group))
        entering, state = _pass(added, decays["across"], state, reverse, n_heads)
        y = torch.addcmul(y, torch.einsum("bcqgn,bcgnp->bcqgp", C, entering).reshape(x.shape), decays["from_start"])
    return y.reshape(n_batch, n_chunks * chunk, n_heads, n_dim)[:, :length], state


def numbered(seq_idx: Tensor, pad: int = 0) -> Tensor:
    """Number the sequences of a row from zero on, so that no number comes twice; padding belongs to the last one."""
    numbers = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0)).cumsum(1)
    return torch.cat([numbers, numbers[:, -1:].expand(-1, pad)], 1)


def _sums(steps: Tensor, reverse: bool) -> Tensor:
    """Sums within each chunk, up to and with each step in the order of the scan: (B, chunks, Q, H)."""
    return steps.flip(2).cumsum(2).flip(2) if reverse else steps.cumsum(2)


def _decays(sums: Tensor, numbers: Tensor | None, reverse: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Decays from a chunk's start to each step, from each step to its end, (B, chunks, Q, H, 1), and across, (.., H).

    Zero where another sequence begins on the way.
    """
    last = 0 if reverse else -1
    total = sums[:, :, last]
    found = {"from_start": sums, "to_end": total[:, :, None] - sums, "across": total}
    found = {k: torch.exp2(v).to(dtype) for k, v in found.items()}
    if numbers is not None:
        at_end = numbers[:, :, last]
        edge = numbers[:, -1:, -1] if reverse else numbers[:, :1, 0]  # what comes in from outside continues
        before = torch.cat([at_end[:, 1:], edge], 1) if reverse else torch.cat([edge, at_end[:, :-1]], 1)
        found["from_start"] = found["from_start"] * (numbers == before[:, :, None])[..., None]
        found["to_end"] = found["to_end"] * (numbers == at_end[:, :, None])[..., None]
        found["across"] = found["across"] * (before == at_end)[..., None]
    return {k: v if k == "across" else v[..., None] for k, v in found.items()}


def _pass(added: Tensor, across: Tensor, state: Tensor | None, reverse: bool, n_heads: int) -> tuple[Tensor, Tensor]:
    """Hand states from chunk to chunk: those that enter, (B, chunks, G, N, heads of a group * P), and the last one."""
    n_batch, _, groups, n_state, width = added.shape
    heads = n_heads // groups
    if state is None:
        state = added.new_zeros(n_batch, groups, n_state, width)
    else:
        state = state.view(n_batch, groups, heads, -1, n_state).permute(0, 1, 4, 2, 3).flatten(3)
    factors = across.view(n_batch, -1, groups, 1, heads).repeat_interleave(width // heads, 4)
    steps = list(zip(added.unbind(1), factors.unbind(1), strict=True))
    entering = []
    for own, factor in reversed(steps) if reverse else steps:
        entering.append(state)
        state = torch.addcmul(own, state, factor)
    if reverse:
        entering.reverse()
    final = state.view(n_batch, groups, n_state, heads, -1).permute(0, 1, 3, 4, 2).flatten(1, 2)
    return torch.stack(entering, 1), final


class _Within(torch.autograd.Function):
    """y of each chunk from its own x: scores (B, chunks, G, Q, Q) masked and decayed, times x (B, chunks, Q, H, P).

    The weights, Q times as many as steps and heads, are made for a few chunks at a time, while they fit the caches, and
    again in the backward pass.
    """

    @staticmethod
    def forward(ctx, scores, sums, numbers, x, reverse):
        ctx.save_for_backward(scores, sums, numbers, x)
        ctx.reverse = reverse
        y = torch.empty_like(x)
        for part in _parts(scores, sums, numbers, x, y):
            weights = _weights(part, reverse)[0]
            part[4].copy_((weights @ part[3].transpose(1, 2)).transpose(1, 2))
        return y.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        scores, sums, numbers, x = ctx.saved_tensors
        d_scores, d_sums, d_x = torch.empty_like(scores), torch.empty_like(sums), torch.empty_like(x)
        for part in _parts(scores, sums, numbers, x, grad.contiguous(), d_scores, d_sums, d_x):
            weights, decayed = _weights(part, ctx.reverse)
            out, value = part[4].transpose(1, 2), part[3].transpose(1, 2)
            part[7].copy_((weights.transpose(2, 3) @ out).transpose(1, 2))
            d_weights = out @ value.transpose(2, 3)
            groups = part[0].shape[1]
            part[5].copy_((d_weights * decayed).unflatten(1, (groups, -1)).sum(2))
            d_weights *= weights
            through = d_weights.sum(3, dtype=torch.float64) - d_weights.sum(2, dtype=torch.float64)
            part[6].copy_(through.transpose(1, 2)).mul_(LN2)
        return d_scores, d_sums, None, d_x, None


def _parts(*tensors: Tensor | None) -> Iterator[Any]:
    """Cut the axis of batch and chunks of all tensors into parts whose weights fit the caches."""
    flat: Any = [t if t is None else t.flatten(0, 1) for t in tensors]
    length, heads = flat[3].shape[1:3]
    size = max(WEIGHTS_AT_ONCE // (length * length * heads), 1)
    if torch.compiler.is_compiling() or flat[0].device.type != "cpu":
        size = len(flat[0])
    for i in range(0, len(flat[0]), size):
        yield [t if t is None else t[i : i + size] for t in flat]


def _weights(part, reverse: bool) -> tuple[Tensor, Tensor]:
    """Decayed and masked scores, and decays alone, (chunks, H, Q, Q)."""
    scores, sums, numbers, x = part[:4]
    rows = sums.transpose(1, 2)
    high = rows.to(x.dtype)
    # A difference of two rounded sums would be off by the rounding of the sums: what was rounded away comes along.
    low = (rows - high).to(x.dtype)
    decayed = high[..., None] - high[..., None, :]
    if low.dtype != rows.dtype:
        decayed += low[..., None] - low[..., None, :]
    steps = torch.arange(rows.shape[-1], device=x.device)
    outside = steps[:, None] > steps if reverse else steps[:, None] < steps
    if numbers is not None:
        outside = (outside | (numbers[..., None] != numbers[:, None]))[:, None]
    decayed = decayed.masked_fill_(outside, -math.inf).exp2_()
    return (decayed.unflatten(1, (scores.shape[1], -1)) * scores[:, :, None]).flatten(1, 2), decayed

"""Mamba-2's scan, state-space duality (SSD): one decay per head makes whole chunks of time matrix products.

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

from ssmseq_kernels import ops
from ssmseq_kernels.reference import SOFTPLUS_THRESHOLD
from ssmseq_kernels.scan import selective_scan

CHUNK = 64  # steps
WEIGHTS_AT_ONCE = 1 << 18  # numbers; a megabyte in float32
LOG2E, LN2 = math.log2(math.e), math.log(2.0)
NO_LIMIT = (0.0, math.inf)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = NO_LIMIT,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    reverse: bool = False,
    return_final_state: bool = False,
) -> Any:
    r"""Selective scan with one decay rate per head, as Mamba-2 has it.

    .. math::
        \Delta_t &= \operatorname{clamp}(\operatorname{softplus}(dt_t + b)) \\
        h_t &= e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top \\
        y_t &= (h_t C_t + D x_t) \odot \operatorname{silu}(z_t)

    It runs where its tensors are. The arithmetic is done in the widest dtype given, and in float32 where that would be
    a half precision; y comes back in the dtype of `x`, the state in that of the arithmetic. Differentiable once in
    every tensor; a second derivative raises.

    Parameters
    ----------
    x : Tensor (B, L, H, P)
        Input: H heads of P channels.
    dt : Tensor (B, L, H)
        Step size before bias and softplus.
    A : Tensor (H,)
        Continuous-time decay rates, usually negative.
    B, C : Tensor (B, L, G, N)
        Input and output mixing; head h uses group ``h // (H / G)``.
    D : Tensor (H,) or (H, P), optional
        Weight of the skip from x to y.
    z : Tensor (B, L, H, P), optional
        Gate.
    dt_bias : Tensor (H,), optional
    dt_softplus : bool
        Pass dt + bias through softplus.
    dt_limit : tuple of float
        Smallest and largest step size, applied last.
    initial_state : Tensor (B, H, P, N), optional
        Zero where not given.
    seq_idx : Tensor (B, L) of integers, optional
        Sequence that each step belongs to; the state starts from zero where the number changes.
    reverse : bool
        Scan from the last step to the first, without flipped copies.
    return_final_state : bool
        Also return the state after the last step.

    Returns
    -------
    y : Tensor (B, L, H, P)
    final_state : Tensor (B, H, P, N)
        Only with `return_final_state`.

    Raises
    ------
    ValueError
        If a shape does not fit the shapes of `x` and `B`, or the limits are out of order.
    TypeError
        If a tensor is not real floating point, or `seq_idx` not of integers.

    References
    ----------
    Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
    """
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    limit = limits(dt_limit, dt_softplus)
    return ops.run(_one_way, (*inputs, seq_idx, dt_softplus, limit, reverse, return_final_state))


def _one_way(how, *call):
    *inputs, seq_idx, dt_softplus, limit, reverse, return_final_state = call
    x, dt, A, B, C, D, z, dt_bias, initial_state = inputs
    ops.fitted(how, _check_scan, *inputs, seq_idx)
    in_single = not any(t is not None and t.dtype == torch.float64 for t in inputs)
    if has_tiles(x.device) and in_single and x.numel() and B.shape[3]:
        y, state = _by_tiles(inputs, seq_idx, dt_softplus, limit, reverse, return_final_state)
        return (y, state) if return_final_state else y
    dtype = ops.arithmetic_dtype(*inputs)
    dt, bias = dt.to(dtype), None if dt_bias is None else dt_bias.to(dtype)
    dt = _step_sizes(dt, bias, dt_softplus, limit)
    if has_scan(x.device):
        y, state = _by_channel(x, dt, A, B, C, D, z, initial_state, seq_idx, reverse)
        return (y, state) if return_final_state else y
    wide: Any = [t if t is None else t.to(dtype) for t in (x, A, B, C, D, z, initial_state)]
    u, A, B, C, D, z, state = wide
    steps, options = log2_decays(dt, A), {"reverse": reverse, "final": return_final_state}
    y, state = chunked(u * dt[..., None], steps, B, C, state, seq_idx, **options)
    y = skip_and_gate(y, u, D, z).to(x.dtype)
    return (y, state) if return_final_state else y


def ssd_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = NO_LIMIT,
) -> Tensor:
    """Take one step of `ssd_scan`, changing the state in place; for generation, without gradients.

    Parameters
    ----------
    state : Tensor (B, H, P, N), float32 or float64
        Changed in place.
    x : Tensor (B, H, P)
    dt : Tensor (B, H)
    A : Tensor (H,)
    B, C : Tensor (B, G, N)
    D : Tensor (H,) or (H, P), optional
    z : Tensor (B, H, P), optional
    dt_bias : Tensor (H,), optional
    dt_softplus : bool
    dt_limit : tuple of float

    Returns
    -------
    y : Tensor (B, H, P)

    Raises
    ------
    ValueError, TypeError
        As `ssd_scan`.
    RuntimeError
        If a gradient is wanted.

    References
    ----------
    Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
    """
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    limit = limits(dt_limit, dt_softplus)
    if ops.plain_on_cpu(x):
        y = ops.cpu.update_heads(*tensors, softplus=dt_softplus, limit=limit)  # type: ignore[union-attr]
        if y is not None:  # else some tensor has to be converted, or does not fit
            return y
    return ops.run(_one_step, (*tensors, dt_softplus, limit))


def _one_step(how, *call):
    *tensors, dt_softplus, limit = call
    ops.check_in_place(how, "ssd_state_update", tensors)
    state, x, *_ = tensors = ops.fitted(how, _check_step, *tensors)
    if how == ops.DIRECT and ops.has_kernel(x.device):
        y = ops.kernels(x.device.type).update_heads(*tensors, softplus=dt_softplus, limit=limit)
        if y is not None:
            return y.to(x.dtype)
    wide = [t if t is None else t.to(state.dtype) for t in tensors[1:]]
    return _step_by_operators(state, *wide, softplus=dt_softplus, limit=limit).to(x.dtype)


def _check_step(state, x, dt, A, B, C, D, z, dt_bias) -> ops.Conversions:
    """Check the tensors of a step; return what has to be converted."""
    rows: Any = [t if t is None else t.unsqueeze(1) for t in (x, dt, B, C, z)]
    check_shapes(rows[0], rows[1], A, rows[2], rows[3], D, rows[4], dt_bias, state, None)
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    dtype = ops.arithmetic_dtype(*tensors)
    if state.dtype != dtype:
        raise TypeError(f"state must be of the dtype of the arithmetic, {dtype}, to be changed in place: {state.dtype}")
    return ops.conversions(tensors, dtype, rows=(1, 2, 4, 5, 7))


def _step_by_operators(state, x, dt, A, B, C, D, z, dt_bias, *, softplus, limit) -> Tensor:
    """Take a step by torch's operators, on any device."""
    dt = _step_sizes(dt, dt_bias, softplus, limit)
    heads = x.shape[1] // max(B.shape[1], 1)
    B, C = (t.repeat_interleave(heads, 1) if heads > 1 else t for t in (B, C))
    state.mul_(torch.exp(dt * A)[..., None, None]).addcmul_((dt[..., None] * x)[..., None], B[:, :, None])
    y = (state @ C[..., None])[..., 0]
    return skip_and_gate(y, x, D, z)


def has_scan(device: torch.device) -> bool:
    """Whether the kernel of `selective_scan` serves the device, faster than products: the compiled one does."""
    return device.type == "cpu" and ops.has_kernel(device)


def has_tiles(device: torch.device) -> bool:
    """Whether the Triton kernels serve the device."""
    return device.type == "cuda" and ops.has_kernel(device)


def _by_tiles(inputs, seq_idx, softplus, limit, reverse, final) -> tuple[Tensor, Any]:
    """Let the Triton kernels do it; they are imported with the first tensor on a GPU."""
    from ssmseq_kernels.triton_ssd import Inputs, Options, ssd_chunked

    numbers = None if seq_idx is None else _numbers(seq_idx, 0)
    return ssd_chunked(Inputs(*inputs), numbers, Options(softplus, limit, reverse, final))


def _by_channel(x, dt, A, B, C, D, z, state, seq_idx, reverse) -> tuple[Tensor, Tensor]:
    """Let `selective_scan` do it, with what a head shares repeated for its channels; its states share one rate."""
    dim = x.shape[3]
    delta = dt[..., None].expand(*dt.shape, dim).flatten(2)
    rates = A.repeat_interleave(dim)[:, None].expand(-1, B.shape[3])
    skip = D if D is None else D.flatten() if D.dim() == 2 else D.repeat_interleave(dim)
    gate, start = (t if t is None else t.flatten(i, i + 1) for t, i in ((z, 2), (state, 1)))
    options: Any = {"delta_softplus": False, "initial_state": start, "seq_idx": seq_idx, "reverse": reverse}
    y, last = selective_scan(x.flatten(2), delta, rates, B, C, skip, gate, **options, return_final_state=True)
    return y.view(x.shape), last.unflatten(1, (-1, dim))


def _step_sizes(dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float] | None) -> Tensor:
    dt = dt if bias is None else dt + bias
    dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD) if softplus else dt
    return dt if limit is None else dt.clamp(*limit)


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Add D x to y, and multiply by silu(z)."""
    if D is not None:
        y = torch.addcmul(y, x, D if D.dim() == 2 else D[:, None])
    return y if z is None else y * F.silu(z)


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
    numbers = None if seq_idx is None else _numbers(seq_idx, pad).view(n_batch, n_chunks, chunk)
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


def _numbers(seq_idx: Tensor, pad: int) -> Tensor:
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


def _check_scan(*tensors) -> ops.Conversions:
    """Check the tensors of a scan, which are converted later if at all."""
    check_shapes(*tensors)
    ops.arithmetic_dtype(*tensors[:-1])
    return ()


def check_shapes(x, dt, A, B, C, D, z, dt_bias, state, seq_idx) -> None:
    """Raise ValueError or TypeError for what does not fit the shapes of x and B; None fits."""
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(f"x must be (B, L, H, P) and B (B, L, G, N); got {tuple(x.shape)} and {tuple(B.shape)}")
    n_batch, length, n_heads, n_dim = x.shape
    groups, n_state = B.shape[2:]
    if groups < 1 or n_heads % groups:
        raise ValueError(f"the number of groups of B must divide the {n_heads} heads of x, got {groups}")
    wanted = {
        "dt": (dt, [(n_batch, length, n_heads)]),
        "A": (A, [(n_heads,)]),
        "B": (B, [(n_batch, length, groups, n_state)]),
        "C": (C, [(n_batch, length, groups, n_state)]),
        "D": (D, [(n_heads,), (n_heads, n_dim)]),
        "z": (z, [tuple(x.shape)]),
        "dt_bias": (dt_bias, [(n_heads,)]),
        "the state": (state, [(n_batch, n_heads, n_dim, n_state)]),
        "seq_idx": (seq_idx, [(n_batch, length)]),
    }
    ops.check_device("x", x, **{name: t for name, (t, _) in wanted.items()})
    for name, (t, shapes) in wanted.items():
        if t is not None and tuple(t.shape) not in shapes:
            raise ValueError(
                f"{name} must be {' or '.join(map(str, shapes))} to fit x {tuple(x.shape)} and B {tuple(B.shape)}, "
                f"got {tuple(t.shape)}"
            )
    if seq_idx is not None and (seq_idx.is_floating_point() or seq_idx.is_complex()):
        raise TypeError(f"seq_idx must hold integers, got {seq_idx.dtype}")


def limits(limit: tuple[float, float], softplus: bool) -> tuple[float, float] | None:
    """Return the smallest and largest step size, None if there is nothing to limit; ValueError if out of order."""
    if len(limit) != 2 or not 0 <= limit[0] <= limit[1]:
        raise ValueError(f"dt_limit must be a smallest and a largest step size, not negative and in order, got {limit}")
    return None if softplus and tuple(limit) == NO_LIMIT else (float(limit[0]), float(limit[1]))

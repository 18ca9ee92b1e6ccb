"""Mamba-2's scan, state-space duality (SSD), and its single step: checks, and the choice of who does the work.

That is the Triton kernels on GPUs, the compiled scan on CPUs, and products of matrices elsewhere, see `ssd_products`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq_kernels import checks, ops, ssd_products
from ssmseq_kernels.reference import SOFTPLUS_THRESHOLD
from ssmseq_kernels.scan import selective_scan

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
    dtype = checks.arithmetic_dtype(*inputs)
    dt, bias = dt.to(dtype), None if dt_bias is None else dt_bias.to(dtype)
    dt = _step_sizes(dt, bias, dt_softplus, limit)
    if has_scan(x.device):
        y, state = _by_channel(x, dt, A, B, C, D, z, initial_state, seq_idx, reverse)
        return (y, state) if return_final_state else y
    wide: Any = [t if t is None else t.to(dtype) for t in (x, A, B, C, D, z, initial_state)]
    u, A, B, C, D, z, state = wide
    steps, options = ssd_products.log2_decays(dt, A), {"reverse": reverse, "final": return_final_state}
    y, state = ssd_products.chunked(u * dt[..., None], steps, B, C, state, seq_idx, **options)
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


def _check_step(state, x, dt, A, B, C, D, z, dt_bias) -> checks.Conversions:
    """Check the tensors of a step; return what has to be converted."""
    rows: Any = [t if t is None else t.unsqueeze(1) for t in (x, dt, B, C, z)]
    check_shapes(rows[0], rows[1], A, rows[2], rows[3], D, rows[4], dt_bias, state, None)
    tensors = (state, x, dt, A, B, C, D, z, dt_bias)
    dtype = checks.arithmetic_dtype(*tensors)
    if state.dtype != dtype:
        raise TypeError(f"state must be of the dtype of the arithmetic, {dtype}, to be changed in place: {state.dtype}")
    return checks.conversions(tensors, dtype, rows=(1, 2, 4, 5, 7))


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

    numbers = None if seq_idx is None else ssd_products.numbered(seq_idx)
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


def _check_scan(*tensors) -> checks.Conversions:
    """Check the tensors of a scan, which are converted later if at all."""
    check_shapes(*tensors)
    checks.arithmetic_dtype(*tensors[:-1])
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
    checks.check_device("x", x, **{name: t for name, (t, _) in wanted.items()})
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

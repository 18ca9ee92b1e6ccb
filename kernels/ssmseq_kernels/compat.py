"""The functions of mamba_ssm and causal_conv1d under their own names, for code written for those packages.

Arguments, layouts (channels before time) and return values are theirs, the kernels are ours, which read transposed
views where they lie. Beyond the originals, these run where the tensors are, take float64 and any strides, and pass
gradients through the last state of the scan; the updates have no derivative, as there. A shape that does not fit raises
a ValueError. Axis letters as in `reference.py`, H heads of P channels.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional as F

import ssmseq_kernels as core
from ssmseq_kernels.checks import arithmetic_dtype
from ssmseq_kernels.reference import SOFTPLUS_THRESHOLD

Maybe: TypeAlias = Tensor | None


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Maybe = None, z: Maybe = None,
    delta_bias: Maybe = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Scan; mirrors ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn``.

    Returns out (B, D, L) in the dtype of `u`, and with `return_last_state` the state (B, D, N), in at least float32.

    Parameters
    ----------
    u, delta, z : Tensor (B, D, L)
    A : Tensor (D, N)
        Real or complex; complex calls are served by `selective_scan_ref`, which a RuntimeWarning says once, and give
        ``2 Re(C h)`` in place of ``C h``.
    B, C : Tensor (D, N), (B, N, L) or (B, G, N, L)
        Constant, varying over time, or varying and shared within groups of channels. With a complex A a constant one
        is complex, and a varying one is real with 2L entries along time, real and imaginary parts in turn.
    D, delta_bias, delta_softplus, return_last_state : Tensor (D,), Tensor (D,), bool, bool, optional
    """
    if A.is_complex():
        _warn_of_complex()
        return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    _check_scan(u, delta, A, B, C, D, z, delta_bias)
    if grouped := [w.shape for w in (B, C) if w.dim() == 4]:
        B, C = (w[:, None].expand(grouped[0]) if w.dim() == 3 else w for w in (B, C))
    B, C = (w.permute(0, 3, 1, 2) if w.dim() == 4 else w.mT if w.dim() == 3 else w for w in (B, C))
    inputs = (u.mT, delta.mT, A, B, C, D, None if z is None else z.mT, delta_bias)
    found = core.selective_scan(*inputs, delta_softplus=delta_softplus, return_final_state=return_last_state)
    return (found[0].mT, found[1]) if isinstance(found, tuple) else found.mT


def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Maybe = None, z: Maybe = None,
    delta_bias: Maybe = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Scan in plain PyTorch, step by step; mirrors ``mamba_ssm.ops.selective_scan_interface.selective_scan_ref``.

    Parameters and results are those of `selective_scan_fn`; computed in float32, or float64 where `u` or `A` is.
    """
    _check_scan(u, delta, A, B, C, D, z, delta_bias)
    dtype = arithmetic_dtype(u, A.real)
    x, dt, rates = u.to(dtype), delta.to(dtype), A.to(torch.promote_types(A.dtype, dtype))
    dt = dt if delta_bias is None else dt + delta_bias.to(dtype)[:, None]
    dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD) if delta_softplus else dt
    mixers = (_per_step(B, rates, u), _per_step(C, rates, u))
    state, outputs = rates.new_zeros(u.shape[0], *A.shape), []
    for dt_t, dtu_t, B_t, C_t in zip(dt.unbind(-1), (dt * x).unbind(-1), *mixers, strict=True):
        state = torch.exp(dt_t[..., None] * rates) * state + dtu_t[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    y = torch.stack(outputs, -1) if outputs else rates.new_zeros(u.shape)
    y = 2 * y.real if y.is_complex() else y
    y = y if D is None else y + D.to(dtype)[:, None] * x
    y = (y if z is None else y * F.silu(z.to(dtype))).to(u.dtype)
    return (y, state) if return_last_state else y


def mamba_inner_fn(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Maybe, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Maybe, A: Tensor, B: Maybe = None, C: Maybe = None, D: Maybe = None,
    delta_bias: Maybe = None, B_proj_bias: Maybe = None, C_proj_bias: Maybe = None, delta_softplus: bool = True,
    checkpoint_lvl: int = 1, b_rms_weight: Maybe = None, c_rms_weight: Maybe = None, dt_rms_weight: Maybe = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:  # fmt: skip
    """Mamba block from (B, 2 D, L) to (B, L, E); mirrors ``mamba_ssm.ops.selective_scan_interface.mamba_inner_fn``.

    Parameters
    ----------
    xz : Tensor (B, 2 D, L)
        Input of the convolution, then gate.
    conv1d_weight, conv1d_bias : Tensor (D, 1, width), (D,) or None
    x_proj_weight, delta_proj_weight : Tensor (R + N + N, D), (D, R)
        To the step size through rank R, then B and C where not given; 2 N for N if A is complex.
    out_proj_weight, out_proj_bias, B_proj_bias, C_proj_bias : Tensor (E, D), (E,), (N,), (N,), biases optional
    A, B, C, D, delta_bias, delta_softplus
        As in `selective_scan_fn`.
    checkpoint_lvl : int, without effect
    b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps : Tensor (N,), (N,), (D,), float, optional
        RMS norm of B, C and the step size before its bias, as in Falcon-Mamba.
    """
    x, z = xz.chunk(2, dim=1)
    conv = cast(Tensor, causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu"))
    norms = (dt_rms_weight, b_rms_weight, c_rms_weight)
    inputs = _project(conv, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, norms, b_c_dt_rms_eps)
    y = cast(Tensor, selective_scan_fn(conv, *inputs, D, z, delta_bias, delta_softplus))
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Maybe, x_proj_weight: Tensor, delta_proj_weight: Tensor,
    out_proj_weight: Tensor, out_proj_bias: Maybe, A: Tensor, B: Maybe = None, C: Maybe = None, D: Maybe = None,
    delta_bias: Maybe = None, B_proj_bias: Maybe = None, C_proj_bias: Maybe = None, delta_softplus: bool = True,
) -> Tensor:  # fmt: skip
    """Mamba block, op by op; mirrors ``mamba_ssm.ops.selective_scan_interface.mamba_inner_ref``.

    Calls the convolution and the scan by themselves, as the original does; here so does `mamba_inner_fn`, so that both
    are one. The original applies softplus whatever `delta_softplus` says; this does as told.
    """
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias)
    return mamba_inner_fn(xz, *weights, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus)


@torch.no_grad()
def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Maybe = None, z: Maybe = None,
    dt_bias: Maybe = None, dt_softplus: bool = False, state_batch_indices: Maybe = None,
) -> Tensor:  # fmt: skip
    """One step of the scan; mirrors ``mamba_ssm.ops.triton.selective_state_update.selective_state_update``.

    Returns the output (B, D) in the dtype of `x`. With heads, D means H, P in every shape.

    Parameters
    ----------
    state : Tensor (B, D, N) or (B, H, P, N)
        Updated in place, in any floating dtype.
    x, dt, z : Tensor (B, D)
    A : Tensor (D, N)
    B, C : Tensor (B, N) or (B, G, N)
    D, dt_bias, dt_softplus : Tensor (D,), Tensor (D,), bool, optional
    state_batch_indices : integer Tensor (B,), optional
        The row of `state` that each row of x updates. A negative one marks padding, whose output is zero.
    """
    if state_batch_indices is not None:
        rest = (x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        return _at_indices(lambda rows: selective_state_update(rows, *rest), state, state_batch_indices)
    if state.dim() not in (3, 4):
        raise ValueError(f"state must be (B, D, N) or (B, H, P, N), got {tuple(state.shape)}")
    step, row = state.shape[:-1], state.shape[1:]
    _require(x=(x, step), dt=(dt, step), z=(z, step), A=(A, row), D=(D, row[:-1]), dt_bias=(dt_bias, row[:-1]))
    work = state.flatten(1, -2).to(arithmetic_dtype(x, dt, A, B, C, D, z, dt_bias))
    work = work if work.stride(-1) == 1 else work.contiguous()
    D, dt_bias = (None if w is None else w.flatten() for w in (D, dt_bias))
    inputs = (x.flatten(1), dt.flatten(1), A.flatten(0, -2), B, C, D, None if z is None else z.flatten(1), dt_bias)
    y = core.selective_state_update(work, *inputs, delta_softplus=dt_softplus)
    state.copy_(work.view_as(state))  # nothing is copied where work is a view of state
    return y.view_as(x)


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Maybe = None, seq_idx: Maybe = None, initial_states: Maybe = None,
    return_final_states: bool = False, final_states_out: Maybe = None, activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Depthwise causal convolution of any width; mirrors ``causal_conv1d.causal_conv1d_fn``.

    Returns the output (B, D, L), and with `return_final_states` the last inputs (B, D, width - 1).

    Parameters
    ----------
    x : Tensor (B, D, L)
    weight, bias : Tensor (D, width), (D,)
    seq_idx : integer Tensor (B, L), optional
        The packed sequence that a token belongs to; where negative the output is zero. Not together with states.
    initial_states, final_states_out : Tensor (B, D, width - 1), optional
        The inputs before x; where to write the last ones.
    return_final_states, activation : bool, {None, "silu", "swish"}
    """
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError("seq_idx does not go together with initial_states or return_final_states")
    past, silu = None if initial_states is None else initial_states.mT, _known(activation)
    found = core.causal_conv1d(
        x.mT, weight, bias, activation=silu, initial_state=past, seq_idx=seq_idx, return_final_state=return_final_states
    )
    y, state = found if isinstance(found, tuple) else (found, None)
    y = y.mT if seq_idx is None else y.mT.masked_fill((seq_idx < 0)[:, None], 0)
    return y if state is None else (y, state.mT if final_states_out is None else final_states_out.copy_(state.mT))


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Maybe = None, activation: str | None = None,
    cache_seqlens: Maybe = None, conv_state_indices: Maybe = None,
) -> Tensor:  # fmt: skip
    """Next tokens of the convolution; mirrors ``causal_conv1d.causal_conv1d_update``.

    Parameters
    ----------
    x : Tensor (B, D) or (B, D, L)
    conv_state : Tensor (B, D, S)
        The last S >= width - 1 inputs, oldest first, in the dtype of `x`; updated in place.
    weight, bias, activation
        As in `causal_conv1d_fn`.
    cache_seqlens : integer Tensor (B,), optional
        Number of inputs so far, which makes conv_state a ring: input number i is in slot ``i % S``.
    conv_state_indices : integer Tensor (B,), optional
        As `state_batch_indices` in `selective_state_update`.
    """
    if conv_state_indices is not None:
        rest = (weight, bias, activation, cache_seqlens)
        return _at_indices(lambda rows: causal_conv1d_update(x, rows, *rest), conv_state, conv_state_indices)
    size, past, silu = conv_state.shape[-1], weight.shape[1] - 1, _known(activation)
    _require(conv_state=(conv_state, (*x.shape[:2], size)), weight=(weight, (x.shape[1], past + 1)))
    if past < 1 or size < past:
        raise ValueError(f"conv_state must hold at least width - 1 > 0 inputs, got {size} for width {past + 1}")
    if x.dim() == 3:
        counts = [None if cache_seqlens is None else cache_seqlens + t for t in range(x.shape[2])]
        tokens = zip(x.unbind(-1), counts, strict=True)
        return torch.stack([causal_conv1d_update(t, conv_state, weight, bias, activation, n) for t, n in tokens], -1)
    if cache_seqlens is None:
        conv_state[..., : size - past] = conv_state[..., 1 : size - past + 1].clone()
        recent = conv_state[..., size - past :]
    else:
        slot = cache_seqlens.long()[:, None, None].expand(*x.shape, 1)
        recent = conv_state.gather(2, (slot + torch.arange(-past, 0, device=slot.device)) % size)
        conv_state.scatter_(2, slot % size, x[..., None].to(conv_state.dtype))
    return core.causal_conv1d_update(x, recent.mT, weight, bias, activation=silu)


def _project(conv, x_proj_weight, delta_proj_weight, A, B, C, B_bias, C_bias, norms, eps):
    rank, n_state = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    parts = F.linear(conv.mT, x_proj_weight)
    delta, mixers = _rms_norm(F.linear(parts[..., :rank], delta_proj_weight), norms[0], eps).mT, []
    of_B, of_C = parts[..., rank : rank + n_state], parts[..., -n_state:]
    for mixer, part, bias, norm in ((B, of_B, B_bias, norms[1]), (C, of_C, C_bias, norms[2])):
        if mixer is None:
            part = _rms_norm(part if bias is None else part + bias.to(part.dtype), norm, eps)
            mixer = part.unflatten(-1, (-1, 2)).transpose(1, 2).flatten(2) if A.is_complex() else part.mT
        mixers.append(mixer)
    return delta, A, mixers[0], mixers[1]


def _rms_norm(x: Tensor, weight: Maybe, eps: float) -> Tensor:
    dtype = arithmetic_dtype(x, weight)
    return x if weight is None else F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps).to(x.dtype)


def _per_step(mixer: Tensor, rates: Tensor, u: Tensor) -> list[Tensor]:
    """Split B or C into one tensor for each step of `u`, each of which broadcasts to the shape of the state."""
    if mixer.dim() == 2:
        return [mixer.to(rates.dtype)] * u.shape[2]
    if rates.is_complex():
        mixer = torch.view_as_complex(mixer.to(rates.real.dtype).unflatten(-1, (u.shape[2], 2)).contiguous())
    groups = (mixer if mixer.dim() == 4 else mixer.unsqueeze(1)).to(rates.dtype)
    return list(groups.repeat_interleave(u.shape[1] // groups.shape[1], 1).unbind(-1))


def _at_indices(step: Callable[[Tensor], Tensor], state: Tensor, indices: Tensor) -> Tensor:
    """Let an in-place step update the rows of `state` that `indices` name; negative ones name none."""
    kept = indices >= 0
    rows = state[indices.clamp_min(0)]
    y = step(rows)
    state[indices[kept]] = rows[kept]
    return y.masked_fill(~kept.view(-1, *[1] * (y.dim() - 1)), 0)


def _known(activation: str | None) -> str | None:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation must be None, 'silu' or 'swish', got {activation!r}")
    return "silu" if activation else None


@cache
def _warn_of_complex() -> None:
    text = "a complex A is served by selective_scan_ref, step by step in PyTorch; the kernels take a real A only"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _check_scan(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must be (B, D, L) and A (D, N), got {tuple(u.shape)} and {tuple(A.shape)}")
    (n_batch, n_channels, length), n_state = u.shape, A.shape[1]
    _require(delta=(delta, u.shape), z=(z, u.shape), A=(A, (n_channels, n_state)))
    _require(D=(D, (n_channels,)), delta_bias=(delta_bias, (n_channels,)))
    length = 2 * length if A.is_complex() else length
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[1:2] if x.dim() == 4 else ()
        _require(**{name: (x, (n_channels, n_state) if x.dim() == 2 else (n_batch, *groups, n_state, length))})
        if groups and (groups[0] < 1 or n_channels % groups[0]):
            raise ValueError(f"{name} has {groups[0]} groups, which do not divide {n_channels} channels")


def _require(**wanted: tuple[Maybe, tuple[int, ...]]) -> None:
    for name, (x, shape) in wanted.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(x.shape)}")

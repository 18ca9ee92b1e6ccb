"""The public face of the convolution: checks shapes and dtypes, then calls the operator or its kernel."""

from typing import Any

import torch
from torch import Tensor

from ssmseq_kernels import checks, ops
from ssmseq_kernels.reference import causal_conv1d_reference


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    reverse: bool = False,
    return_final_state: bool = False,
) -> Any:  # Tensor, or (Tensor, Tensor) with return_final_state
    """Depthwise convolution over the past, channels last, with an optional SiLU.

    Computed in the widest dtype given, and in float32 where that would be a half precision; bitwise the same for any
    number of threads. Tensors may have any strides. Differentiable once.

    Parameters
    ----------
    x : Tensor (B, L, D)
    weight : Tensor (D, width) or (D, 1, width)
        Laid out as in `torch.nn.Conv1d`: the last tap meets the current token.
    bias : Tensor (D,), optional
    activation : {"silu", None}
    initial_state : Tensor (B, width - 1, D), optional
        The inputs before the first step met, oldest first; zero where not given.
    seq_idx : Tensor (B, L) of integers, optional
        Numbers the sequences packed into one row: taps do not reach from one into another. The initial state belongs
        to the first sequence met.
    reverse : bool
        Over the future instead; equal to flipping x along L, convolving, and flipping back.
    return_final_state : bool
        Also return the last inputs met, which continue the sequence as `initial_state` of another call.

    Returns
    -------
    y : Tensor (B, L, D)
        In the dtype of `x`.
    final_state : Tensor (B, width - 1, D)
        Only with `return_final_state`.

    Raises
    ------
    ValueError
        If a shape does not fit, or for another activation.
    TypeError
        If a tensor is not real floating point, or `seq_idx` not of integers.
    """
    silu = _is_silu(activation)
    call = (x, weight, bias, initial_state, seq_idx, silu, reverse, return_final_state)
    return ops.run(_convolve, call)


def _convolve(how, x, weight, bias, initial_state, seq_idx, silu, reverse, return_final_state):
    weight = _flat(weight)
    tensors = ops.fitted(how, _check_conv, x, weight, bias, initial_state, seq_idx)
    if ops.has_kernel(x.device) and weight.shape[1] <= ops.WIDEST:
        y = ops.conv(how, tuple(tensors), silu, reverse)
    else:
        wide, w, b, before, numbers = tensors
        wide, before = wide.to(w.dtype), None if before is None else before.to(w.dtype)
        y = causal_conv1d_reference(wide, w, b, silu=silu, reverse=reverse, initial_state=before, seq_idx=numbers)
    y = y if y.dtype == x.dtype else y.to(x.dtype)
    return (y, _final_state(x, initial_state, weight.shape[1] - 1, reverse)) if return_final_state else y


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """Convolve one step and shift it into the state, in place, for generation step by step.

    Parameters
    ----------
    x : Tensor (B, D)
    state : Tensor (B, width - 1, D)
        The inputs before, oldest first, of any strides; overwritten.
    weight : Tensor (D, width) or (D, 1, width)
    bias : Tensor (D,), optional
    activation : {"silu", None}

    Returns
    -------
    Tensor (B, D)
        In the dtype of `x`.

    Raises
    ------
    ValueError
        If a shape does not fit, or for another activation.
    TypeError
        If the state has another dtype than x.
    RuntimeError
        If a derivative is wanted; there is none.
    """
    return ops.run(_one_step, (x, state, weight, bias, _is_silu(activation)))


def _one_step(how, x, state, weight, bias, silu):
    _, _, w, b = tensors = ops.fitted(how, _check_step, x, state, _flat(weight), bias)
    if ops.has_kernel(x.device) and w.shape[1] <= ops.WIDEST and w.dtype in (x.dtype, torch.float32):
        return ops.step(how, "causal_conv1d_update", tuple(tensors), silu)
    rows = torch.cat([state, x.unsqueeze(1)], 1).to(w.dtype)
    y = causal_conv1d_reference(rows[:, -1:], w, b, silu=silu, reverse=False, initial_state=rows[:, :-1])
    state.copy_(rows[:, 1:])
    return y[:, 0].to(x.dtype)


def _final_state(x: Tensor, initial_state: Tensor | None, n_before: int, reverse: bool) -> Tensor:
    before = x.new_zeros(x.shape[0], n_before, x.shape[2]) if initial_state is None else initial_state.to(x.dtype)
    width = min(n_before, x.shape[1])
    last = x[:, :width].flip(1) if reverse else x[:, x.shape[1] - width :]
    return torch.cat([before[:, width:], last], 1)


def _is_silu(activation: str | None) -> bool:
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
    return activation == "silu"


def _flat(weight: Tensor) -> Tensor:
    return weight[:, 0] if weight.dim() == 3 and weight.shape[1] == 1 else weight


def _check_conv(x, weight, bias, initial_state, seq_idx) -> checks.Conversions:
    """Check the tensors of a convolution; return what has to be converted."""
    if x.dim() != 3:
        raise ValueError(f"x must be (B, L, D), got {tuple(x.shape)}")
    checks.check_device("x", x, weight=weight, bias=bias, initial_state=initial_state, seq_idx=seq_idx)
    _check_weights(x, weight, bias)
    _check("initial_state", initial_state, (x.shape[0], weight.shape[1] - 1, x.shape[2]))
    _check("seq_idx", seq_idx, x.shape[:2])
    if seq_idx is not None and seq_idx.is_floating_point():
        raise TypeError(f"seq_idx must hold integers, got {seq_idx.dtype}")
    tensors = (x, weight, bias, initial_state)
    found = checks.conversions(tensors, checks.arithmetic_dtype(*tensors), rows=(0, 3))
    return found if seq_idx is None or seq_idx.dtype == torch.int32 else (*found, (4, torch.int32))


def _check_step(x, state, weight, bias) -> checks.Conversions:
    """Check the tensors of a step; return what has to be converted."""
    if x.dim() != 2:
        raise ValueError(f"x must be (B, D), got {tuple(x.shape)}")
    checks.check_device("x", x, state=state, weight=weight, bias=bias)
    _check_weights(x, weight, bias)
    _check("state", state, (x.shape[0], weight.shape[1] - 1, x.shape[1]))
    if state.dtype != x.dtype:
        raise TypeError(f"state must be {x.dtype} as x is, got {state.dtype}")
    found = checks.conversions((x, state, weight, bias), checks.arithmetic_dtype(x, weight, bias), rows=())
    return tuple([one for one in found if one[0] > 1])


def _check(name: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    if x is not None and x.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(x.shape)}")


def _check_weights(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    n_channels = x.shape[-1]
    if weight.dim() != 2 or weight.shape[0] != n_channels or weight.shape[1] < 1:
        raise ValueError(f"weight must be ({n_channels}, width) or ({n_channels}, 1, width), got {tuple(weight.shape)}")
    _check("bias", bias, (n_channels,))

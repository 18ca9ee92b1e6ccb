"""The public face of the convolution: checks shapes and dtypes, then calls the operator."""

import torch
from torch import Tensor

from ssmseq_kernels import ops
from ssmseq_kernels.reference import causal_conv1d_reference

WIDEST = 8  # taps that the compiled kernel holds in registers


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """Depthwise convolution over the past, channels last, with an optional SiLU.

    Computed in the widest dtype given, and in float32 where that would be a half precision; bitwise the same for any
    number of threads. Differentiable once.

    Parameters
    ----------
    x : Tensor (B, L, D)
    weight : Tensor (D, width) or (D, 1, width)
        Laid out as in `torch.nn.Conv1d`: the last tap meets the current token.
    bias : Tensor (D,), optional
    activation : {"silu", None}
    reverse : bool
        Over the future instead; equal to flipping x along L, convolving, and flipping back.

    Returns
    -------
    Tensor (B, L, D)
        In the dtype of `x`.

    Raises
    ------
    ValueError
        If a shape does not fit, or for another activation.
    TypeError
        If a tensor is not real floating point.
    """
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
    if x.dim() != 3:
        raise ValueError(f"x must be (B, L, D), got {tuple(x.shape)}")
    flat = weight[:, 0] if weight.dim() == 3 and weight.shape[1] == 1 else weight
    if flat.dim() != 2 or flat.shape[0] != x.shape[2] or flat.shape[1] < 1:
        raise ValueError(f"weight must be ({x.shape[2]}, width) or ({x.shape[2]}, 1, width), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (x.shape[2],):
        raise ValueError(f"bias must be ({x.shape[2]},), got {tuple(bias.shape)}")
    dtype = ops.arithmetic_dtype(x, flat, bias)
    u, w, b = x.to(dtype), flat.to(dtype), None if bias is None else bias.to(dtype)
    silu = activation == "silu"
    if ops.has_kernel(x.device) and flat.shape[1] <= WIDEST:
        y = torch.ops.ssmseq.causal_conv1d(u, w, b, silu, reverse)
    else:
        y = causal_conv1d_reference(u, w, b, silu=silu, reverse=reverse)
    return y if y.dtype == x.dtype else y.to(x.dtype)

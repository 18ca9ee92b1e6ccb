"""A linear map that takes the faster of torch's two matrix libraries on a CPU.

torch multiplies float32 matrices with MKL. On AMD processors with AVX-512, MKL keeps to its AVX2 code and reaches half
the speed of oneDNN, which torch ships as well but reserves for compiled graphs. Matrix products are two thirds of a
training step, so on those processors this module calls oneDNN, and elsewhere it is `torch.nn.Linear` unchanged.
Parameters, initialisation and state dict are those of `torch.nn.Linear`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq_kernels import processor


def _prefers_onednn() -> bool:
    has_op = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_op and torch.backends.mkldnn.is_available() and processor() == ("amd", "avx512")


ONEDNN = _prefers_onednn()
THIN = 32  # inputs or outputs below which the two libraries are equally fast


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows = grad.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply ``x @ weight.T + bias``.

    Parameters
    ----------
    x : Tensor (..., K)
    weight : Tensor (M, K)
    bias : Tensor (M,), optional

    Returns
    -------
    Tensor (..., M)
    """
    plain = not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or x.dim() < 2 or not x.numel() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if min(weight.shape) < THIN:
        return F.linear(x, weight, bias)
    # oneDNN has fast code for plain and transposed matrices alone: rows with gaps between them must be closed up.
    return _OneDnnLinear.apply(x.contiguous(), weight, bias)  # type: ignore[return-value]


class Linear(nn.Linear):
    """`torch.nn.Linear` by way of `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)

"""Root-mean-square normalisation, plain and gated, computed in float32 at least.

The weight is named and used as in mamba_ssm: it multiplies before the result is rounded to the dtype of the input
(transformers rounds first).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    r"""Scale the channels of a token to a root mean square of one, then by a learned weight.

    .. math:: y = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} \, w

    Parameters
    ----------
    d : int
        Channels D.
    eps : float
        Added to the mean square.

    References
    ----------
    Zhang and Sennrich, "Root mean square layer normalization", arXiv 1910.07467.
    """

    def __init__(self, d: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D), in the dtype of `x`."""
        wide = _wide(x)
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


class GatedRMSNorm(nn.Module):
    r"""Gate the channels, then normalise each group of them: Mamba-2's norm with ``norm_before_gate=False``.

    .. math:: v = x \operatorname{silu}(z), \quad y = \frac{v}{\sqrt{\operatorname{mean}_\text{group}(v^2) + \epsilon}}
        \, w

    Parameters
    ----------
    d : int
        Channels D.
    eps : float
        Added to the mean square.
    n_groups : int
        Groups of ``d / n_groups`` neighbouring channels, each with a mean square of its own.

    Raises
    ------
    ValueError
        If the groups do not divide the channels.

    References
    ----------
    Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
    """

    def __init__(self, d: int, eps: float, n_groups: int):
        super().__init__()
        if n_groups < 1 or d % n_groups:
            raise ValueError(f"n_groups must divide the {d} channels, got n_groups={n_groups}")
        self.eps, self.n_groups = eps, n_groups
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Map x and the gate z, both (..., D), to (..., D), in the dtype of `x`."""
        v = (_wide(x) * F.silu(_wide(z))).unflatten(-1, (self.n_groups, -1))
        y = F.rms_norm(v, v.shape[-1:], None, self.eps).flatten(-2)
        return (y * self.weight.to(y.dtype)).to(x.dtype)

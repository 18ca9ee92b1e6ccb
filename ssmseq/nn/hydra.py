r"""The Hydra block (Hwang et al., arXiv 2407.09941): a quasiseparable matrix mixer on state-space duality.

Parameter names, shapes and initialisation are those of the `Hydra` in goombalab/hydra, so its state dicts load as they
are. Differences: the backward half reads the tokens from their end in place, without flipped or stacked copies, and the
options that its paper's models leave at their defaults (biases of the projections, learned first states) are not here.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import DT_FLOOR, DT_MAX, DT_MIN
from ssmseq.nn.norm import RMSNorm
from ssmseq_kernels import causal_conv1d, ssd_scan


def quasiseparable_mix(
    x: Tensor,
    A: Tensor,
    forward: tuple[Tensor, Tensor, Tensor],
    backward: tuple[Tensor, Tensor, Tensor],
    diagonal: Tensor,
    dt_bias: Tensor,
) -> Tensor:
    r"""Mix tokens by a matrix of low rank below and, with other weights, above a diagonal of its own.

    Per head :math:`y_i = \sum_j M_{ij} x_j`, where with :math:`\Delta = \operatorname{softplus}(dt + b)` of the
    direction

    .. math::
        M_{ij} = C_{i-1}^\top e^{A (\Delta_{j+1} + \dots + \Delta_{i-1})} \Delta_j B_j, \quad i > j, \\
        M_{ij} = \bar C_{i+1}^\top e^{A (\bar\Delta_{i+1} + \dots + \bar\Delta_{j-1})} \bar\Delta_j \bar B_j,
        \quad i < j, \\
        M_{ii} = \text{diagonal}_i.

    Each half is one scan whose output moves on by one token, which frees the diagonal: a scan alone would bind it to
    :math:`\Delta_i C_i^\top B_i`.

    Parameters
    ----------
    x : Tensor (B, L, heads, head_dim)
    A : Tensor (heads,)
        Decay rates, negative; both directions use them.
    forward, backward : tuple of Tensor
        dt (B, L, heads) before bias and softplus, B and C (B, L, groups, N), of the half that reads from the start and
        of that which reads from the end; all in the order of time.
    diagonal : Tensor (B, L, heads)
    dt_bias : Tensor (heads,)

    Returns
    -------
    Tensor (B, L, heads, head_dim)
    """
    (dt, B, C), (dt_b, B_b, C_b) = forward, backward
    below = ssd_scan(x, dt, A, B, C, dt_bias=dt_bias)
    above = ssd_scan(x, dt_b, A, B_b, C_b, dt_bias=dt_bias, reverse=True)
    later, earlier = (0, 0, 0, 0, 1, -1), (0, 0, 0, 0, -1, 1)
    return F.pad(below, later) + F.pad(above, earlier) + x * diagonal.unsqueeze(-1)


class Hydra(nn.Module):
    """Bidirectional block of Mamba-2's kind: both directions in one quasiseparable matrix, with one projection in.

    A centred convolution, step-size bias and decay rates are shared by the directions; step sizes, B and C are not.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_state : int
        State size N of each head and direction.
    d_conv : int
        Width of the centred convolution, in tokens; odd.
    expand : int
        Inner channels are ``expand * d_model``.
    head_dim : int
        Inner channels of one head.
    n_groups : int
        Groups of heads that share B and C.

    Raises
    ------
    ValueError
        If `d_conv` is even, `head_dim` does not divide the inner channels, or `n_groups` not the heads.

    References
    ----------
    Hwang et al., "Hydra: bidirectional state space models through generalized matrix mixers", arXiv 2407.09941.
    """

    def __init__(self, *, d_model: int, d_state: int, d_conv: int, expand: int, head_dim: int, n_groups: int):
        super().__init__()
        d_inner = expand * d_model
        _check_sizes(d_inner, d_conv, head_dim, n_groups)
        n_heads, n_mixers = d_inner // head_dim, 4 * n_groups * d_state  # B and C, twice
        self.head_dim, self.n_groups = head_dim, n_groups
        self.sizes = [d_inner, d_inner + n_mixers, n_heads, n_heads]
        self.in_proj = Linear(d_model, sum(self.sizes), bias=False)
        width = d_inner + n_mixers
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, padding=d_conv // 2)
        dt = torch.exp(torch.empty(n_heads).uniform_(math.log(DT_MIN), math.log(DT_MAX))).clamp_min(DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.zeros(n_heads))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.fc_D = Linear(d_inner, n_heads, bias=False)
        self.norm = RMSNorm(d_inner, eps=1e-5)
        self.out_proj = Linear(d_inner, d_model, bias=False)
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def mix_inputs(self, x: Tensor) -> tuple[tuple, Tensor]:
        """Map (B, L, d_model) to the arguments of `quasiseparable_mix` and the gate (B, L, d_inner)."""
        z, u, dt, dt_b = self.in_proj(x).split(self.sizes, dim=-1)
        u, mixers = self._convolve(u).split([z.shape[-1], self.conv1d.out_channels - z.shape[-1]], dim=-1)
        B, C, B_b, C_b = mixers.unflatten(-1, (4, self.n_groups, -1)).unbind(2)
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        diagonal = self.fc_D(u) + self.D
        heads = u.unflatten(-1, (-1, self.head_dim))
        return (heads, A, (dt, B, C), (dt_b, B_b, C_b), diagonal, self.dt_bias), z

    def _convolve(self, u: Tensor) -> Tensor:
        ahead = self.conv1d.kernel_size[0] // 2  # the causal kernel sees as far ahead as the sequence is late
        late = F.pad(u, (0, 0, 0, ahead))
        return causal_conv1d(late, self.conv1d.weight, self.conv1d.bias, activation="silu")[:, ahead:]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model)."""
        inputs, z = self.mix_inputs(x)
        return self.out_proj(self.norm(quasiseparable_mix(*inputs).flatten(2)) * F.silu(z))  # gated after the norm


def _check_sizes(d_inner: int, d_conv: int, head_dim: int, n_groups: int) -> None:
    if d_conv % 2 == 0:
        raise ValueError(f"d_conv must be odd in Hydra, whose convolution is centred, got {d_conv}; its paper takes 7")
    if d_inner % head_dim:
        raise ValueError(f"head_dim must divide the {d_inner} inner channels (expand * d_model), got {head_dim}")
    if (d_inner // head_dim) % n_groups:
        raise ValueError(f"n_groups must divide the {d_inner // head_dim} heads, got {n_groups}")

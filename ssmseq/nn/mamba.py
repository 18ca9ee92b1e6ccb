"""The Mamba block (Gu and Dao, arXiv 2312.00752) on the library's selective scan.

Parameter names, shapes and initialisation are those of mamba_ssm's `Mamba`, so its state dicts load as they are.
Difference: with `reverse` the block reads the sequence from its end, which equals flipping input and output.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.nn.linear import Linear
from ssmseq_kernels import causal_conv1d, selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # range of the step sizes a fresh block starts from


class Mamba(nn.Module):
    """Selective state-space block: gated, with a short causal convolution before the scan.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_state : int
        State size N of each inner channel.
    d_conv : int
        Width of the causal convolution, in tokens.
    expand : int
        Inner channels are ``expand * d_model``.
    reverse : bool
        Read the sequence from its end.

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    """

    def __init__(self, *, d_model: int, d_state: int, d_conv: int, expand: int, reverse: bool):
        super().__init__()
        d_inner, self.dt_rank, self.d_state, self.reverse = expand * d_model, -(-d_model // 16), d_state, reverse
        self.in_proj = Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = Linear(d_inner, d_model, bias=False)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self._initialise_step_sizes(d_inner)

    def _initialise_step_sizes(self, d_inner: int) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty(d_inner).uniform_(math.log(DT_MIN), math.log(DT_MAX))).clamp_min(DT_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def scan_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (B, L, d_model) to the arguments of `selective_scan`, from u to delta_bias."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = causal_conv1d(u, self.conv1d.weight, self.conv1d.bias, activation="silu", reverse=self.reverse)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        return u, F.linear(dt, self.dt_proj.weight), A, B, C, self.D, z, self.dt_proj.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model)."""
        return self.out_proj(selective_scan(*self.scan_inputs(x), reverse=self.reverse))

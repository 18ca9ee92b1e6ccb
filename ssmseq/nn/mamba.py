"""The Mamba block (Gu and Dao, arXiv 2312.00752) on the library's selective scan.

Parameter names, shapes and initialisation are those of mamba_ssm's `Mamba`, so its state dicts load as they are.
Differences: with `reverse` the block reads the sequence from its end, which equals flipping input and output; and the
state that continues a sequence is a dict of tensors that the caller holds, the same for every causal block.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.nn.linear import Linear
from ssmseq_kernels import causal_conv1d, causal_conv1d_update, selective_scan, selective_state_update

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
    bias : bool
        Give the projections in and out a bias.
    conv_bias : bool
        Give the convolution a bias.
    dt_rank : int or None
        Channels that the step sizes are projected from; None takes ``ceil(d_model / 16)``.

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        reverse: bool,
        bias: bool = False,
        conv_bias: bool = True,
        dt_rank: int | None = None,
    ):
        super().__init__()
        d_inner, self.d_state, self.reverse = expand * d_model, d_state, reverse
        self.dt_rank = -(-d_model // 16) if dt_rank is None else dt_rank
        self.in_proj = Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = Linear(d_inner, d_model, bias=bias)
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]
        self._initialise_step_sizes(d_inner)

    def _initialise_step_sizes(self, d_inner: int) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty(d_inner).uniform_(math.log(DT_MIN), math.log(DT_MAX))).clamp_min(DT_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def scan_inputs(self, x: Tensor, *, reverse: bool | None = None) -> tuple[Tensor, ...]:
        """Map (B, L, d_model) to the arguments of `selective_scan`, from u to delta_bias.

        `reverse` replaces the block's own direction, for blocks that read both ways with the same parameters.
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)
        reverse = self.reverse if reverse is None else reverse
        u = causal_conv1d(u, self.conv1d.weight, self.conv1d.bias, activation="silu", reverse=reverse)
        return self._with_selection(u, z)

    def _with_selection(self, u: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return select(u, z, self.x_proj, self.dt_proj, self.A_log, self.D)

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model).

        Parameters
        ----------
        x : Tensor (B, L, d_model)
        cache : dict of str to Tensor, optional
            State of the sequences that x continues, empty at their start: "conv" (B, d_conv - 1, d_inner) and "ssm"
            (B, d_inner, N). Advanced by L steps; without gradients a single step overwrites the tensors themselves.

        Returns
        -------
        Tensor (B, L, d_model)

        Raises
        ------
        ValueError
            If a block that reads from the end is given a cache.
        """
        if cache is None:
            return self.out_proj(selective_scan(*self.scan_inputs(x), reverse=self.reverse))
        if self.reverse:
            raise ValueError(
                "a Mamba block with reverse=True reads from the end and cannot continue a sequence from a cache: "
                "leave the cache out, or build the block with reverse=False"
            )
        u, z = self.in_proj(x).chunk(2, dim=-1)
        weight, bias = self.conv1d.weight, self.conv1d.bias
        if x.shape[1] == 1 and cache and not torch.is_grad_enabled() and not cache["ssm"].requires_grad:
            u = causal_conv1d_update(u[:, 0], cache["conv"], weight, bias, activation="silu")
            y = selective_state_update(cache["ssm"], *self._with_selection(u, z[:, 0])).unsqueeze(1)
        else:
            u, cache["conv"] = causal_conv1d(
                u, weight, bias, activation="silu", initial_state=cache.get("conv"), return_final_state=True
            )
            y, cache["ssm"] = selective_scan(
                *self._with_selection(u, z), initial_state=cache.get("ssm"), return_final_state=True
            )
        return self.out_proj(y)


def select(u: Tensor, z: Tensor, x_proj: Linear, dt_proj: Linear, A_log: Tensor, D: Tensor) -> tuple[Tensor, ...]:
    """Derive step sizes, B and C from the convolved u, of one step or of many: the arguments of `selective_scan`."""
    dt, B, C = x_proj(u).split([dt_proj.in_features, *[A_log.shape[1]] * 2], dim=-1)
    A = -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))
    return u, F.linear(dt, dt_proj.weight), A, B, C, D, z, dt_proj.bias

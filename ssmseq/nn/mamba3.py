"""The Mamba-3 block (Lahoti et al., arXiv 2603.15569) on the library's trapezoidal, rotating scan.

One input per head (SISO). Known from mamba_ssm's source, by reading: the names and shapes of the parameters, the order
of what the projection in yields (z, x, B, C, step sizes, decay rates, trapezoid, angles), biases of B and C that start
from one, step sizes that start between 0.001 and 0.1, and the decay rate of each token, -(1 + a) for a >= 0 and
-1 / (1 - a) below (an earlier version has the softplus of a), at least 1e-4 in size. Not verified: no checkpoint was
loaded and no output compared with mamba_ssm's, so compatibility with either is not claimed.

Differences: `rope_fraction` may be any share, not 0.5 or 1 alone; the state that continues a sequence is a dict of
tensors that the caller holds, as in `Mamba`; several inputs per head (MIMO) and the norm before the projection out are
not here.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import DT_FLOOR, DT_MAX, DT_MIN
from ssmseq.nn.norm import RMSNorm
from ssmseq_kernels import mamba3_scan, mamba3_state_update

STATE = ("angle", "ssm", "k", "x")  # parts of the scan's state, in its order


class Mamba3(nn.Module):
    """Selective state-space block with rotating states and the trapezoidal rule, without a convolution.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_state : int
        State size N of each inner channel.
    expand : int
        Inner channels are ``expand * d_model``.
    head_dim : int
        Inner channels P of one head.
    n_groups : int
        Groups of heads that share B and C, up to their biases.
    rope_fraction : float
        Share of the states that rotate, in pairs; more than 0, at most 1.
    dt_min, dt_max : float
        Range of the step sizes a fresh block starts from.
    A_floor : float
        Smallest size of the decay rates.
    eps : float
        Of the norms of B and C.

    Raises
    ------
    ValueError
        If `head_dim` does not divide the inner channels, `n_groups` not the heads, `rope_fraction` leaves no pair of
        states to rotate or exceeds 1, or `dt_min` and `dt_max` are out of order.

    References
    ----------
    Lahoti et al., "Mamba-3: improved sequence modeling using state space principles", arXiv 2603.15569.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int,
        expand: int,
        head_dim: int,
        n_groups: int,
        rope_fraction: float = 0.5,
        dt_min: float = DT_MIN,
        dt_max: float = DT_MAX,
        A_floor: float = 1e-4,
        eps: float = 1e-5,
    ):
        super().__init__()
        d_inner, n_pairs = expand * d_model, int(d_state * rope_fraction) // 2
        _check_sizes(d_inner, head_dim, n_groups)
        if not 0 < n_pairs <= d_state // 2:
            raise ValueError(
                f"rope_fraction must be at most 1 and leave at least one pair of the {d_state} states (d_state) to "
                f"rotate, got {rope_fraction}"
            )
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min and dt_max must be positive and in order, got {dt_min} and {dt_max}")
        n_heads, n_mixers = d_inner // head_dim, n_groups * d_state
        self.head_dim, self.n_groups, self.A_floor = head_dim, n_groups, A_floor
        self.sizes = [d_inner, d_inner, n_mixers, n_mixers, n_heads, n_heads, n_heads, n_pairs]
        self.in_proj = Linear(d_model, sum(self.sizes), bias=False)
        dt = torch.exp(torch.empty(n_heads).uniform_(math.log(dt_min), math.log(dt_max))).clamp_min(DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.B_bias = nn.Parameter(torch.ones(n_heads, 1, d_state))
        self.C_bias = nn.Parameter(torch.ones(n_heads, 1, d_state))
        self.B_norm, self.C_norm = RMSNorm(d_state, eps), RMSNorm(d_state, eps)
        self.D = nn.Parameter(torch.ones(n_heads))
        self.out_proj = Linear(d_inner, d_model, bias=False)
        for parameter in (self.dt_bias, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model).

        Parameters
        ----------
        x : Tensor (B, L, d_model)
        cache : dict of str to Tensor, optional
            State of the sequences that x continues, empty at their start: "angle" (B, heads, pairs) in radians, "ssm"
            (B, heads, P, N), and of the last token "k" (B, heads, N) and "x" (B, heads, P). Advanced by L steps;
            without gradients a single step overwrites the tensors themselves.

        Returns
        -------
        Tensor (B, L, d_model)
        """
        *inputs, z = self._scan_inputs(x)
        if cache is None:
            return self.out_proj(mamba3_scan(*inputs, D=self.D, z=z).flatten(-2))
        state: Any = tuple(cache[name] for name in STATE) if cache else None
        if x.shape[1] == 1 and state and not torch.is_grad_enabled() and not any(t.requires_grad for t in state):
            now: Any = [t[:, 0] for t in inputs]
            y = mamba3_state_update(state, *now, D=self.D, z=z[:, 0]).unsqueeze(1)
        else:
            y, state = mamba3_scan(*inputs, D=self.D, z=z, initial_state=state, return_final_state=True)
            cache.update(zip(STATE, state, strict=True))
        return self.out_proj(y.flatten(-2))

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (B, L, d_model) to the arguments of `mamba3_scan` that vary with time, from x to angles, and z."""
        z, u, B, C, dt, A, trap, angles = self.in_proj(x).split(self.sizes, dim=-1)
        z, u = (t.unflatten(-1, (-1, self.head_dim)) for t in (z, u))
        wide = torch.promote_types(x.dtype, torch.float32)
        dt, A = F.softplus(dt.to(wide) + self.dt_bias), -_heavy_tail(A.to(wide)).clamp_min(self.A_floor)
        B, C = self._mixer(B, self.B_norm, self.B_bias), self._mixer(C, self.C_norm, self.C_bias)
        return u, dt, A, B, C, trap, angles.unsqueeze(-2), z

    def _mixer(self, mixer: Tensor, norm: RMSNorm, bias: Tensor) -> Tensor:
        """Normalise B or C within each group, and give each head its own by the bias: (B, L, heads, N)."""
        by_group = norm(mixer.unflatten(-1, (self.n_groups, -1)))
        return by_group.repeat_interleave(len(bias) // self.n_groups, -2) + bias.squeeze(1)


def _heavy_tail(x: Tensor) -> Tensor:
    """Map to the positive numbers: 1 + x from zero on, 1 / (1 - x) below; its slope is continuous."""
    return torch.where(x >= 0, 1 + x, 1 / (1 - x.clamp_max(0)))


def _check_sizes(d_inner: int, head_dim: int, n_groups: int) -> None:
    if head_dim < 1 or d_inner % head_dim:
        raise ValueError(f"head_dim must divide the {d_inner} inner channels (expand * d_model), got {head_dim}")
    if n_groups < 1 or (d_inner // head_dim) % n_groups:
        raise ValueError(f"n_groups must divide the {d_inner // head_dim} heads, got {n_groups}")

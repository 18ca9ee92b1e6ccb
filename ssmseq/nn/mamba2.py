"""The Mamba-2 block (Dao and Gu, arXiv 2405.21060) on the library's state-space-duality scan.

Parameter names, shapes and initialisation are those of mamba_ssm's `Mamba2`, so its state dicts load as they are.
Differences: the state that continues a sequence is a dict of tensors that the caller holds, as in `Mamba`; and the
options that no published model uses (a skip weight per channel, channels without a scan, a norm before the gate, none
at all) are not here.
"""

import math

import torch
from torch import Tensor, nn

from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import DT_FLOOR, DT_MAX, DT_MIN
from ssmseq.nn.norm import GatedRMSNorm
from ssmseq_kernels import causal_conv1d, causal_conv1d_update, ssd_scan, ssd_state_update

A_MIN, A_MAX = 1.0, 16.0  # range of the decay rates, without their sign, that a fresh block starts from


class Mamba2(nn.Module):
    """Selective state-space block with heads: one decay rate per head, B and C shared by groups of heads.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_state : int
        State size N of each inner channel.
    d_conv : int
        Width of the causal convolution over x, B and C, in tokens.
    expand : int
        Inner channels are ``expand * d_model``.
    head_dim : int
        Inner channels P of one head.
    n_groups : int
        Groups of heads that share B and C; each is also normalised by itself.
    dt_limit : tuple of float
        Smallest and largest step size.
    bias : bool
        Give the projections in and out a bias.
    conv_bias : bool
        Give the convolution a bias.
    eps : float
        Of the gated norm.

    Raises
    ------
    ValueError
        If `head_dim` does not divide the inner channels, or `n_groups` not the heads.

    References
    ----------
    Dao and Gu, "Transformers are SSMs: generalized models and efficient algorithms through structured state space
    duality", arXiv 2405.21060.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        head_dim: int,
        n_groups: int,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
    ):
        super().__init__()
        d_inner = expand * d_model
        _check_sizes(d_inner, head_dim, n_groups)
        n_heads, n_mixers = d_inner // head_dim, n_groups * d_state
        self.head_dim, self.n_groups, self.d_state, self.dt_limit = head_dim, n_groups, d_state, tuple(dt_limit)
        self.mixed_sizes = [d_inner, n_mixers, n_mixers]  # x, B and C, which the convolution takes together
        width = sum(self.mixed_sizes)
        self.sizes = [d_inner, width, n_heads]  # z, what is convolved, and step sizes
        self.in_proj = Linear(d_model, sum(self.sizes), bias=bias)
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, padding=d_conv - 1, bias=conv_bias)
        dt = torch.exp(torch.empty(n_heads).uniform_(math.log(DT_MIN), math.log(DT_MAX))).clamp_min(DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.log(torch.empty(n_heads).uniform_(A_MIN, A_MAX)))
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm = GatedRMSNorm(d_inner, eps, n_groups)
        self.out_proj = Linear(d_inner, d_model, bias=bias)
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model).

        Parameters
        ----------
        x : Tensor (B, L, d_model)
        cache : dict of str to Tensor, optional
            State of the sequences that x continues, empty at their start: "conv" (B, d_conv - 1, d_inner + 2 G N) and
            "ssm" (B, heads, P, N). Advanced by L steps; without gradients a single step overwrites the tensors
            themselves.

        Returns
        -------
        Tensor (B, L, d_model)
        """
        z, u, dt = self.in_proj(x).split(self.sizes, dim=-1)
        weight, bias = self.conv1d.weight, self.conv1d.bias
        if cache is None:
            y = ssd_scan(*self._scan_inputs(causal_conv1d(u, weight, bias, activation="silu"), dt), **self._options())
        elif x.shape[1] == 1 and cache and not torch.is_grad_enabled() and not cache["ssm"].requires_grad:
            u = causal_conv1d_update(u[:, 0], cache["conv"], weight, bias, activation="silu")
            y = ssd_state_update(cache["ssm"], *self._scan_inputs(u, dt[:, 0]), **self._options()).unsqueeze(1)
        else:
            u, cache["conv"] = causal_conv1d(
                u, weight, bias, activation="silu", initial_state=cache.get("conv"), return_final_state=True
            )
            y, cache["ssm"] = ssd_scan(
                *self._scan_inputs(u, dt),
                **self._options(),
                initial_state=cache.get("ssm"),
                return_final_state=True,
            )
        return self.out_proj(self.norm(y.flatten(-2), z))

    def _scan_inputs(self, u: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
        """Split the convolved u, of one step or of many, into the arguments of `ssd_scan` from x to D."""
        x, B, C = u.split(self.mixed_sizes, dim=-1)
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        B, C = (t.unflatten(-1, (self.n_groups, self.d_state)) for t in (B, C))
        return x.unflatten(-1, (-1, self.head_dim)), dt, A, B, C, self.D

    def _options(self) -> dict:
        return {"dt_bias": self.dt_bias, "dt_limit": self.dt_limit}


def _check_sizes(d_inner: int, head_dim: int, n_groups: int) -> None:
    if head_dim < 1 or d_inner % head_dim:
        raise ValueError(f"head_dim must divide the {d_inner} inner channels (expand * d_model), got {head_dim}")
    if n_groups < 1 or (d_inner // head_dim) % n_groups:
        raise ValueError(f"n_groups must divide the {d_inner // head_dim} heads, got {n_groups}")

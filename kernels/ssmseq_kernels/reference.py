"""The scan and the convolution written out in plain PyTorch: the definitions every kernel is tested against.

Axis letters: B batch, L time steps, D channels, N state, G groups of channels that share B and C.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SOFTPLUS_THRESHOLD = 40.0  # where softplus(x) = x to float64; torch's own default of 20 is 1e-10 off there


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Selective scan, one time step after another, in the dtype of its arguments.

    .. math::
        \Delta_t &= \operatorname{softplus}(\delta_t + b) \\
        h_t &= e^{\Delta_t A} \odot h_{t-1} + \Delta_t B_t u_t \\
        y_t &= (C_t \cdot h_t + D u_t) \operatorname{silu}(z_t)

    Time steps are unbound once rather than indexed one by one: indexing writes a full-size zero gradient for every
    step, which makes the backward pass quadratic in L.

    Parameters
    ----------
    u, delta : Tensor (B, L, D)
    A : Tensor (D, N)
    B, C : Tensor (B, L, G, N) or (D, N)
    D : Tensor (D,), optional
    z : Tensor (B, L, D), optional
    delta_bias : Tensor (D,), optional
    delta_softplus : bool
    initial_state : Tensor (B, D, N), optional
        Zero where not given.
    seq_idx : Tensor (B, L) of integers, optional
        The state starts from zero where the number changes.
    reverse : bool
        Scan from the last step to the first.

    Returns
    -------
    y : Tensor (B, L, D)
    final_state : Tensor (B, D, N)

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    """
    n_batch, length, n_channels = u.shape
    dt = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD)
    B_BLDN, C_BLDN = (_by_channel(x, u) for x in (B, C))
    kept = _kept(seq_idx, reverse) if seq_idx is not None else u.new_ones(n_batch, length)
    parts = (dt, dt * u, B_BLDN, C_BLDN, kept.to(u.dtype)[:, :, None, None])
    steps = list(zip(*(x.unbind(1) for x in parts), strict=True))
    state = u.new_zeros(n_batch, n_channels, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for dt_t, dtu_t, B_t, C_t, kept_t in reversed(steps) if reverse else steps:
        state = torch.exp(dt_t.unsqueeze(-1) * A) * kept_t * state + dtu_t.unsqueeze(-1) * B_t
        outputs.append((state * C_t).sum(-1))
    if reverse:
        outputs.reverse()
    y = torch.stack(outputs, 1) if outputs else u.new_zeros(n_batch, length, n_channels)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, state


def _by_channel(mixer: Tensor, u: Tensor) -> Tensor:
    """B or C as (B, L, D, N), whether it is grouped or constant."""
    if mixer.dim() == 2:
        return mixer.expand(*u.shape, mixer.shape[1])
    return mixer.repeat_interleave(u.shape[2] // mixer.shape[2], dim=2)


def _kept(seq_idx: Tensor, reverse: bool) -> Tensor:
    """Whether a step continues the sequence of the step before it in the order of the scan, (B, L); the first does."""
    same = seq_idx[:, 1:] == seq_idx[:, :-1]
    return F.pad(same, (0, 1) if reverse else (1, 0), value=True)[:, : seq_idx.shape[1]]


def selective_state_update_reference(state, u, delta, A, B, C, D, z, delta_bias, *, delta_softplus: bool) -> Tensor:
    """One step of the scan, in place on state (B, D, N); arguments as in `selective_state_update`, B and C grouped."""
    rows: Any = [None if x is None else x.to(state.dtype).unsqueeze(1) for x in (u, delta, B, C, z)]
    u, delta, B, C, z = rows
    options = {"delta_softplus": delta_softplus, "initial_state": state}
    y, after = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, **options)
    state.copy_(after)
    return y[:, 0]


def ssd_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's scan, one time step after another, in the dtype of its arguments; they are those of `ssd_scan`."""
    n_batch, length, n_heads, n_dim = x.shape
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD) if dt_softplus else dt
    dt = dt.clamp(*dt_limit)
    B, C = (t.repeat_interleave(n_heads // t.shape[2], dim=2) for t in (B, C))
    kept = _kept(seq_idx, reverse) if seq_idx is not None else x.new_ones(n_batch, length)
    parts = (torch.exp(dt * A) * kept.to(x.dtype)[..., None], dt[..., None] * x, B, C)
    steps = list(zip(*(t.unbind(1) for t in parts), strict=True))
    state = x.new_zeros(n_batch, n_heads, n_dim, B.shape[3]) if initial_state is None else initial_state
    outputs = []
    for decay_t, x_t, B_t, C_t in reversed(steps) if reverse else steps:
        state = decay_t[..., None, None] * state + x_t[..., None] * B_t[..., None, :]
        outputs.append((state * C_t[..., None, :]).sum(-1))
    if reverse:
        outputs.reverse()
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + x * (D if D.dim() == 2 else D[:, None])
    return y if z is None else y * F.silu(z), state


def mamba3_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    trap: Tensor,
    angles: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    initial_state: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    r"""Mamba-3's scan, one time step after another, in the dtype of its arguments; they are those of `mamba3_scan`.

    Per head, with :math:`R(\theta)` turning the pairs of neighbours among the first 2 S states by their angles,

    .. math::
        \theta_t &= \theta_{t-1} + \pi \tanh(a_t) \Delta_t \mod 2 \pi, \quad
        k_t = R(\theta_t) B_t, \quad q_t = R(\theta_t) C_t \\
        \lambda_t &= \operatorname{sigmoid}(\text{trap}_t), \quad \alpha_t = e^{A_t \Delta_t}, \quad
        \beta_t = (1 - \lambda_t) \Delta_t \alpha_t, \quad \gamma_t = \lambda_t \Delta_t \\
        h_t &= \alpha_t h_{t-1} + \beta_t x_{t-1} k_{t-1}^\top + \gamma_t x_t k_t^\top \\
        y_t &= (h_t q_t + D x_t) \odot \operatorname{silu}(z_t)

    The state is :math:`(\theta, h, k, x)` of the last step; before the first, zero where not given.

    References
    ----------
    Lahoti et al., "Mamba-3: improved sequence modeling using state space principles", arXiv 2603.15569.
    """
    n_batch, length, n_heads, n_dim = x.shape
    B, C = (t.repeat_interleave(n_heads // t.shape[2], dim=2) for t in (B, C))
    angles = angles.expand(-1, -1, n_heads, -1)
    kept = _kept(seq_idx, False) if seq_idx is not None else x.new_ones(n_batch, length)
    steps = zip(*(t.unbind(1) for t in (x, dt, A, B, C, trap, angles, kept.to(x.dtype))), strict=True)
    shapes = [(n_heads, angles.shape[3]), (n_heads, n_dim, B.shape[3]), (n_heads, B.shape[3]), (n_heads, n_dim)]
    state = [x.new_zeros(n_batch, *shape) for shape in shapes] if initial_state is None else initial_state
    theta, h, k, x_before = state
    outputs = []
    for x_t, dt_t, A_t, B_t, C_t, trap_t, angles_t, kept_t in steps:
        theta, k, x_before = (t * kept_t[:, None, None] for t in (theta, k, x_before))
        theta = torch.remainder(theta + math.pi * torch.tanh(angles_t) * dt_t[..., None], 2 * math.pi)
        share = torch.sigmoid(trap_t)
        decay = torch.exp(A_t * dt_t) * kept_t[:, None]
        h = decay[..., None, None] * h
        h = h + ((1 - share) * dt_t * decay)[..., None, None] * x_before[..., None] * k[..., None, :]
        k, x_before = _turned(B_t, theta), x_t
        h = h + (share * dt_t)[..., None, None] * x_t[..., None] * k[..., None, :]
        outputs.append((h * _turned(C_t, theta)[..., None, :]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
    if D is not None:
        y = y + x * (D if D.dim() == 2 else D[:, None])
    return y if z is None else y * F.silu(z), (theta, h, k, x_before)


def _turned(mixer: Tensor, theta: Tensor) -> Tensor:
    """Rotate the pairs of neighbours among the first states of mixer (B, H, N) by theta (B, H, S)."""
    turned = mixer.clone()
    even, odd = (mixer[..., i : 2 * theta.shape[-1] : 2] for i in (0, 1))
    turned[..., 0 : 2 * theta.shape[-1] : 2] = even * torch.cos(theta) - odd * torch.sin(theta)
    turned[..., 1 : 2 * theta.shape[-1] : 2] = even * torch.sin(theta) + odd * torch.cos(theta)
    return turned


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    silu: bool,
    reverse: bool,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """Depthwise causal convolution, channels last, as a sum of shifted products; arguments as in `causal_conv1d`.

    For the widths in use (2 to 4) this is faster on a CPU than moving the channels first for torch's own convolution.
    """
    past = weight.shape[1] - 1
    if reverse:
        x, seq_idx = x.flip(1), None if seq_idx is None else seq_idx.flip(1)
    before = x.new_zeros(x.shape[0], past, x.shape[2]) if initial_state is None else initial_state
    padded, length = torch.cat([before, x], 1), x.shape[1]
    y = x.new_zeros(x.shape) if bias is None else bias.expand(x.shape)
    taps = weight.unbind(1)
    kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    for lag in range(past + 1):
        shifted = padded[:, past - lag : past - lag + length]
        y = y + (shifted * taps[-1 - lag] if seq_idx is None else shifted * taps[-1 - lag] * kept.unsqueeze(-1))
        if seq_idx is not None:  # one more step back within the same sequence
            kept = kept & F.pad(_kept(seq_idx, False), (lag, 0), value=True)[:, :length]
    y = F.silu(y) if silu else y
    return y.flip(1) if reverse else y

"""The scan and the convolution written out in plain PyTorch: the definitions every kernel is tested against.

Axis letters: B batch, L time steps, D channels, N state, G groups of channels that share B and C.
"""

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
    B, C : Tensor (B, L, G, N)
    D : Tensor (D,), optional
    z : Tensor (B, L, D), optional
    delta_bias : Tensor (D,), optional
    delta_softplus : bool
    initial_state : Tensor (B, D, N), optional
        Zero where not given.
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
    per_group = n_channels // B.shape[2] if B.shape[2] else 0
    dt = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        dt = F.softplus(dt, threshold=SOFTPLUS_THRESHOLD)
    B_BLDN = B.repeat_interleave(per_group, dim=2)
    C_BLDN = C.repeat_interleave(per_group, dim=2)
    steps = list(zip(dt.unbind(1), (dt * u).unbind(1), B_BLDN.unbind(1), C_BLDN.unbind(1), strict=True))
    state = u.new_zeros(n_batch, n_channels, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for dt_t, dtu_t, B_t, C_t in reversed(steps) if reverse else steps:
        state = torch.exp(dt_t.unsqueeze(-1) * A) * state + dtu_t.unsqueeze(-1) * B_t
        outputs.append((state * C_t).sum(-1))
    if reverse:
        outputs.reverse()
    y = torch.stack(outputs, 1) if outputs else u.new_zeros(n_batch, length, n_channels)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z)
    return y, state


def causal_conv1d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool, reverse: bool) -> Tensor:
    """Depthwise causal convolution, channels last, as a sum of shifted products; arguments as in `causal_conv1d`.

    For the widths in use (2 to 4) this is faster on a CPU than moving the channels first for torch's own convolution.
    """
    width, length = weight.shape[1], x.shape[1]
    taps = weight.unbind(1)
    y = x * taps[-1] if bias is None else torch.addcmul(bias, x, taps[-1])
    for lag in range(1, min(width, length)):
        if reverse:
            y = y + F.pad(x[:, lag:] * taps[-1 - lag], (0, 0, 0, lag))
        else:
            y = y + F.pad(x[:, :-lag] * taps[-1 - lag], (0, 0, lag, 0))
    return F.silu(y) if silu else y

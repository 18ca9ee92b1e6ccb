r"""Mamba-3's scan: the trapezoidal rule and a data-dependent rotation, as one scan of Mamba-2's kind.

The recurrence reads the inputs of two steps, :math:`h_t = \alpha_t (h_{t-1} + c_t u_{t-1}) + \gamma_t u_t` with
:math:`u_t = x_t k_t^\top` and :math:`c_t = (1 - \lambda_t) \Delta_t`. The sum :math:`g_t = h_t + c_{t+1} u_t` reads
one, :math:`g_t = \alpha_t g_{t-1} + (\gamma_t + c_{t+1}) u_t`, which is Mamba-2's scan, and
:math:`y_t = q_t (\alpha_t g_{t-1}) + \gamma_t q_t u_t`: what a step adds itself is left out of the scan's output and
comes with its own weight, so that nothing is subtracted. A state that comes in as h is made :math:`g_0` by the first
step's :math:`c_1`; after the last step :math:`c_{L+1} = 0`, and g is h. The rotation turns B and C beforehand.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq_kernels import checks, ssd, ssd_products

State = tuple[Tensor, Tensor, Tensor, Tensor]


def mamba3_scan(
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
    initial_state: State | None = None,
    seq_idx: Tensor | None = None,
    return_final_state: bool = False,
) -> Any:
    r"""Selective scan by the trapezoidal rule with states that rotate, as Mamba-3 has it (one input per head: SISO).

    Per head, with :math:`R(\theta)` turning the pairs of neighbours among the first 2 S states by their angles,

    .. math::
        \theta_t &= \theta_{t-1} + \pi \tanh(a_t) \Delta_t, \quad k_t = R(\theta_t) B_t, \quad q_t = R(\theta_t) C_t \\
        h_t &= e^{A_t \Delta_t} (h_{t-1} + (1 - \lambda_t) \Delta_t x_{t-1} k_{t-1}^\top)
        + \lambda_t \Delta_t x_t k_t^\top, \quad \lambda_t = \operatorname{sigmoid}(\text{trap}_t) \\
        y_t &= (h_t q_t + D x_t) \odot \operatorname{silu}(z_t)

    It runs where its tensors are. The arithmetic is done in the widest dtype given, and in float32 where that would be
    a half precision; angles are summed and turned into sines in double. y comes back in the dtype of `x`.
    Differentiable once in every tensor; a second derivative raises.

    Parameters
    ----------
    x : Tensor (B, L, H, P)
        Input: H heads of P channels.
    dt : Tensor (B, L, H)
        Step sizes as they are, not negative.
    A : Tensor (B, L, H)
        Decay rates of each step, usually negative.
    B, C : Tensor (B, L, G, N)
        Input and output mixing before the rotation; head h uses group ``h // (H / G)``.
    trap : Tensor (B, L, H)
        Logits of the share of the step's own input in the trapezoidal rule.
    angles : Tensor (B, L, H, S) or (B, L, 1, S)
        Speeds of rotation before tanh, of each head or shared by all; 2 S at most N.
    D : Tensor (H,) or (H, P), optional
        Weight of the skip from x to y.
    z : Tensor (B, L, H, P), optional
        Gate.
    initial_state : tuple of Tensor, optional
        Angles (B, H, S), state h (B, H, P, N), rotated k (B, H, N) and x (B, H, P) of the step before the first. Zero
        where not given.
    seq_idx : Tensor (B, L) of integers, optional
        Sequence that each step belongs to; all of the state starts from zero where the number changes.
    return_final_state : bool
        Also return the state after the last step.

    Returns
    -------
    y : Tensor (B, L, H, P)
    final_state : tuple of Tensor
        Only with `return_final_state`; as `initial_state`. Angles between 0 and 2 pi in float64, because each piece of
        a sequence would else round them anew; the rest in the dtype of the arithmetic.

    Raises
    ------
    ValueError
        If a shape does not fit the shapes of `x` and `B`.
    TypeError
        If a tensor is not real floating point, or `seq_idx` not of integers.

    References
    ----------
    Lahoti et al., "Mamba-3: improved sequence modeling using state space principles", arXiv 2603.15569.
    """
    _check_shapes(x, dt, A, B, C, trap, angles, z, D=D, state=initial_state, seq_idx=seq_idx)
    dtype = checks.arithmetic_dtype(x, dt, A, B, C, trap, angles, D, z, *(initial_state or ())[1:])
    steps = ssd_products.log2_decays(dt, A)
    turned = _angles(angles, dt, None if initial_state is None else initial_state[0], seq_idx)
    wide: Any = [t if t is None else t.to(dtype) for t in (x, dt, B, C, trap, D, z)]
    u, dt, B, C, trap, D, z = wide
    turns = torch.cos(turned).to(dtype), torch.sin(turned).to(dtype)
    k, q = _rotate(B, *turns), _rotate(C, *turns)

    own, before = torch.sigmoid(trap) * dt, torch.sigmoid(-trap) * dt
    h = None
    if initial_state is not None:
        h, k_before, x_before = (t.to(dtype) for t in initial_state[1:])
        if x.shape[1]:
            h = h + (before[:, 0, :, None] * x_before)[..., None] * k_before[:, :, None]
    # Where the next step begins another sequence, no output reads the sum g that its weight goes into.
    later = F.pad(before[:, 1:], (0, 0, 0, 1))
    y, h = ssd_products.chunked(
        u * (own + later)[..., None], steps, k, q, h, seq_idx, final=return_final_state, strict=True
    )
    same = (B * C).sum(-1).repeat_interleave(x.shape[2] // B.shape[2], 2)  # of q and k, too: one rotation turned both
    y = ssd.skip_and_gate(y + (own * same)[..., None] * u, u, D, z).to(x.dtype)
    return (y, _final_state(turned, h, k, u, initial_state)) if return_final_state else y


def mamba3_state_update(
    state: State,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    trap: Tensor,
    angles: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Take one step of `mamba3_scan`, changing the state in place; for generation, without gradients.

    Parameters
    ----------
    state : tuple of Tensor
        Angles (B, H, S), h (B, H, P, N), k (B, H, N) and x (B, H, P), as `mamba3_scan` returns them. Changed in place.
    x : Tensor (B, H, P)
    dt : Tensor (B, H)
    A : Tensor (B, H)
    B, C : Tensor (B, G, N)
    trap : Tensor (B, H)
    angles : Tensor (B, H, S) or (B, 1, S)
    D : Tensor (H,) or (H, P), optional
    z : Tensor (B, H, P), optional

    Returns
    -------
    y : Tensor (B, H, P)

    Raises
    ------
    ValueError, TypeError
        As `mamba3_scan`.
    RuntimeError
        If a gradient is wanted.

    References
    ----------
    Lahoti et al., "Mamba-3: improved sequence modeling using state space principles", arXiv 2603.15569.
    """
    given = (*state, x, dt, A, B, C, trap, angles, D, z)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        raise RuntimeError("mamba3_state_update works in place and has no derivative: call it under torch.no_grad()")
    row: Any = [t if t is None else t.unsqueeze(1) for t in (x, dt, A, B, C, trap, angles, z)]
    _check_shapes(*row, D=D, state=state, seq_idx=None)
    theta, h, k_before, x_before = state
    dtype = checks.arithmetic_dtype(*state[1:], x, dt, A, B, C, trap, angles)
    found = [t.dtype for t in state[1:]]
    if any(t != dtype for t in found):
        raise TypeError(f"h, k and x must be of the dtype of the arithmetic, {dtype}, to be changed in place: {found}")
    theta.copy_(_angles(angles.unsqueeze(1), dt.unsqueeze(1), theta, None)[:, 0].remainder(2 * math.pi))
    wide: Any = [t if t is None else t.to(dtype) for t in (x, dt, A, B, C, trap, D, z)]
    u, dt, A, B, C, trap, D, z = wide
    turns = torch.cos(theta).to(dtype), torch.sin(theta).to(dtype)
    k, q = _rotate(B, *turns), _rotate(C, *turns)
    before = (torch.sigmoid(-trap) * dt)[..., None] * x_before
    h.addcmul_(before[..., None], k_before[:, :, None]).mul_(torch.exp(dt * A)[..., None, None])
    h.addcmul_(((torch.sigmoid(trap) * dt)[..., None] * u)[..., None], k[:, :, None])
    k_before.copy_(k)
    x_before.copy_(u)
    return ssd.skip_and_gate((h @ q[..., None])[..., 0], u, D, z).to(x.dtype)


def _angles(angles: Tensor, dt: Tensor, before: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """Return the angle of each step within its sequence, summed in double, (B, L, H, S)."""
    turned = (math.pi * torch.tanh(angles.double()) * dt.double()[..., None]).cumsum(1)
    if seq_idx is not None and turned.shape[1]:
        start = torch.zeros_like(turned[:, :1]) if before is None else -before.double()[:, None]
        begins = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        first = (begins * torch.arange(turned.shape[1], device=turned.device)).cummax(1).values
        index = first[..., None, None].expand(turned.shape)
        return turned - torch.cat([start, turned[:, :-1]], 1).gather(1, index)
    return turned if before is None else turned + before.double()[:, None]


def _rotate(mixer: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs of neighbours among the first 2 S of mixer (..., G, N), for each of H heads, to (..., H, N)."""
    heads, pairs = cosine.shape[-2:]
    mixer = mixer.repeat_interleave(heads // mixer.shape[-2], -2)
    even, odd = mixer[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1)
    return torch.cat([turned.flatten(-2), mixer[..., 2 * pairs :]], -1)


def _final_state(turned: Tensor, h: Tensor, k: Tensor, x: Tensor, initial: State | None) -> State:
    """Return the state after the last step in memory of its own, so that it can be changed in place."""
    if turned.shape[1]:
        return turned[:, -1].remainder(2 * math.pi), h, k[:, -1].clone(), x[:, -1].clone()
    if initial is not None:
        k, x = (t.to(h.dtype, copy=True) for t in initial[2:])
        return initial[0].double().remainder(2 * math.pi), h.clone(), k, x
    n_batch, _, n_heads, n_dim = x.shape
    sizes = turned.shape[3], k.shape[3], n_dim
    theta, k, x = (x.new_zeros(n_batch, n_heads, size) for size in sizes)
    return theta.double(), h, k, x


def _check_shapes(x, dt, A, B, C, trap, angles, z, *, D, state, seq_idx) -> None:
    if state is not None and len(state) != 4:
        raise ValueError(f"the state must be the angles, h, k and x of the step before, got {len(state)} parts")
    ssd.check_shapes(x, dt, None, B, C, D, z, None, None if state is None else state[1], seq_idx)
    n_batch, length, n_heads, n_dim = x.shape
    n_state, pairs = B.shape[3], angles.shape[-1]
    wanted = {
        "A": (A, [(n_batch, length, n_heads)]),
        "trap": (trap, [(n_batch, length, n_heads)]),
        "angles": (angles, [(n_batch, length, heads, pairs) for heads in (n_heads, 1)]),
    }
    if state is not None:
        wanted["the angles of the state"] = (state[0], [(n_batch, n_heads, pairs)])
        wanted["k of the state"] = (state[2], [(n_batch, n_heads, n_state)])
        wanted["x of the state"] = (state[3], [(n_batch, n_heads, n_dim)])
    for name, (t, shapes) in wanted.items():
        if tuple(t.shape) not in shapes:
            raise ValueError(
                f"{name} must be {' or '.join(map(str, shapes))} to fit x {tuple(x.shape)} and B {tuple(B.shape)}, "
                f"got {tuple(t.shape)}"
            )
    if 2 * pairs > n_state:
        raise ValueError(f"angles turn pairs of states: {pairs} need {2 * pairs} states, B has {n_state}")

"""What else can scan on a CPU: the rivals of the kernel, behind one signature.

Every rival is ``f(u, delta, A, B, C, D, z, delta_bias) -> y`` on channels-last float32 tensors, u, delta, z (B, L, D),
A (D, N), B, C (B, L, N), with softplus on, and autograd gives all its gradients. The loops are written for this
benchmark; the functions of mambapy and transformers are those of the installed packages. Channels last is what a
network's projections produce, and it suits the rivals too: from channel-major tensors most of them are slower.
"""

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

LOG2_E = math.log2(math.e)
STEP = 1 << 16  # states that one in-place operation of the chunked scan may cover; the best of the powers of two
CHUNK = 1 << 20  # states of one chunk, likewise: few enough for the cache, enough to share the cost of a call


def reference_loop(u, delta, A, B, C, D, z, delta_bias):
    """Materialise decays and inputs as (B, D, L, N), then index them step by step, as mamba's reference does.

    This is what research code falls back to without a GPU. Every index writes a full-size gradient in the backward
    pass, whose cost therefore grows with the square of L.
    """
    dt = F.softplus(delta + delta_bias).transpose(1, 2)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    drive = torch.einsum("bdl,bln,bld->bdln", dt, B, u)
    state = torch.zeros_like(drive[:, :, 0])
    outputs = []
    for i in range(u.shape[1]):
        state = decay[:, :, i] * state + drive[:, :, i]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, i]))
    return (torch.stack(outputs, 1) + u * D) * F.silu(z)


def eager_loop(u, delta, A, B, C, D, z, delta_bias):
    """One step after another on (B, N, D) states; nothing of size B L D N is ever computed at once.

    Under autograd the states of all steps are kept, as in any loop that autograd records.
    """
    dt = F.softplus(delta + delta_bias)
    rates = A.t() * LOG2_E
    state = u.new_zeros(u.shape[0], A.shape[1], u.shape[2])
    outputs = []
    for dt_t, dtu_t, B_t, C_t in zip(*(x.unbind(1) for x in (dt, dt * u, B, C)), strict=True):
        decay = torch.exp2(dt_t.unsqueeze(1) * rates)
        state = torch.addcmul(dtu_t.unsqueeze(1) * B_t.unsqueeze(2), decay, state)
        outputs.append(torch.bmm(C_t.unsqueeze(1), state))
    return (torch.cat(outputs, 1) + D * u) * F.silu(z)


class _Chunks:
    """How the chunked scan cuts its work, and the buffers (steps, B, N, D) in which it does it."""

    def __init__(self, u: Tensor, A: Tensor):
        n_batch, length, n_channels = u.shape
        per_step = A.numel()
        fitting = [b for b in range(1, n_batch + 1) if n_batch % b == 0 and b * per_step <= STEP]
        self.batch = max(fitting, default=1)
        most = max(4, CHUNK // (self.batch * per_step))
        self.steps = math.ceil(length / math.ceil(length / most))  # chunks of nearly the same length
        shape = (self.batch, A.shape[1], n_channels)
        self.rates = (A * LOG2_E).t().contiguous()
        self.decay = u.new_empty(self.steps, *shape)
        self.states = u.new_empty(self.steps + 1, *shape)
        self.decay_steps, self.state_steps = self.decay.unbind(0), self.states.unbind(0)
        self.blocks = [slice(b, b + self.batch) for b in range(0, n_batch, self.batch)]
        self.spans = [slice(t, min(t + self.steps, length)) for t in range(0, length, self.steps)]

    def sweep(self, dt: Tensor, dtu: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return decays and states of one chunk; `states[0]` holds the state before it."""
        steps = dt.shape[0]
        decay, states = self.decay[:steps], self.states[1 : steps + 1]
        torch.mul(dt.unsqueeze(2), self.rates, out=decay).exp2_()
        torch.mul(dtu.unsqueeze(2), B.unsqueeze(3), out=states)
        for t in range(steps):
            self.state_steps[t + 1].addcmul_(self.decay_steps[t], self.state_steps[t])
        return decay, states


def _over_states(mixer: Tensor, states: Tensor) -> Tensor:
    """Sum over the states, weighted by B or C: (steps, B, N) and (steps, B, N, D) to (steps, B, D)."""
    steps, n_batch, n_state, n_channels = states.shape
    rows = mixer.reshape(steps * n_batch, 1, n_state)
    return torch.bmm(rows, states.view(-1, n_state, n_channels)).view(steps, n_batch, n_channels)


def _over_channels(rows: Tensor, states: Tensor) -> Tensor:
    """Sum over the channels: (steps, B, D) and (steps, B, N, D) to (steps, B, N)."""
    steps, n_batch, n_state, n_channels = states.shape
    sums = torch.bmm(rows.reshape(-1, 1, n_channels), states.view(-1, n_state, n_channels).transpose(1, 2))
    return sums.view(steps, n_batch, n_state)


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias):
        work = _Chunks(u, A)
        y = torch.empty_like(u)
        kept = u.new_empty(len(work.spans) if any(ctx.needs_input_grad) else 0, u.shape[0], *work.rates.shape)
        for block in work.blocks:
            work.states[0].zero_()
            for number, span in enumerate(work.spans):
                if len(kept):
                    kept[number, block] = work.states[0]
                u_, delta_, B_, C_, z_ = (x[block, span].transpose(0, 1) for x in (u, delta, B, C, z))
                dt = F.softplus(delta_ + delta_bias)
                _, states = work.sweep(dt, dt * u_, B_)
                y[block, span] = ((_over_states(C_, states) + D * u_) * F.silu(z_)).transpose(0, 1)
                work.states[0].copy_(states[-1])
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, kept)
        return y

    @staticmethod
    def backward(ctx, *grads):
        (grad_y,) = grads
        u, delta, A, B, C, D, z, delta_bias, kept = ctx.saved_tensors
        work = _Chunks(u, A)
        adjoint, carry = torch.empty_like(work.decay), torch.empty_like(work.decay[0])
        du, ddelta, dB, dC, dz = (torch.empty_like(x) for x in (u, delta, B, C, z))
        dA, dD, dbias = torch.zeros_like(work.rates), torch.zeros_like(D), torch.zeros_like(delta_bias)
        for block in work.blocks:
            carry.zero_()
            for number in reversed(range(len(work.spans))):
                at = (block, work.spans[number])
                u_, delta_, B_, C_, z_, g = (x[at].transpose(0, 1) for x in (u, delta, B, C, z, grad_y))
                step = delta_ + delta_bias
                dt, gate = F.softplus(step), torch.sigmoid(z_)
                dtu, dy = dt * u_, g * z_ * gate
                work.states[0].copy_(kept[number, block])
                decay, states = work.sweep(dt, dtu, B_)
                y = _over_states(C_, states).addcmul_(D, u_)
                dz[at] = (g * y * gate * (1 + z_ * (1 - gate))).transpose(0, 1)
                dC[at] = _over_channels(dy, states).transpose(0, 1)
                back = _adjoint(adjoint[: len(dt)], carry, C_, dy, work.decay_steps)
                dB[at] = _over_channels(dtu, back).transpose(0, 1)
                through_B = _over_states(B_, back)
                du[at] = (D * dy).addcmul_(dt, through_B).transpose(0, 1)
                decay.mul_(back).mul_(work.states[: len(dt)])
                ddt = torch.mul(decay, A.t(), out=states).sum(2).addcmul_(u_, through_B).mul_(torch.sigmoid(step))
                dA += torch.mul(decay, dt.unsqueeze(2), out=states).sum((0, 1))
                ddelta[at] = ddt.transpose(0, 1)
                dbias += ddt.sum((0, 1))
                dD += (dy * u_).sum((0, 1))
        return du, ddelta, dA.t(), dB, dC, dD, dz, dbias


def _adjoint(adjoint, carry, C, dy, decays):
    """Return the gradient of every state of one chunk; `carry`, from the chunk after it, becomes that for the next."""
    torch.mul(C.unsqueeze(3), dy.unsqueeze(2), out=adjoint)
    steps = adjoint.unbind(0)
    steps[-1].add_(carry)
    for t in range(len(steps) - 2, -1, -1):
        steps[t].addcmul_(decays[t + 1], steps[t + 1])
    torch.mul(decays[0], steps[0], out=carry)
    return adjoint


def chunked(u, delta, A, B, C, D, z, delta_bias):
    """Scan chunk by chunk in buffers that stay in the cache, one in-place operation per step: PyTorch at its best.

    Chunks are time-major and batch elements are blocked; the forward pass keeps the state at every chunk, the backward
    pass, written by hand, recomputes one chunk at a time. Sums over states and channels are batched matrix products,
    and ``exp2`` takes the place of ``exp``, which is several times slower in torch on some processors.
    """
    return _ChunkedScan.apply(u, delta, A, B, C, D, z, delta_bias)


def mambapy_pscan(u, delta, A, B, C, D, z, delta_bias):
    """Run the parallel (Blelloch) scan of mamba.py between the same operations as its Mamba block."""
    pscan = import_module("mambapy.pscan").pscan
    dt = F.softplus(delta + delta_bias)
    decay = torch.exp(dt.unsqueeze(-1) * A)
    drive = dt.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
    states = pscan(decay, drive)
    return ((states @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def transformers_slow(u, delta, A, B, C, D, z, delta_bias):
    """Run the scan of transformers' Mamba as it runs without CUDA kernels: the package's own function."""
    mamba = import_module("transformers.models.mamba.modeling_mamba")
    scan = inspect.unwrap(mamba.mamba_selective_scan)  # under a decorator that looks for CUDA kernels
    u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
    return scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=True).transpose(1, 2)


def eager_step(state, u, delta, A, B, C, D, z, delta_bias):
    """Advance state (B, D, N) by one step in place, in plain PyTorch; return y (B, D)."""
    dt = F.softplus(delta + delta_bias)
    state.mul_(torch.exp(dt.unsqueeze(-1) * A)).addcmul_((dt * u).unsqueeze(-1), B.unsqueeze(1))
    return torch.bmm(state, C.unsqueeze(-1)).squeeze(-1).addcmul_(D, u).mul_(F.silu(z))


def transformers_step(state, u, delta, A, B, C, D, z, delta_bias):
    """Run the same step by transformers' own function."""
    mamba = import_module("transformers.models.mamba.modeling_mamba")
    step = inspect.unwrap(mamba.mamba_selective_state_update)
    return step(state, u, delta, A, B, C, D=D, z=z, dt_bias=delta_bias, dt_softplus=True)


SCANS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (chunked, eager_loop, reference_loop, mambapy_pscan, transformers_slow)
}
STEPS: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (eager_step, transformers_step)}
PACKAGES = {"mambapy_pscan": "mambapy", "transformers_slow": "transformers", "transformers_step": "transformers"}


def missing(name: str) -> str | None:
    """Say why a rival cannot run and what to install; None if it can."""
    package = PACKAGES.get(name)
    if package is None:
        return None
    if find_spec(package) is None:
        return f"{package} is not installed: pip install {package}"
    if package == "transformers":
        mamba = import_module("transformers.models.mamba.modeling_mamba")
        if not hasattr(mamba, "mamba_selective_scan"):
            return "this transformers has no separate scan function: pip install 'transformers>=5.23'"
    return None

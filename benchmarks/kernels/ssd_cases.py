"""What the benchmarks of Mamba-2's scan share, on a CPU and on a GPU: shapes, inputs, and other ways to compute it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq_kernels import ssd, ssd_scan
from ssmseq_kernels.reference import ssd_scan_reference

CHUNK = 64  # steps
SHAPES = {  # batch, steps, heads, channels of a head, groups, states
    "lm": (1, 4096, 24, 64, 1, 128),
    "dna": (2, 2048, 16, 64, 1, 64),
    "ecg": (8, 1250, 8, 64, 1, 64),
    "groups": (2, 1024, 16, 64, 8, 128),
    "short": (32, 96, 8, 64, 1, 64),
}
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")
PER_STEP = ("x", "dt", "B", "C", "z")  # the others are weights, always float32

SsdSizes = tuple[int, int, int, int, int, int]


def minimal(x, dt, A, B, C, D, z=None, dt_bias=None):
    """The chunked form as the paper lists it: sums of every stretch by masked sums, states by one more such matrix."""
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias)
    heads = x.shape[2] // B.shape[2]
    B, C = (t.repeat_interleave(heads, 2) for t in (B, C))
    pad = -x.shape[1] % CHUNK
    v, a, B, C = (F.pad(t, (0, 0) * (t.dim() - 2) + (0, pad)) for t in (x * dt[..., None], dt * A, B, C))
    v, a, B, C = (t.unflatten(1, (-1, CHUNK)) for t in (v, a, B, C))
    a = a.permute(0, 3, 1, 2)
    within = torch.exp(stretches(a))
    y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, within, v)
    total = a.cumsum(-1)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, torch.exp(total[..., -1:] - total), v)
    states = F.pad(states, (0, 0, 0, 0, 0, 0, 1, 0))
    across = torch.exp(stretches(F.pad(total[..., -1], (1, 0))))
    states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
    y = y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(total))
    y = y.flatten(1, 2)[:, : x.shape[1]] + x * D[:, None]
    return y if z is None else y * F.silu(z)


def stretches(a: Tensor) -> Tensor:
    """Sums of a over every stretch that ends at one step and begins after another, (..., L, L)."""
    length = a.shape[-1]
    spread = a[..., None].expand(*a.shape, length)
    up_to = torch.ones(length, length, dtype=torch.bool, device=a.device).tril()
    sums = spread.masked_fill(~up_to.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~up_to, -torch.inf)


def loop(x, dt, A, B, C, D, z=None, dt_bias=None):
    """The definition, step after step."""
    return ssd_scan_reference(x, dt, A, B, C, D, z, dt_bias)[0]


def products(*tensors):
    """Ours as on a device without kernels: torch's operators."""
    serve = ssd.has_scan, ssd.has_tiles
    ssd.has_scan = ssd.has_tiles = lambda device: False
    try:
        return ssd_scan(*tensors)
    finally:
        ssd.has_scan, ssd.has_tiles = serve


def make_inputs(
    sizes: SsdSizes, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs by name, with rates from -1 to -16 and step sizes around 0.02, as a fresh block has them."""
    n_batch, length, heads, dim, groups, n_state = sizes
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(kind)

    rows = (n_batch, length)
    made = {name: normal(*rows, groups, n_state) for name in ("B", "C")}
    made["A"] = -(1 + 15 * torch.rand(heads, generator=generator, device=device))
    made |= {"x": normal(*rows, heads, dim), "dt": normal(*rows, heads).sub_(4)}
    made |= {"D": normal(heads, kind=torch.float32), "z": normal(*rows, heads, dim)}
    made["dt_bias"] = normal(heads, kind=torch.float32).mul_(0.3)
    return {name: made[name] for name in NAMES}


def operations(sizes: SsdSizes) -> float:
    """Floating-point operations of the chunked form forward."""
    n_batch, length, heads, dim, groups, n_state = sizes
    chunk = min(CHUNK, length)
    return n_batch * length * (2 * chunk * n_state * groups + 2 * chunk * heads * dim + 4 * heads * dim * n_state)

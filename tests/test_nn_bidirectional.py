"""The bidirectional blocks against their formulas in float64, mirrored against themselves, and against published sizes.

The formulas are written with loops over tokens, flips and, for Hydra, the dense mixer matrix.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from ssmseq.nn import BidirectionalMamba
from ssmseq.nn.hydra import Hydra, quasiseparable_mix

STYLES = ["add", "vim", "caduceus", "hydra"]
D_MODEL, D_INNER, N_STATE, RANK = 24, 48, 5, 2
OWN = ["conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"]
VIM_NAMES = {name: name.replace(".", "_b.") for name in OWN} | {"A_log": "A_b_log", "D": "D_b"}
HYDRA = {"d_model": 12, "d_state": 3, "d_conv": 5, "expand": 2, "head_dim": 6, "n_groups": 2}


def shake(block: torch.nn.Module) -> None:
    """Move every parameter: the ones and zeros of a fresh block hide exchanged names and axes."""
    for parameter in block.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    block.double()


def make_block(style: str) -> BidirectionalMamba:
    torch.manual_seed(0)
    d_conv = 7 if style == "hydra" else 4
    block = BidirectionalMamba(d_model=D_MODEL, d_state=N_STATE, d_conv=d_conv, expand=2, style=style)
    shake(block)
    return block


def tokens(length: int, d_model: int = D_MODEL) -> torch.Tensor:
    return torch.randn(2, length, d_model, dtype=torch.float64, requires_grad=True)


def depthwise(u, weight, bias, first):
    """Convolve (B, L, D) tap by tap; tap 0 meets the token `first` steps away."""
    rows = []
    for t in range(u.shape[1]):
        row = bias.expand_as(u[:, 0])
        for tap in range(weight.shape[-1]):
            if 0 <= t + first + tap < u.shape[1]:
                row = row + weight[:, 0, tap] * u[:, t + first + tap]
        rows.append(row)
    return torch.stack(rows, 1)


def one_direction(u, z, p):
    """Convolve, select, scan from the start and gate, with the parameters p of one direction."""
    n_state, rank = p["A_log"].shape[1], p["dt_proj.weight"].shape[1]
    u = F.silu(depthwise(u, p["conv1d.weight"], p["conv1d.bias"], 1 - p["conv1d.weight"].shape[-1]))
    state, rows = 0, []
    for t in range(u.shape[1]):
        low, B, C = (u[:, t] @ p["x_proj.weight"].T).split([rank, n_state, n_state], -1)
        dt = torch.log1p(torch.exp(low @ p["dt_proj.weight"].T + p["dt_proj.bias"]))[..., None]
        state = torch.exp(-dt * p["A_log"].exp()) * state + dt * B[:, None] * u[:, t, :, None]
        rows.append((state * C[:, None]).sum(-1) + p["D"] * u[:, t])
    return torch.stack(rows, 1) * F.silu(z)


def one_mamba(x, p):
    u, z = (x @ p["in_proj.weight"].T).chunk(2, -1)
    return one_direction(u, z, p) @ p["out_proj.weight"].T


def below(p: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def add_formula(x, p):
    return one_mamba(x, below(p, "forwards.")) + one_mamba(x.flip(1), below(p, "backwards.")).flip(1)


def vim_formula(x, p):
    u, z = (x @ p["in_proj.weight"].T).chunk(2, -1)
    y = one_direction(u, z, p)
    y_b = one_direction(u.flip(1), z.flip(1), {name: p[VIM_NAMES[name]] for name in OWN}).flip(1)
    return (y + y_b) @ p["out_proj.weight"].T


def caduceus_formula(x, p):
    """Two whole blocks, the second with the linear maps of the first, as the paper has it."""
    forwards = below(p, "mamba_fwd.")
    tied = {k: v for k, v in forwards.items() if k in ("in_proj.weight", "out_proj.weight")}
    return one_mamba(x, forwards) + one_mamba(x.flip(1), below(p, "mamba_rev.") | tied).flip(1)


def mixer_matrix(A, dt, B, C, dt_b, B_b, C_b, diagonal) -> torch.Tensor:
    """Return M (B, heads, L, L) entry by entry; step sizes after softplus, B and C with a row per head."""
    length = dt.shape[1]
    rows = []
    for i in range(length):
        row = []
        for j in range(length):
            if i > j:
                decay = torch.exp(A * dt[:, j + 1 : i].sum(1))
                row.append((C[:, i - 1] * B[:, j]).sum(-1) * decay * dt[:, j])
            elif i < j:
                decay = torch.exp(A * dt_b[:, i + 1 : j].sum(1))
                row.append((C_b[:, i + 1] * B_b[:, j]).sum(-1) * decay * dt_b[:, j])
            else:
                row.append(diagonal[:, i])
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def hydra_formula(x, p, n_groups, n_state):
    n_heads, d_inner = p["fc_D.weight"].shape
    projected = x @ p["in_proj.weight"].T
    z, u = projected[..., :d_inner], projected[..., d_inner : -2 * n_heads]
    dt, dt_b = F.softplus(projected[..., -2 * n_heads :] + p["dt_bias"].repeat(2)).chunk(2, -1)
    u = F.silu(depthwise(u, p["conv1d.weight"], p["conv1d.bias"], -(p["conv1d.weight"].shape[-1] // 2)))
    u, mixers = u[..., :d_inner], u[..., d_inner:]
    B, C, B_b, C_b = (
        m.unflatten(-1, (n_groups, n_state)).repeat_interleave(n_heads // n_groups, 2) for m in mixers.chunk(4, -1)
    )
    matrix = mixer_matrix(-p["A_log"].exp(), dt, B, C, dt_b, B_b, C_b, u @ p["fc_D.weight"].T + p["D"])
    y = torch.einsum("bhij,bjhp->bihp", matrix, u.unflatten(-1, (n_heads, -1))).flatten(2)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["norm.weight"]
    return (y * F.silu(z)) @ p["out_proj.weight"].T


FORMULAS = {
    "add": add_formula,
    "vim": vim_formula,
    "caduceus": caduceus_formula,
    "hydra": lambda x, p: hydra_formula(x, below(p, "hydra."), 1, N_STATE),
}


def assert_same(block, formula, x):
    parameters = dict(block.named_parameters())
    found, truth = block(x), formula(x, parameters)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    inputs, weight = [x, *parameters.values()], torch.randn_like(found)
    options = {"grad_outputs": weight, "allow_unused": True, "materialize_grads": True}
    grads = (torch.autograd.grad(y, inputs, **options) for y in (found, truth))
    for name, a, b in zip(["x", *parameters], *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("style", STYLES)
def test_block_equals_its_formula(style, length):
    assert_same(make_block(style), FORMULAS[style], tokens(length))


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize(("d_conv", "n_groups"), [(1, 4), (5, 2), (7, 1)])
def test_hydra_equals_its_formula(length, d_conv, n_groups):
    torch.manual_seed(0)
    block = Hydra(**{**HYDRA, "d_conv": d_conv, "n_groups": n_groups})
    shake(block)
    assert_same(block, lambda x, p: hydra_formula(x, p, n_groups, HYDRA["d_state"]), tokens(length, 12))


def mirrored_state(style: str, p: dict) -> dict:
    """Exchange the parameters of the directions."""
    if style == "hydra":
        return mirrored_hydra(p)
    pairs = {
        "add": [("forwards." + k, "backwards." + k) for k in [*OWN, "in_proj.weight", "out_proj.weight"]],
        "vim": list(VIM_NAMES.items()),
        "caduceus": [("mamba_fwd." + k, "mamba_rev." + k) for k in OWN],
    }[style]
    return p | {a: p[b] for a, b in pairs} | {b: p[a] for a, b in pairs}


def mirrored_hydra(p: dict) -> dict:
    p = below(p, "hydra.")
    n_heads, d_inner = p["fc_D.weight"].shape
    n_half = (p["conv1d.bias"].shape[0] - d_inner) // 2

    def exchange(rows, *sizes):
        parts = rows.split(sizes)
        return torch.cat([parts[0], parts[2], parts[1], *(parts[:2:-1])])

    p["in_proj.weight"] = exchange(p["in_proj.weight"], 2 * d_inner, n_half, n_half, n_heads, n_heads)
    p["conv1d.bias"] = exchange(p["conv1d.bias"], d_inner, n_half, n_half)
    p["conv1d.weight"] = exchange(p["conv1d.weight"], d_inner, n_half, n_half).flip(-1)
    return {"hydra." + k: v for k, v in p.items()}


@pytest.mark.parametrize("length", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("style", STYLES)
def test_reversed_tokens_and_exchanged_directions_give_the_reversed_output(style, length):
    block, mirrored = make_block(style), make_block(style)
    mirrored.load_state_dict(mirrored_state(style, {k: v.clone() for k, v in block.state_dict().items()}))
    x = tokens(length)
    torch.testing.assert_close(mirrored(x.flip(1)).flip(1), block(x), rtol=1e-10, atol=1e-12)
    if length > 1:
        assert not torch.allclose(block(x.flip(1)).flip(1), block(x)), "the directions have the same parameters"


@pytest.mark.parametrize("style", STYLES)
def test_every_token_reaches_every_output(style):
    block, x = make_block(style), tokens(11)
    for changed, seen in ((10, 0), (0, 10), (7, 6), (6, 7)):
        other = x.detach().clone()
        other[:, changed] += 1
        assert (block(other)[:, seen] - block(x)[:, seen]).abs().max() > 1e-7, (changed, seen)


def is_backward(style: str, name: str) -> bool:
    if style == "vim":
        return name in VIM_NAMES.values()
    return name.startswith(("backwards.", "mamba_rev."))


@pytest.mark.parametrize("style", ["add", "vim", "caduceus"])
def test_each_direction_learns_from_the_end_it_leads_to(style):
    """The first output is all that a backward scan leads to, so each of its parameters must feel it."""
    block, x = make_block(style), tokens(9)
    for row in (0, -1):
        grads = torch.autograd.grad(block(x)[:, row].square().sum(), list(block.parameters()))
        names = [name for name, _ in block.named_parameters()]
        felt = {n: g for n, g in zip(names, grads, strict=True) if is_backward(style, n) == (row == 0)}
        assert len(felt) >= len(OWN)
        for name, grad in felt.items():
            assert (grad != 0).all(), name


def test_each_direction_of_hydra_learns_from_the_end_it_leads_to():
    torch.manual_seed(0)
    block, x = Hydra(**HYDRA), tokens(9, 12)
    shake(block)
    n_half, d_inner, n_heads = 2 * 2 * 3, 24, 4
    for row, lead, idle in ((0, 1, 0), (-1, 0, 1)):
        parameters = dict(block.named_parameters())
        grads = torch.autograd.grad(block(x)[:, row].square().sum(), list(parameters.values()))
        assert all((grad != 0).any() for grad in grads)
        by_name = dict(zip(parameters, grads, strict=True))
        mixers = by_name["in_proj.weight"][2 * d_inner :].split([n_half, n_half, n_heads, n_heads])
        taps = by_name["conv1d.weight"][d_inner:].split([n_half, n_half])
        for grad in (mixers[lead], mixers[2 + lead], taps[lead]):
            assert (grad != 0).flatten(1).any(1).all()
        for grad in (mixers[idle], mixers[2 + idle], taps[idle]):
            assert (grad == 0).all()


def mixing_inputs(length, n_heads=4, n_groups=2, n_state=2):
    torch.manual_seed(0)

    def direction():
        dt = torch.randn(length, n_heads, dtype=torch.float64)
        return dt, *torch.randn(2, length, n_groups, n_state, dtype=torch.float64).unbind()

    A, dt_bias = -torch.rand(n_heads, dtype=torch.float64), torch.randn(n_heads, dtype=torch.float64)
    return A, direction(), direction(), torch.randn(length, n_heads, dtype=torch.float64), dt_bias


def extracted_matrix(A, forward, backward, diagonal, dt_bias, head_dim=3):
    """Return M (heads, L, L): a batch of unit impulses, one at each token, with all else held fixed."""
    length, n_heads = diagonal.shape
    impulses = torch.eye(length, dtype=torch.float64)[:, :, None, None].expand(-1, -1, n_heads, head_dim)
    forward, backward = (tuple(t.expand(length, *t.shape) for t in direction) for direction in (forward, backward))
    y = quasiseparable_mix(impulses, A, forward, backward, diagonal.expand(length, -1, -1), dt_bias)
    torch.testing.assert_close(y, y[..., :1].expand_as(y), rtol=1e-12, atol=1e-14)  # channels of a head share M
    return y[..., 0].permute(2, 1, 0)


def ranks(blocks) -> list[int]:
    return [int(torch.linalg.matrix_rank(b, rtol=1e-10)) for b in blocks]


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_mixer_matrix_equals_its_entries(length):
    A, forward, backward, diagonal, dt_bias = mixing_inputs(length)
    found = extracted_matrix(A, forward, backward, diagonal, dt_bias)
    wide = [
        t[None]
        for dt, B, C in (forward, backward)
        for t in (F.softplus(dt + dt_bias), B.repeat_interleave(2, 1), C.repeat_interleave(2, 1))
    ]
    torch.testing.assert_close(found, mixer_matrix(A, *wide, diagonal=diagonal[None])[0], rtol=1e-10, atol=1e-12)


def test_mixer_matrix_is_quasiseparable():
    """Off the diagonal every block has rank N and no more; with the diagonal it has more, for that one is free."""
    length, n_state = 9, 2
    A, forward, backward, diagonal, dt_bias = mixing_inputs(length, n_state=n_state)
    for matrix in extracted_matrix(A, forward, backward, diagonal, dt_bias):
        cuts = range(1, length)
        wanted = [min(n_state, cut, length - cut) for cut in cuts]
        assert ranks(matrix[cut:, :cut] for cut in cuts) == wanted
        assert ranks(matrix[:cut, cut:] for cut in cuts) == wanted
        inner = range(n_state + 1, length - n_state - 1)
        assert ranks(matrix[cut:, : cut + 1] for cut in inner) == [n_state + 1] * len(inner)


def test_diagonal_of_the_mixer_matrix_is_free():
    A, forward, backward, diagonal, dt_bias = mixing_inputs(9)
    first, second = (extracted_matrix(A, forward, backward, d, dt_bias) for d in (diagonal, 2 * diagonal + 1))
    torch.testing.assert_close(first.diagonal(dim1=1, dim2=2), diagonal.T, rtol=0, atol=0)
    torch.testing.assert_close(second - first, torch.diag_embed((diagonal + 1).T), rtol=0, atol=1e-14)


def test_vim_and_caduceus_are_one_function_under_two_sets_of_names():
    vim, caduceus = make_block("vim"), make_block("caduceus")
    state = vim.state_dict()
    renamed = {"mamba_fwd." + k: state[k] for k in [*OWN, "in_proj.weight", "out_proj.weight"]}
    caduceus.load_state_dict(renamed | {"mamba_rev." + k: state[VIM_NAMES[k]] for k in OWN})
    x = tokens(7)
    assert torch.equal(vim(x), caduceus(x))


def test_unknown_style_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'add', 'vim', 'caduceus', 'hydra'.*'both'"):
        BidirectionalMamba(d_model=8, d_state=2, d_conv=4, expand=2, style="both")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"d_conv": 4}, "d_conv must be odd.*4"), ({"head_dim": 5}, "head_dim.*24.*5"), ({"n_groups": 3}, "n_groups.*4")],
)
def test_hydra_refuses_sizes_that_do_not_fit(changed, message):
    with pytest.raises(ValueError, match=message):
        Hydra(**{**HYDRA, **changed})


def count(style: str, d_model: int, d_conv: int = 4) -> int:
    block = BidirectionalMamba(d_model=d_model, d_state=16, d_conv=d_conv, expand=2, style=style)
    return sum(p.numel() for p in block.parameters())


def test_parameter_counts():
    d, d_inner, rank = 192, 384, 12
    maps = d * 2 * d_inner + d_inner * d
    own = d_inner * (4 + 1) + d_inner * (rank + 2 * 16) + (rank + 1) * d_inner + d_inner * 16 + d_inner
    assert count("add", d) == 2 * (maps + own)
    assert count("vim", d) == count("caduceus", d) == maps + 2 * own == 281_856
    mixers, heads = 4 * 16, d_inner // 64
    projections = d * (2 * d_inner + mixers + 2 * heads) + d_inner * d + d_inner * heads
    assert count("hydra", d, 7) == projections + (d_inner + mixers) * (7 + 1) + 3 * heads + d_inner


def test_sizes_are_those_of_the_published_models():
    """Caduceus-Ph 131k has 7,725,312 parameters: 16 blocks with a norm, 16 words, a last norm."""
    assert 16 * (count("caduceus", 256) + 256) + 16 * 256 + 256 == 7_725_312
    assert round(count("vim", 384) / 1e6, 3) == 1.043


def test_state_dict_has_the_names_and_shapes_of_caduceus():
    block = BidirectionalMamba(d_model=256, d_state=16, d_conv=4, expand=2, style="caduceus")
    own = {"A_log": (512, 16), "D": (512,), "conv1d.weight": (512, 1, 4), "conv1d.bias": (512,)}
    own |= {"x_proj.weight": (48, 512), "dt_proj.weight": (512, 16), "dt_proj.bias": (512,)}
    wanted = {f"mamba_{way}.{name}": shape for way in ("fwd", "rev") for name, shape in own.items()}
    wanted |= {"mamba_fwd.in_proj.weight": (1024, 256), "mamba_fwd.out_proj.weight": (256, 512)}
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == wanted


def test_state_dict_has_the_names_and_shapes_of_hydra():
    block = Hydra(d_model=128, d_state=64, d_conv=7, expand=2, head_dim=64, n_groups=1)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == {
        "in_proj.weight": (256 + 256 + 256 + 8, 128),
        "conv1d.weight": (512, 1, 7),
        "conv1d.bias": (512,),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "fc_D.weight": (4, 256),
        "norm.weight": (256,),
        "out_proj.weight": (128, 256),
    }
    steps = F.softplus(block.dt_bias)
    assert steps.min() > 1e-3 * 0.99
    assert steps.max() < 0.1 * 1.01
    assert (block.A_log == 0).all()
    assert (block.D == 1).all()


@pytest.mark.parametrize("style", STYLES)
def test_rates_and_skips_are_marked_for_no_weight_decay(style):
    block = BidirectionalMamba(d_model=8, d_state=2, d_conv=3, expand=2, style=style)
    marked = {name for name, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)}
    last = {name: name.rpartition(".")[2] for name, _ in block.named_parameters()}
    assert marked == {name for name, end in last.items() if end in ("A_log", "D", "A_b_log", "D_b", "dt_bias")}


@pytest.mark.parametrize(("d_model", "head_dim"), [(24, 16), (32, 64), (96, 64), (5, 2)])
def test_hydra_style_takes_heads_that_fit(d_model, head_dim):
    block = BidirectionalMamba(d_model=d_model, d_state=4, d_conv=7, expand=2, style="hydra")
    assert block.hydra.head_dim == head_dim == math.gcd(64, 2 * d_model)


@pytest.mark.parametrize("style", STYLES)
def test_half_precision_block_runs(style):
    block, x = make_block(style).float(), tokens(9).float().detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.bfloat16
    truth = block(x).detach()
    torch.testing.assert_close(y.float(), truth, rtol=0.1, atol=0.1 * float(truth.abs().max()))

"""Blocks against their written formulas in float64, and against the shapes that mamba_ssm checkpoints have."""

import pytest
import torch
from torch.nn import functional as F

from ssmseq.nn import BidirectionalMamba, Linear, Mamba, SMambaEncoderLayer

SIZES = {"d_model": 24, "d_state": 5, "d_conv": 4, "expand": 2}


def written_out_mamba(block: Mamba, x: torch.Tensor) -> torch.Tensor:
    """Evaluate the block channels first, one token after another, with torch's own convolution."""
    rank, n_state = block.dt_rank, block.d_state
    u, z = F.linear(x, block.in_proj.weight).transpose(1, 2).chunk(2, dim=1)
    width = block.conv1d.weight.shape[-1]
    u = F.silu(F.conv1d(F.pad(u, (width - 1, 0)), block.conv1d.weight, block.conv1d.bias, groups=u.shape[1]))
    A = -block.A_log.exp()
    state = x.new_zeros(x.shape[0], u.shape[1], n_state)
    outputs = []
    for t in range(x.shape[1]):
        dt, B, C = F.linear(u[:, :, t], block.x_proj.weight).split([rank, n_state, n_state], dim=-1)
        dt = torch.log1p(torch.exp(F.linear(dt, block.dt_proj.weight, block.dt_proj.bias)))
        state = torch.exp(dt[:, :, None] * A) * state + dt[:, :, None] * B[:, None] * u[:, :, t, None]
        y = torch.einsum("bdn,bn->bd", state, C) + block.D * u[:, :, t]
        outputs.append(F.linear(y * F.silu(z[:, :, t]), block.out_proj.weight))
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_mamba_equals_its_formula(length):
    torch.manual_seed(0)
    block = Mamba(**SIZES, reverse=False).double()
    x = torch.randn(2, length, 24, dtype=torch.float64, requires_grad=True)
    found, truth = block(x), written_out_mamba(block, x)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    parameters = [x, *block.parameters()]
    weight = torch.randn_like(found)
    pairs = zip(
        torch.autograd.grad(found, parameters, weight), torch.autograd.grad(truth, parameters, weight), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_reverse_mamba_equals_flipping():
    torch.manual_seed(0)
    block = Mamba(**SIZES, reverse=False)
    mirrored = Mamba(**SIZES, reverse=True)
    mirrored.load_state_dict(block.state_dict())
    x = torch.randn(3, 11, 24)
    torch.testing.assert_close(mirrored(x), block(x.flip(1)).flip(1))


def test_mamba_is_causal():
    block = Mamba(**SIZES, reverse=False)
    x = torch.randn(1, 9, 24)
    changed = x.clone()
    changed[:, 6:] += 1
    assert torch.equal(block(x)[:, :6], block(changed)[:, :6])
    assert not torch.equal(block(x)[:, 6:], block(changed)[:, 6:])


def test_state_dict_has_the_names_and_shapes_of_mamba_ssm():
    """The layout of mamba_ssm's Mamba(d_model=256, d_state=16, d_conv=4, expand=2)."""
    block = Mamba(d_model=256, d_state=16, d_conv=4, expand=2, reverse=False)
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 256),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (48, 512),
        "dt_proj.weight": (512, 16),
        "dt_proj.bias": (512,),
        "out_proj.weight": (256, 512),
    }


def test_initialisation_follows_mamba_ssm():
    torch.manual_seed(0)
    block = Mamba(d_model=256, d_state=16, d_conv=4, expand=2, reverse=False)
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 17.0).repeat(512, 1))
    assert torch.equal(block.D, torch.ones(512))
    steps = F.softplus(block.dt_proj.bias)
    assert 1e-3 * 0.99 < steps.min() < 2e-3
    assert 0.05 < steps.max() < 0.1 * 1.01
    assert block.dt_proj.weight.abs().max() <= 16**-0.5
    assert all(p._no_weight_decay for p in (block.A_log, block.D))
    assert block.in_proj.bias is None
    assert block.out_proj.bias is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 64), (2, 1, 64), (0, 4, 64)])
def test_linear_by_either_library_equals_float64(monkeypatch, shape, bias):
    layer = Linear(64, 96, bias=bias)
    wide = torch.randn(*shape[:-1], 80)
    for onednn in (False, torch.backends.mkldnn.is_available()):
        monkeypatch.setattr("ssmseq.nn.linear.ONEDNN", onednn)
        for x in (
            wide[..., :64],
            wide[..., :64].contiguous(),
            wide[..., :64].transpose(0, -2).contiguous().transpose(0, -2),
        ):
            inputs = [x.clone().requires_grad_() if x.is_contiguous() else x.detach().requires_grad_()]
            inputs += list(layer.parameters())
            exact = [p.detach().double().requires_grad_() for p in inputs]
            y, truth = layer(inputs[0]), F.linear(*exact)
            weight = torch.randn_like(y)
            torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
            grads = torch.autograd.grad(y, inputs, weight), torch.autograd.grad(truth, exact, weight.double())
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_bidirectional_sees_both_ends():
    block = BidirectionalMamba(**SIZES, style="add")
    x = torch.randn(1, 7, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(block(x)[0, 3].sum(), x)
    assert (grad[0].abs().sum(-1) > 0).all()


def test_encoder_layer_equals_its_formula():
    torch.manual_seed(0)
    layer = SMambaEncoderLayer(**SIZES, d_ff=10, dropout=0.0, activation="gelu").double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)

    def normalise(v, norm):
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    backwards = layer.mixer.backwards
    mixed = written_out_mamba(layer.mixer.forwards, x) + written_out_mamba(backwards, x.flip(1)).flip(1)
    h = normalise(x + mixed, layer.mixer_norm)
    up, down = layer.feed_forward[0], layer.feed_forward[3]
    hidden = h @ up.weight.T + up.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    truth = normalise(h + hidden @ down.weight.T + down.bias, layer.feed_forward_norm)
    torch.testing.assert_close(layer(x), truth, rtol=1e-10, atol=1e-12)


def test_half_precision_block_runs():
    block = Mamba(**SIZES, reverse=False)
    x = torch.randn(2, 9, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), block(x), rtol=0.1, atol=0.05)

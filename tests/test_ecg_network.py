"""The network of the classifier of electrocardiograms, against formulas and identities."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssmseq import ECGMambaClassifier
from ssmseq.ecg.network import DropPath, ECGMambaNetwork, ResidualConvolutions, Stem, pool_tokens

SIZES = {
    "n_leads": 3,
    "n_times": 41,
    "n_labels": 4,
    "metadata": False,
    "encoder": "vim",
    "stem": "dense",
    "stem_kernel": 5,
    "stem_stride": 1,
    "d_model": 8,
    "d_state": 3,
    "d_conv": 3,
    "expand": 2,
    "n_layers": 2,
    "positions": False,
    "pooling": "mean",
    "dropout": 0.0,
    "drop_path": 0.0,
}


def build(seed: int = 0, **changes) -> ECGMambaNetwork:
    torch.manual_seed(seed)
    return ECGMambaNetwork(**SIZES | changes).double().eval()


def batch(n: int = 3, n_times: int = 41, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, 3, n_times, generator=generator, dtype=torch.float64)
    return signal, torch.ones(n, 3, dtype=torch.float64), torch.full((n,), n_times)


@pytest.mark.parametrize(("n_times", "n_tokens"), [(8192, 729), (5000, 463), (1000, 130)])
def test_tokens_of_the_strided_stem_are_the_published_ones(n_times, n_tokens):
    stem = Stem(n_leads=2, d_model=4, kind="strided", kernel=5, stride=1)
    assert stem.n_tokens(n_times) == n_tokens
    assert stem(torch.zeros(1, 2, n_times)).shape == (1, n_tokens, 4)


@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("n_times", [1, 7, 250])
def test_a_dense_stem_gives_a_token_for_each_stride(n_times, stride):
    stem = Stem(n_leads=2, d_model=4, kind="dense", kernel=5, stride=stride)
    assert stem.n_tokens(n_times) == -(-n_times // stride) == stem(torch.zeros(1, 2, n_times)).shape[1]


def test_the_preset_has_the_weights_of_the_published_model():
    network = ECGMambaClassifier.from_preset("vim")._build_network(12, 8192, 26)
    n_weights = sum(p.numel() for p in network.parameters())
    assert n_weights == pytest.approx(26.1e6, abs=0.1e6)
    assert network.positions.shape == (1, 730, 384)
    shallow = ECGMambaClassifier.from_preset("vim", n_layers=5)._build_network(12, 8192, 26)
    per_block = (n_weights - sum(p.numel() for p in shallow.parameters())) / 19
    assert per_block == pytest.approx(1.043e6, abs=1e3)


@pytest.mark.parametrize("changes", [{}, {"pooling": "class_token", "positions": True}], ids=["mean", "class token"])
@pytest.mark.parametrize("encoder", ["vim", "add", "hydra", "cnn"])
def test_every_weight_learns_and_the_first_token_sees_the_last_sample(encoder, changes):
    if encoder == "cnn" and changes:
        pytest.skip("has no class token")
    network = build(encoder=encoder, n_times=29, **changes)
    signal, *others = batch(n_times=29)
    network(signal, *others).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still
    if encoder != "cnn":  # convolutions see as far as they reach
        signal.requires_grad_()
        network.tokens(signal, *others)[:, 0].sum().backward()
        assert signal.grad[..., -1].abs().min() > 0


def swapped(state: dict) -> dict:
    """Exchange the directions of every block, and turn the kernels of the stem around."""
    pairs = [("conv1d.", "conv1d_b."), ("x_proj.", "x_proj_b."), ("dt_proj.", "dt_proj_b."), ("A_log", "A_b_log")]
    found = {}
    for name, value in state.items():
        new = name
        for a, b in (*pairs, ("D", "D_b")):
            last = name.split("mixer.0.")[-1]
            if last.startswith(b) or (last == b):
                new = name.replace(f"mixer.0.{b}", f"mixer.0.{a}")
            elif last.startswith(a) and not last.startswith(b):
                new = name.replace(f"mixer.0.{a}", f"mixer.0.{b}")
        found[new] = value.flip(-1) if name == "stem.convolutions.0.weight" else value
    return found


def test_time_reversed_input_and_swapped_directions_reverse_the_tokens():
    network, other = build(), build(seed=9)
    assert set(swapped(network.state_dict())) == set(network.state_dict())
    other.load_state_dict(swapped(network.state_dict()))
    signal, mask, n_valid = batch()
    tokens = network.tokens(signal, mask, n_valid)
    torch.testing.assert_close(other.tokens(signal.flip(-1), mask, n_valid), tokens.flip(1), rtol=0, atol=1e-12)
    assert (network.tokens(signal.flip(-1), mask, n_valid) - tokens.flip(1)).abs().max() > 1e-3
    torch.testing.assert_close(other(signal.flip(-1), mask, n_valid), network(signal, mask, n_valid))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_does_not_see_what_lies_beyond_the_valid_tokens(pooling):
    tokens = torch.randn(3, 11, 5, dtype=torch.float64)
    n_tokens = torch.tensor([11, 4, 0])
    pooled = pool_tokens(tokens, n_tokens, pooling)
    for i, n in enumerate([11, 4, 1]):
        by_hand = tokens[i, :n].mean(0) if pooling == "mean" else tokens[i, :n].max(0).values
        torch.testing.assert_close(pooled[i], by_hand)
    longer = torch.cat([tokens, torch.full((3, 6, 5), torch.inf)], 1)
    torch.testing.assert_close(pool_tokens(longer, n_tokens, pooling), pooled)


@pytest.mark.parametrize("stem", ["dense", "strided"])
@pytest.mark.parametrize("encoder", ["vim", "hydra", "cnn"])
def test_what_stands_in_padding_and_masked_leads_counts_as_zero(encoder, stem):
    network = build(encoder=encoder, stem=stem)
    signal, mask, n_valid = batch()
    n_valid[1], mask[2, 1] = 20, 0
    found = network(signal, mask, n_valid)
    blank = signal.clone()
    blank[1, :, 20:], blank[2, 1] = 0, 0
    torch.testing.assert_close(network(blank, torch.ones_like(mask), n_valid), found)
    noisy = signal.clone()
    noisy[1, :, 20:], noisy[2, 1] = 1e6, torch.nan
    torch.testing.assert_close(network(noisy, mask, n_valid), found)
    assert (network(signal, torch.ones_like(mask), n_valid)[2] - found[2]).abs().max() > 1e-6


def test_padded_records_are_pooled_over_the_tokens_they_would_have_alone():
    network = build()
    signal, mask, n_valid = batch()
    n_valid[0] = 13
    tokens = network.tokens(signal, mask, n_valid)
    torch.testing.assert_close(network(signal, mask, n_valid)[0], network.head(tokens[0, :13].mean(0)))


@pytest.mark.parametrize("encoder", ["vim", "add", "hydra", "cnn"])
def test_the_batch_may_be_permuted(encoder):
    network = build(encoder=encoder)
    signal, mask, n_valid = batch()
    n_valid[1] = 20
    order = torch.tensor([2, 0, 1])
    found = network(signal[order], mask[order], n_valid[order])
    torch.testing.assert_close(found, network(signal, mask, n_valid)[order])


@pytest.mark.parametrize("n_times", [40, 41])
def test_the_class_token_stands_in_the_middle_and_is_all_that_the_head_sees(n_times):
    network = build(pooling="class_token", positions=True, n_times=n_times)
    network.encoder = nn.Identity()
    signal, mask, n_valid = batch(n_times=n_times)
    tokens = network.tokens(signal, mask, n_valid)
    assert tokens.shape[1] == n_times + 1
    middle = n_times // 2
    expected = (network.class_token + network.positions[:, middle])[:, 0].expand(3, -1)
    torch.testing.assert_close(tokens[:, middle], expected)
    torch.testing.assert_close(network(signal, mask, n_valid), network.head(expected))
    torch.testing.assert_close(
        tokens[:, middle + 1], network.stem(signal)[:, middle] + network.positions[:, middle + 1]
    )


def test_age_and_sex_move_the_logits_and_only_those_that_have_them():
    network = build(metadata=True)
    signal, mask, n_valid = batch()
    unknown = torch.zeros(3, 4, dtype=torch.float64)
    known = unknown.clone()
    known[1] = torch.tensor([0.7, 1, -1, 1])
    difference = network(signal, mask, n_valid, known) - network(signal, mask, n_valid, unknown)
    expected = network.head.weight @ network.metadata.weight @ known[1]
    torch.testing.assert_close(difference[1], expected)
    assert difference[[0, 2]].abs().max() < 1e-12


def test_drop_path_grows_with_depth_and_leaves_out_whole_samples():
    network = ECGMambaNetwork(**SIZES | {"n_layers": 5, "drop_path": 0.2})
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2], atol=1e-7)
    torch.manual_seed(0)
    x = torch.rand(2000, 2, 3) + 1
    dropped = DropPath(0.2)(x)
    kept = (dropped != 0).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    assert kept.all(1).float().mean() == pytest.approx(0.8, abs=0.03)
    torch.testing.assert_close(dropped[kept.all(1)], x[kept.all(1)] / 0.8)
    assert (DropPath(0.2).eval()(x) == x).all()


def test_the_residual_stream_is_summed_in_float32():
    network, seen = build().to(torch.bfloat16), []
    network.encoder.layers[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    signal, mask, n_valid = batch()
    assert network(signal.bfloat16(), mask, n_valid).dtype == torch.bfloat16
    assert seen == [torch.float32]


@pytest.mark.parametrize("n_out", [4, 6])
def test_residual_convolutions_are_those_of_the_paper(n_out):
    torch.manual_seed(0)
    block = ResidualConvolutions(4, n_out).double()
    x = torch.randn(5, 4, 17, dtype=torch.float64)
    for _ in range(3):
        block(x)  # so that the running statistics are not those of a fresh block
    block.eval()
    convolutions, norms = block.convolutions[::3], block.convolutions[1::3]
    h = x
    for i, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        h = F.conv1d(h, convolution.weight, padding="same")
        h = (h - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()
        h = h.clamp(min=0) if i < 2 else h
    norm = block.shortcut[-1]
    around = x if n_out == 4 else F.conv1d(x, block.shortcut[0].weight)
    around = (around - norm.running_mean[:, None]) / (norm.running_var[:, None] + norm.eps).sqrt()
    torch.testing.assert_close(block(x), (h + around).clamp(min=0))
    assert [c.kernel_size[0] for c in convolutions] == [7, 5, 3]


def test_signals_too_short_for_the_strided_stem_are_refused():
    with pytest.raises(ValueError, match="9 samples are too short for the strided stem"):
        build(stem="strided", n_times=9)

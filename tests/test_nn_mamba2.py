"""Mamba-2 and the language model against formulas in float64, and their caches against one whole forward."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ssmseq.nn.attention import GroupedQueryAttention
from ssmseq.nn.feed_forward import GatedMLP
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2

WIDTH, VOCAB = 12, 11
SIZES: dict[str, Any] = {"d_model": WIDTH, "d_state": 5, "d_conv": 4, "expand": 2, "head_dim": 3, "n_groups": 2}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_groups": 1, "head_dim": 6, "d_conv": 2, "bias": True, "conv_bias": False},
    {"n_groups": 8, "d_state": 1, "expand": 4, "eps": 1e-2, "dt_limit": (0.3, 0.9)},
    {"n_groups": 4, "head_dim": 6, "d_conv": 1, "d_state": 16},
]
CHUNKS = [(1,) * 13, (1, 3, 7, 2), (13,), (6, 1, 1, 5)]


def mamba2(**changes) -> Any:
    return Mamba2(**SIZES | changes)


def language_model(pattern="MS", **changes) -> Any:
    mixers: dict[str, Any] = {
        "M": mamba2,
        "S": lambda: Mamba(d_model=WIDTH, d_state=3, d_conv=4, expand=2, reverse=False),
        "A": lambda: GroupedQueryAttention(d_model=WIDTH, n_heads=4, n_kv_heads=2),
    }
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "d_model": WIDTH, "pattern": pattern, "mixers": mixers}
    rest: dict[str, Any] = {"feed_forwards": None, "eps": 1e-5, "residual_in_fp32": True, "tie_embeddings": True}
    return LanguageModelNetwork(**sizes | rest | changes)


def disturbed(module: torch.nn.Module, scale=0.2) -> Any:
    """Move every parameter off its start: ones and zeros hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def written_out(block, x, d_state, d_conv, head_dim, n_groups, eps, dt_limit):
    """One token, head and channel at a time, from the paper and the layout of mamba_ssm's parameters."""
    d_inner, batch, length = block.out_proj.weight.shape[1], *x.shape[:2]
    n_heads, n_mixers = d_inner // head_dim, n_groups * d_state
    rows = F.linear(x, block.in_proj.weight, block.in_proj.bias)
    z, dt = rows[..., :d_inner], rows[..., 2 * d_inner + 2 * n_mixers :]
    raw = F.pad(rows[..., d_inner : 2 * d_inner + 2 * n_mixers], (0, 0, d_conv - 1, 0))
    u = sum(raw[:, k : k + length] * block.conv1d.weight[:, 0, k] for k in range(d_conv))
    u = u if block.conv1d.bias is None else u + block.conv1d.bias
    u = u / (1 + torch.exp(-u))
    dt = torch.log(1 + torch.exp(dt + block.dt_bias)).clamp(*dt_limit)
    A = -torch.exp(block.A_log)
    y = torch.zeros(batch, length, d_inner, dtype=x.dtype)
    for head in range(n_heads):
        group = head // (n_heads // n_groups)
        B = u[..., d_inner + group * d_state : d_inner + (group + 1) * d_state]
        C = u[..., d_inner + n_mixers + group * d_state : d_inner + n_mixers + (group + 1) * d_state]
        for channel in range(head * head_dim, (head + 1) * head_dim):
            state = torch.zeros(batch, d_state, dtype=x.dtype)
            for t in range(length):
                step, value = dt[:, t, head, None], u[:, t, channel, None]
                state = torch.exp(step * A[head]) * state + step * value * B[:, t]
                y[:, t, channel] = (state * C[:, t]).sum(-1) + block.D[head] * value[:, 0]
    y = y * z / (1 + torch.exp(-z))
    parts = [p / (p.square().mean(-1, keepdim=True) + eps).sqrt() for p in y.chunk(n_groups, -1)]
    return F.linear(torch.cat(parts, -1) * block.norm.weight, block.out_proj.weight, block.out_proj.bias)


def by_chunks(module, x, sizes, empty):
    state = empty()
    return torch.cat([module(piece, state) for piece in x.split(sizes, dim=1)], 1), state


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ", ".join(c) or "plain")
def test_block_and_its_gradients_equal_the_formula(changes):
    torch.manual_seed(0)
    block = disturbed(mamba2(**changes)).double()
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    sizes = {name: (SIZES | changes)[name] for name in ("d_state", "d_conv", "head_dim", "n_groups")}
    limit = changes.get("dt_limit", (0.0, math.inf))
    truth = written_out(block, x, **sizes, eps=changes.get("eps", 1e-5), dt_limit=limit)
    found = block(x)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)
    inputs, weight = [x, *block.parameters()], torch.randn_like(truth)
    pairs = zip(*(torch.autograd.grad(y, inputs, weight) for y in (found, truth)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: ", ".join(c) or "plain")
def test_chunks_equal_one_whole_forward(changes, grad, sizes):
    torch.manual_seed(0)
    block = disturbed(mamba2(**changes))
    x = torch.randn(3, 13, WIDTH)
    with torch.set_grad_enabled(grad):
        found, _ = by_chunks(block, x, sizes, dict)
        torch.testing.assert_close(found, block(x), rtol=1e-5, atol=2e-6)


def test_gradients_through_chunks_equal_those_of_the_whole():
    torch.manual_seed(0)
    block = disturbed(mamba2()).double()
    x = torch.randn(2, 13, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, *block.parameters()], torch.randn(2, 13, WIDTH, dtype=torch.float64)
    truth = torch.autograd.grad(block(x), inputs, weight)
    found = torch.autograd.grad(by_chunks(block, x, (1, 3, 7, 2), dict)[0], inputs, weight)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_cache_has_the_documented_tensors_and_single_steps_overwrite_them():
    block = mamba2()
    x = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        _, cache = by_chunks(block, x, (2, 1), dict)
        before = {name: (state, state.clone()) for name, state in cache.items()}
        block(x[:, :1], cache)
    assert {name: tuple(state.shape) for name, state in cache.items()} == {"conv": (2, 3, 44), "ssm": (2, 8, 3, 5)}
    for name, (state, value) in before.items():
        assert cache[name] is state
        assert not torch.equal(state, value)


def test_single_steps_spare_a_state_that_wants_gradients():
    block = mamba2()
    x, cache = torch.randn(2, 3, WIDTH), {}
    y, state = block(x, cache), cache["ssm"]
    with torch.no_grad():
        block(x[:, :1], cache)
    assert cache["ssm"] is not state
    y.sum().backward()  # and what it saved is untouched


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float64, 1e-10)])
def test_single_steps_in_other_dtypes(dtype, tolerance):
    torch.manual_seed(0)
    block = mamba2().to(dtype)
    x = torch.randn(2, 13, WIDTH, dtype=dtype)
    with torch.no_grad():
        found, _ = by_chunks(block, x, (1,) * 13, dict)
        torch.testing.assert_close(found, block(x), rtol=tolerance, atol=tolerance)
    assert found.dtype == dtype


def test_names_and_shapes_are_those_of_published_checkpoints():
    with torch.device("meta"):
        block = mamba2(d_model=768, d_state=128, head_dim=64, n_groups=1)
    shapes = {name: tuple(v.shape) for name, v in block.state_dict().items()}
    heads = dict.fromkeys(("dt_bias", "A_log", "D"), (24,))
    convolution = {"conv1d.weight": (1792, 1, 4), "conv1d.bias": (1792,)}
    rest = {"in_proj.weight": (3352, 768), "norm.weight": (1536,), "out_proj.weight": (768, 1536)}
    assert shapes == heads | convolution | rest


def test_initialisation_follows_mamba_ssm():
    torch.manual_seed(0)
    block = mamba2(d_model=512, head_dim=1)
    A, dt = torch.exp(block.A_log), F.softplus(block.dt_bias)
    assert 1 <= A.min() < 1.2 < 15.8 < A.max() <= 16
    assert 8 < A.mean() < 9  # even in A, not in its logarithm
    assert 1e-3 * 0.99 < dt.min() < 1.1e-3 < 0.09 < dt.max() < 0.1 * 1.01
    assert 0.009 < dt.log().mean().exp() < 0.011  # even in its logarithm
    assert (block.D == 1).all()
    assert (block.norm.weight == 1).all()
    marked = {name for name, p in block.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"dt_bias", "A_log", "D"}


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: mamba2(head_dim=5), r"head_dim must divide the 24 inner channels \(expand \* d_model\), got 5"),
        (lambda: mamba2(n_groups=3), "n_groups must divide the 8 heads, got 3"),
        (lambda: mamba2(n_groups=0), "n_groups must divide the 8 heads, got 0"),
        (lambda: mamba2(dt_limit=(0.2, 0.1))(torch.zeros(1, 2, WIDTH)), "dt_limit must be"),
        (lambda: language_model().generate(torch.zeros(2, 0).long(), 3), r"at least one token .* got \(2, 0\)"),
        (lambda: language_model().generate(torch.zeros(3).long(), 3), r"tokens must be \(B, L\) .* got \(3,\)"),
        (lambda: language_model().generate(torch.zeros(1, 1).long(), -1), "max_new_tokens .* got -1 and 0.0"),
        (lambda: language_model().generate(torch.zeros(1, 1).long(), 1, temperature=-1.0), "negative, got 1 and -1.0"),
        (lambda: language_model()(torch.zeros(1, 1).long(), [{}]), "one dict for each of the 2 layers, got 1"),
    ],
)
def test_senseless_arguments_are_named(build, text):
    with pytest.raises(ValueError, match=text):
        build()


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_equals_its_formula(tied):
    torch.manual_seed(0)
    network = disturbed(language_model(tie_embeddings=tied, eps=1e-2)).double()
    weights, tokens = network.state_dict(), torch.randint(VOCAB, (2, 7))
    assert ("lm_head.weight" in weights) != tied

    def normalise(v, name):
        return v / (v.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weights[f"backbone.{name}.weight"]

    h = weights["embedding.weight"][tokens]
    for i in range(2):
        h = h + network.backbone.layers[i].mixer(normalise(h, f"layers.{i}.norm"))
    head = weights["embedding.weight" if tied else "lm_head.weight"]
    torch.testing.assert_close(network(tokens), normalise(h, "norm_f") @ head.T, rtol=1e-10, atol=1e-12)


def test_tied_weights_stay_one_through_copies_and_training():
    network = copy.deepcopy(language_model()).to(torch.float64)
    assert network.lm_head is None
    names = [name for name, _ in network.named_parameters() if "backbone" not in name]
    assert names == ["embedding.weight"]
    network(torch.tensor([[1]])).sum().backward()
    assert (network.embedding.weight.grad.abs().amax(1) > 0).all()  # as a head it meets every token


def test_embedding_starts_small():
    weight = language_model(vocab_size=4096).embedding.weight
    assert 0.0195 < weight.std() < 0.0205
    assert weight.abs().max() > 0.06


@pytest.mark.parametrize("pattern", ["MS", "MAM"])
def test_greedy_generation_equals_whole_forwards(pattern):
    torch.manual_seed(0)
    network = disturbed(language_model(pattern, dropout=0.5, tie_embeddings=False))
    tokens = torch.randint(VOCAB, (3, 5))
    found = network.generate(tokens, 12)
    assert network.training
    network.eval()
    truth = tokens
    with torch.no_grad():
        for _ in range(12):
            truth = torch.cat([truth, network(truth)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, truth)
    assert len(found[:, 5:].unique()) > 2
    assert torch.equal(network.generate(tokens, 0), tokens)


def test_sampling_follows_the_softmax_and_its_generator():
    torch.manual_seed(0)
    network = disturbed(language_model(), scale=0.5)
    tokens = torch.tensor([[1, 2, 3]]).expand(4000, -1)
    state = torch.get_rng_state()
    first, second = (network.generate(tokens, 1, temperature=2.0, generator=rng(5)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, network.generate(tokens, 1, temperature=2.0, generator=rng(6)))
    with torch.no_grad():
        p = (network(tokens[:1])[0, -1] / 2).softmax(-1)
    share = torch.bincount(first[:, -1], minlength=VOCAB) / 4000
    assert (share - p).abs().max() < 4 * (p * (1 - p) / 4000).sqrt().max()
    assert p.max() > 2 * p.min()
    cold = network.generate(tokens[:5], 8, temperature=1e-9, generator=rng(0))
    assert torch.equal(cold, network.generate(tokens[:5], 8))


def rng(seed):
    return torch.Generator().manual_seed(seed)


def test_networks_with_feed_forward_nets_and_dropout_train():
    torch.manual_seed(0)
    network = language_model("MSA", feed_forwards=lambda: GatedMLP(d_model=WIDTH, d_ff=16, bias=False), dropout=0.1)
    tokens = torch.randint(VOCAB, (4, 16))
    F.cross_entropy(network(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name

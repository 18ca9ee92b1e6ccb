"""The parts of hybrid stacks against formulas written out in float64, and their caches against one whole forward."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ssmseq.nn import BidirectionalMamba, Mamba
from ssmseq.nn.attention import GroupedQueryAttention
from ssmseq.nn.feed_forward import GatedMLP, MixtureOfExperts
from ssmseq.nn.norm import GatedRMSNorm, RMSNorm
from ssmseq.nn.stack import ResidualStack

WIDTH = 24
X = torch.zeros(1, 2, WIDTH)
SIZES: dict[str, Any] = {"d_model": WIDTH, "d_state": 5, "d_conv": 4, "expand": 2}
CHUNKS = [(1,) * 13, (1, 3, 7, 2), (13,), (6, 1, 1, 5)]


def mamba(**changes) -> Any:
    return Mamba(**SIZES | {"reverse": False} | changes)


def attention(**changes) -> Any:
    sizes: dict[str, Any] = {"d_model": WIDTH, "n_heads": 6, "n_kv_heads": 2}
    return GroupedQueryAttention(**sizes | changes)


def experts(**changes) -> Any:
    return MixtureOfExperts(**{"d_model": WIDTH, "d_ff": 16, "n_experts": 4, "capacity_factor": None} | changes)


def gated_mlp() -> GatedMLP:
    return GatedMLP(d_model=WIDTH, d_ff=32, bias=True)


MIXERS = {"M": mamba, "A": attention, "B": lambda: BidirectionalMamba(**SIZES, style="add")}


def stack(**changes) -> Any:
    layers: dict[str, Any] = {"d_model": WIDTH, "pattern": "MAM", "mixers": MIXERS, "feed_forwards": gated_mlp}
    return ResidualStack(**layers | {"eps": 1e-5, "dropout": 0.0, "residual_in_fp32": True} | changes)


def disturbed(module: torch.nn.Module) -> Any:
    """Move every parameter off its start: ones and zeros hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def by_chunks(module, x, sizes, empty):
    state = empty()
    return torch.cat([module(piece, state) for piece in x.split(sizes, dim=1)], 1), state


@pytest.mark.parametrize("sizes", CHUNKS, ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize(
    "build",
    [
        mamba,
        lambda: mamba(bias=True, conv_bias=False, dt_rank=3, d_conv=2),
        attention,
        stack,
        lambda: stack(feed_forwards=lambda: experts(capacity_factor=1.0)).eval(),
    ],
    ids=["mamba", "mamba with other biases", "attention", "hybrid", "hybrid with experts"],
)
def test_chunks_equal_one_whole_forward(build, sizes, grad, monkeypatch):
    monkeypatch.setattr("ssmseq.nn.attention.QUERIES_AT_ONCE", 2)
    torch.manual_seed(0)
    module, x = disturbed(build()), torch.randn(3, 13, WIDTH)
    with torch.set_grad_enabled(grad):
        whole = module(x)
        found, _ = by_chunks(module, x, sizes, getattr(module, "empty_caches", dict))
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)


def test_mamba_has_the_options_of_checkpoints():
    block = mamba(bias=True, conv_bias=False, dt_rank=3)
    assert [len(block.in_proj.bias), len(block.out_proj.bias), block.dt_proj.in_features] == [4 * WIDTH, WIDTH, 3]
    assert block.conv1d.bias is None


def test_gradients_through_chunks_equal_those_of_the_whole():
    torch.manual_seed(0)
    module = disturbed(stack()).double()
    x = torch.randn(2, 13, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, *module.parameters()], torch.randn(2, 13, WIDTH, dtype=torch.float64)
    truth = torch.autograd.grad(module(x), inputs, weight)
    found = torch.autograd.grad(by_chunks(module, x, (1, 3, 7, 2), module.empty_caches)[0], inputs, weight)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_caches_have_the_documented_tensors():
    module = stack()
    caches = module.empty_caches()
    module(torch.randn(2, 5, WIDTH), caches)
    shapes = [{name: tuple(v.shape) for name, v in cache.items()} for cache in caches]
    recurrent = {"conv": (2, 3, 2 * WIDTH), "ssm": (2, 2 * WIDTH, 5)}
    assert shapes == [recurrent, {"keys": (2, 2, 5, 4), "values": (2, 2, 5, 4)}, recurrent]


def test_single_steps_overwrite_the_state_and_spare_one_that_wants_gradients():
    block = mamba()
    x = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        _, cache = by_chunks(block, x, (2, 1), dict)
        before = dict(cache)
        block(x[:, :1], cache)
    assert all(cache[name] is before[name] for name in ("conv", "ssm"))
    cache = {}
    y, state = block(x, cache), cache["ssm"]
    with torch.no_grad():
        block(x[:, :1], cache)
    assert cache["ssm"] is not state
    y.sum().backward()  # and what it saved is untouched


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float64, 1e-10)])
def test_single_steps_in_other_dtypes(dtype, tolerance):
    torch.manual_seed(0)
    module = stack().to(dtype)
    x = torch.randn(2, 13, WIDTH, dtype=dtype)
    with torch.no_grad():
        found, _ = by_chunks(module, x, (1,) * 13, module.empty_caches)
        torch.testing.assert_close(found, module(x), rtol=tolerance, atol=tolerance)
    assert found.dtype == dtype


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (lambda: mamba(reverse=True), "reverse=True.*cannot continue.*reverse=False"),
        (lambda: attention(causal=False), "causal=False.*cannot continue.*causal=True"),
        (lambda: stack(pattern="MBM"), r"layer 1 \('B', BidirectionalMamba\) takes no cache.*causal mixers"),
        (lambda: stack(pattern="MM"), "each of the 2 layers, got 3"),
    ],
)
def test_what_cannot_continue_refuses_a_cache(module, text):
    module = module()
    state = stack().empty_caches() if isinstance(module, ResidualStack) else {}
    with pytest.raises(ValueError, match=text):
        module(X, state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_norms_equal_their_formulas(dtype):
    torch.manual_seed(0)
    plain, gated = (disturbed(norm).to(dtype).double() for norm in (RMSNorm(WIDTH, 1e-3), GatedRMSNorm(WIDTH, 1e-3, 3)))
    x, z = 300 * torch.randn(2, 7, WIDTH).to(dtype), torch.randn(2, 7, WIDTH).to(dtype)  # squares overflow float16
    x[0, 0] *= 1e-5  # where eps matters
    wide, gate = x.double(), z.double()
    truth = wide / (wide.square().sum(-1, keepdim=True) / WIDTH + 1e-3) ** 0.5 * plain.weight
    parts = (wide * gate / (1 + torch.exp(-gate))).split(WIDTH // 3, -1)
    scaled = [v / (v.square().sum(-1, keepdim=True) / (WIDTH // 3) + 1e-3) ** 0.5 for v in parts]
    gated_truth = torch.cat(scaled, -1) * gated.weight
    found, gated_found = plain.to(dtype)(x), gated.to(dtype)(x, z)
    assert found.dtype == gated_found.dtype == dtype
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.51 * torch.finfo(dtype).eps)  # of the result
    torch.testing.assert_close(found.double(), truth, rtol=rounding, atol=1e-6)
    torch.testing.assert_close(gated_found.double(), gated_truth, rtol=rounding, atol=1e-6)


def written_out_attention(block, x, n_heads, n_kv_heads, head_dim, causal):
    """One query at a time, over the keys it may see."""
    sizes = [n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim]
    q, k, v = F.linear(x, block.in_proj.weight, block.in_proj.bias).split(sizes, dim=-1)
    y = torch.zeros(*x.shape[:2], sizes[0], dtype=x.dtype)
    for b in range(x.shape[0]):
        for h in range(n_heads):
            own, shared = slice(h * head_dim, (h + 1) * head_dim), h // (n_heads // n_kv_heads) * head_dim
            for t in range(x.shape[1]):
                seen = slice(0, t + 1 if causal else None)
                weights = torch.exp(k[b, seen, shared : shared + head_dim] @ q[b, t, own] / math.sqrt(head_dim))
                y[b, t, own] = weights @ v[b, seen, shared : shared + head_dim] / weights.sum()
    return F.linear(y, block.out_proj.weight, block.out_proj.bias)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_kv_heads", "head_dim", "bias"), [(1, None, False), (2, 5, True), (6, None, True)])
def test_attention_equals_its_formula(n_kv_heads, head_dim, bias, causal):
    torch.manual_seed(0)
    block = attention(n_kv_heads=n_kv_heads, head_dim=head_dim, bias=bias, causal=causal).double()
    x = 2 * torch.randn(2, 9, WIDTH, dtype=torch.float64)
    truth = written_out_attention(block, x, 6, n_kv_heads, head_dim or 4, causal)
    torch.testing.assert_close(block(x), truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_attention_equals_separate_sequences(causal):
    torch.manual_seed(0)
    block = attention(causal=causal).double()
    x = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    rows = [[7] * 4 + [2] * 1 + [7] * 6, [0] * 2 + [1] * 8 + [0] * 1]  # numbers come back, and are strangers then
    lengths = [[4, 1, 6], [2, 8, 1]]
    found = block(x, seq_idx=torch.tensor(rows))
    for b in range(2):
        truth = torch.cat([block(piece) for piece in x[b : b + 1].split(lengths[b], dim=1)], 1)
        torch.testing.assert_close(found[b : b + 1], truth, rtol=1e-10, atol=1e-12)


def written_out_mlp(mlp: Any, x):
    weight, bias = mlp.fc1.weight, 0 if mlp.fc1.bias is None else mlp.fc1.bias
    hidden = weight @ x + bias
    value, gate = hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]
    return mlp.fc2.weight @ (value * gate / (1 + torch.exp(-gate))) + (0 if mlp.fc2.bias is None else mlp.fc2.bias)


def test_gated_mlp_equals_its_formula():
    torch.manual_seed(0)
    mlp = GatedMLP(d_model=6, d_ff=10, bias=True).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    truth = torch.stack([written_out_mlp(mlp, row) for row in x])
    torch.testing.assert_close(mlp(x), truth, rtol=1e-10, atol=1e-12)


def written_out_experts(layer: Any, x, capacity):
    """One token at a time: the output, the load-balancing loss and the number of tokens that each expert was asked."""
    asked, mean, outputs = [0] * layer.n_experts, [0.0] * layer.n_experts, []
    tokens = x.reshape(-1, x.shape[-1])
    for token in tokens:
        exponentials = torch.exp(layer.router.weight @ token)
        p = exponentials / exponentials.sum()
        best = max(range(layer.n_experts), key=lambda i: p[i].item())
        y = p[best] * written_out_mlp(layer.experts[best], token)
        outputs.append(y if asked[best] < capacity else torch.zeros_like(y))
        asked[best] += 1
        mean = [m + share / len(tokens) for m, share in zip(mean, p, strict=True)]
    loss = layer.n_experts * sum(n / len(tokens) * m for n, m in zip(asked, mean, strict=True))
    return torch.stack(outputs).view_as(x), loss, asked


@pytest.mark.parametrize("capacity_factor", [None, 1.3, 1.0, 0.3])
def test_experts_equal_a_loop_over_tokens(capacity_factor):
    torch.manual_seed(0)
    layer = experts(capacity_factor=capacity_factor).double()
    x = torch.randn(3, 17, WIDTH, dtype=torch.float64, requires_grad=True)
    capacity = {None: 51, 1.3: 17, 1.0: 13, 0.3: 4}[capacity_factor]  # of 51 tokens and 4 experts
    truth, loss, asked = written_out_experts(layer, x, capacity)
    assert (max(asked) > capacity) == (capacity_factor in (1.0, 0.3))
    found = layer(x)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.auxiliary_loss, loss, rtol=1e-10, atol=1e-12)
    inputs, weight = [x, *layer.parameters()], torch.randn_like(truth)
    totals = ((y * weight).sum() + aux for y, aux in ((found, layer.auxiliary_loss), (truth, loss)))
    for a, b in zip(*(torch.autograd.grad(total, inputs) for total in totals), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_tokens_beyond_the_capacity_get_zeros_in_training_alone():
    layer = experts(capacity_factor=1.0)
    with torch.no_grad():
        layer.router.weight.zero_()[2, 0] = 1  # a positive first channel sends a token to expert 2
    x = torch.randn(2, 4, WIDTH)
    x[..., 0] = 1
    dropped = (layer(x) == 0).all(-1)
    assert dropped.tolist() == [[False, False, True, True], [True] * 4]  # two of eight tokens for each of four experts
    assert not (layer.eval()(x) == 0).all(-1).any()


def test_auxiliary_loss_is_one_if_balanced_and_more_if_not():
    torch.manual_seed(0)
    layer = experts()
    x = torch.randn(400, WIDTH)
    layer(x)
    asked = torch.bincount((x @ layer.router.weight.T).argmax(-1), minlength=4)
    assert asked.min() > 40  # of 400, 100 each if even
    assert 1 < layer.auxiliary_loss < 1.2
    (grad,) = torch.autograd.grad(layer.auxiliary_loss, layer.router.weight)
    assert grad.abs().max() > 0
    with torch.no_grad():
        layer.router.weight.copy_(5 * torch.eye(4, WIDTH))
    layer(even := torch.eye(4, WIDTH).repeat(5, 1))
    torch.testing.assert_close(layer.auxiliary_loss, torch.tensor(1.0))
    layer(even[:1].expand(20, -1))
    collapsed = 4 * math.exp(5) / (math.exp(5) + 3)
    torch.testing.assert_close(layer.auxiliary_loss, torch.tensor(collapsed))
    layer.eval()(even)
    assert layer.auxiliary_loss is None


def test_routing_is_in_float32_under_autocast():
    torch.manual_seed(0)
    layer = experts()
    with torch.no_grad():  # two experts apart by less than bfloat16 resolves
        layer.router.weight.zero_()[:2, 0] = torch.tensor([1.0, 1.0001])
    x = torch.randn(2, 9, WIDTH).abs().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x).float()
    truth = layer.experts[1](x.float()) * (x.float() @ layer.router.weight.T).softmax(-1)[..., 1:2]
    torch.testing.assert_close(y, truth, rtol=0.05, atol=0.01)


def test_stack_equals_its_formula_and_has_the_documented_names():
    torch.manual_seed(0)
    module = disturbed(stack(pattern="MA", feed_forwards={"A": gated_mlp}, eps=1e-2)).double()
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)

    def normalise(v, name):
        return v / (v.square().mean(-1, keepdim=True) + 1e-2).sqrt() * module.state_dict()[f"{name}.weight"]

    h = x + module.layers[0].mixer(normalise(x, "layers.0.norm"))
    h = h + module.layers[1].mixer(normalise(h, "layers.1.norm"))
    h = h + module.layers[1].feed_forward(normalise(h, "layers.1.feed_forward_norm"))
    torch.testing.assert_close(module(x), normalise(h, "norm_f"), rtol=1e-10, atol=1e-12)
    names = {".".join(name.split(".")[:3]) for name in module.state_dict()}
    second = {f"layers.1.{part}" for part in ("norm", "mixer", "feed_forward_norm", "feed_forward")}
    assert names == {"layers.0.norm", "layers.0.mixer", "norm_f.weight"} | second


@pytest.mark.parametrize(("feed_forwards", "additions"), [(None, 4), (gated_mlp, 8), ({"A": gated_mlp}, 5)])
def test_initialisation_follows_mamba_ssm(feed_forwards, additions):
    module = stack(pattern="MAMM", feed_forwards=feed_forwards, mixers=MIXERS | {"A": lambda: attention(bias=True)})
    for name, parameter in module.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight", "in_proj.weight", "fc1.weight")):
            scale = 1 if "in_proj" in name or "fc1" in name else additions**-0.5
            bound = scale * parameter.shape[1] ** -0.5  # of torch's uniform start
            assert 0.9 * bound < parameter.abs().max() <= bound
        elif name.endswith("dt_proj.bias"):
            assert 1e-3 * 0.99 < F.softplus(parameter).min() < F.softplus(parameter).max() < 0.1 * 1.01
        elif name.endswith(("proj.bias", "fc1.bias", "fc2.bias")):
            assert not parameter.any()


@pytest.mark.parametrize("pattern", ["MAM", "B"])
def test_gradients_reach_every_parameter(pattern):
    torch.manual_seed(0)
    module = stack(pattern=pattern, feed_forwards=lambda: experts(capacity_factor=1.25))
    y = module(torch.randn(4, 32, WIDTH))
    (y.square().sum() + module.auxiliary_loss()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_auxiliary_losses_add_up_and_copies_leave_them_behind():
    module = stack(feed_forwards={"M": experts, "A": gated_mlp})
    x = torch.randn(2, 9, WIDTH)
    assert module.auxiliary_loss() == 0
    module(x)
    losses = [module.layers[i].feed_forward.auxiliary_loss for i in (0, 2)]
    torch.testing.assert_close(module.auxiliary_loss(), losses[0] + losses[1])
    assert copy.deepcopy(module).auxiliary_loss() == 0
    assert module.auxiliary_loss() > 0
    module.eval()(x)
    assert module.auxiliary_loss() == 0


def test_residual_in_fp32_keeps_small_sums():
    for residual_in_fp32 in (True, False):
        module, seen = stack(pattern="AA", feed_forwards=None, residual_in_fp32=residual_in_fp32).bfloat16(), []
        with torch.no_grad():
            for layer in module.layers:
                layer.mixer.out_proj.weight.fill_(1e-4)
                layer.mixer.in_proj.weight.fill_(1e-1)
        module.norm_f.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        x = torch.full((1, 2, WIDTH), 8.0, dtype=torch.bfloat16)
        assert module(x).dtype == torch.bfloat16
        assert (seen[0] != 8).unique().tolist() == [residual_in_fp32]


def test_dropout_zeroes_what_is_added():
    torch.manual_seed(0)
    module = stack(pattern="M", feed_forwards=None, dropout=0.5)
    added = []
    module.layers[0].register_forward_hook(lambda _, args, out: added.append((out - args[0]) == 0))
    x = torch.randn(4, 32, WIDTH)
    module(x)
    assert 0.45 < added[0].float().mean() < 0.55
    module.eval()(x)
    assert added[1].float().mean() < 0.01


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: stack(pattern="MXM"), "pattern 'MXM' has an unknown letter 'X' at layer 1; known: 'A', 'B', 'M'"),
        (lambda: stack(pattern=""), "at least one layer; known letters: 'A', 'B', 'M'"),
        (lambda: stack(feed_forwards={"Q": experts}), "feed_forwards has an unknown letter 'Q'; known: 'A', 'B', 'M'"),
        (lambda: attention(n_kv_heads=4), "n_kv_heads must divide n_heads, got n_kv_heads=4 and n_heads=6"),
        (lambda: attention(n_heads=5, n_kv_heads=5), "n_heads=5 must divide d_model=24; else give head_dim"),
        (lambda: attention()(X, {}, torch.zeros(1, 2)), "seq_idx .* cannot go with a cache: leave one out"),
        (lambda: attention()(X, None, torch.zeros(2)), r"seq_idx must be \(1, 2\) to fit x \(1, 2, 24\), got \(2,\)"),
        (lambda: experts(n_experts=0), "n_experts must be at least 1, got 0"),
        (lambda: experts(capacity_factor=0), "capacity_factor must be positive, or None for no limit, got 0"),
        (lambda: GatedRMSNorm(24, 1e-5, 5), "n_groups must divide the 24 channels, got n_groups=5"),
    ],
)
def test_senseless_arguments_are_named(build, text):
    with pytest.raises(ValueError, match=text):
        build()

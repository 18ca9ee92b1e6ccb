"""Caduceus, read from files as upstream writes them, against a transcription of upstream's forward in float64."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ssmseq.nn.caduceus import CaduceusNetwork
from ssmseq.pretrained import load_pretrained

DNA: dict[str, Any] = {
    "model_type": "caduceus",
    "d_model": 8,
    "n_layer": 3,
    "vocab_size": 12,
    "ssm_cfg": {"d_state": 4, "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True},
    "rms_norm": True,
    "fused_add_norm": True,
    "residual_in_fp32": False,
    "pad_vocab_size_multiple": 8,
    "norm_epsilon": 1e-3,
    "bidirectional": True,
    "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True,
    "rcps": True,
    "complement_map": {str(i): {7: 10, 8: 9, 9: 8, 10: 7}.get(i, i) for i in range(16)},
}
COMPLEMENT = torch.tensor(list(DNA["complement_map"].values()))


def caduceus(tmp_path, tables=True, **changes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Write a folder as upstream has them, with random weights; `tables` for what ties and maps leave optional."""
    torch.manual_seed(0)
    config, weights = DNA | changes, {}
    rcps, fused = config["rcps"], config["fused_add_norm"]
    norm = "norm.submodule" if rcps and not fused else "norm"
    add = {"A_log": (16, 4), "D": (16,), "x_proj.weight": (9, 16), "dt_proj.weight": (16, 1), "dt_proj.bias": (16,)}
    add |= {"conv1d.weight": (16, 1, 4), "conv1d.bias": (16,)}
    shared = {"in_proj.weight": (32, 8), "out_proj.weight": (8, 16)}

    def put(name, shape):
        weights[f"caduceus.backbone.{name}"] = 0.5 * torch.randn(shape, dtype=torch.float64)

    put(f"embeddings.word_embeddings.{'embedding.' if rcps else ''}weight", (16, 8))
    for i in range(3):
        mixer = f"layers.{i}.mixer.{'submodule.' if rcps else ''}"
        put(f"layers.{i}.{norm}.weight", (8,))
        for side, shapes in (("mamba_fwd", shared | add), ("mamba_rev", add)):
            for name, shape in shapes.items():
                put(f"{mixer}{side}.{name}", shape)
        for name in shared if tables else ():
            key = f"caduceus.backbone.{mixer}mamba_rev.{name}"
            weights[key] = weights[key.replace("mamba_rev", "mamba_fwd")].clone()
    put(norm.replace("norm", "norm_f") + ".weight", (8,))
    head = "lm_head.lm_head.weight" if rcps else "lm_head.weight"
    if not config.get("tie_word_embeddings", True):
        weights[head] = torch.randn(16, 8, dtype=torch.float64)
    elif tables:
        weights[head] = next(iter(weights.values())).clone()
    if tables and rcps:
        for place in ("caduceus.backbone.embeddings.word_embeddings", "lm_head"):
            weights[f"{place}.complement_map"] = COMPLEMENT.clone()
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return weights, config


def random_tokens(length):
    return torch.randint(16, (2, length), generator=torch.Generator().manual_seed(length))


def normalise(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight


def upstream_mamba(weights, shared, own, x):
    """One direction of a block, token by token."""
    u, z = (x @ weights[f"{shared}.in_proj.weight"].T).chunk(2, -1)
    padded, kernel = F.pad(u, (0, 0, 3, 0)), weights[f"{own}.conv1d.weight"][:, 0]
    u = sum(padded[:, k : k + x.shape[1]] * kernel[:, k] for k in range(4)) + weights[f"{own}.conv1d.bias"]
    u = F.silu(u)
    dt, B, C = (u @ weights[f"{own}.x_proj.weight"].T).split([1, 4, 4], -1)
    dt = F.softplus(dt @ weights[f"{own}.dt_proj.weight"].T + weights[f"{own}.dt_proj.bias"])
    A, state, rows = -torch.exp(weights[f"{own}.A_log"]), 0.0, []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + (dt * u)[:, t, :, None] * B[:, t, None]
        rows.append((state * C[:, t, None]).sum(-1))
    y = torch.stack(rows, 1) + weights[f"{own}.D"] * u
    return (y * F.silu(z)) @ weights[f"{shared}.out_proj.weight"].T


def upstream_caduceus(weights, config, tokens):
    """Upstream's forward as it is written there: residuals carried apart, the second strand's half kept turned."""
    weights = {k.replace("caduceus.backbone.", "").replace("submodule.", ""): v for k, v in weights.items()}
    rcps, fused, width = config["rcps"], config["fused_add_norm"], 8

    def turned(x):
        return x.flip(-2, -1)

    def mixer(i, x):
        name = f"layers.{i}.mixer.mamba_"
        there = upstream_mamba(weights, f"{name}fwd", f"{name}fwd", x)
        return there + upstream_mamba(weights, f"{name}fwd", f"{name}rev", x.flip(1)).flip(1)

    def norm(name, x):
        return normalise(x, weights[f"{name}.weight"])

    if not rcps:
        table = weights["embeddings.word_embeddings.weight"]
        hidden, residual = table[tokens], 0.0
        for i in range(3):
            residual = hidden + residual
            hidden = mixer(i, norm(f"layers.{i}.norm", residual))
        return norm("norm_f", hidden + residual) @ weights.get("lm_head.weight", table).T
    table = weights["embeddings.word_embeddings.embedding.weight"]
    hidden = torch.cat([table[tokens], turned(table[COMPLEMENT[tokens.flip(-1)]])], -1)
    residual = torch.zeros_like(hidden)
    for i in range(3):
        total = hidden + residual
        first, second = total[..., :width], total[..., width:]
        if fused:  # the halves change places here, and nothing puts them back
            first, second = second, first
        residual = torch.cat([first, second], -1)
        first, second = norm(f"layers.{i}.norm", first), turned(norm(f"layers.{i}.norm", turned(second)))
        hidden = torch.cat([mixer(i, first), turned(mixer(i, turned(second)))], -1)
    total = hidden + residual
    first, second = norm("norm_f", total[..., :width]), turned(norm("norm_f", turned(total[..., width:])))
    return first @ table.T + second.flip(-1) @ table[COMPLEMENT].T


VARIANTS = {
    "Ph": {"rcps": False},
    "Ph, untied": {"rcps": False, "tie_word_embeddings": False},
    "PS, fused": {},
    "PS, not fused": {"fused_add_norm": False},
    "PS, residuals in float32": {"residual_in_fp32": True},
}


@pytest.mark.parametrize("tables", [True, False], ids=["all tensors", "no tied ones"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_are_those_of_upstream(changes, tables, tmp_path):
    weights, config = caduceus(tmp_path, tables, **changes)
    network = load_pretrained(tmp_path)
    assert isinstance(network, CaduceusNetwork)
    for length in (1, 2, 7, 33):
        tokens = random_tokens(length)
        with torch.no_grad():
            truth = upstream_caduceus(weights, config, tokens)
            torch.testing.assert_close(network(tokens), truth, rtol=1e-9, atol=1e-9)


def test_files_without_a_head_load_as_well(tmp_path):
    weights, config = caduceus(tmp_path, tables=False)
    bare = {name.removeprefix("caduceus."): v for name, v in weights.items()}
    torch.save(bare, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        truth = upstream_caduceus(weights, config, random_tokens(9))
        torch.testing.assert_close(load_pretrained(tmp_path)(random_tokens(9)), truth, rtol=1e-9, atol=1e-9)


def test_the_fused_order_is_another_network(tmp_path):
    weights, config = caduceus(tmp_path)
    tokens = random_tokens(9)
    fused, plain = (upstream_caduceus(weights, config | {"fused_add_norm": f}, tokens) for f in (True, False))
    assert (fused - plain).abs().max() > 0.1 * plain.abs().max()


@pytest.mark.parametrize("changes", [{}, {"fused_add_norm": False}], ids=["fused", "not fused"])
def test_both_strands_get_the_same_logits(changes, tmp_path):
    caduceus(tmp_path, **changes)
    network, tokens = load_pretrained(tmp_path), random_tokens(21)
    other = COMPLEMENT[tokens.flip(1)]
    with torch.no_grad():
        torch.testing.assert_close(network(other), network(tokens).flip(1)[..., COMPLEMENT], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(network.hidden(other), network.hidden(tokens).flip(1, 2), rtol=1e-9, atol=1e-9)
        caduceus(tmp_path, rcps=False)
        one_strand = load_pretrained(tmp_path)
        assert not torch.allclose(one_strand(other), one_strand(tokens).flip(1)[..., COMPLEMENT], rtol=0.1, atol=0.1)


def test_the_table_of_the_file_goes_before_that_of_the_settings(tmp_path):
    caduceus(tmp_path, complement_map={str(i): i for i in range(16)})
    network: Any = load_pretrained(tmp_path)
    assert torch.equal(network.complement, COMPLEMENT)
    assert "complement" not in network.state_dict()
    caduceus(tmp_path, tables=False, complement_map={"7": 10, "10": 7, "8": 9, "9": 8})  # and gaps pair with themselves
    again: Any = load_pretrained(tmp_path)
    assert torch.equal(again.complement, COMPLEMENT)


def test_gradients_reach_every_parameter(tmp_path):
    caduceus(tmp_path)
    network = load_pretrained(tmp_path).train()
    network(random_tokens(9)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bidirectional_weight_tie": False}, "config.json: bidirectional_weight_tie = False is not supported"),
        ({"bidirectional": False}, "bidirectional = False is not supported; it must be true"),
        ({"bidirectional_strategy": "ew_multiply"}, """bidirectional_strategy = 'ew_multiply' is not .* "add\""""),
        ({"rms_norm": False}, "rms_norm = False is not supported"),
        ({"ssm_cfg": {"dt_rank": 2}}, """ssm_cfg.dt_rank = 2 is not supported; it must be "auto" or 1"""),
        ({"ssm_cfg": {"conv_bias": False}}, "ssm_cfg.conv_bias = False is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg.layer is not supported"),
    ],
)
def test_settings_that_are_not_here_are_refused(changes, text, tmp_path):
    caduceus(tmp_path, **changes)
    with pytest.raises(ValueError, match=text):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("layers.1.mixer.submodule.mamba_rev.out_proj.weight", torch.ones(8, 16), "differs from .*mamba_fwd.out_proj"),
        ("embeddings.word_embeddings.complement_map", torch.arange(16), "differs from .*complement_map"),
        ("layers.1.mixer.submodule.mamba_rev.D", None, r"backbone.layers.1.mixer.mamba_rev.D: is missing"),
        ("layers.1.mixer.submodule.mamba_rev.E", torch.ones(1), "mamba_rev.E: has no place"),
        ("layers.1.mixer.submodule.mamba_rev.D", torch.ones(3).double(), r"mamba_rev.D: must be \(16,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, value, text, tmp_path):
    weights, _ = caduceus(tmp_path)
    weights.pop(f"caduceus.backbone.{name}", None)
    if value is not None:
        weights[f"caduceus.backbone.{name}"] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"does not fit Caduceus as config.json describes it:\n  .*{text}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("pairs", [[0] * 16, [*range(1, 16), 0], [0.5] * 16, ["x"] * 16], ids=str)
def test_tokens_must_be_paired(pairs, tmp_path):
    caduceus(tmp_path, tables=False, complement_map={str(i): v for i, v in enumerate(pairs)})
    with pytest.raises(ValueError, match="config.json: complement must pair the 16 tokens"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("rcps", [True, False])
def test_it_does_not_generate(rcps, tmp_path):
    caduceus(tmp_path, rcps=rcps)
    with pytest.raises(ValueError, match="reads tokens from both ends.* nor generate"):
        load_pretrained(tmp_path).generate(random_tokens(3), 2)

"""Networks read from other projects' files give the logits of those projects, and files that do not fit are refused."""

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2
from ssmseq.pretrained import load_pretrained, save_pretrained

VOCAB, LENGTHS = 23, (1, 7, 65, 131)
SHARED: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 5}
MAMBA: list[dict[str, Any]] = [
    {},
    {"conv_kernel": 2, "expand": 3, "time_step_rank": 3, "use_bias": True, "layer_norm_epsilon": 1e-2},
    {"tie_word_embeddings": False, "use_conv_bias": False, "state_size": 16, "residual_in_fp32": False},
]
MAMBA2: list[dict[str, Any]] = [
    {"n_groups": 1, "head_dim": 8, "num_heads": 4, "norm_before_gate": True},  # which transformers does not read
    {"n_groups": 2, "head_dim": 4, "num_heads": 12, "expand": 3, "conv_kernel": 3, "use_bias": True},
    {"n_groups": 8, "head_dim": 2, "num_heads": 16, "tie_word_embeddings": True, "use_conv_bias": False},
    {"n_groups": 2, "head_dim": 16, "num_heads": 2, "time_step_limit": [0.2, 0.9], "layer_norm_epsilon": 1e-2},
]
CASES = [("Mamba", changes) for changes in MAMBA] + [("Mamba2", changes) for changes in MAMBA2]


def disturbed(module: torch.nn.Module) -> Any:
    """Move every parameter off its start: ones and zeros hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def theirs(kind, changes) -> Any:
    """A model of transformers, none of whose parameters is where it started."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHARED | {"chunk_size": 16} | changes)
    return disturbed(getattr(transformers, f"{kind}ForCausalLM")(config))


def random_tokens(length, batch=2, vocab_size=VOCAB):
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


def assert_equal_logits(network, model):
    for length in LENGTHS:
        tokens = random_tokens(length)
        with torch.no_grad():
            found, truth = network(tokens), model(tokens, use_cache=False).logits
        assert (found - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize(("kind", "changes"), CASES, ids=str)
def test_logits_are_those_of_transformers_there_and_back(kind, changes, tmp_path):
    model = theirs(kind, changes)
    model.save_pretrained(tmp_path / "theirs")
    network = load_pretrained(tmp_path / "theirs")
    assert not network.training
    assert (network.lm_head is None) == model.config.tie_word_embeddings
    assert_equal_logits(network, model)
    save_pretrained(network, tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours")
    assert_equal_logits(network, again.eval())
    changes = {name: value for name, value in changes.items() if name != "norm_before_gate"}
    assert {name: getattr(again.config, name) for name in changes} == changes
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # older transformers insist on it
        assert set(file.keys()) == set(load_file(tmp_path / "theirs" / "model.safetensors"))
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("kind", "changes"), [CASES[1], CASES[4]], ids=str)
def test_shards_and_pickles_hold_the_same_network(kind, changes, tmp_path):
    model = theirs(kind, changes)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_equal_logits(load_pretrained(tmp_path), model)
    for file in tmp_path.glob("model*"):
        file.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_equal_logits(load_pretrained(tmp_path), model)


@pytest.mark.parametrize(("kind", "changes"), [CASES[0], CASES[5]], ids=str)
def test_loaded_networks_continue_as_transformers_does(kind, changes, tmp_path):
    model = theirs(kind, changes)
    model.save_pretrained(tmp_path)
    network, tokens = load_pretrained(tmp_path), random_tokens(21)
    with torch.no_grad():
        whole = network(tokens)
        for sizes in ((13, 8), (1,) * 21):
            caches = network.empty_caches()
            found = torch.cat([network(piece, caches) for piece in tokens.split(sizes, dim=1)], 1)
            torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    seen: Any = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0, "eos_token_id": None}
    truth = model.generate(tokens, max_new_tokens=9, do_sample=False, **seen)
    assert torch.equal(network.generate(tokens, 9), truth)


def network_of(mixer=Mamba2, **changes) -> Any:
    """A small network of this library, whose files every damage starts from."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "d_state": 5, "d_conv": 4, "expand": 2}
    sizes |= {"head_dim": 8, "n_groups": 2} if mixer is Mamba2 else {"reverse": False}
    rest: dict[str, Any] = {"feed_forwards": None, "eps": 1e-5, "residual_in_fp32": True, "tie_embeddings": True}
    layers = {"vocab_size": VOCAB, "d_model": 16, "pattern": "MM", "mixers": {"M": lambda: mixer(**sizes)}}
    return disturbed(LanguageModelNetwork(**layers | rest | changes))


def test_weights_keep_their_dtype_and_their_marks(tmp_path):
    save_pretrained(network_of().bfloat16(), tmp_path)
    state = torch.get_rng_state()
    network = load_pretrained(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert network(random_tokens(7)).dtype == torch.bfloat16
    marked = {name.split(".")[-1] for name, p in network.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D", "dt_bias"}
    assert all(p.requires_grad for p in network.parameters())


ORIGINAL: dict[str, Any] = {
    "d_model": 16,
    "n_layer": 3,
    "vocab_size": 21,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
ATTENTION = {"causal": True, "num_heads": 4, "num_heads_kv": 2, "qkv_proj_bias": False, "out_proj_bias": False}


def mixer_weights(mixer, i):
    return {f"backbone.layers.{i}.mixer.{name}": v for name, v in mixer.state_dict().items()}


def original(tmp_path, changes) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Write a folder as mamba_ssm has them; returns its weights and the mixers made of them."""
    torch.manual_seed(0)
    config, double = ORIGINAL | changes, {"dtype": torch.float64}
    weights: dict[str, Any] = {"backbone.embedding.weight": torch.randn(24, 16, **double)}
    mixers: list[Any] = []
    for i in range(config["n_layer"]):
        name, sizes = f"backbone.layers.{i}", {"d_model": 16, "d_conv": 4, "expand": 2}
        if config["ssm_cfg"].get("layer") == "Mamba2":
            mixers.append(Mamba2(**sizes, d_state=128, head_dim=4, n_groups=2))
        else:
            mixers.append(Mamba(**sizes, d_state=16, dt_rank=config["ssm_cfg"].get("dt_rank"), reverse=False))
        weights |= mixer_weights(disturbed(mixers[-1]).double(), i)
        if i in config.get("attn_layer_idx", []):
            mixers[-1] = torch.randn(32, 16, **double) / 4, torch.randn(16, 16, **double) / 4
            weights = {key: v for key, v in weights.items() if not key.startswith(f"{name}.mixer")}
            weights |= zip((f"{name}.mixer.in_proj.weight", f"{name}.mixer.out_proj.weight"), mixers[-1], strict=True)
        weights[f"{name}.norm.weight"] = torch.rand(16, **double)
        if config.get("d_intermediate"):
            weights[f"{name}.norm2.weight"] = torch.rand(16, **double)
            weights[f"{name}.mlp.fc1.weight"] = torch.randn(512, 16, **double) / 4  # 200 rounded up to 256, twice
            weights[f"{name}.mlp.fc2.weight"] = torch.randn(16, 256, **double) / 16
    weights["backbone.norm_f.weight"] = torch.rand(16, **double)
    tied = config.get("tie_embeddings", True)
    weights["lm_head.weight"] = weights["backbone.embedding.weight"] if tied else torch.randn(24, 16, **double)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return weights, mixers


def normalise(x, weight, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def attend(x, in_proj, out_proj):
    """Causal attention of four query heads over two of keys and values, of four channels each."""
    q, k, v = (x @ in_proj.T).split([16, 8, 8], -1)
    y = torch.zeros_like(q)
    for head in range(4):
        own, shared = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
        scores = q[..., own] @ k[..., shared].mT / 2
        future = torch.ones_like(scores).triu(1).bool()
        y[..., own] = scores.masked_fill(future, -torch.inf).softmax(-1) @ v[..., shared]
    return y @ out_proj.T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ssm_cfg": {"dt_rank": 3, "dt_min": 0.01, "use_fast_path": False}, "tie_embeddings": False},
        {"ssm_cfg": {"layer": "Mamba2", "headdim": 4, "ngroups": 2}, "d_intermediate": 200},
        {"attn_layer_idx": [1], "attn_cfg": ATTENTION, "d_intermediate": 200, "pad_vocab_size_multiple": 24},
    ],
    ids=["Mamba", "other sizes", "Mamba-2 and feed-forward nets", "attention and feed-forward nets"],
)
def test_original_layout_gives_its_formula(changes, tmp_path):
    weights, mixers = original(tmp_path, changes)
    tokens = random_tokens(9, vocab_size=24)
    with torch.no_grad():
        h = weights["backbone.embedding.weight"][tokens]
        for i, mixer in enumerate(mixers):
            own = {key.split(f"layers.{i}.")[1]: v for key, v in weights.items() if f"layers.{i}." in key}
            x = normalise(h, own["norm.weight"])
            h = h + (attend(x, *mixer) if isinstance(mixer, tuple) else mixer(x))
            if "norm2.weight" in own:
                value, gate = (normalise(h, own["norm2.weight"]) @ own["mlp.fc1.weight"].T).chunk(2, -1)
                h = h + (value * F.silu(gate)) @ own["mlp.fc2.weight"].T
        truth = normalise(h, weights["backbone.norm_f.weight"]) @ weights["lm_head.weight"].T
        torch.testing.assert_close(load_pretrained(tmp_path)(tokens), truth, rtol=1e-9, atol=1e-9)


def load_damaged(tmp_path, damage, **changes):
    """Load what is left of a saved network after `damage` to its tensors and settings."""
    save_pretrained(network_of(**changes), tmp_path)
    weights, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    damage(weights, config)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_pretrained(tmp_path)


LAYER = "backbone.layers.1"
FITS = "model.safetensors does not fit transformers' Mamba-2 as config.json describes it:\n  "


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda w, c: w.pop(f"{LAYER}.mixer.D"), f"{FITS}{LAYER}.mixer.D: is missing"),
        (lambda w, c: w.pop("backbone.embeddings.weight"), f"{FITS}embedding.weight: is missing"),
        (lambda w, c: w.update(stranger=torch.ones(1)), f"{FITS}stranger: has no place in the network"),
        (
            lambda w, c: w.update({f"{LAYER}.mixer.in_proj.bias": torch.ones(1)}),
            f"{FITS}{LAYER}.mixer.in_proj.bias: has no place in the network",
        ),
        (
            lambda w, c: w.update({f"{LAYER}.mixer.A_log": torch.ones(4, 1)}),
            f"{FITS}{LAYER}.mixer.A_log: must be (4,) of floating point, got (4, 1) of torch.float32",
        ),
        (
            lambda w, c: w.update({f"{LAYER}.mixer.A_log": torch.ones(4).int()}),
            f"{FITS}{LAYER}.mixer.A_log: must be (4,) of floating point, got (4,) of torch.int32",
        ),
        (
            lambda w, c: w.update({"lm_head.weight": torch.ones(VOCAB, 16)}),
            f"{FITS}lm_head.weight: differs from the embedding, to which config.json ties it",
        ),
        (lambda w, c: c.update(tie_word_embeddings=False), f"{FITS}lm_head.weight: is missing"),
        (lambda w, c: c.update(num_hidden_layers=3), "backbone.layers.2.mixer.out_proj.weight: is missing"),
        (lambda w, c: c.update(model_type="llama"), "config.json: model_type = 'llama' is not supported; it must be"),
        (lambda w, c: c.pop("model_type"), "config.json: model_type is missing; it must be mamba, mamba2, caduceus"),
        (lambda w, c: c.update(hidden_act="gelu"), """hidden_act = 'gelu' is not supported; it must be "silu" or"""),
        (lambda w, c: c.pop("hidden_size"), "hidden_size is missing; it must be an integer of at least 1"),
        (lambda w, c: c.update(state_size="5"), "state_size = '5' is not supported; it must be an integer"),
        (lambda w, c: c.update(expand=1.5), "expand = 1.5 is not supported; it must be an integer"),
        (lambda w, c: c.update(num_heads=5), "num_heads = 5 is not supported; it must be 4"),
        (lambda w, c: c.update(intermediate_size=33), "intermediate_size = 33 is not supported; it must be 32"),
        (lambda w, c: c.update(n_groups=3), "config.json: n_groups must divide the 4 heads, got 3"),
        (lambda w, c: c.update(residual_in_fp32="no"), "residual_in_fp32 = 'no' is not supported; it must be true or"),
        (lambda w, c: c.update(layer_norm_epsilon="x"), "layer_norm_epsilon = 'x' is not supported; it must be a num"),
        (lambda w, c: c.update(time_step_limit=[0.1]), "time_step_limit = [0.1] is not supported; it must be a small"),
        (
            lambda w, c: c.update(time_step_limit=[2, 1]),
            "time_step_limit = [2, 1] is not supported; it must be a small",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(damage, text, tmp_path):
    with pytest.raises(ValueError) as error:
        load_damaged(tmp_path, damage)
    assert text in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_everything_wrong_is_listed_at_once(tmp_path):
    def damage(weights, _):
        del weights["backbone.layers.0.norm.weight"], weights["backbone.norm_f.weight"]
        weights |= {"a": torch.ones(1), "b": torch.ones(1)}

    with pytest.raises(ValueError) as error:
        load_damaged(tmp_path, damage)
    names = [line.strip().split(":")[0] for line in str(error.value).splitlines()[1:]]
    assert names == ["a", "b", "backbone.layers.0.norm.weight", "backbone.norm_f.weight"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rms_norm": False}, "rms_norm = False is not supported; it must be true"),
        ({"bidirectional": True}, "bidirectional is not supported; known are d_model"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer = 'Mamba3' is not supported"),
        ({"ssm_cfg": {"headdim": 4}}, "ssm_cfg.headdim is not supported; known are layer"),
        ({"ssm_cfg": [1]}, "ssm_cfg must hold named settings, got list"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "ssm_cfg.norm_before_gate = True is not"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg.rmsnorm = False is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim = True is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 16}}, "ssm_cfg.d_ssm = 16 is not supported; it must be 32"),
        ({"attn_layer_idx": [3]}, "attn_layer_idx = [3] is not supported; it must be a list of layers, from 0 to 2"),
        ({"attn_cfg": {"rotary_emb_dim": 2}}, "attn_cfg.rotary_emb_dim = 2 is not supported; it must be 0"),
        ({"attn_cfg": {"d_conv": 4}}, "attn_cfg.d_conv = 4 is not supported; it must be 0"),
        ({"attn_cfg": {"mlp_dim": 256}}, "attn_cfg.mlp_dim = 256 is not supported; it must be 0"),
        ({"attn_cfg": {"softmax_scale": 1.0}}, "attn_cfg.softmax_scale = 1.0 is not supported; it must be null"),
        ({"attn_cfg": {"causal": None}}, "attn_cfg.causal is missing; it must be true"),
        ({"attn_cfg": {"out_proj_bias": True}}, "attn_cfg.out_proj_bias = True is not supported; it must be false"),
    ],
    ids=str,
)
def test_settings_of_the_original_layout_that_are_not_here_are_refused(changes, text, tmp_path):
    if "attn_cfg" in changes:
        changes = {"attn_layer_idx": [1], "attn_cfg": ATTENTION | changes["attn_cfg"]}
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL | changes))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError) as error:
        load_pretrained(tmp_path)
    assert f"{tmp_path / 'config.json'}: {text}" in str(error.value)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("content", [{"a": Bomb()}, Bomb(), [torch.ones(1)], {"a": {"b": torch.ones(1)}}, b"noise"])
def test_pickles_of_other_things_are_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL))
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match="pytorch_model.bin (holds more than tensors|must hold tensors by name)"):
        load_pretrained(tmp_path)


def test_incomplete_and_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no pretrained network: config.json is missing"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL))
    with pytest.raises(FileNotFoundError, match="model.safetensors, .* and pytorch_model.bin are missing"):
        load_pretrained(tmp_path)
    index, outside = tmp_path / "model.safetensors.index.json", tmp_path.parent / f"{tmp_path.name}-outside"
    save_file({"a": torch.ones(1)}, outside)
    for name in (f"../{outside.name}", str(outside), "x"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(FileNotFoundError, match=f"names '{name}', which is not a file beside it"):
            load_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "x"}}))
    save_file({"b": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(ValueError, match="do not hold the same tensors: a, b"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (lambda: network_of(mixers={"M": torch.nn.Identity}), "Mamba or of Mamba2 layers alone, got one of Identity"),
        (lambda: network_of(eps=1e-3), "with one eps in all norms"),
        (lambda: network_of(feed_forwards=torch.nn.Identity), "neither feed-forward nets nor"),
    ],
)
def test_networks_that_transformers_has_not_are_not_exported(network, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        save_pretrained(network(), tmp_path)
    assert not list(tmp_path.iterdir())

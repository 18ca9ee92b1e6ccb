"""The formats in which other projects save networks: their settings, and their names for tensors.

Each format is one table that renames its tensors to the names here, and one function that builds the network from its
config.json. A setting that would change the function to one that is not here is refused by name.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from ssmseq.nn.attention import GroupedQueryAttention
from ssmseq.nn.caduceus import CaduceusNetwork
from ssmseq.nn.feed_forward import GatedMLP
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2

ORIGINAL_EPS = 1e-5  # of the norms in mamba_ssm, which its config.json does not hold
MLP_MULTIPLE = 128  # to which mamba_ssm rounds hidden channels up


class Settings:
    """Settings of a config.json, which name themselves in every refusal."""

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise ValueError(f"{where.rstrip('.') or 'it'} must hold named settings, got {type(values).__name__}")
        self.values, self.where = values, where

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting; null is the same as none."""
        value = self.values.get(key)
        return default if value is None else value

    def refuse(self, key: str, wanted: str) -> ValueError:
        """Return the error that names a setting and what it may be."""
        value = self.values.get(key)
        found = "is missing" if value is None else f"= {value!r} is not supported"
        return ValueError(f"{self.where}{key} {found}; it must be {wanted}")

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return an integer; without a default it must be there."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refuse(key, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, "a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def only(self, key: str, *allowed: Any, default: Any = None) -> None:
        """Refuse a setting that would change the function to one that is not here."""
        if self.get(key, allowed[0] if default is None else default) not in allowed:
            raise self.refuse(key, " or ".join(map(json.dumps, allowed)))

    def only_keys(self, keys: str) -> None:
        """Refuse settings that nobody here knows the meaning of."""
        unknown = sorted(set(self.values) - set(keys.split()))
        if unknown:
            raise ValueError(f"{self.where}{', '.join(unknown)} is not supported; known are {', '.join(keys.split())}")

    def section(self, key: str) -> "Settings":
        """Return the settings within a setting; none where it is missing."""
        return Settings(self.get(key, {}), f"{self.where}{key}.")

    def limits(self, key: str) -> tuple[float, float]:
        """Read the range of the step sizes, also as transformers and as Python write an infinite one."""
        written: Any = self.get(key, [0.0, math.inf])
        value: list[Any] = list(written) if isinstance(written, list) else []
        value = [math.inf if v in ({"__float__": "Infinity"}, "Infinity") else v for v in value]
        if len(value) != 2 or not all(isinstance(v, int | float) for v in value) or not 0 <= value[0] <= value[1]:
            raise self.refuse(key, "a smallest and a largest step size")
        return value[0], value[1]


def _padded_vocab(config: Settings) -> int:
    multiple = config.size("pad_vocab_size_multiple", 8)
    return -(-config.size("vocab_size") // multiple) * multiple


def _dt_rank(config: Settings, key: str) -> int | None:
    return None if config.get(key, "auto") == "auto" else config.size(key)


Builders = dict[str, Callable[[], nn.Module]]


def _language_model(config: Settings, mixers: Builders, **changes: Any) -> LanguageModelNetwork:
    """Build the network of a Hugging Face config, whose two models share these settings."""
    config.only("hidden_act", "silu", "swish")
    return LanguageModelNetwork(
        vocab_size=config.size("vocab_size"),
        d_model=config.size("hidden_size"),
        pattern="M" * config.size("num_hidden_layers"),
        mixers=mixers,
        feed_forwards=None,
        eps=config.number("layer_norm_epsilon", 1e-5),
        residual_in_fp32=config.flag("residual_in_fp32", True),
        **changes,
    )


def _hf_sizes(config: Settings) -> dict[str, Any]:
    sizes: dict[str, Any] = {"d_model": config.size("hidden_size"), "d_state": config.size("state_size")}
    sizes |= {"d_conv": config.size("conv_kernel", 4), "expand": config.size("expand", 2)}
    config.only("intermediate_size", sizes["d_model"] * sizes["expand"])
    return sizes | {"bias": config.flag("use_bias", False), "conv_bias": config.flag("use_conv_bias", True)}


def _build_hf_mamba(config: Settings, _: Tensor | None) -> LanguageModelNetwork:
    sizes: dict[str, Any] = _hf_sizes(config) | {"dt_rank": _dt_rank(config, "time_step_rank")}
    tied = config.flag("tie_word_embeddings", True)
    return _language_model(config, {"M": lambda: Mamba(**sizes, reverse=False)}, tie_embeddings=tied)


def _build_hf_mamba2(config: Settings, _: Tensor | None) -> LanguageModelNetwork:
    sizes: dict[str, Any] = _hf_sizes(config) | {
        "head_dim": config.size("head_dim", 64),
        "n_groups": config.size("n_groups", 8),
    }
    config.only("num_heads", sizes["d_model"] * sizes["expand"] // sizes["head_dim"], default=128)
    sizes |= {"dt_limit": config.limits("time_step_limit"), "eps": config.number("layer_norm_epsilon", 1e-5)}
    tied = config.flag("tie_word_embeddings", False)
    return _language_model(config, {"M": lambda: Mamba2(**sizes)}, tie_embeddings=tied)


INITIAL = (
    "dt_min dt_max dt_init dt_scale dt_init_floor conv_init A_init_range use_fast_path use_mem_eff_path chunk_size"
)
MAMBA_KEYS = f"layer d_state d_conv expand dt_rank bias conv_bias {INITIAL}"
MAMBA2_KEYS = (
    f"layer d_state d_conv expand headdim ngroups dt_limit bias conv_bias d_ssm D_has_hdim rmsnorm "
    f"norm_before_gate {INITIAL}"
)
ATTENTION_KEYS = (
    "num_heads num_heads_kv head_dim qkv_proj_bias out_proj_bias causal rotary_emb_dim rotary_emb_base "
    "rotary_emb_interleaved d_conv mlp_dim softmax_scale"
)
ORIGINAL_KEYS = (
    "d_model d_intermediate n_layer vocab_size ssm_cfg attn_layer_idx attn_cfg rms_norm residual_in_fp32 "
    "fused_add_norm pad_vocab_size_multiple tie_embeddings model_type architectures dtype torch_dtype "
    "transformers_version _name_or_path"
)


def _original_mixer(ssm: Settings, d_model: int) -> Callable[[], nn.Module]:
    """Read the ssm_cfg of mamba_ssm."""
    ssm.only("layer", "Mamba1", "Mamba2")
    second = ssm.get("layer") == "Mamba2"
    ssm.only_keys(MAMBA2_KEYS if second else MAMBA_KEYS)
    sizes: dict[str, Any] = {"d_model": d_model, "d_state": ssm.size("d_state", 128 if second else 16)}
    sizes |= {"d_conv": ssm.size("d_conv", 4), "expand": ssm.size("expand", 2)}
    sizes |= {"bias": ssm.flag("bias", False), "conv_bias": ssm.flag("conv_bias", True)}
    if not second:
        return lambda: Mamba(**sizes, dt_rank=_dt_rank(ssm, "dt_rank"), reverse=False)
    ssm.only("norm_before_gate", False)
    ssm.only("rmsnorm", True)
    ssm.only("D_has_hdim", False)
    ssm.only("d_ssm", d_model * sizes["expand"])
    sizes |= {"head_dim": ssm.size("headdim", 64), "n_groups": ssm.size("ngroups", 1)}
    return lambda: Mamba2(**sizes, dt_limit=ssm.limits("dt_limit"), eps=ORIGINAL_EPS)


def _original_attention(config: Settings, d_model: int) -> Callable[[], nn.Module]:
    """Read the attn_cfg of mamba_ssm, whose defaults are those of its `MHA`."""
    config.only_keys(ATTENTION_KEYS)
    for key in ("rotary_emb_dim", "d_conv", "mlp_dim"):
        config.only(key, 0)
    config.only("softmax_scale", None)
    config.only("causal", True, default=False)
    bias, heads = config.flag("qkv_proj_bias", True), config.size("num_heads")
    config.only("out_proj_bias", bias, default=True)
    sizes: dict[str, Any] = {"n_heads": heads, "n_kv_heads": config.size("num_heads_kv", heads)}
    head_dim = config.size("head_dim", max(d_model // heads, 1))
    return lambda: GroupedQueryAttention(d_model=d_model, **sizes, head_dim=head_dim, bias=bias)


def _build_original(config: Settings, _: Tensor | None) -> LanguageModelNetwork:
    config.only_keys(ORIGINAL_KEYS)
    config.only("rms_norm", True)
    d_model, n_layers = config.size("d_model"), config.size("n_layer")
    mixers: Builders = {"M": _original_mixer(config.section("ssm_cfg"), d_model)}
    attention = config.get("attn_layer_idx", [])
    if not isinstance(attention, list) or not all(i in range(n_layers) for i in attention):
        raise config.refuse("attn_layer_idx", f"a list of layers, from 0 to {n_layers - 1}")
    if attention:
        mixers["A"] = _original_attention(config.section("attn_cfg"), d_model)
    d_ff = -(-config.size("d_intermediate", 0, least=0) // MLP_MULTIPLE) * MLP_MULTIPLE
    return LanguageModelNetwork(
        vocab_size=_padded_vocab(config),
        d_model=d_model,
        pattern="".join("A" if i in attention else "M" for i in range(n_layers)),
        mixers=mixers,
        feed_forwards=(lambda: GatedMLP(d_model=d_model, d_ff=d_ff, bias=False)) if d_ff else None,
        eps=ORIGINAL_EPS,
        residual_in_fp32=config.flag("residual_in_fp32", True),
        tie_embeddings=config.flag("tie_embeddings", True),
    )


def _build_caduceus(config: Settings, complement: Tensor | None) -> CaduceusNetwork:
    for key in ("rms_norm", "bidirectional", "bidirectional_weight_tie"):
        config.only(key, True)
    config.only("bidirectional_strategy", "add")
    ssm, d_model, vocab_size = config.section("ssm_cfg"), config.size("d_model"), _padded_vocab(config)
    ssm.only_keys(MAMBA_KEYS.removeprefix("layer "))
    ssm.only("bias", False)
    ssm.only("conv_bias", True)
    ssm.only("dt_rank", "auto", -(-d_model // 16))
    pairs = None
    if config.flag("rcps", False):  # the table in the file is upstream's truth; that of the config names what it names
        named = config.section("complement_map").values
        pairs = [named.get(str(i), i) for i in range(vocab_size)] if complement is None else complement.tolist()
    return CaduceusNetwork(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=config.size("n_layer"),
        d_state=ssm.size("d_state", 16),
        d_conv=ssm.size("d_conv", 4),
        expand=ssm.size("expand", 2),
        eps=config.number("norm_epsilon", 1e-5),
        residual_in_fp32=config.flag("residual_in_fp32", True),
        tie_embeddings=pairs is not None or config.flag("tie_word_embeddings", True),
        complement=pairs,
        swap_strands=pairs is not None and config.flag("fused_add_norm", True),
    )


class Format(NamedTuple):
    """How one project names its tensors: patterns of whole names, the first that fits, and the name here."""

    title: str
    renames: Sequence[tuple[str, str]]
    build: Callable[[Settings, Tensor | None], LanguageModelNetwork]


SAME = (
    (r"backbone\.layers\.(\d+)\.(norm|mixer)\.(.+)", r"backbone.layers.\1.\2.\3"),
    (r"(backbone\.norm_f|lm_head)\.weight", r"\1.weight"),
)
HUGGING_FACE = ((r"backbone\.embeddings?\.weight", "embedding.weight"), *SAME)
ORIGINAL = (
    (r"backbone\.embedding\.weight", "embedding.weight"),
    (r"backbone\.layers\.(\d+)\.norm2\.weight", r"backbone.layers.\1.feed_forward_norm.weight"),
    (r"backbone\.layers\.(\d+)\.mlp\.(.+)", r"backbone.layers.\1.feed_forward.\2"),
    *SAME,
)
BACKBONE = r"(?:caduceus\.)?backbone\."
CADUCEUS = (
    (rf"{BACKBONE}embeddings\.word_embeddings\.(?:embedding\.)?weight", "embedding.weight"),
    (rf"{BACKBONE}embeddings\.word_embeddings\.complement_map|lm_head\.complement_map", "complement"),
    (rf"{BACKBONE}layers\.(\d+)\.norm\.(?:submodule\.)?weight", r"backbone.layers.\1.norm.weight"),
    (  # tied to those of the other direction, which hold them here
        rf"{BACKBONE}layers\.(\d+)\.mixer\.(?:submodule\.)?mamba_rev\.(in|out)_proj\.weight",
        r"backbone.layers.\1.mixer.mamba_fwd.\2_proj.weight",
    ),
    (rf"{BACKBONE}layers\.(\d+)\.mixer\.(?:submodule\.)?(.+)", r"backbone.layers.\1.mixer.\2"),
    (rf"{BACKBONE}norm_f\.(?:submodule\.)?weight", "backbone.norm_f.weight"),
    (r"lm_head\.(?:lm_head\.)?weight", "lm_head.weight"),
)
FORMATS = {
    "mamba": Format("transformers' Mamba", HUGGING_FACE, _build_hf_mamba),
    "mamba2": Format("transformers' Mamba-2", HUGGING_FACE, _build_hf_mamba2),
    "caduceus": Format("Caduceus", CADUCEUS, _build_caduceus),
}
MAMBA_SSM = Format("mamba_ssm's MambaLMHeadModel", ORIGINAL, _build_original)


def recognise(config: Settings) -> Format:
    """Return the format that a config.json belongs to.

    Raises
    ------
    ValueError
        If it is none of those here.
    """
    kind = config.get("model_type")
    if kind is None and {"d_model", "n_layer", "vocab_size"} <= set(config.values):
        return MAMBA_SSM
    if not isinstance(kind, str) or kind not in FORMATS:
        raise config.refuse("model_type", f"{', '.join(FORMATS)}, or absent beside mamba_ssm's d_model and n_layer")
    return FORMATS[kind]


def describe(network: LanguageModelNetwork) -> dict[str, Any]:
    """Return the config.json of a network for transformers.

    Raises
    ------
    ValueError
        If transformers has no such network.
    """
    backbone = cast(Any, network.backbone)
    layers = list(backbone.layers)
    kinds = {type(layer.mixer) for layer in layers}
    if type(network) is not LanguageModelNetwork or len(kinds) != 1 or not kinds <= {Mamba, Mamba2}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"transformers has networks of Mamba or of Mamba2 layers alone, got one of {names}")
    if any(layer.feed_forward is not None or getattr(layer.mixer, "reverse", False) for layer in layers):
        raise ValueError(
            "transformers' Mamba networks have neither feed-forward nets nor layers that read from the end"
        )
    first = _describe_mixer(layers[0].mixer)
    eps = backbone.norm_f.eps
    if any(_describe_mixer(layer.mixer) != first for layer in layers) or first.get("layer_norm_epsilon", eps) != eps:
        raise ValueError("transformers' Mamba networks have layers of one size, with one eps in all norms")
    return first | {
        "vocab_size": network.embedding.num_embeddings,
        "num_hidden_layers": len(layers),
        "layer_norm_epsilon": eps,
        "residual_in_fp32": backbone.residual_in_fp32,
        "tie_word_embeddings": network.lm_head is None,
        "hidden_act": "silu",
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }


def _describe_mixer(mixer: Any) -> dict[str, Any]:
    d_model, d_inner = mixer.out_proj.weight.shape
    kind = type(mixer).__name__
    config = {
        "model_type": kind.lower(),
        "architectures": [f"{kind}ForCausalLM"],
        "hidden_size": d_model,
        "state_size": mixer.d_state,
        "conv_kernel": mixer.conv1d.kernel_size[0],
        "expand": d_inner // d_model,
        "use_bias": mixer.in_proj.bias is not None,
        "use_conv_bias": mixer.conv1d.bias is not None,
    }
    if kind == "Mamba":
        return config | {"time_step_rank": mixer.dt_rank}
    config |= {"head_dim": mixer.head_dim, "num_heads": d_inner // mixer.head_dim, "n_groups": mixer.n_groups}
    limits = {} if mixer.dt_limit == (0.0, math.inf) else {"time_step_limit": list(mixer.dt_limit)}
    return config | limits | {"layer_norm_epsilon": mixer.norm.eps}

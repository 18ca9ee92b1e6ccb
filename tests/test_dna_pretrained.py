"""Published networks as estimators: the numbers are those of the networks that `load_pretrained` reads."""

import json

import numpy as np
import pytest
import torch
from dna_networks import random_dna
from safetensors.torch import save_file

from ssmseq import DNALanguageModel, load
from ssmseq.dna.alphabet import COMPLEMENT, encode, reverse_complement
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2
from ssmseq.pretrained import load_pretrained, save_pretrained


def write_caduceus(folder, *, rcps: bool, fused: bool = True, **changes):
    """Write a folder in the published layout, with random weights."""
    torch.manual_seed(1)
    config = {"model_type": "caduceus", "d_model": 8, "n_layer": 2, "vocab_size": 12, "pad_vocab_size_multiple": 8}
    config |= {"ssm_cfg": {"d_state": 4, "d_conv": 4, "expand": 2}, "rms_norm": True, "fused_add_norm": fused}
    config |= {"norm_epsilon": 1e-5, "bidirectional": True, "bidirectional_strategy": "add", "rcps": rcps}
    config |= {"bidirectional_weight_tie": True, "residual_in_fp32": False}
    config["complement_map"] = {str(i): int(j) for i, j in enumerate(COMPLEMENT)}
    scan = {"A_log": (16, 4), "D": (16,), "x_proj.weight": (9, 16), "dt_proj.weight": (16, 1), "dt_proj.bias": (16,)}
    scan |= {"conv1d.weight": (16, 1, 4), "conv1d.bias": (16,)}
    norm = "norm.submodule" if rcps and not fused else "norm"
    shapes = {f"embeddings.word_embeddings.{'embedding.' if rcps else ''}weight": (16, 8)}
    for i in range(2):
        mixer = f"layers.{i}.mixer.{'submodule.' if rcps else ''}"
        shapes[f"layers.{i}.{norm}.weight"] = (8,)
        shapes |= {f"{mixer}mamba_fwd.{k}": v for k, v in scan.items()}
        shapes |= {f"{mixer}mamba_rev.{k}": v for k, v in scan.items()}
        shapes |= {f"{mixer}mamba_fwd.in_proj.weight": (32, 8), f"{mixer}mamba_fwd.out_proj.weight": (8, 16)}
    shapes[norm.replace("norm", "norm_f") + ".weight"] = (8,)
    weights = {f"caduceus.backbone.{name}": 0.5 * torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(("rcps", "fused"), [(False, True), (True, True), (True, False)])
def test_caduceus_scores_as_its_network(tmp_path, rcps, fused):
    core = load_pretrained(write_caduceus(tmp_path, rcps=rcps, fused=fused))
    model = DNALanguageModel.from_pretrained(tmp_path, pooling="last", accelerator="cpu")
    assert model.pooling == "last"
    assert (model.swap_strands, model.bidirectional, model.n_layers) == (rcps and fused, True, 2)
    tokens = torch.from_numpy(encode(random_dna(37)).astype(np.int64))[None]
    with torch.inference_mode():
        torch.testing.assert_close(model.network_(tokens), core(tokens)[..., 7:11], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.network_.hidden(tokens), core.hidden(tokens), rtol=1e-5, atol=1e-5)
    X = [random_dna(37), random_dna(50, 1)]
    again = load(model.save(tmp_path / "saved") and tmp_path / "saved")
    assert (again.log_likelihood(X) == model.log_likelihood(X)).all()
    if rcps:
        others = [reverse_complement(x) for x in X]
        np.testing.assert_allclose(model.log_likelihood(X), model.log_likelihood(others), atol=1e-4)
        np.testing.assert_allclose(model.embed(X, pooling="mean"), model.embed(others, pooling="mean"), atol=1e-4)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_causal_networks_score_as_they_are(tmp_path, kind):
    torch.manual_seed(0)
    mamba2 = {"head_dim": 8, "n_groups": 1}
    mixer = {
        "mamba": lambda: Mamba(d_model=16, d_state=4, d_conv=3, expand=2, reverse=False),
        "mamba2": lambda: Mamba2(d_model=16, d_state=4, d_conv=3, expand=2, **mamba2),
    }[kind]
    core = LanguageModelNetwork(
        vocab_size=16,
        d_model=16,
        pattern="MM",
        mixers={"M": mixer},
        feed_forwards=None,
        eps=1e-5,
        residual_in_fp32=True,
        tie_embeddings=True,
    )
    save_pretrained(core, tmp_path)
    model = DNALanguageModel.from_pretrained(tmp_path, accelerator="cpu")
    assert (model.architecture, model.d_conv, model.bidirectional) == (kind, 3, False)
    x = random_dna(30)
    tokens = torch.from_numpy(np.append(2, encode(x)).astype(np.int64))[None]
    with torch.inference_mode():
        p = core(tokens)[0, :-1, 7:11].double().log_softmax(-1)
    wanted = p.gather(-1, tokens[0, 1:, None] - 7).sum().item()
    assert model.log_likelihood([x])[0] == pytest.approx(wanted, abs=1e-4)
    assert len(model.sample(1, 20)[0]) == 20


def test_networks_that_are_of_no_such_model(tmp_path):
    write_caduceus(tmp_path, rcps=False, norm_epsilon=1e-3)
    with pytest.raises(ValueError, match="eps=0.001: use it through"):
        DNALanguageModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        DNALanguageModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="published Caduceus-PS"):
        DNALanguageModel(swap_strands=True).fit(["ACGT" * 10] * 2)

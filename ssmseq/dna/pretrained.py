"""Published networks as a fitted `DNALanguageModel`: Caduceus, and Mamba or Mamba-2 over the same tokens."""

import os
from typing import Any

import numpy as np
import pandas as pd
import torch

from ssmseq.dna.alphabet import COMPLEMENT, VOCAB_SIZE
from ssmseq.dna.network import EPS, DNANetwork
from ssmseq.nn.bidirectional import BidirectionalMamba
from ssmseq.nn.caduceus import CaduceusNetwork
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2
from ssmseq.pretrained import load_pretrained


def read_parameters(core: LanguageModelNetwork) -> dict[str, Any]:
    """Return the parameters of the `DNALanguageModel` whose network is `core`.

    Raises
    ------
    ValueError
        If there is none.
    """
    mixers: list[Any] = [layer.mixer for layer in core.backbone.layers]
    n_tokens = core.embedding.num_embeddings
    if n_tokens != VOCAB_SIZE or core.lm_head is not None or core.backbone.norm_f.eps != EPS:
        raise ValueError(
            f"a DNALanguageModel has {VOCAB_SIZE} tokens, numbered as in HyenaDNA and Caduceus, a head tied to the "
            f"embedding and norms with eps={EPS}; the network has {n_tokens} tokens, a head of "
            f"{'its own' if core.lm_head is not None else 'the embedding'} and eps={core.backbone.norm_f.eps}: use it "
            "through ssmseq.pretrained.load_pretrained"
        )
    found: dict[str, Any] = {"d_model": core.embedding.embedding_dim, "n_layers": len(mixers)}
    plain = all(layer.feed_forward is None for layer in core.backbone.layers)
    if isinstance(core, CaduceusNetwork) and isinstance(mixers[0], BidirectionalMamba):
        both = core.complement is not None
        if core.complement is not None and core.complement.tolist() != COMPLEMENT.tolist():
            raise ValueError("the network pairs other tokens as complements than A with T and C with G")
        found |= {"bidirectional": True, "reverse_complement": "equivariant" if both else "average"}
        found |= {"swap_strands": both and core.swap_strands, **_sizes(mixers[0].mamba_fwd)}
    elif plain and all(type(mixer) is Mamba for mixer in mixers):
        found |= {"architecture": "mamba", "reverse_complement": "none", **_sizes(mixers[0])}
    elif plain and all(type(mixer) is Mamba2 for mixer in mixers) and mixers[0].n_groups == 1:
        found |= {"architecture": "mamba2", "reverse_complement": "none", **_sizes(mixers[0])}
        found |= {"head_dim": mixers[0].head_dim}
    else:
        raise ValueError(f"no DNALanguageModel has layers such as {core.backbone.pattern!r} with {mixers[0]}")
    return found


def fill(estimator, core: LanguageModelNetwork) -> None:
    """Make an unfitted estimator with the parameters of `read_parameters` a fitted one."""
    network = DNANetwork(core, equivariant=estimator.reverse_complement == "equivariant" and not estimator.swap_strands)
    with torch.random.fork_rng():
        wanted = estimator._build_network(0)
    wanted.load_state_dict(network.state_dict())  # of the very class that a saved model is read into
    estimator.network_, estimator.classes_ = wanted.eval(), np.array([])
    estimator.history_ = pd.DataFrame({"epoch": [], "train_loss": [], "learning_rate": [], "seconds": []})
    estimator.n_iter_, estimator.n_features_out_ = 0, estimator._n_columns()


def load_core(path: str | os.PathLike) -> LanguageModelNetwork:
    """Read a network in float32."""
    return load_pretrained(path).float()


def _sizes(mixer: Mamba | Mamba2) -> dict[str, int]:
    d_model, d_inner = mixer.in_proj.in_features, mixer.out_proj.in_features
    return {"d_state": mixer.d_state, "d_conv": mixer.conv1d.kernel_size[0], "expand": d_inner // d_model}

"""Small DNA networks and random sequences for the tests."""

import numpy as np
import torch

from ssmseq.dna.network import DNANetwork, build_network

KINDS = {
    "mamba": {"architecture": "mamba"},
    "mamba2": {"architecture": "mamba2"},
    "hybrid": {"architecture": "hybrid", "d_ff": 24},
    "caduceus": {"architecture": "mamba", "bidirectional": True, "equivariant": True},
    "hydra": {"architecture": "mamba2", "bidirectional": True, "d_conv": 3, "equivariant": True},
    "both ways": {"architecture": "hybrid", "bidirectional": True, "d_conv": 3},
}
CAUSAL = ("mamba", "mamba2", "hybrid")
CPU = torch.device("cpu")


def small_network(kind: str, *, n_labels: int = 0, seed: int = 0, **changes) -> DNANetwork:
    """Build a network whose parameters are all at random, so that none hides behind a zero or a one."""
    sizes = {"d_model": 16, "n_layers": 3, "d_state": 4, "d_conv": 4, "expand": 2, "head_dim": 8, "d_ff": 0}
    sizes |= {"attention_period": 3, "attention_offset": 1, "n_heads": 4, "n_kv_heads": 2, "dropout": 0.0}
    torch.manual_seed(seed)
    arguments = {"bidirectional": False, "equivariant": False, **sizes, **KINDS[kind], **changes}
    network = build_network(n_labels=n_labels, **arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def random_dna(length: int, seed: int = 0, letters: str = "ACGT") -> str:
    """Draw a sequence."""
    return "".join(np.random.default_rng(seed).choice(list(letters), length))

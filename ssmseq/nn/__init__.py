"""Blocks shared by the networks. Axis letters: B batch, L time steps or tokens, D channels, N state."""

from ssmseq.nn.attention import GroupedQueryAttention
from ssmseq.nn.bidirectional import BidirectionalMamba, SMambaEncoderLayer
from ssmseq.nn.caduceus import CaduceusNetwork
from ssmseq.nn.feed_forward import GatedMLP, MixtureOfExperts
from ssmseq.nn.hydra import Hydra
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2
from ssmseq.nn.mamba3 import Mamba3
from ssmseq.nn.norm import GatedRMSNorm, RMSNorm
from ssmseq.nn.stack import ResidualStack

__all__ = [
    "BidirectionalMamba",
    "CaduceusNetwork",
    "GatedMLP",
    "GatedRMSNorm",
    "GroupedQueryAttention",
    "Hydra",
    "LanguageModelNetwork",
    "Linear",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "MixtureOfExperts",
    "RMSNorm",
    "ResidualStack",
    "SMambaEncoderLayer",
]

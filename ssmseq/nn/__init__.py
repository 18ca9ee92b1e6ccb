"""Blocks shared by the networks. Axis letters: B batch, L time steps or tokens, D channels, N state."""

from ssmseq.nn.bidirectional import BidirectionalMamba, SMambaEncoderLayer
from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import Mamba

__all__ = ["BidirectionalMamba", "Linear", "Mamba", "SMambaEncoderLayer"]

"""Blocks that read their tokens from both ends."""

from torch import Tensor, nn

from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import Mamba
from ssmseq_kernels import bidirectional_selective_scan

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class BidirectionalMamba(nn.Module):
    """The sum of two independent Mamba blocks, one reading the tokens forwards and one backwards.

    Parameters are those of `Mamba`.
    """

    def __init__(self, *, d_model: int, d_state: int, d_conv: int, expand: int):
        super().__init__()
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        self.forwards = Mamba(**sizes, reverse=False)
        self.backwards = Mamba(**sizes, reverse=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model)."""
        y, y_reverse = bidirectional_selective_scan(self.forwards.scan_inputs(x), self.backwards.scan_inputs(x))
        return self.forwards.out_proj(y) + self.backwards.out_proj(y_reverse)


class SMambaEncoderLayer(nn.Module):
    """One encoder layer of S-Mamba: bidirectional Mamba, then a feed-forward net, each added and normalised after.

    Parameters
    ----------
    d_model, d_state, d_conv, expand : int
        Of the Mamba blocks.
    d_ff : int
        Hidden channels of the feed-forward net.
    dropout : float
        After the activation and after the second linear map of the feed-forward net.
    activation : {"gelu", "relu", "silu"}

    References
    ----------
    Wang et al., "Is Mamba effective for time series forecasting?", arXiv 2403.11144.
    """

    def __init__(
        self, *, d_model: int, d_state: int, d_conv: int, expand: int, d_ff: int, dropout: float, activation: str
    ):
        super().__init__()
        self.mixer = BidirectionalMamba(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        self.mixer_norm = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            Linear(d_model, d_ff),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            Linear(d_ff, d_model),
            nn.Dropout(dropout),
        )
        self.feed_forward_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, tokens, d_model) to (B, tokens, d_model)."""
        x = self.mixer_norm(x + self.mixer(x))
        return self.feed_forward_norm(x + self.feed_forward(x))

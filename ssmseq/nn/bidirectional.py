"""Blocks that read their tokens from both ends."""

import math
from typing import Any

from torch import Tensor, nn

from ssmseq.nn.hydra import Hydra
from ssmseq.nn.linear import Linear
from ssmseq.nn.mamba import Mamba, select
from ssmseq_kernels import bidirectional_selective_scan, causal_conv1d

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
STYLES = ("add", "vim", "caduceus", "hydra")
HYDRA_HEAD_DIM = 64  # the default of its authors


class BidirectionalMamba(nn.Module):
    r"""Mamba block that reads its tokens from both ends, in one of the ways of the literature.

    With :math:`m` for convolution, selective scan and gate of one direction, :math:`W` for the linear maps in and out
    and :math:`\leftarrow` for what reads from the end, the styles are

    ============  ====================================================================================================
    ``add``       :math:`W_o m(W_i x) + W_o^\leftarrow m^\leftarrow(W_i^\leftarrow x)`: two whole `Mamba` blocks, as in
                  S-Mamba; parameters in ``forwards`` and ``backwards``.
    ``vim``       :math:`W_o (m(W_i x) + m^\leftarrow(W_i x))`: the linear maps are shared, all else is each direction's
                  own, as in Vision Mamba's "bimamba v2"; that of the backward direction is named ``conv1d_b``,
                  ``x_proj_b``, ``dt_proj_b``, ``A_b_log`` and ``D_b``, as there.
    ``caduceus``  The same function; parameters in ``mamba_fwd`` and ``mamba_rev``, as in Caduceus' checkpoints, where
                  ``mamba_fwd`` holds the linear maps for both.
    ``hydra``     One quasiseparable matrix per head in place of two scans with a diagonal each: `Hydra` in ``hydra``,
                  with one group of B and C, and 64 channels per head (or what of this divides the inner channels).
    ============  ====================================================================================================

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_state : int
        State size N of each inner channel, or for ``hydra`` of each head.
    d_conv : int
        Width of the convolutions, in tokens: causal in the direction of reading (4 in the papers), but for ``hydra``
        centred and odd (7).
    expand : int
        Inner channels are ``expand * d_model``.
    style : {"add", "vim", "caduceus", "hydra"}

    Raises
    ------
    ValueError
        If `style` is another, or a size does not suit `Hydra`.

    Notes
    -----
    ``vim`` adds the directions and does not halve the sum: the default of Vision Mamba's block
    (``if_divide_out=False``). The models published with Vision Mamba switch halving on ("div2" in their names); to load
    one, divide its ``out_proj.weight`` by two, which is exact. Mamba's optional ``gamma`` of that code is not here.

    References
    ----------
    Wang et al., "Is Mamba effective for time series forecasting?", arXiv 2403.11144 (``add``).
    Zhu et al., "Vision Mamba", arXiv 2401.09417 (``vim``).
    Schiff et al., "Caduceus: bi-directional equivariant long-range DNA sequence modeling", arXiv 2403.03234
    (``caduceus``).
    Hwang et al., "Hydra: bidirectional state space models through generalized matrix mixers", arXiv 2407.09941
    (``hydra``).
    """

    def __init__(self, *, d_model: int, d_state: int, d_conv: int, expand: int, style: str):
        super().__init__()
        if style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(map(repr, STYLES))}, got {style!r}")
        self.style = style
        sizes: Any = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        if style == "hydra":
            self.hydra = Hydra(**sizes, head_dim=math.gcd(HYDRA_HEAD_DIM, expand * d_model), n_groups=1)
            return
        first, second = Mamba(**sizes, reverse=False), Mamba(**sizes, reverse=True)
        if style == "add":
            self.forwards, self.backwards = first, second
        elif style == "vim":
            self.in_proj, self.conv1d, self.x_proj = first.in_proj, first.conv1d, first.x_proj
            self.dt_proj, self.A_log, self.D, self.out_proj = first.dt_proj, first.A_log, first.D, first.out_proj
            self.conv1d_b, self.x_proj_b, self.dt_proj_b = second.conv1d, second.x_proj, second.dt_proj
            self.A_b_log, self.D_b = second.A_log, second.D
        else:
            del second.in_proj, second.out_proj  # tied copies would be saved twice, which safetensors refuses
            self.mamba_fwd, self.mamba_rev = first, second

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model)."""
        if self.style == "hydra":
            return self.hydra(x)
        if self.style == "add":
            y, y_reverse = bidirectional_selective_scan(self.forwards.scan_inputs(x), self.backwards.scan_inputs(x))
            return self.forwards.out_proj(y) + self.backwards.out_proj(y_reverse)
        u, z, out_proj, own, own_reverse = self._shared_and_own(x)
        inputs = []
        for (conv1d, *others), reverse in ((own, False), (own_reverse, True)):
            v = causal_conv1d(u, conv1d.weight, conv1d.bias, activation="silu", reverse=reverse)
            inputs.append(select(v, z, *others))
        y, y_reverse = bidirectional_selective_scan(*inputs)
        return out_proj(y + y_reverse)

    def _shared_and_own(self, x: Tensor) -> tuple:
        """Project x once, and name the map out and the parameters of each direction."""
        if self.style == "vim":
            shared = self
            own = (self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
            own_reverse = (self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        else:
            shared = self.mamba_fwd
            own, own_reverse = ((m.conv1d, m.x_proj, m.dt_proj, m.A_log, m.D) for m in (self.mamba_fwd, self.mamba_rev))
        return *shared.in_proj(x).chunk(2, dim=-1), shared.out_proj, own, own_reverse


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
        self.mixer = BidirectionalMamba(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, style="add")
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

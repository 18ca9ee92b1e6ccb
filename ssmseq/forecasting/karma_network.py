"""The network of KARMA: a trend apart from the season, tokens split by a wavelet, Mamba over the variates.

Source: Ye et al., "KARMA: a multilevel decomposition hybrid Mamba framework for multivariate long-term time series
forecasting", arXiv 2506.08939. What differs from paper and released code, `KarmaForecaster` says.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.forecasting.tokens import Head, InputSizes, VariateTokens, WindowNorm
from ssmseq.nn import Linear, Mamba, RMSNorm
from ssmseq.nn.wavelet import WaveletTransform
from ssmseq_kernels import bidirectional_selective_scan

EPSILON = 1e-5  # of the normalisations of tokens
DECOMPOSITIONS = ("atcd", "moving_average", "none")


class MovingAverage(nn.Module):
    """Trend as the centred mean over `window` rows, the first and last row repeated beyond the ends."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, V, L) to season and trend, which add up to it."""
        padded = F.pad(x, ((self.window - 1) // 2, self.window // 2), mode="replicate")
        trend = F.avg_pool1d(padded, self.window, stride=1)
        return x - trend, trend


class AdaptiveDecomposition(nn.Module):
    r"""Adaptive time-channel decomposition of the paper: attention over the rows finds the trend.

    .. math:: \tilde X = \operatorname{Dropout}(X W_i), \quad
        T = \operatorname{SiLU}(\operatorname{MultiHeadAttention}(\tilde X)), \quad S = \tilde X - T

    with X of shape (L, V) and season and trend each mapped back from the `width` hidden channels to the variates. The
    maps belong to the variates, so a network with this part forecasts those of `fit` only.
    """

    def __init__(self, n_variates: int, *, width: int, n_heads: int, dropout: float):
        super().__init__()
        self.project_in = Linear(n_variates, width)
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.MultiheadAttention(width, n_heads, batch_first=True)
        self.season, self.trend = Linear(width, n_variates), Linear(width, n_variates)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, V, L) to season and trend (B, V, L); they need not add up to x."""
        hidden = self.dropout(self.project_in(x.transpose(1, 2)))
        trend = F.silu(self.attention(hidden, hidden, hidden, need_weights=False)[0])
        return self.season(hidden - trend).transpose(1, 2), self.trend(trend).transpose(1, 2)


class KarmaBlock(nn.Module):
    """A Mamba for each band of the wavelet transform, and a pair that reads the tokens from both ends."""

    def __init__(self, *, d_model: int, band: int, share_directions: bool, **sizes: Any):
        super().__init__()
        self.low = Mamba(d_model=band, reverse=False, **sizes)
        self.high = Mamba(d_model=band, reverse=False, **sizes)
        self.forwards = Mamba(d_model=d_model, reverse=False, **sizes)
        self.backwards = None if share_directions else Mamba(d_model=d_model, reverse=True, **sizes)
        self.norm, self.norm_backwards = RMSNorm(d_model, EPSILON), RMSNorm(d_model, EPSILON)

    def forward(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens (B, M, d_model) and their bands (B, M, band) to the same."""
        backwards = self.forwards if self.backwards is None else self.backwards
        y, y_reverse = bidirectional_selective_scan(
            self.forwards.scan_inputs(self.norm(x)), backwards.scan_inputs(self.norm_backwards(x), reverse=True)
        )
        return self.forwards.out_proj(y) + backwards.out_proj(y_reverse) + x, self.low(low), self.high(high)


class KarmaNetwork(nn.Module):
    """Tokens are variates, then covariates; every scan runs over tokens, never over time.

    Parameters are those of `KarmaForecaster`.
    """

    def __init__(
        self,
        sizes: InputSizes,
        *,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        n_layers: int,
        dropout: float,
        decomposition: str,
        moving_average: int,
        d_decomposition: int,
        n_heads: int,
        wavelet: str,
        share_directions: bool,
        affine: bool,
    ):
        super().__init__()
        self.n_past = sizes.n_past
        mamba: Any = {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        self.window_norm = WindowNorm(sizes.n_variates if affine else 0)
        self.tokens = VariateTokens(sizes, d_model=d_model, dropout=dropout)
        self.decomposition = None
        if decomposition != "none":
            self.decomposition = (
                MovingAverage(moving_average)
                if decomposition == "moving_average"
                else AdaptiveDecomposition(sizes.n_variates, width=d_decomposition, n_heads=n_heads, dropout=dropout)
            )
            self.trend_embedding = nn.Sequential(Linear(sizes.lookback, d_model), nn.Dropout(dropout))
            self.trend_mixer = Mamba(d_model=d_model, reverse=False, **mamba)
            # The paper projects the trend before the sum; its released code does not.
            self.trend_projection = Linear(d_model, d_model) if decomposition == "atcd" else nn.Identity()
        self.wavelet = WaveletTransform(d_model, wavelet)
        self.layers = nn.ModuleList(
            KarmaBlock(d_model=d_model, band=self.wavelet.width, share_directions=share_directions, **mamba)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model, EPSILON)
        self.head = Head(d_model, sizes)

    def forward(self, past: Tensor, future=None, static=None, missing=None) -> Tensor:
        """Map the inputs that `ssmseq.forecasting.tokens` describes to forecasts (B, V, H) or (B, V, H, Q)."""
        n_variates = past.shape[1] - self.n_past
        variates, statistics = self.window_norm(past[:, :n_variates])
        season, trend = variates, None
        if self.decomposition is not None:
            season, trend = self.decomposition(variates)
        tokens = self.tokens(torch.cat([season, past[:, n_variates:]], 1), future, static, missing)
        low, high = self.wavelet(tokens)
        for layer in self.layers:
            tokens, low, high = layer(tokens, low, high)
        tokens = self.norm(self.wavelet.inverse(low, high)[..., : tokens.shape[-1]] + tokens)[:, :n_variates]
        if trend is not None:
            tokens = tokens + self.trend_projection(self.trend_mixer(self.trend_embedding(trend)))
        return self.window_norm.inverse(self.head(tokens), statistics)

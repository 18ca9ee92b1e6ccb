"""What the forecasting networks share: a token per variate and covariate, normalisation of a window, the last map.

The inputs of every network are

===========  ===============  ======================================================================================
``past``     (B, V + K, L)    variates, then covariates known up to now (calendar features among them); no NaN
``future``   (B, F, L + H)    covariates known in advance, over look-back and horizon; left out where F = 0
``static``   (B, S)           numbers of the series; left out where S = 0
``missing``  (B, V, L)        1 where a value of a variate was missing and was filled in, else 0; left out without gaps
===========  ===============  ======================================================================================

and the output is (B, V, H), or (B, V, H, Q) for quantiles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssmseq.nn import Linear

EPSILON = 1e-5  # added to the variance of a window


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """Numbers of series and rows that a network is built for."""

    n_variates: int
    lookback: int
    horizon: int
    n_past: int = 0
    n_future: int = 0
    n_static: int = 0
    has_gaps: bool = False
    n_quantiles: int = 1  # 1 is a point forecast


class VariateTokens(nn.Module):
    """Embed the rows of every variate and covariate as one token.

    Variates and past covariates share one linear map, as in S-Mamba and iTransformer. Future covariates have a map of
    their own, from look-back and horizon; static numbers become one token; and which values are missing is added to the
    token of their variate.

    Parameters
    ----------
    sizes : InputSizes
    d_model : int
        Channels of a token.
    dropout : float
        Of the tokens.
    """

    def __init__(self, sizes: InputSizes, *, d_model: int, dropout: float):
        super().__init__()
        self.n_past = sizes.n_past
        self.rows = Linear(sizes.lookback, d_model)
        self.future = Linear(sizes.lookback + sizes.horizon, d_model) if sizes.n_future else None
        self.static = Linear(sizes.n_static, d_model) if sizes.n_static else None
        self.missing = Linear(sizes.lookback, d_model, bias=False) if sizes.has_gaps else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, past: Tensor, future=None, static=None, missing=None) -> Tensor:
        """Return the tokens (B, V [+ 1] + F + K, d_model): variates, static, future covariates, past covariates."""
        tokens = self.rows(past)
        if self.future is None and self.static is None and missing is None:
            return self.dropout(tokens)
        n_variates = past.shape[1] - self.n_past
        variates, others = tokens[:, :n_variates], [tokens[:, n_variates:]]
        if self.missing is not None and missing is not None:
            variates = variates + self.missing(missing)
        # A scan forgets with distance: what tells most of the horizon stands next to the variates.
        if self.future is not None:
            others.insert(0, self.future(future))
        if self.static is not None:
            others.insert(0, self.static(static).unsqueeze(1))
        return self.dropout(torch.cat([variates, *others], 1))


class WindowNorm(nn.Module):
    """Bring every variate of every window to mean 0 and standard deviation 1, and a forecast back.

    Parameters
    ----------
    n_variates : int
        0 learns nothing. Otherwise a scale and a shift of each variate are learned, applied after the normalisation and
        undone on the forecast (reversible instance normalisation); the network then fits these variates only.

    References
    ----------
    Kim et al., "Reversible instance normalization for accurate time-series forecasting against distribution shift",
    ICLR 2022.
    """

    def __init__(self, n_variates: int = 0):
        super().__init__()
        self.affine = n_variates > 0
        if self.affine:
            self.scale = nn.Parameter(torch.ones(n_variates, 1))
            self.shift = nn.Parameter(torch.zeros(n_variates, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map (B, V, L) to its normalised form, and the statistics that `inverse` needs."""
        mean = x.mean(-1, keepdim=True)
        x = x - mean
        spread = torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + EPSILON)
        x = x / spread
        return (x * self.scale + self.shift if self.affine else x), (mean, spread)

    def inverse(self, y: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """Map a forecast (B, V, H) or (B, V, H, Q) back to the scale of the window."""
        mean, spread, *learned = (
            s.reshape(*s.shape, *[1] * (y.dim() - 3))
            for s in (*statistics, *((self.scale, self.shift) if self.affine else ()))
        )
        if learned:
            y = (y - learned[1]) / (learned[0] + EPSILON**2)
        return y * spread + mean


class Head(nn.Module):
    """Map the token of each variate to its forecast; a trained one gives quantiles in ascending order.

    Sorting is the rearrangement of Chernozhukov et al., which never makes a quantile forecast worse.

    References
    ----------
    Chernozhukov, Fernandez-Val and Galichon, "Quantile and probability curves without crossing", Econometrica 2010.
    """

    def __init__(self, d: int, sizes: InputSizes):
        super().__init__()
        self.n_quantiles = sizes.n_quantiles
        self.projection = Linear(d, sizes.horizon * sizes.n_quantiles)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, V, d) to (B, V, H), or to (B, V, H, Q) for more than one quantile."""
        y = self.projection(tokens)
        if self.n_quantiles == 1:
            return y
        y = y.unflatten(-1, (-1, self.n_quantiles))
        # While it trains each output keeps its own quantile: sorted ones change places, which slows learning down.
        return y if self.training else y.sort(-1).values

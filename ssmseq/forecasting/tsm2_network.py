"""The network of TSM2: Mamba along the time patches of every variate, and across the variates at every patch, in turn.

Source: Behrouz, Santacatterina and Zabih, "MambaMixer: efficient selective state space models with dual token and
channel selection", arXiv 2403.19888. Its authors published no code, and sizes, patching and loss of their experiments
are not verified, nor is how they start and constrain the averages: this is a model from the paper's description, and no
figure of the paper is claimed for it.

From the paper: blocks of a selective token mixer, one-directional over time, and a selective channel mixer, which reads
the variates from both ends; each mixer expands, convolves, scans (S6), gates and contracts; and the input of a mixer is
a learned weighted average of the outputs of all earlier ones. With the embedding as the zeroth output of both kinds,

    token mixer l    reads  sum_{i<l}  alpha_{l,i} yT_i + sum_{i<l} beta_{l,i}  yC_i
    channel mixer l  reads  sum_{i<=l} theta_{l,i} yT_i + sum_{i<l} gamma_{l,i} yC_i

Chosen here: the weights are one free number per source, not a softmax, and start as the plain average, with the
embedding counted once; the head reads one more such average, so that a linear way leads from the patches to the
forecast; layer normalisation before each mixer; in the channel mixer both directions share the linear maps and the gate
(the "vim" style of `BidirectionalMamba`); overlapping patches that end at the last row; instance normalisation of the
variates without learned parameters; a head shared by the variates; and covariates as further channels, in the order
variates, past, future, static. The scan over the channels depends on their order: permuting the columns of a frame
gives another model.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ssmseq.forecasting.tokens import Head, InputSizes, WindowNorm
from ssmseq.nn import BidirectionalMamba, Linear, Mamba


class WeightedAverage(nn.Module):
    """Learned weighted sum of tensors of one shape; it starts as their mean. A single tensor passes unchanged."""

    def __init__(self, n_sources: int):
        super().__init__()
        self.weights = nn.Parameter(torch.full((n_sources,), 1 / n_sources)) if n_sources > 1 else None
        if self.weights is not None:
            self.weights._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, sources: list[Tensor]) -> Tensor:
        """Map tensors, as many as weights, to their weighted sum."""
        if self.weights is None:
            return sources[0]
        weights = self.weights.unbind()
        total = weights[0] * sources[0]
        for weight, source in zip(weights[1:], sources[1:], strict=True):
            total = torch.addcmul(total, weight, source)
        return total


class SelectiveMixer(nn.Module):
    """Average the earlier outputs, normalise, and scan: along the patches, or across the channels of each patch."""

    def __init__(self, n_sources: int, mixer: nn.Module, *, across_channels: bool, d_model: int, dropout: float):
        super().__init__()
        self.across_channels = across_channels
        self.average = WeightedAverage(n_sources)
        self.norm = nn.LayerNorm(d_model)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Map earlier outputs, each (B, C, P, d_model), to the next one."""
        x = self.norm(self.average(outputs))
        if self.across_channels:
            x = x.transpose(1, 2)
        y = self.mixer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.dropout(y.transpose(1, 2) if self.across_channels else y)


class TSM2Network(nn.Module):
    """Channels are variates, then past covariates, future covariates and the static channel; tokens are patches.

    Nothing is learned per variate, so a network takes windows with any number of them. Patches end at the last row;
    where the first one begins before the window, the first value is repeated.

    Parameters
    ----------
    sizes : InputSizes
    d_model, d_state, d_conv, expand, n_layers, patch_len, stride, dropout, normalize
        As in `TSM2Forecaster`.
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
        patch_len: int,
        stride: int,
        dropout: float,
        normalize: bool,
    ):
        super().__init__()
        lookback, horizon = sizes.lookback, sizes.horizon
        self.n_past, self.patch_len, self.stride = sizes.n_past, patch_len, stride
        n_patches = -(-max(lookback - patch_len, 0) // stride) + 1
        self.n_repeated = (n_patches - 1) * stride + patch_len - lookback
        self.window_norm = WindowNorm() if normalize else None
        self.embedding = Linear(patch_len, d_model)
        self.future = Linear(lookback + horizon, lookback) if sizes.n_future else None
        self.static = Linear(sizes.n_static, d_model) if sizes.n_static else None
        self.missing = Linear(patch_len, d_model, bias=False) if sizes.has_gaps else None
        self.dropout = nn.Dropout(dropout)
        mamba: Any = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        self.mixers = nn.ModuleList()  # time and variate mixers in turn, in the order in which they run
        for i in range(2 * n_layers):
            mixer = BidirectionalMamba(**mamba, style="vim") if i % 2 else Mamba(**mamba, reverse=False)
            self.mixers.append(
                SelectiveMixer(i + 1, mixer, across_channels=i % 2 == 1, d_model=d_model, dropout=dropout)
            )
        self.average = WeightedAverage(2 * n_layers + 1)
        self.head = Head(n_patches * d_model, sizes)

    def forward(
        self, past: Tensor, future: Tensor | None = None, static: Tensor | None = None, missing: Tensor | None = None
    ) -> Tensor:
        """Map the inputs that `ssmseq.forecasting.tokens` describes to forecasts (B, V, H) or (B, V, H, Q).

        Without `missing` no value counts as missing.
        """
        if self.window_norm is None:
            return self._forecast(past, future, static, missing)
        variates, covariates = past.tensor_split([past.shape[1] - self.n_past], 1)
        variates, statistics = self.window_norm(variates)
        forecast = self._forecast(torch.cat([variates, covariates], 1), future, static, missing)
        return self.window_norm.inverse(forecast, statistics)

    def _forecast(self, past: Tensor, future: Tensor | None, static: Tensor | None, missing: Tensor | None) -> Tensor:
        outputs = [self._embed(past, future, static, missing)]
        for mixer in self.mixers:
            outputs.append(mixer(outputs))
        n_variates = past.shape[1] - self.n_past
        return self.head(self.average([y[:, :n_variates] for y in outputs]).flatten(2))

    def _embed(self, past: Tensor, future: Tensor | None, static: Tensor | None, missing: Tensor | None) -> Tensor:
        """Return the tokens (B, C, P, d_model) of all channels, variates first."""
        if self.future is not None:
            past = torch.cat([past, self.future(future)], 1)
        tokens = self.embedding(self._patches(past))
        if self.missing is not None and missing is not None:
            n_variates = missing.shape[1]
            marked = tokens[:, :n_variates] + self.missing(self._patches(missing))
            tokens = torch.cat([marked, tokens[:, n_variates:]], 1)
        if self.static is not None:
            channel = self.static(static)[:, None, None].expand(-1, 1, tokens.shape[2], -1)
            tokens = torch.cat([tokens, channel], 1)
        return self.dropout(tokens)

    def _patches(self, x: Tensor) -> Tensor:
        """Cut rows (B, C, L) into patches (B, C, P, patch_len)."""
        if self.n_repeated:
            x = torch.cat([x[..., :1].expand(*x.shape[:2], self.n_repeated), x], -1)
        return x.unfold(-1, self.patch_len, self.stride)

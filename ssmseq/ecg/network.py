"""The network of `ECGMambaClassifier`: a convolutional stem, an encoder that reads from both ends, pooling, a head.

Sources: the recipe of 1D-CNN-ECG-Mamba (Jiang et al., arXiv 2510.13046) and of the encoder that it takes from Vision
Mamba (Zhu et al., arXiv 2401.09417): two strided convolutions, learned absolute positions, a class token in the middle,
pre-norm residual blocks summed in float32, drop path that grows with depth. The `cnn` encoder is the residual network
of Wang et al., arXiv 1611.06455.

Differences: the directions of a block are added and not halved, which its linear map out can absorb; the stem has a
ReLU between its convolutions and no batch normalisation, on which descriptions of the recipe disagree; Wang's first
kernels have seven taps in place of eight, so that they are centred.
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ssmseq.nn.bidirectional import BidirectionalMamba
from ssmseq.nn.stack import ResidualStack

ENCODERS = ("vim", "add", "hydra", "cnn")
POOLINGS = ("mean", "max", "class_token")
STRIDED = ((14, 3, 2), (15, 4, 100))  # kernel, stride and padding, in samples and in outputs of the first
STRIDED_CHANNELS = 128
N_METADATA = 4  # age and whether it is known, sex and whether it is known
EPS = 1e-5


class Stem(nn.Module):
    """Convolutions that make tokens out of samples.

    Parameters
    ----------
    n_leads : int
    d_model : int
        Channels of a token.
    kind : {"dense", "strided"}
        One convolution, or the two of 1D-CNN-ECG-Mamba: one token for every 12 samples, and 48 for the padding.
    kernel, stride : int
        Of the dense stem, in samples; the kernel is odd.
    """

    def __init__(self, *, n_leads: int, d_model: int, kind: str, kernel: int, stride: int):
        super().__init__()
        if kind == "strided":
            self.sizes = STRIDED
            (k1, s1, p1), (k2, s2, p2) = STRIDED
            first = nn.Conv1d(n_leads, STRIDED_CHANNELS, k1, stride=s1, padding=p1)
            second = nn.Conv1d(STRIDED_CHANNELS, d_model, k2, stride=s2, padding=p2)
            self.convolutions = nn.Sequential(first, nn.ReLU(), second)
        else:
            self.sizes = ((kernel, stride, kernel // 2),)
            self.convolutions = nn.Sequential(nn.Conv1d(n_leads, d_model, kernel, stride=stride, padding=kernel // 2))

    def n_tokens(self, n_times):
        """Return how many tokens so many samples give, a number or a tensor of numbers; below one if too few."""
        for kernel, stride, padding in self.sizes:
            n_times = (n_times + 2 * padding - kernel) // stride + 1
        return n_times

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, leads, times) to tokens (B, M, d_model)."""
        return self.convolutions(x).transpose(1, 2)


class DropPath(nn.Module):
    """Leave out what a block adds, for each sample with this probability in training.

    References
    ----------
    Huang et al., "Deep networks with stochastic depth", arXiv 1603.09382.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class ResidualConvolutions(nn.Module):
    """Three convolutions with batch normalisation, and a way around them.

    References
    ----------
    Wang et al., "Time series classification from scratch with deep neural networks", arXiv 1611.06455.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i, kernel in enumerate((7, 5, 3)):
            convolution = nn.Conv1d(n_out if i else n_in, n_out, kernel, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm1d(n_out), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers[:-1])
        resized = [] if n_in == n_out else [nn.Conv1d(n_in, n_out, 1, bias=False)]
        self.shortcut = nn.Sequential(*resized, nn.BatchNorm1d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels in, L) to (B, channels out, L)."""
        return torch.relu(self.convolutions(x) + self.shortcut(x))


class ECGMambaNetwork(nn.Module):
    """Leads in, logits of labels out.

    Parameters
    ----------
    n_leads, n_times, n_labels : int
        Sizes of the signals, in samples, and of the output K.
    metadata : bool
        Whether `forward` is given age and sex.
    encoder : {"vim", "add", "hydra", "cnn"}
        `BidirectionalMamba` in that style, or residual convolutions, which take the leads themselves and no stem.
    stem, stem_kernel, stem_stride
        As `kind`, `kernel` and `stride` of `Stem`.
    d_model : int
        Channels of a token; of `cnn` those of the first block, and the others have twice as many.
    d_state, d_conv, expand : int
        Of the blocks.
    n_layers : int
        Blocks of the encoder.
    positions : bool
        Add a learned vector for each place of a token.
    pooling : {"mean", "max", "class_token"}
        What the head sees: the mean or the maximum of the tokens, without those of padding; or a learned token that
        stands in the middle of the others, at M // 2.
    dropout : float
        Share of channels zeroed in what each block adds, and before the head.
    drop_path : float
        Probability that a block is left out, of the last block; it grows linearly from 0 in the first.

    Raises
    ------
    ValueError
        If the signals are too short for one token.
    """

    def __init__(
        self,
        *,
        n_leads: int,
        n_times: int,
        n_labels: int,
        metadata: bool,
        encoder: str,
        stem: str,
        stem_kernel: int,
        stem_stride: int,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        n_layers: int,
        positions: bool,
        pooling: str,
        dropout: float,
        drop_path: float,
    ):
        super().__init__()
        self.pooling = pooling
        self.stem = self.class_token = self.positions = None
        width = d_model
        if encoder == "cnn":
            width = d_model if n_layers == 1 else 2 * d_model
            widths = [n_leads, d_model, *[width] * (n_layers - 1)]
            self.encoder = nn.Sequential(*(ResidualConvolutions(*pair) for pair in itertools.pairwise(widths)))
        else:
            self.stem = Stem(n_leads=n_leads, d_model=d_model, kind=stem, kernel=stem_kernel, stride=stem_stride)
            n_tokens = self.stem.n_tokens(n_times)
            if n_tokens < 1 or n_times + 2 * self.stem.sizes[0][2] < self.stem.sizes[0][0]:
                raise ValueError(
                    f"signals of {n_times} samples are too short for the {stem} stem: give longer ones, or set "
                    "stem='dense'"
                )
            if pooling == "class_token":
                self.class_token = _free_parameter(1, 1, d_model)
            if positions:
                self.positions = _free_parameter(1, n_tokens + (pooling == "class_token"), d_model)
            rates = iter(torch.linspace(0, drop_path, n_layers).tolist())
            sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
            self.encoder = ResidualStack(
                d_model=d_model,
                pattern="M" * n_layers,
                mixers={"M": lambda: nn.Sequential(BidirectionalMamba(**sizes, style=encoder), DropPath(next(rates)))},
                feed_forwards=None,
                eps=EPS,
                dropout=dropout,
                residual_in_fp32=True,
            )
        self.metadata = nn.Linear(N_METADATA, width) if metadata else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_labels)

    def forward(self, signal: Tensor, lead_mask: Tensor, n_valid: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Map signals to logits.

        Parameters
        ----------
        signal : Tensor (B, leads, times)
        lead_mask : Tensor (B, leads)
            1 for leads that count; what stands in the others is taken as zero.
        n_valid : Tensor (B,)
            Samples before the padding at the end, which is taken as zero.
        metadata : Tensor (B, 4), optional
            Age in centuries and sex (1 for F, -1 for M), each followed by 1 if it is known; 0 if not.

        Returns
        -------
        Tensor (B, K)
        """
        features = self._pool(self.tokens(signal, lead_mask, n_valid), n_valid)
        if self.metadata is not None:
            features = features + self.metadata(metadata)
        return self.head(self.dropout(features))

    def tokens(self, signal: Tensor, lead_mask: Tensor, n_valid: Tensor) -> Tensor:
        """Map signals to what the encoder makes of their tokens, (B, M, D); the class token is one of them."""
        padded = torch.arange(signal.shape[-1], device=signal.device) >= n_valid[:, None]
        hidden = padded[:, None] | (lead_mask[..., None] == 0)
        x = signal.masked_fill(hidden, 0)
        if self.stem is None:
            return self.encoder(x).transpose(1, 2)
        tokens = self.stem(x)
        if self.class_token is not None:
            middle = tokens.shape[1] // 2
            token = self.class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
            tokens = torch.cat([tokens[:, :middle], token, tokens[:, middle:]], 1)
        if self.positions is not None:
            tokens = tokens + self.positions
        return self.encoder(tokens)

    def _pool(self, tokens: Tensor, n_valid: Tensor) -> Tensor:
        if self.pooling == "class_token":
            return tokens[:, (tokens.shape[1] - 1) // 2]
        n_tokens = n_valid if self.stem is None else self.stem.n_tokens(n_valid)
        return pool_tokens(tokens, n_tokens, self.pooling)


class Ensemble(nn.Module):
    """Networks of one kind whose logits are averaged.

    References
    ----------
    Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles", arXiv
    1612.01474 (where it is the probabilities that are averaged).
    """

    def __init__(self, members: Iterable[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Map what the networks take to the mean of their logits (B, K)."""
        return torch.stack([member(*inputs, **named) for member in self.members]).mean(0)


def pool_tokens(tokens: Tensor, n_tokens: Tensor, pooling: str) -> Tensor:
    """Return the mean or maximum (B, D) of the first `n_tokens` (B,) tokens of each sample, of one at least."""
    n_tokens = n_tokens.clamp(1, tokens.shape[1])
    beyond = (torch.arange(tokens.shape[1], device=tokens.device) >= n_tokens[:, None]).unsqueeze(-1)
    if pooling == "max":
        return tokens.masked_fill(beyond, -torch.inf).amax(1)
    return tokens.masked_fill(beyond, 0).sum(1) / n_tokens[:, None]


def _free_parameter(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter

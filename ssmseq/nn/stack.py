"""A residual stack of mixers and feed-forward layers in any order: the trunk of the causal models.

Layers normalise before, as in mamba_ssm's `Block`, and weights start as its `_init_weights` sets them. Differences: one
string names the mixer of each layer, so that hybrids need no index lists; and sums are kept apart from the norms.
"""

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ssmseq.nn.feed_forward import MixtureOfExperts
from ssmseq.nn.norm import RMSNorm

Builder = Callable[[], nn.Module]


class ResidualLayer(nn.Module):
    """One layer of the stack: ``x + mixer(norm(x))``, then ``x + feed_forward(norm(x))`` where there is one.

    Parameters
    ----------
    d_model : int
    mixer : Module
        Maps (B, L, d_model) to (B, L, d_model); its forward takes a `cache` if it can continue a sequence.
    feed_forward : Module or None
        Maps (B, L, d_model) to (B, L, d_model).
    eps : float
        Of the norms.
    dropout : float
        Share of channels zeroed in what is added to x.
    """

    def __init__(self, *, d_model: int, mixer: nn.Module, feed_forward: nn.Module | None, eps: float, dropout: float):
        super().__init__()
        self.norm = RMSNorm(d_model, eps)
        self.mixer = mixer
        self.feed_forward_norm = None if feed_forward is None else RMSNorm(d_model, eps)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)
        self.takes_cache = "cache" in inspect.signature(mixer.forward).parameters

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model), in the dtype of `x`; a cache goes on to the mixer."""
        h = _normalise(self.norm, x)
        h = self.mixer(h) if cache is None else self.mixer(h, cache=cache)
        x = x + self.dropout(h).to(x.dtype)
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x = x + self.dropout(self.feed_forward(_normalise(self.feed_forward_norm, x))).to(x.dtype)
        return x


class ResidualStack(nn.Module):
    """Layers of mixers and feed-forward nets around one residual stream, and a norm at its end.

    Parameters
    ----------
    d_model : int
        Channels of the residual stream.
    pattern : str
        One letter per layer, such as "MMMAMMMM".
    mixers : mapping of str to function
        Letter to a function without arguments that builds the mixer of one layer.
    feed_forwards : function, mapping of str to function, or None
        Builds the feed-forward net of each layer, or of the layers with that letter; None for layers without.
    eps : float
        Of the norms.
    dropout : float
        Share of channels zeroed in what each mixer and feed-forward net adds.
    residual_in_fp32 : bool
        Sum in float32 at least, whatever the dtype of the weights.

    Raises
    ------
    ValueError
        If the pattern is empty, or holds a letter that `mixers` does not know; or `feed_forwards` one that it does not.

    References
    ----------
    Gu and Dao, "Mamba", arXiv 2312.00752; Lieber et al., "Jamba: a hybrid transformer-Mamba language model",
    arXiv 2403.19887.

    Examples
    --------
    >>> from ssmseq.nn.attention import GroupedQueryAttention
    >>> from ssmseq.nn.mamba import Mamba
    >>> stack = ResidualStack(
    ...     d_model=16,
    ...     pattern="MAM",
    ...     mixers={
    ...         "M": lambda: Mamba(d_model=16, d_state=4, d_conv=4, expand=2, reverse=False),
    ...         "A": lambda: GroupedQueryAttention(d_model=16, n_heads=4, n_kv_heads=2),
    ...     },
    ...     feed_forwards=None,
    ...     eps=1e-5,
    ...     dropout=0.0,
    ...     residual_in_fp32=True,
    ... )
    >>> caches = stack.empty_caches()
    >>> for token in torch.zeros(5, 1, 1, 16):
    ...     y = stack(token, caches)
    >>> y.shape
    torch.Size([1, 1, 16])
    """

    def __init__(
        self,
        *,
        d_model: int,
        pattern: str,
        mixers: Mapping[str, Builder],
        feed_forwards: Builder | Mapping[str, Builder] | None,
        eps: float,
        dropout: float,
        residual_in_fp32: bool,
    ):
        super().__init__()
        by_letter = _by_letter(pattern, mixers, feed_forwards)
        self.pattern, self.residual_in_fp32 = pattern, residual_in_fp32
        self.layers = nn.ModuleList()
        for letter in pattern:
            feed_forward = by_letter[letter]() if letter in by_letter else None
            self.layers.append(
                ResidualLayer(
                    d_model=d_model, mixer=mixers[letter](), feed_forward=feed_forward, eps=eps, dropout=dropout
                )
            )
        self.norm_f = RMSNorm(d_model, eps)
        self._initialise(len(pattern) + sum(letter in by_letter for letter in pattern))

    def _initialise(self, n_additions: int) -> None:
        """Zero the biases, and keep the variance of the residual stream from growing with its `n_additions`."""
        with torch.no_grad():
            for module in self.modules():
                bias = module.bias if isinstance(module, nn.Linear) else None
                if bias is not None and not getattr(bias, "_no_reinit", False):
                    bias.zero_()
            for name, parameter in self.named_parameters():
                if name.endswith((".out_proj.weight", ".fc2.weight")):
                    parameter.div_(math.sqrt(n_additions))

    def empty_caches(self) -> list[dict[str, Tensor]]:
        """Return the caches of sequences that have not begun, one per layer."""
        return [{} for _ in self.layers]

    def forward(self, x: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model).

        Parameters
        ----------
        x : Tensor (B, L, d_model)
        caches : list of dict, optional
            State of the sequences that x continues, one per layer, from `empty_caches` at their start. Advanced by L
            tokens.

        Returns
        -------
        Tensor (B, L, d_model)
            In the dtype of the last norm's weight.

        Raises
        ------
        ValueError
            If the caches are not one per layer, or a mixer cannot continue a sequence.
        """
        if caches is not None:
            self._check_caches(caches)
        if self.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        for layer, cache in zip(self.layers, caches or [None] * len(self.layers), strict=True):
            x = layer(x, cache)
        return _normalise(self.norm_f, x)

    def auxiliary_loss(self) -> Tensor:
        """Return the sum of the load-balancing losses of the last forward in training; zero without experts."""
        losses = [m.auxiliary_loss for m in self.modules() if isinstance(m, MixtureOfExperts)]
        return sum((x for x in losses if x is not None), start=self.norm_f.weight.new_zeros(()))

    def _check_caches(self, caches: list[dict[str, Tensor]]) -> None:
        if len(caches) != len(self.layers):
            raise ValueError(
                f"caches must hold one dict for each of the {len(self.layers)} layers, got {len(caches)}: "
                "start from empty_caches()"
            )
        for i, layer in enumerate(self.layers):
            if not layer.takes_cache:
                raise ValueError(
                    f"layer {i} ('{self.pattern[i]}', {type(layer.mixer).__name__}) takes no cache, because it reads "
                    "tokens from both ends: leave caches out, or build the stack from causal mixers"
                )


def _normalise(norm: RMSNorm, x: Tensor) -> Tensor:
    """Leave the dtype of the residual stream for that of the weights."""
    return norm(x).to(norm.weight.dtype)


def _by_letter(
    pattern: str, mixers: Mapping[str, Builder], feed_forwards: Builder | Mapping[str, Builder] | None
) -> Mapping[str, Builder]:
    """Check the letters and return the builder of the feed-forward net for each letter that has one."""
    known = ", ".join(map(repr, sorted(mixers))) or "none"
    if not pattern:
        raise ValueError(f"pattern must name the mixer of at least one layer; known letters: {known}")
    for i, letter in enumerate(pattern):
        if letter not in mixers:
            raise ValueError(f"pattern {pattern!r} has an unknown letter {letter!r} at layer {i}; known: {known}")
    if feed_forwards is None:
        return {}
    if not isinstance(feed_forwards, Mapping):
        return dict.fromkeys(mixers, feed_forwards)
    for letter in feed_forwards:
        if letter not in mixers:
            raise ValueError(f"feed_forwards has an unknown letter {letter!r}; known: {known}")
    return feed_forwards

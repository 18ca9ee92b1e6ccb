"""A language model of any mixers: embedding, residual stack and a linear head, as mamba_ssm's `MambaLMHeadModel`.

Difference: with tied embeddings there is no second tensor, so that a state dict holds each weight once.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssmseq.nn.linear import Linear, linear
from ssmseq.nn.stack import Builder, ResidualStack

EMBEDDING_STD = 0.02  # of mamba_ssm's initialisation


class LanguageModelNetwork(nn.Module):
    """Predict the token after each token of a sequence.

    Parameters
    ----------
    vocab_size : int
        Number of tokens V.
    d_model : int
        Channels D of the residual stream.
    pattern : str
        One letter per layer, such as "MMMAMMMM"; see `ResidualStack`.
    mixers : mapping of str to function
        Letter to a function without arguments that builds the mixer of one layer.
    feed_forwards : function, mapping of str to function, or None
        Builds the feed-forward net of each layer, or of the layers with that letter; None for layers without.
    eps : float
        Of the norms.
    residual_in_fp32 : bool
        Sum in float32 at least, whatever the dtype of the weights.
    tie_embeddings : bool
        Let the head use the weights of the embedding; `lm_head` is None then.
    dropout : float
        Share of channels zeroed in what each mixer and feed-forward net adds.

    Raises
    ------
    ValueError
        If `pattern` and the builders do not fit; see `ResidualStack`.

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.

    Examples
    --------
    >>> from ssmseq.nn.mamba import Mamba
    >>> network = LanguageModelNetwork(
    ...     vocab_size=6,
    ...     d_model=16,
    ...     pattern="MM",
    ...     mixers={"M": lambda: Mamba(d_model=16, d_state=4, d_conv=4, expand=2, reverse=False)},
    ...     feed_forwards=None,
    ...     eps=1e-5,
    ...     residual_in_fp32=True,
    ...     tie_embeddings=True,
    ... )
    >>> network.generate(torch.tensor([[2, 3, 1]]), max_new_tokens=4).shape
    torch.Size([1, 7])
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        pattern: str,
        mixers: Mapping[str, Builder],
        feed_forwards: Builder | Mapping[str, Builder] | None,
        eps: float,
        residual_in_fp32: bool,
        tie_embeddings: bool,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.backbone = ResidualStack(
            d_model=d_model,
            pattern=pattern,
            mixers=mixers,
            feed_forwards=feed_forwards,
            eps=eps,
            dropout=dropout,
            residual_in_fp32=residual_in_fp32,
        )
        self.lm_head = None if tie_embeddings else Linear(d_model, vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """Weight of the head (V, D)."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def empty_caches(self) -> list[dict[str, Tensor]]:
        """Return the caches of sequences that have not begun, one per layer."""
        return self.backbone.empty_caches()

    def hidden(self, tokens: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map tokens (B, L) to what the head reads (B, L, D); arguments as `forward`."""
        return self.backbone(self.embedding(tokens), caches)

    def forward(self, tokens: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map tokens (B, L) to logits (B, L, V).

        Parameters
        ----------
        tokens : Tensor (B, L) of int64
        caches : list of dict, optional
            State of the sequences that the tokens continue, one per layer, from `empty_caches` at their start.
            Advanced by L tokens.

        Returns
        -------
        Tensor (B, L, V)
            Row t scores the token at t + 1.

        Raises
        ------
        ValueError
            If the caches are not one per layer, or a mixer cannot continue a sequence.
        """
        return linear(self.hidden(tokens, caches), self.head_weight)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue sequences token by token; the time per token does not grow unless there are attention layers.

        Parameters
        ----------
        tokens : Tensor (B, L) of int64
            At least one token per sequence.
        max_new_tokens : int
            How many tokens to add.
        temperature : float
            Zero takes the most probable token; else one is drawn from ``softmax(logits / temperature)``.
        generator : torch.Generator, optional
            Source of the draws, on the device of the tokens; None takes torch's global one.

        Returns
        -------
        Tensor (B, L + max_new_tokens) of int64
            The given tokens and the new ones, made without dropout.

        Raises
        ------
        ValueError
            If there is no token to continue, `max_new_tokens` or `temperature` is negative, or a mixer cannot continue
            a sequence.
        """
        if tokens.dim() != 2 or not tokens.shape[1]:
            raise ValueError(f"tokens must be (B, L) with at least one token to continue, got {tuple(tokens.shape)}")
        if max_new_tokens < 0 or not temperature >= 0:
            raise ValueError(
                f"max_new_tokens and temperature must not be negative, got {max_new_tokens} and {temperature}"
            )
        training = self.training
        self.eval()
        try:
            caches, found = self.empty_caches(), [tokens]
            for _ in range(max_new_tokens):
                last = self.hidden(found[-1], caches)[:, -1]
                found.append(_choose(linear(last, self.head_weight), temperature, generator))
        finally:
            self.train(training)
        return torch.cat(found, 1)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Pick one token per row of logits (B, V); returns (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # Shifted before it is scaled: a small temperature would else overflow.
    scaled = (logits.double() - logits.double().amax(-1, keepdim=True)) / temperature
    return torch.multinomial(scaled.softmax(-1), 1, generator=generator)

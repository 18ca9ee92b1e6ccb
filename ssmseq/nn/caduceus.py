"""Caduceus (Schiff et al., arXiv 2403.03234): a bidirectional language model of DNA, plain or one with both strands.

The plain one ("Ph") is the library's stack of bidirectional Mamba blocks. The other ("PS") runs the same stack over a
sequence and its reverse complement, so that the logits of the reverse complement are those of the sequence, turned
around and complemented. Difference: upstream keeps the second strand reversed in time and channels beside the first;
here the strands share the batch axis, each in its own direction, and are joined at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmseq.nn.bidirectional import BidirectionalMamba
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.linear import linear


class CaduceusNetwork(LanguageModelNetwork):
    """Score every token of a sequence from the tokens on both sides of it, for sequences with masked tokens.

    Parameters
    ----------
    vocab_size : int
        Number of tokens V.
    d_model : int
        Channels D of the residual stream of one strand.
    n_layers : int
    d_state, d_conv, expand : int
        Of the bidirectional Mamba blocks; see `BidirectionalMamba`.
    eps : float
        Of the norms.
    residual_in_fp32 : bool
        Sum in float32 at least, whatever the dtype of the weights.
    tie_embeddings : bool
        Let the head use the weights of the embedding.
    complement : sequence of int, or None
        Token that pairs with each token on the other strand, V entries: both strands are read. None reads one.
    swap_strands : bool
        With `complement`, let the strands change places before every block, and with them the direction of time and
        channels. So do upstream's fused norms, with which its models were trained; its other code path does not. The
        weights of one are wrong for the other, though both keep the symmetry of the strands.

    Raises
    ------
    ValueError
        If `complement` does not pair the V tokens, or there is no layer.

    References
    ----------
    Schiff et al., "Caduceus: bi-directional equivariant long-range DNA sequence modeling", arXiv 2403.03234.
    """

    complement: Tensor | None

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        d_state: int,
        d_conv: int,
        expand: int,
        eps: float,
        residual_in_fp32: bool,
        tie_embeddings: bool,
        complement: Sequence[int] | None,
        swap_strands: bool,
    ):
        def mixer() -> BidirectionalMamba:
            return BidirectionalMamba(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, style="caduceus")

        super().__init__(
            vocab_size=vocab_size,
            d_model=d_model,
            pattern="B" * n_layers,
            mixers={"B": mixer},
            feed_forwards=None,
            eps=eps,
            residual_in_fp32=residual_in_fp32,
            tie_embeddings=tie_embeddings,
        )
        self.swap_strands = swap_strands
        if complement is not None:
            _check_complement(complement, vocab_size)
        # A part of the structure, as the sizes are: not among the weights, and real where those are on "meta".
        table = None if complement is None else torch.tensor(list(complement), device="cpu")
        self.register_buffer("complement", table, persistent=False)

    def hidden(self, tokens: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map tokens (B, L) to what the head reads.

        Parameters
        ----------
        tokens : Tensor (B, L) of int64
        caches : None
            There are none for a network that reads from both ends.

        Returns
        -------
        Tensor (B, L, D), or (B, L, 2 D) with `complement`
            The second half belongs to the other strand; its channels are in reversed order, so that the reverse
            complement of the tokens turns the whole around in time and channels.

        Raises
        ------
        ValueError
            If caches are given.
        """
        if caches is not None:
            raise ValueError(
                "Caduceus reads tokens from both ends: it scores whole sequences, and can neither continue one from "
                "caches nor generate"
            )
        if self.complement is None:
            return super().hidden(tokens)
        x = self.embedding(torch.cat([tokens, self.complement[tokens.flip(1)]]))  # the strands, one after the other
        if self.backbone.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        for layer in self.backbone.layers:
            x = layer(_swap(x) if self.swap_strands else x)
        norm = self.backbone.norm_f
        first, second = norm(x).to(norm.weight.dtype).chunk(2)
        return torch.cat([first, second.flip(1, 2)], -1)

    def forward(self, tokens: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map tokens (B, L) to logits (B, L, V).

        Parameters
        ----------
        tokens : Tensor (B, L) of int64
        caches : None
            There are none for a network that reads from both ends.

        Returns
        -------
        Tensor (B, L, V)
            Row t scores the token at t.

        Raises
        ------
        ValueError
            If caches are given.
        """
        if self.complement is None:
            return super().forward(tokens, caches)
        first, second = self.hidden(tokens, caches).chunk(2, dim=-1)
        other = linear(second.flip(-1), self.head_weight)
        return linear(first, self.head_weight) + other[..., self.complement]


def _swap(x: Tensor) -> Tensor:
    """Let the strands (2 B, L, D) change places, turned around in time and channels."""
    return x.unflatten(0, (2, -1)).flip(0, 2, 3).flatten(0, 1)


def _check_complement(complement: Sequence[int], vocab_size: int) -> None:
    pairs = list(complement)
    whole = all(isinstance(i, int) for i in pairs) and sorted(pairs) == list(range(vocab_size))
    if not whole or any(pairs[pairs[i]] != i for i in range(vocab_size)):
        raise ValueError(
            f"complement must pair the {vocab_size} tokens, so that the partner of a token's partner is the token, "
            f"got {pairs}"
        )

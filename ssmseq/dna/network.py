"""The network of `DNALanguageModel`: any core of the library's language models, read on one strand or on both.

It gives scores of the four bases alone: a base is never anything else, so that the probabilities are those of a code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ssmseq.dna.alphabet import COMPLEMENT, VOCAB_SIZE, A, T
from ssmseq.nn.attention import GroupedQueryAttention
from ssmseq.nn.bidirectional import BidirectionalMamba
from ssmseq.nn.caduceus import CaduceusNetwork
from ssmseq.nn.feed_forward import GatedMLP
from ssmseq.nn.language_model import LanguageModelNetwork
from ssmseq.nn.linear import linear
from ssmseq.nn.mamba import Mamba
from ssmseq.nn.mamba2 import Mamba2
from ssmseq.nn.stack import Builder

EPS = 1e-5  # of the norms, as in mamba_ssm


class DNANetwork(nn.Module):
    """Map tokens to scores of the bases: of the next ones, or of those that stand behind masks.

    Parameters
    ----------
    core : LanguageModelNetwork
        With the tokens of `ssmseq.dna.alphabet`, and after them one token for each label.
    equivariant : bool
        Read the other strand with the same weights, and sum: the scores of the reverse complement are then those of
        the sequence, turned around and complemented. Only for a core that reads from both ends.

    References
    ----------
    Schiff et al., "Caduceus: bi-directional equivariant long-range DNA sequence modeling", arXiv 2403.03234.
    """

    complement: Tensor

    def __init__(self, core: LanguageModelNetwork, *, equivariant: bool):
        super().__init__()
        self.core, self.equivariant = core, equivariant
        table = torch.arange(core.embedding.num_embeddings)
        table[:VOCAB_SIZE] = torch.from_numpy(COMPLEMENT)
        self.register_buffer("complement", table, persistent=False)

    @property
    def d_hidden(self) -> int:
        """Channels of `hidden`."""
        both = self.equivariant or getattr(self.core, "complement", None) is not None
        return self.core.embedding.embedding_dim * (2 if both else 1)

    def empty_caches(self) -> list[dict[str, Tensor]]:
        """Return the caches of sequences that have not begun, one per layer."""
        return self.core.empty_caches()

    def hidden(self, tokens: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map tokens (B, L) to what the head reads (B, L, d_hidden); with caches as `forward`.

        Where both strands are read, the second half of the channels belongs to the other one, in reversed order: the
        reverse complement turns the whole around in time and channels.
        """
        first = self.core.hidden(tokens, caches)
        if not self.equivariant:
            return first
        return torch.cat([first, self.core.hidden(self.other_strand(tokens)).flip(1, 2)], -1)

    def forward(self, tokens: Tensor, caches: list[dict[str, Tensor]] | None = None) -> Tensor:
        """Map tokens (B, L) to scores of A, C, G and T.

        Parameters
        ----------
        tokens : Tensor (B, L) of int64
        caches : list of dict, optional
            State of the sequences that the tokens continue, from `empty_caches` at their start. Advanced by L tokens.

        Returns
        -------
        Tensor (B, L, 4)
            Row t scores the base at t + 1 in a causal network, else the one at t.
        """
        return self.score_hidden(self.hidden(tokens, caches))

    def score_hidden(self, hidden: Tensor) -> Tensor:
        """Map what `hidden` returned to scores (..., 4)."""
        bases = self.core.head_weight[A : T + 1]
        if hidden.shape[-1] == bases.shape[1]:
            return linear(hidden, bases)
        first, second = hidden.chunk(2, dim=-1)
        return linear(first, bases) + linear(second.flip(-1), bases).flip(-1)  # A and T, C and G change places

    def other_strand(self, tokens: Tensor) -> Tensor:
        """Return the tokens (B, L) of the other strand, in its own direction."""
        return self.complement[tokens.flip(1)]


def build_network(
    *,
    architecture: str,
    bidirectional: bool,
    equivariant: bool,
    d_model: int,
    n_layers: int,
    d_state: int,
    d_conv: int,
    expand: int,
    head_dim: int,
    d_ff: int,
    attention_period: int,
    attention_offset: int,
    n_heads: int,
    n_kv_heads: int,
    dropout: float,
    n_labels: int,
    swap_strands: bool = False,
) -> DNANetwork:
    """Build a network with fresh weights.

    Parameters
    ----------
    architecture : {"mamba", "mamba2", "hybrid"}
        "hybrid" has attention in layer `attention_offset` of every `attention_period`, Mamba-2 in the others.
    bidirectional : bool
        Read from both ends: Caduceus' blocks of Mamba, or Hydra's of Mamba-2, and attention to all tokens.
    equivariant : bool
        See `DNANetwork`.
    d_model, n_layers, d_state, d_conv, expand, head_dim : int
        Of the residual stream and the blocks; `head_dim` is for causal Mamba-2.
    d_ff : int
        Hidden channels of the gated feed-forward net in each layer; 0 for none.
    attention_period, attention_offset, n_heads, n_kv_heads : int
        Of the attention layers.
    dropout : float
        Share of channels zeroed in what each mixer and feed-forward net adds.
    n_labels : int
        Tokens for labels, after those of the alphabet.
    swap_strands : bool
        Read both strands as the published Caduceus-PS does; see `CaduceusNetwork`.

    Returns
    -------
    DNANetwork
    """
    if swap_strands:
        core = CaduceusNetwork(
            vocab_size=VOCAB_SIZE,
            d_model=d_model,
            n_layers=n_layers,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            eps=EPS,
            residual_in_fp32=True,
            tie_embeddings=True,
            complement=COMPLEMENT.tolist(),
            swap_strands=True,
        )
        return DNANetwork(core, equivariant=False)
    sizes: Any = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}

    def mixer() -> nn.Module:
        if bidirectional:
            return BidirectionalMamba(**sizes, style="caduceus" if architecture == "mamba" else "hydra")
        if architecture == "mamba":
            return Mamba(**sizes, reverse=False)
        return Mamba2(**sizes, head_dim=head_dim, n_groups=1)

    def attention() -> nn.Module:
        return GroupedQueryAttention(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, causal=not bidirectional)

    mixers: dict[str, Builder] = {"M": mixer, "A": attention}
    attends = [architecture == "hybrid" and i % attention_period == attention_offset for i in range(n_layers)]
    core = LanguageModelNetwork(
        vocab_size=VOCAB_SIZE + n_labels,
        d_model=d_model,
        pattern="".join("A" if here else "M" for here in attends),
        mixers=mixers,
        feed_forwards=(lambda: GatedMLP(d_model=d_model, d_ff=d_ff, bias=False)) if d_ff else None,
        eps=EPS,
        residual_in_fp32=True,
        tie_embeddings=True,
        dropout=dropout,
    )
    return DNANetwork(core, equivariant=equivariant)


def reads_both_ways(core: LanguageModelNetwork) -> bool:
    """Whether a core scores the tokens that it is given, rather than those that follow them."""
    causal = all(layer.takes_cache and getattr(layer.mixer, "causal", True) for layer in core.backbone.layers)
    return isinstance(core, CaduceusNetwork) or not causal

"""Grouped-query attention without positional encoding, on torch's fused attention.

In a hybrid of Mamba and attention layers the recurrent layers carry the order of the tokens, so keys and queries hold
no positions. Parameters have the layout of mamba_ssm's `MHA`: `in_proj` gives queries, keys and values in this order.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.nn.linear import Linear

QUERIES_AT_ONCE = 1024  # of a chunk with a past, whose mask takes a float for each query and key


class GroupedQueryAttention(nn.Module):
    """Softmax attention in which groups of query heads share one head of keys and values.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    n_heads : int
        Heads of queries.
    n_kv_heads : int
        Heads of keys and values; query head h reads head ``h // (n_heads / n_kv_heads)``. Equal to `n_heads` it is
        multi-head attention, 1 is multi-query attention.
    head_dim : int or None
        Channels of a head; None takes ``d_model / n_heads``.
    bias : bool
        Give the projections in and out a bias.
    causal : bool
        Let a token see itself and the tokens before it alone.

    Raises
    ------
    ValueError
        If `n_kv_heads` does not divide `n_heads`, or without `head_dim` `n_heads` does not divide `d_model`.

    References
    ----------
    Ainslie et al., "GQA: training generalized multi-query transformer models from multi-head checkpoints",
    arXiv 2305.13245.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int | None = None,
        bias: bool = False,
        causal: bool = True,
    ):
        super().__init__()
        if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads must divide n_heads, got n_kv_heads={n_kv_heads} and n_heads={n_heads}")
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide d_model={d_model}; else give head_dim")
        self.n_heads, self.n_kv_heads, self.causal = n_heads, n_kv_heads, causal
        self.head_dim = d_model // n_heads if head_dim is None else head_dim
        self.in_proj = Linear(d_model, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=bias)
        self.out_proj = Linear(n_heads * self.head_dim, d_model, bias=bias)

    def forward(self, x: Tensor, cache: dict[str, Tensor] | None = None, seq_idx: Tensor | None = None) -> Tensor:
        """Map (B, L, d_model) to (B, L, d_model).

        Parameters
        ----------
        x : Tensor (B, L, d_model)
        cache : dict of str to Tensor, optional
            Past of the sequences that x continues, empty at their start: "keys" and "values"
            (B, n_kv_heads, tokens so far, head_dim). Lengthened by L tokens.
        seq_idx : Tensor (B, L) of integers, optional
            Numbers the sequences packed into one row: a new one begins wherever the number changes, and no token sees
            another sequence. Takes a mask of (B, L, L).

        Returns
        -------
        Tensor (B, L, d_model)

        Raises
        ------
        ValueError
            If attention that is not causal is given a cache, if `seq_idx` comes with one, or has another shape.
        """
        self._check(x, cache, seq_idx)
        heads = self.in_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        queries, keys, values = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=1)
        if cache is not None:
            if cache:
                keys, values = torch.cat([cache["keys"], keys], 2), torch.cat([cache["values"], values], 2)
            cache["keys"], cache["values"] = keys, values
        if keys.shape[2] == queries.shape[2]:
            y = self._attend(queries, keys, values, self._mask(seq_idx))
        else:
            y = self._continue(queries, keys, values)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=self.causal and mask is None and queries.shape[2] > 1,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )

    def _continue(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from the last tokens of longer sequences, some at a time, each part to what is before its end."""
        parts, seen = [], keys.shape[2] - queries.shape[2]
        for part in queries.split(QUERIES_AT_ONCE, 2):
            seen, length = seen + part.shape[2], part.shape[2]
            mask = None
            if length > 1:  # torch's is_causal aligns the first query with the first key; here the last ones are one
                mask = torch.ones(length, seen, dtype=torch.bool, device=keys.device).tril(seen - length)
            parts.append(self._attend(part, keys[:, :, :seen], values[:, :, :seen], mask))
        return torch.cat(parts, 2)

    def _mask(self, seq_idx: Tensor | None) -> Tensor | None:
        """Return which tokens of packed sequences see each other; None if there is one sequence to a row."""
        if seq_idx is None:
            return None
        number = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1), (1, 0))  # a number may come back later in the row
        same = (number[:, :, None] == number[:, None, :]).unsqueeze(1)
        return same.tril() if self.causal else same

    def _check(self, x: Tensor, cache: dict[str, Tensor] | None, seq_idx: Tensor | None) -> None:
        if cache is not None and not self.causal:
            raise ValueError(
                "attention with causal=False sees the tokens ahead and cannot continue a sequence from a cache: "
                "leave the cache out, or build it with causal=True"
            )
        if cache is not None and seq_idx is not None:
            raise ValueError("seq_idx packs whole sequences into a row and cannot go with a cache: leave one out")
        if seq_idx is not None and seq_idx.shape != x.shape[:2]:
            raise ValueError(
                f"seq_idx must be {tuple(x.shape[:2])} to fit x {tuple(x.shape)}, got {tuple(seq_idx.shape)}"
            )

"""Feed-forward layers: a gated one, and a mixture of them of which each token visits one."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmseq.nn.linear import Linear


class GatedMLP(nn.Module):
    """SwiGLU: ``fc2(value * silu(gate))``, where `fc1` gives value and gate.

    Names and the order of the halves are those of mamba_ssm's `GatedMLP`, which rounds `d_ff` up to a multiple of 128;
    here it is taken as given.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_ff : int
        Hidden channels.
    bias : bool

    References
    ----------
    Shazeer, "GLU variants improve transformer", arXiv 2002.05202.
    """

    def __init__(self, *, d_model: int, d_ff: int, bias: bool):
        super().__init__()
        self.fc1 = Linear(d_model, 2 * d_ff, bias=bias)
        self.fc2 = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


class MixtureOfExperts(nn.Module):
    r"""A router sends each token to one of several gated feed-forward layers and scales what comes back.

    The output of a token is that of its most probable expert times the router's probability of it. In training the
    layer keeps the load-balancing loss

    .. math:: n \sum_i f_i P_i

    of the share :math:`f_i` of tokens routed to expert i and its mean probability :math:`P_i`. It is 1 where either of
    them is even, and n where all tokens go to one expert with certainty.

    Parameters
    ----------
    d_model : int
        Channels in and out.
    d_ff : int
        Hidden channels of each expert.
    n_experts : int
    capacity_factor : float or None
        In training an expert takes ``ceil(capacity_factor * tokens / n_experts)`` tokens, counted over the batch in
        order; the output of tokens beyond is zero, so that around the layer the residual alone passes. None sets no
        limit. In evaluation there is none either: a token's output must depend neither on the rest of its batch nor on
        how its sequence is split into chunks.

    Attributes
    ----------
    auxiliary_loss : Tensor () or None
        Load-balancing loss of the last forward in training, with gradient; None after one in evaluation.

    Raises
    ------
    ValueError
        If there is no expert, or the capacity is not positive.

    References
    ----------
    Fedus, Zoph and Shazeer, "Switch transformers", arXiv 2101.03961; Pioro et al., "MoE-Mamba", arXiv 2401.04081.
    """

    def __init__(self, *, d_model: int, d_ff: int, n_experts: int, capacity_factor: float | None):
        super().__init__()
        if n_experts < 1:
            raise ValueError(f"n_experts must be at least 1, got {n_experts}")
        if capacity_factor is not None and not capacity_factor > 0:
            raise ValueError(f"capacity_factor must be positive, or None for no limit, got {capacity_factor}")
        self.n_experts, self.capacity_factor = n_experts, capacity_factor
        self.router = Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList([GatedMLP(d_model=d_model, d_ff=d_ff, bias=False) for _ in range(n_experts)])
        self.auxiliary_loss: Tensor | None = None

    def __getstate__(self) -> dict:
        # A loss with a graph behind it can be neither copied nor pickled.
        return self.__dict__ | {"auxiliary_loss": None}

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to (..., d_model)."""
        tokens = x.reshape(-1, x.shape[-1])
        probabilities = self._route(tokens)
        probability, chosen = probabilities.max(-1)
        self.auxiliary_loss = self._balance(probabilities, chosen) if self.training else None
        capacity = self._capacity(len(tokens))
        rows, outputs = [], []
        for i, expert in enumerate(self.experts):  # an idle one too: its gradient is zero, not missing
            mine = (chosen == i).nonzero().squeeze(1)[:capacity]
            rows.append(mine)
            outputs.append((expert(tokens[mine]) * probability[mine, None]).to(x.dtype))
        return torch.zeros_like(tokens).index_copy(0, torch.cat(rows), torch.cat(outputs)).view_as(x)

    def _route(self, tokens: Tensor) -> Tensor:
        """Return the probability of each expert (tokens, n_experts), in float32 at least also under autocast."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(tokens.to(dtype), self.router.weight.to(dtype)).softmax(-1)

    def _balance(self, probabilities: Tensor, chosen: Tensor) -> Tensor:
        share = torch.bincount(chosen, minlength=self.n_experts).to(probabilities.dtype) / len(chosen)
        return self.n_experts * (share * probabilities.mean(0)).sum()

    def _capacity(self, n_tokens: int) -> int | None:
        if self.capacity_factor is None or not self.training:
            return None
        return math.ceil(self.capacity_factor * n_tokens / self.n_experts)

import math

import numpy as np
import pytest
import torch
from dna_networks import CAUSAL, KINDS, random_dna, small_network

from ssmseq.dna.alphabet import COMPLEMENT, VOCAB_SIZE, encode, reverse_complement_tokens
from ssmseq.dna.network import DNANetwork, reads_both_ways
from ssmseq.dna.preparing import bits_per_base
from ssmseq.nn.caduceus import CaduceusNetwork


def tokens_of(*sequences: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([encode(s) for s in sequences]).astype(np.int64))


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_networks_do_not_see_what_follows(kind):
    network, tokens = small_network(kind), tokens_of(random_dna(40), random_dna(40, 1))
    changed = tokens.clone()
    changed[:, 25:] = torch.from_numpy(COMPLEMENT)[changed[:, 25:]]
    one, other = network(tokens), network(changed)
    assert torch.equal(one[:, :25], other[:, :25])
    assert (one[:, 25:] != other[:, 25:]).any(-1).all()
    assert not reads_both_ways(network.core)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CAUSAL])
def test_bidirectional_networks_see_both_sides(kind):
    network, tokens = small_network(kind), tokens_of(random_dna(30))
    for place in (3, 26):
        changed = tokens.clone()
        changed[0, place] = 7 + (changed[0, place] - 6) % 4
        assert (network(tokens) != network(changed)).any(-1).all()
    assert reads_both_ways(network.core)


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("kind", ["caduceus", "hydra"])
def test_the_other_strand_gives_the_same_turned_around(kind, length):
    network = small_network(kind).double()
    tokens = tokens_of(random_dna(length, 5, "ACGTN"))
    other = torch.from_numpy(reverse_complement_tokens(tokens.numpy()).copy())
    torch.testing.assert_close(network(other), network(tokens).flip(1, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.hidden(other), network.hidden(tokens).flip(1, 2), rtol=1e-12, atol=1e-12)
    assert network.hidden(tokens).shape[-1] == network.d_hidden == 32


def test_equivariance_is_that_of_caduceus():
    """The published network over both strands, tested elsewhere against a transcription, gives the same function."""
    ours = small_network("caduceus").double()
    theirs = CaduceusNetwork(
        vocab_size=VOCAB_SIZE,
        d_model=16,
        n_layers=3,
        d_state=4,
        d_conv=4,
        expand=2,
        eps=1e-5,
        residual_in_fp32=True,
        tie_embeddings=True,
        complement=COMPLEMENT.tolist(),
        swap_strands=False,
    ).double()
    theirs.load_state_dict(ours.core.state_dict())
    tokens = tokens_of(random_dna(33, 1, "ACGTN"))
    torch.testing.assert_close(ours(tokens), theirs(tokens)[..., 7:11], rtol=1e-10, atol=1e-10)
    wrapped = DNANetwork(theirs, equivariant=False)
    torch.testing.assert_close(wrapped(tokens), ours(tokens), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(wrapped.hidden(tokens), ours.hidden(tokens), rtol=1e-10, atol=1e-10)
    assert wrapped.d_hidden == ours.d_hidden


def test_a_hybrid_has_attention_in_its_place():
    network = small_network("hybrid", n_layers=9, attention_period=8, attention_offset=3)
    assert network.core.backbone.pattern == "MMMAMMMMM"
    assert all(layer.feed_forward is not None for layer in network.core.backbone.layers)


def test_the_loss_is_the_weighted_mean_of_the_bits():
    rng = np.random.default_rng(0)
    scores, index = rng.normal(size=(3, 11, 4)), rng.integers(0, 4, (3, 11)).astype(float)
    weight = rng.uniform(0.1, 1, (3, 11))
    index[0, 4] = index[2] = np.nan
    weight[np.isnan(index)] = np.nan
    total = count = 0.0
    for b, i in np.argwhere(~np.isnan(index)):
        p = np.exp(scores[b, i]) / np.exp(scores[b, i]).sum()
        total -= weight[b, i] * math.log2(p[int(index[b, i])])
        count += weight[b, i]
    found = bits_per_base(torch.from_numpy(scores), torch.from_numpy(np.stack([index, weight], 1)))
    assert found.item() == pytest.approx(total / count, rel=1e-12)


def test_the_loss_of_nothing_is_zero_and_so_is_its_gradient():
    scores = torch.randn(2, 5, 4, requires_grad=True)
    loss = bits_per_base(scores, torch.full((2, 2, 5), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()

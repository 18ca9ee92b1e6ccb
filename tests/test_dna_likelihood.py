import numpy as np
import pytest
import torch
from dna_networks import CAUSAL, CPU, KINDS, random_dna, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.dna import likelihood
from ssmseq.dna.alphabet import BOS, CLS, MASK, encode, reverse_complement_tokens
from ssmseq.dna.embedding import POOLINGS, base_embeddings, embed_strands, pool
from ssmseq.dna.likelihood import causal_log_probabilities, masked_log_probabilities
from ssmseq.dna.sampling import draw_bases, draw_sequences

LENGTHS = (0, 1, 2, 13, 64, 65, 129)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def sequences(letters: str = "ACGTN") -> list[np.ndarray]:
    return [encode(random_dna(length, length, letters)) for length in LENGTHS]


def plain_log_probabilities(network, tokens: np.ndarray, prompt: int = BOS) -> np.ndarray:
    """One whole sequence, alone, without caches."""
    read = torch.from_numpy(np.append(prompt, tokens[:-1]).astype(np.int64))[None]
    p = network(read)[0].double().softmax(-1).numpy()
    return np.array([np.log(p[i, t - 7]) if 7 <= t <= 10 else np.nan for i, t in enumerate(tokens)])


@pytest.mark.parametrize("chunk_length", [1, 5, 64, 1000])
@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_scores_depend_on_neither_batch_nor_chunks(kind, chunk_length):
    network, given_ = small_network(kind), sequences()
    found = causal_log_probabilities(network, given_, chunk_length=chunk_length, device=CPU)
    for tokens, values in zip(given_, found, strict=True):
        assert values.shape == tokens.shape
        if len(tokens):
            np.testing.assert_allclose(values, plain_log_probabilities(network, tokens), rtol=1e-6, atol=2e-6)


def test_batches_are_small_enough_and_whole(monkeypatch):
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 70)
    sizes = [tokens.shape for _, tokens in likelihood.padded_batches(sequences(), 40, prompt=BOS)]
    assert sum(rows for rows, _ in sizes) == len(LENGTHS)
    assert all(rows == 1 or rows * min(length, 40) <= 70 for rows, length in sizes)
    network = small_network("mamba")
    found = causal_log_probabilities(network, sequences(), chunk_length=40, device=CPU)
    np.testing.assert_allclose(found[-1], plain_log_probabilities(network, sequences()[-1]), rtol=1e-6, atol=2e-6)


def test_another_prompt_gives_other_probabilities():
    network, tokens = small_network("mamba", n_labels=2), encode(random_dna(20))
    for prompt in (BOS, 16, 17):
        (found,) = causal_log_probabilities(network, [tokens], chunk_length=8, prompt=prompt, device=CPU)
        np.testing.assert_allclose(found, plain_log_probabilities(network, tokens, prompt), rtol=1e-6, atol=2e-6)
        assert prompt == BOS or abs(found - plain_log_probabilities(network, tokens)).max() > 1e-4


@pytest.mark.parametrize("spacing", [1, 3, 500])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CAUSAL])
def test_masked_scores_are_those_of_each_mask(kind, spacing):
    network, given_ = small_network(kind), [*sequences(), encode(random_dna(13, 9))]
    found = masked_log_probabilities(network, given_, spacing=spacing, device=CPU)
    for tokens, values in zip(given_, found, strict=True):
        assert values.shape == tokens.shape
        for place, token in enumerate(tokens[:13]):
            masked = tokens.astype(np.int64)
            masked[[i for i in range(place % spacing, len(tokens), spacing) if 7 <= tokens[i] <= 10]] = MASK
            p = network(torch.from_numpy(masked)[None])[0, place].double().softmax(-1)
            wanted = p[token - 7].log().item() if 7 <= token <= 10 else np.nan
            np.testing.assert_allclose(values[place], wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("chunk_length", [7, 500])
@pytest.mark.parametrize("kind", ["mamba", "hybrid", "both ways"])
def test_embeddings_are_means_of_the_states(kind, chunk_length):
    network, causal = small_network(kind), kind in CAUSAL
    given_ = sequences()[1:]
    reading = {"chunk_length": chunk_length, "causal": causal, "device": CPU}
    found = {p: pool(network, given_, pooling=p, **reading) for p in POOLINGS}
    per_base = base_embeddings(network, given_, **reading)
    prompt = [BOS] if causal else []

    def states(*parts) -> np.ndarray:
        tokens = torch.from_numpy(np.concatenate([prompt, *parts]).astype(np.int64))[None]
        return network.hidden(tokens)[0, len(prompt) :].numpy()

    for i, tokens in enumerate(given_):
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(per_base[i], states(tokens), **close)
        np.testing.assert_allclose(found["mean"][i], states(tokens).mean(0), **close)
        np.testing.assert_allclose(found["last"][i], states(tokens)[-1], **close)
        np.testing.assert_allclose(found["class"][i], states(tokens, [CLS])[-1], **close)
        np.testing.assert_allclose(found["echo"][i], states(tokens, tokens)[len(tokens) :].mean(0), **close)


@pytest.mark.parametrize("kind", KINDS)
def test_averaged_embeddings_are_the_same_for_both_strands(kind):
    network, given_ = small_network(kind), sequences()[1:]
    reading = {"chunk_length": 50, "causal": kind in CAUSAL, "device": CPU, "pooling": "mean"}
    others = [reverse_complement_tokens(s) for s in given_]
    one, other = (embed_strands(network, s, average=True, **reading) for s in (given_, others))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    alone = embed_strands(network, given_, average=False, **reading)
    assert one.shape == (len(given_), 16)
    assert abs(alone[:, :16] - one).max() > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_greedy_sequences_are_those_without_caches(kind):
    network = small_network(kind)
    options = {"temperature": 0, "top_k": None, "top_p": None, "generator": torch.Generator(), "device": CPU}
    prompt = np.append(BOS, encode("ACCGT")).astype(np.int64)
    found = draw_sequences(network, prompt, n=2, length=12, **options)
    read = prompt.tolist()
    for _ in range(12):
        read.append(7 + int(network(torch.tensor([read]))[0, -1].argmax()))
    assert found.tolist() == [read[6:]] * 2


def test_drawn_bases_follow_the_temperature():
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).double().expand(200_000, 4)
    for temperature in (0.5, 1.0, 3.0):
        drawn = draw_bases(scores, temperature, None, None, torch.Generator().manual_seed(0))
        shares = np.bincount(drawn.numpy(), minlength=4) / len(drawn)
        wanted = np.exp(np.array([1, 0, -1, 2]) / temperature)
        np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=5e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=4, max_size=4, unique=True), st.integers(1, 6), st.floats(0.01, 1))
def test_only_the_most_probable_bases_are_drawn(tenths, top_k, top_p):
    scores = [x / 10 for x in tenths]  # far enough apart to have an order
    with torch.inference_mode():
        drawn = draw_bases(
            torch.tensor([scores]).double().expand(300, 4), 1.0, top_k, top_p, torch.Generator().manual_seed(1)
        )
    p = np.exp(scores) / np.exp(scores).sum()
    order = np.argsort(-p)
    n = next(i for i in range(1, 5) if p[order[:i]].sum() >= min(top_p, 1 - 1e-12))
    assert set(drawn.tolist()) <= set(order[: min(n, top_k)].tolist())


def test_a_vanishing_temperature_takes_the_best_base():
    drawn = draw_bases(torch.tensor([[0.0, 1e-3, 0.0, 0.0]]).double(), 1e-9, None, None, torch.Generator())
    assert drawn.tolist() == [1]

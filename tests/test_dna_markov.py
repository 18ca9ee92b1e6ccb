"""Markov baselines against counting by dictionaries, sources of known entropy, and figures of E. coli."""

import gzip
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from ssmseq.datasets import make_markov_sequence
from ssmseq.dna import markov
from ssmseq.dna.alphabet import encode
from ssmseq.dna.markov import MarkovBaseline, markov_table

PARTNER = {"A": "T", "C": "G", "G": "C", "T": "A"}
SMOOTHINGS = ("dirichlet", "witten-bell", "additive")
dna = st.text("ACGTacgtNR", max_size=40)


def other_strand(sequence):
    return "".join(PARTNER.get(letter, "N") for letter in reversed(sequence.upper()))


def counters(sequences, order, both_strands):
    """Counts of the words of k + 1 letters, for each k, one word at a time."""
    found = [Counter() for _ in range(order + 1)]
    strands = [s.upper() for s in sequences] + ([other_strand(s) for s in sequences] if both_strands else [])
    for strand in strands:
        for k, counter in enumerate(found):
            words = (strand[i : i + k + 1] for i in range(len(strand) - k))
            counter.update(word for word in words if set(word) <= set("ACGT"))
    return found


def probability(counts, word, smoothing, alpha, strengths):
    """P(last letter | letters before it)."""
    k = len(word) - 1
    n, total = counts[k][word], sum(counts[k][word[:-1] + base] for base in "ACGT")
    if smoothing == "additive":
        return (n + alpha) / (total + 4 * alpha)
    lower = probability(counts, word[1:], smoothing, alpha, strengths) if k else 1 / 4
    if smoothing == "dirichlet":
        return (n + strengths[k] * lower) / (total + strengths[k])
    kinds = sum(counts[k][word[:-1] + base] > 0 for base in "ACGT")
    return (n + kinds * lower) / (total + kinds) if total else lower


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@settings(max_examples=40, deadline=None)
@given(
    train=st.lists(dna, min_size=1, max_size=4),
    test=dna,
    order=st.integers(0, 5),
    both_strands=st.booleans(),
    alpha=st.sampled_from([0.1, 1.0]),
)
def test_probabilities_are_those_of_counting_by_hand(smoothing, train, test, order, both_strands, alpha):
    train = ["ACGGT", *train]
    model = MarkovBaseline(order=order, both_strands=both_strands, smoothing=smoothing, alpha=alpha).fit(train)
    assert model.n_bases_ == sum(letter in "ACGT" for letter in "".join(train).upper())
    counts = counters(train, order, both_strands)
    expected = []
    for i, letter in enumerate(test.upper()):
        context = test.upper()[max(i - order, 0) : i].replace("R", "N").rpartition("N")[2]
        p = probability(counts, context + letter, smoothing, alpha, model.strengths_) if letter in "ACGT" else np.nan
        expected.append(np.log(p))
    (found,) = model.log_likelihood([test], per_base=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)
    np.testing.assert_allclose(model.log_likelihood([test, ""]), [np.nansum(expected), 0], atol=1e-5)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_probabilities_of_each_context_sum_to_one(smoothing):
    model = MarkovBaseline(order=5, smoothing=smoothing).fit([make_markov_sequence(2, 3000)[0]])
    np.testing.assert_allclose(model.probabilities_.reshape(-1, 4).sum(1), 1, atol=1e-6)
    assert model.probabilities_.shape == (4 + 16 + 64 + 256 + 1024 + 4096,)
    assert np.isnan(model.strengths_).all() == (smoothing != "dirichlet")


@pytest.mark.parametrize("repeat", [1, 3])
def test_strengths_predict_each_letter_best_when_it_is_taken_out(repeat):
    sequence = make_markov_sequence(1, 400, random_state=4)[0] * repeat
    model = MarkovBaseline(order=3, both_strands=False).fit([sequence])
    counts = counters([sequence], 3, False)

    def without(word, strengths):
        """P(last letter | letters before it) with one occurrence of the word, and so of its ends, taken out."""
        k = len(word) - 1
        total = sum(counts[k][word[:-1] + base] for base in "ACGT")
        lower = without(word[1:], strengths) if k else 1 / 4
        return (counts[k][word] - 1 + strengths[k] * lower) / (total - 1 + strengths[k])

    def cost(k, strength):
        strengths = [*model.strengths_[:k], strength]
        return -sum(n * np.log(without(word, strengths)) for word, n in counts[k].items())

    for k in range(4):
        best = min(cost(k, strength) for strength in np.exp(np.linspace(-7, 16, 231)))
        assert cost(k, model.strengths_[k]) < best + 2e-3
    # A repeat makes long contexts trustworthy, but one that was seen once says nothing about itself.
    assert (model.strengths_[3] < 1) == (repeat == 3)


def test_strengths_of_many_words_come_from_a_sample_of_them(monkeypatch):
    sequence = make_markov_sequence(3, 50_000)[0]
    whole = MarkovBaseline(order=5).fit([sequence]).strengths_
    monkeypatch.setattr(markov, "_WORDS_FOR_STRENGTH", 1000)
    sampled = MarkovBaseline(order=5).fit([sequence]).strengths_
    assert sampled[5] != whole[5]
    assert abs(np.log(sampled[5] / whole[5])) < 0.7
    np.testing.assert_array_equal(sampled[:4], whole[:4])


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_size_of_the_parts_changes_nothing(monkeypatch, chunk):
    sequences = [make_markov_sequence(2, 300)[0], "ACGTN" * 9, "", "A", "acgtRRacgtaaac"]
    whole = MarkovBaseline(order=4).fit(sequences)
    expected = whole.log_likelihood(sequences, per_base=True)
    monkeypatch.setattr(markov, "_CHUNK", chunk)
    parts = MarkovBaseline(order=4).fit(sequences)
    np.testing.assert_array_equal(parts.probabilities_, whole.probabilities_)
    for one, other in zip(parts.log_likelihood(sequences, per_base=True), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(parts.log_likelihood(sequences), [np.nansum(one) for one in expected], rtol=1e-12)
    assert parts.bits_per_base(sequences) == pytest.approx(whole.bits_per_base(sequences), rel=1e-12)


def test_both_strands_are_the_sequences_and_their_reverse_complements():
    sequences = [make_markov_sequence(3, 500, random_state=i)[0] + "NNAC" for i in range(3)]
    both = MarkovBaseline(order=5).fit(sequences)
    explicit = MarkovBaseline(order=5, both_strands=False).fit([*sequences, *map(other_strand, sequences)])
    np.testing.assert_array_equal(both.probabilities_, explicit.probabilities_)
    one = MarkovBaseline(order=5, both_strands=False).fit(sequences)
    assert not np.allclose(one.probabilities_, both.probabilities_)
    assert both.n_bases_ == explicit.n_bases_ / 2 == 1506


def test_what_is_no_base_ends_the_context_and_counts_for_nothing():
    broken = MarkovBaseline(order=3).fit(["ACGGTNNTTGACARGG"])
    apart = MarkovBaseline(order=3).fit(["ACGGT", "TTGACA", "GG"])
    np.testing.assert_array_equal(broken.probabilities_, apart.probabilities_)
    (found,) = broken.log_likelihood(["ACNGT"], per_base=True)
    expected = broken.log_likelihood(["AC", "GT"], per_base=True)
    np.testing.assert_array_equal(found, np.concatenate([expected[0], [np.nan], expected[1]]))
    total = broken.log_likelihood(["AC", "GT"]).sum()
    assert broken.bits_per_base(["ACNGT"]) == pytest.approx(-total / 4 / np.log(2), rel=1e-12)
    assert broken.bits_per_base(["AC", "GT"]) == pytest.approx(-total / 4 / np.log(2), rel=1e-12)


def test_every_kind_of_input_is_read_alike(tmp_path):
    sequences = ["ACGTTGCANNACG", "ttgacaTTGACAA"]
    (tmp_path / "two.fa").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(sequences)))
    tokens = [encode(s) for s in sequences]
    kinds = [
        [s.encode() for s in sequences],
        tuple(sequences),
        iter(sequences),
        np.array(sequences, dtype=object),
        pd.Series(sequences),
        tokens,
        np.stack(tokens),
        np.stack(tokens).astype(np.int64),
        tmp_path / "two.fa",
        str(tmp_path / "two.fa"),
    ]
    model = MarkovBaseline(order=2).fit(sequences)
    for kind in kinds:
        np.testing.assert_array_equal(MarkovBaseline(order=2).fit(kind).probabilities_, model.probabilities_)
    for kind in kinds[5:]:
        np.testing.assert_array_equal(model.log_likelihood(kind), model.log_likelihood(sequences))
    single = model.log_likelihood(tokens[0])
    assert single.shape == (1,)
    assert single[0] == model.log_likelihood(sequences)[0]


def test_errors_name_what_is_wrong(monkeypatch):
    model = MarkovBaseline(order=1)
    with pytest.raises(NotFittedError):
        model.log_likelihood(["ACGT"])
    with pytest.raises(NotFittedError):
        model.bits_per_base(["ACGT"])
    monkeypatch.setattr(markov, "_CHUNK", 4)
    with pytest.raises(ValueError, match=r"X\[1\]: the letter 'J' at position 11 "):
        model.fit(["ACGT", "ACGTACGTACJ"])
    with pytest.raises(TypeError, match=r"X\[1\] must be a string or an array \(L,\) of token numbers, got int"):
        model.fit(["ACGT", 7])
    with pytest.raises(TypeError, match=r"X\[0\] .* got ndarray"):
        model.fit([np.array([7.0, 8.0])])
    for nothing in ([], ["", "NNN"], [np.array([4, 4, 15])]):
        with pytest.raises(ValueError, match="X has no A, C, G or T to count"):
            model.fit(nothing)
    model.fit(["ACGT"])
    with pytest.raises(ValueError, match="X has no A, C, G or T to score"):
        model.bits_per_base(["NN"])
    monkeypatch.setattr(markov, "_MAX_BASES", 9)
    model.fit(["ACGTACGTA"])
    with pytest.raises(ValueError, match="more than 9 bases"):
        model.fit(["ACGTACGTA", "A"])


@pytest.mark.parametrize(
    "wrong",
    [{"order": -1}, {"order": 13}, {"order": 1.5}, {"smoothing": "laplace"}, {"alpha": 0}, {"both_strands": "yes"}],
)
def test_wrong_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MarkovBaseline(**wrong).fit(["ACGT"])


def test_it_is_a_scikit_learn_estimator():
    sequences = [make_markov_sequence(2, 400, random_state=0)[0][i : i + 40] for i in range(0, 400, 40)]
    model = MarkovBaseline(order=3, both_strands=False, smoothing="additive", alpha=0.25)
    assert clone(model).get_params() == model.get_params()
    assert model.fit(sequences, y=None) is model
    assert model.score(sequences) == -model.bits_per_base(sequences)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.score(sequences) == model.set_params(order=1).score(sequences)  # what was fitted counts
    search = GridSearchCV(MarkovBaseline(both_strands=False), {"order": [0, 2, 6]}, cv=3).fit(sequences)
    assert search.best_params_ == {"order": 2}


def test_memory_does_not_grow_with_the_sequence(monkeypatch):
    monkeypatch.setattr(markov, "_CHUNK", 1 << 14)
    sequence = "ACGGTCATTA" * 300_000
    tracemalloc.start()
    try:
        MarkovBaseline(order=2).fit([sequence]).bits_per_base([sequence])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(sequence)


def test_table_has_a_row_for_each_order():
    train, test = make_markov_sequence(2, 3000)[0], make_markov_sequence(2, 500)[0]
    table = markov_table(iter([train]), iter([test]), orders=[0, 2, 3], smoothing="additive", alpha=1.0)
    assert list(table.columns) == ["order", "bits_per_base", "parameters", "seconds"]
    assert table["order"].tolist() == [0, 2, 3]
    assert table["parameters"].tolist() == [3, 48, 192]
    assert (table["seconds"] > 0).all()
    for order, bits in zip(table["order"], table["bits_per_base"], strict=True):
        model = MarkovBaseline(order=order, smoothing="additive", alpha=1.0).fit([train])
        assert bits == model.bits_per_base([test])


# Sources of known entropy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 3])
def test_sources_have_the_entropy_that_counting_finds(order):
    sequence, entropy = make_markov_sequence(order, 300_000, random_state=order)
    assert len(sequence) == 300_000
    words = Counter(sequence[i : i + order + 1] for i in range(len(sequence) - order))
    contexts = Counter()
    for word, n in words.items():
        contexts[word[:-1]] += n
    counted = -sum(n * np.log2(n / contexts[word[:-1]]) for word, n in words.items()) / sum(words.values())
    assert counted == pytest.approx(entropy, abs=0.004)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_entropy_is_that_of_the_stationary_state(order):
    _, entropy = make_markov_sequence(order, 1, random_state=7)
    chances = np.random.default_rng(7).dirichlet(np.full(4, 0.6), 4**order)
    moves = np.zeros((4**order, 4**order))
    for context in range(4**order):
        for base in range(4):
            moves[context, (4 * context + base) % 4**order] = chances[context, base]
    values, vectors = np.linalg.eig(moves.T)
    stationary = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    stationary /= stationary.sum()
    assert entropy == pytest.approx(-float(stationary @ (chances * np.log2(chances)).sum(1)), abs=1e-9)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [0, 2, 4])
def test_a_model_of_the_order_of_the_source_reaches_its_entropy(order, smoothing):
    sequence, entropy = make_markov_sequence(order, 300_000, random_state=11)
    parameters = {"both_strands": False, "smoothing": smoothing}
    table = markov_table([sequence[:240_000]], [sequence[240_000:]], orders=range(order + 2), **parameters)
    bits = table["bits_per_base"].to_numpy()
    own = -MarkovBaseline(order=order, **parameters).fit([sequence]).score([sequence])
    assert own == pytest.approx(entropy, abs=0.01)
    # The chance of a letter varies from place to place, so that the test part has an entropy of its own.
    assert bits[order] == pytest.approx(entropy, abs=0.015)
    assert bits[order + 1] == pytest.approx(bits[order], abs=0.003 if smoothing == "dirichlet" else 0.01)
    assert order == 0 or bits[order - 1] > bits[order] + 0.05


def test_sources_repeat_by_seed_and_say_what_is_wrong():
    assert make_markov_sequence(3, 50, random_state=2) == make_markov_sequence(3, 50, random_state=2)
    assert make_markov_sequence(3, 50, random_state=2) != make_markov_sequence(3, 50, random_state=3)
    generator = np.random.default_rng(2)
    assert make_markov_sequence(3, 50, random_state=generator) == make_markov_sequence(3, 50, random_state=2)
    for order, length in ((0, 1), (5, 1), (5, 5), (5, 6)):
        sequence, entropy = make_markov_sequence(order, length)
        assert len(sequence) == length
        assert 0 < entropy < 2
    for wrong in ({"order": -1}, {"order": 11}, {"order": 2.0}, {"length": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make_markov_sequence(**wrong)


def test_sources_start_in_their_stationary_state():
    starts = Counter(make_markov_sequence(1, 1, random_state=generator)[0] for generator in repeated_chain(2000))
    whole, _ = make_markov_sequence(1, 100_000, random_state=5)
    for base in "ACGT":
        assert starts[base] / 2000 == pytest.approx(whole.count(base) / len(whole), abs=0.04)


def repeated_chain(n):
    """Generators that draw the same chain and then differ."""

    class Generator(np.random.Generator):
        def dirichlet(self, alpha, size=None):
            return np.random.default_rng(5).dirichlet(alpha, size)

    return (Generator(np.random.PCG64(seed)) for seed in range(n))


# E. coli --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ecoli() -> tuple[list[str], list[str]]:
    if not os.environ.get("SSMSEQ_DATA"):
        pytest.skip("set SSMSEQ_DATA to a folder with genomics/ecoli to run this")
    path = Path(os.environ["SSMSEQ_DATA"], "genomics/ecoli/GCF_000005845.2_ASM584v2_genomic.fna.gz")
    with gzip.open(path, "rt") as file:
        genome = "".join(line.strip() for line in file if not line.startswith(">"))
    assert len(genome) == 4_641_652
    return [genome[: len(genome) * 9 // 10]], [genome[len(genome) * 9 // 10 :]]


def test_half_counts_give_the_known_figures_of_ecoli(ecoli):
    table = markov_table(*ecoli, orders=[0, 2, 4, 6, 8], smoothing="additive", alpha=0.5)
    known = [1.9997, 1.9644, 1.9441, 1.9328, 1.9363]
    np.testing.assert_allclose(table["bits_per_base"], known, rtol=0, atol=6e-5)


def test_orders_that_are_mixed_do_not_lose_what_lower_ones_know(ecoli):
    bits = markov_table(*ecoli, orders=[6, 8])["bits_per_base"].to_numpy()
    np.testing.assert_allclose(bits, [1.9328, 1.9271], rtol=0, atol=6e-5)


@pytest.mark.slow
def test_the_longest_contexts_of_ecoli_are_the_best(ecoli):
    bits = markov_table(*ecoli)["bits_per_base"].to_numpy()
    assert (np.diff(bits) < 0).all()
    np.testing.assert_allclose(bits[[10, 12]], [1.9224, 1.9180], rtol=0, atol=6e-5)
    table = markov_table(*ecoli, orders=[10, 12], smoothing="witten-bell")
    np.testing.assert_allclose(table["bits_per_base"], [2.1030, 2.5940], rtol=0, atol=6e-5)
    table = markov_table(*ecoli, orders=[10, 12], smoothing="additive")
    np.testing.assert_allclose(table["bits_per_base"], [2.0547, 2.0485], rtol=0, atol=6e-5)

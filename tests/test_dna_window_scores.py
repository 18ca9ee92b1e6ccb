import numpy as np
import pandas as pd
import pytest
import torch
from dna_cases import reverse_complement, write_fasta
from dna_networks import CAUSAL, CPU, KINDS, small_network
from dna_variant_cases import (
    ADJACENT,
    BOTH_WAYS,
    CLOSE,
    CONTIGS,
    FORWARD,
    INDELS,
    ONE,
    RATIO,
    REVERSE,
    SUBSTITUTIONS,
    frame_of,
    ready,
    written_left,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.dna import variants
from ssmseq.dna.alleles import equal_windows
from ssmseq.dna.alphabet import MASK, encode
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.window_scores import causal_scores


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Fasta:
    return Fasta(write_fasta(tmp_path_factory.mktemp("variants") / "two.fa", CONTIGS))


def windows_of(contig: str, pos0: int, alt: str, length: int) -> tuple[str, str]:
    """Windows of a substitution on the forward strand, cut by hand."""
    start = pos0 - length // 2
    padded = "N" * length + CONTIGS[contig] + "N" * length
    changed = padded[: length + pos0] + alt + padded[length + pos0 + len(alt) :]
    return tuple(letters[length + start : 2 * length + start].upper() for letters in (padded, changed))


@pytest.mark.parametrize("length", [1, 9, 30, 31])
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_shared_beginning_gives_what_two_whole_windows_give(fasta, kind, length):
    model = ready(kind, average=True, chunk_length=11)
    found = model.score_variants(frame_of(SUBSTITUTIONS), fasta, length=length)
    assert found["reason"].eq("ok").all()
    pairs = [windows_of(contig, pos - 1, alt, length) for contig, pos, _, alt in SUBSTITUTIONS]
    for column, turn in ((FORWARD, str), (REVERSE, reverse_complement)):
        ref, alt = (model.log_likelihood([turn(pair[i]) for pair in pairs], strands="forward") for i in (0, 1))
        np.testing.assert_allclose(found[column], alt - ref, **CLOSE)
    assert abs(found[FORWARD]).min() > 1e-4
    np.testing.assert_allclose(found[RATIO], (found[FORWARD] + found[REVERSE]) / 2, rtol=1e-12)
    single = model.score_variants(frame_of(SUBSTITUTIONS), fasta, length=length, strands="forward")
    assert FORWARD not in single
    np.testing.assert_allclose(single[RATIO], found[FORWARD], rtol=1e-12)


@pytest.mark.parametrize("kind", CAUSAL)
def test_insertions_and_deletions_give_what_two_whole_windows_give(fasta, kind):
    model, rows = ready(kind, average=True, chunk_length=4), ADJACENT + INDELS
    found = model.score_variants(frame_of(rows), fasta, batch_size=2)
    for column, strand in ((FORWARD, "+"), (REVERSE, "-")):
        for value, (contig, pos, ref, alt) in zip(found[column], rows, strict=True):
            pair = equal_windows(fasta, contig, pos - 1, ref, alt, 30, strand)
            one, two = model.log_likelihood([pair.ref, pair.alt], strands="forward")
            np.testing.assert_allclose(value, two - one, **CLOSE)
    assert found["reason"].eq("ok").all()
    assert (abs(found[RATIO]) > 1e-4).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_variant_is_scored_as_its_whole_windows(fasta, data):
    contig = data.draw(st.sampled_from(sorted(CONTIGS)))
    pos0 = data.draw(st.integers(0, len(CONTIGS[contig]) - 1))
    ref = CONTIGS[contig][pos0 : pos0 + data.draw(st.integers(1, 12))].upper()
    alt = data.draw(st.text("ACGT", min_size=1, max_size=12).filter(lambda letters: letters != ref))
    length = data.draw(st.integers(2, 40))
    model = ready("mamba", chunk_length=data.draw(st.integers(1, 50)))
    (row,) = model.score_variants(frame_of([(contig, pos0 + 1, ref, alt)]), fasta, length=length).itertuples()
    if "N" in ref:
        assert (row.reason, np.isnan(row.log_likelihood_ratio)) == ("ref_ambiguous", True)
    elif row.reason == "too_long":
        assert max(len(ref), len(alt)) + 1 > length - length // 2
        assert np.isnan(row.log_likelihood_ratio)
    else:
        whole = CONTIGS[contig].upper()
        changed = whole[:pos0] + alt + whole[pos0 + len(ref) :]
        place = written_left(whole, pos0, ref, alt)
        pair = equal_windows(fasta, contig, *place, length)
        assert changed.startswith(pair.alt.strip("N"), max(place[0] - length // 2, 0)) or "N" in changed
        one, two = model.log_likelihood([pair.ref, pair.alt])
        np.testing.assert_allclose(row.log_likelihood_ratio, two - one, **CLOSE)


def count_tokens(network) -> list[int]:
    counts = []
    network.core.embedding.register_forward_hook(lambda module, inputs, output: counts.append(inputs[0].numel()))
    return counts


def test_the_saving_is_half_of_one_window():
    network, n, length = small_network("mamba"), 12, 64
    rng = np.random.default_rng(0)
    pairs = rng.integers(7, 11, (n, 1, length)).repeat(2, 1).astype(np.uint8)
    shared = np.where(np.arange(n) < 8, length // 2, length // 2 + 1)
    pairs[np.arange(n), 1, shared] = 7 + (pairs[np.arange(n), 1, shared] - 6) % 4
    options = {"chunk_length": 10, "batch_size": 5, "device": CPU}
    counts = count_tokens(network)
    with torch.inference_mode():
        alone, _ = causal_scores(network, pairs, np.zeros(n, int), with_means=False, **options)
        whole = sum(counts)
        counts.clear()
        together, _ = causal_scores(network, pairs, shared, with_means=False, **options)
    assert whole == n * (2 * length - 1)  # the token in front is shared too
    assert sum(counts) == sum(1 + s + 2 * (length - 1 - s) for s in shared)
    np.testing.assert_allclose(together, alone, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_depend_on_no_batch(monkeypatch, fasta, kind):
    rows = frame_of(SUBSTITUTIONS + ADJACENT + INDELS)
    whole = ready(kind).score_variants(rows, fasta, strands="average", embeddings=True)
    for batch_size, blocks in ((1, 1), (3, 2), (100, 1)):
        monkeypatch.setattr(variants, "BATCHES_AT_ONCE", blocks)
        model = ready(kind, chunk_length=3)
        found = model.score_variants(rows, fasta, strands="average", embeddings=True, batch_size=batch_size)
        pd.testing.assert_frame_equal(found, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_substitutions_are_compared_behind_masks(fasta, kind):
    rows, model = SUBSTITUTIONS + ADJACENT, ready(kind)
    found = model.score_variants(frame_of(rows), fasta, strands="average")
    for column, turn in ((FORWARD, str), (REVERSE, reverse_complement)):
        for value, (contig, pos, _, alt) in zip(found[column], rows, strict=True):
            one, two = (encode(turn(letters)).astype(np.int64) for letters in windows_of(contig, pos - 1, alt, 30))
            places = np.flatnonzero(one != two)
            assert len(places) == len(alt)
            masked = one.copy()
            masked[places] = MASK
            with torch.inference_mode():
                log_p = model.network_(torch.from_numpy(masked)[None])[0].double().log_softmax(-1).numpy()
            np.testing.assert_allclose(value, sum(log_p[i, two[i] - 7] - log_p[i, one[i] - 7] for i in places), **CLOSE)


@pytest.mark.parametrize(("kind", "spacing"), [("caduceus", 3), ("hydra", 8), ("both ways", 31)])
def test_indels_of_models_that_read_both_ways_by_pseudo_log_likelihoods(fasta, kind, spacing):
    model = ready(kind, mask_spacing=spacing)
    found = model.score_variants(frame_of(INDELS), fasta, strands="average")
    for column, strand in ((FORWARD, "+"), (REVERSE, "-")):
        for value, (contig, pos, ref, alt) in zip(found[column], INDELS, strict=True):
            pair = equal_windows(fasta, contig, pos - 1, ref, alt, 30, strand)
            first = pair.index if strand == "+" else pair.index - len(ref) + 1
            sums = [
                pseudo_log_likelihood(model.network_, window, first, first + n, spacing)
                for window, n in ((pair.ref, len(ref)), (pair.alt, len(alt)))
            ]
            np.testing.assert_allclose(value, sums[1] - sums[0], **CLOSE)


def pseudo_log_likelihood(network, window: str, first: int, end: int, spacing: int) -> float:
    """Mask each letter with those of its part (before, within, behind the allele) and the others of its number."""
    tokens = encode(window).astype(np.int64)
    number = [i if i < first else i - first if i < end else i - end for i in range(len(tokens))]
    total = 0.0
    for k in range(spacing):
        chosen = [i for i, token in enumerate(tokens) if number[i] % spacing == k and 7 <= token <= 10]
        masked = tokens.copy()
        masked[chosen] = MASK
        with torch.inference_mode():
            log_p = network(torch.from_numpy(masked)[None])[0].double().log_softmax(-1).numpy()
        total += sum(log_p[i, tokens[i] - 7] for i in chosen)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strands", ["forward", "average"])
def test_distances_are_those_of_the_embeddings(fasta, kind, strands):
    model = ready(kind, chunk_length=7)
    found = model.score_variants(frame_of(SUBSTITUTIONS), fasta, strands=strands, embeddings=True)
    pairs = [windows_of(contig, pos - 1, alt, 30) for contig, pos, _, alt in SUBSTITUTIONS]
    ref, alt = (model.embed([pair[i] for pair in pairs], pooling="mean", strands=strands).astype(float) for i in (0, 1))
    np.testing.assert_allclose(found["embedding_l2"], np.linalg.norm(alt - ref, axis=1), rtol=1e-3, atol=1e-6)
    cosine = (ref * alt).sum(1) / np.linalg.norm(ref, axis=1) / np.linalg.norm(alt, axis=1)
    np.testing.assert_allclose(found["embedding_cosine"], 1 - cosine, rtol=1e-2, atol=1e-6)
    assert (found["embedding_l2"] > 1e-3).all()
    without = model.score_variants(frame_of(SUBSTITUTIONS), fasta, strands=strands)
    np.testing.assert_allclose(without[RATIO], found[RATIO], **CLOSE)
    assert "embedding_l2" not in without


def test_an_indel_is_scored_alike_however_it_is_written(fasta):
    run = ONE.index("AAAAAAAA")
    ways = [("one", run + i + 1, "A", "AA") for i in range(8)]
    before, behind = ONE[run - 1], ONE[run + 8].upper()
    ways += [("one", run, before, before + "A"), ("one", run, before + 8 * "A" + behind, before + 9 * "A" + behind)]
    found = ready("mamba").score_variants(frame_of(ways), fasta)
    assert found[RATIO].nunique() == 1
    assert abs(found[RATIO][0]) > 1e-4

"""Training windows of DNA against slices of the sequences that they are of."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from dna_cases import reverse_complement, tokens_of, write_fasta
from dna_window_cases import BOS, MASK, PAD, chunks, equal, everything, expected, letters
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.dna.fasta import Fasta
from ssmseq.dna.regions import read_regions
from ssmseq.dna.windows import SequenceWindows, encode_batch


@pytest.fixture
def genome(tmp_path) -> dict[str, str]:
    return {"a": letters(1000, "ACGTNacgtn"), "b": letters(333, seed=1), "c": letters(7, seed=2)}


@pytest.fixture
def fasta(tmp_path, genome) -> Fasta:
    return Fasta(write_fasta(tmp_path / "g.fa", genome, width=13))


@pytest.mark.parametrize(("length", "least"), [(100, 1), (100, 34), (333, 1), (64, 64), (17, 1), (2000, 8)])
def test_windows_follow_each_other_through_files_and_strings(fasta, genome, length, least):
    texts = [chunk for text in genome.values() for chunk in chunks(text, length, least)]
    truth = expected(texts, length, 0.25)
    for source in (fasta, list(genome.values())):
        windows = SequenceWindows(source, length=length, min_length=least, soft_mask_weight=0.25, seed=0)
        assert len(windows) == len(texts)
        assert equal(everything(windows), truth)
        assert equal(everything(windows, epoch=3), truth)  # nothing is drawn
        one, last = windows[0], windows[len(windows) - 1]
        assert equal([part[None] for part in one], [part[:1] for part in truth])
        assert equal([part[None] for part in last], [part[-1:] for part in truth])


def test_soft_masked_letters_weigh_nothing_where_asked(genome):
    _, targets = everything(SequenceWindows([genome["a"]], length=1000, soft_mask_weight=0, seed=0))
    small = torch.tensor([letter in "acgt" for letter in genome["a"]])
    assert (targets[0, 1, small] == 0).all()
    assert targets[0, 1].nansum() == sum(letter in "ACGT" for letter in genome["a"])


def test_regions_are_read_in_their_direction(fasta, genome):
    regions = read_regions(None, fasta).drop([2])
    regions[["start", "end", "strand"]] = [[10, 250, "-"], [3, 333, "+"]]
    texts = [reverse_complement(chunk) for chunk in chunks(genome["a"][10:250], 100)] + chunks(genome["b"][3:], 100)
    windows = SequenceWindows(fasta, regions, length=100, soft_mask_weight=0.5, seed=0)
    assert equal(everything(windows), expected(texts, 100, 0.5))


# Runs of N


def test_runs_of_n_that_could_fill_a_window_have_none():
    text = "N" * 50 + "ACGT" * 10 + "n" * 19 + "CCA" + "R" * 20 + "TTG" + "N" * 300
    windows = SequenceWindows([text, "N" * 10, "", "G"], length=20, seed=0)
    texts = [*chunks("ACGT" * 10 + "n" * 19 + "CCA", 20), "TTG", "G"]
    truth = expected(texts, 20)
    assert equal(everything(windows), truth)
    assert windows.starts.tolist() == [50, 132, 0]
    assert windows.ends.tolist() == [112, 135, 1]


def test_runs_of_n_are_seen_across_blocks(monkeypatch):
    text = "ACG" + "N" * 40 + "TT" + "N" * 9 + "A"
    whole = SequenceWindows([text], length=10, seed=0)
    for block in (1, 2, 7, 43):
        monkeypatch.setattr("ssmseq.dna.windows.BLOCK", block)
        found = SequenceWindows([text], length=10, seed=0)
        assert found.starts.tolist() == whole.starts.tolist() == [0, 43]
        assert found.ends.tolist() == whole.ends.tolist() == [3, 55]
        assert found.checksums.tolist() == whole.checksums.tolist()


@pytest.mark.parametrize("source", [["N" * 50], ["", "ACG"], []])
def test_sources_without_a_window_are_refused(source):
    with pytest.raises(ValueError, match=r"none of the \d regions or strings has a window: all are of N, or shorter"):
        SequenceWindows(source, length=20, min_length=4, seed=0)


# Shifts


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 130), min_size=1, max_size=3),
    length=st.integers(1, 12),
    least=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_shifted_windows_cover_their_region_once_in_every_epoch(sizes, length, least, seed):
    least = min(least, length)
    if not any(size >= least for size in sizes):
        return
    source = ["A" * size for size in sizes]
    windows = SequenceWindows(source, length=length, min_length=least, shift=True, seed=seed)
    plain = SequenceWindows(source, length=length, min_length=least, seed=seed)
    for epoch in range(4):
        places = [windows.place(epoch, i) for i in range(len(windows))]
        assert all(least <= end - start <= length for _, start, end in places)
        for region, (first, last) in enumerate(zip(windows.starts, windows.ends, strict=True)):
            mine = [(start, end) for owner, start, end in places if owner == region]
            assert all(one[1] == two[0] for one, two in pairwise(mine))
            left_out = int(last - first) - sum(end - start for start, end in mine)
            assert 0 <= left_out < least
            # A region of less than 8 whole windows gets no window more than without shifts.
            n_plain = sum(plain.place(0, i)[0] == region for i in range(len(plain)))
            assert n_plain <= len(mine) <= n_plain + (last - first >= 8 * length)


# The first of 20 windows and a rest can be cut by 0 to 10 - rest bases. With one row more both ends are short, and the
# cut is one of 1 to 9 for no rest, and of 2 to 9 for a rest of 9. The kind with more ways is taken.
@pytest.mark.parametrize(("rest", "n_shifts"), [(0, 9), (1, 10), (3, 8), (5, 6), (9, 8)])
def test_long_regions_are_shifted_by_half_of_all_phases_or_more(rest, n_shifts):
    windows = SequenceWindows(["A" * (200 + rest)], length=10, shift=True, seed=0)
    starts = Counter(windows.place(epoch, 1)[1] for epoch in range(400))
    assert len(starts) == n_shifts
    assert set(range(min(starts), max(starts) + 1)) == set(starts)
    assert min(starts.values()) > 400 / len(starts) / 2  # all about equally often


def test_what_cannot_be_shifted_is_not():
    windows = SequenceWindows(["ACGT" * 5, "ACG", "AC" * 20], length=20, shift=True, seed=0)
    for epoch in range(5):
        assert [windows.place(epoch, i) for i in range(4)] == [(0, 0, 20), (1, 0, 3), (2, 0, 20), (2, 20, 40)]


# Strands


def test_half_of_the_windows_are_of_the_other_strand_drawn_anew_in_every_epoch(genome):
    text = letters(20_000)
    windows = SequenceWindows([text], length=20, reverse_complement=True, seed=3)
    texts = chunks(text, 20)
    forward, _ = expected(texts, 20)
    backward, _ = expected([reverse_complement(chunk) for chunk in texts], 20)
    turned = []
    for epoch in range(3):
        tokens, targets = everything(windows, epoch)
        other = (tokens == backward).all(1)
        assert (other | (tokens == forward).all(1)).all()
        truth = [reverse_complement(chunk) if flag else chunk for chunk, flag in zip(texts, other, strict=True)]
        assert equal((tokens, targets), expected(truth, 20))
        turned.append(other)
    for other in turned:
        assert 430 < other.sum() < 570  # of 1000; four and a half standard deviations
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert 430 < (turned[one] == turned[two]).sum() < 570


def test_soft_masks_and_padding_stay_with_their_letters():
    text = "AACCGttg"
    windows = SequenceWindows([text], length=10, reverse_complement=True, soft_mask_weight=0.1, seed=0)
    seen = set()
    for epoch in range(20):
        for truth in (text, reverse_complement(text)):
            if equal(everything(windows, epoch), expected([truth], 10, 0.1)):
                seen.add(truth)
                break
        else:
            raise AssertionError(f"epoch {epoch} gives neither strand")
    assert seen == {text, reverse_complement(text)}


# Masks


def test_masked_windows_hide_as_many_bases_as_bert_does():
    text = letters(200_000, "ACGTN")
    windows = SequenceWindows([text], length=500, masked=True, seed=0)
    truth = torch.tensor(tokens_of(text)).reshape(-1, 500)
    tokens, targets = everything(windows)
    assert tokens.dtype == torch.int64
    chosen = ~targets[:, 0].isnan()
    assert torch.equal(chosen, ~targets[:, 1].isnan())
    assert torch.equal(targets[:, 0][chosen].long() + 7, truth[chosen])  # and so none is N
    assert torch.equal(tokens[~chosen], truth[~chosen])
    n = int(chosen.sum())
    assert n / (truth != 11).sum() == pytest.approx(0.15, abs=0.004)
    assert (tokens[chosen] == MASK).sum() / n == pytest.approx(0.8, abs=0.012)
    others = tokens[chosen][tokens[chosen] != MASK]
    changed = others != truth[chosen][tokens[chosen] != MASK]
    assert changed.sum() / n == pytest.approx(0.1 * 3 / 4, abs=0.008)  # a base drawn at random may be the true one
    counts = torch.bincount(others[changed] - 7, minlength=4) / changed.sum()
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.04)
    again, _ = everything(windows, epoch=1)
    assert ((again == MASK) & (tokens == MASK)).sum() / (tokens == MASK).sum() == pytest.approx(0.12, abs=0.02)


def test_masked_windows_follow_fraction_strand_weights_and_padding():
    text = letters(95, "ACGTacgt")
    windows = SequenceWindows(
        [text], length=30, masked=True, mask_fraction=1, soft_mask_weight=0.5, reverse_complement=True, seed=0
    )
    tokens, targets = everything(windows)
    assert tokens.shape == (4, 30)
    for row, chunk in enumerate(chunks(text, 30)):
        candidates = []
        for strand in (chunk, reverse_complement(chunk)):
            _, truth = expected([strand], 30, 0.5)
            candidates.append(equal((targets[row : row + 1],), (truth,)))
        assert any(candidates)
    assert (tokens[3, 5:] == PAD).all()
    assert targets[3, :, 5:].isnan().all()
    assert not (tokens == BOS).any()


# Rows of a schedule


def test_a_schedule_cuts_windows_into_rows_of_the_same_bases(genome):
    schedule = [(0.0, 4), (0.25, 10), (0.5, 20)]
    source = [*genome.values()]
    windows = SequenceWindows(source, length=20, lengths=schedule, max_epochs=8, seed=0)
    assert [windows.row_length(epoch) for epoch in range(10)] == [4, 4, 10, 10, 20, 20, 20, 20, 20, 20]
    texts = [chunk for text in source for chunk in chunks(text, 20)]
    for epoch, length in ((0, 4), (1, 4), (3, 10), (4, 20)):
        rows = [text[start : start + length] for text in texts for start in range(0, 20, length)]
        found = everything(windows, epoch)
        assert found[0].shape == (len(windows) * 20 // length, length)
        assert equal(found, expected(rows, length))
    batch = windows.__getitems__([len(windows) + 3, len(windows) + 1])  # any order
    whole = everything(windows, 1)
    assert equal(batch, [torch.cat([part[15:20], part[5:10]]) for part in whole])


def test_a_schedule_changes_neither_shifts_nor_strands_nor_masks():
    options = {"length": 20, "shift": True, "reverse_complement": True, "masked": True, "seed": 5}
    source = [letters(411)]
    whole = SequenceWindows(source, **options)
    cut = SequenceWindows(source, lengths=[(0.5, 5)], max_epochs=4, **options)
    for epoch in range(4):
        found, truth = everything(cut, epoch), everything(whole, epoch)
        assert found[0].shape == ((len(whole), 20) if epoch < 2 else (4 * len(whole), 5))
        assert torch.equal(found[0].reshape(-1, 20), truth[0])
        split = truth[1].unflatten(2, (-1, found[0].shape[1])).transpose(1, 2).flatten(0, 1)
        assert equal((found[1],), (split,))


def test_windows_of_epochs_that_are_cut_apart_make_no_batch():
    windows = SequenceWindows(["ACGT" * 9], length=12, lengths=[(0, 6), (0.5, 12)], max_epochs=2, seed=0)
    with pytest.raises(ValueError, match="rows of different lengths make no batch"):
        windows.__getitems__([0, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be an integer at least 1, got 0"),
        ({"min_length": 21}, "min_length must be an integer at least 1 and at most 20, got 21"),
        ({"mask_fraction": 0}, "mask_fraction must be a number above 0 and at most 1, got 0"),
        ({"soft_mask_weight": -1}, "soft_mask_weight must be a number at least 0, got -1"),
        ({"lengths": [(0, 3)]}, "lengths holds 3, which does not divide length=20"),
        ({"lengths": [(0, 40)]}, "a length in lengths must be an integer at least 1 and at most 20, got 40"),
        ({"lengths": [(1.0, 10)]}, "a share in lengths must be .* below 1, got 1.0"),
        ({"lengths": [(0, 5), (0.05, 10)], "max_epochs": 4}, "leaves one of its lengths no epoch of its own"),
        ({"lengths": [(0.5, 5), (0.0, 10)], "max_epochs": 4}, "leaves one of its lengths no epoch of its own"),
        ({"lengths": [(0.9, 5)], "max_epochs": 2}, "leaves one of its lengths no epoch of its own"),
        ({"regions": [1]}, "regions are of a FASTA file"),
        ({"prompts": [16]}, "prompts must be one token for each string of a causal model, got 1"),
        ({"prompts": [16, 17], "masked": True}, "leave them out for FASTA files and masked windows"),
        ({"source": ["AC", "AXC"]}, "sequence 1, counted from 0: the letter 'X' at position 2"),
    ],
)
def test_impossible_parameters_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SequenceWindows(**{"source": ["ACGT" * 9, "TT"], "length": 20, "seed": 0} | changes)


def test_sources_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="put a single string into a list"):
        SequenceWindows("ACGT", length=2, seed=0)
    with pytest.raises(TypeError, match="sequence 1, counted from 0: a sequence must be str or bytes, got int"):
        SequenceWindows(["ACGT", 3], length=2, seed=0)


def test_letters_of_a_file_are_checked_before_any_training(tmp_path):
    with pytest.raises(ValueError, match=r"p.fa, in 10 letters of kinase from 0 on: the letter 'E' at position 6"):
        SequenceWindows(Fasta(write_fasta(tmp_path / "p.fa", {"kinase": "ACGTMEEPQA"})), length=5, seed=0)


def test_prompts_come_before_each_row_of_their_string():
    text = "ACGTA" + "N" * 8 + "GGT"
    windows = SequenceWindows(
        ["CC", text], length=8, lengths=[(0.5, 4)], max_epochs=2, prompts=[16, 18], reverse_complement=False, seed=0
    )
    tokens, targets = everything(windows)
    assert tokens[:, 0].tolist() == [16, 18, 18]
    tokens, targets = everything(windows, 1)
    assert tokens[:, 0].tolist() == [16, 16, 18, 18, 18, 18]
    tokens[:, 0] = BOS
    assert equal((tokens, targets), expected(["CC", "", "ACGT", "A", "GGT", ""], 4))


# Scoring


def test_batches_for_scoring_begin_with_bos_and_are_padded():
    tokens, lengths = encode_batch(["acgN", "", b"TTRTT"])
    assert tokens.tolist() == [[2, 7, 8, 9, 11, 4], [2, 4, 4, 4, 4, 4], [2, 10, 10, 11, 10, 10]]
    assert lengths.tolist() == [4, 0, 5]
    assert tokens.dtype == lengths.dtype == torch.int64


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match="sequence 1, counted from 0: the letter '-' at position 3"):
        encode_batch(["A", "AC-"])
    with pytest.raises(ValueError, match="there is no sequence to encode"):
        encode_batch([])
    with pytest.raises(TypeError, match="put a single string into a list"):
        encode_batch("ACGT")
    with pytest.raises(TypeError, match="sequence 0, counted from 0: a sequence must be str or bytes, got None"):
        encode_batch([None])

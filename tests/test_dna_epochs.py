"""What windows of DNA draw in each epoch: the same in any process, after any other epoch, and of any file."""

import copy
import pickle
import shutil
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from dna_cases import genomics, plain_read, reverse_complement, write_fasta
from dna_window_cases import equal, everything, expected, letters
from torch.utils.data import DataLoader

from ssmseq.checkpoints import _checksum
from ssmseq.dna import fasta as fasta_module
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.regions import hold_out, read_regions
from ssmseq.dna.windows import SequenceWindows
from ssmseq.sampling import EpochSampler


@pytest.fixture
def genome(tmp_path) -> dict[str, str]:
    return {"a": letters(1000, "ACGTNacgtn"), "b": letters(333, seed=1), "c": letters(7, seed=2)}


@pytest.fixture
def fasta(tmp_path, genome) -> Fasta:
    return Fasta(write_fasta(tmp_path / "g.fa", genome, width=13))


DRAWN = {"shift": True, "reverse_complement": True, "soft_mask_weight": 0.1}


@pytest.mark.parametrize("masked", [False, True])
def test_a_seed_repeats_all_and_another_changes_it(genome, masked):
    source = [*genome.values()]
    windows, again, other = (
        SequenceWindows(source, length=16, masked=masked, seed=seed, **DRAWN) for seed in (1, 1, 2)
    )
    assert equal(everything(windows, 5), everything(again, 5))  # without the epochs before it
    assert not torch.equal(everything(windows, 5)[0], everything(other, 5)[0])
    assert not torch.equal(everything(windows, 5)[0], everything(windows, 6)[0])
    order = np.random.default_rng(0).permutation(len(windows))
    alone = [windows.__getitems__([5 * len(windows) + i]) for i in order]
    truth = everything(windows, 5)
    assert equal([torch.cat(part) for part in zip(*alone, strict=True)], [part[order] for part in truth])


def batches(windows: SequenceWindows, epochs, **options) -> list:
    sampler = EpochSampler(len(windows), 7, numbers_epochs=windows.numbers_epochs)
    found = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found += [*DataLoader(windows, batch_size=5, sampler=sampler, collate_fn=tuple, **options)]
    return found


@pytest.mark.parametrize(
    ("method", "kind", "num_workers"),
    [
        ("fork", "file", 2),
        ("fork", "strings", 2),
        ("spawn", "file", 1),  # each process that is spawned loads torch anew, which takes seconds
        pytest.param("spawn", "strings", 2, marks=pytest.mark.slow),
    ],
)
def test_workers_give_the_batches_that_one_process_gives(fasta, genome, method, kind, num_workers):
    source = fasta if kind == "file" else [*genome.values()]
    windows = SequenceWindows(source, length=16, masked=kind == "strings", seed=1, **DRAWN)
    alone = batches(windows, [2])
    shared = batches(windows, [2], num_workers=num_workers, multiprocessing_context=method)
    assert len(alone) == len(shared) == -(-len(windows) // 5)
    assert all(equal(one, two) for one, two in zip(alone, shared, strict=True))


def test_an_epoch_does_not_depend_on_those_before_it(fasta):
    windows = SequenceWindows(fasta, length=16, lengths=[(0, 8), (0.5, 16)], max_epochs=4, seed=1, **DRAWN)
    n = -(-len(windows) // 5)
    whole, resumed = batches(windows, range(4)), batches(pickle.loads(pickle.dumps(windows)), [2, 3])
    assert len(whole) == 4 * n
    assert all(equal(one, two) for one, two in zip(whole[2 * n :], resumed, strict=True))


def test_a_checkpoint_knows_windows_by_their_letters_and_not_by_their_place(tmp_path, genome):
    def windows(name: str, genome: dict[str, str], **options) -> str:
        fasta = Fasta(write_fasta(tmp_path / name, genome))
        return _checksum(SequenceWindows(fasta, **{"length": 16, "seed": 1, "max_epochs": 3} | options))

    one = windows("g.fa", genome)
    assert windows("moved.fa", genome) == one
    assert windows("g.fa", genome, max_epochs=9) == one  # a run can be prolonged
    changed = copy.copy(genome)
    changed["b"] = changed["b"][:-1] + ("A" if changed["b"][-1] != "A" else "C")
    case = copy.copy(genome)
    case["a"] = case["a"].upper()
    others = [
        windows("g.fa", changed),
        windows("g.fa", case),
        windows("g.fa", genome, length=8),
        windows("g.fa", genome, shift=True),
        windows("g.fa", genome, reverse_complement=True),
        windows("g.fa", genome, masked=True),
        windows("g.fa", genome, lengths=[(0.5, 8)]),
    ]
    assert len({one, *others}) == len(others) + 1


def test_a_pickle_of_a_file_holds_no_letters(tmp_path):
    fasta = Fasta(write_fasta(tmp_path / "g.fa", {"a": letters(100_000)}))
    windows = SequenceWindows(fasta, length=64, seed=0, **DRAWN)
    assert len(pickle.dumps(windows)) < 5000


# A real genome


@pytest.mark.parametrize("method", [None, "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_windows_of_e_coli_are_slices_of_the_file(tmp_path, monkeypatch, method):
    monkeypatch.setattr(fasta_module, "cache_dir", lambda: tmp_path / "cache")
    path = shutil.copyfile(genomics("ecoli", "GCF_000005845.2_ASM584v2_genomic.fna.gz"), tmp_path / "e.fna.gz")
    with warnings.catch_warnings(action="ignore"):
        fasta = Fasta(path)
    (text,) = plain_read(path).values()
    train, _ = hold_out(read_regions(None, fasta), fasta, 0.1)
    windows = SequenceWindows(fasta, train, length=1024, shift=True, reverse_complement=True, seed=0)
    assert len(windows) == 4_177_487 // 1024 + 2  # one more than without shifts
    n, strands = len(windows), Counter()
    for epoch in (0, 4):
        indices = [epoch * n + i for i in [0, n - 1, *range(5, n, 250)]]
        workers = {"num_workers": 2, "multiprocessing_context": method} if method else {}
        loader = DataLoader(windows, sampler=indices, batch_size=4, collate_fn=tuple, **workers)
        tokens = torch.cat([batch[0] for batch in loader])
        for index, row in zip(indices, tokens, strict=True):
            _, start, end = windows.place(epoch, index % n)
            forward = text[start:end]
            candidates = {strand: expected([strand], 1024)[0][0] for strand in (forward, reverse_complement(forward))}
            (found,) = (strand for strand, truth in candidates.items() if torch.equal(row, truth))
            strands[found == forward] += 1
    assert min(strands[True], strands[False]) > 5

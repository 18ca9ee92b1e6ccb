"""FASTA files of every kind against reading them whole, and the errors of those that cannot be read."""

import gzip
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from dna_cases import block_gzip, genomics, many_pieces, plain_read, tokens_of, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.dna import fasta as module
from ssmseq.dna.fasta import Fasta

RNG = np.random.default_rng(0)
GENOME = {name: "".join(RNG.choice(list("ACGTNacgtn"), size)) for name, size in (("one", 731), ("two", 60), ("x", 1))}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path) -> Path:
    return write_fasta(tmp_path / "genome.fa", GENOME)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Fasta]:
    """The genome with lines of several widths, and Windows' line ends."""
    folder = tmp_path_factory.mktemp("widths")
    return {
        f"{width} {newline!r}": Fasta(
            write_fasta(folder / f"{width}{len(newline)}.fa", GENOME, width=width, newline=newline)
        )
        for width in (1, 7, 60, 1000)
        for newline in ("\n", "\r\n")
    }


@pytest.fixture
def read_only():
    """A folder that nothing can be written to, not even by root."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    write_fasta(folder / "genome.fa", GENOME)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("width", [1, 7, 60, 1000])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@settings(max_examples=60)
@given(contig=st.sampled_from([*GENOME]), places=st.tuples(st.integers(0, 731), st.integers(0, 731)))
def test_any_part_is_that_of_the_whole(files, width, newline, contig, places):
    fasta, text = files[f"{width} {newline!r}"], GENOME[contig]
    start, end = sorted(min(place, len(text)) for place in places)
    assert fasta.fetch(contig, start, end) == text[start:end]
    tokens, soft = fasta.read(contig, start, end)
    assert tokens.tolist() == fasta.tokens(contig, start, end).tolist() == tokens_of(text[start:end])
    assert soft.tolist() == [letter.islower() for letter in text[start:end]]


@settings(max_examples=60)
@given(start=st.integers(-900, 900), size=st.integers(0, 1000))
def test_padding_is_n_on_both_sides(files, start, size):
    text = "N" * 1000 + GENOME["one"] + "N" * 2000
    found = files["7 '\\n'"].tokens("one", start, start + size, pad=True)
    assert found.dtype == np.uint8
    assert found.tolist() == tokens_of(text[1000 + start : 1000 + start + size])


def test_contigs_are_the_first_words_in_the_order_of_the_file(path):
    fasta = Fasta(str(path))
    assert [*fasta.contigs.items()] == [("one", 731), ("two", 60), ("x", 1)]
    assert repr(fasta) == f"Fasta({str(path)!r})"


def test_a_path_may_be_relative_or_go_up(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert Fasta("genome.fa").contigs == {"one": 731, "two": 60, "x": 1}
    Path("genome.fa.fai").unlink()
    (path.parent / "sub").mkdir()
    fasta = Fasta("sub/../genome.fa")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(fasta)).fetch("two", 0, 60) == GENOME["two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("three", 0, 1), r"genome.fa has no contig 'three': its contigs are one, two, x"),
        (("chrx", 0, 1), r"no contig 'chrx': rename it to x"),
        (("one", 0, 732), r"one:0-732 is no part of one in .*genome.fa, which has 731 bases"),
        (("one", -1, 3), r"one:-1-3 is no part"),
        (("one", 5, 4), r"start <= end is needed"),
    ],
)
def test_parts_that_are_not_there_are_named(path, arguments, message):
    for method in (Fasta(path).fetch, Fasta(path).tokens):
        with pytest.raises(ValueError, match=message):
            method(*arguments)


def test_padding_does_not_excuse_the_impossible(path):
    fasta = Fasta(path)
    with pytest.raises(ValueError, match="no contig 'three'"):
        fasta.tokens("three", 0, 1, pad=True)
    with pytest.raises(ValueError, match="one:9-8 ends before it starts"):
        fasta.tokens("one", 9, 8, pad=True)
    with pytest.raises(TypeError, match=r"positions must be integers, in bases from 0, got 1\.0"):
        fasta.tokens("one", 1.0, 8, pad=True)
    assert fasta.fetch("one", np.int64(1), np.uint8(3)) == GENOME["one"][1:3]


# Files that are no FASTA


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad.fa cannot be read as FASTA: .*does not contain a valid sequence"),
        (b"\n\n", "does not contain a valid sequence"),
        (b"ACGT\n", r"Unexpected text before .* line 1.* a line of '>' and its name"),
        (b">a\nAC\n>a b\nGT\n", r'Duplicate key "a".* Give every sequence a name of its own'),
        (b">a\nACGT\nAC\nACGT\n", r"not consistent.* >a at line 3.* Wrap all lines of a sequence at one width"),
        (b">\nACGT\n", "Bad sequence name >"),
        (b">a\n", "bad.fa holds headers and no bases"),
        (b">a\xff\nACGT\n", "cannot be read as FASTA: 'utf-8' codec"),
    ],
)
def test_a_bad_file_is_named_with_the_remedy(tmp_path, content, message):
    (tmp_path / "bad.fa").write_bytes(content)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        Fasta(tmp_path / "bad.fa")


def test_a_protein_is_named_with_contig_and_place(tmp_path):
    fasta = Fasta(write_fasta(tmp_path / "p.fa", {"kinase": "ACGT" + "MEEPQSDPSV"}))
    assert fasta.fetch("kinase", 4, 7) == "MEE"
    with pytest.raises(ValueError, match=r"p.fa, in 8 letters of kinase from 2 on: .* 'E' at position 4 .*prot"):
        fasta.tokens("kinase", 2, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.fa.gz", "gzip did not pack it: unpack it, or drop the suffix .gz"), ("a.fa.bz2", "packed in another way")],
)
def test_names_of_packed_files_must_be_true(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        Fasta(write_fasta(tmp_path / name, GENOME))


def test_missing_files_and_folders_are_named(tmp_path):
    for missing in (tmp_path / "no.fa", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"there is no FASTA file {missing}"):
            Fasta(missing)


def test_empty_records_are_contigs_without_bases(tmp_path):
    (tmp_path / "e.fa").write_text(">a\n>b\nACG\n\n>c\n")
    fasta = Fasta(tmp_path / "e.fa")
    assert fasta.contigs == {"a": 0, "b": 3, "c": 0}
    assert fasta.fetch("c", 0, 0) == ""
    assert fasta.fetch("b", 1, 3) == "CG"


# The index


def test_a_fitting_index_is_kept_and_nothing_but_it_is_written(path):
    Fasta(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["genome.fa", "genome.fa.fai"]
    # Columns by the specification of samtools: name, bases, place of the first, bases and bytes of a line.
    assert (path.parent / "genome.fa.fai").read_text().splitlines()[0] == "one\t731\t15\t60\t61"
    before = (path.parent / "genome.fa.fai").stat()
    assert Fasta(path).contigs["one"] == 731
    after = (path.parent / "genome.fa.fai").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


@pytest.mark.parametrize(
    "age", ["older", "younger, of a shorter file", "younger, of a longer file", "damaged", "empty"]
)
def test_an_index_of_another_file_is_replaced(path, age):
    Fasta(path)
    index = Path(f"{path}.fai")
    changed = {"one": "GG" + GENOME["one"], "two": GENOME["two"], "x": "A" * 100}
    if age == "older":  # and of the same size, so that nothing but its age tells
        changed = {"two": GENOME["one"], "one": GENOME["two"], "x": "A"}
    if "shorter" in age:
        changed["x"] = "A"
        changed["one"] = "GG"
    write_fasta(path, changed, width=60 if age == "older" else 31)
    if age == "older":
        os.utime(index, ns=(path.stat().st_mtime_ns - 1,) * 2)
    elif "younger" in age:
        os.utime(path, (1, 1))
    else:
        os.utime(path, (1, 1))
        index.write_text("one\tmany\n" if age == "damaged" else "")
    fasta = Fasta(path)
    assert fasta.contigs == {name: len(letters) for name, letters in changed.items()}
    assert all(fasta.fetch(name, 0, len(letters)) == letters for name, letters in changed.items())


def test_in_a_read_only_folder_the_index_goes_to_the_cache(read_only, monkeypatch):
    place = Path(tempfile.mkdtemp())
    monkeypatch.setattr(module, "cache_dir", lambda: place)
    for _ in range(2):
        fasta = Fasta(read_only / "genome.fa")
        assert fasta.fetch("one", 3, 700) == GENOME["one"][3:700]
    assert [p.name for p in read_only.iterdir()] == ["genome.fa"]
    (index,) = (place / "fasta").iterdir()
    assert index.name.endswith("-genome.fa.fai")
    shutil.rmtree(place)


def test_without_any_place_for_the_index_the_remedy_is_named(read_only, monkeypatch):
    monkeypatch.setattr(module, "cache_dir", lambda: read_only / "cache")
    with pytest.raises(ValueError, match=r"genome.fa can be written neither beside it nor .*samtools faidx"):
        Fasta(read_only / "genome.fa")


def test_a_file_that_changes_while_it_is_open_is_not_opened_again(path):
    fasta = Fasta(path)
    copy = pickle.loads(pickle.dumps(fasta))
    write_fasta(path, {"one": "A" * 800})
    with pytest.raises(ValueError, match=r"genome.fa has changed since it was opened: make a new Fasta"):
        copy.fetch("one", 0, 5)


def test_an_index_that_gives_too_few_letters_is_named(path):
    fasta = Fasta(path)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match=r"gives \d+ letters for the 731 of one:0-731.*genome.fa.fai is of another"):
        fasta.fetch("one", 0, 731)


# Packed files


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["genome.fa.gz", "genome.fa.bgz", "genome.fa"])
def test_gzip_is_unpacked_once_with_one_warning(path, cache, name):
    content = path.read_bytes()
    packed(path.with_name(name), gzip.compress(content))
    with pytest.warns(UserWarning, match=r"packed by gzip.* unpacked into .*-genome.fa, .* bgzip") as caught:
        fasta = Fasta(path.with_name(name))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    (copy,) = (p for p in (cache / "fasta").iterdir() if p.suffix == ".fa")
    assert copy.read_bytes() == content
    assert str(copy) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Fasta(path.with_name(name))
    for found in (fasta, again, pickle.loads(pickle.dumps(fasta))):
        assert {contig: found.fetch(contig, 0, size) for contig, size in found.contigs.items()} == GENOME
    assert fasta.path.name == name


def test_a_changed_gzip_file_is_unpacked_again(path):
    for genome in (GENOME, {"one": "AC"}):
        packed(path.with_name("g.fa.gz"), gzip.compress(write_fasta(path, genome).read_bytes()))
        with pytest.warns(UserWarning, match="unpacked"):
            assert Fasta(path.with_name("g.fa.gz")).contigs == {name: len(text) for name, text in genome.items()}


def test_gzip_without_a_cache_is_refused_with_the_remedy(path, cache):
    cache.write_text("a file where the folder should be")
    packed(path.with_name("g.fa.gz"), gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"g.fa.gz is packed by gzip .* no unpacked copy .*cache.*unpack the file"):
        Fasta(path.with_name("g.fa.gz"))


@pytest.mark.parametrize("content", [b"half", b"flipped"])
def test_damaged_gzip_is_named_and_leaves_nothing(path, cache, content):
    whole = bytearray(gzip.compress(path.read_bytes()))
    if content == b"half":
        del whole[len(whole) // 2 :]
    else:
        whole[-5] ^= 1
    with pytest.raises(ValueError, match=r"g.fa.gz is a damaged gzip file .* download it again"):
        Fasta(packed(path.with_name("g.fa.gz"), bytes(whole)))
    assert [*(cache / "fasta").iterdir()] == []


def test_bgzip_without_biopython_names_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "Bio", None)
    packed(path.with_name("g.fa.gz"), block_gzip(path.read_bytes()))
    with pytest.raises(ImportError, match=r"g.fa.gz is packed by bgzip.*pip install biopython"):
        Fasta(path.with_name("g.fa.gz"))


@settings(max_examples=60)
@given(contig=st.sampled_from([*GENOME]), places=st.tuples(st.integers(0, 731), st.integers(0, 731)))
def test_any_part_of_a_bgzip_file_is_that_of_the_whole(blocks, contig, places):
    text = GENOME[contig]
    start, end = sorted(min(place, len(text)) for place in places)
    assert blocks.fetch(contig, start, end) == text[start:end]
    assert blocks.tokens(contig, start, end).tolist() == tokens_of(text[start:end])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> Fasta:
    pytest.importorskip("Bio")
    folder = tmp_path_factory.mktemp("blocks")
    content = write_fasta(folder / "g.fa", GENOME).read_bytes()
    return Fasta(packed(folder / "g.fa.gz", block_gzip(content, 100)))


def test_bgzip_keeps_two_indexes_beside_it_and_no_copy(blocks, cache):
    names = sorted(p.name for p in blocks.path.parent.iterdir())
    assert names == ["g.fa", "g.fa.gz", "g.fa.gz.fai", "g.fa.gz.gzi"]
    assert not cache.exists()
    assert Fasta(blocks.path).contigs == blocks.contigs


def test_a_bgzip_file_that_was_cut_off_is_named(path):
    pytest.importorskip("Bio")
    with pytest.raises(ValueError, match="cannot be read as FASTA: .*EOF marker not found.* cut off"):
        Fasta(packed(path.with_name("g.fa.gz"), block_gzip(path.read_bytes())[:-28]))


# Processes


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_at_once_what_one_reads(path, method):
    fasta = Fasta(path)
    fasta.fetch("one", 0, 5)  # the parent's handle is open
    with multiprocessing.get_context(method).Pool(3) as pool:
        found = pool.starmap(many_pieces, [(fasta, seed) for seed in range(12)])
    for seed, texts in enumerate(found):
        places = np.random.default_rng(seed).integers(0, 700, 300).tolist()
        assert texts == [GENOME["one"][place : place + 31] for place in places]


def test_a_forked_process_has_a_handle_of_its_own(path):
    fasta = Fasta(path)
    handle = fasta._reader()
    assert fasta._reader() is handle
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(fasta._reader() is handle))
    child.start()
    assert receiver.recv() is False
    child.join()


# Real genomes


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ecoli/GCF_000005845.2_ASM584v2_genomic.fna.gz", {"NC_000913.3": 4_641_652}),
        ("small/lambda_virus.fa", {"gi|9626243|ref|NC_001416.1|": 48_502}),
        ("small/A.thaliana.1pct.fa.gz", {"Chr1": 304_276, "ChrC": 1_544}),
        ("small/hg38_chr22_32000000_32300000.fa.gz", {"chr22": 300_000}),
        ("small/hg38_1m.fa.gz", {"chr1": 1_000_000}),
    ],
)
def test_real_genomes_read_as_their_files_do(tmp_path, name, sizes):
    if "hg38_1m" in name:
        pytest.importorskip("Bio")  # it is packed by bgzip
    path = Path(shutil.copyfile(genomics(*name.split("/")), tmp_path / Path(name).name))
    with warnings.catch_warnings(action="ignore"):
        fasta = Fasta(path)
    assert sizes.items() <= fasta.contigs.items()
    rng = np.random.default_rng(0)
    for contig, text in plain_read(path).items():
        assert fasta.contigs[contig] == len(text)
        for start, end in np.sort(rng.integers(0, len(text) + 1, (20, 2)), axis=1).tolist():
            assert fasta.fetch(contig, start, end) == text[start:end]

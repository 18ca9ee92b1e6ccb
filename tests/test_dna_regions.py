"""Regions from files and frames against the genomes that they lie on, and what is held out of them."""

import gzip
import shutil
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import polars as pl
import pytest
from dna_cases import genomics, plain_read, reverse_complement, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.dna import fasta as fasta_module
from ssmseq.dna.alphabet import reverse_complement as other_strand
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.regions import check_apart, hold_out, read_regions

SIZES = {"chr1": 500, "chr2": 300, "chr3": 150, "plasmid": 50}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Fasta:
    rng = np.random.default_rng(0)
    genome = {name: "".join(rng.choice(list("ACGT"), size)) for name, size in SIZES.items()}
    return Fasta(write_fasta(tmp_path_factory.mktemp("genome") / "g.fa", genome))


def frame(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["contig", "start", "end", "strand", "name"])


def same(found: pd.DataFrame, *rows) -> bool:
    return found.to_numpy().tolist() == [list(row) for row in rows]


BED = """\
# a comment
browser position chr1
track name=peaks description="my peaks"
chr1\t0\t10

chr2\t3\t300\tpeak 1\t17\t-\textra\tcolumns
chr3 7 9
"""
READ = [("chr1", 0, 10, ".", ""), ("chr2", 3, 300, "-", "peak 1"), ("chr3", 7, 9, ".", "")]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.bed", "a.bed.gz", "A.BED", "a.narrowPeak"])
def test_bed_is_read_with_or_without_names(tmp_path, fasta, name, newline):
    content = BED.replace("\n", newline).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = read_regions(tmp_path / name, fasta)
    assert same(found, *READ)
    assert found.columns.tolist() == ["contig", "start", "end", "strand", "name"]
    assert found["start"].dtype == found["end"].dtype == np.int64


GFF = """\
##gff-version 3
chr1\tX\tgene\t1\t10\t.\t+\t.\tID=g1;Name=thr%3BA;note=x
chr1\tX\tCDS\t4\t4\t.\t-\t0\tID=c1; Parent=g1
#
chr2\tX\tgene\t291\t300\t.\t?\t.\tnote=no name
###
##FASTA
>chr1
ACGT
"""
GTF = """\
#!genome-build toy
chr1\tX\tgene\t1\t10\t.\t+\t.\tgene_id "G1"; gene_name "thrA";
chr1\tX\texon\t2\t5\t.\t+\t.\tgene_id "G1"; transcript_id "T1"; exon_number 1;
"""


def test_gff_counts_from_1_and_includes_the_end(tmp_path, fasta):
    (tmp_path / "a.gff3").write_text(GFF)
    genes = read_regions(tmp_path / "a.gff3", fasta, feature="gene")
    assert same(genes, ("chr1", 0, 10, "+", "thr;A"), ("chr2", 290, 300, ".", ""))
    both = read_regions(tmp_path / "a.gff3", fasta, feature=["CDS", "gene"])
    assert same(both, ("chr1", 0, 10, "+", "thr;A"), ("chr1", 3, 4, "-", "c1"), ("chr2", 290, 300, ".", ""))


def test_gtf_names_are_read(tmp_path, fasta):
    (tmp_path / "a.gtf").write_text(GTF)
    assert same(read_regions(tmp_path / "a.gtf", fasta, feature="gene"), ("chr1", 0, 10, "+", "thrA"))
    assert same(read_regions(tmp_path / "a.gtf", fasta, feature="exon"), ("chr1", 1, 5, "+", "T1"))


def test_features_must_be_chosen_and_be_there(tmp_path, fasta):
    (tmp_path / "a.gff3").write_text(GFF)
    with pytest.raises(ValueError, match=r"a.gff3 holds features that overlap.*'gene' \(2\), 'CDS' \(1\)"):
        read_regions(tmp_path / "a.gff3", fasta)
    with pytest.raises(ValueError, match=r"a.gff3 has no feature exon; it has gene \(2\), CDS \(1\)"):
        read_regions(tmp_path / "a.gff3", fasta, feature=["gene", "exon"])
    (tmp_path / "a.bed").write_text("chr1\t0\t1\n")
    with pytest.raises(ValueError, match="feature='gene' selects from GFF3 and GTF"):
        read_regions(tmp_path / "a.bed", fasta, feature="gene")
    with pytest.raises(ValueError, match="feature='gene' selects from GFF3 and GTF"):
        read_regions(None, fasta, feature="gene")


def test_without_a_source_all_contigs_are_taken(fasta, tmp_path):
    assert same(read_regions(None, fasta), *((name, 0, size, ".", name) for name, size in SIZES.items()))
    (tmp_path / "e.fa").write_text(">a\n>b\nAC\n")
    assert same(read_regions(None, Fasta(tmp_path / "e.fa")), ("b", 0, 2, ".", "b"))


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_frames_of_any_library_are_read(fasta, library):
    columns = {"name": ["a", "b"], "chrom": ["chr1", "chr2"], "end": [10, 20], "start": [0.0, 5.0], "score": [1, 2]}
    assert same(read_regions(library(columns), fasta), ("chr1", 0, 10, ".", "a"), ("chr2", 5, 20, ".", "b"))
    again = read_regions(read_regions(library(columns | {"strand": ["+", "-"]}), fasta), fasta)
    assert same(again, ("chr1", 0, 10, "+", "a"), ("chr2", 5, 20, "-", "b"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chrX\t0\t5", "has no contig 'chrX'"),
        ("2\t0\t5", "no contig '2': rename it to chr2"),
        ("chr1\t5\t5", r"the region chr1:5-5 holds no base"),
        ("chr1\t6\t5", r"chr1:6-5 is no part"),
        ("chr1\t490\t501", r"chr1:490-501 is no part of chr1 in .*g.fa, which has 500 bases"),
        ("chr1\t-1\t5", r"chr1:-1-5 is no part"),
        ("chr1\t1.5\t5", "positions must be integers, got '1.5'"),
        ("chr1\t1", "BED needs a contig, a start and an end"),
        ("chr1\t1\t5\ta\t0\tforward", "strand must be .* got 'forward'"),
    ],
)
def test_wrong_lines_are_named_with_file_and_line(tmp_path, fasta, line, message):
    (tmp_path / "a.bed").write_text(f"# comment\n\nchr1\t0\t500\n{line}\n")
    with pytest.raises(ValueError, match=rf"a.bed, line 4: .*{message}"):
        read_regions(tmp_path / "a.bed", fasta)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chr1\tX\tgene\t0\t5\t.\t+\t.\tID=a", "chr1:-1-5 is no part"),
        ("chr1\tX\tgene\t6\t5\t.\t+\t.\tID=a", "chr1:5-5 holds no base"),
        ("chr1\tX\tgene\t6\t501\t.\t+\t.\tID=a", "chr1:5-501 is no part"),
        ("chr1\tX\tgene\t6\t50\t.\t+", "have 9 columns between tabs, got 7"),
    ],
)
def test_wrong_features_are_named_with_file_and_line(tmp_path, fasta, line, message):
    (tmp_path / "a.gff").write_text(f"##gff-version 3\n{line}\n")
    with pytest.raises(ValueError, match=rf"a.gff, line 2: .*{message}"):
        read_regions(tmp_path / "a.gff", fasta, feature="gene")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": [0, 500]}, "row 1 of the data frame of regions: the region chr1:500-500 holds no base"),
        ({"start": [np.nan, 1]}, "row 0 .*: start must be an integer, got nan"),
        ({"end": [5.5, 500]}, "row 0 .*: end must be an integer, got 5.5"),
        ({"end": ["5", "500"]}, "row 0 .*: end must be an integer, got '5'"),
        ({"contig": ["chr1", "chr9"]}, "row 1 .* no contig 'chr9'"),
        ({"strand": ["+", 1]}, "row 1 .* strand must be .* got 1"),
    ],
)
def test_wrong_rows_of_frames_are_named(fasta, changes, message):
    rows = {"contig": ["chr1", "chr1"], "start": [0, 1], "end": [5, 500]}
    with pytest.raises(ValueError, match=message):
        read_regions(pd.DataFrame(rows | changes), fasta)


def test_sources_that_are_none_are_refused(tmp_path, fasta):
    with pytest.raises(FileNotFoundError, match="no file of regions"):
        read_regions(tmp_path / "a.bed", fasta)
    (tmp_path / "a.txt").write_text("chr1\t0\t1\n")
    with pytest.raises(ValueError, match=r"a.txt has none of the suffixes .bed, .* rename it by its format"):
        read_regions(tmp_path / "a.txt", fasta)
    (tmp_path / "a.bed").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"a.bed holds no region"):
        read_regions(tmp_path / "a.bed", fasta)
    (tmp_path / "b.bed").write_bytes(gzip.compress(b"chr1\t0\t1\n")[:-9])
    with pytest.raises(ValueError, match=r"b.bed cannot be read as text .*download it again"):
        read_regions(tmp_path / "b.bed", fasta)
    with pytest.raises(TypeError, match="path of a file, a data frame or None, got int"):
        read_regions(3, fasta)
    with pytest.raises(ValueError, match="has no column 'end'; it has contig, start"):
        read_regions(pd.DataFrame({"contig": ["chr1"], "start": [0]}), fasta)


# Holding out


def bases(regions: pd.DataFrame) -> list[tuple[str, int]]:
    return [(row.contig, place) for row in regions.itertuples() for place in range(row.start, row.end)]


def test_named_contigs_are_held_out(fasta):
    train, validation = hold_out(read_regions(None, fasta), fasta, ["chr3", "plasmid"])
    assert train["contig"].tolist() == ["chr1", "chr2"]
    assert validation["contig"].tolist() == ["chr3", "plasmid"]
    assert validation.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("fraction", "expected", "cut"),
    [
        (0.5, ["chr1"], None),  # exactly
        (0.36, ["chr2", "plasmid"], None),  # chr1 is too large, and so is chr3 after chr2
        (0.2, ["chr3", "plasmid"], None),
        (0.09, ["plasmid"], None),  # more than half of what is wanted
        (0.12, ["plasmid", "chr1"], 430),  # less than half, and so chr1's end as well
        (0.03, ["chr1"], 470),
    ],
)
def test_a_share_is_made_of_whole_contigs_or_the_end_of_one(fasta, fraction, expected, cut):
    regions = read_regions(None, fasta)
    train, validation = hold_out(regions, fasta, fraction)
    assert sorted(validation["contig"]) == sorted(expected)
    assert sorted(bases(train) + bases(validation)) == sorted(bases(regions))
    rows = validation.set_index("contig")
    for contig in expected:
        assert rows.loc[contig, "end"] == SIZES[contig]
        assert rows.loc[contig, "start"] == (cut if contig == "chr1" and cut else 0)


def test_a_single_contig_loses_its_last_part_and_regions_are_cut_there(fasta):
    regions = frame(("chr1", 0, 100, "+", "a"), ("chr1", 50, 60, "-", "b"), ("chr1", 80, 170, ".", "c"))
    train, validation = hold_out(regions, fasta, 0.25)
    # 200 bases of regions, of which 50 lie from 120 on
    assert same(train, ("chr1", 0, 100, "+", "a"), ("chr1", 50, 60, "-", "b"), ("chr1", 80, 120, ".", "c"))
    assert same(validation, ("chr1", 120, 170, ".", "c"))


@settings(max_examples=100)
@given(data=st.data(), fraction=st.floats(0.01, 0.99))
def test_a_share_of_any_regions_is_near_it_and_apart(fasta, data, fraction):
    rows = []
    for i in range(data.draw(st.integers(1, 8))):
        contig = data.draw(st.sampled_from([*SIZES]))
        start = data.draw(st.integers(0, SIZES[contig] - 30))
        rows.append((contig, start, data.draw(st.integers(start + 20, SIZES[contig])), "+", f"r{i}"))
    regions = frame(*rows)
    total = len(bases(regions))
    train, validation = hold_out(regions, fasta, fraction) if total * fraction > 10 else (regions, regions[:0])
    assert sorted(bases(train) + bases(validation)) == sorted(bases(regions))
    assert not set(bases(train)) & set(bases(validation))
    if total * fraction > 10:
        # Overlapping regions end at one border together, up to 8 at a base.
        assert fraction * total / 2 - 8 <= len(bases(validation)) <= fraction * total


def test_regions_of_their_own_are_held_out_unless_they_overlap(tmp_path, fasta):
    (tmp_path / "v.bed").write_text("chr1\t100\t200\tlate\nchr1\t0\t10\tearly\n")
    regions = frame(("chr1", 10, 100, "+", "a"), ("chr1", 200, 210, "+", "b"), ("chr2", 0, 300, "+", "c"))
    train, validation = hold_out(regions, fasta, tmp_path / "v.bed")
    assert train.equals(regions)
    assert validation["name"].tolist() == ["late", "early"]
    for wrong in (("chr1", 150, 151), ("chr1", 199, 300), ("chr1", 0, 101), ("chr1", 0, 500)):
        more = pd.concat([regions, frame((*wrong, "+", "bad"))], ignore_index=True)
        with pytest.raises(ValueError, match=rf"bad \(chr1:{wrong[1]}-{wrong[2]}\) to train on and .* share bases"):
            hold_out(more, fasta, str(tmp_path / "v.bed"))


def test_overlap_with_a_region_around_another_is_found():
    held = frame(("chr1", 0, 100, ".", "around"), ("chr1", 10, 20, ".", "within"))
    with pytest.raises(ValueError, match=r"mine \(chr1:50-60\) to train on and around \(chr1:0-100\) to validate with"):
        check_apart(frame(("chr1", 50, 60, ".", "mine")), held)


intervals = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 12)), max_size=6)


@settings(max_examples=200)
@given(train=intervals, validation=intervals)
def test_overlap_is_found_exactly_where_bases_are_shared(train, validation):
    mine, held = (
        frame(*((contig, start, start + size, ".", "") for contig, start, size in rows)) for rows in (train, validation)
    )
    if set(bases(mine)) & set(bases(held)):
        with pytest.raises(ValueError, match="share bases"):
            check_apart(mine, held)
    else:
        check_apart(mine, held)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (["chr9"], "no contig 'chr9'"),
        (list(SIZES), "leaves no region to train on"),
        ([], "leaves no region to validate with"),
        ("chr1", "give names of contigs as a list"),
        (0.0, "validation must be a number above 0 and below 1, got 0.0"),
        (1, "validation must be"),
    ],
)
def test_impossible_parts_are_refused(fasta, validation, message):
    with pytest.raises(ValueError, match=message):
        hold_out(read_regions(None, fasta), fasta, validation)


def test_a_contig_without_regions_cannot_validate(fasta):
    with pytest.raises(ValueError, match=r"\['chr2'\] leaves no region to validate with"):
        hold_out(frame(("chr1", 0, 100, "+", "a")), fasta, ["chr2"])


# Real genomes


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A function that opens a real FASTA; what it writes goes to a folder of the test."""
    monkeypatch.setattr(fasta_module, "cache_dir", lambda: tmp_path / "cache")

    def open_it(*parts: str) -> Fasta:
        path = shutil.copyfile(genomics(*parts), tmp_path / parts[-1])
        with warnings.catch_warnings(action="ignore"):
            return Fasta(path)

    return open_it


def test_genes_of_e_coli_begin_with_their_start_and_end_with_their_stop_codons(real):
    fasta = real("ecoli", "GCF_000005845.2_ASM584v2_genomic.fna.gz")
    path = genomics("ecoli", "GCF_000005845.2_ASM584v2_genomic.gff.gz")
    genes = read_regions(path, fasta, feature="gene")
    assert len(genes) == 4494  # as published
    coding = read_regions(path, fasta, feature="CDS")
    (genome,) = plain_read(fasta.path).values()
    for strand in "+-":
        mine = coding[coding["strand"] == strand]
        letters = [fasta.fetch(row.contig, row.start, row.end) for row in mine.itertuples()]
        assert letters[:50] == [genome[row.start : row.end] for row in mine[:50].itertuples()]
        if strand == "-":
            assert [other_strand(text) for text in letters[:50]] == [reverse_complement(text) for text in letters[:50]]
            letters = [other_strand(text) for text in letters]
        # Most begin with ATG; those that do not are joined from several rows, or begin in the other known ways.
        starts = Counter(text[:3] for text in letters)
        found = (starts["ATG"], starts["GTG"] + starts["TTG"], sum(t[-3:] in ("TAA", "TAG", "TGA") for t in letters))
        assert (len(letters), *found) == ((2116, 1893, 205, 2100) if strand == "+" else (2221, 1997, 213, 2216))
    thr = genes[genes["name"] == "thrA"].iloc[0]
    assert (thr["start"], thr["end"], thr["strand"]) == (336, 2799, "+")


def test_the_end_of_e_coli_is_held_out(real):
    fasta = real("ecoli", "GCF_000005845.2_ASM584v2_genomic.fna.gz")
    train, validation = hold_out(read_regions(None, fasta), fasta, 0.1)
    name = "NC_000913.3"
    assert same(train, (name, 0, 4_177_487, ".", name))
    assert same(validation, (name, 4_177_487, 4_641_652, ".", name))


@pytest.mark.parametrize("species", ["A.thaliana", "C.elegans", "D.melanogaster"])
def test_genes_of_other_genomes_lie_on_them(real, species):
    fasta = real("small", f"{species}.1pct.fa.gz")
    genes = read_regions(genomics("small", f"{species}.1pct.gff.gz"), fasta, feature="gene")
    assert len(genes) > 50
    assert set(genes["strand"]) == {"+", "-"}
    train, validation = hold_out(genes, fasta, 0.2)
    assert not set(train["contig"]) & set(validation["contig"])
    assert 0.1 <= (validation["end"] - validation["start"]).sum() / (genes["end"] - genes["start"]).sum() <= 0.2

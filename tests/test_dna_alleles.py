"""Alleles: reasons, the check of REF, normal forms by brute force, windows by whole haplotypes."""

import gzip
import os
import warnings
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssmseq.dna.alleles import (
    Reason,
    VariantRecord,
    check_reference,
    equal_windows,
    fits_window,
    left_normalise,
)
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.vcf import VariantReader

PARTNER = str.maketrans("ACGTNacgtn", "TGCANtgcan")


class Contigs:
    """What is used of a Fasta, in memory."""

    def __init__(self, **letters):
        self.letters = letters
        self.contigs = {name: len(found) for name, found in letters.items()}

    def fetch(self, contig, start, end):
        assert 0 <= start <= end <= self.contigs[contig], (contig, start, end)
        return self.letters[contig][start:end]


def other_strand(letters):
    return letters[::-1].translate(PARTNER)


def record(*fields, number=1) -> VariantRecord:
    fields = tuple(map(str, fields))
    return VariantRecord(fields, "\t".join(fields), number)


def variant(contig, pos, ref, alt) -> VariantRecord:
    return record(contig, pos, "rs1", ref, alt)


# Records and reasons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "reason"),
    [
        ("7", "A", "G", "ok"),
        ("7", "a", "gT", "ok"),
        ("0", "A", "G", "ok"),  # only the reference can tell
        ("x", "A", "G", "malformed"),
        ("-3", "A", "G", "malformed"),
        ("7.0", "A", "G", "malformed"),
        ("²", "A", "G", "malformed"),
        ("", "A", "G", "malformed"),
        ("7", "", "G", "empty_ref"),
        ("7", ".", "G", "empty_ref"),
        ("7", "A-", "G", "ref_not_dna"),
        ("7", "AU", "G", "ref_not_dna"),
        ("7", "AR", "G", "ref_ambiguous"),
        ("7", "n", "G", "ref_ambiguous"),
        ("7", "A", ".", "missing_alt"),
        ("7", "A", "", "empty_alt"),
        ("7", "A", "*", "spanning_deletion"),
        ("7", "A", "<DEL>", "symbolic"),
        ("7", "A", "<*>", "symbolic"),
        ("7", "A", "G]17:198982]", "breakend"),
        ("7", "A", "[13:123457[C", "breakend"),
        ("7", "A", "]<ctg1>:7]A", "breakend"),
        ("7", "A", ".TC", "breakend"),
        ("7", "A", "TC.", "breakend"),
        ("7", "A", "5", "alt_not_dna"),
        ("7", "A", "\u017f", "alt_not_dna"),
        ("7", "A", "Ñ", "alt_not_dna"),
        ("7", "A", "TY", "alt_ambiguous"),
        ("7", "A", "a", "same_alleles"),
        ("7", "an", "<DEL>", "ref_ambiguous"),
    ],
)
def test_every_line_keeps_its_place_with_a_reason(pos, ref, alt, reason):
    (allele,) = variant("chr1", pos, ref, alt).alleles
    assert allele.reason == reason
    assert allele.reason.scored == (reason == "ok")
    assert allele.index == 1
    if reason == "ok":
        assert (allele.contig, allele.pos0, allele.ref, allele.alt) == ("chr1", int(pos) - 1, ref.upper(), alt.upper())


def test_alleles_of_a_line_are_told_apart():
    alleles = variant("1", 12, "AC", "A,<DEL:me>,G[chr2:5[,,*,act").alleles
    assert [a.index for a in alleles] == [1, 2, 3, 4, 5, 6]
    assert [a.alt for a in alleles] == ["A", "<DEL:me>", "G[chr2:5[", "", "*", "ACT"]
    assert [a.reason for a in alleles] == ["ok", "symbolic", "breakend", "empty_alt", "spanning_deletion", "ok"]
    assert {(a.pos0, a.ref) for a in alleles} == {(11, "AC")}


def test_short_lines_and_comments():
    (allele,) = record("chr1", "12").alleles
    assert (allele.reason, allele.contig, allele.ref, allele.alt) == (Reason.MALFORMED, "chr1", "", "")
    assert record("#", "a", "b", "c", "d").alleles == ()
    assert record("# a comment").reason is Reason.COMMENT


def test_reasons_are_all_documented():
    documented = Reason.__doc__.split()
    assert all(reason.name in documented and f'"{reason}"' in Reason.__doc__ for reason in Reason)
    assert {reason for reason in Reason if reason.scored} == {"ok", "flipped", "ref_mismatch_kept"}


# The check of REF -----------------------------------------------------------------------------------------------------


@pytest.fixture
def genome():
    return Contigs(one="ACGTacgtAN", two="RYSWM")


@pytest.mark.parametrize(
    ("contig", "pos", "ref", "alt", "policy", "expected"),
    [
        ("one", 1, "A", "G", "error", ["A>G ok"]),
        ("one", 10, "A", "G", "skip", ["A>G ref_mismatch"]),
        ("one", 5, "AC", "G", "error", ["AC>G ok"]),  # lower case in the reference
        ("one", 2, "cg", "c", "error", ["CG>C ok"]),  # and in REF
        ("one", 0, "A", "G", "error", ["A>G out_of_contig"]),
        ("one", 11, "A", "G", "error", ["A>G out_of_contig"]),
        ("one", 9, "ATT", "G", "error", ["ATT>G out_of_contig"]),
        ("chr1", 1, "A", "G", "error", ["A>G unknown_contig"]),
        ("two", 1, "A", "G", "error", ["A>G ok"]),  # R is written as A, Y as C, ...
        ("two", 2, "CCA", "G", "error", ["CCA>G ok"]),
        ("two", 5, "C", "G", "skip", ["C>G ref_mismatch"]),
        ("one", 2, "T", "C", "skip", ["T>C ref_mismatch"]),
        ("one", 2, "T", "C", "flip", ["C>T flipped"]),
        ("one", 2, "T", "A", "flip", ["T>A ref_mismatch"]),
        ("one", 2, "T", "A,C,<DEL>", "flip", ["T>A ref_mismatch", "C>T flipped", "T><DEL> symbolic"]),
        ("one", 2, "CT", "CG", "flip", ["CG>CT flipped"]),
        ("one", 2, "CT", "C", "flip", ["CT>C ref_mismatch"]),  # that ALT is there shows nothing
        ("one", 2, "CTT", "CGT", "flip", ["CGT>CTT flipped"]),
        ("one", 9, "T", "AN", "flip", ["T>AN alt_ambiguous"]),
        ("one", 9, "C", "ACCCC", "flip", ["C>ACCCC ref_mismatch"]),  # ALT reaches beyond the end
        ("one", 2, "T", "C,G", "warn", ["T>C ref_mismatch_kept", "T>G ref_mismatch_kept"]),
    ],
)
def test_ref_is_compared_with_the_reference(genome, contig, pos, ref, alt, policy, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alleles = check_reference(variant(contig, pos, ref, alt), genome, policy)
    assert [f"{a.ref}>{a.alt} {a.reason}" for a in alleles] == expected
    assert all(a.record.fields[3:5] == (ref, alt) for a in alleles)
    assert len(caught) == sum("kept" in one for one in expected)
    assert all(Path(one.filename) == Path(__file__) for one in caught)


def test_a_wrong_ref_is_an_error_that_says_where(genome):
    wrong = record("one", 3, ".", "CT", "A", number=12)
    message = r"line 12: REF is CT at one:3, where the reference has GT; .*choose 'warn', 'skip' or 'flip'"
    with pytest.raises(ValueError, match=message):
        check_reference(wrong, genome)
    with pytest.warns(UserWarning, match="line 12: REF is CT at one:3"):
        check_reference(wrong, genome, "warn")
    with pytest.raises(ValueError, match="policy must be one of 'error', 'warn', 'flip', 'skip', got 'drop'"):
        check_reference(wrong, genome, "drop")


# Normal form ----------------------------------------------------------------------------------------------------------


def normal_forms(genome, haplotype):
    """All ways of writing a haplotype as one variant, the shortest and of these the leftmost first."""
    found = []
    for start in range(len(genome)):
        for stop in range(start + 1, len(genome) + 1):
            length = len(haplotype) - len(genome) + stop - start
            alt = haplotype[start : start + length]
            if length > 0 and genome[:start] + alt + genome[stop:] == haplotype:
                found.append((stop - start + length, start, genome[start:stop], alt))
    return sorted(found)


@settings(max_examples=300, deadline=None)
@given(
    genome=st.text("AC", min_size=2, max_size=12) | st.text("ACGT", min_size=2, max_size=8),
    data=st.data(),
)
def test_normal_form_is_the_shortest_and_then_the_leftmost(genome, data):
    start = data.draw(st.integers(0, len(genome) - 1))
    stop = data.draw(st.integers(start + 1, len(genome)))
    alt = data.draw(st.text("AC", min_size=1, max_size=6))
    assume(genome[start:stop] != alt)
    haplotype = genome[:start] + alt + genome[stop:]
    found = left_normalise(Contigs(c=genome.lower()), "c", start, genome[start:stop], alt)
    assert found == normal_forms(genome, haplotype)[0][1:]


def test_normal_form_moves_over_long_repeats():
    genome = Contigs(c="G" + "CA" * 300 + "T")
    assert left_normalise(genome, "c", 598, "A", "ACA") == (0, "G", "GCA")
    assert left_normalise(genome, "c", 598, "ACA", "A") == (0, "GCA", "G")
    assert left_normalise(genome, "c", 600, "AT", "A") == (600, "AT", "A")
    for ref, alt in (("A", "A"), ("", "A"), ("A", "")):
        with pytest.raises(ValueError, match="at c:4 must differ and have letters"):
            left_normalise(genome, "c", 3, ref, alt)


# Windows --------------------------------------------------------------------------------------------------------------


def expected_window(genome, pos0, ref, alt, length, strand):
    """The window of a haplotype, cut from the whole of it, without equal ends."""
    padded = "N" * 2 * length + genome[:pos0] + alt + genome[pos0 + len(ref) :] + "N" * 2 * length
    if strand == "+":
        start = 2 * length + pos0 - length // 2
        return padded[start : start + length]
    end = 2 * length + pos0 + len(alt) + length - length // 2 - len(ref)
    return other_strand(padded[end - length : end])


@settings(max_examples=300, deadline=None)
@given(
    genome=st.text("ACGTacgt", min_size=1, max_size=30),
    length=st.integers(1, 24),
    strand=st.sampled_from("+-"),
    data=st.data(),
)
def test_windows_of_a_substitution_differ_in_the_base_reported(genome, length, strand, data):
    pos0 = data.draw(st.integers(0, len(genome) - 1))
    ref = genome[pos0].upper()
    alt = data.draw(st.sampled_from(sorted(set("ACGT") - {ref})))
    frame = pd.DataFrame({"chrom": ["c"], "pos": [pos0 + 1], "ref": [ref], "alt": [alt]})
    ((allele,),) = (check_reference(one, Contigs(c=genome)) for one in VariantReader(frame))
    windows = equal_windows(Contigs(c=genome), "c", allele.pos0, allele.ref, allele.alt, length, strand)
    index = length // 2 if strand == "+" else length - 1 - length // 2
    assert windows.index == windows.shared_prefix == index
    assert len(windows.ref) == len(windows.alt) == length
    assert [i for i in range(length) if windows.ref[i] != windows.alt[i]] == [index]
    bases = (ref, alt) if strand == "+" else (ref.translate(PARTNER), alt.translate(PARTNER))
    assert (windows.ref[index], windows.alt[index]) == bases
    assert windows.ref.upper() == expected_window(genome, pos0, ref, ref, length, strand).upper()
    assert windows.alt.upper() == expected_window(genome, pos0, ref, alt, length, strand).upper()


@settings(max_examples=500, deadline=None)
@given(
    genome=st.text("ACGT", min_size=1, max_size=30) | st.text("AC", min_size=1, max_size=30),
    length=st.integers(1, 24),
    strand=st.sampled_from("+-"),
    alt=st.text("ACGT", min_size=1, max_size=12),
    data=st.data(),
)
def test_windows_of_all_variants_are_parts_of_the_haplotypes(genome, length, strand, alt, data):
    pos0 = data.draw(st.integers(0, len(genome) - 1))
    ref = genome[pos0 : data.draw(st.integers(pos0 + 1, len(genome)))]
    contigs = Contigs(c=genome)
    fits = max(len(ref), len(alt)) <= length - length // 2
    assert fits_window(ref, alt, length) == fits
    if not fits:
        with pytest.raises(ValueError, match="raise length"):
            equal_windows(contigs, "c", pos0, ref, alt, length, strand)
        return
    windows = equal_windows(contigs, "c", pos0, ref, alt, length, strand)
    assert len(windows.ref) == len(windows.alt) == length
    whole = [expected_window(genome, pos0, ref, allele, length, strand) for allele in (ref, alt)]
    beyond = max(len(window) - len(window.rstrip("N")) for window in whole)
    cut = [window[: length - beyond] + "N" * beyond for window in whole]
    assert [windows.ref, windows.alt] == cut
    shared = [a == b for a, b in zip(*cut, strict=True)]
    assert windows.shared_prefix == (*shared, False).index(False) >= length - length // 2 - len(ref)
    index = length // 2 if strand == "+" else length - 1 - length // 2
    assert windows.index == index
    if strand == "-" and not beyond:  # the same bases as on the forward strand
        assert windows.ref == other_strand(expected_window(genome, pos0, ref, ref, length, "+"))


def test_windows_written_out():
    genome = Contigs(c="AACCGGTTac")
    assert equal_windows(genome, "c", 4, "G", "T", 4) == ("CCGG", "CCTG", 2, 2)
    assert equal_windows(genome, "c", 4, "G", "T", 4, "-") == ("CCGG", "CAGG", 1, 1)
    assert equal_windows(genome, "c", 4, "G", "GTT", 6) == ("ACCGGT", "ACCGTT", 3, 4)
    assert equal_windows(genome, "c", 4, "G", "GTT", 6, "-") == ("ACCGGT", "ACAACG", 2, 2)
    assert equal_windows(genome, "c", 4, "GGT", "G", 6) == ("ACCGGT", "ACCGTa", 3, 4)
    assert equal_windows(genome, "c", 0, "A", "T", 6, "-") == ("GTTNNN", "GTANNN", 2, 2)
    # The end deleted: nothing of it is left to see on the forward strand, all of it on the other.
    assert equal_windows(genome, "c", 7, "TAC", "T", 8) == ("CGGTTNNN", "CGGTTNNN", 4, 8)
    assert equal_windows(genome, "c", 7, "TAC", "T", 8, "-") == ("NGTAACCG", "NAACCGGT", 3, 1)


def test_shared_letters_are_counted_whatever_their_case():
    assert equal_windows(Contigs(c="TTTTcaca"), "c", 4, "CA", "CACA", 8) == ("TTTTCAca", "TTTTCACA", 4, 8)
    assert equal_windows(Contigs(c="TTTTcacg"), "c", 4, "CA", "CACA", 8) == ("TTTTCAcg", "TTTTCACA", 4, 7)


def test_windows_of_the_record_may_differ_from_the_reference():
    assert equal_windows(Contigs(c="AACCGG"), "c", 2, "T", "G", 3) == ("ATC", "AGC", 1, 1)


def test_windows_say_what_is_wrong():
    genome = Contigs(c="AACCGG")
    for contig, pos0, ref in (("d", 0, "A"), ("c", -1, "A"), ("c", 6, "A"), ("c", 5, "GG"), ("c", 2, "")):
        with pytest.raises(ValueError, match=f"at {contig}:{pos0 + 1} does not lie in the reference"):
            equal_windows(genome, contig, pos0, ref, "T", 4)
    with pytest.raises(ValueError, match="have 1 and 0 letters"):
        equal_windows(genome, "c", 2, "C", "", 4)
    with pytest.raises(ValueError, match="c:3 have 1 and 4 letters, and windows of length=5 hold 1 to 3: raise length"):
        equal_windows(genome, "c", 2, "C", "CAAA", 5)
    with pytest.raises(ValueError, match="length must be an integer at least 1"):
        equal_windows(genome, "c", 2, "C", "T", 0)
    with pytest.raises(ValueError, match="strand must be one of"):
        equal_windows(genome, "c", 2, "C", "T", 5, "reverse")


def test_windows_come_from_a_file_too(tmp_path):
    (tmp_path / "c.fa").write_text(">c\nAACCGGTTac\n")
    assert equal_windows(Fasta(tmp_path / "c.fa"), "c", 9, "C", "T", 6) == ("TTaCNN", "TTaTNN", 3, 3)


# C. elegans -----------------------------------------------------------------------------------------------------------

ELEGANS = [  # contig, POS, ID, REF, ALT and what the reference has
    ("I", 147301, "mac37", "C", "T", "G"),
    ("I", 147358, "im10", "C", "T", "G"),
    ("I", 147503, "mac40", "G", "A", "C"),
    ("III", 94072, "st551", "G", "A", "C"),
    ("III", 94072, "st579", "G", "A", "C"),
    ("III", 94072, "st551", "G", "A", "C"),
    ("III", 94072, "st579", "G", "A", "C"),
    ("IV", 114459, "otn541", "G", "C", "C"),
    ("IV", 123700, "wy225", "G", "A", "C"),
    ("IV", 123774, "wy655", "G", "T", "C"),
]


@pytest.fixture(scope="module")
def elegans():
    if not os.environ.get("SSMSEQ_DATA"):
        pytest.skip("set SSMSEQ_DATA to a folder with genomics/small to run this")
    folder = Path(os.environ["SSMSEQ_DATA"], "genomics/small")
    with gzip.open(folder / "C.elegans.1pct.fa.gz", "rt") as file:
        parts = [part.split("\n", 1) for part in file.read().split(">")[1:]]
    contigs = {name.split()[0]: letters.replace("\n", "") for name, letters in parts}
    return VariantReader(folder / "C.elegans.1pct.vcf.gz"), Contigs(**contigs)


def test_variants_of_worms_match_but_for_ten(elegans):
    variants, genome = elegans
    alleles = [allele for one in variants for allele in check_reference(one, genome, "skip")]
    assert len(alleles) == 8713
    assert sum(allele.reason == "ok" for allele in alleles) == 8703
    wrong = [allele for allele in alleles if allele.reason != "ok"]
    assert {allele.reason for allele in wrong} == {"ref_mismatch"}
    found = [(a.contig, a.pos0 + 1, a.record.fields[2], a.ref, a.alt, genome.letters[a.contig][a.pos0]) for a in wrong]
    assert found == ELEGANS


def test_one_variant_of_worms_can_be_flipped(elegans):
    variants, genome = elegans
    flipped = [a for one in variants for a in check_reference(one, genome, "flip") if a.reason == "flipped"]
    assert [(a.contig, a.pos0 + 1, a.ref, a.alt) for a in flipped] == [("IV", 114459, "C", "G")]


@pytest.mark.parametrize("length", [100, 101])
def test_windows_of_worms_differ_in_one_base(elegans, length):
    variants, genome = elegans
    for one in list(variants)[::10]:
        for allele in check_reference(one, genome, "skip"):
            for strand in "+-" if allele.reason.scored else "":
                windows = equal_windows(genome, allele.contig, allele.pos0, allele.ref, allele.alt, length, strand)
                pairs = zip(windows.ref, windows.alt, strict=True)
                different = [i for i, (with_ref, with_alt) in enumerate(pairs) if with_ref != with_alt]
                assert different == [windows.index]

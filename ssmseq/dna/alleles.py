"""Variants as records and alleles, and how they meet a reference: the check of REF, normalisation, windows.

Positions count from 0 here, and POS of VCF counts from 1. What cannot be scored is never dropped: it has a `Reason`.
"""

import dataclasses
import re
import warnings
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

from ssmseq.base import check_choice, check_number
from ssmseq.dna.alphabet import reverse_complement

if TYPE_CHECKING:
    from ssmseq.dna.fasta import Fasta

# VCF has a letter for several bases in the reference written as the first of them; N stays.
_FIRST_BASE = str.maketrans("URYKMSWBDHV", "TACGACACAAA")
_BLOCK = 100  # bases read at once on the way to the left


class Reason(StrEnum):
    """What became of an allele. The first three are scored; of several others the first that applies, in this order.

    Attributes
    ----------
    OK
        "ok".
    FLIPPED
        "flipped": REF is not the reference, ALT is, and they have changed places.
    REF_MISMATCH_KEPT
        "ref_mismatch_kept": REF is not the reference, and is scored as if it were.
    COMMENT
        "comment": a line that starts with # among the records; it has no alleles.
    MALFORMED
        "malformed": fewer than five columns, or POS is no whole number.
    EMPTY_REF
        "empty_ref": REF is empty or ".".
    REF_NOT_DNA
        "ref_not_dna": another letter than A, C, G, T and those for several bases in REF.
    REF_AMBIGUOUS
        "ref_ambiguous": a letter for several bases, such as N, in REF.
    MISSING_ALT
        "missing_alt": ALT is ".", as where nothing varies.
    EMPTY_ALT
        "empty_alt": ALT, or one of its entries, is empty.
    SPANNING_DELETION
        "spanning_deletion": ALT is "*", the base is missing by a deletion that another record describes.
    SYMBOLIC
        "symbolic": ALT has no letters, as "<DEL>".
    BREAKEND
        "breakend": ALT joins distant places, as "G]17:198982]" or ".TC".
    ALT_NOT_DNA
        "alt_not_dna": as of REF.
    ALT_AMBIGUOUS
        "alt_ambiguous": as of REF.
    SAME_ALLELES
        "same_alleles": REF and ALT are equal.
    UNKNOWN_CONTIG
        "unknown_contig": the reference has none of this name.
    OUT_OF_CONTIG
        "out_of_contig": POS is 0, as for telomeres, or REF reaches beyond the end.
    REF_MISMATCH
        "ref_mismatch": REF is not the reference.
    TOO_LONG
        "too_long": REF or ALT does not fit into a window; for those who cut windows to give.
    """

    OK = "ok"
    FLIPPED = "flipped"
    REF_MISMATCH_KEPT = "ref_mismatch_kept"
    COMMENT = "comment"
    MALFORMED = "malformed"
    EMPTY_REF = "empty_ref"
    REF_NOT_DNA = "ref_not_dna"
    REF_AMBIGUOUS = "ref_ambiguous"
    MISSING_ALT = "missing_alt"
    EMPTY_ALT = "empty_alt"
    SPANNING_DELETION = "spanning_deletion"
    SYMBOLIC = "symbolic"
    BREAKEND = "breakend"
    ALT_NOT_DNA = "alt_not_dna"
    ALT_AMBIGUOUS = "alt_ambiguous"
    SAME_ALLELES = "same_alleles"
    UNKNOWN_CONTIG = "unknown_contig"
    OUT_OF_CONTIG = "out_of_contig"
    REF_MISMATCH = "ref_mismatch"
    TOO_LONG = "too_long"

    @property
    def scored(self) -> bool:
        """Whether an allele with it can be scored."""
        return self in (Reason.OK, Reason.FLIPPED, Reason.REF_MISMATCH_KEPT)


@dataclasses.dataclass(frozen=True)
class VariantRecord:
    """A line of a file of variants, or a row of a frame.

    Attributes
    ----------
    fields : tuple of str
        All columns as they came.
    line : str
        The whole line as it came, without its end; of a frame, the columns joined by tabs.
    line_number : int
        From 1; of a frame, the row, from 1.
    """

    fields: tuple[str, ...]
    line: str
    line_number: int

    @property
    def reason(self) -> Reason:
        """What is wrong with all alleles of the record, else `Reason.OK`."""
        if self.line.startswith("#"):
            return Reason.COMMENT
        if len(self.fields) < 5 or not (self.fields[1].isascii() and self.fields[1].isdigit()):
            return Reason.MALFORMED
        if self.fields[3] in ("", "."):
            return Reason.EMPTY_REF
        return _letters_reason(self.fields[3], Reason.REF_NOT_DNA, Reason.REF_AMBIGUOUS)

    @property
    def alleles(self) -> "tuple[Allele, ...]":
        """One `Allele` for each entry of ALT, of which a malformed line has one, and a comment none."""
        reason = self.reason
        if reason is Reason.COMMENT:
            return ()
        if reason is Reason.MALFORMED:
            contig, pos, _, ref, alt = (*self.fields, *[""] * 5)[:5]
            return (Allele(self, 1, contig, -1, ref, alt, reason),)
        contig, pos, _, ref, alts = self.fields[:5]
        ref = ref.upper()
        return tuple(
            Allele(
                self,
                i,
                contig,
                int(pos) - 1,
                ref,
                _upper(alt),
                _alt_reason(ref, alt) if reason is Reason.OK else reason,
            )
            for i, alt in enumerate(alts.split(","), 1)
        )


@dataclasses.dataclass(frozen=True)
class Allele:
    """One alternative allele of a record.

    Attributes
    ----------
    record : VariantRecord
    index : int
        Its place in ALT, from 1, as genotypes name it.
    contig : str
    pos0 : int
        Of the first base of REF, from 0: POS less 1.
    ref, alt : str
        In upper case; of a flipped allele the reference's is `ref`.
    reason : Reason
    """

    record: VariantRecord
    index: int
    contig: str
    pos0: int
    ref: str
    alt: str
    reason: Reason


def _upper(alt: str) -> str:
    return alt if re.search(r"[<\[\]]", alt) else alt.upper()  # names of contigs and symbols keep their case


def _letters_reason(letters: str, not_dna: Reason, ambiguous: Reason) -> Reason:
    if re.fullmatch("[ACGT]+", letters, re.IGNORECASE):
        return Reason.OK
    return ambiguous if re.fullmatch("[ACGTRYKMSWBDHVN]+", letters, re.IGNORECASE | re.ASCII) else not_dna


def _alt_reason(ref: str, alt: str) -> Reason:
    if alt in ("", ".", "*"):
        return {"": Reason.EMPTY_ALT, ".": Reason.MISSING_ALT, "*": Reason.SPANNING_DELETION}[alt]
    if re.search(r"[\[\]]", alt) or alt.startswith(".") or alt.endswith("."):
        return Reason.BREAKEND
    if alt.startswith("<") and alt.endswith(">"):
        return Reason.SYMBOLIC
    return Reason.SAME_ALLELES if alt.upper() == ref else _letters_reason(alt, Reason.ALT_NOT_DNA, Reason.ALT_AMBIGUOUS)


def check_reference(
    record: VariantRecord, fasta: "Fasta", policy: Literal["error", "warn", "flip", "skip"] = "error"
) -> tuple[Allele, ...]:
    """Compare a record's REF with the reference.

    Parameters
    ----------
    record : VariantRecord
    fasta : Fasta
    policy : {"error", "warn", "flip", "skip"}
        What a REF that is not the reference leads to: an error; a warning, and the allele is scored as it is; REF and
        ALT change places if ALT is the reference; or nothing. Alleles that are not scored then have
        `Reason.REF_MISMATCH`. An ALT whose letters REF starts with, as a deletion's, is never taken for the reference:
        that they agree with it shows nothing.

    Returns
    -------
    tuple of Allele
        Those of the record, with reasons.

    Raises
    ------
    ValueError
        With "error", if REF is not the reference.

    Warns
    -----
    UserWarning
        With "warn", if REF is not the reference.
    """
    check_choice("policy", policy, ("error", "warn", "flip", "skip"))
    return tuple(_checked(allele, fasta, policy) if allele.reason is Reason.OK else allele for allele in record.alleles)


def _checked(allele: Allele, fasta: "Fasta", policy: str) -> Allele:
    if allele.contig not in fasta.contigs:
        return dataclasses.replace(allele, reason=Reason.UNKNOWN_CONTIG)
    if allele.pos0 < 0 or allele.pos0 + len(allele.ref) > fasta.contigs[allele.contig]:
        return dataclasses.replace(allele, reason=Reason.OUT_OF_CONTIG)
    found = _reference(fasta, allele, len(allele.ref))
    if found == allele.ref:
        return allele
    message = (
        f"line {allele.record.line_number}: REF is {allele.ref} at {allele.contig}:{allele.pos0 + 1}, where the "
        f"reference has {found}; use the reference that the variants were called on, or choose 'warn', 'skip' or 'flip'"
    )
    if policy == "error":
        raise ValueError(message)
    if policy == "warn":
        warnings.warn(message, stacklevel=4)
        return dataclasses.replace(allele, reason=Reason.REF_MISMATCH_KEPT)
    shown = not allele.ref.startswith(allele.alt) and _reference(fasta, allele, len(allele.alt)) == allele.alt
    if policy == "flip" and shown:
        return dataclasses.replace(allele, ref=allele.alt, alt=allele.ref, reason=Reason.FLIPPED)
    return dataclasses.replace(allele, reason=Reason.REF_MISMATCH)


def _reference(fasta: "Fasta", allele: Allele, length: int) -> str:
    end = min(allele.pos0 + length, fasta.contigs[allele.contig])
    return fasta.fetch(allele.contig, allele.pos0, end).upper().translate(_FIRST_BASE)


def left_normalise(fasta: "Fasta", contig: str, pos0: int, ref: str, alt: str) -> tuple[int, str, str]:
    """Return the one way of writing a variant that starts furthest left with the fewest letters [1]_.

    Parameters
    ----------
    fasta : Fasta
    contig : str
    pos0 : int
        Of the first base of REF, from 0.
    ref, alt : str
        In upper case. `ref` is the reference, which is not checked.

    Returns
    -------
    pos0, ref, alt
        Of letters that both start or end with, the one before an insertion or deletion is left; at the start of a
        contig it is the one after.

    Raises
    ------
    ValueError
        If `ref` and `alt` are equal, or one of them is empty.

    References
    ----------
    .. [1] Tan, A., Abecasis, G. R. and Kang, H. M. (2015). Unified representation of genetic variants. Bioinformatics
       31(13), 2202-2204.
    """
    if ref == alt or not (ref and alt):
        raise ValueError(f"REF {ref!r} and ALT {alt!r} at {contig}:{pos0 + 1} must differ and have letters")
    before = ""
    while ref[-1:] == alt[-1:]:
        ref, alt = ref[:-1], alt[:-1]
        if ref and alt:
            continue
        if pos0 == 0:
            after = fasta.fetch(contig, len(ref), len(ref) + 1).upper()
            return 0, ref + after, alt + after
        before = before or fasta.fetch(contig, max(pos0 - _BLOCK, 0), pos0).upper()
        pos0, ref, alt, before = pos0 - 1, before[-1] + ref, before[-1] + alt, before[:-1]
    shared = min(_n_shared(ref, alt), len(ref) - 1, len(alt) - 1)
    return pos0 + shared, ref[shared:], alt[shared:]


class Windows(NamedTuple):
    """The surroundings of a variant with REF and with ALT.

    Attributes
    ----------
    ref, alt : str
        Of one length, in the direction of the strand.
    index : int
        Of the base at POS in `ref`.
    shared_prefix : int
        Letters that both start with, whatever their case; all of them where the windows do not differ.
    """

    ref: str
    alt: str
    index: int
    shared_prefix: int


def fits_window(ref: str, alt: str, length: int) -> bool:
    """Return whether all letters of both alleles lie within windows of a length."""
    return max(len(ref), len(alt)) <= length - length // 2


def equal_windows(
    fasta: "Fasta", contig: str, pos0: int, ref: str, alt: str, length: int, strand: Literal["+", "-"] = "+"
) -> Windows:
    """Cut the windows of one length that hold REF and ALT.

    Parameters
    ----------
    fasta : Fasta
    contig : str
    pos0 : int
        Of the first base of REF, from 0.
    ref, alt : str
        `ref` is written over the reference, which is not checked.
    length : int
        Of the windows, in bases.
    strand : {"+", "-"}
        "-" gives the reverse complement.

    Returns
    -------
    Windows
        On the forward strand the base at POS is the one at ``length // 2``, and on the other at
        ``length - 1 - length // 2``: the window with REF covers the same bases. All letters that are read before the
        variant are the same in both windows. After an insertion the window with ALT ends with fewer letters of what
        follows, and after a deletion with more.

    Raises
    ------
    ValueError
        If the contig is unknown, REF does not lie in it, or an allele does not fit.

    Notes
    -----
    Beyond the ends of a contig, windows have N. Moving them inside instead would give ALT of an insertion or deletion
    another beginning than REF. The N after the last letters stand at the same places in both windows, so that as many
    letters count in each: of the one that would have more, the last are N too. The last letters of a contig being
    deleted thus shows on one strand alone; on the other, `shared_prefix` is `length`.
    """
    check_number("length", length, minimum=1, integer=True)
    check_choice("strand", strand, ("+", "-"))
    size, end, middle = fasta.contigs.get(contig, 0), pos0 + len(ref), length // 2
    if not 0 <= pos0 < end <= size:
        raise ValueError(
            f"REF {ref!r} at {contig}:{pos0 + 1} does not lie in the reference: check_reference tells first"
        )
    if not (alt and fits_window(ref, alt, length)):
        raise ValueError(
            f"the alleles at {contig}:{pos0 + 1} have {len(ref)} and {len(alt)} letters, and windows of "
            f"length={length} hold 1 to {length - middle}: raise length, or leave out what fits_window refuses"
        )

    def fetch(start: int, stop: int) -> str:
        return fasta.fetch(contig, max(start, 0), min(stop, size)) if max(start, 0) < min(stop, size) else ""

    before = fetch(pos0 - middle, pos0).rjust(middle, "N")
    after = fetch(end, pos0 + length - middle).ljust(pos0 + length - middle - end, "N")
    if strand == "+":
        index, rest = middle, fetch(end, end + length)
    else:
        index, rest = length - 1 - middle, reverse_complement(fetch(pos0 - length, pos0))
        before, ref, alt = (reverse_complement(part) for part in (after, ref, alt))
    whole = [(before + allele + rest)[:length] for allele in (ref, alt)]
    known = min(map(len, whole))
    with_ref, with_alt = (window[:known].ljust(length, "N") for window in whole)
    shared = len(before) + _n_shared(with_ref[len(before) :].upper(), with_alt[len(before) :].upper())
    return Windows(with_ref, with_alt, index, shared)


def _n_shared(one: str, other: str) -> int:
    """Return how many letters two strings both start with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

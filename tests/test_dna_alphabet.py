"""Letters of DNA against the IUPAC code as sets of bases, and token numbers against the published ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmseq.dna import alphabet

# Cornish-Bowden, Nucleic Acids Research 13(9), 1985: each letter stands for these bases.
IUPAC = {
    "A": "A",
    "C": "C",
    "G": "G",
    "T": "T",
    "R": "AG",
    "Y": "CT",
    "K": "GT",
    "M": "AC",
    "S": "CG",
    "W": "AT",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
    "N": "ACGT",
}
OTHER = {"A": "T", "C": "G", "G": "C", "T": "A"}
LETTERS = "".join(IUPAC) + "".join(IUPAC).lower()
sequences = st.text(st.sampled_from(LETTERS), max_size=40)


def test_token_numbers_are_the_published_ones():
    names = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N"]
    assert list(alphabet.TOKENS) == names
    assert [alphabet.TOKENS[token] for token in (alphabet.BOS, alphabet.MASK, alphabet.PAD)] == [
        "[BOS]",
        "[MASK]",
        "[PAD]",
    ]
    assert [alphabet.A, alphabet.C, alphabet.G, alphabet.T, alphabet.N] == [7, 8, 9, 10, 11]
    assert alphabet.COMPLEMENT.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("letter", LETTERS + "Uu")
def test_a_letter_is_encoded_as_its_base_or_as_n(letter):
    bases = IUPAC.get(letter.upper(), "T")  # U is the T of RNA
    expected = 7 + "ACGT".index(bases) if len(bases) == 1 else 11
    assert alphabet.encode(letter).tolist() == alphabet.encode(letter.encode()).tolist() == [expected]


@pytest.mark.parametrize("letter", LETTERS)
def test_complement_of_a_letter_is_the_letter_of_the_complements(letter):
    bases = {OTHER[base] for base in IUPAC[letter.upper()]}
    (expected,) = (other for other, found in IUPAC.items() if set(found) == bases)
    found = alphabet.reverse_complement(letter)
    assert found == (expected if letter.isupper() else expected.lower())


@given(sequences)
def test_strands_and_letters_round_trip(sequence):
    other = alphabet.reverse_complement(sequence)
    assert alphabet.reverse_complement(other) == sequence
    tokens = alphabet.encode(sequence)
    assert tokens.dtype == np.uint8
    assert alphabet.reverse_complement_tokens(tokens).tolist() == alphabet.encode(other).tolist()
    assert alphabet.encode(alphabet.decode(tokens)).tolist() == tokens.tolist()
    assert alphabet.is_soft_masked(sequence).tolist() == [letter.islower() for letter in sequence]


def test_reverse_complement_of_tokens_keeps_specials_leading_axes_and_dtype():
    tokens = np.array([[2, 7, 8], [4, 11, 3]])
    found = alphabet.reverse_complement_tokens(tokens)
    assert found.tolist() == [[9, 10, 2], [3, 11, 4]]
    assert found.dtype == tokens.dtype


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("ACGTMEEPQ", r"'E' at position 6 .* looks like a protein"),
        ("ACG T", r"' ' at position 4 is not of DNA"),
        ("A-C", "'-' at position 2"),
        ("AC\u0416", r"'\?' at position 3"),
        (b"AC\x00", "position 3"),
    ],
)
def test_other_letters_are_refused_by_name_and_place(sequence, message):
    with pytest.raises(ValueError, match=message):
        alphabet.encode(sequence)


def test_a_dash_is_not_called_a_protein():
    with pytest.raises(ValueError) as caught:
        alphabet.encode("ACG-")
    assert "protein" not in str(caught.value)


def test_only_text_is_encoded():
    with pytest.raises(TypeError, match="must be str or bytes, got list"):
        alphabet.encode(["A"])


def test_nothing_is_encoded_as_nothing():
    assert alphabet.encode("").shape == (0,)
    assert alphabet.decode(np.empty(0, np.uint8)) == alphabet.reverse_complement("") == ""

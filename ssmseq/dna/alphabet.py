"""Letters of DNA as numbers, and the other strand. Token numbers are those of HyenaDNA and Caduceus.

Letters mean the same in upper and lower case; lower case marks repeats, which `is_soft_masked` finds.
"""

import numpy as np

SPECIALS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
TOKENS = (*SPECIALS, "A", "C", "G", "T", "N")
CLS, SEP, BOS, MASK, PAD, RESERVED, UNK = range(7)
A, C, G, T, N = range(7, 12)
BASES = "ACGT"
N_BASES = 4
VOCAB_SIZE = 16  # 12 tokens and 4 unused numbers, as in the published models

_IUPAC = "ACGTURYKMSWBDHVN"
_PARTNERS = "TGCAAYRMKSWVHDBN"
_AMBIGUOUS = "RYKMSWBDHVN"

COMPLEMENT = np.arange(VOCAB_SIZE)
COMPLEMENT[[A, C, G, T]] = [T, G, C, A]

_UNKNOWN = 255
_TOKEN_OF = np.full(256, _UNKNOWN, np.uint8)  # of each byte
for _letters, _tokens in (("ACGT", (A, C, G, T)), ("U", (T,)), (_AMBIGUOUS, (N,) * len(_AMBIGUOUS))):
    for _letter, _token in zip(_letters, _tokens, strict=True):
        _TOKEN_OF[[ord(_letter), ord(_letter.lower())]] = _token
_BYTE_OF = np.frombuffer(b"NNNNNNNACGTNNNNN", np.uint8)  # of each token
_PARTNER_OF = bytes.maketrans(
    (_IUPAC + _IUPAC.lower()).encode(),
    (_PARTNERS + _PARTNERS.lower()).encode(),
)


def encode(sequence: str | bytes) -> np.ndarray:
    """Map letters to token numbers.

    Parameters
    ----------
    sequence : str or bytes
        Letters of the IUPAC code for nucleotides, in upper or lower case. U is read as T, and every letter for more
        than one base as N.

    Returns
    -------
    array (L,) of uint8

    Raises
    ------
    ValueError
        For another letter, naming it and its place.

    Examples
    --------
    >>> encode("ACgtR").tolist()
    [7, 8, 9, 10, 11]
    """
    letters = as_bytes(sequence)
    tokens = _TOKEN_OF[np.frombuffer(letters, np.uint8)]
    if (wrong := np.flatnonzero(tokens == _UNKNOWN)).size:
        place = int(wrong[0])
        protein = " It looks like a protein." if set(letters[:1000].upper().decode("latin-1")) & set("EFILPQ") else ""
        raise ValueError(
            f"the letter {chr(letters[place])!r} at position {place + 1} is not of DNA; allowed are {_IUPAC} in upper "
            f"or lower case.{protein}"
        )
    return tokens


def decode(tokens: np.ndarray) -> str:
    """Map token numbers to letters, all that are not of a base to N.

    Examples
    --------
    >>> decode(encode("acgtr"))
    'ACGTN'
    """
    return _BYTE_OF[np.asarray(tokens, np.intp)].tobytes().decode()


def is_soft_masked(sequence: str | bytes) -> np.ndarray:
    """Return which letters are in lower case, (L,) of bool."""
    letters = np.frombuffer(as_bytes(sequence), np.uint8)
    return (letters >= ord("a")) & (letters <= ord("z"))


def reverse_complement(sequence: str) -> str:
    """Return the other strand, read in its own direction; letters for several bases and case are kept.

    Examples
    --------
    >>> reverse_complement("AACGtRN")
    'NYaCGTT'
    """
    return sequence.encode().translate(_PARTNER_OF)[::-1].decode()


def reverse_complement_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return the tokens (..., L) of the other strand, in its own direction."""
    return COMPLEMENT.astype(np.asarray(tokens).dtype)[tokens][..., ::-1]


def as_bytes(sequence: str | bytes) -> bytes:
    """Return the letters one byte each.

    Raises
    ------
    TypeError
        If the sequence is neither str nor bytes.
    """
    if isinstance(sequence, str):
        return sequence.encode("latin-1", "replace")
    if isinstance(sequence, bytes | bytearray):
        return bytes(sequence)
    raise TypeError(f"a sequence must be str or bytes, got {type(sequence).__name__}")

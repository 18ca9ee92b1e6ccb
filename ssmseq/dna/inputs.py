"""What the methods of the DNA estimators take for sequences: a FASTA file, or strings."""

import os
from collections.abc import Sequence

import numpy as np

from ssmseq.dna.alphabet import encode


def is_path(X) -> bool:
    """Whether X names a file, rather than holding sequences."""
    return isinstance(X, str | os.PathLike)


def read_strings(X) -> list[str]:
    """Return strings from a list, a Series or an array, of which a table has one column.

    Raises
    ------
    TypeError
        If X holds something else.
    """
    values = X.to_numpy() if hasattr(X, "to_numpy") else np.asarray(X, dtype=object) if hasattr(X, "dtype") else X
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise TypeError(f"X must be one sequence for each row, got an array of shape {values.shape}")
    found = list(values)
    for i, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(f"X[{i}] must be a string of DNA, got {type(value).__name__}: {value!r}")
    return found


def read_sequences(X) -> tuple[list[np.ndarray], list[str]]:
    """Return the tokens of each sequence of a FASTA, or of strings, and names to speak of them by.

    Raises
    ------
    ValueError
        For a letter that is not of DNA, or no sequence at all.
    TypeError
        If X is neither a path nor strings.
    """
    if is_path(X):
        from ssmseq.dna.fasta import Fasta

        fasta = Fasta(X)
        return [fasta.tokens(name, 0, size) for name, size in fasta.contigs.items()], list(fasta.contigs)
    strings = read_strings(X)
    return encode_all(strings), [f"X[{i}]" for i in range(len(strings))]


def encode_all(strings: Sequence[str]) -> list[np.ndarray]:
    """Return the tokens of each string; an error names the string."""
    found = []
    for i, string in enumerate(strings):
        try:
            found.append(encode(string))
        except ValueError as error:
            raise ValueError(f"X[{i}]: {error}") from None
    return found

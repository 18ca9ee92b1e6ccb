"""Genomes for the tests: small ones that they write, and real ones in the folder that SSMSEQ_DATA names."""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

COMPLEMENTS = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N", "a": "t", "c": "g", "g": "c", "t": "a", "n": "n"}
TOKEN_OF = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}  # as HyenaDNA and Caduceus number them


def genomics(*parts: str) -> Path:
    """Return a file of the genomics data, or skip the test."""
    path = Path(os.environ.get("SSMSEQ_DATA", "")).joinpath("genomics", *parts)
    if not os.environ.get("SSMSEQ_DATA") or not path.is_file():
        pytest.skip(f"set SSMSEQ_DATA to a folder with genomics/{'/'.join(parts)} to run this")
    return path


def plain_read(path: Path) -> dict[str, str]:
    """Read all of a FASTA file without an index."""
    packed = path.read_bytes().startswith(b"\x1f\x8b")
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    found = {}
    for record in text.replace("\r", "").split(">")[1:]:
        header, _, letters = record.partition("\n")
        found[header.split()[0]] = letters.replace("\n", "")
    return found


def write_fasta(path: Path, sequences: dict[str, str], *, width: int = 60, newline: str = "\n") -> Path:
    lines = []
    for name, letters in sequences.items():
        lines += [f">{name} a comment", *(letters[i : i + width] for i in range(0, len(letters), width))]
    path.write_bytes((newline.join(lines) + newline).encode())
    return path


def block_gzip(content: bytes, size: int = 1000) -> bytes:
    """Pack as bgzip does, by section 4.1 of the SAM specification."""
    found = b""
    for start in [*range(0, len(content), size), len(content)]:  # the last block is empty and marks the end
        block = content[start : start + size]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = packer.compress(block) + packer.flush()
        head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H2sHH", 6, b"BC", 2, len(packed) + 25)
        found += head + packed + struct.pack("<II", zlib.crc32(block), len(block))
    return found


def reverse_complement(letters: str) -> str:
    return "".join(COMPLEMENTS[letter] for letter in reversed(letters))


def tokens_of(letters: str) -> list[int]:
    return [TOKEN_OF[letter] for letter in letters.upper()]


def many_pieces(fasta, seed: int) -> list[str]:
    """Fetch many pieces of the contig "one"; here, because a spawned process cannot import the tests themselves."""
    places = np.random.default_rng(seed).integers(0, 700, 300).tolist()
    return [fasta.fetch("one", place, place + 31) for place in places]

"""FASTA files of any size, read by position: plain, bgzip or gzip, and by several processes at once.

pyfaidx indexes and reads [1]_. Added to it: a handle for each process, since processes that share one read from each
other's places; files that gzip packed; an index that may lie elsewhere than beside the file; errors that name a remedy.

References
----------
.. [1] Shirley, M. D. et al. (2015). Efficient "pythonic" access to FASTA files using pyfaidx. PeerJ PrePrints 3:e1196.
   https://doi.org/10.7287/peerj.preprints.970v1
"""

import gzip
import hashlib
import operator
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssmseq.datasets.files import cache_dir
from ssmseq.dna.alphabet import N, encode, is_soft_masked

if TYPE_CHECKING:
    from pyfaidx import Faidx

_BGZIP_SUFFIXES = (".gz", ".bgz")  # pyfaidx goes by the name
_HINTS = {  # part of pyfaidx's message: remedy
    "Duplicate key": "Give every sequence a name of its own; the name is the first word of its header.",
    "Line length": "Wrap all lines of a sequence at one width, and leave no empty lines in it.",
    "EOF marker": "The file was cut off: copy or download it again.",
}
_HINT = "A FASTA file holds, for each sequence, a line of '>' and its name, and then lines of letters."


class Fasta:
    r"""The sequences of a FASTA file, read by position.

    Parameters
    ----------
    path : str or path
        FASTA, plain, packed by bgzip (which needs BioPython), or packed by gzip. Of the latter an unpacked copy is kept
        in the cache, since gzip files cannot be read by position.

    Attributes
    ----------
    path : pathlib.Path
    contigs : dict of str to int
        Length of each sequence in bases, by the first word of its header, in the order of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no FASTA, two sequences have one name, or its index or copy cannot be written anywhere.
    ImportError
        For a bgzip file without BioPython.

    Warns
    -----
    UserWarning
        When a gzip file has been unpacked.

    Notes
    -----
    An index, ``.fai`` as samtools writes it and ``.gzi`` for bgzip, is read where it lies beside the file and fits it.
    Otherwise one is written there, or into the cache where the folder cannot be written to.

    Objects can be pickled and used by forked and spawned processes: each opens the file anew.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "two.fa")
    >>> _ = path.write_text(">one first\nACGTacgt\nNN\n>two\nTT\n")
    >>> fasta = Fasta(path)
    >>> fasta.contigs
    {'one': 10, 'two': 2}
    >>> fasta.fetch("one", 3, 9)
    'TacgtN'
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(os.path.abspath(Path(path).expanduser()))
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no FASTA file {self.path}: check the path")
        self._file = _seekable(self.path)
        self._indexes = _indexes(self._file)
        self._stamp = _stamp(self._file)
        self._opened: tuple[int, Faidx] | None = None
        self.contigs = {name: record.rlen for name, record in self._reader().index.items()}
        if not any(self.contigs.values()):
            raise ValueError(f"{self.path} holds headers and no bases: check that it was written to its end")

    def __repr__(self) -> str:
        return f"Fasta({str(self.path)!r})"

    def __getstate__(self) -> dict:
        return {**vars(self), "_opened": None}

    def fetch(self, contig: str, start: int, end: int) -> str:
        """Return the letters of part of a contig, as they are in the file.

        Parameters
        ----------
        contig : str
        start, end : int
            In bases, counted from 0; `end` is not included.

        Returns
        -------
        str of ``end - start`` letters

        Raises
        ------
        ValueError
            For an unknown contig, or a part that does not lie in it.
        """
        start, end = self.check(contig, start, end)
        letters = str(self._reader().fetch(contig, start + 1, end)) if start < end else ""
        if len(letters) != end - start:
            raise ValueError(
                f"{self.path} gives {len(letters)} letters for the {end - start} of {contig}:{start}-{end}, so its "
                f"index {self._indexes[0]} is of another file: delete it"
            )
        return letters

    def read(self, contig: str, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the token numbers (L,) of uint8, and which letters are in lower case (L,), as `fetch`.

        Raises
        ------
        ValueError
            As `fetch`, or for a letter that is not of DNA.
        """
        letters = self.fetch(contig, start, end)
        try:
            return encode(letters), is_soft_masked(letters)
        except ValueError as error:
            raise ValueError(f"{self.path}, in {end - start} letters of {contig} from {start} on: {error}") from error

    def tokens(self, contig: str, start: int, end: int, *, pad: bool = False) -> np.ndarray:
        """Return the token numbers of part of a contig.

        Parameters
        ----------
        contig : str
        start, end : int
            As in `fetch`.
        pad : bool
            Let the part reach beyond the ends of the contig, and give N there.

        Returns
        -------
        array (end - start,) of uint8

        Raises
        ------
        ValueError
            As `read`.
        """
        if not pad:
            return self.read(contig, start, end)[0]
        self.check(contig, 0, 0)
        start, end = _integer(start), _integer(end)
        if start > end:
            raise ValueError(f"the part {contig}:{start}-{end} ends before it starts: exchange start and end")
        first, last = (min(max(place, 0), self.contigs[contig]) for place in (start, end))
        found = np.full(end - start, N, np.uint8)
        found[first - start : last - start] = self.read(contig, first, last)[0]
        return found

    def check(self, contig: str, start: int, end: int) -> tuple[int, int]:
        """Return `start` and `end` as integers; ValueError unless there is such a part, which may be empty."""
        if contig not in self.contigs:
            others = [name for name in (f"chr{contig}", str(contig).removeprefix("chr")) if name in self.contigs]
            some = ", ".join([*self.contigs][:5]) + (", ..." if len(self.contigs) > 5 else "")
            remedy = f"rename it to {others[0]}" if others else f"its contigs are {some}"
            raise ValueError(f"{self.path} has no contig {contig!r}: {remedy}")
        start, end = _integer(start), _integer(end)
        if not 0 <= start <= end <= self.contigs[contig]:
            raise ValueError(
                f"{contig}:{start}-{end} is no part of {contig} in {self.path}, which has {self.contigs[contig]} "
                "bases: positions count from 0, and start <= end is needed"
            )
        return start, end

    def _reader(self) -> "Faidx":
        """Return this process's own handle."""
        pid = os.getpid()
        if self._opened is None or self._opened[0] != pid:
            if _stamp(self._file) != self._stamp:
                raise ValueError(f"{self._file} has changed since it was opened: make a new Fasta of it")
            self._opened = pid, _open(self._file, self._indexes)
        return self._opened[1]


def _integer(place) -> int:
    try:
        return operator.index(place)
    except TypeError as error:
        raise TypeError(f"positions must be integers, in bases from 0, got {place!r}") from error


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _cached(file: Path, name: str) -> Path:
    """Return the place in the cache of what is made from a file as it is now."""
    key = hashlib.blake2b(repr((str(file.resolve()), *_stamp(file))).encode(), digest_size=8).hexdigest()
    return cache_dir() / "fasta" / f"{key}-{name}"


def _scratch(*folders: Path) -> tempfile.TemporaryDirectory:
    """Make a temporary folder in the first of some folders that can be written to; OSError if none can."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(dir=folder, prefix=".partial-")
        except OSError as error:
            reason = f"{folder}: {error.strerror}"
    raise OSError(reason)


def _seekable(path: Path) -> Path:
    """Return a file that pyfaidx reads by position: the one given, or its unpacked copy."""
    with path.open("rb") as file:
        head = file.read(14)
    packed, named = head.startswith(b"\x1f\x8b"), path.name.lower().endswith(_BGZIP_SUFFIXES)
    if not packed and (named or path.name.lower().endswith((".bz2", ".zip"))):
        cause = "is named as if it were packed, but gzip did not pack it" if named else "is packed in another way"
        raise ValueError(f"{path} {cause}: unpack it, or drop the suffix {path.suffix} from its name")
    blocks = packed and head[3] & 4 and head[12:14] == b"BC"  # the field that bgzip adds to the header
    return _unpacked(path) if packed and not (blocks and named) else path


def _unpacked(path: Path) -> Path:
    copy = _cached(path, path.stem if path.name.lower().endswith(_BGZIP_SUFFIXES) else path.name)
    if copy.is_file():
        return copy
    bgzip = f"`gunzip -c {path} | bgzip > NEW.fa.gz` packs it so that no copy is needed"
    try:
        with _scratch(copy.parent) as folder, gzip.open(path) as packed:
            part = Path(folder, copy.name)
            with part.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            os.replace(part, copy)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}): copy or download it again") from error
    except OSError as error:
        raise ValueError(
            f"{path} is packed by gzip and cannot be read by position, and no unpacked copy could be written to the "
            f"cache ({error}): make room for it there, or unpack the file yourself; {bgzip}"
        ) from error
    warnings.warn(
        f"{path} is packed by gzip and cannot be read by position: it was unpacked into {copy}, "
        f"{copy.stat().st_size:,} bytes, which will be used from now on. {bgzip}.",
        stacklevel=4,
    )
    return copy


def _indexes(file: Path) -> list[Path]:
    """Return the paths of the index, ``.fai`` and perhaps ``.gzi``, after writing it where there is none that fits."""
    suffixes = (".fai", ".gzi") if file.name.lower().endswith(_BGZIP_SUFFIXES) else (".fai",)
    places = [[path.with_name(path.name + s) for s in suffixes] for path in (file, _cached(file, file.name))]
    for indexes in places:
        if _fits(file, indexes):
            return indexes
    try:
        scratch = _scratch(*(indexes[0].parent for indexes in places))
    except OSError as error:
        raise ValueError(
            f"an index of {file} can be written neither beside it nor to the cache ({error}): make room for it "
            "there, or write one with `samtools faidx`"
        ) from error
    with scratch as folder:
        found = next(indexes for indexes in places if indexes[0].parent == Path(folder).parent)
        made = [Path(folder, index.name) for index in found]
        _open(file, made, build=True).close()
        for part, index in zip(made, found, strict=True):
            os.replace(part, index)
    return found


def _fits(file: Path, indexes: list[Path]) -> bool:
    """Whether an index is not older than a file, and for plain FASTA ends where the file does."""
    if not all(index.is_file() and index.stat().st_mtime_ns >= file.stat().st_mtime_ns for index in indexes):
        return False
    if len(indexes) > 1:
        return True
    try:  # a file that was replaced by one with an earlier date has an index that is too young
        last = indexes[0].read_text().splitlines()[-1]
        length, offset, letters, width = map(int, last.split("\t")[1:])
        whole_lines = max(length - 1, 0) // letters if letters else 0
    except (IndexError, ValueError):
        return False
    end = offset + length + whole_lines * (width - letters)
    with file.open("rb") as content:
        content.seek(end)
        return file.stat().st_size >= end and not content.read(1 << 16).strip()


def _open(file: Path, indexes: list[Path], *, build: bool = False) -> "Faidx":
    """Open a file with its index, which is written if `build`."""
    from pyfaidx import Faidx, FastaIndexingError

    fai, gzi = str(indexes[0]), str(indexes[-1])  # the second is ignored unless the file is packed
    try:
        return Faidx(
            str(file),
            indexname=fai,
            gzi_indexname=gzi,
            build_index=build,
            rebuild=False,
            as_raw=True,
            strict_bounds=True,
        )
    except ImportError as error:
        raise ImportError(
            f"{file} is packed by bgzip, which BioPython reads: install it (`pip install biopython`), or unpack "
            "the file"
        ) from error
    except (FastaIndexingError, ValueError, OSError, RuntimeError, AssertionError, zlib.error, struct.error) as error:
        hint = next((hint for part, hint in _HINTS.items() if part in str(error)), _HINT)
        raise ValueError(f"{file} cannot be read as FASTA: {error}. {hint}") from error

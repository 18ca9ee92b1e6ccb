"""Likelihoods, entropies and embeddings along a whole chromosome, in memory that does not grow with it.

A causal network reads chunk after chunk and carries its state between them, which is exact. The other strand is read
from the end of the chromosome to its start; its values wait in a temporary file, 8 bytes per base, until the first
strand reaches them (embeddings: 4 bytes per column and bin). Set TMPDIR to choose its folder.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ssmseq.base import check_choice, check_number
from ssmseq.dna.alphabet import BOS, reverse_complement_tokens
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.likelihood import base_log_probabilities, is_base

KINDS = ("log_likelihood", "bits", "entropy")
Advance = Callable[[int], object]
_Piece = tuple[int, int]


def stream_log_probabilities(
    model, fasta, contig: str, start: int | None = None, end: int | None = None, *, strands: str | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the log-probability of each base of a contig; see `stream_track`, of which it is one kind."""
    return stream_track(model, fasta, contig, start, end, kind="log_likelihood", strands=strands)


def stream_track(
    model,
    fasta,
    contig: str,
    start: int | None = None,
    end: int | None = None,
    *,
    kind: str = "log_likelihood",
    strands: str | None = None,
    advance: Advance | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a value for each base of a contig, or of a part of one, chunk by chunk.

    Parameters
    ----------
    model : DNALanguageModel
        Causal. One with attention keeps the keys and values of all that it has read, so that its memory does grow.
    fasta : Fasta or path
    contig : str
    start, end : int, optional
        In bases from 0, end excluded; the whole contig by default. The model knows nothing of what lies outside.
    kind : {"log_likelihood", "bits", "entropy"}
        The log-probability of the base in nats; the same as ``-log2 p``, in bits; or the entropy of the distribution
        that the model gives the base, in bits, whatever the base is.
    strands : {"forward", "average"}, optional
        As in `DNALanguageModel.log_likelihood`. With "average" the other strand is read first, to its end.
    advance : callable, optional
        Called with the number of bases after each chunk of each strand.

    Yields
    ------
    position : int
        Of the first base of the chunk, from 0.
    values : array (L,) of float64
        ``chunk_length`` of them, fewer in the last chunk; NaN where the letter is none of A, C, G and T.

    Raises
    ------
    NotFittedError
        If `fit` has not run.
    ValueError
        For a bidirectional model, an unknown kind or contig, or a part that does not lie in it.
    """
    check_choice("kind", kind, KINDS)
    source, first, last = _check(model, fasta, contig, start, end)
    return _track(model, source, contig, (first, last), kind, model._averages(strands), advance or _ignore)


def stream_embeddings(
    model,
    fasta,
    contig: str,
    start: int | None = None,
    end: int | None = None,
    *,
    bin_length: int = 128,
    strands: str | None = None,
    advance: Advance | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the mean embedding of each bin of a contig, or of a part of one; each knows all that was read before it.

    Parameters
    ----------
    model, fasta, contig, start, end, strands, advance
        As in `stream_track`.
    bin_length : int
        Letters per bin. The last bin has fewer where it does not divide the length.

    Yields
    ------
    position : int
        Of the first letter of the first bin, from 0.
    embeddings : array (bins, d_model) of float32

    Raises
    ------
    NotFittedError, ValueError
        As `stream_track`, and for a bin length below 1.
    """
    check_number("bin_length", bin_length, minimum=1, integer=True)
    source, first, last = _check(model, fasta, contig, start, end)
    return _embeddings(model, source, contig, (first, last), bin_length, model._averages(strands), advance or _ignore)


def _check(model, fasta, contig: str, start: int | None, end: int | None) -> tuple[Fasta, int, int]:
    check_is_fitted(model)
    if model.bidirectional:
        raise ValueError(
            "a bidirectional model needs a sequence as a whole and cannot read a chromosome in chunks: fit one with "
            "bidirectional=False, or give log_likelihood or embed the parts of interest as strings"
        )
    source = fasta if isinstance(fasta, Fasta) else Fasta(fasta)
    source.check(contig, 0, 0)
    first, last = source.check(contig, 0 if start is None else start, source.contigs[contig] if end is None else end)
    return source, first, last


def _ignore(_: int) -> None:
    pass


def _track(model, source: Fasta, contig: str, part: _Piece, kind: str, average: bool, advance: Advance):
    pieces = _pieces(*part, model.chunk_length)

    def values(*, other_strand: bool) -> Iterator[tuple[int, np.ndarray]]:
        network, caches = _network(model)
        before = BOS
        for place, tokens in _read(source, contig, pieces, other_strand):
            given = torch.from_numpy(np.append(before, tokens).astype(np.int64))[None].to(model._device())
            with torch.inference_mode():
                found = _values(kind, network(given[:, :-1], caches), given[:, 1:])[0].cpu().numpy()
            before = int(tokens[-1])
            advance(len(found))
            yield place, found[::-1] if other_strand else found

    if not average:
        yield from values(other_strand=False)
        return
    with _Store(part[0], np.float64) as store:
        for place, found in values(other_strand=True):
            store.write(place, found)
        for place, found in values(other_strand=False):
            yield place, (found + store.read(place, found.shape)) / 2


def _values(kind: str, scores: Tensor, tokens: Tensor) -> Tensor:
    """Return the values (B, L) of tokens by scores (B, L, 4)."""
    if kind == "entropy":
        log_p = scores.double().log_softmax(-1)
        found = -(log_p.exp() * log_p).sum(-1) / math.log(2)
        return torch.where(is_base(tokens), found, torch.nan)
    found = base_log_probabilities(scores, tokens)
    return found if kind == "log_likelihood" else -found / math.log(2)


def _embeddings(model, source: Fasta, contig: str, part: _Piece, bin_length: int, average: bool, advance: Advance):
    start, end = part
    pieces = _pieces(start, end, model.chunk_length, bin_length)

    def means(*, other_strand: bool) -> Iterator[tuple[int, np.ndarray]]:
        network, caches = _network(model)
        with torch.inference_mode():
            network.hidden(torch.tensor([[BOS]], device=model._device()), caches)
        total: np.ndarray | None = None
        for place, tokens in _read(source, contig, pieces, other_strand):
            with torch.inference_mode():
                given = torch.from_numpy(tokens.astype(np.int64))[None].to(model._device())
                states = network.hidden(given, caches)[0].double().cpu().numpy()
            states = states[::-1] if other_strand else states
            sums = np.add.reduceat(states, np.arange(0, len(states), bin_length))
            total = sums if total is None else total + sums  # the next part of a bin that is longer than a chunk
            advance(len(states))
            stop = place + len(states)
            whole = (place - start) % bin_length == 0 if other_strand else (stop - start) % bin_length == 0
            if whole or (stop == end and not other_strand):
                first = place - (place - start) % bin_length
                starts = first + bin_length * np.arange(len(total))
                sizes = np.minimum(starts + bin_length, end) - starts
                yield first, (total / sizes[:, None]).astype(np.float32)
                total = None

    if not average:
        yield from means(other_strand=False)
        return
    with _Store(start, np.float32, bin_length, model.network_.d_hidden) as store:
        for place, found in means(other_strand=True):
            store.write(place, found)
        for place, found in means(other_strand=False):
            yield place, (found + store.read(place, found.shape)) / 2


def _network(model):
    network = model.network_.to(model._device())
    return network, network.empty_caches()


def _pieces(start: int, end: int, chunk_length: int, bin_length: int = 1) -> list[_Piece]:
    """Cut a part into pieces of at most `chunk_length` that hold whole bins, or lie in one."""
    if bin_length <= chunk_length:
        step = chunk_length // bin_length * bin_length
        return [(place, min(place + step, end)) for place in range(start, end, step)]
    bins = [(place, min(place + bin_length, end)) for place in range(start, end, bin_length)]
    return [piece for first, last in bins for piece in _pieces(first, last, chunk_length)]


def _read(source: Fasta, contig: str, pieces: Iterable[_Piece], other_strand: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield where each piece starts and its tokens, in the direction of the strand that is read."""
    for start, end in reversed(list(pieces)) if other_strand else pieces:
        tokens = source.tokens(contig, start, end)
        yield start, reverse_complement_tokens(tokens) if other_strand else tokens


class _Store:
    """A temporary file of rows by their place; not mapped, so that its pages do not count as the process's memory."""

    def __init__(self, start: int, dtype, bin_length: int = 1, columns: int = 1):
        self.start, self.dtype, self.bin_length = start, np.dtype(dtype), bin_length
        self.row_bytes = columns * self.dtype.itemsize

    def __enter__(self) -> "_Store":
        self.file = tempfile.TemporaryFile(prefix="ssmseq-")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, place: int, rows: np.ndarray) -> None:
        try:
            self.file.seek((place - self.start) // self.bin_length * self.row_bytes)
            self.file.write(np.ascontiguousarray(rows).tobytes())
            self.file.flush()
        except OSError as error:
            raise OSError(
                f"the values of the other strand cannot be written to a temporary file in {tempfile.gettempdir()} "
                f'({error}): make room there, set TMPDIR to another folder, or read one strand with strands="forward"'
            ) from error

    def read(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
        self.file.seek((place - self.start) // self.bin_length * self.row_bytes)
        return np.frombuffer(self.file.read(math.prod(shape) * self.dtype.itemsize), self.dtype).reshape(shape)

"""Genome-wide tracks and embeddings in files: bedGraph, wig, bigWig; npy, CSV, Parquet.

Files are written beside their place and moved there when they are whole. Neither genome nor track is held in memory.
"""

import contextlib
import gzip
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmseq.base import check_number
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.streaming import stream_embeddings, stream_log_probabilities, stream_track

__all__ = ["stream_embeddings", "stream_log_probabilities", "stream_track", "write_embeddings", "write_track"]


def write_track(
    model,
    fasta,
    path,
    *,
    contigs: Sequence[str] | None = None,
    kind: str = "log_likelihood",
    resolution: int = 1,
    strands: str | None = None,
    progress: bool = False,
) -> int:
    """Write what a model says of each base of a genome, for a genome browser.

    Parameters
    ----------
    model : DNALanguageModel
        Causal, see `stream_track`.
    fasta : Fasta or path
    path : path
        bedGraph (.bedGraph, .bedgraph, .bg), wig (.wig), either also with .gz; or bigWig (.bw, .bigWig), which needs
        pyBigWig.
    contigs : sequence of str, optional
        All by default.
    kind : {"log_likelihood", "bits", "entropy"}
        See `stream_track`.
    resolution : int
        Letters whose mean is one value; letters that are none of A, C, G and T do not count, and an interval without
        any base is left out.
    strands : {"forward", "average"}, optional
        As in `DNALanguageModel.log_likelihood`.
    progress : bool
        Show bases per second and the time left on stderr.

    Returns
    -------
    int
        Intervals written.

    Raises
    ------
    NotFittedError
        If `fit` has not run.
    ValueError
        For a bidirectional model, an unknown suffix, contig or kind, or a resolution below 1.
    ImportError
        For bigWig without pyBigWig.

    Notes
    -----
    Values are float32 in all formats. Positions in bedGraph count from 0 and exclude the end. The contigs of a bigWig
    are in alphabetical order, as its index asks.
    """
    check_number("resolution", resolution, minimum=1, integer=True)
    path = Path(path).expanduser()
    writer_type = _track_writer(path)
    source = fasta if isinstance(fasta, Fasta) else Fasta(fasta)
    sizes = chosen_sizes(source, contigs)
    if writer_type is _BigWig:
        sizes = dict(sorted(sizes.items()))
    passes = 1 + model._averages(strands)
    n_intervals = 0
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(_whole_file(path))
        bar = stack.enter_context(base_bar(passes * sum(sizes.values()), progress))
        writer = stack.enter_context(contextlib.closing(writer_type(part, sizes, resolution)))
        for contig, size in sizes.items():
            chunks = stream_track(model, source, contig, kind=kind, strands=strands, advance=bar.update)
            for start, values in _means(chunks, resolution, size):
                for first, stop in _runs(values):
                    writer.add(contig, start + first * resolution, values[first:stop])
                    n_intervals += stop - first
    return n_intervals


def write_embeddings(
    model,
    fasta,
    path,
    *,
    contigs: Sequence[str] | None = None,
    bin_length: int = 128,
    strands: str | None = None,
    progress: bool = False,
) -> int:
    """Write the mean embedding of each bin of a genome.

    Parameters
    ----------
    model, fasta, contigs, strands, progress
        As in `write_track`.
    path : path
        .npy, an array (bins, d_model) of float32 for ``numpy.load(path, mmap_mode="r")``, whose rows are the intervals
        of a BED file beside it, named as it is with ".bed" added; or .csv or .parquet (which needs pyarrow) with
        columns contig, start, end and one for each channel.
    bin_length : int
        Letters per bin. The last bin of a contig may have fewer.

    Returns
    -------
    int
        Bins written.

    Raises
    ------
    NotFittedError, ValueError
        As `write_track`.
    ImportError
        For Parquet without pyarrow.
    """
    check_number("bin_length", bin_length, minimum=1, integer=True)
    path = Path(path).expanduser()
    source = fasta if isinstance(fasta, Fasta) else Fasta(fasta)
    sizes = chosen_sizes(source, contigs)
    n_bins = sum(-(-size // bin_length) for size in sizes.values())
    passes = 1 + model._averages(strands)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(base_bar(passes * sum(sizes.values()), progress))
        writer = stack.enter_context(_embeddings_writer(path, n_bins, model.network_.d_hidden, model))
        for contig, size in sizes.items():
            found = stream_embeddings(model, source, contig, bin_length=bin_length, strands=strands, advance=bar.update)
            for start, rows in found:
                starts = start + bin_length * np.arange(len(rows))
                writer.add(contig, starts, np.minimum(starts + bin_length, size), rows)
    return n_bins


def write_rows(model, path, sizes: dict[str, int], rows: np.ndarray) -> None:
    """Write one embedding for each contig, (contigs, d) of float32, to a file as those of `write_embeddings`."""
    path = Path(path).expanduser()
    with _embeddings_writer(path, len(rows), rows.shape[1], model) as writer:
        for row, (contig, size) in zip(rows, sizes.items(), strict=True):
            writer.add(contig, np.array([0]), np.array([size]), row[None])


def index_path(path) -> Path:
    """Return the BED file that names the rows of an ``.npy`` file of embeddings."""
    return Path(f"{path}.bed")


def chosen_sizes(source: Fasta, contigs: Sequence[str] | None) -> dict[str, int]:
    """Return the lengths of the contigs that are asked for, empty ones left out."""
    if isinstance(contigs, str):
        raise ValueError(f"contigs must be a list of names, got the string {contigs!r}: write [{contigs!r}]")
    for contig in contigs or ():
        source.check(contig, 0, 0)
    names = source.contigs if contigs is None else dict.fromkeys(contigs)
    sizes = {name: source.contigs[name] for name in names if source.contigs[name]}
    if not sizes:
        raise ValueError(f"the contigs {', '.join(names)} of {source.path} hold no bases: choose others")
    return sizes


def base_bar(total: int | None, shown: bool, *, unit: str = "base") -> Any:
    """Return a progress bar of bases, or of another unit, on stderr."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log needs no line for each tenth of one
    return tqdm(total=total, unit=unit, unit_scale=True, file=sys.stderr, disable=not shown, mininterval=interval)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written there replaces the file if all went well."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        part = Path(folder, path.name)
        yield part
        os.replace(part, path)


def _means(chunks: Iterator[tuple[int, np.ndarray]], resolution: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield where intervals start and their means (n,) of float32, NaN for those without a value."""
    start, rest = 0, np.empty(0)
    for place, values in chunks:
        values = np.concatenate([rest, values])
        whole = len(values) // resolution * resolution
        if place + len(values) - len(rest) == size:
            whole = len(values)
        if whole:
            firsts = np.arange(0, whole, resolution)
            known = ~np.isnan(values[:whole])
            counts = np.add.reduceat(known.astype(np.int64), firsts)
            sums = np.add.reduceat(np.where(known, values[:whole], 0.0), firsts)
            yield start, np.where(counts, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
        start, rest = start + whole, values[whole:]


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Return where runs of numbers between NaN begin and end."""
    edges = np.diff(np.concatenate([[0], ~np.isnan(values), [0]]).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _track_writer(path: Path):
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in _TRACKS and not (_TRACKS[suffix] is _BigWig and path.name.lower().endswith(".gz")):
        return _TRACKS[suffix]
    known = ".bedGraph, .bg, .wig (.gz may follow), .bw or .bigWig"
    raise ValueError(f"{path} must end in {known}, which says what is written")


class _Text:
    """A text file, which a suffix .gz packs; without a time in it, so that equal tracks are equal files."""

    def __init__(self, path: Path, sizes: dict[str, int], resolution: int):
        self.sizes, self.resolution = sizes, resolution
        with contextlib.ExitStack() as stack:
            raw: Any = stack.enter_context(path.open("wb"))
            if path.name.lower().endswith(".gz"):
                raw = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            self.file = stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))
            self.close = stack.pop_all().close


class _BedGraph(_Text):
    def add(self, contig: str, start: int, values: np.ndarray) -> None:
        starts = start + self.resolution * np.arange(len(values))
        ends = np.minimum(starts + self.resolution, self.sizes[contig]).tolist()
        rows = zip(starts.tolist(), ends, values.astype(str).tolist(), strict=True)
        self.file.writelines(f"{contig}\t{first}\t{last}\t{value}\n" for first, last, value in rows)


class _Wig(_Text):
    after: tuple[str, int] | None = None  # where the last block, of whole intervals, ended

    def add(self, contig: str, start: int, values: np.ndarray) -> None:
        for first, span, part in _spans(start, values, self.resolution, self.sizes[contig]):
            if self.after != (contig, first) or span != self.resolution:
                self.file.write(f"fixedStep chrom={contig} start={first + 1} step={span} span={span}\n")
            self.file.writelines(f"{value}\n" for value in part.astype(str).tolist())
            self.after = (contig, first + span * len(part))


class _BigWig:
    def __init__(self, path: Path, sizes: dict[str, int], resolution: int):
        try:
            import pyBigWig  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                f"writing bigWig ({path.name}) needs pyBigWig: pip install 'ssmseq[dna]', or write bedGraph"
            ) from error
        self.sizes, self.resolution = sizes, resolution
        self.file = pyBigWig.open(str(path), "w")
        self.file.addHeader(list(sizes.items()))

    def add(self, contig: str, start: int, values: np.ndarray) -> None:
        for first, span, part in _spans(start, values, self.resolution, self.sizes[contig]):
            self.file.addEntries(contig, first, values=part, span=span, step=span)

    def close(self) -> None:
        self.file.close()


_TRACKS = {
    ".bedgraph": _BedGraph,
    ".bg": _BedGraph,
    ".wig": _Wig,
    ".bw": _BigWig,
    ".bigwig": _BigWig,
}


def _spans(start: int, values: np.ndarray, span: int, size: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield place, span and values of equal intervals; the last of a contig may be shorter."""
    n_whole = min((size - start) // span, len(values))
    if n_whole:
        yield start, span, values[:n_whole]
    if n_whole < len(values):
        last = start + n_whole * span
        yield last, size - last, values[n_whole:]


@contextlib.contextmanager
def _embeddings_writer(path: Path, n_rows: int, n_columns: int, model) -> Iterator[Any]:
    """Give what writes embeddings to a file of the kind that its suffix names."""
    kinds: dict[str, Any] = {".npy": _Npy, ".csv": _Csv, ".parquet": _Parquet}
    if path.suffix not in kinds:
        raise ValueError(f"{path} must end in {', '.join(kinds)}, which says what is written")
    prefix = type(model).__name__.lower()  # as scikit-learn names the columns of `transform`
    names = [f"{prefix}{i}" for i in range(n_columns)]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_whole_file(path))]
        if path.suffix == ".npy":
            parts.append(stack.enter_context(_whole_file(index_path(path))))
        yield stack.enter_context(contextlib.closing(kinds[path.suffix](parts, n_rows, names)))


class _Npy:
    def __init__(self, parts: list[Path], n_rows: int, names: list[str]):
        shape = (n_rows, len(names))
        self.file = parts[0].open("wb")
        self.bed = parts[1].open("w", encoding="utf-8", newline="\n")
        np.lib.format.write_array_header_1_0(self.file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def add(self, contig: str, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows, "<f4").tobytes())
        places = zip(starts.tolist(), ends.tolist(), strict=True)
        self.bed.writelines(f"{contig}\t{first}\t{last}\n" for first, last in places)

    def close(self) -> None:
        self.file.close()
        self.bed.close()


class _Csv:
    def __init__(self, parts: list[Path], n_rows: int, names: list[str]):
        self.names = names
        self.file = parts[0].open("w", encoding="utf-8", newline="\n")
        self.file.write(",".join(["contig", "start", "end", *self.names]) + "\n")

    def add(self, contig: str, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> None:
        _frame(self.names, contig, starts, ends, rows).to_csv(self.file, header=False, index=False)

    def close(self) -> None:
        self.file.close()


class _Parquet:
    def __init__(self, parts: list[Path], n_rows: int, names: list[str]):
        try:
            import pyarrow as pa  # pyright: ignore[reportMissingImports]
            import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            message = f"writing Parquet ({parts[0].name}) needs pyarrow: pip install pyarrow, or write .npy or .csv"
            raise ImportError(message) from error
        self.names, self.table_type = names, pa.Table
        columns = [("contig", pa.string()), ("start", pa.int64()), ("end", pa.int64())]
        self.schema = pa.schema([*columns, *((name, pa.float32()) for name in self.names)])
        self.writer = pq.ParquetWriter(parts[0], self.schema)

    def add(self, contig: str, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> None:
        frame = _frame(self.names, contig, starts, ends, rows)
        self.writer.write_table(self.table_type.from_pandas(frame, self.schema, preserve_index=False))

    def close(self) -> None:
        self.writer.close()


def _frame(names: list[str], contig: str, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray):
    import pandas as pd

    places = pd.DataFrame({"contig": contig, "start": starts, "end": ends})
    return pd.concat([places, pd.DataFrame(rows, columns=pd.Index(names))], axis=1)

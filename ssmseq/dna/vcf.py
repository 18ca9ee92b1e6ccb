"""Variants in and out: VCF, its first five columns as text, or a data frame, read line by line and without pysam.

No line is lost: what cannot be scored keeps its place with a `Reason`. The format is that of the VCF specification,
version 4.3 [1]_, of which the columns up to ALT and INFO are read, and all are kept. What is written to names in ".gz"
is packed as by bgzip, in the blocks of the SAM specification [2]_, since pysam and tabix refuse other gzip files.

References
----------
.. [1] The Variant Call Format Specification, VCFv4.3. https://samtools.github.io/hts-specs/VCFv4.3.pdf
.. [2] Sequence Alignment/Map Format Specification, section 4.1. https://samtools.github.io/hts-specs/SAMv1.pdf
"""

import csv
import gzip
import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import pandas as pd

from ssmseq.dna.alleles import Allele, Reason, VariantRecord

_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
_PARQUET = (".parquet", ".pq")
_BLOCK = 0xFF00  # bytes that are packed together; more might not fit into 64 KiB if they cannot be made smaller


class VariantReader:
    """The variants of a file or frame, read anew by each loop over them; a file is never held in memory.

    Parameters
    ----------
    source : path, pandas or polars frame
        VCF, or text without a header whose first five columns are those of VCF: contig, POS, ID, REF and ALT, between
        tabs or, in lines without any, spaces; also packed by gzip or bgzip. Empty lines count for nothing. A frame has
        the columns chrom (or contig), pos (from 1), ref, alt, and perhaps id.

    Attributes
    ----------
    path : pathlib.Path or None
    header : tuple of str
        The lines before the first record that start with #.
    n_columns : int
        Of the first record; 0 without any.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file is BCF or cut off, or a frame lacks a column.
    TypeError
        For a source of another kind.

    Examples
    --------
    >>> frame = pd.DataFrame({"chrom": ["chr1", "chr1"], "pos": [7, 9], "ref": ["A", "C"], "alt": ["G,T", "<DEL>"]})
    >>> for record in VariantReader(frame):
    ...     print([(allele.pos0, allele.alt, str(allele.reason)) for allele in record.alleles])
    [(6, 'G', 'ok'), (6, 'T', 'ok')]
    [(8, '<DEL>', 'symbolic')]
    """

    def __init__(self, source):
        self.path = Path(source).expanduser() if isinstance(source, str | os.PathLike) else None
        if self.path is not None and not self.path.is_file():
            raise FileNotFoundError(f"there is no file of variants {self.path}: check the path")
        self._frame = None if self.path is not None else _frame(source)
        header, self.n_columns = [], 0
        for line, fields, _ in self._rows():
            if not line.startswith("#"):
                self.n_columns = len(fields)
                break
            header.append(line)
        self.header = tuple(header)

    def __iter__(self) -> Iterator[VariantRecord]:
        for i, (line, fields, number) in enumerate(self._rows()):
            if i >= len(self.header):
                yield VariantRecord(fields, line, number)

    def count(self) -> int:
        """Return the number of records, by a pass over all of them."""
        return sum(1 for _ in self._rows()) - len(self.header)

    def _rows(self) -> Iterator[tuple[str, tuple[str, ...], int]]:
        if self._frame is not None:
            for number, row in enumerate(self._frame.iter_rows(), 1):
                fields = tuple(_cell(value) for value in row)
                yield "\t".join(fields), fields, number
        else:
            for number, line in enumerate(_lines(self.path), 1):
                if line.strip():
                    yield line, tuple(line.split("\t") if "\t" in line else line.split()), number


def _lines(path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        # Bytes that are no UTF-8 are to come out as they went in.
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file):
                if number == 0 and line.startswith("BCF"):
                    raise ValueError(f"{path} is BCF, which is not read: run bcftools view {path} > variants.vcf")
                yield line.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as text ({error}): copy or download it again") from error


def _frame(source):
    import narwhals as nw

    try:
        frame = nw.from_native(source, eager_only=True)
    except TypeError as error:
        kind = type(source).__name__
        raise TypeError(f"variants must be the path of a file or a data frame, got {kind}") from error
    contig = "contig" if "contig" in frame.columns and "chrom" not in frame.columns else "chrom"
    if missing := [column for column in (contig, "pos", "ref", "alt") if column not in frame.columns]:
        raise ValueError(
            f"the data frame of variants has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(str, frame.columns))}"
        )
    names = nw.col("id") if "id" in frame.columns else nw.lit(".").alias("id")
    return frame.select(nw.col(contig), nw.col("pos"), names, nw.col("ref"), nw.col("alt"))


def _cell(value) -> str:
    if pd.isna(value):
        return "."
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class InfoField(NamedTuple):
    """A key of the INFO column: its ID, Number ("A" is one value for each allele), Type and Description."""

    key: str
    number: Literal["A", "1", "0", "."]
    type: Literal["Float", "Integer", "String", "Flag"]
    description: str

    @property
    def line(self) -> str:
        """The line of the header."""
        text = self.description.replace("\\", "\\\\").replace('"', '\\"')
        return f'##INFO=<ID={self.key},Number={self.number},Type={self.type},Description="{text}">'


class VCFWriter:
    """A VCF file of the records read, in their order, with keys added to INFO; to be used by `with`.

    Parameters
    ----------
    path : path
        Packed as by bgzip if it ends in ".gz".
    variants : VariantReader
        Where the records come from. Its header is kept; one that is missing is written.
    fields : sequence of InfoField

    Raises
    ------
    ValueError
        If the path is that of the variants, or a key is no valid one or in the header already.

    Examples
    --------
    >>> import tempfile
    >>> variants = VariantReader(pd.DataFrame({"chrom": ["chr1"], "pos": [7], "ref": ["A"], "alt": ["G,T"]}))
    >>> path = Path(tempfile.mkdtemp(), "scored.vcf")
    >>> with VCFWriter(path, variants, [InfoField("LLR", "A", "Float", "Log-likelihood ratio")]) as writer:
    ...     for record in variants:
    ...         writer.write(record, {"LLR": [0.25, None]})
    >>> print(path.read_text().splitlines()[-1].replace(chr(9), " "))
    chr1 7 . A G,T . . LLR=0.25,.
    """

    def __init__(self, path: str | os.PathLike, variants: VariantReader, fields: Sequence[InfoField]):
        self.path = Path(path).expanduser()
        if variants.path is not None and self.path.exists() and self.path.samefile(variants.path):
            raise ValueError(f"{self.path} is read while it would be written: choose another path")
        self.fields = {field.key: field for field in fields}
        for key in self.fields:
            if not re.fullmatch(r"[A-Za-z_][0-9A-Za-z_.]*", key):
                raise ValueError(f"{key!r} is no key of INFO: use letters, digits, _ and ., not first a digit")
            if any(line.startswith((f"##INFO=<ID={key},", f"##INFO=<ID={key}>")) for line in variants.header):
                raise ValueError(f"the header has an INFO key {key} already: rename the new one or remove the old")
        self._lines = _header(variants, self.fields.values())

    def __enter__(self) -> Self:
        self._file = _open_to_write(self.path)
        self._file.writelines(line + "\n" for line in self._lines)
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def write(self, record: VariantRecord, values: Mapping[str, Any]) -> None:
        """Write a record.

        Parameters
        ----------
        record : VariantRecord
        values : mapping of key to value
            For Number "A" or "." a sequence, for Type "Flag" a bool, else one value. None and NaN are missing: "."
            among others, and a key without any value is left out.

        Raises
        ------
        ValueError
            For an unknown key, one that the record has already, or a wrong number of values.
        """
        if record.reason is Reason.COMMENT:
            self._file.write(record.line + "\n")
            return
        columns = [*record.fields, *["."] * (len(_COLUMNS) - len(record.fields))]
        old = [] if columns[7] in (".", "") else columns[7].split(";")
        new = []
        for key, value in values.items():
            if key not in self.fields:
                raise ValueError(f"{key!r} is none of the fields {', '.join(self.fields)}: give it to VCFWriter")
            if key in (entry.partition("=")[0] for entry in old):
                raise ValueError(
                    f"line {record.line_number} has an INFO key {key} already: rename the new one or remove the old"
                )
            new.append(_entry(self.fields[key], value, record))
        columns[7] = ";".join(old + [entry for entry in new if entry]) or "."
        self._file.write("\t".join(columns) + "\n")


def _header(variants: VariantReader, fields: Iterable[InfoField]) -> list[str]:
    columns = list(_COLUMNS)
    if variants.n_columns > len(columns):
        columns += ["FORMAT", *(f"sample_{i}" for i in range(1, variants.n_columns - len(columns)))]
    lines = []
    for line in variants.header:
        if line.startswith("#CHROM"):
            names = line.split()
            columns = [*names, *columns[len(names) :]] if len(names) < len(_COLUMNS) else line.split("\t")
        else:
            lines.append(line)
    if not any(line.startswith("##fileformat=") for line in lines):
        lines.insert(0, "##fileformat=VCFv4.3")
    return [*lines, *(field.line for field in fields), "\t".join(columns)]


def _entry(field: InfoField, value, record: VariantRecord) -> str:
    if field.type == "Flag":
        return field.key if value else ""
    values = list(value) if field.number in ("A", ".") else [value]
    if field.number == "A" and len(values) != len(record.alleles):
        raise ValueError(
            f"line {record.line_number} has {len(record.alleles)} alleles and {len(values)} values for {field.key}: "
            "give one for each"
        )
    texts = [_text(field.type, one) for one in values]
    return f"{field.key}={','.join(texts)}" if any(text != "." for text in texts) else ""


def _text(kind: str, value) -> str:
    if pd.isna(value):
        return "."
    if kind == "Integer":
        return str(int(value))
    if kind == "Float":
        return f"{value:.6g}"
    return re.sub(r"[\x00-\x20%,:;=\x7f]", lambda found: f"%{ord(found[0]):02X}", str(value))


AlleleRows = Iterable[tuple[Allele, Mapping[str, Any]]]


def write_alleles(path: str | os.PathLike, rows: AlleleRows, *, columns: Sequence[str] | None = None) -> None:
    """Write a table with one row for each allele.

    The columns are line, chrom, pos, id, ref, alt (all as they came; `Reason.FLIPPED` says that the values are those of
    the exchange), allele (its place in ALT) and reason, and then the keys of the values.

    Parameters
    ----------
    path : path
        Parquet if it ends in ".parquet" or ".pq", for which all rows are held in memory; else text between tabs,
        written row by row and packed as by bgzip if it ends in ".gz".
    rows : iterable of (Allele, mapping of column to value)
        All mappings have the same keys. None and NaN are empty in text.
    columns : sequence of str, optional
        The keys; by default those of the first row.

    Raises
    ------
    ValueError
        If the keys differ.
    ImportError
        For Parquet without pyarrow and polars.
    """
    path = Path(path).expanduser()
    table = _table(rows, columns)
    names = next(table)
    if path.suffix in _PARQUET:
        _write_parquet(path, names, list(table))
        return
    with _open_to_write(path) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(names)
        for row in table:
            writer.writerow("" if pd.isna(value) else value for value in row)


def allele_frame(rows: AlleleRows, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the table of `write_alleles` as a frame."""
    table = _table(rows, columns)
    names = next(table)
    return pd.DataFrame(list(table), columns=pd.Index(names)).astype({"pos": "Int64"})


def _table(rows: AlleleRows, columns: Sequence[str] | None) -> Iterator[list]:
    """Yield the names of the columns, then the rows."""
    fixed = ["line", "chrom", "pos", "id", "ref", "alt", "allele", "reason"]
    keys = columns
    if keys is not None:
        yield [*fixed, *keys]
    for allele, values in rows:
        if keys is None:
            keys = list(values)
            yield [*fixed, *keys]
        if set(values) != set(keys):
            raise ValueError(
                f"line {allele.record.line_number} has the values {', '.join(values)}, and those before have "
                f"{', '.join(keys)}: give all alleles the same"
            )
        chrom, pos, name, ref, alts = (*allele.record.fields, *[""] * 5)[:5]
        alt = alts.split(",")[allele.index - 1]
        pos = int(pos) if pos.isascii() and pos.isdigit() else None
        line = allele.record.line_number
        yield [line, chrom, pos, name, ref, alt, allele.index, str(allele.reason), *(values[key] for key in keys)]
    if keys is None:
        yield fixed


def _write_parquet(path: Path, columns: list[str], rows: list[list]) -> None:
    frame = pd.DataFrame(rows, columns=pd.Index(columns)).astype({"pos": "Int64"})
    try:
        frame.to_parquet(path, index=False)
    except ImportError as missing:
        try:
            import polars
        except ImportError:
            raise ImportError("writing Parquet needs pyarrow or polars: pip install pyarrow") from missing
        polars.DataFrame(rows, schema=columns, orient="row", infer_schema_length=None).write_parquet(path)


def _open_to_write(path: Path) -> IO[str]:
    file = io.BufferedWriter(_BlockWriter(path), _BLOCK) if path.suffix == ".gz" else path.open("wb")
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")


class _BlockWriter(io.RawIOBase):
    """A gzip file in blocks that can be read one without the others; the last, an empty one, marks the end."""

    def __init__(self, path: Path):
        self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        data = bytes(data)
        for start in range(0, len(data), _BLOCK):
            self._file.write(_block(data[start : start + _BLOCK]))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.write(_block(b""))
            self._file.close()
        super().close()


def _block(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(data) + packer.flush()
    # The extra field "BC" of the header, in 2 bytes, is the size of the block less 1.
    head = struct.pack("<4BI2BH2s2H", 31, 139, 8, 4, 0, 0, 255, 6, b"BC", 2, len(packed) + 25)
    return head + packed + struct.pack("<2I", zlib.crc32(data), len(data))

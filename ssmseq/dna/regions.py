"""Regions of a genome, from BED, GFF3, GTF or data frames, and which of them are held out for validation.

Coordinates count bases from 0 and exclude the end, as BED does; those of GFF3 and GTF, which count from 1 and include
the end, are converted.
"""

import gzip
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pandas as pd

from ssmseq.base import check_number

if TYPE_CHECKING:
    from ssmseq.dna.fasta import Fasta

COLUMNS = ["contig", "start", "end", "strand", "name"]
BED_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")
GFF_SUFFIXES = (".gff", ".gff3", ".gtf")
_NAME_KEYS = (
    "Name",
    "ID",
    "gene_name",
    "transcript_id",
    "gene_id",
)  # the first that a GFF3 or GTF line has is its name

_Row = tuple[str, str, int, int, str, str]  # where it was read, then the columns


def read_regions(source, fasta: "Fasta", *, feature: str | list[str] | None = None) -> pd.DataFrame:
    """Read regions and check that a FASTA file has them.

    Parameters
    ----------
    source : path, data frame or None
        BED of three or more columns, GFF3 or GTF by the file's suffix, each also packed by gzip; a pandas or polars
        frame with columns contig (or chrom), start, end and perhaps strand and name, in coordinates as of BED; or None
        for all contigs.
    fasta : Fasta
    feature : str or list of str, optional
        The types, such as "gene", to take of GFF3 and GTF, which hold one base in many features.

    Returns
    -------
    pandas.DataFrame
        Columns contig, start, end (in bases from 0, end excluded), strand ("+", "-" or "."), name; in the order of the
        source.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For a line or row that cannot be understood, an unknown contig, a region without bases or beyond the end of its
        contig, each named; or if there is no region.
    TypeError
        For a source of another kind.
    """
    if source is None:
        rows = ((contig, contig, 0, size, ".", contig) for contig, size in fasta.contigs.items() if size)
    elif isinstance(source, str | os.PathLike):
        rows = _file_rows(Path(source).expanduser(), feature)
    else:
        rows = _frame_rows(source)
    if feature is not None and not _is_gff(source):
        raise ValueError(f"feature={feature!r} selects from GFF3 and GTF files, which the regions do not come from")
    found = []
    for where, contig, start, end, strand, name in rows:
        try:
            fasta.check(contig, start, end)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if start == end:
            raise ValueError(f"{where}: the region {contig}:{start}-{end} holds no base; leave it out")
        if strand not in ("+", "-", "."):
            raise ValueError(f"{where}: the strand must be +, - or ., got {strand!r}")
        found.append((contig, start, end, strand, name))
    if not found:
        raise ValueError(f"{source} holds no region: give a file with one on each line")
    return pd.DataFrame(found, columns=COLUMNS)


def hold_out(regions: pd.DataFrame, fasta: "Fasta", validation) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide regions into those to train on and those to validate with, so that no base is in both.

    Parameters
    ----------
    regions : pandas.DataFrame
        From `read_regions`.
    fasta : Fasta
    validation : list of str, path, data frame or float
        Names of contigs; regions of their own, as `read_regions` takes; or the share of the bases to hold out. That
        share is made of whole contigs: from the largest to the smallest, each that is not too large for what is still
        to be held out. If they make less than half of the share, as where there is only one contig, the last part of
        the largest contig left is held out too, and a region across the border is cut there. Windows are never drawn
        at random: neighbours and overlaps would lie on both sides.

    Returns
    -------
    train, validation : pandas.DataFrame
        As `regions`.

    Raises
    ------
    ValueError
        If a base lies in both parts, or one of them is empty.
    TypeError
        For a `validation` of another kind.
    """
    if isinstance(validation, str) and validation in fasta.contigs:
        raise ValueError(f"validation={validation!r} would be a file of regions: give names of contigs as a list")
    if isinstance(validation, list | tuple):
        for contig in validation:
            fasta.check(contig, 0, 0)
        held = regions["contig"].isin(validation).to_numpy()
        parts = _rows(regions, ~held), _rows(regions, held)
    elif isinstance(validation, Real):
        check_number("validation", validation, above=0, below=1)
        parts = _share(regions, fasta, float(validation))
    else:
        parts = regions, read_regions(validation, fasta)
    for part, title in zip(parts, ("train on", "validate with"), strict=True):
        if part.empty:
            raise ValueError(f"validation={validation!r} leaves no region to {title}: hold out other contigs")
    check_apart(*parts)
    return parts[0].reset_index(drop=True), parts[1].reset_index(drop=True)


def check_apart(train: pd.DataFrame, validation: pd.DataFrame) -> None:
    """Raise ValueError, with their names, if a region to train on and one to validate with share a base."""
    for contig in dict.fromkeys(validation["contig"]):
        mine, held = _of(train, contig), _of(validation, contig).sort_values("start")
        starts, ends = held["start"].to_numpy(), held["end"].to_numpy()
        before = np.searchsorted(starts, mine["end"].to_numpy())  # so many begin before a region ends
        reach = np.maximum.accumulate(ends)[before - 1]
        shared = np.flatnonzero((before > 0) & (reach > mine["start"].to_numpy()))
        if shared.size:
            one = mine.iloc[shared[0]]
            other = held.iloc[np.flatnonzero((starts < one["end"]) & (ends > one["start"]))[0]]
            raise ValueError(
                f"the region {_label(one)} to train on and {_label(other)} to validate with share bases, as do "
                f"{shared.size} regions to train on of {contig}: leave them out of one part, or hold out whole contigs"
            )


def _share(regions: pd.DataFrame, fasta: "Fasta", fraction: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    sizes: Counter[str] = Counter()
    for contig, start, end in zip(regions["contig"], regions["start"], regions["end"], strict=True):
        sizes[contig] += end - start
    wanted = missing = fraction * sizes.total()
    chosen = []
    for contig, size in sizes.most_common():
        if size <= missing:
            chosen.append(contig)
            missing -= size
    held = regions["contig"].isin(chosen).to_numpy()
    train, validation = _rows(regions, ~held), _rows(regions, held)
    if missing <= wanted / 2:
        return train, validation
    contig = next(contig for contig, _ in sizes.most_common() if contig not in chosen)
    starts, ends = _of(train, contig)["start"].to_numpy(), _of(train, contig)["end"].to_numpy()

    def bases_from(border: int) -> int:
        return int((ends - np.maximum(starts, border)).clip(0).sum())

    border = bisect_left(range(fasta.contigs[contig] + 1), -missing, key=lambda place: -bases_from(place))
    first, last = _of(train, contig), _of(train, contig)
    first["end"], last["start"] = first["end"].clip(upper=border), last["start"].clip(lower=border)
    first, last = (_rows(part, (part["start"] < part["end"]).to_numpy()) for part in (first, last))
    others = _rows(train, (train["contig"] != contig).to_numpy())
    return pd.concat([others, first]).sort_index(), pd.concat([validation, last]).sort_index()


def _rows(regions: pd.DataFrame, chosen: np.ndarray) -> pd.DataFrame:
    return regions.take(np.flatnonzero(chosen))


def _of(regions: pd.DataFrame, contig: str) -> pd.DataFrame:
    return _rows(regions, (regions["contig"] == contig).to_numpy())


def _label(region: pd.Series) -> str:
    return f"{region['name']} ({region['contig']}:{region['start']}-{region['end']})"


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _is_gff(source) -> bool:
    return isinstance(source, str | os.PathLike) and _suffix(Path(source)) in GFF_SUFFIXES


def _file_rows(path: Path, feature) -> Iterator[_Row]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of regions {path}: check the path")
    if _suffix(path) in GFF_SUFFIXES:
        return _gff_rows(path, feature)
    if _suffix(path) in BED_SUFFIXES:
        return _bed_rows(path)
    known = ", ".join((*BED_SUFFIXES, *GFF_SUFFIXES))
    raise ValueError(f"{path} has none of the suffixes {known} (.gz may follow): rename it by its format")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where a line is and the line, for lines with content."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error}): copy or download it again") from error


def _place(where: str, text) -> int:
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: positions must be integers, got {text!r}") from error


def _bed_rows(path: Path) -> Iterator[_Row]:
    for where, line in _lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if line.startswith("#") or line.split()[0] in ("track", "browser"):
            continue
        if len(fields) < 3:
            raise ValueError(f"{where}: BED needs a contig, a start and an end between tabs or spaces, got {line!r}")
        name = fields[3] if len(fields) > 3 else ""
        strand = fields[5] if len(fields) > 5 else "."
        yield where, fields[0], _place(where, fields[1]), _place(where, fields[2]), strand, name


def _gff_rows(path: Path, feature) -> Iterator[_Row]:
    wanted = {feature} if isinstance(feature, str) else set(feature or ())
    seen: Counter[str] = Counter()
    for where, line in _lines(path):
        if line.startswith("##FASTA") or line.startswith(">"):
            break  # GFF3 may go on with the sequences themselves
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 9:
            raise ValueError(f"{where}: GFF3 and GTF have 9 columns between tabs, got {len(fields)} in {line!r}")
        seen[fields[2]] += 1
        if fields[2] in wanted:
            start, end = _place(where, fields[3]) - 1, _place(where, fields[4])
            strand = "." if fields[6] == "?" else fields[6]  # GFF3's mark of an unknown one
            yield where, unquote(fields[0]), start, end, strand, _gff_name(fields[8])
    if missing := wanted - set(seen):
        kinds = ", ".join(f"{kind} ({n})" for kind, n in seen.most_common())
        raise ValueError(f"{path} has no feature {', '.join(sorted(missing))}; it has {kinds}")
    if not wanted:
        kinds = ", ".join(f"{kind!r} ({n})" for kind, n in seen.most_common())
        raise ValueError(f"{path} holds features that overlap: read it by read_regions with feature= one of {kinds}")


def _gff_name(attributes: str) -> str:
    """Return the name in the last column: of GFF3 as ``Name=thrA;``, of GTF as ``gene_name "thrA";``."""
    found = dict(re.findall(r'([^\s;="]+)(?:\s*=\s*|\s+)"?([^;"]*)"?', attributes))
    return next((unquote(found[key]) for key in _NAME_KEYS if key in found), "")


def _frame_rows(source) -> Iterator[_Row]:
    import narwhals as nw

    try:
        frame = nw.from_native(source, eager_only=True)
    except TypeError as error:
        kind = type(source).__name__
        raise TypeError(f"regions must be the path of a file, a data frame or None, got {kind}") from error
    columns = ["chrom" if "contig" not in frame.columns and "chrom" in frame.columns else "contig", *COLUMNS[1:]]
    for column in columns[:3]:
        if column not in frame.columns:
            raise ValueError(f"the data frame of regions has no column {column!r}; it has {', '.join(frame.columns)}")
    for i, values in enumerate(frame.select([c for c in columns if c in frame.columns]).iter_rows(named=True)):
        where, places = f"row {i} of the data frame of regions", []
        for column in ("start", "end"):
            place = values[column]
            if not isinstance(place, Integral | float) or not float(place).is_integer():
                raise ValueError(f"{where}: {column} must be an integer, got {place!r}")
            places.append(int(place))
        yield where, values[columns[0]], *places, values.get("strand", "."), str(values.get("name", ""))

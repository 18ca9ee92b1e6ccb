"""Find a data file, check its content, and download it where it is missing.

The registry (``registry.toml``) names every file with the address and the sha256 of its uncompressed content. A file is
looked for in `data_home`, then in the folder that the environment variable SSMSEQ_DATA names, then in the cache of
pooch, and is downloaded into that cache last. The content is checked wherever it was found.
"""

import gzip
import hashlib
import os
import sys
import tomllib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

ENVIRONMENT_VARIABLE = "SSMSEQ_DATA"
_GZIP_MAGIC = b"\x1f\x8b"


class DatasetNotFoundError(OSError):
    """A data file lies in none of the searched places and was not, or could not be, downloaded."""


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """One data file of the registry; the fields are described at the top of registry.toml."""

    name: str
    file: str
    url: str
    sha256: str
    bytes: int
    rows: int
    columns: int
    licence: str
    citation: str
    homepage: str
    description: str
    split_ends: tuple[int, ...] = ()
    layout: str = "dated"
    date_format: str = "%Y-%m-%d %H:%M:%S"
    also_accepted: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """Row numbers (start, stop) of the train, validation and test parts, without look-back overlap, if any."""
        return dict(zip(("train", "validation", "test"), pairwise((0, *self.split_ends)), strict=False))

    def accepts(self, sha256: str) -> bool:
        """Whether a content with this checksum holds the registered rows."""
        return sha256 == self.sha256 or sha256 in self.also_accepted


@cache
def registry() -> dict[str, DatasetFile]:
    """Return every registered file by its name."""
    groups = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
    entries = {}
    for group in groups.values():
        shared = {key: value for key, value in group.items() if key != "files"}
        for name, fields in group["files"].items():
            frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
            entries[name] = DatasetFile(**{"name": name, **shared, **frozen})
    return entries


def lookup(name: str) -> DatasetFile:
    """Return the registry's entry called `name`; ValueError with all the names if there is none."""
    if name not in registry():
        raise ValueError(f"No data set is called {name!r}; choose one of {', '.join(registry())}.")
    return registry()[name]


def cache_dir() -> Path:
    """Return the folder that downloads go to: the user cache of the platform, as pooch names it."""
    import pooch

    return Path(pooch.os_cache("ssmseq"))


def sha256_of(content: bytes) -> str:
    """Return the sha256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_content(path: Path) -> bytes:
    """Return a file's content, uncompressed where it is gzip.

    Raises
    ------
    ValueError
        If the file is gzip and damaged.
    """
    raw = path.read_bytes()
    # A server may send a .gz file already uncompressed, so the content decides and not the name.
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}): remove or replace it.") from error


def locate(entries: Iterable[DatasetFile], *, data_home: str | os.PathLike | None = None) -> dict[str, Path]:
    """Return where each file lies, by name, for those that are found.

    Every place is searched recursively, in the order `data_home`, SSMSEQ_DATA, cache; links to folders are not
    followed. In one place the copy nearest to the top wins, and an uncompressed one before a ``.gz`` beside it.

    Raises
    ------
    ValueError
        If `data_home` is not a folder.
    """
    entries = list(entries)
    found: dict[str, Path] = {}
    for _, root in _places(data_home):
        missing = {file: entry.name for entry in entries if entry.name not in found for file in _spellings(entry)}
        if missing and root is not None and root.is_dir():
            for name, path in _search(root, missing).items():
                found.setdefault(name, path)
    return found


def fetch_file(name: str, *, data_home: str | os.PathLike | None = None, download_if_missing: bool = True) -> Path:
    """Return the path of a data file whose content has been checked, after a download where that is needed.

    Parameters
    ----------
    name : str
        A name that `list_datasets` gives, such as "ETTh1".
    data_home : path-like, optional
        A folder to search first. Further places are the folder in SSMSEQ_DATA and the cache.
    download_if_missing : bool, default=True
        Whether a file that is in none of these places is downloaded into the cache.

    Returns
    -------
    pathlib.Path
        The file, plain or gzip.

    Raises
    ------
    DatasetNotFoundError
        If the file is missing and was not, or could not be, downloaded.
    ValueError
        If the name is unknown, `data_home` is not a folder, or the content has another checksum.
    """
    return obtain(name, data_home=data_home, download_if_missing=download_if_missing)[0]


def obtain(name: str, *, data_home: str | os.PathLike | None, download_if_missing: bool) -> tuple[Path, bytes]:
    """Return the path and the checked, uncompressed content of a file; arguments and errors as in `fetch_file`."""
    entry = lookup(name)
    path = locate([entry], data_home=data_home).get(name)
    if path is not None:
        try:
            return path, _checked_content(entry, path)
        except ValueError:
            # Only the cache is ours to repair; a file of the user's is never replaced nor passed over.
            if not (download_if_missing and path.is_relative_to(cache_dir())):
                raise
    elif not download_if_missing:
        raise _not_found(entry, data_home, "download_if_missing is False")
    path = _download(entry, data_home)
    return path, _checked_content(entry, path)


def _places(data_home: str | os.PathLike | None) -> list[tuple[str, Path | None]]:
    places: list[tuple[str, Path | None]] = []
    if data_home is not None:
        home = Path(data_home).expanduser()
        if not home.is_dir():
            raise ValueError(f"data_home={os.fspath(data_home)!r} is not a folder: create it, or leave data_home out.")
        places.append((f"data_home ({home})", home))
    variable = os.environ.get(ENVIRONMENT_VARIABLE)
    if variable:
        root = Path(variable).expanduser()
        note = "" if root.is_dir() else ", which is not a folder"
        places.append((f"{ENVIRONMENT_VARIABLE} ({root}{note})", root))
    else:
        places.append((f"{ENVIRONMENT_VARIABLE} (not set)", None))
    places.append((f"the cache ({cache_dir()})", cache_dir()))
    return places


def _spellings(entry: DatasetFile) -> tuple[str, str]:
    return entry.file, entry.file + ".gz"


def _search(root: Path, wanted: dict[str, str]) -> dict[str, Path]:
    hits: dict[str, list[Path]] = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
        for file in wanted.keys() & set(files):
            hits.setdefault(wanted[file], []).append(Path(folder, file))
    return {name: min(paths, key=lambda path: (len(path.parts), str(path))) for name, paths in hits.items()}


def _checked_content(entry: DatasetFile, path: Path) -> bytes:
    content = read_content(path)
    _check(entry, content, path)
    return content


def _check(entry: DatasetFile, content: bytes, source: Path | str) -> None:
    sha256 = sha256_of(content)
    if not entry.accepts(sha256):
        raise ValueError(
            f"{source} is not the registered {entry.file}: the sha256 of its uncompressed content is {sha256}, "
            f"expected {entry.sha256}. Remove or rename it to have the file downloaded from {entry.url}, or put a "
            "verbatim copy in its place."
        )


def _not_found(entry: DatasetFile, data_home: str | os.PathLike | None, reason: str) -> DatasetNotFoundError:
    places = "; ".join(label for label, _ in _places(data_home))
    return DatasetNotFoundError(
        f"No intact {entry.file} (or {entry.file}.gz) was found in {places}, and it was not downloaded from "
        f"{entry.url}: {reason}. Set {ENVIRONMENT_VARIABLE} to a folder that holds the file at any depth, or place it "
        "in one of these folders."
    )


def _download(entry: DatasetFile, data_home: str | os.PathLike | None) -> Path:
    import pooch
    from pooch.downloaders import choose_downloader

    def transfer(url: str, output_file: str, pooch: Any) -> None:
        choose_downloader(url)(url, output_file, pooch)
        content = read_content(Path(output_file))
        _check(entry, content, url)
        Path(output_file).write_bytes(content)

    # pooch's annotation of `downloader` describes another function than the one it calls, hence the cast. It writes
    # to a temporary file beside the target and moves it there once its checksum is right, so two processes at once, or
    # one that is stopped, never leave half a file.
    try:
        path = pooch.retrieve(
            entry.url,
            known_hash=entry.sha256,
            fname=entry.file,
            path=cache_dir(),
            downloader=cast(Any, transfer),
        )
    except OSError as error:
        raise _not_found(entry, data_home, f"{type(error).__name__}: {error}") from error
    print(f"{entry.name}: licence {entry.licence}. Source: {entry.homepage}", file=sys.stderr)
    return Path(path)

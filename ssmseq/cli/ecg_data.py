"""The recordings that `ssmseq ecg` is given: folders of known data sets, or files and a table of their labels."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssmseq.cli.contract import DataMissingError

if TYPE_CHECKING:
    import numpy as np

    from ssmseq.ecg.records import Record

PROTOCOLS = ("ptbxl", "cinc2021", "cinc2020", "cinc2017", "files")
STATEMENTS = ("superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all")  # of `read_ptbxl`
SUFFIXES = (".hea", ".edf", ".bdf", ".dcm", ".npy", ".npz")
CINC2017 = ("cinc2017_100hz.npz", "REFERENCE-v3.csv", "REFERENCE.csv")
DATA_HELP = (
    "a folder of PTB-XL, of the PhysioNet/CinC challenge 2020 or 2021 (.hea with #Dx) or 2017; or any folders and "
    "files of recordings: .hea, .edf, .bdf, .dcm, .npy and .npz, or .csv where a folder has none of those"
)
LABELS_HELP = (
    "CSV file with the column record (name of the file without its ending, or its path in DATA), perhaps patient, and "
    "either a column of 0, 1 or nothing (unknown) for each label, or one column label with a row for each label of a "
    "recording. One label for every recording makes them classes that exclude each other"
)


def add_data_options(parser, *, labelled: bool, default: Any = None) -> None:
    """Add DATA and what says how to read it, to a parser of argparse or jsonargparse."""
    parser.add_argument("data", metavar="DATA", type=str, nargs="+", default=default, help=DATA_HELP)
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=default, help="what DATA is (default: found out by its files)"
    )
    if labelled:
        parser.add_argument("--labels", metavar="FILE", type=str, default=default, help=LABELS_HELP)
        parser.add_argument(
            "--statements", choices=STATEMENTS, default=default, help="labels of PTB-XL (default: superdiagnostic)"
        )
        parser.add_argument(
            "--unlabelled",
            choices=("error", "drop", "keep"),
            default=default,
            help="recordings without labels: of PTB-XL drop (default) or keep, of others error (default) or drop",
        )
        parser.add_argument(
            "--sources", metavar="NAME", type=str, nargs="+", default=default, help="only recordings of these databases"
        )
        parser.add_argument(
            "--without_sources",
            metavar="NAME",
            type=str,
            nargs="+",
            default=default,
            help="leave out those of these, as for testing on a database that was not trained on",
        )
    parser.add_argument(
        "--signals", choices=("100", "500"), default=default, help="PTB-XL's version in Hz (default: the model's)"
    )
    add_file_options(parser, default)


def add_file_options(parser, default: Any = None) -> None:
    """Add what .csv, .npy and .npz files do not say themselves."""
    parser.add_argument("--file_rate", metavar="HZ", type=float, default=default, help="sampling rate of such files")
    parser.add_argument(
        "--file_leads", metavar="NAME", type=str, nargs="+", default=default, help="rows of .npy and .npz files"
    )
    parser.add_argument("--file_unit", metavar="UNIT", type=str, default=default, help="mV, uV, V or nV (default: mV)")


def parse_folds(text: str) -> tuple[int, ...]:
    """Return the numbers that text such as "1-8" or "9,10" names; none for "none"."""
    if text == "none":
        return ()
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"folds must be written as in 1-8 or 9,10, got {text!r}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    wrong = [fold for fold in found if not 1 <= fold <= 10]
    if wrong or not found:
        raise ValueError(f"folds must be from 1 to 10, got {text!r}")
    return tuple(sorted(set(found)))


@dataclass(frozen=True)
class Labelled:
    """Recordings with their labels."""

    records: list["Record"]
    y: Any  # frame (n, labels), list of n sets of labels, or array (n,) of classes
    protocol: str
    folds: "np.ndarray | None" = None  # of PTB-XL

    @property
    def exclusive(self) -> bool:
        """Whether each recording is of one class."""
        import numpy as np

        return isinstance(self.y, np.ndarray)

    def rows(self, chosen: "np.ndarray", what: str) -> "Labelled":
        """Return the recordings where `chosen` (n,) is true; ValueError naming `what` if there are none."""
        import numpy as np

        rows = np.flatnonzero(chosen)
        if not len(rows):
            raise ValueError(f"no recording is left of {what}: choose others")
        y = self.y.iloc[rows] if hasattr(self.y, "iloc") else self.y[rows] if self.exclusive else self._sets(rows)
        folds = None if self.folds is None else self.folds[rows]
        return Labelled([self.records[i] for i in rows], y, self.protocol, folds)

    def _sets(self, rows: "np.ndarray") -> list:
        return [self.y[i] for i in rows]

    def of_folds(self, folds: Sequence[int]) -> "Labelled":
        """Return the recordings of some folds of PTB-XL."""
        import numpy as np

        return self.rows(np.isin(np.asarray(self.folds), folds), f"the folds {', '.join(map(str, folds))}")

    def targets(self, *, exclusive: bool):
        """Return the labels in the form that a model takes: one class is also a set of one label."""
        return [{label} for label in self.y] if self.exclusive and not exclusive else self.y


def read_labelled(options: dict[str, Any], *, sampling_rate: float) -> Labelled:
    """Read the recordings and labels that a command line names.

    Parameters
    ----------
    options : dict
        What the options of `add_data_options` were given.
    sampling_rate : float
        Of the model, in Hz.

    Raises
    ------
    DataMissingError
        If DATA or the table of labels does not exist.
    ValueError
        If labels are missing or a recording cannot be read; the message names the file and the option that helps.
    """
    from ssmseq.ecg import folders

    quiet = options.get("quiet", False)
    protocol, unlabelled = protocol_of(options), options.get("unlabelled")
    folder = Path(options["data"][0])
    if protocol == "files":
        found = _read_files(options)
    elif protocol == "ptbxl":
        signals = _ptbxl_signals(folder, options, sampling_rate)
        labels = options.get("statements") or "superdiagnostic"
        read = folders.read_ptbxl(
            folder, sampling_rate=signals, labels=labels, unlabelled=unlabelled or "drop", progress=not quiet
        )
        found = Labelled(read.records, read.y, protocol, read.folds)
    elif protocol == "cinc2017":
        read = folders.read_cinc2017(folder, progress=not quiet)
        found = Labelled(read.records, read.y, protocol)
    else:
        read = folders.read_cinc(folder, year=int(protocol[-4:]), unlabelled=unlabelled or "error", progress=not quiet)
        found = Labelled(read.records, read.y, protocol)
    return _of_sources(found, options)


def protocol_of(options: dict[str, Any], *, labelled: bool = True) -> str:
    """Return what DATA is: as --protocol says, or by the files that it holds."""
    data = [Path(name) for name in options["data"]]
    if len(data) == 1 and not data[0].exists():
        raise DataMissingError(f"{data[0]} does not exist: give a folder or files of recordings")
    protocol = options.get("protocol") or _found_protocol(data, options)
    if protocol != "files" and options.get("labels"):
        raise ValueError(f"--labels is for files of any kind, and {data[0]} is read as {protocol}: leave one out")
    for name in ("statements", "signals", "folds", "held_out_folds"):
        if protocol != "ptbxl" and options.get(name):
            raise ValueError(f"--{name} is for PTB-XL, and {data[0]} is read as {protocol}: leave it out")
    if protocol == "files" and labelled and not options.get("labels"):
        raise ValueError(
            f"{', '.join(map(str, data[:3]))} is no folder of PTB-XL or of a PhysioNet/CinC challenge: give the labels "
            "of the recordings with --labels FILE.csv"
        )
    return protocol


def _found_protocol(data: list[Path], options: dict[str, Any]) -> str:
    if options.get("labels") or len(data) > 1 or not data[0].is_dir():
        return "files"
    if (data[0] / "ptbxl_database.csv").is_file():
        return "ptbxl"
    if any((data[0] / name).is_file() for name in CINC2017):
        return "cinc2017"
    return "cinc2021" if next(data[0].rglob("*.hea"), None) else "files"


class Recording(NamedTuple):
    """A recording that is read when it is needed."""

    name: str
    read: Callable[[], "Record"]


def recordings(options: dict[str, Any], *, sampling_rate: float) -> list[Recording]:
    """Return the recordings of DATA without their labels; parameters and errors are those of `read_labelled`."""
    protocol = protocol_of(options, labelled=False)
    folder = Path(options["data"][0])
    if protocol == "ptbxl":
        return list(_ptbxl_recordings(folder, _ptbxl_signals(folder, options, sampling_rate)))
    if protocol == "cinc2017" and (folder / CINC2017[0]).is_file():
        from ssmseq.ecg.folders import read_cinc2017

        return [Recording(str(record.record_id), partial(_itself, record)) for record in read_cinc2017(folder).records]
    return _file_recordings(_paths(options), options)


def _itself(record):
    return record


def _ptbxl_recordings(folder: Path, signals: int) -> Iterator[Recording]:
    import pandas as pd

    table = pd.read_csv(folder / "ptbxl_database.csv", index_col="ecg_id")
    row: Any
    for row in table.itertuples():
        path = folder / str(row.filename_lr if signals == 100 else row.filename_hr)
        age = None if pd.isna(row.age) else float(row.age) if row.age < 300 else 90.0  # as `read_ptbxl` has it
        known = {"patient_id": str(int(row.patient_id)), "age": age, "sex": {0: "M", 1: "F"}.get(row.sex)}
        yield Recording(path.name, partial(_read_file, path, {"sampling_rate": signals}, known))


def _ptbxl_signals(folder: Path, options: dict[str, Any], sampling_rate: float) -> int:
    signals = int(options.get("signals") or (100 if sampling_rate <= 100 else 500))
    if not (folder / f"records{signals}").is_dir():
        other = 600 - signals
        take = f", or take those at {other} Hz with --signals {other}" if (folder / f"records{other}").is_dir() else ""
        raise DataMissingError(
            f"{folder} has no folder records{signals}, PTB-XL's signals at {signals} Hz: add it{take}"
        )
    return signals


def _paths(options: dict[str, Any]) -> list[Path]:
    """Return the files of recordings that DATA names, those of folders in the order of their paths."""
    found: list[Path] = []
    for data in map(Path, options["data"]):
        if not data.is_dir():
            found.append(data)
            continue
        files = sorted(path for path in data.rglob("*") if path.is_file())
        tables = [path for path in files if path.suffix.lower() == ".csv" and not _is_label_table(path, options)]
        inside = [path for path in files if path.suffix.lower() in SUFFIXES] or tables
        if not inside:
            raise DataMissingError(f"{data} holds no recording: none of {', '.join(SUFFIXES)} or .csv")
        found += inside
    return found


def _is_label_table(path: Path, options: dict[str, Any]) -> bool:
    labels = options.get("labels")
    return path.name in CINC2017 or (labels is not None and Path(labels).exists() and path.samefile(labels))


def _file_recordings(paths: list[Path], options: dict[str, Any]) -> list[Recording]:
    seen = Counter(path.stem for path in paths)
    names = [path.stem if seen[path.stem] == 1 else str(path.with_suffix("")) for path in paths]
    how = {"sampling_rate": options.get("file_rate"), "lead_names": options.get("file_leads")}
    how["unit"] = options.get("file_unit")
    return [Recording(n, partial(_read_file, path, how)) for n, path in zip(names, paths, strict=True)]


def _read_file(path: Path, how: dict[str, Any], known: dict[str, Any] | None = None) -> "Record":
    from ssmseq.ecg.records import read_record

    if path.suffix.lower() not in (".csv", ".npy", ".npz"):  # the other formats say it themselves
        how = {"sampling_rate": how["sampling_rate"]} if known is not None else {}
    elif path.suffix.lower() == ".csv":
        how = {**how, "lead_names": None}
    record = read_record(path, dtype="float32", **how)
    return dataclasses.replace(record, **known) if known else record


def _read_files(options: dict[str, Any]) -> Labelled:
    """Read the files that a table of labels names."""
    import pandas as pd
    from tqdm import tqdm

    path = Path(options["labels"])
    if not path.is_file():
        raise DataMissingError(f"--labels {path}: there is no such file")
    table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    if "record" not in table or bool(table["record"].isna().any()):
        raise ValueError(f"{path} must have a column 'record' with an entry in each row; it has {list(table.columns)}")
    paths = _paths(options)
    names = list(dict.fromkeys(table["record"]))
    place = _places(paths, options["data"])
    chosen = [_only_file(name, place, path) for name in names]
    rest = [str(p) for p in paths if p not in set(chosen)]
    if rest and options.get("unlabelled") != "drop":
        shown = ", ".join(rest[:3]) + (f" and {len(rest) - 3} more" if len(rest) > 3 else "")
        raise ValueError(f"{path} has no row for {shown}: add them, or leave those out with --unlabelled drop")
    labels = _read_labels(path, table.drop(columns="patient", errors="ignore"), names)
    records = []
    for recording in tqdm(_file_recordings(chosen, options), disable=options.get("quiet", False), unit="record"):
        records.append(recording.read())
    if "patient" in table:
        patients = table.dropna(subset="patient").groupby("record")["patient"].first()
        records = [dataclasses.replace(r, patient_id=patients.get(n)) for r, n in zip(records, names, strict=True)]
    return Labelled(records, labels, "files")


def _places(paths: list[Path], data: Sequence[str]) -> dict[str, list[Path]]:
    """Return the files by their name without ending, and by their path in DATA with and without it."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        inside = [
            path.relative_to(folder) for folder in map(Path, data) if folder.is_dir() and path.is_relative_to(folder)
        ]
        keys = {path.stem, path.name, str(path)}
        keys |= {str(key) for short in inside for key in (short, short.with_suffix(""))}
        for key in keys:
            found.setdefault(key, []).append(path)
    return found


def _only_file(name: str, place: dict[str, list[Path]], table: Path) -> Path:
    found = place.get(name, [])
    if len(found) != 1:
        many = f"several files are called so ({', '.join(map(str, found[:3]))}): write their paths in DATA"
        raise ValueError(
            f"{table}: record {name!r}: {many if found else 'DATA has no such file: add it or drop the row'}"
        )
    return found[0]


def _read_labels(path: Path, table, names: list[str]):
    """Return the labels of recordings (n,): a frame of 0, 1 and NaN, an array of classes, or sets."""
    import numpy as np
    import pandas as pd

    labels = table.drop(columns="record")
    if list(labels.columns) == ["label"]:
        sets = table.groupby("record")["label"].agg(lambda column: set(column.dropna()))
        found = [sets[name] for name in names]
        exclusive = len(table) == len(names) and all(found)
        return np.array([next(iter(labels)) for labels in found]) if exclusive else found
    if len(table) != len(names):
        twice = table["record"][table["record"].duplicated()].iloc[0]
        raise ValueError(f"{path}: record {twice!r} has two rows: one for each is needed with a column for each label")
    try:
        values = labels.astype(float)
    except ValueError as error:
        raise ValueError(f"{path}: the columns of labels may hold 0, 1 or nothing ({error})") from error
    if labels.shape[1] == 0 or not values.isin([0, 1, np.nan]).all(axis=None):
        raise ValueError(f"{path}: the columns of labels may hold 0, 1 or nothing; it has {list(labels.columns)}")
    return pd.DataFrame(values.to_numpy(), index=names, columns=labels.columns)


def _of_sources(found: Labelled, options: dict[str, Any]) -> Labelled:
    """Keep the recordings of the databases that --sources and --without_sources leave."""
    import numpy as np

    there = np.array([record.source or "" for record in found.records])
    wanted, unwanted = options.get("sources"), options.get("without_sources")
    odd = sorted({*(wanted or []), *(unwanted or [])} - set(there))
    if odd:
        known = ", ".join(sorted(set(there) - {""})) or "unknown"
        raise ValueError(f"no recording is from {', '.join(odd)}; the databases of DATA are {known}")
    if not (wanted or unwanted):
        return found
    chosen = np.isin(there, wanted) if wanted else np.ones(len(there), bool)
    return found.rows(
        chosen & ~np.isin(there, unwanted or []), "the databases that --sources and --without_sources leave"
    )

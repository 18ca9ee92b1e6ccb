"""Folders of recordings: any, those of the PhysioNet/CinC challenges of 2017, 2020 and 2021, and PTB-XL.

None of these functions downloads anything. Signals are float32 by default, which holds 16-bit samples to seven digits
and halves the memory.
"""

import ast
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssmseq.base import check_choice
from ssmseq.ecg.challenge_labels import challenge_indicator
from ssmseq.ecg.records import Record, read_record, read_with_remarks, report_remarks

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.utils import Bunch

_SOURCES = {
    "A": "CPSC",
    "Q": "CPSC_Extra",
    "I": "StPetersburg",
    "S": "PTB",
    "HR": "PTB_XL",
    "E": "Georgia",
    "JS": "Chapman_Shaoxing",
}
_LAST_OF_CHAPMAN = 10646  # JS10647 and later are Ningbo's
_PTBXL_COLUMNS = {"superdiagnostic": "diagnostic_class", "subdiagnostic": "diagnostic_subclass"}
_PTBXL_LABELS = ("superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all")


def iterate_folder(
    folder, *, pattern: str = "*.hea", mismatch: str = "warn", progress: bool = False, **options
) -> Iterator[Record]:
    """Yield the recordings of a folder one by one, in the order of their paths.

    Parameters
    ----------
    folder : str or path
        Searched with all its subfolders.
    pattern : str
        Which files to read, as in `pathlib.Path.rglob`.
    mismatch : {"warn", "error", "ignore"}
        What to do about samples that disagree with their header. Warnings are collected into one at the end.
    progress : bool, default=False
        Show a bar on stderr.
    **options
        For `read_record`; `dtype` is "float32" unless given.

    Yields
    ------
    Record

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no matching file in it.
    ValueError
        If a file cannot be read; the message names it.
    """
    from tqdm import tqdm

    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file())
    if not paths:
        raise FileNotFoundError(f"{folder} holds no file {pattern}; give another folder or pattern=")
    remarks = []
    for path in tqdm(paths, disable=not progress, unit="record", desc=folder.name):
        record, more = read_with_remarks(path, **{"dtype": "float32", **options})
        if mismatch == "error":
            report_remarks(more, mismatch)
        remarks += more
        yield record
    report_remarks(remarks, mismatch)


def read_folder(
    folder, *, pattern: str = "*.hea", mismatch: str = "warn", progress: bool = False, **options
) -> list[Record]:
    """Read all recordings of a folder; parameters and errors as in `iterate_folder`.

    Returns
    -------
    list of Record
        In the order of their paths.
    """
    return list(iterate_folder(folder, pattern=pattern, mismatch=mismatch, progress=progress, **options))


def read_cinc(
    folder,
    *,
    year: int = 2021,
    unknown: str = "ignore",
    unlabelled: str = "error",
    mismatch: str = "warn",
    progress: bool = False,
    dtype: str = "float32",
) -> "Bunch":
    """Read training data of the PhysioNet/CinC challenge 2020 or 2021 with its scored labels.

    Parameters
    ----------
    folder : str or path
        With the ``.hea`` and ``.mat`` files at any depth.
    year : {2020, 2021}
        Which classes count; see `scored_labels`.
    unknown : {"ignore", "error"}
        See `challenge_indicator`.
    unlabelled : {"error", "drop"}
        What to do about headers without a line ``#Dx``.
    mismatch : {"warn", "error", "ignore"}
        See `iterate_folder`.
    progress : bool, default=False
        Show a bar on stderr.
    dtype : {"float32", "float64"}
        Of the signals.

    Returns
    -------
    sklearn.utils.Bunch
        `records` : list of Record, with `source` and `labels`;
        `y` : DataFrame (n, classes) of int8 with the record ids as index, see `challenge_indicator`;
        `sources` : array (n,) of str, the database of each record by its name, as the challenges spell them.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no record in it.
    ValueError
        If a record cannot be read, lacks its ``#Dx``, or has an unknown code and `unknown` is "error".

    Notes
    -----
    The challenges give no patient identifiers, so folds by patient cannot be made from these files; use `sources` for
    leave-one-source-out. Georgia's headers of the release of 2020 state 4880 units per mV in place of 1000: take those
    of 2021.
    """
    from sklearn.utils import Bunch

    check_choice("unlabelled", unlabelled, ("error", "drop"))
    records = []
    for record in iterate_folder(folder, mismatch=mismatch, progress=progress, dtype=dtype):
        if record.labels is None:
            if unlabelled == "error":
                raise ValueError(
                    f"the header of record {record.record_id} has no line '#Dx': add one (it may be empty), or leave "
                    "such records out with unlabelled='drop'"
                )
            continue
        records.append(dataclasses.replace(record, source=_source_of(str(record.record_id))))
    y = challenge_indicator(
        [r.labels or () for r in records], year=year, unknown=unknown, index=[r.record_id for r in records]
    )
    return Bunch(records=records, y=y, sources=np.array([r.source for r in records], dtype=object))


def read_ptbxl(
    folder,
    *,
    sampling_rate: int = 100,
    labels: str = "superdiagnostic",
    unlabelled: str = "drop",
    progress: bool = False,
    dtype: str = "float32",
) -> "Bunch":
    """Read PTB-XL with the labels of its benchmark.

    Every statement of a recording counts [1]_, [2]_, whatever its likelihood, also 0.

    Parameters
    ----------
    folder : str or path
        With ptbxl_database.csv, scp_statements.csv and the folder records100 or records500.
    sampling_rate : {100, 500}
        Which version of the signals, in Hz.
    labels : {"superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all"}
        Which labels: the 5 superclasses, the 23 subclasses or the 44 statements of diagnoses; the 19 statements of
        form; the 12 of rhythm; or all 71.
    unlabelled : {"drop", "keep"}
        Whether recordings without any such label are dropped, as in the benchmark, or kept as rows of zeros.
    progress : bool, default=False
        Show a bar on stderr.
    dtype : {"float32", "float64"}
        Of the signals.

    Returns
    -------
    sklearn.utils.Bunch
        `records` : list of Record, whose `labels` are all statements;
        `y` : DataFrame (n, classes) of int8, index ecg_id, columns in alphabetical order;
        `folds` : array (n,) of int, strat_fold: 1 to 8 train, 9 validates, 10 tests; no patient is in two;
        `groups` : array (n,) of str, the patients;
        `metadata` : DataFrame (n, ...), the rows of ptbxl_database.csv.

    Raises
    ------
    FileNotFoundError
        If a table or a record is missing.
    ValueError
        If a statement is not in scp_statements.csv, or a record cannot be read.

    Notes
    -----
    Later versions of the data set give every age above 89 as 300; it becomes 90 here.

    References
    ----------
    .. [1] Wagner, P. et al. (2020). PTB-XL, a large publicly available electrocardiography dataset. Scientific Data 7,
       154. https://doi.org/10.1038/s41597-020-0495-6
    .. [2] Strodthoff, N. et al. (2021). Deep learning for ECG analysis: benchmarks and insights from PTB-XL. IEEE
       JBHI 25(5), 1519-1528. https://doi.org/10.1109/JBHI.2020.3022989
    """
    import pandas as pd
    from sklearn.utils import Bunch
    from tqdm import tqdm

    check_choice("sampling_rate", sampling_rate, (100, 500))
    check_choice("labels", labels, _PTBXL_LABELS)
    check_choice("unlabelled", unlabelled, ("drop", "keep"))
    folder = Path(folder).expanduser()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: give the folder of PTB-XL that has both tables")
    table = pd.read_csv(folder / "ptbxl_database.csv", index_col="ecg_id")
    statements = [tuple(ast.literal_eval(text)) for text in table["scp_codes"]]
    y = _ptbxl_indicator(table.index, statements, _ptbxl_classes(folder / "scp_statements.csv", labels))
    kept = np.flatnonzero(y.to_numpy().any(1)) if unlabelled == "drop" else np.arange(len(table))
    table, y = table.iloc[kept], y.iloc[kept]
    files = table["filename_lr" if sampling_rate == 100 else "filename_hr"]
    records = []
    rows = zip(files, kept, table.itertuples(), strict=True)
    for file, i, row in tqdm(rows, total=len(table), disable=not progress, unit="record", desc=folder.name):
        record = read_record(folder / file, sampling_rate=sampling_rate, dtype=dtype)
        known = {"patient_id": str(int(row.patient_id)), "source": "PTB_XL", "labels": statements[i]}
        age = None if pd.isna(row.age) else float(row.age) if row.age < 300 else 90.0
        records.append(dataclasses.replace(record, age=age, sex={0: "M", 1: "F"}.get(row.sex), **known))
    return Bunch(
        records=records,
        y=y,
        folds=table["strat_fold"].to_numpy(),
        groups=np.array([r.patient_id for r in records], dtype=object),
        metadata=table,
    )


def read_cinc2017(folder, *, dtype: str = "float32", progress: bool = False) -> "Bunch":
    """Read the single-lead recordings of the PhysioNet/CinC challenge 2017.

    Two layouts are understood. The original [1]_ is a folder of ``.hea`` and ``.mat`` files at 300 Hz with
    REFERENCE-v3.csv or REFERENCE.csv. The packed copy is one file, cinc2017_100hz.npz: all recordings resampled to
    100 Hz, 1000 units per mV, 16 bits. It stores the difference of each sample from the one before it, running through
    all recordings, modulo 65536 and as two arrays of bytes, `delta_lo` and `delta_hi`; `offsets` (n + 1,) says where
    recordings start, and `record`, `label` and `fs` are names, labels and the rate.

    Parameters
    ----------
    folder : str or path
        With either layout.
    dtype : {"float32", "float64"}
        Of the signals.
    progress : bool, default=False
        Show a bar on stderr; of the original layout only.

    Returns
    -------
    sklearn.utils.Bunch
        `records` : list of Record, with one lead called "ECG";
        `y` : array (n,) of str: "N" (normal), "A" (atrial fibrillation), "O" (other rhythm) or "~" (too noisy).

    Raises
    ------
    FileNotFoundError
        If the folder holds neither layout.
    ValueError
        If a record has no label, or cannot be read.

    References
    ----------
    .. [1] Clifford, G. D. et al. (2017). AF classification from a short single lead ECG recording: the
       PhysioNet/Computing in Cardiology Challenge 2017. https://doi.org/10.22489/CinC.2017.065-469
    """
    from sklearn.utils import Bunch

    folder = Path(folder).expanduser()
    packed = folder / "cinc2017_100hz.npz"
    if packed.is_file():
        records = _unpack_cinc2017(packed, dtype)
    else:
        truth = _reference(folder)
        records = []
        for record in iterate_folder(folder, dtype=dtype, progress=progress):
            if record.record_id not in truth:
                raise ValueError(f"the reference table in {folder} has no label for record {record.record_id}")
            records.append(dataclasses.replace(record, source="CinC2017", labels=(truth[record.record_id],)))
    return Bunch(records=records, y=np.array([record.labels[0] for record in records if record.labels]))


def _unpack_cinc2017(path: Path, dtype: str) -> list[Record]:
    with np.load(path, allow_pickle=False) as stored:
        steps = stored["delta_lo"].astype(np.uint16) | stored["delta_hi"].astype(np.uint16) << 8
        offsets, names, labels, rate = (stored[name] for name in ("offsets", "record", "label", "fs"))
    samples = np.cumsum(steps.view(np.int16), dtype=np.int16)
    if offsets[-1] != len(samples):
        raise ValueError(f"{path} is damaged: its offsets end at {offsets[-1]}, but it has {len(samples)} samples")
    return [
        Record(
            signal=(samples[None, start:stop] / np.float64(1000)).astype(dtype),
            sampling_rate=float(rate),
            lead_names=("ECG",),
            record_id=str(name),
            source="CinC2017",
            labels=(str(label),),
        )
        for start, stop, name, label in zip(offsets[:-1], offsets[1:], names, labels, strict=True)
    ]


def _reference(folder: Path) -> dict[str, str]:
    import pandas as pd

    for name in ("REFERENCE-v3.csv", "REFERENCE.csv"):
        if (folder / name).is_file():
            table = pd.read_csv(folder / name, header=None, dtype=str)
            return dict(zip(table[0], table[1], strict=True))
    raise FileNotFoundError(f"{folder} holds neither cinc2017_100hz.npz nor REFERENCE-v3.csv nor REFERENCE.csv")


def _source_of(record_id: str) -> str | None:
    """Return the database of a challenge record, which its name tells."""
    match = re.fullmatch(r"([A-Z]+)(\d+)", record_id)
    if match is None or match[1] not in _SOURCES:
        return None
    return "Ningbo" if match[1] == "JS" and int(match[2]) > _LAST_OF_CHAPMAN else _SOURCES[match[1]]


def _ptbxl_classes(path: os.PathLike, labels: str) -> dict[str, str | None]:
    """Return each statement's class, or None where the statement does not count."""
    import pandas as pd

    table = pd.read_csv(path, index_col=0)
    kind = "diagnostic" if labels in _PTBXL_COLUMNS else labels
    counts = np.ones(len(table), bool) if kind == "all" else (table[kind] == 1).to_numpy()
    names = table[_PTBXL_COLUMNS[labels]] if labels in _PTBXL_COLUMNS else table.index
    found = zip(map(str, table.index), names, counts, strict=True)
    return {code: str(name) if there and not pd.isna(name) else None for code, name, there in found}


def _ptbxl_indicator(ids, statements: list[tuple[str, ...]], classes: dict[str, str | None]) -> "pd.DataFrame":
    import pandas as pd

    odd = sorted({code for codes in statements for code in codes} - set(classes))
    if odd:
        raise ValueError(f"scp_statements.csv does not have the statements {odd} of ptbxl_database.csv")
    names = sorted({name for name in classes.values() if name is not None})
    values = np.zeros((len(statements), len(names)), np.int8)
    for row, codes in zip(values, statements, strict=True):
        row[[names.index(name) for code in codes if (name := classes[code]) is not None]] = 1
    return pd.DataFrame(values, index=ids, columns=names)

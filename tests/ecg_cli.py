"""Recordings and labels on disk, and small fits, for the tests of `ssmseq ecg`."""

from pathlib import Path

import numpy as np
import pandas as pd
from ecg_cases import twelve_leads, write_wfdb

import ssmseq
from ssmseq.cli import main

SIZES = {"d_model": 8, "n_layers": 1, "d_state": 2, "max_epochs": 2, "window": 2.5, "random_state": 0}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))] + ["--accelerator", "cpu"]


def fit(data, folder, *words) -> int:
    data = data if isinstance(data, list) else [data]
    return main(["ecg", "fit", *map(str, data), "--save", str(folder), *SMALL, "--quiet", *words])


def python_model(**changes):
    return ssmseq.ECGMambaClassifier.from_preset("dense", **SIZES, accelerator="cpu", **changes)


def write_files(folder: Path) -> Path:
    """Write twelve WFDB recordings of six patients, and their labels in three kinds of tables."""
    numbers = range(12)
    names = [f"r{i:02}" for i in numbers]
    for i, name in enumerate(names):
        write_wfdb(folder, np.round(twelve_leads(300 + 7 * i, seed=i) * 1000).astype(int), name=name)
    classes = {"record": names, "label": ["NSR" if i % 3 else "AF" for i in numbers]}
    pd.DataFrame(classes).to_csv(folder / "classes.csv", index=False)
    sets = [(name, label) for i, name in enumerate(names) for label in (("",), ("AF",), ("AF", "LBBB"))[i % 3]]
    pd.DataFrame(sets, columns=["record", "label"]).to_csv(folder / "sets.csv", index=False)
    wide = {"record": names, "patient": [f"p{i // 2}" for i in numbers], "AF": [float(i % 3 > 0) for i in numbers]}
    wide["LBBB"] = [float(i % 3 > 1) if i < 11 else np.nan for i in numbers]
    pd.DataFrame(wide).to_csv(folder / "wide.csv", index=False)
    return folder


def fit_files(files: Path, folder: Path) -> Path:
    """Fit a model of the labels AF and LBBB; return its folder."""
    assert fit(files, folder, "--labels", str(files / "wide.csv"), "--validation_fraction", "0.3") == 0
    return folder

"""PTB-XL's superclasses with its folds: 1 to 8 train, 9 validates, 10 tests.

    python benchmarks/ecg/ptbxl.py                                     # every preset but vim, three seeds
    python benchmarks/ecg/ptbxl.py --presets dense --seeds 0 --max-epochs 20 --set batch_size=32
    python benchmarks/ecg/ptbxl.py --cross-validate --seeds 0          # for choosing settings: fold 10 is not looked at

The data are the folder of PTB-XL, or its first 500 recordings (ptbxl500 below SSMSEQ_DATA): a small sample of one
period and few devices, whose figures are none of PTB-XL. The epoch is chosen on a share of the patients of folds 1 to 8
(`validation_fraction`); the macro AUROC on fold 9 is for choosing settings, that on fold 10 is the result, with an
interval over resampled patients. "features" is a logistic regression on the features of features.py, whose penalty is
chosen on fold 9; it has one row, since nothing in it is random. --cross-validate tests folds 1 to 3, 4 to 6 and 7 to 9
in turn, trained on the other six; the penalty of the regression is then the best on those tested, which flatters it.

A row per preset and seed goes to benchmarks/results/ecg_ptbxl.jsonl. Runs that have one are passed over, and a run that
was cut short goes on with the epoch that it was in.
"""

import argparse
import contextlib
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from features import PENALTIES, features, logistic_regression
from running import Rows, add_options, changes, data_folder, finish, fit, rounded

from ssmseq.ecg.folders import read_ptbxl
from ssmseq.ecg.metrics import auroc_per_label, bootstrap_interval, macro_auprc, macro_auroc
from ssmseq.ecg.splits import check_disjoint, ptbxl_folds

PRESETS = ("features", "dense", "hydra", "cnn")
ARCHIVE = "records100.tar.xz"
THIRDS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def read(folder: Path):
    """Read the recordings at 100 Hz, out of their archive if they are in one."""
    with contextlib.ExitStack() as stack:
        if not (folder / "records100").is_dir() and (folder / ARCHIVE).is_file():
            unpacked = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with tarfile.open(folder / ARCHIVE) as archive:
                archive.extractall(unpacked, filter="data")
            for name in ("ptbxl_database.csv", "scp_statements.csv"):
                (unpacked / name).write_bytes((folder / name).read_bytes())
            folder = unpacked
        return read_ptbxl(folder)


def limited(parts, limit: int | None) -> list[np.ndarray]:
    """Return the rows of each part, of all of them only as many as `limit` says, shared out as they are."""
    share = 1 if limit is None else min(limit / sum(map(len, parts)), 1)
    return [rows[: max(round(share * len(rows)), 1)] for rows in parts]


def run_features(key, options, data, parts) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return the probabilities of folds 9 and 10, and what the row says of the fit."""
    started = time.perf_counter()
    train, valid, _ = parts
    X, y = features(data.records), data.y.to_numpy()
    models = [logistic_regression(penalty).fit(X[train], y[train]) for penalty in PENALTIES]
    best = max(range(len(models)), key=lambda i: macro_auroc(y[valid], models[i].predict_proba(X[valid])))
    found = [models[best].predict_proba(X[rows]) for rows in parts[1:]]
    seconds = round(time.perf_counter() - started, 1)
    return *found, {"penalty": PENALTIES[best], "seconds": seconds, "parameters": y.shape[1] * (X.shape[1] + 1)}


def run_network(key, options, data, parts) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return the probabilities of folds 9 and 10, and what the row says of the fit."""
    train, valid, test = ([data.records[i] for i in rows] for rows in parts)
    estimator, facts = fit(key, options, train, data.y.iloc[parts[0]])
    started = time.perf_counter()
    found = [estimator.predict_proba(records) for records in (valid, test)]
    seconds = time.perf_counter() - started
    return *found, facts | {"records_per_second": round((len(valid) + len(test)) / seconds, 1)}


def measure(key, options, data, parts) -> dict:
    """Return the figures of folds 9 and 10."""
    run = run_features if key["preset"] == "features" else run_network
    *found, facts = run(key, options, data, parts)
    return scores(data, parts, *found) | facts | {"test_patients": len(np.unique(data.groups[parts[2]]))}


def cross_validate(key, options, data, _) -> dict:
    """Return the macro AUROC on each third of folds 1 to 9, and its mean."""
    y, found, facts = data.y.to_numpy(), [], []
    for tested in THIRDS:
        train = np.flatnonzero(~np.isin(data.folds, (*tested, 10)))
        test = np.flatnonzero(np.isin(data.folds, tested))
        train, test = limited((train, test), options.records)
        check_disjoint(data.groups[train], data.groups[test], names=("training", "tested"))
        run = run_features if key["preset"] == "features" else run_network
        _, probabilities, fact = run({**key, "tested": tested}, options, data, (train, test, test))
        found.append(macro_auroc(y[test], probabilities))
        facts.append(fact)
    for tested in THIRDS:  # kept until now: a call that is cut short passes over what is trained
        finish({**key, "tested": tested}, options)
    seconds = round(sum(fact["seconds"] for fact in facts), 1)
    return {"macro_auroc_of_thirds": rounded(found), "macro_auroc": rounded([np.mean(found)])[0], "seconds": seconds}


def scores(data, parts, valid: np.ndarray, test: np.ndarray) -> dict:
    """Return the figures of a row."""
    y, groups = data.y.to_numpy(), data.groups
    figures = {"valid_macro_auroc": macro_auroc(y[parts[1]], valid), "test_macro_auprc": macro_auprc(y[parts[2]], test)}
    interval, note = [np.nan] * 3, None
    interval[0] = macro_auroc(y[parts[2]], test)
    try:
        interval = bootstrap_interval(macro_auroc, y[parts[2]], test, groups=groups[parts[2]])
    except ValueError as error:  # of a try with few recordings
        note = str(error)
    names = ("test_macro_auroc", "low", "high")
    found = dict(zip(names, rounded(interval), strict=True)) | dict(
        zip(figures, rounded(figures.values()), strict=True)
    )
    labels = dict(zip(data.y.columns, rounded(auroc_per_label(y[parts[2]], test)), strict=True))
    return found | {"interval": note or "95 % of 1000 resamples of patients", "auroc_of_labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=(*PRESETS, "vim"), default=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cross-validate", action="store_true", help="folds 1 to 9 by thirds, in place of the result")
    add_options(parser, "ecg_ptbxl.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder, rows = data_folder(options, "ptbxl500"), Rows(options.out)
    data = read(folder)
    parts = limited(ptbxl_folds(data.folds), options.records)
    check_disjoint(data.groups[parts[0]], data.groups[np.concatenate(parts[1:])], names=("training", "other"))
    for preset in options.presets:
        plain = preset == "features"
        for seed in options.seeds[:1] if plain else options.seeds:
            key = {"preset": preset, "seed": None if plain else seed, "changes": {} if plain else changes(options)}
            if options.cross_validate:
                key |= {"cross_validated": True, "records": options.records}
            else:
                key |= {"records": [len(part) for part in parts]}
            if rows.find(key) is None:
                print(f"{preset}, seed {key['seed']} ...", flush=True)
                run = cross_validate if options.cross_validate else measure
                rows.add(key, run(key, options, data, parts))
                finish(key, options)
            show(rows.find(key))


def show(row: dict) -> None:
    """Print one row."""
    key = row["key"]
    if "cross_validated" in key:
        said = f"cross-validated macro AUROC {row['macro_auroc']:.4f}"
    else:
        interval = "" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]"
        said = (
            f"macro AUROC test {row['test_macro_auroc']:.4f}{interval}, valid {row['valid_macro_auroc']:.4f}  "
            f"{row['parameters']:,} parameters"
        )
    print(f"{key['preset']:<9} seed {key['seed']}  {said}, {row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()

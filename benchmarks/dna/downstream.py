"""Classification of short DNA sequences: four tasks of GUE, and splice junctions, by Matthews' correlation.

    python benchmarks/dna/downstream.py                                          # all tasks and methods, three seeds
    python benchmarks/dna/downstream.py --tasks mouse_3 --methods kmer frozen
    python benchmarks/dna/downstream.py --tasks mouse_3 --rows 100 --max-epochs 1 --out tried.jsonl   # does it run?

"kmer" is a logistic regression on the shares of all words of 4 letters, or of 6, whichever is better on the validation
part, and "letters" is one on the base at each position: what counting knows, without and with places. "pretrained" fits
a bidirectional language model on the training sequences without their labels, and fine-tunes it with a head; "scratch"
trains the same network without that; "frozen" is a logistic regression on the embeddings of that language model.
Penalties are chosen on the validation part, and networks stop on a tenth of the training part.

GUE [1]_ gives training, validation and test sequences, of which some are in two parts: `mcc_unseen` is of the test
sequences that are in neither of the others, on either strand. The splice junctions of UCI [2]_ have no parts: repeated
sequences are left out, and 20 % test and 10 % validation rows are drawn once, with the classes in their proportions.

Rows go to benchmarks/results/dna_downstream.jsonl; what has one is passed over.

References
----------
.. [1] Zhou et al., "DNABERT-2: efficient foundation model and benchmark for multi-species genomes", ICLR 2024.
.. [2] Molecular Biology (Splice-junction Gene Sequences), UCI Machine Learning Repository,
   https://doi.org/10.24432/C5M888
"""

import argparse
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from running import OutOfTime, Rows, add_options, data_file, finish, fit
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, Normalizer, StandardScaler

from ssmseq import DNAClassifier, DNALanguageModel
from ssmseq.dna.alphabet import reverse_complement

# Binding sites have no strand; promoters and splice sites do.
TASKS = {
    "mouse_3": ("gue/mouse_3", "average"),
    "mouse_0": ("gue/mouse_0", "average"),
    "prom_300_tata": ("gue/prom_prom_300_tata", "none"),
    "prom_core_all": ("gue/prom_prom_core_all", "none"),
    "splice_uci": ("splice_uci/splice", "none"),
}
PARTS = ("train", "dev", "test")
COUNTED = ("kmer", "letters")
METHODS = (*COUNTED, "frozen", "scratch", "pretrained")
NETWORK = {"bidirectional": True, "d_model": 64, "n_layers": 2, "batch_size": 32}
PRETRAINING = {"max_epochs": 10, "learning_rate": 4e-3}
TUNING = {"max_epochs": 20, "patience": 5, "learning_rate": 2e-3}
PENALTIES = tuple(10.0**k for k in range(-3, 3))  # scikit-learn's C
WORDS = (4, 6)


class Part(NamedTuple):
    """Sequences and their labels."""

    X: list[str]
    y: np.ndarray


def read(task: str, options) -> dict[str, Part]:
    """Return the parts train, dev and test of a task."""
    stem = TASKS[task][0]
    if stem.startswith("gue"):
        folder, name = stem.split("/")
        frames = {part: pd.read_csv(data_file(options, folder, f"{name}.{part}.csv.gz")) for part in PARTS}
    else:
        frame = pd.read_csv(data_file(options, *f"{stem}.csv.gz".split("/")), skipinitialspace=True)
        frame = frame.apply(lambda column: column.str.strip()).drop_duplicates("sequence")
        rest, test = train_test_split(frame, test_size=0.2, random_state=0, stratify=frame["label"])
        train, dev = train_test_split(rest, test_size=0.125, random_state=0, stratify=rest["label"])
        frames = dict(zip(PARTS, (train, dev, test), strict=True))
    frames = {part: frame if options.rows is None else frame.head(options.rows) for part, frame in frames.items()}
    return {p: Part(frame["sequence"].str.upper().tolist(), frame["label"].to_numpy()) for p, frame in frames.items()}


def unseen(parts: dict[str, Part]) -> np.ndarray:
    """Return which test sequences are in no other part, on either strand."""
    known = {*parts["train"].X, *parts["dev"].X}
    known |= {reverse_complement(x) for x in known}
    return np.array([x not in known for x in parts["test"].X])


def best_logistic(features: dict[str, np.ndarray], parts: dict[str, Part], scale):
    """Return the predictions of the logistic regression that is best on the validation part, with its score there."""
    found = []
    for penalty in PENALTIES:
        model = make_pipeline(scale(), LogisticRegression(C=penalty, max_iter=2000))
        model.fit(features["train"], parts["train"].y)
        score = matthews_corrcoef(parts["dev"].y, model.predict(features["dev"]))
        found.append((score, penalty, model))
    score, penalty, model = max(found, key=lambda one: one[:2])
    return model.predict(features["test"]), {"dev_mcc": round(score, 4), "penalty": penalty}


def run_kmer(key: dict, options, parts: dict[str, Part]):
    found = []
    for k in WORDS:
        counts = make_pipeline(CountVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False), Normalizer("l1"))
        features = {"train": counts.fit_transform(parts["train"].X)}
        features |= {part: counts.transform(parts[part].X) for part in ("dev", "test")}
        predicted, facts = best_logistic(features, parts, MaxAbsScaler)
        found.append((facts["dev_mcc"], k, predicted, facts | {"k": k}))
    _, _, predicted, facts = max(found, key=lambda one: one[:2])
    return predicted, facts


def run_letters(key: dict, options, parts: dict[str, Part]):
    length = max(len(x) for part in PARTS for x in parts[part].X)
    features = {}
    for name, part in parts.items():
        letters = np.array([list(x.ljust(length, "N")) for x in part.X])
        features[name] = (letters[..., None] == list("ACGT")).reshape(len(letters), -1).astype(np.float32)
    return best_logistic(features, parts, MaxAbsScaler)


def language_model(key: dict, options, parts: dict[str, Part]):
    """Return a language model of the training sequences, and what a row says of its fit."""
    strands = "average" if key["strands"] == "average" else "none"
    length = max(map(len, parts["train"].X))
    model = DNALanguageModel(
        **NETWORK, **key["pretraining"], length=length, reverse_complement=strands, random_state=key["seed"]
    )
    return model, fit(model, {**key, "method": "language model"}, options, parts["train"].X)


def run_frozen(key: dict, options, parts: dict[str, Part]):
    model, facts = language_model(key, options, parts)
    features = {part: model.transform(parts[part].X) for part in PARTS}
    predicted, chosen = best_logistic(features, parts, StandardScaler)
    return predicted, facts | chosen


def run_network(key: dict, options, parts: dict[str, Part]):
    base, before = DNALanguageModel(**NETWORK), {"seconds": 0.0}
    if key["method"] == "pretrained":
        base, before = language_model(key, options, parts)
    model = DNAClassifier(
        language_model=base, **key["tuning"], reverse_complement=key["strands"], random_state=key["seed"]
    )
    facts = fit(model, key, options, *parts["train"])
    dev = matthews_corrcoef(parts["dev"].y, model.predict(parts["dev"].X))
    more = {"dev_mcc": round(dev, 4), "seconds_of_pretraining": before["seconds"]}
    return model.predict(parts["test"].X), facts | more


RUN = {
    "kmer": run_kmer,
    "letters": run_letters,
    "frozen": run_frozen,
    "scratch": run_network,
    "pretrained": run_network,
}


def run(key: dict, options, parts: dict[str, Part]) -> dict:
    """Return what the row of a task, a method and a seed says."""
    started = time.perf_counter()
    predicted, facts = RUN[key["method"]](key, options, parts)
    truth, new = parts["test"].y, unseen(parts)
    return {
        "mcc": round(matthews_corrcoef(truth, predicted), 4),
        "mcc_unseen": round(matthews_corrcoef(truth[new], predicted[new]), 4),
        "sequences": {part: len(parts[part].X) for part in PARTS},
        "unseen": int(new.sum()),
        "seconds_of_this_call": round(time.perf_counter() - started, 1),
        **facts,
    }


def key_of(task: str, method: str, seed: int, options) -> dict:
    """Return all that shapes a row."""
    key = {"task": task, "method": method, "rows": options.rows}
    if method in COUNTED:  # nothing in them is random
        return key | {"seed": None}
    pretraining, tuning = PRETRAINING, TUNING
    if options.max_epochs is not None:
        pretraining, tuning = ({**part, "max_epochs": options.max_epochs} for part in (PRETRAINING, TUNING))
    settings = {"network": NETWORK, "strands": TASKS[task][1], "pretraining": pretraining, "tuning": tuning}
    return key | {"seed": seed, **settings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max-epochs", type=int, help="in place of the settings'")
    parser.add_argument("--rows", type=int, help="use only so many sequences of each part, to try the script")
    add_options(parser, "dna_downstream.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = Rows(options.out)
    for task in options.tasks:
        parts = read(task, options)
        for method in options.methods:
            found, seeds = [], options.seeds[:1] if method in COUNTED else options.seeds
            for seed in seeds:
                key = key_of(task, method, seed, options)
                if (row := rows.find(key)) is None:
                    try:
                        row = rows.add(key, run(key, options, parts))
                    except OutOfTime:
                        print(f"{task}, {method}, seed {seed}: cut short; call again to go on")
                        return
                    finish(key, options)
                found.append(row)
            show(task, method, found)
        for seed in options.seeds:
            finish({**key_of(task, "pretrained", seed, options), "method": "language model"}, options)


def show(task: str, method: str, rows: list[dict]) -> None:
    """Print the mean and the spread over the seeds."""
    said = []
    for what in ("mcc", "mcc_unseen"):
        values = [row[what] for row in rows]
        spread = f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        said.append(f"{what} {np.mean(values):.3f}{spread}")
    print(f"{task:<14} {method:<11} {', '.join(said)} ({len(rows)} runs)", flush=True)


if __name__ == "__main__":
    main()

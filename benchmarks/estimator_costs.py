"""What each estimator costs on one thread: a training step, a prediction, memory.

    python benchmarks/estimator_costs.py            # rows in results/estimator_costs.jsonl; goes on where it stopped
    python benchmarks/estimator_costs.py --report   # the tables of docs/estimators, from the rows

Each case has a process of its own. Times are CPU time of the process: that of a training step is the difference of a
fit of three epochs and one of one epoch over the steps between them, so that imports and preparation do not count; that
of a prediction is the second call. Memory is the peak of the whole process above what it held before the fit.
"""

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rows import RESULTS, Rows

HERE = Path(__file__).resolve()
FORECASTERS = ("SMambaForecaster", "KarmaForecaster", "TSM2Forecaster", "LinearForecaster", "RidgeForecaster")
CASES = [{"estimator": name, "variates": n} for name in FORECASTERS for n in (7, 21, 321)]
CASES += [{"estimator": "ECGMambaClassifier", "preset": preset} for preset in ("dense", "hydra", "cnn", "vim")]
CASES += [
    {"estimator": "DNALanguageModel", "architecture": a, "length": n}
    for a in ("mamba", "mamba2", "hybrid")
    for n in (1024, 8192)
]
STEPS = 4  # of an epoch


def forecasting(case: dict):
    """Return a function that makes and fits an estimator for some epochs, and one that forecasts once."""
    import pandas as pd

    import ssmseq

    kind = getattr(ssmseq, case["estimator"])
    size = {"horizon": 96, "lookback": 96}
    values = np.random.default_rng(0).standard_normal((2000, case["variates"]))
    frame = pd.DataFrame(values, index=pd.date_range("2020-01-01", periods=len(values), freq="h"))
    more = {} if case["estimator"] == "RidgeForecaster" else limits()

    def fit(epochs: int):
        given = {} if case["estimator"] == "RidgeForecaster" else {"max_epochs": epochs, **more}
        return kind(**size, **given).fit(frame)

    return fit, lambda model: model.predict(frame), 1


def ecg(case: dict):
    """The same for recordings of ten seconds with twelve leads."""
    from ssmseq import ECGMambaClassifier

    vim = case["preset"] == "vim"
    rate = 500.0 if vim else 100.0
    rng = np.random.default_rng(0)
    n = 16 if vim else 64
    X, y = rng.standard_normal((n, 12, int(10 * rate))), rng.integers(0, 2, (n, 5))

    def fit(epochs: int):
        more = limits() | {"max_epochs": epochs, "sampling_rate": rate, "batch_size": n // STEPS}
        return ECGMambaClassifier.from_preset(case["preset"], **more, validation_fraction=0).fit(X, y)

    return fit, lambda model: model.predict_proba(X), n


def dna(case: dict):
    """The same for windows of random letters, eight to a batch at 1,024 bases, one at 8,192."""
    from ssmseq import DNALanguageModel

    length = case["length"]
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), length * 64))
    strings = [letters[i : i + length] for i in range(0, len(letters), length)]

    def fit(epochs: int):
        more = limits() | {"max_epochs": epochs, "length": length, "batch_size": 8192 // length}
        return DNALanguageModel(architecture=case["architecture"], **more, validation_fraction=0).fit(strings)

    return fit, lambda model: model.log_likelihood(strings[:8]), 8


def limits() -> dict:
    """Return the arguments that keep a fit short."""
    few = {"limit_train_batches": STEPS, "limit_val_batches": 1}
    return {"random_state": 0, "accelerator": "cpu", "trainer_params": few}


def measure(case: dict) -> dict:
    """Return the figures of a case."""
    torch.set_num_threads(1)
    make = {"ECGMambaClassifier": ecg, "DNALanguageModel": dna}.get(case["estimator"], forecasting)
    fit, predict, n = make(case)
    importlib.import_module("lightning.pytorch")  # its memory is not the fit's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, model = {}, fit(1)  # the first one imports and compiles
    for epochs in (1, 3):
        started = time.process_time()
        model = fit(epochs)
        seconds[epochs] = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predict(model)
    started = time.process_time()
    predict(model)
    closed = case["estimator"] == "RidgeForecaster"
    step = seconds[1] if closed else (seconds[3] - seconds[1]) / (2 * STEPS)
    network = getattr(model, "network_", None)
    return {
        "parameters": None if network is None else sum(p.numel() for p in network.parameters()),
        "ms_per_step": None if closed else round(1e3 * step, 2),
        "fit_ms": round(1e3 * step, 2) if closed else None,
        "batch_size": None if closed else model.batch_size,
        "ms_per_prediction": round(1e3 * (time.process_time() - started) / n, 2),
        "added_mib": round((peak - before) / 1024, 1),
    }


def report(rows: Rows) -> None:
    """Print a table for each kind of estimator."""
    print("| estimator | size | weights | batch | training step | prediction | memory added |\n" + "|---" * 7 + "|")
    for case in CASES:
        row = rows.find(case)
        if row is None:
            continue
        size = ", ".join(str(v) if k != "variates" else f"{v} variates" for k, v in case.items() if k != "estimator")
        weights = "" if row["parameters"] is None else f"{row['parameters']:,}"
        step = f"{row['ms_per_step']:,.0f} ms" if row["fit_ms"] is None else f"fit: {row['fit_ms']:,.0f} ms"
        print(
            f"| `{case['estimator']}` | {size} | {weights} | {row['batch_size'] or ''} | {step} "
            f"| {row['ms_per_prediction']:,.1f} ms | {row['added_mib']:,.0f} MiB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "estimator_costs.jsonl")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.case)))
        return
    torch.set_num_threads(1)
    rows = Rows(options.out)
    for case in [] if options.report else CASES:
        if rows.find(case) is None:
            call = [sys.executable, str(HERE), "--case", json.dumps(case)]
            done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
            print(rows.add(case, json.loads(done.stdout.splitlines()[-1])), flush=True)
    report(rows)


if __name__ == "__main__":
    main()

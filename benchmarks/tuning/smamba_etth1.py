"""Tune S-Mamba on ETTh1, 96 rows ahead of 96, and measure default and tuned settings on the test part.

    python benchmarks/tuning/smamba_etth1.py

The search sees training and validation part alone, and compares trials on all windows of the latter. Afterwards the
estimator's own settings and those of the best trial are fitted with three seeds each, stopped on the validation part,
and measured on all test windows. Cut short and run again, it goes on: the study is in --storage, and fits that have a
row in --out are not repeated. The last row is the summary. Two copies at a time share the trials; start the second one
with --search-only.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import ssmseq
from ssmseq import SMambaForecaster
from ssmseq.benchmark.data import BenchmarkData, load
from ssmseq.tuning import best_settings, tune
from ssmseq.tuning.progress import counts, epochs_spared

RESULTS = Path(__file__).resolve().parents[1] / "results"
SIZE = {"horizon": 96, "lookback": 96}
SEEDS = (0, 1, 2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=10, help="of a trial and of the final fits, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the final fits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--search-only", action="store_true", help="make trials, and leave the final fits to another")
    parser.add_argument("--storage", default="sqlite:///smamba_etth1.db")
    parser.add_argument("--out", type=Path, default=RESULTS / "tuning_smamba_etth1.jsonl")
    return parser.parse_args()


def search(data: BenchmarkData, options: argparse.Namespace):
    """Return the finished study."""
    frame = pd.concat([data.train, data.validation])
    fraction = len(data.validation) / len(frame)
    return tune(
        "SMambaForecaster",
        frame,
        study=f"smamba-etth1-{options.epochs}-epochs",
        storage=options.storage,
        n_trials=options.trials,
        max_epochs=options.epochs,
        space={"fixed": {**SIZE, "validation_fraction": fraction}},
        say=lambda line: print(line, flush=True),
    )


def measure(data: BenchmarkData, settings: dict, seed: int) -> dict[str, float]:
    """Fit on the training part, stop on the validation part, and measure on the test part."""
    started = time.perf_counter()
    model = SMambaForecaster(**settings | {"random_state": seed}).fit(data.train, validation=data.validation)
    found = model.evaluate(data.with_history(data.test, model.lookback_))
    seconds = round(time.perf_counter() - started, 1)
    return {"test_mse": found["mse"], "test_mae": found["mae"], "n_windows": found["n_windows"], "seconds": seconds}


def fits(data: BenchmarkData, settings: dict[str, dict], options: argparse.Namespace) -> list[dict]:
    """Return a row for each settings and seed; those that the file has are taken from it."""
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    rows = [json.loads(line) for line in lines]
    found = []
    for name, chosen in settings.items():
        for seed in options.seeds:
            key = {"settings": name, "seed": seed, "params": chosen}
            row = next((r for r in rows if all(r.get(k) == v for k, v in key.items())), None)
            if row is None:
                row = key | measure(data, chosen, seed)
                write(options.out, row)
            print(f"{name}, seed {seed}: test MSE {row['test_mse']:.4f}, MAE {row['test_mae']:.4f}", flush=True)
            found.append(row)
    return found


def write(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    data = load("ETTh1")
    study = search(data, options)
    if options.search_only:
        return
    trials = study.get_trials(deepcopy=False)[: options.trials]
    tuned = {k: v for k, v in best_settings(study).items() if k not in ("random_state", "validation_fraction")}
    rows = fits(data, {"default": {**SIZE, "max_epochs": options.epochs}, "tuned": tuned}, options)
    means = {
        name: float(np.mean([r["test_mse"] for r in rows if r["settings"] == name])) for name in ("default", "tuned")
    }
    started = [t.datetime_start for t in trials if t.datetime_start is not None]
    ended = [t.datetime_complete for t in trials if t.datetime_complete is not None]
    summary = {
        "settings": "summary",
        "trials": counts(trials),
        "minutes_of_trials": round(sum(t.user_attrs.get("seconds", 0) for t in trials) / 60, 1),
        "minutes_on_the_clock": round((max(ended) - min(started)).total_seconds() / 60, 1),
        "workers": len({t.user_attrs["alive"]["worker"] for t in trials if "alive" in t.user_attrs}),
        "epochs": epochs_spared(trials),
        "best_validation_mse": study.best_value,
        "first_trial_validation_mse": trials[0].value,
        "baselines": study.user_attrs["baselines"],
        "test_mse": means,
        "seeds": list(options.seeds),
        "max_epochs": options.epochs,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "versions": {"ssmseq": ssmseq.__version__, "torch": torch.__version__},
    }
    write(options.out, summary)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()

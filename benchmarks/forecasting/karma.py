"""KARMA as released and as described, beside S-Mamba and a linear map trained with the same loss, and ridge.

    python benchmarks/forecasting/karma.py            # run what is missing, then print the table
    python benchmarks/forecasting/karma.py --table    # print the table of the rows already there

Look-back 96, horizons 96 to 720, the published splits, every test window, standardised values. Every run is a fresh
process on one thread and appends one row to benchmarks/results/karma.jsonl; rows already there are not run again, so an
interrupted benchmark goes on where it stopped, and several may run side by side on different --datasets. Small data
sets have three seeds, the others one.

"karma_haar" is "karma_released" with the wavelet that the authors' scripts name for ETTh2 and ETTm2, and that their
code cannot run. "fredf" in a model's name is the loss that KARMA's authors train with; its weight is that of their
scripts, the same for every model of a data set. Settings of S-Mamba are those of its own authors. Weather has a doubled
and a missing time stamp, and Exchange none at all, so there every model goes without calendar tokens.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "karma.jsonl"
LOOKBACK = 96
HORIZONS = (96, 192, 336, 720)
SEEDS = {"ETTh1": 3, "ETTh2": 3, "exchange_rate": 3, "ETTm1": 1, "ETTm2": 1, "weather": 1}
MODELS = ("karma_released", "linear_fredf", "ridge", "smamba_fredf", "karma_paper", "karma_haar")
HOURLY = ("hour", "day_of_week", "day_of_month", "day_of_year")  # of the authors' loader, also for rows of 15 minutes
PUBLISHED = {  # KARMA, arXiv 2506.08939, table 2
    "ETTh1": ((0.376, 0.396), (0.427, 0.425), (0.473, 0.454), (0.480, 0.479)),
    "ETTh2": ((0.284, 0.333), (0.358, 0.382), (0.404, 0.421), (0.424, 0.441)),
    "ETTm1": ((0.321, 0.356), (0.362, 0.383), (0.398, 0.408), (0.467, 0.451)),
    "ETTm2": ((0.171, 0.252), (0.235, 0.295), (0.298, 0.335), (0.398, 0.394)),
    "weather": ((0.156, 0.202), (0.212, 0.253), (0.274, 0.298), (0.358, 0.355)),
    "exchange_rate": ((0.085, 0.206), (0.178, 0.300), (0.331, 0.416), (0.852, 0.696)),
}
SMAMBA = {  # the scripts of its authors: learning rates of the four horizons, then sizes
    "ETTh1": ((7e-5, 7e-5, 5e-5, 5e-5), {}),
    "ETTh2": ((4e-5, 4e-5, 3e-5, 7e-5), {}),
    "ETTm1": ((5e-5, 5e-5, 5e-5, 5e-5), {}),  # narrower beyond horizon 96
    "ETTm2": ((5e-5, 5e-5, 3e-5, 5e-5), {}),
    "weather": ((5e-5,) * 4, {"d_model": 512, "d_ff": 512, "n_layers": 3, "max_epochs": 5}),
    "exchange_rate": ((1e-4, 1e-4, 5e-5, 5e-5), {"d_model": 128, "d_ff": 128, "d_state": 32}),
}


def load(name: str):
    from ssmseq import datasets

    if name.startswith("ETT"):
        return datasets.fetch_ett(variant=name.removeprefix("ETT"))
    return getattr(datasets, f"fetch_{name}")()


def build(model: str, dataset: str, horizon: int, seed: int):
    from ssmseq import KarmaForecaster, LinearForecaster, RidgeForecaster, SMambaForecaster
    from ssmseq.forecasting.karma import RELEASED

    shared = {"horizon": horizon, "lookback": LOOKBACK, "random_state": seed, "accelerator": "cpu"}
    loss = {"loss": "fredf", "fredf_weight": RELEASED[dataset].get("fredf_weight", 0.8)}
    if model == "karma_haar":
        return KarmaForecaster.from_preset("karma_released", dataset=dataset, **shared, wavelet="haar")
    if model.startswith("karma"):
        return KarmaForecaster.from_preset(model, dataset=dataset, **shared)
    if model == "linear_fredf":
        return LinearForecaster(**shared, **loss)
    if model == "ridge":
        return RidgeForecaster(horizon=horizon, lookback=LOOKBACK)
    rates, sizes = SMAMBA[dataset]
    at = HORIZONS.index(horizon)
    sizes = dict(sizes)
    if dataset.startswith("ETTm") and horizon > 96:
        sizes |= {"d_model": 128, "d_ff": 128}
    if dataset == "exchange_rate" and horizon == 96:
        sizes |= {"batch_size": 16}
    if dataset.startswith("ETT"):
        sizes |= {"time_features": HOURLY}
    return SMambaForecaster(**shared, **loss, learning_rate=rates[at], **sizes)


def run_one(dataset: str, horizon: int, model: str, seed: int) -> dict:
    import torch

    import ssmseq

    torch.set_num_threads(1)
    data = load(dataset)
    frame = data.frame.reset_index(drop=True) if dataset == "weather" else data.frame
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    estimator = build(model, dataset, horizon, seed)
    started = time.perf_counter()
    estimator.fit(frame[train], validation=frame[valid])
    seconds = time.perf_counter() - started
    scores = estimator.evaluate(frame[test.start - LOOKBACK : test.stop])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    network = getattr(estimator, "network_", None)
    return {
        "dataset": dataset,
        "model": model,
        "lookback": LOOKBACK,
        "horizon": horizon,
        "seed": seed,
        "loss": getattr(estimator, "loss", "mse"),
        **{name: scores[name] for name in ("mse", "mae", "n_windows")},
        "epochs": getattr(estimator, "n_iter_", None),
        "parameters": None if network is None else sum(p.numel() for p in network.parameters()),
        "fit_seconds": round(seconds, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "ssmseq": ssmseq.__version__,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def read_rows() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    import pandas as pd

    rows = pd.DataFrame(read_rows())
    means = rows.groupby(["dataset", "horizon", "model"])[["mse", "mae"]].mean()
    lines = ["| data | horizon | published | " + " | ".join(MODELS) + " |", "|---" * (3 + len(MODELS)) + "|"]
    for dataset, published in PUBLISHED.items():
        for horizon, (mse, mae) in zip(HORIZONS, published, strict=True):
            lines.append(_line(dataset, horizon, (mse, mae), means))
        average = tuple(sum(p[i] for p in published) / len(published) for i in (0, 1))
        lines.append(_line(dataset, "mean", average, _averages(means)))
    return "\n".join(lines)


def _averages(means):
    """Return the means over horizons of the models that have all four."""
    grouped = means.groupby(level=["dataset", "model"])
    found = grouped.mean()[grouped.size() == len(HORIZONS)].reset_index()
    return found.assign(horizon="mean").set_index(["dataset", "horizon", "model"])


def _line(dataset: str, horizon, published: tuple, means) -> str:
    cells = [dataset, str(horizon), f"{published[0]:.3f} / {published[1]:.3f}"]
    for model in MODELS:
        key = (dataset, horizon, model)
        cells.append(f"{means.loc[key, 'mse']:.3f} / {means.loc[key, 'mae']:.3f}" if key in means.index else "")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--horizons", type=int, nargs="+", default=list(HORIZONS))
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", metavar="SEED", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(run_one(args.datasets[0], args.horizons[0], args.models[0], args.one)))
        return
    runs = [(d, h, m, s) for s in range(3) for m in args.models for d in args.datasets for h in args.horizons]
    runs = [run for run in runs if run[2] != "karma_haar" or run[0] in ("ETTh2", "ETTm2")]
    runs = [(d, h, m, s) for d, h, m, s in runs if s < (1 if m == "ridge" else SEEDS[d])]  # ridge has no seed
    for dataset, horizon, model, seed in [] if args.table else runs:
        key = {"dataset": dataset, "horizon": horizon, "model": model, "seed": seed}
        if any(key.items() <= row.items() for row in read_rows()):
            continue
        print(f"{dataset}, horizon {horizon}, {model}, seed {seed} ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE), "--datasets", dataset, "--horizons", str(horizon)]
        command += ["--models", model, "--one", str(seed)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            sys.exit(f"{dataset}, horizon {horizon}, {model}, seed {seed} failed:\n{done.stderr}")
        with RESULTS.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")
    print(table())


if __name__ == "__main__":
    main()

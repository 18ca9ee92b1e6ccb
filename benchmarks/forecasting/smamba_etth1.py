"""S-Mamba on ETTh1 with the paper's settings: look-back 96, horizons 96 to 720, three seeds, every test window.

    python benchmarks/forecasting/smamba_etth1.py            # run what is missing, then print the table
    python benchmarks/forecasting/smamba_etth1.py --table    # print the table of the rows already there

Each run is a fresh process that appends one row to benchmarks/results/smamba_etth1.jsonl; rows already there are not
run again, so an interrupted benchmark goes on where it stopped. Peak memory is that of the whole process.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "smamba_etth1.jsonl"
LEARNING_RATES = {96: 7e-5, 192: 7e-5, 336: 5e-5, 720: 5e-5}  # the authors' choice for each horizon
PUBLISHED = {96: (0.386, 0.405), 192: (0.443, 0.437), 336: (0.489, 0.468), 720: (0.502, 0.489)}  # arXiv 2403.11144
LOOKBACK = 96


def run_one(horizon: int, seed: int, threads: int) -> dict:
    import torch

    import ssmseq
    from ssmseq import NaiveForecaster, SMambaForecaster
    from ssmseq.datasets import fetch_ett

    torch.set_num_threads(threads)
    data = fetch_ett(variant="h1")
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    history_and_test = data.frame[test.start - LOOKBACK : test.stop]
    naive = NaiveForecaster(horizon=horizon, lookback=LOOKBACK, season_length=24).fit(data.frame[train])
    estimator = SMambaForecaster(
        horizon=horizon, lookback=LOOKBACK, learning_rate=LEARNING_RATES[horizon], random_state=seed, accelerator="cpu"
    )
    started = time.perf_counter()
    estimator.fit(data.frame[train], validation=data.frame[valid])
    fitted = time.perf_counter()
    scores = estimator.evaluate(history_and_test)
    evaluated = time.perf_counter()
    baseline = naive.evaluate(history_and_test)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    return {
        "dataset": "ETTh1",
        "model": "SMambaForecaster",
        "lookback": LOOKBACK,
        "horizon": horizon,
        "seed": seed,
        "loss": "mse",
        **scores,
        "naive_24_mse": baseline["mse"],
        "naive_24_mae": baseline["mae"],
        "epochs": estimator.n_iter_,
        "best_epoch": int(estimator.history_["valid_loss"].idxmin()) + 1,
        "fit_seconds": round(fitted - started, 1),
        "epoch_seconds": round(float(estimator.history_["seconds"].median()), 2),
        "evaluate_seconds": round(evaluated - fitted, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": threads,
        "processor": _processor(),
        "ssmseq": ssmseq.__version__,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def read_rows() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    import pandas as pd

    rows = pd.DataFrame(read_rows())
    lines = [
        "| horizon | MSE | MAE | published MSE / MAE | difference | repeat the last day | epoch | fit | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for horizon, group in rows.groupby("horizon"):
        mse, mae = group["mse"].mean(), group["mae"].mean()
        published = PUBLISHED[horizon]
        lines.append(
            f"| {horizon} | {mse:.4f} ± {group['mse'].std():.4f} | "
            f"{mae:.4f} ± {group['mae'].std():.4f} | "
            f"{published[0]:.3f} / {published[1]:.3f} | {100 * (mse / published[0] - 1):+.1f} % / "
            f"{100 * (mae / published[1] - 1):+.1f} % | {group['naive_24_mse'].iloc[0]:.3f} / "
            f"{group['naive_24_mae'].iloc[0]:.3f} | {group['epoch_seconds'].mean():.1f} s | "
            f"{group['fit_seconds'].mean():.0f} s | {group['peak_memory_mb'].max()} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", type=int, nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.horizons[0], args.seeds[0], args.threads)))
        return
    for seed in [] if args.table else args.seeds:
        for horizon in args.horizons:
            if any(r["horizon"] == horizon and r["seed"] == seed for r in read_rows()):
                continue
            print(f"horizon {horizon}, seed {seed} ...", file=sys.stderr, flush=True)
            command = [sys.executable, str(HERE), "--one", "--horizons", str(horizon), "--seeds", str(seed)]
            done = subprocess.run([*command, "--threads", str(args.threads)], stdout=subprocess.PIPE, check=True)
            row = done.stdout.decode().splitlines()[-1]
            with RESULTS.open("a") as file:
                file.write(row + "\n")
            print(row, file=sys.stderr, flush=True)
    print(table())


if __name__ == "__main__":
    main()

"""M4 hourly: 414 series of 700 to 960 rows in one model, 48 rows ahead.

    python benchmarks/forecasting/panel.py

Needs M4_Hourly-train.csv.gz and M4_Hourly-test.csv.gz in the folder that SSMSEQ_DATA names, or in its subfolder
"forecasting". MASE as in the M4 competition: the mean absolute error of each series by that of its seasonal naive
forecast (24 rows) within the training rows, averaged over the series; coverage of the intervals at 80 and 95 %. The
validation rows are the last fifth of each series. The rows replace those of an earlier run in
benchmarks/results/panel.jsonl.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ssmseq import LinearForecaster, NaiveForecaster, RidgeForecaster, SMambaForecaster

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "panel.jsonl"
HORIZON, SEASON, LEVELS, SEEDS = 48, 24, (80, 95), 3


def read(part: str) -> pd.DataFrame:
    folder = Path(os.environ.get("SSMSEQ_DATA", "."))
    name = f"M4_Hourly-{part}.csv.gz"
    path = next(p / name for p in (folder, folder / "forecasting") if (p / name).exists())
    wide = pd.read_csv(path).set_index("V1")
    long = wide.stack().dropna().rename("y").rename_axis(["unique_id", "ds"]).reset_index()
    return long.assign(ds=long.groupby("unique_id").cumcount() + 1)


def models(seed: int):
    size = {"horizon": HORIZON, "lookback": 168}
    network = {**size, "batch_size": 512, "max_epochs": 5, "loss": "mae", "random_state": seed, "accelerator": "cpu"}
    if seed == 0:
        yield NaiveForecaster(**size, season_length=SEASON)
        yield RidgeForecaster(horizon=HORIZON, lookback=[168, 336])
    yield LinearForecaster(**network, learning_rate=5e-3)
    yield SMambaForecaster(**network, learning_rate=1e-3, d_model=128, d_ff=128)


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    train, test = read("train"), read("test")
    test = test.assign(ds=test["ds"] + test["unique_id"].map(train.groupby("unique_id").size()))
    naive = train.groupby("unique_id")["y"].apply(
        lambda y: np.abs(y.to_numpy()[SEASON:] - y.to_numpy()[:-SEASON]).mean()
    )
    rows = []
    for seed in range(SEEDS):
        for estimator in models(seed):
            started = time.perf_counter()
            estimator.fit(train)
            seconds = time.perf_counter() - started
            levels = LEVELS if estimator.interval_bounds_ is not None else ()
            forecast = estimator.predict(level=levels).rename(columns={"y": "forecast"})
            both = test.merge(forecast, on=["unique_id", "ds"], validate="one_to_one")
            error = (both["y"] - both["forecast"]).abs().groupby(both["unique_id"]).mean()
            row = {"model": type(estimator).__name__, "seed": seed, "mase": float((error / naive).mean())}
            for p in levels:
                row[f"coverage_{p}"] = float(both["y"].between(both[f"y-lo-{p}"], both[f"y-hi-{p}"]).mean())
            rows.append(row | {"fit_seconds": round(seconds, 1), "commit": commit.stdout.strip()})
            print(rows[-1], file=sys.stderr, flush=True)
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame(rows).groupby("model", sort=False)
    print("| model | MASE | coverage at 80 % | at 95 % | seeds |\n|---|---|---|---|---|")
    for name, group in table:
        cells = [f"{group['mase'].mean():.3f} ± {group['mase'].std(ddof=0):.3f}"]
        cells += [
            f"{100 * group[f'coverage_{p}'].mean():.1f}" if group[f"coverage_{p}"].notna().all() else "" for p in LEVELS
        ]
        print(f"| {name} | {' | '.join(cells)} | {len(group)} |")


if __name__ == "__main__":
    main()

"""Electricity prices with the load forecasts of the grid: covariates left out, known up to now, known in advance.

    python benchmarks/forecasting/exogenous.py            # run what is missing, then print the table
    python benchmarks/forecasting/exogenous.py --table    # print the table of the rows already there

Needs EPF_NP.csv.gz and EPF_PJM.csv.gz (Nord Pool and Pennsylvania-New Jersey-Maryland; hourly, 52,416 rows: date, two
forecasts of the day ahead, the price "OT") in the folder that SSMSEQ_DATA names, or in its subfolder "forecasting".
Look-back 168, horizon 24; the first 70 % of the rows train, the last 20 % test, one window an hour, standardised
values. Rows go to benchmarks/results/exogenous.jsonl, each run in its own process on one thread.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "exogenous.jsonl"
MARKETS = ("NP", "PJM")
SETTINGS = ("none", "past", "future", "ridge", "naive_24", "naive_168")
LOOKBACK, HORIZON, SEEDS = 168, 24, 3


def read(market: str):
    import pandas as pd

    folder = Path(os.environ.get("SSMSEQ_DATA", "."))
    path = next(p for p in (folder, folder / "forecasting") if (p / f"EPF_{market}.csv.gz").exists())
    frame = pd.read_csv(path / f"EPF_{market}.csv.gz")
    frame.columns = [c.strip() for c in frame.columns]
    return frame.assign(date=pd.to_datetime(frame["date"])).set_index("date")


def build(setting: str, covariates: list[str], seed: int):
    from ssmseq import NaiveForecaster, RidgeForecaster, SMambaForecaster

    size = {"horizon": HORIZON, "lookback": LOOKBACK}
    if setting.startswith("naive"):
        return NaiveForecaster(**size, season_length=int(setting.removeprefix("naive_")))
    if setting == "ridge":
        return RidgeForecaster(**size)
    given = {} if setting == "none" else {f"{setting}_covariates": covariates}
    return SMambaForecaster(
        **size,
        **given,
        target="OT",
        d_model=128,
        d_ff=256,
        learning_rate=1e-3,
        batch_size=128,
        max_epochs=6,
        random_state=seed,
        accelerator="cpu",
    )


def run_one(market: str, setting: str, seed: int) -> dict:
    import torch

    import ssmseq

    torch.set_num_threads(1)
    frame = read(market)
    covariates = [c for c in frame.columns if c != "OT"]
    frame = frame if setting in ("past", "future") else frame[["OT"]]
    n = len(frame)
    train, test = int(0.7 * n), n - int(0.2 * n)
    estimator = build(setting, covariates, seed)
    started = time.perf_counter()
    estimator.fit(frame[:train], validation=frame[train:test])
    seconds = time.perf_counter() - started
    scores = estimator.evaluate(frame[test - LOOKBACK :])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    row = {"market": market, "setting": setting, "seed": seed, "lookback": LOOKBACK, "horizon": HORIZON, **scores}
    row |= {"model": type(estimator).__name__, "fit_seconds": round(seconds, 1), "ssmseq": ssmseq.__version__}
    return row | {"torch": torch.__version__, "commit": commit.stdout.strip()}


def read_rows() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    import pandas as pd

    rows = pd.DataFrame(read_rows())
    lines = ["| market | setting | model | MSE | MAE | WAPE | seeds |", "|---|---|---|---|---|---|---|"]
    for (market, setting), group in rows.groupby(["market", "setting"], sort=False):
        cells = [f"{group[c].mean():.4f} ± {group[c].std(ddof=0):.4f}" for c in ("mse", "mae", "wape")]
        lines.append(f"| {market} | {setting} | {group['model'].iloc[0]} | {' | '.join(cells)} | {len(group)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--one", nargs=3, metavar=("MARKET", "SETTING", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one[0], args.one[1], int(args.one[2]))))
        return
    for seed in range(0 if args.table else SEEDS):
        for market in MARKETS:
            for setting in SETTINGS if seed == 0 else SETTINGS[:3]:
                key = {"market": market, "setting": setting, "seed": seed}
                if any(key.items() <= row.items() for row in read_rows()):
                    continue
                print(f"{market}, {setting}, seed {seed} ...", file=sys.stderr, flush=True)
                command = [sys.executable, str(HERE), "--one", market, setting, str(seed)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                if done.returncode:
                    sys.exit(f"{market}, {setting}, seed {seed} failed:\n{done.stderr}")
                with RESULTS.open("a") as file:
                    file.write(done.stdout.splitlines()[-1] + "\n")
    print(table())


if __name__ == "__main__":
    main()

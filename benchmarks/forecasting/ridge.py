"""The closed-form linear map on ETTh1, ETTh2 and Exchange: horizons 96 to 720, every test window, in seconds.

    python benchmarks/forecasting/ridge.py

Twice for each horizon: with a look-back of 96, as most published tables have it, and with the look-back chosen from 96,
336 and 512 on the validation part. Values are standardised by the training part. The rows replace those of an earlier
run in benchmarks/results/ridge.jsonl, and a table is printed.
"""

import json
import subprocess
import time
from pathlib import Path

import ssmseq
from ssmseq import NaiveForecaster, RidgeForecaster
from ssmseq.datasets import fetch_ett, fetch_exchange_rate

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "ridge.jsonl"
DATA = {
    "ETTh1": lambda: fetch_ett(variant="h1"),
    "ETTh2": lambda: fetch_ett(variant="h2"),
    "Exchange": fetch_exchange_rate,
}
LOOKBACKS = {"96": 96, "chosen": [96, 336, 512]}
HORIZONS = (96, 192, 336, 720)
SEASON = {"ETTh1": 24, "ETTh2": 24, "Exchange": 1}  # rows; of what the baseline repeats


def run(name: str, data, horizon: int, setting: str) -> dict:
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    started = time.perf_counter()
    estimator = RidgeForecaster(horizon=horizon, lookback=LOOKBACKS[setting])
    # The look-back of the first validation window lies in the training part; all candidates see the same targets.
    estimator.fit(data.frame[train], validation=data.frame[valid])
    seconds = time.perf_counter() - started
    scores = estimator.evaluate(data.frame[test.start - estimator.lookback_ : test.stop])
    naive = NaiveForecaster(horizon=horizon, lookback=96, season_length=SEASON[name]).fit(data.frame[train])
    baseline = naive.evaluate(data.frame[test.start - 96 : test.stop])
    row = {"dataset": name, "model": "RidgeForecaster", "setting": setting, "horizon": horizon, **scores}
    row |= {"lookback": estimator.lookback_, "alpha": estimator.alpha_, "fit_seconds": round(seconds, 2)}
    return row | {"naive_mse": baseline["mse"], "naive_mae": baseline["mae"], "ssmseq": ssmseq.__version__}


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    rows = []
    print("| data | horizon | look-back 96 | look-back chosen | repeat the last season |\n|---|---|---|---|---|")
    for name, fetch in DATA.items():
        data = fetch()
        for horizon in HORIZONS:
            found = [run(name, data, horizon, setting) for setting in LOOKBACKS]
            rows += [row | {"commit": commit.stdout.strip()} for row in found]
            cells = [f"{r['mse']:.3f} / {r['mae']:.3f}" for r in found]
            cells[1] += f" ({found[1]['lookback']})"
            cells.append(f"{found[0]['naive_mse']:.3f} / {found[0]['naive_mae']:.3f}")
            print(f"| {name} | {horizon} | {' | '.join(cells)} |")
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

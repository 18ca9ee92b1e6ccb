"""Do prediction intervals hold what they promise.

    python benchmarks/forecasting/coverage.py            # ETTh1's test part
    python benchmarks/forecasting/coverage.py --others   # the parts that the rule of renewal was chosen on

Ridge, look-back 96, three test windows a day (of exchange rates, which have a row a day, all). "fixed" takes the
intervals from the validation windows, once; "recalibrated" renews them every day (of exchange rates every week) from
the rows known by then. The rows replace those of an earlier run in benchmarks/results/coverage.jsonl.
"""

import argparse
import json
import subprocess
from pathlib import Path

from ssmseq import RidgeForecaster
from ssmseq.datasets import fetch_ett, fetch_exchange_rate

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "coverage.jsonl"
LEVELS = (80, 95)
HORIZONS = (96, 192, 336, 720)
# trained before the first row, calibrated before the second, tested before the third; rows of a day
MONTH = 30 * 24
TEST = {"ETTh1": (12 * MONTH, 16 * MONTH, 20 * MONTH, 24)}
OTHERS = {
    "ETTh1, validation part": (8 * MONTH, 12 * MONTH, 16 * MONTH, 24),
    "ETTh2, validation part": (8 * MONTH, 12 * MONTH, 16 * MONTH, 24),
    "ETTh2": (12 * MONTH, 16 * MONTH, 20 * MONTH, 24),
    "ETTm1, validation part": (32 * MONTH, 48 * MONTH, 64 * MONTH, 96),
    "ETTm2, validation part": (32 * MONTH, 48 * MONTH, 64 * MONTH, 96),
    "Exchange": (5311, 6069, 7588, 7),
}


def frame_of(name: str):
    """Return the rows of the data set that a name begins with."""
    return fetch_exchange_rate().frame if name == "Exchange" else fetch_ett(variant=name[3:5]).frame


def measure(name: str, horizon: int, commit: str) -> dict:
    """Return the row of a data set and horizon: percentages of the values inside their intervals."""
    frame = frame_of(name)
    train, valid, test, every = (TEST | OTHERS)[name]
    estimator = RidgeForecaster(horizon=horizon, lookback=96).fit(frame[:train], validation=frame[train:valid])
    step = max(every // 24 * 8, 1)
    options = {"n_windows": (test - valid - horizon) // step + 1, "step": step, "level": LEVELS}
    found = {}
    for way, renewed in (("fixed", None), ("recalibrated", every)):
        windows = estimator.backtest(frame[:test], **options, recalibrate=renewed)
        for level in LEVELS:
            low, high = (windows[f"RidgeForecaster-{side}-{level}"] for side in ("lo", "hi"))
            found[f"{way}_{level}"] = 100 * float(windows["y"].between(low, high).mean())
    return {"dataset": name, "horizon": horizon, **found, "commit": commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", action="store_true", help="other data than ETTh1's test part")
    names = OTHERS if parser.parse_args().others else TEST
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = {(row["dataset"], row["horizon"]): row for row in map(json.loads, lines)}
    print("| data | horizon | 80 %, fixed | 80 %, recalibrated | 95 %, fixed | 95 %, recalibrated |")
    print("|---|---|---|---|---|---|")
    for name in names:
        for horizon in HORIZONS[: 3 if name == "Exchange" else 4]:  # its test part has 1,519 rows
            row = rows[name, horizon] = measure(name, horizon, commit.stdout.strip())
            cells = [f"{row[f'{way}_{level}']:.1f}" for level in LEVELS for way in ("fixed", "recalibrated")]
            print(f"| {name} | {horizon} | {' | '.join(cells)} |", flush=True)
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


if __name__ == "__main__":
    main()

"""Do prediction intervals of ETTh1 hold what they promise.

    python benchmarks/forecasting/coverage.py

Ridge, look-back 96, every eighth test window. "fixed" takes the intervals from the validation windows, once;
"recalibrated" renews them every 24 rows from the windows that have ended by then. The rows replace those of an earlier
run in benchmarks/results/coverage.jsonl.
"""

import json
import subprocess
from pathlib import Path

from ssmseq import RidgeForecaster
from ssmseq.datasets import fetch_ett

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "coverage.jsonl"
LEVELS = (80, 95)
STEP = 8


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    data = fetch_ett(variant="h1")
    train, valid, test = (slice(*data.splits[part]) for part in ("train", "validation", "test"))
    rows = []
    print("| horizon | 80 %, fixed | 80 %, recalibrated | 95 %, fixed | 95 %, recalibrated |\n|---|---|---|---|---|")
    for horizon in (96, 192, 336, 720):
        estimator = RidgeForecaster(horizon=horizon, lookback=96).fit(data.frame[train], validation=data.frame[valid])
        options = {"n_windows": (2880 - horizon) // STEP + 1, "step": STEP, "level": LEVELS}
        found = {}
        for name, every in (("fixed", None), ("recalibrated", 24)):
            frame = estimator.backtest(data.frame[: test.stop], **options, recalibrate=every)
            for level in LEVELS:
                low, high = (frame[f"RidgeForecaster-{side}-{level}"] for side in ("lo", "hi"))
                found[f"{name}_{level}"] = 100 * float(frame["y"].between(low, high).mean())
        rows.append({"dataset": "ETTh1", "horizon": horizon, **found, "commit": commit.stdout.strip()})
        cells = [f"{found[f'{name}_{level}']:.1f}" for level in LEVELS for name in ("fixed", "recalibrated")]
        print(f"| {horizon} | {' | '.join(cells)} |")
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()

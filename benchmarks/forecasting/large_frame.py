"""Memory of a wide frame: 100,000 rows of 1,000 variates through S-Mamba and ridge on a CPU.

    python benchmarks/forecasting/large_frame.py

Training is cut short, since memory and the time of a step are the question: 10 steps, 2 batches of validation, the
calibration of intervals on 1,398 windows, then a forecast with an interval. A row for each model is appended to
benchmarks/results/large_frame.jsonl; peak memory is that of the whole process, the frame included.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "large_frame.jsonl"
ROWS, VARIATES = 100_000, 1_000


def run(model: str) -> dict:
    import numpy as np
    import pandas as pd
    import torch

    from ssmseq import RidgeForecaster, SMambaForecaster

    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, VARIATES)
    values = np.sin(np.arange(ROWS)[:, None] * (2 * np.pi / 24) + phases)
    values += 0.1 * np.random.default_rng(1).standard_normal((ROWS, VARIATES))
    frame = pd.DataFrame(values, index=pd.date_range("2010-01-01", periods=ROWS, freq="h"))
    del values
    size = {"horizon": 96, "lookback": 96}
    if model == "RidgeForecaster":
        estimator = RidgeForecaster(**size)
    else:
        limits = {"limit_train_batches": 10, "limit_val_batches": 2}
        estimator = SMambaForecaster(**size, max_epochs=1, random_state=0, accelerator="cpu", trainer_params=limits)
    started = time.perf_counter()
    estimator.fit(frame)
    fitted = time.perf_counter()
    forecast = estimator.predict(level=[80])
    done = time.perf_counter()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    return {
        "model": model,
        "rows": ROWS,
        "variates": VARIATES,
        "fit_seconds": round(fitted - started, 1),
        "predict_seconds": round(done - fitted, 2),
        "forecast_columns": forecast.shape[1],
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(run(sys.argv[1])))
        return
    for model in ("RidgeForecaster", "SMambaForecaster"):
        done = subprocess.run([sys.executable, str(HERE), model], stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.strip())
        with RESULTS.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")


if __name__ == "__main__":
    main()

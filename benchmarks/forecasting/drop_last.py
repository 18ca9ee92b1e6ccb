"""What dropping the last incomplete batch of the test windows does to a score: the same forecasts, scored both ways.

    python benchmarks/forecasting/drop_last.py

Many published loaders fill batches of test windows and drop the last, incomplete one, so that the score depends on the
batch size and the windows that are left out are the latest. Ridge regression, look-back 96; seconds.
"""

import torch

from ssmseq import RidgeForecaster
from ssmseq.benchmark.data import load
from ssmseq.benchmark.scores import batches_of, training_statistics

CASES = (("ETTh2", 96), ("ETTh2", 336), ("exchange_rate", 96), ("exchange_rate", 720), ("national_illness", 24))
BATCHES = (32, 128, 512, 1024)


def window_errors(name: str, horizon: int, lookback: int) -> torch.Tensor:
    """Return the mean squared standardised error of each test window, in the order of time."""
    data = load(name)
    model = RidgeForecaster(horizon=horizon, lookback=lookback).fit(data.train, validation=data.validation)
    _, scale, _ = training_statistics(data)
    batches = batches_of(model, data.with_history(data.test, lookback))
    return torch.cat([((b.point - b.truth) / scale[0].unsqueeze(-1)).square().mean((1, 2)) for b in batches])


def main() -> None:
    heads = ["data, rows ahead", "windows", "all", *(f"batches of {n}" for n in BATCHES)]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, horizon in CASES:
        errors = window_errors(name, horizon, 36 if name == "national_illness" else 96)
        cells = [f"{name} {horizon}", str(len(errors)), f"{errors.mean():.4f}"]
        for n in BATCHES:
            kept = len(errors) // n * n
            score = f"{errors[:kept].mean():.4f}" if kept else "nothing"
            cells.append(f"{score} ({100 * (1 - kept / len(errors)):.0f} % dropped)")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""`ssmseq demo`: S-Mamba on ETTh1 with the paper's settings, beside two baselines, and a plot."""

import argparse
import sys
import time
from pathlib import Path

HORIZON = LOOKBACK = 96  # rows, that is hours


def run(words: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="ssmseq demo", description="Train S-Mamba on ETTh1, compare with baselines, draw the forecast."
    )
    parser.add_argument("--output", default="demo-output", metavar="FOLDER", help="for plot and model; demo-output")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="at most; 10 as in the paper")
    options = parser.parse_args(words)

    from ssmseq import ForecastDisplay, NaiveForecaster, SMambaForecaster
    from ssmseq.cli import OK

    started = time.perf_counter()
    name, frame, splits = _series()
    train, valid, test = (frame.iloc[slice(*splits[part])] for part in ("train", "validation", "test"))
    history_and_test = frame.iloc[splits["test"][0] - LOOKBACK : splits["test"][1]]
    print(f"data: {name}, {frame.shape[1]} variates; {len(train)} rows to train on, {len(valid)} to validate on, "
          f"{len(test)} to test on", file=sys.stderr)  # fmt: skip
    models = {
        "SMambaForecaster": SMambaForecaster(
            horizon=HORIZON, lookback=LOOKBACK, learning_rate=7e-5, max_epochs=options.epochs, random_state=0, verbose=1
        ),
        "repeat the last day": NaiveForecaster(horizon=HORIZON, lookback=LOOKBACK, season_length=24),
        "repeat the last value": NaiveForecaster(horizon=HORIZON, lookback=LOOKBACK),
    }
    lines = []
    for label, model in models.items():
        scores = model.fit(train, validation=valid).evaluate(history_and_test)
        lines.append(f"{label:<24}{scores['mse']:>8.3f}{scores['mae']:>8.3f}")
    forecaster = models["SMambaForecaster"]
    print(f"\n{HORIZON} hours ahead, {scores['n_windows']} test windows, standardised values\n")
    print(f"{'':<24}{'MSE':>8}{'MAE':>8}")
    print("\n".join(lines))
    output = Path(options.output)
    forecaster.save(output / "model")
    display = ForecastDisplay.from_estimator(forecaster, test).plot(columns=list(frame.columns[-4:]))
    display.figure_.suptitle(f"{name}: {HORIZON} hours forecast from the {LOOKBACK} hours before", x=0.01, ha="left")
    display.figure_.savefig(output / "forecast.png", dpi=120)
    print(f"\nplot:  {output / 'forecast.png'}\nmodel: {output / 'model'}  (ssmseq.load reads it)")
    print(f"time:  {time.perf_counter() - started:.0f} s")
    return OK


def _series():
    """Return the name of the series, the frame and its splits: ETTh1, or the generated one if that cannot be had."""
    from ssmseq.datasets import DatasetNotFoundError, fetch_ett, make_transformer_load

    try:
        data = fetch_ett(variant="h1")
        return "ETTh1", data.frame, data.splits
    except DatasetNotFoundError as error:
        print(f"ETTh1 is not at hand ({error})\nusing the generated series make_transformer_load", file=sys.stderr)
    n_rows = 10_000
    ends = (int(0.7 * n_rows), int(0.8 * n_rows), n_rows)
    splits = {"train": (0, ends[0]), "validation": ends[:2], "test": ends[1:]}
    return "make_transformer_load", make_transformer_load(n_rows), splits

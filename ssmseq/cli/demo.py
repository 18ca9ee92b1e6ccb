"""`ssmseq demo`: a forecast of real data from nothing, with its errors beside two baselines and a plot."""

import argparse
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssmseq.cli.contract import INTERRUPTED, OK, Parser, add_common_options, print_json, remark
from ssmseq.cli.progress import fit_in_sight
from ssmseq.cli.tables import fetching
from ssmseq.datasets import DatasetNotFoundError

if TYPE_CHECKING:
    import pandas as pd

HORIZON = LOOKBACK = 96
DAY = 24
LABELS = {"seasonal_naive": "seasonal naive (24 hours)", "repeat_last": "repeat the last hour"}
GENERATED_ROWS = 10_000


@dataclass
class DemoData:
    """A series, its parts, and where it comes from."""

    name: str
    source: str
    frame: "pd.DataFrame"
    splits: dict[str, tuple[int, int]]

    def part(self, name: str, *, history: int = 0) -> "pd.DataFrame":
        """Return the rows of a part, and as many before it as serve as history only."""
        start, stop = self.splits[name]
        return self.frame.iloc[start - history : stop]


def run(argv: list[str]) -> int:
    """Run ``ssmseq demo``."""
    parser = Parser(
        prog="ssmseq demo",
        description="Train SMambaForecaster on ETTh1 (on a generated series where ETTh1 is neither found nor can be "
        "downloaded), forecast the test part, compare with two baselines, draw a forecast and save the model.",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path("demo-output"), help="for plot and model (%(default)s)"
    )
    parser.add_argument("--epochs", metavar="N", type=_positive, default=10, help="at most (%(default)s)")
    add_common_options(parser)
    options = parser.parse_args(argv)
    started = time.perf_counter()
    data = _load(options.quiet)
    options.output.mkdir(parents=True, exist_ok=True)

    forecaster = _forecaster(options.epochs)
    train, validation = data.part("train"), data.part("validation")
    remark(f"Training for at most {options.epochs} epochs on {len(train)} rows ...", quiet=options.quiet)
    outcome = fit_in_sight(forecaster, train, validation=validation, quiet=options.quiet)
    if outcome.interrupted:
        return INTERRUPTED
    remark("Forecasting the test part ...", quiet=options.quiet)
    errors = _errors(forecaster, data)
    plot = _plot(forecaster, data, options.output / "forecast.png")
    model = options.output / "model"
    forecaster.save(model)
    seconds = time.perf_counter() - started
    report = _print_report if not options.json else _print_document
    report(data, errors, plot, model, seconds)
    return OK


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _load(quiet: bool) -> DemoData:
    from ssmseq.datasets import fetch_ett, make_transformer_load

    try:
        with fetching(quiet=quiet):
            bunch = fetch_ett("h1")
    except DatasetNotFoundError as error:
        n_train, n_seen = GENERATED_ROWS * 7 // 10, GENERATED_ROWS * 8 // 10
        splits = {"train": (0, n_train), "validation": (n_train, n_seen), "test": (n_seen, GENERATED_ROWS)}
        source = f"generated, because ETTh1 could not be had: {error}"
        data = DemoData("make_transformer_load", source, make_transformer_load(GENERATED_ROWS), splits)
    else:
        data = DemoData("ETTh1", bunch.source, bunch.frame, bunch.splits)
    remark(f"Data: {data.name} ({data.source})", quiet=quiet)
    return data


def _forecaster(max_epochs: int):
    from ssmseq import SMambaForecaster

    return SMambaForecaster(  # the paper's settings for this data set and horizon
        horizon=HORIZON,
        lookback=LOOKBACK,
        d_model=256,
        d_state=2,
        n_layers=2,
        d_ff=256,
        learning_rate=7e-5,
        batch_size=32,
        max_epochs=max_epochs,
        patience=3,
        random_state=0,
    )


def _errors(forecaster, data: DemoData) -> dict[str, dict[str, float]]:
    """Measure the forecaster and the baselines on the same windows: every one with its targets in the test part."""
    from ssmseq import NaiveForecaster

    train = data.part("train")
    rivals = {
        "SMambaForecaster": forecaster,
        "seasonal_naive": NaiveForecaster(horizon=HORIZON, lookback=LOOKBACK, season_length=DAY).fit(train),
        "repeat_last": NaiveForecaster(horizon=HORIZON, lookback=LOOKBACK).fit(train),
    }
    test = data.part("test", history=LOOKBACK)
    return {name: rival.evaluate(test) for name, rival in rivals.items()}


def _plot(forecaster, data: DemoData, path: Path) -> Path | None:
    if importlib.util.find_spec("matplotlib") is None:
        remark('ssmseq: warning: no plot, because matplotlib is not installed: pip install "ssmseq[plot]"')
        return None
    import matplotlib

    matplotlib.use("Agg")  # a window is not wanted, and there may be no screen
    from ssmseq import ForecastDisplay

    display = ForecastDisplay.from_estimator(forecaster, data.part("test")).plot()
    display.figure_.suptitle(f"{data.name}: forecast of the last {HORIZON} hours of the test part", fontsize="medium")
    display.figure_.savefig(path, dpi=150)
    return path


def _print_report(data: DemoData, errors: dict, plot: Path | None, model: Path, seconds: float) -> None:
    n_windows = next(iter(errors.values()))["n_windows"]
    print(f"\nTest part of {data.name}: {n_windows} windows of {HORIZON} hours, scaled as the training part\n")
    print(f"{'':<26}    MSE    MAE")
    for name, found in errors.items():
        print(f"{LABELS.get(name, name):<26}  {found['mse']:.3f}  {found['mae']:.3f}")
    print(f"\nplot   {plot or 'none: matplotlib is not installed'}\nmodel  {model}\ntime   {seconds:.0f} s")


def _print_document(data: DemoData, errors: dict, plot: Path | None, model: Path, seconds: float) -> None:
    print_json(
        {
            "data": data.name,
            "source": data.source,
            "horizon": HORIZON,
            "lookback": LOOKBACK,
            "errors": errors,
            "plot": None if plot is None else str(plot),
            "model": str(model),
            "seconds": round(seconds, 3),
        }
    )

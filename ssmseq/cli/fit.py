"""`ssmseq fit`: train an estimator on a table and save it.

The estimator's options are its constructor's parameters, with the types of the signature and the text of the docstring.
"""

import argparse
import math
import os
import re
from pathlib import Path

from ssmseq.cli.contract import INTERRUPTED, OK, Parser, UsageError, add_common_options, print_json
from ssmseq.cli.progress import FitOutcome, fit_in_sight
from ssmseq.cli.tables import read_table

ESTIMATORS = (
    "SMambaForecaster",
    "KarmaForecaster",
    "TSM2Forecaster",
    "NaiveForecaster",
    "RidgeForecaster",
    "LinearForecaster",
)
NO_OPTIONS = {"callbacks", "logger", "trainer_params"}  # live objects of a program
NO_OPTIONS |= {"verbose"}  # --quiet and the kind of stderr decide
USAGE = "ssmseq fit ESTIMATOR DATA --save FOLDER [--validation FILE] [--config FILE] [estimator options]"
CONFIG_HELP = "YAML file of options, named as here; the command line wins over it"
DATA_HELP = (
    "CSV (also .gz) or Parquet file, - for CSV on stdin, or the name of a data set that `ssmseq data list` gives. One "
    "row per time step, one numeric column per variate; times in the column --time_col, or in the first one. Several "
    "series beneath each other are told apart by the column --id_col, or are in the columns unique_id, ds and y"
)


def run(argv: list[str]) -> int:
    """Run ``ssmseq fit``."""
    if not argv or argv[0] not in ESTIMATORS:
        return _without_estimator(argv)
    parser = _estimator_parser(argv[0])
    try:
        options = vars(parser.parse_args(_config_first(argv[1:])))
    except argparse.ArgumentError as error:
        raise UsageError(_readable(str(error)), parser.prog) from error
    save, quiet = Path(options["save"]), options.get("quiet", False)
    estimator_type = _estimator_type(argv[0])
    params = {k: v for k, v in options.items() if k in estimator_type().get_params()}
    _check_folder(save)
    estimator = estimator_type(**params)
    columns = (estimator.time_col, estimator.id_col)
    frame = read_table(options["data"], *columns, quiet=quiet)
    validation = options.get("validation")
    validation = None if validation is None else read_table(validation, *columns, quiet=quiet)
    outcome = fit_in_sight(estimator, frame, validation=validation, quiet=quiet)
    if not outcome.is_main_process:
        return OK
    estimator.save(save)
    _report(estimator, len(frame), outcome, save, as_json=options.get("json", False))
    return INTERRUPTED if outcome.interrupted else OK


def _without_estimator(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq fit",
        usage=USAGE,
        description="Train an estimator on a table and save it as a folder of config.json and model.safetensors.",
        epilog=f"`ssmseq fit {ESTIMATORS[0]} --help` lists the options of the estimator as well.",
    )
    parser.add_argument("estimator", metavar="ESTIMATOR", help=f"one of {', '.join(ESTIMATORS)}; comes first")
    _add_run_options(parser)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--print_config", action="store_true", help="print such a file and exit")
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return OK
    got = f"got {argv[0]!r}" if argv else "got nothing"
    raise UsageError(f"the first argument of fit must be one of {', '.join(ESTIMATORS)}; {got}", parser.prog)


def _estimator_type(name: str):
    import ssmseq

    return getattr(ssmseq, name)


def _estimator_parser(name: str):
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    parser = ArgumentParser(
        prog=f"ssmseq fit {name}", usage=USAGE.replace("ESTIMATOR", name), allow_abbrev=False, exit_on_error=False
    )
    # What is not given stays out of --print_config: a null in the file would count as given.
    _add_run_options(parser, default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", action=ActionConfigFile, help=CONFIG_HELP)
    parameters = set(_estimator_type(name)().get_params())
    skipped: set[str | int] = {p for p in parameters if p in NO_OPTIONS or p == "random_state"}
    parser.add_class_arguments(_estimator_type(name), skip=skipped)
    if "random_state" in parameters:  # the signature allows generators, which cannot be written on a command line
        parser.add_argument("--random_state", type=int | None, default=None, help="Seed that repeats a run.")
    return parser


def _add_run_options(parser, *, default=None) -> None:
    parser.add_argument("data", metavar="DATA", type=str, default=default, help=DATA_HELP)
    parser.add_argument(
        "--save", metavar="FOLDER", type=str, required=True, default=default, help="folder of the model"
    )
    parser.add_argument(
        "--validation",
        metavar="FILE",
        type=str,
        default=default,
        help="rows for early stopping, as DATA; by default the last --validation_fraction of DATA",
    )
    add_common_options(parser, default=default)


def _config_first(argv: list[str]) -> list[str]:
    """Move --config to the front, so that what the command line says wins wherever --config stands."""
    first, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            (first if word.startswith("--config=") else rest).append(word)
    return first + rest


def _readable(message: str) -> str:
    """Say in the words of a command line which option has a wrong value; other messages stay as they are."""
    option = re.search(r'Parser key "(\w+)"', message)
    expected = re.findall(r"Expected an? (.+?)(?:\. Got value|$)", message, re.MULTILINE)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if not (option and expected and value):
        return message
    kinds = [re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", e) for e in expected]
    kinds = [kind.replace("NoneType", "null").replace("Sequence", "list") for kind in kinds]
    kinds = [re.sub(r"typing\.Literal\[(.*)\]", r"\1", kind) for kind in kinds]
    return f"--{option[1]} must be {' or '.join(dict.fromkeys(kinds))}, got {value[1]!r}"


def _check_folder(folder: Path) -> None:
    """Find out before the training whether the model can be saved after it."""
    nearest = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"--save {folder}: {nearest} is not a folder that can be written to")


def _report(estimator, n_rows: int, outcome: FitOutcome, folder: Path, *, as_json: bool) -> None:
    history, compared = (getattr(estimator, name, None) for name in ("history_", "cv_results_"))
    losses = [] if history is None or "valid_loss" not in history else history["valid_loss"].tolist()
    errors = losses if compared is None or "valid_mse" not in compared else compared["valid_mse"].tolist()
    best = min((x for x in errors if math.isfinite(x)), default=None)
    epochs = 0 if history is None else len(history)
    name = type(estimator).__name__
    if as_json:
        document = {
            "estimator": name,
            "rows": n_rows,
            "columns": estimator.n_features_in_,
            "epochs": epochs,
            "best_validation_loss": best,
            "seconds": round(outcome.seconds, 3),
            "interrupted": outcome.interrupted,
            "folder": str(folder),
        }
        print_json(document)
        return
    size = f"rows {n_rows}, columns {estimator.n_features_in_}, epochs {epochs}"
    print(f"{name}: {size}, {outcome.seconds:.1f} s")
    if best is not None:
        epoch = f" in epoch {losses.index(best) + 1}" if losses else ""
        chosen = f" with lookback={estimator.lookback_}, alpha={estimator.alpha_}" if compared is not None else ""
        print(f"best validation loss {best:.4f}{epoch}{chosen}")
    print(f"saved in {folder}")

"""`ssmseq fit`: every constructor parameter of the estimator is an option, by its own name."""

import argparse
import sys
import time
import warnings

ESTIMATORS = ("SMambaForecaster", "NaiveForecaster")
LIVE_OBJECTS: set[str | int] = {"callbacks", "logger", "trainer_params"}  # cannot be written on a command line


def run(words: list[str]) -> int:
    """Run the command; return the exit code."""
    if not words or words[0] not in ESTIMATORS:
        _choose_estimator(words)
    parser = _parser(words[0])
    options = parser.parse_args(words[1:])
    return _fit(words[0], options)


def _choose_estimator(words: list[str]) -> None:
    """Print help or the error, without loading any estimator."""
    parser = argparse.ArgumentParser(
        prog="ssmseq fit",
        usage="ssmseq fit ESTIMATOR DATA --save FOLDER [options]",
        description="Train an estimator and save it.",
        epilog="`ssmseq fit ESTIMATOR --help` lists the options of that estimator.",
    )
    parser.add_argument("estimator", choices=ESTIMATORS, metavar="ESTIMATOR", help=", ".join(ESTIMATORS))
    parser.parse_args(words[:1])
    parser.error("an estimator is needed: " + ", ".join(ESTIMATORS))


def _parser(name: str):
    from jsonargparse import ArgumentParser

    import ssmseq

    parser = ArgumentParser(prog=f"ssmseq fit {name}", description="Train, and save to a folder.")
    parser.add_argument("data", type=str, help="CSV or Parquet file, - for CSV on stdin, or the name of a data set")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--save", type=str, required=True, metavar="FOLDER", help="where the model is saved")
    parser.add_argument("--validation", type=str | None, default=None, metavar="FILE", help="frame for early stopping")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_class_arguments(getattr(ssmseq, name), skip=LIVE_OBJECTS)
    return parser


def _fit(name: str, options) -> int:
    import ssmseq
    from ssmseq.cli import INTERRUPTED, OK
    from ssmseq.cli.tables import print_json, read_table

    names = set(getattr(ssmseq, name)._get_param_names()) - LIVE_OBJECTS
    estimator = getattr(ssmseq, name)(**{k: options[k] for k in names})
    data = read_table(options.data, options.time_col)
    validation = None if options.validation is None else read_table(options.validation, options.time_col)
    if "verbose" in names:
        estimator.set_params(verbose=0 if options.quiet else max(options.verbose, 1))
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        estimator.fit(data, validation=validation)
    interrupted = [str(w.message) for w in caught if "interrupted" in str(w.message)]
    for warning in caught:
        print(f"ssmseq: warning: {warning.message}", file=sys.stderr)
    history = getattr(estimator, "history_", None)
    losses = [] if history is None else history.get("valid_loss", [])
    estimator.save(options.save)
    summary = {
        "estimator": name,
        "rows": len(data),
        "columns": [str(c) for c in estimator.layout_.columns],
        "epochs": 0 if history is None else len(history),
        "best_valid_loss": float(min(losses)) if len(losses) else None,
        "seconds": round(time.perf_counter() - started, 2),
        "folder": options.save,
    }
    if options.json:
        print_json(summary)
    else:
        print("\n".join(f"{key}: {', '.join(v) if isinstance(v, list) else v}" for key, v in summary.items()))
    return INTERRUPTED if interrupted else OK

"""`ssmseq ecg`: fit classifiers of electrocardiograms, predict with them, evaluate them, report on them."""

import argparse
import contextlib
import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssmseq.cli.contract import (
    FAILURE,
    INTERRUPTED,
    OK,
    Parser,
    UsageError,
    add_common_options,
    add_engine_options,
    check_engine,
    print_json,
    remark,
    spread,
)
from ssmseq.cli.ecg_data import Recording, add_data_options, read_labelled, recordings
from ssmseq.cli.tables import PARQUET

if TYPE_CHECKING:
    import numpy as np

ACTIONS = {
    "fit": "train a classifier on recordings and save it",
    "predict": "write a table with the probability of each label for each recording",
    "evaluate": "measure a saved model on labelled recordings, with intervals by patient",
    "report": "write an HTML page about a model, or about one recording",
}
MODEL_HELP = "folder that `ssmseq ecg fit --save` or estimator.save made"
FOLDS_HELP = "folds of PTB-XL, as in 9,10 (default: 10, which `ssmseq ecg fit` leaves out)"


def run(argv: list[str]) -> int:
    """Run ``ssmseq ecg``."""
    if argv and argv[0] in ACTIONS:
        from ssmseq.cli import ecg_evaluate, ecg_fit

        return {"fit": ecg_fit.run, "predict": _predict, "evaluate": ecg_evaluate.run, "report": _report}[argv[0]](
            argv[1:]
        )
    width = max(map(len, ACTIONS))
    actions = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in ACTIONS.items())
    parser = Parser(
        prog="ssmseq ecg",
        usage="ssmseq ecg ACTION [options]",
        description=f"Classify electrocardiograms. Not a medical device.\n\nactions:\n{actions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=ACTIONS, help="; ".join(f"{k}: {v}" for k, v in ACTIONS.items()))
    parser.parse_args(argv)
    raise AssertionError("a known action was dispatched above")


def load_classifier(folder: str):
    """Load a saved model; ValueError if it is none of electrocardiograms."""
    import ssmseq

    estimator = ssmseq.load(folder)
    if not isinstance(estimator, ssmseq.ECGMambaClassifier):
        raise ValueError(f"{folder} holds a {type(estimator).__name__}: give the folder of an ECGMambaClassifier")
    return estimator


class Outcome(NamedTuple):
    """What became of one recording."""

    name: str
    probabilities: "np.ndarray | None" = None  # (labels,)
    reason: str | None = None  # "missing", "unreadable" or "refused", where there are no probabilities
    message: str | None = None


def outcomes(estimator, todo: Sequence[Recording], options) -> Iterator[Outcome]:
    """Yield what the model says of each recording, in batches, so that memory does not grow with their number.

    Of the options, `batch` is the size of one, `engine` and `workers` say where it is done, and `quiet` shows no bar.

    Warnings are collected into one at the end: thousands of recordings may have the same fault.
    """
    from tqdm import tqdm

    told: dict[str, None] = {}
    chunks = [todo[i : i + options.batch] for i in range(0, len(todo), options.batch)]
    found = spread(_batch, estimator, chunks, options)
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log needs no line for each tenth of one
    with tqdm(total=len(todo), unit="record", file=sys.stderr, disable=options.quiet, mininterval=interval) as bar:
        for chunk in chunks:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                outcomes_of_chunk = next(found)
            told |= dict.fromkeys(str(warning.message) for warning in seen)
            yield from outcomes_of_chunk
            bar.update(len(chunk))
    if told:
        more = f" (and {len(told) - 3} more warnings)" if len(told) > 3 else ""
        warnings.warn("; ".join(list(told)[:3]) + more, stacklevel=2)


def _batch(estimator, chunk: Sequence[Recording]) -> list[Outcome]:
    read, failed = {}, {}
    for i, recording in enumerate(chunk):
        try:
            read[i] = recording.read()
        except (OSError, ValueError, TypeError, ImportError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            failed[i] = Outcome(recording.name, None, reason, " ".join(str(error).split()))
    try:
        found = dict(zip(read, estimator.predict_proba(list(read.values())), strict=True)) if read else {}
    except ValueError:  # one by one, to find which of them it is
        found = {}
        for i, record in read.items():
            try:
                found[i] = estimator.predict_proba([record])[0]
            except ValueError as error:
                failed[i] = Outcome(chunk[i].name, None, "refused", " ".join(str(error).split()))
    return [failed[i] if i in failed else Outcome(chunk[i].name, found[i]) for i in range(len(chunk))]


def _predict(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq ecg predict",
        description="Write one row for each recording: its name, the probability of each label (p_LABEL), the "
        "predicted labels joined by ';', and for a recording without them a reason (missing, unreadable or refused) "
        "and a message. The exit code is 1 if there is any such. CSV is written as it comes, so that an interrupted "
        "run leaves the rows that it has.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_data_options(parser, labelled=False)
    parser.add_argument(
        "--output", metavar="FILE", help=".csv, .parquet or .json by its suffix; by default CSV on stdout"
    )
    parser.add_argument(
        "--thresholds",
        metavar="P",
        type=float,
        nargs="+",
        help="from which probabilities on a label is predicted: one number, or one for each label in the order of the "
        "columns (default: the model's)",
    )
    parser.add_argument("--batch", metavar="N", type=int, default=32, help="recordings in memory at once (default: 32)")
    add_engine_options(parser, workers="one for each GPU, or else for each core")
    add_common_options(parser)
    options = parser.parse_args(argv)
    check_engine(options, parser.prog)
    if options.batch < 1:
        parser.error(f"--batch must be at least 1, got {options.batch}")
    suffix = Path(options.output).suffix if options.output else ".csv"
    if suffix not in (".csv", ".json", *PARQUET):
        parser.error(f"--output must end in .csv, .json or .parquet, got {options.output!r}")
    _check_output(options.output, suffix)
    estimator = load_classifier(options.model)
    if options.thresholds is not None:
        _set_thresholds(estimator, options.thresholds, parser.prog)
    todo = recordings(vars(options), sampling_rate=estimator.preprocessing_.sampling_rate)
    return _write_predictions(estimator, todo, options, suffix)


def _set_thresholds(estimator, thresholds: list[float], prog: str) -> None:
    from ssmseq.ecg.metrics import check_thresholds

    if estimator.exclusive_:
        raise UsageError(
            "--thresholds is for labels that may hold together; this model gives the likeliest class", prog
        )
    given = thresholds[0] if len(thresholds) == 1 else thresholds
    try:
        estimator.thresholds_ = check_thresholds(given, len(estimator.classes_))
    except ValueError as error:
        raise UsageError(str(error), prog) from error


def _write_predictions(estimator, todo: list[Recording], options, suffix: str) -> int:
    kept: list[Outcome] = []
    n_done = n_failed = 0
    code = OK
    streamed = suffix == ".csv" and (options.output is not None or not options.json)
    output: Any = options.output
    with contextlib.ExitStack() as stack:
        target = sys.stdout
        if streamed and options.output:
            target = stack.enter_context(open(options.output, "w", encoding="utf-8", newline=""))
        table = csv.DictWriter(target, _columns(estimator), lineterminator="\n")
        if streamed:
            table.writeheader()
        try:
            for outcome in outcomes(estimator, todo, options):
                n_done, n_failed = n_done + 1, n_failed + (outcome.reason is not None)
                if streamed:
                    table.writerow(_flat_row(estimator, outcome))
                    target.flush()
                else:
                    kept.append(outcome)
        except KeyboardInterrupt:
            remark(f"ssmseq: interrupted; {n_done} of {len(todo)} recordings are written")
            code = INTERRUPTED
    rows = [_row(estimator, outcome) for outcome in kept]
    if suffix in PARQUET:
        _write_parquet([_flat_row(estimator, outcome) for outcome in kept], _columns(estimator), output)
    if suffix == ".json":
        text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
        Path(output).write_text(text + "\n", encoding="utf-8")
    if options.json:
        predictions = {"predictions": rows if options.output is None else None, "output": options.output}
        labels = [str(label) for label in estimator.classes_]
        print_json({"model": options.model, "labels": labels, "records": n_done, "failed": n_failed, **predictions})
    if options.output:
        remark(f"{n_done} recordings, {n_failed} failed: {options.output}", quiet=options.quiet)
    return code or (FAILURE if n_failed else OK)


def _check_output(path: str | None, suffix: str) -> None:
    """Find out before the predictions whether they can be written after them."""
    if path is not None and not (Path(path).absolute().parent.is_dir() and not Path(path).is_dir()):
        raise ValueError(f"--output {path}: its folder does not exist, or it is a folder itself; name a file to write")
    if suffix in PARQUET and not any(map(find_spec, ("pyarrow", "polars"))):
        raise ImportError(f"--output {path}: writing Parquet needs pyarrow or polars: pip install pyarrow")


def _write_parquet(rows: list[dict], columns: list[str], path: str) -> None:
    values = {name: [row.get(name) for row in rows] for name in columns}
    if find_spec("pyarrow"):
        import pandas as pd

        table = pd.DataFrame(values)
        table.astype({name: float for name in columns if name.startswith("p_")}).to_parquet(path, index=False)
    else:
        import polars as pl

        kinds = {name: pl.Float64 if name.startswith("p_") else pl.String for name in columns}
        pl.DataFrame(values, schema=kinds).write_parquet(path)


def predicted_labels(estimator, probabilities: "np.ndarray") -> list[str]:
    """Return the names of the labels that one recording is predicted to have."""
    if estimator.exclusive_:
        return [str(estimator.classes_[probabilities.argmax()])]
    return [str(label) for label in estimator.classes_[probabilities >= estimator.thresholds_]]


def _row(estimator, outcome: Outcome) -> dict[str, Any]:
    found = outcome.probabilities
    names = [str(label) for label in estimator.classes_]
    return {
        "record": outcome.name,
        "probabilities": None if found is None else dict(zip(names, map(float, found), strict=True)),
        "predicted": None if found is None else predicted_labels(estimator, found),
        "reason": outcome.reason,
        "message": outcome.message,
    }


def _columns(estimator) -> list[str]:
    return ["record", *(f"p_{label}" for label in estimator.classes_), "predicted", "reason", "message"]


def _flat_row(estimator, outcome: Outcome) -> dict[str, Any]:
    row = _row(estimator, outcome)
    probabilities, predicted = row.pop("probabilities"), row["predicted"]
    row["predicted"] = None if predicted is None else ";".join(predicted)
    return row | {f"p_{label}": value for label, value in (probabilities or {}).items()}


def _report(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq ecg report",
        description="Write a page about a model on labelled recordings, or with --record about one recording.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_data_options(parser, labelled=True)
    parser.add_argument("--folds", help=FOLDS_HELP)
    parser.add_argument("--record", metavar="NAME", help="name of one recording, as `ssmseq ecg predict` writes it")
    parser.add_argument("--output", metavar="FILE", required=True, help="the page, such as report.html")
    parser.add_argument("--title", help="of the page")
    add_common_options(parser)
    options = parser.parse_args(argv)

    from ssmseq.ecg import report

    estimator = load_classifier(options.model)
    rate = estimator.preprocessing_.sampling_rate
    if options.record is None:
        data = evaluation_part(read_labelled(vars(options), sampling_rate=rate), options.folds)
        y = data.targets(exclusive=estimator.exclusive_)
        report.write_model_report(estimator, data.records, y, options.output, title=options.title)
    else:
        found = [r for r in recordings(vars(options), sampling_rate=rate) if r.name == options.record]
        if len(found) != 1:
            raise ValueError(f"--record {options.record}: DATA has {len(found)} recordings of that name, not one")
        report.write_record_report(estimator, found[0].read(), options.output, title=options.title)
    if options.json:
        print_json({"model": options.model, "record": options.record, "output": options.output})
    remark(f"written: {options.output}", quiet=options.quiet)
    return OK


def evaluation_part(data, folds: str | None):
    """Return the recordings that a model is tested on: of PTB-XL some folds, otherwise all."""
    from ssmseq.cli.ecg_data import parse_folds

    return data if data.folds is None else data.of_folds(parse_folds(folds or "10"))

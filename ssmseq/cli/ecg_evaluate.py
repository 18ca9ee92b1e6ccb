"""`ssmseq ecg evaluate`: how good a saved model is on labelled recordings."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from ssmseq.cli import ecg
from ssmseq.cli.contract import FAILURE, OK, Parser, add_common_options, print_json, remark
from ssmseq.cli.ecg_data import Labelled, Recording, add_data_options, read_labelled

if TYPE_CHECKING:
    import numpy as np

NAMES = {
    "macro_auroc": "macro AUROC",
    "macro_auprc": "macro AUPRC",
    "macro_f1": "macro F1",
    "subset_accuracy": "all labels right",
    "challenge2020": "CinC 2020 challenge metric",
    "challenge2021": "CinC 2021 challenge metric",
    "cinc2017": "CinC 2017 F1 of N, A and O",
}


def run(argv: list[str]) -> int:
    """Run ``ssmseq ecg evaluate``."""
    parser = Parser(
        prog="ssmseq ecg evaluate",
        description="Print macro AUROC, AUPRC, F1, the share of recordings all of whose labels are right, the metrics "
        "of the challenges whose labels the model has, and a table of the labels. Intervals are percentiles over "
        "resampled patients. Recordings that the model refuses are named on stderr, and the exit code is then 1.",
    )
    parser.add_argument("model", metavar="MODEL", help=ecg.MODEL_HELP)
    add_data_options(parser, labelled=True)
    parser.add_argument("--folds", help=ecg.FOLDS_HELP)
    parser.add_argument("--resamples", metavar="N", type=int, default=1000, help="of the bootstrap (default: 1000)")
    parser.add_argument("--level", metavar="PERCENT", type=float, default=95.0, help="of the intervals (default: 95)")
    parser.add_argument("--batch", metavar="N", type=int, default=32, help="recordings scored at once (default: 32)")
    add_common_options(parser)
    parser.set_defaults(engine="process")  # the recordings are in memory here
    options = parser.parse_args(argv)
    for name in ("resamples", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 < options.level < 100:
        parser.error(f"--level must be above 0 and below 100, got {options.level:g}")
    estimator = ecg.load_classifier(options.model)
    data = read_labelled(vars(options), sampling_rate=estimator.preprocessing_.sampling_rate)
    data = ecg.evaluation_part(data, options.folds)
    document = evaluate(estimator, data, options)
    for failure in document["failures"]:
        remark(f"ssmseq: {failure['reason']}: {failure['record']}: {failure['message']}")
    print_json({"model": options.model, **document}) if options.json else _print(document)
    return FAILURE if document["failures"] else OK


def evaluate(estimator, data: Labelled, options) -> dict[str, Any]:
    """Return the figures of a model as plain values."""
    import numpy as np

    from ssmseq.ecg.evaluation import Evaluation
    from ssmseq.ecg.inputs import encode_targets, read_groups

    truth = encode_targets(data.targets(exclusive=estimator.exclusive_), estimator.classes_, estimator.exclusive_)
    names = [str(record.record_id or i) for i, record in enumerate(data.records)]
    todo = [Recording(name, partial(data.records.__getitem__, i)) for i, name in enumerate(names)]
    found = list(ecg.outcomes(estimator, todo, options))
    failures = [o for o in found if o.probabilities is None]
    kept = [i for i, o in enumerate(found) if o.probabilities is not None]
    if not kept:
        raise ValueError(f"the model refuses all {len(found)} recordings; the first: {failures[0].message}")
    probabilities = np.stack([o.probabilities for o in found if o.probabilities is not None])
    records = [data.records[i] for i in kept]
    groups, labels = read_groups(None, records), [str(label) for label in estimator.classes_]
    decisions = _decisions(estimator, probabilities)
    result = Evaluation(records, labels, truth[kept], probabilities, decisions, groups, estimator.exclusive_)
    metrics, note = _measure(result, options)
    rows = result.table(estimator.thresholds_).reset_index().to_dict("records")
    return {
        "protocol": data.protocol,
        "records": len(kept),
        "patients": None if groups is None else len(np.unique(groups)),
        "metrics": metrics,
        "level": options.level,
        "note": note,
        "labels": [{str(name): _plain(value) for name, value in row.items()} for row in rows],
        "failures": [{"record": o.name, "reason": o.reason, "message": o.message} for o in failures],
    }


def _decisions(estimator, probabilities: "np.ndarray") -> "np.ndarray":
    """Return what is predicted, (n, labels) of 0 and 1; of classes the most probable."""
    import numpy as np

    if estimator.exclusive_:
        return np.eye(probabilities.shape[1])[probabilities.argmax(1)]
    return (probabilities >= estimator.thresholds_).astype(float)


def _measure(result, options) -> tuple[dict[str, Any], str | None]:
    """Return each metric with its interval, and why there are no intervals."""
    import numpy as np

    from ssmseq.ecg.metrics import bootstrap_interval

    metrics = _metrics(result.labels, exclusive=result.exclusive)

    def values(y_true: "np.ndarray", stacked: "np.ndarray") -> "np.ndarray":
        return np.array([metric(y_true, stacked[..., 0], stacked[..., 1]) for metric in metrics.values()])

    stacked = np.stack((result.prob, result.pred), -1)
    point, note = values(result.truth, stacked), None
    low: Any = np.full(len(metrics), np.nan)
    high: Any = low
    try:
        _, low, high = bootstrap_interval(
            values, result.truth, stacked, groups=result.groups, n_resamples=options.resamples, level=options.level
        )
    except ValueError as error:  # of too few patients; the figures themselves stand
        note = f"no intervals: {error}"
    rows = zip(metrics, point, low, high, strict=True)
    return {name: {"value": _plain(p), "low": _plain(a), "high": _plain(b)} for name, p, a, b in rows}, note


def _metrics(labels: list[str], *, exclusive: bool) -> dict[str, Any]:
    """Return the metrics that the labels allow, each of truth, probabilities and decisions."""
    import numpy as np

    from ssmseq.ecg import metrics
    from ssmseq.ecg.challenge import cinc2017_score, scored_columns

    found = {
        "macro_auroc": lambda y, p, d: metrics.macro_auroc(y, p),
        "macro_auprc": lambda y, p, d: metrics.macro_auprc(y, p),
        "macro_f1": lambda y, p, d: metrics.macro_f_measure(y, d),
        "subset_accuracy": lambda y, p, d: metrics.subset_accuracy(y, d),
    }
    if exclusive:
        if {"N", "A", "O"} <= set(labels) <= {"N", "A", "O", "~"}:
            classes = np.array(labels)
            found["cinc2017"] = lambda y, p, d: cinc2017_score(classes[y.argmax(1)], classes[d.argmax(1)])
        return found
    for year in (2020, 2021):
        try:
            columns = scored_columns(labels, year=year)
        except ValueError:  # other labels than the challenges'
            continue
        found[f"challenge{year}"] = lambda y, p, d, columns=columns: columns.score(y, d)
    return found


def _plain(value):
    if isinstance(value, str):
        return value
    return None if math.isnan(value) else value.item() if hasattr(value, "item") else value


def _print(document: dict[str, Any]) -> None:
    import pandas as pd

    from ssmseq.ecg.challenge_labels import scored_labels

    patients = "" if document["patients"] is None else f" of {document['patients']} patients"
    print(f"{document['records']} recordings{patients}, {len(document['labels'])} labels ({document['protocol']})")
    for name, found in document["metrics"].items():
        value = "undefined" if found["value"] is None else f"{found['value']:.4f}"
        interval = "" if found["low"] is None else f"  [{found['low']:.4f}, {found['high']:.4f}]"
        print(f"{NAMES[name]:<28} {value}{interval}")
    print(document["note"] or f"in brackets: {document['level']:g} % intervals over resampled patients")
    table = pd.DataFrame(document["labels"]).replace({"label": scored_labels()})  # abbreviations for SNOMED CT codes
    print(table.set_index("label").to_string(float_format="%.3f", na_rep="-"))

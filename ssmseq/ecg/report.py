"""Reports as one HTML page: of a classifier on recordings with known labels, and of one recording."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from ssmseq.base import check_choice, check_number
from ssmseq.ecg.curves import KINDS, LabelCurvesDisplay
from ssmseq.ecg.displays import ECGDisplay, SaliencyDisplay
from ssmseq.ecg.evaluation import OF_LABELS, Evaluation, evaluate
from ssmseq.ecg.page import (
    Bar,
    Cell,
    Section,
    Table,
    check_packages,
    new_axes,
    number,
    picture,
    with_interval,
    write_page,
)
from ssmseq.ecg.paper import LAYOUTS
from ssmseq.ecg.quality import quality_report
from ssmseq.ecg.records import Record
from ssmseq.plots import COLORS

PAPER_SECONDS = 10.0
MOST_LISTED = 20  # recordings whose leads are listed
_CURVES = {
    "roc": "Receiver operating characteristic: how many positive records are found at the price of how many false "
    "alarms.",
    "precision_recall": "Precision over recall; dotted is the share of positive records, which chance gives.",
    "reliability": "Reliability: the share of positive records where the model gives a probability, in ten bins of "
    "equally many records.",
}
_UNNAMED = "Not measured: the model was fitted on arrays without lead names, so that neither leads nor units are known."
_SALIENCY = (
    "Shading shows where the logit of a label changes most with the signal (gradient times input, absolute). It is "
    "about the model and not about the heart, and no proof that the model is right for the right reason."
)


def write_model_report(
    estimator,
    X,
    y,
    path: str | os.PathLike,
    *,
    groups=None,
    title: str | None = None,
    n_resamples: int = 1000,
    n_worst: int = 20,
    random_state=0,
) -> Path:
    """Write how well a classifier predicts recordings whose labels are known, as one HTML page.

    What the model is, how its training went, figures of each label with patient-clustered bootstrap intervals of 95 %,
    curves, reliability, the quality of the recordings and the worst errors. The page loads nothing.

    Parameters
    ----------
    estimator : fitted ECGMambaClassifier
    X, y, groups : as in `fit`
        Recordings that the model was not trained on, their labels and patients. Labels may be unknown (NaN).
    path : str or path
        Of the page. Folders are made.
    title : str, optional
    n_resamples : int, default=1000
        Of the bootstrap.
    n_worst : int, default=20
        Wrong decisions to list.
    random_state : int, generator or None, default=0
        Of the bootstrap.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        If Jinja2 or matplotlib is not installed.
    NotFittedError
        If `fit` has not run.
    ValueError
        If recordings or labels are unlike those of `fit`, or a parameter is out of range.

    Notes
    -----
    Intervals of a label are from draws of patients that have a record of each of its classes; those over all labels
    from draws that keep every class of every label. Where no such draws are found, the page says so.
    """
    check_packages()
    check_number("n_resamples", n_resamples, minimum=1, integer=True)
    check_number("n_worst", n_worst, minimum=0, integer=True)
    found = evaluate(estimator, X, y, groups)
    n_patients = "unknown patients" if found.groups is None else f"{len(np.unique(found.groups))} patients"
    lead = [
        f"{type(estimator).__name__} on {len(found.records)} recordings of {n_patients}, {len(found.labels)} "
        f"{'classes, one for each recording' if found.exclusive else 'labels'}.",
        "The figures hold for recordings that the model was not trained on. If some of these were, they are too good.",
    ]
    sections = [
        _scores_section(estimator, found, n_resamples, random_state),
        _curves_section(found),
        _worst_section(found, n_worst),
        _quality_section(estimator, found.records),
        *_model_sections(estimator),
    ]
    return write_page(path, title or "How well the model predicts", lead, sections)


def write_record_report(
    estimator,
    record,
    path: str | os.PathLike,
    *,
    title: str | None = None,
    n_labels: int = 2,
    start: float = 0.0,
    layout: str = "auto",
) -> Path:
    """Write what a classifier says of one recording, as one HTML page that loads nothing.

    What is known of the patient, the probability of each label with its threshold, the recording on paper with the
    saliency of the most probable labels, and the quality of each lead.

    Parameters
    ----------
    estimator : fitted ECGMambaClassifier
    record : Record, or array (leads, times) or (times,) where the estimator was fitted on arrays
    path : str or path
        Of the page. Folders are made.
    title : str, optional
    n_labels : int, default=2
        How many labels to show the saliency of.
    start : float, default=0.0
        Of the ten seconds that are drawn, in seconds from the beginning. Probabilities are of the whole recording.
    layout : {"auto", "12-lead", "stack"}
        See `ECGDisplay.plot`.

    Returns
    -------
    Path

    Raises
    ------
    ImportError
        If Jinja2 or matplotlib is not installed.
    NotFittedError
        If `fit` has not run.
    ValueError
        If the recording is unlike those of `fit`, or a parameter is out of range.
    """
    from ssmseq.ecg.saliency import as_batch, read_one

    check_packages()
    check_number("n_labels", n_labels, minimum=1, integer=True)
    check_choice("layout", layout, LAYOUTS)
    prob = estimator.predict_proba(as_batch(record))[0]
    found = read_one(estimator, record)
    check_number("start", start, minimum=0, below=found.duration)
    order = np.argsort(-prob, kind="stable")
    sheets = []
    for j in order[:n_labels]:
        label = estimator.classes_.tolist()[j]
        stop = start + PAPER_SECONDS
        saliency = SaliencyDisplay.from_estimator(estimator, record, label=label, start=start, stop=stop)
        display = ECGDisplay(found, saliency=saliency)
        ax = new_axes(*display.paper_size(start=start, layout=layout), margins=False)
        sheets.append(picture(f"{label}, probability {prob[j]:.3f}.", display.plot(start=start, layout=layout, ax=ax)))
    sections = [
        Section("Patient and recording", tables=[_patient_table(found)]),
        _probabilities_section(estimator, prob, order),
        Section("Recording", text=[_SALIENCY, *_shown(found, start)], sheets=sheets),
        _leads_section(estimator, found),
    ]
    name = "a recording" if found.record_id is None else found.record_id
    return write_page(path, title or f"What the model says of {name}", [], sections)


def _scores_section(estimator, found: Evaluation, n_resamples: int, random_state) -> Section:
    table: Any = found.table(estimator.thresholds_)
    bounds: Any
    bounds, reasons = found.label_intervals(n_resamples, random_state)
    overall, reason = found.overall(n_resamples, random_state)
    rows = []
    for label, row in table.iterrows():
        positive = Cell(f"{row.prevalence * row.n:.0f}", f"{row.prevalence:.1%}") if row.n else Cell("0")
        figures = [with_interval(row[name], *bounds.loc[label, name]) for name in OF_LABELS]
        others = [Cell(number(row[name])) for name in ("ppv", "threshold", "brier", "ece")]
        rows.append([label, Cell(f"{row.n:.0f}"), positive, *figures, *others])
    heads = ["label", "records", "positive", "AUROC", "AUPRC", "F1", "sensitivity", "specificity", "PPV", "threshold"]
    caption = "Each label, with intervals of 95 % below. PPV is the positive predictive value; the Brier score and the "
    caption += "expected calibration error (ECE) are better the lower they are."
    means = Table(
        "All labels. Macro figures are means over the labels that have one.",
        ["", *overall.index],
        [["all labels", *(with_interval(*row) for row in overall.to_numpy())]],
    )
    alarms = [f"No interval for {name}: {why}." for name, why in reasons.items()]
    alarms += [f"No intervals for the figures of all labels: {reason}."] if reason else []
    unit = "recordings, since no patients are known" if found.groups is None else "whole patients"
    text = [f"Intervals: percentiles 2.5 and 97.5 of {n_resamples} bootstrap draws of {unit}."]
    if found.exclusive:
        text.append(
            "Classes exclude each other: the most probable one is predicted, and each is judged against the rest."
        )
    return Section("Scores", text, alarms, [means, Table(caption, [*heads, "Brier", "ECE"], rows)])


def _curves_section(found: Evaluation) -> Section:
    pictures = []
    for kind in KINDS:
        display = LabelCurvesDisplay.from_predictions(found.truth, found.prob, labels=found.labels, kind=kind)
        ax = new_axes(*display.size(display.default_labels))
        pictures.append(picture(_CURVES[kind], display.plot(ax=ax)))
    return Section("Curves", pictures=pictures)


def _worst_section(found: Evaluation, n_worst: int) -> Section:
    worst: Any = found.worst(n_worst)
    words = {1: "missed", 0: "false alarm"}
    rows = [
        [row.record, row.label, words[row.truth], Cell(number(row.probability, 4)), Cell(number(row.loss, 2))]
        for row in worst.itertuples()
    ]
    wrong = int(((found.pred != found.truth) & ~np.isnan(found.truth)).sum())
    known = int((~np.isnan(found.truth)).sum())
    caption = f"The {len(rows)} of {wrong} wrong decisions that have the largest loss, of {known} decisions in all."
    return Section(
        "Worst errors", tables=[Table(caption, ["recording", "label", "error", "probability", "loss"], rows)]
    )


def _quality_section(estimator, records: list[Record]) -> Section:
    if not estimator.layout_.named:
        return Section("Quality of the recordings", [_UNNAMED])
    report: Any = quality_report([_named(record, i) for i, record in enumerate(records)])
    bad = report[report["verdict"] != "good"]
    reasons = bad.assign(reason=bad["verdict"].str.split(", ")).explode("reason")
    counts = reasons.groupby("reason")["record"].agg(["size", "nunique"]).sort_values("size", ascending=False)
    rows = [[reason, Cell(str(row["size"])), Cell(str(row["nunique"]))] for reason, row in counts.iterrows()]
    text = [
        f"{len(report) - len(bad)} of {len(report)} leads are good; {bad['record'].nunique()} of {len(records)} "
        "recordings have one that is not. See ssmseq.ecg.quality.quality_report for what the words mean."
    ]
    tables = [Table("What is wrong.", ["verdict", "leads", "recordings"], rows)] if rows else []
    listed = [
        [record, ", ".join(f"{row.lead} ({row.verdict})" for row in leads.itertuples())]
        for record, leads in sorted(bad.groupby("record"), key=lambda pair: -len(pair[1]))[:MOST_LISTED]
    ]
    if listed:
        tables.append(Table(f"The {len(listed)} recordings with the most such leads.", ["recording", "leads"], listed))
    return Section("Quality of the recordings", text, tables=tables)


def _model_sections(estimator) -> list[Section]:
    weights = list(estimator.network_.parameters())
    size = sum(w.numel() for w in weights)
    bytes_ = sum(w.numel() * w.element_size() for w in weights)
    facts = [
        ["network", f"encoder {estimator.encoder}, {size:,} weights, {bytes_ / 1e6:.2f} MB"],
        *([] if estimator.n_networks == 1 else [["networks", f"{estimator.n_networks}, their logits averaged"]]),
        ["labels", ", ".join(map(str, estimator.classes_.tolist()))],
        ["training", f"{estimator.n_iter_} epochs, random_state={estimator.random_state!r}"],
        ["thresholds", _threshold_words(estimator)],
        ["calibration", "none" if estimator.calibrator_ is None else str(estimator.calibration)],
        ["windows of a recording", f"their logits are aggregated by aggregate={estimator.aggregate!r}"],
    ]
    usual = type(estimator)().get_params()
    changed = {k: v for k, v in estimator.get_params().items() if repr(v) != repr(usual[k])}
    contract = [[name, _words(value)] for name, value in estimator.preprocessing_.to_dict().items()]
    if estimator.normalisation == "dataset":
        contract.append(["mean and scale of the training data", f"{estimator.mean_:.6g} and {estimator.scale_:.6g}"])
    parameters = Table(
        "Parameters that differ from the defaults.", [], [[name, _words(value)] for name, value in changed.items()]
    )
    return [
        Section("The model", tables=[Table("What it is.", [], facts), *([parameters] if changed else [])]),
        Section("What the model does to a recording first", tables=[Table("In s, Hz and mV.", [], contract)]),
        _training_section(estimator),
    ]


def _training_section(estimator) -> Section:
    history = estimator.history_
    ax = new_axes(6.0, 3.2)
    networks = [h for _, h in history.groupby("network")] if "network" in history else [history]
    for i, name in enumerate(("train_loss", "valid_loss")):
        if name in history and history[name].notna().any():
            for k, rows in enumerate(networks):
                label = None if k else name
                ax.plot(rows["epoch"], rows[name], color=COLORS[i], marker="o", markersize=3, label=label)
    ax.set(xlabel="epoch", ylabel="loss")
    ax.locator_params(axis="x", integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    seconds = history["seconds"].sum()
    of = f" of {len(networks)} networks" if len(networks) > 1 else ""
    caption = f"Loss by epoch{of}; {len(history)} epochs took {seconds:.1f} s."
    return Section("Training", pictures=[picture(caption, ax)])


def _probabilities_section(estimator, prob: np.ndarray, order: np.ndarray) -> Section:
    rows = []
    for j in order:
        given = j == order[0] if estimator.exclusive_ else prob[j] >= estimator.thresholds_[j]
        mark = None if estimator.exclusive_ else float(min(estimator.thresholds_[j], 1.0))
        limit = "–" if mark is None else f"{estimator.thresholds_[j]:.3f}"  # noqa: RUF001
        text = f"probability {prob[j]:.3f}" + ("" if mark is None else f", threshold {limit}")
        decision = "predicted" if given else "not predicted"
        bar = Bar(text, float(prob[j]), mark, bool(given))
        rows.append(
            [estimator.classes_.tolist()[j], bar, Cell(f"{prob[j]:.3f}", loud=bool(given)), Cell(limit), decision]
        )
    heads = ["label", "", "probability", "threshold", "decision"]
    caption = "Probability of each label; the black mark is its threshold."
    if estimator.exclusive_:
        caption = "Probability of each class; the most probable one is predicted."
    return Section("Probabilities", tables=[Table(caption, heads, rows)])


def _patient_table(record: Record) -> Table:
    known = {
        "recording": record.record_id,
        "patient": record.patient_id,
        "age": None if record.age is None else f"{record.age:g} years",
        "sex": record.sex,
        "source": record.source,
        "labels in the file": None if record.labels is None else ", ".join(record.labels) or "none",
        "length": f"{record.duration:g} s at {record.sampling_rate:g} Hz",
        "leads": ", ".join(record.lead_names),
        "comments": "; ".join(record.comments) or None,
    }
    return Table("As the recording states it.", [], [[k, v or "not stated"] for k, v in known.items()])


def _leads_section(estimator, record: Record) -> Section:
    if not estimator.layout_.named:
        return Section("Quality of the leads", [_UNNAMED])
    report: Any = quality_report(record)
    rows = [
        [row.lead, Cell(row.verdict, loud=row.verdict != "good")]
        + [Cell(number(x, 2)) for x in (row.range, row.baseline_wander, row.powerline)]
        + [Cell(f"{x:.1%}") for x in (row.nan_share, row.flat_share, row.clipped_share)]
        for row in report.itertuples()
    ]
    heads = ["lead", "verdict", "range, mV", "baseline wander, mV", "power line, mV", "missing", "flat", "clipped"]
    return Section("Quality of the leads", tables=[Table("Each lead, as recorded.", heads, rows)])


def _shown(record: Record, start: float) -> list[str]:
    """Return which part is drawn, where it is not the whole recording."""
    if start == 0 and record.duration <= PAPER_SECONDS:
        return []
    return [f"Drawn: {start:g} to {min(start + PAPER_SECONDS, record.duration):g} s of {record.duration:g} s."]


def _named(record: Record, i: int) -> Record:
    return dataclasses.replace(record, record_id=record.record_id or f"recording {i}")


def _threshold_words(estimator) -> str:
    if estimator.exclusive_:
        return "none: the most probable class is predicted"
    values = ", ".join(
        f"{name} {t:.3f}" for name, t in zip(estimator.classes_.tolist(), estimator.thresholds_, strict=True)
    )
    return f"thresholds={estimator.thresholds!r}: {values}"


def _words(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""Two files of rows beside each other: two versions, two machines, or two models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ssmseq.benchmark.outcome import Frame, Series, complete_frame, latest_rows
from ssmseq.benchmark.tables import Cell, plain_table, to_markdown

CONFIDENCE = 0.95
SAME = 1e-6  # relative difference of errors that rounding on another machine may cause
CELL = ["suite", "dataset", "horizon", "model"]
COST_NAMES = {"fit_seconds": "training time", "ms_per_window": "forecast time", "peak_memory_mb": "memory"}


@dataclass(frozen=True)
class Comparison:
    """What two files of rows say of the same forecasts.

    Attributes
    ----------
    names : tuple of two str
        Of the files, A and B.
    cells : list of dict
        One for each data set, horizon and model in both:
        suite, dataset, horizon, model;
        mse_a and mse_b : means over the seeds in both; seeds : their number;
        difference : B - A; percent : of A; half_width : of its 95 % interval, from the differences of equal seeds, None
        for a single one;
        verdict : "better" or "worse" of B, "same" (to 1e-6), "no difference beyond the spread of seeds", or "one seed,
        spread not known";
        fit_seconds_ratio, ms_per_window_ratio, peak_memory_mb_ratio : B / A, None where not measured;
        settings : what differs in the settings of the runs, "" if nothing.
    only : dict of str to list of str
        What is only in one file, by the file's name.
    notes : list of str
        What to know before comparing.
    """

    names: tuple[str, str]
    cells: list[dict[str, Any]]
    only: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return names, summary, cells, only and notes, as JSON takes them."""
        return {"names": list(self.names), "summary": self.summary(), "cells": self.cells} | {
            "only": self.only,
            "notes": self.notes,
        }

    def summary(self) -> list[str]:
        """Return how often B is better and worse, in words."""
        a, b = self.names
        if not self.cells:
            return [f"{a} and {b} have no forecasts in common."]
        counts = pd.Series([cell["verdict"] for cell in self.cells]).value_counts()
        parts = [f"{verdict}: {counts[verdict]}" for verdict in counts.index]
        cells = f"{len(self.cells)} cells of data set, horizon and model"
        sentences = [f"MSE of {b} against {a}, over {cells}: {'; '.join(parts)}."]
        if counts.drop(["same", "one seed, spread not known"], errors="ignore").sum():
            sentences.append(
                "Intervals are of 95 %: of cells without any difference one in twenty is called different."
            )
        for cost, name in COST_NAMES.items():
            ratios = [cell[f"{cost}_ratio"] for cell in self.cells if cell[f"{cost}_ratio"] is not None]
            sentences += [f"Median {name} of {b}: {np.median(ratios):.2f} times that of {a}."] if ratios else []
        return sentences

    def markdown(self) -> str:
        """Return the comparison as Markdown."""
        a, b = self.names
        lines = [f"# {a} and {b}", "", *(f"- {text}" for text in (*self.summary(), *self.notes)), ""]
        if self.cells:
            heads = ["data set, rows ahead", "model", "MSE of A", "MSE of B", "B - A", "%", "seeds", "verdict"]
            heads += [f"{name}, B / A" for name in COST_NAMES.values()]
            rows = [self._row(cell) for cell in self.cells]
            caption = f"A is {a}, B is {b}; differences ± half the width of the 95 % interval over seeds."
            lines += [to_markdown(plain_table(caption, heads, rows)), ""]
        for name, labels in self.only.items():
            if labels:
                lines += [f"Only in {name}:", "", *(f"- {label}" for label in labels), ""]
        return "\n".join(lines).rstrip() + "\n"

    def _row(self, cell: dict[str, Any]) -> list[Any]:
        width = "" if cell["half_width"] is None else f" ± {cell['half_width']:.4f}"
        ratios = [cell[f"{cost}_ratio"] for cost in COST_NAMES]
        return [
            f"{cell['dataset']} {cell['horizon']}",
            cell["model"],
            f"{cell['mse_a']:.4f}",
            f"{cell['mse_b']:.4f}",
            f"{cell['difference']:+.4f}{width}",
            f"{cell['percent']:+.2f}",
            cell["seeds"],
            Cell(cell["verdict"], note=cell["settings"]),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        ]


def compare(rows_a: Iterable[dict], rows_b: Iterable[dict], names: Sequence[str] = ("A", "B")) -> Comparison:
    """Compare two files of rows, forecast by forecast, over the seeds that both have.

    Models are matched by name and kind of loss. If each file has a single model, and not the same, these two are
    matched; likewise for suites. Differences are taken seed by seed, and Student's t gives the interval of their mean.

    Parameters
    ----------
    rows_a, rows_b : iterable of dict
        Rows as `ssmseq benchmark run` writes them; the last of a key counts.
    names : sequence of two str

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If a row lacks what it is sorted by.
    """
    a_name, b_name = names
    names = (f"{a_name} (A)", f"{b_name} (B)") if a_name == b_name else (a_name, b_name)
    frames, notes = [], []
    for name, rows in zip(names, (rows_a, rows_b), strict=True):
        latest = list(latest_rows(rows).values())
        frames.append(_succeeded(latest))
        n_failed = len(latest) - len(frames[-1])
        notes += [f"{n_failed} runs of {name} failed and do not count."] if n_failed else []
    for what in ("suite", "model"):
        notes += _match_single(frames, what, names)
    notes += _machines(frames, names)
    groups = [dict(list(frame.groupby(CELL, sort=False))) for frame in frames]
    common = [cell for cell in groups[0] if cell in groups[1]]
    cells, seedless = [], []
    for label in common:
        found = _cell(label, *(group[label] for group in groups))
        (cells if found else seedless).append(found or label)
    notes += [f"{_name(label)}: no seed is in both files." for label in seedless]
    only = {
        n: [_name(c) for c in mine if c not in other]
        for n, mine, other in zip(names, groups, groups[::-1], strict=True)
    }
    return Comparison(names, cells, only, notes)


def _succeeded(rows: list[dict]) -> Frame:
    frame = complete_frame(rows).assign(
        suite=[row.get("suite") or "" for row in rows], params=[row.get("params") or {} for row in rows]
    )
    frame["model"] += frame["loss"].map(lambda loss: f" (loss {str(loss).split()[0]})" if loss else "")
    return frame[(frame["status"] == "ok") & np.isfinite(frame["mse"])]


def _match_single(frames: list[Frame], what: str, names: Sequence[str]) -> list[str]:
    """Rename the only model (or suite) of either file, where they differ, to a name for both."""
    values = [list(frame[what].unique()) for frame in frames]
    if values[0] == values[1] or [len(v) for v in values] != [1, 1]:
        return []
    label = f"{values[0][0]} -> {values[1][0]}"
    for i, frame in enumerate(frames):
        frames[i] = frame.assign(**{what: label})
    pairs = zip(names, values, strict=True)
    return [f"The {what}s differ: " + "; ".join(f"{name} is of {value[0]}" for name, value in pairs) + "."]


def _machines(frames: list[Frame], names: Sequence[str]) -> list[str]:
    """Say so if the files are from different hardware, devices or numbers of threads."""
    kinds = ["hardware", "device", "threads"]
    found = [[tuple(x) for x in frame[kinds].drop_duplicates().itertuples(index=False)] for frame in frames]
    if sorted(map(str, found[0])) == sorted(map(str, found[1])):
        return []
    texts = ["; ".join(f"{h}, {d}, threads {t:g}" for h, d, t in kind) for kind in found]
    where = "; ".join(f"{name} on {text}" for name, text in zip(names, texts, strict=True))
    return [f"Times and memory are of different machines or settings: {where}."]


def _cell(label: tuple, a: Frame, b: Frame) -> dict[str, Any] | None:
    """Compare the runs of one data set, horizon and model over the seeds in both; None if there is none."""
    a, b = (runs.drop_duplicates("seed", keep="last").set_index("seed") for runs in (a, b))
    seeds = sorted(set(a.index) & set(b.index))
    if not seeds:
        return None
    a, b = a.loc[seeds], b.loc[seeds]
    differences = (b["mse"] - a["mse"]).to_numpy()
    mean = float(differences.mean())
    half = None
    if len(seeds) > 1:
        error = differences.std(ddof=1) / np.sqrt(len(seeds))
        half = float(error * stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1))
    cell = dict(zip(CELL, label, strict=True)) | {"horizon": int(label[2]), "seeds": len(seeds)}
    cell |= {"mse_a": float(a["mse"].mean()), "mse_b": float(b["mse"].mean())}
    cell |= {"difference": mean, "percent": 100 * mean / cell["mse_a"], "half_width": half}
    cell["verdict"] = _verdict(differences, half, cell["mse_a"])
    cell |= {f"{cost}_ratio": _ratio(a[cost].mean(), b[cost].mean()) for cost in COST_NAMES}
    return cell | {"settings": _settings(a.iloc[0], b.iloc[0])}


def _verdict(differences: np.ndarray, half: float | None, level: float) -> str:
    mean = differences.mean()
    if (np.abs(differences) <= SAME * level).all():
        return "same"
    if half is None:
        return "one seed, spread not known"
    if abs(mean) <= half:
        return "no difference beyond the spread of seeds"
    return "worse" if mean > 0 else "better"


def _ratio(a: float, b: float) -> float | None:
    return float(b / a) if a > 0 and np.isfinite(b) else None


def _settings(a: Series, b: Series) -> str:
    """Return the settings that differ between two runs; empty for runs of the same key."""
    if a["key"] == b["key"]:
        return ""
    settings = [{**run["params"], "look-back": f"{run['lookback']:g}", "loss": run["loss"]} for run in (a, b)]
    names = sorted({*settings[0], *settings[1]})
    found = [f"{n} {s} -> {t}" for n in names if (s := settings[0].get(n)) != (t := settings[1].get(n))]
    return "settings differ: " + ("; ".join(found) or "the keys of the runs")


def _name(label: tuple) -> str:
    suite, dataset, horizon, model = label
    return f"{dataset} {horizon}, {model}" + (f" (suite {suite})" if suite else "")

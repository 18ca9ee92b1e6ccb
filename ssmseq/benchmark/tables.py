"""The tables of a report: cells with their rank, to be written as Markdown or as HTML."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ssmseq.benchmark.outcome import Frame, Outcome, Series
from ssmseq.benchmark.published import SOURCES, within_tolerance

OTHER_WINDOWS = "MISMATCH: other windows"
SHADES = 5  # of the colour that shows the rank within a row


class Cell(NamedTuple):
    """A number or a word of a table.

    `rank` is that within its row, 1 the best; `shade` is 0 for the best to SHADES - 1 for the worst; `note` says what
    is special about the cell; `loud` marks what must not be overlooked.
    """

    text: str
    rank: int | None = None
    shade: int | None = None
    note: str = ""
    loud: bool = False


class Head(NamedTuple):
    """The name of a column, below it in small letters what holds for all of the column, and whether it holds words."""

    text: str
    small: str = ""
    words: bool = False


class Table(NamedTuple):
    """Columns, rows of cells (the first names the row), and a caption.

    `tall` tables get a box that scrolls; `averages` are the numbers of the rows to set off from those above.
    """

    caption: str
    heads: list[Head]
    rows: list[list[Cell]]
    tall: bool = False
    averages: tuple[int, ...] = ()


def plain_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], *, tall: bool = False) -> Table:
    """Return a table of words, without ranks."""
    cells = [[x if isinstance(x, Cell) else Cell(str(x)) for x in row] for row in rows]
    words = [any(row[i].text[:1].isalpha() for row in cells) for i in range(len(heads))]
    return Table(caption, [Head(h, words=w) for h, w in zip(heads, words, strict=True)], cells, tall)


def to_markdown(table: Table) -> str:
    """Return a table as GitHub's Markdown: the best of a row bold, notes in brackets."""
    lines = [escaped(table.caption), ""]
    heads = [escaped(h.text) + (f"<br>{escaped(h.small)}" if h.small else "") for h in table.heads]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" + " ---: |" * (len(heads) - 1)]
    for row in table.rows:
        lines.append("| " + " | ".join(map(_markdown_cell, row)) + " |")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Return text on one line, without what Markdown would take for a column or a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_cell(cell: Cell) -> str:
    text = escaped(cell.text) + (f" ({escaped(cell.note)})" if cell.note else "")
    return f"**{text}**" if cell.rank == 1 or (cell.loud and cell.rank is None) else text


def error_table(outcome: Outcome, metric: str, flagged: Iterable[str]) -> Table:
    """Return means over seeds with their spread, one row per data set and horizon and one per data set's average."""
    means, spreads = outcome.mean(metric), outcome.spread(metric)
    averages, average_spreads = outcome.average(metric), outcome.average_spread(metric)
    notes, asked, flagged = _cell_notes(outcome), outcome.seeds_asked().max(axis=1), set(flagged)
    rows, numbers = [], []
    for dataset in outcome.datasets:
        mark = " †" if dataset in flagged else ""
        for horizon in means.loc[dataset].index:
            block = (dataset, horizon)
            head = Cell(f"{dataset} {horizon}{mark}", note=_count(asked[block], "seed"))
            rows.append([head, *_ranked(means.loc[block], spreads.loc[block], notes.loc[block])])
        if len(means.loc[dataset]) > 1:
            numbers.append(len(rows))
            cells = _ranked(averages.loc[dataset], average_spreads.loc[dataset], None)
            rows.append([Cell(f"{dataset} average{mark}"), *cells])
    caption = (
        f"{metric.upper()} of standardised values: mean over seeds ± sample standard deviation over seeds. Within a "
        "row the lowest is bold, small figures are ranks, and darker is better. An average needs every horizon."
    )
    heads = [Head("data set, rows ahead", "seeds asked for", words=True), *_column_heads(outcome)]
    return Table(caption, heads, rows, averages=tuple(numbers))


def other_errors_table(outcome: Outcome) -> Table:
    """Return errors in original units, scale-free ones, and what intervals cover, one row per block and model."""
    formats = {"mae_original": "{:.4g}", "mase": "{:.3f}", "wape": "{:.3f}", "crps": "{:.3f}"}
    formats |= {"coverage_80": "{:.1f} %", "coverage_95": "{:.1f} %"}
    means = {metric: outcome.mean(metric) * (100 if "coverage" in metric else 1) for metric in formats}
    rows = []
    for block in outcome.blocks:
        for column in outcome.columns:
            values = {metric: means[metric].loc[block, column] for metric in formats}
            if not all(np.isnan(v) for v in values.values()):
                texts = [_text(formats[metric], v) for metric, v in values.items()]
                rows.append([f"{block[0]} {block[1]}", column, *texts])
    heads = ["data set, rows ahead", "model", "MAE, original units", "MASE", "WAPE", "CRPS", "in 80 %", "in 95 %"]
    caption = (
        "Means over seeds. MAE in the units of the data (its variates averaged as they are); MASE relative to the "
        "seasonal naive forecast of the training part; WAPE relative to the sum of absolute values; CRPS of "
        "standardised values, from deciles; share of true values within the 80 % and 95 % prediction intervals. A "
        "dash: not forecast."
    )
    return plain_table(caption, heads, rows, tall=True)


def cost_table(outcome: Outcome) -> Table:
    """Return what models cost, one row per data set and model, over its horizons and seeds."""
    rows = []
    for (dataset, column), runs in outcome.done.groupby(["dataset", "column"], sort=False):
        texts = [
            _span(runs["parameters"], "{:,.0f}"),
            _span(runs["epochs"], "{:.0f}"),
            _text("{:,.1f}", runs["fit_seconds"].mean()),
            _text("{:.3f}", runs["ms_per_window"].mean()),
            _text("{:,.0f}", runs["peak_memory_mb"].max()),
            *(_words(runs[name]) for name in ("loss", "backend", "device")),
            _span(runs["threads"], "{:.0f}"),
        ]
        rows.append([dataset, column, *texts])
    order = {name: i for i, name in enumerate(outcome.datasets)}
    rows.sort(key=lambda row: (order[row[0]], outcome.columns.index(row[1])))
    heads = ["data set", "model", "parameters", "epochs", "training, s", "forecast, ms per window", "peak memory, MB"]
    heads += ["loss", "backend of the scan", "device", "threads"]
    caption = (
        "Over the horizons and seeds of a data set: smallest to largest number of parameters and epochs, mean seconds "
        "of training and milliseconds per forecast window, highest peak memory of the process (of the GPU if one was "
        "used)."
    )
    return plain_table(caption, heads, rows, tall=True)


def windows_table(outcome: Outcome) -> Table:
    """Return the windows scored beside the formula's number, one row per data set and horizon."""
    rows, odd = [], outcome.odd_windows()
    differing = set(outcome.differing_windows())
    for block, runs in outcome.done.groupby(["dataset", "horizon"], sort=False):
        wrong = odd[(odd["dataset"] == block[0]) & (odd["horizon"] == block[1])]
        found = [f"{r.column}, seed {r.seed}: {_text('{:.0f}', r.n_windows)}" for r in wrong.itertuples()]
        found += ["the formula's number differs between models"] if block in differing else []
        verdict = Cell("MISMATCH: " + "; ".join(found), loud=True) if found else Cell(f"all {len(runs)} runs agree")
        rows.append([f"{block[0]} {block[1]}", _span(runs["n_windows_expected"], "{:.0f}"), verdict])
    order = {block: i for i, block in enumerate(f"{d} {h}" for d, h in outcome.blocks)}
    rows.sort(key=lambda row: order[row[0]])
    caption = "Test windows by the formula: test rows - rows ahead + 1, summed over series. None may be dropped."
    return plain_table(caption, ["data set, rows ahead", "by the formula", "scored"], rows, tall=True)


def published_tables(beside: Frame) -> list[Table]:
    """Return ours, published and difference: the averages of data sets, then every horizon."""
    heads = ["data set", "model", "source", "ours, MSE", "published", "difference", "ours, MAE", "published"]
    heads += ["difference", "seeds", "within 2 %"]
    rows: dict[bool, list] = {True: [], False: []}
    for row, fit in zip(beside.itertuples(), within_tolerance(beside), strict=True):
        mse = [_with_spread(row.mse, row.spread), f"{row.published_mse:.3f}", f"{row.mse_percent:+.1f} %"]
        mae = [f"{row.mae:.3f}", f"{row.published_mae:.3f}", f"{row.mae_percent:+.1f} %"]
        verdict = Cell("does not compare ‡", note=row.obstacle) if row.obstacle else Cell("yes" if fit else "no")
        name = f"{row.dataset} {row.horizon}"
        rows[row.horizon == "average"].append([name, row.column, row.source, *mse, *mae, row.seeds, verdict])
    captions = {
        True: "Averages over the published horizons; within 2 % if MSE and MAE both are. ‡ marks numbers that do not "
        "compare, with the reason.",
        False: "Every horizon.",
    }
    return [plain_table(captions[kind], heads, rows[kind], tall=True) for kind in captions if rows[kind]]


def printed_averages_table(theirs: Frame, outcome: Outcome) -> Table | None:
    """Return published averages of MSE of the suite's data sets, as printed, whether we ran the model or not."""
    asked = {d: set(outcome.blocks[outcome.blocks.get_locs([d])].get_level_values(1)) for d in outcome.datasets}
    shown = [d for d in outcome.datasets if set(theirs[theirs["dataset"] == d]["horizon"]) == asked[d]]
    if not shown:
        return None
    of_shown = theirs[theirs["dataset"].isin(shown)]
    means = of_shown.pivot_table(index=["source", "model"], columns="dataset", values="mse", sort=False)[shown]
    rows = [[f"{model} ({source})", *(_text("{:.3f}", x) for x in row)] for (source, model), row in means.iterrows()]
    caption = "Published averages of MSE, as printed and not run here, to place our numbers among them. Sources: "
    caption += "; ".join(f"{key}: {source.title}" for key, source in SOURCES.items()) + "."
    return plain_table(caption, ["model (source)", *shown], rows)


def _column_heads(outcome: Outcome) -> list[Head]:
    """Return name, loss and number of seeds of each column."""
    seeds, heads = outcome.seeds(), []
    for column in outcome.columns:
        counts = sorted(set(seeds[column]) - {0})
        n = _count(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
        losses = sorted(outcome.done.loc[outcome.done["column"] == column, "loss"].dropna().unique())
        heads.append(Head(column, f"loss {' or '.join(losses)}; {n}" if losses else n))
    return heads


def _cell_notes(outcome: Outcome) -> Frame:
    """Return what is special about a mean: seeds that are missing, or other windows."""
    seeds, asked = outcome.seeds(), outcome.seeds_asked()
    notes = pd.DataFrame("", index=seeds.index, columns=seeds.columns)
    for column in seeds:
        for block in seeds.index[(seeds[column] > 0) & (seeds[column] < asked[column])]:
            notes.loc[block, column] = f"{seeds.loc[block, column]} of {asked.loc[block, column]} seeds"
    for run in outcome.odd_windows().itertuples():
        notes.loc[(run.dataset, run.horizon), run.column] = OTHER_WINDOWS
    for block in outcome.differing_windows():
        notes.loc[block, :] = OTHER_WINDOWS
    return notes


def _ranked(means: Series, spreads: Series, notes: Series | None) -> list[Cell]:
    """Return the cells of a row; ranks by full precision, ties share the better one."""
    ranks = means.rank(method="min")
    last, cells = max(int(means.notna().sum()) - 1, 1), []
    for column, value in means.items():
        if np.isnan(value):
            cells.append(Cell("-"))
            continue
        rank = int(ranks[column])
        shade = min(round((rank - 1) / last * (SHADES - 1)), SHADES - 1)
        note = "" if notes is None else notes[column]
        cells.append(Cell(_with_spread(value, spreads[column]), rank, shade, note, note == OTHER_WINDOWS))
    return cells


def _with_spread(mean: float, spread: float) -> str:
    return f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"


def _text(form: str, value: float) -> str:
    return "-" if value is None or np.isnan(value) else form.format(value)


def _span(values: Series, form: str) -> str:
    """Return the smallest and the largest value, or the one that there is."""
    least, most = _text(form, values.min()), _text(form, values.max())
    return least if least == most else f"{least} to {most}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _words(values: Series) -> str:
    return ", ".join(map(str, values.dropna().unique())) or "-"

"""The report of a suite: one HTML page that needs nothing beside it, and the same tables as Markdown."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ssmseq.benchmark import figures, summary, tables
from ssmseq.benchmark.comparison import Comparison, compare
from ssmseq.benchmark.outcome import Frame, Outcome
from ssmseq.benchmark.published import SOURCES, beside_published, published
from ssmseq.benchmark.ranking import TESTS, Ranking, rank_models
from ssmseq.benchmark.tables import Table, plain_table
from ssmseq.plots import data_uri

__all__ = ["Comparison", "Report", "build_report", "compare", "published"]

MOST_LINES = 6  # models in a picture of lines, so that they can be told apart


class Picture(NamedTuple):
    """A picture, drawn when the page is written; its text stands in for it where it cannot be seen."""

    text: str
    draw: Callable[[], Any]
    wide: bool = False


class Section(NamedTuple):
    """A part of the report."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    alarms: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


class Report:
    """A suite's results, ready to be written.

    Attributes
    ----------
    suite : object
    outcome : Outcome
        The rows sorted out, with means and spreads.
    ranking : Ranking
        Of models over data sets.
    beside : pandas.DataFrame
        Our errors beside published ones, see `beside_published`.
    reference : str, optional
        The column that every model is compared with.
    sections : list of Section
    """

    def __init__(self, suite, outcome: Outcome, ranking: Ranking, beside: Frame, reference: str | None):
        self.suite = suite
        self.outcome = outcome
        self.ranking = ranking
        self.beside = beside
        self.reference = reference
        self.sections = _sections(self)

    def markdown(self, *, only: Sequence[str] = ()) -> str:
        """Return the report without pictures, as GitHub's Markdown.

        Parameters
        ----------
        only : sequence of str
            Anchors of sections, such as "summary", "warnings", "errors" or "ranks"; all by default.

        Raises
        ------
        ValueError
            If a section is not there.
        """
        unknown = [name for name in only if name not in {s.anchor for s in self.sections}]
        if unknown:
            there = ", ".join(s.anchor for s in self.sections)
            raise ValueError(f"the report has no section {', '.join(unknown)}; it has {there}")
        lines = [
            f"# {self.suite.title}",
            "",
            " ".join(self.suite.description.split()),
            "",
            summary.origin(self.outcome),
            "",
        ]
        for section in self.sections:
            if (only and section.anchor not in only) or not (section.text or section.alarms or section.tables):
                continue
            lines += [f"## {section.title}", ""]
            items = [f"- **Warning:** {tables.escaped(text)}" for text in section.alarms]
            items += [f"- {tables.escaped(text)}" for text in section.text]
            lines += [*items, ""] if items else []
            for table in section.tables:
                lines += [tables.to_markdown(table), ""]
        return "\n".join(lines).rstrip() + "\n"

    def html(self) -> str:
        """Return the report as one page that loads nothing.

        Raises
        ------
        ImportError
            If Jinja2, matplotlib or scikit-posthocs is not installed.
        """
        try:
            import jinja2
        except ImportError as error:
            raise ImportError('the page of a report needs Jinja2: pip install "ssmseq[benchmark]"') from error
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
        drawn = {s.anchor: [(p, data_uri(p.draw())) for p in s.pictures] for s in self.sections}
        origin = summary.origin(self.outcome)
        return template.render(suite=self.suite, origin=origin, sections=self.sections, drawn=drawn)

    def save(self, folder: str | os.PathLike) -> tuple[Path, Path]:
        """Write report.html and report.md into a folder, which is made; return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        page, text = folder / "report.html", folder / "report.md"
        page.write_text(self.html(), encoding="utf-8")
        text.write_text(self.markdown(), encoding="utf-8")
        return page, text


def build_report(
    suite, rows: Iterable[dict[str, Any]], *, reference: str = "ridge", unranked: Sequence[str] = ()
) -> Report:
    """Sort out the rows of a suite and compare its models.

    Parameters
    ----------
    suite : object
        With name, title, description, warnings (dict of data set to text), expected (list of dict with dataset,
        model, horizon, seed and key, one for each run) and absent (dict of data set or model to the reason why it is
        not here).
    rows : iterable of dict
        Lines of the result file, as `ssmseq benchmark run` writes them; the last of a key counts.
    reference : str
        The model that every other is compared with: the one of this name, or the first whose name begins with it.
    unranked : sequence of str
        Data sets that the ranking leaves out, such as a random walk.

    Returns
    -------
    Report

    Raises
    ------
    ImportError
        If scikit-posthocs is not installed.
    ValueError
        If a row lacks what it is sorted by, or none of the rows belongs to the suite.
    """
    outcome = Outcome(suite, rows)
    scores = outcome.mean("mse").drop(index=[d for d in unranked if d in outcome.datasets], level="dataset")
    return Report(suite, outcome, rank_models(scores), beside_published(outcome), outcome.find(reference))


def _sections(report: Report) -> list[Section]:
    outcome, reference, suite = report.outcome, report.reference, report.suite
    text = summary.overview(outcome)
    if reference is not None:
        text += summary.against_reference(outcome, reference)
    elif outcome.columns:
        text.append("Models are compared with no reference: none of the runs that succeeded is of it.")
    alarms = summary.warnings(outcome, suite)
    errors = [tables.error_table(outcome, metric, suite.warnings) for metric in ("mse", "mae")]
    found = [
        Section("summary", "Summary", text=text),
        Section("warnings", "Before comparing numbers", alarms=alarms),
        Section("errors", "Errors", tables=errors),
        _published_section(report),
        _ranks_section(report),
        Section("cost", "Cost", tables=[tables.cost_table(outcome)], pictures=_cost_pictures(report)),
        Section("other", "Other errors and intervals", tables=[tables.other_errors_table(outcome)]),
        Section("steps", "Error by rows ahead", pictures=_step_pictures(report)),
        Section("examples", "Example forecasts", pictures=_example_pictures(report)),
        _chosen_section(outcome),
        Section("windows", "Windows scored", tables=[tables.windows_table(outcome)]),
        _gaps_section(outcome, suite),
        _origin_section(outcome),
    ]
    return [s for s in found if s.text or s.alarms or s.pictures or any(table.rows for table in s.tables)]


def _published_section(report: Report) -> Section:
    used = dict.fromkeys(report.beside["source"])
    text = summary.against_published(report.beside)
    text += [f"Source {key}: {SOURCES[key].title}, {SOURCES[key].link}. {SOURCES[key].protocol}" for key in used]
    found = tables.published_tables(report.beside)
    printed = tables.printed_averages_table(published(), report.outcome)
    return Section("published", "Beside published numbers", text=text, tables=[*found, *([printed] if printed else [])])


def _ranks_section(report: Report) -> Section:
    """Return ranks and tests; where Wilcoxon's can find nothing whatever the errors are, Nemenyi's beside it."""
    ranking = report.ranking
    text, alarms, pictures, found = summary.ranking_words(ranking), [], [], []
    shown = ranking
    if ranking.p_values is None:
        text.pop()  # which says the same as the alarm
        alarms.append(f"No test and no critical-difference diagram: {ranking.reason}.")
    elif ranking.least_p > ranking.alpha:
        # the numbers of data sets and models decide this, not the errors
        shown = rank_models(ranking.scores, test="nemenyi", alpha=ranking.alpha)
        text.append(summary.pairs_words(shown) + " It depends on which other models are in the comparison.")
    if shown.p_values is not None:
        caption = f"Average ranks over {len(shown.table)} data sets, 1 the best. Bars join models that do not differ "
        caption += f"at {100 * shown.alpha:g} % ({TESTS[shown.test]})."
        styles = figures.Styles(report.outcome.columns, report.reference)
        pictures.append(Picture(caption, partial(figures.critical_difference, shown, styles), wide=True))
    if len(ranking.ranks) > 1:
        found.append(_rank_table(ranking))
    for each in dict.fromkeys([ranking.test, shown.test]) if ranking.p_values is not None else ():
        found.append(_pairs_table(ranking if each == ranking.test else shown))
    return Section("ranks", "Ranks and significance", text=text, alarms=alarms, tables=found, pictures=pictures)


def _rank_table(ranking: Ranking) -> Table:
    blocks = ranking.scores.loc[list(ranking.table.index), list(ranking.table)].rank(axis=1).mean()
    rows = [[name, f"{rank:.2f}", f"{blocks[name]:.2f}"] for name, rank in ranking.ranks.items()]
    caption = "Average ranks by MSE, 1 the best; equal errors share the mean of their ranks."
    return plain_table(caption, ["model", "over data sets", "over data sets and horizons"], rows)


def _pairs_table(ranking: Ranking) -> Table:
    names, p_values = list(ranking.ranks.index), ranking.p_values
    rows = [[a, *("" if a == b else f"{p_values.loc[a, b]:.3f}" for b in names)] for a in names]
    return plain_table(f"p-values of pairs: {TESTS[ranking.test]}.", ["model", *names], rows)


def _cost_pictures(report: Report) -> list[Picture]:
    ranking, outcome = report.ranking, report.outcome
    table = ranking.table
    if table.shape[1] < 2:
        return []
    by_reference = report.reference in table
    least = table[report.reference] if by_reference else table.min(axis=1)
    runs = outcome.done[outcome.done["dataset"].isin(table.index) & outcome.done["column"].isin(table.columns)]
    costs = runs.groupby("column").agg({"fit_seconds": "mean", "peak_memory_mb": "max"})
    points = costs.assign(error=np.exp(np.log(table.div(least, axis=0)).mean())).reindex(table.columns)
    label = f"MSE relative to {report.reference if by_reference else 'the best of each data set'}"
    styles, pictures = figures.Styles(outcome.columns, report.reference), []
    for cost, what in (("fit_seconds", "training time"), ("peak_memory_mb", "peak memory")):
        known = points.dropna(subset=[cost])
        if len(known):
            text = f"{label} against {what}: geometric mean over {', '.join(table.index)}; lower left is better."
            draw = partial(figures.accuracy_against_cost, known, cost, styles, error_label=label)
            pictures.append(Picture(text, draw))
    return pictures


def _step_pictures(report: Report) -> list[Picture]:
    """Return a picture for each data set, of its longest horizon."""
    outcome, styles, pictures = report.outcome, figures.Styles(report.outcome.columns, report.reference), []
    done = outcome.done[outcome.done["mse_by_step"].map(bool)]
    for dataset in outcome.datasets:
        longest = outcome.mean("mse").loc[dataset].index.max()
        runs = done[(done["dataset"] == dataset) & (done["horizon"] == longest)]
        lines = {}
        for column in _shown(report, dataset, longest, runs["column"]):
            mine = runs[runs["column"] == column]
            steps = mine["steps"].iloc[0]
            errors = mine["mse_by_step"][[found == steps for found in mine["steps"]]]
            lines[column] = (steps, np.mean(errors.to_list(), axis=0))
        if lines:
            title = f"{dataset}, horizon {longest}"
            text = f"{title}: MSE by rows ahead, mean over seeds.{_left_out(runs['column'], lines)}"
            pictures.append(Picture(text, partial(figures.error_by_step, lines, styles, title=title)))
    return pictures


def _example_pictures(report: Report) -> list[Picture]:
    """Return a picture for each data set, of the last window that the shortest horizon with examples forecasts."""
    outcome, styles, pictures = report.outcome, figures.Styles(report.outcome.columns, report.reference), []
    done = outcome.done[outcome.done["example"].map(bool)]
    for dataset in outcome.datasets:
        runs = done[done["dataset"] == dataset]
        runs = runs[runs["horizon"] == runs["horizon"].min()].drop_duplicates("column")
        if runs.empty:
            continue
        first, horizon = runs["example"].iloc[0], runs["horizon"].iloc[0]
        same = runs[[_same_window(e, first) for e in runs["example"]]].set_index("column")["example"]
        forecasts = {c: same[c]["forecast"] for c in _shown(report, dataset, horizon, same.index)}
        others = [c for c in runs["column"] if c not in same.index]
        text = f"{dataset}, {first['variate']}, {horizon} rows ahead, original units, one window."
        text += _left_out(same.index, forecasts)
        text += f" Not drawn, since their example is of another window: {'; '.join(others)}." if others else ""
        title = f"{dataset}, {horizon} rows ahead"
        pictures.append(Picture(text, partial(figures.example_forecast, first, forecasts, styles, title=title)))
    return pictures


def _same_window(example: dict, first: dict) -> bool:
    """Say whether two examples forecast the same values, but for what rounding makes of them."""
    if len(example["truth"]) != len(first["truth"]):
        return False
    truth = np.asarray(first["truth"], dtype=float)
    return np.allclose(example["truth"], truth, rtol=1e-3, atol=1e-3 * np.ptp(truth))


def _shown(report: Report, dataset: str, horizon: int, columns: Iterable[str]) -> list[str]:
    """Return the reference and the best of the others, few enough to be told apart in one picture."""
    means = report.outcome.mean("mse").loc[(dataset, horizon)].reindex(list(dict.fromkeys(columns)))
    best = [c for c in means.sort_values(kind="stable").index if c != report.reference]
    reference = [c for c in means.index if c == report.reference]
    return [*best[: MOST_LINES - len(reference)], *reference]


def _left_out(columns: Iterable[str], shown: Iterable[str]) -> str:
    """Return which models a picture leaves out."""
    others = [c for c in dict.fromkeys(columns) if c not in set(shown)]
    return f" Not drawn: {'; '.join(others)}." if others else ""


def _chosen_section(outcome: Outcome) -> Section:
    runs = outcome.done[outcome.done["selected"].map(bool)]
    rows = [
        [f"{r.dataset} {r.horizon}", r.column, r.seed, ", ".join(f"{k} {v}" for k, v in r.selected.items())]
        for r in runs.itertuples()
    ]
    heads = ["data set, rows ahead", "model", "seed", "chosen"]
    return Section("chosen", "Chosen on validation", tables=[plain_table("Per run.", heads, rows, tall=True)])


def _gaps_section(outcome: Outcome, suite) -> Section:
    """Return what failed, what is not there yet and what cannot be run here."""
    heads = ["data set, rows ahead", "model", "seed", "reason"]
    rows = [[f"{r['dataset']} {r['horizon']}", r["model"], r["seed"], r["reason"]] for r in outcome.failed]
    found = [plain_table("Runs that failed.", heads, rows, tall=True)] if rows else []
    if outcome.missing:
        missing: Frame = pd.DataFrame(outcome.missing).groupby(["dataset", "model"], sort=False)
        rows = [[*who, ", ".join(f"{h} ({_seeds(r)})" for h, r in runs.groupby("horizon"))] for who, runs in missing]
        found.append(
            plain_table("Runs that are not there yet.", ["data set", "model", "rows ahead (seeds)"], rows, tall=True)
        )
    return Section("gaps", "Failed, missing and absent runs", text=summary.not_here(suite.absent), tables=found)


def _seeds(runs: Frame) -> str:
    return "seed " + ", ".join(map(str, sorted(runs["seed"])))


def _origin_section(outcome: Outcome) -> Section:
    """Return when, where and with what the runs were made."""
    done = outcome.done
    finished = sorted(done["finished"].dropna())
    rows = [["finished", f"{finished[0]} to {finished[-1]}" if finished else "not recorded"]]
    rows.append(["commits", ", ".join(done["commit"].dropna().unique()) or "not recorded"])
    versions: dict[str, set[str]] = {}
    for found in done["versions"].dropna():
        for package, version in found.items():
            versions.setdefault(package, set()).add(str(version))
    rows += [[package, ", ".join(sorted(found))] for package, found in versions.items()]
    for (hardware, device, threads), runs in done.groupby(["hardware", "device", "threads"], sort=False):
        n_threads = f"{threads:.0f} thread{'' if threads == 1 else 's'}"
        rows.append(["hardware", f"{hardware}, {device}, {n_threads}: {len(runs)} runs"])
    rows += [["command", command] for command in done["command"].dropna().unique() if command]
    table = plain_table("Of the runs that succeeded.", ["what", "which"], rows)
    return Section("origin", "Where the numbers come from", tables=[table])

"""What the numbers of a report say, in words that are made from them."""

from collections.abc import Iterable, Mapping

import numpy as np

from ssmseq.benchmark.outcome import Frame, Outcome
from ssmseq.benchmark.published import SOURCES, TOLERANCE
from ssmseq.benchmark.ranking import TESTS, UNITS, Ranking


def origin(outcome: Outcome) -> str:
    """Return when, with which version and on what the runs were made, in a line."""
    done = outcome.done
    days = sorted({str(moment)[:10] for moment in done["finished"].dropna()})
    parts = [f"runs of {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")] if days else []
    versions = {found["ssmseq"] for found in done["versions"].dropna() if "ssmseq" in found}
    parts += [f"ssmseq {', '.join(sorted(versions))}"] if versions else []
    for name, what in (("commit", "commit"), ("hardware", "on")):
        values = list(done[name].dropna().unique())
        parts += [f"{what} {'; '.join(values)}"] if values else []
    text = ", ".join(parts) or "nothing is recorded of where and when they were run"
    return f"{_count(len(done), 'run')} succeeded: {text}."


def overview(outcome: Outcome) -> list[str]:
    """Return how many runs are done, and which model has the lowest average on which data sets."""
    n_failed, n_missing = len(outcome.failed), len(outcome.missing)
    counts = f"Of {_count(outcome.n_expected, 'run')}, {len(outcome.done)} succeeded, {n_failed} failed"
    counts += f", {n_missing} are not there yet"
    counts += f" and {outcome.n_absent} need what is not here." if outcome.n_absent else "."
    averages = outcome.average("mse")
    compared = [d for d in outcome.datasets if averages.loc[d].notna().sum() > 1]
    if not compared:
        return [counts, "No data set has every horizon of two models, so there is nothing to compare yet."]
    winners = averages.loc[compared].idxmin(axis=1)
    parts = [f"{c} on {_named(winners.index[winners == c])}" for c in winners.value_counts().index]
    return [counts, f"Lowest average MSE: {'; '.join(parts)}."]


def against_reference(outcome: Outcome, reference: str) -> list[str]:
    """Return a sentence for each model: on which data sets its average MSE is below and above that of the reference."""
    averages, spreads = outcome.average("mse"), outcome.average_spread("mse")
    sentences = []
    for column in outcome.columns:
        if column == reference:
            continue
        both = averages[[column, reference]].dropna()
        lacking = [d for d in outcome.datasets if d not in both.index]
        without = f" Not compared on {_named(lacking)}, for want of a horizon." if lacking else ""
        if both.empty:
            sentences.append(f"{column} and {reference}: no data set has every horizon of both.")
            continue
        percent = 100 * (both[column] / both[reference] - 1)
        spread = 100 * np.sqrt(spreads[[column, reference]].pow(2).sum(axis=1)) / averages[reference]
        parts = {}
        for verdict, chosen in (("better", percent < 0), ("worse", percent > 0), ("equal", percent == 0)):
            parts[verdict] = [_difference(d, percent[d], spread[d]) for d in percent.index[chosen]]
        sentence = (
            f"{column} is better than {reference} on {len(parts['better'])} of {_count(len(both), 'data set')} by "
        )
        sentence += f"average MSE{_listed(parts['better'])}, worse on {len(parts['worse'])}{_listed(parts['worse'])}"
        sentence += f", equal on {len(parts['equal'])}{_listed(parts['equal'])}" if parts["equal"] else ""
        sentences.append(sentence + "." + without)
    return sentences


def against_published(beside: Frame) -> list[str]:
    """Return a sentence for each model and source: how many averages are within the tolerance of those published."""
    averages = beside[(beside["horizon"] == "average") & (beside["obstacle"] == "")]
    sentences = []
    for (column, source), rows in averages.groupby(["column", "source"], sort=False):
        outside = rows[rows["mse_percent"].abs() > TOLERANCE]
        named = [f"{r.dataset} {r.mse_percent:+.1f} %" for r in outside.itertuples()]
        sentence = (
            f"{column}: {len(rows) - len(outside)} of {_count(len(rows), 'average')} of MSE within {TOLERANCE:g} % of "
        )
        sentences.append(sentence + f"{SOURCES[source].title}" + (f"; outside: {', '.join(named)}." if named else "."))
    return sentences


def warnings(outcome: Outcome, suite) -> list[str]:
    """Return what to know before numbers are compared, the gravest first."""
    found = []
    odd = outcome.odd_windows()
    wrong = dict.fromkeys([*zip(odd["dataset"], odd["horizon"], strict=True), *outcome.differing_windows()])
    if wrong:
        found.append(f"MISMATCH of windows: models were scored on others than the formula's at {_named(wrong)}.")
    if outcome.n_other:
        found.append(
            f"The results have {_count(outcome.n_other, 'row')} of runs that the suite does not ask for (other "
            "settings, or an earlier form of the suite); they count nowhere."
        )
    found += [f"† {dataset}: {text}" for dataset, text in suite.warnings.items() if dataset in outcome.datasets]
    kinds: dict[str, list[str]] = {}
    for column, runs in outcome.done.groupby("column", sort=False):
        for kind in sorted(set(runs["loss_kind"]) - {""}):
            kinds.setdefault(kind, []).append(str(column))
    if len(kinds) > 1:
        parts = " ".join(f"Trained on {kind}: {'; '.join(columns)}." for kind, columns in kinds.items())
        found.append(f"Models are trained on different losses, so compare those of one loss. {parts}")
    seeds = outcome.seeds()
    counts = sorted(set(seeds.to_numpy().ravel()) - {0})
    if len(counts) > 1 or counts == [1]:
        single = [d for d in outcome.datasets if seeds.loc[d].to_numpy().max() == 1]
        n = "1 seed" if counts == [1] else f"{counts[0]} to {counts[-1]} seeds"
        alone = f"; 1 seed, and no spread, for every model on {_named(single)}" if single and counts != [1] else ""
        found.append(f"Means are over {n}{alone}. Models without anything drawn at random have one.")
    machines = outcome.done[["hardware", "device", "threads"]].drop_duplicates()
    if len(machines) > 1:
        found.append("Runs are of several machines or numbers of threads, so their times and memory do not compare.")
    return found


def ranking_words(ranking: Ranking) -> list[str]:
    """Return what was compared, what the tests say, and what they cannot say."""
    words = []
    if len(ranking.table):
        unit = UNITS[ranking.per]
        words.append(
            f"{len(ranking.ranks)} models on N = {len(ranking.table)} ({unit}): {_named(ranking.table.index)}."
        )
    if ranking.per == "block":
        words.append("Optimistic: horizons of one data set are not independent, so p-values are too low.")
    if ranking.left_out:
        words.append(f"Data sets not compared, since too few models are complete on them: {_named(ranking.left_out)}.")
    if ranking.lacking:
        parts = [f"{model} (lacks {_named(datasets)})" for model, datasets in ranking.lacking.items()]
        words.append(f"Models not compared: {'; '.join(parts)}.")
    if ranking.reason:
        return [*words, f"No test: {ranking.reason}."]
    if ranking.friedman is not None:
        statistic, p = ranking.friedman
        words.append(f"Friedman test that all models are alike: chi-squared {statistic:.2f}, p = {p:.3g}.")
    words.append(pairs_words(ranking))
    if ranking.least_p > ranking.alpha:
        words.append(
            f"With so few data sets and so many models this test cannot give a p-value below {ranking.least_p:.2g}, "
            "whatever the errors are: that it finds no difference says nothing."
        )
    return words


def pairs_words(ranking: Ranking) -> str:
    """Return which pairs differ by the test of pairs."""
    pairs = "; ".join(f"{a} before {b}" for a, b in ranking.different())
    return f"{TESTS[ranking.test]}: pairs that differ at {100 * ranking.alpha:g} %: {pairs or 'none'}."


def not_here(absent: Mapping[str, str]) -> list[str]:
    """Return what could not be run, with the reason."""
    return [f"{name}: {text if text.startswith('not run') else f'not run: {text}'}" for name, text in absent.items()]


def _difference(dataset: str, percent: float, spread: float) -> str:
    """Return the difference; it is within the spread if that of both models together is larger."""
    within = " within the spread of seeds" if 0 < abs(percent) <= spread else ""
    return f"{dataset} {percent:+.1f} %{within}"


def _listed(parts: Iterable[str]) -> str:
    text = ", ".join(parts)
    return f" ({text})" if text else ""


def _named(names: Iterable[object]) -> str:
    return ", ".join(" ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in names)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"

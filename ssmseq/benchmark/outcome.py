"""The rows of a suite's results sorted out: what is done, failed or not there yet; means and spreads over seeds."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

# those of pandas, whose own hints for what is chosen by label or by group are too wide to check against
Frame: TypeAlias = Any
Series: TypeAlias = Any

NEEDED = ("key", "status", "dataset", "model", "horizon", "seed")
BLOCK = ["dataset", "horizon"]
METRICS = ["mse", "mae", "mae_original", "mase", "wape", "crps", "coverage_80", "coverage_95"]
COSTS = ["parameters", "epochs", "fit_seconds", "ms_per_window", "peak_memory_mb"]
NUMBERS = [*METRICS, *COSTS, "lookback", "threads", "n_windows", "n_windows_expected"]
TEXTS = ["loss", "backend", "device", "hardware", "commit", "command", "finished"]
OBJECTS = ["versions", "steps", "mse_by_step", "example", "selected"]


class Outcome:
    """What the runs of a suite came to.

    Parameters
    ----------
    suite : object
        With `expected`, a list of dicts of dataset, model, horizon, seed and key, one for each run; and `absent`, a
        dict of the data sets and models that are not here, with the reason.
    rows : iterable of dict
        Lines of a result file; of several with the same key the last counts.

    Attributes
    ----------
    done : pandas.DataFrame
        One row per successful run, in the order of the suite: dataset, horizon, seed, model, `column` (the model, with
        its loss where the model was trained on several), `loss_kind` ("fredf" of "fredf 0.8"), metrics and costs (NaN
        where there is none) and the rest of the row.
    failed : list of dict
        Rows of the runs that failed, or whose errors are not finite.
    missing : list of dict
        Entries of `expected` that have no row, but for absent data sets and models.
    n_absent : int
        Entries of `expected` that have no row since their data set or model is absent.
    n_expected : int
    n_other : int
        Rows of runs that the suite does not ask for: other settings, or another suite. They count nowhere.
    columns, datasets : list of str
        Models with their losses, and data sets, of which a run succeeded; in the order of the suite.
    blocks : pandas.MultiIndex
        (dataset, horizon) of `datasets`, with every horizon that the suite asks for.

    Raises
    ------
    ValueError
        If a row lacks what it is sorted by, or none of the rows belongs to the suite.
    """

    def __init__(self, suite, rows: Iterable[dict[str, Any]]):
        latest = latest_rows(rows)
        expected = list(suite.expected)
        wanted = {e["key"] for e in expected}
        self.n_expected = len(expected)
        self.n_other = sum(key not in wanted for key in latest)
        if latest and self.n_other == len(latest):
            raise ValueError(
                f"none of the {len(latest)} rows is a run of suite {suite.name}: their keys belong to other settings "
                f"or to another suite; run `ssmseq benchmark run {suite.name}`, or name the suite that the rows are of"
            )
        without_row = [e for e in expected if e["key"] not in latest]
        self.missing = [e for e in without_row if not {e["dataset"], e["model"]} & set(suite.absent)]
        self.n_absent = len(without_row) - len(self.missing)
        # a key stands for settings, not for a name: two names of a suite may share a row
        found = [{**latest[e["key"]], **e} for e in expected if e["key"] in latest]
        self.failed = [failed for row in found if (failed := _failure(row)) is not None]
        self.done: Frame = _frame([row for row in found if _failure(row) is None])
        self.columns = list(dict.fromkeys(self.done["column"]))
        order = dict.fromkeys((e["dataset"], e["horizon"]) for e in expected)
        self.datasets = [d for d in dict.fromkeys(d for d, _ in order) if (self.done["dataset"] == d).any()]
        blocks = [(d, h) for d in self.datasets for h in sorted(h for other, h in order if other == d)]
        self.blocks: Any = pd.MultiIndex.from_tuples(blocks, names=BLOCK)
        self._asked = pd.DataFrame(expected, columns=["dataset", "model", "horizon", "seed", "key"])

    def mean(self, metric: str) -> Frame:
        """Return the mean over seeds, (dataset, horizon) x columns; NaN where no run succeeded."""
        return self._by_seed(metric, "mean")

    def spread(self, metric: str) -> Frame:
        """Return the sample standard deviation over seeds, like `mean`; NaN for fewer than two seeds."""
        return self._by_seed(metric, "std")

    def seeds(self) -> Frame:
        """Return the number of seeds that succeeded, like `mean`."""
        return self._by_seed("mse", "count").fillna(0).astype(int)

    def seeds_asked(self) -> Frame:
        """Return the number of seeds that the suite asks for, like `mean`; a model's columns share it."""
        counts = self._asked.groupby([*BLOCK, "model"]).size().unstack().reindex(self.blocks).fillna(0).astype(int)
        models = self.done.drop_duplicates("column").set_index("column")["model"]
        return pd.DataFrame({c: counts[models[c]] for c in self.columns}, index=self.blocks)

    def average(self, metric: str) -> Frame:
        """Return the mean of a data set's horizons, datasets x columns; NaN where a horizon is missing."""
        means = self.mean(metric)
        return pd.DataFrame({d: means.loc[d].mean(skipna=False) for d in self.datasets}, index=self.columns).T

    def average_spread(self, metric: str) -> Frame:
        """Return the standard deviation over seeds of a data set's average; only seeds with every horizon count."""
        by_seed = self.done.pivot_table(index=["dataset", "column", "seed"], columns="horizon", values=metric)
        parts = {}
        for dataset in self.datasets:
            horizons = self.blocks[self.blocks.get_locs([dataset])].get_level_values("horizon")
            seeds = by_seed.loc[dataset].reindex(columns=horizons).dropna().mean(axis=1)
            parts[dataset] = seeds.groupby(level="column").std()
        return pd.DataFrame(parts, index=self.columns).T

    def odd_windows(self) -> Frame:
        """Return the runs whose number of scored windows is not that of the formula, or has no formula beside it."""
        return self.done[self.done["n_windows"] != self.done["n_windows_expected"]]

    def differing_windows(self) -> list[tuple[str, int]]:
        """Return the (dataset, horizon) for which the formula gave several numbers: models saw other test parts."""
        counts = self.done.groupby(BLOCK, sort=False)["n_windows_expected"].nunique(dropna=False)
        return [block for block in self.blocks if counts.get(block, 1) > 1]

    def find(self, name: str) -> str | None:
        """Return the column of a model: that of this name, else the first whose name begins with it; else None."""
        lower = [c.lower() for c in self.columns]
        exact = [c for c, low in zip(self.columns, lower, strict=True) if low == name.lower()]
        begins = [c for c, low in zip(self.columns, lower, strict=True) if low.startswith(name.lower())]
        return next(iter(exact + begins), None)

    def _by_seed(self, metric: str, how: str) -> Frame:
        grouped = self.done.groupby([*BLOCK, "column"])[metric].agg(how)
        return grouped.unstack("column").reindex(index=self.blocks, columns=self.columns)


def latest_rows(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the last row of each key; ValueError for a row that lacks what it is sorted by."""
    latest = {}
    for number, row in enumerate(rows, 1):
        lacking = [name for name in NEEDED if row.get(name) is None]
        if lacking:
            raise ValueError(
                f"row {number} of the results lacks {', '.join(lacking)}; every row needs {', '.join(NEEDED)}: "
                "write rows with `ssmseq benchmark run`"
            )
        latest[row["key"]] = row
    return latest


def with_columns(done: Frame) -> Frame:
    """Add `loss_kind`, and `column`: the model, with the kind of its loss where there are several of a model."""
    kinds = done["loss"].map(lambda loss: str(loss).split()[0] if pd.notna(loss) else "")
    several = kinds.groupby(done["model"]).transform("nunique") > 1
    names = done["model"].where(~several, done["model"] + " (" + kinds + ")")
    return done.assign(loss_kind=kinds, column=names)


def complete_frame(rows: Sequence[dict[str, Any]]) -> Frame:
    """Return rows as a frame that has every column, with None and NaN where a row lacks one."""
    names = list(dict.fromkeys([*NEEDED, *NUMBERS, *TEXTS, *OBJECTS]))
    frame: Frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})
    frame[NUMBERS] = frame[NUMBERS].astype(float)
    return frame


def _frame(rows: Sequence[dict[str, Any]]) -> Frame:
    return with_columns(complete_frame(rows))


def _failure(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row with a reason if its run failed."""
    if row["status"] != "ok":
        return {**row, "reason": row.get("reason") or "no reason was recorded"}
    wrong = [name for name in ("mse", "mae") if row.get(name) is None or not np.isfinite(row[name])]
    if wrong:
        return {**row, "reason": f"{' and '.join(wrong)} of the forecasts: not finite, the training diverged"}
    return None

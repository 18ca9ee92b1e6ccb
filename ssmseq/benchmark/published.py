"""Published errors, as printed, beside ours: `published.csv` names the sources, their links and their protocols."""

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ssmseq.benchmark.outcome import Frame, Outcome

LOOKBACK = 96  # of every number in published.csv
TOLERANCE = 2.0  # per cent within which an average counts as reproduced


class Source(NamedTuple):
    """Where published numbers are from, and in what their protocol is known to differ."""

    title: str
    link: str
    protocol: str


SOURCES = {
    "s-mamba": Source(
        "S-Mamba (arXiv 2403.11144), main results",
        "https://arxiv.org/abs/2403.11144",
        "One seed; learning rate, width and depth chosen by hand for each data set and horizon; trained on MSE. All "
        "columns but S-Mamba's are those reported by iTransformer (arXiv 2310.06625).",
    ),
    "karma": Source(
        "KARMA (arXiv 2506.08939), table 2",
        "https://arxiv.org/abs/2506.08939",
        "One seed; KARMA is trained on the FreDF loss (MSE on traffic), so its errors compare only with models trained "
        "on that loss. S-Mamba, iTransformer and Autoformer were run again by its authors, with a loss that the paper "
        "does not state; PatchTST, TimesNet, DLinear and FEDformer are copied from the S-Mamba table.",
    ),
}


def published() -> Frame:
    """Read the published errors.

    Returns
    -------
    pandas.DataFrame
        model, dataset, horizon (rows), mse and mae (standardised), loss ("mse", "fredf" or "unknown") and source, a key
        of `SOURCES`. The look-back is 96 rows throughout.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"), comment="#")


def beside_published(outcome: Outcome) -> Frame:
    """Put our means over seeds beside the published errors of the same model.

    A model of ours is that of a publication if its name is the published one, or begins with it and goes on with
    another word ("KARMA released" is KARMA), upper or lower case.

    Parameters
    ----------
    outcome : Outcome

    Returns
    -------
    pandas.DataFrame
        One row per source, column, data set and horizon, and one per average over the published horizons (horizon
        "average", where we have them all): source, column, dataset, horizon, mse, mae, spread (of our MSE over seeds,
        NaN for one), seeds, published_mse, published_mae, mse_percent, mae_percent (of ours above theirs) and obstacle,
        which says why the two do not compare, empty if they do.
    """
    theirs, models = published(), outcome.done.drop_duplicates("column").set_index("column")["model"]
    ours = {metric: outcome.mean(metric) for metric in ("mse", "mae")}
    ours |= {"spread": outcome.spread("mse"), "seeds": outcome.seeds()}
    average_spread, rows = outcome.average_spread("mse"), []
    for column in outcome.columns:
        name = _published_name(models[column], theirs["model"].unique())
        same = theirs[theirs["model"] == name]
        for source, dataset in ((s, d) for s in dict.fromkeys(same["source"]) for d in outcome.datasets):
            printed = same[(same["source"] == source) & (same["dataset"] == dataset)]
            if printed.empty:
                continue
            mine = pd.DataFrame({name: frame.loc[dataset, column] for name, frame in ours.items()})
            labels = {"source": source, "column": column, "dataset": dataset}
            labels["obstacle"] = _obstacle(outcome, column, dataset, printed["loss"].iloc[0])
            rows += [labels | row for row in _beside(mine, average_spread.loc[dataset, column], printed)]
    names = ["source", "column", "dataset", "horizon", "mse", "mae", "spread", "seeds", "published_mse"]
    return pd.DataFrame(rows, columns=[*names, "published_mae", "mse_percent", "mae_percent", "obstacle"])


def within_tolerance(beside: Frame) -> pd.Series:
    """Say of each row whether MSE and MAE are both within `TOLERANCE` per cent of the published ones."""
    return beside[["mse_percent", "mae_percent"]].abs().max(axis=1) <= TOLERANCE


def _beside(mine: Frame, average_spread: float, printed: Frame) -> list[dict]:
    """Compare the horizons that both have, and their average where ours are all those printed, and no others."""
    theirs = printed.set_index("horizon")[["mse", "mae"]]
    found = mine.dropna(subset="mse")
    found = found.loc[[h for h in theirs.index if h in found.index]]
    if len(found) == len(theirs) == len(mine):
        average = {**found[["mse", "mae"]].mean(), "spread": average_spread, "seeds": found["seeds"].min()}
        found.loc["average"], theirs.loc["average"] = average, theirs.mean()
    rows = []
    for horizon, row in found.iterrows():
        percent = {f"{name}_percent": 100 * (row[name] / x - 1) for name, x in theirs.loc[horizon].items()}
        cell = {"horizon": horizon, **row, "seeds": int(row["seeds"])}
        rows.append(cell | {f"published_{name}": x for name, x in theirs.loc[horizon].items()} | percent)
    return rows


def _published_name(model: str, names) -> str | None:
    """Return the longest published name that a model's name is, or begins with before another word."""
    fitting = [n for n in names if re.match(rf"{re.escape(n)}(?![\w-])", model, flags=re.IGNORECASE)]
    return max(fitting, key=len, default=None)


def _obstacle(outcome: Outcome, column: str, dataset: str, loss: str) -> str:
    """Return why our errors do not compare with published ones."""
    done = outcome.done
    mine = done[(done["column"] == column) & (done["dataset"] == dataset)]
    other = sorted({int(n) for n in mine["lookback"].dropna() if n != LOOKBACK})
    kinds = sorted(set(mine["loss_kind"]) - {"", loss})
    reasons = [f"look-back {', '.join(map(str, other))}, theirs {LOOKBACK}"] if other else []
    if loss == "unknown":
        reasons.append("the loss that theirs was trained on is not stated")
    elif kinds:
        reasons.append(f"trained on {', '.join(kinds)}, theirs on {loss}")
    return "; ".join(reasons)

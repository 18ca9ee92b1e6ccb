"""Which model is better over data sets: average ranks, the Friedman test, and tests of every pair.

Horizons of one data set are forecasts of the same rows and so not independent: by default its horizons are averaged
first and a data set counts once. Demsar (2006) recommends the Friedman test with a test of pairs after it; Benavoli et
al. (2016) show why those should be Wilcoxon's, which do not depend on the other models compared.

References
----------
J. Demsar. Statistical comparisons of classifiers over multiple data sets. JMLR 7, 2006.
A. Benavoli, G. Corani, F. Mangili. Should we really use post-hoc tests based on mean-ranks? JMLR 17, 2016.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from ssmseq.benchmark.outcome import Frame, Series

LEAST_DATASETS = 3  # of which models are tested
TESTS = {"wilcoxon": "Wilcoxon signed-rank tests with Holm's correction", "nemenyi": "Nemenyi's test"}
UNITS = {"dataset": "data sets", "block": "data set and horizon"}


@dataclass(frozen=True)
class Ranking:
    """Average ranks of models, and which pairs of them differ.

    Attributes
    ----------
    scores : pandas.DataFrame
        What was given, with its gaps.
    table : pandas.DataFrame
        The errors compared, without gaps: data sets (or data set and horizon) x models.
    ranks : pandas.Series
        Average rank of each model, 1 the lowest error; ties share the mean of their ranks; best first.
    per : {"dataset", "block"}
    test : {"wilcoxon", "nemenyi"}
    alpha : float
        Level of significance.
    friedman : tuple of float, optional
        Chi-squared and p-value of the Friedman test; None for fewer than three models or data sets.
    p_values : pandas.DataFrame, optional
        Of every pair, models x models, corrected for their number; None for fewer than three data sets.
    least_p : float
        The lowest p-value that the test of pairs can give for so many data sets and models; 0 for Nemenyi's.
    lacking : dict of str to list of str
        Models not compared, and the data sets of which they lack a horizon.
    left_out : list of str
        Data sets not compared.
    reason : str
        Why there is no test; empty if there is one.
    """

    scores: Frame
    table: Frame
    ranks: Series
    per: str
    test: str
    alpha: float
    friedman: tuple[float, float] | None = None
    p_values: Frame = None
    least_p: float = 0.0
    lacking: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    reason: str = ""

    def different(self) -> list[tuple[str, str]]:
        """Return the pairs (better, worse by average rank) whose p-value is below `alpha`."""
        if self.p_values is None:
            return []
        names = list(self.ranks.index)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return [(a, b) for a, b in pairs if self.p_values.loc[a, b] < self.alpha]


def rank_models(scores: Frame, *, per: str = "dataset", test: str = "wilcoxon", alpha: float = 0.05) -> Ranking:
    """Rank models by their errors and test their differences.

    Parameters
    ----------
    scores : pandas.DataFrame
        Mean errors over seeds, (dataset, horizon) x models; NaN where a model has none. Only models that are complete
        on all data sets compared enter; the data sets are chosen so that the table is largest, and at least three if
        there are.
    per : {"dataset", "block"}
        What counts as one observation: a data set, its horizons averaged, or each horizon of it. The second is
        optimistic, for horizons of a data set are not independent.
    test : {"wilcoxon", "nemenyi"}
        Of pairs. Wilcoxon's compares logarithms of errors, so that data sets weigh alike whatever their level.
    alpha : float

    Returns
    -------
    Ranking

    Raises
    ------
    ImportError
        If scikit-posthocs is not installed.
    ValueError
        For another choice, or if an error is not above 0.
    """
    for name, value, choices in (("per", per, UNITS), ("test", test, TESTS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if (scores <= 0).any(axis=None):
        raise ValueError("errors must be above 0: a forecast without any error leaves nothing to compare; remove it")
    averages = scores.groupby(level=0, sort=False).agg(lambda errors: errors.mean(skipna=False))
    datasets, models = _largest_complete(averages)
    table = averages.loc[datasets, models] if per == "dataset" else scores.loc[datasets, models]
    lacking = {m: [d for d in datasets if np.isnan(averages.loc[d, m])] for m in scores.columns if m not in models}
    left_out = [d for d in averages.index if d not in datasets]
    ranks = table.rank(axis=1).mean().sort_values(kind="stable")
    ranking = {"scores": scores, "table": table, "ranks": ranks, "per": per, "test": test, "alpha": alpha}
    ranking |= {"lacking": lacking, "left_out": left_out}
    if len(models) < 2:
        return Ranking(**ranking, reason="fewer than two models are complete on a data set")
    if len(datasets) < LEAST_DATASETS:
        count = "1 data set" if len(datasets) == 1 else f"{len(datasets)} data sets"
        reason = f"models are compared on {count}, and a test needs at least {LEAST_DATASETS}"
        return Ranking(**ranking, reason=reason)
    found = stats.friedmanchisquare(*table.to_numpy().T) if len(models) > 2 else None
    n_pairs = len(models) * (len(models) - 1) // 2
    return Ranking(
        **ranking,
        friedman=None if found is None else (float(found.statistic), float(found.pvalue)),
        p_values=_pairs(table, test),
        least_p=min(1.0, n_pairs * 2.0 ** (1 - len(table))) if test == "wilcoxon" else 0.0,
    )


def _largest_complete(averages: Frame) -> tuple[list[str], list[str]]:
    """Return data sets and models without a gap between them: the choice with the most cells.

    Data sets enter in the order of how many models have them. Three data sets with two models go before fewer.
    """
    there = averages.notna()
    order = there.sum(axis=1).sort_values(ascending=False, kind="stable").index
    best, best_size = ([], []), (False, 0)
    for n in range(1, len(order) + 1):
        models = [m for m in there.columns if there.loc[order[:n], m].all()]
        size = (n >= LEAST_DATASETS and len(models) > 1, n * len(models))
        if models and size >= best_size:
            best, best_size = ([d for d in averages.index if d in order[:n]], models), size
    return best


def _pairs(table: Frame, test: str) -> Frame:
    """Return the p-value of every pair of models."""
    posthocs = import_posthocs()
    if test == "nemenyi":
        return posthocs.posthoc_nemenyi_friedman(table.reset_index(drop=True))
    logarithms: Frame = np.log(table)
    long = logarithms.melt(var_name="model", value_name="error")
    with np.errstate(invalid="ignore"):  # models with the same errors everywhere: their p-value is 1
        return posthocs.posthoc_wilcoxon(long, val_col="error", group_col="model", p_adjust="holm")


def import_posthocs():
    """Return scikit_posthocs; ImportError with the remedy if there is none."""
    try:
        import scikit_posthocs
    except ImportError as error:
        raise ImportError('comparisons of models need scikit-posthocs: pip install "ssmseq[benchmark]"') from error
    return scikit_posthocs

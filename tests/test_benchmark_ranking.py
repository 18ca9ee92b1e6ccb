"""Ranks of models over data sets, and the tests of their differences, against scipy and numbers computed by hand."""

import sys
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

pytest.importorskip("scikit_posthocs")
pytest.importorskip("matplotlib")

from ssmseq.benchmark import figures
from ssmseq.benchmark.ranking import rank_models
from ssmseq.benchmark.summary import ranking_words


def scores_of(errors: dict[str, list], horizons=(96, 192)) -> pd.DataFrame:
    """Errors of models, one after the other for each data set and horizon."""
    n_datasets = len(next(iter(errors.values()))) // len(horizons)
    blocks = [(f"data{d}", h) for d in range(n_datasets) for h in horizons]
    return pd.DataFrame(errors, index=pd.MultiIndex.from_tuples(blocks, names=["dataset", "horizon"]), dtype=float)


def random_scores(n_datasets=7, models="abcd", seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return scores_of({m: list(rng.uniform(0.2, 2, 2 * n_datasets)) for m in models})


def test_average_ranks_by_hand_with_ties():
    # averages over horizons: data0 a 2, b 2, c 3; data1 a 1, b 5, c 4; data2 a 6, b 3, c 3
    scores = scores_of({"a": [1, 3, 1, 1, 6, 6], "b": [2, 2, 5, 5, 3, 3], "c": [3, 3, 4, 4, 1, 5]})
    ranking = rank_models(scores)
    assert ranking.ranks.to_dict() == {"a": (1.5 + 1 + 3) / 3, "b": (1.5 + 3 + 1.5) / 3, "c": (3 + 2 + 1.5) / 3}
    assert list(ranking.ranks.index) == ["a", "b", "c"]
    by_block = rank_models(scores, per="block")
    assert by_block.ranks["a"] == (1 + 2.5 + 1 + 1 + 3 + 3) / 6  # data0 192: b has 2, a and c both 3
    assert len(ranking.table) == 3
    assert len(by_block.table) == 6


def test_ties_within_a_block_share_the_mean_rank():
    ranking = rank_models(scores_of({"a": [1, 1, 1], "b": [1, 2, 1], "c": [1, 3, 2]}, horizons=(96,)))
    assert ranking.ranks.to_dict() == pytest.approx(
        {"a": (2 + 1 + 1.5) / 3, "b": (2 + 2 + 1.5) / 3, "c": (2 + 3 + 3) / 3}
    )


@pytest.mark.parametrize("per", ["dataset", "block"])
def test_friedman_and_wilcoxon_with_holm_against_scipy(per):
    scores = random_scores(n_datasets=10) * [1.0, 1.3, 2.5, 6.0]
    table = scores.groupby(level=0).mean() if per == "dataset" else scores
    ranking = rank_models(scores, per=per)
    expected = stats.friedmanchisquare(*(table[m] for m in "abcd"))
    assert ranking.friedman == pytest.approx((expected.statistic, expected.pvalue))
    pairs = list(combinations("abcd", 2))
    raw = np.array([stats.wilcoxon(np.log(table[x]) - np.log(table[y])).pvalue for x, y in pairs])
    held, largest = {}, 0.0
    for position, i in enumerate(np.argsort(raw)):  # Holm: the i-th smallest times the number of those not yet passed
        largest = max(largest, min(1.0, raw[i] * (len(raw) - position)))
        held[pairs[i]] = largest
    assert 0 < min(held.values()) < max(held.values()) < 1  # so that corrections are told apart
    for (x, y), p in held.items():
        assert ranking.p_values.loc[x, y] == pytest.approx(p)
        assert ranking.p_values.loc[y, x] == pytest.approx(p)


def test_nemenyi_against_its_formula():
    scores = random_scores(n_datasets=5)
    ranking = rank_models(scores, test="nemenyi")
    k, n = 4, 5
    for x, y in combinations("abcd", 2):
        distance = abs(ranking.ranks[x] - ranking.ranks[y]) / np.sqrt(k * (k + 1) / (6 * n))
        expected = stats.studentized_range.sf(distance * np.sqrt(2), k, np.inf)
        assert ranking.p_values.loc[x, y] == pytest.approx(expected, abs=1e-6)
    assert ranking.least_p == 0


@given(seed=st.integers(0, 1000), factor=st.floats(1e-3, 1e3))
@settings(max_examples=4, deadline=None)
def test_the_level_of_a_data_set_does_not_matter(seed, factor):
    scores = random_scores(seed=seed)
    scaled = scores.copy()
    scaled.loc["data3"] *= factor
    pd.testing.assert_frame_equal(rank_models(scores).p_values, rank_models(scaled).p_values)


def test_the_least_p_value_is_reached_by_the_clearest_difference():
    n = 6
    scores = scores_of({"a": [1.0] * 2 * n, "b": [1 + 0.1 * i for i in range(1, 2 * n + 1)]})
    ranking = rank_models(scores)
    assert ranking.least_p == 2 / 2**n
    assert ranking.p_values.loc["a", "b"] == pytest.approx(2 / 2**n)
    assert ranking.friedman is None  # two models
    assert ranking.different() == [("a", "b")]
    assert any("a before b" in words for words in ranking_words(ranking))


def test_a_p_value_above_the_level_is_no_difference():
    scores = scores_of({"a": [1.0] * 5, "b": [2.0, 2.1, 2.2, 2.3, 2.4]}, horizons=(96,))
    ranking = rank_models(scores)
    assert ranking.p_values.loc["a", "b"] == pytest.approx(1 / 16)
    assert ranking.different() == []
    assert rank_models(scores, alpha=0.1).different() == [("a", "b")]
    assert rank_models(random_scores(models="abc")).friedman is not None


def test_too_few_data_sets_for_so_many_models_are_said_to_prove_nothing():
    ranking = rank_models(random_scores(n_datasets=5))
    assert ranking.least_p == pytest.approx(6 * 2 / 2**5)
    assert (ranking.p_values.to_numpy()[~np.eye(4, dtype=bool)] >= ranking.least_p - 1e-12).all()
    assert "cannot give a p-value below 0.38" in ranking_words(ranking)[-1]
    assert not any("cannot give" in words for words in ranking_words(rank_models(random_scores(12, "ab"))))


def test_equal_models_do_not_differ():
    scores = random_scores(models="ab")
    scores["twin"] = scores["a"]
    ranking = rank_models(scores)
    assert ranking.p_values.loc["a", "twin"] == 1
    assert ranking.ranks["a"] == ranking.ranks["twin"]


def test_only_models_complete_on_the_data_sets_compared_enter():
    scores = random_scores(n_datasets=6)
    scores.loc[("data1", 192), "b"] = scores.loc[("data2", 96), "b"] = np.nan
    scores.loc["data5", ["a", "c", "d"]] = np.nan
    ranking = rank_models(scores)
    assert list(ranking.table.index) == ["data0", "data1", "data2", "data3", "data4"]
    assert set(ranking.table.columns) == {"a", "c", "d"}
    assert ranking.lacking == {"b": ["data1", "data2"]}
    assert ranking.left_out == ["data5"]
    words = " ".join(ranking_words(ranking))
    assert "b (lacks data1, data2)" in words
    assert "too few models are complete on them: data5" in words


def test_three_data_sets_with_two_models_go_before_two_with_many():
    scores = random_scores(n_datasets=3, models="abcdef")
    scores.loc["data2", list("cdef")] = np.nan
    ranking = rank_models(scores)
    assert set(ranking.table.columns) == {"a", "b"}
    assert len(ranking.table) == 3


def test_fewer_than_three_data_sets_have_no_test_and_no_diagram():
    ranking = rank_models(random_scores(n_datasets=2))
    assert ranking.p_values is None
    assert ranking.friedman is None
    assert ranking.different() == []
    assert "on 2 data sets" in ranking.reason
    assert ranking_words(ranking)[-1] == f"No test: {ranking.reason}."
    assert len(ranking.ranks) == 4  # ranks need no test
    with pytest.raises(ValueError, match="compared on 2 data sets"):
        figures.critical_difference(ranking, figures.Styles("abcd", None))
    assert "on 1 data set," in rank_models(random_scores(n_datasets=1)).reason
    blocks = rank_models(random_scores(n_datasets=2), per="block")
    assert blocks.p_values is None  # four horizons are still two data sets


def test_a_single_model_and_none_at_all():
    assert "fewer than two models" in rank_models(random_scores(models="a")).reason
    empty = rank_models(random_scores().iloc[:0])
    assert "fewer than two models" in empty.reason
    assert len(empty.ranks) == 0


def test_blocks_are_called_optimistic():
    assert any(words.startswith("Optimistic") for words in ranking_words(rank_models(random_scores(), per="block")))
    assert not any(words.startswith("Optimistic") for words in ranking_words(rank_models(random_scores())))


def test_wrong_choices_and_errors_of_zero_are_refused():
    scores = random_scores()
    with pytest.raises(ValueError, match="per must be one of dataset, block, got 'seed'"):
        rank_models(scores, per="seed")
    with pytest.raises(ValueError, match="test must be one of wilcoxon, nemenyi"):
        rank_models(scores, test="t")
    scores.iloc[0, 0] = 0
    with pytest.raises(ValueError, match="above 0"):
        rank_models(scores)


def test_without_scikit_posthocs_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scikit_posthocs", None)
    with pytest.raises(ImportError, match=r'pip install "ssmseq\[benchmark\]"'):
        rank_models(random_scores())


def test_the_diagram_joins_what_does_not_differ():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 2, 24)
    errors = {"good": base, "nearly": base * rng.uniform(0.99, 1.01, 24), "bad": base * 3, "worse": base * 4}
    ranking = rank_models(scores_of({name: list(x) for name, x in errors.items()}))
    assert set(ranking.different()) == {(a, b) for a in ("good", "nearly") for b in ("bad", "worse")} | {
        ("bad", "worse")
    }
    axis = figures.critical_difference(ranking, figures.Styles(list(errors), None)).axes[0]
    texts = [text.get_text() for text in axis.texts]
    assert sorted(text.strip("()0123456789. ") for text in texts) == ["bad", "good", "nearly", "worse"]
    assert any(f"({ranking.ranks['good']:.2f})" in text for text in texts)
    bars = [line for line in axis.lines if len(set(line.get_ydata())) == 1 and line.get_ydata()[0] < 0]
    assert len(bars) == 1
    assert sorted(bars[0].get_xdata()) == sorted([ranking.ranks["good"], ranking.ranks["nearly"]])

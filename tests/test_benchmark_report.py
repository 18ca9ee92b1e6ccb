"""The numbers and the words of a suite's report, against arithmetic on its rows."""

import re

import numpy as np
import pytest
from benchmark_cases import LEVELS, change, make, row_of, text_of

pytest.importorskip("scikit_posthocs")

from ssmseq.benchmark.outcome import Outcome
from ssmseq.benchmark.published import beside_published, published, within_tolerance
from ssmseq.benchmark.report import build_report
from ssmseq.benchmark.summary import against_reference, warnings


def table_of(markdown: str, title: str) -> dict[str, dict[str, str]]:
    """The first table below a heading: rows by their first cell, cells by the first line of their column's head."""
    after = markdown.split(f"## {title}\n", 1)[1]
    lines = re.search(r"(^\|.*\n)+", after, flags=re.MULTILINE).group().splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = [head.split("<br>")[0] for head in cells[0]]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in cells[2:]}


def test_means_spreads_and_averages_by_hand():
    suite, rows = make(seeds={"S-Mamba": 3})
    errors = {96: [0.3, 0.4, 0.5], 192: [0.5, 0.7, 0.6]}
    for horizon, values in errors.items():
        for seed, mse in enumerate(values):
            change(rows, {"mse": mse}, model="S-Mamba", dataset="ETTh1", horizon=horizon, seed=seed)
    outcome = Outcome(suite, rows)
    assert outcome.mean("mse").loc[("ETTh1", 96), "S-Mamba"] == pytest.approx(0.4)
    assert outcome.spread("mse").loc[("ETTh1", 96), "S-Mamba"] == pytest.approx(np.std(errors[96], ddof=1))
    assert outcome.average("mse").loc["ETTh1", "S-Mamba"] == pytest.approx(0.5)
    by_seed = [(a + b) / 2 for a, b in zip(*errors.values(), strict=True)]
    assert outcome.average_spread("mse").loc["ETTh1", "S-Mamba"] == pytest.approx(np.std(by_seed, ddof=1))
    assert np.isnan(outcome.spread("mse").loc[("ETTh1", 96), "ridge"])
    cells = table_of(build_report(suite, rows).markdown(), "Errors")
    assert cells["ETTh1 96 (3 seeds)"]["S-Mamba"] == "**0.400 ± 0.100**"
    assert cells["ETTh1 96 (3 seeds)"]["ridge"] == f"{0.4 * 1.096:.3f}"
    assert cells["ETTh1 average"]["S-Mamba"] == f"0.500 ± {np.std(by_seed, ddof=1):.3f}"
    assert cells["ETTh1 average"]["ridge"] == f"**{0.4 * (1.096 + 1.192) / 2:.3f}**"


def test_the_spread_of_an_average_is_of_seeds_with_every_horizon():
    suite, rows = make(seeds={"S-Mamba": 3})
    for (horizon, seed), mse in {(96, 0): 0.3, (192, 0): 0.5, (96, 1): 0.4, (192, 1): 0.6, (96, 2): 9.0}.items():
        change(rows, {"mse": mse}, key=f"S-Mamba-ETTh1-{horizon}-{seed}")
    rows = [r for r in rows if r["key"] != "S-Mamba-ETTh1-192-2"]
    assert Outcome(suite, rows).average_spread("mse").loc["ETTh1", "S-Mamba"] == pytest.approx(
        np.std([0.4, 0.5], ddof=1)
    )


def test_an_average_needs_every_horizon():
    suite, rows = make()
    rows = [r for r in rows if r["key"] != "S-Mamba-ETTh1-192-0"]
    report = build_report(suite, rows)
    cells = table_of(report.markdown(), "Errors")
    assert cells["ETTh1 192 (1 seed)"]["S-Mamba"] == "-"
    assert cells["ETTh1 average"]["S-Mamba"] == "-"
    assert cells["ETTh2 average"]["S-Mamba"] != "-"
    assert "Not compared on ETTh1, for want of a horizon." in text_of(report, "summary")


def test_later_rows_replace_earlier_ones_and_other_runs_do_not_count():
    suite, rows = make()
    later = row_of(suite.expected[0], mse=0.123)
    stranger = row_of({**suite.expected[0], "key": "other"}, mse=9.0)
    report = build_report(suite, [*rows, later, stranger])
    assert report.outcome.mean("mse").loc[("ETTh1", 96), "ridge"] == 0.123
    assert report.outcome.n_other == 1
    assert "1 row of runs that the suite does not ask for" in text_of(report, "warnings")
    failed = {**suite.expected[1], "status": "failed", "reason": "MemoryError"}
    assert len(Outcome(suite, [*rows, failed]).failed) == 1
    assert not Outcome(suite, [failed, *rows]).failed


def test_rows_of_another_suite_or_without_what_they_are_sorted_by_are_refused():
    suite, rows = make()
    with pytest.raises(ValueError, match="none of the 1 rows is a run of suite small"):
        Outcome(suite, [{**rows[0], "key": "other"}])
    del rows[1]["status"], rows[1]["seed"]
    with pytest.raises(ValueError, match="row 2 of the results lacks status, seed"):
        Outcome(suite, rows)


def test_two_names_of_the_same_settings_share_a_row():
    suite, rows = make()
    twins = [{**e, "model": "ridge again"} for e in suite.expected if e["model"] == "ridge"]
    suite.expected += twins
    means = Outcome(suite, rows).mean("mse")
    assert (means["ridge again"] == means["ridge"]).all()


def test_failed_missing_and_absent_runs_are_told_apart():
    suite, rows = make(datasets=(*LEVELS, "traffic"), seeds={"S-Mamba": 2})
    suite.absent = {"traffic": "not run: traffic.csv is not here"}
    rows = [r for r in rows if r["dataset"] != "traffic"]
    change(rows, {"status": "failed", "reason": "MemoryError: a|b <c>"}, key="S-Mamba-ETTh1-96-0")
    change(rows, {"mse": float("nan")}, key="S-Mamba-ETTh1-96-1")
    rows = [r for r in rows if r["key"] not in ("S-Mamba-weather-192-1", "naive-ETTh2-96-0")]
    report = build_report(suite, rows)
    assert "Of 32 runs, 20 succeeded, 2 failed, 2 are not there yet and 8 need what is not here." in report.markdown()
    failed = report.markdown().split("Runs that failed.")[1].split("Runs that are not there yet.")[0]
    assert "| ETTh1 96 | S-Mamba | 0 | MemoryError: a\\|b &lt;c> |" in failed
    assert "mse of the forecasts: not finite" in failed
    missing = report.markdown().split("Runs that are not there yet.")[1]
    assert "| weather | S-Mamba | 192 (seed 1) |" in missing
    assert "| ETTh2 | naive | 96 (seed 0) |" in missing
    assert "traffic |" not in missing
    assert "traffic: not run: traffic.csv is not here" in text_of(report, "gaps")
    cells = table_of(report.markdown(), "Errors")
    assert cells["ETTh1 96 (2 seeds)"]["S-Mamba"] == "-"
    assert cells["weather 192 (2 seeds)"]["S-Mamba"].endswith("(1 of 2 seeds)**")


def test_a_model_has_a_column_for_each_kind_of_loss():
    suite, rows = make(models=("ridge", "KARMA", "RLinear"))
    change(rows, {"loss": "fredf 0.8"}, model="KARMA")
    change(rows, {"loss": "fredf 0.01"}, model="KARMA", dataset="weather")
    change(rows, {"loss": "fredf 0.8"}, model="RLinear", dataset="ETTh1")
    report = build_report(suite, rows)
    assert report.outcome.columns == ["ridge", "KARMA", "RLinear (fredf)", "RLinear (mse)"]
    assert "KARMA<br>loss fredf 0.01 or fredf 0.8; 1 seed" in report.markdown()
    cells = table_of(report.markdown(), "Errors")
    assert cells["ETTh1 96 (1 seed)"]["RLinear (mse)"] == "-"
    assert cells["weather 96 (1 seed)"]["RLinear (fredf)"] == "-"
    assert "Trained on fredf: KARMA; RLinear (fredf)." in text_of(report, "warnings")
    assert not any("losses" in text for text in warnings(Outcome(*make()), make()[0]))


def test_other_windows_than_the_formulas_are_loud():
    suite, rows = make()
    assert "MISMATCH" not in build_report(suite, rows).markdown()
    change(rows, {"n_windows": 88}, key="S-Mamba-ETTh1-96-0")
    change(rows, {"n_windows": 50, "n_windows_expected": 50}, key="naive-weather-192-0")
    report = build_report(suite, rows)
    alarms = text_of(report, "warnings")
    assert alarms.startswith("MISMATCH of windows")
    assert "ETTh1 96, weather 192" in alarms
    cells = table_of(report.markdown(), "Windows scored")
    assert "S-Mamba, seed 0: 88" in cells["ETTh1 96"]["scored"]
    assert "differs between models" in cells["weather 192"]["scored"]
    assert cells["ETTh2 96"]["scored"] == "all 3 runs agree"
    assert "MISMATCH" in table_of(report.markdown(), "Errors")["ETTh1 96 (1 seed)"]["S-Mamba"]
    change(rows, {"n_windows": None, "n_windows_expected": None}, key="naive-ETTh2-96-0")
    assert ("ETTh2", 96) in Outcome(suite, rows).differing_windows()
    assert len(Outcome(suite, rows).odd_windows()) == 2  # a count that was not recorded is not one that agrees


def test_what_is_better_than_ridge_is_said_with_figures():
    suite, rows = make(seeds={"S-Mamba": 2})
    change(rows, {"mse": 0.4}, model="ridge", dataset="weather")
    change(rows, {"mse": 0.35}, model="S-Mamba", dataset="weather", seed=0)
    change(rows, {"mse": 0.46}, model="S-Mamba", dataset="weather", seed=1)
    summary = text_of(build_report(suite, rows), "summary")
    assert (
        "S-Mamba is better than ridge on 2 of 3 data sets by average MSE (ETTh1 -10.0 %, ETTh2 -10.0 %), worse on 1 "
        "(weather +1.2 % within the spread of seeds)." in summary
    )
    assert "naive is better than ridge on 1 of 3 data sets by average MSE (weather -" not in summary
    assert "Lowest average MSE: S-Mamba on ETTh1, ETTh2; ridge on weather." in summary
    outcome = Outcome(suite, rows)
    assert against_reference(outcome, "naive")[0].startswith("ridge is better than naive on 3 of 3 data sets")
    assert (outcome.find("NAIVE"), outcome.find("s-m"), outcome.find("LSTM")) == ("naive", "S-Mamba", None)


def test_flagged_and_unranked_data_sets():
    suite, rows = make(datasets=(*LEVELS, "exchange_rate"))
    suite.warnings = {"exchange_rate": "A random walk.", "solar": "Not in the rows."}
    report = build_report(suite, rows, unranked=["exchange_rate"])
    assert "exchange_rate 96 † (1 seed)" in table_of(report.markdown(), "Errors")
    assert "† exchange_rate: A random walk." in text_of(report, "warnings")
    assert "solar" not in text_of(report, "warnings")
    assert list(report.ranking.table.index) == list(LEVELS)


def test_ranks_and_shades_within_a_row():
    suite, rows = make(models=("ridge", "S-Mamba", "naive", "other"))
    change(rows, {"mse": 0.5}, dataset="ETTh1", horizon=96)
    change(rows, {"mse": 0.7}, dataset="ETTh1", horizon=96, model="naive")
    table = next(s for s in build_report(suite, rows).sections if s.anchor == "errors").tables[0]
    first = next(row for row in table.rows if row[0].text == "ETTh1 96")
    assert [c.rank for c in first[1:]] == [1, 1, 4, 1]
    assert [c.shade for c in first[1:]] == [0, 0, 4, 0]
    second = next(row for row in table.rows if row[0].text == "ETTh1 192")
    assert [c.rank for c in second[1:]] == [2, 1, 4, 3]
    assert [table.rows[i][0].text for i in table.averages] == [f"{d} average" for d in LEVELS]


def test_published_numbers_are_those_of_the_papers():
    found = published()
    assert len(found) == 776
    assert found.groupby("source").size().to_dict() == {"s-mamba": 520, "karma": 256}
    assert not found.duplicated(["source", "model", "dataset", "horizon"]).any()
    means = found.groupby(["source", "model", "dataset"])[["mse", "mae"]].mean()
    printed = {  # averages as printed, which published.csv does not hold
        ("s-mamba", "S-Mamba", "ETTh1"): (0.455, 0.450),
        ("s-mamba", "S-Mamba", "traffic"): (0.414, 0.276),
        ("s-mamba", "S-Mamba", "PEMS03"): (0.122, 0.228),
        ("s-mamba", "S-Mamba", "solar"): (0.240, 0.273),
        ("s-mamba", "RLinear", "exchange_rate"): (0.378, 0.417),
        ("s-mamba", "iTransformer", "electricity"): (0.178, 0.270),
        ("karma", "KARMA", "electricity"): (0.168, 0.261),
        ("karma", "KARMA", "weather"): (0.250, 0.277),
        ("karma", "S-Mamba", "traffic"): (0.414, 0.275),
    }
    for cell, values in printed.items():
        assert means.loc[cell].to_list() == pytest.approx(values, abs=0.00101)
    losses = found[found["source"] == "karma"].groupby(["model", "dataset"])["loss"].first()
    assert losses["KARMA", "ETTh1"] == "fredf"
    assert losses["KARMA", "traffic"] == "mse"
    assert losses["S-Mamba", "ETTh1"] == "unknown"
    wide = found.pivot_table(index=["model", "dataset", "horizon"], columns="source", values="mse")
    for model in ("PatchTST", "TimesNet", "DLinear", "FEDformer"):  # which KARMA's table copied
        copied = wide.loc[model].dropna()
        assert len(copied) == 32
        assert (copied["karma"] == copied["s-mamba"]).all()


def test_beside_published_numbers():
    suite, rows = make(models=("S-Mamba", "KARMA released"), datasets=("ETTh1",), horizons=(96, 192, 336, 720))
    theirs = published().set_index(["source", "model", "dataset", "horizon"])
    for row in rows:
        source, model = ("s-mamba", "S-Mamba") if row["model"] == "S-Mamba" else ("karma", "KARMA")
        errors = theirs.loc[(source, model, "ETTh1", row["horizon"])]
        row |= {"mse": 1.01 * errors["mse"], "mae": 0.99 * errors["mae"]}
    beside = beside_published(Outcome(suite, rows)).set_index(["column", "source", "horizon"])
    one = beside.loc[("S-Mamba", "s-mamba", 336)]
    assert (one["published_mse"], one["published_mae"]) == (0.489, 0.468)
    assert one["mse_percent"] == pytest.approx(1.0)
    assert one["mae_percent"] == pytest.approx(-1.0)
    average = beside.loc[("S-Mamba", "s-mamba", "average")]
    assert average["published_mse"] == pytest.approx((0.386 + 0.443 + 0.489 + 0.502) / 4)
    assert average["mse"] == pytest.approx(1.01 * average["published_mse"])
    obstacles = beside["obstacle"].groupby(level=["column", "source"]).first().to_dict()
    assert obstacles == {
        ("S-Mamba", "s-mamba"): "",
        ("S-Mamba", "karma"): "the loss that theirs was trained on is not stated",
        ("KARMA released", "karma"): "trained on mse, theirs on fredf",
    }
    report = build_report(suite, rows)
    assert "S-Mamba: 1 of 1 average of MSE within 2 % of S-Mamba (arXiv 2403.11144)" in text_of(report, "published")
    assert "KARMA released:" not in text_of(report, "published")  # what does not compare is not counted
    assert within_tolerance(beside)[("S-Mamba", "s-mamba", "average")]
    row = table_of(report.markdown(), "Beside published numbers")["ETTh1 average"]  # the last of the averages: KARMA's
    assert row["within 2 %"] == "does not compare ‡ (trained on mse, theirs on fredf)"
    change(rows, {"mse": 0.6}, model="S-Mamba", horizon=720)
    report = build_report(suite, rows)
    percent = 100 * (1.01 * (0.386 + 0.443 + 0.489) + 0.6) / (0.386 + 0.443 + 0.489 + 0.502) - 100
    assert (
        f"0 of 1 average of MSE within 2 % of S-Mamba (arXiv 2403.11144), main results; outside: ETTh1 {percent:+.1f} %"
        in (text_of(report, "published"))
    )
    change(rows, {"lookback": 336}, model="S-Mamba")
    beside = beside_published(Outcome(suite, rows))
    assert set(beside[beside["source"] == "s-mamba"]["obstacle"]) == {"look-back 336, theirs 96"}
    assert beside_published(Outcome(*make(models=("ridge", "naive")))).empty


def test_an_average_beside_a_published_one_is_of_the_same_horizons():
    for horizons, has_average in (
        ((96, 192, 336, 720), True),
        ((96, 192, 336), False),
        ((96, 192, 336, 720, 960), False),
    ):
        suite, rows = make(models=("S-Mamba",), datasets=("ETTh1",), horizons=horizons)
        beside = beside_published(Outcome(suite, rows))
        assert ("average" in set(beside["horizon"])) == has_average
        assert 336 in set(beside["horizon"])


def test_names_are_matched_to_published_ones_at_whole_words():
    models = ("PatchTST (neuralforecast)", "dlinear", "S-Mamba-like", "TiDEs", "KARMA, MSE")
    suite, rows = make(models=models, datasets=("ETTh1",))
    assert set(beside_published(Outcome(suite, rows))["column"]) == {
        "PatchTST (neuralforecast)",
        "dlinear",
        "KARMA, MSE",
    }


def test_costs_and_other_errors():
    suite, rows = make(seeds={"S-Mamba": 2})
    change(rows, {"crps": 0.3, "coverage_80": 0.7, "coverage_95": 0.9}, model="S-Mamba")
    change(rows, {"coverage_80": 0.8}, model="S-Mamba", seed=1)
    change(rows, {"parameters": 2000, "fit_seconds": 20.0}, model="S-Mamba", horizon=192)
    change(rows, {"peak_memory_mb": 1500}, model="S-Mamba", horizon=192, seed=1)
    text = build_report(suite, rows).markdown()
    assert "| ETTh1 | S-Mamba | 1,000 to 2,000 | 10 | 16.0 | 0.500 | 1,500 | mse | compiled C++ | cpu | 1 |" in text
    assert "| ETTh1 96 | S-Mamba | 12.5 | 0.900 | 0.250 | 0.300 | 75.0 % | 90.0 % |" in text
    assert "| ETTh1 96 | ridge | 12.5 | 0.900 | 0.250 | - | - | - |" in text


def test_where_the_numbers_come_from():
    suite, rows = make()
    change(rows, {"commit": "abc", "hardware": "M4", "finished": "2026-11-25T00:00:00+00:00"}, dataset="weather")
    change(rows, {"selected": {"lookback": 336}}, key="ridge-ETTh1-96-0")
    report = build_report(suite, rows)
    cells = table_of(report.markdown(), "Where the numbers come from")
    assert cells["finished"]["which"] == "2026-11-21T14:00:00+00:00 to 2026-11-25T00:00:00+00:00"
    assert cells["commits"]["which"] == "58ecb4e, abc"
    assert cells["torch"]["which"] == "2.13"
    assert cells["hardware"]["which"] == "M4, cpu, 1 thread: 6 runs"
    assert cells["command"]["which"] == "ssmseq benchmark run small"
    assert "runs of 2026-11-21 to 2026-11-25, ssmseq 0.1" in report.markdown()
    assert "several machines" in text_of(report, "warnings")
    assert table_of(report.markdown(), "Chosen on validation")["ETTh1 96"]["chosen"] == "lookback 336"


def test_the_number_of_seeds_is_said():
    suite, rows = make(seeds={"S-Mamba": 3})
    suite.expected = [e for e in suite.expected if e["dataset"] != "weather" or e["seed"] == 0]
    report = build_report(suite, rows)
    assert "Means are over 1 to 3 seeds; 1 seed, and no spread, for every model on weather." in text_of(
        report, "warnings"
    )
    assert "S-Mamba<br>loss mse; 1 to 3 seeds" in report.markdown()
    assert "ridge<br>loss mse; 1 seed" in report.markdown()
    assert {"ETTh1 96 (3 seeds)", "weather 96 (1 seed)"} <= set(table_of(report.markdown(), "Errors"))

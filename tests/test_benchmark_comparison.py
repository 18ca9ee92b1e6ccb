"""Two files of rows beside each other, against scipy and against arithmetic on the rows."""

import json

import numpy as np
import pytest
from benchmark_cases import change, make
from scipy import stats

from ssmseq.benchmark.comparison import compare


def pair(seeds=3, **names):
    """The same rows twice; S-Mamba has several seeds."""
    return tuple(make(seeds={"S-Mamba": seeds}, **names)[1] for _ in range(2))


def cell_of(comparison, **where) -> dict:
    (found,) = [c for c in comparison.cells if all(c[k] == v for k, v in where.items())]
    return found


WHERE = {"dataset": "ETTh1", "horizon": 96, "model": "S-Mamba (loss mse)"}


def with_errors(a, b, *, model="S-Mamba"):
    """Rows of one cell with these errors, seed by seed."""
    rows = pair(len(a))
    for side, errors in zip(rows, (a, b), strict=True):
        for seed, mse in enumerate(errors):
            change(side, {"mse": mse}, key=f"{model}-ETTh1-96-{seed}")
    return rows


def test_the_same_rows_are_the_same():
    comparison = compare(*pair(), ("old", "new"))
    assert len(comparison.cells) == 3 * 3 * 2
    assert {c["verdict"] for c in comparison.cells} == {"same"}
    assert {c["fit_seconds_ratio"] for c in comparison.cells} == {1.0}
    assert comparison.only == {"old": [], "new": []}
    assert comparison.notes == []
    assert "same: 18." in comparison.summary()[0]
    assert not any("one in twenty" in text for text in comparison.summary())


def test_differences_are_paired_by_seed_and_their_interval_is_students():
    a, b = [0.40, 0.42, 0.45, 0.39], [0.41, 0.44, 0.45, 0.42]
    rows_a, rows_b = with_errors(a, b)
    rng = np.random.default_rng(0)
    rng.shuffle(rows_b)  # rows come in any order
    cell = cell_of(compare(rows_a, rows_b), **WHERE)
    found = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert cell["seeds"] == 4
    assert cell["difference"] == pytest.approx(np.mean(b) - np.mean(a))
    assert cell["difference"] - cell["half_width"] == pytest.approx(found.low)
    assert cell["difference"] + cell["half_width"] == pytest.approx(found.high)
    assert cell["percent"] == pytest.approx(100 * (np.mean(b) / np.mean(a) - 1))
    assert cell["verdict"] == "no difference beyond the spread of seeds"
    assert found.low < 0 < found.high


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([0.40, 0.42, 0.44], [0.45, 0.471, 0.489], "worse"),  # paired: seeds differ more than files do
        ([0.45, 0.471, 0.489], [0.40, 0.42, 0.44], "better"),
        ([0.40, 0.42, 0.44], [0.42, 0.40, 0.441], "no difference beyond the spread of seeds"),
        ([0.40], [0.41], "one seed, spread not known"),
        ([0.40, 0.42], [0.40 * (1 + 5e-7), 0.42], "same"),
        ([0.40], [0.40 * (1 + 2e-6)], "one seed, spread not known"),
    ],
)
def test_verdicts(a, b, verdict):
    comparison = compare(*with_errors(a, b))
    cell = cell_of(comparison, **WHERE)
    assert cell["verdict"] == verdict
    assert (cell["half_width"] is None) == (len(a) == 1)
    judged = verdict in ("better", "worse") or verdict.startswith("no difference")
    assert any("one in twenty" in text for text in comparison.summary()) == judged


def test_only_common_seeds_count():
    rows_a, rows_b = with_errors([0.4, 0.4, 9.0], [0.5, 0.5, 0.5])
    rows_b = [r for r in rows_b if r["key"] != "S-Mamba-ETTh1-96-2"]
    rows_a = [r for r in rows_a if r["key"] != "S-Mamba-ETTh2-96-0"]
    rows_b = [r for r in rows_b if r["key"] not in ("S-Mamba-ETTh2-96-1", "S-Mamba-ETTh2-96-2")]
    comparison = compare(rows_a, rows_b)
    cell = cell_of(comparison, **WHERE)
    assert (cell["seeds"], cell["mse_a"]) == (2, pytest.approx(0.4))
    assert comparison.notes == ["ETTh2 96, S-Mamba (loss mse) (suite small): no seed is in both files."]


def test_what_is_only_in_one_file_and_what_failed():
    rows_a, rows_b = pair()
    rows_b = [r for r in rows_b if r["dataset"] != "weather"]
    change(rows_a, {"status": "failed", "mse": None}, key="naive-ETTh1-96-0")
    change(rows_a, {"mse": float("inf")}, key="naive-ETTh1-192-0")
    comparison = compare(rows_a, rows_b, ("old", "new"))
    assert comparison.notes == ["2 runs of old failed and do not count."]
    assert comparison.only["new"] == [f"ETTh1 {h}, naive (loss mse) (suite small)" for h in (96, 192)]
    assert comparison.only["old"] == [
        f"weather {h}, {m} (loss mse) (suite small)" for m in ("ridge", "S-Mamba", "naive") for h in (96, 192)
    ]
    text = comparison.markdown()
    assert "Only in old:" in text
    assert "- weather 96, ridge (loss mse)" in text


def test_ratios_of_time_and_memory():
    rows_a, rows_b = pair()
    change(rows_b, {"fit_seconds": 6.0, "ms_per_window": 1.0, "peak_memory_mb": None}, model="ridge")
    change(rows_a, {"fit_seconds": 0.0}, model="naive")
    comparison = compare(rows_a, rows_b)
    cell = cell_of(comparison, **WHERE | {"model": "ridge (loss mse)"})
    assert (cell["fit_seconds_ratio"], cell["ms_per_window_ratio"]) == (0.5, 2.0)
    assert cell["peak_memory_mb_ratio"] is None
    assert cell_of(comparison, **WHERE | {"model": "naive (loss mse)"})["fit_seconds_ratio"] is None
    assert "Median training time of B: 0.75 times that of A." in comparison.summary()  # of 0.5 and 1


def test_other_machines_and_other_settings_are_said():
    rows_a, rows_b = pair()
    change(rows_b, {"hardware": "H200", "device": "cuda"}, model="S-Mamba")
    change(rows_b, {"params": {"alpha": 2.0, "beta": 3}, "lookback": 336}, model="ridge")
    for row in rows_b:
        row["key"] += "x" if row["model"] == "ridge" else ""
    comparison = compare(rows_a, rows_b, ("old", "new"))
    assert comparison.notes == [
        "Times and memory are of different machines or settings: old on EPYC, cpu, threads 1; new on EPYC, cpu, "
        "threads 1; H200, cuda, threads 1."
    ]
    settings = cell_of(comparison, **WHERE | {"model": "ridge (loss mse)"})["settings"]
    assert settings == "settings differ: alpha 1.0 -> 2.0; beta None -> 3; look-back 96 -> 336"
    assert cell_of(comparison, **WHERE)["settings"] == ""


def test_models_of_another_loss_are_not_the_same():
    rows_a, rows_b = pair()
    change(rows_b, {"loss": "fredf 0.8"}, model="S-Mamba")
    comparison = compare(rows_a, rows_b)
    assert not [c for c in comparison.cells if c["model"].startswith("S-Mamba")]
    assert len(comparison.only["A"]) == len(comparison.only["B"]) == 6


def test_two_models_and_two_suites():
    rows_a, rows_b = pair(models=("ridge",))[0], pair(models=("S-Mamba",))[1]
    for row in rows_b:
        row["suite"] = "other"
    comparison = compare(rows_a, rows_b, ("a", "b"))
    assert len(comparison.cells) == 6
    cell = cell_of(comparison, dataset="ETTh1", horizon=96)
    assert cell["model"] == "ridge (loss mse) -> S-Mamba (loss mse)"
    assert cell["percent"] == pytest.approx(-10)
    assert cell["seeds"] == 1
    assert comparison.notes == [
        "The suites differ: a is of small; b is of other.",
        "The models differ: a is of ridge (loss mse); b is of S-Mamba (loss mse).",
    ]


def test_nothing_in_common():
    rows_a, rows_b = pair(models=("ridge", "naive"))[0], pair(models=("S-Mamba", "TSM2"))[1]
    comparison = compare(rows_a, rows_b)
    assert comparison.cells == []
    assert comparison.summary() == ["A and B have no forecasts in common."]
    assert "no forecasts in common" in comparison.markdown()
    assert compare([], []).cells == []
    with pytest.raises(ValueError, match="row 1 of the results lacks key"):
        compare([{}], [])


def test_as_json_and_as_markdown():
    rows_a, rows_b = with_errors([0.40, 0.42, 0.44], [0.45, 0.471, 0.489])
    change(rows_b, {"peak_memory_mb": None})
    comparison = compare(rows_a, rows_b, ("same.jsonl", "same.jsonl"))
    assert comparison.names == ("same.jsonl (A)", "same.jsonl (B)")
    found = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert found["cells"] == comparison.cells
    assert found["summary"] == comparison.summary()
    row = next(line for line in comparison.markdown().splitlines() if line.startswith("| ETTh1 96 | S-Mamba"))
    assert [c.strip() for c in row.split("|")[3:9]] == ["0.4200", "0.4700", "+0.0500 ± 0.0025", "+11.90", "3", "worse"]

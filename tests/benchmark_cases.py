"""Suites and rows of their runs, as the tests of the benchmark's report and of its page use them."""

from types import SimpleNamespace

LEVELS = {"ETTh1": 0.4, "ETTh2": 0.3, "weather": 0.2}
FACTORS = {"ridge": 1.0, "S-Mamba": 0.9, "naive": 2.0}


def row_of(run: dict, **changes) -> dict:
    """A row as `ssmseq benchmark run` writes it."""
    steps = [1, run["horizon"]]
    row = {
        **run,
        "suite": "small",
        "estimator": "SomeForecaster",
        "params": {"alpha": 1.0},
        "loss": "mse",
        "lookback": 96,
        "status": "ok",
        "reason": None,
        "mse": LEVELS.get(run["dataset"], 1.0) * FACTORS.get(run["model"], 1.1) * (1 + run["horizon"] / 1000),
        "mae": 0.5,
        "mae_original": 12.5,
        "mase": 0.9,
        "wape": 0.25,
        "crps": None,
        "coverage_80": None,
        "coverage_95": None,
        "n_windows": 100,
        "n_windows_expected": 100,
        "steps": steps,
        "mse_by_step": [0.1, 0.7],
        "example": None,
        "parameters": 1000,
        "epochs": 10,
        "fit_seconds": 12.0,
        "ms_per_window": 0.5,
        "peak_memory_mb": 700,
        "backend": "compiled C++",
        "device": "cpu",
        "hardware": "EPYC",
        "threads": 1,
        "selected": None,
        "versions": {"ssmseq": "0.1", "torch": "2.13"},
        "commit": "58ecb4e",
        "command": "ssmseq benchmark run small",
        "finished": "2026-11-21T14:00:00+00:00",
    }
    return row | changes


def make(seeds=None, models=("ridge", "S-Mamba", "naive"), horizons=(96, 192), datasets=tuple(LEVELS)):
    """A suite, and the rows of all its runs."""
    seeds = seeds or {}
    runs = [
        {"dataset": d, "model": m, "horizon": h, "seed": s, "key": f"{m}-{d}-{h}-{s}"}
        for m in models
        for d in datasets
        for h in horizons
        for s in range(seeds.get(m, 1))
    ]
    suite = SimpleNamespace(name="small", title="A small suite", description="Of tests.", warnings={}, absent={})
    suite.expected = runs
    return suite, [row_of(run) for run in runs]


def change(rows: list[dict], changes: dict, **where) -> int:
    """Change the rows that are so; return how many."""
    found = [row for row in rows if all(row[k] == v for k, v in where.items())]
    for row in found:
        row.update(changes)
    assert found
    return len(found)


def text_of(report, anchor: str) -> str:
    section = next(s for s in report.sections if s.anchor == anchor)
    return "\n".join([*section.alarms, *section.text])


def pictures_of(report, anchor: str) -> list:
    return list(next(s for s in report.sections if s.anchor == anchor).pictures)

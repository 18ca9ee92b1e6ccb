"""Time of one step of generation: the step kernel against the scan called with L = 1 and against PyTorch."""

import statistics
from collections.abc import Callable
from functools import partial

import peers
import torch
from cases import NAMES, PER_STEP, make_inputs
from rows import Rows
from timing import clock_for, take_turns

import ssmseq_kernels

SAMPLE = 5e-3  # seconds that one timed sample should last: many steps, for the clock's sake


def measure_decode(rows: Rows, shapes: list[tuple[int, int, int]], repeats: int, budget: float) -> None:
    for n_batch, d, n in shapes:
        cells = {
            name: {"what": "decode", "shape": f"{n_batch}x{d}x{n}", "sizes": (n_batch, d, n), "method": name}
            for name in ("selective_state_update", "scan at L = 1", *peers.STEPS)
        }
        missing = {name: cell for name, cell in cells.items() if not rows.has(cell)}
        if not missing:
            continue
        steps = _steps(n_batch, d, n)
        with torch.no_grad():
            counts = {name: _steps_per_sample(step) for name, step in steps.items()}
            calls: dict[str, Callable[[], object]] = {
                name: partial(_repeat, step, counts[name]) for name, step in steps.items()
            }
            times = take_turns(calls, repeats, budget, clock_for(torch.get_num_threads()))
        medians = {name: 1e6 * statistics.median(times[name]) / counts[name] for name in steps}
        for name, cell in missing.items():
            rows.add(cell, _values(name, times, counts, medians))


def _values(name: str, times: dict[str, list[float]], counts: dict[str, int], medians: dict[str, float]) -> dict:
    if name not in medians:
        return {"skipped": peers.missing(name)}
    best = 1e6 * min(times[name]) / counts[name]
    ratio = medians[name] / medians["selective_state_update"]
    return {"median_us": medians[name], "min_us": best, "runs": len(times[name]), "ratio_to_ours": ratio}


def _steps(n_batch: int, d: int, n: int) -> dict[str, Callable[[], object]]:
    """Return each way to take a step, from the state that the step before has left."""
    inputs = make_inputs((n_batch, 1, d, n))
    args = [inputs[name][:, 0].contiguous() if name in PER_STEP else inputs[name] for name in NAMES]
    whole = [inputs[name] for name in NAMES]
    state = torch.zeros(n_batch, d, n)

    def scan() -> None:
        nonlocal state
        _, state = ssmseq_kernels.selective_scan(*whole, initial_state=state, return_final_state=True)

    steps = {
        "selective_state_update": partial(
            ssmseq_kernels.selective_state_update, state.clone(), *args, delta_softplus=True
        ),
        "scan at L = 1": scan,
    }
    there = {name: step for name, step in peers.STEPS.items() if peers.missing(name) is None}
    return {**steps, **{name: partial(step, state.clone(), *args) for name, step in there.items()}}


def _repeat(step: Callable[[], object], count: int) -> None:
    for _ in range(count):
        step()


def _steps_per_sample(step: Callable[[], object]) -> int:
    """Return how many steps fill one sample."""
    clock, count = clock_for(torch.get_num_threads()), 1
    while True:
        started = clock()
        _repeat(step, count)
        if clock() - started > SAMPLE / 2:
            return count
        count *= 2

"""Time of the scan, ours and the rivals in turn in one process, and how ours scales over two threads."""

import statistics
from collections.abc import Sequence

import torch
from cases import METHODS, MODES, PLAIN, Method, Sizes, make_call, make_calls, make_inputs
from rows import Rows
from timing import clock_for, refusal, seconds, take_turns

SCALING_FROM = 1e-3  # seconds on one thread below which a second thread is not worth asking about


def measure_speed(rows: Rows, shapes: dict[str, Sizes], names: Sequence[str], repeats: int, budget: float) -> None:
    methods = [method for name in names for method in METHODS[name]]
    for shape, sizes in shapes.items():
        for mode in (*MODES, "backward"):
            asked = [m for m in methods if mode in modes_of(m)]
            cells = {m: {"what": "speed", "shape": shape, "sizes": sizes, "mode": mode, **m.fields()} for m in asked}
            missing = {m: cell for m, cell in cells.items() if not rows.has(cell)}
            if missing:
                _measure_group(rows, missing, mode, sizes, repeats, budget)


def modes_of(method: Method) -> tuple[str, ...]:
    return ("forward", "backward") if method.name == "kernel" else MODES


def _measure_group(rows: Rows, cells: dict[Method, dict], mode: str, sizes: Sizes, repeats: int, budget: float) -> None:
    """Time the methods of one shape and mode side by side; ours is always among them, for the ratio."""
    reasons = {m: refusal(m, mode, sizes, budget) for m in cells}
    runnable = [m for m, reason in reasons.items() if reason is None]
    if runnable and mode in modes_of(PLAIN) and PLAIN not in runnable:
        runnable.insert(0, PLAIN)
    clock = clock_for(torch.get_num_threads())
    times = take_turns(make_calls(runnable, mode, sizes), repeats, budget, clock)
    base = statistics.median(times[PLAIN]) if PLAIN in times else None
    for method, cell in cells.items():
        reason = reasons[method]
        rows.add(cell, {"skipped": reason} if reason else _summary(times[method], sizes, base))


def _summary(times: list[float], sizes: Sizes, base: float | None) -> dict:
    n_batch, length, d, n = sizes
    median = statistics.median(times)
    return {
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(times),
        "runs": len(times),
        "ratio_to_ours": base and median / base,
        "ns_per_bldn": 1e9 * median / (n_batch * length * d * n),
        "clock": "process" if torch.get_num_threads() == 1 else "wall",
    }


def measure_scaling(rows: Rows, shapes: dict[str, Sizes], threads: int, repeats: int, budget: float) -> None:
    """Compare wall times of ours on one thread and on more, in turn: the whole call, and the kernel alone.

    Fresh memory for large results is paged in by the system, whose share does not shrink with threads. Another busy
    process makes every thread wait for the one that it interrupts: then only the fastest runs tell.
    """
    before = torch.get_num_threads()
    for shape, sizes in shapes.items():
        for method in (PLAIN, METHODS["kernel"][0]):
            for mode in modes_of(method):
                cell = {"what": "scaling", "shape": shape, "sizes": sizes, "mode": mode, "threads": threads}
                if not rows.has({**cell, **method.fields()}):
                    rows.add({**cell, **method.fields()}, _scaling(method, mode, sizes, threads, repeats, budget))
    torch.set_num_threads(before)


def _scaling(method: Method, mode: str, sizes: Sizes, threads: int, repeats: int, budget: float) -> dict:
    call = make_call(method, mode, make_inputs(sizes))

    def on(count: int):
        def run() -> None:
            torch.set_num_threads(count)
            call()

        return run

    clock = clock_for(threads)
    on(1)()
    single = seconds(on(1), clock)
    if single < SCALING_FROM:
        return {"skipped": f"only {1e3 * single:.2g} ms on one thread"}
    times = take_turns({1: on(1), threads: on(threads)}, repeats, budget, clock)
    one, more = (statistics.median(times[n]) for n in (1, threads))
    best = min(times[1]) / min(times[threads])
    return {"one_ms": 1e3 * one, "more_ms": 1e3 * more, "speedup": one / more, "speedup_of_fastest": best}

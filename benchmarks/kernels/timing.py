"""Clocks, turns, and the guard that keeps a cell from taking hours or all of the memory."""

import math
import time
from collections.abc import Callable, Hashable
from functools import cache
from typing import TypeVar

import peers
from cases import OURS, Method, Sizes, make_call, make_inputs

Name = TypeVar("Name", bound=Hashable)
MEMORY_LIMIT = 10e9  # bytes
SHORT = 20e-3  # seconds
PROBE = 32  # steps of the first trial of a long scan
# Upper bounds of the memory beyond the inputs, in float32 tensors of (B, L, D) and of (B, L, D, N), first forward, then
# forward and backward; the `memory` rows are the check.
FOOTPRINT = {
    "chunked": ((3, 0.5), (7, 1)),
    "eager_loop": ((12, 0), (12, 4)),
    "reference_loop": ((4, 4), (8, 11)),
    "mambapy_pscan": ((4, 8), (8, 14)),
    "transformers_slow": ((4, 5), (8, 11)),
}


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def clock_for(threads: int) -> Callable[[], float]:
    """Process CPU time, which other programs disturb less, on one thread; wall time on more."""
    return time.process_time if threads == 1 else time.perf_counter


def take_turns(
    calls: dict[Name, Callable[[], object]], repeats: int, budget: float, clock: Callable[[], float]
) -> dict[Name, list[float]]:
    """Run all calls in turn, A B C A B C; return the seconds of each, without a first run that has successors.

    A call that has no room for another run within its budget sits out the remaining turns. A short one runs untimed
    before each timed run: what the call before it left in the caches is not its concern.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            taken = times[name]
            if not taken or sum(taken) + taken[-1] <= budget:
                if taken and taken[-1] < SHORT:
                    call()
                taken.append(seconds(call, clock))
    return {name: taken[1:] or taken for name, taken in times.items()}


@cache
def refusal(method: Method, mode: str, sizes: Sizes, budget: float) -> str | None:
    """Say why a cell must not be run: a package, memory or time; None if it may.

    Time is foreseen from trials at 32, 128, ... steps. Far ahead that is a guess: what seems to be over the budget is
    refused when the next trial would be dear too, or there is none.
    """
    if method.name in OURS:
        return None
    reason = peers.missing(method.name)
    if reason:
        return reason
    needed = footprint(method.name, mode, sizes)
    if needed > MEMORY_LIMIT:
        return f"would take about {needed / 1e9:.0f} GB"
    n_batch, length, d, n = sizes
    trials: list[tuple[int, float]] = []
    probe = PROBE
    while probe * 2 <= length:
        trials.append((probe, _probe(method, mode, (n_batch, probe, d, n))))
        whole = _extrapolate(trials, length)
        last = 8 * probe > length
        if whole > budget and (last or _extrapolate(trials, 4 * probe) > budget / 4):
            return f"would take about {whole:.0f} s: {trials[-1][1]:.2g} s at {probe} steps"
        probe *= 4
    return None


def footprint(name: str, mode: str, sizes: Sizes) -> float:
    """Return an upper bound of the memory of a rival in bytes, inputs and their gradients included."""
    n_batch, length, d, n = sizes
    if name == "mambapy_pscan":
        length = 1 << (length - 1).bit_length()
    rows, states = FOOTPRINT[name][mode == "forward+backward"]
    return 4.0 * n_batch * length * d * (3 + rows + states * n)


def _probe(method: Method, mode: str, sizes: Sizes) -> float:
    call = make_call(method, mode, make_inputs(sizes))
    return min(seconds(call, time.perf_counter) for _ in range(2))


def _extrapolate(trials: list[tuple[int, float]], length: int) -> float:
    """Foretell the seconds at a length from the growth between the last two trials, linear after only one."""
    at, last = trials[-1]
    growth = 1.0
    if len(trials) > 1:
        before, earlier = trials[-2]
        growth = max(1.0, math.log(last / earlier) / math.log(at / before))
    return last * (length / at) ** growth

"""How times are taken on a GPU: with events, in turn, over inputs that no cache holds; and with the host's clock."""

import statistics
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from cuda_device import Call

Name = TypeVar("Name", bound=Hashable)
ROUNDS_OF_CACHE = 2  # bytes that pass between two uses of one copy of the inputs, in sizes of the cache
MOST_COPIES = 64
WARM_UP = 3
FEWEST = 5  # timed runs, whatever the budget
GRAPH_BELOW = 3e-3  # seconds up to which a run is worth capturing in a graph
SAMPLES_OF_GRAPH = 20
GRAPH_LAUNCH = 50e-6  # seconds of the host, at most


def copies_for(n_bytes: int, cache: int) -> int:
    """How many copies of inputs of so many bytes to rotate, so that each has left the cache when it comes again."""
    wanted = ROUNDS_OF_CACHE * cache
    return 1 if n_bytes >= wanted else min(MOST_COPIES, -(-wanted // max(n_bytes, 1)) + 1)


def take_turns(device, calls: Mapping[Name, Sequence[Call]], repeats: int, budget: float) -> dict[Name, list[float]]:
    """Run all methods in turn, A B C A B C, each time on other copies of the inputs; return device seconds of each.

    Parameters
    ----------
    device : Cuda or Rehearsal
    calls : dict
        For each method, one call for each copy of the inputs.
    repeats : int
    budget : float
        Seconds that one method may take in all; it has at least FEWEST runs.
    """
    host = {name: _warm_up(device, ways) for name, ways in calls.items()}
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for j, (name, ways) in enumerate(calls.items()):
            taken = times[name]
            if len(taken) < FEWEST or sum(taken) < budget:
                taken.append(device.timed(ways[(i * len(calls) + j) % len(ways)], host[name]))
    return times


def _warm_up(device, ways: Sequence[Call]) -> float:
    """Compile and run a few times; return the seconds that the host needs to launch."""
    for i in range(WARM_UP):
        ways[i % len(ways)]()
    device.synchronize()
    began = time.perf_counter()
    ways[0]()
    seconds = time.perf_counter() - began
    device.synchronize()
    return seconds


def alone(device, call: Call, repeats: int, budget: float) -> list[float]:
    """Time a slow method alone: as often as the budget allows after a first run, but three times at least."""
    first = device.timed(call)
    runs = max(3, min(repeats, int(budget / max(first, 1e-9))))
    return [device.timed(call) for _ in range(runs)]


def graph_seconds(device, calls: Sequence[Call]) -> dict[str, Any]:
    """Return microseconds per call when all of them are replayed as one CUDA graph, or why there is no graph."""
    try:
        replay = device.graph(calls)
        replay()
        samples = [device.timed(replay, GRAPH_LAUNCH) for _ in range(SAMPLES_OF_GRAPH)]
    except RuntimeError as error:
        return {"graph_error": first_line(error)}
    return {"graph_us": 1e6 * statistics.median(samples) / len(calls)}


def op_seconds(device, calls: dict[Name, Call], rounds: int, count: int) -> dict[Name, dict[str, float]]:
    """Time whole operations as a caller sees them, Python included, the methods in turn.

    Returns
    -------
    dict
        Of each method, medians in microseconds: `op_us` of an operation in a row of `count` (what limits it, host or
        device), `host_us` until such an operation has returned, `latency_us` of a single one until its result is there.
    """
    found: dict[Name, list[tuple[float, float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            device.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                call()
            returned = time.perf_counter()
            device.synchronize()
            done = time.perf_counter()
            call()
            device.synchronize()
            single = time.perf_counter() - done
            found[name].append(((done - began) / count, (returned - began) / count, single))
    names = ("op_us", "host_us", "latency_us")
    return {
        name: dict(zip(names, (1e6 * statistics.median(x) for x in zip(*samples, strict=True)), strict=True))
        for name, samples in found.items()
    }


def summary(times: list[float]) -> dict[str, Any]:
    """Return the columns of a row for timed runs."""
    ordered = sorted(times)
    return {
        "median_us": 1e6 * statistics.median(ordered),
        "min_us": 1e6 * ordered[0],
        "p90_us": 1e6 * ordered[int(0.9 * (len(ordered) - 1))],
        "runs": len(ordered),
    }


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]

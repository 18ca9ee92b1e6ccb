"""Carrying out a suite: a process for each run, rows appended as they come, what is there already left alone."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ssmseq.benchmark.suites import Run, Suite


class Results:
    """The rows of a suite in a file of JSON lines; the last row of a key counts.

    Parameters
    ----------
    path : path-like
        Made with its folder when the first row comes. Several processes may append to it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """Return the last row of each key, in the order of their first appearance.

        Raises
        ------
        ValueError
            If a line is not JSON, but for a last one without an end, which an interrupted writer left.
        """
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")
        found: dict[str, dict] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    continue
                raise ValueError(f"{self.path}, line {number}, is not JSON: {error}; mend or remove it") from error
            found[row["key"]] = row
        return list(found.values())

    def append(self, row: dict[str, Any]) -> None:
        """Add a row in a single write; the start of a row that an interrupted writer left at the end goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(0)
            last = file.read().rpartition(b"\n")[2]
            if last and _is_json(last):  # an editor took the end of the line
                file.write(b"\n")
            elif last:
                file.truncate(file.tell() - len(last))
            file.write(json.dumps(row).encode() + b"\n")

    def done(self) -> set[str]:
        """Return the keys of the runs that need not be repeated."""
        return {row["key"] for row in self.rows() if row["status"] == "ok"}


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def find_absent(suite: Suite, *, download: bool = True) -> Suite:
    """Return the suite without the runs whose data or peer packages are not here; `absent` says why.

    Parameters
    ----------
    suite : Suite
    download : bool
        Whether registered data sets that are not here are downloaded.
    """
    from ssmseq.benchmark import data, models

    absent: dict[str, str] = {}
    for run in {r.dataset: r for r in suite.runs}.values():
        try:
            data.load(run.dataset, run.data, folder=run.folder, download=download)
        except OSError as error:
            absent[run.dataset] = " ".join(str(error).split())
    for run in {r.model: r for r in suite.runs}.values():
        reason = models.why_absent(run)
        if reason is not None:
            absent[run.model] = reason
    runs = [r for r in suite.runs if r.dataset not in absent and r.model not in absent]
    return replace(suite, runs=runs, absent=absent)


def share_of(runs: list[Run], shard: str | None) -> list[Run]:
    """Return every n-th run for a shard "i/n"; i counts from 1.

    Raises
    ------
    ValueError
        If the shard is not of that form.
    """
    if shard is None:
        return runs
    first, slash, n = shard.partition("/")
    if not (slash and first.isdigit() and n.isdigit() and 1 <= int(first) <= int(n)):
        raise ValueError(f"shard must be i/n with i from 1 to n, such as 2/8, got {shard!r}")
    return runs[int(first) - 1 :: int(n)]


def carry_out(
    suite: Suite,
    results: Results,
    *,
    jobs: int = 1,
    threads: int | None = None,
    device: str = "auto",
    shard: str | None = None,
    engine: str = "process",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Perform the runs of a suite that have no row yet.

    Parameters
    ----------
    suite : Suite
        As `find_absent` returns it.
    results : Results
    jobs : int
        Runs at a time.
    threads : int, optional
        Of each run; by default the cores divided by `jobs`.
    device : {"auto", "cpu", "gpu"}
    shard : str, optional
        "i/n": only every n-th run, from the i-th on.
    engine : {"process", "ray"}
        Processes on this machine, or tasks of the Ray cluster that `ray.init` finds.
    say : callable
        Given a line of progress after each run.

    Returns
    -------
    dict
        How many runs were "performed", "skipped" (a row was there) and "failed".
    """
    mine = share_of(suite.runs, shard)
    done = results.done()
    open_runs = list({r.key: r for r in mine if r.key not in done}.values())
    counts = {"performed": 0, "skipped": len(mine) - len(open_runs), "failed": 0}
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    clock = Clock(results.rows(), jobs)
    perform = _on_ray if engine == "ray" else _in_processes
    for run, row in perform(open_runs, jobs, threads, device):
        results.append({**row, "suite": suite.name, "command": command_of(suite, run, threads, device)})
        failed = row["status"] == "failed"
        counts["failed" if failed else "performed"] += 1
        clock.ended(run, row["wall_seconds"])
        at = counts["performed"] + counts["failed"]
        outcome = f"FAILED: {row['reason']}" if failed else f"MSE {row['mse']:.4f}, MAE {row['mae']:.4f}"
        left = clock.left([r for r in open_runs if r.key not in clock.seen])
        say(f"[{at}/{len(open_runs)}] {describe(run)}: {outcome}, {row['wall_seconds']:.0f} s{left}")
    return counts


def command_of(suite: Suite, run: Run, threads: int, device: str) -> str:
    """Return the command line that repeats one run."""
    words = ["ssmseq", "benchmark", "run", suite.name, "--dataset", run.dataset, "--model", run.model]
    words += ["--horizon", str(run.horizon), "--seed", str(run.seed), "--threads", str(threads), "--device", device]
    return shlex.join(words)


def describe(run: Run) -> str:
    """Return a run in words."""
    return f"{run.dataset}, {run.horizon} ahead, {run.model}, seed {run.seed}"


class Clock:
    """How long is left, from the seconds that runs of the same model and data, or of any, have taken."""

    def __init__(self, rows: list[dict], jobs: int):
        self.jobs = jobs
        self.seen: set[str] = set()
        self.known: dict[Any, list[float]] = {}
        for row in rows:
            if row["status"] == "ok" and row.get("wall_seconds"):
                self._note(row["model"], row["dataset"], row["wall_seconds"])

    def _note(self, model: str, dataset: str, seconds: float) -> None:
        for key in ((model, dataset), model, None):
            self.known.setdefault(key, []).append(seconds)

    def ended(self, run: Run, seconds: float) -> None:
        """Note a run."""
        self.seen.add(run.key)
        self._note(run.model, run.dataset, seconds)

    def left(self, runs: list[Run]) -> str:
        """Return how long these runs will take, as the end of a sentence."""
        if not runs:
            return ""
        guesses = [
            median(next(self.known[k] for k in ((r.model, r.dataset), r.model, None) if k in self.known)) for r in runs
        ]
        minutes = sum(guesses) / self.jobs / 60
        return f"; about {minutes / 60:.1f} h left" if minutes > 90 else f"; about {max(1, round(minutes))} min left"


class Processes:
    """Processes that threads start and that are ended together, after which none starts any more."""

    def __init__(self):
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen] = []
        self._over = False

    def start(self, environment: dict[str, str]) -> subprocess.Popen:
        """Start the process of a run."""
        with self._lock:
            if self._over:
                raise CancelledError("the suite was interrupted")
            self._started.append(_start(environment))
            return self._started[-1]

    def end(self) -> None:
        """Kill those that still run."""
        with self._lock:
            self._over = True
            for process in self._started:
                if process.poll() is None:
                    process.kill()


def _start(environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ssmseq.benchmark.running"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run_in_process(run: Run, threads: int, device: str, processes: Processes | None = None) -> dict[str, Any]:
    """Perform a run in a fresh process; a crash becomes a row with the status "failed" and its reason."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    process = (processes or Processes()).start(environment)
    out, err = process.communicate(json.dumps({**run.as_dict(), "device": device, "parent": os.getpid()}))
    seconds = round(time.perf_counter() - began, 2)
    if process.returncode == 0:
        return json.loads(out.splitlines()[-1]) | {"wall_seconds": seconds}
    return failed_row(run, _reason(process.returncode, err), seconds)


def failed_row(run: Run, reason: str, seconds: float) -> dict[str, Any]:
    """Return the row of a run that did not end well."""
    named = {name: getattr(run, name) for name in ("dataset", "model", "horizon", "lookback", "seed")}
    return {"key": run.key, **named, "status": "failed", "reason": reason, "wall_seconds": seconds}


def _reason(code: int, err: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system ended it: most likely out of memory)" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    lines = [line for line in err.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code} without a message"


def _in_processes(runs: list[Run], jobs: int, threads: int, device: str) -> Iterator[tuple[Run, dict[str, Any]]]:
    processes = Processes()
    pool = ThreadPoolExecutor(jobs)
    try:
        futures: dict[Future, Run] = {pool.submit(run_in_process, r, threads, device, processes): r for r in runs}
        waiting = set(futures)
        while waiting:
            # not for longer: where a signal reaches another thread than this one, it is seen between two waits only
            ended, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            for future in ended:
                yield futures[future], future.result()
    finally:  # after Ctrl-C, at any line above, or a consumer that stops, nothing is left running
        processes.end()
        pool.shutdown(cancel_futures=True)


def _on_ray(runs: list[Run], jobs: int, threads: int, device: str) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Perform runs as tasks of a Ray cluster: each starts its own process on the node that it lands on.

    A lost worker or node costs its task two more attempts before it counts as failed. `jobs` is ignored: the cluster's
    cores and GPUs decide how many run at a time.
    """
    from ssmseq.fanout import connected

    gpus = 1 if device == "gpu" else 0
    with connected() as ray:
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=2)(run_in_process)
        waiting = {task.remote(run, threads, device): run for run in runs}
        while waiting:
            (ended, *_), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(ended)
            try:
                yield run, ray.get(ended)
            except ray.exceptions.RayError as error:
                yield run, failed_row(run, f"Ray: {' '.join(str(error).split())[:300]}", 0.0)

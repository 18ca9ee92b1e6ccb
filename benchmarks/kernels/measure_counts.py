"""Instructions retired by one forward and one backward pass of the kernel, per (B, L, D, N).

A child runs the kernel K times, another 2 K times, under a counter of the whole process; their difference is the
kernel's alone. Valgrind knows no AVX-512, so callgrind counts the AVX2 kernels; perf counts those in use. Unlike times,
the counts do not depend on what else the machine does.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

import torch
from cases import METHODS, Sizes, make_calls
from rows import Rows

from ssmseq_kernels import cpu

SIZES: Sizes = (8, 256, 128, 16)


@dataclass(frozen=True)
class Counter:
    """A program that counts instructions, and how to read its report on stderr."""

    program: str
    arguments: tuple[str, ...]
    pattern: str
    calls: int  # fewer for the slow one, more for the one that also sees a little of the system


CALLGRIND = Counter("valgrind", ("--tool=callgrind", "--callgrind-out-file=/dev/null"), r"Collected : (\d+)", 2)
PERF = Counter("perf", ("stat", "-x", ",", "-e", "instructions:u"), r"^(\d+),", 40)


def measure_counts(rows: Rows, isa: str, *, with_callgrind: bool = True) -> None:
    counters = [(PERF, isa)]
    if with_callgrind:
        counters.append((CALLGRIND, "avx2" if isa == "avx512" else isa))
    for counter, counted in counters:
        for mode in ("forward", "backward"):
            cell = {"what": "counts", "method": counter.program, "isa": counted, "mode": mode, "sizes": SIZES}
            if not rows.has(cell):
                rows.add(cell, _count(counter, mode, counted))


def _count(counter: Counter, mode: str, isa: str) -> dict:
    if shutil.which(counter.program) is None:
        return {"skipped": f"{counter.program} is not installed"}
    once, twice = (_run(counter, mode, isa, calls) for calls in (counter.calls, 2 * counter.calls))
    if isinstance(once, str) or isinstance(twice, str):
        return {"skipped": once if isinstance(once, str) else twice}
    n_batch, length, d, n = SIZES
    return {"instructions_per_bldn": (twice - once) / (counter.calls * n_batch * length * d * n)}


def _run(counter: Counter, mode: str, isa: str, calls: int) -> int | str:
    """Return the instructions of a child that runs the kernel so many times, or why there is no number."""
    child = [sys.executable, __file__, mode, isa, str(calls), *map(str, SIZES)]
    settings = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}  # the same work before the kernel
    done = subprocess.run([counter.program, *counter.arguments, *child], capture_output=True, text=True, env=settings)
    found = re.search(counter.pattern, done.stderr, re.MULTILINE)
    if done.returncode or found is None:
        return f"{counter.program} gave no count: {done.stderr.strip()[-200:]}"
    return int(found.group(1))


def main() -> None:
    mode, isa, calls, *sizes = sys.argv[1:]
    torch.set_num_threads(1)
    cpu._cpu.set_isa(isa)
    kernel = METHODS["kernel"][0]
    n_batch, length, d, n = map(int, sizes)
    call = make_calls([kernel], mode, (n_batch, length, d, n))[kernel]
    for _ in range(int(calls)):
        call()


if __name__ == "__main__":
    main()

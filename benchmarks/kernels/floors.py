"""What the processor allows at best, measured by floors.cpp, and how near the kernel alone comes to it."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from cases import METHODS, Sizes, make_calls
from rows import Rows
from timing import take_turns

from ssmseq_kernels import cpu

SOURCE = Path(__file__).with_name("floors.cpp")
REGISTER = {"avx512": ["-march=native", "-DBYTES=64"], "avx2": ["-march=native", "-mno-avx512f", "-DBYTES=32"]}


def measure_floors(rows: Rows, shapes: dict[str, Sizes], repeats: int, budget: float) -> None:
    """Add the floors of this machine, and for every shape the time of the kernel alone as a share of them.

    The floor of a shape is the larger of two: the arithmetic of the recurrence without that of the steps (softplus,
    SiLU), and the bytes that inputs and results must travel at the rate of a plain copy.
    """
    machine = {"what": "floors", "shape": "machine"}
    cells = {
        (shape, mode): {"what": "floors", "shape": shape, "sizes": sizes, "mode": mode}
        for shape, sizes in shapes.items()
        for mode in ("forward", "backward")
    }
    missing = {key: cell for key, cell in cells.items() if not rows.has(cell)}
    if rows.has(machine) and not missing:
        return
    floors = run_floors()
    rows.add(machine, floors)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # floors are those of one core
    for (_, mode), cell in missing.items():
        rows.add(cell, floors if "skipped" in floors else _share(mode, cell["sizes"], floors, repeats, budget))
    torch.set_num_threads(threads)


def run_floors() -> dict:
    """Compile floors.cpp for the instruction set in use, run it, and return what it prints."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    compiler = next((name for name in names if shutil.which(name)), None)
    if compiler is None:
        return {"skipped": f"no C++ compiler under {', '.join(names)}: install one, or name it in CXX"}
    flags = REGISTER.get(cpu._cpu.isa(), ["-DBYTES=16"])
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floors"
        build = [compiler, "-O3", "-std=c++17", "-Wno-psabi", *flags, str(SOURCE), "-o", str(program)]
        built = subprocess.run(build, capture_output=True, text=True)
        if built.returncode:
            return {"skipped": f"{compiler} failed on floors.cpp: {built.stderr.strip()[-200:]}"}
        return json.loads(subprocess.run([program], capture_output=True, text=True, check=True).stdout)


def _share(mode: str, sizes: Sizes, floors: dict, repeats: int, budget: float) -> dict:
    n_batch, length, d, n = sizes
    kernel = METHODS["kernel"][0]
    times = take_turns(make_calls([kernel], mode, sizes), repeats, budget, time.process_time)[kernel]
    nanoseconds = 1e9 * statistics.median(times) / (n_batch * length * d * n)
    arithmetic = floors[f"{mode}_ns"]
    memory = _bytes_per_channel(mode, n) / n / floors["copy_gbs"]
    return {
        "kernel_ns": nanoseconds,
        "arithmetic_ns": arithmetic,
        "memory_ns": memory,
        "share": max(arithmetic, memory) / nanoseconds,
    }


def _bytes_per_channel(mode: str, n_state: int) -> float:
    """Bytes that must be read and written per batch element, step and channel."""
    if mode == "forward":
        return 4 * 4  # u, delta, z; y
    return 4 * (7 + n_state / cpu._cpu.CHUNK)  # u, delta, z, dy; du, ddelta, dz; the kept states

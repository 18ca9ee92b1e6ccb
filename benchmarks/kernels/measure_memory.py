"""Peak memory of one scan beyond its inputs, each cell in a fresh process.

The child runs a tiny scan of the same kind first, so that code and thread pools are in memory, allocates the inputs,
gives freed heap back to the system, resets the kernel's high-water mark and runs once. Results and, in training, the
gradients of all inputs count: at least 1 tensor of (B, L, D) forward, 4 with the gradients. Linux only.
"""

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from cases import METHODS, MODES, Method, Sizes, make_call, make_inputs
from rows import Rows
from timing import refusal

from ssmseq_kernels import cpu

TINY: Sizes = (1, 5, 16, 4)


def measure_memory(rows: Rows, shapes: dict[str, Sizes], names: Sequence[str], budget: float) -> None:
    methods = [method for name in names if name != "kernel" for method in METHODS[name]]
    for shape, sizes in shapes.items():
        for mode in MODES:
            for method in methods:
                cell = {"what": "memory", "shape": shape, "sizes": sizes, "mode": mode, **method.fields()}
                if not rows.has(cell):
                    reason = refusal(method, mode, sizes, budget)
                    rows.add(cell, {"skipped": reason} if reason else _in_a_child(method, mode, sizes))


def _in_a_child(method: Method, mode: str, sizes: Sizes) -> dict:
    fields = {**asdict(method), "dtype": str(method.dtype).removeprefix("torch.")}
    settings = {"threads": torch.get_num_threads(), "isa": cpu._cpu.isa()}
    asked = json.dumps({"method": fields, "mode": mode, "sizes": sizes, **settings})
    done = subprocess.run([sys.executable, __file__, asked], capture_output=True, text=True)
    if done.returncode:
        return {"skipped": f"ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    extra = json.loads(done.stdout)
    n_batch, length, d, _ = sizes
    return {"peak_mb": extra / 2**20, "tensors": extra / (4 * n_batch * length * d)}


def peak(method: Method, mode: str, sizes: Sizes) -> int:
    """Return by how many bytes one run raises the resident memory of this process at its highest."""
    make_call(method, mode, make_inputs(TINY, method))()
    call = make_call(method, mode, make_inputs(sizes, method))
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now
    before = _status("VmRSS")
    kept = call()
    extra = _status("VmHWM") - before
    del kept
    return extra


def _status(field: str) -> int:
    """Read one field of /proc/self/status in bytes; ru_maxrss would not do, it remembers the parent's size."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    cpu._cpu.set_isa(asked["isa"])
    fields = asked["method"]
    method = Method(**{**fields, "dtype": getattr(torch, fields["dtype"])})
    print(peak(method, asked["mode"], tuple(asked["sizes"])))


if __name__ == "__main__":
    main()

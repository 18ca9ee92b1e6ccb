"""Inputs of the selective scan, and its comparison with the float64 definition; shared by the tests of the kernels."""

import ctypes
import importlib.util
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmseq_kernels import selective_scan
from ssmseq_kernels.reference import selective_scan_reference

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}  # relative L2 error; the table of kernels/README.md
DEVICE = os.environ.get("SSMSEQ_TEST_DEVICE", "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EMULATED = os.environ.get("SSMSEQ_TEST_EMULATOR")  # architecture of what ptx_emulator stands for
BY_TRITON = bool(INTERPRETED or EMULATED or DEVICE == "cuda")
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]  # the interpreter gets bfloat16 wrong
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_emulator = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or sys.platform != "linux",
    reason="the emulator needs triton, and the memory of a process as Linux lays it out",
)
if EMULATED:
    from ptx_driver import Driver
    from triton.runtime import driver

    driver.set_active(Driver(EMULATED))
if INTERPRETED:
    import triton_interpreter

    triton_interpreter.patch_once()
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def make_inputs(
    n_batch, length, n_channels, n_state, groups=1, *, dtype=torch.float32, seed=0, without=()
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "u": normal(n_batch, length, n_channels),
        "delta": normal(n_batch, length, n_channels) - 2,
        "A": -torch.exp(0.5 * normal(n_channels, n_state)) * torch.arange(1, n_state + 1),
        "B": normal(n_batch, length, groups, n_state),
        "C": normal(n_batch, length, groups, n_state),
        "D": normal(n_channels),
        "z": normal(n_batch, length, n_channels),
        "delta_bias": 0.3 * normal(n_channels),
        "initial_state": normal(n_batch, n_channels, n_state),
    }
    return {k: v.to(DEVICE, dtype) for k, v in inputs.items() if k not in without}


def run_checks(file: str, *options: str, **environment: str) -> None:
    """Run the checks of a file in a process with more in its environment."""
    command = [sys.executable, "-m", "pytest", Path(file).name, "-q", "-p", "no:cacheprovider", *options]
    command += ["-o", "python_functions=check_*"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | environment
    done = subprocess.run(command, cwd=Path(file).parent, env=settings, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def relative_error(found, truth):
    return ((found.double() - truth).norm() / truth.norm().clamp_min(1e-12)).item()


def run_with_gradients(function, inputs, seed=1):
    """Return y, the final state and the gradient of a random functional of both, for every input."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    y, state = function(**leaves)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in (y, state)]
    grads = torch.autograd.grad([y, state], list(leaves.values()), weights)
    return {"y": y, "final_state": state, **{f"grad of {k}": g for k, g in zip(leaves, grads, strict=True)}}


def assert_matches_reference(inputs, tolerance=None, **options):
    found = run_with_gradients(lambda **x: selective_scan(**x, **options, return_final_state=True), inputs)
    exact = {k: v.double() for k, v in inputs.items()}
    truth = run_with_gradients(lambda **x: selective_scan_reference(**x, **options), exact)
    tolerance = tolerance or TOLERANCE[inputs["u"].dtype]
    for name, value in truth.items():
        error = relative_error(found[name], value)
        assert error < tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}"


def numbered(*starts, length):
    """Sequence numbers of one row that change at the given steps, and come back to one used before."""
    seq_idx = torch.zeros(1, length, dtype=torch.int32, device=DEVICE)
    for i, start in enumerate(starts):
        seq_idx[:, start:] = (7, 3, 7, 5)[i % 4]
    return seq_idx


def guarded(x, at_end):
    """The same numbers in memory that ends, or begins, at a page that nobody may touch."""
    n_bytes = x.numel() * x.element_size()
    room = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (address, address + mmap.PAGESIZE + room):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
    offset = mmap.PAGESIZE + (room - n_bytes if at_end else 0)
    return torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset).view(x.shape).copy_(x)


def relaid(x, order):
    """The same numbers in memory of another axis order."""
    return x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])

"""The compiled scan on a processor that this machine is not: built by a cross compiler, run in an emulator."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from scan_cases import NAMES, make_inputs, relative_error

from ssmseq_kernels.reference import selective_scan_reference

KERNELS = Path(__file__).parents[1] / "kernels" / "cpu"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-static", "-Wno-psabi"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR} (qemu-user)"
)
def test_neon(tmp_path):
    program = tmp_path / "scan"
    sources = [Path(__file__).with_name("foreign_scan.cpp"), KERNELS / "selective_scan.cpp"]
    subprocess.run([COMPILER, *FLAGS, f"-I{KERNELS}", "-DSSMSEQ_ISA=foreign", *sources, "-o", program], check=True)
    inputs = make_inputs(2, 70, 37, 7)
    weights = [torch.randn(2, 70, 37), torch.randn(2, 37, 7)]
    numbers = [inputs[k].numpy().ravel() for k in NAMES] + [w.numpy().ravel() for w in weights]
    (tmp_path / "in").write_bytes(np.array([2, 70, 37, 7], np.int64).tobytes() + np.concatenate(numbers).tobytes())
    subprocess.run([EMULATOR, program, tmp_path / "in", tmp_path / "out"], check=True)
    leaves = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y, state = selective_scan_reference(**leaves)
    grads = torch.autograd.grad([y, state], list(leaves.values()), [w.double() for w in weights])
    found = torch.from_numpy(np.fromfile(tmp_path / "out", np.float32))
    for name, truth in zip(("y", "final state", *NAMES), (y, state, *grads), strict=True):
        part, found = found[: truth.numel()], found[truth.numel() :]
        assert relative_error(part.view(truth.shape), truth) < 1e-6, name
    assert not len(found)

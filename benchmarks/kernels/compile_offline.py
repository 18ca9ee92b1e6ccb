"""Compile the Triton kernels without a GPU; print registers, spills and instructions; hold them to a budget.

The launchers run on tensors without memory, in the shapes of the benchmark; what they would launch is compiled instead,
by Triton's own just-in-time compiler, up to the launch. The command fails if a kernel spills more than its budget says,
or takes over 5 % more registers or instructions, in all or in its innermost loops, which is where a kernel spends its
time (spills outside of them cost next to nothing)::

    python benchmarks/kernels/compile_offline.py [--arch sm_90 ...] [--case lm-bf16 ...] [--quiet] [--update]

The budget is that of the pinned version of Triton. What other versions make of the loops::

    pip install --no-deps --target /tmp/triton-3.4 triton==3.4.0
    PYTHONPATH=/tmp/triton-3.4 python benchmarks/kernels/compile_offline.py --arch sm_90 --loops
"""

import argparse
import inspect
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ssmseq_kernels import (
    cuda,
    triton_conv,
    triton_replay,
    triton_scan,
    triton_scan_backward,
    triton_ssd,
    triton_ssd_backward,
    triton_sums,
    triton_update,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
READ_SHARED = ("sm_90", "sm_100")  # as triton_ssd.reads_shared finds on a GPU
BUDGET = Path(__file__).with_name("offline_budget.json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SLACK = 1.05
SLACK_OF_LOOPS = 1.25
KERNELS = {
    triton_scan: ("forward_kernel", "ends_kernel", "link_kernel"),
    triton_scan_backward: ("backward_kernel", "adjoint_ends_kernel", "total_kernel"),
    triton_update: ("update_kernel",),
    triton_conv: ("conv_kernel", "transposed_kernel", "step_kernel"),
    triton_sums: ("add_up_kernel",),
    triton_ssd: ("sizes_kernel", "states_kernel", "pass_kernel", "output_kernel"),
    triton_ssd_backward: ("gate_kernel", "head_kernel", "group_kernel", "sizes_gradient_kernel"),
}
FIGURES = ("registers", "stack", "spills", "inner spills", "inner", "instructions", "shuffles")
BF16 = torch.bfloat16
CASES: dict[str, dict[str, Any]] = {  # batch, length, channels, states; and what differs from float32 with everything
    "lm-bf16": {"shape": (8, 4096, 2048, 16), "dtype": BF16},
    "lm-fp16": {"shape": (8, 4096, 2048, 16), "dtype": torch.float16},
    "lm-fp32": {"shape": (8, 4096, 2048, 16)},
    "packed-bf16": {"shape": (8, 4096, 2048, 16), "dtype": BF16, "packed": True},
    "dna-bf16": {"shape": (1, 131072, 512, 16), "dtype": BF16},
    "variates-pair-fp32": {"shape": (16, 862, 1024, 32), "pair": True},
    "constant-fp32": {"shape": (8, 4096, 2048, 16), "constant": True},
    "odd-fp32": {"shape": (8, 4096, 200, 5), "bare": True},
    **{f"states-{n}-bf16": {"shape": (8, 4096, 2048, n), "dtype": BF16} for n in (1, 8, 32, 64, 128, 256)},
    "conv-bf16": {"shape": (8, 4096, 2048, 4), "dtype": BF16, "conv": True},
    "conv-packed-fp32": {"shape": (8, 4096, 2048, 4), "packed": True, "conv": True},
    # batch, length, heads, channels of a head, groups, states
    "ssd-bf16": {"shape": (4, 4096, 32, 64, 1, 128), "dtype": BF16},
    "ssd-fp32": {"shape": (4, 4096, 32, 64, 1, 128)},
    "ssd-packed-bf16": {"shape": (4, 4096, 32, 64, 1, 128), "dtype": BF16, "packed": True, "gated": True},
    "ssd-groups-bf16": {"shape": (4, 4096, 32, 64, 8, 64), "dtype": BF16, "gated": True},
    "ssd-groups-fp32": {"shape": (4, 4096, 32, 64, 8, 64), "gated": True},
    "ssd-fp16": {"shape": (4, 4096, 32, 64, 1, 128), "dtype": torch.float16},
}


class Recorder:
    """Stands for a kernel: notes what a launch would have compiled."""

    def __init__(self, kernel, noted: list):
        self.kernel, self.noted = kernel.jit, noted

    def launch(self, programs: int, tensors: tuple, numbers: tuple, named: dict[str, Any]) -> None:
        """Take the arguments of one launch."""
        names = self.kernel.arg_names
        options = {k: v for k, v in named.items() if k not in names}
        values = dict(zip(names, (*tensors, *numbers), strict=False)) | {k: named[k] for k in named if k in names}
        self.noted.append((self.kernel, values, options))


def scan_tensors(shape, dtype, packed, constant, bare) -> list[Any]:
    n_batch, length, n_channels, n_state = shape

    def meta(*sizes, kind=torch.float32):
        return torch.empty(*sizes, dtype=kind, device="meta")

    row = [meta(n_batch, length, n_channels, kind=dtype) for _ in range(3)]
    size = (n_channels, n_state) if constant else (n_batch, length, 1, n_state)
    mixers = [meta(*size, kind=torch.float32 if constant else dtype) for _ in range(2)]
    seq_idx = meta(n_batch, length, kind=torch.int32) if packed else None
    more = [None] * 4 if bare else [meta(n_channels), row[2], meta(n_channels), meta(n_batch, n_channels, n_state)]
    return [row[0], row[1], meta(n_channels, n_state), *mixers, *more, seq_idx]


def run_scan(shape, dtype=torch.float32, packed=False, constant=False, bare=False, pair=False) -> None:
    """Call the launchers of scan and step."""
    tensors: Any = tuple(scan_tensors(shape, dtype, packed, constant, bare))
    flags = (False, True) if bare else (True, True)
    if pair:
        y, state, kept, *_ = cuda.forward_pair(*tensors, *tensors, True, *flags)
        once = (y, state, *tensors, kept)
        cuda.backward_pair(*once, *once, True)
        return
    y, state, kept = cuda.forward(*tensors, True, False, *flags)
    cuda.backward(y, None if bare else state, *tensors, kept, True, False)
    if not constant and not packed:
        now: Any = [x if x is None or x.dim() < 3 or i == 8 else x[:, 0] for i, x in enumerate(tensors[:9])]
        state = torch.empty(shape[0], shape[2], shape[3], device="meta")
        cuda.update_checked(state, *now[:8], True)


def run_conv(shape, dtype=torch.float32, packed=False) -> None:
    """Call the launchers of the convolution and its step."""
    n_batch, length, n_channels, width = shape
    x = torch.empty(n_batch, length, n_channels, dtype=dtype, device="meta")
    weight, bias = torch.empty(n_channels, width, device="meta"), torch.empty(n_channels, device="meta")
    before = torch.empty(n_batch, width - 1, n_channels, dtype=dtype, device="meta")
    seq_idx = torch.empty(n_batch, length, dtype=torch.int32, device="meta") if packed else None
    cuda.conv_forward(x, weight, bias, before, seq_idx, True, False)
    cuda.conv_backward(x, x, weight, bias, before, seq_idx, True, False)
    if not packed:
        cuda.conv_update(x[:, 0], before, weight, bias, True)


def run_ssd(shape, dtype=torch.float32, packed=False, gated=False) -> None:
    """Call the launchers of Mamba-2's scan, forward and backward, and of its step."""
    n_batch, length, heads, dim, groups, n_state = shape

    def meta(*sizes, kind=torch.float32):
        return torch.empty(*sizes, dtype=kind, device="meta", requires_grad=True)

    x, dt, A = meta(n_batch, length, heads, dim, kind=dtype), meta(n_batch, length, heads), meta(heads)
    B, C = (meta(n_batch, length, groups, n_state, kind=dtype) for _ in range(2))
    state = meta(n_batch, heads, dim, n_state)
    numbers = torch.empty(n_batch, length, dtype=torch.int64, device="meta") if packed else None
    D, z, bias = (meta(heads), meta(*x.shape, kind=dtype), meta(heads)) if gated else (meta(heads), None, meta(heads))
    inputs = triton_ssd.Inputs(x, dt, A, B, C, D, z, bias, state)
    results: Any = triton_ssd.ssd_chunked(inputs, numbers, triton_ssd.Options(softplus=True, final=True))
    torch.autograd.grad(results, x, [torch.empty_like(t) for t in results])
    if not packed:
        now = [t if t is None else t[:, 0] for t in (x, dt, B, C, z)]
        row = (now[0], now[1], A, now[2], now[3], D, now[4], bias)
        cuda.update_heads(state, *row, softplus=True, limit=None)


def launches(name: str, arch: str) -> list[tuple]:
    """What the launchers would launch for a case."""
    noted: list[tuple] = []
    originals = [(module, kernel, getattr(module, kernel)) for module, names in KERNELS.items() for kernel in names]
    originals.append((triton_ssd, "reads_shared", triton_ssd.reads_shared))
    originals.append((triton_replay, "UNKNOWN", triton_replay.UNKNOWN))
    case = dict(CASES[name])
    try:
        for module, kernel, original in originals[:-2]:
            setattr(module, kernel, Recorder(original, noted))
        triton_ssd.reads_shared = lambda device: arch in READ_SHARED
        triton_replay.UNKNOWN = True  # so that no device is asked for, and every call runs
        if len(case["shape"]) == 6:
            run_ssd(**case)
        else:
            run_conv(**{k: v for k, v in case.items() if k != "conv"}) if case.get("conv") else run_scan(**case)
    finally:
        for module, kernel, original in originals:
            setattr(module, kernel, original)
    return noted


def innermost(lines: list[str]) -> Iterator[list[str]]:
    """Bodies of the loops of disassembled code that hold no other loop, but for the handful of lines that spin."""
    labels, code, loops = {}, [], []
    for line in lines:
        if label := re.match(r"(\.L_\w+):", line.strip()):
            labels[label[1]] = len(code)
        elif operation := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(operation[1])
            target = re.search(r"BRA.*`\((\.L_\w+)\)", operation[1])
            if target and len(code) - labels.get(target[1], len(code)) > 20:
                loops.append((labels[target[1]], len(code)))
    for begin, end in loops:
        if not any(begin <= other[0] and other[1] <= end and other != (begin, end) for other in loops):
            yield code[begin:end]


def on_nvidia(cubin: bytes) -> dict[str, int]:
    """Registers, bytes of stack, spills and instructions of a compiled kernel, whole and in its innermost loops."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    inner = list(innermost(code.splitlines()))
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code)
    operations = [x for x in operations if x != "NOP"]
    spilled = sum(x.startswith(("LDL", "STL")) for x in operations)
    shuffled = sum(x.startswith("SHFL") for x in operations)
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": spilled,
        "inner spills": sum("LDL" in x or "STL" in x for loop in inner for x in loop),
        "inner": sum(map(len, inner)),
        "instructions": len(operations),
        "shuffles": shuffled,
    }


def on_amd(code: str) -> dict[str, int]:
    """Do the same for the assembly of an AMD GPU."""

    def number(key):
        found = re.search(rf"\.{key}:\s+(\d+)", code)
        return int(found[1]) if found else 0

    operations = re.findall(r"^\s+([a-z]+_\w+)", code.split(".amdgpu_metadata")[0], re.MULTILINE)
    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "spills": number("vgpr_spill_count"),
        "inner spills": 0,
        "inner": 0,
        "instructions": len(operations),
        "shuffles": sum(x.startswith(("ds_bpermute", "ds_swizzle", "v_permlane")) for x in operations),
    }


class NoDevice:
    """Stands for the driver of a GPU: says what to compile for, and launches nothing."""

    def __init__(self, arch: str):
        self.target, self.number = TARGETS[arch], list(TARGETS).index(arch)

    def get_current_target(self):
        """What to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """A number of its own: what is compiled for one device serves no other."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """None."""
        return 0


def measure(arch: str, kernel, values: dict[str, Any], options: dict[str, Any]) -> dict[str, int]:
    """Compile one launch as Triton's own just-in-time compiler would, and read what it takes."""
    driver.set_active(NoDevice(arch))
    compiled = kernel.warmup(*(values[name] for name in kernel.arg_names), grid=(1,), **options)
    if "cubin" in compiled.asm:
        return on_nvidia(compiled.asm["cubin"])
    return on_amd(compiled.asm["amdgcn"])


def measurements(name: str, arch: str) -> list[tuple[str, dict[str, int]]]:
    """Key and figures of every kernel of a case on an architecture."""
    found = []
    noted = launches(name, arch)
    names = [kernel.fn.__name__ for kernel, _, _ in noted]
    for i, (kernel, values, options) in enumerate(noted):
        again = names[:i].count(names[i])
        key = f"{name} {names[i]}{f'#{again + 1}' if again else ''} {arch}"
        found.append((key, measure(arch, kernel, values, options)))
    return found


def all_measurements(archs: list[str], cases: list[str]) -> Iterator[tuple[str, dict[str, int]]]:
    """Measure every case on every architecture, a core for each, in the order of the cases."""
    names, on = zip(*itertools.product(cases, archs), strict=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for found in pool.map(measurements, names, on):
            yield from found


def exceeded(key: str, found: dict[str, int], budget: dict[str, dict[str, int]], loops: bool) -> list[str]:
    """What of a kernel's figures is beyond its budget."""
    if key not in budget:
        return [f"{key}: not in the budget"]
    allowed = budget[key]
    limits = {k: SLACK * allowed[k] for k in ("registers", "inner", "instructions")}
    limits |= {k: allowed[k] for k in ("spills", "inner spills", "stack")}
    if loops:
        limits = {"inner": SLACK_OF_LOOPS * allowed["inner"]}
    return [f"{key}: {found[k]} {k}, budget {allowed[k]}" for k, limit in limits.items() if found[k] > limit]


def main() -> int:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--quiet", action="store_true", help="print only what is beyond the budget, and the number")
    parser.add_argument("--update", action="store_true", help="write what was found as the budget")
    parser.add_argument(
        "--loops",
        action="store_true",
        help="hold only the instructions of innermost loops to the budget, within 25 %%: for other versions of Triton",
    )
    arguments = parser.parse_args()
    budget = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    found, complaints, began = {}, [], time.monotonic()
    if not arguments.quiet:
        print(f"triton {triton.__version__}\n{'':58} " + "  ".join(f"{k:>5}" for k in FIGURES))
    for key, figures in all_measurements(arguments.arch, arguments.case):
        found[key] = figures
        if not arguments.quiet:
            print(f"{key:58} " + "  ".join(f"{figures[k]:>{max(len(k), 5)}}" for k in FIGURES), flush=True)
        if not arguments.update:
            complaints += exceeded(key, figures, budget, arguments.loops)
    print(f"{len(found)} kernels in {time.monotonic() - began:.0f} s")
    if arguments.update:
        BUDGET.write_text(json.dumps(budget | found, indent=1) + "\n")
    print("\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

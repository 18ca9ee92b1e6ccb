"""Scans on an NVIDIA GPU: our kernels and their rivals, side by side.

    python benchmarks/kernels/bench_scan.py --device cuda                      # everything, nine minutes at a time
    python benchmarks/kernels/bench_scan.py --device cuda --what speed --cases R1,R5 --methods ours,mamba_ssm
    python benchmarks/kernels/bench_scan.py --device cuda --targets            # the goals, and what has been reached
    python benchmarks/kernels/bench_scan.py --device cuda --rehearse           # every step at tiny sizes, without a GPU
    python benchmarks/kernels/bench_ssd.py --device cuda --cases G13           # the parts of Mamba-2's scan, and so on

Every cell is appended to the result file as it comes; cells that are there for the same commit, kernel sources and
device are not measured again, so that the same command goes on where it stopped. Ceilings of the device are measured
at the start of every run, and results are compared with the definition in float64 before times are taken. Times are
medians of CUDA events, all kernels of a cell in turn, over copies of the inputs that exceed the L2 cache together; the
device is kept busy while Python launches, so that gaps between kernels are not counted. What Python costs is in the
part `op`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda_report
import torch
from cuda_cases import DTYPES, SHAPES
from cuda_device import Cuda, Rehearsal
from cuda_peers import METHODS, outdated
from cuda_special import (
    measure_check,
    measure_cold,
    measure_decode,
    measure_op,
    measure_packed,
    measure_pair,
    measure_saved,
)
from cuda_speed import Bench, DeviceLost, OutOfTime, measure_speed
from cuda_ssd import SSD_METHODS, SSD_SHAPES, measure_ssd, measure_ssd_check, measure_ssd_op, measure_ssd_step
from cuda_targets import report
from rows import ROOT, Rows, of_one_origin, software_facts, sources_digest

import ssmseq_kernels
from ssmseq_kernels import ops, ssd

RESULTS = ROOT / "benchmarks" / "results" / "kernels_cuda.jsonl"
SCAN = ("check", "speed", "op", "decode", "pair", "packed", "saved", "cold", "layer", "steps")
SSD = ("ssd_check", "ssd", "ssd_op", "ssd_step")
WHAT, CASES, ALL_METHODS = (*SCAN, *SSD), (*SHAPES, *SSD_SHAPES), tuple(dict.fromkeys([*METHODS, *SSD_METHODS]))
NO_DEVICE = (
    "no CUDA device: torch {torch} sees none. Run this on a machine with an NVIDIA GPU and a CUDA build of torch; "
    "--rehearse tries every step on the CPU, --targets and --report read the rows that are there, and without "
    "--device cuda the kernels of the CPU are measured"
)
NO_TRITON = "triton is not installed: a CUDA build of torch brings it; otherwise pip install triton"
NO_KERNEL = "ssmseq_kernels has no kernel for CUDA tensors here: {reason}"


def arguments(given: list[str] | None = None, what: Sequence[str] = SCAN) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--what", default=",".join(what), help=f"of {','.join(WHAT)}; default {','.join(what)}")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {','.join(CASES)}; default all")
    parser.add_argument("--methods", default=",".join(ALL_METHODS), help=f"of {','.join(ALL_METHODS)}; default all")
    parser.add_argument("--dtypes", default="bf16", help=f"of {','.join(DTYPES)}; default bf16")
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of a cell, at most")
    parser.add_argument("--budget", type=float, default=5, help="seconds for one method of a cell")
    parser.add_argument("--seconds", type=float, default=540, help="begin no cell after so many")
    parser.add_argument("--again", action="store_true", help="measure cells that the file has, skipped ones too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="measure nothing, print the tables")
    parser.add_argument("--targets", action="store_true", help="measure nothing, print the targets and what is reached")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, once; give --out, too")
    args = parser.parse_args(given)
    for name, allowed in (("what", WHAT), ("cases", CASES), ("methods", ALL_METHODS), ("dtypes", DTYPES)):
        chosen = getattr(args, name).split(",")
        unknown = [x for x in chosen if x not in allowed]
        if unknown:
            parser.error(f"--{name}: unknown {', '.join(unknown)}; there are {', '.join(allowed)}")
        setattr(args, name, chosen)
    if args.rehearse and args.out == RESULTS:
        parser.error("--rehearse: give another file with --out, its times mean nothing")
    if args.rehearse:
        args.repeats = 1
    return args


def obstacle() -> str | None:
    """Say why nothing can be measured here, and what to do; None if something can."""
    if not torch.cuda.is_available():
        return NO_DEVICE.format(torch=torch.__version__)
    try:
        import triton  # noqa: F401
    except ImportError:
        return NO_TRITON
    if not ops.has_kernel(torch.device("cuda")):
        return NO_KERNEL.format(reason=ssmseq_kernels.available_backends()["cuda"])
    return None


def device_of(args: argparse.Namespace) -> Cuda | Rehearsal:
    """Return the device to measure; end the program with the reason if there is none."""
    if args.rehearse:
        _serve_cpu_tensors()
        return Rehearsal()
    reason = obstacle()
    if reason:
        sys.exit(f"error: {reason}")
    return Cuda()


def _serve_cpu_tensors() -> None:
    """Let the Triton kernels take CPU tensors where they are interpreted, as a rehearsal should."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit(
            "error: --rehearse runs the kernels in Triton's interpreter: set TRITON_INTERPRET=1 before the command"
        )
    from ssmseq_kernels import cuda

    ops.KERNELS["cpu"], ops.cpu = cuda, None
    ssd.has_scan, ssd.has_tiles = (lambda device: False), (lambda device: True)


def facts(device: Cuda | Rehearsal, args: argparse.Namespace) -> dict[str, Any]:
    backend = ssmseq_kernels.available_backends()["cuda"]
    return {"build": sources_digest(), **device.facts(), "kernel": backend, **software_facts(), "repeats": args.repeats}


def measure_ceilings(bench: Bench) -> None:
    """Measure what the device can do, always anew; rows of this run are held against it."""
    from ceilings import measure_rates  # imports triton

    rates = bench.rates = measure_rates(bench.device, min(bench.repeats, 20))
    per_second = {"copy_gbs": rates.bytes / 1e9, "gexps": rates.exps / 1e9, "gslots": rates.slots / 1e9}
    clock = getattr(bench.device, "clock", 0)
    if clock:
        cycles = clock * bench.device.processors
        per_second |= {"exps_per_clock": rates.exps / cycles, "slots_per_clock": rates.slots / cycles}
    bench.rows.add({"what": "ceilings", "shape": "device"}, per_second)


def measure(bench: Bench, args: argparse.Namespace) -> None:
    parts = {
        "check": measure_check,
        "speed": lambda bench: measure_speed(bench, args.cases, args.methods),
        "op": measure_op,
        "decode": measure_decode,
        "pair": measure_pair,
        "packed": measure_packed,
        "saved": measure_saved,
        "cold": measure_cold,
        "layer": lambda bench: _steps().measure_layer(bench),
        "steps": lambda bench: _steps().measure_steps(bench),
        "ssd_check": measure_ssd_check,
        "ssd": lambda bench: measure_ssd(bench, args.cases, args.methods),
        "ssd_op": measure_ssd_op,
        "ssd_step": measure_ssd_step,
    }
    measure_ceilings(bench)
    for name in args.what:
        parts[name](bench)
        bench.device.free_memory()


def _steps():
    import cuda_steps  # here, because it brings the networks of ssmseq

    return cuda_steps


def main(given: list[str] | None = None, what: Sequence[str] = SCAN) -> None:
    args = arguments(given, what)
    if not (args.report or args.targets):
        device = device_of(args)
        rows = Rows(args.out, facts(device, args), again=args.again, forget=outdated)
        bench = Bench(device, rows, args.dtypes, args.repeats, args.budget, args.seconds)
        try:
            measure(bench, args)
        except OutOfTime:
            print(f"stopped after {args.seconds:g} s: the same command goes on from here", file=sys.stderr)
        except DeviceLost:
            sys.exit("error: the device does not answer after a failure; the same command goes on with the next cell")
        except KeyboardInterrupt:
            sys.exit("interrupted: the same command goes on from here")
    found = of_one_origin(args.out)
    if not args.targets:
        print(cuda_report.tables(found))
    if not args.report:
        print(report(found))

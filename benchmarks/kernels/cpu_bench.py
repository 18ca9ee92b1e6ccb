"""The selective scan on a CPU: our kernel and its rivals, side by side.

    python benchmarks/kernels/bench_scan.py                      # everything, one thread
    python benchmarks/kernels/bench_scan.py --quick              # seconds: does it run at all
    python benchmarks/kernels/bench_scan.py --what speed --shapes etth,2x96x64x16 --methods ours,chunked
    python benchmarks/kernels/bench_scan.py --report --plot scan.png

Every cell is appended to the result file as it comes; cells that are there for the same commit, compiled module,
hardware and arguments are not measured again. At the end, or at once with --report, the rows of the newest commit are
printed as markdown tables. Other programs disturb the clock: on one thread process CPU time is taken, all methods of a
cell in turn, and medians are reported. A short run is timed right after an untimed one, so that no method pays for the
memory that another has touched. The rivals come from ``pip install mambapy transformers``.
"""

import argparse
import sys
from pathlib import Path

import report
import torch
from cases import METHODS, SHAPES, STEP_SHAPES, parse_shape
from floors import measure_floors
from measure_accuracy import CASES, measure_accuracy
from measure_counts import measure_counts
from measure_decode import measure_decode
from measure_memory import measure_memory
from measure_speed import measure_scaling, measure_speed
from rows import ROOT, Rows, common_facts, of_one_origin

from ssmseq_kernels import cpu

RESULTS = ROOT / "benchmarks" / "results" / "kernels_scan.jsonl"
WHAT = ("speed", "memory", "decode", "accuracy", "counts", "floors", "scaling")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = ",".join(name for name in SHAPES if name != "quick")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="`--device cuda -h` for the other one")
    parser.add_argument("--shapes", default=named, help=f"of {named}, or BxLxDxN; default all of these")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {','.join(METHODS)}; default all")
    parser.add_argument("--what", default=",".join(WHAT), help=f"of {','.join(WHAT)}; default all")
    parser.add_argument("--threads", type=int, default=1, help="of all methods; `scaling` compares 1 with this or 2")
    parser.add_argument(
        "--isa", choices=cpu._cpu.runnable_isas(), help="of our kernel; ATEN_CPU_CAPABILITY sets torch's"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--budget", type=float, default=30, help="seconds per cell; what takes longer is skipped")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, three repeats, no callgrind")
    parser.add_argument("--again", action="store_true", help="measure cells that the file has, skipped ones too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="measure nothing, print the tables")
    parser.add_argument("--plot", type=Path, help="draw forward+backward of all shapes to this PNG")
    args = parser.parse_args()
    if args.quick:
        args.shapes, args.repeats, args.budget = "quick", 3, 2.0
    for name, allowed in (("methods", METHODS), ("what", WHAT)):
        chosen = getattr(args, name).split(",")
        unknown = [x for x in chosen if x not in allowed]
        if unknown:
            parser.error(f"--{name}: unknown {', '.join(unknown)}; there are {', '.join(allowed)}")
        setattr(args, name, chosen)
    try:
        args.shapes = dict(parse_shape(text) for text in args.shapes.split(","))
    except ValueError as error:
        parser.error(str(error))
    return args


def measure(args: argparse.Namespace, rows: Rows) -> None:
    shapes, repeats, budget, quick = args.shapes, args.repeats, args.budget, args.quick
    parts = {
        "speed": lambda: measure_speed(rows, shapes, args.methods, repeats, budget),
        "memory": lambda: measure_memory(rows, shapes, args.methods, budget),
        "decode": lambda: measure_decode(rows, STEP_SHAPES[:1] if quick else STEP_SHAPES, repeats, budget),
        "accuracy": lambda: measure_accuracy(rows, CASES[:2] if quick else CASES),
        "counts": lambda: measure_counts(rows, cpu._cpu.isa(), with_callgrind=not quick),
        "floors": lambda: measure_floors(rows, shapes, repeats, budget),
        "scaling": lambda: measure_scaling(rows, shapes, max(args.threads, 2), repeats, budget),
    }
    for name in args.what:
        parts[name]()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.isa:
        cpu._cpu.set_isa(args.isa)
    if not args.report:
        asked = {"threads": args.threads, "isa": cpu._cpu.isa(), "repeats": args.repeats, "budget": args.budget}
        try:
            measure(args, Rows(args.out, {**common_facts(), **asked}, again=args.again))
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    found = of_one_origin(args.out)
    print(report.tables(found))
    if args.plot:
        report.plot(found, args.plot)

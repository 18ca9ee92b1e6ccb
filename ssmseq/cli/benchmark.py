"""`ssmseq benchmark`: run a suite of benchmarks, report what came out, compare two results."""

import sys
from pathlib import Path

from ssmseq.cli.contract import DATA_MISSING, FAILURE, OK, Parser, UsageError, add_common_options, print_json, remark

RESULTS = "ssmseq-results"
ACTIONS = {
    "list": "the suites that come with ssmseq",
    "run": "perform the runs of a suite that have no row yet; run it again to go on",
    "report": "write an HTML page and a Markdown table of a suite's rows",
    "compare": "compare two files of rows, such as two versions or two machines",
}
SUITE_HELP = "name of a suite that `ssmseq benchmark list` gives, or a .yaml file"
RESULTS_HELP = f"folder of SUITE.jsonl, one line per run (default: {RESULTS})"


def run(argv: list[str]) -> int:
    """Run ``ssmseq benchmark``."""
    if argv and argv[0] in ACTIONS:
        return {"list": _list, "run": _run, "report": _report, "compare": _compare}[argv[0]](argv[1:])
    width = max(map(len, ACTIONS))
    actions = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in ACTIONS.items())
    parser = Parser(
        prog="ssmseq benchmark",
        usage="ssmseq benchmark ACTION [options]",
        description=f"Forecasting benchmarks that anyone can repeat.\n\nactions:\n{actions}",
        formatter_class=_plain_formatter(),
    )
    parser.add_argument("action", choices=ACTIONS, help="; ".join(f"{k}: {v}" for k, v in ACTIONS.items()))
    parser.parse_args(argv)
    raise AssertionError("a known action was dispatched above")


def _plain_formatter():
    import argparse

    return argparse.RawDescriptionHelpFormatter


def _list(argv: list[str]) -> int:
    parser = Parser(prog="ssmseq benchmark list", description="List " + ACTIONS["list"] + ".")
    add_common_options(parser)
    options = parser.parse_args(argv)
    from ssmseq.benchmark.suites import load_suite, suite_names

    suites = [load_suite(name) for name in suite_names()]
    if options.json:
        keys = ("name", "title", "description")
        print_json({"suites": [{k: getattr(s, k) for k in keys} | {"runs": len(s.runs)} for s in suites]})
        return OK
    for suite in suites:
        print(f"{suite.name:<12} {len(suite.runs):>5} runs  {suite.title}")
    return OK


def _run(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq benchmark run",
        description="Perform the runs of a suite, each in its own process. Rows are written as they come and are not "
        "repeated: an interrupted suite goes on where it stopped. A run that fails costs only its own row; the exit "
        "code is then 1.",
    )
    parser.add_argument("suite", metavar="SUITE", help=SUITE_HELP)
    parser.add_argument("--results", metavar="FOLDER", default=RESULTS, help=RESULTS_HELP)
    for name, kind in (("dataset", str), ("model", str), ("horizon", int), ("seed", int)):
        parser.add_argument(f"--{name}", nargs="+", type=kind, help=f"only the runs of these {name}s")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--threads", metavar="N", type=int, help="of each run (default: the cores divided by --jobs)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="that networks train on")
    parser.add_argument("--shard", metavar="I/N", help="every N-th run from the I-th on, for an array of machines")
    parser.add_argument(
        "--engine", choices=("process", "ray"), default="process", help="ray: fan out over the cluster that Ray finds"
    )
    parser.add_argument("--offline", action="store_true", help="download nothing; what is not here counts as absent")
    parser.add_argument("--dry_run", action="store_true", help="only list the runs, and which have a row")
    add_common_options(parser)
    options = parser.parse_args(argv)
    for name in ("jobs", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return _perform(options, parser.prog)


def _perform(options, prog: str) -> int:
    from ssmseq.benchmark import runner
    from ssmseq.benchmark.suites import load_suite

    wanted = {name: getattr(options, name) for name in ("dataset", "model", "horizon", "seed")}
    try:
        suite = load_suite(options.suite).only(**wanted)
        runner.share_of([], options.shard)
    except ValueError as error:
        raise UsageError(str(error), prog) from error
    results = runner.Results(Path(options.results) / f"{suite.name}.jsonl")
    if options.dry_run:
        return _show_plan(runner.share_of(suite.runs, options.shard), results, as_json=options.json)
    remark(f"looking for the data of {suite.name} ...", quiet=options.quiet)
    suite = runner.find_absent(suite, download=not options.offline)
    for name, reason in suite.absent.items():
        remark(f"ssmseq: not run: {name}: {reason}")
    counts = runner.carry_out(
        suite,
        results,
        jobs=options.jobs,
        threads=options.threads,
        device=options.device,
        shard=options.shard,
        engine=options.engine,
        say=lambda text: remark(text, quiet=options.quiet),
    )
    if options.json:
        print_json({"suite": suite.name, "results": str(results.path), "absent": suite.absent, **counts})
    else:
        done = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"{suite.name}: {done}; rows in {results.path}")
    if not suite.runs:
        return DATA_MISSING
    return FAILURE if counts["failed"] else OK


def _show_plan(runs, results, *, as_json: bool) -> int:
    from ssmseq.benchmark.runner import describe

    done = results.done()
    if as_json:
        print_json({"runs": [{**r.as_dict(), "done": r.key in done} for r in runs]})
        return OK
    for r in runs:
        print(f"{'done' if r.key in done else 'open'}  {r.key}  {describe(r)}")
    return OK


def _report(argv: list[str]) -> int:
    parser = Parser(
        prog="ssmseq benchmark report",
        description="Write report.html and report.md, and print the latter's main table.",
    )
    parser.add_argument("suite", metavar="SUITE", help=SUITE_HELP)
    parser.add_argument("--results", metavar="FOLDER", default=RESULTS, help=RESULTS_HELP)
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: SUITE-report in the results folder)")
    add_common_options(parser)
    options = parser.parse_args(argv)
    from ssmseq.benchmark import runner
    from ssmseq.benchmark.report import build_report
    from ssmseq.benchmark.suites import load_suite

    try:
        suite = load_suite(options.suite)
    except ValueError as error:
        raise UsageError(str(error), parser.prog) from error
    results = runner.Results(Path(options.results) / f"{suite.name}.jsonl")
    rows = results.rows()
    if not rows:
        raise ValueError(f"{results.path} has no rows: run `ssmseq benchmark run {options.suite}` first")
    suite.absent = runner.find_absent(suite, download=False).absent
    report = build_report(suite, rows, unranked=suite.unranked)
    folder = Path(options.out) if options.out else Path(options.results) / f"{suite.name}-report"
    paths = [str(path) for path in report.save(folder)]
    if options.json:
        print_json({"suite": suite.name, "rows": len(rows), "files": paths})
    else:
        shown = {section.anchor for section in report.sections} & {"summary", "warnings", "errors"}
        print(report.markdown(only=sorted(shown)))
        remark(f"written: {', '.join(paths)}", quiet=options.quiet)
    return OK


def _compare(argv: list[str]) -> int:
    parser = Parser(prog="ssmseq benchmark compare", description="Compare the rows of two files, run by run.")
    parser.add_argument("a", metavar="A.jsonl", help="rows, as `ssmseq benchmark run` writes them")
    parser.add_argument("b", metavar="B.jsonl", help="rows to compare them with")
    add_common_options(parser)
    options = parser.parse_args(argv)
    from ssmseq.benchmark.report import compare
    from ssmseq.benchmark.runner import Results

    for path in (options.a, options.b):
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}")
    found = compare(Results(options.a).rows(), Results(options.b).rows(), (options.a, options.b))
    if options.json:
        print_json(found.as_dict())
    else:
        sys.stdout.write(found.markdown() + "\n")
    return OK

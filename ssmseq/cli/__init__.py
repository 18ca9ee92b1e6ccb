"""The command `ssmseq`: one file per group of commands, imported only when its command is given.

Data go to stdout, everything else to stderr. Neither the help nor `ssmseq data list` loads torch, Lightning or pandas.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ssmseq.cli.contract import EXIT_CODES, OK, Parser, guarded

COMMANDS = {
    "fit": "fit an estimator on a table and save it",
    "predict": "forecast with a saved model",
    "ecg": "classify electrocardiograms: fit, predict, evaluate, report",
    "dna": "language models of DNA: fit, score, variants, embed, sample, tracks",
    "tune": "search the settings of an estimator, on one machine or many",
    "export": "write a saved model as one ONNX or torch.export file",
    "benchmark": "run, report and compare the forecasting benchmarks",
    "data": "list, fetch or verify the benchmark data sets",
    "info": "versions, devices, and which scan kernel serves them and why",
    "demo": "train on ETTh1, compare with two baselines, draw the forecast",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``ssmseq``; those of the process by default.

    Returns
    -------
    int
        0 done, 1 failure, 2 wrong usage, 3 data missing or damaged, 130 interrupted.
    """
    if argv is None:  # a process of its own, where torch is not loaded yet
        # Threads that spin while they wait slow training tenfold as soon as another program wants one of the cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return guarded(_dispatch, list(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"ssmseq.cli.{argv[0]}").run(argv[1:])
    parser = _parser()
    parser.parse_args(argv)
    if not argv:
        parser.error(f"a command is missing; choose one of {', '.join(COMMANDS)}")
    return OK


def _parser() -> Parser:
    from ssmseq import __version__

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    codes = "\n".join(f"  {code:<{width}}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(
        prog="ssmseq",
        usage="ssmseq COMMAND [options]",
        description="Forecast series, classify electrocardiograms and model DNA with selective state-space models. "
        "`ssmseq COMMAND --help` describes a command.",
        epilog=f"commands:\n{commands}\n\nexit codes:\n{codes}\n\n"
        "Data go to stdout, messages and progress to stderr; --json prints one JSON document instead of text.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ssmseq {__version__}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    return parser

"""What all commands keep to: exit codes, errors in one line, streams, and the shape of JSON."""

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ssmseq.datasets.files import DatasetNotFoundError

OK, FAILURE, USAGE, DATA_MISSING, INTERRUPTED = 0, 1, 2, 3, 130
EXIT_CODES = {
    OK: "done",
    FAILURE: "failure: bad data, bad model, a parameter out of range",
    USAGE: "usage: unknown option or command, wrong type",
    DATA_MISSING: "data missing, or with a wrong checksum",
    INTERRUPTED: "interrupted (fit saves its best weights first)",
}
SCHEMA_VERSION = 1  # of the JSON documents; changes when a key changes its meaning or goes


class UsageError(Exception):
    """The command line cannot be understood."""

    def __init__(self, message: str, prog: str):
        super().__init__(f"{message} (see {prog} --help)")


class DataMissingError(Exception):
    """A data file that was asked for does not exist, or is not what it should be."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are reported in one line, as all others are."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str):  # type: ignore[override]
        """Raise `UsageError` in place of printing the usage and leaving."""
        raise UsageError(message, self.prog)


def add_common_options(parser: argparse.ArgumentParser, *, default: Any = False) -> None:
    """Add --json, --quiet and --debug; `default` is their value where they are not given."""
    flags = {
        "--json": "print one JSON document on stdout",
        "--quiet": "no progress and no remarks on stderr; warnings and errors remain",
        "--debug": "print the traceback of an error",
    }
    for flag, meaning in flags.items():
        parser.add_argument(flag, action="store_true", default=default, help=meaning)


def add_engine_options(parser: argparse.ArgumentParser, *, workers: str) -> None:
    """Add --engine and --workers; `workers` says how many there are by default."""
    parser.add_argument(
        "--engine",
        choices=("process", "ray"),
        default="process",
        help="this process, or workers of the Ray cluster that RAY_ADDRESS names or this machine belongs to, or else "
        "of one on its cores; all machines need ssmseq and the working folder (default: process)",
    )
    parser.add_argument("--workers", metavar="N", type=int, help=f"of Ray (default: {workers})")


def check_engine(options: argparse.Namespace, prog: str) -> None:
    """Raise `UsageError` if --workers says nothing."""
    if options.workers is not None and (options.engine != "ray" or options.workers < 1):
        raise UsageError(f"--workers {options.workers} must be at least 1, and goes with --engine ray", prog)


def spread(function: Callable[[Any, Any], Any], model, pieces: Sequence, options: argparse.Namespace) -> Iterator[Any]:
    """Yield ``function(model, piece)`` of each piece, in their order, found where --engine says."""
    if options.engine != "ray":
        yield from (function(model, piece) for piece in pieces)
        return
    from ssmseq.fanout import fan_out

    with redirect_stdout(sys.stderr):  # Ray tells of lost workers on stdout, which is for data
        yield from fan_out(function, model, pieces, workers=options.workers)


def remark(text: str, *, quiet: bool = False) -> None:
    """Print something that is not data."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def print_json(document: dict[str, Any]) -> None:
    """Print a document with its `schema_version` on stdout."""
    document = {"schema_version": SCHEMA_VERSION, **document}
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def _plain(value):
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def guarded(run: Callable[[list[str]], int], argv: list[str]) -> int:
    """Run a command and turn the ways in which it can end into an exit code and one line on stderr."""
    try:
        with _warnings_in_one_line():
            code = run(argv)
            sys.stdout.flush()
            return code
    except SystemExit as end:  # of --help, --version and --print_config
        return end.code if isinstance(end.code, int) else OK if end.code is None else FAILURE
    except KeyboardInterrupt:
        remark("ssmseq: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, so nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (UsageError, DataMissingError, OSError, ValueError, TypeError, ImportError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        remark(f"ssmseq: error: {' '.join(str(error).split()) or type(error).__name__}")
        return _exit_code(error)


def _exit_code(error: Exception) -> int:
    if isinstance(error, UsageError):
        return USAGE
    return DATA_MISSING if isinstance(error, DataMissingError | DatasetNotFoundError) else FAILURE


@contextmanager
def _warnings_in_one_line():
    def show(message, category, filename, lineno, file=None, line=None):
        remark(f"ssmseq: warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

"""The command line `ssmseq`: this file finds the command and turns errors into exit codes; each command has its own."""

import importlib
import os
import sys
import traceback

COMMANDS = {
    "fit": "train an estimator on a CSV or Parquet file and save it",
    "predict": "forecast with a saved estimator",
    "data": "list, fetch or verify the data sets",
    "info": "versions, devices, and which scan kernel runs",
    "demo": "train on real data, compare with baselines, draw the forecast",
}
OK, FAILURE, USAGE, NO_DATA, INTERRUPTED = 0, 1, 2, 3, 130
HELP = f"""usage: ssmseq [--version] [--help] COMMAND ...

Selective state-space models (Mamba) for sequences.

{{commands}}

`ssmseq COMMAND --help` tells more. Results go to stdout, everything else to stderr; --json gives one document.
With --debug, an error shows where it arose.

exit codes: {OK} done, {FAILURE} failed (bad data or model), {USAGE} wrong usage, {NO_DATA} data set missing or damaged,
            {INTERRUPTED} interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : list of str, optional
        The words after ``ssmseq``; those of the process by default.

    Returns
    -------
    int
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 data set missing or damaged, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listing = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
        print(HELP.format(commands=listing), end="")
        return OK if words else USAGE
    if words[0] == "--version":
        from ssmseq import __version__

        print(f"ssmseq {__version__}")
        return OK
    if words[0] not in COMMANDS:
        return _complain(f"there is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}", USAGE)
    try:
        return importlib.import_module(f"ssmseq.cli.{words[0]}").run(words[1:])
    except SystemExit as stop:  # argparse: 0 after --help, 2 for wrong usage
        return stop.code if isinstance(stop.code, int) else FAILURE
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of stdout has gone; nothing is left to tell it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            traceback.print_exc()
        return _complain(str(error), _exit_code(error))


def _exit_code(error: Exception) -> int:
    from ssmseq.datasets import DatasetChecksumError, DatasetNotFoundError

    return NO_DATA if isinstance(error, DatasetNotFoundError | DatasetChecksumError) else FAILURE


def _complain(message: str, code: int) -> int:
    print(f"ssmseq: error: {message}", file=sys.stderr)
    return code

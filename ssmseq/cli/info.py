"""`ssmseq info`: what is installed, and which scan kernel runs where."""

import argparse


def run(words: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="ssmseq info", description="Versions, devices, and which scan kernel runs.")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    options = parser.parse_args(words)

    from ssmseq.cli import OK
    from ssmseq.cli.tables import print_json
    from ssmseq.environment import describe_environment, show_versions

    if options.json:
        print_json(describe_environment())
    else:
        show_versions()
    return OK

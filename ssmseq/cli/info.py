"""`ssmseq info`: what a report of a problem should say about the machine."""

from ssmseq.cli.contract import OK, Parser, add_common_options, print_json


def run(argv: list[str]) -> int:
    """Run ``ssmseq info``."""
    parser = Parser(
        prog="ssmseq info", description="Print versions, devices, and which scan kernel serves which device and why."
    )
    add_common_options(parser)
    options = parser.parse_args(argv)

    from ssmseq.environment import describe_environment, show_versions

    if options.json:
        print_json(describe_environment())
    else:
        show_versions()
    return OK

"""`ssmseq export`: write a saved model as one graph that runs without this library."""

from ssmseq.cli.contract import OK, Parser, add_common_options, print_json, remark


def run(argv: list[str]) -> int:
    """Run ``ssmseq export``."""
    parser = Parser(
        prog="ssmseq export",
        description="Write a saved model as one graph, scaling included, that runs without this library.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="where `--save` or estimator.save put the model")
    parser.add_argument("file", metavar="FILE", help="to write: .onnx, or .pt2 for torch.export")
    parser.add_argument("--no-check", action="store_true", help="do not run the file and compare it with the model")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference that the check accepts, as a share of the largest output (default: 1e-4)",
    )
    add_common_options(parser)
    options = parser.parse_args(argv)

    import ssmseq
    from ssmseq.export import export

    estimator = ssmseq.load(options.folder)
    found = export(estimator, options.file, check=not options.no_check, tolerance=options.tolerance)
    if options.json:
        print_json({"folder": options.folder, "file": options.file, **found})
        return OK
    for kind in ("inputs", "outputs"):
        for name, spec in found[kind].items():
            sizes = ", ".join(map(str, spec["shape"]))
            print(f"{kind[:-1]:<7} {name:<16} {spec['dtype']:<8} ({sizes})  {spec['meaning']}")
    checked = "not checked" if found["difference"] is None else f"within {found['difference']:.1g} of the model"
    remark(f"{found['estimator']} written to {options.file}, {checked}", quiet=options.quiet)
    return OK

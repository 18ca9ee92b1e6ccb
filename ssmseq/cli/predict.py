"""`ssmseq predict`: forecast with a saved model."""

from ssmseq.cli.contract import OK, Parser, add_common_options, print_json, remark
from ssmseq.cli.tables import read_table, with_time_column, write_table


def run(argv: list[str]) -> int:
    """Run ``ssmseq predict``."""
    parser = Parser(prog="ssmseq predict", description="Forecast the rows that follow a history, with a saved model.")
    parser.add_argument("folder", metavar="FOLDER", help="where `ssmseq fit --save` or estimator.save put the model")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="history, as `ssmseq fit` takes it; by default the end of the training rows",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write the forecast here, as CSV or Parquet by its suffix, and not to stdout"
    )
    add_common_options(parser)
    options = parser.parse_args(argv)

    import ssmseq

    estimator = ssmseq.load(options.folder)
    history = None if options.data is None else read_table(options.data, estimator.time_col, quiet=options.quiet)
    forecast = with_time_column(estimator.predict(history), estimator.layout_.columns)
    if options.output is not None:
        write_table(forecast, options.output)
        remark(f"{len(forecast)} rows written to {options.output}", quiet=options.quiet)
    if options.json:
        _print_document(options, estimator, forecast)
    elif options.output is None:
        write_table(forecast, None)
    return OK


def _print_document(options, estimator, forecast) -> None:
    print_json(
        {
            "estimator": type(estimator).__name__,
            "folder": options.folder,
            "rows": len(forecast),
            "columns": list(forecast.columns),
            "output": options.output,
            "forecast": forecast.to_dict("records") if options.output is None else None,
        }
    )

"""`ssmseq predict`: forecast with a saved model."""

import copy
import sys
from typing import Any

from ssmseq.cli.contract import (
    OK,
    Parser,
    add_common_options,
    add_engine_options,
    check_engine,
    print_json,
    remark,
    spread,
)
from ssmseq.cli.tables import read_table, with_time_column, write_table

SERIES_AT_ONCE = 64  # that a worker of Ray forecasts together


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
    parser.add_argument(
        "--future", metavar="FILE", help="covariates known in advance, with the times (and ids) of the rows to forecast"
    )
    parser.add_argument(
        "--level", metavar="PERCENT", type=int, nargs="+", default=[], help="add prediction intervals, such as 80 95"
    )
    parser.add_argument("--quantiles", action="store_true", help="add the quantiles that the model was trained for")
    add_engine_options(parser, workers="one for each GPU, or else for each core")
    add_common_options(parser)
    options = parser.parse_args(argv)
    check_engine(options, parser.prog)

    import ssmseq

    estimator = ssmseq.load(options.folder)
    if options.engine == "ray":
        _fan_out_series(estimator, options)
    columns = (estimator.time_col, estimator.layout_.id_name)
    history, future = (
        None if path is None else read_table(path, *columns, quiet=options.quiet)
        for path in (options.data, options.future)
    )
    found = estimator.predict(history, future=future, level=options.level, quantiles=options.quantiles)
    names = estimator._output_names(estimator.layout_.columns, tuple(options.level), quantiles=options.quantiles)
    forecast = with_time_column(found, [name for name, _, _ in names])
    if options.output is not None:
        write_table(forecast, options.output)
        remark(f"{len(forecast)} rows written to {options.output}", quiet=options.quiet)
    if options.json:
        _print_document(options, estimator, forecast)
    elif options.output is None:
        write_table(forecast, None)
    return OK


def _fan_out_series(estimator, options) -> None:
    """Let the workers of Ray do what `predict` asks of the model, some series at a time; all else stays here."""
    if not estimator.layout_.is_long:
        raise ValueError(
            f"--engine ray shares the series of a long table out, and {options.folder} forecasts the columns of a wide "
            "one together: leave --engine out, or fit a model on a table with a column of ids"
        )
    whole = copy.copy(estimator)

    def forecast_series(series: list, known: list, columns: tuple, levels: tuple):
        import numpy as np
        from tqdm import tqdm

        parts = [slice(i, i + SERIES_AT_ONCE) for i in range(0, len(series), SERIES_AT_ONCE)]
        pieces = [(series[part], known[part], columns, levels) for part in parts]
        found = []
        with tqdm(total=len(series), unit="series", file=sys.stderr, disable=options.quiet) as bar:
            for forecasts in spread(_forecast_some, whole, pieces, options):
                found.append(forecasts)
                bar.update(len(forecasts))
        return np.concatenate(found)

    estimator._forecast_series = forecast_series


def _forecast_some(estimator, piece: tuple) -> Any:
    return estimator._forecast_series(*piece)


def _print_document(options, estimator, forecast) -> None:
    print_json(
        {
            "estimator": type(estimator).__name__,
            "folder": options.folder,
            "rows": len(forecast),
            "columns": list(forecast.columns),
            "output": options.output,
            "forecast": _records(forecast) if options.output is None else None,
        }
    )


def _records(forecast) -> list[dict]:
    """Return one dict per row; JSON has no NaN, so what could not be forecast is null."""
    return forecast.astype(object).where(forecast.notna(), None).to_dict("records")

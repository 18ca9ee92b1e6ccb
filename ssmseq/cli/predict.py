"""`ssmseq predict`: a saved estimator, a forecast on stdout."""

import argparse


def run(words: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="ssmseq predict", description="Forecast with a saved estimator.")
    parser.add_argument("folder", help="where `ssmseq fit` saved it")
    parser.add_argument("data", nargs="?", help="history to forecast from; by default the end of the training data")
    parser.add_argument("--output", metavar="FILE", help="CSV file to write, instead of stdout")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of CSV")
    options = parser.parse_args(words)

    from ssmseq.cli import OK
    from ssmseq.cli.tables import print_json, read_table, write_csv
    from ssmseq.persistence import load

    estimator = load(options.folder)
    forecast = estimator.predict(None if options.data is None else read_table(options.data, estimator.time_col))
    if not options.json:
        write_csv(forecast, options.output)
        return OK
    import numpy as np

    from ssmseq.forecasting.frames import read_frame

    values, times, layout = read_frame(forecast, estimator.time_col, estimator.layout_)
    columns = {str(c): np.asarray(values[:, i]).tolist() for i, c in enumerate(layout.columns)}
    print_json({"time": [str(t) for t in times], "forecast": columns})
    return OK

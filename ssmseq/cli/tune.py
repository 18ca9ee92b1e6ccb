"""`ssmseq tune`: search the settings of an estimator with Optuna, on one machine or many."""

import argparse
import contextlib
import math
import re
import sys
from pathlib import Path
from typing import Any

from ssmseq.cli.contract import (
    INTERRUPTED,
    OK,
    DataMissingError,
    Parser,
    UsageError,
    add_common_options,
    add_engine_options,
    check_engine,
    print_json,
    remark,
)
from ssmseq.cli.fit import DATA_HELP, _check_folder

FORECASTERS = ("SMambaForecaster", "KarmaForecaster", "TSM2Forecaster", "LinearForecaster", "RidgeForecaster")
ECG = "ECGMambaClassifier"
ESTIMATORS = (*FORECASTERS, ECG, "DNALanguageModel", "DNAClassifier")
UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
DESCRIPTION = (
    "Search the settings of an estimator. Run it again and it goes on; run it on several machines at once with one "
    "--storage and they share the trials. The best settings are printed as the YAML that `ssmseq fit ESTIMATOR "
    "--config` takes (`ssmseq ecg fit` for electrocardiograms, `ssmseq dna fit` for language models)."
)
STORAGE_HELP = (
    "sqlite:///FILE for the processes of one machine (default: sqlite:///NAME.db), journal:///FILE on a disk that "
    "machines share, postgresql:// or mysql:// for a cluster, grpc://HOST:PORT for a proxy before one; `optuna` and "
    "`optuna-dashboard` read the same storage"
)
METRIC_HELP = (
    "what trials are compared by: mse (default) or mae of forecasts; macro_auroc (default), macro_auprc or macro_brier "
    "of ECGs; bits_per_base of language models; accuracy (default), mcc or log_loss of DNA classes"
)
CONFIG_HELP = (
    "YAML file with `space:` (an entry replaces that of the default space, null removes it) and `fixed:` (parameters "
    "of the estimator that no trial changes, such as horizon)"
)
REFIT_HELP = (
    "train the best settings on all data and save the model. A network then holds nothing out, so that a forecaster "
    "has no windows to take prediction intervals from: for those, fit with the printed settings. Ridge regression "
    "keeps its validation part, and intervals"
)
SEQUENCES_HELP = "CSV or Parquet file with the columns sequence and label, and perhaps group, such as the contig"


def run(argv: list[str]) -> int:
    """Run ``ssmseq tune``."""
    name = argv[0] if argv else None
    parser = _parser(name)
    if name not in ESTIMATORS:
        if {"-h", "--help"} & set(argv):
            parser.print_help()
            return OK
        got = f"got {name!r}" if argv else "got nothing"
        raise UsageError(f"the first argument of tune must be one of {', '.join(ESTIMATORS)}; {got}", parser.prog)
    if "--print_space" in argv:
        from ssmseq.tuning.spaces import space_text

        sys.stdout.write(space_text(name))
        return OK
    options = parser.parse_args(argv[1:])
    check_engine(options, parser.prog)
    if options.refit is not None:
        _check_folder(Path(options.refit))
    return _tune(name, options, "ssmseq tune " + _without_passwords(argv))


def _parser(name: str | None) -> Parser:
    parser = Parser(
        prog=f"ssmseq tune {name}" if name in ESTIMATORS else "ssmseq tune",
        usage=f"ssmseq tune {name if name in ESTIMATORS else 'ESTIMATOR'} DATA --study NAME --trials N [options]",
        description=DESCRIPTION,
    )
    if name not in ESTIMATORS:
        parser.add_argument("estimator", metavar="ESTIMATOR", help=f"one of {', '.join(ESTIMATORS)}; comes first")
    _add_data(parser, name)
    parser.add_argument("--study", metavar="NAME", required=True, help="name of the study")
    parser.add_argument("--storage", metavar="URL", help=STORAGE_HELP)
    parser.add_argument("--trials", metavar="N", type=int, default=20, help="in all, whoever makes them (default: 20)")
    parser.add_argument("--timeout", metavar="TIME", help="begin no trial after 90s, 30m, 3h or 1d")
    parser.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--print_space", action="store_true", help="print the default search space and exit")
    parser.add_argument("--metric", help=METRIC_HELP)
    parser.add_argument("--seed", type=int, default=0, help="of the proposals and of every trial (default: 0)")
    parser.add_argument("--epochs", metavar="N", type=int, help="of a trial at most (default: the estimator's)")
    parser.add_argument(
        "--pruner", choices=("halving", "median", "none"), default="halving", help="what cuts trials short"
    )
    parser.add_argument(
        "--heartbeat", metavar="TIME", default="30s", help="time between signs of life of a trial (default: 30s)"
    )
    parser.add_argument("--best", metavar="FILE", help="write the best settings here as well")
    parser.add_argument("--refit", metavar="FOLDER", help=REFIT_HELP)
    parser.add_argument("--report", metavar="FILE", help="write an HTML page of the study")
    add_engine_options(parser, workers="one for each GPU, or else for each machine")
    add_common_options(parser)
    return parser


def _add_data(parser: Parser, name: str | None) -> None:
    if name == ECG:
        from ssmseq.cli.ecg_data import add_data_options

        add_data_options(parser, labelled=True)
        return
    helps = {"DNALanguageModel": "FASTA file, also compressed", "DNAClassifier": SEQUENCES_HELP}
    parser.add_argument("data", metavar="DATA", help=helps.get(name or "", DATA_HELP))
    if name == "DNALanguageModel":
        parser.add_argument("--regions", metavar="FILE", help="BED or GFF regions to train on")
        parser.add_argument("--validation", metavar="NAME", nargs="+", help="contigs that are held out")


def _tune(name: str, options: argparse.Namespace, command: str) -> int:
    from ssmseq.tuning.report import settings_yaml, write_report
    from ssmseq.tuning.search import choose_space, quiet_optuna, tune
    from ssmseq.tuning.storage import default_url, open_storage

    times = {key: _seconds(f"--{key}", getattr(options, key)) for key in ("timeout", "heartbeat")}
    space = choose_space(name, options.config, max_epochs=options.epochs, seed=options.seed)
    url = options.storage or default_url(options.study)
    X, y, data = _read(name, options, space.fixed)
    with quiet_optuna():
        storage = open_storage(url)
    search = {
        "study": options.study,
        "storage": url if options.engine == "ray" else storage,
        "n_trials": options.trials,
        "space": options.config,
        "metric": options.metric,
        "max_epochs": options.epochs,
        "seed": options.seed,
        "pruner": options.pruner,
        "engine": options.engine,
        "workers": options.workers,
        "about": {"data": _name_of_data(options), "command": command},
        "say": lambda text: remark(text, quiet=options.quiet),
    }
    remark(
        f"study {options.study} in {_hidden(url)}; to watch it: optuna-dashboard {_hidden(url)}", quiet=options.quiet
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray tells of lost workers on stdout, which is for data
            study = tune(name, X, y, **search, **times, **data)
    except KeyboardInterrupt:
        _say_where_it_stands(options, storage)
        return INTERRUPTED
    if options.report is not None:
        write_report(study, options.report)
    _say_end(study, options)
    settings = settings_yaml(study)
    if options.best is not None:
        Path(options.best).write_text(settings, encoding="utf-8")
    if options.refit is not None:
        _refit(name, study, X, y, data, options)
    if options.json:
        print_json(_document(study, options))
    else:
        sys.stdout.write(settings)
    return OK


def _read(name: str, options: argparse.Namespace, fixed: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return X, y and what else the task takes."""
    if name == ECG:
        return _read_ecg(options, fixed)
    if name == "DNALanguageModel":
        if not Path(options.data).is_file():
            raise DataMissingError(f"there is no FASTA file {options.data}")
        return options.data, None, {"regions": options.regions, "validation": options.validation}
    from ssmseq.cli.tables import read_table

    if name in FORECASTERS:
        return read_table(options.data, fixed.get("time_col"), fixed.get("id_col"), quiet=options.quiet), None, {}
    table = read_table(options.data, quiet=options.quiet)
    for column in ("sequence", "label"):
        if column not in table:
            raise ValueError(f"{options.data} must have the columns sequence and label, it has {list(table.columns)}")
    groups = table["group"].to_numpy() if "group" in table else None
    return table["sequence"].tolist(), table["label"].to_numpy(), {"groups": groups}


def _read_ecg(options: argparse.Namespace, fixed: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return recordings and labels; of PTB-XL folds 1 to 9, of which 9 is held out and 10 stays unseen."""
    import numpy as np

    from ssmseq.cli.ecg_data import read_labelled
    from ssmseq.tuning.ecg import build_classifier

    data = read_labelled(vars(options), sampling_rate=build_classifier(fixed).sampling_rate)
    if data.folds is None:
        return data.records, data.y, {}
    data = data.of_folds(range(1, 10))
    return data.records, data.y, {"held_out": np.asarray(data.folds) == 9}


def _refit(name: str, study, X, y, data: dict[str, Any], options: argparse.Namespace) -> None:
    from ssmseq.tuning.progress import best_of
    from ssmseq.tuning.report import best_settings
    from ssmseq.tuning.tasks import make_task

    best = best_of(study, study.get_trials(deepcopy=False))
    epochs = best.user_attrs.get("best_epoch") if best is not None else None
    remark(f"training on all data{'' if epochs is None else f' for {epochs} epochs'} ...", quiet=options.quiet)
    task = make_task(name, study.user_attrs["fixed"], study.user_attrs["metric"], X, y, **data)
    task.refit(best_settings(study), epochs).save(options.refit)
    remark(f"saved in {options.refit}", quiet=options.quiet)


def _say_end(study, options: argparse.Namespace) -> None:
    from ssmseq.tuning.progress import epochs_spared

    spared = epochs_spared(study.get_trials(deepcopy=False))
    if spared["share"] is not None:
        remark(
            f"{spared['epochs']} epochs run, about {spared['without_pruning']} without pruning: "
            f"{100 * spared['share']:.0f} % spared",
            quiet=options.quiet,
        )


def _say_where_it_stands(options: argparse.Namespace, storage) -> None:
    import optuna

    from ssmseq.tuning.progress import Standing
    from ssmseq.tuning.search import quiet_optuna

    try:
        with quiet_optuna():
            study = optuna.load_study(study_name=options.study, storage=storage)
    except KeyError:
        remark("ssmseq: interrupted before the study was made")
        return
    if "metric" in study.user_attrs:
        remark(Standing(study, options.trials).line())
    remark("ssmseq: interrupted; run the same command to go on")


def _document(study, options: argparse.Namespace) -> dict[str, Any]:
    from ssmseq.tuning.progress import best_of, counts, epochs_spared
    from ssmseq.tuning.report import best_settings

    trials = study.get_trials(deepcopy=False)
    best, kept = best_of(study, trials), study.user_attrs
    if best is None:
        raise AssertionError("without a best trial the settings were refused before")
    return {
        "study": study.study_name,
        "estimator": kept["estimator"],
        "metric": kept["metric"],
        "direction": study.direction.name.lower(),
        "trials": {"asked": options.trials, **counts(trials)},
        "best": {"trial": best.number, "value": best.values[0], "settings": best_settings(study)},
        "baselines": {name: value if math.isfinite(value) else None for name, value in kept["baselines"].items()},
        "epochs": epochs_spared(trials),
        "failures": {str(t.number): t.user_attrs["reason"] for t in trials if "reason" in t.user_attrs},
        "files": [path for path in (options.best, options.report, options.refit) if path is not None],
    }


def _seconds(option: str, text: str | None) -> float | None:
    """Return the seconds of a time such as 90s, 30m, 3h or 1d."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", text)
    if found is None or not float(found[1]):
        raise UsageError(f"{option} must be a time such as 90s, 30m, 3h or 1d, got {text!r}", "ssmseq tune")
    return float(found[1]) * UNITS[found[2]]


def _name_of_data(options: argparse.Namespace) -> str:
    return " ".join(options.data) if isinstance(options.data, list) else options.data


def _hidden(url: str) -> str:
    return re.sub(r"(://[^:/@]+):[^@]+@", r"\1:***@", url)


def _without_passwords(argv: list[str]) -> str:
    return " ".join(_hidden(word) for word in argv)

"""`ssmseq ecg fit`: train a classifier of electrocardiograms and save it."""

import argparse
import math
from pathlib import Path
from typing import Any

from ssmseq.cli.contract import INTERRUPTED, OK, Parser, UsageError, add_common_options, print_json
from ssmseq.cli.ecg_data import Labelled, add_data_options, parse_folds, read_labelled
from ssmseq.cli.fit import CONFIG_HELP, NO_OPTIONS, _check_folder, _config_first, _readable
from ssmseq.cli.progress import FitOutcome, fit_in_sight

USAGE = "ssmseq ecg fit DATA [DATA ...] --save FOLDER [--preset NAME] [--labels FILE] [--config FILE] [options]"
PRESETS = ("dense", "vim", "hydra", "cnn")
THRESHOLDS = (
    "Probabilities from which on a label is predicted: one number, a list, or the metric that they are chosen for (f1, "
    "youden, challenge2020, challenge2021). By default f1; not for classes that exclude each other."
)
DESCRIPTION = (
    "Train a classifier and save it as a folder of config.json and model.safetensors. Of PTB-XL, folds 1 to 8 train, "
    "fold 9 chooses the thresholds and measures the macro AUROC, and fold 10 is left for `ssmseq ecg evaluate`; the "
    "epoch is chosen by --validation_fraction of the patients of folds 1 to 8. Of other data, thresholds come from "
    "that validation part or from --n_folds. No patient is on two sides of a split, where the data name the patients."
)


def run(argv: list[str]) -> int:
    """Run ``ssmseq ecg fit``."""
    parser = _parser(_preset_of(argv))
    try:
        options = vars(parser.parse_args(_config_first(argv)))
        folds = [parse_folds(options.get(name) or usual) for name, usual in (("folds", "1-8"), ("held_out_folds", "9"))]
    except argparse.ArgumentError as error:
        raise UsageError(_readable(str(error)), parser.prog) from error
    except ValueError as error:
        raise UsageError(str(error), parser.prog) from error
    save, quiet = Path(options["save"]), options.get("quiet", False)
    _check_folder(save)
    estimator = _estimator(options, save)
    data = read_labelled(options, sampling_rate=estimator.sampling_rate)
    train, held_out = _parts(data, *folds)
    thresholds = options["thresholds"] if options["thresholds"] is not None else 0.5 if data.exclusive else "f1"
    metric = thresholds if isinstance(thresholds, str) and held_out is not None else None
    estimator.set_params(thresholds=thresholds if metric is None else 0.5)
    outcome = fit_in_sight(estimator, train.records, y=train.y, quiet=quiet)
    if not outcome.is_main_process:
        return OK
    measured = None if held_out is None else _use_held_out(estimator, held_out, metric)
    estimator.save(save)
    _report(estimator, options, train, held_out, measured, outcome)
    return INTERRUPTED if outcome.interrupted else OK


def _preset_of(argv: list[str]) -> str:
    """Return the preset that the words or the file of --config name: its settings are defaults of the parser."""
    parser = Parser(prog="ssmseq ecg fit", add_help=False)
    parser.add_argument("--preset")
    parser.add_argument("--config")
    found, _ = parser.parse_known_args(argv)
    if found.preset is None and found.config is not None and Path(found.config).is_file():
        import yaml

        try:
            content = yaml.safe_load(Path(found.config).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UsageError(f"--config {found.config} is no YAML file: {error}", parser.prog) from error
        found.preset = content.get("preset") if isinstance(content, dict) else None
    preset = found.preset or PRESETS[0]
    if preset not in PRESETS:
        raise UsageError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}", parser.prog)
    return preset


def _parser(preset: str):
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    from ssmseq.ecg import ECGMambaClassifier
    from ssmseq.ecg.classifier import PRESETS as SETTINGS

    parser = ArgumentParser(
        prog="ssmseq ecg fit", usage=USAGE, description=DESCRIPTION, allow_abbrev=False, exit_on_error=False
    )
    # What is not given stays out of --print_config: a null in the file would count as given.
    nothing = argparse.SUPPRESS
    add_data_options(parser, labelled=True, default=nothing)
    parser.add_argument("--save", metavar="FOLDER", type=str, required=True, default=nothing, help="of the model")
    parser.add_argument(
        "--preset", choices=PRESETS, default=preset, help="settings that the options below are the changes of"
    )
    parser.add_argument("--folds", type=str, default=nothing, help="folds of PTB-XL to train on (default: 1-8)")
    parser.add_argument(
        "--held_out_folds",
        type=str,
        default=nothing,
        help="folds of PTB-XL for thresholds and the macro AUROC (default: 9), or none",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        default=nothing,
        help="write the state of the training into SAVE/checkpoints after every epoch, and go on from what is there",
    )
    add_common_options(parser, default=nothing)
    parser.add_argument("--config", metavar="FILE", action=ActionConfigFile, help=CONFIG_HELP)
    skipped: set[str | int] = {*NO_OPTIONS, "random_state", "thresholds"}
    parser.add_class_arguments(ECGMambaClassifier, skip=skipped)
    parser.add_argument("--random_state", type=int | None, default=None, help="Seed that repeats a run.")
    parser.add_argument("--thresholds", type=float | str | list[float] | None, default=None, help=THRESHOLDS)
    parser.set_defaults(SETTINGS[preset])
    return parser


def _estimator(options: dict[str, Any], save: Path):
    from ssmseq.ecg import ECGMambaClassifier

    names = set(ECGMambaClassifier().get_params()) - {"thresholds"}
    estimator = ECGMambaClassifier(**{name: value for name, value in options.items() if name in names})
    if options.get("resume") and estimator.checkpoint_folder is None:
        estimator.set_params(checkpoint_folder=str(save / "checkpoints"))
    return estimator


def _parts(data: Labelled, folds: tuple[int, ...], held_out: tuple[int, ...]) -> tuple[Labelled, Labelled | None]:
    """Return the recordings to train on, and those of PTB-XL that thresholds are chosen on."""
    from ssmseq.ecg.splits import check_disjoint

    if data.folds is None:
        return data, None
    train = data.of_folds(folds)
    if not held_out:
        return train, None
    other = data.of_folds(held_out)
    patients = ([record.patient_id for record in part.records] for part in (train, other))
    check_disjoint(*patients, names=("training", "held-out"))
    return train, other


def _use_held_out(estimator, held_out: Labelled, metric: str | None) -> float | None:
    """Choose thresholds on recordings that were neither trained on nor used to stop; return their macro AUROC."""
    from ssmseq.ecg.inputs import encode_targets
    from ssmseq.ecg.metrics import macro_auroc
    from ssmseq.ecg.thresholds import tune_thresholds

    truth = encode_targets(held_out.y, estimator.classes_, estimator.exclusive_)
    found = estimator.predict_proba(held_out.records)
    if metric is not None:
        labels = [str(label) for label in estimator.classes_]
        estimator.thresholds_ = tune_thresholds(truth, found, metric, labels=labels)
        estimator.set_params(thresholds=metric)
    area = macro_auroc(truth, found)
    return None if math.isnan(area) else area


def _report(estimator, options, train: Labelled, held_out, measured: float | None, outcome: FitOutcome) -> None:
    history = estimator.history_
    losses = history["valid_loss"].tolist() if "valid_loss" in history else []
    best = min((x for x in losses if math.isfinite(x)), default=None)
    labels = [str(label) for label in estimator.classes_]
    if options.get("json"):
        document = {
            "estimator": type(estimator).__name__,
            "preset": options["preset"],
            "protocol": train.protocol,
            "records": len(train.records),
            "records_held_out": 0 if held_out is None else len(held_out.records),
            "labels": labels,
            "exclusive": estimator.exclusive_,
            "thresholds": None if estimator.exclusive_ else estimator.thresholds_.tolist(),
            "epochs": estimator.n_iter_,
            "best_validation_loss": best,
            "macro_auroc_held_out": measured,
            "seconds": round(outcome.seconds, 3),
            "interrupted": outcome.interrupted,
            "folder": options["save"],
        }
        print_json(document)
        return
    kind = "classes, one for each recording" if estimator.exclusive_ else "labels"
    print(f"{options['preset']}: {len(train.records)} recordings of {train.protocol}, {len(labels)} {kind}")
    print(f"epochs {estimator.n_iter_}, {outcome.seconds:.1f} s")
    if best is not None:
        print(f"best validation loss {best:.4f} in epoch {history['epoch'].iloc[losses.index(best)]}")
    if measured is not None:
        print(f"macro AUROC {measured:.4f} on {len(held_out.records)} held-out recordings")
    print(f"saved in {options['save']}")

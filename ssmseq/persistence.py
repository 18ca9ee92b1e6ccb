"""Save and load fitted estimators as a folder of config.json and model.safetensors. Never pickle.

Loading reads numbers and strings: only the classes listed here are ever instantiated.
"""

import importlib
import json
import os
import tempfile
from pathlib import Path

FORMAT_VERSION = 1
FORECASTERS = (
    "SMambaForecaster",
    "KarmaForecaster",
    "TSM2Forecaster",
    "NaiveForecaster",
    "RidgeForecaster",
    "LinearForecaster",
)
CLASSES: dict[str, str] = {
    **dict.fromkeys(FORECASTERS, "ssmseq.forecasting"),
    "ECGMambaClassifier": "ssmseq.ecg",
    **dict.fromkeys(("DNALanguageModel", "DNAClassifier", "DNARegressor"), "ssmseq.dna"),
}
UNSAVED = ("callbacks", "logger", "trainer_params", "checkpoint_folder")  # of a training run, not of the model
UNSAVED += ("language_model",)  # what a run began with
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def save(estimator, folder, *, card: bool = False) -> None:
    """Write a fitted estimator; see `SequenceEstimator.save`."""
    import torch
    from safetensors.torch import save as to_bytes

    from ssmseq import __version__

    name = type(estimator).__name__
    if CLASSES.get(name) is None:
        raise TypeError(f"{name} cannot be saved; the classes that can are {', '.join(CLASSES)}")
    state, tensors = estimator._export_state()
    params = {k: v for k, v in estimator.get_params(deep=False).items() if k not in UNSAVED}
    config = {
        "format_version": FORMAT_VERSION,
        "class": name,
        "versions": {"ssmseq": __version__, "torch": torch.__version__},
        "params": {k: _plain(k, v) for k, v in params.items()},
        "fitted": state,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / WEIGHTS, to_bytes({k: v.contiguous() for k, v in tensors.items()}))
    _write(folder / CONFIG, text.encode())
    if card:
        from ssmseq.cards import model_card

        _write(folder / CARD, model_card(estimator).encode())


def load(folder):
    """Read an estimator that was saved with ``estimator.save(folder)``.

    Parameters
    ----------
    folder : str or path

    Returns
    -------
    estimator
        Fitted; its predictions are bit for bit those of the saved one on the same machine.

    Raises
    ------
    FileNotFoundError
        If the folder lacks config.json or model.safetensors.
    ValueError
        If the class is not one of this library, or the format is of another version.
    """
    from safetensors.torch import load as from_bytes

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no saved model: {name} is missing")
    config = _read_config(folder / CONFIG)
    version, name = config["format_version"], config["class"]
    if version != FORMAT_VERSION:
        versions = config.get("versions")
        made_by = versions.get("ssmseq", "unknown") if isinstance(versions, dict) else "unknown"
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise ValueError(
            f"{folder} has model format {version}, made by ssmseq {made_by}; this ssmseq reads format "
            f"{FORMAT_VERSION}. {'Upgrade ssmseq' if newer else 'Fit and save the model again'}"
        )
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(f"{folder} holds a {name!r}, which is not one of {', '.join(CLASSES)}")
    estimator = getattr(importlib.import_module(CLASSES[name]), name)()
    try:
        estimator.set_params(**config["params"])
        estimator._import_state(config["fitted"], from_bytes((folder / WEIGHTS).read_bytes()))
    except Exception as error:  # whatever is wrong with the numbers, the folder is what the user has to replace
        raise ValueError(f"{folder} does not fit {name}: {error}") from error
    return estimator


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        missing = {"format_version", "class", "params", "fitted"} - set(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the description of a saved model: {error}") from error
    if not isinstance(config, dict) or missing:
        raise ValueError(f"{path} is not the description of a saved model: it lacks {', '.join(sorted(missing))}")
    return config


def _plain(name: str, value):
    """Give back what JSON can hold, or say which parameter it cannot."""
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, v) for v in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(name, v) for key, v in value.items()}
    if name == "random_state":  # a generator object: its draw is spent, the fitted weights hold its effect
        return None
    raise TypeError(f"the parameter {name}={value!r} cannot be written to {CONFIG}; set it to a plain value")


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step, so that no reader ever sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

"""Small fitted estimators to export, each made once, and a process that runs a file without this library."""

import functools
import subprocess
import sys

import numpy as np
import pandas as pd

import ssmseq

SIZES = {"horizon": 3, "lookback": 7, "max_epochs": 1, "batch_size": 32, "random_state": 0, "accelerator": "cpu"}
NETWORK = SIZES | {"d_model": 8, "d_state": 2, "n_layers": 1}
ECG = {"max_epochs": 1, "random_state": 0, "d_model": 4, "d_state": 2, "n_layers": 1, "accelerator": "cpu"}
DNA = {"d_model": 8, "n_layers": 2, "d_state": 2, "length": 32, "max_epochs": 1, "random_state": 0}
DNA |= {"accelerator": "cpu", "head_dim": 8, "attention_period": 2, "attention_offset": 1}
HEAD = {"max_epochs": 2, "random_state": 0, "accelerator": "cpu"}
SEQUENCES = ["ACGTAC", "AACCAA", "AACCA", "GGTTN"] * 8


def waves(n_rows: int = 120, *, gaps: bool = False) -> pd.DataFrame:
    """Three variates of very different size, hourly; with gaps two of them lack rows, one also at the end."""
    noise = np.random.default_rng(0).normal(size=(n_rows, 3))
    values = np.sin(np.arange(n_rows)[:, None] / [3, 5, 9]) + 0.1 * noise
    index = pd.date_range("2021-01-01", periods=n_rows, freq="h", name="time")
    frame = pd.DataFrame(values * [1, 20, 0.5] + [0, 1000, -3], index=index, columns=["a", "b", "c"])
    if gaps:
        frame.iloc[20:24, 1] = np.nan
        frame.iloc[[-5, -4, -1], 0] = np.nan
    return frame


def covariates(n_rows: int = 100) -> pd.DataFrame:
    """A long frame of two series with a past, a future and two static covariates."""
    parts = []
    for i, name in enumerate(("x", "y")):
        part = waves(n_rows).reset_index()[["time", "a", "b", "c"]]
        part = part.assign(a=part.a * (i + 1) + 10 * i, id=name, size=2.0 + i, kind="big" if i else "small")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


ROLES = {"id_col": "id", "time_col": "time", "target": "a", "past_covariates": ["b"], "future_covariates": ["c"]}
ROLES |= {"static_covariates": ["size", "kind"], "time_features": True}


def signals(n: int = 24, n_leads: int = 2, n_times: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, n_leads, n_times)).cumsum(-1)


def labels(n: int = 24) -> np.ndarray:
    return np.tile([[0, 1], [1, 0], [1, 1]], (n // 3, 1))


def _ecg(y=None, **changes):
    return ssmseq.ECGMambaClassifier(**ECG | changes).fit(signals(), labels() if y is None else y)


def _model(**changes):
    return ssmseq.DNALanguageModel(**DNA | changes)


def _language_model(**changes):
    return _model(**changes).fit(["ACGTN" * 40, "AACC" * 40])


THREE = np.arange(24) % 3
CASES = {
    "naive": lambda: ssmseq.NaiveForecaster(horizon=3, lookback=7, season_length=2).fit(waves()),
    "ridge": lambda: ssmseq.RidgeForecaster(horizon=3, lookback=7, alpha=0.1).fit(waves()),
    "linear": lambda: ssmseq.LinearForecaster(**SIZES, quantiles=[0.1, 0.5, 0.9]).fit(waves()),
    "smamba": lambda: ssmseq.SMambaForecaster(**NETWORK, d_ff=8, time_features=True).fit(waves(gaps=True)),
    "double": lambda: ssmseq.SMambaForecaster(**NETWORK, d_ff=8, precision="64-true", scaler="none").fit(waves()),
    "long": lambda: ssmseq.SMambaForecaster(**NETWORK, d_ff=8, **ROLES).fit(covariates()),
    "karma": lambda: ssmseq.KarmaForecaster(**NETWORK, decomposition="atcd").fit(waves()),
    "karma_mean": lambda: ssmseq.KarmaForecaster(**NETWORK, decomposition="moving_average").fit(waves()),
    "tsm2": lambda: ssmseq.TSM2Forecaster(**NETWORK).fit(waves(gaps=True)),
    "ecg": _ecg,
    "ecg_platt": lambda: _ecg(calibration="platt", n_folds=2, normalisation="lead"),
    "ecg_isotonic": lambda: _ecg(calibration="isotonic", n_folds=2, encoder="cnn", normalisation="none"),
    "ecg_classes": lambda: _ecg(THREE, encoder="add", pooling="class_token", positions=True),
    "ecg_hydra": lambda: _ecg(THREE, encoder="hydra", calibration="temperature", n_folds=2, normalisation="record"),
    "dna": _language_model,
    "dna_hybrid": lambda: _language_model(architecture="hybrid"),
    "dna_both": lambda: _language_model(bidirectional=True, reverse_complement="equivariant"),
    "dna_swapped": lambda: _language_model(bidirectional=True, reverse_complement="equivariant", swap_strands=True),
    "dna_hydra": lambda: _language_model(bidirectional=True, architecture="hybrid"),
    "dna_classes": lambda: ssmseq.DNAClassifier(
        language_model=_model(), **HEAD, reverse_complement="average", pooling="class"
    ).fit(SEQUENCES, [0, 1, 1, 2] * 8),
    "dna_values": lambda: ssmseq.DNARegressor(language_model=_model(bidirectional=True), **HEAD).fit(
        SEQUENCES, [0.5, 1.5, 2.0, 9.0] * 8
    ),
}


@functools.cache
def fitted(name: str):
    """The fitted estimator of a case, which no test may change."""
    return CASES[name]()


RUN = """
import json, sys
sys.modules["ssmseq"] = sys.modules["ssmseq_kernels"] = None
import numpy as np
path, inputs, output = sys.argv[1:]
given = dict(np.load(inputs))
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    found = session.run(None, given)[0]
    assert "torch" not in sys.modules
else:
    import torch
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    found = program.module()(**{name: torch.from_numpy(x) for name, x in given.items()}).numpy()
np.save(output, found)
print(json.dumps(metadata))
"""


def run_alone(path, inputs: dict, folder) -> tuple[np.ndarray, dict, str]:
    """Run an exported file in a process that cannot import this library: output, metadata, stderr."""
    import json

    np.savez(folder / "inputs.npz", **{name: np.asarray(x) for name, x in inputs.items()})
    words = [sys.executable, "-W", "ignore", "-c", RUN, path, folder / "inputs.npz", folder / "output.npy"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "output.npy"), json.loads(done.stdout), done.stderr

"""Recordings of waves whose labels are known, and small classifiers of them."""

import pickle

import numpy as np

from ssmseq import ECGMambaClassifier, Record

SMALL = {
    "d_model": 16,
    "n_layers": 1,
    "d_state": 4,
    "max_epochs": 6,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "random_state": 0,
    "accelerator": "cpu",
}
RATE = 50.0


def small(**changes) -> ECGMambaClassifier:
    return ECGMambaClassifier(**SMALL | {"sampling_rate": RATE} | changes)


def waves(n: int = 48, n_times: int = 100, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Limb leads in mV that hold a 4 Hz wave, a 9 Hz wave, both or neither, in noise: (n, 3, times), (n, 2)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (n, 2))
    seconds = np.arange(n_times) / RATE
    phase = rng.uniform(0, 2 * np.pi, (n, 2, 1))
    parts = np.sin(2 * np.pi * np.array([4, 9])[:, None] * seconds + phase) * y[..., None]
    X = np.empty((n, 3, n_times))
    X[:, 0], X[:, 1] = parts[:, 0] + 0.3 * parts[:, 1], parts[:, 1] - 0.2 * parts[:, 0]
    X += 0.3 * rng.standard_normal(X.shape)
    X[:, 2] = X[:, 1] - X[:, 0]
    return X, y


def as_records(X, **common) -> list[Record]:
    names = common.pop("lead_names", ("I", "II", "III"))
    rate = common.pop("sampling_rate", RATE)
    return [Record(signal=np.asarray(x), sampling_rate=rate, lead_names=names, **common) for x in X]


def copied(est: ECGMambaClassifier) -> ECGMambaClassifier:
    return pickle.loads(pickle.dumps(est))

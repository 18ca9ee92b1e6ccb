"""ECGMambaClassifier saved, pickled, repeated from a seed, resumed and warmed up."""

import json
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from ecg_waves import as_records, copied, small, waves

from ssmseq import load
from ssmseq.ecg import fitting


@pytest.fixture(scope="module")
def data():
    return waves()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"calibration": "isotonic", "thresholds": "f1", "n_folds": 2, "augment": {"noise": 0.1}},
        {"band": (0.5, 20.0), "notch": 15.0, "normalisation": "lead", "positive_weights": np.array([1.0, 2.0])},
        {"encoder": "cnn"},
        {"precision": "64-true", "positions": True, "pooling": "class_token", "stem_stride": 3},
        {"n_networks": 3, "validation_fraction": 0.2},
    ],
    ids=["plain", "calibrated", "filtered", "cnn", "double", "ensemble"],
)
def test_a_saved_model_predicts_the_same_bits(tmp_path, data, changes):
    X, y = data
    frame = pd.DataFrame(y, columns=["fast", "slow"])
    records = as_records(X, age=50.0)
    est = small(max_epochs=2, window=1.0, metadata=True, **changes).fit(records, frame)
    est.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    json.loads((tmp_path / "config.json").read_text())
    for other in (load(tmp_path), copied(est)):
        np.testing.assert_array_equal(other.predict_proba(records), est.predict_proba(records))
        np.testing.assert_array_equal(other.predict(records), est.predict(records))
        assert other.classes_.tolist() == ["fast", "slow"]
        assert other.classes_.dtype == est.classes_.dtype
        assert other.preprocessing_ == est.preprocessing_
        np.testing.assert_array_equal(other.thresholds_, est.thresholds_)
        pd.testing.assert_frame_equal(other.history_, est.history_)
        with pytest.raises(ValueError, match="limb leads contradict"):
            other.predict(as_records(X[:, [1, 0, 2]], age=50.0))


@pytest.mark.parametrize("y", [np.arange(48) % 3 - 1, np.arange(48) % 2 == 0, np.array(list("abc"))[np.arange(48) % 3]])
def test_saved_classes_keep_their_type(tmp_path, data, y):
    est = small(max_epochs=1).fit(data[0], y).save(tmp_path)
    found = load(tmp_path).predict(data[0])
    assert found.dtype == est.predict(data[0]).dtype == y.dtype
    assert (found == est.predict(data[0])).all()


def test_nothing_of_the_training_data_is_kept(data):
    X, y = data
    sizes = [len(pickle.dumps(small(max_epochs=1).fit(np.tile(X, (n, 1, 1)), np.tile(y, (n, 1))))) for n in (1, 4)]
    assert abs(sizes[0] - sizes[1]) < 200


def test_the_seed_repeats_a_fit_and_leaves_the_global_generators_alone(data):
    X, y = data
    drawn = {"augment": ["mixup", "noise", "time_shift"], "window": 1.0, "max_epochs": 2}
    first = small(**drawn).fit(X, y)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = small(**drawn).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    other = small(**drawn | {"random_state": 1}).fit(X, y)
    assert (other.predict_proba(X) != first.predict_proba(X)).all()


def test_loading_in_processes_draws_the_same_crops(data):
    X, y = data
    drawn = {"augment": ["mixup", "noise"], "window": 1.0, "max_epochs": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        apart = small(**drawn, num_workers=1).fit(X, y)
    np.testing.assert_array_equal(apart.predict_proba(X), small(**drawn).fit(X, y).predict_proba(X))


def test_folds_resume_from_their_folders(data, tmp_path, monkeypatch):
    X, y = data
    settings = {"n_folds": 2, "calibration": "temperature", "max_epochs": 2, "window": 1.0, "augment": ["noise"]}
    plain = small(**settings).fit(X, y)
    first = small(**settings, checkpoint_folder=str(tmp_path)).fit(X, y)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold-0", "fold-1", "last.ckpt"]
    steps = []
    crops = fitting.Crops.__getitems__
    monkeypatch.setattr(fitting.Crops, "__getitems__", lambda self, i: steps.append(len(i)) or crops(self, i))
    again = small(**settings, checkpoint_folder=str(tmp_path)).fit(X, y)
    assert sum(steps) <= 3  # one crop of each part, to estimate its memory
    for est in (first, again):
        np.testing.assert_array_equal(est.predict_proba(X), plain.predict_proba(X))


def test_warm_start_goes_on_and_folds_start_afresh(data):
    X, y = data
    est = small(warm_start=True, max_epochs=3).fit(X, y)
    loss = est.history_["train_loss"].iloc[-1]
    assert est.fit(X, y).history_["train_loss"].iloc[0] < 1.1 * loss
    fresh = small(max_epochs=3, n_folds=2, calibration="platt").fit(X, y)
    warm = est.set_params(n_folds=2, calibration="platt").fit(X, y)
    assert warm.calibrator_.parameters_ == fresh.calibrator_.parameters_
    with pytest.raises(ValueError, match="warm_start=True cannot go on"):
        est.set_params(d_model=8).fit(X, y)


def test_a_failed_fit_leaves_the_earlier_one_whole(data):
    X, y = data
    est = small(max_epochs=1).fit(X, y)
    expected, state = est.predict_proba(X), set(vars(est))
    with pytest.raises(ValueError, match="diverged"):
        est.set_params(learning_rate=1e30).fit(X[:, :1], y)
    assert set(vars(est)) == state
    np.testing.assert_array_equal(est.predict_proba(X), expected)

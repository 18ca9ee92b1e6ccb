"""Several networks in one ECGMambaClassifier: their logits are averaged, whatever becomes of the fit."""

import copy
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from ecg_waves import as_records, small, waves
from lightning.pytorch import Callback

from ssmseq import load
from ssmseq.ecg import SaliencyDisplay, fitting, write_model_report

SETTINGS = {"max_epochs": 2, "window": 1.0, "augment": ["noise"], "dropout": 0.1}


@pytest.fixture(scope="module")
def data():
    return waves()


class InterruptsIn(Callback):
    """Ctrl-C in the first epoch of one of the networks."""

    def __init__(self, network: int):
        self.network, self.begun = network, 0

    def on_train_start(self, trainer, pl_module):
        self.begun += 1
        if self.begun == self.network:
            signal.raise_signal(signal.SIGINT)


def weights_of(network) -> list[torch.Tensor]:
    return list(network.state_dict().values())


def test_logits_are_the_mean_of_those_of_the_networks(data, monkeypatch):
    X, y = data
    seeds, fit = [], fitting._fit_network
    monkeypatch.setattr(fitting, "_fit_network", lambda *args: seeds.append(args[-1]) or fit(*args))
    est = small(**SETTINGS, n_networks=3).fit(X, y)
    single = small(**SETTINGS).fit(X, y)
    members = list(est.network_.members)
    assert len(members) == 3
    assert len(set(seeds[:3])) == 3  # crops, shuffling and dropout differ as well
    assert seeds[3] == seeds[0]
    for a, b in zip(weights_of(members[0]), weights_of(single.network_), strict=True):
        assert torch.equal(a, b)  # the first is the one that there would be alone
    logits = []
    for member in members:
        alone = copy.copy(single)
        alone.network_ = member
        logits.append(alone.decision_function(X))
    np.testing.assert_allclose(est.decision_function(X), np.mean(logits, 0), rtol=0, atol=1e-6)
    assert min(np.abs(logits[i] - logits[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3
    assert est.history_["network"].tolist() == [1, 1, 2, 2, 3, 3]
    first = est.history_.iloc[:2].drop(columns=["network", "seconds"])
    pd.testing.assert_frame_equal(first, single.history_.drop(columns="seconds"))
    assert est.n_iter_ == 2


@pytest.mark.parametrize(("at", "kept"), [(1, 1), (2, 1), (3, 2)])
def test_an_interrupt_leaves_the_networks_before_and_the_next_fit_goes_on(data, tmp_path, at, kept):
    X, y = data
    settings = {**SETTINGS, "n_networks": 3}
    plain = small(**settings).fit(X, y)
    cut = small(**settings, checkpoint_folder=str(tmp_path / "state"), callbacks=[InterruptsIn(at)])
    with pytest.warns(UserWarning, match="interrupted"):
        cut.fit(X, y)
    members = list(cut.network_.members)
    assert len(members) == kept
    if at > 1:
        for member, whole in zip(members, plain.network_.members, strict=False):
            for a, b in zip(weights_of(member), weights_of(whole), strict=True):
                assert torch.equal(a, b)
    cut.set_params(callbacks=None).save(tmp_path / "saved")
    np.testing.assert_array_equal(load(tmp_path / "saved").predict_proba(X), cut.predict_proba(X))
    again = cut.fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), plain.predict_proba(X))
    pd.testing.assert_frame_equal(again.history_.drop(columns="seconds"), plain.history_.drop(columns="seconds"))


def test_folds_have_networks_of_their_own(data, tmp_path):
    X, y = data
    est = small(**SETTINGS, n_networks=2, n_folds=2, calibration="platt", checkpoint_folder=str(tmp_path)).fit(X, y)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ckpt"))
    parts = ["fold-0/", "fold-1/", ""]
    assert found == sorted(f"{part}{network}last.ckpt" for part in parts for network in ("", "network-1/"))
    again = small(**SETTINGS, n_networks=2, n_folds=2, calibration="platt").fit(X, y)
    assert again.calibrator_.parameters_ == est.calibrator_.parameters_


def test_reports_and_saliency_are_of_all_networks(data, tmp_path):
    X, y = data
    records = as_records(X)
    est = small(**SETTINGS, n_networks=2).fit(records, y)
    page = write_model_report(est, records, y, tmp_path / "page.html", n_resamples=10).read_text()
    assert "2, their logits averaged" in page
    assert "Loss by epoch of 2 networks; 4 epochs" in page
    maps = []
    for network in (est.network_, *est.network_.members):
        alone = copy.copy(est)
        alone.network_ = network
        maps.append(SaliencyDisplay.from_estimator(alone, records[0], label=est.classes_[0], smoothing=0).saliency)
    np.testing.assert_allclose(maps[0], (maps[1] + maps[2]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1.5, "2"])
def test_numbers_of_networks_that_cannot_be(data, number):
    with pytest.raises(ValueError, match="n_networks must be"):
        small(n_networks=number).fit(*data)


def test_lines_of_progress_say_which_fold_and_network_they_are_of(data, capfd):
    X, y = data
    small(max_epochs=1, n_networks=2, n_folds=2, thresholds="f1", verbose=1).fit(X, y)
    lines = [x.split(": epoch 1/1  train_loss ")[0] for x in capfd.readouterr().err.splitlines() if "epoch" in x]
    folds = [f"fold {k} of 2, network {m} of 2" for k in (1, 2) for m in (1, 2)]
    assert lines == [*folds, "network 1 of 2", "network 2 of 2"]

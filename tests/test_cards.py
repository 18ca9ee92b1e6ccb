"""Cards say what the estimator holds, and what it is not for."""

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.exceptions import NotFittedError

from ssmseq import DNALanguageModel, ECGMambaClassifier, RidgeForecaster, SMambaForecaster, load
from ssmseq.cards import model_card


@pytest.fixture(scope="module")
def forecaster():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(120, 2)), columns=["oil|gas", "load"])
    sizes = {"d_model": 8, "d_ff": 8, "horizon": 4, "lookback": 8}
    return SMambaForecaster(**sizes, max_epochs=2, random_state=0, accelerator="cpu").fit(frame)


def test_a_card_goes_with_the_model(forecaster, tmp_path):
    forecaster.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / "README.md").exists()
    forecaster.save(tmp_path / "model", card=True)
    text = (tmp_path / "model" / "README.md").read_text()
    assert text == model_card(forecaster)
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "ssmseq"
    assert load(tmp_path / "model").predict().equals(forecaster.predict())


def test_it_says_what_the_model_holds(forecaster):
    text = model_card(forecaster)
    n_weights = sum(p.numel() for p in forecaster.network_.parameters())
    for part in (
        f"| weights | {n_weights:,} |",
        r"| input columns | oil\|gas, load |",
        "| d_model | 8 |",
        "| epochs | 2 |",
    ):
        assert part in text
    best = forecaster.history_["valid_loss"].min()
    assert f"| best validation loss | {best:.4g} in epoch" in text
    assert "accelerator | cpu" in text
    assert "| learning_rate" not in text  # the default
    assert "RidgeForecaster" in text.split("## What it is not for")[1]
    assert text.count("- Wang et al.") == 2
    assert "[1]_" not in text


def test_what_models_are_not_for_is_said():
    X, y = np.random.default_rng(0).normal(size=(20, 2, 50)), np.tile([[0, 1], [1, 0]], (10, 1))
    classifier = ECGMambaClassifier(d_model=8, n_layers=1, max_epochs=1, random_state=0, accelerator="cpu").fit(X, y)
    assert "Not a medical device" in model_card(classifier).split("## What it is not for")[1]
    assert "| labels | 0, 1 |" in model_card(classifier)
    model = DNALanguageModel(d_model=8, n_layers=1, length=16, max_epochs=1, random_state=0, accelerator="cpu")
    assert "not how harmful" in model_card(model.fit(["ACGT" * 20] * 3))


def test_models_without_epochs_or_networks_have_cards_too():
    text = model_card(RidgeForecaster(horizon=2, lookback=4).fit(np.random.default_rng(0).normal(size=(60, 1))))
    assert "## Training" not in text
    assert "weights" not in text


def test_an_unfitted_estimator_has_nothing_to_save(tmp_path):
    with pytest.raises(NotFittedError):
        SMambaForecaster().save(tmp_path, card=True)

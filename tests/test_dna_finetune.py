import numpy as np
import pandas as pd
import pytest
import torch
from dna_networks import random_dna
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score

from ssmseq import DNAClassifier, DNALanguageModel, DNARegressor, load
from ssmseq.dna import head
from ssmseq.dna.alphabet import encode, reverse_complement

TINY = {"d_model": 16, "n_layers": 1, "d_state": 4}
QUICK = {"max_epochs": 2, "random_state": 0, "batch_size": 16, "accelerator": "cpu"}
MOTIF = "TTGACA"


def planted(n: int = 60, length: int = 40, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Sequences of unequal lengths, half of them with a motif somewhere."""
    rng = np.random.default_rng(seed)
    X, y = [], np.arange(n) % 2
    for i in range(n):
        sequence = random_dna(length + i % 3, seed * n + i)
        place = rng.integers(0, length - len(MOTIF))
        X.append(
            sequence[:place] + MOTIF + sequence[place + len(MOTIF) :] if y[i] else sequence.replace(MOTIF, "A" * 6)
        )
    return X, y


@pytest.fixture(scope="module")
def fitted_model():
    model = DNALanguageModel(**TINY, length=32, max_epochs=1, random_state=0, accelerator="cpu")
    return model.fit([random_dna(400, i) for i in range(4)])


def test_a_planted_motif_is_learnt():
    X, y = planted(600)
    model = DNALanguageModel(d_model=32, n_layers=1)
    classifier = DNAClassifier(language_model=model, **{**QUICK, "max_epochs": 15}, pooling="max", learning_rate=5e-3)
    unseen = planted(200, seed=1)
    assert classifier.fit(X, y).score(*unseen) > 0.9


@pytest.mark.parametrize("architecture", ["mamba", "mamba2"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", head.POOLINGS)
def test_predictions_depend_on_no_batch(architecture, bidirectional, pooling):
    X, y = planted(24)
    base = DNALanguageModel(**TINY, architecture=architecture, bidirectional=bidirectional, head_dim=8)
    model = DNAClassifier(language_model=base, pooling=pooling, **{**QUICK, "max_epochs": 1}).fit(X, y)
    X = [*X, random_dna(70), "A"]
    together = model.predict_proba(X)
    alone = np.concatenate([model.predict_proba([x]) for x in X])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(together.sum(1), 1)
    assert (model.predict(X) == model.classes_[together.argmax(1)]).all()
    odds = np.log(together[:, 1]) - np.log(together[:, 0])
    np.testing.assert_allclose(model.decision_function(X), odds, atol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora", "head"])
def test_what_is_tuned(fitted_model, tuning):
    X, y = planted()
    before = {k: v.clone() for k, v in fitted_model.network_.state_dict().items()}
    model = DNAClassifier(language_model=fitted_model, tuning=tuning, lora_rank=2, **QUICK).fit(X, y)
    for name, value in fitted_model.network_.state_dict().items():
        assert torch.equal(value, before[name])
    after = model.network_.network.state_dict()
    assert set(after) == set(before)  # low-rank parts are merged
    changed = {name.rsplit(".", 2)[-2] for name in before if not torch.equal(before[name], after[name])}
    if tuning == "full":
        assert {"embedding", "in_proj", "conv1d", "norm_f"} <= changed
    else:
        assert changed == (set() if tuning == "head" else {"in_proj", "x_proj", "dt_proj", "out_proj"})
    if tuning == "lora":
        name = "core.backbone.layers.0.mixer.in_proj.weight"
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 2


def test_averaging_makes_the_strands_alike():
    X, y = planted()
    base = DNALanguageModel(**TINY)
    model = DNAClassifier(language_model=base, reverse_complement="average", **QUICK).fit(X, y)
    other = [reverse_complement(x) for x in X]
    np.testing.assert_allclose(model.predict_proba(X), model.predict_proba(other), atol=1e-6)
    model.reverse_complement = "none"
    assert abs(model.predict_proba(X) - model.predict_proba(other)).max() > 1e-4


def test_an_equivariant_model_gives_both_strands_the_same():
    X, y = planted()
    base = DNALanguageModel(**TINY, bidirectional=True, reverse_complement="equivariant")
    model = DNAClassifier(language_model=base, **QUICK).fit(X, y)
    X = [x[:40] for x in X]  # of one length, so that padding does not tell the strands apart
    model.length_ = 40
    other = [reverse_complement(x) for x in X]
    np.testing.assert_allclose(model.predict_proba(X), model.predict_proba(other), atol=1e-6)


def test_saved_models_predict_the_same(tmp_path, fitted_model):
    X, y = planted()
    classifier = DNAClassifier(language_model=fitted_model, tuning="lora", **QUICK).fit(X, np.where(y, "yes", "no"))
    again = load(classifier.save(tmp_path / "c") and tmp_path / "c")
    assert (again.predict_proba(X) == classifier.predict_proba(X)).all()
    assert again.classes_.tolist() == ["no", "yes"]
    pd.testing.assert_frame_equal(again.history_, classifier.history_)
    regressor = DNARegressor(language_model=fitted_model, **QUICK).fit(X, y * 3.0 + 100)
    again = load(regressor.save(tmp_path / "r") and tmp_path / "r")
    assert (again.predict(X) == regressor.predict(X)).all()
    assert 95 < again.predict(X).mean() < 110


def test_cross_validation_from_a_folder_and_from_a_frozen_model(tmp_path, fitted_model):
    X, y = planted()
    fitted_model.save(tmp_path)
    for given in (str(tmp_path), FrozenEstimator(fitted_model)):
        model = DNAClassifier(language_model=given, tuning="head", **QUICK)
        assert cross_val_score(model, pd.Series(X), y, cv=2).shape == (2,)
    grid = GridSearchCV(clone(model), {"learning_rate": [1e-3, 1e-2]}, cv=2).fit(np.array(X), y)
    assert grid.best_params_["learning_rate"] in (1e-3, 1e-2)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    X, y = planted()
    options = {"language_model": DNALanguageModel(**TINY), "reverse_complement": "augment", **QUICK}
    whole = DNAClassifier(**{**options, "max_epochs": 4}, lr_schedule="constant").fit(X, y)
    for epochs in (2, 4):
        model = DNAClassifier(**{**options, "max_epochs": epochs}, lr_schedule="constant", checkpoint_folder=tmp_path)
        model.fit(X, y)
    assert (model.predict_proba(X) == whole.predict_proba(X)).all()


def test_strands_are_drawn_by_number_and_epoch():
    sequences = [encode("AACCC")] * 400
    data = head.Sequences(sequences, np.zeros(400), length=5, causal=True, with_class=False, both_strands=True, seed=3)
    first, second = (data.__getitems__(range(400 * epoch, 400 * (epoch + 1)))[0]["tokens"] for epoch in (0, 1))
    turned = [(part[:, 1:] == torch.from_numpy(encode("GGGTT").astype(int))).all(1) for part in (first, second)]
    assert 150 < turned[0].sum() < 250
    assert (turned[0] != turned[1]).any()
    assert torch.equal(data.__getitems__([7, 3])[0]["tokens"], first[[7, 3]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning": "none"}, "tuning must be one of"),
        ({"tuning": "lora"}, "language_model is not fitted"),
        ({"pooling": "echo"}, "pooling must be one of"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"validation_fraction": 0.001}, "validation_fraction=0.001 of 60 sequences"),
    ],
)
def test_parameters_that_cannot_work(change, message):
    X, y = planted()
    with pytest.raises(ValueError, match=message):
        DNAClassifier(**{"language_model": DNALanguageModel(**TINY), **QUICK, **change}).fit(X, y)


def test_data_that_cannot_work():
    X, y = planted()
    model = DNAClassifier(language_model=DNALanguageModel(**TINY), **QUICK)
    with pytest.raises(ValueError, match=r"X\[3\]: the letter 'J' at position 2"):
        model.fit([*X[:3], "AJ", *X[4:]], y)
    with pytest.raises(ValueError, match=r"X\[3\] is empty"):
        model.fit([*X[:3], "", *X[4:]], y)
    with pytest.raises(ValueError, match="two classes"):
        model.fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="inconsistent numbers"):
        model.fit(X, y[1:])
    with pytest.raises(TypeError, match=r"X\[0\] must be a string of DNA, got int"):
        model.fit([1] * 60, y)
    with pytest.raises(TypeError, match="DNALanguageModel or the folder"):
        DNAClassifier(language_model=3).fit(X, y)
    with pytest.raises(ValueError, match="finite number"):
        DNARegressor(language_model=DNALanguageModel(**TINY), **QUICK).fit(X, [np.nan] * 60)

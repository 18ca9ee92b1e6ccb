"""Search spaces, and what trials of ECG and DNA estimators are measured on."""

import numpy as np
import pytest
import yaml
from optuna.trial import FixedTrial

import ssmseq
from ssmseq.tuning import load_space, space_names, tune
from ssmseq.tuning.dna import DNAClassTask, DNALanguageTask
from ssmseq.tuning.ecg import ECGTask
from ssmseq.tuning.spaces import MEASURES, OWNED


@pytest.mark.parametrize("name", space_names())
def test_spaces_name_parameters_and_hold_the_defaults(name):
    space = load_space(name)
    estimator = getattr(ssmseq, name)
    defaults = estimator().get_params(deep=False)
    assert set(space.entries) <= set(defaults)
    assert not set(space.entries) & (MEASURES | OWNED)
    assert space.part_of(defaults)  # the first trial has some of the estimator's own settings
    lowest = {n: e.choices[0] if hasattr(e, "choices") else e.low for n, e in space.entries.items()}
    found = space.suggest(FixedTrial(lowest))
    assert found == {**space.fixed, **lowest}
    assert load_space(name, {"space": space.as_dict()}) == space


def test_changes_replace_remove_and_fix(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "space:\n  d_model: {type: int, low: 8, high: 32, step: 8}\n  dropout: null\n  loss:\n"
        "fixed: {horizon: 24, n_layers: 2, dropout: 0.3}\n"
    )
    usual, found = load_space("SMambaForecaster"), load_space("SMambaForecaster", path)
    assert set(usual.entries) - set(found.entries) == {"dropout", "loss", "n_layers"}
    assert found.as_dict()["d_model"] == {"type": "int", "low": 8, "high": 32, "step": 8}
    assert found.fixed == {"horizon": 24, "n_layers": 2, "dropout": 0.3}
    assert found.part_of({"d_model": 24, "d_state": 1, "learning_rate": 0.0001}) == {
        "d_model": 24,
        "learning_rate": 0.0001,
    }
    assert found.part_of({"d_model": 20}) == {}  # off the grid
    assert load_space(
        "ECGMambaClassifier", {"space": {"preset": {"type": "categorical", "choices": ["cnn", "vim"]}}}
    ).fixed == {"validation_fraction": 0.1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"spaces": {}}, "must hold `space` and `fixed`"),
        ({"space": [1]}, "space must give values by name"),
        ({"space": {"width": None}}, "has no parameter 'width'"),
        ({"fixed": {"width": 3}}, "has no parameter 'width'"),
        ({"space": {"d_model": 64}}, "d_model: an entry must have the type float, int or categorical, got 64"),
        ({"space": {"d_model": {"type": "int", "low": 3}}}, "type int takes high, log, low, step, got low"),
        ({"space": {"d_model": {"type": "int", "low": 3, "high": 2}}}, "d_model: "),
        ({"space": {"loss": {"type": "categorical", "choices": []}}}, "choices must be a list"),
        ({"space": {"loss": {"type": "categorical", "choices": [[1]]}}}, "choices must be a list"),
        ({"space": {"scaler": {"type": "categorical", "choices": ["none"]}}}, "scaler cannot be searched"),
        ({"fixed": {"verbose": 1}}, "verbose belongs to the search itself"),
        ({"space": {"max_epochs": {"type": "int", "low": 1, "high": 9}}}, "max_epochs belongs to the search"),
        (
            {"space": {"loss": {"type": "categorical", "choices": ["mse"]}}, "fixed": {"loss": "mae"}},
            "loss stands under `space` and under `fixed`",
        ),
    ],
)
def test_changes_that_cannot_work(content, message):
    with pytest.raises(ValueError, match=message):
        load_space("SMambaForecaster", content)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_space("SMambaForecaster", "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("space: [")
    with pytest.raises(ValueError, match="is no YAML file"):
        load_space("SMambaForecaster", tmp_path / "bad.yaml")
    with pytest.raises(ValueError, match="there is no search space for 'NaiveForecaster'"):
        load_space("NaiveForecaster")


ECG_FIXED = {"d_model": 4, "d_state": 2, "n_layers": 1, "stem_kernel": 3, "accelerator": "cpu", "max_epochs": 1}


@pytest.fixture(scope="module")
def recordings():
    """Sixty noisy recordings of twenty patients; the second label doubles the amplitude."""
    rng = np.random.default_rng(0)
    y = (rng.random((60, 2)) < 0.5).astype(float)
    X = rng.normal(size=(60, 2, 40)) * (1 + y[:, 1])[:, None, None]
    return X, y, np.repeat(np.arange(20), 3)


def test_ecg_trials_are_measured_on_patients_of_their_own(recordings):
    X, y, groups = recordings
    seen = {}

    class Spy(ssmseq.ECGMambaClassifier):
        def fit(self, X, y, groups=None):
            seen.update(X=X, groups=groups)
            return super().fit(X, y, groups)

    fixed = {**ECG_FIXED, "validation_fraction": 0.2, "random_state": 0}
    task = ECGTask(Spy, fixed, None, X, y, groups)
    estimator = Spy(**fixed)
    task.fit(estimator)
    held = sorted(set(groups[task.held]))
    assert 2 <= len(held) <= 6
    assert not set(seen["groups"]) & set(held)
    assert len(seen["X"]) == (~np.isin(groups, held)).sum()
    from sklearn.metrics import roc_auc_score

    expected = roc_auc_score(y[task.held], estimator.predict_proba(X[task.held]), average="macro")
    assert task.measure(estimator) == pytest.approx(expected, rel=1e-12)
    found = task.baselines()
    assert found["prevalence"] == 0.5
    assert found["logistic regression"] > 0.6  # it sees the amplitude
    chosen = np.arange(60) < 9
    assert ECGTask(Spy, fixed, None, X, y, groups, held_out=chosen).held.tolist() == chosen.tolist()
    assert ECGTask(Spy, fixed, None, X + 1e-3, y, groups).checksum != task.checksum


def test_ecg_search_starts_from_the_preset(recordings):
    X, y, groups = recordings
    space = {"space": dict.fromkeys(("d_model", "d_state", "n_layers", "batch_size", "loss"))}
    space["fixed"] = {**ECG_FIXED, "window": 0.4, "stride": 0.4, "max_epochs": 2}
    study = tune("ECGMambaClassifier", X, y, groups=groups, n_trials=2, space=space)
    assert study.user_attrs["fixed"]["preset"] == "dense"
    assert study.trials[0].params["learning_rate"] == 1e-3  # of the preset, not of the constructor
    assert study.direction.name == "MAXIMIZE"
    curves = [list(t.intermediate_values.values()) for t in study.trials]
    assert curves[0]
    assert max(map(max, curves)) < 0  # minus the loss, so that the pruner compares in the direction of the metric


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    contigs = {
        name: "".join(rng.choice(list("ACGT"), n, p=[0.4, 0.3, 0.2, 0.1])) for name, n in (("a", 900), ("b", 300))
    }
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    return str(path), contigs


def test_language_models_hold_out_contigs(genome):
    from ssmseq.dna.markov import MarkovBaseline

    path, contigs = genome
    task = DNALanguageTask(ssmseq.DNALanguageModel, {}, None, path, validation=["b"])
    assert list(task.validation["contig"]) == ["b"]
    ((name, bits),) = task.baselines().items()
    order = int(name.rsplit(" ", 1)[1])
    expected = MarkovBaseline(order=order).fit([contigs["a"]]).bits_per_base([contigs["b"]])
    assert bits == pytest.approx(expected, rel=1e-9)
    others = [MarkovBaseline(order=k).fit([contigs["a"]]).bits_per_base([contigs["b"]]) for k in range(4)]
    assert bits <= min(others)
    assert DNALanguageTask(ssmseq.DNALanguageModel, {"bidirectional": True}, None, path).baselines() == {}
    strings = ["A" * 90, "C" * 5, "G" * 5]
    assert DNALanguageTask(ssmseq.DNALanguageModel, {}, None, strings).validation == ["C" * 5, "G" * 5]


def test_language_model_search(genome):
    path, _ = genome
    names = ("d_model", "n_layers", "dropout", "weight_decay", "batch_size")
    space = {"space": dict.fromkeys(names), "fixed": {"d_model": 8, "n_layers": 1, "length": 64, "accelerator": "cpu"}}
    study = tune("DNALanguageModel", path, n_trials=2, max_epochs=2, space=space)
    for trial in study.trials:
        assert trial.value == pytest.approx(min(trial.intermediate_values.values()), rel=1e-6)
    assert 1.5 < study.best_value < 2.2


def test_dna_classes_hold_out_groups():
    rng = np.random.default_rng(0)
    X = ["".join(rng.choice(list("ACGT"), 8)) for _ in range(40)]
    y, groups = np.tile([0, 1], 20), np.repeat(np.arange(10), 4)
    task = DNAClassTask(ssmseq.DNAClassifier, {}, None, X, y, groups)
    assert not set(groups[task.held]) & set(groups[~task.held])
    assert task.baselines()["prevalence"] == 0.5
    assert DNAClassTask(ssmseq.DNAClassifier, {}, "log_loss", X, y).baselines()["prevalence"] == pytest.approx(
        np.log(2)
    )
    with pytest.raises(ValueError, match="DNAClassifier needs labels: pass y"):
        DNAClassTask(ssmseq.DNAClassifier, {}, None, X, None)


def test_changes_round_trip_through_yaml():
    space = load_space("KarmaForecaster")
    assert load_space("KarmaForecaster", yaml.safe_load(yaml.safe_dump({"space": space.as_dict()}))) == space

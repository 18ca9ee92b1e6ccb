"""`ssmseq tune`: what it prints fits `ssmseq fit`, goes on where it stopped, and Optuna's own command line reads it."""

import argparse
import json
import sys

import numpy as np
import optuna
import optuna.cli
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState
from tuning_cases import RIDGE, TINY, wave

import ssmseq
from ssmseq.cli import dna_fit, ecg_fit, main, tune
from ssmseq.cli.tables import read_table
from ssmseq.tuning import space_names
from ssmseq.tuning.forecasting import ForecastTask

STAMPS = pd.date_range("2024-01-01", periods=240, freq="h", name="time")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a table and a file of settings, which commands run in."""
    pd.DataFrame(wave(), index=STAMPS, columns=["a", "b"]).to_csv(tmp_path / "waves.csv")
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(RIDGE))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


STORAGE = "journal://{}/s.log"


def search(folder, *words, n=3, estimator="RidgeForecaster", config="space.yaml"):
    storage = STORAGE.format(folder)
    argv = ["tune", estimator, "waves.csv", "--study", "s", "--storage", storage, "--trials", str(n)]
    return main([*argv, "--config", config, *words])


def study_of(folder):
    from ssmseq.tuning import open_storage

    return optuna.load_study(study_name="s", storage=open_storage(STORAGE.format(folder)))


def test_best_settings_are_what_fit_takes(folder, capsys):
    assert search(folder, "--best", "best.yaml", "--report", "page.html", "--refit", "model", n=6) == 0
    out, err = capsys.readouterr()
    assert out == (folder / "best.yaml").read_text()
    study = study_of(folder)
    assert yaml.safe_load(out) == {"horizon": 3, **study.best_params}
    assert f"# RidgeForecaster: trial {study.best_trial.number} of study s" in out
    assert "6/6 trials: 6 done, 0 pruned, 0 failed, 0 running; best mse" in err
    assert "seasonal naive" in err or "ridge" in err
    assert "optuna-dashboard journal://" in err
    words = ["--save", "again", "--config", "best.yaml", "--json", "--quiet"]
    assert main(["fit", "RidgeForecaster", "waves.csv", *words]) == 0
    assert json.loads(capsys.readouterr().out)["best_validation_loss"] == pytest.approx(study.best_value, rel=1e-9)
    assert "<h1>Tuning RidgeForecaster</h1>" in (folder / "page.html").read_text()
    refitted = ssmseq.load("model")
    assert refitted.get_params()["alpha"] == study.best_params["alpha"]
    assert refitted.predict().shape == (3, 3)  # of which one is the time


def test_run_again_it_goes_on(folder, capsys):
    assert search(folder, n=2) == 0
    assert search(folder, n=2) == 0
    first = study_of(folder).trials
    assert len(first) == 2
    assert search(folder, n=5) == 0
    assert [t.value for t in study_of(folder).trials[:2]] == [t.value for t in first]
    assert len(study_of(folder).trials) == 5
    kept = study_of(folder).user_attrs
    assert kept["estimator"] == "RidgeForecaster"
    assert kept["data"] == "waves.csv"
    assert kept["command"].startswith("ssmseq tune RidgeForecaster waves.csv --study s")
    assert len(kept["checksum"]) == 32


def test_sqlite_file_by_default_serves_optunas_command_line(folder, monkeypatch, capsys):
    def run_optuna(*words):
        monkeypatch.setattr(sys, "argv", ["optuna", *words])
        code = optuna.cli.main()
        return code, capsys.readouterr().out

    address = "sqlite:///first.db"
    run_optuna("create-study", "--study-name", "first", "--direction", "minimize", "--storage", address)
    argv = ["tune", "RidgeForecaster", "waves.csv", "--study", "first", "--trials", "2", "--config", "space.yaml"]
    assert main([*argv, "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    code, out = run_optuna("best-trial", "--study-name", "first", "--storage", address, "-f", "json")
    found = json.loads(out)
    assert not code
    assert (found["number"], found["value"]) == (document["best"]["trial"], document["best"]["value"])
    assert found["params"].items() <= document["best"]["settings"].items()
    code, out = run_optuna("trials", "--study-name", "first", "--storage", address, "-f", "json")
    assert [trial["number"] for trial in json.loads(out)] == [0, 1]
    assert document["trials"] == {"asked": 2, "done": 2, "pruned": 0, "failed": 0, "running": 0}
    assert document["baselines"]["ridge"] > 0
    assert (document["schema_version"], document["direction"], document["failures"]) == (1, "minimize", {})


def test_interrupt_leaves_a_trial_to_go_on_with(folder, monkeypatch, capsys):
    measure, calls = ForecastTask.measure, []

    def interrupted(self, estimator):
        calls.append(estimator)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, estimator)

    monkeypatch.setattr(ForecastTask, "measure", interrupted)
    assert search(folder, n=4) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/4 trials: 2 done, 0 pruned, 0 failed, 0 running" in err
    assert "run the same command to go on" in err
    assert [t.state for t in study_of(folder).trials] == [TrialState.COMPLETE] * 2 + [TrialState.WAITING]
    assert search(folder, n=4) == 0
    assert [t.state for t in study_of(folder).trials] == [TrialState.COMPLETE] * 4


def test_a_study_without_any_success_fails_with_the_reason(folder, monkeypatch, capsys):
    def broken(self, estimator):
        raise MemoryError("no room")

    monkeypatch.setattr(ForecastTask, "fit", broken)
    assert search(folder, n=2) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "0 done, 0 pruned, 2 failed" in err
    assert "no trial of study 's' ran to its end; the last one failed: MemoryError: no room" in err


def test_other_data_are_refused_by_name(folder, capsys):
    assert search(folder, n=1) == 0
    pd.DataFrame(wave()[:-1], index=STAMPS[:-1], columns=["a", "b"]).to_csv("waves.csv")
    assert search(folder, n=2) == 1
    assert "study 's' was made with other data" in capsys.readouterr().err
    assert len(study_of(folder).trials) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--timeout", "3x"], 2, "--timeout must be a time such as 90s, 30m, 3h or 1d, got '3x'"),
        (["--heartbeat", "0s"], 2, "--heartbeat must be a time"),
        (["--metric", "luck"], 1, "metric must be one of mse, mae"),
        (["--trials", "0"], 1, "n_trials must be"),
        (["--config", "nowhere.yaml"], 1, "there is no file nowhere.yaml"),
        (["--storage", "redis://x"], 1, "must begin with sqlite:///"),
        (["--pruner", "hope"], 2, "invalid choice: 'hope'"),
        (["--epochs", "3"], 1, "RidgeForecaster has no epochs"),
    ],
)
def test_errors_are_one_line(folder, capsys, words, code, message):
    assert search(folder, *words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]


def test_unknown_estimator_and_missing_data(folder, capsys):
    assert main(["tune", "Prophet", "waves.csv"]) == 2
    assert "must be one of SMambaForecaster" in capsys.readouterr().err
    assert main(["tune", "RidgeForecaster", "absent.csv", "--study", "s"]) == 3
    assert main(["tune", "DNALanguageModel", "absent.fa", "--study", "s"]) == 3


@pytest.mark.parametrize("estimator", space_names())
def test_print_space_is_a_file_of_changes(estimator, capsys):
    from ssmseq.tuning import load_space

    assert main(["tune", estimator, "--print_space"]) == 0
    content = yaml.safe_load(capsys.readouterr().out)
    assert load_space(estimator, content) == load_space(estimator)
    assert estimator in tune.ESTIMATORS


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("3h", 10800), ("1d", 86400)])
def test_times(text, seconds):
    assert tune._seconds("--timeout", text) == seconds


def test_network_with_epochs_and_refit(folder, capsys):
    words = ["--epochs", "2", "--refit", "model", "--seed", "5"]
    assert search(folder, *words, n=2, estimator="SMambaForecaster", config="tiny.yaml") == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["max_epochs"], settings["random_state"]) == (2, 5)
    best = study_of(folder).best_trial
    model = ssmseq.load("model")
    epochs = best.user_attrs["best_epoch"]
    assert (model.n_iter_, model.validation_fraction) == (epochs, 0)
    fitted = ssmseq.SMambaForecaster(**settings | {"validation_fraction": 0.0, "patience": None, "max_epochs": epochs})
    expected = fitted.fit(read_table("waves.csv")).predict()
    np.testing.assert_allclose(model.predict()[["a", "b"]], expected[["a", "b"]], rtol=1e-4)


def test_dna_classes_from_a_table(folder, capsys):
    rng = np.random.default_rng(0)
    rows = [
        ("".join(rng.choice(list("ACGT"), 12, p=p)), label)
        for p, label in ((None, "x"), ([0.7, 0.1, 0.1, 0.1], "y"))
        for _ in range(20)
    ]
    pd.DataFrame(rows, columns=["sequence", "label"]).to_csv("dna.csv", index=False)
    changes = {"space": {"batch_size": None}, "fixed": {"accelerator": "cpu"}}
    (folder / "dna.yaml").write_text(yaml.safe_dump(changes))
    argv = ["tune", "DNAClassifier", "dna.csv", "--study", "s", "--storage", STORAGE.format(folder)]
    assert main([*argv, "--trials", "1", "--epochs", "1", "--config", "dna.yaml", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["metric"], document["direction"]) == ("accuracy", "maximize")
    assert document["baselines"]["prevalence"] == 0.5
    assert document["baselines"]["logistic regression of 4-mers"] > 0.5


def test_ecg_files(folder, capsys):
    rng = np.random.default_rng(0)
    (folder / "ecg").mkdir()
    for i in range(20):
        np.save(folder / "ecg" / f"r{i}.npy", rng.normal(size=(2, 60)))
    rows = {"record": [f"r{i}" for i in range(20)], "patient": np.arange(20) // 2, "AF": np.arange(20) % 2}
    pd.DataFrame(rows | {"PVC": np.arange(20) // 5 % 2}).to_csv("labels.csv", index=False)
    fixed = {"d_model": 4, "d_state": 2, "n_layers": 1, "window": 0.5, "stride": 0.5, "accelerator": "cpu"}
    searched = dict.fromkeys(("d_model", "d_state", "n_layers", "batch_size", "loss", "dropout"))
    (folder / "ecg.yaml").write_text(yaml.safe_dump({"space": searched, "fixed": fixed}))
    argv = [
        "tune",
        "ECGMambaClassifier",
        "ecg",
        "--labels",
        "labels.csv",
        "--file_rate",
        "100",
        "--file_leads",
        "I",
        "II",
    ]
    argv += ["--study", "s", "--storage", STORAGE.format(folder), "--config", "ecg.yaml", "--trials", "1"]
    assert main([*argv, "--epochs", "1", "--refit", "model"]) == 0
    out = yaml.safe_load(capsys.readouterr().out)
    assert (out["preset"], out["window"], out["max_epochs"]) == ("dense", 0.5, 1)
    assert ssmseq.load("model").classes_.tolist() == ["AF", "PVC"]
    assert study_of(folder).user_attrs["baselines"]["prevalence"] == 0.5


def test_genomes(folder, capsys):
    rng = np.random.default_rng(0)
    contigs = {name: "".join(rng.choice(list("ACGT"), n)) for name, n in (("a", 600), ("b", 200))}
    (folder / "g.fa").write_text("".join(f">{name}\n{letters}\n" for name, letters in contigs.items()))
    searched = dict.fromkeys(("d_model", "n_layers", "dropout", "batch_size", "weight_decay"))
    fixed = {"d_model": 8, "n_layers": 1, "length": 64, "accelerator": "cpu"}
    (folder / "dna.yaml").write_text(yaml.safe_dump({"space": searched, "fixed": fixed}))
    argv = [
        "tune",
        "DNALanguageModel",
        "g.fa",
        "--validation",
        "b",
        "--study",
        "s",
        "--storage",
        STORAGE.format(folder),
    ]
    assert main([*argv, "--trials", "1", "--epochs", "1", "--config", "dna.yaml", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metric"] == "bits_per_base"
    ((name, bits),) = document["baselines"].items()
    assert name.startswith("Markov model of order")
    assert 1.9 < bits < 2.2


def test_settings_of_other_estimators_are_what_their_fit_takes(tmp_path):
    """The searched and fixed settings of ECG and language models pass the parsers of `ssmseq ecg fit` and `dna fit`."""
    from ssmseq.tuning import load_space

    for name, parser, data in (
        ("ECGMambaClassifier", ecg_fit._parser("dense"), ["records"]),
        ("DNALanguageModel", dna_fit._parser(), ["genome.fa"]),
    ):
        space = load_space(name)
        settings = {**space.fixed, "random_state": 1, "max_epochs": 2}
        settings |= space.suggest(
            optuna.trial.FixedTrial(
                {n: e.choices[0] if hasattr(e, "choices") else e.low for n, e in space.entries.items()}
            )
        )
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        found = vars(parser.parse_args(["--config", str(path), *data, "--save", str(tmp_path / "m")]))
        assert isinstance(found, dict | argparse.Namespace)
        assert {key: found[key] for key in settings} == settings

"""`ssmseq ecg fit` and `evaluate` against the Python interface, on PTB-XL, the challenges and files written here."""

import json
import signal

import edfio
import numpy as np
import pandas as pd
import pytest
import yaml
from ecg_cases import data_folder, twelve_leads, write_wfdb
from ecg_cli import fit, fit_files, python_model, write_files

import ssmseq
from ssmseq.cli import ecg_fit, main, progress
from ssmseq.ecg.challenge import challenge_score, cinc2017_score
from ssmseq.ecg.folders import read_cinc, read_ptbxl
from ssmseq.ecg.leads import STANDARD_LEADS
from ssmseq.ecg.metrics import auroc_per_label, bootstrap_interval, macro_auprc, macro_auroc, macro_f_measure
from ssmseq.ecg.records import read_record
from ssmseq.ecg.thresholds import tune_thresholds


@pytest.fixture(scope="module")
def ptbxl():
    return data_folder() / "ci_small" / "ptbxl"


@pytest.fixture(scope="module")
def cinc():
    return data_folder() / "ci_small" / "cinc2021"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def model(files, tmp_path_factory):
    return fit_files(files, tmp_path_factory.mktemp("models") / "model")


# PTB-XL ---------------------------------------------------------------------------------------------------------------


def test_ptbxl_trains_on_8_folds_and_chooses_thresholds_on_the_9th(ptbxl, tmp_path, capsys):
    assert fit(ptbxl, tmp_path / "m", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    data = read_ptbxl(ptbxl)
    train, held_out = np.isin(data.folds, range(1, 9)), data.folds == 9
    expected = python_model().fit([r for r, t in zip(data.records, train, strict=True) if t], data.y[train])
    others = [r for r, h in zip(data.records, held_out, strict=True) if h]
    found = ssmseq.load(tmp_path / "m")
    np.testing.assert_array_equal(found.predict_proba(others), expected.predict_proba(others))
    probabilities, truth = expected.predict_proba(others), data.y[held_out].to_numpy()
    np.testing.assert_array_equal(found.thresholds_, tune_thresholds(truth, probabilities, "f1"))
    assert found.thresholds == "f1"
    assert document == {
        "schema_version": 1,
        "estimator": "ECGMambaClassifier",
        "preset": "dense",
        "protocol": "ptbxl",
        "records": int(train.sum()),
        "records_held_out": int(held_out.sum()),
        "labels": data.y.columns.tolist(),
        "exclusive": False,
        "thresholds": found.thresholds_.tolist(),
        "epochs": 2,
        "best_validation_loss": expected.history_["valid_loss"].min(),
        "macro_auroc_held_out": macro_auroc(truth, probabilities),
        "seconds": document["seconds"],
        "interrupted": False,
        "folder": str(tmp_path / "m"),
    }


def test_evaluation_of_the_10th_fold(ptbxl, tmp_path, capsys):
    assert fit(ptbxl, tmp_path / "m", "--thresholds", "[0.5,0.4,0.6,0.5,0.3]") == 0
    estimator, data = ssmseq.load(tmp_path / "m"), read_ptbxl(ptbxl)
    assert estimator.thresholds_.tolist() == [0.5, 0.4, 0.6, 0.5, 0.3]
    capsys.readouterr()
    for folds, rows in (([], data.folds == 10), (["--folds", "1-8,10"], data.folds != 9)):
        words = ["--resamples", "50", "--level", "80", "--json", "--quiet", *folds]
        assert main(["ecg", "evaluate", str(tmp_path / "m"), str(ptbxl), *words]) == 0
        document = json.loads(capsys.readouterr().out)
        records = [r for r, t in zip(data.records, rows, strict=True) if t]
        truth, prob = data.y[rows].to_numpy(), estimator.predict_proba(records)
        assert (document["records"], document["patients"]) == (rows.sum(), len(set(data.groups[rows])))
        assert not folds or document["patients"] < document["records"]  # so that intervals by patient are others
        metrics = {"macro_auroc": macro_auroc, "macro_auprc": macro_auprc}
        metrics["macro_f1"] = lambda y, p: macro_f_measure(y, (p >= estimator.thresholds_) * 1)
        for name, metric in metrics.items():
            interval = bootstrap_interval(metric, truth, prob, groups=data.groups[rows], n_resamples=50, level=80)
            values = (document["metrics"][name][key] for key in ("value", "low", "high"))
            assert tuple(values) == pytest.approx(tuple(interval), abs=1e-6), name
        right = ((prob >= estimator.thresholds_) == truth).all(1).mean()
        assert document["metrics"]["subset_accuracy"]["value"] == pytest.approx(right)
        areas = [row["auroc"] for row in document["labels"]]
        expected = [None if np.isnan(a) else pytest.approx(a, abs=1e-6) for a in auroc_per_label(truth, prob)]
        assert areas == expected
        assert "challenge2021" not in document["metrics"]


def test_other_labels_folds_and_text(ptbxl, tmp_path, capsys):
    words = ["--statements", "rhythm", "--folds", "2-10", "--held_out_folds", "none"]
    assert fit(ptbxl, tmp_path / "m", *words, "--thresholds", "0.25") == 0
    out = capsys.readouterr().out
    data = read_ptbxl(ptbxl, labels="rhythm")
    assert out.startswith(f"dense: {(data.folds > 1).sum()} recordings of ptbxl, {data.y.shape[1]} labels\nepochs 2, ")
    assert "macro AUROC" not in out
    assert ssmseq.load(tmp_path / "m").thresholds_.tolist() == [0.25] * data.y.shape[1]
    assert (
        main(["ecg", "evaluate", str(tmp_path / "m"), str(ptbxl), "--statements", "rhythm", "--folds", "1", "--quiet"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith(f"{(data.folds == 1).sum()} recordings of ")
    assert "SR " in out


def test_predictions_of_ptbxl_have_the_tables_age_and_sex(ptbxl, tmp_path, capsys):
    assert fit(ptbxl, tmp_path / "m", "--metadata", "true") == 0
    capsys.readouterr()
    assert main(["ecg", "predict", str(tmp_path / "m"), str(ptbxl), "--quiet", "--batch", "7"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in err
    (tmp_path / "out.csv").write_text(out)
    found = pd.read_csv(tmp_path / "out.csv", index_col="record")
    data = read_ptbxl(ptbxl, unlabelled="keep")
    expected = ssmseq.load(tmp_path / "m").predict_proba(data.records)
    assert found.index.tolist() == [r.record_id for r in data.records]
    np.testing.assert_allclose(found[[f"p_{c}" for c in data.y.columns]], expected, atol=1e-6)
    assert found["reason"].isna().all()


# The challenges -------------------------------------------------------------------------------------------------------


def test_a_challenge_and_its_metric(cinc, tmp_path, capsys):
    words = ["--validation_fraction", "0.3", "--thresholds", "challenge2021", "--window", "null"]
    assert fit(cinc, tmp_path / "m", *words, "--without_sources", "Georgia", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    data = read_cinc(cinc)
    assert (document["records"], document["protocol"]) == ((data.sources != "Georgia").sum(), "cinc2021")
    estimator = ssmseq.load(tmp_path / "m")
    for words, rows in (
        ([], data.sources != "-"),
        (["--sources", "Georgia", "Ningbo"], np.isin(data.sources, ["Georgia", "Ningbo"])),
    ):
        assert main(["ecg", "evaluate", str(tmp_path / "m"), str(cinc), "--json", "--quiet", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        records, truth = [r for r, t in zip(data.records, rows, strict=True) if t], data.y[rows]
        assert (document["records"], document["patients"]) == (len(records), None)
        for year in (2020, 2021):
            score = challenge_score(truth, estimator.predict(records), data.y.columns, year=year)
            assert document["metrics"][f"challenge{year}"]["value"] == pytest.approx(score)
    assert main(["ecg", "evaluate", str(tmp_path / "m"), str(cinc), "--resamples", "20", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "CinC 2021 challenge metric" in out
    assert "\nAFL " in out


def test_the_challenge_of_2017(tmp_path, capsys):
    for i in range(16):
        digital = np.round(twelve_leads(300, rate=300, seed=i)[:1] * 1000).astype(int)
        write_wfdb(tmp_path, digital, name=f"A{i:05}", rate="300", names=("ECG",))
    truth = list("NAO~" * 4)
    (tmp_path / "REFERENCE.csv").write_text("".join(f"A{i:05},{c}\n" for i, c in enumerate(truth)))
    assert fit(tmp_path, tmp_path / "m", "--validation_fraction", "0.25") == 0
    assert "4 classes, one for each recording" in capsys.readouterr().out
    assert main(["ecg", "evaluate", str(tmp_path / "m"), str(tmp_path), "--json", "--quiet", "--resamples", "20"]) == 0
    document = json.loads(capsys.readouterr().out)
    estimator = ssmseq.load(tmp_path / "m")
    records = [read_record(tmp_path / f"A{i:05}.hea", dtype="float32") for i in range(16)]
    found = estimator.predict(records)
    assert document["metrics"]["cinc2017"]["value"] == pytest.approx(cinc2017_score(truth, found))
    assert document["metrics"]["subset_accuracy"]["value"] == pytest.approx((found == truth).mean())
    sensitivity = {row["label"]: row["sensitivity"] for row in document["labels"]}
    for label in "NAO~":
        assert sensitivity[label] == pytest.approx(np.mean(found[np.array(truth) == label] == label))
    assert main(["ecg", "predict", str(tmp_path / "m"), str(tmp_path), "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert [row["predicted"] for row in rows] == [[c] for c in found]


# Any files ------------------------------------------------------------------------------------------------------------


def test_patients_of_a_table_stay_together_and_unknown_labels_are_unknown(files, model):
    estimator = ssmseq.load(model)
    assert estimator.classes_.tolist() == ["AF", "LBBB"]
    table = pd.read_csv(files / "wide.csv")
    records = [read_record(files / f"{name}.hea", dtype="float32") for name in table["record"]]
    expected = python_model(validation_fraction=0.3, thresholds="f1").fit(
        records, table[["AF", "LBBB"]], groups=table["patient"]
    )
    np.testing.assert_array_equal(estimator.predict_proba(records), expected.predict_proba(records))
    np.testing.assert_array_equal(estimator.thresholds_, expected.thresholds_)


def test_tables_of_classes_and_of_label_sets(files, tmp_path, capsys):
    words = ["--validation_fraction", "0.3"]
    assert fit(files, tmp_path / "a", "--labels", str(files / "classes.csv"), *words) == 0
    found = ssmseq.load(tmp_path / "a")
    assert (found.exclusive_, found.classes_.tolist(), found.thresholds) == (True, ["AF", "NSR"], 0.5)
    assert fit(files, tmp_path / "b", "--labels", str(files / "sets.csv"), *words) == 0
    found = ssmseq.load(tmp_path / "b")
    assert (found.exclusive_, found.classes_.tolist()) == (False, ["AF", "LBBB"])
    capsys.readouterr()
    table = pd.read_csv(files / "sets.csv")
    table[table["record"].isin(["r01", "r04", "r07"])].to_csv(tmp_path / "some.csv", index=False)  # one label each
    labels = ["--labels", str(tmp_path / "some.csv"), "--unlabelled", "drop", "--json", "--quiet"]
    assert main(["ecg", "evaluate", str(tmp_path / "b"), str(files), *labels]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["label"]: row["prevalence"] for row in document["labels"]} == {"AF": 1, "LBBB": 0}
    assert document["metrics"]["macro_auroc"] == {"value": None, "low": None, "high": None}


def test_every_format_and_names_in_subfolders(tmp_path, capsys):
    data = tmp_path / "data"
    for folder in ("a", "b"):
        (data / folder).mkdir(parents=True)
    rows = []
    for i in range(8):
        x = twelve_leads(300, seed=i)
        place = data / ("a" if i % 2 else "b")
        np.save(place / f"r{i // 2}.npy", x)
        rows.append((f"{place.name}/r{i // 2}", "AF" if i < 4 else "NSR"))
    edf = [
        edfio.EdfSignal(row, 100, label=name, physical_dimension="mV")
        for row, name in zip(x, STANDARD_LEADS, strict=True)
    ]
    edfio.Edf(edf).write(data / "e.edf")
    rows.append(("e.edf", "AF"))
    pd.DataFrame(rows, columns=["record", "label"]).to_csv(tmp_path / "labels.csv", index=False)
    how = ["--file_rate", "100", "--file_leads", *STANDARD_LEADS, "--file_unit", "V"]
    words = ["--labels", str(tmp_path / "labels.csv"), "--validation_fraction", "0.3", "--largest_amplitude", "null"]
    assert fit(data, tmp_path / "m", *words, *how) == 0
    capsys.readouterr()
    assert main(["ecg", "predict", str(tmp_path / "m"), str(data), "--json", "--quiet", *how]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    names = [str(data / place / f"r{i}") for place in "ab" for i in range(4)]
    assert [row["record"] for row in rows] == [*names, "e"]
    record = read_record(data / "a" / "r2.npy", sampling_rate=100, lead_names=STANDARD_LEADS, unit="V")
    expected = ssmseq.load(tmp_path / "m").predict_proba([record])[0]
    assert list(rows[2]["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)


# Fits -----------------------------------------------------------------------------------------------------------------


def test_presets_and_config_files(files, tmp_path, capsys):
    from ssmseq.ecg.classifier import PRESETS

    assert tuple(sorted(ecg_fit.PRESETS)) == tuple(sorted(PRESETS))
    for preset, settings in PRESETS.items():
        assert main(["ecg", "fit", "--preset", preset, "--print_config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed.pop("preset") == preset
        params = ssmseq.ECGMambaClassifier(**settings).get_params()
        assert printed == {**{k: v for k, v in params.items() if k in printed}, "thresholds": None}
        assert set(params) - set(printed) == {"callbacks", "logger", "trainer_params", "verbose"}
    config = {"preset": "cnn", "data": [str(files)], "labels": str(files / "wide.csv"), "d_model": 6, "max_epochs": 1}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "validation_fraction": 0.3}))
    argv = [
        "ecg",
        "fit",
        "--config",
        str(tmp_path / "c.yaml"),
        "--d_model",
        "4",
        "--save",
        str(tmp_path / "m"),
        "--quiet",
    ]
    assert main(argv) == 0
    found = ssmseq.load(tmp_path / "m")
    assert (found.encoder, found.d_model, found.max_epochs, found.window) == ("cnn", 4, 1, 2.5)


def test_an_interrupted_fit_saves_its_best_weights_and_resumes(files, tmp_path, capsys, monkeypatch):
    original = progress._watcher

    def interrupting(outcome):
        callback = original(outcome)
        callback.on_train_epoch_start = lambda trainer, _: (
            trainer.current_epoch == 2 and signal.raise_signal(signal.SIGINT)
        )
        return callback

    words = [
        "--labels",
        str(files / "wide.csv"),
        "--validation_fraction",
        "0.3",
        "--max_epochs",
        "4",
        "--resume",
        "--json",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(progress, "_watcher", interrupting)
        assert fit(files, tmp_path / "m", *words) == 130
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["interrupted"], document["epochs"], "fit was interrupted" in err) == (True, 2, True)
    assert len(ssmseq.load(tmp_path / "m").predict_proba([read_record(files / "r00.hea")])) == 1
    assert fit(files, tmp_path / "m", *words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["interrupted"], document["epochs"]) == (False, 4)
    assert fit(files, tmp_path / "whole", *words[:-2]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "whole")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "whole" / "checkpoints").exists()

"""Exported estimators: the graph against predict, the files in a process without this library, and what is refused."""

import contextlib
import json
import sys
import warnings
from copy import copy

import numpy as np
import pandas as pd
import pytest
import torch
from ecg_cases import record
from export_cases import CASES, covariates, fitted, run_alone, signals, waves
from sklearn.exceptions import NotFittedError

import ssmseq
from ssmseq import export as module
from ssmseq.cli import main
from ssmseq.dna.alphabet import BOS, MASK, PAD, encode
from ssmseq.ecg.calibration import LabelCalibrator
from ssmseq.ecg.serving import _calibrated
from ssmseq.forecasting.covariates import CALENDAR, calendar_features
from ssmseq.forecasting.serving import CALENDAR_FORMULAS
from ssmseq_kernels import ops


def graph_of(name):
    graph = fitted(name)._serving_graph()

    def run(**inputs):
        tensors = {k: torch.as_tensor(np.asarray(x).astype(graph.inputs[k].dtype)) for k, x in inputs.items()}
        assert {k: tuple(x.shape[1:]) for k, x in tensors.items() if k != "ids"} == {
            k: tuple(spec.shape[1:]) for k, spec in graph.inputs.items() if k != "ids"
        }
        with torch.inference_mode():
            found = graph.module(**tensors)
        assert found.dtype == torch.float32
        assert found.dim() == len(graph.output[1].shape)
        return found.double().numpy()

    return run, fitted(name)


# Forecasters


@pytest.mark.parametrize("name", ["naive", "ridge", "linear", "smamba", "double", "karma", "karma_mean", "tsm2"])
def test_forecasts_are_those_of_predict(name):
    run, est = graph_of(name)
    frame = waves(gaps=est.has_gaps_)
    ends = [120, 119, 26, 25, 7]
    inputs = {"history": np.stack([frame.to_numpy()[end - 7 : end] for end in ends])}
    if est.calendar_:
        inputs["calendar"] = np.stack([calendar_features(frame.index[e - 7 : e], est.calendar_) for e in ends])
    found = run(**inputs)
    several = est.quantiles is not None
    for row, end in zip(found, ends, strict=True):
        frames = est.predict(frame[:end], quantiles=several)
        columns = [[f"{c}-q{q}" for q in est.quantiles] if several else c for c in "abc"]
        expected = np.stack([frames[c].to_numpy() for c in columns], 1)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_a_variate_that_was_not_observed_is_not_forecast():
    run, est = graph_of("smamba")
    history = np.stack([waves().to_numpy()[:7]] * 2)
    history[1, :, 2] = np.nan
    found = run(history=history, calendar=np.zeros((2, 7, len(est.calendar_))))
    assert np.isnan(found[1, :, 2]).all()
    assert np.isfinite(found[0]).all()
    assert np.isfinite(found[1, :, :2]).all()


@pytest.mark.parametrize("series", ["x", "y", "new"])
def test_covariates_and_series(series):
    run, est = graph_of("long")
    frame = covariates()
    known = frame[frame.id == ("y" if series == "new" else series)].assign(id=series)
    past, future = known[-10:-3], known[-3:]  # of a new series the look-back is all there is
    expected = est.predict(past.drop(columns="kind").assign(kind=past.kind), future=future)["a"]
    place = {"x": 0, "y": 1, "new": -1}[series]
    kind = past.kind.iloc[0]
    found = run(
        history=past[["a"]].to_numpy()[None],
        past_covariates=past[["b"]].to_numpy()[None],
        calendar=calendar_features(pd.DatetimeIndex(past.time), est.calendar_)[None],
        future=known[["c"]][-10:].to_numpy()[None],
        static=[[past["size"].iloc[0], kind == "big", kind == "small"]],
        series=[place],
    )
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-5)


def test_a_constant_new_series_keeps_its_scale():
    run, est = graph_of("long")
    past = covariates()[:7].assign(a=5.0, id="new")
    future = covariates()[7:10].assign(id="new")
    expected = est.predict(past, future=future)["a"]
    found = run(
        history=past[["a"]].to_numpy()[None],
        past_covariates=past[["b"]].to_numpy()[None],
        calendar=calendar_features(pd.DatetimeIndex(past.time), est.calendar_)[None],
        future=covariates()[:10][["c"]].to_numpy()[None],
        static=[[2.0, 0, 1]],
        series=[-1],
    )
    np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-5)


def test_formulas_of_the_calendar():
    times = pd.date_range("2020-02-27 22:10", periods=400, freq="7h13min")
    assert set(CALENDAR_FORMULAS) == set(CALENDAR)
    for name, formula in CALENDAR_FORMULAS.items():
        parts = {
            p: np.asarray(getattr(times, p)) for p in ("minute", "hour", "day_of_week", "day", "day_of_year", "month")
        }
        found = eval(formula.split(",")[0], parts)
        np.testing.assert_allclose(found, calendar_features(times, [name])[:, 0], atol=1e-12)


# Electrocardiograms


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ecg")])
def test_probabilities_are_those_of_predict_proba(name):
    run, est = graph_of(name)
    X = signals(12) * np.linspace(0.2, 3, 12)[:, None, None]
    X[1, 0] = np.nan  # a lead that is not there
    X[2, 1, 5:30] = np.nan  # a gap that is too long to be bridged
    X[3, 0] = 2.0  # a flat lead
    shown = list(X)
    shown[4], X[4, :, 33:] = X[4, :, :33], np.nan  # a short recording
    X[5] = np.nan
    shown[5] = X[5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the recording without any lead
        expected = est.predict_proba(shown)
    found = run(signal=X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    if est.exclusive_:
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"slope": -1.5, "intercept": 0.3},
        {"temperature": 2.5},
        {"x": [0.3, 0.5, 0.6], "y": [0.1, 0.2, 0.9]},
        {"x": [0.4], "y": [0.7]},
    ],
)
def test_calibrations(parameters):
    logits = np.linspace(-3, 3, 41)[:, None]
    expected = LabelCalibrator.from_parameters([parameters], from_logits=True).predict(logits)
    np.testing.assert_allclose(_calibrated(torch.from_numpy(logits[:, 0]), parameters), expected[:, 0], rtol=1e-12)


@pytest.mark.parametrize("n_networks", [1, 2])
def test_age_and_sex(n_networks):
    records = [record(60, seed=i, leads=("I", "II"), age=20.0 + i, sex="F" if i % 3 else "M") for i in range(8)]
    sizes = {"d_model": 4, "n_layers": 1, "n_networks": n_networks}
    est = ssmseq.ECGMambaClassifier(metadata=True, max_epochs=1, random_state=0, **sizes)
    est.fit(records, np.tile([[0, 1], [1, 0]], (4, 1)))
    graph = est._serving_graph()
    given = [[(20.0 + i) / 100, 1, 1 if i % 3 else -1, 1] for i in range(8)]
    signal = torch.from_numpy(np.stack([r.signal for r in records]).astype(np.float32))
    with torch.inference_mode():
        found = graph.module(signal=signal, metadata=torch.tensor(given, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, est.predict_proba(records), rtol=1e-5)


# DNA


@pytest.mark.parametrize("name", ["dna", "dna_hybrid"])
def test_log_probabilities_sum_to_the_log_likelihood(name):
    run, est = graph_of(name)
    letters = np.stack([encode("ACGTNGATTACA"), encode("TTTTTTACGTAC")]).astype(np.int64)
    found = run(ids=np.column_stack([[BOS, BOS], letters]))
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-6)
    rows = np.take_along_axis(found[:, :-1], np.clip(letters - 7, 0, 3)[..., None], -1)[..., 0]
    total = np.where(letters <= 10, rows, 0).sum(1)
    expected = est.log_likelihood(["ACGTNGATTACA", "TTTTTTACGTAC"], strands="forward")
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["dna_hydra", "dna_both", "dna_swapped"])
def test_masked_bases(name):
    run, est = graph_of(name)
    word = "ACGTGGATTACA"
    total = 0.0
    for place in range(len(word)):
        # Each base by itself: one pass for every letter is what mask_spacing as large as the sequence does.
        ids = encode(word).astype(np.int64)
        ids[place] = MASK
        total += run(ids=ids[None])[0, place, "ACGT".index(word[place])]
    alone = copy(est).set_params(mask_spacing=len(word))
    np.testing.assert_allclose(total, alone.log_likelihood([word], strands="forward")[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["dna_classes", "dna_values"])
@pytest.mark.parametrize("width", [6, 9, 2])
def test_sequences_of_several_lengths(name, width):
    run, est = graph_of(name)
    words = [s for s in ("A", "AC", "GATNACA", "ACGTACGTA") if len(s) <= width]
    words = words if width <= est.length_ else words[-1:]  # predict fills each longer one to its own length
    ids = np.full((len(words), width), PAD)
    for row, word in zip(ids, words, strict=True):
        row[: len(word)] = encode(word)
    expected = est.predict_proba(words) if name == "dna_classes" else est.predict(words)
    np.testing.assert_allclose(run(ids=ids), expected, rtol=1e-5)


# Files


def test_a_file_runs_without_this_library(tmp_path):
    est = fitted("smamba")
    assert est.export(tmp_path / "model.onnx") is est
    frame = waves(gaps=True)
    inputs = {
        "history": np.stack([frame.to_numpy()[end - 7 : end] for end in (120, 90, 60, 30, 26)]).astype(np.float32),
        "calendar": np.stack(
            [calendar_features(frame.index[end - 7 : end], est.calendar_) for end in (120, 90, 60, 30, 26)]
        ).astype(np.float32),
    }
    found, metadata, errors = run_alone(tmp_path / "model.onnx", inputs, tmp_path)
    assert errors == ""
    expected = np.stack([est.predict(frame[:end]).to_numpy() for end in (120, 90, 60, 30, 26)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert metadata["estimator"] == "SMambaForecaster"
    assert metadata["ssmseq"] == ssmseq.__version__
    assert json.loads(metadata["variates"]) == ["a", "b", "c"]
    assert (metadata["frequency"], metadata["horizon"], metadata["lookback"]) == ("h", "3", "7")
    assert json.loads(metadata["inputs"])["history"]["shape"] == ["batch", 7, 3]
    assert scans(tmp_path / "model.onnx") == 2  # one for each direction of the one layer
    assert [p.name for p in tmp_path.glob("*.onnx*")] == ["model.onnx"]


def test_a_program_runs_without_this_library(tmp_path):
    est, path = fitted("double"), tmp_path / "model.pt2"
    path.write_text("of an earlier export")
    est.export(path)
    inputs = {"history": waves().to_numpy(np.float32)[None, -7:]}
    inputs["calendar"] = calendar_features(waves().index[-7:], est.calendar_)[None].astype(np.float32)
    found, metadata, _ = run_alone(path, inputs, tmp_path)
    np.testing.assert_allclose(found[0], est.predict(waves()), rtol=1e-5, atol=1e-5)
    assert metadata["estimator"] == "SMambaForecaster"
    assert metadata["outputs"]["forecast"]["shape"] == ["batch", 3, 3]
    assert metadata["variates"] == ["a", "b", "c"]


SCANS = {"smamba": 2, "double": 2, "long": 2, "karma": 5, "karma_mean": 5, "tsm2": 3, "ecg": 2, "ecg_platt": 2}
SCANS |= {"ecg_classes": 2, "ecg_hydra": 2, "dna": 2, "dna_hybrid": 1, "dna_both": 8, "dna_swapped": 4}
SCANS |= {"dna_hydra": 2, "dna_classes": 4, "dna_values": 4}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("name", CASES)
def test_every_estimator(name, suffix, tmp_path):
    est, path = fitted(name), tmp_path / f"model.{suffix}"
    report = module.export(est, path, tolerance=1e-5)
    assert report["difference"] <= 1e-5
    graph = est._serving_graph()
    for sizes in ((1, 4), (4, 11)):
        inputs = graph.example(*sizes)
        with torch.inference_mode():
            expected = graph.module(**inputs).numpy()
        found, metadata, errors = run_alone(path, inputs, tmp_path)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(expected)))
        assert errors == ""
        assert metadata["estimator"] == type(est).__name__
    if suffix == "onnx":
        assert scans(path) == SCANS.get(name, 0)


def scans(path) -> int:
    import onnx

    model = onnx.load(path)
    assert {opset.domain for opset in model.opset_import} <= {"", "pkg.onnxscript.torch_lib.common", "ai.onnx.ml"}
    return sum(node.op_type == "Scan" for node in model.graph.node)


# What is refused


def test_refusals(tmp_path, monkeypatch):
    est = fitted("naive")
    with pytest.raises(ValueError, match=r"model\.pb must end in \.onnx .* or \.pt2 .*, not in '\.pb'"):
        est.export(tmp_path / "model.pb")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        est.export(tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(NotFittedError):
        ssmseq.NaiveForecaster().export(tmp_path / "model.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "2.6.0+cpu")
        with pytest.raises(ImportError, match=r"export needs torch 2\.13, this is 2\.6\.0\+cpu: pip install"):
            est.export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "ssmseq\[export\]"'):
        fitted("naive").export(tmp_path / "model.onnx")
    module._check_packages(".pt2", check=True)
    if package == "onnxruntime":
        module._check_packages(".onnx", check=False)


def fitted_output(inputs) -> np.ndarray:
    with torch.inference_mode():
        return fitted("ridge")._serving_graph().module(**inputs).numpy()


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("of an earlier export")
    monkeypatch.setattr(module, "_run_pt2", lambda content, inputs: 1.01 * fitted_output(inputs))
    with pytest.raises(
        ValueError, match=r"model\.pt2 was not written: .* by 0\.01 of the largest, .*tolerance=0\.0001"
    ):
        fitted("ridge").export(path)
    assert path.read_text() == "of an earlier export"
    fitted("ridge").export(path, tolerance=0.02)
    assert path.stat().st_size > 1000
    monkeypatch.setattr(module, "_run_pt2", lambda content, inputs: np.full_like(fitted_output(inputs), np.nan))
    with pytest.raises(ValueError, match="differ .* by inf"):
        fitted("ridge").export(path)


def test_an_operator_without_another_form_is_refused(monkeypatch):
    if not ops.has_kernel(torch.device("cpu")):
        pytest.skip("the compiled kernels are missing, without which there is no such operator")
    monkeypatch.setattr(module, "portable_operators", contextlib.nullcontext)
    with pytest.raises(TypeError, match=r"SMambaForecaster uses the operator ssmseq\."):
        module._trace(fitted("smamba")._serving_graph(), "SMambaForecaster")


def test_the_estimator_stays_as_it_was():
    est = fitted("ecg")
    weights = {k: v.clone() for k, v in est.network_.state_dict().items()}
    graph = est._serving_graph()
    assert graph.module.network is not est.network_
    assert all(p.requires_grad for p in est.network_.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in est.network_.state_dict().items())
    assert not graph.module.network.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_written_in_float32(dtype):
    assert module.for_serving(torch.nn.Linear(2, 2).to(dtype)).weight.dtype == torch.float32


# The command


def test_command(tmp_path, capsys):
    fitted("ridge").save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "model.pt2"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimator"] == "RidgeForecaster"
    assert found["difference"] < 1e-6
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "m.pt2"), "--no-check"]) == 0
    out, err = capsys.readouterr()
    assert "history" in out
    assert "(batch, 3, 3)" in out
    assert err.strip() == f"RidgeForecaster written to {tmp_path / 'm.pt2'}, not checked"
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "model.zip")]) == 1
    assert "must end in .onnx" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "model.pt2")]) == 1
    assert main(["export", str(tmp_path / "model")]) == 2

"""Saved models: bit-exact after loading, plain files only, and every broken folder refused with a clear error."""

import datetime
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from safetensors.numpy import load_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ssmseq import (
    KarmaForecaster,
    LinearForecaster,
    NaiveForecaster,
    RidgeForecaster,
    SMambaForecaster,
    TSM2Forecaster,
    load,
)
from ssmseq.forecasting.frames import Roles, read_frame

HOURS = pd.date_range("2021-03-20", periods=200, freq="h", name="when")
INDEXES = {
    "stamps": HOURS,
    "nanoseconds": HOURS.as_unit("ns"),
    "seconds": HOURS.as_unit("s"),
    "zone": pd.date_range("2021-03-25", periods=200, freq="h", tz="Europe/Berlin"),
    "UTC": HOURS.tz_localize("UTC"),
    "offset": HOURS.tz_localize(datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
    "business days": pd.bdate_range("2021", periods=200),
    "months": pd.date_range("1950", periods=200, freq="ME"),
    "periods": pd.period_range("1950-01", periods=200, freq="M"),
    "double periods": pd.period_range("1950-01", periods=200, freq="2M"),
    "numbers": pd.Index(np.arange(200) * 3 + 7, name="n"),
    "small numbers": pd.Index(np.arange(1800, 2000), dtype="int16", name="year"),
    "rows": pd.RangeIndex(200),
}
COLUMNS = {
    "numbers": [0, 1, 2],
    "unordered numbers": [5, 3, 4],
    "mixed": ["a", 1, 2.5],
    "unicode": ["é", "日本", "two words"],
}


def same(left, right) -> bool:
    """Whether two forecasts are equal to the last bit, layout included."""
    if isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right, rtol=0, atol=0, check_freq=True)
        return True
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else left.equals(right)


def assert_round_trip(est, frame, folder) -> None:
    loaded = load(est.fit(frame).save(folder) and folder)
    assert type(loaded) is type(est)
    assert same(est.predict(), loaded.predict())
    assert same(est.predict(frame[-50:]), loaded.predict(frame[-50:]))
    if est.interval_bounds_ is not None:
        assert same(est.predict(level=[50, 80]), loaded.predict(level=[50, 80]))
    assert est.evaluate(frame) == loaded.evaluate(frame)
    assert loaded.get_params() == est.get_params()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert {n for n in vars(loaded) if n.endswith("_")} == {n for n in vars(est) if n.endswith("_")}
    if hasattr(est, "history_"):
        pd.testing.assert_frame_equal(loaded.history_, est.history_)
        assert loaded.n_iter_ == est.n_iter_
    assert same(clone(loaded).fit(frame).predict(), est.predict())


@pytest.mark.parametrize("name", INDEXES)
def test_round_trip_of_every_index(small, waves, tmp_path, name):
    assert_round_trip(small(max_epochs=1, time_features="auto"), waves.set_axis(INDEXES[name]), tmp_path)


@pytest.mark.parametrize("name", COLUMNS)
def test_round_trip_of_every_kind_of_column_name(small, waves, tmp_path, name):
    assert_round_trip(small(max_epochs=1), waves.set_axis(pd.Index(COLUMNS[name]), axis=1), tmp_path)


@pytest.mark.parametrize("layout", ["column", "text", "array", "polars", "polars zone", "polars date", "polars rows"])
def test_round_trip_of_every_layout(small, waves, polar_waves, tmp_path, layout):
    frame, time_col = waves.reset_index(), None
    if layout == "text":
        frame, time_col = frame.assign(time=frame["time"].astype(str)), "time"
    elif layout == "array":
        frame = waves.to_numpy()
    elif layout == "polars":
        frame = polar_waves
    elif layout == "polars zone":
        frame = polar_waves.with_columns(pl.col("time").dt.replace_time_zone("America/New_York"))
    elif layout == "polars date":
        days = pl.date_range(datetime.date(2021, 1, 1), datetime.date(2021, 7, 19), eager=True)
        frame = polar_waves.with_columns(days.alias("time"))
    elif layout == "polars rows":
        frame = polar_waves.drop("time")
    assert_round_trip(small(max_epochs=1, time_col=time_col), frame, tmp_path)


OPTIONS = [
    {"validation_fraction": 0},
    {"scaler": "none", "time_features": False, "normalize": False},
    {"time_features": ["hour", "month"], "freq": "h", "target": ["a", "c"], "past_covariates": ["b"]},
    {"quantiles": [0.2, 0.5, 0.7]},
    {"precision": "64-true"},
    {"precision": "bf16-true"},
    {"horizon": np.int64(4), "learning_rate": np.float64(1e-3), "d_state": 5, "d_conv": 4, "expand": 2},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_round_trip_of_options(small, waves, tmp_path, changes):
    assert_round_trip(small(max_epochs=1, **changes), waves, tmp_path)


NETWORKS = [
    LinearForecaster(loss="fredf"),
    LinearForecaster(quantiles=[0.1, 0.5, 0.9]),
    KarmaForecaster(d_model=16, n_layers=1),
    KarmaForecaster(d_model=16, n_layers=1, decomposition="moving_average", affine=False, share_directions=True),
    KarmaForecaster(d_model=16, n_layers=1, decomposition="atcd", d_decomposition=8, n_heads=2, wavelet="haar"),
    TSM2Forecaster(d_model=16, n_layers=1, patch_len=4, stride=2),
]


@pytest.mark.parametrize("est", NETWORKS, ids=str)
def test_round_trip_of_other_networks(waves, polar_waves, tmp_path, est):
    est = clone(est).set_params(horizon=4, lookback=8, max_epochs=1, random_state=0)
    assert_round_trip(est, waves, tmp_path)
    assert_round_trip(est, polar_waves, tmp_path)


def test_round_trip_without_a_network(waves, polar_waves, tmp_path):
    assert_round_trip(NaiveForecaster(horizon=4, lookback=8, season_length=3), waves, tmp_path)
    assert_round_trip(NaiveForecaster(horizon=4, lookback=8), polar_waves, tmp_path)
    assert_round_trip(RidgeForecaster(horizon=4, lookback=[3, 8], alpha=[0, 1]), polar_waves, tmp_path)
    assert_round_trip(RidgeForecaster(horizon=4, lookback=8, alpha=1, validation_fraction=0), waves, tmp_path)
    assert not hasattr(load(tmp_path), "network_")


@pytest.mark.parametrize("odd", ["zone", "columns"])
def test_what_cannot_be_loaded_again_is_refused_by_save(small, waves, tmp_path, odd):
    if odd == "zone":
        frame = waves.tz_localize("dateutil/Asia/Tokyo")
    else:
        frame = waves.set_axis(pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]), axis=1)
    est = small(max_epochs=1).fit(frame)
    try:
        est.save(tmp_path)
    except TypeError:
        return
    loaded = load(tmp_path)
    assert (loaded.predict().index == est.predict().index).all()
    assert list(loaded.predict().columns) == list(frame.columns)


def test_a_run_whose_later_epoch_diverged_can_be_saved(small, waves, tmp_path, monkeypatch):
    from lightning.pytorch import Callback

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                for parameter in pl_module.parameters():
                    parameter.data.fill_(float("nan"))

    est = small(callbacks=[Spoil()]).fit(waves)
    assert est.history_["valid_loss"].isna().tolist() == [False, True]
    loaded = load(est.save(tmp_path) and tmp_path)
    assert same(loaded.predict(), est.predict())
    pd.testing.assert_frame_equal(loaded.history_, est.history_)


def test_generators_and_live_objects_are_left_out(small, waves, tmp_path):
    from lightning.pytorch import Callback

    live = {
        "callbacks": [Callback()],
        "trainer_params": {"gradient_clip_val": 1.0},
        "checkpoint_folder": tmp_path / "c",
    }
    est = small(random_state=np.random.RandomState(0), **live)
    loaded = load(est.fit(waves).save(tmp_path) and tmp_path)
    assert same(loaded.predict(), est.predict())
    assert loaded.random_state is None
    assert all(getattr(loaded, name) is None for name in live)


def test_files_are_json_and_numbers(fitted, tmp_path):
    fitted.save(tmp_path / "deep" / "er")
    config = json.loads((tmp_path / "deep" / "er" / "config.json").read_text(encoding="utf-8"))
    assert config["class"] == "SMambaForecaster"
    assert config["format_version"] == 1
    assert config["params"]["horizon"] == 4
    assert set(config["versions"]) >= {"ssmseq", "torch"}
    arrays = load_file(tmp_path / "deep" / "er" / "model.safetensors")
    expected = {f"network.{k}": v.numpy() for k, v in fitted.network_.state_dict().items()}
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)
    numbers = {"mean", "scale", "naive_error", "covariate_mean", "covariate_scale", "static_mean", "static_scale"}
    assert set(arrays) - set(expected) == numbers | {"tail", "tail_static", "interval_bounds"}


def test_a_folder_is_overwritten_whole(small, waves, tmp_path):
    assert_round_trip(small(max_epochs=1, n_layers=2), waves, tmp_path)
    assert_round_trip(small(max_epochs=1, horizon=2), waves[["b", "a"]], tmp_path)
    assert_round_trip(NaiveForecaster(horizon=2, lookback=3), waves.to_numpy(), tmp_path)


def test_unfitted_unknown_and_unwritable_estimators_leave_nothing_behind(small, waves, fitted, tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(NotFittedError):
        small().save(folder)

    class Own(SMambaForecaster):
        pass

    own = Own(**fitted.get_params())
    vars(own).update(vars(fitted))
    with pytest.raises(TypeError, match=r"Own .*SMambaForecaster"):
        own.save(folder)
    odd = small(max_epochs=1).fit(waves).set_params(strategy=object())
    with pytest.raises(TypeError, match="strategy"):
        odd.save(folder)
    stamped = small(max_epochs=1).fit(waves.set_axis(pd.date_range("2021", periods=3), axis=1))
    with pytest.raises(TypeError, match=r"2021.*column"):
        stamped.save(folder)
    assert not folder.exists() or not list(folder.iterdir())


def test_an_unwritable_model_leaves_the_older_one_whole(small, waves, fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(TypeError, match="strategy"):
        small(max_epochs=1).fit(waves).set_params(strategy=object()).save(tmp_path)
    assert same(load(tmp_path).predict(), fitted.predict())


# Broken folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "both", "folder"])
def test_missing_files_are_named(fitted, tmp_path, missing):
    fitted.save(tmp_path)
    for path in list(tmp_path.iterdir()):
        if missing in (path.name, "both"):
            path.unlink()
    folder = tmp_path / "none" if missing == "folder" else tmp_path
    expected = "config.json" if missing in ("both", "folder") else missing
    with pytest.raises(FileNotFoundError, match=f"{folder} holds no saved model: {expected} is missing"):
        load(folder)


def _change(*path, to):
    def change(config):
        *parents, last = path
        for key in parents:
            config = config[key]
        config[last] = to

    return change


BROKEN = {
    "newer": (_change("format_version", to=2), r"format 2, made by ssmseq .*reads format 1.*Upgrade ssmseq"),
    "newer, unsigned": (lambda c: c.update(format_version=9, versions=None), "format 9.*Upgrade ssmseq"),
    "older": (_change("format_version", to=0), r"format 0.*reads format 1.*[Ff]it and save"),
    "no version": (lambda c: c.pop("format_version"), r"config\.json.*format_version"),
    "unknown class": (_change("class", to="Kraken"), r"'Kraken'.*SMambaForecaster, KarmaForecaster"),
    "another module's class": (_change("class", to="os.system"), r"'os\.system'.*not one of"),
    "class is a list": (_change("class", to=["SMambaForecaster"]), "not one of"),
    "other class": (_change("class", to="NaiveForecaster"), "NaiveForecaster"),
    "unknown parameter": (_change("params", "warmth", to=1), "warmth"),
    "parameters are a list": (_change("params", to=[]), "does not fit"),
    "wider": (_change("params", "d_model", to=32), "does not fit SMambaForecaster.*size mismatch"),
    "deeper": (_change("params", "n_layers", to=2), "does not fit SMambaForecaster.*layers.1"),
    "longer": (_change("params", "horizon", to=9), "does not fit SMambaForecaster: horizon was set to 9"),
    "longer as fitted": (_change("fitted", "horizon", to=9), "does not fit SMambaForecaster.*projection"),
    "longer look-back": (_change("params", "lookback", to=9), "does not fit SMambaForecaster: lookback was set to 9"),
    "quantiles": (_change("params", "quantiles", to=[0.1, 0.5]), "does not fit SMambaForecaster.*projection"),
    "text for a number": (_change("params", "d_model", to="wide"), "does not fit"),
    "unknown activation": (_change("params", "activation", to="tanh"), "tanh"),
    "fewer columns": (_change("fitted", "layout", "columns", to=["a"]), "does not fit"),
    "fewer times": (_change("fitted", "tail_times", 0, "values", to=[1, 2]), "does not fit"),
    "no fitted part": (_change("fitted", to=None), "does not fit"),
    "no layout": (_change("fitted", to={}), "does not fit.*layout"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_configs_that_cannot_be_are_refused(fitted, tmp_path, name):
    change, words = BROKEN[name]
    fitted.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=f"(?s){words}") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b'{"format_version": 1}'])
def test_configs_that_are_none_are_refused(fitted, tmp_path, content):
    fitted.save(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not the description of a saved model") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def _truncated(content: bytes) -> bytes:
    return content[:-50]


@pytest.mark.parametrize("spoil", [lambda c: b"", lambda c: b"x" * 999, _truncated], ids=["empty", "garbage", "cut"])
def test_broken_weights_are_refused(fitted, tmp_path, spoil):
    fitted.save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize("changes", [{"d_model": 8}, {"horizon": 3}, {"columns": 2}], ids=str)
def test_weights_of_another_model_are_refused(small, waves, fitted, tmp_path, changes):
    fitted.save(tmp_path / "model")
    options = {k: v for k, v in changes.items() if k != "columns"}
    small(max_epochs=1, **options).fit(waves.iloc[:, : changes.get("columns", 3)]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "model")
    with pytest.raises(ValueError, match="does not fit SMambaForecaster"):
        load(tmp_path / "model")


# A fresh process ------------------------------------------------------------------------------------------------------

FRESH = """
import sys, pandas as pd, ssmseq
est = ssmseq.load(sys.argv[1])
frame = pd.read_pickle(sys.argv[2])
est.predict().to_pickle(sys.argv[3])
est.predict(frame).to_pickle(sys.argv[4])
print(est.evaluate(frame)["mse"].hex(), *[m for m in sys.modules if "lightning" in m.split(".")[0]])
"""


def test_a_fresh_process_predicts_the_same_without_lightning(fitted, waves, tmp_path):
    fitted.save(tmp_path / "model")
    waves.to_pickle(tmp_path / "frame")
    paths = [str(tmp_path / name) for name in ("model", "frame", "first", "second")]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *paths],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split() == [fitted.evaluate(waves)["mse"].hex()]
    assert same(pd.read_pickle(paths[2]), fitted.predict())
    assert same(pd.read_pickle(paths[3]), fitted.predict(waves))


def test_a_loaded_estimator_can_be_fitted_again(small, waves, tmp_path):
    est = load(small().fit(waves[:100]).save(tmp_path) and tmp_path)
    assert same(est.fit(waves).predict(), small().fit(waves).predict())
    assert read_frame(waves, Roles())[1] == est.layout_

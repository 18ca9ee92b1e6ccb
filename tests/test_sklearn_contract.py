"""scikit-learn's contract: its own data-free checks by name, cloning, searching, seeds, pickles."""

import copy
import io
import pickle
import random
import re

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from lightning.pytorch import Callback
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from ssmseq import (
    KarmaForecaster,
    LinearForecaster,
    NaiveForecaster,
    RidgeForecaster,
    SMambaForecaster,
    TSM2Forecaster,
    load,
)

CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
)
FORECASTERS = (SMambaForecaster, KarmaForecaster, TSM2Forecaster, LinearForecaster, RidgeForecaster, NaiveForecaster)
FOLDS = TimeSeriesSplit(3, test_size=20)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", FORECASTERS)
def test_scikit_learns_check(kind, check):
    getattr(estimator_checks, check)(kind.__name__, kind())


def test_clone_is_unfitted_and_has_the_same_parameters(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not [name for name in vars(copied) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        copied.predict()


@pytest.mark.parametrize("method", ["predict", "evaluate", "score", "backtest", "save"])
@pytest.mark.parametrize("kind", FORECASTERS)
def test_unfitted_estimators_say_so(kind, method, waves, tmp_path):
    argument = tmp_path if method == "save" else waves
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(kind(), method)(argument)
    assert not list(tmp_path.iterdir())


def test_n_features_and_names_are_those_of_the_frame(small, waves):
    est = NaiveForecaster(horizon=4, lookback=8).fit(waves)
    assert est.n_features_in_ == 3
    assert list(est.feature_names_in_) == ["a", "b", "c"]
    est.fit(waves.to_numpy()[:, :2])
    assert est.n_features_in_ == 2
    assert not hasattr(est, "feature_names_in_")


def test_cross_validation_equals_folds_by_hand_for_pandas_and_polars(small, waves, polar_waves):
    est = small(max_epochs=1)
    by_hand = [clone(est).fit(waves.iloc[a]).score(waves.iloc[b]) for a, b in FOLDS.split(waves)]
    assert len(set(by_hand)) == 3
    np.testing.assert_array_equal(cross_val_score(est, waves, cv=FOLDS), by_hand)
    np.testing.assert_array_equal(cross_val_score(est, polar_waves, cv=FOLDS), by_hand)
    np.testing.assert_array_equal(
        cross_val_score(clone(est).set_params(time_col="time"), polar_waves, cv=FOLDS), by_hand
    )


def test_grid_search_keeps_the_better_learning_rate(small, waves):
    search = GridSearchCV(small(), {"learning_rate": [1e-6, 1e-2]}, cv=FOLDS, error_score="raise").fit(waves)
    assert search.best_params_ == {"learning_rate": 1e-2}
    slow = cross_val_score(small(learning_rate=1e-6), waves, cv=FOLDS)
    assert search.cv_results_["mean_test_score"][0] == slow.mean()
    alone = small(learning_rate=1e-2).fit(waves)
    pd.testing.assert_frame_equal(search.predict(waves), alone.predict(waves))
    assert search.score(waves) == alone.score(waves)


@pytest.mark.parametrize("grid", [{"normalize": np.array([True, False])}, {"loss": np.array(["mse", "mae"])}])
def test_grids_may_be_numpy_arrays(small, waves, grid):
    search = GridSearchCV(small(max_epochs=1), grid, cv=TimeSeriesSplit(2, test_size=20), error_score="raise")
    assert np.isfinite(search.fit(waves).cv_results_["mean_test_score"]).all()


def test_last_step_of_a_pipeline(small, waves, polar_waves):
    pipeline = make_pipeline(FunctionTransformer(), small())
    alone = small().fit(waves)
    pd.testing.assert_frame_equal(pipeline.fit(waves).predict(waves[:50]), alone.predict(waves[:50]))
    assert pipeline.score(waves) == alone.score(waves)
    assert isinstance(pipeline.fit(polar_waves).predict(polar_waves), pl.DataFrame)
    scaled = make_pipeline(FunctionTransformer(lambda x: 10 * x), small()).fit(waves)
    pd.testing.assert_frame_equal(scaled.predict(waves), 10 * alone.predict(waves), rtol=1e-3)


def test_html_names_the_estimator_and_links_no_page_of_another_project(fitted):
    html = fitted._repr_html_()
    assert "SMambaForecaster" in html
    assert ">Fitted<" in html
    assert ">Fitted<" not in clone(fitted)._repr_html_()
    links = re.findall(r'href="([^"]*)"', html)
    assert not [link for link in links if "scikit-learn.org" in link and "ssmseq" in link]


def test_repr_shows_changed_parameters_only():
    assert repr(SMambaForecaster(horizon=24, dropout=0.1)) == "SMambaForecaster(horizon=24)"
    assert repr(NaiveForecaster()) == "NaiveForecaster()"


def test_pickle_joblib_and_deepcopy_give_the_same_forecasts(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "model")
    copies = [pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model"), copy.deepcopy(fitted)]
    for each in copies:
        pd.testing.assert_frame_equal(each.predict(), fitted.predict(), rtol=0, atol=0)
        assert each.get_params() == fitted.get_params()
        pd.testing.assert_frame_equal(each.history_, fitted.history_)
    assert next(copies[2].network_.parameters()) is not next(fitted.network_.parameters())


class _Recorder(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file)
        self.found = set()

    def find_class(self, module, name):
        self.found.add(f"{module}.{name}")
        return super().find_class(module, name)


def test_pickle_holds_no_trainer_and_no_training_data(small):
    sizes = []
    for n_rows in (300, 6000):
        values = np.random.default_rng(0).normal(size=(n_rows, 3))
        frame = pd.DataFrame(values, index=pd.date_range("2021", periods=n_rows, freq="h"), columns=list("abc"))
        content = pickle.dumps(small(max_epochs=1, batch_size=256).fit(frame))
        sizes.append(len(content))
        reader = _Recorder(io.BytesIO(content))
        reader.load()
        assert not [n for n in reader.found if n.startswith(("lightning", "torch.utils", "torch.optim"))]
        assert not [n for n in reader.found if "windows" in n]
    assert abs(sizes[0] - sizes[1]) < 200
    assert sizes[0] < 40_000  # 4,788 weights of four bytes, and the names around them


def test_no_training_row_stays_in_memory(small, waves):
    est = small(max_epochs=1).fit(waves)
    (tail,) = est.tail_
    for array in (tail.values, tail.times.asi8):
        while array.base is not None:
            array = array.base
        assert len(array) <= est.lookback, f"{len(array)} rows are kept alive"


def test_same_seed_same_bits_and_another_seed_another_model(small, waves):
    first, second = small().fit(waves), small().fit(waves)
    pd.testing.assert_frame_equal(first.predict(), second.predict(), rtol=0, atol=0)
    assert first.history_["train_loss"].tolist() == second.history_["train_loss"].tolist()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    pd.testing.assert_frame_equal(first.fit(waves).predict(), second.predict(), rtol=0, atol=0)
    assert (small(random_state=1).fit(waves).predict() != first.predict()).all(axis=None)
    assert (small(random_state=None).fit(waves).predict() != small(random_state=None).fit(waves).predict()).any(
        axis=None
    )


def test_the_seed_decides_the_order_of_the_windows(small, waves):
    class Order(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[1][:, 0, 0].tolist())

    runs = []
    for seed in (0, 0, 1):
        seen = []
        small(random_state=seed, callbacks=[Order()]).fit(waves)
        runs.append(seen)
    assert runs[0] == runs[1] != runs[2]
    half = len(runs[0]) // 2
    assert runs[0][:half] != runs[0][half:]
    assert len({value for batch in runs[0][:half] for value in batch}) == 16 * half


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
def test_generators_as_seeds_move_on(small, waves, make):
    est, again = small(max_epochs=1, random_state=make(3)), small(max_epochs=1, random_state=make(3))
    first, second = est.fit(waves).predict(), est.fit(waves).predict()
    assert (first != second).any(axis=None)
    pd.testing.assert_frame_equal(again.fit(waves).predict(), first, rtol=0, atol=0)


def _global_state() -> tuple:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()


@pytest.mark.parametrize(
    "changes", [{}, {"random_state": None}, {"learning_rate": 1e30}], ids=["seed", "none", "diverges"]
)
def test_global_generators_are_left_alone(small, waves, changes, tmp_path):
    small(max_epochs=1).fit(waves)  # whatever an import draws does not count
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    before = _global_state()
    est = small(**changes)
    if "learning_rate" in changes:
        with pytest.raises(ValueError, match="diverged"):
            est.fit(waves)
        assert _global_state() == before
        return
    est.fit(waves)
    assert _global_state() == before
    est.predict()
    est.evaluate(waves)
    est.save(tmp_path)
    load(tmp_path)
    assert _global_state() == before


def test_a_failed_fit_leaves_the_earlier_one_whole(small, waves):
    est = small().fit(waves)
    forecast, state = est.predict(), set(vars(est))
    with pytest.raises(ValueError, match="diverged"):
        est.set_params(learning_rate=1e30).fit(5 * waves + 3)
    with pytest.raises(ValueError, match="'b'"):
        est.set_params(learning_rate=1e-3).fit(waves.assign(b="x"))
    assert set(vars(est)) == state
    pd.testing.assert_frame_equal(est.predict(), forecast, rtol=0, atol=0)
    new = small(learning_rate=1e30)
    with pytest.raises(ValueError, match="diverged"):
        new.fit(waves)
    assert not [name for name in vars(new) if name.endswith("_")]


def _outcome(call):
    try:
        return call()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("change", [{"horizon": 7}, {"lookback": 5}, {"d_model": 32}], ids=str)
def test_parameters_changed_after_fit_wait_for_the_next_fit_or_ask_for_it(small, waves, change):
    est = small().fit(waves)
    calls = [est.predict, lambda: est.predict(waves), lambda: pd.DataFrame([est.evaluate(waves)])]
    before = [call() for call in calls]
    est.set_params(**change)
    for call, was in zip(calls, before, strict=True):
        found = _outcome(call)
        assert next(iter(change)) in found if isinstance(found, str) else found.equals(was), found
    assert len(est.fit(waves).predict()) == est.horizon


def test_fit_changes_neither_frame_nor_parameters(small, waves, polar_waves):
    est, before = small(callbacks=[], trainer_params={"gradient_clip_val": 1.0}), waves.copy()
    params = {k: copy.copy(v) for k, v in est.get_params().items()}
    est.fit(waves).predict(waves)
    pd.testing.assert_frame_equal(waves, before)
    assert est.get_params() == params
    shuffled = waves.sample(frac=1, random_state=0)
    before = shuffled.copy()
    est.fit(shuffled)
    pd.testing.assert_frame_equal(shuffled, before)

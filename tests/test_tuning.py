"""The search: resumed as uninterrupted; failures, pruning, baselines, settings that repeat a trial, report."""

import re
import subprocess
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from tuning_cases import RIDGE, TINY, FormulaTask, Point, formula_space, take_part, wave

from ssmseq import RidgeForecaster, SMambaForecaster
from ssmseq.tuning import best_settings, tune, write_report
from ssmseq.tuning.forecasting import ForecastTask, season_of
from ssmseq.tuning.progress import Standing, epochs_spared
from ssmseq.tuning.report import settings_yaml
from ssmseq.tuning.search import Halving, search
from ssmseq.tuning.storage import open_storage


def settings_of(study):
    return [(t.number, t.params, t.value, t.state) for t in study.trials]


def test_resumed_equals_uninterrupted(tmp_path):
    whole = take_part(f"journal://{tmp_path}/whole.log", 14)
    url, calls = f"journal://{tmp_path}/parts.log", []

    def interrupted(estimator):
        calls.append(estimator.x)
        if len(calls) == 12:
            raise KeyboardInterrupt

    take_part(url, 4, before=interrupted)
    with pytest.raises(KeyboardInterrupt):
        take_part(url, 14, before=interrupted)
    waiting = optuna.load_study(study_name="s", storage=open_storage(url)).trials[-1]
    assert (waiting.number, waiting.state) == (11, TrialState.WAITING)
    assert settings_of(take_part(url, 14)) == settings_of(whole)
    assert len({t.params["x"] for t in whole.trials}) == 14
    other = take_part(f"journal://{tmp_path}/other.log", 3, seed=1)
    assert settings_of(other)[0] == settings_of(whole)[0]  # the estimator's own settings
    assert settings_of(other)[1] != settings_of(whole)[1]


def test_first_trial_has_the_estimators_own_settings():
    first = take_part("sqlite://", 1).trials[0]
    assert first.params == {"x": 0.0, "y": 0}


def test_failures_keep_their_reason_and_end_nothing():
    def breaks(estimator):
        if estimator.y == 1:
            raise MemoryError("no room for y=1")
        if estimator.x > 0.2:
            estimator.x = float("nan")

    task = FormulaTask(before=breaks)
    study = search(task, formula_space(), optuna.storages.InMemoryStorage(), study="s", n_trials=25)
    for trial in study.trials:
        reason = trial.user_attrs.get("reason")
        if trial.params["y"] == 1:
            assert (trial.state, reason) == (TrialState.FAIL, "MemoryError: no room for y=1")
        elif trial.params["x"] > 0.2:
            assert (trial.state, reason) == (TrialState.FAIL, "ValueError: the metric error is nan")
        else:
            assert (trial.state, reason) == (TrialState.COMPLETE, None)
    assert {t.state for t in study.trials} == {TrialState.FAIL, TrialState.COMPLETE}
    line = Standing(study, 25).line()
    failed = sum(t.state == TrialState.FAIL for t in study.trials)
    assert line.startswith(f"25/25 trials: {25 - failed} done, 0 pruned, {failed} failed, 0 running; best error")


def test_a_metric_to_maximise_is_maximised():
    task = FormulaTask(metric="gain")
    study = search(task, formula_space(), optuna.storages.InMemoryStorage(), study="s", n_trials=30)
    assert study.best_value == max(t.value for t in study.trials)
    assert study.best_value > -0.02
    assert "better than half -0.5" in Standing(study, 30).line()
    assert "best gain" in settings_yaml(study)


def test_timeout_begins_no_further_trial():
    assert 1 <= len(take_part("sqlite://", 50, pause=0.3, timeout=0.8).trials) <= 3


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"X": wave(239)}, "other data"),
        ({"metric": "mae"}, "another metric: mse, and now mae"),
        ({"space": {**RIDGE, "fixed": {"horizon": 2}}}, "another fixed setting, of horizon: 3, and now 2"),
        ({"space": {"fixed": {"horizon": 3}}}, "another search space, of lookback"),
        ({"estimator": "LinearForecaster"}, "another estimator"),
    ],
)
def test_another_search_under_the_same_name_is_refused(changed, named):
    same = {"estimator": "RidgeForecaster", "X": wave(), "space": RIDGE, "n_trials": 2}
    storage = optuna.storages.InMemoryStorage()
    tune(**same, storage=storage)
    assert len(tune(**same, storage=storage).trials) == 2
    with pytest.raises(ValueError, match=named):
        tune(**same | changed, storage=storage)
    assert len(optuna.load_study(study_name="ssmseq", storage=storage).trials) == 2


def test_a_study_of_the_other_direction_is_refused():
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="ssmseq", storage=storage, direction="maximize")
    with pytest.raises(ValueError, match="is to maximize, and mse is to minimize"):
        tune("RidgeForecaster", wave(), storage=storage, space=RIDGE)


def test_baselines_and_metric_are_those_of_the_validation_rows():
    x = wave()
    task = ForecastTask(RidgeForecaster, {"horizon": 3, "lookback": 6, "alpha": 0.1}, None, x)
    found = task.baselines()
    expected = RidgeForecaster(horizon=3, lookback=6).fit(x)
    assert found["ridge"] == pytest.approx(expected.cv_results_["valid_mse"].min(), rel=1e-9)
    rows = len(x) - round(0.2 * len(x))
    scaled = (x - x[:rows].mean(0)) / x[:rows].std(0)
    truth = np.stack([scaled[i : i + 3] for i in range(rows, len(x) - 2)])
    assert found["last value"] == pytest.approx(np.mean((truth - scaled[rows - 1 : -3, None]) ** 2), rel=1e-9)
    assert "seasonal naive" not in found  # numbered rows have no season
    fitted = RidgeForecaster(horizon=3, lookback=6, alpha=0.1).fit(x)
    assert task.measure(fitted) == pytest.approx(fitted.cv_results_["valid_mse"][0], rel=1e-9)
    absolute = ForecastTask(RidgeForecaster, {"horizon": 3, "lookback": 6}, "mae", x)
    assert absolute.baselines()["last value"] == pytest.approx(np.abs(truth - scaled[rows - 1 : -3, None]).mean())


def test_seasonal_baseline_and_covariates():
    index = pd.date_range("2024-01-01", periods=240, freq="h")
    frame = pd.DataFrame(wave(), index=index, columns=["load", "heat"])
    fixed = {"horizon": 3, "lookback": 6, "past_covariates": ["heat"], "max_epochs": 1, "accelerator": "cpu"}
    found = ForecastTask(SMambaForecaster, fixed, None, frame).baselines()
    load = frame["load"].to_numpy()
    scaled = (load - load[:192].mean()) / load[:192].std()
    errors = [scaled[i : i + 3] - scaled[i - 24 : i - 21] for i in range(192, 238)]
    assert found["seasonal naive"] == pytest.approx(np.mean(np.square(errors)), rel=1e-9)


@pytest.mark.parametrize(
    ("freq", "season"),
    [("10min", 144), ("h", 24), ("D", 7), ("B", 5), ("W", 52), ("MS", 12), ("QS", 4), ("YS", 1)],
)
def test_seasons(freq, season):
    assert season_of(pd.date_range("2020-01-01", periods=40, freq=freq), freq) == season
    assert season_of(pd.RangeIndex(40), 1) == 1


@pytest.fixture(scope="module")
def networks():
    """A study of a tiny network, by successive halving."""
    lines = []
    study = tune("SMambaForecaster", wave(), n_trials=9, max_epochs=4, space=TINY, seed=3, say=lines.append)
    return study, lines


def test_trials_are_pruned_by_their_curves(networks):
    study, lines = networks
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        steps = sorted(trial.intermediate_values)
        assert steps == list(range(1, steps[-1] + 1))
        assert steps[-1] == 2  # the first rung of successive halving by tenths
        assert trial.user_attrs["epochs"] == len(steps) < 4
        earlier = [t.intermediate_values[steps[-1]] for t in study.trials[: trial.number] if t.last_step >= steps[-1]]
        assert trial.intermediate_values[steps[-1]] > min(earlier)
    for trial in study.trials:
        if trial.state == TrialState.COMPLETE:
            # the metric, measured after the fit, is the loss that the best epoch had
            assert trial.value == pytest.approx(min(trial.intermediate_values.values()), rel=1e-4)
            curve = trial.intermediate_values
            assert trial.user_attrs["best_epoch"] == min(curve, key=curve.get)
    assert f"{len(pruned)} pruned" in lines[-1]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_halving_compares_the_best_loss_so_far(direction):
    study = optuna.create_study(direction=direction, pruner=Halving(min_resource=3, reduction_factor=2))
    sign = 1 if direction == "minimize" else -1

    def is_cut(*losses):
        trial = study.ask()
        for epoch, loss in enumerate(losses, start=1):
            trial.report(sign * loss, epoch)
        return trial.should_prune()

    assert not is_cut()  # nothing is known yet
    assert not is_cut(0.5, 0.4, 0.6)
    assert not is_cut(0.5, 0.3, 0.9)  # the third loss alone is the worst
    assert is_cut(0.5, 0.5, 0.5)
    assert is_cut(0.6, 0.45, 0.41)  # its last loss alone is the lowest


def test_best_settings_repeat_the_best_trial(networks):
    study, _ = networks
    settings = best_settings(study)
    assert settings["random_state"] == 3
    again = SMambaForecaster(**settings).fit(wave())
    assert again.history_["valid_loss"].min() == pytest.approx(study.best_value, rel=1e-4)


def test_report_shows_every_trial_and_loads_nothing(networks, tmp_path):
    study, _ = networks
    page = write_report(study, tmp_path / "new" / "page.html").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == page.count("<img") >= 3
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    rows = re.findall(r'<tr>\s*<th scope="row">(\d+)</th>\s*<td>(done|pruned)</td>', page)
    assert sorted({int(number) for number, _ in rows}) == list(range(9))
    assert f"{study.best_value:.5g}" in page
    assert "others were better after" in page


def test_report_of_failures_escapes_reasons(tmp_path):
    def breaks(estimator):
        raise ValueError("<b>bad</b> & worse")

    study = take_part("sqlite://", 2, before=breaks)
    page = write_report(study, tmp_path / "page.html").read_text()
    assert page.count("ValueError: &lt;b&gt;bad&lt;/b&gt; &amp; worse") == 2
    with pytest.raises(ValueError, match="no trial .* ran to its end; the last one failed: ValueError: <b>bad"):
        best_settings(study)


def test_epochs_spared():
    trials = [
        create_trial(state=TrialState.COMPLETE, value=1.0, user_attrs={"epochs": 8}),
        create_trial(state=TrialState.COMPLETE, value=1.0, user_attrs={"epochs": 10}),
        create_trial(state=TrialState.PRUNED, user_attrs={"epochs": 1}),
        create_trial(state=TrialState.PRUNED, user_attrs={"epochs": 3}),
        create_trial(state=TrialState.FAIL, user_attrs={"epochs": 2}),
    ]
    assert epochs_spared(trials) == {"epochs": 24, "without_pruning": 38, "share": pytest.approx(14 / 38)}
    assert epochs_spared(trials[2:])["share"] is None


def test_objects_cannot_be_held_fixed():
    with pytest.raises(ValueError, match="random_state=.* cannot be kept|target=.* cannot be kept"):
        tune(RidgeForecaster(target=Point()), wave(), n_trials=1)


def test_an_instance_holds_its_parameters_fixed():
    study = tune(RidgeForecaster(horizon=3, alpha=0.5), wave(), n_trials=2, space={"space": RIDGE["space"]})
    assert study.user_attrs["fixed"] == {"horizon": 3, "alpha": 0.5}
    assert set(study.trials[1].params) == {"lookback"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials must be"),
        ({"pruner": "hope"}, "pruner must be one of"),
        ({"metric": "luck"}, "metric must be one of mse, mae"),
        ({"max_epochs": 3}, "RidgeForecaster has no epochs"),
        ({"space": {"fixed": {"validation_fraction": 0}}}, "leaves nothing to compare trials on"),
    ],
)
def test_arguments_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        tune("RidgeForecaster", wave(), **{"space": RIDGE, **options})


def test_scikit_learn_and_optuna_search_over_forecasters():
    integration = pytest.importorskip("optuna_integration", reason="OptunaSearchCV is in optuna-integration")
    x, cv = wave(), TimeSeriesSplit(2)
    grid = GridSearchCV(RidgeForecaster(horizon=3, alpha=0.1), {"lookback": [2, 12]}, cv=cv).fit(x)
    assert grid.best_params_ == {"lookback": 12}
    choices = {"lookback": optuna.distributions.CategoricalDistribution([2, 12])}
    found = integration.OptunaSearchCV(
        RidgeForecaster(horizon=3, alpha=0.1), choices, cv=cv, n_trials=4, random_state=0, verbose=0
    ).fit(x)
    assert found.best_score_ == pytest.approx(grid.best_score_, rel=1e-9)


def test_importing_the_search_loads_no_lightning():
    code = "import sys, ssmseq.tuning; print({m for m in ('lightning', 'matplotlib') if m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr

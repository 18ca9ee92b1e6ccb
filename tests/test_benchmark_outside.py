"""Our estimators in fev and GIFT-Eval forecast what they forecast by themselves, and see nothing of the windows."""

import numpy as np
import pandas as pd
import pytest

from ssmseq import NaiveForecaster, RidgeForecaster, SMambaForecaster
from ssmseq.benchmark import outside
from ssmseq.benchmark.outside import DECILES, GiftEvalPredictor, predict_for_fev

HORIZON, N_ROWS = 6, {"a": 130, "b": 150, "c": 110}
STATIC = {"a": "north", "b": "south", "c": "north"}
COVARIATES = ("price", "wind")


def ridge(**changes):
    return RidgeForecaster(**{"horizon": 1, "lookback": 12, "alpha": 0.01, "validation_fraction": 0.5} | changes)


def smamba(**changes):
    small = {"d_model": 8, "d_ff": 8, "n_layers": 1, "max_epochs": 2, "batch_size": 64, "learning_rate": 1e-2}
    return SMambaForecaster(**{"lookback": 12, "random_state": 0, "accelerator": "cpu"} | small | changes)


@pytest.fixture(scope="module")
def panel():
    """A long frame of three series with two variates, a known and a past covariate, and text for each series."""
    random, parts = np.random.default_rng(3), []
    for name, n in N_ROWS.items():
        price, wind = random.normal(size=(2, n))
        parts.append(
            pd.DataFrame(
                {
                    "id": name,
                    "timestamp": pd.date_range("2022-03-01", periods=n, freq="h"),
                    "load": np.sin(np.arange(n) / 4) + price + 0.1 * random.normal(size=n),
                    "sun": np.cos(np.arange(n) / 4) + 0.1 * random.normal(size=n) + len(parts),
                    "price": price,
                    "wind": wind,
                    "region": STATIC[name],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


# fev --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_task(panel, tmp_path, monkeypatch):
    """A function that makes a task of three windows, 4 rows apart; `frame` replaces the data."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fev = pytest.importorskip("fev")
    made = []

    def make(frame=None, **changes):
        made.append(None)
        path = tmp_path / f"{len(made)}.parquet"
        (panel if frame is None else frame).to_parquet(path)
        settings = {"horizon": HORIZON, "num_windows": 3, "window_step_size": 4, "target": "load"}
        return fev.Task(dataset_path=str(path), **settings | changes)

    return make


def before(panel, window):
    """The rows that precede the forecast of a window; the three of them start 14, 10 and 6 rows before the end."""
    left = HORIZON + 4 * (2 - window)
    return pd.concat([rows[:-left] for _, rows in panel.groupby("id")], ignore_index=True)


def as_array(predictions, window, key="predictions", target="load"):
    return np.array([row[key] for row in predictions[window][target]])


@pytest.mark.parametrize("refit", [False, True])
def test_fev_gets_the_forecasts_and_intervals_of_the_estimator(panel, make_task, refit):
    task = make_task(quantile_levels=[0.1, 0.5, 0.9, 0.025], eval_metric="MQL", extra_metrics=["MAE"])
    found = predict_for_fev(task, ridge(), refit=refit)
    roles = {"id_col": "id", "time_col": "timestamp", "target": ["load"], "horizon": HORIZON}
    for window in range(3):
        ours = ridge(**roles).fit(before(panel, window if refit else 0))
        forecast = ours.predict(before(panel, window), level=[80, 95])
        for key, column in {
            **{"predictions": "load", "0.5": "load", "0.1": "load-lo-80"},
            **{"0.9": "load-hi-80", "0.025": "load-lo-95"},
        }.items():
            expected = forecast[column].to_numpy().reshape(3, HORIZON)
            np.testing.assert_allclose(as_array(found, window, key), expected, rtol=1e-6, atol=1e-9)
    summary = task.evaluation_summary(found, model_name="ridge")
    errors = []
    for window, end in enumerate((-8, -4, None)):
        truth = np.stack([rows["load"].to_numpy()[:end][-HORIZON:] for _, rows in panel.groupby("id")])
        errors.append(np.abs(as_array(found, window) - truth).mean())
    assert summary["MAE"] == pytest.approx(np.mean(errors))
    assert np.isfinite(summary["test_error"])
    assert summary["num_forecasts"] == 9


def test_a_window_of_fev_sees_nothing_that_follows_it(panel, make_task):
    forecasts = predict_for_fev(make_task(), ridge())
    for window in range(3):
        changed = panel.copy()
        changed.loc[panel.index.difference(kept(panel, window)), "load"] = 1e3
        again = predict_for_fev(make_task(changed), ridge())
        for earlier in range(window + 1):
            np.testing.assert_array_equal(as_array(again, earlier), as_array(forecasts, earlier))


def kept(panel, window):
    left = HORIZON + 4 * (2 - window)
    return np.concatenate([rows.index[:-left] for _, rows in panel.groupby("id")])


def test_fev_hands_over_all_kinds_of_covariates(panel, make_task):
    roles = {"known_dynamic_columns": ["price"], "past_dynamic_columns": ["wind"], "static_columns": ["region"]}
    task = make_task(num_windows=1, quantile_levels=[0.2, 0.5], eval_metric="MQL", target=["sun", "load"], **roles)
    estimator = smamba(quantiles=[0.2, 0.5, 0.7])
    found = predict_for_fev(task, estimator)
    assert not hasattr(estimator, "network_")
    settings = {"id_col": "id", "time_col": "timestamp", "horizon": HORIZON, "target": ["load", "sun"], "freq": "h"}
    settings |= {"future_covariates": ["price"], "past_covariates": ["wind"], "static_covariates": ["region"]}
    ours = smamba(quantiles=[0.2, 0.5, 0.7], **settings).fit(before(panel, 2))
    forecast = ours.predict(before(panel, 2), future=panel, quantiles=True)
    for target in ("load", "sun"):
        for key, column in {"predictions": target, "0.5": target, "0.2": f"{target}-q0.2"}.items():
            expected = forecast[column].to_numpy().reshape(3, HORIZON)
            np.testing.assert_allclose(as_array(found, 0, key, target), expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(task.evaluation_summary(found, model_name="S-Mamba")["test_error"])


def test_text_that_changes_over_time_is_left_out_with_a_warning(panel, make_task):
    noted = panel.assign(mood=np.where(panel["wind"] > 0, "calm", "wild"))
    task = make_task(noted, num_windows=1, known_dynamic_columns=["mood", "price"])
    with pytest.warns(UserWarning, match=r"covariates \['mood'\] are not numeric"):
        found = predict_for_fev(task, smamba())
    plain = predict_for_fev(make_task(num_windows=1, known_dynamic_columns=["price"]), smamba())
    np.testing.assert_array_equal(as_array(found, 0), as_array(plain, 0))


@pytest.mark.parametrize("level", [0.123, 0.001])
def test_quantiles_that_no_interval_has_are_refused(make_task, level):
    task = make_task(quantile_levels=[0.1, level], eval_metric="MQL")
    with pytest.raises(ValueError, match=rf"the quantiles \[{level}\] are not the ends .* quantiles=\["):
        predict_for_fev(task, ridge())
    with pytest.raises(ValueError, match=rf"\[{level}\] are asked for, but the estimator has quantiles=\[0.1, 0.5\]"):
        predict_for_fev(task, smamba(quantiles=[0.1, 0.5]))


# GIFT-Eval --------------------------------------------------------------------------------------------------------


def entries_of(panel, columns=("load",), fields=()):
    """The series as entries of GluonTS."""
    found = []
    for name, rows in panel.groupby("id"):
        target = rows[list(columns)].to_numpy().T
        entry = {"item_id": name, "start": pd.Period(rows["timestamp"].iloc[0], freq="h")}
        entry["target"] = target[0] if len(columns) == 1 else target
        values = {
            "feat_dynamic_real": rows[["price"]].to_numpy().T,
            "past_feat_dynamic_real": rows[["wind"]].to_numpy().T,
            "feat_static_cat": np.array([list(STATIC).index(name) % 2]),
            "feat_static_real": np.array([float(len(rows))]),
        }
        found.append(entry | {field: values[field] for field in fields})
    return found


def cut(entries, windows=2):
    split = pytest.importorskip("gluonts.dataset.split").split
    training, template = split(entries, offset=-HORIZON * windows)
    return training, template.generate_instances(prediction_length=HORIZON, windows=windows, distance=HORIZON)


def test_gift_eval_gets_the_forecasts_and_intervals_of_the_estimator(panel):
    metrics = pytest.importorskip("gluonts.ev.metrics")
    evaluate_model = pytest.importorskip("gluonts.model").evaluate_model
    training, test = cut(entries_of(panel))
    predictor = GiftEvalPredictor(ridge(horizon=HORIZON)).fit(training)
    found = list(predictor.predict(test.input, num_samples=100))
    assert len(found) == 6
    roles = {"id_col": "id", "time_col": "timestamp", "target": ["load"], "horizon": HORIZON}
    left = {0: 2 * HORIZON, 1: HORIZON}
    ours = ridge(**roles).fit(pd.concat([rows[: -left[0]] for _, rows in panel.groupby("id")]))
    for number, forecast in enumerate(found):
        item, window = divmod(number, 2)
        rows = panel[panel["id"] == list(N_ROWS)[item]][: -left[window]]
        expected = ours.predict(rows, level=[20, 80])
        assert forecast.item_id == list(N_ROWS)[item]
        assert forecast.start_date.to_timestamp() == expected["timestamp"].iloc[0]
        for key, column in {"mean": "", "0.5": "", "0.1": "-lo-80", "0.9": "-hi-80", "0.6": "-hi-20"}.items():
            np.testing.assert_allclose(forecast[key], expected[f"load{column}"], rtol=1e-6, atol=1e-9)
    scores = evaluate_model(
        predictor,
        test_data=test,
        metrics=[metrics.MSE("mean"), metrics.MASE(), metrics.MeanWeightedSumQuantileLoss(DECILES)],
        seasonality=24,
    )
    truth = np.stack([label["target"] for label in test.label])
    error = truth - np.stack([f["mean"] for f in found])
    assert scores["MSE[mean]"].iloc[0] == pytest.approx(np.square(error).mean())
    assert np.isfinite(scores.to_numpy()).all()


def test_without_fit_it_learns_from_what_precedes_all_windows(panel):
    training, test = cut(entries_of(panel), windows=3)
    fitted = [
        f.forecast_array for f in GiftEvalPredictor(ridge(), prediction_length=6).fit(training).predict(test.input)
    ]
    alone = [f.forecast_array for f in GiftEvalPredictor(ridge(), prediction_length=6).predict(test.input)]
    np.testing.assert_array_equal(alone, fitted)
    order = [5, 2, 8, 0, 1, 3, 4, 7, 6]
    entries = list(test.input)
    mixed = GiftEvalPredictor(ridge(), prediction_length=6).predict([entries[i] for i in order])
    np.testing.assert_allclose([f.forecast_array for f in mixed], np.array(fitted)[order], rtol=1e-6, atol=1e-9)


def test_several_variates_and_covariates_reach_the_estimator(panel):
    fields = ("feat_dynamic_real", "past_feat_dynamic_real", "feat_static_cat", "feat_static_real")
    training, test = cut(entries_of(panel, ("load", "sun"), fields))
    predictor = GiftEvalPredictor(smamba(quantiles=[0.1, 0.5, 0.9]), prediction_length=6, quantile_levels=[0.1, 0.9])
    found = list(predictor.fit(training).predict(test.input))
    frame = panel.assign(length=panel["id"].map(N_ROWS).astype(float))
    settings = {"id_col": "id", "time_col": "timestamp", "horizon": HORIZON, "target": ["load", "sun"], "freq": "h"}
    settings |= {"future_covariates": ["price"], "past_covariates": ["wind"], "static_covariates": ["length", "region"]}
    training_rows = pd.concat([rows[: -2 * HORIZON] for _, rows in frame.groupby("id")])
    ours = smamba(quantiles=[0.1, 0.5, 0.9], **settings).fit(training_rows)
    assert found[0].forecast_array.shape == (3, HORIZON, 2)
    for number, forecast in enumerate(found):
        item, window = divmod(number, 2)
        rows = frame[frame["id"] == list(N_ROWS)[item]]
        expected = ours.predict(rows[: -HORIZON * (2 - window)], future=rows, quantiles=True)
        for v, column in enumerate(("load", "sun")):
            np.testing.assert_allclose(forecast["mean"][:, v], expected[column], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(forecast["0.9"][:, v], expected[f"{column}-q0.9"], rtol=1e-4, atol=1e-5)


def test_new_items_are_scaled_by_their_whole_history(panel):
    training, test = cut(entries_of(panel), windows=1)
    unscaled = {"normalize": False, "time_features": False}  # else a window's own scale would be all that counts
    estimator = smamba(**unscaled)
    predictor = GiftEvalPredictor(estimator, prediction_length=6, quantile_levels=())
    found = list(predictor.fit([e for e in training if e["item_id"] != "b"]).predict(test.input))
    roles = {"id_col": "id", "time_col": "timestamp", "target": ["load"], "horizon": HORIZON}
    past = pd.concat([rows[:-HORIZON] for _, rows in panel.groupby("id")])
    ours = smamba(**unscaled, **roles).fit(past[past["id"] != "b"])
    for forecast, (_, rows) in zip(found, past.groupby("id"), strict=True):
        np.testing.assert_allclose(forecast["mean"], ours.predict(rows)["load"], rtol=1e-4, atol=1e-5)


def test_years_beyond_the_stamps_of_pandas_are_numbered():
    pytest.importorskip("gluonts")
    wave = np.sin(np.arange(600) / 3)
    entry = {"item_id": "x", "start": pd.Period("1750", freq="Y"), "target": wave[:594]}
    (forecast,) = GiftEvalPredictor(ridge(alpha=0.0), prediction_length=6).predict([entry])
    np.testing.assert_allclose(forecast["mean"], wave[594:], atol=1e-6)
    assert forecast.start_date == pd.Period("2344", freq="Y-DEC")


def test_entries_without_a_name_or_at_all_are_refused(panel):
    nameless = [{k: v for k, v in entry.items() if k != "item_id"} for entry in entries_of(panel)]
    with pytest.raises(ValueError, match="no item_id; give each series one"):
        GiftEvalPredictor(ridge()).fit(nameless)
    with pytest.raises(ValueError, match="has no entries"):
        GiftEvalPredictor(ridge()).fit([])


def test_an_estimator_that_cannot_validate_gives_no_intervals(panel):
    pytest.importorskip("gluonts")
    training, test = cut(entries_of(panel), windows=1)
    naive = NaiveForecaster(lookback=12, season_length=1)
    with pytest.raises(ValueError, match="level= needs validation windows"):
        list(GiftEvalPredictor(naive, prediction_length=6).fit(training).predict(test.input))
    found = list(GiftEvalPredictor(naive, prediction_length=6, quantile_levels=()).fit(training).predict(test.input))
    np.testing.assert_allclose([f["mean"] for f in found], [[e["target"][-1]] * 6 for e in test.input])


def test_a_missing_package_is_named_with_the_remedy(panel, monkeypatch):
    monkeypatch.setattr(outside, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gluonts is not installed: pip install 'ssmseq\[outside\]'"):
        list(GiftEvalPredictor(ridge()).predict(entries_of(panel)))
    with pytest.raises(ImportError, match=r"fev is not installed: pip install 'ssmseq\[outside\]'"):
        predict_for_fev(None, ridge())

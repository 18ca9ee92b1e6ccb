"""The command line with every estimator, long tables, gaps, covariates, quantiles and intervals."""

import json

import numpy as np
import pandas as pd
import pytest

import ssmseq
from ssmseq.cli import fit, main
from ssmseq.persistence import FORECASTERS

SIZES = {"horizon": 4, "lookback": 8}
TRAINING = {"max_epochs": 1, "random_state": 0}
OPTIONS = {
    "SMambaForecaster": {"d_model": 16, "d_ff": 16, "n_layers": 1, **TRAINING},
    "KarmaForecaster": {"d_model": 16, "n_layers": 1, "decomposition": "moving_average", **TRAINING},
    "TSM2Forecaster": {"d_model": 16, "n_layers": 1, "patch_len": 4, "stride": 2, **TRAINING},
    "NaiveForecaster": {"season_length": 3},
    "RidgeForecaster": {"alpha": [0.1, 1.0]},
    "LinearForecaster": {"quantiles": [0.1, 0.5, 0.9], **TRAINING},
}


def words(params: dict) -> list[str]:
    return [word for name, value in params.items() for word in (f"--{name}", str(value).replace("'", '"'))]


@pytest.fixture
def punched(waves, tmp_path) -> pd.DataFrame:
    """The waves with a missing value and a missing row, also as waves.csv; one variate ends in nothing."""
    frame = waves.drop(waves.index[30])
    frame.iloc[50, 1] = frame.iloc[-8:, 2] = np.nan
    frame.to_csv(tmp_path / "waves.csv")
    return frame


@pytest.mark.parametrize("name", OPTIONS)
def test_every_estimator_fits_a_table_with_gaps(name, punched, tmp_path, capsys):
    assert set(OPTIONS) == set(fit.ESTIMATORS) == set(FORECASTERS)
    params, folder = SIZES | OPTIONS[name], str(tmp_path / "model")
    assert main(["fit", name, str(tmp_path / "waves.csv"), "--save", folder, *words(params), "--quiet"]) == 0
    capsys.readouterr()
    estimator = getattr(ssmseq, name)(**params)
    assert ssmseq.load(folder).get_params() == estimator.get_params()
    expected = estimator.fit(punched).predict()
    assert main(["predict", folder, "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert [row["time"] for row in forecast] == [t.isoformat() for t in expected.index]
    for column in "ab":
        assert [row[column] for row in forecast] == expected[column].tolist()
    assert [row["c"] for row in forecast] == [None] * 4
    assert expected["c"].isna().all()


@pytest.mark.parametrize("id_col", [None, "meter"])
def test_long_tables_keep_ids_that_look_like_dates(waves, id_col, tmp_path, capsys):
    name = id_col or "unique_id"
    parts = [pd.DataFrame({name: i, "ds": waves.index, "y": waves[c]}) for i, c in zip(("M1", "M2"), "ab", strict=True)]
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(tmp_path / "long.csv", index=False)
    columns = {} if id_col is None else {"id_col": id_col, "time_col": "ds", "target": "y"}
    params = {**SIZES, "alpha": 0.1, **columns}
    arguments = [str(tmp_path / "long.csv"), "--save", str(tmp_path / "m"), *words(params), "--quiet"]
    assert main(["fit", "RidgeForecaster", *arguments]) == 0
    expected = ssmseq.RidgeForecaster(**params).fit(table).predict(level=[80])
    capsys.readouterr()
    for history in ([], [str(tmp_path / "long.csv")]):
        assert (
            main(["predict", str(tmp_path / "m"), *history, "--level", "80", "--output", str(tmp_path / "f.csv")]) == 0
        )
        found = pd.read_csv(tmp_path / "f.csv", parse_dates=["ds"])
        assert list(found.columns) == [name, "ds", "y", "y-lo-80", "y-hi-80"]
        assert found[name].tolist() == ["M1"] * 4 + ["M2"] * 4
        assert found["ds"].tolist() == expected["ds"].tolist()
        np.testing.assert_array_equal(found[["y", "y-lo-80", "y-hi-80"]], expected[["y", "y-lo-80", "y-hi-80"]])


def test_covariates_quantiles_and_levels(waves, tmp_path, capsys):
    waves[:190].to_csv(tmp_path / "past.csv")
    waves[190:].drop(columns="a").to_csv(tmp_path / "known.csv")
    params = SIZES | OPTIONS["SMambaForecaster"]
    params |= {"target": ["a"], "future_covariates": ["b"], "past_covariates": ["c"], "quantiles": [0.2, 0.5]}
    folder = str(tmp_path / "m")
    arguments = [str(tmp_path / "past.csv"), "--save", folder, *words(params), "--time_features", "[hour]", "--quiet"]
    assert main(["fit", "SMambaForecaster", *arguments]) == 0
    capsys.readouterr()
    estimator = ssmseq.SMambaForecaster(**params, time_features=["hour"]).fit(waves[:190])
    expected = estimator.predict(future=waves[190:], level=[50, 80], quantiles=True)
    options = ["--future", str(tmp_path / "known.csv"), "--level", "50", "80", "--quantiles"]
    assert main(["predict", folder, *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = ["a", "a-lo-50", "a-hi-50", "a-lo-80", "a-hi-80", "a-q0.2", "a-q0.5"]
    assert document["columns"] == ["time", *names] == ["time", *expected.columns]
    assert [[row[c] for c in names] for row in document["forecast"]] == expected.to_numpy().tolist()
    for wrong, message in (
        ([], "needs the covariates ['b'] of the 4 rows after the history"),
        ([*options[:2], "--level", "100"], "level must hold whole percentages from 1 to 99"),
    ):
        assert main(["predict", folder, *wrong]) == 1
        assert message in capsys.readouterr().err


def test_models_of_arrays_forecast_numbered_columns(waves, tmp_path, capsys):
    est = ssmseq.RidgeForecaster(**SIZES).fit(waves.to_numpy()[:, :2])
    assert main(["predict", str(est.save(tmp_path) and tmp_path), "--level", "80"]) == 0
    header, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert header == ["0", "0-lo-80", "0-hi-80", "1", "1-lo-80", "1-hi-80"]
    np.testing.assert_array_equal(np.array(rows, float), est.predict(level=[80]))


def test_wrong_options_of_karma_are_exit_2_or_1(punched, tmp_path, capsys):
    arguments = ["fit", "KarmaForecaster", str(tmp_path / "waves.csv"), "--save", str(tmp_path / "m")]
    assert main([*arguments, "--decomposition", "loess"]) == 2
    assert "--decomposition must be 'none', 'moving_average', 'atcd', got 'loess'" in capsys.readouterr().err
    assert main([*arguments, "--wavelet", "sym4"]) == 1
    assert "wavelet must be 'haar' or one of 'db1' to 'db10'" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()

"""Prices, the M4 panel and the sets of many variates: real files where SSMSEQ_DATA holds them, else small stand-ins."""

import csv
import dataclasses
import gzip
import io
import os

import numpy as np
import pandas as pd
import pytest

from ssmseq import datasets
from ssmseq.datasets import files

needs_data = pytest.mark.skipif(
    not os.environ.get("SSMSEQ_DATA"), reason="set SSMSEQ_DATA to a folder with the benchmark files to run this"
)
PARTS = ("train", "test")
PEMS = ("PEMS03", "PEMS04", "PEMS07", "PEMS08")
DATED = ("EPF_NP", "EPF_PJM", "electricity", "traffic")
FETCHERS = {
    "EPF_NP": datasets.fetch_epf,
    "EPF_PJM": lambda **places: datasets.fetch_epf("PJM", **places),
    "electricity": datasets.fetch_electricity,
    "traffic": datasets.fetch_traffic,
    "solar": datasets.fetch_solar,
    **{name: lambda name=name, **places: datasets.fetch_pems(name.removeprefix("PEMS"), **places) for name in PEMS},
}
VALUES = np.array([[1.5, 2, 3], [4, 5, 6], [7, 8, 9.25], [10, 11, 12]])


def found(fetch, *arguments):
    try:
        return fetch(*arguments, download_if_missing=False)
    except datasets.DatasetNotFoundError as error:
        pytest.skip(str(error))


# The registry


@pytest.mark.parametrize(("name", "windows"), [("PEMS03", 5135), ("PEMS04", 3292), ("PEMS07", 5538), ("PEMS08", 3465)])
def test_pems_splits_give_the_published_number_of_windows(name, windows):
    splits = files.lookup(name).splits
    rows = files.lookup(name).rows
    assert splits["train"] == (0, int(0.6 * rows))
    assert splits["validation"] == (int(0.6 * rows), int(0.8 * rows))
    start, stop = splits["test"]
    assert (stop - start - 96 - 12 + 1, stop) == (windows, rows)


@pytest.mark.parametrize(
    ("name", "horizon", "windows"),
    [("electricity", 96, 5165), ("traffic", 720, 2789), ("solar", 192, 10321), ("EPF_NP", 24, 10460)],
)
def test_other_splits_give_the_published_number_of_windows(name, horizon, windows):
    start, stop = files.lookup(name).splits["test"]
    assert stop - start - horizon + 1 == windows


def test_bytes_of_solar_are_those_of_its_values():
    # Each is written as 0.000000000000000000e+00 with a comma or the line's end.
    entry = files.lookup("solar")
    assert entry.bytes == entry.rows * entry.columns * 25


def test_files_of_m4_have_no_splits():
    assert files.lookup("M4_hourly_train").splits == files.lookup("M4_hourly_test").splits == {}


# The real files


@needs_data
@pytest.mark.parametrize("name", ["EPF_NP", "EPF_PJM", "M4_hourly_train", "M4_hourly_test"])
def test_real_file_verifies_and_has_the_registered_shape(name):
    bunch, entry = found(datasets.fetch_dataset, name), files.lookup(name)
    assert bunch.frame.shape == (entry.rows, entry.columns)
    result = datasets.verify_dataset(name)
    assert result["ok"]
    assert result["rows"] == entry.rows
    assert len(files.read_content(files.Path(bunch.source))) == entry.bytes


@needs_data
@pytest.mark.parametrize(
    ("market", "forecasts"),
    [
        ("NP", ["Grid load forecast", "Wind power forecast"]),
        ("PJM", ["System load forecast", "Zonal COMED load foecast"]),
    ],
)
def test_prices_are_hourly_and_the_column_names_bare(market, forecasts):
    frame = found(datasets.fetch_epf, market).frame
    assert list(frame.columns) == [*forecasts, "OT"]
    assert (frame.index[0], frame.index[-1]) == (pd.Timestamp("2013-01-01"), pd.Timestamp("2018-12-24 23:00"))
    assert set(np.diff(frame.index)) == {np.timedelta64(1, "h")}
    assert frame.index.name == "date"
    assert (frame.dtypes == "float64").all()
    assert not frame.isna().any(axis=None)


@needs_data
def test_prices_of_pjm_are_those_in_the_documentation_of_epftoolbox():
    frame = found(datasets.fetch_epf, "PJM").frame
    assert frame.loc["2016-01-01 00:00"].tolist() == [76840, 10406, 20.341321]
    assert frame.loc["2016-02-01 23:00"].tolist() == [82900, 10974, 20.593339]


@needs_data
@pytest.mark.parametrize(("market", "mse", "mae"), [("NP", 0.701, 0.505), ("PJM", 0.356, 0.425)])
def test_repeating_the_last_price_gives_the_errors_on_the_card(market, mse, mae):
    bunch = found(datasets.fetch_epf, market)
    price = bunch.frame["OT"].to_numpy()
    train = price[slice(*bunch.splits["train"])]
    price = (price - train.mean()) / train.std()
    start, stop = bunch.splits["test"]
    windows = np.lib.stride_tricks.sliding_window_view(price[start - 1 : stop], 25)
    errors = windows[:, 1:] - windows[:, :1]
    assert len(errors) == 10460
    assert np.mean(errors**2) == pytest.approx(mse, abs=6e-4)
    assert np.mean(np.abs(errors)) == pytest.approx(mae, abs=6e-4)


@needs_data
def test_m4_holds_every_value_of_its_files_in_order():
    bunch = found(datasets.fetch_m4_hourly)
    expected = []
    for path in bunch.sources:
        with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
            lines = csv.reader(file)
            next(lines)
            expected.append([(name, [float(field) for field in fields if field]) for name, *fields in lines])
    series = {part: dict(list(bunch[part].groupby("unique_id", sort=False))) for part in PARTS}
    assert [list(series[part]) for part in PARTS] == [[name for name, _ in lines] for lines in expected]
    for (name, train), (test_name, test) in zip(*expected, strict=True):
        assert name == test_name
        assert series["train"][name]["y"].tolist() == train
        assert series["test"][name]["y"].tolist() == test
        assert series["train"][name]["ds"].tolist() == list(range(1, len(train) + 1))
        assert series["test"][name]["ds"].tolist() == list(range(len(train) + 1, len(train) + 49))
    lengths = bunch.train.groupby("unique_id").size().value_counts()
    assert lengths.to_dict() == {960: 245, 700: 169}
    assert (len(bunch.train), len(bunch.test)) == (353_500, 19_872)


@needs_data
def test_m4_gives_the_error_of_the_seasonal_naive_forecast_on_the_card():
    bunch = found(datasets.fetch_m4_hourly)
    train, test = (dict(list(bunch[part].groupby("unique_id")["y"])) for part in PARTS)
    mase = []
    for name, y in train.items():
        y = y.to_numpy()
        error = np.abs(test[name].to_numpy() - np.tile(y[-24:], 2)).mean()
        mase.append(error / np.abs(y[24:] - y[:-24]).mean())
    assert np.mean(mase) == pytest.approx(1.193, abs=5e-4)


# Stand-ins of four rows


def stand_in(name):
    """Return the content of a file of VALUES in the layout of a data set."""
    if name in PEMS:
        file = io.BytesIO()
        other = np.full_like(VALUES, -1)
        np.savez_compressed(file, data=np.stack([VALUES, other, other], axis=2))
        return file.getvalue()
    lines = [",".join(map(str, row)) for row in VALUES]
    if name in DATED:
        hour = "2016/7/1 {}:00" if name.startswith("EPF") else "2016-07-01 {:02}:00:00"
        lines = ["date, a b,c,OT", *(f"{hour.format(2 + i)},{line}" for i, line in enumerate(lines))]
    return "".join(line + "\n" for line in lines).encode()


@pytest.fixture
def small_registry(monkeypatch, tmp_path):
    """A function that puts small files, by name, into the place of the registered ones and into `tmp_path`."""

    def replace(contents, **changes):
        entries = dict(files.registry())
        for name, content in contents.items():
            fields = {"sha256": files.sha256_of(content), "rows": 4, "columns": 3, "also_accepted": (), **changes}
            entries[name] = dataclasses.replace(entries[name], **fields)
            (tmp_path / entries[name].file).write_bytes(content)
        monkeypatch.setattr(files, "registry", lambda: entries)
        return tmp_path

    empty = tmp_path / "cache"
    empty.mkdir()
    monkeypatch.delenv("SSMSEQ_DATA", raising=False)
    monkeypatch.setattr(files, "cache_dir", lambda: empty)
    return replace


@pytest.mark.parametrize("name", FETCHERS)
def test_fetcher_reads_its_layout(name, small_registry):
    home = small_registry({name: stand_in(name)})
    bunch = FETCHERS[name](data_home=home, download_if_missing=False)
    np.testing.assert_array_equal(bunch.frame.to_numpy(), VALUES)
    assert (bunch.frame.dtypes == "float64").all()
    assert bunch.source == str(home / files.lookup(name).file)
    assert list(bunch.frame.columns) == (["a b", "c", "OT"] if name in DATED else ["0", "1", "2"])
    if name in DATED:
        assert bunch.frame.index.tolist() == [pd.Timestamp(2016, 7, 1, hour) for hour in (2, 3, 4, 5)]
        assert bunch.frame.index.name == "date"
    else:
        assert bunch.frame.index.equals(pd.RangeIndex(4))
    assert bunch.licence == files.lookup(name).licence
    by_name = datasets.fetch_dataset(name, data_home=home, download_if_missing=False)
    pd.testing.assert_frame_equal(by_name.frame, bunch.frame)
    assert by_name.splits == bunch.splits == files.lookup(name).splits


@pytest.mark.parametrize("changes", [{"rows": 5}, {"columns": 4}])
@pytest.mark.parametrize("name", ["EPF_NP", "traffic", "solar", "PEMS07"])
def test_other_number_of_rows_or_columns_is_refused(name, changes, small_registry):
    home = small_registry({name: stand_in(name)}, **changes)
    expected = rf"{files.lookup(name).file} holds 4 rows of 3 values, but .*{name}.*registry\.toml is wrong"
    with pytest.raises(ValueError, match=expected):
        FETCHERS[name](data_home=home, download_if_missing=False)


@pytest.mark.parametrize("name", FETCHERS)
def test_other_content_is_refused(name, small_registry, tmp_path):
    small_registry({name: stand_in(name)})
    path = tmp_path / files.lookup(name).file
    path.write_bytes(stand_in(name) + b"\n")
    with pytest.raises(ValueError, match=rf"{path.name} is not the registered .*Remove or rename"):
        FETCHERS[name](data_home=tmp_path, download_if_missing=False)


@pytest.mark.parametrize("name", [*FETCHERS, "M4_hourly_train"])
def test_missing_file_names_address_and_remedy(name, small_registry, tmp_path):
    small_registry({})
    fetch = FETCHERS.get(name, datasets.fetch_m4_hourly)
    with pytest.raises(datasets.DatasetNotFoundError) as missing:
        fetch(data_home=tmp_path, download_if_missing=False)
    for expected in (files.lookup(name).file, files.lookup(name).url, "Set SSMSEQ_DATA to a folder"):
        assert expected in str(missing.value)


@pytest.mark.parametrize(("fetch", "message"), [
    (datasets.fetch_epf, r"market='DE' is unknown; choose one of NP, PJM"),
    (datasets.fetch_pems, r"variant='DE' is unknown; choose one of 03, 04, 07, 08"),
    (datasets.fetch_dataset, r"No data set is called 'DE'; choose one of ETTh1, .*PEMS08"),
])  # fmt: skip
def test_unknown_names_are_refused_with_the_choices(fetch, message):
    with pytest.raises(ValueError, match=message):
        fetch("DE")


def test_m4_is_joined_without_its_padding(small_registry):
    train = b'"V1","V2","V3","V4"\n"H2","1","2",\n"H10","3","4","5"\n'
    test = b'"V1","V2"\n"H10","8"\n"H2","9"\n'
    home = small_registry({"M4_hourly_train": train}, rows=2, columns=3)
    small_registry({"M4_hourly_test": test}, rows=2, columns=1)
    bunch = datasets.fetch_m4_hourly(data_home=home, download_if_missing=False)
    rows = [("H2", 1, 1.0), ("H2", 2, 2.0), ("H10", 1, 3.0), ("H10", 2, 4.0), ("H10", 3, 5.0)]
    assert list(bunch.train.itertuples(index=False, name=None)) == rows
    assert list(bunch.test.itertuples(index=False, name=None)) == [("H10", 4, 8.0), ("H2", 3, 9.0)]
    assert list(bunch.train.columns) == ["unique_id", "ds", "y"]
    assert bunch.sources == [str(home / "M4_Hourly-train.csv"), str(home / "M4_Hourly-test.csv")]
    assert bunch.test["ds"].dtype == "int64"


@pytest.mark.parametrize("name", ["EPF_PJM", "solar", "PEMS08"])
def test_verifying_counts_the_rows_of_every_layout(name, small_registry):
    home = small_registry({name: stand_in(name)})
    assert datasets.verify_dataset(name, data_home=home)["ok"]
    small_registry({name: stand_in(name)}, rows=5)
    result = datasets.verify_dataset(name, data_home=home)
    assert (result["ok"], result["rows"], result["expected_rows"]) == (False, 4, 5)


def archive(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no npz file"),
        (b"no archive", "no npz file"),
        (stand_in("PEMS03")[:-40], "no npz file"),
        (archive(flow=VALUES), "no npz file with an array 'data'"),
        (archive(data=VALUES), r"'data' in PEMS03\.npz has shape \(4, 3\), not \(rows, columns, channels\)"),
    ],
)
def test_unreadable_archive_is_named(content, message, small_registry):
    home = small_registry({"PEMS03": content})
    for read in (datasets.verify_dataset, datasets.fetch_dataset):
        with pytest.raises(ValueError, match=message) as refusal:
            read("PEMS03", data_home=home)
        assert "replace it" in str(refusal.value)

"""The loaders against the real files where SSMSEQ_DATA is set; search and download without any."""

import dataclasses
import gzip
import http.server
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from ssmseq import datasets
from ssmseq.datasets import files

CONTENT = b"date,a,b\n2020-01-01 00:00:00,1.5,2\n2020-01-02 00:00:00,3,4\n2020-01-03 00:00:00,5,6\n"
ETT_SPLITS = {"train": (0, 8640), "validation": (8640, 11520), "test": (11520, 14400)}
LOADERS = {
    "ETTh1": lambda: datasets.fetch_ett("h1", download_if_missing=False),
    "ETTh2": lambda: datasets.fetch_ett("h2", download_if_missing=False),
    "ETTm1": lambda: datasets.fetch_ett("m1", download_if_missing=False),
    "ETTm2": lambda: datasets.fetch_ett("m2", download_if_missing=False),
    "weather": lambda: datasets.fetch_weather(download_if_missing=False),
    "exchange_rate": lambda: datasets.fetch_exchange_rate(download_if_missing=False),
    "national_illness": lambda: datasets.fetch_national_illness(download_if_missing=False),
}
_loaded = {}

needs_data = pytest.mark.skipif(
    not os.environ.get("SSMSEQ_DATA"), reason="set SSMSEQ_DATA to a folder with the benchmark files to run this"
)


def load(name):
    if name not in _loaded:
        try:
            _loaded[name] = LOADERS[name]()
        except datasets.DatasetNotFoundError as error:
            pytest.skip(str(error))
    return _loaded[name]


# The real files


@needs_data
@pytest.mark.parametrize("name", LOADERS)
def test_frame_agrees_with_the_registry(name):
    bunch, entry = load(name), files.lookup(name)
    assert bunch.frame.shape == (entry.rows, entry.columns)
    assert (bunch.frame.dtypes == "float64").all()
    assert not bunch.frame.isna().any(axis=None)
    assert os.path.basename(bunch.source) in (entry.file, entry.file + ".gz")
    assert bunch.DESCR
    assert bunch.licence
    assert bunch.citation


@needs_data
@pytest.mark.parametrize("name", LOADERS)
def test_verify_recomputes_checksum_and_rows(name):
    load(name)
    result = datasets.verify_dataset(name)
    assert result["ok"]
    assert result["rows"] == result["expected_rows"] == files.lookup(name).rows
    assert files.lookup(name).accepts(result["sha256"])


@needs_data
@pytest.mark.parametrize(
    ("name", "horizon", "mse", "mae"),
    [
        ("ETTh1", 96, 1.294, 0.713),
        ("ETTh2", 96, 0.432, 0.422),
        ("ETTm1", 96, 1.214, 0.665),
        ("ETTm2", 96, 0.266, 0.328),
        ("weather", 96, 0.259, 0.254),
        ("exchange_rate", 96, 0.081, 0.196),
        ("national_illness", 24, 6.213, 1.622),
    ],
)
def test_repeating_the_last_value_gives_the_known_errors(name, horizon, mse, mae):
    bunch = load(name)
    values = bunch.frame.to_numpy()
    train = values[slice(*bunch.splits["train"])]
    values = (values - train.mean(axis=0)) / train.std(axis=0)
    start, stop = bunch.splits["test"]
    n_windows = stop - start - horizon + 1
    last = values[start - 1 : start - 1 + n_windows]
    errors = [values[start + step : start + step + n_windows] - last for step in range(horizon)]
    assert np.mean([np.mean(error**2) for error in errors]) == pytest.approx(mse, abs=6e-4)
    assert np.mean([np.mean(np.abs(error)) for error in errors]) == pytest.approx(mae, abs=6e-4)


@needs_data
@pytest.mark.parametrize(("name", "step"), [("ETTh1", "1h"), ("ETTh2", "1h"), ("ETTm1", "15min"), ("ETTm2", "15min")])
def test_ett_is_regular_in_time(name, step):
    frame = load(name).frame
    assert list(frame.columns) == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    assert frame.index.name == "date"
    assert frame.index.freq is None
    assert frame.index[0] == pd.Timestamp("2016-07-01")
    assert set(np.diff(frame.index)) == {np.timedelta64(pd.Timedelta(step))}


@needs_data
@pytest.mark.parametrize("transformer", ["1", "2"])
def test_hourly_ett_is_every_fourth_quarter_of_an_hour(transformer):
    hourly, quarterly = load("ETTh" + transformer).frame, load("ETTm" + transformer).frame.iloc[::4]
    pd.testing.assert_frame_equal(hourly, quarterly, rtol=1e-12, atol=1e-12)


@needs_data
def test_weather_is_left_as_published():
    bunch = load("weather")
    frame = bunch.frame
    missing = frame.to_numpy() == -9999
    assert dict(zip(frame.columns[missing.any(axis=0)], missing.sum(axis=0)[missing.any(axis=0)], strict=True)) == {
        "wv (m/s)": 1,
        "max. PAR (\ufffdmol/m\ufffd/s)": 30,
        "OT": 50,
    }
    assert np.flatnonzero(missing.any(axis=1)).max() < bunch.splits["train"][1]
    assert sum("\ufffd" in column for column in frame.columns) == 3
    assert not any("\r" in column for column in frame.columns)
    steps = np.diff(frame.index)
    assert np.flatnonzero(steps == np.timedelta64(0)).tolist() == [19043]
    assert frame.index[19043] == pd.Timestamp("2020-05-12 06:00")
    assert frame.iloc[19043].equals(frame.iloc[19044].rename(frame.index[19043]))
    assert np.flatnonzero(steps == np.timedelta64(100, "m")).tolist() == [21513]
    assert frame.index[21514] == pd.Timestamp("2020-05-29 11:10")
    assert (steps == np.timedelta64(10, "m")).sum() == len(frame) - 3


@needs_data
def test_exchange_rate_has_no_dates_and_numbered_columns():
    frame = load("exchange_rate").frame
    assert isinstance(frame.index, pd.RangeIndex)
    assert list(frame.columns) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert frame.iloc[0, 0] == 0.7855


@needs_data
def test_national_illness_is_weekly_and_consistent():
    frame = load("national_illness").frame
    assert set(np.diff(frame.index)) == {np.timedelta64(7, "D")}
    share = 100 * frame["ILITOTAL"] / frame["OT"]
    np.testing.assert_allclose(share, frame["%UNWEIGHTED ILI"], atol=1e-5)


@needs_data
def test_line_ends_of_a_copy_do_not_matter(tmp_path):
    bunch = load("ETTh1")
    content = files.read_content(files.Path(bunch.source))
    other = content.replace(b"\r\n", b"\n") if b"\r\n" in content else content.replace(b"\n", b"\r\n")
    (tmp_path / "ETTh1.csv").write_bytes(other)
    copy = datasets.fetch_ett("h1", data_home=tmp_path, download_if_missing=False)
    pd.testing.assert_frame_equal(copy.frame, bunch.frame)


# The registry


def test_every_entry_is_complete():
    for entry in files.registry().values():
        assert entry.url.startswith("https://")
        assert all(len(sha256) == 64 for sha256 in (entry.sha256, *entry.also_accepted))
        for text in (entry.licence, entry.citation, entry.homepage, entry.description):
            assert text.strip()


@pytest.mark.parametrize(("name", "scale"), [("ETTh1", 1), ("ETTh2", 1), ("ETTm1", 4), ("ETTm2", 4)])
def test_ett_splits_are_months_of_30_days(name, scale):
    expected = {part: (scale * start, scale * stop) for part, (start, stop) in ETT_SPLITS.items()}
    assert files.lookup(name).splits == expected


@pytest.mark.parametrize(
    "name", ["weather", "exchange_rate", "national_illness", "EPF_NP", "EPF_PJM", "electricity", "traffic", "solar"]
)
def test_other_splits_are_70_10_20(name):
    entry = files.lookup(name)
    train, test = int(0.7 * entry.rows), int(0.2 * entry.rows)
    assert entry.splits == {
        "train": (0, train),
        "validation": (train, entry.rows - test),
        "test": (entry.rows - test, entry.rows),
    }


def test_listing_and_verifying_load_neither_pandas_nor_torch():
    script = (
        "import sys, ssmseq.datasets as d\n"
        "assert len(d.list_datasets()) == 18\n"
        "print([m for m in ('torch', 'pandas', 'sklearn', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"variant='h3'.*h1, h2, m1, m2"):
        datasets.fetch_ett("h3")
    with pytest.raises(ValueError, match=r"'etth1'.*ETTh1"):
        datasets.verify_dataset("etth1")


# The search


@pytest.fixture
def no_place_else(monkeypatch, tmp_path_factory):
    """Leave only data_home: no SSMSEQ_DATA and an empty cache, which is returned."""
    empty = tmp_path_factory.mktemp("cache")
    monkeypatch.delenv("SSMSEQ_DATA", raising=False)
    monkeypatch.setattr(files, "cache_dir", lambda: empty)
    return empty


@pytest.fixture
def toy(monkeypatch, no_place_else):
    """Put a file of three rows in the place of ETTh1."""
    entry = dataclasses.replace(
        files.lookup("ETTh1"),
        file="toy.csv",
        url="http://127.0.0.1:9/toy.csv",
        sha256=files.sha256_of(CONTENT),
        bytes=len(CONTENT),
        rows=3,
        columns=2,
        split_ends=(1, 2, 3),
        also_accepted=(),
    )
    monkeypatch.setattr(files, "registry", lambda: {"ETTh1": entry})
    return entry


def test_data_home_is_searched_recursively_and_gzip_is_read(toy, tmp_path):
    folder = tmp_path / "some" / "where"
    folder.mkdir(parents=True)
    (folder / "toy.csv.gz").write_bytes(gzip.compress(CONTENT))
    bunch = datasets.fetch_ett(data_home=tmp_path, download_if_missing=False)
    assert bunch.source == str(folder / "toy.csv.gz")
    assert bunch.frame.to_numpy().tolist() == [[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert bunch.splits == {"train": (0, 1), "validation": (1, 2), "test": (2, 3)}
    assert datasets.fetch_file("ETTh1", data_home=str(tmp_path)) == folder / "toy.csv.gz"


def test_nearest_copy_wins_and_plain_before_gzip(toy, tmp_path):
    (tmp_path / "deep").mkdir()
    for path in (tmp_path / "deep" / "toy.csv", tmp_path / "toy.csv", tmp_path / "toy.csv.gz"):
        path.write_bytes(CONTENT)
    assert datasets.fetch_file("ETTh1", data_home=tmp_path) == tmp_path / "toy.csv"
    (tmp_path / "toy.csv").unlink()
    assert datasets.fetch_file("ETTh1", data_home=tmp_path) == tmp_path / "toy.csv.gz"


def test_places_are_searched_in_order(toy, tmp_path, monkeypatch, no_place_else):
    home, environment = tmp_path / "home", tmp_path / "environment"
    for folder in (home, environment, no_place_else):
        folder.mkdir(exist_ok=True)
        (folder / "toy.csv").write_bytes(CONTENT)
    monkeypatch.setenv("SSMSEQ_DATA", str(environment))
    assert datasets.fetch_file("ETTh1", data_home=home).parent == home
    assert datasets.fetch_file("ETTh1").parent == environment
    (environment / "toy.csv").unlink()
    assert datasets.fetch_file("ETTh1").parent == no_place_else
    assert datasets.list_datasets(data_home=home)[0]["path"] == str(home / "toy.csv")


@pytest.mark.parametrize("place", ["data_home", "SSMSEQ_DATA"])
def test_other_content_is_refused_with_both_checksums(toy, tmp_path, monkeypatch, place):
    other = CONTENT.replace(b"1.5", b"1.6")
    (tmp_path / "toy.csv").write_bytes(other)
    if place == "SSMSEQ_DATA":
        monkeypatch.setenv("SSMSEQ_DATA", str(tmp_path))
    home = tmp_path if place == "data_home" else None
    with pytest.raises(ValueError, match="Remove or rename") as refusal:
        datasets.fetch_ett(data_home=home)
    for expected in (str(tmp_path / "toy.csv"), files.sha256_of(other), toy.sha256):
        assert expected in str(refusal.value)
    assert datasets.verify_dataset("ETTh1", data_home=home)["ok"] is False
    assert (tmp_path / "toy.csv").read_bytes() == other


def test_damaged_gzip_is_named(toy, tmp_path):
    (tmp_path / "toy.csv.gz").write_bytes(gzip.compress(CONTENT)[:-9])
    with pytest.raises(ValueError, match=r"toy\.csv\.gz is a damaged gzip file"):
        datasets.fetch_ett(data_home=tmp_path)


def test_missing_file_names_places_address_and_remedy(toy, tmp_path, no_place_else):
    with pytest.raises(datasets.DatasetNotFoundError) as missing:
        datasets.fetch_ett(data_home=tmp_path, download_if_missing=False)
    for expected in ("toy.csv", str(tmp_path), "SSMSEQ_DATA (not set)", str(no_place_else), toy.url, "Set SSMSEQ_DATA"):
        assert expected in str(missing.value)
    assert isinstance(missing.value, OSError)
    assert datasets.list_datasets()[0]["path"] is None
    with pytest.raises(datasets.DatasetNotFoundError, match="fetch ETTh1 first"):
        datasets.verify_dataset("ETTh1")


def test_data_home_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data_home=.*nowhere.* is not a folder"):
        datasets.fetch_weather(data_home=tmp_path / "nowhere")


# The download


@pytest.fixture
def server(toy, monkeypatch):
    """Serve `server.content` over HTTP, slowly; put its address into the registry."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.requests += 1
            time.sleep(served.delay)
            self.send_response(served.status)
            self.send_header("Content-Length", str(len(served.content)))
            self.end_headers()
            self.wfile.write(served.content)

        def log_message(self, *args):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.content, served.status, served.requests, served.delay = CONTENT, 200, 0, 0.0
    served.url = f"http://127.0.0.1:{served.server_port}/toy.csv"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(files, "registry", lambda: {"ETTh1": dataclasses.replace(toy, url=served.url)})
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.mark.parametrize("compress", [False, True])
def test_download_goes_to_the_cache_once_and_states_the_licence_once(server, compress, no_place_else, capfd):
    server.content = gzip.compress(CONTENT) if compress else CONTENT
    bunch = datasets.fetch_ett()
    assert bunch.source == str(no_place_else / "toy.csv")
    assert (no_place_else / "toy.csv").read_bytes() == CONTENT
    assert "CC BY-ND 4.0" in capfd.readouterr().err
    pd.testing.assert_frame_equal(datasets.fetch_ett().frame, bunch.frame)
    assert server.requests == 1
    assert capfd.readouterr() == ("", "")


def test_downloaded_content_is_checked_and_not_kept(server, no_place_else):
    server.content = CONTENT.replace(b"1.5", b"1.6")
    with pytest.raises(ValueError, match=f"{server.url} is not the registered toy.csv.*{files.sha256_of(CONTENT)}"):
        datasets.fetch_ett()
    assert list(no_place_else.iterdir()) == []


def test_failed_download_is_a_missing_file(server, no_place_else):
    server.status = 404
    with pytest.raises(datasets.DatasetNotFoundError, match="404"):
        datasets.fetch_ett()
    assert list(no_place_else.iterdir()) == []


def test_damaged_file_in_the_cache_is_replaced(server, no_place_else):
    (no_place_else / "toy.csv").write_bytes(b"half a fi")
    with pytest.raises(ValueError, match="is not the registered"):
        datasets.fetch_ett(download_if_missing=False)
    assert datasets.fetch_ett().frame.shape == (3, 2)
    assert (no_place_else / "toy.csv").read_bytes() == CONTENT


def test_two_processes_fetch_into_one_cache(server, no_place_else):
    server.delay = 0.5
    script = (
        "import dataclasses, pathlib, sys\n"
        "from ssmseq.datasets import files\n"
        "cache, url, sha256 = sys.argv[1:]\n"
        "entry = dataclasses.replace(files.lookup('ETTh1'), file='toy.csv', url=url, sha256=sha256)\n"
        "files.cache_dir = lambda: pathlib.Path(cache)\n"
        "files.registry = lambda: {'ETTh1': entry}\n"
        "print(files.fetch_file('ETTh1'))\n"
    )
    command = [sys.executable, "-c", script, str(no_place_else), server.url, files.sha256_of(CONTENT)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(no_place_else / "toy.csv")
    assert [path.name for path in no_place_else.iterdir()] == ["toy.csv"]
    assert (no_place_else / "toy.csv").read_bytes() == CONTENT

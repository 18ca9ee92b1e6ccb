"""Frames to arrays and back: every kind of time, every library, and what comes out must look like what went in."""

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq import NaiveForecaster
from ssmseq.forecasting.frames import FrameLayout, Roles, read_frame, write_frame

FREQUENCIES = ["h", "15min", "2h", "D", "B", "W-SUN", "W-WED", "MS", "ME", "2MS", "QS", "QE", "YS"]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]


def wide(index, n_columns: int = 2) -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(len(index), n_columns))
    return pd.DataFrame(values, index=index, columns=list("abcdef")[:n_columns])


def forecast(frame, horizon: int = 5, **options):
    """Forecast by repeating the last row: the values are known, the layout is what is tested."""
    return NaiveForecaster(horizon=horizon, lookback=3, **options).fit(frame).predict()


def read(frame, layout: FrameLayout | None = None):
    """Read a wide frame; return its values, its times and its layout."""
    (series,), layout = read_frame(frame, Roles(), layout)
    return series.values, series.times, layout


# pandas ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freq", FREQUENCIES)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_stamped_index_continues_with_its_frequency(freq, zone):
    whole = pd.date_range("2021-02-01", periods=40, freq=freq, tz=zone, name="when")
    out = forecast(wide(whole[:35]))
    pd.testing.assert_index_equal(out.index, whole[35:], exact=True)
    assert out.index.freq == whole.freq
    assert list(out.columns) == ["a", "b"]
    np.testing.assert_allclose(out, np.tile(wide(whole[:35]).iloc[-1], (5, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("freq", "n_rows"), [("B", 5), ("MS", 2), ("QS", 2), ("YS", 3), ("ME", 2), ("W-SUN", 2), ("D", 2)]
)
def test_frequency_of_the_index_counts_where_rows_alone_could_deceive(freq, n_rows):
    whole = pd.date_range("2021-07-05" if freq == "B" else "2021-07-01", periods=n_rows + 3, freq=freq)
    out = NaiveForecaster(horizon=1, lookback=1).fit(wide(whole[:n_rows])).predict()
    pd.testing.assert_index_equal(out.index, whole[n_rows : n_rows + 1])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_resolution_of_the_stamps_is_kept(unit):
    index = pd.date_range("2021", periods=20, freq="15min", unit=unit)
    assert forecast(wide(index)).index.unit == unit


@pytest.mark.parametrize("day", ["2021-03-27", "2021-10-30"])
def test_hourly_rows_pass_a_clock_change(day):
    whole = pd.date_range(day, periods=72, freq="h", tz="Europe/Berlin")
    for n_rows in (20, 27, 30, 60):
        pd.testing.assert_index_equal(forecast(wide(whole[:n_rows])).index, whole[n_rows : n_rows + 5])


@pytest.mark.parametrize("freq", ["h", "D", "M", "2M", "Q", "W-SUN", "Y"])
def test_periods_continue(freq):
    whole = pd.period_range("2020-01-05", periods=40, freq=freq, name="when")
    pd.testing.assert_index_equal(forecast(wide(whole[:35])).index, whole[35:], exact=True)


def test_every_second_period_continues_with_every_second_period():
    whole = pd.period_range("2020-01", periods=40, freq="M")[::2]
    pd.testing.assert_index_equal(forecast(wide(whole[:15])).index, whole[15:], check_names=False)


def test_periods_of_another_length_are_refused():
    est = NaiveForecaster(horizon=2, lookback=3).fit(wide(pd.period_range("2020", periods=20, freq="D")))
    with pytest.raises(ValueError, match="h"):
        est.predict(wide(pd.period_range("2020", periods=20, freq="h")))


@pytest.mark.parametrize(("start", "step"), [(0, 1), (7, 1), (0, 3), (1990, 1), (-50, 10)])
@pytest.mark.parametrize("as_range", [True, False])
def test_numbered_index_continues(start, step, as_range):
    index = pd.RangeIndex(start, start + 20 * step, step, name="n")
    out = forecast(wide(index if as_range else pd.Index(index.to_numpy(), name="n")))
    assert out.index.tolist() == list(range(start + 20 * step, start + 25 * step, step))
    assert out.index.name == "n"
    assert pd.api.types.is_integer_dtype(out.index.dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
def test_numbers_do_not_overflow(dtype):
    last = np.iinfo(dtype).max - 1
    index = pd.Index(np.arange(last - 19, last + 1), dtype=dtype)
    assert forecast(wide(index)).index.tolist() == list(range(last + 1, last + 6))


@pytest.mark.parametrize("times", [np.arange(20) * 1.0, np.arange(20) * 0.5])
def test_fractional_times_are_refused_rather_than_read_as_nanoseconds(times):
    with pytest.raises(ValueError, match=r"the index .*(whole numbers|time stamps)"):
        forecast(wide(pd.Index(times)))
    with pytest.raises(ValueError, match=r"column 't' .*(whole numbers|time stamps)"):
        forecast(wide(pd.RangeIndex(20)).assign(t=times), time_col="t")


def test_text_and_tuples_are_no_times():
    for index in ([f"row {i}" for i in range(20)], pd.MultiIndex.from_product([list("ab"), range(10)])):
        with pytest.raises(ValueError, match="the index holds no time stamps or whole numbers"):
            forecast(wide(pd.Index(index)))


@pytest.mark.parametrize("named", [True, False])
def test_time_column_comes_back_as_a_column(named):
    whole = pd.date_range("2021", periods=40, freq="h")
    frame = wide(whole).reset_index(names="t")
    out = forecast(frame[:35], time_col="t" if named else None)
    assert list(out.columns) == ["t", "a", "b"]
    assert out["t"].tolist() == whole[35:].tolist()
    assert out["t"].dtype == frame["t"].dtype
    assert out.index.tolist() == list(range(5))


def test_slices_of_a_frame_with_a_time_column_are_read_alike(waves):
    frame = waves.reset_index()
    est = NaiveForecaster(horizon=4, lookback=8).fit(frame[:100])
    pd.testing.assert_frame_equal(est.predict(frame[50:100]), est.predict())
    assert est.evaluate(frame[100:])["n_windows"] == 100 - 8 - 4 + 1
    pd.testing.assert_frame_equal(est.fit(frame[50:100]).predict(), est.predict(frame[:100]))
    shuffled = frame[:100].sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(est.predict(shuffled), est.predict(frame[:100]))


@pytest.mark.parametrize("zone", [None, *ZONES, "America/Argentina/Buenos_Aires", "Etc/GMT+5"])
def test_time_column_of_any_zone_is_found(zone):
    whole = pd.date_range("2021", periods=40, freq="h", tz=zone)
    out = forecast(wide(whole[:35]).reset_index(names="t"))
    assert out["t"].tolist() == whole[35:].tolist()
    assert out["t"].dtype == whole.dtype


def test_time_column_keeps_its_place():
    frame = wide(pd.RangeIndex(20)).assign(t=pd.date_range("2021", periods=20, freq="h"))
    assert list(forecast(frame).columns) == ["a", "b", "t"]
    assert forecast(pl.DataFrame({c: frame[c].to_numpy() for c in frame})).columns == ["a", "b", "t"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("pattern", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M"])
def test_times_as_text_are_read(library, pattern):
    whole = pd.date_range("2021", periods=25, freq="h")
    columns = {"t": whole.strftime(pattern).tolist(), "a": np.arange(25.0)}
    frame = pd.DataFrame(columns) if library == "pandas" else pl.DataFrame(columns)
    out = forecast(frame[:20], time_col="t")
    assert pd.to_datetime(list(out["t"])).tolist() == whole[20:].tolist()
    with pytest.raises(ValueError, match="'t' is not numeric.*time_col='t'"):
        forecast(frame[:20])


def test_ambiguous_and_unknown_time_columns_are_refused():
    frame = wide(pd.RangeIndex(20)).assign(t=pd.date_range("2021", periods=20), s=pd.date_range("2022", periods=20))
    with pytest.raises(ValueError, match=r"\['t', 's'\] .*time_col"):
        forecast(frame)
    with pytest.raises(ValueError, match=r"time_col='u' is not a column.*\['a', 'b', 't', 's'\]"):
        forecast(frame, time_col="u")


@pytest.mark.parametrize("columns", [[0, 1], [5, 3], ["a", 1], [1.5, 2.5], ["é", "two words"]], ids=str)
def test_column_names_of_any_type_come_back(columns):
    frame = wide(pd.date_range("2021", periods=20, freq="h")).set_axis(columns, axis=1)
    out = forecast(frame)
    pd.testing.assert_index_equal(out.columns, frame.columns, exact="equiv")
    np.testing.assert_allclose(out.iloc[0], frame.iloc[-1], rtol=1e-6)


def test_flags_counts_and_nullable_numbers_are_values():
    n = 20
    frame = pd.DataFrame(
        {
            "flag": np.arange(n) % 2 == 1,
            "count": np.arange(n, dtype="int8"),
            "unsigned": np.arange(n, dtype="uint64"),
            "half": np.arange(n, dtype="float32"),
            "nullable": pd.array(range(n), dtype="Int64"),
            "maybe": pd.array(np.arange(n) % 2 == 1, dtype="boolean"),
        }
    )
    out = forecast(frame, horizon=1)
    assert out.iloc[0].tolist() == pytest.approx([1, 19, 19, 19, 19, 1])
    polar = pl.DataFrame({c: frame[c].to_numpy() for c in frame})
    assert forecast(polar, horizon=1).row(0) == pytest.approx((1, 19, 19, 19, 19, 1))


# polars and arrays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("step", ["1h", "1d", "1w", "1mo"])
def test_polars_stamps_continue(unit, zone, step):
    day, kind = datetime(2021, 3, 1), {"time_unit": unit, "time_zone": zone}
    whole = pl.datetime_range(day, datetime(2024, 12, 1), step, eager=True, **kind)[:40].alias("when")
    frame = pl.DataFrame({"when": whole, "a": np.arange(40.0), "b": np.arange(40.0)})
    for n_rows in (20, 27, 35):  # daily rows before, at and after the clock change
        out = forecast(frame[:n_rows])
        assert out.schema == frame.schema
        assert out["when"].to_list() == whole[n_rows : n_rows + 5].to_list()


def test_polars_dates_continue():
    whole = pl.date_range(date(2021, 2, 1), date(2021, 3, 20), "1d", eager=True)
    frame = pl.DataFrame({"when": whole, "a": np.arange(len(whole)) * 1.0})
    out = forecast(frame[:-5])
    assert out.schema == frame.schema
    assert out["when"].to_list() == whole[-5:].to_list()
    assert pl.concat([frame[:-5], out]).shape == frame.shape


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Int32, pl.UInt16, pl.UInt8])
def test_polars_numbers_continue_with_their_type(dtype):
    frame = pl.DataFrame({"n": pl.Series(range(100, 160, 2), dtype=dtype), "a": np.arange(30.0)})
    out = forecast(frame, time_col="n")
    assert out.schema == frame.schema
    assert out["n"].to_list() == [160, 162, 164, 166, 168]


def test_polars_without_times_and_arrays():
    out = forecast(pl.DataFrame({"a": np.arange(20.0), "b": np.ones(20)}))
    assert out.schema == {"a": pl.Float64, "b": pl.Float64}
    assert out.shape == (5, 2)
    array = forecast(np.arange(40).reshape(20, 2))
    assert type(array) is np.ndarray
    np.testing.assert_allclose(array, [[38, 39]] * 5)
    with pytest.raises(ValueError, match=r"\(rows, variates\), got shape \(20,\)"):
        forecast(np.arange(20.0))


def test_predict_answers_in_the_library_of_its_argument(waves, polar_waves):
    from_pandas = NaiveForecaster(horizon=4, lookback=8).fit(waves)
    from_polars = NaiveForecaster(horizon=4, lookback=8).fit(polar_waves)
    assert isinstance(from_pandas.predict(polar_waves), pl.DataFrame)
    pd.testing.assert_frame_equal(from_polars.predict(waves), from_pandas.predict(), check_freq=False)
    assert from_pandas.predict(polar_waves).equals(from_polars.predict())
    moved = waves.tz_localize("Asia/Tokyo")
    assert str(from_pandas.predict(moved).index.tz) == "Asia/Tokyo"


# Reading and writing alone --------------------------------------------------------------------------------------------


def test_rows_are_sorted_by_time_and_columns_by_the_layout(waves):
    values, times, layout = read(waves)
    shuffled = waves.sample(frac=1, random_state=1)[["c", "b", "a"]]
    again, same_times, _ = read(shuffled, layout)
    np.testing.assert_array_equal(again, values)
    assert same_times.equals(times)
    assert layout.columns == ("a", "b", "c")
    assert values.dtype == np.float64


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), zone=st.sampled_from([None, *ZONES]), minutes=st.sampled_from([1, 15, 60, 1440]))
def test_reading_what_was_written_gives_the_same_back(seed, zone, minutes):
    rng = np.random.default_rng(seed)
    start = datetime(2020, 1, 1) + timedelta(days=int(rng.integers(2000)))
    times = pd.date_range(start, periods=12, freq=f"{minutes}min", tz=zone, unit="us")
    columns = {"x": rng.normal(size=12), "y": rng.normal(size=12)}
    naive = times if zone is None else times.tz_convert("UTC").tz_localize(None)
    polar = pl.DataFrame({"when": naive.to_numpy(), **columns})
    if zone is not None:
        polar = polar.with_columns(pl.col("when").dt.replace_time_zone("UTC").dt.convert_time_zone(zone))
    indexed = pd.DataFrame(columns, index=times.rename("when"))
    for frame in (indexed, indexed.reset_index(), polar):
        values, found, layout = read(frame)
        np.testing.assert_array_equal(values, np.column_stack([columns["x"], columns["y"]]))
        assert (found == times).all()
        again = write_frame(dict(zip("xy", values.T, strict=True)), found, FrameLayout.from_dict(layout.as_dict()))
        assert type(again) is type(frame)
        assert again.equals(frame)


def test_rows_that_the_frequency_asks_for_are_put_in_as_missing(waves):
    values, times, _ = read(waves.drop(waves.index[[3, 4, 90]]).assign(b=pd.array([1, None] * 98 + [1], dtype="Int64")))
    assert times.equals(waves.index)
    assert np.flatnonzero(np.isnan(values).all(1)).tolist() == [3, 4, 90]
    assert np.isnan(values[:, 1]).sum() == 98 + 3
    assert not np.isnan(np.delete(values[:, [0, 2]], [3, 4, 90], 0)).any()


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize(
    "order", [["unique_id", "ds", "y"], ["y", "ds", "unique_id"], ["ds", "unique_id", "y"]], ids=str
)
def test_long_frames_come_apart_by_id_and_together_again(library, order):
    rows = {
        "north": pd.date_range("2021", periods=9, freq="h"),
        "a": pd.date_range("2020-12-31 22:00", periods=5, freq="h"),
    }
    parts = [pd.DataFrame({"unique_id": name, "ds": times}) for name, times in rows.items()]
    whole = pd.concat(parts, ignore_index=True).assign(y=np.arange(14.0))[order]
    mixed = whole.sample(frac=1, random_state=2).reset_index(drop=True)
    frame = mixed if library == "pandas" else pl.DataFrame({c: mixed[c].to_numpy() for c in order})
    series, layout = read_frame(frame, Roles())
    assert {s.id for s in series} == set(rows)
    assert [s.id for s in series] == list(mixed["unique_id"].unique())
    assert layout.columns == ("y",)
    for s in series:
        assert (s.times == rows[s.id]).all()
        np.testing.assert_array_equal(s.values[:, 0], whole.loc[whole["unique_id"] == s.id, "y"])
    times = series[0].times.append(series[1].times)
    ids = np.repeat(np.array([s.id for s in series]), [len(s) for s in series])
    y = np.concatenate([s.values[:, 0] for s in series])
    again = write_frame({"y": y}, times, FrameLayout.from_dict(layout.as_dict()), ids)
    assert type(again) is type(frame)
    assert list(again.columns) == order
    found = pd.DataFrame({c: again[c].to_numpy() for c in order})
    expected = mixed.set_index(["unique_id", "ds"])["y"]
    assert dict(zip(zip(found["unique_id"], found["ds"], strict=True), found["y"], strict=True)) == expected.to_dict()

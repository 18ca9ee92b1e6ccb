"""The time axis: which grid times lie on, gaps or not, what follows them, and the calendar."""

from datetime import date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq.forecasting.covariates import calendar_features
from ssmseq.forecasting.times import as_times, even_step, future_times, kind_of, regular_grid

FREQUENCIES = ["h", "15min", "2h", "D", "B", "W-SUN", "W-WED", "MS", "ME", "2MS", "QS", "QE", "YS"]
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]


def plain(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Return the same stamps without the frequency that pandas keeps with them."""
    return pd.DatetimeIndex(times.tolist())


# Even times -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    freq=st.sampled_from(FREQUENCIES),
    start=st.datetimes(datetime(1950, 1, 1), datetime(2090, 1, 1)),
    n_rows=st.integers(8, 60),
    horizon=st.integers(1, 30),
    zone=st.sampled_from([None, "UTC", "Asia/Kolkata"]),
    whole_days=st.booleans(),
)
def test_future_times_continue_the_index(freq, start, n_rows, horizon, zone, whole_days):
    start = start.replace(microsecond=0)
    if whole_days:
        start = start.replace(hour=0, minute=0, second=0)
    whole = pd.date_range(start, periods=n_rows + horizon, freq=freq, tz=zone)
    times = plain(whole[:n_rows])
    grid, places, found = regular_grid(times)
    assert grid.equals(times)
    assert places is None
    assert (future_times(times, found, horizon) == whole[n_rows:]).all()
    part = plain(whole[n_rows - 2 :])
    grid, places, again = regular_grid(part, found)
    assert (grid.equals(part), places, again) == (True, None, found)


@settings(deadline=None, max_examples=100)
@given(
    freq=st.sampled_from(["h", "15min", "D", "W-SUN", "MS"]),
    day=st.dates(date(2015, 1, 1), date(2030, 1, 1)),
    n_rows=st.integers(8, 60),
    zone=st.sampled_from(ZONES),
)
def test_future_times_keep_the_wall_clock_through_clock_changes(freq, day, n_rows, zone):
    whole = pd.date_range(pd.Timestamp(day), periods=n_rows + 40, freq=freq, tz=zone)
    times = plain(whole[:n_rows])
    grid, places, found = regular_grid(times)
    assert (grid.equals(times), places) == (True, None)
    assert (future_times(times, found, 40) == whole[n_rows:]).all()
    later = plain(whole[n_rows:])
    assert regular_grid(later, found)[0].equals(later)


# Gaps -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    freq=st.sampled_from(FREQUENCIES),
    day=st.dates(date(2015, 1, 1), date(2030, 1, 1)),
    n_rows=st.integers(20, 80),
    zone=st.sampled_from([None, *ZONES]),
    seed=st.integers(0, 2**31),
    given_freq=st.booleans(),
)
def test_times_with_gaps_find_their_places_in_the_grid(freq, day, n_rows, zone, seed, given_freq):
    whole = pd.date_range(pd.Timestamp(day), periods=n_rows + 10, freq=freq, tz=zone)
    rng = np.random.default_rng(seed)
    n_gaps = int(rng.integers(1, n_rows // (2 if given_freq else 6)))
    kept = np.sort(np.r_[0, n_rows - 1, rng.permutation(np.arange(1, n_rows - 1))[n_gaps:]])
    times = plain(whole[kept])
    grid, places, found = regular_grid(times, freq if given_freq else None)
    assert grid.equals(plain(whole[:n_rows]))
    assert places.tolist() == kept.tolist()
    assert (future_times(times, found, 10) == whole[n_rows:]).all()


@pytest.mark.parametrize("freq", ["h", "D", "M", "2M", "Q", "W-SUN", "Y"])
def test_periods_with_gaps_find_their_places(freq):
    whole = pd.period_range("2020-01-05", periods=40, freq=freq)
    kept = np.delete(np.arange(35), [4, 5, 30])
    for wanted in (None, freq):
        grid, places, found = regular_grid(whole[kept], wanted)
        assert grid.equals(whole[:35])
        assert places.tolist() == kept.tolist()
        assert future_times(grid, found, 5).equals(whole[35:])


@pytest.mark.parametrize("step", [1, 3, 10])
def test_numbers_with_gaps_find_their_places(step):
    numbers = pd.Index(np.arange(7, 7 + 20 * step, step))
    kept = np.delete(np.arange(20), [1, 11, 12])
    for freq in (None, step):
        grid, places, found = regular_grid(numbers[kept], freq)
        assert (grid.tolist(), places.tolist(), found) == (numbers.tolist(), kept.tolist(), step)


def test_a_finer_frequency_may_be_given_but_none_that_rows_do_not_lie_on():
    times = pd.date_range("2021", periods=5, freq="2h")
    grid, places, freq = regular_grid(times, "h")
    assert (len(grid), places.tolist(), freq) == (9, [0, 2, 4, 6, 8], "h")
    assert even_step(places) == 2
    assert even_step(np.array([0, 2, 3])) == even_step(np.array([0, 5])) == even_step(np.array([4])) == 1
    with pytest.raises(ValueError, match=r"after 2021-01-01 00:00:00 comes 2021-01-01 02:00:00.*frequency '3h'"):
        regular_grid(times, "3h")
    with pytest.raises(ValueError, match="2021-01-02 00:00:00 does not fit the frequency 'MS'"):
        regular_grid(pd.DatetimeIndex(["2021-01-02"]), "MS")


NUMBERS, STAMPS = pd.RangeIndex(4), pd.date_range("2021", periods=4)
PERIODS = pd.period_range("2021", periods=4, freq="M")
IMPOSSIBLE = [
    (NUMBERS, "h", "the rows are numbered, so freq must be a whole number of at least 1, got 'h'"),
    (NUMBERS, 0, "at least 1, got 0"),
    (NUMBERS, 1.0, r"at least 1, got 1\.0"),
    (STAMPS, 1, "freq=1 is not the distance of stamps"),
    (STAMPS, "fortnight", "freq='fortnight' is not the distance of stamps"),
    (STAMPS, "-1D", "freq='-1D' is not the distance of stamps: freq must be positive"),
    (PERIODS, 2, "freq=2 is not the distance of periods"),
    (PERIODS, "MS", "freq='MS' is not the distance of periods"),
    (PERIODS, "D", "the rows are periods of 'M', but the frequency is 'D'"),
]


@pytest.mark.parametrize(("times", "freq", "words"), IMPOSSIBLE)
def test_frequencies_that_times_cannot_have_are_refused(times, freq, words):
    with pytest.raises(ValueError, match=words):
        regular_grid(times, freq)


def hours(odd: str) -> list[str]:
    return [f"2021-01-01 {h:02}:00" for h in range(3)] + [odd] + [f"2021-01-01 {h:02}:00" for h in range(4, 8)]


def days(odd: str) -> list[str]:
    return [f"2021-01-0{d}" for d in range(1, 4)] + [odd] + [f"2021-01-0{d}" for d in range(5, 9)]


IRREGULAR = {
    "jitter": (hours("2021-01-01 03:01"), "2021-01-01 02:00:00.* comes 2021-01-01 03:01.* a step of 0 days 01:00"),
    "days and an hour": (days("2021-01-04 01:00"), "2021-01-03 00:00:00.* comes 2021-01-04 01:00.* a step of 1 days"),
    "far apart": ([*hours("2021-01-01 03:00"), "2021-03-01"], "2021-01-01 07:00:00.* comes 2021-03-01"),
    "days far apart": ([*days("2021-01-04"), "2022-01-03"], "2021-01-08 00:00:00.* comes 2022-01-03"),
}


@pytest.mark.parametrize("name", IRREGULAR)
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_irregular_times_are_refused_with_the_first_odd_one_and_the_remedies(name, zone):
    stamps, words = IRREGULAR[name]
    with pytest.raises(ValueError, match=f"not evenly spaced: after {words}.*parameter freq.*resample"):
        regular_grid(pd.DatetimeIndex(stamps).tz_localize(zone))


def test_irregular_numbers_and_periods_are_refused():
    with pytest.raises(ValueError, match="after 4 comes 5, which does not fit a step of 2"):
        regular_grid(pd.Index([0, 2, 4, 5, 7]))
    with pytest.raises(ValueError, match="after 2 comes 90, which does not fit a step of 1"):
        regular_grid(pd.Index([0, 1, 2, 90]))
    assert len(regular_grid(pd.Index([0, 1, 2, 90]), 1)[0]) == 91
    with pytest.raises(ValueError, match="after 2020-03 comes 2025-01"):
        regular_grid(pd.PeriodIndex(["2020-01", "2020-02", "2020-03", "2025-01"], freq="M"))


@pytest.mark.parametrize("freq", [None, "h"])
def test_duplicates_are_refused_whether_or_not_the_frequency_is_known(freq):
    times = pd.DatetimeIndex(["2021-01-01 00:00", "2021-01-01 01:00", "2021-01-01 01:00", "2021-01-01 03:00"])
    with pytest.raises(ValueError, match="the time 2021-01-01 01:00:00 stands in 2 rows; keep one row"):
        regular_grid(times, freq)


def test_one_row_has_no_step():
    with pytest.raises(ValueError, match="one row is too few to find the time step.*parameter freq"):
        regular_grid(pd.DatetimeIndex(["2021-01-01"]))
    grid, places, _ = regular_grid(pd.DatetimeIndex(["2021-01-01"]), "D")
    assert (len(grid), places) == (1, None)


def test_kinds_of_times():
    assert kind_of(as_times(pd.Index(["2021-01-01", "2021-01-02"]), "the index")) == "stamps"
    assert kind_of(as_times(pd.period_range("2021", periods=3, freq="M"), "the index")) == "periods"
    assert kind_of(as_times(pd.Index([3, 4], dtype="uint8"), "the index")) == "numbers"
    for odd in (pd.Index([0.5, 1.5]), pd.Index(["north", "south"]), pd.MultiIndex.from_tuples([(1, 2)])):
        with pytest.raises(ValueError, match="column 't' holds no time stamps or whole numbers"):
            as_times(odd, "column 't'")
    with pytest.raises(ValueError, match="column 't' has no time in row 1"):
        as_times(pd.DatetimeIndex(["2021-01-01", None]), "column 't'")


# Calendar -------------------------------------------------------------------------------------------------------------


def test_calendar_features_are_the_published_formulas():
    start = datetime(2020, 1, 1)
    stamps = [start + timedelta(minutes=20 * i) for i in range(2 * 366 * 72)]
    formulas = {
        "minute": lambda t: t.minute / 59 - 0.5,
        "hour": lambda t: t.hour / 23 - 0.5,
        "day_of_week": lambda t: t.weekday() / 6 - 0.5,
        "day_of_month": lambda t: (t.day - 1) / 30 - 0.5,
        "day_of_year": lambda t: (t.timetuple().tm_yday - 1) / 365 - 0.5,
        "month": lambda t: (t.month - 1) / 11 - 0.5,
    }
    expected = np.column_stack([[formula(t) for t in stamps] for formula in formulas.values()])
    for times in (
        pd.DatetimeIndex(stamps),
        pd.PeriodIndex(stamps, freq="min"),
        pd.DatetimeIndex(stamps, tz="Asia/Tokyo"),
    ):
        np.testing.assert_allclose(calendar_features(times, tuple(formulas)), expected, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(
            calendar_features(times, ("month", "hour")), calendar_features(times, tuple(formulas))[:, [5, 1]]
        )
    assert np.min(expected, 0).tolist() == [-0.5] * 6
    assert np.max(expected, 0)[1:].tolist() == [0.5] * 5


@pytest.mark.parametrize(
    ("option", "uses"),
    [(True, True), ("auto", True), (["hour"], True), (["month"], False), ([], False), (False, False)],
)
def test_calendar_counts_when_asked_for(small, waves, option, uses):
    est = small(time_features=option).fit(waves)
    later = waves.set_axis(waves.index + pd.Timedelta("12h"))
    assert (est.predict(later).to_numpy() == est.predict(waves).to_numpy()).all() != uses


@pytest.mark.parametrize("option", [True, ["hour"]])
def test_numbered_rows_have_no_calendar(small, waves, no_training, option):
    with pytest.raises(ValueError, match=r"time_features=.*needs time stamps.*DatetimeIndex"):
        small(time_features=option).fit(waves.to_numpy())


def test_numbered_rows_train_without_calendar(small, waves):
    auto, without, none = (small(time_features=option).fit(waves.to_numpy()) for option in ("auto", False, []))
    np.testing.assert_array_equal(auto.predict(), without.predict())
    np.testing.assert_array_equal(none.predict(), without.predict())


def test_days_of_24_hours_pass_a_clock_change():
    times = pd.date_range("2024-10-20", periods=14, freq="24h", tz="UTC").tz_convert("Europe/Berlin")
    grid, places, freq = regular_grid(times)
    assert places is None
    assert grid.equals(times)
    assert future_times(times, freq, 3).equals(times[-1] + pd.timedelta_range("24h", periods=3, freq="24h"))

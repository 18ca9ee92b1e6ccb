"""The data of the benchmark: frames with their splits, what else is known of them, and how many windows they hold."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WEATHER_RATE = "10min"
EXCHANGE_START = "1990-01-01"  # of the copy that the literature uses; the stamps are days in a row, weekends too
M4_HORIZON = 48


@dataclass
class BenchmarkData:
    """One data set, cut into parts that do not overlap.

    Parameters
    ----------
    name : str
    train, validation : DataFrame
        Wide, or long with the columns unique_id, ds and y. A long one may have no validation part: estimators then hold
        out the end of each series.
    test : DataFrame
        The rows to forecast.
    season : int
        Rows of the season that the seasonal naive forecast repeats.
    targets, covariates : list of str
        Columns to forecast, and those known in advance. Without covariates, all columns are targets.
    """

    name: str
    train: "pd.DataFrame"
    validation: "pd.DataFrame | None"
    test: "pd.DataFrame"
    season: int
    targets: list[str] = field(default_factory=list)
    covariates: list[str] = field(default_factory=list)

    @property
    def is_long(self) -> bool:
        """Whether several series stand beneath each other."""
        return "unique_id" in self.train.columns

    def with_history(self, part: "pd.DataFrame", lookback: int) -> "pd.DataFrame":
        """Return the rows of a part after the `lookback` rows that precede its first."""
        import pandas as pd

        if self.is_long:
            whole = pd.concat([self.train, part], ignore_index=True)
            n_rows: Any = part.groupby("unique_id")["ds"].size() + lookback
            back = whole.groupby("unique_id").cumcount(ascending=False)
            return whole.loc[back < whole["unique_id"].map(n_rows)]
        before = [self.train] if part is self.validation else [self.train, self.validation]
        return pd.concat([*before, part]).iloc[-len(part) - lookback :]

    def n_windows(self, horizon: int) -> int:
        """Return how many windows the test part holds: rows - horizon + 1 for each series."""
        lengths = self.test.groupby("unique_id").size() if self.is_long else [len(self.test)]
        return int(sum(n - horizon + 1 for n in lengths))


def load(name: str, spec: dict[str, Any] | None = None, *, folder: str = "", download: bool = True) -> BenchmarkData:
    """Load a data set by its name, or as a suite describes it.

    Parameters
    ----------
    name : str
    spec : dict, optional
        Of a user's table: "csv" (a path), and optionally "splits" (three shares that sum to 1, or three numbers of
        rows), "time_col", "season", "targets" and "covariates". Of a generated one: "generator" and its arguments.
    folder : str
        What a relative path of a table counts from.
    download : bool
        Whether what is not here is downloaded.

    Raises
    ------
    DatasetNotFoundError
        If a registered data set is not here and was not, or could not be, downloaded.
    ValueError
        If the name is unknown or the description is wrong.
    """
    spec = spec or {}
    if "csv" in spec:
        return _from_csv(name, spec, Path(folder))
    if "generator" in spec:
        return _generated(name, spec)
    if name not in LOADERS:
        raise ValueError(f"data set {name!r} is unknown: it is none of {', '.join(LOADERS)}, and names no csv")
    return LOADERS[name](download)


def _wide(name: str, frame: "pd.DataFrame", ends: tuple[int, int, int], **rest) -> BenchmarkData:
    if "season" not in rest:
        from ssmseq.forecasting.covariates import season_length

        rest["season"] = season_length(frame.index)
    first, second, third = ends
    return BenchmarkData(name, frame.iloc[:first], frame.iloc[first:second], frame.iloc[second:third], **rest)


def _fetched(name: str, bunch, frame=None, *, added: int = 0, **rest) -> BenchmarkData:
    """Cut a fetched data set; `added` rows were put into its training part."""
    ends = tuple(bunch.splits[part][1] + added for part in ("train", "validation", "test"))
    return _wide(name, bunch.frame if frame is None else frame, ends, **rest)


def _weather(download: bool) -> BenchmarkData:
    """Return Weather on even stamps: in training one doubled row is dropped and nine missing ones are interpolated."""
    from ssmseq.datasets import fetch_weather

    bunch = fetch_weather(download_if_missing=download)
    frame = bunch.frame[~bunch.frame.index.duplicated()].asfreq(WEATHER_RATE).interpolate()
    return _fetched("weather", bunch, frame, added=len(frame) - len(bunch.frame))


def _exchange_rate(download: bool) -> BenchmarkData:
    import pandas as pd

    from ssmseq.datasets import fetch_exchange_rate

    bunch = fetch_exchange_rate(download_if_missing=download)
    dates = pd.date_range(EXCHANGE_START, periods=len(bunch.frame), freq="D", name="date")
    return _fetched("exchange_rate", bunch, bunch.frame.set_index(dates), season=5)


def _registered(name: str, *, season: int | None = None) -> Callable[[bool], BenchmarkData]:
    def read(download: bool) -> BenchmarkData:
        from ssmseq.datasets import fetch_dataset

        bunch = fetch_dataset(name, download_if_missing=download)
        return _fetched(name, bunch, **({} if season is None else {"season": season}))

    return read


def _epf(market: str) -> Callable[[bool], BenchmarkData]:
    def read(download: bool) -> BenchmarkData:
        from ssmseq.datasets import fetch_dataset

        bunch = fetch_dataset(f"EPF_{market}", download_if_missing=download)
        known = [c for c in bunch.frame.columns if c != "OT"]
        return _fetched(f"EPF_{market}", bunch, targets=["OT"], covariates=known)

    return read


def _m4_hourly(download: bool) -> BenchmarkData:
    """Return M4 hourly; its rows are numbered, so hours of an invented day stand for them and carry the season."""
    import pandas as pd

    from ssmseq.datasets import fetch_m4_hourly

    bunch = fetch_m4_hourly(download_if_missing=download)
    train, test = (
        part.assign(ds=pd.Timestamp("2000-01-01") + pd.to_timedelta(part["ds"], unit="h"))
        for part in (bunch.train, bunch.test)
    )
    return BenchmarkData("M4_hourly", train, None, test, 24)


def _generated(name: str, spec: dict) -> BenchmarkData:
    from ssmseq import datasets

    arguments = {k: v for k, v in spec.items() if k in ("n_rows", "n_variates", "forcing", "dt", "shuffle", "noise")}
    make = getattr(datasets, f"make_{spec['generator']}", None)
    if make is None:
        raise ValueError(f"{name}: there is no generator {spec['generator']!r}")
    frame = make(**arguments)
    return _wide(name, frame, _ends(name, spec.get("splits", [0.7, 0.1, 0.2]), len(frame)), season=1)


def _from_csv(name: str, spec: dict, folder: Path) -> BenchmarkData:
    import pandas as pd

    path = folder / spec["csv"]
    if not path.is_file():
        raise ValueError(f"{name}: there is no file {path}; a relative path counts from the folder of the suite")
    frame = pd.read_csv(path)
    time_col = spec.get("time_col", frame.columns[0])
    if time_col not in frame.columns:
        raise ValueError(f"{name}: {path.name} has no column {time_col!r}; it has {', '.join(frame.columns)}")
    frame = frame.set_index(pd.DatetimeIndex(pd.to_datetime(frame[time_col]), name=time_col)).drop(columns=time_col)
    known = list(spec.get("covariates", []))
    rest = {"season": spec["season"]} if "season" in spec else {}
    targets = list(spec.get("targets", [c for c in frame.columns if c not in known] if known else []))
    absent = [c for c in (*targets, *known) if c not in frame.columns]
    if absent:
        raise ValueError(f"{name}: {path.name} has no column {', '.join(map(repr, absent))}")
    ends = _ends(name, spec.get("splits", [0.7, 0.1, 0.2]), len(frame))
    return _wide(name, frame, ends, targets=targets, covariates=known, **rest)


def _ends(name: str, splits, n_rows: int) -> tuple[int, int, int]:
    """Return the first rows after train, validation and test, as the literature cuts shares."""
    if len(splits) != 3 or not all(x > 0 for x in splits):
        raise ValueError(f"{name}: splits must be three positive shares or three numbers of rows, got {splits}")
    if all(isinstance(x, int) for x in splits):
        ends = splits[0], splits[0] + splits[1], sum(splits)
        if ends[2] > n_rows:
            raise ValueError(f"{name}: splits={splits} ask for {ends[2]} rows, the data have {n_rows}")
        return ends
    if abs(sum(splits) - 1) > 1e-9:
        raise ValueError(f"{name}: splits={splits} are shares that sum to {sum(splits):g}, not to 1")
    return int(splits[0] * n_rows), n_rows - int(splits[2] * n_rows), n_rows


LOADERS: dict[str, Callable[[bool], BenchmarkData]] = {
    **{name: _registered(name) for name in ("ETTh1", "ETTh2", "ETTm1", "ETTm2")},
    "weather": _weather,
    "exchange_rate": _exchange_rate,
    **{name: _registered(name) for name in ("national_illness", "electricity", "traffic")},
    "solar": _registered("solar", season=144),
    **{name: _registered(name, season=288) for name in ("PEMS03", "PEMS04", "PEMS07", "PEMS08")},
    "EPF_NP": _epf("NP"),
    "EPF_PJM": _epf("PJM"),
    "M4_hourly": _m4_hourly,
}

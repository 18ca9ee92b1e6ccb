"""The task of a forecaster: the last rows of a frame are held out, and forecast window by window."""

from typing import Any

import pandas as pd

from ssmseq.forecasting import scoring
from ssmseq.forecasting.baselines import NaiveForecaster, RidgeForecaster
from ssmseq.forecasting.frames import FrameLayout, Roles, Series, read_frame
from ssmseq.forecasting.preparing import split_rows
from ssmseq.tuning.tasks import Task, check_held_out, digest


class ForecastTask(Task):
    """A frame of series, of which the last `validation_fraction` is forecast window by window."""

    metrics = {"mse": "minimize", "mae": "minimize"}  # noqa: RUF012

    def __init__(self, estimator_type: type, fixed: dict[str, Any], metric: str | None, frame):
        super().__init__(estimator_type, fixed, metric)
        self.frame, template = frame, self.build(fixed)
        check_held_out(template)
        if template.quantiles is not None and self.metric == "mse":
            raise ValueError("a model of quantiles forecasts the median: choose the metric mae in place of mse")
        self.fraction, self.template = template.validation_fraction, template
        self.series, self.layout = read_frame(frame, Roles.of(template))
        self.checksum = digest(_series_parts(self.series, self.layout))

    def fit(self, estimator) -> None:
        """Fit; the estimator itself holds out the same last rows in every trial."""
        estimator.fit(self.frame)

    def fit_all(self, estimator):
        """Fit on all rows."""
        return estimator.fit(self.frame)

    def measure(self, estimator) -> float:
        """Return the error of all validation windows on the scale of the training rows."""
        return self._error(estimator, self.series, self.layout)

    def baselines(self) -> dict[str, float]:
        """Return the errors of ridge regression, and of repeating the last row and the last season."""
        roles = {name: getattr(self.template, name) for name in ("time_col", "id_col", "target", "freq", "scaler")}
        if self.layout.past_covariates or self.layout.future_covariates or self.layout.levels:
            roles["target"] = list(self.layout.columns)
        horizon = self.template.horizon
        lookback = self.template.lookback if isinstance(self.template.lookback, int) else max(self.template.lookback)
        ridge = RidgeForecaster(horizon=horizon, lookback=lookback, validation_fraction=self.fraction, **roles)
        found = {"ridge": self._of_baseline(ridge)}
        for name, season in {
            "last value": 1,
            "seasonal naive": season_of(self.series[0].times, self.layout.freq),
        }.items():
            if name == "last value" or season > 1:
                naive = NaiveForecaster(horizon=horizon, lookback=season, season_length=season, **roles)
                found[name] = self._of_baseline(naive)
        return found

    def _of_baseline(self, estimator) -> float:
        series, layout = read_frame(self.frame, Roles.of(estimator))
        training = series
        if estimator.validation_fraction == 0:  # it would see the validation rows
            training, _ = split_rows(series, layout, self.fraction, estimator.lookback, estimator.horizon)
        return self._error(estimator._fit_series(training, layout), series, layout)

    def _error(self, estimator, series: list[Series], layout: FrameLayout) -> float:
        _, held = split_rows(series, layout, self.fraction, estimator.lookback_, estimator.horizon_)
        windows = estimator.preparation_.windows(held)
        total, count = 0.0, 0
        for _, point, truth, _, _ in scoring.forecasts(estimator, windows, range(len(windows))):
            errors = (point - truth)[~truth.isnan()]
            total += float((errors.square() if self.metric == "mse" else errors.abs()).sum())
            count += errors.numel()
        return total / count


def season_of(times: pd.Index, freq=None) -> int:
    """Return the rows of a day, a week or a year, whichever is the shortest that has several; 1 if that is unknown."""
    if isinstance(times, pd.PeriodIndex):
        times = times.to_timestamp()
    if not isinstance(times, pd.DatetimeIndex) or len(times) < 2:
        return 1
    if str(freq) == "B":
        return 5
    days = pd.Series(times).diff().median() / pd.Timedelta("1D")  # type: ignore[operator]
    if days <= 0.5:
        return round(1 / days)
    return next((season for most, season in ((1, 7), (7, 52), (31, 12), (92, 4)) if days <= most), 1)


def _series_parts(series, layout) -> list:
    names = [*map(str, (*layout.columns, *layout.past_covariates, *layout.future_covariates)), str(layout.levels)]
    for s in series:
        names += [str(s.id), str(s.times[0]), str(s.times[-1]), s.values, s.static]
    return names

"""The way of a forecast: frame in, windows, network, frame out. Every forecaster shares it."""

from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ssmseq.base import SequenceEstimator, check_choice, check_number, draw_seed
from ssmseq.forecasting import scoring, serving, state
from ssmseq.forecasting.covariates import CALENDAR, fitting_features, future_rows
from ssmseq.forecasting.frames import FrameLayout, Roles, Series, read_frame, write_frame
from ssmseq.forecasting.intervals import check_levels
from ssmseq.forecasting.preparing import Preparation, check_length, check_observed, continued, split_rows, unobserved
from ssmseq.forecasting.scaling import Scaler
from ssmseq.forecasting.times import future_times
from ssmseq.forecasting.tokens import InputSizes
from ssmseq.forecasting.windows import Windows
from ssmseq.nn.losses import LOSSES, loss_of, quantiles_of, validation_loss_of

SCALERS = ("standard", "none")


class BaseForecaster(SequenceEstimator):
    """Base of the forecasters. Subclasses give `_build_network`, or replace `_fit_model` and `_forecast`."""

    horizon: int
    lookback: Any
    scaler: str
    validation_fraction: float
    time_features: Any = False
    quantiles: Any = None
    random_state: Any = None
    loss: Any
    fredf_weight: Any
    warm_start: bool = False
    window_dtype: Any = np.float32  # of the scaled values that the model is given
    _fits_other_variates = True  # whether a fitted model has nothing of its own for each variate

    def fit(self, df, y=None, *, validation=None) -> Self:
        """Fit on a frame.

        Parameters
        ----------
        df : pandas.DataFrame, polars.DataFrame or array (rows, variates)
            Wide: one row per time step, one numeric column per variate. Long: several series beneath each other, with
            a column of ids (`id_col`; a frame with the columns unique_id, ds and y counts as long without it); the
            series may differ in length, and one model is fitted to all of them. Times come from `time_col`, else from
            the index, else from the only temporal column; without any, rows count as evenly spaced. Unsorted rows are
            sorted. Rows that the frequency asks for and NaN count as missing: they are filled by interpolation within
            a look-back, marked for the network, and left out of the loss.
        y : None
            Ignored; scikit-learn passes it.
        validation : frame like `df`, optional
            Used for early stopping, to choose between candidates and to calibrate intervals, instead of the last
            `validation_fraction` of the rows. If its times follow directly on those of `df`, its first windows look
            back into `df`; otherwise only windows within it count.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a parameter out of range, or a frame that is not numeric, finite, regular in time, observed and long
            enough; the message names the parameter or column and the remedy.

        Warns
        -----
        UserWarning
            If interrupted from the keyboard; the estimator is then fitted with the best weights so far.
        """
        self._check_parameters()
        series, layout = read_frame(df, Roles.of(self))
        return self._fit_series(series, layout, validation)

    def predict(self, df=None, *, future=None, level=(), quantiles: bool = False, other_columns: bool = False):
        """Forecast the `horizon` rows that follow.

        Parameters
        ----------
        df : frame like that of `fit`, optional
            History to forecast from, at least `lookback` rows with the same columns and frequency; of a long frame any
            series, also new and shorter ones. Default: the end of the training frame.
        future : frame, optional
            The covariates known in advance, with the times (and ids) of the rows to forecast.
        level : list of int
            Percentages of prediction intervals, such as ``[80, 95]``, calibrated on the validation windows. Each adds
            the columns "NAME-lo-80" and "NAME-hi-80".
        quantiles : bool
            Add the quantiles that the network was trained for, as columns "NAME-q0.1".
        other_columns : bool
            Forecast other variates than those of `fit`, scaled by this history.

        Returns
        -------
        frame
            `horizon` rows, of a long frame for each series, in the original units, with the library, columns, time type
            and frequency of `df`. A variate without any observed value in its look-back is forecast as NaN.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If columns or frequency differ from those of `fit`, rows are too few, a covariate is missing, or there are
            no validation windows to take intervals from.
        """
        self._check_fitted_sizes()
        levels = check_levels(level)
        if df is None:
            series, layout = self.tail_, self.layout_
        else:
            series, layout = self._read(df, other_columns=other_columns)
        for s in series:
            if len(s) < self.lookback_ and not layout.is_long:
                raise ValueError(
                    f"predict needs lookback={self.lookback_} rows of history, the frame has {len(s)}; give more rows"
                )
        times = [future_times(s.times, layout.freq, self.horizon_) for s in series]
        if layout.future_covariates:
            known: list[Any] = future_rows(future, layout, list(zip([s.id for s in series], times, strict=True)))
        elif future is not None:
            raise ValueError("future= was given, but this model was fitted without future_covariates")
        else:
            known = [None] * len(series)
        found = self._forecast_series(series, known, layout.columns, levels)
        names = self._output_names(layout.columns, levels, quantiles=quantiles)
        columns = {name: found[:, v, :, i].ravel() for name, v, i in names}
        whole = times[0] if len(times) == 1 else times[0].append(times[1:])
        ids = np.repeat(np.array([s.id for s in series]), self.horizon_) if layout.is_long else None
        return write_frame(columns, whole, layout, ids)

    def evaluate(self, df, *, scaled: bool = True, level=(), other_columns: bool = False) -> dict[str, float]:
        """Forecast every window of a frame, one row apart, and measure the errors.

        The first `lookback` rows serve as history only. No window is dropped but those with nothing observed in
        look-back or horizon; missing values are not scored.

        Parameters
        ----------
        df : frame like that of `fit`
            At least ``lookback + horizon`` rows.
        scaled : bool
            Measure "mse", "mae", "crps" and widths on the scale of the fitted scaler, as published benchmarks do, or in
            the original units.
        level : list of int
            Percentages of prediction intervals to measure.
        other_columns : bool
            As in `predict`.

        Returns
        -------
        dict
            "mse" and "mae" (means over windows, steps and variates); "wape" (sum of absolute errors by sum of absolute
            values) and "mase" (mean absolute error of each variate by that of its seasonal naive forecast of one step
            in the training rows, averaged over variates), both of original units; "n_windows"; for quantile networks
            "crps", twice the mean quantile loss; for each level "coverage_80" (share of values inside) and "width_80".

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            As in `predict`.
        """
        self._check_fitted_sizes()
        return scoring.evaluate(self, df, scaled=scaled, levels=check_levels(level), other_columns=other_columns)

    def score(self, df, y=None) -> float:
        """Return minus the mean squared error of `evaluate`, on the scaled values: the larger the better."""
        return -self.evaluate(df)["mse"]

    def backtest(self, df, *, n_windows: int = 1, step: int | None = None, refit=False, level=(), recalibrate=None):
        """Forecast the last windows of a frame, each from the rows before its cutoff.

        Parameters
        ----------
        df : frame like that of `fit`
        n_windows : int
            Cutoffs, the last of them `horizon` rows before the end.
        step : int, optional
            Rows from one cutoff to the next; `horizon` by default.
        refit : bool or int
            Fit a clone on the rows before each cutoff, or before every so many; otherwise this fitted model forecasts
            all of them.
        level : list of int
            Percentages of prediction intervals.
        recalibrate : int, optional
            Every so many rows, take the intervals from the errors at the rows of `df` that are known by then (up to
            1,400 of the latest) in place of the validation windows, as a user would who keeps observing, and ask for a
            larger or smaller share where fewer or more rows than `level` lay in those so far (Gibbs and Candès 2021).

        Returns
        -------
        frame
            Of the library of `df`, one row per series or variate, cutoff and time: unique_id, ds, cutoff (the last
            time that the forecast knew), y, and the forecast under the name of the estimator's class, with "-lo-80" and
            "-hi-80". ``utilsforecast.evaluation.evaluate`` takes it as it is.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If the frame has too few rows for so many windows; and as in `predict`.
        """
        self._check_fitted_sizes()
        return scoring.backtest(
            self, df, n_windows=n_windows, step=step, refit=refit, levels=check_levels(level), recalibrate=recalibrate
        )

    def _build_network(self, sizes: InputSizes) -> torch.nn.Module:
        raise TypeError(f"{type(self).__name__} has no network")

    def _check_parameters(self) -> None:
        check_number("horizon", self.horizon, minimum=1, integer=True)
        for lookback in self._lookbacks():
            check_number("lookback", lookback, minimum=1, integer=True)
        check_number("validation_fraction", self.validation_fraction, minimum=0, below=1)
        check_choice("scaler", self.scaler, SCALERS)
        check_choice("warm_start", self.warm_start, (True, False))
        if isinstance(self.time_features, str) or not np.iterable(self.time_features):
            check_choice("time_features", self.time_features, (True, False, "auto"))
        else:
            for name in self.time_features:
                check_choice("time_features", name, tuple(CALENDAR))
        if hasattr(self, "loss"):
            check_choice("loss", self.loss, tuple(LOSSES))
            check_number("fredf_weight", self.fredf_weight, minimum=0, maximum=1)
        quantiles_of(self)

    def _lookbacks(self) -> tuple:
        """Return the look-backs that `fit` may choose from; the windows that it makes have the longest."""
        return (self.lookback,)

    def _fit_model(self, train: Windows, valid: Windows | None, sizes: InputSizes) -> int:
        """Fit on scaled windows and return the look-back that `_forecast` is to be given."""
        from ssmseq.checkpoints import resumable_seed
        from ssmseq.training import fit_network

        losses = {"train_loss": loss_of(self, masked=train.has_gaps)}
        losses["valid_loss"] = validation_loss_of(self, masked=valid is not None and valid.has_gaps)
        seed = resumable_seed(self, draw_seed(self.random_state))
        with torch.random.fork_rng():  # also of every CUDA device, so that the caller's generators stay as they are
            torch.manual_seed(seed)
            network = self._build_network(sizes).float()  # whatever torch's default dtype is
            if self.warm_start and hasattr(self, "network_"):
                _take_over(network, self.network_)
            history = fit_network(network, self, train, valid, losses, seed)
        self.network_, self.history_, self.n_iter_ = network, history, len(history)
        return self.lookback

    def _forecast(self, inputs: dict[str, Tensor]) -> Tensor:
        """Map scaled inputs to scaled forecasts (B, V, H), or (B, V, H, Q) of quantiles."""
        device = self._device()
        network = self.network_.to(device)
        dtype = next(network.parameters()).dtype
        with torch.inference_mode():
            return network(**{name: x.to(device, dtype) for name, x in inputs.items()})

    def _point(self, forecast: Tensor) -> Tensor:
        """Return the point forecast (B, V, H): the median of quantiles."""
        return forecast if self.quantiles is None else forecast[..., list(self.quantiles).index(0.5)]

    def _check_fitted_sizes(self) -> None:
        check_is_fitted(self)
        sizes = (("horizon", (self.horizon,), self.horizon_), ("lookback", self._lookbacks(), self.lookback_))
        for name, allowed, fitted in sizes:
            if fitted not in allowed:
                raise ValueError(f"{name} was set to {getattr(self, name)} after fit, which saw {fitted}; fit again")

    def _device(self) -> torch.device:
        accelerator = getattr(self, "accelerator", "cpu")
        gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def _read(self, df, *, other_columns: bool = False) -> tuple[list[Series], FrameLayout]:
        if other_columns and not self._fits_other_variates:
            raise ValueError(
                f"{self!r} learned numbers of its own for each variate of fit, so it cannot forecast others"
            )
        return read_frame(df, Roles.of(self), self.layout_, other_columns=other_columns)

    def _calendar_names(self, series: list[Series], layout: FrameLayout) -> tuple[str, ...]:
        wanted = self.time_features
        if isinstance(wanted, str | bool | np.bool):
            if wanted == "auto" or wanted is False or layout.time_kind != "numbers":
                names = fitting_features(max(series, key=len).times) if layout.time_kind != "numbers" else ()
                return names if wanted else ()
        elif layout.time_kind != "numbers" or not len(wanted):
            return tuple(wanted)
        raise ValueError(
            f"time_features={wanted!r} needs time stamps, but the rows are numbered: give the frame a DatetimeIndex or "
            "a time_col, or set time_features='auto' or False"
        )

    def _fit_series(self, series: list[Series], layout: FrameLayout, validation=None) -> Self:
        calendar = self._calendar_names(series, layout)
        lookback = max(self._lookbacks())
        size = (lookback, self.horizon)
        if validation is None:
            training, held_out = split_rows(series, layout, self.validation_fraction, *size)
        else:
            found, _ = read_frame(validation, Roles.of(self), layout)
            training, held_out = series, [continued(s, series, layout, lookback) for s in found]
            check_length("validation frame, with the history before it,", held_out, held_out, layout, *size)
        check_length("training part", training, series, layout, *size)
        check_observed(training, layout)
        scaler = Scaler.fit(training, layout, self.scaler)
        prepared = Preparation(layout, scaler, calendar, lookback, self.horizon, self.window_dtype)
        train = prepared.windows(training)
        valid = None if held_out is None else prepared.windows(held_out)
        for windows, part in ((train, "training"), (valid, "validation")):
            if windows is not None and not len(windows):
                raise ValueError(
                    f"the {part} part has no window of lookback={lookback} + horizon={self.horizon} rows with an "
                    "observed value in both: give more rows, or shorten lookback or horizon"
                )
        lookback = int(self._fit_model(train, valid, self._input_sizes(prepared, has_gaps=train.has_gaps)))
        prepared = replace(prepared, lookback=lookback)
        self.preparation_, self.layout_, self.calendar_ = prepared, layout, calendar
        self.mean_, self.scale_ = (x if layout.is_long else x[0] for x in (scaler.mean, scaler.scale))
        self.tail_ = [s.tail(lookback) for s in series]
        self.horizon_, self.lookback_, self.has_gaps_ = int(self.horizon), lookback, train.has_gaps
        self._set_feature_names()
        self.interval_bounds_ = None if held_out is None else scoring.calibrate(self, prepared.windows(held_out))
        return self

    def _input_sizes(self, prepared: Preparation, *, has_gaps: bool) -> InputSizes:
        layout = prepared.layout
        return InputSizes(
            n_variates=len(layout.columns),
            lookback=prepared.lookback,
            horizon=prepared.horizon,
            n_past=len(layout.past_covariates) + len(prepared.calendar),
            n_future=len(layout.future_covariates),
            n_static=len(prepared.scaler.static_mean),
            has_gaps=has_gaps,
            n_quantiles=1 if self.quantiles is None else len(self.quantiles),
        )

    def _forecast_series(self, series: list[Series], known: list, columns: tuple, levels: tuple) -> np.ndarray:
        """Return what follows each series in its own units, (series, V, H, outputs) in the order of `_output_names`."""
        size = (self.lookback_ + self.horizon_) * series[0].values.shape[1]
        at_once = max(1, scoring.BATCH_VALUES // size)
        blocks = []
        for i in range(0, len(series), at_once):
            some = series[i : i + at_once]
            inputs = self.preparation_.last_inputs(some, known[i : i + at_once], columns)
            forecast = self._forecast(inputs).cpu().double()
            lookback = inputs["past"][:, : len(columns)]
            halves = scoring.half_widths(self.interval_bounds_, lookback, levels, len(columns))
            outputs = scoring.outputs(self, forecast, halves).numpy()
            found = [self.preparation_.scaler.of(s, columns) for s in some]
            mean, scale, _ = (np.stack(x) for x in zip(*found, strict=True))
            outputs = outputs * scale[..., None, None] + mean[..., None, None]
            outputs[unobserved(some, len(columns), self.lookback_)] = np.nan
            blocks.append(outputs)
        return np.concatenate(blocks)

    def _output_names(self, columns: tuple, levels: tuple, *, quantiles: bool) -> list[tuple[Any, int, int]]:
        """Return name, variate and number of each output to show."""
        if quantiles and self.quantiles is None:
            raise ValueError("quantiles=True needs a model fitted with quantiles, such as quantiles=[0.1, 0.5, 0.9]")
        endings = ["", *(f"-{side}-{p}" for p in levels for side in ("lo", "hi"))]
        if quantiles:
            endings += [f"-q{q:g}" for q in self.quantiles]
        return [(f"{c}{end}" if end else c, v, i) for v, c in enumerate(columns) for i, end in enumerate(endings)]

    def _set_feature_names(self) -> None:
        columns = self.layout_.columns
        self.n_features_in_ = len(columns)
        if all(isinstance(c, str) for c in columns):
            self.feature_names_in_ = np.array(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _serving_graph(self):
        return serving.serving_graph(self)

    def _export_state(self) -> tuple[dict, dict[str, Tensor]]:
        self._check_fitted_sizes()
        return state.export_state(self)

    def _import_state(self, stored: dict, tensors: dict[str, Tensor]) -> None:
        state.import_state(self, stored, tensors)
        self._check_fitted_sizes()


def _take_over(network: torch.nn.Module, earlier: torch.nn.Module) -> None:
    try:
        network.load_state_dict(earlier.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"warm_start=True cannot go on from the network of the last fit: {error}; set it to False to start afresh"
        ) from error

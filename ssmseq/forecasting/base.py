"""The way of a forecast: frame in, windows, network, frame out. Every forecaster shares it."""

from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ssmseq.base import SequenceEstimator, check_choice, check_number
from ssmseq.forecasting.frames import FrameLayout, future_times, read_frame, write_frame
from ssmseq.forecasting.windows import CALENDAR, Windows, calendar_features

SCALERS = ("standard", "none")
PREDICT_BATCH = 256  # windows forecast at a time; bounds the memory of `evaluate`


class BaseForecaster(SequenceEstimator):
    """Base of the forecasters. Subclasses give `_build_network`, or replace `_fit_model` and `_forecast`."""

    horizon: int
    lookback: Any
    time_col: Any
    scaler: str
    validation_fraction: float
    time_features: bool | str = False
    random_state: Any = None
    window_dtype: Any = np.float32  # of the scaled values that the model is given

    def fit(self, df, y=None, *, validation=None) -> Self:
        """Fit on a wide frame: one row per time step, one numeric column per variate.

        Parameters
        ----------
        df : pandas.DataFrame, polars.DataFrame or array (rows, variates)
            Times come from `time_col`, else from the index, else from the only temporal column; without any, rows count
            as evenly spaced. Unsorted rows are sorted.
        y : None
            Ignored; scikit-learn passes it.
        validation : frame like `df`, optional
            Used for early stopping, or to choose between candidates, instead of the last `validation_fraction` of the
            rows. If its times follow directly on those of `df`, its first windows look back into `df`; otherwise only
            windows within it count.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a parameter out of range, or a frame that is not numeric, finite, regular in time and long enough; the
            message names the parameter or column and the remedy.

        Warns
        -----
        UserWarning
            If interrupted from the keyboard; the estimator is then fitted with the best weights so far.
        """
        self._check_parameters()
        values, times, layout = read_frame(df, self.time_col)
        use_calendar = self._uses_calendar(layout)
        lookback = max(self._lookbacks())
        n_train, valid_values, valid_times = self._split(values, times, layout, validation, lookback)
        self._check_length("training part", n_train, len(values), lookback)
        mean, scale = self._fit_scaler(values[:n_train])

        def windows(rows, at) -> Windows:
            scaled = (rows - mean) / scale
            inputs = np.column_stack([scaled, calendar_features(at)]) if use_calendar else scaled
            return self._windows(inputs, rows.shape[1], lookback)

        train = windows(values[:n_train], times[:n_train])
        valid = None if valid_values is None else windows(valid_values, valid_times)
        lookback = self._fit_model(train, valid, values.shape[1], len(CALENDAR) if use_calendar else 0)
        self.layout_, self.mean_, self.scale_, self.calendar_ = layout, mean, scale, use_calendar
        # Copies: a view would keep the whole training frame alive.
        self.tail_ = pd.DataFrame(values[-lookback:].copy(), index=times[-lookback:].copy(deep=True))
        self.horizon_, self.lookback_ = int(self.horizon), int(lookback)
        self._set_feature_names()
        return self

    def predict(self, df=None):
        """Forecast the `horizon` rows that follow.

        Parameters
        ----------
        df : frame like that of `fit`, optional
            History to forecast from, at least `lookback` rows with the same columns and frequency. Default: the end of
            the training frame.

        Returns
        -------
        frame
            `horizon` rows in the original units, with the library, columns, time type and frequency of `df`.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If columns or frequency differ from those of `fit`, or rows are too few.
        """
        self._check_fitted_sizes()
        if df is None:
            values, times, layout = self.tail_.to_numpy(), self.tail_.index, self.layout_
        else:
            values, times, layout = read_frame(df, self.time_col, self.layout_)
        lookback = self.lookback_
        if len(values) < lookback:
            raise ValueError(
                f"predict needs lookback={lookback} rows of history, the frame has {len(values)}; give more rows"
            )
        forecast = self._forecast_rows(values[-lookback:], times[-lookback:])
        return write_frame(forecast, future_times(times, self.layout_.freq, self.horizon), layout)

    def evaluate(self, df, *, scaled: bool = True) -> dict[str, float]:
        """Forecast every window of a frame, one row apart, and measure the errors.

        The first `lookback` rows serve as history only. No window is dropped.

        Parameters
        ----------
        df : frame like that of `fit`
            At least ``lookback + horizon`` rows.
        scaled : bool
            Measure on the scale of the fitted scaler, as published benchmarks do, or in the original units.

        Returns
        -------
        dict
            "mse", "mae" (means over windows, steps and variates) and "n_windows".

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            As in `predict`.
        """
        self._check_fitted_sizes()
        values, times, _ = read_frame(df, self.time_col, self.layout_)
        self._check_length("frame", len(values), len(values), self.lookback_)
        windows = self._windows(self._inputs(values, times), values.shape[1], self.lookback_)
        unit = 1.0 if scaled else torch.from_numpy(self.scale_)[:, None]
        squared = absolute = 0.0
        for start in range(0, len(windows), PREDICT_BATCH):
            batch = windows.view[start : start + PREDICT_BATCH]
            inputs, targets = batch[..., : self.lookback_], batch[:, : windows.n_targets, self.lookback_ :]
            error = self._forecast(inputs).cpu() - targets
            error = error.double() * unit
            squared += error.square().sum().item()
            absolute += error.abs().sum().item()
        count = len(windows) * self.horizon * windows.n_targets
        return {"mse": squared / count, "mae": absolute / count, "n_windows": len(windows)}

    def score(self, df, y=None) -> float:
        """Return minus the mean squared error of `evaluate`, on the scaled values: the larger the better."""
        return -self.evaluate(df)["mse"]

    # What subclasses give or replace ----------------------------------------------------------------------------------

    def _build_network(self, n_variates: int, n_covariates: int) -> torch.nn.Module:
        raise TypeError(f"{type(self).__name__} has no network")

    def _check_parameters(self) -> None:
        check_number("horizon", self.horizon, minimum=1, integer=True)
        for lookback in self._lookbacks():
            check_number("lookback", lookback, minimum=1, integer=True)
        check_number("validation_fraction", self.validation_fraction, minimum=0, below=1)
        check_choice("scaler", self.scaler, SCALERS)
        check_choice("time_features", self.time_features, (True, False, "auto"))

    def _lookbacks(self) -> tuple:
        """Return the look-backs that `fit` may choose from; the windows that it makes have the longest."""
        return (self.lookback,)

    def _fit_model(self, train: Windows, valid: Windows | None, n_variates: int, n_covariates: int) -> int:
        """Fit on scaled windows and return the look-back that `_forecast` is to be given."""
        from ssmseq.training import fit_network

        seed = draw_seed(self.random_state)
        with torch.random.fork_rng():  # also of every CUDA device, so that the caller's generators stay as they are
            torch.manual_seed(seed)
            network = self._build_network(n_variates, n_covariates).float()  # whatever torch's default dtype is
            history = fit_network(network, self, train, valid, seed)
        self.network_, self.history_, self.n_iter_ = network, history, len(history)
        return self.lookback

    def _forecast(self, inputs: Tensor) -> Tensor:
        """Map scaled inputs (B, V + K, L) to scaled forecasts (B, V, H)."""
        device = self._device()
        network = self.network_.to(device)
        with torch.inference_mode():
            return network(inputs.to(device, next(network.parameters()).dtype))

    def _forecast_rows(self, values: np.ndarray, times: pd.Index) -> np.ndarray:
        """Map `lookback` rows (L, V) to the rows that follow (H, V), both in the original units."""
        inputs = torch.from_numpy(self._inputs(values, times)).T.unsqueeze(0)
        return self._forecast(inputs)[0].double().T.cpu().numpy() * self.scale_ + self.mean_

    # Private ----------------------------------------------------------------------------------------------------------

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

    def _uses_calendar(self, layout: FrameLayout) -> bool:
        if self.time_features is True and layout.time_kind == "numbers":
            raise ValueError(
                "time_features=True needs time stamps, but the rows are numbered: give the frame a DatetimeIndex or a "
                "time_col, or set time_features='auto' or False"
            )
        return bool(self.time_features) and layout.time_kind != "numbers"

    def _windows(self, inputs: np.ndarray, n_targets: int, lookback: int) -> Windows:
        size = {"n_targets": n_targets, "lookback": lookback, "horizon": self.horizon}
        return Windows(inputs, **size, dtype=self.window_dtype)

    def _split(self, values, times, layout: FrameLayout, validation, lookback: int):
        """Return the number of training rows, and the validation rows with their history, or None twice."""
        if validation is not None:
            found, found_times, _ = read_frame(validation, self.time_col, layout)
            if future_times(times, layout.freq, 1)[0] == found_times[0]:
                found = np.concatenate([values[-lookback:], found])
                found_times = times[-lookback:].append(found_times)
            self._check_length("validation frame, with the history before it,", len(found), len(found), lookback)
            return len(values), found, found_times
        if self.validation_fraction == 0:
            return len(values), None, None
        n_valid = round(len(values) * self.validation_fraction)
        start = len(values) - n_valid - lookback
        if n_valid < self.horizon or start < 0:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {len(values)} rows leaves {n_valid} rows to "
                f"validate on and {len(values) - n_valid} before them; horizon={self.horizon} and lookback="
                f"{lookback} need at least as many: give more rows, change validation_fraction (0 trains on all "
                "rows without early stopping), or shorten horizon or lookback"
            )
        return len(values) - n_valid, values[start:], times[start:]

    def _check_length(self, what: str, n_rows: int, n_given: int, lookback: int) -> None:
        need = lookback + self.horizon
        if n_rows < need:
            raise ValueError(
                f"the {what} has {n_rows} rows"
                + (f" (of {n_given}; the rest is for validation)" if n_given != n_rows else "")
                + f", but lookback={lookback} + horizon={self.horizon} need at least {need}: give more rows, or "
                "shorten lookback or horizon"
            )

    def _fit_scaler(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.scaler == "none":
            return np.zeros(values.shape[1]), np.ones(values.shape[1])
        fitted = StandardScaler().fit(values)  # a constant column gets scale 1
        return np.asarray(fitted.mean_), np.asarray(fitted.scale_)

    def _inputs(self, values: np.ndarray, times: pd.Index) -> np.ndarray:
        scaled = (values - self.mean_) / self.scale_
        return np.column_stack([scaled, calendar_features(times)]) if self.calendar_ else scaled  # type: ignore[arg-type]

    def _set_feature_names(self) -> None:
        columns = self.layout_.columns
        self.n_features_in_ = len(columns)
        if all(isinstance(c, str) for c in columns):
            self.feature_names_in_ = np.array(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _export_state(self) -> tuple[dict, dict[str, Tensor]]:
        history = getattr(self, "history_", None)
        self._check_fitted_sizes()
        for label in (*self.layout_.columns, self.layout_.time_name):
            if not isinstance(label, str | int | float | None):
                raise TypeError(f"the column {label!r} cannot be written to JSON; rename it to text or a number")
        state = {
            "layout": self.layout_.as_dict(),
            "tail_times": _times_as_dict(self.tail_.index),
            "calendar": self.calendar_,
            "horizon": self.horizon_,
            "history": None if history is None else history.astype(object).where(history.notna(), None).to_dict("list"),
        }
        arrays = {"mean": self.mean_, "scale": self.scale_, "tail": self.tail_.to_numpy()}
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
        if hasattr(self, "network_"):
            tensors |= {f"network.{k}": v.cpu() for k, v in self.network_.state_dict().items()}
        return state, tensors

    def _import_state(self, state: dict, tensors: dict[str, Tensor]) -> None:
        self.layout_, self.calendar_ = FrameLayout.from_dict(state["layout"]), state["calendar"]
        self.horizon_ = state["horizon"]
        self.mean_, self.scale_ = tensors["mean"].numpy(), tensors["scale"].numpy()
        self.tail_ = pd.DataFrame(tensors["tail"].numpy(), index=_times_from_dict(state["tail_times"]))
        self.lookback_ = len(self.tail_)
        n_columns = len(self.layout_.columns)
        if not n_columns == len(self.mean_) == len(self.scale_) == self.tail_.shape[1]:
            raise ValueError(f"{n_columns} columns are described, but the scaler has {len(self.mean_)}")
        self._set_feature_names()
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        if weights:
            with torch.random.fork_rng():
                network = self._build_network(n_columns, len(CALENDAR) if self.calendar_ else 0)
            network.to(next(iter(weights.values())).dtype).load_state_dict(weights)
            self.network_ = network.eval()
        if state["history"] is not None:
            losses = [c for c in state["history"] if c != "epoch"]
            self.history_ = pd.DataFrame(state["history"]).astype(dict.fromkeys(losses, float))
            self.n_iter_ = len(self.history_)


def draw_seed(random_state) -> int:
    """Return a seed from an int, a numpy generator, or fresh entropy; numpy's global generator is left alone."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    try:
        return int(np.random.default_rng(random_state).integers(2**31))
    except (ValueError, TypeError) as error:
        message = f"random_state must be a non-negative integer, a numpy generator or None, got {random_state!r}"
        raise ValueError(message) from error


def _times_as_dict(times: pd.Index) -> dict[str, Any]:
    if isinstance(times, pd.DatetimeIndex):
        zone = None if times.tz is None else str(times.tz)
        try:
            pd.DatetimeIndex([], tz=zone)
        except Exception as error:
            raise TypeError(f"the time zone {times.tz!r} has no name to save; convert the times to one") from error
        return {"kind": "stamps", "values": times.asi8.tolist(), "unit": times.unit, "tz": zone}
    if isinstance(times, pd.PeriodIndex):
        return {"kind": "periods", "values": times.asi8.tolist(), "freq": times.freqstr}
    return {"kind": "numbers", "values": [int(t) for t in times]}


def _times_from_dict(fields: dict[str, Any]) -> pd.Index:
    values = np.array(fields["values"], dtype=np.int64)
    if fields["kind"] == "stamps":
        stamps = pd.DatetimeIndex(values.view(f"datetime64[{fields['unit']}]"))
        return stamps.tz_localize("UTC").tz_convert(fields["tz"]) if fields["tz"] else stamps
    if fields["kind"] == "periods":
        return pd.PeriodIndex.from_ordinals(values, freq=fields["freq"])
    return pd.Index(values)

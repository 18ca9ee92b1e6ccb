"""Peers: forecasters of neuralforecast and statsforecast behind one interface, imported only when they are asked for.

The peers run as their packages ship them; nothing of them is written again here. What the adapters add is the protocol
that every model of the benchmark is held to, where a package has another:

- values are standardised by the training part, and no row of the test part is seen before it is forecast;
- networks are trained on complete windows only (neuralforecast also takes windows that run out of their series), are
  validated once per epoch on the validation part, and keep the weights of the best epoch (there, the last);
- every window is forecast, one row after the other, and none is dropped.

TimesNet finds its periods in the mean spectrum of a batch, so that a forecast would depend on the windows beside it,
later ones too; it therefore forecasts one window of one variate at a time.

References
----------
Olivares et al., "NeuralForecast", and Garza et al., "StatsForecast", both 2022: https://github.com/Nixtla
"""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from packaging.version import Version
from sklearn.preprocessing import StandardScaler

from ssmseq.base import check_choice, check_number, draw_seed

BATCH_VALUES = 2**21  # values of the windows forecast at a time
FLOORS = {"neuralforecast": "3.3", "statsforecast": "2.0.1"}  # the oldest versions that the adapters were tested with
NETWORKS = ("iTransformer", "PatchTST", "TimesNet", "TimeMixer", "DLinear", "xLSTM")
LOCAL = {"SeasonalNaive": "none", "AutoETS": "likelihood", "AutoTheta": "one-step mse", "AutoARIMA": "likelihood"}
PEERS = (*NETWORKS, *LOCAL)
TRAINING = {"learning_rate": 1e-4, "batch_size": 32, "max_epochs": 10, "patience": 3, "lr_schedule": "halve"}
SCHEDULES = {  # of the epoch, counted from 0
    "halve": lambda epoch: 0.5 ** max(epoch - 1, 0),
    "decay": lambda epoch: 0.9 ** max(epoch - 2, 0),
    "constant": lambda epoch: 1.0,
}
# Each paper's own choice for ETTh1 at horizon 96; what a script does not name, and TRAINING above, are the defaults of
# the code base that the script belongs to.
SETTINGS: dict[str, dict[str, Any]] = {
    # arXiv 2310.06625; thuml/iTransformer, scripts/multivariate_forecasting/ETT/iTransformer_ETTh1.sh (look-back 96)
    "iTransformer": {"hidden_size": 256, "d_ff": 256, "e_layers": 2, "n_heads": 8, "dropout": 0.1},
    # arXiv 2211.14730; yuqinie98/PatchTST, PatchTST_supervised/scripts/PatchTST/etth1.sh (look-back 336)
    # whose 100 epochs, of which the best counts, are cut short here after ten without a better one
    "PatchTST": {"encoder_layers": 3, "n_heads": 4, "hidden_size": 16, "linear_hidden_size": 128, "dropout": 0.3}
    | {"fc_dropout": 0.3, "patch_len": 16, "stride": 8, "batch_normalization": True, "revin_subtract_last": False}
    | {"batch_size": 128, "max_epochs": 100, "patience": 10, "lr_schedule": "decay"},
    # arXiv 2210.02186; thuml/Time-Series-Library, scripts/long_term_forecast/ETT_script/TimesNet_ETTh1.sh (96)
    "TimesNet": {"hidden_size": 16, "conv_hidden_size": 32, "encoder_layers": 2, "top_k": 5, "num_kernels": 6},
    # arXiv 2405.14616; thuml/Time-Series-Library, scripts/long_term_forecast/ETT_script/TimeMixer_ETTh1.sh (96)
    "TimeMixer": {"d_model": 16, "d_ff": 32, "e_layers": 2, "down_sampling_layers": 3, "down_sampling_window": 2}
    | {"down_sampling_method": "avg", "channel_independence": 1}
    | {"learning_rate": 0.01, "batch_size": 128, "patience": 10},
    # arXiv 2205.13504; cure-lab/LTSF-Linear, scripts/EXP-LongForecasting/Linear/etth1.sh (look-back 336)
    "DLinear": {"moving_avg_window": 25, "learning_rate": 0.005},
    # arXiv 2405.04517 has no long horizons: the sizes and the rate are neuralforecast's defaults
    "xLSTM": {"encoder_n_blocks": 2, "encoder_hidden_size": 128, "decoder_hidden_size": 128, "learning_rate": 1e-3},
}


def available(name: str) -> str | None:
    """Return None if a peer can be imported, else what is missing and how to get it; ValueError if not in `PEERS`."""
    check_choice("name", name, PEERS)
    package = "neuralforecast" if name in NETWORKS else "statsforecast"
    for needed in (package, *(["xlstm"] if name == "xLSTM" else [])):
        if find_spec(needed) is None:
            return f"{name} needs {needed}, which is not installed: pip install 'ssmseq[peers]'"
    found = metadata.version(package)
    if Version(found) < Version(FLOORS[package]):
        return f"{name} needs {package}>={FLOORS[package]}, but {found} is installed: pip install 'ssmseq[peers]'"
    return None


class Adapter:
    """A peer with the interface of the benchmark; the name decides which.

    Parameters
    ----------
    name : str
        One of `PEERS`: networks of neuralforecast, and local models of statsforecast, which are fitted to each variate.
    horizon, lookback : int
        Rows.
    random_state : int, numpy generator or None
        Repeats the training of a network; the global generators stay as they are.
    **params
        Of a network: `learning_rate`, `batch_size` (windows of all variates), `max_epochs`, `patience` (epochs, or
        None), `lr_schedule` ("halve", "decay" or "constant"), `accelerator` ("auto", "cpu", "gpu"), and any argument of
        the model in neuralforecast; the defaults are those of `SETTINGS`. Of a local model: `season_length` (rows),
        `fit_rows` (how many rows at the end of the training part it is fitted on; 1,000 by default), and any argument
        of the model in statsforecast.

    Attributes
    ----------
    lookback_ : int
    n_parameters_ : int or None
        Trained weights of a network; None for local models.
    n_iter_ : int or None
        Epochs run by a network; None for local models.
    loss : str
        What the peer is fitted by.
    device_ : str
        "cpu" or "cuda": where a network was trained.
    model_ : object
        The fitted model of the package, or a list of them, one per variate.

    Raises
    ------
    ValueError
        For an unknown name, here, or parameter, in `fit`.
    """

    loss: str
    device_ = "cpu"
    n_parameters_: int | None = None
    n_iter_: int | None = None
    _fit: Callable[..., None]  # of the scaled rows of the training and the validation part, each (T, V)
    _forecast: Callable[..., np.ndarray]  # of scaled rows (B + L + H - 1, V), for each of their windows: (B, V, H)

    def __new__(cls, name: str, *args, **params):
        """Return an adapter of the package that the peer is from."""
        check_choice("name", name, PEERS)
        kind: Any = _Network if name in NETWORKS else _Local
        return super().__new__(kind)

    def __init__(self, name: str, horizon: int, lookback: int, random_state=None, **params):
        check_number("horizon", horizon, minimum=1, integer=True)
        check_number("lookback", lookback, minimum=1, integer=True)
        self.name, self.horizon, self.lookback, self.random_state = name, int(horizon), int(lookback), random_state

    def fit(self, train: pd.DataFrame, validation: pd.DataFrame) -> Self:
        """Fit on the training part; networks stop early by the validation part, which follows it.

        Parameters
        ----------
        train, validation : DataFrame
            Wide, with the same numeric columns.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If the package is not installed; the message says what to install.
        ValueError
            If a frame is long, too short, or has missing values, which the peers do not take.
        """
        reason = available(self.name)
        if reason is not None:
            raise ImportError(reason)
        self.columns_ = list(train.columns)
        values = self._values(train, "training")
        self._check_length(values, "training", self.lookback + self.horizon)
        self._check_length(validation, "validation", self.horizon)
        scaler = StandardScaler().fit(values)  # a constant column gets scale 1
        self._mean, self._scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
        self._fit(self._scaled(values), self._scaled(self._values(validation, "validation")))
        self.lookback_ = self.lookback
        return self

    def forecasts(self, frame: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Forecast every window of a frame, one row apart and in order.

        Parameters
        ----------
        frame : DataFrame
            Like those of `fit`; it begins `lookback` rows before the first row to forecast.

        Returns
        -------
        iterator of (forecast, truth)
            Arrays (B, V, H), batch by batch, standardised by the training part. There are rows - lookback - horizon + 1
            windows in all.

        Raises
        ------
        ValueError
            If the frame is too short, or its columns are not those of `fit`.
        """
        values = self._scaled(self._values(frame, "given"))
        self._check_length(values, "given", self.lookback + self.horizon)
        return self._batches(values)

    def _check_length(self, rows, part: str, needed: int) -> None:
        if len(rows) < needed:
            sizes = f"lookback={self.lookback} and horizon={self.horizon}"
            raise ValueError(
                f"the {part} frame has {len(rows)} rows, {sizes} need {needed}: give more, or shorten them"
            )

    def _batches(self, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        size = self.lookback + self.horizon
        n_windows = len(values) - size + 1
        at_once = max(1, BATCH_VALUES // (values.shape[1] * size))
        for start in range(0, n_windows, at_once):
            rows = values[start : min(start + at_once, n_windows) + size - 1]
            yield self._forecast(rows), sliding_window_view(rows[self.lookback :], self.horizon, axis=0)

    def _values(self, frame: pd.DataFrame, part: str) -> np.ndarray:
        if "unique_id" in frame.columns:
            raise ValueError(f"the {part} frame is long, fit takes wide ones; statsforecast's have panel_forecast")
        if list(frame.columns) != self.columns_:
            raise ValueError(f"the {part} frame has the columns {list(frame.columns)}, fit saw {self.columns_}")
        values = frame.to_numpy(dtype=np.float64)
        for column, found in zip(self.columns_, values.T, strict=True):
            if not np.isfinite(found).all():
                raise ValueError(f"column {column!r} of the {part} frame has a missing or infinite value; fill it")
        return values

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return (values - self._mean) / self._scale


class _Network(Adapter):
    """A network of neuralforecast."""

    loss = "mse"

    def __init__(self, name: str, horizon: int, lookback: int, random_state=None, **params):
        super().__init__(name, horizon, lookback, random_state, **params)
        given = TRAINING | SETTINGS[name] | params
        self.accelerator = given.pop("accelerator", "auto")
        self.learning_rate, self.batch_size, self.max_epochs, self.patience, self.lr_schedule = (
            given.pop(key) for key in TRAINING
        )
        check_choice("lr_schedule", self.lr_schedule, tuple(SCHEDULES))
        for key in ("batch_size", "max_epochs", *([] if self.patience is None else ["patience"])):
            check_number(key, getattr(self, key), minimum=1, integer=True)
        self._model_params = given

    def _fit(self, train: np.ndarray, validation: np.ndarray) -> None:
        kind = getattr(import_module("neuralforecast.models"), self.name)
        best = _Best()
        steps = max(1, (len(train) - self.lookback - self.horizon + 1) // self.batch_size)
        protocol = self._protocol(kind, train.shape[1], steps, best)
        _check_parameters(kind, self._model_params, protocol)
        with _in_private():
            model = kind(**protocol, **self._model_params)
            model.fit(_dataset(np.concatenate([train, validation])), val_size=len(validation))
        model.load_state_dict(best.weights)
        if self.name == "TimesNet":  # validated in batches, as it is trained; see above
            model.inference_windows_batch_size = 1
        self.model_, self.device_, self.n_iter_ = model, best.device, len(model.valid_trajectories)
        self.n_parameters_ = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def _protocol(self, kind, n_variates: int, steps: int, best: "_Best") -> dict[str, Any]:
        from torch.optim.lr_scheduler import LambdaLR

        # neuralforecast counts the windows of each variate of a univariate model by themselves.
        n_windows = self.batch_size * (1 if kind.MULTIVARIATE else n_variates)
        callbacks, rate = import_module("pytorch_lightning.callbacks"), SCHEDULES[self.lr_schedule]
        return {
            "h": self.horizon,
            "input_size": self.lookback,
            **({"n_series": n_variates} if kind.MULTIVARIATE else {}),
            "loss": import_module("neuralforecast.losses.pytorch").MSE(),
            "max_steps": steps * self.max_epochs,
            "val_check_steps": steps,
            "early_stop_patience_steps": self.patience or -1,
            "batch_size": n_variates,
            "windows_batch_size": n_windows,
            "inference_windows_batch_size": n_windows,
            "training_data_availability_threshold": 1.0,
            "learning_rate": self.learning_rate,
            "lr_scheduler": LambdaLR,
            "lr_scheduler_kwargs": {"lr_lambda": lambda step: rate(step // steps)},
            "random_seed": draw_seed(self.random_state),
            "accelerator": self.accelerator,
            "devices": 1,
            "callbacks": [callbacks.LambdaCallback(on_validation_end=best.keep)],
            **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
            "num_sanity_val_steps": 0,
        }

    def _forecast(self, rows: np.ndarray) -> np.ndarray:
        self.model_.set_test_size(len(rows) - self.lookback)
        with _in_private():
            found = self.model_.predict(_dataset(rows), step_size=1)
        return found.reshape(rows.shape[1], -1, self.horizon).swapaxes(0, 1).astype(np.float64)


class _Best:
    """Keeps the weights with the lowest validation loss."""

    def __init__(self):
        self.loss, self.weights, self.device = np.inf, {}, "cpu"

    def keep(self, trainer, model) -> None:
        loss = model.valid_trajectories[-1][1]
        if loss < self.loss or not self.weights:
            self.loss, self.device = loss, model.device.type
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}


class _Local(Adapter):
    """A local model of statsforecast: one per variate, fitted once.

    For each window, the fitted model runs over the look-back with its parameters and initial state unchanged, by its
    own method `forward`. Fitting afresh on every look-back would take AutoARIMA hours on a small data set.
    """

    def __init__(self, name: str, horizon: int, lookback: int, random_state=None, **params):
        super().__init__(name, horizon, lookback, random_state, **params)
        self.loss = LOCAL[name]
        self._model_params = dict(params)
        self.fit_rows = self._model_params.pop("fit_rows", 1000)
        check_number("fit_rows", self.fit_rows, minimum=1, integer=True)
        if "season_length" not in params:
            raise ValueError(f"{name} needs season_length, in rows: 24 for hourly rows with a daily season, 1 for none")

    def _fit(self, train: np.ndarray, validation: np.ndarray) -> None:
        self.model_ = [self._model().fit(y.copy()) for y in train[-self.fit_rows :].T]

    def _forecast(self, rows: np.ndarray) -> np.ndarray:
        windows = sliding_window_view(rows[: -self.horizon], self.lookback, axis=0)  # (B, V, L)
        # SeasonalNaive has nothing to fit, and the method `forward` in the latest versions only.
        run = [m.forecast if self.name == "SeasonalNaive" else m.forward for m in self.model_]
        return np.array([[f(y.copy(), h=self.horizon)["mean"] for f, y in zip(run, w, strict=True)] for w in windows])

    def panel_forecast(self, train: pd.DataFrame, horizon: int, *, freq: Any = None) -> pd.DataFrame:
        """Fit a model to each series of a long frame, and forecast the rows that follow.

        Parameters
        ----------
        train : DataFrame
            Long, with the columns unique_id, ds and y.
        horizon : int
            Rows.
        freq : str or int, optional
            Distance of the rows, inferred by default.

        Returns
        -------
        DataFrame
            unique_id, ds, and the forecasts in a column of the model's name, in original units.

        Raises
        ------
        ImportError
            If statsforecast is not installed.
        ValueError
            If the rows are not evenly spaced.
        """
        reason = available(self.name)
        if reason is not None:
            raise ImportError(reason)
        from ssmseq.forecasting.frames import Roles, read_frame

        rows = train[["unique_id", "ds", "y"]]
        freq = read_frame(rows, Roles(freq=freq))[1].freq
        forecaster = import_module("statsforecast").StatsForecast
        return forecaster(models=[self._model()], freq=freq, n_jobs=1).forecast(df=rows, h=horizon)

    def _model(self):
        kind = getattr(import_module("statsforecast.models"), self.name)
        _check_parameters(kind, self._model_params)
        return kind(**self._model_params)


def _check_parameters(kind, params, decided=()) -> None:
    known = inspect.signature(kind).parameters
    for key in params:
        if key in decided:
            raise ValueError(f"{kind.__name__}: {key} is decided by the protocol of the benchmark; leave it out")
        if key not in known:
            raise ValueError(f"{kind.__name__} has no parameter {key!r} in {kind.__module__}; leave it out")


def _dataset(values: np.ndarray):
    """Return the variates of rows (T, V) as the series of a dataset of neuralforecast, in their order."""
    n_rows, n_variates = values.shape
    ids, times = np.repeat(np.arange(n_variates), n_rows), np.tile(np.arange(n_rows), n_variates)
    frame = pd.DataFrame({"unique_id": ids, "ds": times, "y": values.T.ravel().astype(np.float32)})
    return import_module("neuralforecast.tsdataset").TimeSeriesDataset.from_df(frame)[0]


@contextlib.contextmanager
def _in_private():
    """Keep what neuralforecast says to itself, and the global generators, which it seeds, as they are."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with import_module("pytorch_lightning.utilities.seed").isolate_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

"""RLinear: every variate's look-back through one linear map, between a reversible normalisation and its inverse.

Sources: Li et al., "Revisiting long-term time series forecasting: an investigation on linear mapping", arXiv
2305.10721; Kim et al., "Reversible instance normalization for accurate time-series forecasting against distribution
shift", ICLR 2022.

Differences from the authors' code: no dropout, and no option of one map per variate.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ssmseq.forecasting.base import BaseForecaster
from ssmseq.forecasting.tokens import Head, InputSizes, WindowNorm


class LinearNetwork(nn.Module):
    """Normalise each window and variate, map it, and undo the normalisation."""

    def __init__(self, sizes: InputSizes):
        super().__init__()
        self.window_norm = WindowNorm(sizes.n_variates)
        self.head = Head(sizes.lookback, sizes)

    def forward(self, past: Tensor, missing=None) -> Tensor:
        """Map filled windows (B, V, L) to forecasts (B, V, H) or (B, V, H, Q); where they were filled has no effect."""
        variates, statistics = self.window_norm(past)
        return self.window_norm.inverse(self.head(variates), statistics)


class LinearForecaster(BaseForecaster):
    """One linear map from look-back to horizon, shared by all variates and trained by gradient descent (RLinear).

    Every window of every variate is brought to mean 0 and standard deviation 1, then scaled and shifted by two learned
    numbers of its variate; the forecast goes the same way back (reversible instance normalisation [2]_). With the
    squared error, `RidgeForecaster` solves nearly the same problem without training; this one [1]_ takes other losses.

    Parameters
    ----------
    horizon : int
        Rows to forecast.
    lookback : int
        Rows of history that each forecast sees.
    scaler : {"standard", "none"}
        Standardise each column by its training rows before the network.
    time_col : str, optional
        Column that holds the times; see `fit`.
    id_col : str, optional
        Column that tells the series of a long frame apart. A frame with the columns unique_id, ds and y needs no word.
    target : str or list of str, optional
        Columns to forecast; by default "y" of a long frame, else all that have no other role.
    freq : str or int, optional
        Distance of the rows, as a pandas alias, or as an int for numbered rows; inferred by default.
    quantiles : list of float, optional
        Train for these quantiles with the quantile loss, 0.5 among them, which is the point forecast.
    learning_rate : float
        Initial rate of the optimiser.
    batch_size : int
        Windows per step.
    max_epochs : int
        Passes over the training windows, at most.
    patience : int, optional
        Stop after this many epochs without a lower validation loss; None never stops early.
    validation_fraction : float
        Share of the rows, at the end of the frame, for early stopping and the choice of the best epoch. 0 trains on
        all rows, for `max_epochs`.
    lr_schedule : {"halve", "cosine", "constant", "warmup_cosine"}
        "halve": full rate for two epochs, then half of the previous one. "warmup_cosine": up over a tenth of the
        steps, then down to a tenth of the rate.
    loss : {"mse", "mae", "huber", "fredf"}
        Trained on, of the scaled values: mean squared error, mean absolute error, Huber's with delta 1, or the squared
        error mixed with the distance of the Fourier coefficients [3]_. Validation always uses the squared error.
    fredf_weight : float
        Share of the Fourier coefficients in "fredf", from 0 to 1; the other losses ignore it.

    Other Parameters
    ----------------
    optimizer : {"adam", "adamw"}
        With torch's default betas.
    weight_decay : float
        Of the optimiser.
    warm_start : bool
        Let `fit` go on from the weights of the last fit.
    checkpoint_folder : str, optional
        Folder that the state of the training is written to after every epoch. `fit` goes on from what it finds there,
        and ends as if it had never been interrupted.
    random_state : int, numpy generator or None
        Repeats a run on the same machine; the global generators stay untouched.
    accelerator : str
        As in Lightning: "auto", "cpu", "gpu", ...
    devices : int or str
        As in Lightning. With several, the script runs once per device: see Lightning on strategies.
    strategy : str
        As in Lightning.
    num_nodes : int
        As in Lightning.
    precision : str
        As in Lightning: "32-true", "bf16-mixed", "64-true", ...
    callbacks : list of lightning.pytorch.Callback, optional
        Added to the trainer.
    logger : bool or Lightning logger
        False writes nothing.
    trainer_params : dict, optional
        Further arguments of Lightning's Trainer, such as ``{"gradient_clip_val": 1.0}``.
    num_workers : int
        Processes that load data; 0 is fastest unless the data are huge.
    verbose : int
        0 is silent, 1 shows a progress bar.

    Attributes
    ----------
    network_ : LinearNetwork
    history_ : pandas.DataFrame
        One row per epoch: epoch, train_loss, valid_loss (the mean squared error; of quantiles their loss),
        learning_rate, seconds.
    n_iter_ : int
        Epochs run.
    n_features_in_ : int
    feature_names_in_ : array of str
    mean_, scale_ : array (variates,)
        Of the scaler.

    References
    ----------
    .. [1] Li et al., "Revisiting long-term time series forecasting: an investigation on linear mapping", arXiv
       2305.10721.
    .. [2] Kim et al., "Reversible instance normalization for accurate time-series forecasting against distribution
       shift", ICLR 2022.
    .. [3] Wang et al., "FreDF: Learning to forecast in the frequency domain", arXiv 2402.02399.

    Examples
    --------
    >>> from ssmseq import LinearForecaster
    >>> from ssmseq.datasets import make_transformer_load
    >>> est = LinearForecaster(horizon=24, lookback=48, max_epochs=1, random_state=0)
    >>> est.fit(make_transformer_load(400)).predict().shape
    (24, 7)
    """

    def __init__(
        self,
        *,
        horizon: int = 96,
        lookback: int = 96,
        scaler: Literal["standard", "none"] = "standard",
        time_col: str | None = None,
        id_col: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: str | int | None = None,
        quantiles: Sequence[float] | None = None,
        learning_rate: float = 5e-3,
        batch_size: int = 32,
        max_epochs: int = 10,
        patience: int | None = 3,
        validation_fraction: float = 0.2,
        lr_schedule: Literal["halve", "cosine", "constant", "warmup_cosine"] = "halve",
        loss: Literal["mse", "mae", "huber", "fredf"] = "mse",
        fredf_weight: float = 0.8,
        optimizer: Literal["adam", "adamw"] = "adam",
        weight_decay: float = 0.0,
        warm_start: bool = False,
        checkpoint_folder: str | None = None,
        random_state=None,
        accelerator: str = "auto",
        devices: int | str = "auto",
        strategy: str = "auto",
        num_nodes: int = 1,
        precision: str = "32-true",
        callbacks: list | None = None,
        logger=False,
        trainer_params: dict | None = None,
        num_workers: int = 0,
        verbose: int = 0,
    ):
        self.horizon = horizon
        self.lookback = lookback
        self.scaler = scaler
        self.time_col = time_col
        self.id_col = id_col
        self.target = target
        self.freq = freq
        self.quantiles = quantiles
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.lr_schedule = lr_schedule
        self.loss = loss
        self.fredf_weight = fredf_weight
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.random_state = random_state
        self.accelerator = accelerator
        self.devices = devices
        self.strategy = strategy
        self.num_nodes = num_nodes
        self.precision = precision
        self.callbacks = callbacks
        self.logger = logger
        self.trainer_params = trainer_params
        self.num_workers = num_workers
        self.verbose = verbose

    def _build_network(self, sizes: InputSizes) -> LinearNetwork:
        return LinearNetwork(sizes)

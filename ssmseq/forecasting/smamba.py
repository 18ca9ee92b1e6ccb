"""S-Mamba: every variate's look-back is one token; Mamba mixes the tokens from both ends.

Source: Wang et al., "Is Mamba effective for time series forecasting?", Neurocomputing 2025, arXiv 2403.11144.

Differences from the authors' code: the modules that it builds and never calls are left out; the projection is applied
to the variate tokens only (the others were thrown away after it); time stamps, units and scaler belong to the
estimator. As in that code, and unlike the paper's algorithm box, there are instance normalisation, calendar tokens,
dropout, a residual around the feed-forward net and a final normalisation.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ssmseq.base import check_choice, check_number
from ssmseq.forecasting.base import BaseForecaster
from ssmseq.forecasting.tokens import Head, InputSizes, VariateTokens, WindowNorm
from ssmseq.nn import SMambaEncoderLayer
from ssmseq.nn.bidirectional import ACTIVATIONS

HOURLY = ("hour", "day_of_week", "day_of_month", "day_of_year")  # the authors' calendar, whatever the frequency
ETT, WIDE = {"time_features": HOURLY}, {"time_features": HOURLY, "d_model": 512, "d_ff": 512}
ROADS = {**WIDE, "time_features": False, "n_layers": 4, "d_state": 32}
PAPER: dict[str, tuple[dict, dict[int, dict]]] = {  # the authors' scripts: of a data set, and of its horizons
    "ETTh1": (ETT, {96: {"learning_rate": 7e-5}, 192: {"learning_rate": 7e-5}}),
    "ETTh2": (
        ETT,
        {96: {"learning_rate": 4e-5}, 192: {"learning_rate": 4e-5}, 336: {"learning_rate": 3e-5}}
        | {720: {"learning_rate": 7e-5}},
    ),
    "ETTm1": (ETT, {h: {"d_model": 128, "d_ff": 128} for h in (192, 336, 720)}),
    "ETTm2": (
        ETT,
        {h: {"d_model": 128, "d_ff": 128} for h in (192, 720)}
        | {336: {"d_model": 128, "d_ff": 128, "learning_rate": 3e-5}},
    ),
    "weather": ({**WIDE, "n_layers": 3, "max_epochs": 5}, {}),
    "electricity": (
        {**WIDE, "n_layers": 3, "d_state": 32, "batch_size": 16, "max_epochs": 5, "learning_rate": 5e-4},
        {96: {"d_state": 16, "learning_rate": 1e-3}},
    ),
    "exchange_rate": (
        {**ETT, "d_model": 128, "d_ff": 128, "d_state": 32},
        {96: {"learning_rate": 1e-4, "batch_size": 16}, 192: {"learning_rate": 1e-4}},
    ),
    "traffic": (
        {**WIDE, "n_layers": 4, "d_state": 32, "batch_size": 16, "learning_rate": 1e-3},
        {336: {"learning_rate": 2e-3}, 720: {"learning_rate": 8e-4}},
    ),
    "solar": ({**WIDE, "time_features": False, "d_state": 32, "learning_rate": 1e-4}, {}),
    "PEMS03": (
        {**ROADS, "learning_rate": 1e-3},
        {12: {"max_epochs": 5}, 48: {"n_layers": 5, "learning_rate": 1e-4}, 96: {"learning_rate": 1.5e-3}},
    ),
    "PEMS04": ({**ROADS, "d_model": 1024, "d_ff": 1024, "learning_rate": 3e-4, "normalize": False}, {}),
    "PEMS07": (
        {**ROADS, "normalize": False, "learning_rate": 5e-4},
        {12: {"n_layers": 2, "learning_rate": 7e-4, "batch_size": 16}, 24: {"n_layers": 2, "learning_rate": 7e-4}}
        | {96: {"batch_size": 16}},
    ),
    "PEMS08": (
        {**ROADS, "learning_rate": 1e-3},
        {12: {"n_layers": 2}, 24: {"n_layers": 2, "learning_rate": 7e-4}}
        | {h: {"d_model": 256, "d_ff": 256, "batch_size": 16} for h in (48, 96)},
    ),
}


class SMambaNetwork(nn.Module):
    """Tokens are variates, then covariates; the scan runs over tokens, never over time.

    Parameters are those of `SMambaForecaster`.
    """

    def __init__(
        self,
        sizes: InputSizes,
        *,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        n_layers: int,
        d_ff: int,
        dropout: float,
        activation: str,
        normalize: bool,
    ):
        super().__init__()
        self.n_past = sizes.n_past
        self.window_norm = WindowNorm() if normalize else None
        self.tokens = VariateTokens(sizes, d_model=d_model, dropout=dropout)
        self.layers = nn.ModuleList(
            SMambaEncoderLayer(
                d_model=d_model,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                d_ff=d_ff,
                dropout=dropout,
                activation=activation,
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = Head(d_model, sizes)

    def forward(self, past: Tensor, future=None, static=None, missing=None) -> Tensor:
        """Map the inputs that `ssmseq.forecasting.tokens` describes to forecasts (B, V, H) or (B, V, H, Q)."""
        n_variates = past.shape[1] - self.n_past
        statistics: Any = None
        if self.window_norm is not None:
            variates, statistics = self.window_norm(past[:, :n_variates])
            past = torch.cat([variates, past[:, n_variates:]], 1)
        tokens = self.tokens(past, future, static, missing)
        for layer in self.layers:
            tokens = layer(tokens)
        forecast = self.head(self.norm(tokens[:, :n_variates]))
        return forecast if self.window_norm is None else self.window_norm.inverse(forecast, statistics)


class SMambaForecaster(BaseForecaster):
    """Multivariate long-term forecaster with variate tokens and bidirectional Mamba (S-Mamba).

    Every variate's last `lookback` values become one token through a shared linear map; encoder layers of bidirectional
    Mamba and feed-forward nets mix the tokens; a linear map turns each token into `horizon` values. Cost grows linearly
    with the number of variates. The defaults are the paper's [1]_ for the hourly ETT sets.

    Parameters
    ----------
    horizon : int
        Rows to forecast.
    lookback : int
        Rows of history that each forecast sees.
    d_model : int
        Channels of a token.
    d_state : int
        State size of each channel in the scan.
    d_conv : int
        Width of the convolution over tokens, in tokens.
    expand : int
        Inner channels of a Mamba block, in multiples of `d_model`.
    n_layers : int
        Encoder layers.
    d_ff : int
        Hidden channels of the feed-forward nets.
    dropout : float
        In the embedding and the feed-forward nets.
    activation : {"gelu", "relu", "silu"}
        Of the feed-forward nets.
    normalize : bool
        Centre and scale every window by its own mean and standard deviation, and undo it on the forecast.
    time_features : bool, "auto" or list of str
        Add features of the calendar as further tokens: those that tell rows of this frequency apart, or the ones named,
        of "minute", "hour", "day_of_week", "day_of_month", "day_of_year" and "month". "auto" does so if the frame has
        times.
    past_covariates : list of str, optional
        Columns that are known up to the forecast only; each is one more token.
    future_covariates : list of str, optional
        Columns that are known in advance, such as holidays or a weather forecast; each is one more token, of look-back
        and horizon. `predict` asks for their future values.
    static_covariates : list of str, optional
        Columns of a long frame that are constant for each series, numbers or text; together one more token.
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
        error mixed with the distance of the Fourier coefficients [2]_. Validation always uses the squared error.
    fredf_weight : float
        Share of the Fourier coefficients in "fredf", from 0 to 1; the other losses ignore it.

    Other Parameters
    ----------------
    optimizer : {"adam", "adamw"}
        With torch's default betas.
    weight_decay : float
        Not applied to the decay rates and skips of the scan.
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
    network_ : SMambaNetwork
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
    .. [1] Wang et al., "Is Mamba effective for time series forecasting?", arXiv 2403.11144.
    .. [2] Wang et al., "FreDF: Learning to forecast in the frequency domain", arXiv 2402.02399.

    Examples
    --------
    >>> from ssmseq import SMambaForecaster
    >>> from ssmseq.datasets import make_transformer_load
    >>> df = make_transformer_load(400)
    >>> est = SMambaForecaster(horizon=24, lookback=48, d_model=32, d_ff=32, max_epochs=1, random_state=0)
    >>> est.fit(df).predict().shape
    (24, 7)
    """

    def __init__(
        self,
        *,
        horizon: int = 96,
        lookback: int = 96,
        d_model: int = 256,
        d_state: int = 2,
        d_conv: int = 2,
        expand: int = 1,
        n_layers: int = 2,
        d_ff: int = 256,
        dropout: float = 0.1,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        normalize: bool = True,
        time_features: bool | Literal["auto"] | Sequence[str] = "auto",
        past_covariates: Sequence[str] | None = None,
        future_covariates: Sequence[str] | None = None,
        static_covariates: Sequence[str] | None = None,
        scaler: Literal["standard", "none"] = "standard",
        time_col: str | None = None,
        id_col: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: str | int | None = None,
        quantiles: Sequence[float] | None = None,
        learning_rate: float = 1e-4,
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
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.n_layers = n_layers
        self.d_ff = d_ff
        self.dropout = dropout
        self.activation = activation
        self.normalize = normalize
        self.time_features = time_features
        self.past_covariates = past_covariates
        self.future_covariates = future_covariates
        self.static_covariates = static_covariates
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

    @classmethod
    def from_preset(cls, *, dataset: str, horizon: int = 96, **changes) -> Self:
        """Return an unfitted estimator with the settings that the authors' scripts have for a data set and horizon.

        Parameters
        ----------
        dataset : str
            "ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather", "electricity", "exchange_rate", "traffic", "solar", "PEMS03",
            "PEMS04", "PEMS07" or "PEMS08". The look-back is 96.
        horizon : int
            Rows to forecast. The scripts have rates, and some sizes, of their own for each of their horizons.
        **changes
            Other parameters of the constructor; they win over the preset.

        Raises
        ------
        ValueError
            For another data set.
        """
        check_choice("dataset", dataset, tuple(PAPER))
        shared, by_horizon = PAPER[dataset]
        return cls(**{"horizon": horizon, "learning_rate": 5e-5, **shared, **by_horizon.get(horizon, {}), **changes})

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("d_model", "d_state", "d_conv", "expand", "n_layers", "d_ff"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("dropout", self.dropout, minimum=0, below=1)
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_choice("normalize", self.normalize, (True, False))

    def _build_network(self, sizes: InputSizes) -> SMambaNetwork:
        return SMambaNetwork(
            sizes,
            d_model=self.d_model,
            d_state=self.d_state,
            d_conv=self.d_conv,
            expand=self.expand,
            n_layers=self.n_layers,
            d_ff=self.d_ff,
            dropout=self.dropout,
            activation=self.activation,
            normalize=self.normalize,
        )

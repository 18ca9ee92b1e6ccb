"""TSM2 as an estimator; its network, and what is known of the authors' own, is in `tsm2_network`."""

from collections.abc import Sequence
from typing import Literal

from ssmseq.base import check_choice, check_number
from ssmseq.forecasting.base import BaseForecaster
from ssmseq.forecasting.tokens import InputSizes
from ssmseq.forecasting.tsm2_network import TSM2Network


class TSM2Forecaster(BaseForecaster):
    """Multivariate forecaster that scans along time and across variates in turn (TSM2, without published code).

    Every variate's look-back is cut into overlapping patches. Each layer runs Mamba along the patches of a variate and
    bidirectional Mamba across the variates of a patch, each on a learned average of all earlier outputs; a linear map
    turns the patches of a variate into `horizon` values. Cost grows linearly with variates and with patches, of which
    S-Mamba has one: a larger `stride` is the way to a faster model. The defaults are ours: the authors [1]_ published
    no code. The scan across variates makes the result depend on the order of the columns.

    Parameters
    ----------
    horizon : int
        Rows to forecast.
    lookback : int
        Rows of history that each forecast sees.
    d_model : int
        Channels of a patch.
    d_state : int
        State size of each channel in the scans.
    d_conv : int
        Width of the convolutions, in patches or in variates.
    expand : int
        Inner channels of a Mamba block, in multiples of `d_model`.
    n_layers : int
        Pairs of a mixer over time and a mixer over variates.
    patch_len : int
        Rows of a patch.
    stride : int
        Rows from one patch to the next, at most `patch_len`. The last patch ends at the last row; if the first one
        begins before the look-back, its first value is repeated.
    dropout : float
        After the embedding and after each mixer.
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
    network_ : TSM2Network
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
    .. [1] Behrouz, Santacatterina and Zabih, "MambaMixer: efficient selective state space models with dual token and
       channel selection", arXiv 2403.19888.
    .. [2] Wang et al., "FreDF: Learning to forecast in the frequency domain", arXiv 2402.02399.

    Examples
    --------
    >>> from ssmseq import TSM2Forecaster
    >>> from ssmseq.datasets import make_transformer_load
    >>> df = make_transformer_load(400)
    >>> est = TSM2Forecaster(horizon=24, lookback=48, d_model=16, n_layers=1, max_epochs=1, random_state=0)
    >>> est.fit(df).predict().shape
    (24, 7)
    """

    def __init__(
        self,
        *,
        horizon: int = 96,
        lookback: int = 96,
        d_model: int = 128,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 1,
        n_layers: int = 2,
        patch_len: int = 16,
        stride: int = 8,
        dropout: float = 0.1,
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
        self.patch_len = patch_len
        self.stride = stride
        self.dropout = dropout
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

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("d_model", "d_state", "d_conv", "expand", "n_layers", "patch_len"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("stride", self.stride, minimum=1, maximum=self.patch_len, integer=True)  # else rows go unread
        check_number("dropout", self.dropout, minimum=0, below=1)
        check_choice("normalize", self.normalize, (True, False))

    def _build_network(self, sizes: InputSizes) -> TSM2Network:
        return TSM2Network(
            sizes,
            d_model=self.d_model,
            d_state=self.d_state,
            d_conv=self.d_conv,
            expand=self.expand,
            n_layers=self.n_layers,
            patch_len=self.patch_len,
            stride=self.stride,
            dropout=self.dropout,
            normalize=self.normalize,
        )

"""`ECGMambaClassifier`: recordings in, probabilities of labels out.

Everything between a recording and a decision is part of the fitted object and is saved with it: rate, leads, filters,
scaler, windows, network, calibration, thresholds.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

from ssmseq.base import check_choice
from ssmseq.ecg.base import BaseECGClassifier
from ssmseq.ecg.network import ECGMambaNetwork, Ensemble

_LONG = {
    "d_model": 128,
    "n_layers": 4,
    "stem_kernel": 15,
    "stem_stride": 4,
    "window": 2.5,
    "stride": 1.25,
    "pooling": "max",
    "dropout": 0.1,
}
_TRAINING = {"learning_rate": 1e-3, "batch_size": 16, "max_epochs": 30, "patience": None, "validation_fraction": 0.1}
_AUGMENT = {"augment": ["time_shift", "lead_dropout", "noise", "baseline_wander"]}
PRESETS: dict[str, dict[str, Any]] = {
    "vim": {"encoder": "vim", "stem": "strided", "d_model": 384, "d_state": 16, "n_layers": 24, "positions": True}
    | {"pooling": "class_token", "drop_path": 0.1, "sampling_rate": 500.0, "window": 16.384, "augment": ["mixup"]}
    | {"optimizer": "adam", "weight_decay": 0.0, "learning_rate": 3e-4, "batch_size": 30, "max_epochs": 60}
    | {"patience": 5, "validation_fraction": 0.1},
    "dense": {**_LONG, **_TRAINING, **_AUGMENT, "encoder": "vim", "d_state": 16},
    "hydra": {**_LONG, **_TRAINING, **_AUGMENT, "encoder": "hydra", "d_state": 64},
    "cnn": {**_LONG, **_TRAINING, **_AUGMENT, "encoder": "cnn", "d_model": 64, "n_layers": 3},
}


class ECGMambaClassifier(BaseECGClassifier):
    """Multilabel classifier of electrocardiograms with a bidirectional Mamba encoder.

    A convolutional stem makes tokens of the samples of all leads, an encoder [1]_, [2]_ reads them from both ends, and
    a linear head turns their pool into one logit for each label: of a sigmoid, or of a softmax where y holds one class
    for each recording. Long recordings are cut into windows, whose logits are aggregated.

    Not a medical device: its output is for research, not for decisions about patients.

    Parameters
    ----------
    encoder : {"vim", "add", "hydra", "cnn"}
        `BidirectionalMamba` in that style, or a residual convolutional network [3]_ as the baseline.
    stem : {"dense", "strided"}
        One convolution; or two, with 12 samples to a token (8192 samples give 729 tokens) [1]_. "cnn" has none.
    stem_kernel : int
        Width of the dense stem's convolution in samples, odd.
    stem_stride : int
        Samples from one token of the dense stem to the next.
    d_model : int
        Channels of a token; of "cnn" those of its first block.
    d_state : int
        State size of each channel in the scan, or of each head of "hydra".
    d_conv : int, optional
        Width of the convolutions in the blocks, in tokens; 4 by default, and 7 for "hydra".
    expand : int
        Inner channels of a block, in multiples of `d_model`.
    n_layers : int
        Blocks.
    n_networks : int
        Networks, each from first weights of its own, whose logits are averaged [5]_.
    positions : bool
        Add a learned vector for each place of a token.
    pooling : {"mean", "max", "class_token"}
        What the head sees of the tokens. The class token stands in the middle of the others; "cnn" has none.
    dropout : float
        Share of channels zeroed in what each block adds, and before the head.
    drop_path : float
        Probability of leaving out the last block; it grows linearly from 0 for the first.
    metadata : bool
        Use age and sex of the records.
    sampling_rate : float
        In Hz, of what the network sees. Records are resampled to it; arrays must have it.
    leads : sequence of str, optional
        Names and order of the leads. Records are brought into this order, with limb leads derived and missing ones
        masked; by default the leads of the first record. Arrays must have these leads in this order, in mV, and are
        then checked as records are. Without names, arrays may be in any unit.
    band : (low, high) or None
        Pass band in Hz; either edge may be None.
    notch : float, optional
        Frequency of the power line to remove, in Hz.
    normalisation : {"dataset", "record", "lead", "none"}
        Subtract the mean and divide by the standard deviation of all training samples [4]_, of the recording, or of
        the lead in the recording.
    window : float, optional
        Length of what the network sees at once, in seconds; by default that of the longest training recording. Training
        draws a crop of each recording in each epoch, `predict` takes all windows.
    stride : float, optional
        Between the starts of two windows in seconds; `window` by default.
    too_short : {"pad", "refuse"}
        What to do about recordings shorter than a window.
    max_gap : float
        Longest run of missing samples that is bridged by a straight line, in seconds.
    long_gaps : {"mask", "refuse"}
        What to do about leads with longer ones.
    missing_leads : {"mask", "refuse"}
        What to do about records without one of the leads.
    limb_leads : {"refuse", "warn", "ignore"}
        What to do where named limb leads contradict each other, as in a wrong order.
    largest_amplitude : float or None
        In mV. Recordings whose named leads reach further are refused: they are probably in microvolts.
    aggregate : {"mean", "max", "mean_probability"}
        How the logits of a recording's windows become one.
    loss : {"cross_entropy", "focal", "asymmetric"}
        Only cross entropy is for classes that exclude each other.
    focusing : float, optional
        Exponent of the focal loss (2 by default), or of the asymmetric loss' negatives (4).
    positive_weights : None, "balanced" or array (labels,)
        Weight of each label's positives, or of each class. "balanced" makes them weigh as much as the rest.
    augment : list of str or dict of str to float, optional
        Of the training crops, with strengths: "time_shift" (0.1; in seconds), "lead_dropout" (0.1; probability),
        "noise" and "baseline_wander" (0.05 and 0.1; of the network's input), "mixup" (0.8; share of mixed crops in the
        last quarter of the epochs, three quarters of it in the third, ... [1]_).
    thresholds : float, array (labels,), {"f1", "youden", "challenge2020", "challenge2021"} or callable
        Probabilities from which on `predict` gives a label, or the metric that they are chosen for (`tune_thresholds`).
        Not for classes that exclude each other, of which it gives the most probable.
    calibration : {"platt", "isotonic", "temperature"}, optional
        See `LabelCalibrator`; of exclusive classes each against the rest, normalised after.
    n_folds : int
        With 2 or more, thresholds and calibration come from out-of-fold predictions of so many further fits. With 0
        from the validation part, which chose the epoch: slightly too good, since it was looked at.
    validation_fraction : float
        Share of the recordings, by whole patients, for early stopping and the choice of the best epoch. 0 trains on
        all of them for `max_epochs`.
    learning_rate : float
        Initial rate of the optimiser.
    batch_size : int
        Crops per step, and windows at once in `predict`.
    max_epochs : int
        Passes over the training recordings, at most.
    patience : int, optional
        Stop after this many epochs without a lower validation loss; None never stops early.
    lr_schedule : {"halve", "cosine", "constant", "warmup_cosine"}
        "halve": full rate for two epochs, then half of the previous one. "warmup_cosine": up over a tenth of the
        steps, then down to a tenth of the rate.

    Other Parameters
    ----------------
    optimizer : {"adam", "adamw"}
        With torch's default betas.
    weight_decay : float
        Not applied to the decay rates and skips of the scan, nor to positions and class token.
    warm_start : bool
        Let `fit` go on from the weights of the last fit; out-of-fold fits never do.
    checkpoint_folder : str, optional
        Folder that the state of the training is written to after every epoch, folds and further networks in folders of
        their own. `fit` goes on from what it finds there, and ends as if it had never been interrupted.
    random_state : int, numpy generator or None
        Repeats a run on the same machine; the global generators stay untouched.
    accelerator : str
        As in Lightning: "auto", "cpu", "gpu", ...
    devices : int or str
        As in Lightning.
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
        Processes that load data.
    verbose : int
        0 is silent, 1 shows a progress bar.

    Attributes
    ----------
    classes_ : array (labels,)
        Sorted labels or classes, column names of a frame, or column numbers of an array.
    thresholds_ : array (labels,)
    preprocessing_ : Preprocessing
    calibrator_ : LabelCalibrator or None
    mean_, scale_ : float
        Of the training samples; 0 and 1 unless ``normalisation="dataset"``.
    network_ : ECGMambaNetwork or Ensemble
        The latter with several networks; an interrupted fit keeps those that were trained to their end.
    history_ : pandas.DataFrame
        One row per epoch: epoch, train_loss, valid_loss, learning_rate, seconds; first the network, if there are
        several.
    n_iter_ : int
        Epochs run, of several networks the most.
    n_features_in_ : int
        Columns of an array (n, times), else the leads.

    References
    ----------
    .. [1] Jiang et al., "1D-CNN-ECG-Mamba", arXiv 2510.13046, and "ECG-Mamba", IEEE JTEHM 13, 2025.
    .. [2] Zhu et al., "Vision Mamba", arXiv 2401.09417.
    .. [3] Wang et al., "Time series classification from scratch with deep neural networks", arXiv 1611.06455.
    .. [4] Strodthoff et al., "Deep learning for ECG analysis: benchmarks and insights from PTB-XL", arXiv 2004.13701.
    .. [5] Lakshminarayanan et al., "Simple and scalable predictive uncertainty estimation using deep ensembles", arXiv
       1612.01474.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmseq import ECGMambaClassifier
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(20, 2, 50)), np.tile([[0, 1], [1, 0]], (10, 1))
    >>> ECGMambaClassifier(max_epochs=1, random_state=0).fit(X, y).predict_proba(X).shape
    (20, 2)
    """

    def __init__(
        self,
        *,
        encoder: Literal["vim", "add", "hydra", "cnn"] = "vim",
        stem: Literal["dense", "strided"] = "dense",
        stem_kernel: int = 5,
        stem_stride: int = 1,
        d_model: int = 32,
        d_state: int = 8,
        d_conv: int | None = None,
        expand: int = 2,
        n_layers: int = 2,
        n_networks: int = 1,
        positions: bool = False,
        pooling: Literal["mean", "max", "class_token"] = "mean",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        metadata: bool = False,
        sampling_rate: float = 100.0,
        leads: Sequence[str] | None = None,
        band: tuple[float | None, float | None] | None = None,
        notch: float | None = None,
        normalisation: Literal["dataset", "record", "lead", "none"] = "dataset",
        window: float | None = None,
        stride: float | None = None,
        too_short: Literal["pad", "refuse"] = "pad",
        max_gap: float = 0.2,
        long_gaps: Literal["mask", "refuse"] = "mask",
        missing_leads: Literal["mask", "refuse"] = "mask",
        limb_leads: Literal["refuse", "warn", "ignore"] = "refuse",
        largest_amplitude: float | None = 20.0,
        aggregate: Literal["mean", "max", "mean_probability"] = "mean",
        loss: Literal["cross_entropy", "focal", "asymmetric"] = "cross_entropy",
        focusing: float | None = None,
        positive_weights=None,
        augment=None,
        thresholds: Any = 0.5,
        calibration: Literal["platt", "isotonic", "temperature"] | None = None,
        n_folds: int = 0,
        validation_fraction: float = 0.0,
        learning_rate: float = 3e-3,
        batch_size: int = 64,
        max_epochs: int = 30,
        patience: int | None = 5,
        lr_schedule: Literal["halve", "cosine", "constant", "warmup_cosine"] = "cosine",
        optimizer: Literal["adam", "adamw"] = "adamw",
        weight_decay: float = 0.01,
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
        self.encoder = encoder
        self.stem = stem
        self.stem_kernel = stem_kernel
        self.stem_stride = stem_stride
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.n_layers = n_layers
        self.n_networks = n_networks
        self.positions = positions
        self.pooling = pooling
        self.dropout = dropout
        self.drop_path = drop_path
        self.metadata = metadata
        self.sampling_rate = sampling_rate
        self.leads = leads
        self.band = band
        self.notch = notch
        self.normalisation = normalisation
        self.window = window
        self.stride = stride
        self.too_short = too_short
        self.max_gap = max_gap
        self.long_gaps = long_gaps
        self.missing_leads = missing_leads
        self.limb_leads = limb_leads
        self.largest_amplitude = largest_amplitude
        self.aggregate = aggregate
        self.loss = loss
        self.focusing = focusing
        self.positive_weights = positive_weights
        self.augment = augment
        self.thresholds = thresholds
        self.calibration = calibration
        self.n_folds = n_folds
        self.validation_fraction = validation_fraction
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.lr_schedule = lr_schedule
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
    def from_preset(cls, preset: str, **changes) -> Self:
        """Return an unfitted classifier with the settings of a preset.

        Parameters
        ----------
        preset : {"vim", "dense", "hydra", "cnn"}
            "vim" is the recipe of 1D-CNN-ECG-Mamba: 26 million weights, 16.4 s at 500 Hz. It had Noam's schedule of
            rates, which is "cosine" here. "dense" reads crops of 2.5 s at 100 Hz, a token every 40 ms, and sees them
            shifted, noisy and without some leads; "hydra" and "cnn" do so with another encoder. These three train for
            all of their epochs, and keep the weights of the best.
        **changes
            Other parameters of the constructor; they win over the preset.
        """
        check_choice("preset", preset, tuple(PRESETS))
        return cls(**{**PRESETS[preset], **changes})

    def _build_network(self, n_leads: int, n_times: int, n_labels: int) -> ECGMambaNetwork | Ensemble:
        names = (
            "encoder",
            "stem",
            "stem_kernel",
            "stem_stride",
            "d_model",
            "d_state",
            "expand",
            "n_layers",
            "positions",
        )
        names += ("pooling", "dropout", "drop_path", "metadata")
        d_conv = self.d_conv or (7 if self.encoder == "hydra" else 4)
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings |= {"n_leads": n_leads, "n_times": n_times, "n_labels": n_labels, "d_conv": d_conv}
        if self.n_networks == 1:
            return ECGMambaNetwork(**settings)
        return Ensemble(ECGMambaNetwork(**settings) for _ in range(self.n_networks))

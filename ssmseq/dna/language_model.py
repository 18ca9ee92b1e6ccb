"""`DNALanguageModel`: sequences in; likelihoods, embeddings, variant scores and new sequences out."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, Self

from ssmseq.dna.base import BaseDNAModel
from ssmseq.dna.network import DNANetwork, build_network

STATES = {"mamba": 16, "mamba2": 64, "hybrid": 64}  # of a channel, or of a head


class DNALanguageModel(BaseDNAModel):
    """Language model of single nucleotides with Mamba, Mamba-2 or a hybrid of Mamba-2 and attention.

    A causal model [1]_ gives each base a probability from the bases before it, so that it scores, generates and
    streams. A bidirectional one [2]_ gives it from both sides of a mask. The hybrid is that of [3]_.

    Parameters
    ----------
    architecture : {"mamba", "mamba2", "hybrid"}
        "hybrid" has grouped-query attention without positional encoding in one of `attention_period` layers, and
        Mamba-2 in the others.
    bidirectional : bool
        Read from both ends, and train to restore masked bases: Caduceus' blocks of Mamba, Hydra's of Mamba-2.
    reverse_complement : {"none", "augment", "average", "equivariant"}
        How the other strand counts. "augment" trains on a strand drawn for each window; "average" does too, and gives
        scores and embeddings as means over both; "equivariant" reads both at once with the same weights, and needs
        ``bidirectional=True``. Averaging helps promoters and enhancers, and harms splice sites, which have a strand.
    d_model : int
        Channels of a token.
    n_layers : int
    d_state : int, optional
        State size of each channel of Mamba (16 by default), or each head of Mamba-2 (64).
    d_conv : int, optional
        Width of the convolutions, in bases: 4 by default, and 7 in Hydra's blocks.
    expand : int
        Inner channels of a block, in multiples of `d_model`.
    head_dim : int
        Inner channels of a head of causal Mamba-2.
    d_ff : int, optional
        Hidden channels of the gated feed-forward net after each mixer; 0 for none. By default ``2 * d_model`` in
        "hybrid", else 0.
    attention_period, attention_offset : int
        In "hybrid", layer `attention_offset` of every `attention_period` is attention, counted from 0.
    n_heads, n_kv_heads : int
        Of the attention: heads of queries, and of keys and values.
    swap_strands : bool
        With "equivariant", let the strands change places before every block, as the published Caduceus-PS does.
    dropout : float
        Share of channels zeroed in what each layer adds.
    length : int
        Of a training window, in bases.
    length_schedule : list of (float, int), optional
        Shorter windows to begin with [4]_: pairs of the share of the epochs after which a length holds, and the length,
        which divides `length`; such as ``[(0.0, 256), (0.5, 1024)]``. Windows are cut, so that a step keeps its bases.
    soft_mask_weight : float
        Weight in training of the bases in lower case, which mark repeats; validation counts all bases.
    mask_fraction : float
        Share of the bases that a bidirectional model is trained to restore.
    validation_fraction : float
        Share of the bases for the choice of the best epoch, where `fit` is given no `validation`: whole contigs, the
        end of a single one, or whole strings of a list. 0 trains on all.
    chunk_length : int
        Bases of a sequence read at once in scoring and embedding; changes memory and speed alone.
    mask_spacing : int
        A bidirectional model scores a sequence in so many passes, each with every `mask_spacing`-th base masked.
    pooling : {"mean", "last", "class", "echo"}
        How `transform` makes one embedding of those of the letters: their mean; the last one; that of a [CLS] token
        after them; or the mean over a second copy of the sequence, read after the first [3]_.
    learning_rate : float
        The highest. 8e-3 is the published one for Mamba on DNA [1]_.
    batch_size : int
        Windows per step.
    max_epochs : int
        Passes over the training windows, at most.
    patience : int, optional
        Stop after this many epochs without a lower validation loss; None never stops early.
    lr_schedule : {"warmup_cosine", "halve", "cosine", "constant"}
        "warmup_cosine": up over a tenth of the steps, then down to a tenth of the rate.

    Other Parameters
    ----------------
    optimizer : {"adam", "adamw"}
        With torch's default betas.
    weight_decay : float
        Not applied to the decay rates and skips of the scan.
    gradient_clip : float, optional
        Largest norm of a step's gradient.
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
        Further arguments of Lightning's Trainer.
    num_workers : int
        Processes that load data.
    verbose : int
        0 is silent, 1 shows a progress bar.

    Attributes
    ----------
    classes_ : array (labels,)
        Sorted labels that `fit` was given, which `sample` can be asked for; empty without.
    network_ : DNANetwork
    history_ : pandas.DataFrame
        One row per epoch: epoch, train_loss, valid_loss (bits per base), learning_rate, seconds.
    n_iter_ : int
        Epochs run.
    n_features_out_ : int
        Columns of `transform`.

    Notes
    -----
    Tokens are those of HyenaDNA and Caduceus. A causal model reads [BOS], or the token of a label, and then the bases;
    probabilities are over A, C, G and T. Letters for several bases are read as N, and are never scored.

    References
    ----------
    .. [1] Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    .. [2] Schiff et al., "Caduceus: bi-directional equivariant long-range DNA sequence modeling", arXiv 2403.03234.
    .. [3] Ma et al., "HybriDNA: a hybrid transformer-Mamba2 long-range DNA language model", arXiv 2502.10807.
    .. [4] Nguyen et al., "HyenaDNA: long-range genomic sequence modeling at single nucleotide resolution",
       arXiv 2306.15794.

    Examples
    --------
    >>> from ssmseq import DNALanguageModel
    >>> model = DNALanguageModel(d_model=16, n_layers=1, length=32, max_epochs=1, random_state=0)
    >>> model.fit(["ACGT" * 40, "AACC" * 40]).transform(["ACGTN", "A"]).shape
    (2, 16)
    """

    def __init__(
        self,
        *,
        architecture: Literal["mamba", "mamba2", "hybrid"] = "mamba",
        bidirectional: bool = False,
        reverse_complement: Literal["none", "augment", "average", "equivariant"] = "augment",
        d_model: int = 128,
        n_layers: int = 4,
        d_state: int | None = None,
        d_conv: int | None = None,
        expand: int = 2,
        head_dim: int = 64,
        d_ff: int | None = None,
        attention_period: int = 8,
        attention_offset: int = 3,
        n_heads: int = 4,
        n_kv_heads: int = 2,
        swap_strands: bool = False,
        dropout: float = 0.0,
        length: int = 1024,
        length_schedule: Sequence[tuple[float, int]] | None = None,
        soft_mask_weight: float = 1.0,
        mask_fraction: float = 0.15,
        validation_fraction: float = 0.1,
        chunk_length: int = 8192,
        mask_spacing: int = 8,
        pooling: Literal["mean", "last", "class", "echo"] = "mean",
        learning_rate: float = 8e-3,
        batch_size: int = 16,
        max_epochs: int = 10,
        patience: int | None = None,
        lr_schedule: Literal["warmup_cosine", "halve", "cosine", "constant"] = "warmup_cosine",
        optimizer: Literal["adam", "adamw"] = "adamw",
        weight_decay: float = 0.1,
        gradient_clip: float | None = 1.0,
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
        self.architecture = architecture
        self.bidirectional = bidirectional
        self.reverse_complement = reverse_complement
        self.d_model = d_model
        self.n_layers = n_layers
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.head_dim = head_dim
        self.d_ff = d_ff
        self.attention_period = attention_period
        self.attention_offset = attention_offset
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.swap_strands = swap_strands
        self.dropout = dropout
        self.length = length
        self.length_schedule = length_schedule
        self.soft_mask_weight = soft_mask_weight
        self.mask_fraction = mask_fraction
        self.validation_fraction = validation_fraction
        self.chunk_length = chunk_length
        self.mask_spacing = mask_spacing
        self.pooling = pooling
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.lr_schedule = lr_schedule
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.gradient_clip = gradient_clip
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
    def from_pretrained(cls, path: str | PathLike, **changes) -> Self:
        """Return a fitted model with the weights of a published network, which need not have been made by this library.

        Parameters
        ----------
        path : str or path
            Folder that `load_pretrained` reads: Caduceus Ph or PS, or Mamba or Mamba-2 over the tokens of Caduceus.
        **changes
            Parameters that do not shape the network, such as ``pooling``.

        Returns
        -------
        DNALanguageModel

        Raises
        ------
        FileNotFoundError, ValueError
            As `load_pretrained`, or if the network is none that this class has.
        """
        from ssmseq.dna import pretrained

        core = pretrained.load_core(path)
        model = cls(**{**changes, **pretrained.read_parameters(core)})
        pretrained.fill(model, core)
        return model

    def _build_network(self, n_labels: int) -> DNANetwork:
        hydra = self.bidirectional and self.architecture != "mamba"
        return build_network(
            architecture=self.architecture,
            bidirectional=self.bidirectional,
            equivariant=self.reverse_complement == "equivariant",
            d_model=self.d_model,
            n_layers=self.n_layers,
            d_state=self.d_state or STATES[self.architecture],
            d_conv=self.d_conv or (7 if hydra else 4),
            expand=self.expand,
            head_dim=self.head_dim,
            d_ff=(2 * self.d_model if self.architecture == "hybrid" else 0) if self.d_ff is None else self.d_ff,
            attention_period=self.attention_period,
            attention_offset=self.attention_offset,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            dropout=self.dropout,
            n_labels=n_labels,
            swap_strands=self.swap_strands,
        )

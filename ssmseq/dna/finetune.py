"""`DNAClassifier` and `DNARegressor`: a language model's network with a head, trained on labelled sequences."""

import copy
import os
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch.nn import functional as F

from ssmseq.base import SequenceEstimator, check_choice, check_number, draw_seed
from ssmseq.dna import head, serving, state
from ssmseq.dna.alphabet import reverse_complement_tokens
from ssmseq.dna.inputs import encode_all, read_strings
from ssmseq.dna.language_model import DNALanguageModel
from ssmseq.dna.mutagenesis import mutate_decision

TUNING = ("full", "lora", "head")


class _FineTuned(serving.ServedHead, SequenceEstimator):
    """What both do; the subclasses make targets, losses and answers."""

    classes_: np.ndarray
    mean_: float
    scale_: float

    def __init__(
        self,
        *,
        language_model: Any = None,
        tuning: Literal["full", "lora", "head"] = "full",
        lora_rank: int = 8,
        pooling: Literal["mean", "max", "last", "class"] = "mean",
        reverse_complement: Literal["none", "augment", "average"] = "none",
        dropout: float = 0.1,
        validation_fraction: float = 0.1,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        max_epochs: int = 20,
        patience: int | None = 5,
        lr_schedule: Literal["warmup_cosine", "halve", "cosine", "constant"] = "warmup_cosine",
        optimizer: Literal["adam", "adamw"] = "adamw",
        weight_decay: float = 0.1,
        gradient_clip: float | None = 1.0,
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
        self.language_model = language_model
        self.tuning = tuning
        self.lora_rank = lora_rank
        self.pooling = pooling
        self.reverse_complement = reverse_complement
        self.dropout = dropout
        self.validation_fraction = validation_fraction
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.lr_schedule = lr_schedule
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.gradient_clip = gradient_clip
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

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.target_tags.required = True
        return tags

    def fit(self, X, y) -> Self:
        """Train on sequences and their targets.

        Parameters
        ----------
        X : sequence of str
        y : array (n,)

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a parameter, sequence or target that cannot be used; the message names it and the remedy.

        Warns
        -----
        UserWarning
            If the fit was interrupted; the model then holds the best weights so far.
        """
        from ssmseq.checkpoints import resumable_seed
        from ssmseq.training import fit_network

        self._check_parameters()
        strings = read_strings(X)
        check_consistent_length(strings, y)
        sequences, targets, fitted = encode_all(strings), *self._prepare_targets(np.asarray(y))
        if empty := [i for i, s in enumerate(sequences) if not len(s)]:
            raise ValueError(f"X[{empty[0]}] is empty: leave it out")
        seed = resumable_seed(self, draw_seed(self.random_state))
        rows, held_out = self._split(targets, seed)
        length = max(len(sequences[i]) for i in rows)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            base, network = self._start(len(fitted.get("classes_", [None])))
            parts = [
                None if part is None else self._data(network, sequences, targets, part, length, seed, training=i == 0)
                for i, part in enumerate((rows, held_out))
            ]
            worker = copy.copy(self)
            if self.gradient_clip is not None:
                worker.trainer_params = {"gradient_clip_val": self.gradient_clip, **(self.trainer_params or {})}
            loss = self._loss(targets[rows])
            history = fit_network(network, worker, *parts, {"train_loss": loss, "valid_loss": loss}, seed)
        head.merge_low_rank(network)
        vars(self).update(fitted)
        self.network_, self.history_, self.n_iter_, self.length_ = network, history, len(history), length
        self.base_params_, self.n_labels_ = base
        return self

    def mutagenesis(self, sequence: str, *, label=None):
        """Return what every substitution of one base changes: saturation mutagenesis, with 3 predictions for each base.

        Parameters
        ----------
        sequence : str
        label : optional
            The class whose log-odds, the logit of it against all others, are compared; by default the predicted one.
            A regressor has none: there, the prediction is.

        Returns
        -------
        MutagenesisDisplay

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For an unknown label, or a sequence that is empty or not of DNA.
        """
        return mutate_decision(self, sequence, label)

    def _outputs(self, X) -> np.ndarray:
        """Return the outputs of the head, (n, n_outputs) of float64; averaged over strands if so asked."""
        check_is_fitted(self)
        sequences = encode_all(read_strings(X))
        for i, sequence in enumerate(sequences):
            if not len(sequence):
                raise ValueError(f"X[{i}] is empty: leave it out")
        found = self._run(sequences)
        if self.reverse_complement == "average":
            found = (found + self._run([reverse_complement_tokens(s) for s in sequences])) / 2
        return found

    def _run(self, sequences: list[np.ndarray]) -> np.ndarray:
        """Run the network on sequences; a row is padded by its own length alone, so that batches change nothing."""
        device = torch.device("cuda" if self._uses_gpu() else "cpu")
        network = self.network_.to(device)
        widths = np.array([max(self.length_, len(s)) for s in sequences])
        found = np.empty((len(sequences), network.head.out_features))
        shape = {"causal": network.causal, "with_class": self.pooling == "class"}
        with torch.inference_mode():
            for width in np.unique(widths):
                rows = np.flatnonzero(widths == width)
                for part in np.array_split(rows, -(-len(rows) // self.batch_size)):
                    inputs = head.pad_sequences([sequences[i] for i in part], length=int(width), **shape)
                    outputs = network(**{name: x.to(device) for name, x in inputs.items()})
                    found[part] = outputs.double().cpu().numpy()
        return found

    def _uses_gpu(self) -> bool:
        return self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()

    def _check_parameters(self) -> None:
        check_choice("tuning", self.tuning, TUNING)
        check_choice("pooling", self.pooling, head.POOLINGS)
        check_choice("reverse_complement", self.reverse_complement, ("none", "augment", "average"))
        check_number("lora_rank", self.lora_rank, minimum=1, integer=True)
        check_number("dropout", self.dropout, minimum=0, below=1)
        check_number("validation_fraction", self.validation_fraction, minimum=0, below=1)

    def _start(self, n_outputs: int) -> tuple[tuple[dict, int], head.SequenceHead]:
        """Return parameters and number of labels of the language model, and the network to train."""
        model = _language_model(self.language_model)
        fitted = hasattr(model, "network_")
        if not fitted and self.tuning != "full":
            raise ValueError(
                f"tuning={self.tuning!r} keeps the weights of a language model, and language_model is not fitted: fit "
                'it, or set tuning="full" to train all weights from scratch'
            )
        core = copy.deepcopy(model.network_).cpu() if fitted else model._build_network(0)
        network = head.SequenceHead(core.float(), pooling=self.pooling, n_outputs=n_outputs, dropout=self.dropout)
        if self.tuning == "head":
            head.freeze(network.network)
        elif self.tuning == "lora":
            head.add_low_rank(network.network, self.lora_rank)
        return (model.get_params(deep=False), len(model.classes_) if fitted else 0), network

    def _split(self, targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.arange(len(targets))
        if self.validation_fraction == 0:
            return rows, None
        try:
            train, held_out = train_test_split(
                rows, test_size=self.validation_fraction, random_state=seed, stratify=self._strata(targets)
            )
        except ValueError as error:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {len(rows)} sequences cannot be held out "
                f"({error}): give more sequences, or set it to 0"
            ) from error
        return np.asarray(train), np.asarray(held_out)

    def _data(self, network, sequences, targets, rows, length, seed, *, training: bool) -> head.Sequences:
        return head.Sequences(
            [sequences[i] for i in rows],
            targets[rows],
            length=length,
            causal=network.causal,
            with_class=self.pooling == "class",
            both_strands=training and self.reverse_complement != "none",
            seed=seed,
        )

    def _prepare_targets(self, y: np.ndarray) -> tuple[np.ndarray, dict]:
        raise TypeError(f"{type(self).__name__} has no targets")

    def _strata(self, targets: np.ndarray):
        return None

    def _loss(self, targets: np.ndarray):
        raise TypeError(f"{type(self).__name__} has no loss")

    def _export_state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        return state.export_fine_tuned(self)

    def _import_state(self, stored: dict, tensors: dict[str, torch.Tensor]) -> None:
        state.import_fine_tuned(self, stored, tensors)


class DNAClassifier(ClassifierMixin, _FineTuned):
    """Classifier of DNA sequences: the network of a language model with a head, trained end to end.

    Parameters
    ----------
    language_model : DNALanguageModel or path, optional
        Fitted, or a folder of a saved one: training starts from its network, which itself stays as it is. Not fitted,
        or None, it names the architecture of a network that is trained from scratch. scikit-learn clones parameters
        in cross-validation, and a clone is not fitted: there, give the folder, or ``FrozenEstimator(model)``.
    tuning : {"full", "lora", "head"}
        Train all weights; low-rank parts of the linear maps [1]_ and the head; or the head alone.
    lora_rank : int
        Of the low-rank parts.
    pooling : {"mean", "max", "last", "class"}
        What the head sees of the states: their mean or maximum, that of the last letter, or of a [CLS] token after it.
    reverse_complement : {"none", "augment", "average"}
        "augment" draws a strand for each sequence in each epoch; "average" does too, and `predict` averages both.
        Harmful where the strand matters, as for splice sites.
    dropout : float
        Before the head.
    validation_fraction : float
        Share of the sequences that choose the best epoch and stop early. 0 trains on all for `max_epochs`.
    learning_rate, batch_size, max_epochs, patience, lr_schedule, optimizer, weight_decay, gradient_clip
        As in `DNALanguageModel`; a batch holds whole sequences.

    Other Parameters
    ----------------
    checkpoint_folder, random_state, accelerator, devices, strategy, num_nodes, precision, callbacks, logger
        As in `DNALanguageModel`.
    trainer_params, num_workers, verbose
        As in `DNALanguageModel`.

    Attributes
    ----------
    classes_ : array (n_classes,)
    network_ : SequenceHead
    history_ : pandas.DataFrame
        One row per epoch: epoch, train_loss, valid_loss, learning_rate, seconds.
    n_iter_ : int
        Epochs run.
    length_ : int
        Of the longest training sequence; shorter ones are padded to it.

    References
    ----------
    .. [1] Hu et al., "LoRA: low-rank adaptation of large language models", arXiv 2106.09685.

    Examples
    --------
    >>> from ssmseq import DNAClassifier, DNALanguageModel
    >>> base = DNALanguageModel(d_model=16, n_layers=1)
    >>> X, y = ["ACGTAC", "AACCAA"] * 10, [0, 1] * 10
    >>> DNAClassifier(language_model=base, max_epochs=1, random_state=0).fit(X, y).predict_proba(X).shape
    (20, 2)
    """

    def predict_proba(self, X) -> np.ndarray:
        """Return the probability of each class, (n, n_classes)."""
        logits = self._outputs(X)
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    def decision_function(self, X) -> np.ndarray:
        """Return the logits (n, n_classes), or for two classes the second less the first, (n,)."""
        logits = self._outputs(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, X) -> np.ndarray:
        """Return the most probable class of each sequence, (n,)."""
        return self.classes_[self._outputs(X).argmax(1)]

    def _prepare_targets(self, y: np.ndarray) -> tuple[np.ndarray, dict]:
        check_classification_targets(y)
        classes, index = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y must hold two classes at least, got only {classes.tolist()}")
        return index.ravel().astype(np.float32), {"classes_": classes}

    def _strata(self, targets: np.ndarray):
        return targets

    def _loss(self, targets: np.ndarray):
        return lambda logits, found: F.cross_entropy(logits, found.long())


class DNARegressor(RegressorMixin, _FineTuned):
    """Regressor on DNA sequences: the network of a language model with a head, trained end to end.

    Parameters are those of `DNAClassifier`, and so are the attributes but for `classes_`.

    Attributes
    ----------
    mean_, scale_ : float
        Of the targets, which training sees standardised.

    Examples
    --------
    >>> from ssmseq import DNALanguageModel, DNARegressor
    >>> base = DNALanguageModel(d_model=16, n_layers=1)
    >>> X, y = ["ACGTAC", "AACCAA"] * 10, [0.5, 1.5] * 10
    >>> DNARegressor(language_model=base, max_epochs=1, random_state=0).fit(X, y).predict(X).shape
    (20,)
    """

    def predict(self, X) -> np.ndarray:
        """Return the target of each sequence, (n,)."""
        return self._outputs(X)[:, 0] * self.scale_ + self.mean_

    def _prepare_targets(self, y: np.ndarray) -> tuple[np.ndarray, dict]:
        values = np.asarray(y, np.float64)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(f"y must be one finite number for each sequence, got an array of shape {values.shape}")
        mean, scale = float(values.mean()), float(values.std()) or 1.0
        return ((values - mean) / scale).astype(np.float32), {"mean_": mean, "scale_": scale}

    def _loss(self, targets: np.ndarray):
        return lambda outputs, found: F.mse_loss(outputs[:, 0], found)


def _language_model(given) -> DNALanguageModel:
    """Return the language model that a parameter stands for."""
    if given is None:
        return DNALanguageModel()
    if isinstance(given, str | os.PathLike):
        from ssmseq.persistence import load

        given = load(given)
    given = getattr(given, "estimator", given)  # of scikit-learn's FrozenEstimator
    if not isinstance(given, DNALanguageModel):
        raise TypeError(f"language_model must be a DNALanguageModel or the folder of one, got {type(given).__name__}")
    return given

"""What `DNALanguageModel` does with its parameters: fitting, likelihoods, embeddings, new sequences."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from ssmseq.base import SequenceEstimator, check_choice, draw_seed
from ssmseq.dna import embedding, preparing, sampling, serving, state
from ssmseq.dna.alphabet import BOS, VOCAB_SIZE, decode, encode, reverse_complement_tokens
from ssmseq.dna.effects import VariantEffects
from ssmseq.dna.inputs import read_sequences
from ssmseq.dna.likelihood import causal_log_probabilities, masked_log_probabilities
from ssmseq.dna.network import DNANetwork

STRANDS = ("forward", "average")


class BaseDNAModel(VariantEffects, ClassNamePrefixFeaturesOutMixin, TransformerMixin, SequenceEstimator):
    """What `DNALanguageModel` does with its parameters; it gives them, and `_build_network`."""

    accelerator: Any
    bidirectional: Any
    chunk_length: Any
    gradient_clip: Any
    mask_spacing: Any
    pooling: Any
    n_features_out_: int
    random_state: Any
    reverse_complement: Any
    trainer_params: Any
    warm_start: Any
    verbose: Any

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags

    def fit(self, X, y=None, *, regions=None, validation=None) -> Self:
        """Train on sequences.

        Parameters
        ----------
        X : path or sequence of str
            FASTA, plain or compressed (see `Fasta`), or strings.
        y : sequence of labels, optional
            With strings: one label for each, whose token the model reads first. `sample` can be asked for one.
        regions : path, data frame or None
            With a FASTA: BED or GFF regions to train on; the whole contigs by default.
        validation : list of str, path, data frame or None
            Of a FASTA, names of contigs that are held out, or regions; with strings, further strings. By default
            `validation_fraction` of X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For a parameter, a file or a sequence that cannot be used; the message names it and the remedy.

        Warns
        -----
        UserWarning
            If the fit was interrupted; the model then holds the best weights so far.
        """
        from ssmseq.checkpoints import resumable_seed
        from ssmseq.training import fit_network

        preparing.check_parameters(self)
        seed = resumable_seed(self, draw_seed(self.random_state))
        train, valid, classes = preparing.prepare(self, X, y, regions, validation, seed)
        with torch.random.fork_rng():  # also of every CUDA device, so that the caller's generators stay as they are
            torch.manual_seed(seed)
            network = self._build_network(len(classes)).float()  # whatever torch's default dtype is
            if self.warm_start and hasattr(self, "network_"):
                _take_over(network, self.network_)
            worker = copy.copy(self)
            if self.gradient_clip is not None:
                worker.trainer_params = {"gradient_clip_val": self.gradient_clip, **(self.trainer_params or {})}
            losses = {"train_loss": preparing.bits_per_base, "valid_loss": preparing.bits_per_base}
            history = fit_network(network, worker, train, valid, losses, seed)
        self.network_, self.history_, self.classes_ = network, history, classes
        self.n_iter_, self.n_features_out_ = len(history), self._n_columns()
        return self

    def log_likelihood(
        self, X, *, per_base: bool = False, strands: str | None = None, labels=None
    ) -> np.ndarray | list[np.ndarray]:
        """Return the log-likelihood of each sequence, in nats; of a bidirectional model the pseudo-log-likelihood.

        What else is in X changes nothing: each sequence is scored as if it were alone.

        Parameters
        ----------
        X : path or sequence of str
            FASTA, or strings.
        per_base : bool
            Give the terms of the sum, NaN where a letter is none of A, C, G and T.
        strands : {"forward", "average"}, optional
            Read the sequence, or also its reverse complement and average the two for each base; by default as
            `reverse_complement` says.
        labels : label or sequence of labels, optional
            Of all sequences, or of each: the token that is read first.

        Returns
        -------
        array (n,) of float64, or with `per_base` list of array (L,)

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a letter that is not of DNA, or a label that `fit` was not given.
        """
        check_is_fitted(self)
        sequences, _ = read_sequences(X)
        prompts = self._prompts(labels, len(sequences))
        found = self._log_probabilities(sequences, prompts)
        if self._averages(strands):
            others = self._log_probabilities([reverse_complement_tokens(s) for s in sequences], prompts)
            found = [(one + other[::-1]) / 2 for one, other in zip(found, others, strict=True)]
        return found if per_base else np.array([np.nansum(values) for values in found])

    def bits_per_base(self, X, *, strands: str | None = None) -> float:
        """Return the mean of ``-log2 p`` over all A, C, G and T of all sequences; arguments as `log_likelihood`.

        Raises
        ------
        ValueError
            If there is no such letter.
        """
        values = np.concatenate([np.empty(0), *self.log_likelihood(X, per_base=True, strands=strands)])
        if np.isnan(values).all():
            raise ValueError("X has no A, C, G or T to score")
        return float(-np.nanmean(values) / np.log(2))

    def perplexity(self, X, *, strands: str | None = None) -> float:
        """Return ``2 ** bits_per_base(X)``: 4 for a model that knows nothing."""
        return 2.0 ** self.bits_per_base(X, strands=strands)

    def score(self, X, y=None) -> float:
        """Return ``-bits_per_base(X)``, so that more is better."""
        return -self.bits_per_base(X)

    def transform(self, X) -> np.ndarray:
        """Return one embedding for each sequence, (n, `n_features_out_`), pooled as `pooling` says."""
        return np.asarray(self.embed(X))

    def embed(
        self, X, *, pooling: str | None = None, strands: str | None = None, per_base: bool = False
    ) -> np.ndarray | list[np.ndarray]:
        """Return embeddings: what the head of the network reads.

        Parameters
        ----------
        X : path or sequence of str
        pooling : {"mean", "last", "class", "echo"}, optional
            The parameter `pooling` by default.
        strands : {"forward", "average"}, optional
            As in `log_likelihood`. An equivariant model has, without averaging, the other strand in the second half
            of the columns, in reversed order.
        per_base : bool
            Give an embedding for each letter, of the strand as it is.

        Returns
        -------
        array (n, columns) of float32, or with `per_base` list of array (L, columns)

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If a sequence is empty, or holds a letter that is not of DNA.
        """
        check_is_fitted(self)
        chosen = self.pooling if pooling is None else pooling
        check_choice("pooling", chosen, embedding.POOLINGS)
        sequences, names = read_sequences(X)
        for sequence, name in zip(sequences, names, strict=True):
            if not len(sequence):
                raise ValueError(f"{name} is empty, and has no embedding: leave it out")
        reading = {"chunk_length": self.chunk_length, "causal": not self.bidirectional, "device": self._device()}
        network = self.network_.to(self._device())
        with torch.inference_mode():
            if per_base:
                return embedding.base_embeddings(network, sequences, **reading)
            average = self._averages(strands)
            return embedding.embed_strands(network, sequences, pooling=chosen, average=average, **reading)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def sample(
        self,
        n: int = 1,
        length: int = 1000,
        *,
        prompt: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        label=None,
        random_state=None,
    ) -> list[str]:
        """Draw new sequences.

        The state of the scans does not grow with the length; attention keeps the keys and values of all bases.

        Parameters
        ----------
        n : int
            Sequences.
        length : int
            Of each, in bases, without the prompt.
        prompt : str
            Bases that the sequences continue.
        temperature : float
            Below 1 sharpens the distribution of each base, 0 takes the most probable one.
        top_k : int, optional
            Draw among the k most probable bases.
        top_p : float, optional
            Draw among the fewest bases whose probabilities sum to `top_p`.
        label : optional
            One of `classes_`.
        random_state : int, numpy generator or None

        Returns
        -------
        list of str
            Without the prompt.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a bidirectional model, or an argument out of range.
        """
        check_is_fitted(self)
        if self.bidirectional:
            raise ValueError(
                "a bidirectional model restores masked bases and cannot continue a sequence: fit one "
                "with bidirectional=False to sample"
            )
        sampling.check_sampling(n, length, temperature, top_k, top_p)
        first = np.append(self._prompts(label, 1)[:1], encode(prompt)).astype(np.int64)
        with torch.inference_mode():
            tokens = sampling.draw_sequences(
                self.network_.to(self._device()),
                first,
                n=n,
                length=length,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=torch.Generator().manual_seed(draw_seed(random_state)),
                device=self._device(),
            )
        return [decode(row) for row in tokens]

    def track(self, fasta, path, *, contigs=None, kind="log_likelihood", resolution=1, strands=None) -> int:
        """Write a track of a genome as bedGraph, wig or bigWig in constant memory; see `ssmseq.dna.tracks.write_track`.

        A progress bar is shown if `verbose` is set. Returns the number of intervals written.
        """
        from ssmseq.dna.tracks import write_track

        shown = bool(self.verbose)
        options = {"contigs": contigs, "kind": kind, "resolution": resolution, "strands": strands}
        return write_track(self, fasta, path, **options, progress=shown)

    def _log_probabilities(self, sequences: Sequence[np.ndarray], prompts: np.ndarray) -> list[np.ndarray]:
        network, device = self.network_.to(self._device()), self._device()
        with torch.inference_mode():
            if self.bidirectional:
                return masked_log_probabilities(network, sequences, spacing=self.mask_spacing, device=device)
            found: list[np.ndarray] = [np.empty(0)] * len(sequences)
            for prompt in np.unique(prompts):
                rows = np.flatnonzero(prompts == prompt).tolist()
                part = [sequences[row] for row in rows]
                values = causal_log_probabilities(
                    network, part, chunk_length=self.chunk_length, prompt=int(prompt), device=device
                )
                for row, value in zip(rows, values, strict=True):
                    found[row] = value
            return found

    def _prompts(self, labels, n: int) -> np.ndarray:
        """Return the first token of each of n sequences."""
        if labels is None:
            return np.full(n, BOS)
        if self.bidirectional:
            raise ValueError("labels are for causal models: a bidirectional one reads no first token")
        labels = [labels] * n if isinstance(labels, str) or not np.ndim(labels) else list(labels)
        if len(labels) != n:
            raise ValueError(f"labels must be one label, or one for each of the {n} sequences, got {len(labels)}")
        known = {label: VOCAB_SIZE + i for i, label in enumerate(self.classes_.tolist())}
        for label in labels:
            if label not in known:
                raise ValueError(f"the label {label!r} is not one that fit was given: {', '.join(map(str, known))}")
        return np.array([known[label] for label in labels])

    def _averages(self, strands: str | None) -> bool:
        if strands is None:
            return self.reverse_complement in ("average", "equivariant")
        check_choice("strands", strands, STRANDS)
        return strands == "average"

    def _n_columns(self) -> int:
        return self.network_.core.embedding.embedding_dim if self._averages(None) else self.network_.d_hidden

    def _device(self) -> torch.device:
        gpu = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def _serving_graph(self):
        return serving.language_model_graph(self)

    def _export_state(self) -> tuple[dict, dict[str, torch.Tensor]]:
        return state.export_state(self)

    def _import_state(self, stored: dict, tensors: dict[str, torch.Tensor]) -> None:
        state.import_state(self, stored, tensors)

    def _build_network(self, n_labels: int) -> DNANetwork:
        raise TypeError(f"{type(self).__name__} has no network")


def _take_over(network: torch.nn.Module, earlier: torch.nn.Module) -> None:
    try:
        network.load_state_dict(earlier.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"warm_start=True cannot go on from the network of the last fit: {error}; set it to False to start afresh"
        ) from error

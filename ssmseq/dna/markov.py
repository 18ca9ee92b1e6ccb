r"""Markov models of DNA of a fixed order: what counting alone knows, the floor beside every language model.

A base is predicted from the :math:`k` bases before it. The default smoothing is the hierarchical Dirichlet model of
MacKay and Peto [1]_, which mixes each order with the next lower one,

.. math:: P_k(b \mid c) = \frac{n(cb) + \beta_k P_{k-1}(b \mid c')}{n(c) + \beta_k}

with counts :math:`n`, the context :math:`c`, the same without its first letter :math:`c'`, and a uniform
:math:`P_{-1}`. It differs from its source in the choice of :math:`\beta_k`: not by the evidence, but where the
training letters are best predicted if each in turn is taken out of all counts (one occurrence on one strand).

Measured on the last tenth of *E. coli* K-12 (NC_000913.3) after the first nine, in bits per base:

===== ========= =========== =================== ==========================
order dirichlet witten-bell additive, alpha=0.5 Kneser-Ney, not built here
===== ========= =========== =================== ==========================
4     1.9441    1.9441      1.9441              1.9441
6     1.9328    1.9328      1.9328              1.9328
8     1.9271    1.9363      1.9363              1.9380
10    1.9224    2.1030      2.0547              2.1837
12    1.9180    2.5940      2.0485              2.4129
===== ========= =========== =================== ==========================

Witten-Bell [2]_ and Kneser-Ney discounting fit words, of which a context has few successors; in DNA a context soon has
seen all four, so that both trust sparse counts too much.

References
----------
.. [1] MacKay, D. J. C. and Peto, L. C. B. (1995). A hierarchical Dirichlet language model. Natural Language
   Engineering 1(3), 289-308.
.. [2] Witten, I. H. and Bell, T. C. (1991). The zero-frequency problem: estimating the probabilities of novel events in
   adaptive text compression. IEEE Transactions on Information Theory 37(4), 1085-1094.
.. [3] Krichevsky, R. E. and Trofimov, V. K. (1981). The performance of universal encoding. IEEE Transactions on
   Information Theory 27(2), 199-207.
"""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ssmseq.base import check_choice, check_number
from ssmseq.dna.alphabet import N_BASES, A, encode
from ssmseq.dna.inputs import is_path, read_strings

if TYPE_CHECKING:
    import pandas as pd

MAX_ORDER = 12  # its counts and probabilities take 360 MB each; an order more would take four times that
_CHUNK = 1 << 20  # letters that are worked on at once
_MAX_BASES = (1 << 32) - 1  # more could overflow a count
_WORDS_FOR_STRENGTH = 200_000
_LOG_STRENGTHS = (-7.0, 16.0)  # where the best is sought


class MarkovBaseline(BaseEstimator):
    r"""Probabilities of each base given the `order` bases before it, from counts.

    Parameters
    ----------
    order : int
        Length of the context in bases, from 0 to 12.
    both_strands : bool
        Count the reverse complement of the training sequences too.
    smoothing : {"dirichlet", "witten-bell", "additive"}
        How rare contexts are dealt with. "dirichlet" [1]_ and "witten-bell" [2]_ mix in the next lower order, and
        "additive" adds `alpha` to each count [3]_.
    alpha : float
        In counts, above 0; only of "additive".

    Attributes
    ----------
    probabilities_ : array of float32
        Tables (4**k, 4) of all orders k up to `order` one after another, flat; that of order k starts at
        ``(4 ** (k + 1) - 4) / 3``. Its rows are the contexts in alphabetical order.
    strengths_ : array (order + 1,) of float64
        The :math:`\beta_k` of "dirichlet" in counts; NaN with another smoothing.
    n_bases_ : int
        A, C, G and T in the training sequences, on one strand.

    Notes
    -----
    A letter that is none of A, C, G and T is not scored and ends the context, as does the end of a sequence; the
    letters after it are predicted with as much context as there is. Neither training nor scoring copies a sequence:
    letters are read a million at a time. `probabilities_` takes ``4 ** (order + 2) / 3`` entries of 4 bytes, 360 MB at
    order 12, where fitting takes 1.2 GB at its peak.

    References
    ----------
    .. [1] MacKay, D. J. C. and Peto, L. C. B. (1995). A hierarchical Dirichlet language model. Natural Language
       Engineering 1(3), 289-308.
    .. [2] Witten, I. H. and Bell, T. C. (1991). The zero-frequency problem. IEEE Transactions on Information Theory
       37(4), 1085-1094.
    .. [3] Krichevsky, R. E. and Trofimov, V. K. (1981). The performance of universal encoding. IEEE Transactions on
       Information Theory 27(2), 199-207.

    Examples
    --------
    >>> from ssmseq.dna.markov import MarkovBaseline
    >>> model = MarkovBaseline(order=2).fit(["ACGT" * 50])
    >>> round(model.bits_per_base(["ACGT" * 50]), 2)
    0.01
    """

    def __init__(
        self,
        *,
        order: int = 6,
        both_strands: bool = True,
        smoothing: Literal["dirichlet", "witten-bell", "additive"] = "dirichlet",
        alpha: float = 0.5,
    ):
        self.order = order
        self.both_strands = both_strands
        self.smoothing = smoothing
        self.alpha = alpha

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.target_tags.required = False
        return tags

    def fit(self, X, y=None) -> Self:
        """Count.

        Parameters
        ----------
        X : path, sequence of str or array (L,) of token numbers, or array (n, L) of token numbers
            A FASTA, or sequences; a single array (L,) is one sequence.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of its range, a letter is not of DNA, there is no base, or more than 4,294,967,295.
        TypeError
            If X holds something else.
        """
        check_number("order", self.order, minimum=0, maximum=MAX_ORDER, integer=True)
        check_choice("both_strands", self.both_strands, (True, False))
        check_choice("smoothing", self.smoothing, ("dirichlet", "witten-bell", "additive"))
        check_number("alpha", self.alpha, above=0)
        counts = np.zeros(_start(self.order + 1), np.uint32)
        self.n_bases_ = _count(counts, _read(X), self.order)
        tables = _tables(counts, self.order)
        # So far a word counts in the highest order that has the context for it.
        for longer, shorter in zip(tables[:0:-1], tables[-2::-1], strict=True):
            shorter += longer.reshape(N_BASES, *shorter.shape).sum(0, dtype=np.uint32)
        if self.both_strands:
            for table in tables:
                table += _of_other_strand(table)
        self.probabilities_ = np.empty(counts.shape, np.float32)
        self.strengths_ = np.full(self.order + 1, np.nan)
        self._smooth(tables, _tables(self.probabilities_, self.order))
        return self

    def log_likelihood(self, X, *, per_base: bool = False) -> np.ndarray | list[np.ndarray]:
        """Return the log-likelihood of each sequence, in nats.

        Parameters
        ----------
        X : path, sequence of str or array (L,) of token numbers, or array (n, L) of token numbers
            As in `fit`.
        per_base : bool
            Give the terms of the sum, NaN where a letter is none of A, C, G and T.

        Returns
        -------
        array (n,) of float64, or with `per_base` list of array (L,)

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a letter that is not of DNA.
        """
        check_is_fitted(self)
        if per_base:
            return [np.concatenate([np.empty(0), *self._log_probabilities(sequence)]) for sequence in _read(X)]
        return np.array([sum(map(np.nansum, self._log_probabilities(s)), start=0.0) for s in _read(X)], np.float64)

    def bits_per_base(self, X) -> float:
        """Return the mean of ``-log2 p`` over all A, C, G and T of all sequences.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            If there is no such letter.
        """
        check_is_fitted(self)
        total, n = 0.0, 0
        for sequence in _read(X):
            for log_p in self._log_probabilities(sequence):
                total += float(np.nansum(log_p))
                n += int(np.count_nonzero(~np.isnan(log_p)))
        if not n:
            raise ValueError("X has no A, C, G or T to score; pass sequences with bases")
        return -total / n / float(np.log(2))

    def score(self, X, y=None) -> float:
        """Return ``-bits_per_base(X)``, so that more is better."""
        return -self.bits_per_base(X)

    def _log_probabilities(self, sequence: "_Sequence") -> Iterator[np.ndarray]:
        """Yield the log-probabilities in nats of the letters, part by part."""
        for words, bases in _words(sequence, len(self.strengths_) - 1):
            log_p = np.full(len(words), np.nan)
            log_p[bases] = np.log(self.probabilities_[words[bases]].astype(np.float64))
            yield log_p

    def _smooth(self, counts: list[np.ndarray], probabilities: list[np.ndarray]) -> None:
        parent = left_out = np.full((1, N_BASES), 1 / N_BASES, np.float32)
        for order, (table, found) in enumerate(zip(counts, probabilities, strict=True)):
            totals = table.sum(1, keepdims=True, dtype=np.float64)
            if self.smoothing == "additive":
                _mix(found, table, totals, N_BASES * self.alpha, np.full_like(parent, 1 / N_BASES))
            elif self.smoothing == "witten-bell":
                _mix(found, table, totals, np.maximum((table > 0).sum(1, keepdims=True), 1), parent)
            else:
                strength = self.strengths_[order] = _best_strength(table, totals, left_out)
                _mix(found, table, totals, strength, parent)
                if order < self.order:
                    lower, left_out = left_out, np.empty_like(found)
                    _mix(left_out, table - (table > 0), np.maximum(totals - 1, 0), strength, lower)
            parent = found


def markov_table(train, test, orders: Iterable[int] = range(MAX_ORDER + 1), **parameters) -> "pd.DataFrame":
    """Measure Markov models of several orders.

    Parameters
    ----------
    train, test : path, sequence of str or array (L,) of token numbers, or array (n, L) of token numbers
        As in `MarkovBaseline.fit`.
    orders : iterable of int
        From 0 to 12.
    **parameters
        Others of `MarkovBaseline`.

    Returns
    -------
    pandas.DataFrame
        One row per order: `order`; `bits_per_base` of `test`; `parameters`, the free ones, three for each context; and
        `seconds` that fitting and scoring took.

    Raises
    ------
    ValueError
        As `MarkovBaseline.fit`.

    Examples
    --------
    >>> from ssmseq.dna.markov import markov_table
    >>> markov_table(["ACGT" * 50], ["ACGT" * 9], orders=[0, 1])["bits_per_base"].round(1).tolist()
    [2.0, 0.1]
    """
    import pandas as pd

    train, test = (list(X) if isinstance(X, Iterator) else X for X in (train, test))
    rows = []
    for order in orders:
        start = time.perf_counter()
        bits = MarkovBaseline(order=order, **parameters).fit(train).bits_per_base(test)
        seconds = time.perf_counter() - start
        rows.append((order, bits, (N_BASES - 1) * N_BASES**order, seconds))
    return pd.DataFrame(rows, columns=pd.Index(["order", "bits_per_base", "parameters", "seconds"]))


class _Sequence(NamedTuple):
    length: int
    tokens: Callable[[int, int], np.ndarray]  # of the letters from one place to before another


def _read(X) -> list[_Sequence]:
    if is_path(X):
        from ssmseq.dna.fasta import Fasta

        fasta = Fasta(X)
        return [_Sequence(size, functools.partial(fasta.tokens, name)) for name, size in fasta.contigs.items()]
    if isinstance(X, np.ndarray) and np.issubdtype(X.dtype, np.integer):
        X = list(np.atleast_2d(X))
    return [_as_sequence(f"X[{i}]", one) for i, one in enumerate(X if isinstance(X, list | tuple) else read_strings(X))]


def _as_sequence(name: str, letters) -> _Sequence:
    if isinstance(letters, np.ndarray) and letters.ndim == 1 and np.issubdtype(letters.dtype, np.integer):
        return _Sequence(len(letters), lambda start, stop: letters[start:stop])
    if not isinstance(letters, str | bytes):
        raise TypeError(f"{name} must be a string or an array (L,) of token numbers, got {type(letters).__name__}")

    def tokens(start: int, stop: int) -> np.ndarray:
        try:
            return encode(letters[start:stop])
        except ValueError:
            try:
                return encode(letters)  # for the place in the whole sequence
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    return _Sequence(len(letters), tokens)


def _words(sequence: _Sequence, order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, part by part, the place in the flat tables of each letter with its context, and which letters are bases.

    A word is a number in base 4 whose last digit is the letter itself. At the start of a sequence, and after a letter
    that is no base, it is shorter, and stands in the table of a lower order.
    """
    starts = np.array([_start(k) for k in range(order + 1)])
    for start in range(0, sequence.length, _CHUNK):
        first = max(start - order, 0)
        digits = np.asarray(sequence.tokens(first, min(start + _CHUNK, sequence.length))).astype(np.int64) - A
        bases = (digits >= 0) & (digits < N_BASES)
        places = np.arange(len(digits))
        last_break = np.maximum.accumulate(np.where(bases, -1, places))
        context = np.clip(places - last_break - 1, 0, order)
        words = digits.copy()
        for back in range(1, min(order, len(digits) - 1) + 1):
            words[back:] += digits[:-back] << 2 * back
        words = (words & ((N_BASES << 2 * context) - 1)) + starts[context]  # what is before a break is cut off
        yield words[start - first :], bases[start - first :]


def _start(order: int) -> int:
    """Return where the table of an order starts in the flat array: the size of all before it."""
    return (N_BASES ** (order + 1) - N_BASES) // (N_BASES - 1)


def _tables(flat: np.ndarray, order: int) -> list[np.ndarray]:
    """Return views (4**k, 4) of the orders' tables."""
    return [flat[_start(k) : _start(k + 1)].reshape(-1, N_BASES) for k in range(order + 1)]


def _count(counts: np.ndarray, sequences: Iterable[_Sequence], order: int) -> int:
    """Add the words of sequences to the flat counts; return how many there are."""
    n = 0
    for sequence in sequences:
        for words, bases in _words(sequence, order):
            words = words[bases]
            n += len(words)
            if n > _MAX_BASES:
                raise ValueError(f"X has more than {_MAX_BASES:,} bases, which the counts cannot hold; fit on fewer")
            np.add.at(counts, words, 1)  # bincount would make a table anew for each part
    if not n:
        raise ValueError("X has no A, C, G or T to count; pass sequences with bases")
    return n


def _of_other_strand(counts: np.ndarray) -> np.ndarray:
    """Return the counts of the reverse complements of the words of a table.

    With A, C, G, T as 0 to 3 the complement of a digit is 3 minus it, so that of all digits reverses the table, and
    reading backwards reverses the axes.
    """
    n_letters = (counts.size.bit_length() - 1) // 2
    return counts.reshape(-1)[::-1].reshape((N_BASES,) * n_letters).T.reshape(counts.shape)


def _mix(out: np.ndarray, counts: np.ndarray, totals: np.ndarray, strength, parent: np.ndarray) -> None:
    """Write to `out` (4**k, 4) the counts mixed with the next lower order, as if that were `strength` more counts."""
    strength = np.broadcast_to(np.asarray(strength, np.float64), totals.shape)
    for first in range(0, len(out), len(parent)):  # by the first letter of the context, which the parent lacks
        rows = slice(first, first + len(parent))
        out[rows] = (counts[rows] + strength[rows] * parent) / (totals[rows] + strength[rows])


def _best_strength(counts: np.ndarray, totals: np.ndarray, parent: np.ndarray) -> float:
    """Return the strength that predicts letters best when each in turn is taken out of the counts of all orders."""
    from scipy.optimize import minimize_scalar

    words = np.flatnonzero(counts)
    words = words[:: -(-len(words) // _WORDS_FOR_STRENGTH) or 1]
    n, others = counts.reshape(-1)[words].astype(np.float64), totals[words // N_BASES, 0] - 1
    prior = parent.reshape(-1)[words % parent.size].astype(np.float64)

    def cost(log_strength: float) -> float:
        strength = np.exp(log_strength)
        return -float(n @ np.log((n - 1 + strength * prior) / (others + strength)))

    best = minimize_scalar(cost, bounds=_LOG_STRENGTHS, method="bounded", options={"xatol": 0.02})
    return float(np.exp(best.x))

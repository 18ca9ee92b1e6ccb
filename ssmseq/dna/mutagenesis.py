"""In-silico saturation mutagenesis: what every substitution of one base in a region does to a model's answer.

A causal network walks along the region once. At each place, what follows the three other bases is read from copies of
its state there, many places at once.
"""

import os
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq.base import check_choice, check_number
from ssmseq.dna import likelihood
from ssmseq.dna.alphabet import BASES, BOS, MASK, N_BASES, PAD, A, encode, reverse_complement_tokens
from ssmseq.dna.displays import MutagenesisDisplay
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.likelihood import causal_log_probabilities, is_base
from ssmseq.dna.network import DNANetwork
from ssmseq.dna.window_scores import continued_log_likelihood, copied_caches

N_OTHERS = N_BASES - 1
MUTANTS_AT_ONCE = 3 * 256  # strings that a fine-tuned estimator is given


def mutate(model, sequence_or_fasta, contig, start, end, *, after, context, strands) -> MutagenesisDisplay:
    """Do the work of `DNALanguageModel.mutagenesis`, which describes it."""
    half = -(-model.length // 2)
    after, context = (half if given is None else given for given in (after, context))
    check_number("after", after, minimum=0, integer=True)
    check_number("context", context, minimum=0, integer=True)
    both = model._averages(strands)
    size, fetch = _source(sequence_or_fasta, contig)
    start, end = _region(start, end, size)
    low, high = max(start - context, 0), min(end + after, size)
    found = [_ratios(model, _tokens(fetch(low, high), contig), start - low, end - start, after)]
    if both:
        low, high = max(start - after, 0), min(end + context, size)
        other = reverse_complement_tokens(_tokens(fetch(low, high), contig))
        # On the other strand, places come in reversed order, and so do the complements of A, C, G and T.
        found.append(_ratios(model, other, high - end, end - start, after)[::-1, ::-1])
    return MutagenesisDisplay(changes=np.mean(found, axis=0), reference=fetch(start, end), start=start, contig=contig)


def _source(given, contig: str | None) -> tuple[int, Callable[[int, int], str]]:
    """Return the length of a string or a contig, and a function that gives the letters from one place to another."""
    if isinstance(given, str) and contig is None:
        return len(given), lambda start, end: given[start:end]
    if not isinstance(given, str | os.PathLike | Fasta):
        raise TypeError(f"a sequence, or a FASTA and its contig, is needed, got {type(given).__name__}")
    fasta = given if isinstance(given, Fasta) else Fasta(given)
    name: str = contig  # type: ignore[assignment]
    fasta.check(name, 0, 0)
    return fasta.contigs[name], lambda start, end: fasta.fetch(name, start, end)


def _tokens(letters: str, contig: str | None) -> np.ndarray:
    try:
        return encode(letters)
    except ValueError as error:
        name = "the sequence (to read a FASTA file, name its contig)" if contig is None else f"contig {contig}"
        raise ValueError(f"{name}: {error}") from None


def _region(start, end, size: int) -> tuple[int, int]:
    start, end = 0 if start is None else start, size if end is None else end
    for name, place in (("start", start), ("end", end)):
        check_number(name, place, minimum=0, maximum=size, integer=True)
    if start >= end:
        raise ValueError(f"the region from start={start} to end={end} is empty: end must be above start")
    return int(start), int(end)


def _ratios(model, tokens: np.ndarray, first: int, n: int, after: int) -> np.ndarray:
    """Return log-likelihood ratios (n, 4) of all bases at the n places from `first` on; NaN where there is none."""
    from tqdm import tqdm

    device = model._device()
    network = model.network_.to(device)
    with torch.inference_mode(), tqdm(total=n, file=sys.stderr, disable=not model.verbose, unit="base") as bar:
        if model.bidirectional:
            return masked_ratios(network, tokens, first, n, device=device, done=bar.update)
        return causal_ratios(
            network, tokens, first, n, after=after, chunk_length=model.chunk_length, device=device, done=bar.update
        )


def causal_ratios(
    network: DNANetwork,
    tokens: np.ndarray,
    first: int,
    n: int,
    *,
    after: int,
    chunk_length: int,
    device: torch.device,
    done=lambda n: None,
) -> np.ndarray:
    """Score the four bases at places of a sequence by a causal network.

    Parameters
    ----------
    network : DNANetwork
    tokens : array (L,) of token numbers
    first, n : int
        The places: n of them from `first` on.
    after : int
        Letters behind a place that count.
    chunk_length : int
        Letters of a sequence that are read at once; changes memory and speed alone.
    device : torch.device
    done : function
        Told of each number of places that are finished.

    Returns
    -------
    array (n, 4) of float64
        Log-likelihood with A, C, G or T there less that with the letter that is there, in nats; NaN where that is none
        of the four.
    """
    log_p = causal_log_probabilities(network, [tokens], chunk_length=chunk_length, device=device)[0]
    known = torch.from_numpy(log_p[first:]).to(device)
    letters = torch.from_numpy(tokens[first:].astype(np.int64)).to(device)
    caches, scores = _read_before(network, torch.from_numpy(tokens[:first].astype(np.int64)).to(device), chunk_length)
    # Keys and values of attention have a length of their own at each place.
    grows = any("keys" in cache for cache in caches)
    at_once = 1 if grows else max(likelihood.TOKENS_AT_ONCE // (N_OTHERS * min(after + 1, chunk_length)), 1)
    found = np.empty((n, N_BASES))
    kept_caches, kept_scores = [], []
    for i in range(n):
        kept_caches.append(copied_caches(caches, 1))
        kept_scores.append(scores)
        if i + 1 < n:
            scores = network.score_hidden(network.hidden(letters[None, i : i + 1], caches))
        if len(kept_scores) == at_once or i + 1 == n:
            places = torch.arange(i + 1 - len(kept_scores), i + 1, device=device)
            state = _stacked(kept_caches), torch.cat(kept_scores)
            values = _other_bases(network, *state, letters, known, places, after, chunk_length)
            found[places.cpu().numpy()] = values.cpu().numpy()
            done(len(places))
            kept_caches, kept_scores = [], []
    return found


def _read_before(network: DNANetwork, tokens: Tensor, chunk_length: int) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Read letters (L,), and return the caches and the scores (1, 1, 4) of the next letter."""
    caches = network.empty_caches()
    read = F.pad(tokens, (1, 0), value=BOS)[None]
    hidden = network.hidden(read[:, :chunk_length], caches)
    for start in range(chunk_length, read.shape[1], chunk_length):
        hidden = network.hidden(read[:, start : start + chunk_length], caches)
    return caches, network.score_hidden(hidden[:, -1:])


def _stacked(caches: list[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """Put the caches of several sequences into one."""
    return [
        {name: torch.cat([cache[name] for cache in layer]) for name in layer[0]} for layer in zip(*caches, strict=True)
    ]


def _other_bases(
    network: DNANetwork,
    caches: list[dict[str, Tensor]],
    scores: Tensor,
    letters: Tensor,
    known: Tensor,
    places: Tensor,
    after: int,
    chunk_length: int,
) -> Tensor:
    """Return the ratios (B, 4) at places of letters (L,) whose log-probabilities (L,) are known.

    `caches` and `scores` (B, 1, 4) are those before each place.
    """
    after = min(after, len(letters) - 1 - int(places[0]))  # none of them has more letters behind it
    index = places[:, None] + torch.arange(after + 1, device=places.device)
    padded, padded_known = F.pad(letters, (0, after), value=PAD)[index], F.pad(known, (0, after))[index]
    here = torch.where(is_base(padded[:, 0]), padded[:, 0] - A, 0)
    others = (here[:, None] + torch.arange(1, N_BASES, device=here.device)) % N_BASES
    rows = padded.repeat_interleave(N_OTHERS, 0)
    rows[:, 0] = A + others.flatten()
    found = continued_log_likelihood(
        network,
        copied_caches(caches, N_OTHERS),
        scores.repeat_interleave(N_OTHERS, 0),
        rows,
        chunk_length=chunk_length,
    )
    change = found.unflatten(0, (-1, N_OTHERS)) - padded_known.nansum(1, keepdim=True)
    ratios = torch.zeros(len(places), N_BASES, dtype=torch.float64, device=places.device).scatter(1, others, change)
    return torch.where(is_base(padded[:, :1]), ratios, torch.nan)


def masked_ratios(
    network: DNANetwork, tokens: np.ndarray, first: int, n: int, *, device: torch.device, done=lambda n: None
) -> np.ndarray:
    """Score the four bases at places of a sequence by a network that restores masked letters.

    Each place is masked alone. As `causal_ratios` else.
    """
    letters = torch.from_numpy(tokens.astype(np.int64)).to(device)
    found = np.empty((n, N_BASES))
    places = np.arange(first, first + n)
    for part in np.array_split(places, -(-n * len(tokens) // likelihood.TOKENS_AT_ONCE)):
        if not len(part):
            continue
        here = torch.from_numpy(part).to(device)
        rows = torch.arange(len(part), device=device)
        masked = letters.repeat(len(part), 1)
        masked[rows, here] = MASK
        log_p = network.score_hidden(network.hidden(masked)[rows, here]).double().log_softmax(-1)
        base = is_base(letters[here])[:, None]
        ratios = log_p - log_p.gather(1, torch.where(base, letters[here, None] - A, 0))
        found[part - first] = torch.where(base, ratios, torch.nan).cpu().numpy()
        done(len(part))
    return found


def mutate_decision(estimator, sequence: str, label) -> MutagenesisDisplay:
    """Do the work of the method `mutagenesis` of `DNAClassifier` and `DNARegressor`, which describes it."""
    from tqdm import tqdm

    if not isinstance(sequence, str):
        raise TypeError(f"sequence must be a string of DNA, got {type(sequence).__name__}")
    before, label = _decision(estimator, estimator._outputs([sequence]), label)
    places = [i for i, token in enumerate(encode(sequence)) if A <= token < A + N_BASES]
    changes = np.full((len(sequence), N_BASES), np.nan)
    mutants = [(i, b) for i in places for b in range(N_BASES) if BASES[b] != _base(sequence[i])]
    changes[places] = 0.0
    with tqdm(total=len(mutants), file=sys.stderr, disable=not estimator.verbose, unit="mutant") as bar:
        for start in range(0, len(mutants), MUTANTS_AT_ONCE):
            part = mutants[start : start + MUTANTS_AT_ONCE]
            outputs = estimator._outputs([sequence[:i] + BASES[b] + sequence[i + 1 :] for i, b in part])
            changes[tuple(zip(*part, strict=True))] = _decision(estimator, outputs, label)[0] - before
            bar.update(len(part))
    quantity = "change of the prediction" if label is None else "change of the log-odds"
    return MutagenesisDisplay(changes=changes, reference=sequence, start=0, quantity=quantity, label=label)


def _base(letter: str) -> str:
    return letter.upper().replace("U", "T")


def _decision(estimator, outputs: np.ndarray, label) -> tuple[np.ndarray, object]:
    """Return the log-odds (n,) of a class, by default of the most probable one of the first row, or the predictions."""
    if not hasattr(estimator, "classes_"):
        if label is not None:
            raise ValueError(f"label={label!r} is of a classifier: leave it out for a {type(estimator).__name__}")
        return outputs[:, 0] * estimator.scale_ + estimator.mean_, None
    labels = estimator.classes_.tolist()
    label = labels[outputs[0].argmax()] if label is None else label
    check_choice("label", label, labels)
    column = labels.index(label)
    others = np.delete(outputs, column, axis=1)
    return outputs[:, column] - np.logaddexp.reduce(others, axis=1), label

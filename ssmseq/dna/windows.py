"""DNA as a torch data set: windows of a genome or of strings, with the bases that a language model is to predict.

What an epoch draws, where windows begin, which strand is read and what is masked, depends on the seed, the epoch and
the window's number alone, whatever process loads it.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssmseq.base import check_number
from ssmseq.dna.alphabet import BOS, MASK, N_BASES, PAD, A, N, T, encode, is_soft_masked, reverse_complement_tokens
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.regions import read_regions

BLOCK = 1 << 20  # bases that are read at once to look for N
MASKED_SHARE, REPLACED_SHARE = 0.8, 0.1  # of the bases chosen to be predicted; the rest stays as it is
ROWS_TO_SHIFT = 8  # whole windows that a region must have to be given one row more for the sake of its shifts


class SequenceWindows(Dataset):
    """Consecutive windows over the regions of a genome, or over strings.

    Parameters
    ----------
    source : Fasta or list of str
        A FASTA is read again for every batch, so that no process holds a copy; strings are encoded once. Either is read
        through once to check its letters.
    regions : pandas.DataFrame, optional
        Of a FASTA, as `read_regions` gives them; the whole contigs by default. A region with strand "-" is read as its
        reverse complement. Regions are cut at runs of N that could fill a window, where there are no windows.
    length : int
        Of a window, in bases.
    min_length : int
        The fewest bases of a window. A shorter rest of a region is left out.
    shift : bool
        Let windows begin elsewhere in every epoch, as far as a region has room; see Notes.
    reverse_complement : bool
        Read the other strand of half of the windows, drawn in every epoch.
    masked : bool
        Predict masked bases, for networks that read from both ends, rather than the base after each token.
    mask_fraction : float
        Chance of each base to be chosen for prediction. Of those chosen 80 % are replaced by [MASK] and 10 % by a base
        drawn at random [1]_.
    soft_mask_weight : float
        Weight of bases in lower case; others have weight 1.
    lengths : list of (float, int), optional
        Shorter rows to begin with [2]_: pairs of the share of the epochs after which a length holds, and the length,
        which divides `length`, such as ``[(0.0, 256), (0.5, 1024)]``. A window is cut into rows of that length.
    max_epochs : int
        Of the training; needed with `lengths`, and ignored without.
    prompts : sequence of int, optional
        Of strings, the token that is read before the first base of each; [BOS] by default. Not for masked windows.
    seed : int
        Of all that is drawn.

    Attributes
    ----------
    starts, ends : array (regions,)
        Of the regions after they were cut, in bases from 0; and in these, `contigs` and `reverse`.
    numbers_epochs : bool
        True: index ``epoch * len(self) + i`` is window i of that epoch.

    Raises
    ------
    ValueError
        For a parameter out of range, a letter that is not of DNA, or if no window can be made.
    TypeError
        For a source of another kind.

    Notes
    -----
    Without `shift` the windows of a region begin at its start, and the last is shorter. With it the first is cut
    short instead, by a number of bases drawn in every epoch, so that both ends vary. The number of windows is the same
    in all epochs, and every base is in one window of each epoch, unless a rest below `min_length` is left out. Regions
    of 8 or more windows get one more where that gives their shifts more room.

    References
    ----------
    .. [1] Devlin et al., "BERT: pre-training of deep bidirectional transformers for language understanding", NAACL
       2019; for DNA, Schiff et al., "Caduceus", arXiv 2403.03234.
    .. [2] Nguyen et al., "HyenaDNA: long-range genomic sequence modeling at single nucleotide resolution",
       arXiv 2306.15794.

    Examples
    --------
    >>> windows = SequenceWindows(["ACGTA", "AC"], length=4, seed=0)
    >>> tokens, targets = windows.__getitems__([0, 1, 2])
    >>> tokens.tolist()
    [[2, 7, 8, 9], [2, 7, 4, 4], [2, 7, 8, 4]]
    >>> targets[:, 0].tolist()[2]
    [0.0, 1.0, nan, nan]
    """

    numbers_epochs = True

    def __init__(
        self,
        source: Fasta | Sequence[str],
        regions: pd.DataFrame | None = None,
        *,
        length: int,
        min_length: int = 1,
        shift: bool = False,
        reverse_complement: bool = False,
        masked: bool = False,
        mask_fraction: float = 0.15,
        soft_mask_weight: float = 1.0,
        lengths: Sequence[tuple[float, int]] | None = None,
        max_epochs: int = 1,
        prompts: Sequence[int] | None = None,
        seed: int,
    ):
        check_number("length", length, minimum=1, integer=True)
        check_number("min_length", min_length, minimum=1, maximum=length, integer=True)
        check_number("mask_fraction", mask_fraction, above=0, maximum=1)
        check_number("soft_mask_weight", soft_mask_weight, minimum=0)
        self.length, self.seed = length, seed
        self.reverse_complement, self.masked, self.mask_fraction = reverse_complement, masked, mask_fraction
        self.soft_mask_weight = soft_mask_weight
        self.stages = _stages(lengths, length, max_epochs)
        self.source: Fasta | _Strings = source if isinstance(source, Fasta) else _Strings(source)
        if isinstance(self.source, Fasta):
            regions = read_regions(regions, self.source)
        elif regions is not None:
            raise ValueError("regions are of a FASTA file: cut the strings themselves, or give a Fasta as the source")
        else:
            regions = self.source.regions()
        self._cut(regions)
        self.prompts = self._prompts(prompts)
        sizes = self.ends - self.starts
        counts, self.least, self.most = _rows_and_shifts(sizes, length, min_length, shift)
        self.first = np.concatenate([[0], np.cumsum(counts)])  # window of each region, and one past the last
        if not self.first[-1]:
            raise ValueError(
                f"none of the {len(regions)} regions or strings has a window: all are of N, or shorter than "
                f"min_length={min_length}; lower min_length or give others"
            )

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return tokens (L,) and targets (2, L) of one window; of the rows (rows, ...) it is cut into, if it is."""
        tokens, targets = self.__getitems__([index])
        return (tokens[0], targets[0]) if len(tokens) == 1 else (tokens, targets)

    def __getitems__(self, indices) -> tuple[Tensor, Tensor]:
        """Return what a network reads and is to predict of windows, all of one epoch.

        Parameters
        ----------
        indices : sequence of int
            Index ``epoch * len(self) + i`` is window i of that epoch.

        Returns
        -------
        tokens : Tensor (B, L) of int64
            [BOS], or the prompt, and the bases but for the last; if masked, the bases with some replaced. [PAD] comes
            after the end.
        targets : Tensor (B, 2, L) of float32
            For each token, index 0 to 3 of the base that follows it (if masked, that it stands for) in A, C, G, T, and
            the weight of that base. NaN where there is none, or it is not to be predicted.
        """
        places = [divmod(int(i), len(self)) for i in indices]
        row_length = self.row_length(places[0][0])
        if any(self.row_length(epoch) != row_length for epoch, _ in places):
            raise ValueError("windows of epochs with rows of different lengths make no batch: ask for one epoch")
        *parts, prompts = zip(*(self._window(epoch, i) for epoch, i in places), strict=True)
        read, tokens, soft, chosen = (np.stack(part).reshape(-1, row_length) for part in parts)
        if not self.masked:
            first = np.repeat(prompts, self.length // row_length)
            read = np.concatenate([first[:, None], read[:, :-1]], 1)
        index = np.where(_is_base(tokens) & chosen, tokens.astype(np.float32) - A, np.nan)
        weight = np.where(np.isnan(index), np.nan, np.where(soft, self.soft_mask_weight, 1))
        targets = np.stack([index, weight], 1).astype(np.float32)
        return torch.from_numpy(read.astype(np.int64)), torch.from_numpy(targets)

    def row_length(self, epoch: int) -> int:
        """Return the length, in bases, of the rows that windows are cut into at an epoch, counted from 0."""
        return next((length for begin, length in reversed(self.stages) if begin <= epoch), self.length)

    def place(self, epoch: int, i: int) -> tuple[int, int, int]:
        """Return the region of a window, counted from 0, and where in its contig it begins and ends at an epoch."""
        region = int(np.searchsorted(self.first, i, side="right")) - 1
        # No window has this number, so that nothing else is drawn from this generator.
        drawn = np.random.default_rng([self.seed, epoch, len(self)]).random()
        room = int(self.most[region] - self.least[region])
        before = int(self.least[region]) + int(drawn * (room + 1))
        begin = int(self.starts[region] + (i - self.first[region]) * self.length) - before
        return region, max(begin, int(self.starts[region])), min(begin + self.length, int(self.ends[region]))

    def _window(self, epoch: int, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        """Return the tokens to read, those that are true, which are soft-masked, which to predict, and the prompt."""
        region, start, end = self.place(epoch, i)
        rng = np.random.default_rng([self.seed, epoch, i])
        tokens, soft = np.full(self.length, PAD, np.uint8), np.zeros(self.length, bool)
        n = end - start
        tokens[:n], soft[:n] = self.source.read(self.contigs[region], start, end)
        if self.reverse[region] != (self.reverse_complement and rng.random() < 0.5):
            tokens[:n], soft[:n] = reverse_complement_tokens(tokens[:n]), soft[:n][::-1].copy()
        if not self.masked:
            return tokens, tokens, soft, np.ones(self.length, bool), int(self.prompts[region])
        chosen = (rng.random(self.length) < self.mask_fraction) & _is_base(tokens)
        fate = rng.random(self.length)
        others = rng.integers(A, A + N_BASES, self.length, dtype=np.uint8)
        read = np.where(chosen & (fate < MASKED_SHARE), MASK, tokens)
        replaced = chosen & (fate >= MASKED_SHARE) & (fate < MASKED_SHARE + REPLACED_SHARE)
        return np.where(replaced, others, read), tokens, soft, chosen, BOS

    def _cut(self, regions: pd.DataFrame) -> None:
        """Take over the regions, cut at long runs of N, with checksums by which a checkpoint knows the data."""
        found = []
        columns = (regions[name] for name in ("contig", "start", "end", "strand"))
        for owner, (contig, start, end, strand) in enumerate(zip(*columns, strict=True)):
            cuts, checksum = self._runs_of_n(contig, start, end)
            borders = [start, *(border for cut in cuts for border in cut), end]
            for first, last in zip(borders[::2], borders[1::2], strict=True):
                if first < last:
                    found.append((contig, first, last, strand == "-", owner, checksum))
        contigs, *numbers = zip(*found, strict=True) if found else ((),) * 6
        self.contigs = list(contigs)
        self.starts, self.ends, reverse, self.owners, self.checksums = (np.array(x, np.int64) for x in numbers)
        self.reverse = reverse.astype(bool)

    def _runs_of_n(self, contig, start: int, end: int) -> tuple[list[tuple[int, int]], int]:
        """Return the runs of N of a window's length or more, or of the whole region, and a checksum of the region."""
        runs: list[list[int]] = []
        checksum = 0
        for first in range(start, end, BLOCK):
            tokens, soft = self.source.read(contig, first, min(first + BLOCK, end))
            checksum = zlib.crc32(np.where(soft, tokens | 128, tokens).tobytes(), checksum)
            steps = np.diff(np.concatenate([[False], tokens == N, [False]]).astype(np.int8))
            for begin, stop in zip(
                np.flatnonzero(steps == 1) + first, np.flatnonzero(steps == -1) + first, strict=True
            ):
                if runs and runs[-1][1] == begin:
                    runs[-1][1] = int(stop)
                else:
                    runs.append([int(begin), int(stop)])
        least = min(self.length, end - start)
        return [(begin, stop) for begin, stop in runs if stop - begin >= least > 0], checksum

    def _prompts(self, prompts) -> np.ndarray:
        if prompts is None:
            return np.full(len(self.starts), BOS)
        if isinstance(self.source, Fasta) or self.masked or len(prompts) != len(self.source):
            raise ValueError(
                f"prompts must be one token for each string of a causal model, got {len(prompts)}: leave them out for "
                "FASTA files and masked windows"
            )
        return np.asarray(prompts, np.int64)[self.owners]


class _Strings:
    """Strings that are read as a `Fasta` is; each is a contig of its own."""

    def __init__(self, strings: Sequence[str]):
        if isinstance(strings, str | bytes):
            raise TypeError("the source must be a Fasta or a list of strings: put a single string into a list")
        self.tokens, self.soft = [], []
        for i, string in enumerate(strings):
            self.tokens.append(_encoded(string, i))
            self.soft.append(is_soft_masked(string))

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, contig, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[contig][start:end], self.soft[contig][start:end]

    def regions(self) -> pd.DataFrame:
        sizes = [len(tokens) for tokens in self.tokens]
        return pd.DataFrame({"contig": range(len(self)), "start": 0, "end": sizes, "strand": "."})


def encode_batch(sequences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encode sequences of any lengths for one pass of a causal network.

    Parameters
    ----------
    sequences : sequence of str

    Returns
    -------
    tokens : Tensor (B, 1 + L) of int64
        [BOS], the letters, and [PAD] up to the longest length L.
    lengths : Tensor (B,) of int64
        In bases, without [BOS].

    Raises
    ------
    ValueError
        If there is no sequence, or for a letter that is not of DNA, naming the sequence.
    TypeError
        For a single string, or a sequence of another kind.

    Examples
    --------
    >>> tokens, lengths = encode_batch(["ACG", "T"])
    >>> tokens.tolist(), lengths.tolist()
    ([[2, 7, 8, 9], [2, 10, 4, 4]], [3, 1])
    """
    if isinstance(sequences, str | bytes):
        raise TypeError("sequences must be a list of strings: put a single string into a list")
    found = [_encoded(sequence, i) for i, sequence in enumerate(sequences)]
    if not found:
        raise ValueError("there is no sequence to encode: give one or more")
    tokens = np.full((len(found), 1 + max(map(len, found))), PAD, np.int64)
    tokens[:, 0] = BOS
    for row, letters in zip(tokens, found, strict=True):
        row[1 : 1 + len(letters)] = letters
    return torch.from_numpy(tokens), torch.tensor([len(letters) for letters in found])


def _encoded(sequence: str, i: int) -> np.ndarray:
    try:
        return encode(sequence)
    except (TypeError, ValueError) as error:
        raise type(error)(f"sequence {i}, counted from 0: {error}") from error


def _is_base(tokens: np.ndarray) -> np.ndarray:
    return (tokens >= A) & (tokens <= T)


def _stages(lengths, length: int, max_epochs: int) -> list[tuple[int, int]]:
    """Return the first epoch and the length of each part of a schedule."""
    check_number("max_epochs", max_epochs, minimum=1, integer=True)
    found: list[tuple[int, int]] = []
    for share, part in lengths or []:
        check_number("a share in lengths", share, minimum=0, below=1)
        check_number("a length in lengths", part, minimum=1, maximum=length, integer=True)
        if length % part:
            raise ValueError(f"lengths holds {part}, which does not divide length={length}: choose a divisor")
        begin = round(share * max_epochs)
        if begin >= max_epochs or (found and begin <= found[-1][0]):
            raise ValueError(
                f"lengths={list(lengths)!r} leaves one of its lengths no epoch of its own in max_epochs={max_epochs}: "
                "let the shares rise, by an epoch or more each"
            )
        found.append((begin, part))
    return found


def _rows_and_shifts(
    sizes: np.ndarray, length: int, min_length: int, shift: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for regions how many windows each has, and by how many bases, at least and at most, its first is cut.

    A negative number skips bases in front. Each region keeps its count over the whole range, and windows of at least
    `min_length` bases.
    """
    whole, rest = np.divmod(sizes, length)
    keeps_rest = rest >= min_length
    counts, least, most = whole + keeps_rest, np.zeros_like(sizes), np.zeros_like(sizes)
    if not shift:
        return counts, least, most
    least, most = np.where(keeps_rest, 0, -rest), np.where(keeps_rest, length - rest, 0)
    # One row more: both its first and its last window are short.
    least_more = min_length - rest + np.where(keeps_rest, length, 0)
    most_more = length - min_length
    more = (whole >= ROWS_TO_SHIFT) & (most_more - least_more > most - least)
    return counts + more, np.where(more, least_more, least), np.where(more, most_more, most)

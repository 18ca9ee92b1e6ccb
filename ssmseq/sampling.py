"""The order of the training windows, and the seeds of an epoch: both depend on the run's seed and the epoch alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def mixed_seed(*numbers: int) -> int:
    """Return one seed made of several numbers; neighbouring numbers give seeds far apart."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class EpochSampler(Sampler[int]):
    """Every index once per epoch, in an order of its own. Lightning calls `set_epoch`.

    Parameters
    ----------
    size : int
        Indices run from 0 to ``size - 1``.
    seed : int
        Of the run.
    numbers_epochs : bool
        Add ``epoch * size`` to the indices, for data sets that draw something else in every epoch: processes that load
        data know no epoch.
    """

    def __init__(self, size: int, seed: int, *, numbers_epochs: bool = False):
        self.size, self.seed, self.numbers_epochs, self.epoch = size, seed, numbers_epochs, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that the next iteration takes; epochs count from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        first = self.epoch * self.size if self.numbers_epochs else 0
        return iter((first + torch.randperm(self.size, generator=generator)).tolist())

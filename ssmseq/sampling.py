"""The order of the training windows, and the seeds of an epoch: both depend on the run's seed and the epoch alone.

Several processes take turns in one common order, so that together they make the steps of one process with a batch as
large as all of theirs.
"""

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
        self.rank, self.world_size = 0, 1

    def share(self, rank: int, world_size: int) -> None:
        """Give this process its part; what cannot be shared equally is left out, other indices in each epoch."""
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order that the next iteration takes; epochs count from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        first = self.epoch * self.size if self.numbers_epochs else 0
        order = first + torch.randperm(self.size, generator=generator)
        return iter(order[self.rank :: self.world_size][: len(self)].tolist())


class PartSampler(Sampler[int]):
    """Each index in one process, in order; every index in all of them where there are fewer than processes."""

    def __init__(self, size: int):
        self.size, self.rank, self.world_size = size, 0, 1

    def share(self, rank: int, world_size: int) -> None:
        """Give this process its part."""
        self.rank, self.world_size = (rank, world_size) if self.size >= world_size else (0, 1)

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.world_size))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.world_size))

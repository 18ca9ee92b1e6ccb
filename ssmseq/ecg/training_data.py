"""Recordings as a torch data set: crops, drawn anew in every epoch and perhaps augmented, or fixed windows.

What an epoch draws depends on the seed, the epoch and the recording's number alone, whatever process loads it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ssmseq.base import check_choice, check_number

# Strengths that a mere name stands for.
AUGMENTATIONS = {"time_shift": 0.1, "lead_dropout": 0.1, "noise": 0.05, "baseline_wander": 0.1, "mixup": 0.8}
SHARES = ("lead_dropout", "mixup")  # strengths that cannot be above 1
WANDER_BAND = (0.05, 0.5)  # Hz, of breathing and of drifting electrodes
MIXUP_STEPS = 4


def read_augmentations(augment) -> dict[str, float]:
    """Return the strength of each augmentation, from names or from strengths by name.

    Raises
    ------
    ValueError
        For an unknown name or an impossible strength.
    """
    if augment is None:
        return {}
    if isinstance(augment, str) or not isinstance(augment, Mapping | Sequence):
        raise ValueError(f"augment must be None, a list of names or a dict of strengths, got {augment!r}")
    found: dict[str, float] = {}
    for name in augment:
        check_choice("augment", name, tuple(AUGMENTATIONS))
        strength = augment[name] if isinstance(augment, Mapping) else AUGMENTATIONS[name]
        check_number(f"augment[{name!r}]", strength, minimum=0, maximum=1 if name in SHARES else None)
        found[name] = float(strength)
    return found


class Crops(Dataset):
    """Crops of recordings for training, or all windows of them for validation.

    Parameters
    ----------
    signals : list of array (leads, times)
        At one sampling rate.
    masks : array (n, leads) bool
        Usable leads.
    metadata : array (n, 4) or None
    targets : array (n, 2, K)
        Labels and their weights.
    n_times : int
        Samples of a crop. Shorter recordings are padded with zeros at the end.
    mean, scale : float
        Subtracted, and divided by.
    dtype : numpy dtype
        Of what the network is given.
    sampling_rate : float
        In Hz.
    augmentations : dict of str to float
        See `read_augmentations`.
    max_epochs : int
        Mixing grows over them.
    seed : int
    starts : list of (recording, first sample), optional
        Fixed windows in place of drawn crops.
    """

    def __init__(
        self,
        signals: list[np.ndarray],
        masks: np.ndarray,
        metadata: np.ndarray | None,
        targets: np.ndarray,
        *,
        n_times: int,
        mean: float,
        scale: float,
        dtype: Any,
        sampling_rate: float,
        augmentations: dict[str, float],
        max_epochs: int,
        seed: int,
        starts: list[tuple[int, int]] | None = None,
    ):
        self.signals, self.masks, self.metadata, self.targets = signals, masks, metadata, targets
        self.n_times, self.mean, self.scale, self.dtype = n_times, mean, scale, dtype
        self.sampling_rate, self.augmentations = sampling_rate, augmentations
        # Known only where it counts: a checkpoint knows the data by all that is here, and other runs may be prolonged.
        self.max_epochs = max_epochs if augmentations.get("mixup") else None
        self.seed, self.starts = seed, starts
        self.numbers_epochs = starts is None  # indices go on counting from epoch to epoch

    def __len__(self) -> int:
        return len(self.signals) if self.starts is None else len(self.starts)

    def __getitems__(self, indices) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return inputs and targets of several crops; index ``epoch * len(self) + i`` is crop i of that epoch."""
        if self.starts is None:
            found = [self._drawn(*divmod(int(i), len(self))) for i in indices]
        else:
            found = [self._fixed(*self.starts[int(i)]) for i in indices]
        signal, mask, n_valid, metadata, targets = (np.stack(part) for part in zip(*found, strict=True))
        inputs = {"signal": signal.astype(self.dtype), "lead_mask": mask.astype(self.dtype), "n_valid": n_valid}
        if self.metadata is not None:
            inputs["metadata"] = metadata.astype(self.dtype)
        return {k: torch.from_numpy(v) for k, v in inputs.items()}, torch.from_numpy(targets.astype(self.dtype))

    def _fixed(self, i: int, start: int):
        signal, n_valid = self._crop(i, start)
        return signal, self.masks[i], n_valid, self._metadata(i), self.targets[i]

    def _drawn(self, epoch: int, i: int):
        rng = np.random.default_rng([self.seed, epoch, i])
        signal, mask, n_valid = self._augmented(i, rng)
        metadata, targets = self._metadata(i), self.targets[i]
        strength = self.augmentations.get("mixup", 0.0)
        if self.max_epochs is not None and rng.random() < mixup_share(strength, epoch, self.max_epochs):
            j, weight = int(rng.integers(len(self))), rng.beta(0.5, 0.5)
            other, other_mask, other_valid = self._augmented(j, rng)
            signal = weight * signal + (1 - weight) * other
            mask, n_valid = mask | other_mask, max(n_valid, other_valid)
            metadata = weight * metadata + (1 - weight) * self._metadata(j)
            targets = weight * targets + (1 - weight) * self.targets[j]
        return signal, mask, n_valid, metadata, targets

    def _metadata(self, i: int) -> np.ndarray:
        return np.zeros(0) if self.metadata is None else self.metadata[i]

    def _crop(self, i: int, start: int) -> tuple[np.ndarray, int]:
        """Return normalised samples from `start` on, which may lie before the recording, and where they end."""
        signal = self.signals[i]
        first, last = max(start, 0), min(start + self.n_times, signal.shape[1])
        crop = np.zeros((len(signal), self.n_times))
        crop[:, first - start : last - start] = (signal[:, first:last].astype(np.float64) - self.mean) / self.scale
        crop[~self.masks[i]] = 0
        return crop, last - start

    def _augmented(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        strengths, mask = self.augmentations, self.masks[i]
        spare = self.signals[i].shape[1] - self.n_times
        shift = min(round(strengths.get("time_shift", 0.0) * self.sampling_rate), self.n_times - 1)
        start = int(rng.integers(max(spare, 0) + 1))
        if shift:
            start += int(rng.integers(-shift, shift + 1))
            # Whatever is shifted, half of what there is stays in view.
            half = min(self.signals[i].shape[1], self.n_times) // 2
            start = min(max(start, half - self.n_times), self.signals[i].shape[1] - half - 1)
        crop, n_valid = self._crop(i, start)
        if strengths.get("lead_dropout"):
            kept = mask & (rng.random(len(mask)) >= strengths["lead_dropout"])
            mask = kept if kept.any() else mask
        added = np.zeros_like(crop)
        if strengths.get("noise"):
            added += strengths["noise"] * rng.standard_normal(crop.shape)
        if strengths.get("baseline_wander"):
            added += strengths["baseline_wander"] * self._wander(rng, len(crop))
        crop[:, max(-start, 0) : n_valid] += added[:, max(-start, 0) : n_valid]
        crop[~mask] = 0
        return crop, mask, n_valid

    def _wander(self, rng: np.random.Generator, n_leads: int) -> np.ndarray:
        """Return a slow sinusoid for each lead, of one frequency, and of unit variance on average."""
        seconds = np.arange(self.n_times) / self.sampling_rate
        phase = 2 * np.pi * (rng.uniform(*WANDER_BAND) * seconds + rng.random())
        return rng.standard_normal((n_leads, 1)) * np.sqrt(2) * np.sin(phase)


def mixup_share(strength: float, epoch: int, max_epochs: int) -> float:
    """Return which share of the crops is mixed in an epoch, counted from 0: a quarter of `strength`, then two, ...

    References
    ----------
    "ECG-Mamba", IEEE JTEHM 13, 2025: the share rises over training from 20 to 80 %, which `strength` 0.8 does.
    """
    return strength * (min(MIXUP_STEPS * epoch // max_epochs, MIXUP_STEPS - 1) + 1) / MIXUP_STEPS


def window_starts(lengths: Sequence[int], n_times: int, step: int) -> list[tuple[int, int]]:
    """Return (recording, first sample) of windows a step apart; a last one ends with the recording."""
    found = []
    for i, length in enumerate(lengths):
        last = max(length - n_times, 0)
        starts = [*range(0, last + 1, step)]
        found += [(i, start) for start in (starts if starts[-1] == last else [*starts, last])]
    return found

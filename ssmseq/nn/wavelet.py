"""Discrete wavelet transform over the channels of a token, one level, as one matrix each way.

The filters are Daubechies' with 1 to 10 vanishing moments; the border is continued symmetrically, half a sample over,
which is PyWavelets' mode "symmetric". Low and high bands have ``(d + taps - 1) // 2`` channels each.
"""

import math
import re

import numpy as np
import torch
from torch import Tensor, nn

MOST_MOMENTS = 10
FEWEST_CHANNELS = 2


def wavelet_filter(name: str) -> np.ndarray:
    """Return the low-pass filter of reconstruction (2 N,), of unit norm.

    Parameters
    ----------
    name : str
        "haar", or "db1" to "db10": Daubechies' wavelet with N vanishing moments.

    Raises
    ------
    ValueError
        For another name.

    References
    ----------
    Daubechies, "Ten lectures on wavelets", 1992, section 6.1: spectral factors with their roots inside the unit circle.
    """
    found = re.fullmatch(r"db(\d+)", "db1" if name == "haar" else str(name))
    moments = int(found[1]) if found else 0
    if not 1 <= moments <= MOST_MOMENTS:
        raise ValueError(f"wavelet must be 'haar' or one of 'db1' to 'db{MOST_MOMENTS}', got {name!r}")
    # |H(w)|^2 = 2 (cos^2 w/2)^N P(sin^2 w/2), P's coefficients being binomial; y = (2 - z - 1/z) / 4.
    coefficients = [math.comb(moments - 1 + k, k) for k in range(moments)][::-1]
    taps = np.ones(1)
    for y in np.roots(coefficients):
        z = 1 - 2 * y + np.array([1, -1]) * np.sqrt((1 - 2 * y) ** 2 - 1 + 0j)
        taps = np.convolve(taps, [1, -z[np.abs(z).argmin()]])
    for _ in range(moments):
        taps = np.convolve(taps, [1, 1])
    taps = taps.real
    return taps * math.sqrt(2) / taps.sum()


class WaveletTransform(nn.Module):
    """Split tokens into low and high frequencies of their channels, and put them together again.

    Parameters
    ----------
    d : int
        Channels D, at least 2.
    wavelet : str
        "haar", or "db1" to "db10".

    Attributes
    ----------
    width : int
        Channels M of each band.

    Raises
    ------
    ValueError
        For another wavelet, or fewer channels.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, d: int, wavelet: str):
        super().__init__()
        low = wavelet_filter(wavelet)
        if d < FEWEST_CHANNELS:
            raise ValueError(f"a wavelet transform needs at least {FEWEST_CHANNELS} channels, got {d}")
        high = low[::-1] * np.resize([1.0, -1.0], len(low))
        self.width = (d + len(low) - 1) // 2
        analysis = np.zeros((2, self.width, d))
        synthesis = np.zeros((2, self.width, d))
        for band, taps in enumerate((low, high)):
            for i in range(self.width):
                for k, tap in enumerate(taps):
                    at = 2 * i + 2 - len(taps) + k  # of the channel that this tap meets
                    analysis[band, i, _mirrored(at, d)] += tap
                    if 0 <= at < d:
                        synthesis[band, i, at] += tap
        self.register_buffer("analysis", torch.from_numpy(analysis.reshape(-1, d)), persistent=False)
        self.register_buffer("synthesis", torch.from_numpy(synthesis.reshape(-1, d).T.copy()), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (..., D) to the low and the high band, each (..., M)."""
        low, high = nn.functional.linear(x, self.analysis.to(x.dtype)).split(self.width, -1)
        return low, high

    def inverse(self, low: Tensor, high: Tensor) -> Tensor:
        """Map the two bands (..., M) back to (..., D)."""
        return nn.functional.linear(torch.cat([low, high], -1), self.synthesis.to(low.dtype))


def _mirrored(at: int, d: int) -> int:
    """Continue the channels beyond both ends: ... 1 0 | 0 1 ... d-1 | d-1 d-2 ..."""
    at %= 2 * d
    return at if at < d else 2 * d - 1 - at

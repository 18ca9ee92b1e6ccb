"""Shapes and inputs of the GPU benchmark."""

from typing import Any

import torch
from roofline import Sizes
from torch import Tensor

SHAPES: dict[str, Sizes] = {  # B, L, D, N
    "R1": (8, 4096, 2048, 16),  # a language model
    "R2": (1, 2048, 1536, 16),  # prompt of one user
    "R3": (1, 131072, 512, 16),  # DNA
    "R4": (1, 1 << 20, 512, 16),  # the longest DNA
    "R5": (16, 862, 1024, 32),  # S-Mamba on the traffic data: time is variates
    "R6": (128, 197, 384, 16),  # images
    "R7": (256, 96, 128, 16),  # short time series
    "R8": (32, 11, 512, 32),  # variates of ETT
}
SMALL: dict[str, Sizes] = dict.fromkeys(SHAPES, (1, 3, 4, 2)) | {"R3": (1, 66, 4, 2)}  # of a rehearsal
DOCUMENTS = (1600, 900, 560, 400, 280, 180, 110, 66)  # steps of the eight documents packed into a row of 4096
SMALL_DOCUMENTS = (2, 1)
STEP_BATCHES = (1, 8, 64, 256)
STEP_CHANNELS, STEP_STATES = 2048, 16
MODES = ("forward", "backward", "forward+backward")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
PER_STEP = ("u", "delta", "B", "C", "z")  # the others are weights, always float32
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Inputs = dict[str, Tensor]


def shape_of(name: str, rehearsing: bool) -> Sizes:
    return (SMALL if rehearsing else SHAPES)[name]


def make_inputs(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Random inputs, channels last and contiguous, with the decays of a trained layer.

    Step sizes are around 0.1, rates about -1 to -N.
    """
    n_batch, length, d, n = sizes
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=kind, device=device).normal_(generator=generator)

    rates = torch.arange(1, n + 1, device=device) * torch.exp(0.5 * normal(d, n))
    return {
        "u": normal(n_batch, length, d, kind=dtype),
        "delta": normal(n_batch, length, d, kind=dtype).sub_(2),
        "A": -rates,
        "B": normal(n_batch, length, n, kind=dtype),
        "C": normal(n_batch, length, n, kind=dtype),
        "D": normal(d),
        "z": normal(n_batch, length, d, kind=dtype),
        "delta_bias": 0.3 * normal(d),
    }


def laid_out(inputs: Inputs, layout: str, dtype: torch.dtype) -> Inputs:
    """The same values as a method wants them: "BLD", or "BDL" for contiguous channels before time."""
    made = {}
    for name, x in inputs.items():
        if name in PER_STEP:
            x = x.detach().to(dtype)
            x = x.mT.contiguous() if layout == "BDL" else x
        made[name] = x
    return made


def input_bytes(sizes: Sizes, dtype: torch.dtype) -> int:
    n_batch, length, d, n = sizes
    return n_batch * length * (3 * d + 2 * n) * dtype.itemsize


def step_inputs(n_batch: int, d: int, n: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Inputs of one decode step and a float32 state (B, D, N)."""
    inputs = make_inputs((n_batch, 1, d, n), dtype, device)
    made = {name: x[:, 0].contiguous() if name in PER_STEP else x for name, x in inputs.items()}
    return {**made, "state": torch.zeros(n_batch, d, n, device=device)}

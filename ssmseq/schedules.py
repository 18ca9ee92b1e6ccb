"""Learning-rate schedules by name: factors of the initial rate, by epoch or by step."""

import math
from typing import Any

import torch

WARM_UP = 0.1  # of the steps, in which "warmup_cosine" rises
FLOOR = 0.1  # of the initial rate, at which it ends


def _halve(epoch: int, epochs: int) -> float:
    return 0.5 ** max(epoch - 1, 0)


def _cosine(epoch: int, epochs: int) -> float:
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / epochs)).item())


def _constant(epoch: int, epochs: int) -> float:
    return 1.0


def _warm_up_cosine(step: int, steps: int) -> float:
    rising = max(round(WARM_UP * steps), 1)
    if step < rising:
        return (step + 1) / rising
    share = min((step - rising) / max(steps - rising, 1), 1.0)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share))


BY_EPOCH = {"halve": _halve, "cosine": _cosine, "constant": _constant}  # epoch, number of epochs, from 0
BY_STEP = {"warmup_cosine": _warm_up_cosine}  # step, number of steps
SCHEDULES = (*BY_EPOCH, *BY_STEP)


def scheduler(name: str, optimizer: torch.optim.Optimizer, trainer) -> dict[str, Any]:
    """Return the scheduler of a name, as Lightning takes it."""
    if name in BY_EPOCH:
        factor, interval, total = BY_EPOCH[name], "epoch", trainer.max_epochs
    else:
        factor, interval, total = BY_STEP[name], "step", int(trainer.estimated_stepping_batches)
    made = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: factor(count, total))
    return {"scheduler": made, "interval": interval}

"""Losses of forecasts: each maps a forecast and the truth, both (..., H), to a scalar."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F


def frequency_loss(forecast: Tensor, truth: Tensor, weight: float) -> Tensor:
    r"""Mean squared error, mixed with the mean distance of the Fourier coefficients over the horizon.

    .. math:: (1 - w) \operatorname{mean} (\hat y - y)^2 + w \operatorname{mean} \lvert F \hat y - F y \rvert

    F is the real Fourier transform without normalisation, ``rfft``, so its part grows with the horizon. Errors of
    neighbouring steps are correlated; those of frequencies are nearly not, which is what makes a loss over them fit.

    Parameters
    ----------
    forecast, truth : Tensor (..., H)
    weight : float
        w, from 0 to 1. The published code of KARMA uses 0.8, on one data set 0.01.

    Returns
    -------
    Tensor ()

    References
    ----------
    Wang et al., "FreDF: Learning to forecast in the frequency domain", arXiv 2402.02399.
    """
    error = forecast - truth
    wide = error.to(torch.promote_types(error.dtype, torch.float32))  # the transform knows no bfloat16
    return (1 - weight) * wide.square().mean() + weight * torch.fft.rfft(wide).abs().mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,  # delta 1
    "fredf": frequency_loss,
}


def loss_of(estimator) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that an estimator's `loss` names, with the weight `fredf_weight` where it takes one."""
    loss = LOSSES[estimator.loss]
    return partial(loss, weight=estimator.fredf_weight) if loss is frequency_loss else loss

"""Losses of forecasts: each maps a forecast and the truth, both (..., H), to a scalar. Quantiles lie on a last axis.

Which losses train and validate an estimator is decided here, by `loss_of` and `validation_loss_of`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real

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


def quantile_loss(forecast: Tensor, truth: Tensor, quantiles: Sequence[float]) -> Tensor:
    r"""Mean pinball loss: its minimum over the forecasts is at the quantiles of the truth.

    .. math:: \operatorname{mean} \max\bigl(q (y - \hat y_q),\ (q - 1) (y - \hat y_q)\bigr)

    Parameters
    ----------
    forecast : Tensor (..., H, Q)
    truth : Tensor (..., H)
    quantiles : sequence of float
        The Q levels q, between 0 and 1.

    Returns
    -------
    Tensor ()

    References
    ----------
    Koenker and Bassett, "Regression quantiles", Econometrica 46(1), 1978.
    """
    error = truth.unsqueeze(-1) - forecast
    q = torch.tensor(quantiles, dtype=error.dtype, device=error.device)
    return torch.maximum(q * error, (q - 1) * error).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,  # delta 1
    "fredf": frequency_loss,
}


Loss = Callable[[Tensor, Tensor], Tensor]


def quantiles_of(estimator) -> list[float] | None:
    """Return the quantiles that an estimator's network forecasts, or None for a network of point forecasts.

    Raises
    ------
    ValueError
        If they are not levels between 0 and 1 in ascending order with the median among them, or `loss` is set as well.
    """
    quantiles = getattr(estimator, "quantiles", None)
    if quantiles is None:
        return None
    if not isinstance(quantiles, list | tuple) or not all(isinstance(q, Real) and 0 < float(q) < 1 for q in quantiles):
        raise ValueError(f"quantiles must be None or a list of numbers between 0 and 1, got {quantiles!r}")
    if 0.5 not in quantiles or sorted(set(quantiles)) != list(quantiles):
        raise ValueError(f"quantiles must ascend and hold 0.5, the point forecast, got {quantiles!r}")
    if estimator.loss != "mse":
        raise ValueError(
            f"quantiles={quantiles!r} are trained on the quantile loss, not on loss={estimator.loss!r}: leave "
            "loss='mse', its default, or set quantiles=None"
        )
    return [float(q) for q in quantiles]


def loss_of(estimator, *, masked: bool = False) -> Loss:
    """Return the loss to train an estimator with: that of its `quantiles` where it has any, else the one it names.

    Parameters
    ----------
    estimator : SequenceEstimator
        Its `loss`, `fredf_weight` and, where it has one, `quantiles` are read.
    masked : bool
        Whether the truth may hold NaN, for values that were not observed: see `over_observed`.

    Returns
    -------
    callable
        Maps a forecast (..., H), or (..., H, Q) with quantiles, and the truth (..., H) to a scalar.
    """
    quantiles = quantiles_of(estimator)
    if quantiles is not None:
        loss: Loss = partial(quantile_loss, quantiles=quantiles)
    elif estimator.loss == "fredf":
        loss = partial(frequency_loss, weight=estimator.fredf_weight)
    else:
        loss = LOSSES[estimator.loss]
    return over_observed(loss) if masked else loss


def validation_loss_of(estimator, *, masked: bool = False) -> Loss:
    """Return the loss to validate an estimator with: the squared error whatever it trains on, so that runs compare.

    A forecast of quantiles is validated by the quantile loss: the squared error of a median is least at the mean, and
    would choose weights that miss the median of a skewed distribution.
    """
    loss = F.mse_loss if quantiles_of(estimator) is None else loss_of(estimator)
    return over_observed(loss) if masked else loss


def over_observed(loss: Loss) -> Loss:
    """Return a loss over the observed values alone, those that are not NaN in the truth.

    What is missing counts as forecast without error and gets no gradient; the mean, taken over all values, is made one
    over those observed. It is 0 where nothing is observed.
    """

    def masked(forecast: Tensor, truth: Tensor) -> Tensor:
        missing = truth.isnan()
        n_observed = truth.numel() - missing.sum()
        hidden = missing.unsqueeze(-1) if forecast.dim() > truth.dim() else missing
        value = loss(forecast.masked_fill(hidden, 0), truth.masked_fill(missing, 0))
        share = n_observed.clamp(min=1).to(torch.promote_types(value.dtype, torch.float32)) / truth.numel()
        return value / share.to(value.dtype)

    return masked

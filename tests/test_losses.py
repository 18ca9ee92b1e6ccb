"""Losses over what was observed, losses of quantiles, and the means of an epoch that training reports."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_pinball_loss
from torch import nn

from ssmseq.nn.losses import LOSSES, loss_of, quantile_loss, validation_loss_of
from ssmseq.training import fit_network

LEVELS = [0.1, 0.5, 0.75]


class Gappy(torch.utils.data.Dataset):
    """Windows with inputs by name and NaN in the targets."""

    has_gaps = True

    def __init__(self, n_windows: int, share: float, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.past = torch.randn(n_windows, 3, 8, generator=generator)
        self.static = torch.randn(n_windows, 3, 2, generator=generator)
        self.targets = torch.randn(n_windows, 3, 4, generator=generator)
        self.targets[torch.rand(self.targets.shape, generator=generator) < share] = torch.nan
        self.targets[: n_windows // 4, :, 1:] = torch.nan  # so that batches hold unlike numbers of values

    def __len__(self):
        return len(self.past)

    def __getitems__(self, indices):
        chosen = torch.as_tensor(indices)
        return {"past": self.past[chosen], "static": self.static[chosen]}, self.targets[chosen]


class Named(nn.Module):
    """Takes its inputs by name, in another order than the data set gives them."""

    def __init__(self, n_quantiles: int | None = None):
        super().__init__()
        self.shape = (4,) if n_quantiles is None else (4, n_quantiles)
        self.past, self.static = nn.Linear(8, int(np.prod(self.shape))), nn.Linear(2, 1)

    def forward(self, static, past):
        return (self.past(past) + self.static(static)).unflatten(-1, self.shape)


def over_observed(function, forecast, truth) -> float:
    """Apply a function to pairs of single values, one at a time, and average those whose truth is known."""
    found = [function(f, y) for f, y in zip(forecast.flatten(), truth.flatten(), strict=True) if y == y]
    return float(np.mean(found))


ERRORS = {
    "mse": lambda f, y: float(f - y) ** 2,
    "mae": lambda f, y: abs(float(f - y)),
    "huber": lambda f, y: abs(float(f - y)) - 0.5 if abs(float(f - y)) > 1 else 0.5 * float(f - y) ** 2,
}


def gappy_pair(*last):
    generator = torch.Generator().manual_seed(0)
    forecast = torch.randn(5, 3, 7, *last, generator=generator, dtype=torch.float64).requires_grad_()
    truth = 2 * torch.randn(5, 3, 7, generator=generator, dtype=torch.float64)
    truth[torch.rand(5, 3, 7, generator=generator) < 0.4] = torch.nan
    return forecast, truth


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_masked_losses_are_means_over_the_observed_values(small, loss):
    forecast, truth = gappy_pair()
    value = loss_of(small(loss=loss), masked=True)(forecast, truth)
    assert value.item() == pytest.approx(over_observed(ERRORS[loss], forecast.detach(), truth), rel=1e-12)


@pytest.mark.parametrize("loss", [*LOSSES, "quantiles"])
def test_what_is_missing_has_no_gradient_and_what_is_observed_the_right_one(small, loss):
    forecast, truth = gappy_pair(*([3] if loss == "quantiles" else []))
    est = small(loss="mse" if loss == "quantiles" else loss)
    est.quantiles = LEVELS if loss == "quantiles" else None
    masked, plain = loss_of(est, masked=True), loss_of(est, masked=False)
    (gradient,) = torch.autograd.grad(masked(forecast, truth), forecast)
    missing = truth.isnan()
    assert (gradient[missing] == 0).all()
    assert gradient[~missing].abs().min() > 0
    if loss != "fredf":  # whose transform mixes the steps
        (expected,) = torch.autograd.grad(plain(forecast[~missing], truth[~missing]), forecast)
        torch.testing.assert_close(gradient, expected)
    full = truth.nan_to_num(1.0)
    assert masked(forecast, full).item() == pytest.approx(plain(forecast, full).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [*LOSSES, "quantiles"])
def test_nothing_observed_is_no_loss_and_no_gradient(small, loss):
    est = small(loss="mse" if loss == "quantiles" else loss)
    est.quantiles = LEVELS if loss == "quantiles" else None
    forecast = torch.randn(2, 3, 4, *([3] if loss == "quantiles" else []), requires_grad=True)
    for function in (loss_of, validation_loss_of):
        value = function(est, masked=True)(forecast, torch.full((2, 3, 4), torch.nan))
        (gradient,) = torch.autograd.grad(value, forecast)
        assert value.item() == 0
        assert (gradient == 0).all()


def test_the_quantile_loss_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    forecast = torch.randn(6, 2, 5, 3, generator=generator, dtype=torch.float64)
    truth = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    each = [mean_pinball_loss(truth.flatten(), forecast[..., i].flatten(), alpha=q) for i, q in enumerate(LEVELS)]
    assert quantile_loss(forecast, truth, LEVELS).item() == pytest.approx(np.mean(each), rel=1e-12)


def test_masked_quantiles_train_and_validate_by_pinball(small):
    forecast, truth = gappy_pair(3)
    est = small()
    est.quantiles = tuple(LEVELS)
    observed = ~truth.isnan()
    each = [
        mean_pinball_loss(truth[observed], forecast.detach()[..., i][observed], alpha=q) for i, q in enumerate(LEVELS)
    ]
    for function in (loss_of, validation_loss_of):
        assert function(est, masked=True)(forecast, truth).item() == pytest.approx(np.mean(each), rel=1e-12)


def test_quantiles_that_cannot_be_are_refused(small, waves, no_training):
    def refuse(match, quantiles, **changes):
        est = small(**changes)
        est.quantiles = quantiles
        with pytest.raises(ValueError, match=match):
            est.fit(waves)

    refuse(r"quantiles=\[0\.5\] are trained on .*not on loss='mae': leave loss='mse'", [0.5], loss="mae")
    for wrong in ([0.1, 0.9], [], [0.5, 0.1], [0.5, 0.5]):
        refuse("quantiles must ascend and hold 0.5", wrong)
    for wrong in ([0.5, 1.0], [0, 0.5], 0.5, ["0.5"], [0.5, float("nan")]):
        refuse("quantiles must be None or a list of numbers between 0 and 1", wrong)


def losses_of(est):
    return {"train_loss": loss_of(est, masked=True), "valid_loss": validation_loss_of(est, masked=True)}


@pytest.mark.parametrize("quantiles", [None, LEVELS], ids=["points", "quantiles"])
def test_an_epochs_means_are_exact_over_unlike_batches(small, quantiles):
    est = small(max_epochs=1, learning_rate=1e-12, batch_size=8)  # too small a rate to move a weight
    est.quantiles = quantiles
    torch.manual_seed(0)
    network = Named(None if quantiles is None else len(quantiles))
    train, valid = Gappy(48, 0.3, seed=1), Gappy(27, 0.5, seed=2)  # the last batch of validation has three windows
    with torch.random.fork_rng():
        history = fit_network(network, est, train, valid, losses_of(est), 0).iloc[0]
    with torch.no_grad():
        found = [network(past=d.past, static=d.static) for d in (train, valid)]

    def mean(forecast, truth):
        if quantiles is None:
            return over_observed(ERRORS["mse"], forecast, truth)
        seen = ~truth.isnan()
        each = [mean_pinball_loss(truth[seen], forecast[..., i][seen], alpha=q) for i, q in enumerate(quantiles)]
        return np.mean(each)

    for name, forecast, dataset in zip(("train_loss", "valid_loss"), found, (train, valid), strict=True):
        assert history[name] == pytest.approx(mean(forecast, dataset.targets), rel=1e-6)


def test_quantiles_are_learnt(small):
    """A network that sees nothing learns the quantiles of its targets."""
    est = small(max_epochs=60, learning_rate=2e-2, batch_size=256, lr_schedule="constant", patience=None)
    est.quantiles = LEVELS
    data = Gappy(4096, 0.3, seed=1)
    data.past.zero_()
    data.static.zero_()
    network = Named(3)
    with torch.random.fork_rng():
        fit_network(network, est, data, None, losses_of(est), 0)
    with torch.no_grad():
        found = network(past=data.past[:1], static=data.static[:1])[0, 0, 0]
    targets = data.targets[:, :, 0]
    torch.testing.assert_close(found, targets[~targets.isnan()].quantile(torch.tensor(LEVELS)), atol=0.06, rtol=0)

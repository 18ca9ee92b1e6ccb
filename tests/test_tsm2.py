"""TSM2 against its formulas written out, what each mixer may see, covariates, gaps and quantiles."""

import pandas as pd
import pytest
import torch

from ssmseq import TSM2Forecaster
from ssmseq.forecasting.tokens import InputSizes
from ssmseq.forecasting.tsm2_network import TSM2Network

SIZES = {
    "n_variates": 3,
    "n_past": 0,
    "n_future": 0,
    "n_static": 0,
    "has_gaps": False,
    "n_quantiles": 1,
    "lookback": 24,
    "horizon": 5,
    "d_model": 8,
    "d_state": 3,
    "d_conv": 3,
    "expand": 2,
    "n_layers": 2,
    "patch_len": 6,
    "stride": 4,
    "dropout": 0.1,
    "normalize": False,
}
ALL_INPUTS = {"n_past": 2, "n_future": 2, "n_static": 4, "has_gaps": True}


def built(**changes) -> TSM2Network:
    sizes = SIZES | changes
    inputs = {name: sizes.pop(name) for name in InputSizes.__dataclass_fields__}
    return TSM2Network(InputSizes(**inputs), **sizes)


def network(**changes) -> TSM2Network:
    """A network of small sizes in float64 with random weights everywhere, also where training starts from ones."""
    torch.manual_seed(0)
    model = built(**changes).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def windows(batch=2, **changes) -> dict[str, torch.Tensor]:
    """Random inputs for a network of these sizes; every series on its own scale."""
    sizes = SIZES | changes
    torch.manual_seed(1)
    length, n_variates = sizes["lookback"], sizes["n_variates"]
    n_channels = n_variates + sizes["n_past"]
    past = torch.randn(batch, n_channels, length) * torch.rand(batch, n_channels, 1) * 4 + torch.randn(n_channels, 1)
    inputs = {"past": past}
    if sizes["n_future"]:
        inputs["future"] = torch.randn(batch, sizes["n_future"], length + sizes["horizon"])
    if sizes["n_static"]:
        inputs["static"] = torch.randn(batch, sizes["n_static"])
    if sizes["has_gaps"]:
        inputs["missing"] = (torch.rand(batch, n_variates, length) < 0.3).float()
    return {k: v.double() for k, v in inputs.items()}


def distance(found, truth) -> float:
    return ((found - truth).norm() / truth.norm()).item()


# The formulas ---------------------------------------------------------------------------------------------------------


def written_out_scan(w: dict, suffix: str, a_log: str, u, z):
    """Convolve, scan and gate tokens u (B, M, D), one token after another."""
    taps, bias = w[f"conv1d{suffix}.weight"][:, 0], w[f"conv1d{suffix}.bias"]
    x_proj, dt_weight, dt_bias = w[f"x_proj{suffix}.weight"], w[f"dt_proj{suffix}.weight"], w[f"dt_proj{suffix}.bias"]
    rank, n_state = dt_weight.shape[1], w[a_log].shape[1]
    state, rows = u.new_zeros(u.shape[0], u.shape[2], n_state), []
    for t in range(u.shape[1]):
        v = bias
        for back in range(min(t + 1, taps.shape[1])):
            v = v + u[:, t - back] * taps[:, -1 - back]
        v = v / (1 + torch.exp(-v))
        step, into, out = (v @ x_proj.T).split([rank, n_state, n_state], -1)
        step = torch.log1p(torch.exp(step @ dt_weight.T + dt_bias))
        state = torch.exp(-step[..., None] * torch.exp(w[a_log])) * state + (step * v)[..., None] * into[:, None]
        y = (state * out[:, None]).sum(-1) + w[f"D{suffix}"] * v
        rows.append(y * z[:, t] / (1 + torch.exp(-z[:, t])))
    return torch.stack(rows, 1)


def written_out_mixer(w: dict, x, both_ends: bool):
    """Expand, scan from one end or from both, contract; x (B, M, D)."""
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    y = written_out_scan(w, "", "A_log", u, z)
    if both_ends:
        y = y + written_out_scan(w, "_b", "A_b_log", u.flip(1), z.flip(1)).flip(1)
    return y @ w["out_proj.weight"].T


def written_out_patches(x, patch_len: int, stride: int):
    """Cut (B, C, L) into patches that end at the last row; rows before the first one are the first."""
    starts = [x.shape[-1] - patch_len]
    while starts[0] > 0:
        starts.insert(0, starts[0] - stride)
    rows = [[max(start + k, 0) for k in range(patch_len)] for start in starts]
    return torch.stack([torch.stack([x[..., k] for k in patch], -1) for patch in rows], 2)


def written_out_tsm2(w: dict, sizes: dict, past, future=None, static=None, missing=None):
    """Forecast from the weights of a network by the formulas of the module's docstring."""

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}

    n_variates = past.shape[1] - sizes["n_past"]
    values, covariates = past[:, :n_variates], past[:, n_variates:]
    mean, scale = 0, 1
    if sizes["normalize"]:
        mean = values.sum(-1, keepdim=True) / values.shape[-1]
        scale = torch.sqrt(((values - mean) ** 2).sum(-1, keepdim=True) / values.shape[-1] + 1e-5)
    channels = [(values - mean) / scale, covariates]
    if future is not None:
        channels.append(future @ w["future.weight"].T + w["future.bias"])
    cut = (sizes["patch_len"], sizes["stride"])
    start = written_out_patches(torch.cat(channels, 1), *cut) @ w["embedding.weight"].T + w["embedding.bias"]
    if missing is not None:
        start[:, :n_variates] += written_out_patches(missing, *cut) @ w["missing.weight"].T
    if static is not None:
        numbers = static @ w["static.weight"].T + w["static.bias"]
        start = torch.cat([start, torch.stack([numbers] * start.shape[2], 1)[:, None]], 1)

    def mix(x, k: int):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5)
        x = x * w[f"mixers.{k}.norm.weight"] + w[f"mixers.{k}.norm.bias"]
        y = torch.zeros_like(x)
        for one in range(x.shape[2] if k % 2 else x.shape[1]):  # one patch, or one channel, after the other
            at = (slice(None), slice(None), one) if k % 2 else (slice(None), one)
            y[at] = written_out_mixer(part(f"mixers.{k}.mixer."), x[at], both_ends=bool(k % 2))
        return y

    y_time, y_channel = {}, {}
    for layer in range(1, sizes["n_layers"] + 1):
        x = start
        if layer > 1:
            first, *rest = w[f"mixers.{2 * layer - 2}.average.weights"]
            alpha, beta = rest[0::2], rest[1::2]
            x = first * start + sum(alpha[i - 1] * y_time[i] + beta[i - 1] * y_channel[i] for i in range(1, layer))
        y_time[layer] = mix(x, 2 * layer - 2)
        first, *rest = w[f"mixers.{2 * layer - 1}.average.weights"]
        theta, gamma = rest[0::2], rest[1::2]
        x = first * start + sum(theta[i - 1] * y_time[i] for i in range(1, layer + 1))
        y_channel[layer] = mix(x + sum(gamma[i - 1] * y_channel[i] for i in range(1, layer)), 2 * layer - 1)
    first, *rest = w["average.weights"]
    x = first * start + sum(rest[2 * i - 2] * y_time[i] + rest[2 * i - 1] * y_channel[i] for i in y_time)
    forecast = x[:, :n_variates].flatten(2) @ w["head.projection.weight"].T + w["head.projection.bias"]
    if sizes["n_quantiles"] == 1:
        return forecast * scale + mean
    forecast = forecast.reshape(*forecast.shape[:2], sizes["horizon"], sizes["n_quantiles"]).sort(-1).values
    return forecast * torch.as_tensor(scale)[..., None] + torch.as_tensor(mean)[..., None]


CASES = {
    "plain": {},
    "normalised": {"normalize": True},
    "three layers": {"n_layers": 3, "normalize": True},
    "one layer": {"n_layers": 1},
    "past": {"n_past": 2, "normalize": True},
    "future": {"n_future": 2},
    "static": {"n_static": 4},
    "gaps": {"has_gaps": True, "lookback": 27},
    "quantiles": {"n_quantiles": 3, "normalize": True},
    "everything": {**ALL_INPUTS, "n_quantiles": 2, "normalize": True, "lookback": 25},
    "patches side by side": {"stride": 6},
    "shorter than a patch": {"lookback": 5},
    "one row": {"lookback": 1},
    "one patch": {"lookback": 6},
    "a row more than a patch": {"lookback": 7},
    "odd": {"lookback": 23, "horizon": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_network_equals_its_formulas(name):
    sizes = SIZES | CASES[name]
    model, inputs = network(**sizes), windows(**sizes)
    with torch.no_grad():
        truth = written_out_tsm2(dict(model.state_dict()), sizes, **inputs)
        found = model(**inputs)
        assert found.shape == (2, 3, sizes["horizon"], *([sizes["n_quantiles"]] if sizes["n_quantiles"] > 1 else []))
        assert distance(found, truth) < 1e-12
        assert distance(model.float()(**{k: v.float() for k, v in inputs.items()}).double(), truth) < 1e-5


def test_averages_start_as_plain_means_of_all_earlier_outputs():
    model = built(n_layers=3)
    averages = {k: v for k, v in model.named_parameters() if "average" in k}
    assert list(averages) == [*(f"mixers.{k}.average.weights" for k in range(1, 6)), "average.weights"]
    for n_sources, weights in enumerate(averages.values(), start=2):
        assert weights.tolist() == pytest.approx([1 / n_sources] * n_sources)
        assert weights._no_weight_decay


def test_every_parameter_learns():
    sizes = SIZES | ALL_INPUTS | {"normalize": True}
    model = network(**sizes)
    model(**windows(**sizes)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax() > 1e-9, name
        if "average" in name:
            assert (parameter.grad.abs() > 1e-9).all(), name


def test_parameters_are_there_only_for_inputs_that_are():
    names = {k.split(".")[0] for k, _ in network().named_parameters()}
    assert names == {"embedding", "mixers", "average", "head"}
    for option, name in [("n_future", "future"), ("n_static", "static"), ("has_gaps", "missing"), ("n_past", None)]:
        found = {k.split(".")[0] for k, _ in network(**{option: 1}).named_parameters()}
        assert found - names == ({name} if name else set())
    assert network(has_gaps=True).missing.bias is None


# What a mixer may see -------------------------------------------------------------------------------------------------


def silenced(model: TSM2Network, *, across_channels: bool) -> TSM2Network:
    """The same network with every time mixer, or every channel mixer, adding nothing."""
    for mixer in model.mixers:
        if mixer.across_channels == across_channels:
            torch.nn.init.zeros_(mixer.mixer.out_proj.weight)
    return model


def seen(model: TSM2Network, variate: int, patch: int) -> torch.Tensor:
    """Which (variate, patch) the head sees if it reads one patch of one variate; patches lie side by side."""
    weight = model.head.projection.weight.data.unflatten(1, (-1, SIZES["d_model"]))
    weight[:, :patch] = weight[:, patch + 1 :] = 0
    past = windows()["past"].requires_grad_()
    model(past)[:, variate].sum().backward()
    return past.grad.unflatten(-1, (-1, SIZES["patch_len"])).abs().amax((0, 3)) > 1e-12


@pytest.mark.parametrize("variate", range(3))
@pytest.mark.parametrize("patch", range(4))
def test_time_mixers_look_back_within_a_variate_and_channel_mixers_across_within_a_patch(variate, patch):
    variates, patches = torch.arange(3)[:, None], torch.arange(4)
    only_time = silenced(network(stride=6), across_channels=True)
    assert torch.equal(seen(only_time, variate, patch), (variates == variate) & (patches <= patch))
    only_channels = silenced(network(stride=6), across_channels=False)
    assert torch.equal(seen(only_channels, variate, patch), (variates >= 0) & (patches == patch))
    assert torch.equal(seen(network(stride=6), variate, patch), (variates >= 0) & (patches <= patch))


def test_every_covariate_reaches_every_forecast_and_no_forecast_is_its_own():
    sizes = SIZES | ALL_INPUTS
    model, inputs = network(**sizes), windows(**sizes)
    for tensor in inputs.values():
        tensor.requires_grad_()
    forecast = model(**inputs)
    assert forecast.shape == (2, 3, 5)
    for variate in range(3):
        grads = torch.autograd.grad(forecast[:, variate].sum(), list(inputs.values()), retain_graph=True)
        for (name, tensor), grad in zip(inputs.items(), grads, strict=True):
            assert (grad.abs() > 1e-12).all(), (name, tuple(tensor.shape))


def test_order_of_the_variates_matters_to_values_alone():
    model, past = network(), windows()["past"]
    order = torch.tensor([2, 0, 1])
    found, straight = model(past[:, order]), model(past)
    assert found.shape == straight.shape
    assert distance(found, straight[:, order]) > 1e-3
    independent = silenced(model, across_channels=True)
    assert distance(independent(past[:, order]), independent(past)[:, order]) < 1e-12


@pytest.mark.parametrize("n_variates", [1, 2, 7])
def test_other_numbers_of_variates_are_forecast(n_variates):
    sizes = SIZES | ALL_INPUTS | {"normalize": True}
    other_sizes = sizes | {"n_variates": n_variates}
    model, inputs = network(**sizes), windows(**other_sizes)
    found = model(**inputs)
    assert found.shape == (2, n_variates, 5)
    other = built(**other_sizes).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(**inputs), found)


# Normalisation, gaps, quantiles ---------------------------------------------------------------------------------------


def test_normalised_forecasts_shift_and_scale_with_their_variate():
    sizes = SIZES | ALL_INPUTS | {"n_quantiles": 3}
    inputs = windows(**sizes)
    factor = torch.tensor([2.0, 30, 700, 1, 1], dtype=torch.double)[:, None]  # the last two are covariates
    shift = torch.tensor([5.0, -200, 0, 0, 0], dtype=torch.double)[:, None]
    inputs["past"][:, :3] *= 100  # beside which the constant added to the variance is nothing
    moved = inputs | {"past": inputs["past"] * factor + shift}
    model = network(**sizes | {"normalize": True})
    expected = model(**inputs) * factor[:3, None] + shift[:3, None]
    torch.testing.assert_close(model(**moved), expected, rtol=1e-5, atol=1e-4)
    bare = network(**sizes)
    assert distance(bare(**moved), bare(**inputs) * factor[:3, None] + shift[:3, None]) > 1e-3
    changed = inputs | {"past": inputs["past"] + torch.tensor([0.0, 0, 0, 1, 0], dtype=torch.double)[:, None]}
    assert distance(model(**changed), model(**inputs)) > 1e-6  # covariates are taken as they are


def test_constant_windows_give_finite_forecasts_and_gradients():
    model = network(normalize=True)
    past = torch.full((2, 3, 24), 7.0, dtype=torch.double)
    forecast = model(past)
    forecast.sum().backward()
    assert (forecast - 7).abs().amax() < 1
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_nothing_missing_is_the_same_as_no_marks():
    sizes = SIZES | ALL_INPUTS
    model, inputs = network(**sizes), windows(**sizes)
    marked = model(**inputs)
    without = model(**inputs | {"missing": None})
    assert torch.equal(model(**inputs | {"missing": torch.zeros_like(inputs["missing"])}), without)
    assert distance(marked, without) > 1e-3


def test_quantiles_do_not_cross_and_a_point_has_no_axis_for_them():
    sizes = SIZES | {"n_quantiles": 5, "normalize": True}
    found = network(**sizes)(**windows(**sizes, batch=16))
    assert found.shape == (16, 3, 5, 5)
    assert (found.diff(dim=-1) >= 0).all()
    assert (found.diff(dim=-1) > 0).any()


def test_dropout_is_for_training_alone():
    model, past = network(dropout=0.5), windows()["past"]
    assert torch.equal(model(past), model(past))
    model.train()
    assert not torch.equal(model(past), model(past))


# The estimator --------------------------------------------------------------------------------------------------------


def forecaster(**changes) -> TSM2Forecaster:
    small = {"horizon": 4, "lookback": 9, "d_model": 16, "d_state": 2, "n_layers": 1, "patch_len": 4, "stride": 2}
    training = {"max_epochs": 1, "batch_size": 32, "random_state": 0, "accelerator": "cpu"}
    return TSM2Forecaster(**small | training | changes)


def test_fit_and_predict_keep_the_frame_and_repeat_by_the_seed(waves):
    first, second, other = (forecaster(random_state=seed).fit(waves).predict() for seed in (0, 0, 1))
    assert isinstance(first, pd.DataFrame)
    assert list(first.columns) == ["a", "b", "c"]
    assert first.shape == (4, 3)
    assert (first.index == pd.date_range(waves.index[-1], periods=5, freq="h")[1:]).all()
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(other)


def test_sizes_reach_the_network(waves):
    sizes = {"d_model": 24, "d_state": 5, "d_conv": 3, "expand": 2, "n_layers": 2, "patch_len": 7, "stride": 3}
    rest = {"horizon": 3, "lookback": 13, "dropout": 0.3, "normalize": False}
    found = forecaster(**sizes, **rest).fit(waves).network_
    expected = built(**{"n_past": 4} | sizes | rest)
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert str(found) == str(expected)
    assert (found.patch_len, found.stride, found.n_repeated) == (7, 3, 0)


BAD_PARAMETERS = {
    "patch_len": [0, 2.0],
    "stride": [0, 5],
    "d_model": [0],
    "d_state": [0],
    "d_conv": [0],
    "expand": [1.5],
    "n_layers": [0],
    "dropout": [1],
    "normalize": ["yes"],
}


@pytest.mark.parametrize(("name", "value"), [(k, value) for k, values in BAD_PARAMETERS.items() for value in values])
def test_bad_parameters_are_refused_by_name_before_training(waves, no_training, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*{value}"):
        forecaster(**{name: value}).fit(waves)

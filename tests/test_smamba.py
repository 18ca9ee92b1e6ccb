"""S-Mamba: its published sizes, and its network against the formulas written out, with every kind of input."""

import math

import pytest
import torch

from ssmseq.forecasting.smamba import SMambaNetwork
from ssmseq.forecasting.tokens import InputSizes

LIVE_PARAMETERS = {  # lookback, horizon, d_model = d_ff, d_state, n_layers: published count without the unused modules
    "ETTh1": ((96, 96, 256, 2, 2), 1_145_696),
    "ETTm1": ((96, 192, 128, 2, 2), 314_944),
    "Electricity, 96": ((96, 96, 512, 16, 3), 6_760_032),
    "Electricity, 192": ((96, 192, 512, 32, 3), 6_956_736),
    "Traffic": ((96, 96, 512, 32, 4), 9_176_672),
    "Weather": ((96, 96, 512, 2, 3), 6_631_008),
    "Solar": ((96, 96, 512, 32, 2), 4_638_304),
    "Exchange": ((96, 96, 128, 32, 2), 348_640),
    "PEMS04": ((96, 12, 1024, 32, 4), 35_568_652),
}
INPUTS = {
    "variates": {},
    "calendar": {"n_past": 4},
    "future": {"n_past": 1, "n_future": 2},
    "static": {"n_static": 3},
    "gaps": {"n_past": 2, "has_gaps": True},
    "quantiles": {"n_quantiles": 3},
    "everything": {"n_past": 2, "n_future": 2, "n_static": 3, "has_gaps": True, "n_quantiles": 3},
}


def network(n_variates, lookback, horizon, d_model, d_state, n_layers, normalize=True, **inputs) -> SMambaNetwork:
    options = {"d_conv": 2, "expand": 1, "dropout": 0.1, "activation": "gelu", "normalize": normalize}
    sizes = InputSizes(n_variates=n_variates, lookback=lookback, horizon=horizon, **inputs)
    return SMambaNetwork(sizes, d_model=d_model, d_state=d_state, d_ff=d_model, n_layers=n_layers, **options)


def windows(sizes: InputSizes, batch: int = 3) -> dict[str, torch.Tensor]:
    """Random inputs, every series on its own scale."""
    size = (batch, sizes.n_variates + sizes.n_past)
    inputs = {"past": torch.randn(*size, sizes.lookback) * torch.rand(*size, 1) * 4 + torch.randn(*size, 1)}
    if sizes.n_future:
        inputs["future"] = torch.randn(batch, sizes.n_future, sizes.lookback + sizes.horizon)
    if sizes.n_static:
        inputs["static"] = torch.randn(batch, sizes.n_static)
    if sizes.has_gaps:
        inputs["missing"] = (torch.rand(batch, sizes.n_variates, sizes.lookback) < 0.3).float()
    return inputs


@pytest.mark.parametrize("name", LIVE_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    sizes, expected = LIVE_PARAMETERS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in network(7, *sizes, n_past=4).parameters()) == expected


def written_out_mamba(w: dict, x):
    """Scan tokens x (B, M, D) one after another; the convolution is two taps wide, the inner width is D."""
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    before = torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], 1)
    u = before * w["conv1d.weight"][:, 0, 0] + u * w["conv1d.weight"][:, 0, 1] + w["conv1d.bias"]
    u = u * torch.sigmoid(u)
    rank, n_state = w["dt_proj.weight"].shape[1], w["A_log"].shape[1]
    step, into, out = (u @ w["x_proj.weight"].T).split([rank, n_state, n_state], -1)
    step = torch.log1p(torch.exp(step @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    state, rows = u.new_zeros(*u[:, 0].shape, n_state), []
    for t in range(u.shape[1]):
        decay = torch.exp(-step[:, t, :, None] * torch.exp(w["A_log"]))
        state = decay * state + (step[:, t] * u[:, t])[..., None] * into[:, t, None, :]
        rows.append((state * out[:, t, None, :]).sum(-1) + w["D"] * u[:, t])
    return (torch.stack(rows, 1) * z * torch.sigmoid(z)) @ w["out_proj.weight"].T


def written_out_smamba(w: dict, sizes: InputSizes, inputs: dict, n_layers: int, normalize: bool):
    """Forecast windows from the weights of a network, row by row of the published table."""

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}

    def linear(y, name: str):
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(y, name: str):
        centred = y - y.mean(-1, keepdim=True)
        return (
            centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    past = inputs["past"]
    values, marks = past[:, : sizes.n_variates], past[:, sizes.n_variates :]
    mean, scale = 0, 1
    if normalize:
        mean = values.sum(-1, keepdim=True) / sizes.lookback
        scale = torch.sqrt(((values - mean) ** 2).sum(-1, keepdim=True) / sizes.lookback + 1e-5)
    tokens = [linear((values - mean) / scale, "tokens.rows")]
    if "missing" in inputs:
        tokens = [tokens[0] + inputs["missing"] @ w["tokens.missing.weight"].T]
    if "static" in inputs:
        tokens.append(linear(inputs["static"], "tokens.static")[:, None])
    if "future" in inputs:
        tokens.append(linear(inputs["future"], "tokens.future"))
    tokens = torch.cat([*tokens, linear(marks, "tokens.rows")], 1)
    for i in range(n_layers):
        forwards = written_out_mamba(part(f"layers.{i}.mixer.forwards."), tokens)
        backwards = written_out_mamba(part(f"layers.{i}.mixer.backwards."), tokens.flip(1)).flip(1)
        tokens = norm(tokens + forwards + backwards, f"layers.{i}.mixer_norm")
        hidden = linear(tokens, f"layers.{i}.feed_forward.0")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = norm(tokens + linear(hidden, f"layers.{i}.feed_forward.3"), f"layers.{i}.feed_forward_norm")
    forecast = linear(norm(tokens, "norm")[:, : sizes.n_variates], "head.projection")
    if sizes.n_quantiles == 1:
        return forecast * scale + mean
    steps = [forecast[..., i * sizes.n_quantiles : (i + 1) * sizes.n_quantiles] for i in range(sizes.horizon)]
    return torch.stack([step.sort(-1).values * scale + mean for step in steps], 2)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("normalize", [True, False])
def test_network_equals_its_formulas(name, normalize):
    torch.manual_seed(0)
    sizes = InputSizes(n_variates=5, lookback=24, horizon=12, **INPUTS[name])
    model = network(5, 24, 12, 32, 3, 2, normalize=normalize, **INPUTS[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = windows(sizes)
    wide = {k: x.double() for k, x in inputs.items()}
    weights = {k: v.double() for k, v in model.state_dict().items()}
    truth = written_out_smamba(weights, sizes, wide, 2, normalize)
    found = model(**inputs).double()
    assert found.shape == ((3, 5, 12) if sizes.n_quantiles == 1 else (3, 5, 12, 3))
    assert ((found - truth).norm() / truth.norm()).item() < 1e-5
    assert ((model.double()(**wide) - truth).norm() / truth.norm()).item() < 1e-12


def test_parameters_are_there_only_for_inputs_that_are():
    sizes = (5, 24, 12, 32, 3, 2)
    plain = {name for name, _ in network(*sizes).named_parameters()}
    assert {name for name, _ in network(*sizes, n_past=4).named_parameters()} == plain
    whole = {name for name, _ in network(*sizes, **INPUTS["everything"]).named_parameters()}
    assert whole - plain == {
        "tokens.future.weight",
        "tokens.future.bias",
        "tokens.static.weight",
        "tokens.static.bias",
        "tokens.missing.weight",
    }

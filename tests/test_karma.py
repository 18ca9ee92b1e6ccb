"""KARMA against its formulas written out, its published sizes, and PyWavelets."""

import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmseq import KarmaForecaster
from ssmseq.forecasting.karma import RELEASED
from ssmseq.forecasting.karma_network import AdaptiveDecomposition, KarmaNetwork, MovingAverage
from ssmseq.forecasting.tokens import InputSizes
from ssmseq.nn.wavelet import WaveletTransform, wavelet_filter

LIVE_PARAMETERS = {  # variates: count of the parameters that the released code uses
    "ETTh1": (7, 2_160_430),
    "ETTm1": (7, 1_877_534),
    "electricity": (321, 4_881_314),
    "weather": (21, 718_066),
}
SIZES = {"d_model": 12, "d_state": 3, "d_conv": 2, "expand": 1, "n_layers": 2, "dropout": 0.1, "wavelet": "db2"}
PARTS = {"moving_average": 5, "d_decomposition": 6, "n_heads": 2, "affine": True}


def network(n_past=0, **changes) -> KarmaNetwork:
    """A network of small sizes in float64 with random weights everywhere."""
    torch.manual_seed(0)
    options = SIZES | PARTS | {"decomposition": "none", "share_directions": False} | changes
    model = KarmaNetwork(InputSizes(n_variates=3, lookback=16, horizon=5, n_past=n_past), **options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


# Wavelets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["haar", *(f"db{n}" for n in range(1, 11))])
def test_filters_are_those_of_pywavelets(name):
    np.testing.assert_allclose(wavelet_filter(name), pywt.Wavelet(name).rec_lo, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(2, 70))
def test_transform_and_inverse_are_those_of_pywavelets(moments, d):
    x = np.random.default_rng(d).normal(size=(3, d))
    transform = WaveletTransform(d, f"db{moments}")
    low, high = transform(torch.from_numpy(x))
    for found, expected in zip((low, high), pywt.dwt(x, f"db{moments}", mode="symmetric"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(transform.inverse(low, high), x, atol=1e-11)
    other = torch.randn(2, 3, transform.width, dtype=torch.float64)
    expected = pywt.idwt(other[0].numpy(), other[1].numpy(), f"db{moments}")[:, :d]
    np.testing.assert_allclose(transform.inverse(other[0], other[1]), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["db0", "db11", "sym4", "", None])
def test_other_wavelets_are_refused(waves, no_training, name):
    with pytest.raises(ValueError, match="wavelet must be 'haar' or one of 'db1' to 'db10'"):
        KarmaForecaster(wavelet=name).fit(waves)


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", LIVE_PARAMETERS)
def test_parameter_counts_are_those_of_the_released_code(dataset):
    n_variates, expected = LIVE_PARAMETERS[dataset]
    est = KarmaForecaster.from_preset("karma_released", dataset=dataset)
    with torch.device("meta"):
        model = est._build_network(InputSizes(n_variates=n_variates, lookback=96, horizon=96))
    assert sum(p.numel() for p in model.parameters()) == expected


def written_out_mamba(w: dict, prefix: str, x):
    """Scan tokens x (B, M, D) one after another."""
    w = {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    taps, d_conv = w["conv1d.weight"][:, 0], w["conv1d.weight"].shape[-1]
    padded = torch.cat([u.new_zeros(u.shape[0], d_conv - 1, u.shape[2]), u], 1)
    u = sum(padded[:, k : k + u.shape[1]] * taps[:, k] for k in range(d_conv)) + w["conv1d.bias"]
    u = u / (1 + torch.exp(-u))
    rank, n_state = w["dt_proj.weight"].shape[1], w["A_log"].shape[1]
    step, into, out = (u @ w["x_proj.weight"].T).split([rank, n_state, n_state], -1)
    step = torch.log1p(torch.exp(step @ w["dt_proj.weight"].T + w["dt_proj.bias"]))
    state, rows = u.new_zeros(*u[:, 0].shape, n_state), []
    for t in range(u.shape[1]):
        decay = torch.exp(-step[:, t, :, None] * torch.exp(w["A_log"]))
        state = decay * state + (step[:, t] * u[:, t])[..., None] * into[:, t, None, :]
        rows.append((state * out[:, t, None, :]).sum(-1) + w["D"] * u[:, t])
    return (torch.stack(rows, 1) * z / (1 + torch.exp(-z))) @ w["out_proj.weight"].T


def written_out_karma(w: dict, x, *, n_layers: int, decomposition: str, share_directions: bool):
    """Forecast windows x (B, 3 + K, L) step by step."""

    def linear(y, name):
        return y @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def rms(y, name):
        return y / torch.sqrt((y**2).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"]

    values, marks = x[:, :3], x[:, 3:]
    mean = values.mean(-1, keepdim=True)
    scale = torch.sqrt(((values - mean) ** 2).mean(-1, keepdim=True) + 1e-5)
    values = (values - mean) / scale * w["window_norm.scale"] + w["window_norm.shift"]
    trend = None
    if decomposition == "moving_average":
        rows = [values[..., max(0, t - 2) : t + 3] for t in range(values.shape[-1])]
        first, last, n = values[..., :1], values[..., -1:], values.shape[-1]
        rows = [
            torch.cat([first] * max(0, 2 - t) + [row] + [last] * max(0, t + 3 - n), -1).mean(-1)
            for t, row in enumerate(rows)
        ]
        trend = torch.stack(rows, -1)
        values = values - trend
    elif decomposition == "atcd":
        hidden = linear(values.transpose(1, 2), "decomposition.project_in")
        q, k, v = (
            hidden @ w["decomposition.attention.in_proj_weight"].T + w["decomposition.attention.in_proj_bias"]
        ).chunk(3, -1)
        heads = []
        for part in zip(*(y.split(3, -1) for y in (q, k, v)), strict=True):
            scores = part[0] @ part[1].transpose(1, 2) / math.sqrt(3)
            heads.append(torch.softmax(scores, -1) @ part[2])
        found = linear(torch.cat(heads, -1), "decomposition.attention.out_proj")
        found = found / (1 + torch.exp(-found))
        values = linear(hidden - found, "decomposition.season").transpose(1, 2)
        trend = linear(found, "decomposition.trend").transpose(1, 2)
    tokens = linear(torch.cat([values, marks], 1), "tokens.rows")
    low, high = (torch.from_numpy(y) for y in pywt.dwt(tokens.numpy(), "db2", mode="symmetric"))
    for i in range(n_layers):
        forwards = written_out_mamba(w, f"layers.{i}.forwards.", rms(tokens, f"layers.{i}.norm"))
        turned = rms(tokens, f"layers.{i}.norm_backwards").flip(1)
        name = "forwards" if share_directions else "backwards"
        tokens = forwards + written_out_mamba(w, f"layers.{i}.{name}.", turned).flip(1) + tokens
        low, high = (written_out_mamba(w, f"layers.{i}.{n}.", y) for n, y in (("low", low), ("high", high)))
    joined = torch.from_numpy(pywt.idwt(low.numpy(), high.numpy(), "db2"))[..., :12] + tokens
    centred = joined - joined.mean(-1, keepdim=True)
    joined = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
    joined = joined[:, :3]
    if trend is not None:
        found = written_out_mamba(w, "trend_mixer.", linear(trend, "trend_embedding.0"))
        joined = joined + (linear(found, "trend_projection") if decomposition == "atcd" else found)
    y = linear(joined, "head.projection")
    return (y - w["window_norm.shift"]) / (w["window_norm.scale"] + 1e-10) * scale + mean


@pytest.mark.parametrize("decomposition", ["none", "moving_average", "atcd"])
@pytest.mark.parametrize("share_directions", [True, False])
@pytest.mark.parametrize("n_marks", [0, 2])
def test_network_equals_its_formulas(decomposition, share_directions, n_marks):
    options = {"decomposition": decomposition, "share_directions": share_directions}
    model = network(n_past=n_marks, **options)
    x = torch.randn(2, 3 + n_marks, 16, dtype=torch.float64) * 3 + 1
    with torch.no_grad():
        truth = written_out_karma(model.state_dict(), x, n_layers=2, **options)
        assert ((model(x) - truth).norm() / truth.norm()).item() < 1e-12
        found = model.float()(x.float())
    assert ((found - truth).norm() / truth.norm()).item() < 1e-5


@pytest.mark.parametrize("decomposition", ["none", "moving_average", "atcd"])
def test_every_parameter_learns(decomposition):
    model = network(decomposition=decomposition).train()
    model(torch.randn(4, 3, 16, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_shared_directions_have_one_set_of_parameters():
    names = {k for k, _ in network(share_directions=True).named_parameters()}
    assert not any(".backwards." in name for name in names)
    assert any(".norm_backwards." in name for name in names)


@pytest.mark.parametrize("window", [1, 4, 25])
def test_trend_and_season_of_the_moving_average_add_up(window):
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    season, trend = MovingAverage(window)(x)
    torch.testing.assert_close(season + trend, x)
    middle = trend[0, 0, 20]
    assert middle == pytest.approx(x[0, 0, 20 - (window - 1) // 2 : 21 + window // 2].mean().item())
    constant = MovingAverage(window)(torch.full((1, 1, 30), 5.0))
    assert constant[0].abs().max() < 1e-6


def test_adaptive_decomposition_looks_at_all_rows_and_variates():
    torch.manual_seed(0)
    part = AdaptiveDecomposition(3, width=8, n_heads=2, dropout=0.0).double()
    x = torch.randn(1, 3, 10, dtype=torch.float64, requires_grad=True)
    part(x)[1][0, 0, 2].backward()
    assert (x.grad.abs() > 0).all()


# The estimator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", RELEASED)
@pytest.mark.parametrize("preset", ["karma_released", "karma_paper"])
def test_presets_are_estimators(dataset, preset):
    est = KarmaForecaster.from_preset(preset, dataset=dataset, horizon=336, random_state=7)
    assert (est.horizon, est.random_state) == (336, 7)
    if preset == "karma_paper":
        assert (est.decomposition, est.share_directions, est.time_features) == ("atcd", False, False)
    est._check_parameters()


def test_released_sizes_of_etth1_double_beyond_192():
    widths = [
        KarmaForecaster.from_preset("karma_released", dataset="ETTh1", horizon=h).d_model for h in (96, 192, 336, 720)
    ]
    assert widths == [256, 256, 512, 512]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "karma"}, "preset must be one of 'karma_released', 'karma_paper', got 'karma'"),
        ({"dataset": "ETTh3"}, "dataset must be one of 'ETTh1'"),
        ({"d_modell": 3}, "d_modell"),
    ],
)
def test_unknown_presets_are_refused_by_name(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        KarmaForecaster.from_preset(**{"preset": "karma_paper", "dataset": "ETTh1"} | changes)


def test_heads_that_do_not_divide_are_refused(waves, no_training):
    with pytest.raises(ValueError, match="n_heads=5 does not divide d_decomposition=64"):
        KarmaForecaster(n_heads=5).fit(waves)


def test_shuffled_columns_give_another_forecast_but_of_the_same_variates(waves):
    est = KarmaForecaster(
        horizon=4, lookback=8, d_model=16, n_layers=1, max_epochs=1, random_state=0, decomposition="atcd"
    )
    found = est.fit(waves).predict(waves[["c", "a", "b"]])
    assert found.equals(est.predict())  # columns are brought into the order of fit

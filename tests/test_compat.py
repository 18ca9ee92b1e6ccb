"""The functions named after mamba_ssm and causal_conv1d: results and every gradient, against float64."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ssmseq_kernels import compat

# Relative L2 error. Half precisions are rounded once, at the end, from float32: half a unit in the last place.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FULL: dict[str, Any] = {"delta_softplus": True, "return_last_state": True}
KINDS = list(itertools.product(("constant", "variable", "grouped"), repeat=2))
pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.filterwarnings("ignore:a complex A")]


def make_normal(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def to(x, dtype):
    """Cast to a real dtype, or to the complex one of the same precision where x is complex."""
    return x.to(torch.promote_types(dtype, torch.complex32) if x.is_complex() else dtype)


def relative_error(found, truth):
    return ((found.to(truth.dtype) - truth).norm() / truth.norm().clamp_min(1e-12)).item()


def run(function, inputs, options):
    """Return the outputs of `function`, and the gradients of a random functional of them, by name."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    outputs = function(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    normal = make_normal(1)
    drawn = [normal(*y.shape, 2).bfloat16().to(y.real.dtype) for y in outputs]  # the same numbers in every dtype
    weights = [torch.view_as_complex(w) if y.is_complex() else w[..., 0] for w, y in zip(drawn, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
    names = [f"output {i}" for i in range(len(outputs))] + [f"grad of {k}" for k in leaves]
    return dict(zip(names, (*outputs, *grads), strict=True))


def assert_same(function, reference, inputs, factor=1, **options):
    """Compare `function` with `reference` in float64: every output, and the gradient of every input."""
    found = run(function, inputs, options)
    truth = run(reference, {k: to(v, torch.float64) for k, v in inputs.items()}, options)
    for name, value in truth.items():
        error, bound = relative_error(found[name], value), factor * TOLERANCE[found[name].real.dtype]
        assert error < bound, f"{name}: relative error {error:.2e} exceeds {bound:.0e}"


def scan_inputs(length, B="variable", C="variable", *, dtype=torch.float32, is_complex=False, without=()) -> dict:
    """Inputs of a scan over 6 channels of 4 states; as mamba_ssm has it, parameters stay float32 beside halves."""
    normal, steps = make_normal(), 2 * length if is_complex else length
    shapes = {"constant": (6, 4), "variable": (2, 4, steps), "grouped": (2, 3, 4, steps)}
    A = -torch.exp(0.5 * normal(6, 4)) * torch.arange(1, 5)
    A = torch.complex(A, 3 * normal(6, 4)) if is_complex else A
    weights = {"A": A, "D": normal(6), "delta_bias": 0.3 * normal(6)}
    steps = {"u": normal(2, 6, length), "delta": normal(2, 6, length) - 1, "z": normal(2, 6, length)}
    for name, kind in (("B", B), ("C", C)):
        mixer = normal(*shapes[kind])
        mixer = torch.complex(mixer, normal(6, 4)) if is_complex and kind == "constant" else mixer
        (weights if kind == "constant" else steps)[name] = mixer
    weights = {k: to(v, torch.promote_types(dtype, torch.float32)) for k, v in weights.items()}
    return {k: v for k, v in (weights | {k: v.to(dtype) for k, v in steps.items()}).items() if k not in without}


def convolution(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=True, **_):
    """The scan solved for its state: a convolution whose kernel decays with the time that passed in between."""
    n_channels, length = u.shape[1:]

    def full(mixer):  # (B or 1, D, L, N)
        if mixer.dim() == 2:
            return mixer[None, :, None]
        x = torch.complex(mixer[..., 0::2], mixer[..., 1::2]) if A.is_complex() else mixer
        x = x if x.dim() == 4 else x[:, None]
        return x[:, torch.arange(n_channels) // (n_channels // x.shape[1])].transpose(2, 3)

    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    clock, past = dt.cumsum(-1), torch.ones(length, length, dtype=torch.bool).tril()
    passed = (clock[..., :, None] - clock[..., None, :]).where(past, 0)
    decay = torch.exp(passed[..., None] * A[:, None, None]) * past[..., None]  # (B, D, to, from, N)
    states = (decay * (full(B) * (dt * u)[..., None])[:, :, None]).sum(3)
    y = (states * full(C)).sum(-1)
    y = 2 * y.real if A.is_complex() else y
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * F.silu(z), states[:, :, -1]


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize(("B", "C"), KINDS)
def test_scan_ref_solves_the_recurrence(B, C, is_complex):
    inputs = scan_inputs(13, B, C, dtype=torch.float64, is_complex=is_complex)
    assert_same(compat.selective_scan_ref, convolution, inputs, **FULL)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 64, 129, 512])
def test_scan_of_every_length_and_dtype(length, dtype):
    inputs = scan_inputs(length, "grouped", "grouped", dtype=dtype)
    assert_same(compat.selective_scan_fn, compat.selective_scan_ref, inputs, **FULL)
    out, state = compat.selective_scan_fn(**inputs, **FULL)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "C"), KINDS)
def test_scan_with_every_kind_of_mixer(B, C, dtype):
    inputs = scan_inputs(23, B, C, dtype=dtype)
    assert_same(compat.selective_scan_fn, compat.selective_scan_ref, inputs, **FULL)


@pytest.mark.parametrize("last_state", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
def test_scan_with_every_option(softplus, last_state):
    options = {"delta_softplus": softplus, "return_last_state": last_state}
    for count in range(4):
        for without in itertools.combinations(("D", "z", "delta_bias"), count):
            inputs = scan_inputs(9, without=without)
            if not softplus:  # step sizes must then be positive, or the state explodes
                inputs["delta"] = inputs["delta"].exp() + 1
            assert_same(compat.selective_scan_fn, compat.selective_scan_ref, inputs, **options)


@pytest.mark.parametrize(("B", "C"), KINDS)
def test_scan_with_complex_rates(B, C):
    inputs = scan_inputs(31, B, C, is_complex=True)
    assert_same(compat.selective_scan_fn, convolution, inputs, factor=3, **FULL)  # PyTorch's own rounding


def test_a_complex_scan_warns_once_of_its_slowness():
    inputs = scan_inputs(3, is_complex=True)
    compat._warn_of_complex.cache_clear()
    with pytest.warns(RuntimeWarning, match="selective_scan_ref") as caught:
        compat.selective_scan_fn(**inputs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.selective_scan_fn(**inputs)


def test_scan_takes_any_memory_layout():
    inputs = scan_inputs(18, "grouped", "grouped")
    plain, _ = compat.selective_scan_fn(**inputs, **FULL)
    packed = torch.cat([inputs["u"], inputs["z"]], 1)  # as a Mamba block holds them
    inputs.update({k: inputs[k].mT.contiguous().mT for k in ("delta", "B", "C")}, u=packed[:, :6], z=packed[:, 6:])
    assert relative_error(compat.selective_scan_fn(**inputs, **FULL)[0], plain) < 1e-6


@pytest.mark.parametrize("is_complex", [False, True])
def test_scan_of_nothing(is_complex):
    for function in (compat.selective_scan_fn, compat.selective_scan_ref):
        out, state = function(**scan_inputs(0, is_complex=is_complex), **FULL)
        assert out.shape == (2, 6, 0)
        assert not state.any()


def block_inputs(constant="", *, is_complex=False, without=()):
    """Inputs of a block of 12 channels, 3 states and step sizes of rank 2, with 5 outputs."""
    normal, n_state = make_normal(), 6 if is_complex else 3
    A = -torch.exp(normal(12, 3))
    inputs = {"xz": normal(2, 24, 17), "A": torch.complex(A, normal(12, 3)) if is_complex else A, "D": normal(12)}
    inputs |= {"conv1d_weight": normal(12, 1, 4), "conv1d_bias": normal(12), "delta_bias": normal(12) - 1}
    inputs |= {"x_proj_weight": 0.3 * normal(2 + (2 - len(constant)) * n_state, 12), "out_proj_bias": normal(5)}
    inputs |= {"delta_proj_weight": 0.3 * normal(12, 2), "out_proj_weight": 0.3 * normal(5, 12)}
    for name in "BC":
        if name in constant:
            inputs[name] = torch.complex(normal(12, 3), normal(12, 3)) if is_complex else normal(12, 3)
        else:
            inputs[f"{name}_proj_bias"] = normal(n_state)
    return {k: v for k, v in inputs.items() if k not in without}


def block(xz, conv1d_weight, A, B=None, C=None, D=None, delta_bias=None, delta_softplus=True, **rest):
    """The block written out, channels first throughout."""

    def column(name):
        return 0 if rest.get(name) is None else rest[name][:, None]

    def normed(x, name):
        return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * column(name) if name in rest else x

    def mixer(part, name):
        part = normed(part + column(f"{name}_proj_bias"), f"{name.lower()}_rms_weight")
        return torch.stack([part[:, 0::2], part[:, 1::2]], -1).flatten(2) if A.is_complex() else part

    x, z = F.pad(xz[:, :12], (3, 0)), xz[:, 12:]
    taps = [x[..., j : j + z.shape[2]] * conv1d_weight[:, :, j] for j in range(4)]
    conv = F.silu(torch.stack(taps).sum(0) + column("conv1d_bias"))
    parts = torch.einsum("rd,bdl->brl", rest["x_proj_weight"], conv)
    delta = normed(torch.einsum("dr,brl->bdl", rest["delta_proj_weight"], parts[:, :2]), "dt_rms_weight")
    n_state = A.shape[1] * (2 if A.is_complex() else 1)
    B = mixer(parts[:, 2 : 2 + n_state], "B") if B is None else B
    C = mixer(parts[:, -n_state:], "C") if C is None else C
    y, _ = convolution(conv, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (torch.einsum("ed,bdl->bel", rest["out_proj_weight"], y) + column("out_proj_bias")).mT


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
def test_block_with_every_kind_of_mixer(constant, is_complex):
    inputs = block_inputs(constant, is_complex=is_complex)
    assert_same(compat.mamba_inner_ref, block, inputs)
    assert_same(compat.mamba_inner_fn, block, inputs)
    inputs = {k: to(v, torch.float32) for k, v in inputs.items()}
    assert_same(compat.mamba_inner_fn, block, inputs, factor=3)  # four matrix products as well


def test_block_without_optional_weights():
    inputs = block_inputs(without=("conv1d_bias", "out_proj_bias", "delta_bias", "D", "B_proj_bias", "C_proj_bias"))
    for softplus in (True, False):
        none: dict[str, Any] = {"conv1d_bias": None, "out_proj_bias": None, "delta_softplus": softplus}
        assert_same(compat.mamba_inner_ref, block, inputs, **none)


def test_block_normalises_where_told():
    norms = {"b_rms_weight": make_normal(2)(3), "c_rms_weight": make_normal(3)(3), "dt_rms_weight": make_normal(4)(12)}
    assert_same(compat.mamba_inner_fn, block, block_inputs() | norms)


def update_inputs(length=None, groups=2, *, dtype=torch.float64, without=()) -> tuple[dict[str, Any], torch.Tensor]:
    """Inputs of one step over 6 channels of 4 states, or of several with time last, and a state to start from."""
    normal, time = make_normal(), () if length is None else (length,)
    mixer = (2, groups, 4) if groups else (2, 4)
    steps = {"x": (2, 6), "dt": (2, 6), "B": mixer, "C": mixer, "z": (2, 6)}
    inputs = {k: normal(*shape, *time).to(dtype) for k, shape in steps.items()}
    inputs |= {"A": -normal(6, 4).exp(), "D": normal(6), "dt_bias": normal(6)}
    return {k: v for k, v in inputs.items() if k not in without}, normal(2, 6, 4).to(dtype)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("without", [(), ("D", "z", "dt_bias")])
@pytest.mark.parametrize("groups", [None, 2])
def test_steps_add_up_to_the_scan(groups, without, softplus):
    inputs, _ = update_inputs(9, groups, without=without)
    if not softplus:
        inputs["dt"] = inputs["dt"].exp() + 9  # positive with its bias
    names = {"x": "u", "dt": "delta", "dt_bias": "delta_bias"}
    whole = {names.get(k, k): v for k, v in inputs.items()}
    out, last_state = compat.selective_scan_ref(**whole, delta_softplus=softplus, return_last_state=True)
    state = torch.zeros_like(last_state)
    for t in range(9):
        step = {k: v[..., t] if k in ("x", "dt", "B", "C", "z") else v for k, v in inputs.items()}
        assert relative_error(compat.selective_state_update(state, **step, dt_softplus=softplus), out[..., t]) < 1e-13
    assert relative_error(state, last_state) < 1e-13


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("groups", [None, 1, 3])
def test_heads_are_channels(groups, contiguous, tied):
    inputs, state = update_inputs(groups=groups)
    channel = {"x": 1, "dt": 1, "z": 1, "A": 0, "D": 0, "dt_bias": 0}
    heads = {k: v.unflatten(channel[k], (3, 2)) if k in channel else v for k, v in inputs.items()}
    if tied:  # as Mamba-2 calls it: one rate and step size a head, spread over its channels without memory
        heads.update(A=heads["A"][:, :1, :1].expand(3, 2, 4), dt=heads["dt"][..., :1].expand(2, 3, 2))
        inputs.update(A=heads["A"].flatten(0, 1), dt=heads["dt"].flatten(1))
    by_head = state.clone().unflatten(1, (3, 2))
    if not contiguous:
        state, by_head = state.mT.contiguous().mT, by_head.transpose(1, 3).contiguous().transpose(1, 3)
    y = compat.selective_state_update(by_head, **heads, dt_softplus=True)
    assert torch.equal(y.flatten(1), compat.selective_state_update(state, **inputs, dt_softplus=True))
    assert torch.equal(by_head.flatten(1, 2), state)


def test_update_of_a_half_precision_state_rounds_once():
    inputs, state = update_inputs(dtype=torch.bfloat16)
    inputs, wide = {k: v.float() if k in ("A", "D", "dt_bias") else v for k, v in inputs.items()}, state.float()
    y = compat.selective_state_update(state, **inputs, dt_softplus=True)
    expected = compat.selective_state_update(wide, **{k: v.float() for k, v in inputs.items()}, dt_softplus=True)
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(state, wide.bfloat16())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_update_of_the_rows_that_are_named(dtype):
    inputs, state = update_inputs()
    table = torch.full((5, 6, 4), float("nan"), dtype=torch.float64)
    table[3] = state[0]
    y = compat.selective_state_update(table, **inputs, state_batch_indices=torch.tensor([3, -9], dtype=dtype))
    assert torch.equal(y, compat.selective_state_update(state, **inputs) * torch.tensor([[1.0], [0.0]]))
    assert torch.equal(table[3], state[0])
    assert table[[0, 1, 2, 4]].isnan().all()


def conv_inputs(length, width, *, dtype=torch.float64, without=()) -> dict[str, Any]:
    normal, wide = make_normal(), torch.promote_types(dtype, torch.float32)
    inputs = {"x": normal(2, 5, length).to(dtype), "initial_states": normal(2, 5, width - 1).to(dtype)}
    inputs |= {"weight": normal(5, width).to(wide), "bias": normal(5).to(wide)}
    return {k: v for k, v in inputs.items() if k not in without}


def by_torch(x, weight, bias=None, initial_states=None, activation="silu", return_final_states=False) -> Any:
    past = weight.shape[1] - 1
    x = F.pad(x, (past, 0)) if initial_states is None else torch.cat([initial_states, x], -1)
    y = F.conv1d(x, weight[:, None], bias, groups=x.shape[1])
    y = F.silu(y) if activation else y
    return (y, x[..., x.shape[2] - past :]) if return_final_states else y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("without", [(), ("bias",), ("initial_states",)])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 7, 130])
def test_convolution(length, width, without, dtype):
    inputs = conv_inputs(length, width, dtype=dtype, without=without)
    for activation, final in itertools.product(("silu", "swish", None), (True, False)):
        assert_same(compat.causal_conv1d_fn, by_torch, inputs, activation=activation, return_final_states=final)
    room = torch.empty(2, width - 1, 5, dtype=dtype).mT
    y, states = compat.causal_conv1d_fn(**inputs, return_final_states=True, final_states_out=room)
    assert (y.dtype, id(states)) == (dtype, id(room))
    before = inputs.get("initial_states", torch.zeros(2, 5, width - 1, dtype=dtype))
    assert torch.equal(room, torch.cat([before, inputs["x"]], -1)[..., length:])


def test_packed_sequences_are_convolved_apart():
    ids = torch.tensor([[0] * 5 + [1] * 2 + [2] * 5, [4] * 9 + [-1] * 3])

    def apart(x, weight, bias, **options):
        rows = [[by_torch(part, weight, bias) for part in x[:1].split((5, 2, 5), -1)]]
        rows.append([by_torch(x[1:, :, :9], weight, bias), torch.zeros(1, 5, 3)])
        return torch.cat([torch.cat(row, -1) for row in rows])

    inputs = conv_inputs(12, 4, without=("initial_states",))
    assert_same(compat.causal_conv1d_fn, apart, inputs, seq_idx=ids, activation="silu")


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("room", [0, 1, 3])
@pytest.mark.parametrize("width", [2, 4])
def test_tokens_add_up_to_the_convolution(width, room, at_once, ring):
    inputs, size = conv_inputs(12, width, without=("initial_states",)), width - 1 + room
    expected, x = by_torch(**inputs), inputs.pop("x")
    state = torch.zeros(2, 5, size, dtype=torch.float64)
    for t in range(0, 12, at_once):
        token = x[..., t] if at_once == 1 else x[..., t : t + at_once]
        seen = torch.full((2,), t, dtype=torch.int32) if ring else None
        y = compat.causal_conv1d_update(token, state, **inputs, activation="silu", cache_seqlens=seen)
        assert y.shape == token.shape
        assert relative_error(y.reshape(2, 5, -1), expected[..., t : t + at_once]) < 1e-13
    assert torch.equal(state[..., torch.arange(12 - size, 12) % size if ring else slice(None)], x[..., 12 - size :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_of_the_rows_that_are_named(dtype):
    inputs = conv_inputs(1, 4, dtype=dtype)
    x, state = inputs.pop("x")[..., 0], inputs.pop("initial_states")
    table = torch.zeros(4, 5, 3, dtype=dtype)
    table[2] = state[0]
    y = compat.causal_conv1d_update(x, table, **inputs, conv_state_indices=torch.tensor([2, -1]))
    assert torch.equal(y[0], compat.causal_conv1d_update(x, state, **inputs)[0])
    assert torch.equal(table[2], state[0])
    assert not torch.cat([table[[0, 1, 3]].flatten(), y[1]]).any()


@pytest.mark.parametrize("shape", [(5,), (3, 3), (2, 5, 6), (2, 4, 4, 5), (2, 0, 4, 5)])
@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_what_does_not_fit_the_scan_is_named(name, shape):
    inputs = scan_inputs(5)
    inputs[name] = torch.zeros(shape)
    for function in (compat.selective_scan_fn, compat.selective_scan_ref):
        with pytest.raises(ValueError, match=rf"\b{name} "):
            function(**inputs)


def test_updates_have_no_derivative():
    inputs, state = update_inputs()
    assert not compat.selective_state_update(state, **{k: v.requires_grad_() for k, v in inputs.items()}).requires_grad
    weight = torch.ones(6, 5, dtype=torch.float64, requires_grad=True)
    assert not compat.causal_conv1d_update(inputs["x"], state, weight).requires_grad


@pytest.mark.parametrize("name", ["x", "dt", "z", "A", "D", "dt_bias"])
def test_what_does_not_fit_an_update_is_named(name):
    inputs, state = update_inputs()
    with pytest.raises(ValueError, match="state must be"):
        compat.selective_state_update(state[0], **inputs)
    inputs[name] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        compat.selective_state_update(state, **inputs)


def test_what_does_not_fit_a_convolution_is_named():
    x, weight = torch.zeros(2, 5), torch.zeros(5, 4)
    for shape in ((2, 5, 2), (2, 4, 3)):
        with pytest.raises(ValueError, match="conv_state must"):
            compat.causal_conv1d_update(x, torch.zeros(shape), weight)
    with pytest.raises(ValueError, match="seq_idx"):
        compat.causal_conv1d_fn(x[..., None], weight, seq_idx=torch.zeros(2, 1), return_final_states=True)
    with pytest.raises(NotImplementedError, match="'relu'"):
        compat.causal_conv1d_fn(x[..., None], weight, activation="relu")
    with pytest.raises(NotImplementedError, match="'relu'"):
        compat.causal_conv1d_update(x, torch.zeros(2, 5, 3), weight, activation="relu")

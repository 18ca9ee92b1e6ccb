"""Mamba-3's scan against the sequential definition in float64, as a complex recurrence, and in its block."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import relative_error
from torch.nn import functional as F

from ssmseq.nn.attention import GroupedQueryAttention
from ssmseq.nn.mamba3 import Mamba3
from ssmseq.nn.stack import ResidualStack
from ssmseq_kernels import mamba3_scan, mamba3_state_update, ssd_scan
from ssmseq_kernels.reference import mamba3_scan_reference

# Relative L2 error of y, state and gradients alike; the sequential loop in float32 is off by up to 1.8e-6.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
ALONG_TIME = ("x", "dt", "A", "B", "C", "trap", "angles", "z")
STATE = ("theta", "h", "k", "x_before")
OPTIONAL = ("D", "z", *STATE)
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SIZES: dict[str, Any] = {"d_model": 24, "d_state": 6, "expand": 2, "head_dim": 8, "n_groups": 2}


def make_inputs(n_batch, length, heads, dim, groups, n_state, pairs, *, dtype=torch.float64, seed=0, without=()):
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = {
        "x": normal(n_batch, length, heads, dim),
        "dt": F.softplus(normal(n_batch, length, heads) - 2),
        "A": -F.softplus(normal(n_batch, length, heads)),
        "B": normal(n_batch, length, groups, n_state),
        "C": normal(n_batch, length, groups, n_state),
        "trap": normal(n_batch, length, heads),
        "angles": normal(n_batch, length, heads, pairs),
        "D": normal(heads),
        "z": normal(n_batch, length, heads, dim),
        "theta": 3 + normal(n_batch, heads, pairs),
        "h": normal(n_batch, heads, dim, n_state),
        "k": normal(n_batch, heads, n_state),
        "x_before": normal(n_batch, heads, dim),
    }
    return {k: v.to(dtype) for k, v in inputs.items() if k not in without}


def call(function, inputs, **options) -> Any:
    state = {"initial_state": tuple(inputs[k] for k in STATE)} if "theta" in inputs else {}
    return function(**{k: v for k, v in inputs.items() if k not in STATE}, **state, **options)


def scan(inputs, **options) -> tuple[torch.Tensor, Any]:
    return call(mamba3_scan, inputs, **options, return_final_state=True)


def reference(inputs, **options) -> tuple[torch.Tensor, Any]:
    return call(mamba3_scan_reference, {k: v.double() for k, v in inputs.items()}, **options)


def with_gradients(function, inputs, **options):
    """Return y, each part of the final state, and the gradients of a random functional of all of them."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    y, (theta, *state) = function(leaves, **options)
    generator = torch.Generator().manual_seed(1)
    results = [y, theta, *state]
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in results]
    grads = torch.autograd.grad(results, list(leaves.values()), weights)
    results[1] = torch.stack([theta.cos(), theta.sin()])  # nothing and a full turn are the same
    names = ["y", *(f"final {k}" for k in STATE), *(f"grad of {k}" for k in leaves)]
    return dict(zip(names, [*results, *grads], strict=True))


def assert_matches_reference(inputs, tolerance=None, **options):
    found, dtype = with_gradients(scan, inputs, **options), inputs["x"].dtype
    truth = with_gradients(reference, {k: v.double() for k, v in inputs.items()}, **options)
    for name, value in truth.items():
        assert found[name].dtype == (torch.float64 if name == "final theta" else dtype)
        error = relative_error(found[name], value)
        assert error < (tolerance or TOLERANCE[dtype]), f"{name}: {error:.2e}"


def assert_states_agree(found, truth, bound):
    for name, a, b in zip(STATE, found, truth, strict=True):
        assert relative_error(a, b) < bound, name


def numbered(*starts, length):
    """Sequence numbers of one row that change at the given steps, and come back to one used before."""
    seq_idx = torch.zeros(1, length, dtype=torch.int64)
    for i, start in enumerate(starts):
        seq_idx[:, start:] = (7, 3, 7, 5)[i % 4]
    return seq_idx


def piece(inputs, begin, end):
    return {k: v[:, begin:end] if k in ALONG_TIME else v for k, v in inputs.items()}


def row(inputs, t):
    return {k: v[:, t] if k in ALONG_TIME else v for k, v in inputs.items() if k not in STATE}


def turned(mixer, theta):
    """Multiply the pairs of mixer, as complex numbers, by exp(i theta)."""
    pairs = torch.view_as_complex(mixer.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(theta), theta)).flatten(-2)


@pytest.fixture(autouse=True)
def no_stale_memory(poisoned_memory):
    """Fill uninitialised memory with NaN in every test here."""


@PRECISIONS
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 131])
def test_lengths(length, dtype):
    assert_matches_reference(make_inputs(2, length, 3, 5, 1, 7, 2, dtype=dtype))


@PRECISIONS
@pytest.mark.parametrize(
    ("heads", "dim", "groups", "n_state", "pairs"),
    [(1, 1, 1, 1, 0), (1, 1, 1, 2, 1), (4, 3, 4, 16, 8), (6, 8, 2, 5, 1), (8, 1, 1, 64, 16)],
)
def test_heads_groups_and_states(heads, dim, groups, n_state, pairs, dtype):
    assert_matches_reference(make_inputs(2, 70, heads, dim, groups, n_state, pairs, dtype=dtype))


@pytest.mark.parametrize("without", [OPTIONAL, STATE, ("z",), ("D",)])
def test_optional_inputs(without):
    assert_matches_reference(make_inputs(1, 66, 4, 3, 2, 5, 2, without=without))


def test_shared_angles_and_skips_of_channels():
    inputs = make_inputs(2, 67, 3, 4, 1, 6, 3)
    assert_matches_reference(inputs | {"angles": inputs["angles"][:, :, :1], "D": inputs["h"][0, :, :, 0]})


@pytest.mark.parametrize("without", [(), STATE])
@pytest.mark.parametrize("starts", [(64,), (1, 63, 65), (5, 6, 100, 129), tuple(range(1, 130))])
def test_packed_sequences(starts, without):
    seq_idx = numbered(*starts, length=130).expand(2, 130)
    assert_matches_reference(make_inputs(2, 130, 3, 4, 1, 5, 2, without=without), seq_idx=seq_idx)


def test_packed_sequences_equal_separate_ones():
    inputs = make_inputs(1, 100, 3, 4, 1, 5, 2)
    state = {k: inputs.pop(k) for k in STATE}
    whole, final = scan(inputs | state, seq_idx=numbered(30, 31, 90, length=100))
    for begin, end in ((0, 30), (30, 31), (31, 90), (90, 100)):
        part, last = scan(piece(inputs, begin, end) | (state if begin == 0 else {}))
        assert relative_error(whole[:, begin:end], part) < 1e-12
    assert_states_agree(final, last, 1e-12)


@settings(max_examples=30, deadline=None)
@given(*(st.integers(1, most) for most in (140, 3, 2, 9, 20)), st.floats(0, 1), st.lists(st.integers(0, 139)))
def test_any_shape(length, heads, groups, dim, n_state, share, starts):
    inputs = make_inputs(1, length, heads * groups, dim, groups, n_state, int(n_state * share) // 2)
    seq_idx = numbered(*sorted(s for s in starts if s < length), length=length)
    assert_matches_reference(inputs, 1e-11, seq_idx=seq_idx)  # single numbers may cancel


@PRECISIONS
def test_pieces_that_hand_on_the_state_equal_the_whole(dtype):
    inputs = make_inputs(2, 150, 3, 4, 1, 5, 2, dtype=dtype)
    whole, final = reference(inputs)
    begin = 0
    for end in (1, 8, 72, 72, 149, 150):
        y, state = scan(piece(inputs, begin, end))
        inputs |= dict(zip(STATE, state, strict=True))
        assert relative_error(y, whole[:, begin:end]) < TOLERANCE[dtype]
        begin = end
    assert_states_agree(state, final, TOLERANCE[dtype])


@PRECISIONS
@pytest.mark.parametrize("without", [(), ("D", "z")])
def test_single_steps_equal_the_scan(without, dtype):
    inputs = make_inputs(2, 9, 6, 4, 2, 5, 2, dtype=dtype, without=without)
    truth, final = reference(inputs)
    state: Any = tuple(inputs.pop(k).to(torch.float64 if k == "theta" else dtype, copy=True) for k in STATE)
    for t in range(9):
        y = mamba3_state_update(state, **row(inputs, t))
        assert relative_error(y, truth[:, t]) < TOLERANCE[dtype]
    assert_states_agree(state, final, TOLERANCE[dtype])


@pytest.mark.parametrize("length", [0, 5])
def test_the_state_lies_in_memory_of_its_own(length):
    inputs = make_inputs(1, 5, 2, 3, 1, 4, 2)
    before = {k: v.clone() for k, v in inputs.items()}
    _, state = scan(piece(inputs, 0, length))
    mamba3_state_update(state, **row(inputs, 0))
    assert all(torch.equal(v, before[k]) for k, v in inputs.items())


def test_without_a_trapezoid_it_is_the_scan_of_mamba2_with_mixers_turned():
    inputs = make_inputs(2, 90, 4, 6, 4, 8, 4)
    theta, state, rate = inputs["theta"], inputs["h"], inputs["A"][0, 0]
    inputs |= {"trap": torch.full_like(inputs["trap"], math.inf), "A": rate.expand_as(inputs["A"])}
    y, _ = scan(inputs)
    theta = theta[:, None] + (math.pi * inputs["angles"].tanh() * inputs["dt"][..., None]).cumsum(1)
    inputs |= {"A": rate, "B": turned(inputs["B"], theta), "C": turned(inputs["C"], theta)}
    inputs = {k: inputs[k] for k in ("x", "dt", "A", "B", "C", "D", "z")}
    assert relative_error(y, ssd_scan(**inputs, dt_softplus=False, initial_state=state)) < 1e-12


def test_angles_of_zero_turn_nothing():
    inputs = make_inputs(1, 70, 2, 3, 1, 4, 2, without=STATE)
    inputs["angles"] = torch.zeros_like(inputs["angles"])
    found, still = scan(inputs), scan(inputs | {"angles": inputs["angles"][..., :0]})
    assert torch.equal(found[0], still[0])
    assert torch.equal(found[1][2], inputs["B"][:, -1].expand(1, 2, 4))


def test_a_common_turn_of_all_changes_nothing_in_y():
    inputs = make_inputs(2, 70, 3, 4, 1, 6, 3)
    shift = torch.tensor([0.3, 4.0, -2.0], dtype=torch.float64)
    moved = inputs | {k: turned(inputs[k], shift) for k in ("h", "k")} | {"theta": inputs["theta"] + shift}
    (y, state), (same, other) = scan(inputs), scan(moved)
    assert relative_error(same, y) < 1e-12
    assert relative_error(other[1], turned(state[1], shift)) < 1e-12


def test_the_rotation_is_a_complex_decay():
    i = make_inputs(2, 75, 3, 4, 3, 6, 3, without=OPTIONAL)
    mixers = [torch.view_as_complex(i[k].unflatten(-1, (3, 2))) for k in ("B", "C")]
    decay = torch.exp(torch.complex(i["A"][..., None], -math.pi * i["angles"].tanh()) * i["dt"][..., None])
    share = i["trap"].sigmoid()
    h = torch.zeros(2, 3, 4, 3, dtype=torch.complex128)
    before, outputs = h, []
    for t in range(75):
        now = i["x"][:, t, :, :, None] * mixers[0][:, t, :, None]
        old_weight, new_weight = ((s * i["dt"][:, t])[..., None, None] for s in (1 - share[:, t], share[:, t]))
        h = decay[:, t, :, None] * (h + old_weight * before) + new_weight * now
        outputs.append((h * mixers[1][:, t, :, None].conj()).sum(-1).real)
        before = now
    assert relative_error(mamba3_scan(**i), torch.stack(outputs, 1)) < 1e-12


def test_a_small_share_of_the_own_input_is_not_lost_in_the_next_one():
    inputs = make_inputs(1, 66, 2, 3, 1, 4, 2, dtype=torch.float32, without=OPTIONAL)
    inputs["trap"] = torch.full_like(inputs["trap"], -20.0)
    assert relative_error(mamba3_scan(**inputs)[:, 0], reference(inputs)[0][:, 0]) < 1e-6


@pytest.mark.parametrize(("name", "value"), [("trap", -300), ("trap", 300), ("dt", 0), ("dt", 200), ("angles", 50)])
def test_extreme_values(name, value):
    inputs = make_inputs(1, 70, 2, 3, 1, 4, 2)
    assert_matches_reference(inputs | {name: torch.full_like(inputs[name], value)})


def test_long_memory_keeps_its_accuracy():
    inputs = make_inputs(1, 3000, 2, 3, 1, 4, 2, dtype=torch.float32, without=OPTIONAL)
    inputs["A"] /= 500  # memories of thousands of steps
    assert relative_error(mamba3_scan(**inputs), reference(inputs)[0]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    inputs = make_inputs(2, 70, 3, 4, 1, 5, 2, dtype=torch.float32)
    halves = {k: v.to(dtype) if k in ALONG_TIME else v for k, v in inputs.items()}
    found = with_gradients(scan, halves)
    y, state = scan({k: v.float() for k, v in halves.items()})
    assert torch.equal(found["y"], y.to(dtype))
    assert torch.equal(found["final h"], state[1])
    assert all(found[f"grad of {k}"].dtype == v.dtype for k, v in halves.items())


@pytest.mark.parametrize(("n_batch", "length"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("without", [(), STATE])
def test_nothing_to_scan(n_batch, length, without):
    inputs = make_inputs(n_batch, length, 2, 3, 1, 4, 2, without=without)
    y, state = scan(inputs, seq_idx=torch.zeros(n_batch, length, dtype=torch.int64))
    assert y.shape == (n_batch, length, 2, 3)
    for name, found in zip(STATE, state, strict=True):
        assert torch.equal(found, inputs.get(name, torch.zeros_like(make_inputs(n_batch, 1, 2, 3, 1, 4, 2)[name])))


@pytest.mark.slow
def test_compiles_into_one_graph():
    inputs = make_inputs(1, 70, 2, 3, 1, 4, 2, dtype=torch.float32, without=STATE)
    compiled = torch.compile(lambda **t: mamba3_scan(**t), fullgraph=True)
    assert relative_error(compiled(**inputs), mamba3_scan(**inputs).double()) < 1e-6


@pytest.mark.parametrize(("name", "shape"), [("dt", (1, 5, 3)), ("A", (2,)), ("angles", (1, 5, 3, 2)), ("k", (1, 2))])
def test_wrong_shape_is_named(name, shape):
    inputs = make_inputs(1, 5, 2, 3, 1, 4, 2) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=f"{name} .*must be") as error:
        scan(inputs)
    assert str(shape) in str(error.value)


def test_wrong_arguments_are_refused():
    inputs = make_inputs(1, 5, 2, 3, 1, 4, 2)
    state = tuple(inputs.pop(k) for k in STATE)
    with pytest.raises(ValueError, match="got 2 parts"):
        mamba3_scan(**inputs, initial_state=state[:2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 need 6 states, B has 4"):
        mamba3_scan(**inputs | {"angles": torch.zeros(1, 5, 2, 3)})
    with pytest.raises(RuntimeError, match="no_grad"):
        mamba3_state_update(state, **row(inputs, 0) | {"z": inputs["z"][:, 0].clone().requires_grad_()})
    with pytest.raises(TypeError, match="in place"):
        mamba3_state_update(tuple(t.float() for t in state), **row(inputs, 0))  # type: ignore[arg-type]


def block(**changes) -> Any:
    """Make a block and move every parameter off its start: ones and zeros hide mistakes."""
    torch.manual_seed(0)
    module = Mamba3(**SIZES | changes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def hybrid() -> Any:
    mixers = {"3": block, "A": lambda: GroupedQueryAttention(d_model=24, n_heads=6, n_kv_heads=2)}
    layers: dict[str, Any] = {"d_model": 24, "pattern": "3A3", "mixers": mixers, "feed_forwards": None}
    return ResidualStack(**layers, eps=1e-5, dropout=0.0, residual_in_fp32=True)


def by_chunks(module, x, sizes):
    state: Any = module.empty_caches() if isinstance(module, ResidualStack) else {}
    return torch.cat([module(part, state) for part in x.split(sizes, 1)], 1), state


def test_block_follows_its_formula():
    module = block(A_floor=0.9).double()
    x = torch.randn(2, 11, 24, dtype=torch.float64)
    z, u, B, C, dt, A, trap, angles = (x @ module.in_proj.weight.T).split([48, 48, 12, 12, 6, 6, 6, 1], -1)
    B, C = (t.unflatten(-1, (2, 6)) for t in (B, C))
    B, C = ((t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt()).repeat_interleave(3, 2) for t in (B, C))
    B = B * module.B_norm.weight + module.B_bias[:, 0]
    C = C * module.C_norm.weight + module.C_bias[:, 0]
    A = -torch.where(A >= 0, 1 + A, 1 / (1 - A)).clamp_min(0.9)
    u, z = (t.unflatten(-1, (6, 8)) for t in (u, z))
    dt = torch.log1p(torch.exp(dt + module.dt_bias))
    y, _ = mamba3_scan_reference(u, dt, A, B, C, trap, angles[:, :, None], module.D, z)
    assert set((A == -0.9).flatten().tolist()) == {True, False}  # with and without the floor
    assert relative_error(module(x), y.flatten(2) @ module.out_proj.weight.T) < 1e-12


def test_block_starts_as_documented():
    module = Mamba3(**SIZES | {"rope_fraction": 1.0, "dt_min": 0.01, "dt_max": 0.02})
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    ones = {"B_bias": (6, 1, 6), "C_bias": (6, 1, 6), "B_norm.weight": (6,), "C_norm.weight": (6,), "D": (6,)}
    width = 2 * 48 + 4 * 6 + 3 * 6 + 3  # z and x, B and C, three numbers of each head, angles
    assert shapes == ones | {"in_proj.weight": (width, 24), "out_proj.weight": (24, 48), "dt_bias": (6,)}
    assert all((module.state_dict()[k] == 1).all() for k in ones)
    dt = F.softplus(module.dt_bias)
    assert ((dt > 0.0099) & (dt < 0.0201)).all()


@pytest.mark.parametrize("sizes", [(1,) * 13, (1, 3, 7, 2), (6, 1, 1, 5)], ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("build", [block, lambda: block(n_groups=6, rope_fraction=1.0), hybrid])
def test_chunks_equal_one_whole_forward(build, sizes, grad):
    module, x = build().double(), torch.randn(3, 13, 24, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(by_chunks(module, x, sizes)[0], module(x), rtol=1e-10, atol=1e-10)


def test_gradients_through_chunks_reach_every_parameter_as_through_the_whole():
    module, x = hybrid().double(), torch.randn(2, 13, 24, dtype=torch.float64, requires_grad=True)
    inputs, weight = [x, *module.parameters()], torch.randn(2, 13, 24, dtype=torch.float64)
    truth = torch.autograd.grad(module(x), inputs, weight)
    found = torch.autograd.grad(by_chunks(module, x, (1, 3, 7, 2))[0], inputs, weight)
    for a, b in zip(found, truth, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_single_steps_overwrite_the_state_and_spare_one_that_wants_gradients(dtype):
    module, x = block().to(dtype), torch.randn(2, 13, 24, dtype=dtype)
    with torch.no_grad():
        _, cache = by_chunks(module, x, (13,))
        before = dict(cache)
        y = module(x[:, :1], cache)
    shapes = {"angle": (2, 6, 1), "ssm": (2, 6, 8, 6), "k": (2, 6, 6), "x": (2, 6, 8)}
    assert {k: tuple(v.shape) for k, v in cache.items()} == shapes
    assert y.dtype == dtype
    assert all(cache[name] is before[name] for name in shapes)
    whole, cache = by_chunks(module, x, (13,))
    before = dict(cache)
    with torch.no_grad():
        module(x[:, :1], cache)
    assert all(cache[name] is not before[name] for name in shapes)
    whole.sum().backward()  # and what it saved is untouched


@pytest.mark.parametrize("changes", [{"head_dim": 7}, {"n_groups": 4}, {"rope_fraction": 0.2}, {"dt_min": 0.2}])
def test_wrong_sizes_are_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} .*got"):
        Mamba3(**SIZES | changes)

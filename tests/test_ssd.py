"""Mamba-2's scan: chunked matrix products against the sequential definition in float64, and against the other scan."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import relative_error, run_with_gradients

from ssmseq_kernels import ops, selective_scan, ssd, ssd_products, ssd_scan
from ssmseq_kernels.reference import ssd_scan_reference

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}  # relative L2 error; the table of kernels/README.md
# A few numbers that are sums of many of either sign: the sequential loop in float32 is off by as much.
SUMMED, SUMMED_FACTOR = ("grad of A", "grad of dt_bias", "grad of initial_state"), 5
ALONG_TIME = ("x", "dt", "B", "C", "z")
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")


def make_inputs(n_batch, length, heads, dim, groups, n_state, *, dtype=torch.float32, seed=0, without=(), D_rows=False):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(n_batch, length, heads, dim),
        "dt": normal(n_batch, length, heads) - 2,
        "A": -torch.exp(normal(heads)),
        "B": normal(n_batch, length, groups, n_state),
        "C": normal(n_batch, length, groups, n_state),
        "D": normal(heads, dim) if D_rows else normal(heads),
        "z": normal(n_batch, length, heads, dim),
        "dt_bias": 0.3 * normal(heads),
        "initial_state": normal(n_batch, heads, dim, n_state),
    }
    return {k: v.to(dtype) for k, v in inputs.items() if k not in without}


def numbered(*starts, length):
    """Sequence numbers of one row that change at the given steps, and come back to one used before."""
    seq_idx = torch.zeros(1, length, dtype=torch.int64)
    for i, start in enumerate(starts):
        seq_idx[:, start:] = (7, 3, 7, 5)[i % 4]
    return seq_idx


def assert_matches_reference(inputs, tolerance=None, **options):
    found = run_with_gradients(lambda **t: ssd_scan(**t, **options, return_final_state=True), inputs)
    exact = {k: v.double() for k, v in inputs.items()}
    truth = run_with_gradients(lambda **t: ssd_scan_reference(**t, **options), exact)
    for name, value in truth.items():
        assert found[name].dtype == inputs["x"].dtype
        error = relative_error(found[name], value)
        bound = tolerance or TOLERANCE[inputs["x"].dtype] * (SUMMED_FACTOR if name in SUMMED else 1)
        assert error < bound, f"{name}: {error:.2e}"


@pytest.fixture(autouse=True, params=["scan", "products"])
def way(request, monkeypatch, poisoned_memory):
    """Both ways to compute it on a CPU, with uninitialised memory filled with NaN."""
    if request.param == "products":
        monkeypatch.setattr(ssd, "has_scan", lambda device: False)
    elif not ssd.has_scan(torch.device("cpu")):
        pytest.skip(str(ops.CPU_MISSING))
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 131])
def test_lengths(length, reverse, dtype):
    assert_matches_reference(make_inputs(2, length, 3, 5, 1, 7, dtype=dtype), reverse=reverse)


@pytest.mark.parametrize(
    ("heads", "dim", "groups", "n_state"), [(1, 1, 1, 1), (4, 3, 4, 16), (6, 8, 2, 5), (8, 1, 1, 64)]
)
def test_heads_groups_and_states(heads, dim, groups, n_state):
    assert_matches_reference(make_inputs(2, 70, heads, dim, groups, n_state, D_rows=True))


@pytest.mark.parametrize("without", [NAMES[5:], ("z",), ("D", "initial_state"), ("dt_bias",)])
def test_optional_inputs(without):
    assert_matches_reference(make_inputs(1, 66, 4, 3, 2, 5, without=without))


@pytest.mark.parametrize("limit", [(0.1, math.inf), (0.0, 0.2), (0.05, 0.15)])
def test_limits_of_the_step_size(limit):
    assert_matches_reference(make_inputs(2, 67, 3, 4, 1, 5), dt_limit=limit)


def test_step_sizes_as_they_are():
    inputs = make_inputs(2, 67, 3, 4, 1, 5, without=("dt_bias",))
    inputs["dt"] = inputs["dt"].exp()
    assert_matches_reference(inputs, dt_softplus=False)


def test_without_softplus_no_step_size_is_negative():
    inputs = make_inputs(2, 67, 3, 4, 1, 5)
    assert_matches_reference(inputs, dt_softplus=False)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("starts", [(64,), (1, 63, 65), (5, 6, 100, 129), tuple(range(1, 130))])
def test_packed_sequences(starts, reverse):
    seq_idx = numbered(*starts, length=130).expand(2, 130)
    assert_matches_reference(make_inputs(2, 130, 3, 4, 1, 5), seq_idx=seq_idx, reverse=reverse)


def test_packed_sequences_equal_separate_ones():
    inputs = make_inputs(1, 100, 3, 4, 1, 5, without=("initial_state",))
    whole = ssd_scan(**inputs, seq_idx=numbered(30, 31, 90, length=100))
    for begin, end in ((0, 30), (30, 31), (31, 90), (90, 100)):
        part = ssd_scan(**{k: v[:, begin:end] if k in ALONG_TIME else v for k, v in inputs.items()})
        assert relative_error(whole[:, begin:end], part.double()) < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 140),
    heads=st.integers(1, 3),
    groups=st.integers(1, 2),
    dim=st.integers(1, 9),
    n_state=st.integers(1, 20),
    reverse=st.booleans(),
    starts=st.lists(st.integers(0, 139), max_size=4),
)
def test_any_shape(length, heads, groups, dim, n_state, reverse, starts):
    inputs = make_inputs(1, length, heads * groups, dim, groups, n_state, dtype=torch.float64)
    seq_idx = numbered(*sorted(s for s in starts if s < length), length=length)
    assert_matches_reference(inputs, 1e-11, reverse=reverse, seq_idx=seq_idx)  # single numbers may cancel


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_the_scan_of_mamba_with_one_decay_per_head(reverse):
    inputs = make_inputs(2, 90, 4, 6, 2, 8, dtype=torch.float64)
    y, state = ssd_scan(**inputs, reverse=reverse, return_final_state=True)
    spread = {k: inputs[k].repeat_interleave(6, -1) for k in ("dt", "D", "dt_bias")}
    truth, true_state = selective_scan(
        inputs["x"].flatten(2),
        spread["dt"],
        inputs["A"].repeat_interleave(6)[:, None].expand(24, 8),
        inputs["B"],
        inputs["C"],
        spread["D"],
        inputs["z"].flatten(2),
        spread["dt_bias"],
        initial_state=inputs["initial_state"].flatten(1, 2),
        reverse=reverse,
        return_final_state=True,
    )
    assert relative_error(y.flatten(2), truth) < 1e-13
    assert relative_error(state.flatten(1, 2), true_state) < 1e-13


def test_pieces_that_hand_on_the_state_equal_the_whole():
    inputs = make_inputs(2, 150, 3, 4, 1, 5)
    whole, final = ssd_scan(**inputs, return_final_state=True)
    state, begin = inputs.pop("initial_state"), 0
    for end in (1, 8, 72, 149, 150):
        part = {k: v[:, begin:end] if k in ALONG_TIME else v for k, v in inputs.items()}
        y, state = ssd_scan(**part, initial_state=state, return_final_state=True)
        assert relative_error(whole[:, begin:end], y.double()) < 1e-6
        begin = end
    assert relative_error(final, state.double()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    inputs = make_inputs(2, 70, 3, 4, 1, 5)
    halves = {k: v.to(dtype) if k in ALONG_TIME else v for k, v in inputs.items()}
    found = run_with_gradients(lambda **t: ssd_scan(**t, return_final_state=True), halves)
    y, state = ssd_scan(**{k: v.float() for k, v in halves.items()}, return_final_state=True)
    assert torch.equal(found["y"], y.to(dtype))
    assert torch.equal(found["final_state"], state)
    assert all(found[f"grad of {k}"].dtype == v.dtype for k, v in halves.items())


def test_views_are_read_where_they_lie():
    inputs = make_inputs(2, 70, 3, 4, 1, 5)
    laid = {k: v.permute(*range(v.dim())[::-1]).contiguous().permute(*range(v.dim())[::-1]) for k, v in inputs.items()}
    packed = torch.cat([inputs["x"].flatten(2), inputs["z"].flatten(2)], -1)  # how a Mamba-2 block holds them
    laid |= {"x": packed[..., :12].unflatten(-1, (3, 4)), "z": packed[..., 12:].unflatten(-1, (3, 4))}
    assert_matches_reference(laid)


def test_long_memory_keeps_its_accuracy():
    inputs = make_inputs(1, 5000, 2, 3, 1, 4, without=("dt_bias", "z", "initial_state"))
    inputs["dt"] -= 6  # memories of thousands of steps
    y = ssd_scan(**inputs)
    truth, _ = ssd_scan_reference(**{k: v.double() for k, v in inputs.items()})
    assert relative_error(y, truth) < 1e-6


@pytest.mark.parametrize("dt", [-200.0, -30.0, 0.0, 25.0, 300.0])
def test_extreme_step_sizes(dt):
    inputs = make_inputs(1, 70, 2, 3, 1, 4, without=("dt_bias",))
    inputs["dt"] = torch.full_like(inputs["dt"], dt)
    assert_matches_reference(inputs)


def test_gradcheck():
    inputs = make_inputs(1, 6, 4, 2, 2, 3, dtype=torch.float64)
    leaves = [v.requires_grad_() for v in inputs.values()]
    seq_idx = numbered(4, length=6)

    def scan(*tensors):
        return ssd_scan(*tensors[:8], initial_state=tensors[8], seq_idx=seq_idx, return_final_state=True)

    assert torch.autograd.gradcheck(scan, leaves)


def test_many_parts_equal_one(monkeypatch):
    inputs = make_inputs(2, 200, 4, 3, 2, 5)
    one = run_with_gradients(lambda **t: ssd_scan(**t, return_final_state=True), inputs)
    monkeypatch.setattr(ssd_products, "WEIGHTS_AT_ONCE", 1)
    many = run_with_gradients(lambda **t: ssd_scan(**t, return_final_state=True), inputs)
    for name, value in one.items():
        assert relative_error(many[name], value.double()) < 1e-6, name


def test_second_derivative_is_refused():
    inputs = {k: v.requires_grad_() for k, v in make_inputs(1, 5, 2, 2, 1, 3).items()}
    (grad,) = torch.autograd.grad(ssd_scan(**inputs).sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        grad.sum().backward()


@pytest.mark.parametrize(("n_batch", "length"), [(0, 5), (2, 0)])
def test_nothing_to_scan(n_batch, length):
    inputs = make_inputs(n_batch, length, 2, 3, 1, 4)
    y, state = ssd_scan(**inputs, return_final_state=True)
    assert y.shape == (n_batch, length, 2, 3)
    assert torch.equal(state, inputs["initial_state"])


@pytest.mark.slow
def test_compiles_into_one_graph():
    inputs = make_inputs(1, 70, 2, 3, 1, 4)
    compiled = torch.compile(lambda **t: ssd_scan(**t), fullgraph=True)
    assert relative_error(compiled(**inputs), ssd_scan(**inputs).double()) < 1e-6


@pytest.mark.parametrize(
    ("name", "shape"),
    [("dt", (1, 5, 3)), ("A", (3,)), ("C", (1, 5, 1, 3)), ("D", (2, 2)), ("z", (1, 5, 2, 2)), ("seq_idx", (1, 4))],
)
def test_wrong_shape_is_named(name, shape):
    given_tensors = make_inputs(1, 5, 2, 3, 1, 4) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=name) as error:
        ssd_scan(**given_tensors)
    assert str(shape) in str(error.value)


def test_wrong_arguments_are_refused():
    inputs = make_inputs(1, 5, 3, 3, 2, 4)
    with pytest.raises(ValueError, match="divide the 3 heads"):
        ssd_scan(**inputs)
    inputs = make_inputs(1, 5, 2, 3, 1, 4)
    with pytest.raises(ValueError, match="dt_limit"):
        ssd_scan(**inputs, dt_limit=(0.2, 0.1))
    with pytest.raises(TypeError, match="integers"):
        ssd_scan(**inputs, seq_idx=torch.zeros(1, 5))
    with pytest.raises(ValueError, match="C is on meta, x on cpu"):
        ssd_scan(**inputs | {"C": inputs["C"].to("meta")})
    with pytest.raises(ValueError, match="B, L, H, P"):
        ssd_scan(**inputs | {"x": inputs["x"][0]})

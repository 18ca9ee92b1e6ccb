"""The selective scan against its float64 definition: outputs, final state and every gradient."""

import importlib.util
import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import NAMES, TOLERANCE, assert_matches_reference, make_inputs, relative_error, run_with_gradients

from ssmseq_kernels import available_backends, ops, scan, selective_scan, selective_state_update
from ssmseq_kernels.reference import selective_scan_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_state", [1, 2, 8, 16, 32])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 63, 65])
def test_lengths_and_states(isa, length, n_state, dtype):
    assert_matches_reference(make_inputs(2, length, 19, n_state, dtype=dtype))


@pytest.mark.parametrize(("n_channels", "groups"), [(6, 1), (6, 6), (48, 3), (40, 2), (1, 1), (257, 1)])
def test_channels_and_groups(isa, n_channels, groups):
    assert_matches_reference(make_inputs(3, 35, n_channels, 5, groups))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_every_combination_of_optional_inputs(softplus, reverse):
    optional = ("D", "z", "delta_bias", "initial_state")
    for count in range(5):
        for without in itertools.combinations(optional, count):
            inputs = make_inputs(2, 21, 9, 3, without=without)
            if not softplus:  # step sizes must then be positive, or the state explodes
                inputs["delta"] = inputs["delta"].exp()
                inputs.pop("delta_bias", None)
            assert_matches_reference(inputs, delta_softplus=softplus, reverse=reverse)


@settings(max_examples=40, deadline=None)
@given(
    n_batch=st.integers(1, 4),
    length=st.integers(4, 80),
    per_group=st.integers(16, 60),  # small sizes make gradients of a few numbers, whose terms may cancel
    n_state=st.integers(4, 40),
    groups=st.integers(1, 3),
    reverse=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_shape(n_batch, length, per_group, n_state, groups, reverse, seed):
    inputs = make_inputs(n_batch, length, per_group * groups, n_state, groups, seed=seed)
    assert_matches_reference(inputs, reverse=reverse)


def test_largest_state():
    assert_matches_reference(make_inputs(1, 40, 5, 256))


def test_long_input_keeps_its_accuracy(isa):
    assert_matches_reference(make_inputs(1, 3001, 8, 16))


def test_reverse_equals_flipping():
    inputs = make_inputs(2, 37, 10, 4)
    along_time = ("u", "delta", "B", "C", "z")
    flipped = {k: v.flip(1) if k in along_time else v for k, v in inputs.items()}
    assert torch.equal(selective_scan(**inputs, reverse=True), selective_scan(**flipped).flip(1))


@pytest.mark.parametrize("cut", [1, 16, 31, 32, 50])
def test_two_calls_carrying_the_state_equal_one(cut):
    inputs = make_inputs(2, 51, 24, 16)
    parts = []
    state = inputs.pop("initial_state")
    whole, last = selective_scan(**inputs, initial_state=state, return_final_state=True)
    for piece in (slice(None, cut), slice(cut, None)):
        cut_inputs = {k: v[:, piece] if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
        y, state = selective_scan(**cut_inputs, initial_state=state, return_final_state=True)
        parts.append(y)
    assert relative_error(torch.cat(parts, 1), whole.double()) < 1e-6
    assert relative_error(state, last.double()) < 1e-6


def test_strided_inputs_give_the_same_bits():
    inputs = make_inputs(2, 18, 12, 4)
    plain = selective_scan(**inputs)
    packed = torch.cat([inputs["u"], inputs["z"]], -1)  # how a Mamba block holds them
    mixers = torch.cat([inputs["B"], inputs["C"]], -1)
    viewed = inputs | {
        "u": packed[..., :12],
        "z": packed[..., 12:],
        "B": mixers[..., :4],
        "C": mixers[..., 4:],
        "delta": inputs["delta"].transpose(1, 2).contiguous().transpose(1, 2),  # channels first in memory
        "A": inputs["A"].T.contiguous().T,
    }
    assert torch.equal(selective_scan(**viewed), plain)


def test_gradient_of_strided_output():
    inputs = make_inputs(2, 9, 6, 2)
    u = inputs["u"].requires_grad_()
    selective_scan(**inputs).transpose(1, 2).reshape(2, -1).sum().backward()
    (expected,) = torch.autograd.grad(selective_scan(**inputs).sum(), u)
    assert torch.equal(u.grad, expected)


def test_bitwise_equal_at_any_number_of_threads():
    inputs = make_inputs(5, 130, 200, 16)  # large enough to be split over threads
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            function = lambda **x: selective_scan(**x, return_final_state=True)  # noqa: E731
            results.append(run_with_gradients(function, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("n_batch", "length"), [(0, 5), (2, 0)])
def test_nothing_to_scan(n_batch, length):
    inputs = make_inputs(n_batch, length, 6, 3)
    found = run_with_gradients(lambda **x: selective_scan(**x, return_final_state=True), inputs)
    assert found["y"].shape == (n_batch, length, 6)
    assert torch.equal(found["final_state"], inputs["initial_state"])
    for name, value in found.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("delta", [-200.0, -30.0, 0.0, 25.0, 90.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_step_sizes(isa, delta, dtype):
    """Both branches of softplus, decays that underflow, states that are forgotten at once."""
    inputs = make_inputs(1, 9, 11, 4, dtype=dtype, without=("delta_bias",))
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    found = selective_scan(**inputs)
    truth, _ = selective_scan_reference(**{k: v.double() for k, v in inputs.items()})
    assert relative_error(found, truth) < TOLERANCE[dtype]


def test_nan_reaches_the_output(isa):
    inputs = make_inputs(1, 5, 3, 2)
    inputs["delta"][0, 2, 1] = float("nan")
    y = selective_scan(**inputs)
    assert y[0, 2:, 1].isnan().all()
    assert y[0, :2].isfinite().all()
    assert y[..., [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    inputs = make_inputs(2, 11, 8, 4, dtype=dtype)
    y, state = selective_scan(**inputs, return_final_state=True)
    expected = selective_scan(**{k: v.float() for k, v in inputs.items()})
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(y, expected.to(dtype))


def test_mixed_dtypes_as_under_autocast():
    inputs = make_inputs(2, 11, 8, 4)
    halves = {k: v.bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}
    leaves = {k: v.requires_grad_() for k, v in halves.items()}
    selective_scan(**leaves).float().sum().backward()
    assert {k: v.grad.dtype for k, v in leaves.items()} == {k: v.dtype for k, v in leaves.items()}


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse):
    inputs = {k: v.requires_grad_() for k, v in make_inputs(2, 5, 3, 2, dtype=torch.float64).items()}
    function = lambda *x: selective_scan(  # noqa: E731
        **dict(zip(inputs, x, strict=True)), reverse=reverse, return_final_state=True
    )
    assert torch.autograd.gradcheck(function, tuple(inputs.values()), nondet_tol=0.0)


def test_second_derivative_is_refused():
    u = make_inputs(1, 3, 2, 2)
    u = {k: v.requires_grad_() for k, v in u.items()}
    (first,) = torch.autograd.grad(selective_scan(**u).sum(), u["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(first.sum(), u["u"])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias", "initial_state")])
def test_opcheck(without, keep):
    inputs = make_inputs(2, 37, 6, 3)
    tensors = [None if k in without else inputs[k].requires_grad_(keep) for k in NAMES]
    torch.library.opcheck(torch.ops.ssmseq.selective_scan.default, (*tensors, None, True, False, True, keep))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend):
    torch.use_deterministic_algorithms(False)
    inputs = make_inputs(2, 13, 6, 3)

    def function(**x):
        y, state = selective_scan(**x, return_final_state=True)
        return 2 * y, state

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    found, expected = run_with_gradients(compiled, inputs), run_with_gradients(function, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_ungrouped_mixers():
    inputs = make_inputs(2, 6, 4, 3)
    flat = inputs | {"B": inputs["B"][:, :, 0], "C": inputs["C"][:, :, 0]}
    assert torch.equal(selective_scan(**flat), selective_scan(**inputs))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (2, 6, 3)),
        ("A", (5, 3)),
        ("B", (2, 5, 1, 3)),
        ("C", (2, 6, 3, 3)),
        ("D", (3,)),
        ("z", (2, 6, 5)),
        ("delta_bias", (4, 1)),
        ("initial_state", (2, 3, 4)),
    ],
)
def test_wrong_shape_is_named(name, shape):
    inputs = make_inputs(2, 6, 4, 3) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=name) as error:
        selective_scan(**inputs)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("name", [*NAMES[1:], "seq_idx"])
def test_a_tensor_on_another_device_is_named(name):
    inputs: dict = make_inputs(2, 6, 4, 3) | {"seq_idx": torch.zeros(2, 6, dtype=torch.int32)}
    selective_scan(**inputs)  # what once fitted does not make others fit
    inputs[name] = inputs[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} is on meta, u on cpu"):
        selective_scan(**inputs)


@pytest.mark.parametrize("by_table", [True, False])
@pytest.mark.parametrize("name", NAMES[1:-1])
def test_a_step_names_a_tensor_on_another_device(name, by_table):
    inputs = make_inputs(2, 1, 4, 3, without=("initial_state",))
    now = {k: v[:, 0] if v.dim() > 2 else v for k, v in inputs.items()}
    now[name] = now[name].to("meta")
    ops.cpu._cpu.use_exchange_table(by_table)
    try:
        with torch.no_grad(), pytest.raises(ValueError, match=f"{name} is on meta, u on cpu"):
            selective_state_update(torch.zeros(2, 4, 3), **now)
    finally:
        ops.cpu._cpu.use_exchange_table(True)


def test_integers_are_refused():
    inputs = {k: v.long() for k, v in make_inputs(1, 2, 2, 1).items()}
    with pytest.raises(TypeError, match="floating-point"):
        selective_scan(**inputs)


def test_reference_serves_where_there_is_no_kernel(monkeypatch):
    """Training too: forward, gradients and one warning, as on an installation without a compiler."""
    inputs = make_inputs(2, 8, 6, 3, 2)
    compiled = run_with_gradients(lambda **x: selective_scan(**x, reverse=True, return_final_state=True), inputs)
    monkeypatch.setattr(ops, "has_kernel", lambda device: False)
    monkeypatch.setattr(scan, "_warned", False)
    with pytest.warns(RuntimeWarning, match="ssmseq info"):
        found = run_with_gradients(lambda **x: selective_scan(**x, reverse=True, return_final_state=True), inputs)
    for name, value in compiled.items():
        torch.testing.assert_close(found[name], value, msg=name, rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        halves = selective_scan(**{k: v.bfloat16() for k, v in inputs.items()})
    assert halves.dtype == torch.bfloat16


def test_without_triton_the_reason_and_the_remedy_are_told(monkeypatch):
    ops.cuda_missing.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        assert not ops.has_kernel(torch.device("cuda"))
        assert "pip install 'ssmseq[gpu]'" in available_backends()["cuda"]
    finally:
        ops.cuda_missing.cache_clear()


def test_backends_name_the_instruction_set(isa):
    assert isa in available_backends()["cpu"]


def test_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="mmx"):
        ops.cpu._cpu.set_isa("mmx")

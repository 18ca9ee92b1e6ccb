"""One step of Mamba-2's scan: the compiled kernel and torch's operators, against the definition in float64."""

import pytest
import torch
from scan_cases import relative_error
from test_ssd import ALONG_TIME, TOLERANCE, make_inputs

from ssmseq_kernels import ops, ssd, ssd_state_update
from ssmseq_kernels.reference import ssd_scan_reference

pytestmark = pytest.mark.skipif(ops.cpu is None, reason=str(ops.CPU_MISSING))
STEPS = [(6, 4, 2, 5), (3, 64, 1, 64), (2, 16, 1, 128), (5, 1, 1, 3), (4, 7, 2, 33), (1, 20, 1, 32)]


@pytest.fixture(params=["kernel", "operators"])
def step(request, isa, monkeypatch):
    """The step by the compiled kernel of each instruction set, without recourse to torch's operators; or by these."""

    def refuse(*args, **named):
        raise AssertionError("left to torch's operators")

    if request.param == "kernel":
        monkeypatch.setattr(ssd, "_step_by_operators", refuse)
    else:
        monkeypatch.setattr(ops.cpu, "update_heads", lambda *args, **named: None)
        monkeypatch.setattr(ops, "has_kernel", lambda device: False)
    return ssd_state_update


def now(inputs):
    """The inputs of the first step."""
    return {k: v[:, 0] if k in ALONG_TIME else v for k, v in inputs.items() if k != "initial_state"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("without", [(), ("D", "z"), ("dt_bias",)])
@pytest.mark.parametrize("sizes", STEPS)
def test_one_step_against_the_definition(step, sizes, without, dtype):
    for options in ({}, {"dt_softplus": False}, {"dt_limit": (0.1, 0.3)}):
        inputs = make_inputs(3, 1, *sizes, dtype=dtype, without=without, D_rows="dt_limit" in options)
        truth, final = ssd_scan_reference(**{k: v.double() for k, v in inputs.items()}, **options)
        state = inputs["initial_state"]
        y = step(state, **now(inputs), **options)
        assert y.dtype == dtype
        assert relative_error(y, truth[:, 0]) < TOLERANCE[dtype]
        assert relative_error(state, final) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_step_in_half_precision_is_computed_in_float32(step, dtype):
    inputs = make_inputs(3, 1, 4, 7, 2, 33)
    halves = {k: v if k == "initial_state" else v.to(dtype) for k, v in inputs.items()}
    wide = {k: v.float().clone() for k, v in halves.items()}
    y, expected = step(halves["initial_state"], **now(halves)), step(wide["initial_state"], **now(wide))
    assert torch.equal(y, expected.to(dtype))
    assert torch.equal(halves["initial_state"], wide["initial_state"])


def test_a_step_of_views_changes_only_its_state(step):
    inputs = make_inputs(3, 1, 4, 8, 2, 16)
    given, before = now(inputs), inputs["initial_state"]
    packed = torch.cat([given["x"].flatten(1), given["B"].flatten(1)], -1)  # how a Mamba-2 block holds them
    laid = given | {"x": packed[:, :32].unflatten(-1, (4, 8)), "B": packed[:, 32:].unflatten(-1, (2, 16))}
    room = torch.zeros(6, 4, 8, 16)
    room[::2] = before
    expected = step(before, **given)
    assert torch.equal(step(room[::2], **laid), expected)
    assert torch.equal(room[::2], before)
    assert not room[1::2].any()


def test_a_step_of_any_layout_is_right():
    inputs = make_inputs(3, 1, 4, 8, 2, 16)
    given, before = now(inputs), inputs["initial_state"]
    room = torch.zeros(3, 8, 8, 16)
    room[:, ::2] = before
    turned = before.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    laid = given | {k: given[k].mT.contiguous().mT for k in ("x", "z", "B", "C")}
    expected = ssd_state_update(before, **given)
    for state in (room[:, ::2], turned):
        assert relative_error(ssd_state_update(state, **laid), expected.double()) < 1e-6
        assert relative_error(state, before.double()) < 1e-6
    assert not room[:, 1::2].any()


def test_a_step_size_that_is_no_number_is_not_limited(step):
    given = now(make_inputs(1, 1, 2, 3, 1, 4, without=("z", "D")))
    given["dt"] = torch.tensor([[float("nan"), 1.0]])
    y = step(torch.zeros(1, 2, 3, 4), **given, dt_limit=(0.0, 0.5))
    assert y[0, 0].isnan().all()
    assert y[0, 1].isfinite().all()


@pytest.mark.parametrize("sizes", [(0, 2, 3, 1, 4), (2, 2, 0, 1, 4), (2, 2, 3, 1, 0)])
def test_a_step_of_nothing(sizes):
    n_batch, *rest = sizes
    inputs = make_inputs(n_batch, 1, *rest)
    y = ssd_state_update(inputs["initial_state"], **now(inputs))
    assert y.shape == inputs["x"][:, 0].shape
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("without", [(), ("D", "z", "dt_bias")])
def test_single_steps_equal_the_scan(without, dtype):
    inputs = make_inputs(2, 9, 6, 4, 2, 5, dtype=dtype, without=without)
    exact = {k: v.double() for k, v in inputs.items()}
    truth, final = ssd_scan_reference(**exact, dt_limit=(0.05, 0.5))
    state = inputs.pop("initial_state").clone()
    for t in range(9):
        now = {k: v[:, t] if k in ALONG_TIME else v for k, v in inputs.items()}
        y = ssd_state_update(state, **now, dt_limit=(0.05, 0.5))
        assert relative_error(y, truth[:, t]) < 1e-6
    assert relative_error(state, final) < 1e-6


def test_wrong_arguments_are_refused():
    inputs = make_inputs(1, 5, 2, 3, 1, 4)
    row = {k: v[:, 0] if k in ALONG_TIME else v for k, v in inputs.items() if k != "initial_state"}
    with pytest.raises(RuntimeError, match="no_grad"):
        ssd_state_update(inputs["initial_state"], **row | {"x": row["x"].requires_grad_()})
    row["x"] = row["x"].detach()
    with pytest.raises(TypeError, match="in place"):
        ssd_state_update(inputs["initial_state"].half(), **row)
    with pytest.raises(TypeError, match="in place"):
        ssd_state_update(inputs["initial_state"], **row | {"D": row["D"].double()})
    with pytest.raises(ValueError, match="dt_limit"):
        ssd_state_update(inputs["initial_state"], **row, dt_limit=(0.2, 0.1))
    for name in row:
        with pytest.raises(ValueError, match=f"{'x' if name == 'B' else name} "):
            ssd_state_update(inputs["initial_state"], **row | {name: torch.zeros(7)})

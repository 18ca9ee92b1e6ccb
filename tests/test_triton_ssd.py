"""The Triton kernels of Mamba-2's scan without a GPU, against the sequential definition in float64.

The checks below run in a process of their own, as those of test_triton.py and for the same reason.
"""

import sys
from typing import Any

import pytest
import torch
from scan_cases import (
    BY_TRITON,
    DEVICE,
    HALVES,
    INTERPRETED,
    guarded,
    needs_emulator,
    needs_triton,
    relative_error,
    run_checks,
    run_with_gradients,
)

from ssmseq_kernels import ssd
from ssmseq_kernels.reference import ssd_scan_reference

FEW = "half_precision or again"  # checks of all kernels, with little to compile
TOLERANCE = 1e-6  # relative L2 error; the table of kernels/README.md
# A few numbers that are sums of many of either sign, as in test_ssd.py.
SUMMED, SUMMED_FACTOR = ("grad of A", "grad of dt_bias", "grad of initial_state"), 5
MORE = ("D", "z", "dt_bias")  # what most checks do without


@needs_triton
def test_in_the_interpreter():
    run_checks(__file__, TRITON_INTERPRET="1")


@needs_emulator
def test_compiled_for_a_gpu():
    run_checks(__file__, "-k", FEW, SSMSEQ_TEST_EMULATOR="sm_90")


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_all_compiled_for_a_gpu(arch):
    run_checks(__file__, SSMSEQ_TEST_EMULATOR=arch)


@pytest.mark.gpu
def test_on_a_gpu():
    run_checks(__file__, SSMSEQ_TEST_DEVICE="cuda")


@pytest.fixture(autouse=BY_TRITON)
def no_stale_memory(poisoned_memory):
    """Fill uninitialised memory with NaN in every check; and watch every call, since checks change how work is cut."""
    from ssmseq_kernels import triton_replay

    triton_replay.forget()


@pytest.fixture
def shared_heads(monkeypatch):
    """Share the heads of a group out over as many programs as there are heads."""
    from ssmseq_kernels import triton_ssd_backward

    monkeypatch.setattr(triton_ssd_backward, "PROGRAMS_WANTED", 1 << 20)


@pytest.fixture
def tiles_of_halves(monkeypatch):
    """Cut float32 as halves are cut on a GPU."""
    from ssmseq_kernels import triton_ssd

    monkeypatch.setattr(triton_ssd, "WIDE", triton_ssd.HALVES)


def make_inputs(n_batch, length, heads, dim, groups, n_state, *, seed=0, without=MORE) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": normal(n_batch, length, heads, dim),
        "dt": torch.nn.functional.softplus(normal(n_batch, length, heads) - 2),
        "A": -torch.exp(normal(heads)),
        "B": normal(n_batch, length, groups, n_state),
        "C": normal(n_batch, length, groups, n_state),
        "initial_state": normal(n_batch, heads, dim, n_state),
        "D": normal(heads, dim),
        "z": normal(n_batch, length, heads, dim),
        "dt_bias": normal(heads),
    }
    return {k: v.float().to(DEVICE) for k, v in inputs.items() if k not in without}


def numbered(*starts, length):
    """Numbers of the sequences of one row."""
    return torch.tensor([[sum(t >= s for s in starts) for t in range(length)]], device=DEVICE)


def scan(x, dt, A, B, C, initial_state=None, *, D=None, z=None, dt_bias=None, seq_idx=None, **options) -> Any:
    from ssmseq_kernels.triton_ssd import Inputs, Options, ssd_chunked

    softplus, limit = options.get("dt_softplus", False), options.get("dt_limit")
    limit = limit if limit or softplus else ssd.NO_LIMIT
    named = Options(softplus, limit, options.get("reverse", False), options.get("final", True))
    return ssd_chunked(Inputs(x, dt, A, B, C, D, z, dt_bias, initial_state), seq_idx, named)


def assert_matches_reference(inputs, **options):
    found = run_with_gradients(lambda **t: scan(**t, **options), inputs)
    exact = {k: v.double() for k, v in inputs.items()}
    truth = run_with_gradients(lambda **t: ssd_scan_reference(**t, **{"dt_softplus": False} | options), exact)
    for name, value in truth.items():
        assert found[name].dtype == torch.float32
        error = relative_error(found[name], value)
        assert error < TOLERANCE * (SUMMED_FACTOR if name in SUMMED else 1), f"{name}: {error:.2e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 3, 63, 65, 130])
def check_lengths(length, reverse):
    assert_matches_reference(make_inputs(2, length, 2, 5, 1, 7), reverse=reverse)


@pytest.mark.parametrize(
    ("heads", "dim", "groups", "n_state"), [(1, 1, 1, 1), (4, 3, 4, 16), (6, 8, 2, 5), (1, 70, 1, 33), (2, 1, 1, 129)]
)
def check_heads_groups_and_states(heads, dim, groups, n_state):
    assert_matches_reference(make_inputs(1, 66, heads, dim, groups, n_state))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [9, 130])
def check_tiles_of_halves(tiles_of_halves, length, reverse):
    starts = numbered(5, 100, length=length)
    assert_matches_reference(make_inputs(1, length, 2, 66, 1, 65), reverse=reverse, seq_idx=starts)


@pytest.mark.skipif(DEVICE == "cuda" or sys.platform != "linux", reason="guards pages of memory as Linux does")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def check_nothing_is_read_beyond_the_tensors(at_end, reverse):
    inputs = make_inputs(1, 67, 2, 5, 1, 7, without=())
    tensors = [guarded(x, at_end).requires_grad_() for x in inputs.values()]
    named = dict(zip(inputs, tensors, strict=True))
    y, state = scan(**named, seq_idx=guarded(numbered(5, length=67), at_end), reverse=reverse, dt_softplus=True)
    grads = [guarded(x.detach(), at_end) for x in (y, state)]
    assert all(x.isfinite().all() for x in torch.autograd.grad([y, state], tensors, grads))


def check_heads_shared_out(shared_heads):
    assert_matches_reference(make_inputs(1, 40, 6, 5, 2, 7))


@pytest.mark.parametrize("length", [20, 70])
def check_without_initial_state(length):
    assert_matches_reference(make_inputs(2, length, 2, 5, 1, 7, without=(*MORE, "initial_state")))


@pytest.mark.parametrize("length", [20, 70])
@pytest.mark.parametrize("loss_of_state", [False, True])
def check_one_of_the_results_alone(length, loss_of_state):
    inputs = make_inputs(1, length, 2, 5, 1, 7, without=(*MORE, "initial_state"))
    leaves: list[Any] = [v.requires_grad_() for v in inputs.values()]
    exact = [v.detach().double().requires_grad_() for v in leaves]
    x, dt, A, B, C = leaves
    found: Any = scan(x, dt, A, B, C, final=loss_of_state)[loss_of_state]
    truth = ssd_scan_reference(*exact, dt_softplus=False)[loss_of_state]
    assert relative_error(found, truth) < TOLERANCE
    options: Any = {"allow_unused": True, "materialize_grads": True}
    grads = torch.autograd.grad(found.sum(), leaves, **options)
    truths = torch.autograd.grad(truth.sum(), exact, **options)
    for name, grad, true in zip(inputs, grads, truths, strict=True):
        assert relative_error(grad, true) < TOLERANCE * SUMMED_FACTOR, name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("starts", [(64,), (1, 63, 65), (5, 6, 100, 129), tuple(range(1, 130))])
def check_packed_sequences(starts, reverse):
    seq_idx = numbered(*starts, length=130)
    assert_matches_reference(make_inputs(1, 130, 2, 4, 1, 5), seq_idx=seq_idx, reverse=reverse)


def check_packed_sequences_of_some_rows():
    seq_idx = torch.cat([numbered(3, 20, length=40), numbered(length=40)])
    assert_matches_reference(make_inputs(2, 40, 1, 4, 1, 5), seq_idx=seq_idx)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("without", [(), ("z",), ("D", "dt_bias"), ("dt_bias", "initial_state")])
def check_skip_gate_and_bias(without, reverse):
    inputs = make_inputs(1, 70, 2, 3, 1, 4, without=without)
    assert_matches_reference(inputs, reverse=reverse, dt_softplus=True)


def check_more_heads_than_one_program_takes():
    assert_matches_reference(make_inputs(1, 5, 17, 2, 1, 3, without=()), dt_softplus=True)


def check_a_weight_of_the_skip_for_each_head():
    inputs = make_inputs(1, 20, 3, 4, 1, 5, without=())
    assert_matches_reference(inputs | {"D": inputs["D"][:, 0]})


@pytest.mark.parametrize("limit", [(0.1, float("inf")), (0.0, 0.2), (0.05, 0.15)])
@pytest.mark.parametrize("softplus", [False, True])
def check_limits_of_the_step_size(softplus, limit):
    assert_matches_reference(make_inputs(1, 19, 2, 3, 1, 4, without=()), dt_softplus=softplus, dt_limit=limit)


def check_step_sizes_that_are_no_numbers_stay_none():
    inputs = make_inputs(1, 20, 2, 3, 1, 4)
    inputs["dt"][0, 7, 1] = float("nan")
    y, _ = scan(**inputs, dt_limit=(0.0, 1.0))
    assert y[0, 7:, 1].isnan().all()
    assert y[0, :, 0].isfinite().all()


@pytest.fixture
def by_tiles(monkeypatch):
    """Let `ssd_scan` choose the Triton kernels, wherever its tensors are."""
    monkeypatch.setattr(ssd, "has_scan", lambda device: False)
    monkeypatch.setattr(ssd, "has_tiles", lambda device: True)


def check_the_function_that_users_call(by_tiles):
    inputs = make_inputs(2, 35, 1, 3, 1, 4, without=())
    seq_idx = (torch.arange(35, device=DEVICE) // 15 % 2).expand(2, 35)
    options: dict[str, Any] = {"dt_limit": (0.01, 0.5), "seq_idx": seq_idx}
    found = run_with_gradients(lambda **t: ssd.ssd_scan(**t, **options, return_final_state=True), inputs)
    exact = {k: v.double() for k, v in inputs.items()}
    truth = run_with_gradients(lambda **t: ssd_scan_reference(**t, **options), exact)
    for name, value in truth.items():
        assert found[name].shape == value.shape
        assert relative_error(found[name], value) < TOLERANCE * SUMMED_FACTOR, name
    with torch.no_grad():  # which keeps nothing for gradients
        assert torch.equal(ssd.ssd_scan(**inputs, **options), found["y"])


@pytest.mark.parametrize(("n_batch", "length", "n_state"), [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def check_nothing_to_scan(by_tiles, n_batch, length, n_state):
    inputs = make_inputs(n_batch, length, 2, 3, 1, n_state, without=())
    y, state = ssd.ssd_scan(**inputs, return_final_state=True)
    assert torch.equal(state, inputs["initial_state"])
    skipped = inputs["x"] * inputs["D"] * torch.nn.functional.silu(inputs["z"])
    assert torch.allclose(y, skipped)


@pytest.mark.parametrize(("heads", "dim", "groups", "n_state"), [(3, 20, 1, 64), (4, 3, 2, 5), (17, 1, 1, 3)])
@pytest.mark.parametrize("options", [{}, {"dt_softplus": False}, {"dt_limit": (0.1, 0.3)}], ids=str)
def check_one_step(heads, dim, groups, n_state, options):
    from ssmseq_kernels.triton_update import update_heads

    without = ("D", "z", "dt_bias") if "dt_softplus" in options else ()
    inputs = make_inputs(2, 1, heads, dim, groups, n_state, without=without)
    inputs["D"] = inputs["D"][:, 0] if "D" in inputs and not options else inputs.get("D")
    exact = {k: v if v is None else v.double() for k, v in inputs.items()}
    truth, final = ssd_scan_reference(**exact, **options)
    state = inputs["initial_state"]
    softplus = options.get("dt_softplus", True)
    now = [None if inputs.get(k) is None else inputs[k][:, 0] for k in ("x", "dt", "B", "C", "z")]
    tensors = (now[0], now[1], inputs["A"], now[2], now[3], inputs["D"], now[4], inputs.get("dt_bias"))
    limit = ssd.limits(options.get("dt_limit", ssd.NO_LIMIT), softplus)
    y = update_heads(state, *tensors, softplus=softplus, limit=limit)
    assert relative_error(y, truth[:, 0]) < TOLERANCE
    assert relative_error(state, final) < TOLERANCE
    assert update_heads(state.mT, *tensors, softplus=softplus, limit=None) is None  # left to torch's operators
    assert update_heads(state.double(), *tensors, softplus=softplus, limit=None) is None


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
def check_calls_made_again():
    from ssmseq_kernels import triton_ssd

    for seed in range(3):
        inputs = make_inputs(1, 40, 2, 3, 1, 4, seed=seed, without=())
        assert_matches_reference(inputs, dt_limit=(0.01, 0.5), seq_idx=numbered(5 + seed, length=40))
        with torch.no_grad():
            y, _ = scan(**inputs)
        truth, _ = ssd_scan_reference(**{k: v.double() for k, v in inputs.items()}, dt_softplus=False)
        assert relative_error(y, truth) < TOLERANCE
    known = triton_ssd._scan.known.values()
    assert len(known) == 2
    assert all(known)


def check_views_are_read_where_they_lie():
    inputs = make_inputs(2, 40, 3, 4, 1, 5, without=())
    laid = {k: v.permute(*range(v.dim())[::-1]).contiguous().permute(*range(v.dim())[::-1]) for k, v in inputs.items()}
    packed = torch.cat([inputs["x"].flatten(2), inputs["B"].flatten(2)], -1)  # how a Mamba-2 block holds them
    laid |= {"x": packed[..., :12].unflatten(-1, (3, 4)), "B": packed[..., 12:].unflatten(-1, (1, 5))}
    found, plain = (scan(**x) for x in (laid, inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert_matches_reference(laid)


def check_run_to_run_bitwise(shared_heads):
    inputs = make_inputs(1, 70, 4, 5, 2, 7, without=())
    first, second = (run_with_gradients(scan, inputs) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def check_long_memory_keeps_its_accuracy():
    inputs = make_inputs(1, 1200, 1, 3, 1, 4, without=(*MORE, "initial_state"))
    inputs["dt"] *= 0.003  # memories of thousands of steps
    assert_matches_reference(inputs)


@pytest.mark.parametrize("dt", [0.0, 1e-9, 25.0, 300.0])
def check_extreme_step_sizes(dt):
    inputs = make_inputs(1, 70, 2, 3, 1, 4)
    inputs["dt"] = torch.full_like(inputs["dt"], dt)
    y, state = scan(**inputs)
    truth, true_state = ssd_scan_reference(**{k: v.double() for k, v in inputs.items()}, dt_softplus=False)
    assert relative_error(y, truth) < TOLERANCE
    assert relative_error(state, true_state) < TOLERANCE


@pytest.mark.parametrize("dtype", HALVES, ids=str)  # on a GPU bfloat16 is multiplied as it is
def check_half_precision(dtype):
    inputs = make_inputs(2, 130, 3, 20, 1, 30, without=())
    halves = {k: v.to(dtype) if k in ("x", "B", "C", "z") else v for k, v in inputs.items()}
    found = run_with_gradients(scan, halves)
    truth = run_with_gradients(
        lambda **t: ssd_scan_reference(**t, dt_softplus=False), {k: v.double() for k, v in halves.items()}
    )
    bound = 2e-2 if dtype == torch.bfloat16 else 2e-3
    for name, value in truth.items():
        assert relative_error(found[name], value) < bound * (SUMMED_FACTOR if name in SUMMED else 1), name
    assert found["y"].dtype == dtype
    assert found["final_state"].dtype == torch.float32
    assert all(found[f"grad of {k}"].dtype == v.dtype for k, v in halves.items())


def check_double_is_refused():
    inputs = {k: v.double() for k, v in make_inputs(1, 5, 2, 3, 1, 4).items()}
    with pytest.raises(TypeError, match="float64"):
        scan(**inputs)


def check_products_in_half_precision(monkeypatch):
    """Multiply in float16, as bfloat16 is on a GPU; the interpreter has that one."""
    import triton.language as tl

    from ssmseq_kernels import triton_ssd

    class Halved(triton_ssd.Chunks):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            self.kind, self.state_dtype = self.kind | {"KIND": tl.float16}, torch.float16

    monkeypatch.setattr(triton_ssd, "Chunks", Halved)
    inputs = make_inputs(1, 150, 2, 20, 1, 30)
    found = run_with_gradients(scan, {k: v.half() if k in ("x", "B", "C") else v for k, v in inputs.items()})
    exact = {k: v.double() for k, v in inputs.items()}
    truth = run_with_gradients(lambda **t: ssd_scan_reference(**t, dt_softplus=False), exact)
    for name, value in truth.items():
        error = relative_error(found[name], value)
        assert 1e-5 < error < 4e-3, f"{name}: {error:.2e}"

"""The Triton kernels without a GPU: the contract of the scan and the convolution, in Triton's interpreter, and as they
are compiled for a GPU, in an emulator of PTX.

Both have to be chosen before anything imports triton. So the checks below run in processes of their own, which the
first tests start; both take CPU tensors, so that there the kernels serve the CPU.
"""

import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from scan_cases import (
    BY_TRITON,
    DEVICE,
    HALVES,
    INTERPRETED,
    NAMES,
    assert_matches_reference,
    guarded,
    make_inputs,
    needs_emulator,
    needs_triton,
    numbered,
    relaid,
    relative_error,
    run_checks,
    run_with_gradients,
)

from ssmseq_kernels import (
    bidirectional_selective_scan,
    causal_conv1d,
    causal_conv1d_update,
    ops,
    scan,
    selective_scan,
    selective_state_update,
)
from ssmseq_kernels.reference import causal_conv1d_reference, selective_scan_reference

# Checks of all kernels, with little to compile.
FEW = "half_prec or again or states[65 or one_step or convolution[4-silu-True] or parts[starts1 or one_call[True-True]"
ALONG_TIME = ("u", "delta", "B", "C", "z")


@needs_triton
def test_in_the_interpreter():
    run_checks(__file__, TRITON_INTERPRET="1")


@needs_emulator
def test_compiled_for_a_gpu():
    run_checks(__file__, "-k", FEW, SSMSEQ_TEST_EMULATOR="sm_90")


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_all_compiled_for_a_gpu(arch):
    run_checks(__file__, SSMSEQ_TEST_EMULATOR=arch)


@pytest.mark.gpu
def test_on_a_gpu():
    run_checks(__file__, SSMSEQ_TEST_DEVICE="cuda")


@needs_triton
def test_triton_is_not_imported_with_the_package():
    code = "import sys, ssmseq_kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(autouse=BY_TRITON)
def kernels(poisoned_memory, monkeypatch):
    """Serve the tensors of the checks by the Triton kernels, all uninitialised memory filled with NaN."""
    from ssmseq_kernels import cuda, triton_replay

    monkeypatch.setitem(ops.KERNELS, DEVICE, cuda)
    triton_replay.forget()  # checks change how work is laid out
    return cuda


@pytest.fixture
def always_cut(monkeypatch):
    """Cut even short inputs along time, into parts of one chunk."""
    from ssmseq_kernels import triton_common

    monkeypatch.setattr(triton_common, "LONGEST_UNCUT", 1)
    monkeypatch.setattr(triton_common, "PROGRAMS_WANTED", 100)


def scan_with_state(**x):
    return selective_scan(**x, return_final_state=True)


@pytest.mark.parametrize(("length", "n_state"), [(1, 2), (2, 1), (3, 16), (7, 5), (63, 3), (65, 8)])
def check_lengths_and_states(length, n_state):
    assert_matches_reference(make_inputs(2, length, 19, n_state))


@pytest.mark.parametrize("n_state", [33, 64, 100, 256])
def check_many_states(n_state):
    assert_matches_reference(make_inputs(1, 9, 12, n_state))


@pytest.mark.parametrize(("n_channels", "groups"), [(3, 3), (66, 2), (64, 1), (1, 1)])
def check_channels_and_groups(n_channels, groups):
    assert_matches_reference(make_inputs(2, 9, n_channels, 5, groups))


@pytest.mark.parametrize(("softplus", "reverse"), [(True, False), (False, True)])
def check_every_combination_of_optional_inputs(softplus, reverse):
    for count in (1, 4):
        for without in itertools.combinations(("D", "z", "delta_bias", "initial_state"), count):
            inputs = make_inputs(1, 7, 40, 3, without=without)
            if not softplus:  # step sizes must then be positive, or the state explodes
                inputs["delta"] = inputs["delta"].exp()
                inputs.pop("delta_bias", None)
            assert_matches_reference(inputs, delta_softplus=softplus, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
def check_packed_sequences(reverse):  # that begin at either end, and where chunks do in either direction
    seq_idx = numbered(1, 2, 6, 31, 64, 69, length=70)
    assert_matches_reference(make_inputs(1, 70, 19, 3), seq_idx=seq_idx, reverse=reverse)


@pytest.mark.parametrize("constant", [("B",), ("C",), ("B", "C")])
def check_constant_mixers(constant):
    inputs = make_inputs(1, 66, 19, 5)
    generator = torch.Generator().manual_seed(3)
    inputs |= {k: torch.randn(19, 5, generator=generator).to(DEVICE) for k in constant}
    assert_matches_reference(inputs, reverse=True)


@pytest.mark.parametrize(("starts", "reverse"), [((), True), ((100,), False)])
def check_time_cut_into_parts(always_cut, starts, reverse):
    inputs = make_inputs(1, 130, 10, 4)
    inputs["delta"] = inputs["delta"] - 2  # memories as long as a part
    seq_idx = numbered(*starts, length=130) if starts else None
    assert_matches_reference(inputs, seq_idx=seq_idx, reverse=reverse)


def check_time_cut_without_edges(always_cut):
    assert_matches_reference(make_inputs(1, 70, 8, 3, without=("initial_state", "z", "D", "delta_bias")))


@pytest.mark.parametrize("reverse", [False, True])
def check_gradients_that_repeat_one_number(reverse):
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = {k: v.requires_grad_() for k, v in make_inputs(2, 5, 6, 3, dtype=dtype).items()}
        y, state = scan_with_state(**leaves, reverse=reverse)
        results.append(torch.autograd.grad(y.sum() + state.sum(), list(leaves.values())))
    for found, truth in zip(*results, strict=True):
        assert relative_error(found, truth) < 1e-6


def check_run_to_run_bitwise():
    inputs = make_inputs(1, 9, 40, 4)
    first, second = (run_with_gradients(scan_with_state, inputs) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def check_reverse_equals_flipping():
    inputs = make_inputs(2, 37, 10, 4)
    flipped = {k: v.flip(1) if k in ALONG_TIME else v for k, v in inputs.items()}
    assert torch.equal(selective_scan(**inputs, reverse=True), selective_scan(**flipped).flip(1))


@pytest.mark.parametrize("both_states", [True, False])
@pytest.mark.parametrize("alike", [True, False])
def check_both_directions_in_one_call(alike, both_states, kernels, monkeypatch):
    first, second = make_inputs(1, 9, 10, 4), make_inputs(1, 9, 10, 4 if alike else 6, seed=5)
    leaves = [x.requires_grad_() for x in (*first.values(), *second.values())]
    arguments = [(*x.values(), numbered(4, length=9)) for x in (first, second)]
    scans, backward = [], kernels._backward
    monkeypatch.setattr(kernels, "_backward", lambda *args: scans.append(len(args[0])) or backward(*args))
    found = bidirectional_selective_scan(*arguments, return_final_state=True)
    options = [{"initial_state": x[8], "seq_idx": x[9], "return_final_state": True} for x in arguments]
    expected = [selective_scan(*arguments[i][:8], **options[i], reverse=bool(i)) for i in (0, 1)]
    gradients = []
    for (y, state), (y_back, state_back) in (found, expected):
        for a, b in zip((y, state, y_back, state_back), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(a, b)
        loss = (y * y_back).sum() + state.sum() + (state_back.sum() if both_states else 0)
        gradients.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    assert scans == ([2, 1, 1] if alike and both_states else [1] * 4)  # one launch if gradients are given alike


def check_both_directions_of_cut_time(always_cut):
    first, second = make_inputs(1, 65, 8, 3), make_inputs(1, 65, 8, 3, seed=5)
    leaves = [x.requires_grad_() for x in (*first.values(), *second.values())]
    found = bidirectional_selective_scan(tuple(first.values()), tuple(second.values()))
    expected = selective_scan(**first), selective_scan(**second, reverse=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    gradients = [torch.autograd.grad((y * y_back).sum(), leaves) for y, y_back in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(DEVICE == "cuda" or sys.platform != "linux", reason="guards pages of memory as Linux does")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def check_nothing_is_read_beyond_the_tensors(kernels, at_end, reverse):
    inputs = make_inputs(1, 67, 19, 5) | {"seq_idx": numbered(66, length=67)}
    tensors = [guarded(x, at_end) for x in inputs.values()]
    y, state, kept = kernels.forward(*tensors, True, reverse, True, True)
    kernels.backward(*(guarded(x, at_end) for x in (y, state)), *tensors, guarded(kept, at_end), True, reverse)
    weight, bias, before = (guarded(torch.randn(k), at_end) for k in ((19, 4), (19,), (1, 3, 19)))
    conv = tensors[0], weight, bias, before, tensors[9], True, reverse
    kernels.conv_backward(guarded(kernels.conv_forward(*conv), at_end), *conv)
    step = [x[:, 0] for x in (*tensors[:2], *tensors[3:5], tensors[6])]
    u, delta, B, C, z = (guarded(x.contiguous(), at_end) for x in step)
    kernels.update_checked(guarded(state, at_end), u, delta, tensors[2], B, C, tensors[5], z, tensors[7], True)


@pytest.mark.parametrize("style", ["add", "vim", "caduceus", "hydra"])
def check_bidirectional_blocks_equal_those_on_other_kernels(kernels, monkeypatch, style):
    from ssmseq.nn import BidirectionalMamba

    torch.manual_seed(0)
    sizes = {"d_model": 6, "d_state": 3, "d_conv": 3, "expand": 2}
    block = BidirectionalMamba(**sizes, style=style).to(DEVICE)
    x = torch.randn(2, 7, 6).to(DEVICE)

    def outcome():
        y = block(x)
        return [y, *torch.autograd.grad((y * y).sum(), list(block.parameters()))]

    found = outcome()
    others = [{"cpu": ops.cpu}] if ops.cpu and DEVICE == "cpu" else []
    for table in [*others, {}]:  # the compiled kernels, and the reference
        monkeypatch.setattr(ops, "KERNELS", table)
        monkeypatch.setattr(ops, "cuda_missing", lambda: "hidden")
        for a, b in zip(found, outcome(), strict=True):
            assert relative_error(a, b.double()) < 1e-5


def check_any_layout_gives_the_same_bits():
    inputs = make_inputs(2, 9, 21, 5)
    laid = {k: relaid(v, list(range(v.dim()))[::-1]) for k, v in inputs.items()}
    packed = torch.cat([inputs["u"], inputs["z"]], -1)  # how a Mamba block holds them
    laid |= {"u": packed[..., :21], "z": packed[..., 21:]}
    found, plain = (run_with_gradients(scan_with_state, x) for x in (laid, inputs))
    for name, value in plain.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(("n_batch", "length"), [(0, 5), (2, 0)])
def check_nothing_to_scan(n_batch, length):
    inputs = make_inputs(n_batch, length, 6, 3)
    found = run_with_gradients(scan_with_state, inputs)
    assert torch.equal(found["final_state"], inputs["initial_state"])
    for name, value in found.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("delta", [-200.0, -30.0, -9.0, 0.0, 25.0, 90.0])
def check_extreme_step_sizes(delta):
    inputs = make_inputs(1, 9, 11, 4, without=("delta_bias",))
    inputs["delta"] = torch.full_like(inputs["delta"], delta)
    y = selective_scan(**inputs)
    truth, _ = selective_scan_reference(**{k: v.double() for k, v in inputs.items()})
    assert relative_error(y, truth) < 1e-6


def check_nan_reaches_the_output_of_its_channel_only():
    inputs = make_inputs(1, 5, 3, 2)
    inputs["delta"][0, 2, 1] = float("nan")
    y = selective_scan(**inputs)
    assert y[0, 2:, 1].isnan().all()
    assert y[0, :2].isfinite().all()
    assert y[..., [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def check_half_precision_is_computed_in_float32(dtype):
    inputs = make_inputs(2, 11, 8, 4)
    halves = {k: v.to(dtype) if k in ALONG_TIME else v for k, v in inputs.items()}
    found = run_with_gradients(scan_with_state, halves)
    expected = scan_with_state(**{k: v.float() for k, v in halves.items()})
    assert torch.equal(found["y"], expected[0].to(dtype))
    assert torch.equal(found["final_state"], expected[1])
    assert all(found[f"grad of {k}"].dtype == v.dtype for k, v in halves.items())


@pytest.mark.skipif(INTERPRETED, reason="the interpreter launches nothing")
def check_calls_made_again(kernels, always_cut):
    for seed in range(3):
        inputs, seq_idx = make_inputs(1, 70, 3, 2, seed=seed), numbered(5 + seed, length=70)
        assert_matches_reference(inputs, seq_idx=seq_idx)
        with torch.no_grad():
            found = scan_with_state(**inputs, seq_idx=seq_idx)
        expected = kernels.forward.function(*inputs.values(), seq_idx, True, False, True, False)
        assert all(torch.equal(a, b) for a, b in zip(found, expected[:2], strict=True))
    for function in (kernels.forward, kernels.backward, kernels.replayed(scan._one_way)):
        assert {bool(tape) for tape in function.known.values()} == {True}


def check_widening_first_changes_no_bit(kernels, monkeypatch):
    halves = {k: v.half() if k in ALONG_TIME else v for k, v in make_inputs(2, 11, 8, 4).items()}
    monkeypatch.setattr(kernels, "WORTH_WIDENING", 0)
    first = run_with_gradients(scan_with_state, halves)
    monkeypatch.setattr(kernels, "WORTH_WIDENING", 1 << 24)
    found = run_with_gradients(scan_with_state, halves)
    assert all(torch.equal(found[k], first[k]) and found[k].dtype == first[k].dtype for k in first)


def check_steps_too_far_apart_are_refused():
    u = torch.randn(1, 1, 3, device=DEVICE).as_strided((1, 1, 3), (1 << 24, 1 << 24, 1))
    inputs = make_inputs(1, 1, 3, 2)
    with pytest.raises(ValueError, match="a tensor of the scan has 16777216 elements between two steps"):
        selective_scan(**inputs | {"delta": u})


@pytest.mark.parametrize("reverse", [False, True])
def check_double_is_served_by_the_reference(reverse):
    inputs = make_inputs(2, 9, 5, 3, dtype=torch.float64)
    assert_matches_reference(inputs, reverse=reverse, seq_idx=numbered(4, length=9).expand(2, 9))
    second = make_inputs(2, 9, 5, 3, dtype=torch.float64, without=NAMES[5:])
    y, y_back = bidirectional_selective_scan(tuple(inputs.values()), tuple(second.values()))
    assert torch.equal(y_back, selective_scan(**second, reverse=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n_channels", "groups", "n_state", "without"),
    [(19, 1, 5, ()), (48, 3, 16, ("D",)), (9, 1, 256, ("z",)), (6, 1, 3, ("D", "z", "delta_bias"))],
)
def check_one_step(n_channels, groups, n_state, without, dtype):
    inputs = make_inputs(3, 1, n_channels, n_state, groups, dtype=dtype, without=without)
    before = inputs.pop("initial_state")
    exact = {k: v.double() for k, v in inputs.items()}
    truth, true_state = selective_scan_reference(**exact, initial_state=before.double())
    room = torch.zeros(3, 2 * n_channels, n_state, dtype=dtype, device=DEVICE)
    room[:, ::2] = before
    now = {k: v[:, 0] if k in ALONG_TIME else v for k, v in inputs.items()}
    y = selective_state_update(room[:, ::2], **now)
    assert relative_error(y, truth[:, 0]) < 1e-6
    assert relative_error(room[:, ::2], true_state) < 1e-6
    assert not room[:, 1::2].any()
    with pytest.raises(ValueError, match="stride 1"):
        selective_state_update(relaid(before, [0, 2, 1]), **now)


def convolve_both(*tensors, **options):
    """Output and gradients by the kernels and by the float64 definition."""
    results = []
    for wide in (False, True):
        given: Any = [None if t is None else (t.double() if wide else t).requires_grad_() for t in tensors]
        leaves = [t for t in given if t is not None and t.numel()]
        if wide:
            silu = options["activation"] == "silu"
            rest = {k: v for k, v in options.items() if k != "activation"}
            y = causal_conv1d_reference(*given[:3], silu=silu, initial_state=given[3], **rest)
        else:
            y = causal_conv1d(*given[:3], initial_state=given[3], **options)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        results.append((y, *torch.autograd.grad(y, leaves, weights)))
    return results


@pytest.mark.parametrize(("activation", "reverse"), [("silu", False), ("silu", True), (None, True)])
@pytest.mark.parametrize("width", [1, 4, 8])
def check_convolution(width, activation, reverse):
    generator = torch.Generator().manual_seed(width)
    for length, given in ((3, (0, 0, 0)), (1, (1, 1, 1)), (37, (1, 1, 1))):
        shapes = ((2, length, 70), (70, width), (70,), (2, width - 1, 70))
        x, weight, bias, before = (torch.randn(s, generator=generator).to(DEVICE) for s in shapes)
        bias, before = bias if given[0] else None, before if given[1] else None
        seq_idx = (numbered(1, 2, 5, 20, length=37)[:, :length]).expand(2, length) if given[2] else None
        options = {"activation": activation, "reverse": reverse, "seq_idx": seq_idx}
        for a, b in zip(*convolve_both(x, weight, bias, before, **options), strict=True):
            assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4])
def check_convolution_of_one_step(width, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 70), (3, width - 1, 70), (70, width), (70,))
    x, state, weight, bias = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    after = torch.cat([state, x[:, None]], 1)[:, 1:]
    options = {"silu": True, "reverse": False, "initial_state": state.double()}
    truth = causal_conv1d_reference(x[:, None].double(), weight.double(), bias.double(), **options)
    y = causal_conv1d_update(x, state, weight, bias, activation="silu")
    assert relative_error(y, truth[:, 0]) < 1e-6
    assert torch.equal(state, after)

"""What the scan can do beyond the plain call: packed sequences, constant mixers, both directions, any layout, steps."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import NAMES, assert_matches_reference, make_inputs, relative_error, run_with_gradients
from torch.utils.data import DataLoader, Dataset

from ssmseq_kernels import (
    bidirectional_selective_scan,
    ops,
    selective_scan,
    selective_state_update,
    sequence_index,
)
from ssmseq_kernels.reference import selective_scan_reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")
ALONG_TIME = ("u", "delta", "B", "C", "z")


def scan_with_state(**x):
    return selective_scan(**x, return_final_state=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n_state", [1, 3, 16])
def test_packed_sequences(isa, n_state, reverse):
    """Boundaries inside chunks, at their edges, next to each other, and none."""
    seq_idx = torch.zeros(4, 70, dtype=torch.int32)
    seq_idx[0, 32:] = 1
    seq_idx[1] = torch.arange(70)
    seq_idx[2, 5:] = 7
    seq_idx[2, 31:] = 3
    seq_idx[2, 64:] = 7
    assert_matches_reference(make_inputs(4, 70, 19, n_state), seq_idx=seq_idx, reverse=reverse)


def test_packed_sequences_equal_their_own_scans():
    lengths = [1, 40, 0, 1, 33, 25, 0]
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)])
    inputs = make_inputs(1, sum(lengths), 12, 5, without=("initial_state",))
    seq_idx = sequence_index(cu_seqlens)
    assert seq_idx.shape == (1, sum(lengths))
    packed = selective_scan(**inputs, seq_idx=seq_idx.long())
    for start, end in itertools.pairwise(cu_seqlens.tolist()):
        alone = {k: v[:, start:end] if k in ALONG_TIME else v for k, v in inputs.items()}
        torch.testing.assert_close(packed[:, start:end], selective_scan(**alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cu_seqlens", [[1, 4], [0, 5, 3], []])
def test_lengths_that_do_not_add_up_are_refused(cu_seqlens):
    with pytest.raises(ValueError, match="cu_seqlens"):
        sequence_index(torch.tensor(cu_seqlens, dtype=torch.int64))


def test_sequence_numbers_must_be_integers():
    with pytest.raises(TypeError, match="seq_idx"):
        selective_scan(**make_inputs(1, 3, 2, 1), seq_idx=torch.zeros(1, 3))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("constant", [("B",), ("C",), ("B", "C")])
@pytest.mark.parametrize("groups", [1, 3])
def test_constant_mixers(isa, groups, constant, reverse):
    inputs = make_inputs(3, 45, 57, 7, groups)
    generator = torch.Generator().manual_seed(3)
    inputs |= {k: torch.randn(57, 7, generator=generator) for k in constant}
    assert_matches_reference(inputs, reverse=reverse, seq_idx=(torch.arange(45) // 20).expand(3, 45))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", ["plain", "packed", "constant", "cut"])
def test_states_of_one_rate(isa, options, reverse):
    """A whose second axis is one number expanded: one exponential serves all states of a channel, as in Mamba-2."""
    length, n_channels, n_state = (4400, 5, 3) if options == "cut" else (70, 37, 21)
    inputs = make_inputs(1, length, n_channels, n_state)
    inputs["A"] = inputs["A"][:, :1]
    seq_idx = None
    if options != "plain":
        seq_idx = torch.zeros(1, length, dtype=torch.int32)
        seq_idx[:, 40:] = 1
    if options == "constant":
        generator = torch.Generator().manual_seed(3)
        inputs |= {k: torch.randn(n_channels, n_state, generator=generator) for k in ("B", "C")}
    given = {"seq_idx": seq_idx, "reverse": reverse}

    def scan(A, **rest):
        return selective_scan(A=A.expand(-1, n_state), **rest, **given, return_final_state=True)

    def definition(A, **rest):
        return selective_scan_reference(A=A.expand(-1, n_state), **rest, **given)

    found = run_with_gradients(scan, inputs)
    truth = run_with_gradients(definition, {k: v.double() for k, v in inputs.items()})
    for name, value in truth.items():
        assert relative_error(found[name], value) < 1e-6, name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", [{}, {"seq": True}, {"constant": True}])
def test_long_and_narrow_inputs_are_cut_along_time(isa, options, reverse):
    """Few channels of a long sequence: parts of the time axis are scanned side by side and linked."""
    inputs = make_inputs(1, 5003, 5, 3)
    inputs["delta"] = inputs["delta"] - 4  # memories as long as a part
    if "constant" in options:
        inputs["B"] = inputs["B"][0, :5, 0].clone()
    seq_idx = (torch.arange(5003) // 1900)[None] if "seq" in options else None
    assert_matches_reference(inputs, tolerance=2e-6, seq_idx=seq_idx, reverse=reverse)


def test_cut_time_is_bitwise_equal_at_any_number_of_threads():
    inputs, before, results = make_inputs(1, 9000, 3, 8), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run_with_gradients(scan_with_state, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_gradients_of_mixers_are_reduced_window_by_window():
    """Wide and long enough that partial sums of dB and dC are kept for a part of the time axis only."""
    assert_matches_reference(make_inputs(2, 1100, 640, 4))


def relaid(x, order, step):
    """The same numbers in memory of another axis order, every `step`-th element of it."""
    permuted = x.permute(order)
    room = torch.full((*permuted.shape[:-1], permuted.shape[-1] * step), float("nan"), dtype=x.dtype)
    room[..., ::step] = permuted
    return room[..., ::step].permute([order.index(i) for i in range(x.dim())])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), reverse=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_any_layout_gives_the_same_bits(data, reverse, dtype):
    inputs = make_inputs(2, 37, 21, 5, dtype=dtype)
    laid = {}
    for name, x in inputs.items():
        order = data.draw(st.permutations(range(x.dim())))
        laid[name] = relaid(x, list(order), data.draw(st.sampled_from([1, 2])))
        assert torch.equal(laid[name], x)
    function = lambda **x: selective_scan(**x, reverse=reverse, return_final_state=True)  # noqa: E731
    leaves = {k: v.requires_grad_() for k, v in laid.items()}
    y, state = function(**leaves)
    grads = torch.autograd.grad(y.float().square().sum() + state.square().sum(), list(leaves.values()))
    plain = {k: v.clone(memory_format=torch.contiguous_format).requires_grad_() for k, v in inputs.items()}
    y_plain, state_plain = function(**plain)
    truth = torch.autograd.grad(y_plain.float().square().sum() + state_plain.square().sum(), list(plain.values()))
    assert torch.equal(y, y_plain)
    assert torch.equal(state, state_plain)
    for name, a, b in zip(NAMES, grads, truth, strict=True):
        assert torch.equal(a, b), name


def test_channel_major_results_are_channel_major():
    """So that code which keeps channels before time, as mamba_ssm does, meets no transposed copy."""
    inputs = make_inputs(2, 40, 24, 3)
    inputs = {k: v.transpose(1, 2).contiguous().transpose(1, 2) if k in ("u", "z") else v for k, v in inputs.items()}
    u = inputs["u"].requires_grad_()
    y = selective_scan(**inputs)
    (grad,) = torch.autograd.grad(y.sum(), u)
    assert y.stride() == grad.stride() == u.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gradients(isa, dtype):
    """Halves are widened inside: gradients are those of float32 inputs, rounded once."""
    inputs = make_inputs(2, 41, 35, 6)
    halves = {k: v.to(dtype) if k in ALONG_TIME else v for k, v in inputs.items()}
    found = run_with_gradients(scan_with_state, halves)
    y_weight_in_half = {k: v.float() for k, v in halves.items()}
    leaves = {k: v.requires_grad_() for k, v in y_weight_in_half.items()}
    y, state = scan_with_state(**leaves)
    generator = torch.Generator().manual_seed(1)
    y_weight = torch.randn(y.shape, generator=generator).to(dtype).float()
    weights = [y_weight, torch.randn(state.shape, generator=generator)]
    truth = torch.autograd.grad([y, state], list(leaves.values()), weights)
    for name, grad in zip(NAMES, truth, strict=True):
        assert torch.equal(found[f"grad of {name}"], grad.to(halves[name].dtype)), name


def test_both_directions_in_one_call():
    first, second = make_inputs(3, 50, 20, 4), make_inputs(3, 50, 20, 6, seed=5)
    second["z"] = first["z"]  # shared, as in Vim
    leaves = [x.requires_grad_() for x in {id(x): x for x in [*first.values(), *second.values()]}.values()]
    arguments = [(*x.values(), (torch.arange(50) // 30).expand(3, 50)) for x in (first, second)]
    (y, state), (y_back, state_back) = bidirectional_selective_scan(*arguments, return_final_state=True)
    options = [{"initial_state": x[8], "seq_idx": x[9], "return_final_state": True} for x in arguments]
    expected = selective_scan(*arguments[0][:8], **options[0])
    expected_back = selective_scan(*arguments[1][:8], **options[1], reverse=True)
    for a, b in zip((y, state, y_back, state_back), (*expected, *expected_back), strict=True):
        assert torch.equal(a, b)
    found = torch.autograd.grad((y * y_back).sum() + state.sum(), leaves)
    truth = torch.autograd.grad((expected[0] * expected_back[0]).sum() + expected[1].sum(), leaves)
    for a, b in zip(found, truth, strict=True):
        assert torch.equal(a, b)


def test_both_directions_of_different_length_and_nothing_optional():
    first = make_inputs(2, 9, 6, 2, without=NAMES[5:])
    second = make_inputs(1, 70, 3, 5, without=NAMES[5:])
    y, y_back = bidirectional_selective_scan(tuple(first.values()), tuple(second.values()))
    assert torch.equal(y, selective_scan(**first))
    assert torch.equal(y_back, selective_scan(**second, reverse=True))


def test_both_directions_by_the_reference(monkeypatch):
    inputs = make_inputs(2, 9, 6, 2)
    expected = bidirectional_selective_scan(tuple(inputs.values()), tuple(inputs.values()))
    monkeypatch.setattr(ops, "has_kernel", lambda device: False)
    monkeypatch.setattr("ssmseq_kernels.scan._warned", False)
    with pytest.warns(RuntimeWarning):
        found = bidirectional_selective_scan(tuple(inputs.values()), tuple(inputs.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_operators_and_direct_calls_give_the_same_bits():
    inputs = make_inputs(2, 37, 6, 3)
    tensors = [inputs[k].requires_grad_() for k in NAMES]
    by_op = torch.ops.ssmseq.selective_scan(*tensors, None, True, False, True, True)[0]
    direct = selective_scan(**inputs)
    assert torch.equal(by_op, direct)
    grads = [torch.autograd.grad(y.square().sum(), tensors) for y in (by_op, direct)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keep", [True, False])
def test_opcheck_of_packed_and_paired_scans(keep):
    inputs = make_inputs(2, 37, 6, 3)
    tensors = [x.requires_grad_(keep) for x in inputs.values()]
    seq_idx = (torch.arange(37) // 10).expand(2, 37).to(torch.int32)
    torch.library.opcheck(torch.ops.ssmseq.selective_scan.default, (*tensors, seq_idx, True, True, False, keep))
    constant = [*tensors[:3], tensors[3][0, :6, 0].detach().requires_grad_(keep), *tensors[4:]]
    torch.library.opcheck(torch.ops.ssmseq.selective_scan.default, (*constant, None, True, True, True, keep))
    pair = (*tensors, None, *constant, seq_idx, True, True, keep)
    torch.library.opcheck(torch.ops.ssmseq.selective_scan_pair.default, pair)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(-torch.rand(6, 3))

    def forward(self, u, B):
        y, y_back = bidirectional_selective_scan((u, u, self.A, B, B), (u, u, self.A, B, B))
        return y + y_back + selective_scan(u, u, self.A, B, B, reverse=True)


def test_export_with_any_length():
    block, length = Block(), torch.export.Dim("length", min=2, max=4096)
    example = torch.randn(2, 40, 6), torch.randn(2, 40, 3)
    with torch.no_grad():
        program = torch.export.export(block, example, dynamic_shapes={"u": {1: length}, "B": {1: length}}).module()
        for n_steps in (3, 70, 900):
            u, B = torch.randn(2, n_steps, 6), torch.randn(2, n_steps, 3)
            assert torch.equal(program(u, B), block(u, B))


def step_inputs(n_batch, n_channels, n_state, groups=1, dtype=torch.float32):
    inputs = make_inputs(n_batch, 1, n_channels, n_state, groups, dtype=dtype)
    state = inputs.pop("initial_state")
    return state, {k: v[:, 0] if k in ALONG_TIME else v for k, v in inputs.items()}


@pytest.mark.parametrize("n_state", [1, 2, 8, 15, 16, 17, 40, 256])
@pytest.mark.parametrize(("n_channels", "groups"), [(1, 1), (19, 1), (48, 3), (6, 6), (130, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_step_against_the_reference(isa, n_channels, groups, n_state, dtype):
    state, inputs = step_inputs(3, n_channels, n_state, groups, dtype)
    exact = {k: v.double() if k not in ALONG_TIME else v.double().unsqueeze(1) for k, v in inputs.items()}
    truth, true_state = selective_scan_reference(**exact, initial_state=state.double())
    y = selective_state_update(state, **inputs)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert relative_error(y, truth[:, 0]) < tolerance
    assert relative_error(state, true_state) < tolerance


@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [True, False])
def test_steps_equal_the_scan(softplus, without):
    inputs = make_inputs(2, 12, 37, 16, without=without)
    inputs["delta"] = inputs["delta"].abs()
    state = inputs.pop("initial_state").clone()
    y, last = selective_scan(**inputs, initial_state=state, delta_softplus=softplus, return_final_state=True)
    for t in range(12):
        now = {k: v[:, t] if k in ALONG_TIME else v for k, v in inputs.items()}
        assert relative_error(selective_state_update(state, **now, delta_softplus=softplus), y[:, t].double()) < 1e-6
    assert relative_error(state, last.double()) < 1e-6


def test_step_reads_strides_and_halves():
    state, inputs = step_inputs(4, 24, 8)
    wide = {k: v.half() if k in ALONG_TIME else v for k, v in inputs.items()}
    laid = {k: v.T.contiguous().T if v.dim() == 2 else v for k, v in wide.items()}
    room = torch.zeros(4, 48, 8)
    room[:, ::2] = state
    y = selective_state_update(room[:, ::2], **laid)
    expected = selective_state_update(state, **{k: v.float() for k, v in wide.items()})
    assert torch.equal(y, expected.half())
    assert torch.equal(room[:, ::2], state)
    assert not room[:, 1::2].any()


def test_step_by_the_operator_the_compiler_and_the_reference(monkeypatch):
    state, inputs = step_inputs(2, 12, 4)
    arguments = [inputs[k] for k in NAMES[1:-1] if k != "u"]
    B, C = (x.reshape(2, 1, 4) for x in (inputs["B"], inputs["C"]))
    tensors = (state.clone(), inputs["u"], arguments[0], inputs["A"], B, C, inputs["D"], inputs["z"], None)
    torch.library.opcheck(torch.ops.ssmseq.selective_state_update.default, (*tensors, True))
    expected_state = state.clone()
    expected = selective_state_update(expected_state, **inputs)
    compiled_state = state.clone()
    compiled = torch.compile(selective_state_update, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(compiled_state, **inputs), expected)
    assert torch.equal(compiled_state, expected_state)
    monkeypatch.setattr(ops, "has_kernel", lambda device: False)
    monkeypatch.setattr("ssmseq_kernels.scan._warned", True)
    torch.testing.assert_close(selective_state_update(state, **inputs), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-5)


def test_step_of_nothing():
    state, inputs = step_inputs(0, 5, 2)
    assert selective_state_update(state, **inputs).shape == (0, 5)


def test_what_a_step_refuses():
    state, inputs = step_inputs(2, 4, 3)
    with pytest.raises(RuntimeError, match="no_grad"):
        selective_state_update(state, **inputs | {"u": inputs["u"].requires_grad_()})
    with pytest.raises(TypeError, match="state must be torch.float32"):
        selective_state_update(state.half(), **inputs | {"u": inputs["u"].detach()})
    with pytest.raises(ValueError, match="stride 1"):
        selective_state_update(relaid(state, [0, 2, 1], 1), **inputs | {"u": inputs["u"].detach()})
    for name, shape in {"delta": (2, 5), "A": (4, 2), "B": (2, 2), "C": (3, 3), "D": (3,), "z": (1, 4)}.items():
        with pytest.raises(ValueError, match=name):
            selective_state_update(state, **inputs | {name: torch.zeros(shape)})


class Scans(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.get_num_threads(), selective_scan(**make_inputs(4, 300, 64, 16)).sum()


def test_workers_of_a_data_loader_scan_on_one_thread():
    """After a scan on several threads in the parent, whose thread team a forked worker does not have."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = selective_scan(**make_inputs(4, 300, 64, 16)).sum()
        for threads, found in DataLoader(Scans(), num_workers=2, timeout=60):
            assert threads.item() == 1
            assert torch.equal(found[0], expected)
    finally:
        torch.set_num_threads(before)


def test_tensors_are_read_alike_through_either_way():
    """Through DLPack's table where torch has one, and through their Python methods where it has not."""
    inputs = make_inputs(2, 40, 18, 3, dtype=torch.bfloat16)
    inputs["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    expected = run_with_gradients(scan_with_state, inputs)
    try:
        assert not ops.cpu._cpu.use_exchange_table(False)
        found = run_with_gradients(scan_with_state, inputs)
    finally:
        assert ops.cpu._cpu.use_exchange_table(True) == hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name

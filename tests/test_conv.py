"""The causal convolution against torch's own in float64: output and every gradient."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from ssmseq_kernels import causal_conv1d, causal_conv1d_update
from ssmseq_kernels.reference import causal_conv1d_reference

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}  # relative L2 error; the table of kernels/README.md
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def make_inputs(n_batch, length, n_channels, width, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((n_batch, length, n_channels), (n_channels, 1, width), (n_channels,))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def by_torch(x, weight, bias, activation, reverse):
    width = weight.shape[-1]
    padding, kernel = ((0, width - 1), weight.flip(-1)) if reverse else ((width - 1, 0), weight)
    y = F.conv1d(F.pad(x.transpose(1, 2), padding), kernel, bias, groups=x.shape[2]).transpose(1, 2)
    return F.silu(y) if activation else y


def assert_matches_torch(inputs, activation, reverse, bias=True):
    inputs = inputs if bias else [*inputs[:2], None]
    exact = [x if x is None else x.detach().double().requires_grad_() for x in inputs]
    found = causal_conv1d(*inputs, activation=activation, reverse=reverse)
    truth = by_torch(*exact, activation, reverse)
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).double()
    grads = torch.autograd.grad(found, [x for x in inputs if x is not None], weight.to(found.dtype))
    true_grads = torch.autograd.grad(truth, [x for x in exact if x is not None], weight)
    names = ("y", "grad of x", "grad of weight", "grad of bias")
    for name, a, b in zip(names, (found, *grads), (truth, *true_grads), strict=False):
        error = ((a.double() - b).norm() / b.norm()).item()
        assert error < TOLERANCE[inputs[0].dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 2, 3, 9, 130])
def test_every_width_and_length(isa, length, width, reverse, dtype):
    assert_matches_torch(make_inputs(2, length, 19, width, dtype=dtype), "silu", reverse)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_channels", [1, 16, 257])
def test_options_and_channels(isa, n_channels, bias, activation):
    assert_matches_torch(make_inputs(3, 21, n_channels, 4), activation, False, bias)


def test_a_width_beyond_the_compiled_kernel_is_served_by_the_reference():
    assert_matches_torch(make_inputs(2, 30, 6, 11), "silu", False)


def test_strided_input_gives_the_same_bits():
    x, weight, bias = make_inputs(2, 9, 12, 3)
    packed = torch.cat([x, x], -1)[..., 12:]
    channels_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    plain = causal_conv1d(x, weight, bias)
    assert torch.equal(causal_conv1d(packed, weight, bias), plain)
    assert torch.equal(causal_conv1d(channels_first, weight[:, 0], bias), plain)


def test_bitwise_equal_at_any_number_of_threads():
    inputs, before, results = make_inputs(7, 200, 300, 4), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = causal_conv1d(*inputs, activation="silu")
            results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_convolve(shape):
    inputs = make_inputs(*shape, 5, 3)
    y = causal_conv1d(*inputs, activation="silu")
    dx, dweight, dbias = torch.autograd.grad(y.sum(), inputs)
    assert y.shape == dx.shape == (*shape, 5)
    assert not dweight.any()
    assert not dbias.any()


def test_gradcheck_opcheck_and_one_graph():
    inputs = make_inputs(2, 6, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: causal_conv1d(*x, activation="silu"), inputs)
    x, weight, bias = make_inputs(2, 6, 3, 3)
    torch.library.opcheck(
        torch.ops.ssmseq.causal_conv1d.default, (x, weight.detach()[:, 0], bias, None, None, True, True)
    )
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), causal_conv1d(x, weight, bias))


def test_half_precision_is_computed_in_float32():
    inputs = [x.detach().bfloat16() for x in make_inputs(2, 9, 6, 4)]
    y = causal_conv1d(*inputs, activation="silu")
    assert torch.equal(y, causal_conv1d(*(x.float() for x in inputs), activation="silu").bfloat16())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.zeros(3, 4)}, "x must be"),
        ({"weight": torch.zeros(5, 2)}, "weight must be"),
        ({"bias": torch.zeros(3)}, "bias must be"),
        ({"activation": "relu"}, "'relu'"),
    ],
)
def test_what_does_not_fit_is_named(change, text):
    arguments = {"x": torch.zeros(2, 3, 4), "weight": torch.zeros(4, 2), "bias": torch.zeros(4), "activation": None}
    with pytest.raises(ValueError, match=text):
        causal_conv1d(**arguments | change)


def with_gradients(function, leaves):
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    y = function(*leaves)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return y, *torch.autograd.grad(y, leaves, weight.to(y.dtype))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 40, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_initial_state_and_packed_sequences(isa, packed, length, width, reverse):
    inputs = [*make_inputs(3, length, 21, width), torch.randn(3, width - 1, 21)]
    seq_idx = None
    if packed:
        seq_idx = torch.zeros(3, length, dtype=torch.int64)
        seq_idx[0] = torch.arange(length)
        seq_idx[1, 31:] = 5
        seq_idx[1, 33:] = 2

    def compiled(x, weight, bias, before):
        options = {"initial_state": before, "seq_idx": seq_idx, "reverse": reverse, "activation": "silu"}
        return causal_conv1d(x, weight, bias, **options)

    def reference(x, weight, bias, before):
        options = {"initial_state": before, "seq_idx": seq_idx, "reverse": reverse, "silu": True}
        return causal_conv1d_reference(x, weight[:, 0], bias, **options)

    truth = with_gradients(reference, [x.double() for x in inputs])
    for name, a, b in zip(("y", "x", "weight", "bias", "before"), with_gradients(compiled, inputs), truth, strict=True):
        error = ((a.double() - b).norm() / b.norm().clamp_min(1e-12)).item()
        assert error < 1e-6, f"{name}: relative error {error:.2e}"


def test_packed_sequences_equal_their_own_convolutions():
    x, weight, bias = (t.detach() for t in make_inputs(1, 60, 7, 4))
    cuts = [0, 1, 3, 35, 60]
    seq_idx = torch.repeat_interleave(torch.arange(4), torch.tensor(cuts).diff())[None]
    for reverse in (False, True):
        whole = causal_conv1d(x, weight, bias, seq_idx=seq_idx, reverse=reverse)
        alone = [causal_conv1d(x[:, a:b], weight, bias, reverse=reverse) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(whole, torch.cat(alone, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 2, 17])
def test_two_calls_carrying_the_state_equal_one(cut, reverse):
    x, weight, bias = (t.detach() for t in make_inputs(2, 20, 6, 4))
    before = torch.randn(2, 3, 6)
    options = {"activation": "silu", "reverse": reverse, "return_final_state": True}
    whole, last = causal_conv1d(x, weight, bias, initial_state=before, **options)
    pieces = [x[:, 20 - cut :], x[:, : 20 - cut]] if reverse else [x[:, :cut], x[:, cut:]]
    first, state = causal_conv1d(pieces[0], weight, bias, initial_state=before, **options)
    second, state = causal_conv1d(pieces[1], weight, bias, initial_state=state, **options)
    assert torch.equal(torch.cat([second, first] if reverse else [first, second], 1), whole)
    assert torch.equal(state, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 10])
def test_steps_equal_the_whole(isa, width, dtype):
    x, weight, bias = (t.detach() for t in make_inputs(2, 9, 19, width))
    x, state = x.to(dtype), torch.randn(2, 19, width - 1).to(dtype).transpose(1, 2)  # channel-major memory
    options = {"activation": "silu", "initial_state": state.clone(), "return_final_state": True}
    y, last = causal_conv1d(x, weight, bias, **options)
    for t in range(9):
        step = causal_conv1d_update(x[:, t], state, weight, bias, activation="silu")
        torch.testing.assert_close(step, y[:, t], rtol=1e-6 if dtype.itemsize > 2 else 8e-3, atol=1e-6)
    assert torch.equal(state, last)


def test_what_a_step_refuses():
    x, weight, bias = make_inputs(1, 2, 4, 3)
    with torch.no_grad(), pytest.raises(TypeError, match="state must be torch.float32"):
        causal_conv1d_update(x[0], torch.zeros(2, 2, 4).half(), weight, bias)
    with torch.no_grad(), pytest.raises(ValueError, match="state must be"):
        causal_conv1d_update(x[0], torch.zeros(2, 3, 4), weight, bias)
    with pytest.raises(RuntimeError, match="no_grad"):
        causal_conv1d_update(x[0], torch.zeros(2, 2, 4), weight, bias)
    with pytest.raises(TypeError, match="seq_idx"):
        causal_conv1d(x, weight, seq_idx=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="initial_state"):
        causal_conv1d(x, weight, initial_state=torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="weight is on meta, x on cpu"):
        causal_conv1d(x, weight.to("meta"))
    with pytest.raises(ValueError, match="state is on meta, x on cpu"):
        causal_conv1d_update(x[0], torch.zeros(2, 2, 4, device="meta"), weight, bias)


def test_opcheck_of_every_option():
    x, weight, bias = make_inputs(2, 40, 3, 3)
    before, seq_idx = torch.randn(2, 2, 3, requires_grad=True), (torch.arange(40) // 9).expand(2, 40).to(torch.int32)
    flat = weight.detach()[:, 0]
    torch.library.opcheck(torch.ops.ssmseq.causal_conv1d.default, (x, flat, bias, before, seq_idx, True, False))
    step = (x.detach()[:, 0], before.detach().clone(), flat, bias.detach(), True)
    torch.library.opcheck(torch.ops.ssmseq.causal_conv1d_update.default, step)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_widened_and_rounded_exactly(isa, dtype):
    """All 65,536 of them through the identity, channels and time along memory; then float32 numbers between them."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(16, 64, 64)
    one = torch.ones(64, 1)
    for x in (every, every.transpose(1, 2)):
        y = causal_conv1d(x, one)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y.nan_to_num(), x.nan_to_num())
    scale = torch.linspace(0.2, 1.7, 64)[:, None]
    expected = (every.float() * scale[:, 0]).to(dtype)
    y = causal_conv1d(every, scale)
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())

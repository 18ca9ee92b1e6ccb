"""The causal convolution against torch's own in float64: output and every gradient."""

import pytest
import torch
from torch.nn import functional as F

from ssmseq_kernels import causal_conv1d

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
    torch.library.opcheck(torch.ops.ssmseq.causal_conv1d.default, (x, weight.detach()[:, 0], bias, None, None, True, True))
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

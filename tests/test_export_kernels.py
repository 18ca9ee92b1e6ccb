"""The scans in torch's own operators against their definitions in float64, and what they make of a graph."""

import io

import pytest
import torch

import ssmseq_kernels as kernels
from ssmseq.nn import Mamba, Mamba2, Mamba3
from ssmseq_kernels import ops, reference, scan, ssd_products
from ssmseq_kernels.exporting import portable_operators


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_selective_scan(length, reverse, groups):
    (b, d, n), time = (2, 6, 3), (2, length)
    u, delta, z, B, C = drawn((*time, d), (*time, d), (*time, d), (*time, groups, n), (*time, groups, n))
    A, D, bias, start = drawn((d, n), (d,), (d,), (b, d, n), seed=1)
    given = (u, delta, -A.exp(), B, C, D, z, bias)
    options = {"initial_state": start, "reverse": reverse}
    with portable_operators():
        found = kernels.selective_scan(*given, **options, return_final_state=True)
    close(found, reference.selective_scan_reference(*given, **options))


def test_selective_scan_with_constant_mixers_and_plain_step_sizes():
    u, delta, B, C, A = drawn((2, 5, 4), (2, 5, 4), (4, 3), (2, 5, 2, 3), (4, 3))
    with portable_operators():
        found = kernels.selective_scan(u, delta.exp(), -A.exp(), B, C, delta_softplus=False, return_final_state=True)
    close(found, reference.selective_scan_reference(u, delta.exp(), -A.exp(), B, C, delta_softplus=False))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_ssd_scan(reverse, groups):
    x, z, dt, B, C = drawn((2, 7, 4, 5), (2, 7, 4, 5), (2, 7, 4), (2, 7, groups, 3), (2, 7, groups, 3))
    A, D, bias, start = drawn((4,), (4,), (4,), (2, 4, 5, 3), seed=1)
    options = {"dt_bias": bias, "dt_limit": (0.1, 2.0), "initial_state": start, "reverse": reverse}
    given = (x, dt, -A.exp(), B, C, D, z)
    with portable_operators():
        found = kernels.ssd_scan(*given, **options, return_final_state=True)
    close(found, reference.ssd_scan_reference(*given, **options))


def test_mamba3_scan():
    x, z, B, C = drawn((2, 7, 4, 5), (2, 7, 4, 5), (2, 7, 2, 6), (2, 7, 2, 6))
    dt, A, trap, angles, D = drawn((2, 7, 4), (2, 7, 4), (2, 7, 4), (2, 7, 1, 2), (4,), seed=1)
    given = (x, dt.exp(), -A.exp(), B, C, trap, angles, D, z)
    with portable_operators():
        found = kernels.mamba3_scan(*given)
    close([found], [reference.mamba3_scan_reference(*given)[0]])


@pytest.mark.parametrize("reverse", [False, True])
def test_convolution(reverse):
    x, weight, bias = drawn((2, 5, 3), (3, 4), (3,))
    with portable_operators():
        found = kernels.causal_conv1d(x, weight, bias, activation="silu", reverse=reverse)
    close([found], [reference.causal_conv1d_reference(x, weight, bias, silu=True, reverse=reverse)])


def test_packed_sequences_are_refused():
    u, A, B = drawn((1, 4, 2), (2, 3), (1, 4, 3))
    x, dt, rate, mixer = drawn((1, 4, 2, 2), (1, 4, 2), (2,), (1, 4, 1, 3))
    numbers = torch.tensor([[0, 0, 1, 1]])
    with portable_operators():
        with pytest.raises(ValueError, match="seq_idx"):
            kernels.selective_scan(u, u, A, B, B, seq_idx=numbers)
        with pytest.raises(ValueError, match="seq_idx"):
            kernels.ssd_scan(x, dt, rate, mixer, mixer, seq_idx=numbers)


def test_the_kernels_are_back_afterwards():
    before = (ops.has_kernel, scan.selective_scan_reference, scan._warn_once, ssd_products.chunked)
    u, A, B = drawn((1, 4, 2), (2, 3), (1, 4, 3))
    with pytest.raises(ValueError), portable_operators(), portable_operators():
        kernels.selective_scan(u, u, A, B, B, seq_idx=torch.zeros(1, 4, dtype=torch.int64))
    assert before == (ops.has_kernel, scan.selective_scan_reference, scan._warn_once, ssd_products.chunked)


MIXERS = {
    "mamba": lambda: Mamba(d_model=8, d_state=3, d_conv=4, expand=2, reverse=True),
    "mamba2": lambda: Mamba2(d_model=8, d_state=3, d_conv=4, expand=2, head_dim=4, n_groups=2),
    "mamba3": lambda: Mamba3(d_model=8, d_state=4, expand=2, head_dim=4, n_groups=1),
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_graph_has_one_scan_and_nothing_of_this_package_at_any_length(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]().eval()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=3)}  # of two steps Mamba-3 makes a case
    with torch.no_grad(), portable_operators():
        program = torch.export.export(mixer, (torch.randn(2, 5, 8),), dynamic_shapes=(sizes,), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    assert sum(target == "scan" for target in targets) == 1
    assert not [target for target in targets if target.startswith("ssmseq")]
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    x = torch.randn(3, 9, 8)
    with torch.no_grad():
        found = torch.export.load(io.BytesIO(buffer.getvalue())).module()(x)
        torch.testing.assert_close(found, mixer(x), rtol=1e-4, atol=1e-6)

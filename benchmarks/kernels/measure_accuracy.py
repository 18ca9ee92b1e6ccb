"""Error of y and of every gradient against float64: the definition step by step, and our own float64 kernel.

The float64 kernel serves lengths that the definition, whose gradients autograd records step by step, would take too
long for; where both can run, a row compares the two.
"""

from collections.abc import Callable

import torch
from cases import NAMES, Inputs, Sizes, make_inputs, ours
from rows import Rows
from torch import Tensor

from ssmseq_kernels.reference import selective_scan_reference

CASES: list[Sizes] = [(2, 7, 64, 16), (2, 63, 64, 16), (2, 1250, 64, 16), (1, 8192, 64, 16), (1, 131072, 16, 16)]
LONGEST_BY_DEFINITION = 1250


def measure_accuracy(rows: Rows, cases: list[Sizes]) -> None:
    for sizes in cases:
        by_definition = sizes[1] <= LONGEST_BY_DEFINITION
        pairs = [("float32", "float64 kernel")]
        if by_definition:
            pairs += [("float32", "definition"), ("float64", "definition")]
        cell = {"what": "accuracy", "length": sizes[1], "sizes": sizes}
        cells = {pair: {**cell, "dtype": pair[0], "mode": f"against {pair[1]}"} for pair in pairs}
        missing = {pair: cell for pair, cell in cells.items() if not rows.has(cell)}
        if missing:
            _measure_case(rows, missing, make_inputs(sizes), by_definition)


def _measure_case(rows: Rows, cells: dict[tuple[str, str], dict], inputs: Inputs, by_definition: bool) -> None:
    exact = {name: x.double() for name, x in inputs.items()}
    found = {"float32": run(ours, inputs), "float64": run(ours, exact)}
    truth = {"float64 kernel": found["float64"]}
    if by_definition:
        truth["definition"] = run(definition, exact)
    for (dtype, against), cell in cells.items():
        rows.add(cell, errors(found[dtype], truth[against]))


def definition(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    return selective_scan_reference(u, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, z, delta_bias)[0]


def run(scan: Callable[..., Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Return y and the gradient of a random functional of it, for every input."""
    leaves = [inputs[name].detach().clone().requires_grad_() for name in NAMES]
    y = scan(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    grads = torch.autograd.grad(y, leaves, weights)
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(NAMES, grads, strict=True)}}


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict:
    """Relative L2 and max-norm errors of every tensor, and the worst gradient of each."""
    l2, largest = {}, {}
    for name, exact in truth.items():
        error = found[name].double() - exact
        l2[name] = (error.norm() / exact.norm()).item()
        largest[name] = (error.abs().max() / exact.abs().max()).item()
    worst = {f"worst_gradient_{k}": max(v for n, v in e.items() if n != "y") for k, e in (("l2", l2), ("max", largest))}
    return {"y_l2": l2["y"], "y_max": largest["y"], **worst, "l2": l2, "max": largest}

"""Shapes and inputs of the scan benchmark, and what is timed: our kernel in its variants, and the rivals."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import peers
import torch
from torch import Tensor

import ssmseq_kernels
from ssmseq_kernels import cpu
from ssmseq_kernels.results import empty_gradients, kept_shape

SHAPES = {  # B, L, D, N
    "etth": (32, 7, 512, 16),
    "weather": (32, 21, 512, 16),
    "ecl": (16, 321, 1024, 16),
    "ecg": (8, 1250, 256, 16),
    "dna8k": (2, 8192, 512, 16),
    "dna131k": (1, 131072, 512, 16),
    "quick": (2, 33, 48, 16),
}
STEP_SHAPES = [(1, 512, 16), (1, 1536, 16), (8, 1536, 16), (64, 512, 16)]  # B, D, N
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
PER_STEP = ("u", "delta", "B", "C", "z")  # the others are weights
MODES = ("forward", "forward+backward")

Sizes = tuple[int, int, int, int]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Method:
    """One way to scan: the name of a rival or of ours, and how its inputs lie in memory."""

    name: str
    layout: str = "BLD"  # or BDL: views of (B, D, L) tensors
    dtype: torch.dtype = torch.float32  # of u, delta, B, C, z and y

    def fields(self) -> dict[str, str]:
        """Return what a row says of the method."""
        return {"method": self.name, "layout": self.layout, "dtype": str(self.dtype).removeprefix("torch.")}

    @property
    def scan(self) -> Callable[..., Tensor]:
        """The function, with the signature of the rivals."""
        return ours if self.name in OURS else peers.SCANS[self.name]


OURS = ("ours", "kernel")
PLAIN = Method("ours")
METHODS = {
    "ours": [PLAIN, Method("ours", "BDL"), Method("ours", dtype=torch.bfloat16)],
    "kernel": [Method("kernel"), Method("kernel", "BDL")],
    **{name: [Method(name)] for name in peers.SCANS},
}


def parse_shape(text: str) -> tuple[str, Sizes]:
    """Return name and sizes of a named shape, or of one written as BxLxDxN."""
    if text in SHAPES:
        return text, SHAPES[text]
    try:
        b, length, d, n = map(int, text.split("x"))
    except ValueError:
        raise ValueError(f"unknown shape {text!r}: give one of {', '.join(SHAPES)}, or four sizes BxLxDxN") from None
    return text, (b, length, d, n)


def ours(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    return ssmseq_kernels.selective_scan(u, delta, A, B, C, D, z, delta_bias)


def make_inputs(sizes: Sizes, method: Method = PLAIN, seed: int = 0) -> Inputs:
    """Random inputs with the decays of a trained layer: step sizes around 0.1, rates of about -1 to -N.

    Nothing larger than a result is allocated on the way, so that a measurement of memory is not disturbed.
    """
    n_batch, length, d, n = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, per_step: bool = True) -> Tensor:
        x = torch.empty(shape).normal_(generator=generator)
        return x.to(method.dtype) if per_step else x

    def rows(width: int) -> Tensor:
        return normal(n_batch, length, width) if method.layout == "BLD" else normal(n_batch, width, length).mT

    rates = torch.arange(1, n + 1) * torch.exp(0.5 * normal(d, n, per_step=False))
    return {
        "u": rows(d),
        "delta": rows(d).sub_(2),
        "A": -rates,
        "B": rows(n),
        "C": rows(n),
        "D": normal(d, per_step=False),
        "z": rows(d),
        "delta_bias": 0.3 * normal(d, per_step=False),
    }


def make_calls(methods: Iterable[Method], mode: str, sizes: Sizes) -> dict[Method, Callable[[], object]]:
    """Return, for each method, a function that runs it once; methods that read the same kind of tensors share them."""
    made: dict[Method, Inputs] = {}
    calls = {}
    for method in methods:
        kind = replace(method, name="ours")
        if kind not in made:
            made[kind] = make_inputs(sizes, kind)
        calls[method] = make_call(method, mode, made[kind])
    return calls


def make_call(method: Method, mode: str, inputs: Inputs) -> Callable[[], object]:
    """Return a function that runs the method once: forward without gradients, or with those of every input."""
    if method.name == "kernel":
        return kernel_alone(inputs, mode)
    args = [inputs[name] for name in NAMES]
    if mode == "forward":
        return partial(_forward, method.scan, args)
    if "grad_y" not in inputs:
        inputs["grad_y"] = torch.empty_like(args[0]).normal_(generator=torch.Generator().manual_seed(1))
    return partial(_forward_backward, method.scan, [x.requires_grad_() for x in args], inputs["grad_y"])


def _forward(scan: Callable[..., Tensor], args: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return scan(*args)


def _forward_backward(scan: Callable[..., Tensor], leaves: list[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
    y = scan(*leaves)
    return y, *torch.autograd.grad(y, leaves, grad_y)


def kernel_alone(inputs: Inputs, mode: str) -> Callable[[], object]:
    """Return a function that runs the compiled kernel alone, into results allocated and touched beforehand.

    This is the one place that knows the calling convention of the compiled module.
    """
    u, delta, A, B, C, D, z, bias = (inputs[name].detach() for name in NAMES)
    given = (u, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, z, bias, None, None, True, False)
    y, nothing = torch.zeros_like(u), A.new_empty(0)
    if mode == "forward":
        call = (*given, y, nothing, A.new_empty(kept_shape(u, A, False, cpu.CHUNK)))
        return lambda: cpu._cpu.forward((call,), torch.get_num_threads())
    _, _, kept = cpu.forward(*given, False, True)
    grads = [x.zero_() for x in empty_gradients(*given[:9])]
    call = (*given, y.normal_(), None, kept, *grads)
    return lambda: cpu._cpu.backward((call,), torch.get_num_threads())

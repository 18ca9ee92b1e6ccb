"""The kernels as torch operators: schema, shapes for tracing, autograd, and which kernel serves which device.

The operators of `torch.ops.ssmseq` run where their tensors are, on the devices that `has_kernel` names: the CPU, by the
compiled C++ kernels, and CUDA or ROCm, by the Triton kernels, which are imported when their first tensor arrives. They
are what torch.compile, torch.export and the transforms of torch.func see. A plain eager call takes a shorter way round
the dispatcher, to the same kernels: see `way`.
"""

import importlib.metadata
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

from ssmseq_kernels.checks import Conversions
from ssmseq_kernels.results import empty_gradients, kept_shape

KERNELS: dict[str, Any] = {}  # by type of device: a module with the functions below
FUNCTIONS = {
    "selective_scan": "forward",
    "selective_scan_backward": "backward",
    "selective_scan_pair": "forward_pair",
    "selective_scan_pair_backward": "backward_pair",
    "selective_state_update": "update_checked",
    "causal_conv1d": "conv_forward",
    "causal_conv1d_backward": "conv_backward",
    "causal_conv1d_update": "conv_update",
}
try:
    from ssmseq_kernels import cpu
except ImportError as error:  # a pure-Python install, made where no C++ compiler was at hand
    cpu = None
    CPU_MISSING = str(error)
else:
    CPU_MISSING = None
    KERNELS["cpu"] = cpu

TRITON = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")  # the names it is distributed under
OLDEST_TRITON = (3, 4)
WIDEST = 8  # taps of a convolution that the kernels take, as kMaxWidth in kernels.h
MOST_PASSED = 4096  # sets of tensors that are remembered to fit
N_SCAN = 10  # tensors of one scan, seq_idx last


def _scan_schema(suffix: str = "") -> str:
    names = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "seq_idx"]
    return ", ".join(f"Tensor{'' if i < 5 else '?'} {name}{suffix}" for i, name in enumerate(names))


def _tensors(count: int) -> str:
    return "(" + ", ".join(["Tensor"] * count) + ")"


_CONV = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? seq_idx, bool silu, bool reverse"
_lib = torch.library.Library("ssmseq", "DEF")
_lib.define(
    f"selective_scan({_scan_schema()}, bool delta_softplus, bool reverse, bool return_state, bool keep) "
    f"-> {_tensors(3)}"
)
_lib.define(
    f"selective_scan_backward(Tensor grad_y, Tensor? grad_state, {_scan_schema()}, Tensor kept, "
    f"bool delta_softplus, bool reverse) -> {_tensors(9)}"
)
_lib.define(
    f"selective_scan_pair({_scan_schema()}, {_scan_schema('_reverse')}, bool delta_softplus, bool return_state, "
    f"bool keep) -> {_tensors(6)}"
)
_lib.define(
    f"selective_scan_pair_backward(Tensor grad_y, Tensor? grad_state, {_scan_schema()}, Tensor kept, "
    f"Tensor grad_y_reverse, Tensor? grad_state_reverse, {_scan_schema('_reverse')}, Tensor kept_reverse, "
    f"bool delta_softplus) -> {_tensors(18)}"
)
_lib.define(
    "selective_state_update(Tensor(a!) state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? z, Tensor? delta_bias, bool delta_softplus) -> Tensor"
)
_lib.define(f"causal_conv1d({_CONV}) -> Tensor")
_lib.define(f"causal_conv1d_backward(Tensor grad_y, {_CONV}) -> {_tensors(4)}")
_lib.define("causal_conv1d_update(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, bool silu) -> Tensor")


def has_kernel(device: torch.device) -> bool:
    """Whether the operator can run on tensors of this device; otherwise the reference has to."""
    return device.type in KERNELS or (device.type == "cuda" and cuda_missing() is None)


@cache
def cuda_missing() -> str | None:
    """Why there are no kernels for GPUs, without touching a GPU; None if there are."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'ssmseq[gpu]'"
    version = next((v for name in TRITON if (v := _version_of(name))), None)
    if version is not None and tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
        return (
            f"Triton {version} is older than the kernels need: upgrade torch to 2.8 or newer, which brings Triton 3.4"
        )
    return None


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def kernels(device_type: str) -> Any:
    """The module of kernels of a type of device; that for GPUs is imported with its first tensor."""
    if device_type not in KERNELS and device_type == "cuda":
        from ssmseq_kernels import cuda

        KERNELS["cuda"] = cuda
    return KERNELS[device_type]


def _on_gpu(function: str) -> Callable:
    def run(*args):
        return getattr(kernels("cuda"), function)(*args)

    return run


for _name, _function in FUNCTIONS.items():
    if cpu is not None:
        _lib.impl(_name, getattr(cpu, _function), "CPU")
    _lib.impl(_name, _on_gpu(_function), "CUDA")


is_compiling, modes = torch.compiler.is_compiling, torch._C._len_torch_dispatch_stack
transforms, tracing = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state  # type: ignore[attr-defined]


PLAIN = (torch.Tensor, torch.nn.Parameter)
DISPATCHED, DIRECT, DIFFERENTIATED = range(3)  # ways of a call; as in calls.h


def untraced() -> bool:
    """Whether nothing traces, transforms or watches the calls made now."""
    return not (is_compiling() or modes()) and transforms() is None and tracing() is None


def plain_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether the compiled kernel of a step may be asked before anything else, as it has checks of its own."""
    return tensor.is_cpu and cpu is not None and not torch.is_grad_enabled() and untraced()


def way(call: tuple) -> int:
    """How a call is to be run: by torch's dispatcher if something traces, transforms or watches it, else without."""
    if not untraced():
        return DISPATCHED
    differentiable = torch.is_grad_enabled()
    if cpu:
        return cpu._cpu.way(call, differentiable)
    tensors = [x for x in call if isinstance(x, torch.Tensor)]
    if any(type(x) not in PLAIN for x in tensors):
        return DISPATCHED
    return DIFFERENTIATED if differentiable and any(x.requires_grad for x in tensors) else DIRECT


def run(function: Callable, call: tuple) -> Any:
    """Call a function of the library on the way of the call and on its arguments, the first of which is a tensor.

    Where Triton's kernels serve a plain call without gradients, what the function did for such tensors before is done
    again without its Python.
    """
    how = way(call)
    if how == DIRECT:
        module = KERNELS.get(call[0].device.type)
        if module is not None and module.replayed is not None:
            return module.replayed(function)(how, *call)
    return function(how, *call)


_passed: dict[Callable, Any] = defaultdict(lambda: cpu._cpu.Memory(MOST_PASSED) if cpu else None)


def fitted(how: int, check: Callable[..., Conversions], *tensors: torch.Tensor | None) -> list[Any]:
    """Check tensors and convert those that the kernels do not take as they are.

    What `check` says depends on shapes, dtypes and devices only; where such tensors have passed, it is not asked again.
    """
    memory = None if how == DISPATCHED else _passed[check]
    found = None if memory is None else memory.find(tensors)
    if found is None:
        found = check(*tensors)
        if memory is not None:
            memory.keep(tensors, found)
    ready: list[Any] = list(tensors)
    for i, dtype in found:
        ready[i] = ready[i].to(dtype)
    return ready


def _fake_scan(u, A, return_state, keep):
    state = A.new_empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,))
    module = kernels(u.device.type) if has_kernel(u.device) else cpu  # tensors without a device: any length of chunk
    return torch.empty_like(u), state, A.new_empty(kept_shape(u, A, keep, module.CHUNK) if module else (0,))


@torch.library.register_fake("ssmseq::selective_scan", lib=_lib)
def _(u, delta, A, *args):
    return _fake_scan(u, A, *args[-2:])


@torch.library.register_fake("ssmseq::selective_scan_pair", lib=_lib)
def _(*args):
    return (*_fake_scan(args[0], args[2], *args[-2:]), *_fake_scan(args[10], args[12], *args[-2:]))


@torch.library.register_fake("ssmseq::selective_scan_backward", lib=_lib)
def _(grad_y, grad_state, *args):
    return empty_gradients(*args[:N_SCAN])


@torch.library.register_fake("ssmseq::selective_scan_pair_backward", lib=_lib)
def _(*args):
    return (*empty_gradients(*args[2:12]), *empty_gradients(*args[15:25]))


@torch.library.register_fake("ssmseq::selective_state_update", lib=_lib)
def _(state, u, *args):
    return u.new_empty(u.shape)


@torch.library.register_fake("ssmseq::causal_conv1d", lib=_lib)
def _(x, *args):
    return torch.empty_like(x)


@torch.library.register_fake("ssmseq::causal_conv1d_backward", lib=_lib)
def _(grad_y, x, weight, bias, initial_state, *args):
    small = [weight.new_empty(0 if t is None else t.shape) for t in (weight, bias)]
    return torch.empty_like(x), *small, x.new_empty(0 if initial_state is None else initial_state.shape)


@torch.library.register_fake("ssmseq::causal_conv1d_update", lib=_lib)
def _(x, *args):
    return x.new_empty(x.shape)


def _wanted(grads, tensors, needed):
    return [grad if x is not None and need else None for grad, x, need in zip(grads, tensors, needed, strict=False)]


def _direct(name: str, args: tuple):
    """Run the kernel of an operator, whose first argument is a tensor, without the dispatcher."""
    return getattr(kernels(args[0].device.type), FUNCTIONS[name])(*args)


def _run_backward(name: str, *args):
    """Run the backward operator, or its kernel directly where no second derivative might be asked for."""
    if torch.is_grad_enabled() or way(args) == DISPATCHED:
        return getattr(torch.ops.ssmseq, name)(*args)
    return _direct(name, args)


def _scan_setup(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.return_state, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _scan_backward(ctx, grad_y, grad_state, _):
    *tensors, kept = ctx.saved_tensors
    grad_y = torch.zeros_like(tensors[0]) if grad_y is None else grad_y
    grad_state = grad_state if ctx.return_state else None
    args = (grad_y, grad_state, *tensors, kept, ctx.delta_softplus, ctx.reverse)
    grads = _run_backward("selective_scan_backward", *args)
    return (*_wanted(grads, tensors[:9], ctx.needs_input_grad), None, None, None, None, None)


def _pair_setup(ctx, inputs, output):
    ctx.delta_softplus, ctx.return_state, _ = inputs[20:]
    ctx.save_for_backward(*inputs[:20], output[2], output[5])
    ctx.set_materialize_grads(False)


def _pair_backward(ctx, *grads):
    *tensors, kept, kept_reverse = ctx.saved_tensors
    args = []
    for own, grad_y, grad_state, states in (
        (tensors[:10], *grads[:2], kept),
        (tensors[10:], *grads[3:5], kept_reverse),
    ):
        grad_y = torch.zeros_like(own[0]) if grad_y is None else grad_y
        args += [grad_y, grad_state if ctx.return_state else None, *own, states]
    results = _run_backward("selective_scan_pair_backward", *args, ctx.delta_softplus)
    needed = ctx.needs_input_grad
    first = _wanted(results[:9], tensors[:9], needed[:9])
    second = _wanted(results[9:], tensors[10:19], needed[10:19])
    return (*first, None, *second, None, None, None, None)


def _conv_setup(ctx, inputs, output):
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _conv_backward(ctx, grad_y):
    tensors = ctx.saved_tensors
    args = (grad_y, *tensors, ctx.silu, ctx.reverse)
    grads = _run_backward("causal_conv1d_backward", *args)
    return (*_wanted(grads, tensors[:4], ctx.needs_input_grad), None, None, None)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("this operator can be differentiated once; a second derivative is not available")


def _differentiable(name: str, setup: Callable, backward: Callable) -> Callable:
    """Register the derivative of an operator; return the operator for eager calls, without the dispatcher."""
    torch.library.register_autograd(f"ssmseq::{name}", backward, setup_context=setup, lib=_lib)
    torch.library.register_autograd(f"ssmseq::{name}_backward", _no_second_derivative, lib=_lib)

    def forward(ctx, *args):
        output = _direct(name, args)
        setup(ctx, args, output)
        if isinstance(output, torch.Tensor):
            return output
        wanted = (True, ctx.return_state, False) * 2  # kept states, and empty ones, are not to refer to the graph
        return tuple([x if want else None for x, want in zip(output, wanted, strict=False)])

    # Function itself, not its newer form with a separate setup: that one takes three times as long.
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return applied(type(name, (torch.autograd.Function,), members))


def applied(function: type[torch.autograd.Function]) -> Callable:
    """Return `function.apply` for eager calls, without its search for tensors that outlived a transform.

    Such tensors have no memory that a kernel could read, which is an error with and without gradients.
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[attr-defined]


_EAGER = {
    "selective_scan": _differentiable("selective_scan", _scan_setup, _scan_backward),
    "selective_scan_pair": _differentiable("selective_scan_pair", _pair_setup, _pair_backward),
    "causal_conv1d": _differentiable("causal_conv1d", _conv_setup, _conv_backward),
}


def _wants_gradient(how: int, tensors: Iterable[torch.Tensor | None]) -> bool:
    if how != DISPATCHED:
        return how == DIFFERENTIATED
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _call(how: int, name: str, tensors: tuple, gradient: bool, *flags: bool):
    """Run an operator by the shortest way that serves the call."""
    if how == DISPATCHED:
        return getattr(torch.ops.ssmseq, name)(*tensors, *flags)
    return _EAGER[name](*tensors, *flags) if gradient else _direct(name, (*tensors, *flags))


def scan(how: int, tensors: tuple, delta_softplus: bool, reverse: bool, return_state: bool):
    """Scan ten tensors: y, and the final state if asked for; what follows is of no use."""
    gradient = _wants_gradient(how, tensors)
    return _call(how, "selective_scan", tensors, gradient, delta_softplus, reverse, return_state, gradient)


def scan_pair(how: int, tensors: tuple, delta_softplus: bool, return_state: bool):
    """Scan twice ten tensors, the second ten in reverse: the results of both."""
    gradient = _wants_gradient(how, tensors)
    return _call(how, "selective_scan_pair", tensors, gradient, delta_softplus, return_state, gradient)


def conv(how: int, tensors: tuple, silu: bool, reverse: bool):
    """Convolve five tensors."""
    return _call(how, "causal_conv1d", tensors, _wants_gradient(how, tensors), silu, reverse)


def check_in_place(how: int, name: str, tensors: Iterable[torch.Tensor | None]) -> None:
    """Raise RuntimeError if a gradient is wanted of what works in place."""
    if _wants_gradient(how, tensors):
        raise RuntimeError(
            f"{name} works in place and has no derivative: call it under torch.no_grad(), or train with the whole scan"
        )


def step(how: int, name: str, tensors: tuple, flag: bool):
    """Take one step in place, of `selective_state_update` or `causal_conv1d_update`."""
    check_in_place(how, name, tensors)
    return _call(how, name, tensors, False, flag)

"""The scan as torch operators: schema, shapes for tracing, autograd, and which kernel serves which device.

`torch.ops.ssmseq.selective_scan` runs where its tensors are: the compiled C++ kernel for CPU tensors, the PyTorch
reference on every other device or where the compiled module is missing.
"""

import warnings
from typing import Any

import torch

from ssmseq_kernels.reference import selective_scan_reference

try:
    from ssmseq_kernels import cpu
except ImportError as error:  # a pure-Python install, made where no C++ compiler was at hand
    cpu = None
    CPU_MISSING = str(error)
else:
    CPU_MISSING = None

_warned = False

_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state"
)
_lib = torch.library.Library("ssmseq", "DEF")
_lib.define(
    f"selective_scan({_INPUTS}, bool delta_softplus, bool reverse, bool return_state, bool keep) "
    "-> (Tensor y, Tensor final_state, Tensor kept)"
)
_lib.define(
    f"selective_scan_backward(Tensor grad_y, Tensor? grad_state, {_INPUTS}, Tensor kept, bool delta_softplus, "
    "bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _warn_once(device: str) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    remedy = "install a C++17 compiler, then ssmseq again" if device == "cpu" else "move network and data to the CPU"
    warnings.warn(
        f"the selective scan runs on the PyTorch reference on '{device}' tensors, many times slower than the compiled "
        f"kernel: {remedy}. `ssmseq info` tells which kernels this installation has.",
        RuntimeWarning,
        stacklevel=2,
    )


def _reference_forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse, return_state, keep):
    _warn_once(u.device.type)
    y, state = selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, initial_state=initial_state, reverse=reverse
    )
    state = state.clone() if return_state else u.new_empty(0)
    return y, state, u.new_empty(0)


def _reference_backward(
    grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, initial_state, kept, delta_softplus, reverse
):
    inputs: list[Any] = [
        x if x is None else x.detach().requires_grad_() for x in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    ]
    with torch.enable_grad():
        y, state = selective_scan_reference(
            *inputs[:8], delta_softplus=delta_softplus, initial_state=inputs[8], reverse=reverse
        )
        outputs, seeds = ([y], [grad_y]) if grad_state is None else ([y, state], [grad_y, grad_state])
        given = [x for x in inputs if x is not None]
        found = iter(torch.autograd.grad(outputs, given, seeds, materialize_grads=True))
    return tuple(u.new_empty(0) if x is None else next(found).contiguous() for x in inputs)


_lib.impl("selective_scan", _reference_forward, "CompositeExplicitAutograd")
_lib.impl("selective_scan_backward", _reference_backward, "CompositeExplicitAutograd")
if cpu is not None:
    _lib.impl("selective_scan", cpu.forward, "CPU")
    _lib.impl("selective_scan_backward", cpu.backward, "CPU")


@torch.library.register_fake("ssmseq::selective_scan", lib=_lib)
def _(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse, return_state, keep):
    state = u.new_empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,))
    compiled = cpu is not None and u.device.type == "cpu"
    return u.new_empty(u.shape), state, u.new_empty(cpu.checkpoint_shape(u, A, keep) if cpu and compiled else (0,))


@torch.library.register_fake("ssmseq::selective_scan_backward", lib=_lib)
def _(grad_y, grad_state, u, delta, A, B, C, D, z, delta_bias, initial_state, kept, delta_softplus, reverse):
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return tuple(u.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.return_state, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_state, _):
    *tensors, kept = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(tensors[0])
    grads = torch.ops.ssmseq.selective_scan_backward(
        grad_y, grad_state if ctx.return_state else None, *tensors, kept, ctx.delta_softplus, ctx.reverse
    )
    needed = zip(grads, tensors, ctx.needs_input_grad[:9], strict=True)
    wanted = [grad if x is not None and need else None for grad, x, need in needed]
    return (*wanted, None, None, None, None)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("selective_scan can be differentiated once; a second derivative is not available")


torch.library.register_autograd("ssmseq::selective_scan_backward", _no_second_derivative, lib=_lib)
torch.library.register_autograd("ssmseq::selective_scan", _backward, setup_context=_setup_context, lib=_lib)

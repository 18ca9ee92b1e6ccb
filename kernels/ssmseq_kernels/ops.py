"""The scan as torch operators: schema, shapes for tracing, autograd, and which kernel serves which device.

`torch.ops.ssmseq.selective_scan` runs where its tensors are, on the devices that `has_kernel` names; so far that is the
CPU, by the compiled C++ kernel.
"""

import torch

try:
    from ssmseq_kernels import cpu
except ImportError as error:  # a pure-Python install, made where no C++ compiler was at hand
    cpu = None
    CPU_MISSING = str(error)
else:
    CPU_MISSING = None

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


if cpu is not None:
    _lib.impl("selective_scan", cpu.forward, "CPU")
    _lib.impl("selective_scan_backward", cpu.backward, "CPU")


def has_kernel(device: torch.device) -> bool:
    """Whether the operator can run on tensors of this device; otherwise the reference has to."""
    return device.type == "cpu" and cpu is not None


@torch.library.register_fake("ssmseq::selective_scan", lib=_lib)
def _(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse, return_state, keep):
    state = u.new_empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,))
    return u.new_empty(u.shape), state, u.new_empty(cpu.checkpoint_shape(u, A, keep) if cpu else (0,))


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

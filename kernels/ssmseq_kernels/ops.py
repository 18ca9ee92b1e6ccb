"""The kernels as torch operators: schema, shapes for tracing, autograd, and which kernel serves which device.

The operators of `torch.ops.ssmseq` run where their tensors are, on the devices that `has_kernel` names; so far that is
the CPU, by the compiled C++ kernels.
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


_lib.define("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor")
_lib.define(
    "causal_conv1d_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) "
    "-> (Tensor, Tensor, Tensor)"
)
if cpu is not None:
    _lib.impl("selective_scan", cpu.forward, "CPU")
    _lib.impl("selective_scan_backward", cpu.backward, "CPU")
    _lib.impl("causal_conv1d", cpu.conv_forward, "CPU")
    _lib.impl("causal_conv1d_backward", cpu.conv_backward, "CPU")


def has_kernel(device: torch.device) -> bool:
    """Whether the operator can run on tensors of this device; otherwise the reference has to."""
    return device.type == "cpu" and cpu is not None


def arithmetic_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """Return the dtype to compute in, the widest given but at least float32; TypeError if it is not floating."""
    given = [x.dtype for x in tensors if x is not None]
    dtype = given[0]
    for other in given[1:]:
        dtype = dtype if other == dtype else torch.promote_types(dtype, other)
    if not dtype.is_floating_point:
        raise TypeError(f"real floating-point tensors are needed, got a mix that promotes to {dtype}")
    return torch.float32 if dtype.itemsize < 4 else dtype


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


@torch.library.register_fake("ssmseq::causal_conv1d", lib=_lib)
def _(x, weight, bias, silu, reverse):
    return x.new_empty(x.shape)


@torch.library.register_fake("ssmseq::causal_conv1d_backward", lib=_lib)
def _(grad_y, x, weight, bias, silu, reverse):
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(0 if bias is None else bias.shape)


def _conv_setup_context(ctx, inputs, output):
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _conv_backward(ctx, grad_y):
    tensors = ctx.saved_tensors
    grads = torch.ops.ssmseq.causal_conv1d_backward(grad_y, *tensors, ctx.silu, ctx.reverse)
    needed = zip(grads, tensors, ctx.needs_input_grad[:3], strict=True)
    return (*(grad if x is not None and need else None for grad, x, need in needed), None, None)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("this operator can be differentiated once; a second derivative is not available")


torch.library.register_autograd("ssmseq::causal_conv1d", _conv_backward, setup_context=_conv_setup_context, lib=_lib)
torch.library.register_autograd("ssmseq::causal_conv1d_backward", _no_second_derivative, lib=_lib)
torch.library.register_autograd("ssmseq::selective_scan_backward", _no_second_derivative, lib=_lib)
torch.library.register_autograd("ssmseq::selective_scan", _backward, setup_context=_setup_context, lib=_lib)

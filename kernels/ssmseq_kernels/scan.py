"""The public face of the scan: checks shapes and dtypes, then calls the operator."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ssmseq_kernels import ops
from ssmseq_kernels.reference import selective_scan_reference

_warned = False


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Selective state-space scan (Mamba's recurrence) along the time axis, channels last.

    .. math::
        \Delta_t = \operatorname{softplus}(\delta_t + b), \quad
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \quad
        y_t = (C_t \cdot h_t + D u_t) \operatorname{silu}(z_t)

    It runs where its tensors are; see `available_backends`. The arithmetic is done in the widest dtype given, and in
    float32 where that would be a half precision; y comes back in the dtype of `u`, the state in that of the arithmetic.
    Results are bitwise the same for any number of threads. Differentiable once in every tensor; a second derivative
    raises.

    Parameters
    ----------
    u : Tensor (B, L, D)
        Input. Any strides; no copy is made if the last one is 1.
    delta : Tensor (B, L, D)
        Step size before bias and softplus.
    A : Tensor (D, N)
        Continuous-time decay rates, usually negative.
    B, C : Tensor (B, L, N) or (B, L, G, N)
        Input and output mixing; with groups, channel d uses group ``d // (D / G)``.
    D : Tensor (D,), optional
        Weight of the skip from u to y.
    z : Tensor (B, L, D), optional
        Gate.
    delta_bias : Tensor (D,), optional
    delta_softplus : bool
        Pass delta + bias through softplus.
    initial_state : Tensor (B, D, N), optional
        Zero where not given.
    reverse : bool
        Scan from the last step to the first, without flipped copies.
    return_final_state : bool
        Also return the state after the last step.

    Returns
    -------
    y : Tensor (B, L, D)
    final_state : Tensor (B, D, N)
        Only with `return_final_state`.

    Raises
    ------
    ValueError
        If a shape does not fit the shape of `u` and `A`.
    TypeError
        If a tensor is not real floating point.

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state)
    tensors: list[Any] = [u, delta, A, B, C, D, z, delta_bias, initial_state]
    dtype = ops.arithmetic_dtype(*tensors)
    tensors = [x if x is None or x.dtype == dtype else x.to(dtype) for x in tensors]
    for i in (3, 4):
        if tensors[i].dim() == 3:
            tensors[i] = tensors[i].unsqueeze(2)
    if not ops.has_kernel(u.device):
        return _by_reference(tensors, delta_softplus, reverse, return_final_state, u.dtype)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, state, _ = torch.ops.ssmseq.selective_scan(*tensors, delta_softplus, reverse, return_final_state, keep)
    y = y if y.dtype == u.dtype else y.to(u.dtype)
    return (y, state) if return_final_state else y


def _by_reference(tensors, delta_softplus, reverse, return_final_state, dtype):
    _warn_once(tensors[0].device.type)
    *inputs, initial_state = tensors
    y, state = selective_scan_reference(
        *inputs, delta_softplus=delta_softplus, initial_state=initial_state, reverse=reverse
    )
    return (y.to(dtype), state) if return_final_state else y.to(dtype)


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
        stacklevel=4,
    )


def available_backends() -> dict[str, str]:
    """Say which scan serves which kind of device, and why.

    Returns
    -------
    dict
        Device type ("cpu", "cuda", "other") to a sentence.
    """
    if ops.cpu is None:
        on_cpu = f"reference: the compiled module is missing ({ops.CPU_MISSING})"
    else:
        on_cpu = f"compiled C++ kernel, instruction set {ops.cpu._cpu.isa()}"
    reason = "no kernel for this device is registered"
    return {"cpu": on_cpu, "cuda": f"reference: {reason}", "other": f"reference: {reason}"}


def processor() -> tuple[str, str]:
    """Return the maker of the CPU ("amd", "intel", "other") and the best instruction set of the compiled scan on it."""
    if ops.cpu is None:
        return "other", "none"
    return ops.cpu._cpu.vendor(), ops.cpu._cpu.runnable_isas()[-1]


def _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must be (B, L, D) and A (D, N); got {tuple(u.shape)} and {tuple(A.shape)}")
    n_batch, length, n_channels = u.shape
    n_state = A.shape[1]
    wanted = {
        "delta": (delta, (n_batch, length, n_channels)),
        "A": (A, (n_channels, n_state)),
        "D": (D, (n_channels,)),
        "z": (z, (n_batch, length, n_channels)),
        "delta_bias": (delta_bias, (n_channels,)),
        "initial_state": (initial_state, (n_batch, n_channels, n_state)),
    }
    for name, (x, shape) in wanted.items():
        if x is not None and x.shape != shape:
            raise ValueError(
                f"{name} must be {shape} to fit u {tuple(u.shape)} and A {tuple(A.shape)}, got {tuple(x.shape)}"
            )
    if n_state < 1:
        raise ValueError(f"A must have at least one state, got {tuple(A.shape)}")
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[2] if x.dim() == 4 else 1
        if x.dim() not in (3, 4) or x.shape[:2] != u.shape[:2] or x.shape[-1] != n_state:
            raise ValueError(
                f"{name} must be ({n_batch}, {length}, {n_state}) or ({n_batch}, {length}, groups, "
                f"{n_state}), got {tuple(x.shape)}"
            )
        if groups < 1 or n_channels % groups or (B.dim(), C.dim()) in ((3, 4), (4, 3)) or B.shape != C.shape:
            raise ValueError(
                f"B {tuple(B.shape)} and C {tuple(C.shape)} must have one shape, with a number of groups "
                f"that divides the {n_channels} channels"
            )

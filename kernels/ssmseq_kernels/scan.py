"""The public face of the scan: checks shapes and dtypes, then calls the operator or its kernel."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ssmseq_kernels import checks, ops
from ssmseq_kernels.reference import selective_scan_reference, selective_state_update_reference

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
    seq_idx: Tensor | None = None,
    reverse: bool = False,
    return_final_state: bool = False,
) -> Any:  # Tensor, or (Tensor, Tensor) with return_final_state
    r"""Selective state-space scan (Mamba's recurrence) along the time axis, channels last.

    .. math::
        \Delta_t = \operatorname{softplus}(\delta_t + b), \quad
        h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t u_t, \quad
        y_t = (C_t \cdot h_t + D u_t) \operatorname{silu}(z_t)

    It runs where its tensors are; see `available_backends`. The arithmetic is done in the widest dtype given, and in
    float32 where that would be a half precision; y comes back in the dtype of `u`, the state in that of the arithmetic.
    Tensors may have any strides: views, flips of axes and channel-major layouts are read where they lie. Results are
    bitwise the same for any number of threads. Differentiable once in every tensor; a second derivative raises.

    Parameters
    ----------
    u : Tensor (B, L, D)
        Input.
    delta : Tensor (B, L, D)
        Step size before bias and softplus.
    A : Tensor (D, N)
        Continuous-time decay rates, usually negative.
    B, C : Tensor (B, L, N) or (B, L, G, N) or (D, N)
        Input and output mixing. With groups, channel d uses group ``d // (D / G)``; with two axes it is constant over
        batch and time, and each channel has its own.
    D : Tensor (D,), optional
        Weight of the skip from u to y.
    z : Tensor (B, L, D), optional
        Gate.
    delta_bias : Tensor (D,), optional
    delta_softplus : bool
        Pass delta + bias through softplus.
    initial_state : Tensor (B, D, N), optional
        Zero where not given.
    seq_idx : Tensor (B, L) of integers, optional
        Numbers the sequences packed into one row: the state starts from zero wherever the number changes. The initial
        state belongs to the first sequence met, the final state to the last. See `sequence_index`.
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
        If a tensor is not real floating point, or `seq_idx` not of integers.

    References
    ----------
    Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    return ops.run(_one_way, (*tensors, delta_softplus, reverse, return_final_state))


def _one_way(how, *call):
    *given, delta_softplus, reverse, return_final_state = call
    tensors = _prepare(how, *given)
    if ops.has_kernel(tensors[0].device):
        y, state, _ = ops.scan(how, tensors, delta_softplus, reverse, return_final_state)
    else:
        _warn_once(tensors[0].device.type)
        y, state = _by_reference(tensors, delta_softplus, reverse)
    return (y, state) if return_final_state else y


def bidirectional_selective_scan(
    forward: tuple[Tensor | None, ...],
    reverse: tuple[Tensor | None, ...],
    *,
    delta_softplus: bool = True,
    return_final_state: bool = False,
) -> tuple:
    """Scan from the start with one set of tensors and from the end with another, in one call.

    Both directions share one team of threads, which is what short sequences need; on tensors that both use (u or z, as
    in Vim) the gradients add up.

    Parameters
    ----------
    forward, reverse : tuple of Tensor or None
        The positional arguments of `selective_scan`, from u to delta_bias, then initial_state and seq_idx; what is left
        out at the end is None.
    delta_softplus : bool
    return_final_state : bool

    Returns
    -------
    forward, reverse : Tensor (B, L, D), or tuple of y and final state
        As `selective_scan` returns them, both in the order of time.

    Raises
    ------
    ValueError, TypeError
        As `selective_scan`.

    References
    ----------
    Zhu et al., "Vision Mamba", arXiv 2401.09417; Wang et al., "Is Mamba effective for time series forecasting?",
    arXiv 2403.11144.
    """
    given = [x for own in (forward, reverse) for x in (*own, *[None] * (ops.N_SCAN - len(own)))]
    return ops.run(_both_ways, (*given, delta_softplus, return_final_state))


def _both_ways(how, *call):
    *given, delta_softplus, return_final_state = call
    prepared = [_prepare(how, *given[: ops.N_SCAN]), _prepare(how, *given[ops.N_SCAN :])]
    first, second = prepared
    if ops.has_kernel(first[0].device) and first[2].dtype == second[2].dtype:
        found = ops.scan_pair(how, (*first, *second), delta_softplus, return_final_state)
        y, state, _, y_back, state_back, _ = found
        return ((y, state), (y_back, state_back)) if return_final_state else (y, y_back)
    options = {"delta_softplus": delta_softplus, "return_final_state": return_final_state}
    both = zip(prepared, (False, True), strict=True)
    return tuple(
        [selective_scan(*x[:8], initial_state=x[8], seq_idx=x[9], reverse=back, **options) for x, back in both]
    )


def selective_state_update(
    state: Tensor,
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
) -> Tensor:
    """Advance the state by one step in place: the scan at L = 1, for generation step by step.

    Parameters
    ----------
    state : Tensor (B, D, N)
        Overwritten; float32, or float64 if another tensor is. Its last axis has stride 1.
    u, delta : Tensor (B, D)
    A : Tensor (D, N)
    B, C : Tensor (B, N) or (B, G, N)
    D : Tensor (D,), optional
    z : Tensor (B, D), optional
    delta_bias : Tensor (D,), optional
    delta_softplus : bool

    Returns
    -------
    Tensor (B, D)
        In the dtype of `u`.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If the dtype of the state is not that of the arithmetic.
    RuntimeError
        If a derivative is wanted; there is none.
    """
    call = (state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if ops.plain_on_cpu(u):
        y = ops.cpu.update(*call)  # type: ignore[union-attr]
        if y is not None:  # else some tensor has to be converted, or does not fit
            return y
    return ops.run(_one_step, call)


def _one_step(how, *call):
    *given, delta_softplus = call
    u = given[1]
    tensors: Any = ops.fitted(how, _check_step, *given)
    tensors[4:6] = [x if x.dim() == 3 else x.unsqueeze(1) for x in tensors[4:6]]
    if ops.has_kernel(u.device):
        y = ops.step(how, "selective_state_update", tuple(tensors), delta_softplus)
    else:
        _warn_once(u.device.type)
        y = selective_state_update_reference(*tensors, delta_softplus=delta_softplus)
    return y if y.dtype == u.dtype else y.to(u.dtype)


def sequence_index(cu_seqlens: Tensor) -> Tensor:
    """Number the steps of packed sequences, for `seq_idx`, from their cumulative lengths.

    Parameters
    ----------
    cu_seqlens : Tensor (sequences + 1,) of integers
        ``[0, l_1, l_1 + l_2, ...]``, the total last; sequences may be empty.

    Returns
    -------
    Tensor (1, total) of int32

    Raises
    ------
    ValueError
        If it does not start at 0 or decreases.
    """
    if cu_seqlens.dim() != 1 or not len(cu_seqlens) or cu_seqlens[0] != 0 or (cu_seqlens.diff() < 0).any():
        raise ValueError(
            f"cu_seqlens must be one-dimensional, start at 0 and never decrease, got {cu_seqlens.tolist()}"
        )
    numbers = torch.arange(len(cu_seqlens) - 1, dtype=torch.int32, device=cu_seqlens.device)
    return numbers.repeat_interleave(cu_seqlens.diff())[None]


def _prepare(how: int, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Check the ten tensors of one scan and bring them to the dtypes and the axes of the operator."""
    ready = ops.fitted(how, _check_scan, *tensors)
    ready[3:5] = [x.unsqueeze(2) if x.dim() == 3 else x for x in ready[3:5]]
    return tuple(ready)


def _by_reference(tensors, delta_softplus, reverse):
    *inputs, initial_state, seq_idx = tensors
    options = {"initial_state": initial_state, "seq_idx": seq_idx, "reverse": reverse}
    wide: Any = [x if x is None else x.to(tensors[2].dtype) for x in inputs]
    y, state = selective_scan_reference(*wide, delta_softplus=delta_softplus, **options)
    return y.to(tensors[0].dtype), state


def _warn_once(device: str) -> None:
    global _warned
    if _warned:
        return
    _warned = True
    remedy = "move network and data to the CPU"
    if device == "cpu":
        remedy = "install a C++17 compiler, then ssmseq again"
    elif device == "cuda":
        remedy = f"{ops.cuda_missing()}"
    warnings.warn(
        f"the selective scan runs on the PyTorch reference on '{device}' tensors, many times slower than the compiled "
        f"kernel: {remedy}. `ssmseq info` tells which kernels this installation has.",
        RuntimeWarning,
        stacklevel=6,
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
    return {"cpu": on_cpu, "cuda": _on_cuda(), "other": "reference: no kernel for this device is registered"}


def _on_cuda() -> str:
    if missing := ops.cuda_missing():
        return f"reference: {missing}"
    if not torch.cuda.is_available():
        return "none of this kind found; the Triton kernels would serve it"
    return f"Triton kernels, on {torch.cuda.get_device_name()}"


def processor() -> tuple[str, str]:
    """Return the maker of the CPU ("amd", "intel", "other") and the best instruction set of the compiled scan on it."""
    if ops.cpu is None:
        return "other", "none"
    return ops.cpu._cpu.vendor(), ops.cpu._cpu.runnable_isas()[-1]


def _check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx) -> checks.Conversions:
    """Check the tensors of a scan; return what has to be converted."""
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must be (B, L, D) and A (D, N); got {tuple(u.shape)} and {tuple(A.shape)}")
    n_batch, length, n_channels = u.shape
    n_state = A.shape[1]
    others = {"D": D, "z": z, "delta_bias": delta_bias, "initial_state": initial_state, "seq_idx": seq_idx}
    checks.check_device("u", u, delta=delta, A=A, B=B, C=C, **others)
    _check_common(u, A, D, delta_bias)
    wanted = {
        "delta": (delta, u.shape),
        "z": (z, u.shape),
        "initial_state": (initial_state, (n_batch, n_channels, n_state)),
        "seq_idx": (seq_idx, (n_batch, length)),
    }
    for name, (x, shape) in wanted.items():
        _check(name, x, shape, u, A)
    if seq_idx is not None and (seq_idx.is_floating_point() or seq_idx.is_complex()):
        raise TypeError(f"seq_idx must hold integers, got {seq_idx.dtype}")
    groups = set()
    for name, x in (("B", B), ("C", C)):
        constant = x.dim() == 2 and x.shape == A.shape
        if not constant and (x.dim() not in (3, 4) or x.shape[:2] != u.shape[:2] or x.shape[-1] != n_state):
            raise ValueError(
                f"{name} must be ({n_batch}, {length}, {n_state}) or ({n_batch}, {length}, groups, {n_state}), or "
                f"{tuple(A.shape)} if constant, got {tuple(x.shape)}"
            )
        if not constant:
            groups.add(x.shape[2] if x.dim() == 4 else 1)
    _check_groups(groups, B, C, n_channels)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    found = checks.conversions(tensors, checks.arithmetic_dtype(*tensors), rows=(0, 1, 3, 4, 6))
    return found if seq_idx is None or seq_idx.dtype == torch.int32 else (*found, (9, torch.int32))


def _check_common(u: Tensor, A: Tensor, D: Tensor | None, delta_bias: Tensor | None) -> None:
    if A.shape[1] < 1:
        raise ValueError(f"A must have at least one state, got {tuple(A.shape)}")
    n_channels = u.shape[-1]
    _check("A", A, (n_channels, A.shape[1]), u, A)
    _check("D", D, (n_channels,), u, A)
    _check("delta_bias", delta_bias, (n_channels,), u, A)


def _check(name: str, x: Tensor | None, shape: tuple[int, ...], u: Tensor, A: Tensor) -> None:
    if x is not None and x.shape != shape:
        raise ValueError(
            f"{name} must be {tuple(shape)} to fit u {tuple(u.shape)} and A {tuple(A.shape)}, got {tuple(x.shape)}"
        )


def _check_groups(groups: set[int], B: Tensor, C: Tensor, n_channels: int) -> None:
    if len(groups) > 1 or any(g < 1 or n_channels % g for g in groups):
        raise ValueError(
            f"B {tuple(B.shape)} and C {tuple(C.shape)} must have one number of groups, one that divides the "
            f"{n_channels} channels"
        )


def _check_step(state, u, delta, A, B, C, D, z, delta_bias) -> checks.Conversions:
    """Check the tensors of a step; return what has to be converted."""
    if u.dim() != 2 or A.dim() != 2:
        raise ValueError(f"u must be (B, D) and A (D, N); got {tuple(u.shape)} and {tuple(A.shape)}")
    n_batch, n_channels = u.shape
    n_state = A.shape[1]
    checks.check_device("u", u, state=state, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    _check_common(u, A, D, delta_bias)
    for name, x, shape in (
        ("state", state, (n_batch, n_channels, n_state)),
        ("delta", delta, u.shape),
        ("z", z, u.shape),
    ):
        _check(name, x, shape, u, A)
    for name, x in (("B", B), ("C", C)):
        if x.dim() not in (2, 3) or x.shape[0] != n_batch or x.shape[-1] != n_state:
            raise ValueError(
                f"{name} must be ({n_batch}, {n_state}) or ({n_batch}, groups, {n_state}), got {tuple(x.shape)}"
            )
    _check_groups({1 if x.dim() == 2 else x.shape[1] for x in (B, C)}, B, C, n_channels)
    dtype = checks.arithmetic_dtype(u, delta, A, B, C, D, z, delta_bias)
    if state.dtype != dtype:
        raise TypeError(f"state must be {dtype}, the dtype of the arithmetic, got {state.dtype}")
    return checks.conversions((state, u, delta, A, B, C, D, z, delta_bias), dtype, rows=(1, 2, 4, 5, 7))

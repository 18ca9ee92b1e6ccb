"""The kernels of GPUs, in Triton: allocates results and launches, with the signatures of `cpu`.

Nothing here touches autograd. Half-precision tensors are widened inside the kernels; what is computed in float64 is
left to the reference. Results are bitwise reproducible: programs write their own memory, and sums over programs are
taken in one order.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

from typing import Any

import torch
import triton
from torch import Tensor

from ssmseq_kernels import triton_common as common
from ssmseq_kernels import triton_scan as scans
from ssmseq_kernels import triton_scan_backward as adjoints
from ssmseq_kernels.reference import selective_scan_reference
from ssmseq_kernels.results import contiguous, empty_gradients, kept_shape, settle_empty
from ssmseq_kernels.triton_common import CHUNK
from ssmseq_kernels.triton_conv import conv_backward, conv_forward, conv_update
from ssmseq_kernels.triton_update import update, update_checked

__all__ = [
    "CHUNK",
    "backward",
    "backward_pair",
    "conv_backward",
    "conv_forward",
    "conv_update",
    "forward",
    "forward_pair",
    "update",
    "update_checked",
]
WIDEST_STEP = 1 << 24  # elements between two steps; kernels multiply them by the steps of a chunk in 32 bits
WORTH_WIDENING = 1 << 24  # elements of u times states
_STRIDED = (0, 1, 6, 2, 3, 4, 8, 9)  # u, delta, z, A, B, C, initial_state, seq_idx: as the kernels take their strides


class Scans:
    """One scan, or two of one shape in opposite directions, as the kernels take them.

    Parameters
    ----------
    tensors : list of list
        The ten tensors of each scan.
    softplus : bool
    direction : int
        0 from the start, 1 from the end, 2 the first scan from the start and the second from the end.
    tiles : dict
        The table of tiles to look up.
    """

    def __init__(self, tensors: list[list[Any]], softplus: bool, direction: int, tiles: dict):
        u, _, A, B, C, D, z, bias, state, seq = self.first = tensors[0]
        self.all, self.direction = tensors, direction
        self.n_batch, self.length, self.n_channels = u.shape
        self.n_state = A.shape[1]
        groups = next((x.shape[2] for x in (B, C) if x.dim() == 4), 1)
        self.per_group = self.n_channels // groups
        self.tile = common.tile_of(self.n_state, tiles)
        self.blocks = triton.cdiv(self.per_group, self.tile.channels)
        self.rows = self.n_batch * groups * self.blocks * len(tensors)
        self.parts, self.part_steps = common.cut(self.length, self.rows)
        self.options = common.options(self.tile.warps)
        self.flags = {
            "DIRECTION": direction,
            "SOFTPLUS": softplus,
            "CONST_B": B.dim() == 2,
            "HAS_BIAS": bias is not None,
            "HAS_SEQ": seq is not None,
            "FULL": self.per_group % self.tile.channels == 0,
            "ALL": self.n_state == self.tile.states,
            "STATES": self.tile.states,
            "CHANNELS": self.tile.channels,
            "UNROLL": self.tile.unroll,
        }
        self.more = {"CONST_C": C.dim() == 2, "HAS_D": D is not None, "HAS_Z": z is not None}
        self.strides = tuple(_strides(self.first[i]) for i in _STRIDED)

    def pointers(self, *results: tuple[Tensor, ...]) -> tuple[tuple, tuple]:
        """Tensors of the first and of the last scan with those the kernel writes; something valid for what is None."""
        both = [
            tuple(x if x is not None else own[0] for x in (*own, *others))
            for own, others in zip(self.all, results, strict=True)
        ]
        return both[0], both[-1]

    def shape(self) -> tuple[int, ...]:
        """Return the numbers that all kernels of the scan take."""
        sizes = (self.length, self.n_channels, self.n_state, self.blocks, self.per_group)
        return (*sizes, self.parts, self.part_steps, 0)

    def link(self, pointers, carry: int, edges: list[Tensor | None], adjoint: bool) -> None:
        """Turn what the parts hand on, at place `carry` of the pointers, into what they receive."""
        pairs = [tuple(p[i] for p in pointers) for i in (carry, carry + 1, 2)]
        given = edges[0] is not None
        ends = tuple(edges) if given else pairs[2]
        blocks = triton.cdiv(self.n_channels, self.tile.channels)
        scans.link_kernel[(self.n_batch * blocks * len(self.all),)](
            *pairs,
            (ends[0], ends[-1]),
            self.first[2].stride(),
            _strides(edges[0]) if given else (0, 0, 0),
            self.n_channels,
            self.n_state,
            self.parts,
            DIRECTION=self.direction,
            HAS_EDGE=given,
            ADJOINT=adjoint,
            STATES=self.tile.states,
            CHANNELS=self.tile.channels,
            **self.options,
        )

    def carries(self) -> list[tuple[Tensor, Tensor]]:
        """Room for what parts hand on: states, and sums of steps; nothing where time is not cut."""
        A, parts = self.first[2], self.parts if self.parts > 1 else 0
        shapes = (self.n_batch, parts, self.n_state, self.n_channels), (self.n_batch, parts, 2, self.n_channels)
        return [(A.new_empty(shapes[0]), A.new_empty(shapes[1])) for _ in self.all]


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """Strides, filled up to four; zeros for what is not there."""
    own = () if x is None else x.stride()
    return (*own, *(0,) * (4 - len(own)))


def _alike(first: tuple, second: tuple) -> bool:
    """Whether one launch can serve both: the same tensors given, of one shape, dtype and layout."""

    def kind(x: Tensor | None):
        return None if x is None else (x.shape, x.dtype, x.stride())

    return all(kind(a) == kind(b) for a, b in zip(first, second, strict=True))


def _check_steps(**tensors: Tensor | None) -> None:
    """Refuse tensors whose steps lie so far apart that kernels could not count a chunk of them in 32 bits."""
    for name, x in tensors.items():
        if x is not None and x.dim() > 1 and x.stride(1) >= WIDEST_STEP:
            raise ValueError(
                f"{name} has {x.stride(1)} elements between two steps, the Triton scan takes fewer than "
                f"{WIDEST_STEP}: make it contiguous"
            )


def _prepared(tensors: tuple) -> list[Any]:
    """The tensors of a scan as the kernels take them.

    Weights per channel become contiguous. B and C, which every thread of a program widens for itself, are widened
    once where the scan is long enough to make up for two more launches.
    """
    u, delta, A, B, C, D, z, bias, state, seq = tensors
    _check_steps(u=u, delta=delta, z=z, B=B, C=C, seq_idx=seq)
    D, bias = contiguous(D, bias)
    if u.numel() * A.shape[1] >= WORTH_WIDENING:
        B, C = B.float(), C.float()
    return [u, delta, A, B, C, D, z, bias, state, seq]


def _forward(tensors: list[tuple], softplus: bool, direction: int, return_state: bool, keep: bool) -> list[tuple]:
    results = []
    for u, _, A, *_ in tensors:
        final = A.new_empty((u.shape[0], u.shape[2], A.shape[1]) if return_state else (0,))
        results.append((torch.empty_like(u), final, A.new_empty(kept_shape(u, A, keep, CHUNK))))
    if not tensors[0][0].numel():
        for own, (_, final, _) in zip(tensors, results, strict=True):
            if return_state:
                final.zero_() if own[8] is None else final.copy_(own[8])
        return results
    scan = Scans([_prepared(x) for x in tensors], softplus, direction, common.FORWARD_TILES)
    pointers = scan.pointers(*((*r, *c) for r, c in zip(results, scan.carries(), strict=True)))
    if scan.parts > 1:
        grid = (scan.rows * (scan.parts - 1),)
        scans.ends_kernel[grid](*pointers, scan.strides, *scan.shape(), **scan.flags, **scan.options)
        scan.link(pointers, 13, [x[8] for x in tensors], False)
    scans.forward_kernel[(scan.rows * scan.parts,)](
        *pointers,
        scan.strides,
        results[0][0].stride(),
        *scan.shape(),
        **scan.flags,
        **scan.more,
        HAS_STATE=tensors[0][8] is not None,
        KEEP=keep and scan.length > common.CHUNK,
        FINAL=return_state,
        LINKED=scan.parts > 1,
        **scan.options,
    )
    return results


def forward(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse, return_state, keep):
    """Return y (B, L, D), the final state (B, D, N) or an empty tensor, and the kept states."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    if A.dtype == torch.float64:
        return _forward_in_double(tensors, delta_softplus, reverse, return_state, keep)
    return _forward([tensors], delta_softplus, int(reverse), return_state, keep)[0]


def forward_pair(*args):
    """Scan the first ten tensors forward and the next ten in reverse; return both results, one after the other."""
    first, second = args[:10], args[10:20]
    softplus, return_state, keep = args[20:]
    if first[2].dtype == torch.float64 or not _alike(first, second):
        flags = (return_state, keep)
        return (*forward(*first, softplus, False, *flags), *forward(*second, softplus, True, *flags))
    results = _forward([first, second], softplus, 2, return_state, keep)
    return (*results[0], *results[1])


def _forward_in_double(tensors, softplus, reverse, return_state, keep):
    *inputs, state, seq_idx = tensors
    options: Any = {"initial_state": state, "seq_idx": seq_idx, "reverse": reverse, "delta_softplus": softplus}
    with torch.no_grad():
        y, final = selective_scan_reference(*inputs, **options)
    u, A = tensors[0], tensors[2]
    laid = torch.empty_like(u).copy_(y)
    final = final.clone() if return_state else A.new_empty(0)
    return laid, final, A.new_zeros(kept_shape(u, A, keep, CHUNK))


class Partials:
    """Sums of one scan's gradients over parts of the work, to be added up.

    Parameters
    ----------
    scan : Scans
    tensors : list
        The ten tensors.
    grads : tuple of Tensor
        Where the sums go in the end, as `empty_gradients` returns them.
    """

    def __init__(self, scan: Scans, tensors: list[Any], grads: tuple[Tensor, ...]):
        A, B, C = tensors[2:5]
        self.grads, self.pieces = grads, scan.n_batch * scan.parts
        self.dA = A.new_zeros(self.pieces, scan.n_state, scan.n_channels)
        self.vectors = A.new_empty(self.pieces, 2, scan.n_channels)
        self.mixers = []
        for x, grad in ((B, grads[3]), (C, grads[4])):
            if x.dim() == 2:
                self.mixers.append(torch.zeros_like(self.dA))
            elif scan.blocks == 1 and grad.dtype == torch.float32:
                self.mixers.append(grad)
            else:
                self.mixers.append(A.new_empty(scan.blocks, *x.shape))

    def add_up(self) -> None:
        """Sum over parts, those over batch and time in double."""
        _, _, dA, dB, dC, dD, _, dbias, _ = self.grads
        dA.copy_(self.dA.sum(0, dtype=torch.float64).T)
        for result, partial in zip((dB, dC), self.mixers, strict=True):
            if result.dim() == 2:
                result.copy_(partial.sum(0, dtype=torch.float64).T)
            elif partial is not result:
                result.copy_(partial.sum(0))
        if dD.numel() or dbias.numel():
            total = self.vectors.sum(0, dtype=torch.float64)
            for result, value in zip((dD, dbias), total, strict=True):
                if result.numel():
                    result.copy_(value)


def _backward(scans_: list[tuple], softplus: bool, direction: int) -> list[tuple[Tensor, ...]]:
    """Gradients of one scan or of a pair; each scan is the gradients of y and state, ten tensors, and kept states."""
    tensors = [x[2:12] for x in scans_]
    results = [empty_gradients(*x) for x in tensors]
    if not tensors[0][0].numel():
        for (_, grad_state, *_), own, grads in zip(scans_, tensors, results, strict=True):
            settle_empty(grads, grad_state, own[8] is not None)
        return results
    tensors = [_prepared(x) for x in tensors]
    _check_steps(grad_y=scans_[0][0])
    scan = Scans(tensors, softplus, direction, common.BACKWARD_TILES)
    partials = [Partials(scan, own, grads) for own, grads in zip(tensors, results, strict=True)]
    pointers = _backward_pointers(scan, scans_, results, partials)
    edges = [x[1] for x in scans_]
    sg = scans_[0][0].stride()
    if scan.parts > 1:
        more = scan.flags | {k: scan.more[k] for k in ("CONST_C", "HAS_Z")}
        grid = (scan.rows * (scan.parts - 1),)
        adjoints.adjoint_ends_kernel[grid](*pointers, scan.strides, sg, *scan.shape(), **more, **scan.options)
        scan.link(pointers, 13, edges, True)
    _launch_backward(scan, pointers, (sg, *(_strides(x) for x in (edges[0], *(results[0][i] for i in (0, 1, 6, 8))))))
    for partial in partials:
        partial.add_up()
    return results


def _backward_pointers(scan, scans_, results, partials):
    written = []
    for given, grads, partial, carry in zip(scans_, results, partials, scan.carries(), strict=True):
        du, ddelta, _, _, _, _, dz, _, dstate = grads
        sums = (partial.dA, *partial.mixers, partial.vectors)
        written.append((*given[:2], given[12], *carry, du, ddelta, dz, dstate, *sums))
    return scan.pointers(*written)


def _launch_backward(scan, pointers, result_strides):
    tile = scan.tile
    room = common.CHUNK // tile.unroll * tile.states * tile.channels
    pieces = scan.rows * scan.parts
    programs = max(min(pieces, common.SCRATCH // (4 * room)), 1)
    adjoints.backward_kernel[(programs,)](
        *pointers,
        scan.strides,
        result_strides,
        scan.first[2].new_empty(programs * room),
        pieces,
        scan.n_batch,
        *scan.shape(),
        **scan.flags,
        **scan.more,
        HAS_STATE=scan.first[8] is not None,
        HAS_EDGE=any(result_strides[1]),
        LINKED=scan.parts > 1,
        **scan.options,
    )


def backward(*args):
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; empty where not wanted.

    Takes the gradients of y and of the final state (or None), the ten tensors, the kept states, and two flags.
    """
    *given, softplus, reverse = args
    if args[4].dtype == torch.float64:
        return _backward_in_double(given, softplus, reverse)
    return _backward([tuple(given)], softplus, int(reverse))[0]


def backward_pair(*args):
    """Return the gradients of both scans, one after the other: twice the arguments of `backward`, less the flags."""
    first, second, softplus = args[:13], args[13:26], args[26]
    if first[4].dtype == torch.float64 or not _alike(first, second):
        return (*backward(*first, softplus, False), *backward(*second, softplus, True))
    results = _backward([first, second], softplus, 2)
    return (*results[0], *results[1])


def _backward_in_double(given, softplus, reverse):
    grad_y, grad_state, *tensors, _ = given
    *inputs, seq_idx = [x if i == 9 or x is None else x.detach().requires_grad_() for i, x in enumerate(tensors)]
    options: Any = {"delta_softplus": softplus, "initial_state": inputs[8], "seq_idx": seq_idx, "reverse": reverse}
    with torch.enable_grad():
        y, final = selective_scan_reference(*inputs[:8], **options)
    outputs, grads = ([y], [grad_y]) if grad_state is None else ([y, final], [grad_y, grad_state])
    leaves = [x for x in inputs if x is not None]
    found = iter(torch.autograd.grad(outputs, leaves, grads, materialize_grads=True))
    results = empty_gradients(*tensors)
    for result, leaf in zip(results, inputs, strict=True):
        if leaf is not None:
            result.copy_(next(found))
    return results

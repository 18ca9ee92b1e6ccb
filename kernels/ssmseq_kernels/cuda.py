"""The kernels of GPUs, in Triton: allocates results and launches, with the signatures of `cpu`.

Nothing here touches autograd. Half-precision tensors are widened inside the kernels; what is computed in float64 is
left to the reference. Results are bitwise reproducible: programs write their own memory, and sums over programs are
taken in one order.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmseq_kernels import triton_common as common
from ssmseq_kernels import triton_scan as scans
from ssmseq_kernels import triton_scan_backward as adjoints
from ssmseq_kernels.reference import selective_scan_reference
from ssmseq_kernels.results import contiguous, empty_gradients, kept_shape, settle_empty
from ssmseq_kernels.triton_common import CHUNK, Constants, constants
from ssmseq_kernels.triton_conv import conv_backward, conv_forward, conv_update
from ssmseq_kernels.triton_replay import Replayed, replayed
from ssmseq_kernels.triton_update import update_checked, update_heads

__all__ = [
    "CHUNK",
    "backward",
    "backward_pair",
    "conv_backward",
    "conv_forward",
    "conv_update",
    "forward",
    "forward_pair",
    "replayed",
    "update_checked",
    "update_heads",
]
WIDEST_STEP = 1 << 24  # elements between two steps; kernels multiply them by the steps of a chunk in 32 bits
WORTH_WIDENING = 1 << 24  # elements of u times states
TOTALS = 256  # elements of a program that adds up gradients
_NOTHING = (0, 0, 0)  # strides of what is not there


def check_steps(strides) -> None:
    """Refuse tensors whose steps lie so far apart that kernels could not count a chunk of them in 32 bits."""
    widest = max([x[1] for x in strides])
    if widest >= WIDEST_STEP:
        raise ValueError(
            f"a tensor of the scan has {widest} elements between two steps, the Triton kernels take fewer than "
            f"{WIDEST_STEP}: make it contiguous"
        )


class Plan(NamedTuple):
    """How scans of one kind are laid over programs: what their launches take beside tensors and strides."""

    tile: common.Tile
    blocks: int
    rows: int
    parts: int
    numbers: tuple[int, ...]
    walk: Constants  # of kernels that walk through time
    full: Constants  # of those that find results

    @property
    def programs(self) -> int:
        """Programs of a launch over all parts."""
        return self.rows * self.parts


@lru_cache(maxsize=common.MOST_KINDS)
def _plan(sizes, given, constant, softplus: bool, direction: int, adjoint: bool, more: tuple, *_limits: int) -> Plan:
    n_batch, length, n_channels, n_state, groups = sizes
    constant_B, constant_C = constant
    tile = common.tile_of(n_state, common.BACKWARD_TILES if adjoint else common.FORWARD_TILES)
    per_group = n_channels // groups
    blocks = common.ceil_div(per_group, tile.channels)
    rows = n_batch * groups * blocks * (2 if direction == 2 else 1)
    parts, part_steps = common.cut(length, rows)
    walk = {
        "DIRECTION": direction,
        "SOFTPLUS": softplus,
        "CONST_B": constant_B,
        "HAS_BIAS": given[7],
        "HAS_SEQ": given[9],
        "FULL": per_group % tile.channels == 0,
        "ALL": n_state == tile.states,
        "STATES": tile.states,
        "CHANNELS": tile.channels,
        "UNROLL": tile.unroll,
    }
    of_output = {"CONST_C": constant_C, "HAS_Z": given[6]}
    full = walk | of_output | {"HAS_D": given[5], "HAS_STATE": given[8], "LINKED": parts > 1} | dict(more)
    numbers = (length, n_channels, n_state, blocks, per_group, parts, part_steps, 0)
    walk = walk | of_output if adjoint else walk
    return Plan(tile, blocks, rows, parts, numbers, constants(tile.warps, **walk), constants(tile.warps, **full))


class Scans:
    """One scan, or two of one shape in opposite directions, as the kernels take them.

    Parameters
    ----------
    tensors : list of list
        The ten tensors of each scan.
    softplus : bool
    direction : int
        0 from the start, 1 from the end, 2 the first scan from the start and the second from the end.
    adjoint : bool
        Whether they are walked backwards.
    **more : bool
        What else the kernel of the results is compiled for.
    """

    def __init__(self, tensors: list[list[Any]], softplus: bool, direction: int, adjoint: bool, **more: bool):
        u, _, A, B, C, _, z, _, state, seq = self.first = tensors[0]
        self.all, self.direction = tensors, direction
        self.n_batch, self.length, self.n_channels = u.shape
        constant = (B.dim() == 2, C.dim() == 2)
        groups = 1 if all(constant) else (C if constant[0] else B).shape[2]
        given = tuple([x is not None for x in self.first])
        sizes = (*u.shape, A.shape[1], groups)
        limits = (common.LONGEST_UNCUT, common.PROGRAMS_WANTED)
        self.plan = _plan(sizes, given, constant, softplus, direction, adjoint, tuple(more.items()), *limits)
        rows = [x.stride() if x is not None else _NOTHING for x in (u, self.first[1], z)]
        mixers = [_strides(x) if fixed else x.stride() for x, fixed in zip((B, C), constant, strict=True)]
        others = [x.stride() if x is not None else _NOTHING for x in (state, seq)]
        self.strides = (*rows, A.stride(), *mixers, *others)
        check_steps(self.strides)

    def pointers(self, *results: tuple[Tensor, ...]) -> tuple[tuple, tuple]:
        """Tensors of both scans with those the kernel writes; something valid for what is None, or for no second."""
        both = [
            tuple([own[0] if x is None else x for x in (*own, *others)])
            for own, others in zip(self.all, results, strict=True)
        ]
        return both[0], both[1] if self.direction == 2 else both[0][:1]

    def link(self, pointers, carry: int, edges: list[Tensor | None], adjoint: bool) -> None:
        """Turn what the parts hand on, at place `carry` of the pointers, into what they receive."""
        both = [
            (*own[carry : carry + 2], own[2], own[2] if edge is None else edge)
            for own, edge in zip(pointers[: len(edges)], edges, strict=True)
        ]
        tile = self.plan.tile
        edge = _NOTHING if edges[0] is None else edges[0].stride()
        given = {"DIRECTION": self.direction, "HAS_EDGE": edges[0] is not None, "ADJOINT": adjoint}
        scans.link_kernel.launch(
            self.n_batch * common.ceil_div(self.n_channels, tile.channels) * len(self.all),
            (both[0], both[1] if self.direction == 2 else both[0][:1]),
            (self.first[2].stride(), edge, self.n_channels, self.plan.numbers[2], self.plan.parts),
            constants(tile.warps, **given, STATES=tile.states, CHANNELS=tile.channels),
        )

    def carries(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """Room for what parts hand on: states, and sums of steps; nothing where time is not cut."""
        if self.plan.parts == 1:
            return [(None, None)] * len(self.all)
        A, rows = self.first[2], (self.n_batch, self.plan.parts)
        shapes = (*rows, A.shape[1], self.n_channels), (*rows, 2, self.n_channels)
        return [(A.new_empty(shapes[0]), A.new_empty(shapes[1])) for _ in self.all]


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """Strides, filled up to four; zeros for what is not there."""
    own = () if x is None else x.stride()
    return (*own, *(0,) * (4 - len(own)))


def _alike(first: tuple, second: tuple) -> bool:
    """Whether one launch can serve both: the same tensors given, of one shape, dtype and layout."""
    for a, b in zip(first, second, strict=True):
        if a is b:
            continue
        if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape or a.stride() != b.stride():
            return False
    return True


def _prepared(tensors: tuple) -> list[Any]:
    """The tensors of a scan as the kernels take them.

    Weights per channel become contiguous. B and C, which every thread of a program widens for itself, are widened
    once where the scan is long enough to make up for two more launches.
    """
    u, delta, A, B, C, D, z, bias, state, seq = tensors
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
    keep = keep and tensors[0][0].shape[1] > CHUNK
    scan = Scans([_prepared(x) for x in tensors], softplus, direction, False, KEEP=keep, FINAL=return_state)
    plan = scan.plan
    pointers = scan.pointers(*((*r, *c) for r, c in zip(results, scan.carries(), strict=True)))
    if plan.parts > 1:
        programs = plan.rows * (plan.parts - 1)
        scans.ends_kernel.launch(programs, pointers, (scan.strides, *plan.numbers), plan.walk)
        scan.link(pointers, 13, [x[8] for x in tensors], False)
    numbers = (scan.strides, results[0][0].stride(), *plan.numbers)
    scans.forward_kernel.launch(plan.programs, pointers, numbers, plan.full)
    return results


@Replayed
def forward(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, delta_softplus, reverse, return_state, keep):
    """Return y (B, L, D), the final state (B, D, N) or an empty tensor, and the kept states."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    if A.dtype == torch.float64:
        return _forward_in_double(tensors, delta_softplus, reverse, return_state, keep)
    return _forward([tensors], delta_softplus, int(reverse), return_state, keep)[0]


@Replayed
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
        self.grads, self.pieces = grads, scan.n_batch * scan.plan.parts
        rates = (self.pieces, A.shape[1], scan.n_channels)
        self.dA, self.vectors = A.new_empty(rates), A.new_empty(self.pieces, 2, scan.n_channels)
        self.mixers, self.to_sum = [], []
        for x, grad in ((B, grads[3]), (C, grads[4])):
            changing = x.dim() == 4
            found = changing and scan.plan.blocks == 1 and grad.dtype == torch.float32
            self.mixers.append(grad if found else A.new_empty((scan.plan.blocks, *x.shape) if changing else rates))
            self.to_sum.append(changing and not found)


def _add_up(scan: Scans, partials: list[Partials]) -> None:
    """Sum over parts, in double and in one launch."""
    first = partials[0]
    pointers = [
        tuple([x if x.numel() else own.dA for x in (own.dA, *own.mixers, own.vectors, *own.grads[2:6], own.grads[7])])
        for own in partials
    ]
    _, _, _, B, C, D, _, bias, _, _ = scan.first
    n_mixed = [x.numel() for x, summed in zip((B, C), first.to_sum, strict=True) if summed]
    sizes = (*first.dA.shape[2:], first.dA.shape[1], first.pieces, scan.plan.blocks, max(n_mixed, default=0))
    named = constants(
        4,
        PAIR=len(partials) == 2,
        HAS_D=D is not None,
        HAS_BIAS=bias is not None,
        CONST_B=B.dim() == 2,
        CONST_C=C.dim() == 2,
        SUM_B=first.to_sum[0],
        SUM_C=first.to_sum[1],
        PIECES=8,
        BLOCK=TOTALS,
    )
    most = max(first.dA.shape[1] * scan.n_channels, 2 * scan.n_channels, *n_mixed)
    programs = common.ceil_div(most, TOTALS) * len(partials)
    second = pointers[1] if len(pointers) == 2 else pointers[0][:1]
    adjoints.total_kernel.launch(programs, (pointers[0], second), sizes, named)


def _backward(scans_: list[tuple], softplus: bool, direction: int) -> list[tuple[Tensor, ...]]:
    """Gradients of one scan or of a pair; each scan is the gradients of y and state, ten tensors, and kept states."""
    tensors = [x[2:12] for x in scans_]
    results = [empty_gradients(*x) for x in tensors]
    if not tensors[0][0].numel():
        for (_, grad_state, *_), own, grads in zip(scans_, tensors, results, strict=True):
            settle_empty(grads, grad_state, own[8] is not None)
        return results
    tensors = [_prepared(x) for x in tensors]
    scan = Scans(tensors, softplus, direction, True, HAS_EDGE=scans_[0][1] is not None)
    plan = scan.plan
    partials = [Partials(scan, own, grads) for own, grads in zip(tensors, results, strict=True)]
    pointers = _backward_pointers(scan, scans_, results, partials)
    edges = [x[1] for x in scans_]
    sg = scans_[0][0].stride()
    check_steps([sg])
    if plan.parts > 1:
        programs = plan.rows * (plan.parts - 1)
        adjoints.adjoint_ends_kernel.launch(programs, pointers, (scan.strides, sg, *plan.numbers), plan.walk)
        scan.link(pointers, 13, edges, True)
    _launch_backward(scan, pointers, (sg, *(_strides(x) for x in (edges[0], *(results[0][i] for i in (0, 1, 6, 8))))))
    _add_up(scan, partials)
    return results


def _backward_pointers(scan, scans_, results, partials):
    written = []
    for given, grads, partial, carry in zip(scans_, results, partials, scan.carries(), strict=True):
        du, ddelta, _, _, _, _, dz, _, dstate = grads
        sums = (partial.dA, *partial.mixers, partial.vectors)
        written.append((*given[:2], given[12], *carry, du, ddelta, dz, dstate, *sums))
    return scan.pointers(*written)


def _launch_backward(scan, pointers, result_strides):
    plan = scan.plan
    room = common.CHUNK // plan.tile.unroll * plan.tile.states * plan.tile.channels
    programs = max(min(plan.programs, common.SCRATCH // (4 * room)), 1)
    scratch = scan.first[2].new_empty(programs * room)
    numbers = (scan.strides, result_strides, plan.programs, scan.n_batch, *plan.numbers)
    adjoints.backward_kernel.launch(programs, (*pointers, (scratch,)), numbers, plan.full)


@Replayed
def backward(*args):
    """Return the gradients of u, delta, A, B, C, D, z, delta_bias and initial_state; empty where not wanted.

    Takes the gradients of y and of the final state (or None), the ten tensors, the kept states, and two flags.
    """
    *given, softplus, reverse = args
    if args[4].dtype == torch.float64:
        return _backward_in_double(given, softplus, reverse)
    return _backward([tuple(given)], softplus, int(reverse))[0]


@Replayed
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

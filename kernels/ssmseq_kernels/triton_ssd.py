"""Mamba-2's scan (SSD) in Triton: chunks of time as matrix products on tensor cores.

Time is cut into chunks. One kernel finds what each chunk adds to the state, one hands states from chunk to chunk, and
one makes y from the steps of the chunk and the state that enters it. The adjoint of the state goes the same way back
through the same two kernels; `triton_ssd_backward` turns both into gradients. Only the inputs are kept for it.

Decays are exponentials of differences of sums over time. The sums come in double; a kernel splits them into a high and
a low part in float32, so that what is lost in their rounding is not lost in their differences. Chunks lie on the time
axis whatever the direction: a scan from the end turns masks and the order of chunks around, and moves nothing.

bfloat16 is multiplied as it is and summed in float32. float16 goes through TF32, which has its mantissa and a range
that decayed weights and states fit. float32 is multiplied in float32.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
# The language of the kernels is not the Python that a type checker knows.

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import LOG2E, ceil_div
from ssmseq_kernels.triton_ssd_forward import output_kernel, pass_kernel, states_kernel

SMALLEST = 16  # sides of the matrices that tensor cores take


class Tiles(NamedTuple):
    """How a scan is cut: steps of a chunk and of a tile of one, forward and backward; and what a program takes.

    That is, for each kernel, the largest block of channels, of states, and warps.
    """

    chunk: int
    tile: int
    chunk_backward: int
    added: tuple[int, int, int]
    output: tuple[int, int, int]
    head: tuple[int, int, int]
    group: tuple[int, int, int]


HALVES = Tiles(128, 64, 64, (64, 128, 4), (64, 64, 4), (64, 64, 8), (64, 64, 8))
# Where tensor cores read registers, a program takes less at a time.
SMALL_HALVES = HALVES._replace(head=(32, 32, 8), group=(32, 32, 8))
FLOAT16 = HALVES._replace(head=(16, 16, 8), group=(32, 32, 8))  # in TF32, of twice the size
# Without tensor cores a thread holds all it multiplies: what is summed over is cut into short pieces.
WIDE = Tiles(128, 32, 32, (32, 32, 4), (32, 16, 4), (16, 16, 4), (16, 16, 4))


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    numbers: Tensor | None,
    reverse: bool,
    want_final: bool,
) -> tuple[Tensor, Tensor | None]:
    """Scan with one decay rate per head, and step sizes as they are; differentiable once.

    Bitwise reproducible: programs write their own memory, and sums are taken in one order.

    Parameters
    ----------
    x : Tensor (B, L, H, P), float32, float16 or bfloat16
    dt : Tensor (B, L, H)
        Step sizes.
    A : Tensor (H,)
    B, C : Tensor (B, L, G, N)
    initial_state : Tensor (B, H, P, N) or None
    numbers : Tensor (B, L) of integers, or None
        Sequence that each step belongs to; no number may come back in a row after another one.
    reverse : bool
        Scan from the last step to the first.
    want_final : bool
        Also find the state after the last step.

    Returns
    -------
    y : Tensor (B, L, H, P)
        In the dtype of `x`.
    final_state : Tensor (B, H, P, N), float32, or None

    Raises
    ------
    TypeError
        If a tensor is float64.

    References
    ----------
    Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
    """
    if any(t is not None and t.dtype == torch.float64 for t in (x, dt, A, B, C, initial_state)):
        raise TypeError("the Triton kernels of ssd_scan compute in float32: float64 is left to torch's operators")
    if not x.numel() or not B.shape[3]:
        final = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32)
        final = final if initial_state is None else final + initial_state
        return torch.zeros_like(x), final if want_final else None
    return _Scan.apply(x, dt, A, B, C, initial_state, numbers, reverse, want_final)


def sums_of(dt: Tensor, A: Tensor, chunk: int, reverse: bool) -> Tensor:
    """Sums of dt A log2(e) within each chunk, up to and with each step in the order of the scan: (B, H, chunks, Q)."""
    steps = (dt.double() * (A.double() * LOG2E.value)).transpose(1, 2)
    steps = F.pad(steps, (0, -steps.shape[2] % chunk)).unflatten(2, (-1, chunk))
    return (steps.flip(3).cumsum(3).flip(3) if reverse else steps.cumsum(3)).contiguous()


class Chunks:
    """A scan as the kernels take it.

    Parameters
    ----------
    x, dt, A, B, C : Tensor
    state : Tensor or None
        What the scan starts from.
    numbers : Tensor or None
    reverse : bool
    final : bool
        Whether the state after the last step is found.
    backward : bool
        Whether the gradients are found.
    """

    def __init__(self, x, dt, A, B, C, state, numbers, reverse: bool, final: bool, backward: bool = False):
        self.x, self.dt, self.A, self.B, self.C, self.state = x, dt, A, B, C, state
        self.n_batch, self.length, self.n_heads, self.n_dim = x.shape
        self.groups, self.n_state = B.shape[2:]
        self.tiles = tiles_of(x, B, C)
        chunk = self.tiles.chunk_backward if backward else self.tiles.chunk
        self.steps = min(chunk, max(SMALLEST, triton.next_power_of_2(self.length)))
        self.tile = min(self.tiles.tile, self.steps)
        with torch.enable_grad() if backward else torch.no_grad():
            self.sums = sums_of(dt, A, self.steps, reverse)
        self.n_chunks = self.sums.shape[2]
        self.pieces = self.n_batch * self.n_chunks * self.n_heads
        self.numbers = dt if numbers is None else numbers
        self.number_strides = (0, 0) if numbers is None else numbers.stride()
        self.linked = self.n_chunks > 1 or state is not None or final
        self.order = {"HAS_SEQ": numbers is not None, "REVERSE": reverse, "Q": self.steps}
        self.exact = not in_halves(x, B, C)
        half = {x.dtype, B.dtype, C.dtype} == {torch.bfloat16}
        half = half and not common.INTERPRETED  # which has no arithmetic in bfloat16
        precision = "ieee" if self.exact or torch.version.hip else "tf32"
        self.kind = {"KIND": tl.bfloat16 if half else tl.float32, "PRECISION": precision}
        self.state_dtype = torch.bfloat16 if half else torch.float32

    def sizes(self) -> tuple[int, ...]:
        """Return the numbers that the kernels of a chunk take."""
        heads = self.n_heads // self.groups
        return (self.length, self.n_chunks, self.n_heads, self.n_dim, self.n_state, heads)

    def entering(self, values: Tensor, mixers: Tensor, edge: Tensor | None, adjoint: bool, final: bool):
        """States that enter each chunk and the last one; adjoints if so, of the state that leaves each chunk."""
        most_dims, most_states, warps = self.tiles.added
        dims, states = block(self.n_dim, most_dims), block(self.n_state, most_states)
        added = self.sums.new_empty(self.pieces, self.n_dim, self.n_state, dtype=torch.float32)
        blocks = ceil_div(self.n_dim, dims) * ceil_div(self.n_state, states)
        strides = (values.stride(), mixers.stride(), self.dt.stride(), self.number_strides)
        tile = {"T": self.tile, "DIMS": dims, "STATES": states}
        states_kernel.launch(
            self.pieces * blocks,
            (values, mixers, self.dt, self.sums, self.numbers, added),
            (*strides, *self.sizes()),
            common.constants(warps, ADJOINT=adjoint, **self.order, **self.kind, **tile),
        )
        given = edge is not None
        shape = (self.n_batch, self.n_heads, self.n_dim, self.n_state) if final else (0,)
        last = added.new_empty(shape)
        entering = added if self.state_dtype == torch.float32 else torch.empty_like(added, dtype=self.state_dtype)
        size = self.n_dim * self.n_state
        width = min(512, triton.next_power_of_2(size))
        strides = (edge.stride() if given else (0, 0, 0, 0), self.number_strides)
        pass_kernel.launch(
            self.n_batch * self.n_heads * ceil_div(size, width),
            (added, entering, edge if given else added, last, self.sums, self.numbers),
            (*strides, self.length, self.n_chunks, self.n_heads, self.n_state, size),
            common.constants(4, ADJOINT=adjoint, HAS_EDGE=given, FINAL=final, **self.order, BLOCK=width),
        )
        return entering, last

    def forward(self, final: bool) -> tuple[Tensor, Tensor | None]:
        """Return y and, if wanted, the state after the last step."""
        entering, last = self.sums, None
        if self.linked:
            entering, last = self.entering(self.x, self.B, self.state, False, final)
        y = torch.empty_like(self.x)
        most_dims, most_states, warps = self.tiles.output
        dims, states = block(self.n_dim, most_dims), block(self.n_state, most_states)
        tiles = self.steps // self.tile
        given = [t.stride() for t in (self.x, self.dt, self.B, self.C)]
        named = self.order | self.kind | {"T": self.tile, "DIMS": dims, "STATES": states}
        named["ALL_STATES"] = ceil_div(self.n_state, states) * states
        output_kernel.launch(
            self.pieces * tiles * ceil_div(self.n_dim, dims),
            (self.x, self.dt, self.sums, self.B, self.C, self.numbers, entering, y),
            (*given, self.number_strides, y.stride(), *self.sizes()),
            common.constants(warps, LINKED=self.linked, EXACT=self.exact, **named),
        )
        return y, last if final else None


def block(size: int, most: int) -> int:
    """Side of a block of an axis: a power of two that tensor cores take."""
    return min(most, max(SMALLEST, triton.next_power_of_2(size)))


def in_halves(*tensors: Tensor) -> bool:
    """Whether all tensors are of a half precision."""
    return all(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)


@functools.cache
def reads_shared(device: torch.device) -> bool:
    """Whether the tensor cores of a GPU read matrices from shared memory, which leaves more registers."""
    if device.type != "cuda" or torch.version.hip:
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


def tiles_of(*tensors: Tensor) -> Tiles:
    """Look up the tiles for these tensors."""
    if not in_halves(*tensors):
        return WIDE
    if any(t.dtype == torch.float16 for t in tensors):
        return FLOAT16
    return HALVES if reads_shared(tensors[0].device) else SMALL_HALVES


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, state, numbers, reverse, final):
        ctx.save_for_backward(x, dt, A, B, C, state, numbers)
        ctx.reverse, ctx.final = reverse, final
        ctx.set_materialize_grads(False)
        return Chunks(x, dt, A, B, C, state, numbers, reverse, final).forward(final)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, grad_final):
        from ssmseq_kernels.triton_ssd_backward import gradients

        x, dt, A, *others = ctx.saved_tensors
        dt, A = dt.detach().requires_grad_(), A.detach().requires_grad_()
        scan = Chunks(x, dt, A, *others, ctx.reverse, ctx.final, backward=True)
        return (*gradients(scan, grad_y, grad_final), None, None, None)

"""Mamba-2's scan (SSD) in Triton: chunks of time as matrix products on tensor cores.

Time is cut into chunks. One kernel finds step sizes and their sums over a chunk, one what each chunk adds to the state,
one hands states from chunk to chunk, and one makes y, gated, from the steps of the chunk and the state that enters it.
The adjoint of the state goes the same way back through the same kernels; `triton_ssd_backward` turns both into
gradients. The inputs are kept for it, and y before a gate.

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
import triton.language as tl
from torch import Tensor

from ssmseq_kernels import ops
from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import ceil_div, power_of_2
from ssmseq_kernels.triton_replay import Replayed
from ssmseq_kernels.triton_ssd_forward import output_kernel, pass_kernel, states_kernel
from ssmseq_kernels.triton_ssd_steps import MOST_HEADS, WARPS, sizes_kernel

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


class Inputs(NamedTuple):
    """The tensors of a scan, float32, float16 or bfloat16; those that may be missing are None."""

    x: Tensor  # (B, L, H, P)
    dt: Tensor  # (B, L, H)
    A: Tensor  # (H,)
    B: Tensor  # (B, L, G, N)
    C: Tensor  # (B, L, G, N)
    D: Tensor | None  # (H,) or (H, P)
    z: Tensor | None  # (B, L, H, P)
    dt_bias: Tensor | None  # (H,)
    state: Tensor | None  # (B, H, P, N), what the scan starts from


class Options(NamedTuple):
    """What a scan is to do with them.

    Parameters
    ----------
    softplus : bool
    limit : tuple of float, or None
        Smallest and largest step size.
    reverse : bool
        Scan from the last step to the first.
    final : bool
        Also find the state after the last step.
    """

    softplus: bool = False
    limit: tuple[float, float] | None = None
    reverse: bool = False
    final: bool = False


def ssd_chunked(inputs: Inputs, numbers: Tensor | None, options: Options) -> tuple[Tensor, Tensor | None]:
    """Scan with one decay rate per head; differentiable once.

    Bitwise reproducible: programs write their own memory, and sums are taken in one order.

    Parameters
    ----------
    inputs : Inputs
        Neither without elements nor without states.
    numbers : Tensor (B, L) of integers, or None
        Sequence that each step belongs to; no number may come back in a row after another one.
    options : Options

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
    if any(t is not None and t.dtype == torch.float64 for t in inputs):
        raise TypeError("the Triton kernels of ssd_scan compute in float32: float64 is left to torch's operators")
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in inputs):
        return _scan(numbers, options, False, *inputs)[:2]
    return ops.applied(_Scan)(numbers, options, *inputs)


class Chunks:
    """A scan as the kernels take it, with step sizes and their sums.

    Parameters
    ----------
    inputs : Inputs
    numbers : Tensor or None
    options : Options
    backward : bool
        Whether the gradients are found.
    """

    def __init__(self, inputs: Inputs, numbers: Tensor | None, options: Options, backward: bool = False):
        x, B, C = inputs.x, inputs.B, inputs.C
        self.inputs, self.options = inputs, options
        self.n_batch, self.length, self.n_heads, self.n_dim = x.shape
        self.groups, self.n_state = B.shape[2:]
        self.tiles = tiles_of(x, B, C)
        chunk = self.tiles.chunk_backward if backward else self.tiles.chunk
        self.steps = min(chunk, max(SMALLEST, power_of_2(self.length)))
        self.tile = min(self.tiles.tile, self.steps)
        self.n_chunks = ceil_div(self.length, self.steps)
        self.pieces = self.n_batch * self.n_chunks * self.n_heads
        self.numbers = x if numbers is None else numbers
        self.number_strides = (0, 0) if numbers is None else numbers.stride()
        self.linked = self.n_chunks > 1 or inputs.state is not None or options.final
        self.order = {"HAS_SEQ": numbers is not None, "REVERSE": options.reverse, "Q": self.steps}
        self.exact = not in_halves(x, B, C)
        half = {x.dtype, B.dtype, C.dtype} == {torch.bfloat16}
        half = half and not common.INTERPRETED  # which has no arithmetic in bfloat16
        precision = "ieee" if self.exact or torch.version.hip else "tf32"
        self.kind = {"KIND": tl.bfloat16 if half else tl.float32, "PRECISION": precision}
        self.state_dtype = torch.bfloat16 if half else torch.float32
        room = (self.n_batch, self.n_heads, self.n_chunks, self.steps)
        self.sizes, self.sums = (torch.empty(room, dtype=t, device=x.device) for t in (torch.float32, torch.float64))
        dt, A, bias = self.steppers()
        self.by_steps(sizes_kernel, (dt, A, bias, self.sizes, self.sums), (dt.stride(),))

    def steppers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return dt, A and the bias of dt; another tensor where there is no bias."""
        dt, A, bias = self.inputs.dt, self.inputs.A, self.inputs.dt_bias
        return dt, A.contiguous(), A if bias is None else bias.contiguous()

    def by_steps(self, kernel: common.Kernel, tensors: tuple, strides: tuple) -> None:
        """Launch a kernel that finds step sizes."""
        heads = min(MOST_HEADS, power_of_2(self.n_heads))
        limit = self.options.limit or (0.0, 0.0)
        kernel.launch(
            self.n_batch * self.n_chunks * ceil_div(self.n_heads, heads),
            tensors,
            (*strides, self.length, self.n_chunks, self.n_heads, *limit),
            common.constants(
                WARPS,
                HAS_BIAS=self.inputs.dt_bias is not None,
                SOFTPLUS=self.options.softplus,
                LIMITED=self.options.limit is not None,
                REVERSE=self.options.reverse,
                Q=self.steps,
                HEADS=heads,
            ),
        )

    def skip(self) -> tuple[Tensor, tuple[int, ...]]:
        """Return D and its strides over heads and channels; another tensor where there is none."""
        D = self.inputs.D
        if D is None:
            return self.inputs.A, (0, 0)
        return D, D.stride() if D.dim() == 2 else (D.stride(0), 0)

    def shape(self) -> tuple[int, ...]:
        """Return the numbers that the kernels of a chunk take."""
        heads = self.n_heads // self.groups
        return (self.length, self.n_chunks, self.n_heads, self.n_dim, self.n_state, heads)

    def entering(self, values: Tensor, mixers: Tensor, edge: Tensor | None, adjoint: bool, final: bool):
        """States that enter each chunk and the last one; adjoints if so, of the state that leaves each chunk."""
        most_dims, most_states, warps = self.tiles.added
        dims, states = block(self.n_dim, most_dims), block(self.n_state, most_states)
        added = self.sums.new_empty(self.pieces, self.n_dim, self.n_state, dtype=torch.float32)
        blocks = ceil_div(self.n_dim, dims) * ceil_div(self.n_state, states)
        strides = (values.stride(), mixers.stride(), self.number_strides)
        tile = {"T": self.tile, "DIMS": dims, "STATES": states}
        states_kernel.launch(
            self.pieces * blocks,
            (values, mixers, self.sizes, self.sums, self.numbers, added),
            (*strides, *self.shape()),
            common.constants(warps, ADJOINT=adjoint, **self.order, **self.kind, **tile),
        )
        given = edge is not None
        shape = (self.n_batch, self.n_heads, self.n_dim, self.n_state) if final else (0,)
        last = added.new_empty(shape)
        entering = added if self.state_dtype == torch.float32 else torch.empty_like(added, dtype=self.state_dtype)
        size = self.n_dim * self.n_state
        width = min(512, power_of_2(size))
        strides = (edge.stride() if given else (0, 0, 0, 0), self.number_strides)
        pass_kernel.launch(
            self.n_batch * self.n_heads * ceil_div(size, width),
            (added, entering, edge if given else added, last, self.sums, self.numbers),
            (*strides, self.length, self.n_chunks, self.n_heads, self.n_state, size),
            common.constants(4, ADJOINT=adjoint, HAS_EDGE=given, FINAL=final, **self.order, BLOCK=width),
        )
        return entering, last

    def forward(self, keep: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return y, the state after the last step if it is wanted, and y before the gate if there is one to `keep`."""
        x, B, C, z = self.inputs.x, self.inputs.B, self.inputs.C, self.inputs.z
        entering, last = self.sums, None
        if self.linked:
            entering, last = self.entering(x, B, self.inputs.state, False, self.options.final)
        y = torch.empty_like(x)
        ungated = torch.empty_like(y) if keep and z is not None else None
        most_dims, most_states, warps = self.tiles.output
        dims, states = block(self.n_dim, most_dims), block(self.n_state, most_states)
        tiles = self.steps // self.tile
        D, skipping = self.skip()
        gate = x if z is None else z
        named = self.order | self.kind | {"T": self.tile, "DIMS": dims, "STATES": states}
        named |= {"HAS_D": self.inputs.D is not None, "HAS_Z": z is not None, "KEEP": ungated is not None}
        named["ALL_STATES"] = ceil_div(self.n_state, states) * states
        given = (x, self.sizes, self.sums, B, C, D, gate, self.numbers, entering, y, y if ungated is None else ungated)
        strides = (x.stride(), B.stride(), C.stride(), skipping, gate.stride(), self.number_strides, y.stride())
        output_kernel.launch(
            self.pieces * tiles * ceil_div(self.n_dim, dims),
            given,
            (*strides, *self.shape()),
            common.constants(warps, LINKED=self.linked, EXACT=self.exact, **named),
        )
        return y, last if self.options.final else None, ungated


def block(size: int, most: int) -> int:
    """Side of a block of an axis: a power of two that tensor cores take."""
    return min(most, max(SMALLEST, power_of_2(size)))


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


@Replayed
def _scan(numbers, options, keep, *tensors) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return y, the final state and what a backward pass keeps."""
    return Chunks(Inputs(*tensors), numbers, options).forward(keep)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, numbers, options, *tensors):
        y, state, ungated = _scan(numbers, options, True, *tensors)
        ctx.save_for_backward(numbers, ungated, *tensors)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, grad_final):
        from ssmseq_kernels.triton_ssd_backward import backward

        numbers, ungated, *tensors = ctx.saved_tensors
        return (None, None, *backward(numbers, ctx.options, ungated, grad_y, grad_final, *tensors))

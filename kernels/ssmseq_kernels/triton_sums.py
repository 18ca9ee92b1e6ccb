"""Sums over what programs of a kernel have each found of a gradient, in double and in one order."""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportIncompatibleMethodOverride=false
# The language of the kernels is not the Python that a type checker knows.

import triton
import triton.language as tl
from torch import Tensor

from ssmseq_kernels import triton_common as common
from ssmseq_kernels.triton_common import ceil_div, power_of_2

MOST_ROWS, TILE = 64, 4096  # numbers that a program takes at a time
WARPS = 4


@common.Kernel
@triton.jit(do_not_specialize=("count",))
def add_up_kernel(of, total, count, row, start, width, size, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum `count` rows, `width` neighbours each; every `columns` sums become a column of the result."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = e < size
    place = start + e.to(tl.int64) * width
    sums = tl.zeros([ROWS, BLOCK], tl.float64)
    for first in range(0, count * width, ROWS):
        k = first + tl.arange(0, ROWS)
        offset = (k // width).to(tl.int64) * row + k % width
        mask = (k < count * width)[:, None] & live[None, :]
        sums += tl.load(of + offset[:, None] + place[None, :], mask=mask, other=0.0).to(tl.float64)
    target = e % columns * (size // columns) + e // columns
    tl.store(total + target, tl.sum(sums, axis=0).to(total.dtype.element_ty), mask=live)


def add_up(of: Tensor, total: Tensor, *, start: int = 0, width: int = 1, turned: bool = False) -> None:
    """Sum over the first axis of a contiguous tensor, and over some neighbours, into another contiguous one.

    Parameters
    ----------
    of : Tensor (rows, ...)
    total : Tensor
        Of any dtype.
    start : int
        Where a row's first number lies that is wanted.
    width : int
        How many neighbours belong to one sum.
    turned : bool
        Whether the sums of a row are the transposed matrix of `total`.
    """
    size, count = total.numel(), of.shape[0]
    rows = min(MOST_ROWS, power_of_2(count * width))
    block = min(TILE // rows, power_of_2(size))
    numbers = (count, of.stride(0), start, width, size, total.shape[0] if turned else size)
    add_up_kernel.launch(ceil_div(size, block), (of, total), numbers, common.constants(WARPS, ROWS=rows, BLOCK=block))

"""Matrices in shared memory that products of warpgroups, `wgmma` in PTX, read where descriptors say."""

import numpy as np
from ptx_arithmetic import FaultError, numbers_of

SPANS = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes that lie side by side, by kind of swizzle
TURNS = {0: 0, 1: 7, 2: 3, 3: 1}  # how many of the bits 7 to 9 of an address are added to its bits 4 to 6


def operand(memory: np.ndarray, descriptor: int, size: int, depth: int, kind: str, turned: bool) -> np.ndarray:
    """Numbers [size, depth] of a matrix in shared memory.

    Eight rows of some bytes are a block. Rows run along the depth, or, if `turned`, along the size.
    """
    start, along, across = ((descriptor >> i & 0x3FFF) << 4 for i in (0, 16, 32))
    swizzle, itemsize = descriptor >> 62, 4 if kind == "tf32" else 2
    if descriptor >> 49 & 7:
        raise FaultError(f"descriptor {descriptor:#x} with a base offset")
    rows, columns = np.arange(size)[:, None], np.arange(depth)[None, :]
    if turned:
        rows, columns = columns, rows
    byte, span = columns * itemsize, SPANS[swizzle]
    place = start + byte % span + byte // span * along + rows % 8 * span + rows // 8 * across
    place ^= (place >> 7 & TURNS[swizzle]) << 4
    return numbers_of(memory.view(np.uint32 if itemsize == 4 else np.uint16)[place // itemsize], kind)

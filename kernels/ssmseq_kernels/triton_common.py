"""What the Triton kernels share: constants, arithmetic, and how the work is laid over programs.

Only the triton_* modules import triton. A tile of states is [N, channels] with channels side by side in memory, so that
each thread owns some states of some channels. Time is counted in the order of the scan, `start + j` with `start` a step
where a chunk begins; `when` turns `start` into a place on the time axis, and j, at most a chunk long, is multiplied by
strides in 32 bits.
"""

# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# The language of the kernels is not the Python that a type checker knows.

import threading
from functools import lru_cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver

from ssmseq_kernels.ops import OLDEST_TRITON

if tuple(int(x) for x in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
    raise ImportError(f"the GPU kernels need Triton 3.4 or newer, found {triton.__version__}: upgrade torch or triton")

CHUNK = 64  # steps between the states that a forward pass keeps for the backward pass
SCRATCH = 1 << 27  # bytes at most for the states that programs of the backward pass keep for themselves
PROGRAMS_WANTED = 1056  # two per warp scheduler of a chip of 132 multiprocessors; with fewer, time is cut into parts
LONGEST_UNCUT = 256  # steps; shorter inputs are never cut
FORWARD_POINTERS, BACKWARD_POINTERS = 15, 23  # of a scan: its ten tensors, and what `cuda` adds to them
MOST_KINDS = 4096  # kinds of launches that a kernel remembers
INTERPRETED = knobs.runtime.interpret  # Triton's interpreter runs the kernels, on the CPU
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Tile(NamedTuple):
    """How a scan is laid over programs: padded states, channels of a program, its warps, steps fetched together."""

    states: int
    channels: int
    warps: int
    unroll: int


# By padded states: channels, warps, steps whose inputs are fetched together (to wait for memory once). Forward a thread
# owns all states of a channel where they fit in its registers, and no sum over states crosses threads; backward, where
# sums over channels are as many, four states of four channels.
FORWARD_TILES = {
    1: (32, 1, 4),
    2: (32, 1, 4),
    4: (32, 1, 4),
    8: (32, 1, 4),
    16: (32, 1, 4),
    32: (32, 2, 4),
    64: (32, 4, 4),
    128: (32, 8, 2),
    256: (16, 16, 1),
}
BACKWARD_TILES = {
    1: (32, 1, 4),
    2: (32, 1, 4),
    4: (32, 1, 4),
    8: (32, 1, 2),
    16: (32, 1, 2),
    32: (32, 2, 2),
    64: (32, 4, 2),
    128: (16, 8, 2),
    256: (16, 16, 1),
}


def ceil_div(a: int, b: int) -> int:
    """Quotient rounded up; Triton's own function takes a microsecond and a half."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The next power of two, likewise."""
    return 1 << (n - 1).bit_length()


def tile_of(n_state: int, tiles: dict[int, tuple[int, int, int]]) -> Tile:
    """Look up the tile for a number of states."""
    states = power_of_2(n_state)
    if states not in tiles:
        raise ValueError(f"the Triton scan takes at most {max(tiles)} states, got {n_state}")
    return Tile(states, *tiles[states])


def cut(length: int, programs: int) -> tuple[int, int]:
    """Cut time where programs are few: number of parts, and steps of a part, a multiple of CHUNK."""
    chunks = max(ceil_div(length, CHUNK), 1)
    if length <= LONGEST_UNCUT or programs * 4 > PROGRAMS_WANTED:
        return 1, chunks * CHUNK
    per_part = ceil_div(chunks, ceil_div(PROGRAMS_WANTED, programs))
    return ceil_div(chunks, per_part), per_part * CHUNK


class Constants(dict):
    """Arguments that a kernel is compiled for, and launch options; made once, and equal to themselves only."""

    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__


@lru_cache(maxsize=MOST_KINDS, typed=True)
def constants(warps: int, **named) -> Constants:
    """Make them, or find those made before.

    Fusion of products with sums is asked for, because its default differs between versions of Triton.
    """
    return Constants(named, num_warps=warps, num_stages=1, enable_fp_fusion=True)


class Recording(threading.local):
    """Who notes the launches of this thread."""

    by: Any = None


recording = Recording()


class Kernel:
    """A Triton kernel, launched on the device of its tensors; after the first launch of a kind, without binding.

    Binding, which is how Triton finds what it compiled for some arguments, takes longer than a small scan. Launches are
    of a kind if nothing differs that Triton compiles for: device, numbers, constants, the dtypes of tensors, and which
    of them begin at a multiple of 16 bytes. (AMD's compiler looks at more, so that there every launch is bound, and so
    it is where hooks watch the launches.)

    Parameters
    ----------
    jit : triton.JITFunction
        Takes tensors, or two tuples of them, then numbers and tuples of numbers, then what is compiled for.
    """

    def __init__(self, jit):
        self.jit = jit
        self.known: dict[tuple, tuple] = {}

    def launch(self, programs: int, tensors: tuple, numbers: tuple, named: Constants) -> None:
        """Launch that many programs."""
        if INTERPRETED:
            self.jit[(programs,)](*tensors, *numbers, **named)
            return
        device, place = driver.active.get_current_device(), device_of(tensors)
        if place != device:
            with torch.cuda.device(place):
                return self.launch(programs, tensors, numbers, named)
        places, kinds = kinds_of(tensors)
        key = (device, named, numbers, *kinds)
        known = self.known.get(key)
        if known is None or watched():
            self.bind(key, programs, tensors, numbers, named)
        else:
            _, run, function, packed, rest = known
            stream = driver.active.get_current_stream(device)
            run(programs, 1, 1, stream, function, packed, None, None, None, *places, *numbers, *rest)
        if recording.by is not None:
            recording.by.launched(self.known.get(key), programs, tensors, numbers)

    def bind(self, key: tuple, programs: int, tensors: tuple, numbers: tuple, named: Constants) -> None:
        """Leave a launch to Triton, and keep what it found."""
        compiled = self.jit[(programs,)](*tensors, *numbers, **named)
        if compiled is None or torch.version.hip:
            return
        if len(self.known) >= MOST_KINDS:
            self.known.clear()
        rest = tuple([named[name] for name in self.jit.arg_names[len(tensors) + len(numbers) :]])
        self.known[key] = (compiled, compiled.run, compiled.function, compiled.packed_metadata, rest)


def device_of(tensors: tuple) -> int:
    """Number of the device of tensors, or tuples of them."""
    first = tensors[0]
    return (first[0] if isinstance(first, tuple) else first).get_device()


def kinds_of(tensors: tuple) -> tuple[list, list]:
    """Addresses of tensors, or tuples of them; and what a compiler looks at, dtypes and whether they are aligned."""
    if not isinstance(tensors[0], tuple):
        places = [x.data_ptr() for x in tensors]
        aligned = reduce(or_, places) % 16 == 0 or tuple([x % 16 == 0 for x in places])
        return places, [aligned, *[x.dtype for x in tensors]]
    places, kinds = [], []
    for own in tensors:
        addresses, looks = kinds_of(own)
        places.append(tuple(addresses))
        kinds += looks
    return places, kinds


def watched() -> bool:
    """Whether hooks, such as a profiler's, are to be called at each launch."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))  # from 3.5 on, lists of them


@triton.jit
def sigmoid(x):
    """Logistic function."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) and its derivative, to the last bits of float32 for any x.

    log(1 + e) is 2 artanh(e / (2 + e)), whose argument is at most a third, so that eight terms suffice. The rounding
    error of the exponent is put back.
    """
    low = -tl.abs(x)
    exponent = low * LOG2E
    e = tl.exp2(exponent)
    e += e * tl.fma(low, tl.full(low.shape, LOG2E, tl.float32), -exponent) * LN2
    s = e / (2.0 + e)
    q = s * s
    series = q * (1.0 / 15.0) + 1.0 / 13.0
    series = series * q + 1.0 / 11.0
    series = series * q + 1.0 / 9.0
    series = series * q + 1.0 / 7.0
    series = series * q + 1.0 / 5.0
    series = series * q + 1.0 / 3.0
    value = tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)
    return value, tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def chosen(first, second, back, COUNT: tl.constexpr):
    """The pointers of the second scan of a pair if `back`, else of the first."""
    own = ()
    for i in tl.static_range(COUNT):
        pointer = first[i]
        if back != 0:
            pointer = second[i]
        own += (pointer,)
    return own


@triton.jit
def when(t, length, back):
    """Where the t-th step of the scan lies on the time axis, as int64."""
    place = tl.full([], 0, tl.int64) + t
    if back != 0:
        place = length - 1 - place
    return place


@triton.jit
def where_less(mask, a, b):
    """The mask where a < b, else nothing; compared in the mask's shape, because the interpreter spreads no booleans."""
    return mask & (tl.zeros(mask.shape, tl.int32) + a < b)


@triton.jit
def vector(pointer, d, live, GIVEN: tl.constexpr):
    """A weight per channel, zero if there is none."""
    if GIVEN:
        return tl.load(pointer + d, mask=live, other=0.0).to(tl.float32)
    else:
        return tl.zeros(live.shape, tl.float32)


@triton.jit
def pinned(pointer, across, zero):
    """Zeros in the shape of `across`, loaded from nowhere, to be added to the tiles that were loaded before.

    A compiler lays tiles over threads as the last load of one asks for, in all versions from 3.4 to 3.9. This is that
    load: its mask is empty, as `zero` is, which the compiler does not know.
    """
    return tl.load(pointer + across, mask=tl.zeros(across.shape, tl.int32) + zero > 0, other=0.0)


@triton.jit
def row(pointer, offset, mask):
    """One value per channel of one step."""
    return tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def mixer_row(base, fixed, offset, n_mask, CONSTANT: tl.constexpr, ALL: tl.constexpr):
    """B or C of one step, [N, 1] or [N, channels]."""
    if CONSTANT:
        return fixed
    elif ALL:
        return tl.load(base + offset).to(tl.float32)
    else:
        return tl.load(base + offset, mask=n_mask[:, None], other=0.0).to(tl.float32)


@triton.jit
def restarts(seq, stride, j, count, start, GIVEN: tl.constexpr):
    """Whether step start + j belongs to another sequence than the step before it."""
    if GIVEN:
        step = tl.zeros([], tl.int32) + j
        inside = (start + step > 0) & (step < count)
        now = tl.load(seq + j * stride, mask=inside, other=0)
        before = tl.load(seq + (j - 1) * stride, mask=inside, other=0)
        return now != before
    else:
        return 0


@triton.jit
def decay(dt, A2, restart, GIVEN: tl.constexpr):
    """exp(dt A) of every state, zero where a sequence begins; A2 is A log2(e)."""
    a = tl.exp2(dt[None, :] * A2)
    if GIVEN:
        a = tl.where(restart, 0.0, a)
    return a


@triton.jit
def channels_of(block, blocks, per_group, CHANNELS: tl.constexpr, FULL: tl.constexpr):
    """Group, channels (int64) and mask of a block of channels."""
    group = tl.full([], 0, tl.int64) + block // blocks
    inside = (block % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    live = inside < per_group
    if FULL:
        live = tl.full([CHANNELS], 1, tl.int1)
    return group, group * per_group + inside, live


@triton.jit
def decays_of(own, strides, d, n, tile):
    """A log2(e) of a block of channels."""
    A = own[2] + d[None, :] * strides[3][0] + n[:, None] * strides[3][1]
    return tl.load(A, mask=tile, other=0.0).to(tl.float32) * LOG2E


@triton.jit
def rows_at(pointer, batch, strides, place, d):
    """Pointers to the channels d of a place on the time axis."""
    return pointer + (batch * strides[0] + place * strides[1]) + d * strides[2]


@triton.jit
def mixer_at(mixer, batch, group, strides, place, n):
    """Pointers to the states of B or C, [N, 1], at a place on the time axis; of no use if it is constant."""
    return mixer + (batch * strides[0] + place * strides[1] + group * strides[2]) + n[:, None] * strides[3]


@triton.jit
def mixer_fixed(mixer, strides, d, n, tile, otherwise, CONSTANT: tl.constexpr):
    """The tile of a constant mixer; something that is not looked at for one that changes with time."""
    if CONSTANT:
        return tl.load(mixer + d[None, :] * strides[0] + n[:, None] * strides[1], mask=tile, other=0.0).to(tl.float32)
    else:
        return otherwise


@triton.jit
def source_at(own, strides, sign, batch, group, place, d, n, bias, fixed):
    """What moves states from a place on the time axis on: pointers, strides along the scan, the bias, a fixed B."""
    su, sdelta, sB, sseq = strides[0], strides[1], strides[4], strides[7]
    return (
        rows_at(own[0], batch, su, place, d),
        su[1] * sign,
        rows_at(own[1], batch, sdelta, place, d),
        sdelta[1] * sign,
        mixer_at(own[3], batch, group, sB, place, n),
        sB[1] * sign,
        own[9] + (batch * sseq[0] + place * sseq[1]),
        sseq[1] * sign,
        bias,
        fixed,
    )


@triton.jit
def fetch(j, count, start, source, live, n_mask, SOFTPLUS, HAS_SEQ, CONST_B, ALL):
    """u, step size, its derivative, B, and whether a sequence begins, at the j-th step from `start` on.

    From step `count` on, u and the step size are zero, so that nothing moves.
    """
    u, su, delta, sdelta, B, sB, seq, sseq, bias, fixed = source
    here = where_less(live, j, count)
    x = row(u, j * su, here)
    dt = row(delta, j * sdelta, here) + bias
    slope = dt
    if SOFTPLUS:
        dt, slope = softplus(dt)
    dt = tl.where(here, dt, 0.0)
    mixer = mixer_row(B, fixed, tl.minimum(j, count - 1) * sB, n_mask, CONST_B, ALL)
    return x, dt, slope, mixer, restarts(seq, sseq, j, count, start, HAS_SEQ)

"""What instructions of PTX, the assembly of NVIDIA's GPUs, do with numbers: arrays of one element for each lane."""

import numpy as np

LANES = 32
LANE = np.arange(LANES)
BITS = np.dtype(np.uint32)
LOGICAL = np.dtype(bool)
TYPES = {
    **{f"{k}{n}": np.dtype(f"u{n // 8}") for k in "ub" for n in (8, 16, 32, 64)},
    **{f"s{n}": np.dtype(f"i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"f{n}": np.dtype(f"f{n // 8}") for n in (16, 32, 64)},
    "bf16": np.dtype(np.uint16),
    "pred": LOGICAL,
}
SHUFFLES = {  # by kind, clamp and mask: which lane each one reads
    ("bfly", "31", "-1"): lambda n: LANE ^ n,
    ("idx", "31", "-1"): lambda n: n & 31,
    ("up", "0", "-1"): lambda n: np.where(n > LANE, LANE, LANE - n),
}


class FaultError(RuntimeError):
    """What a GPU would not do, or its emulator cannot."""


def word(value, kind: str) -> int:
    """Bits of an argument of a kernel: a tensor's address, a float32, or a whole number."""
    if hasattr(value, "data_ptr"):
        return value.data_ptr()
    return int(np.float32(value).view(np.uint32)) if kind == "fp32" else int(value)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of numbers rounded to bfloat16, to nearest, ties to even."""
    near = x.astype(np.float32)
    bits = near.view(np.uint32)
    if x.dtype == np.float64:  # rounded to odd first, so that rounding twice is rounding once
        beyond = np.abs(near.astype(np.float64)) > np.abs(x)
        bits = np.where(near == x, bits, (bits - beyond) | 1)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits.astype(np.uint64) >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """Numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def converted(x: np.ndarray, target: str, source: str) -> np.ndarray:
    """What `cvt` makes of numbers."""
    if TYPES[source].kind == "f" and TYPES[target].kind != "f" and target != "bf16":
        raise FaultError(f"conversion of {source} to {target}")
    x = from_bf16(x) if source == "bf16" else x
    return to_bf16(x) if target == "bf16" else x.astype(TYPES[target])


def halves(x: np.ndarray, kind: str) -> np.ndarray:
    """The two numbers in each register of 32 bits, low half first, on a new last axis."""
    pair = np.ascontiguousarray(x).view(np.uint16).reshape(*x.shape, 2)
    return from_bf16(pair) if kind == "bf16" else pair.view(np.float16).astype(np.float32)


def flushed(x: np.ndarray) -> np.ndarray:
    """The same without subnormal numbers."""
    return np.where(np.abs(x) < 2.0**-126, np.copysign(0, x), x).astype(np.float32)


def exp2(x: np.ndarray) -> np.ndarray:
    """2^x as `ex2.approx.ftz` would give it if it were exact."""
    return flushed(np.exp2(flushed(x).astype(np.float64)).astype(np.float32))


def fused(a, b, c):
    """Product and sum, rounded once: by way of double for float32."""
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def quotient(a, b):
    """Integer quotient rounded toward zero."""
    size = np.abs(a) // np.abs(np.where(b == 0, 1, b))
    return np.where((a < 0) != (b < 0), -size, size).astype(a.dtype)


def shifted(a, by, left: bool):
    """Bits moved; beyond the width nothing is left of them but signs."""
    width = 8 * a.dtype.itemsize
    most = np.minimum(by, width - 1).astype(a.dtype)
    moved = a << most if left else a >> most
    return np.where((by >= width) & (left or a.dtype.kind == "u"), 0, moved).astype(a.dtype)


def field(a, start, length):
    """Bits cut out; signs are spread for signed numbers."""
    width = 8 * a.dtype.itemsize
    high = a << (width - start - length).astype(a.dtype)
    return high >> (width - length).astype(a.dtype)


def numbers_of(bits: np.ndarray, kind: str) -> np.ndarray:
    """Numbers that tensor cores make of 16 or, for tf32, 32 bits."""
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return (from_bf16(bits) if kind == "bf16" else bits.view(np.float16)).astype(np.float64)


def from_lanes(a: np.ndarray, kind: str) -> np.ndarray:
    """The left matrix of a product, [16, k], from registers [n, lane]."""
    g, t = LANE // 4, LANE % 4
    found = np.zeros((16, 8 if kind == "tf32" else 16))
    for i in range(4):
        if kind == "tf32":
            found[g + 8 * (i % 2), t + 4 * (i // 2)] = numbers_of(a[i], kind)
        else:
            for half in range(2):
                found[g + 8 * (i % 2), 2 * t + half + 8 * (i // 2)] = halves(a[i], kind)[:, half]
    return found


def product(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str) -> np.ndarray:
    """What `mma.m16n8` adds to c: registers [n, lane] of a [16, k], b [k, 8] and c [16, 8]."""
    g, t = LANE // 4, LANE % 4
    left = from_lanes(a, kind)
    right = np.zeros((left.shape[1], 8))
    for i in range(2):
        if kind == "tf32":
            right[t + 4 * i, g] = numbers_of(b[i], kind)
        else:
            for half in range(2):
                right[2 * t + half + 8 * i, g] = halves(b[i], kind)[:, half]
    found = left @ right
    return np.stack([(c[i] + found[g + 8 * (i // 2), 2 * t + i % 2]).astype(np.float32) for i in range(4)])


def sure(compare):
    """The same comparison, true where it cannot be made."""
    return lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)


UNARY = {"neg": np.negative, "abs": np.abs, "not": np.invert, "ex2.approx.ftz": exp2}


def upper_half(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Upper half of the bits of a product of whole numbers."""
    bits = 8 * a.dtype.itemsize
    found = [int(x) * int(y) >> bits for x, y in zip(*np.broadcast_arrays(a, b), strict=True)]
    return np.array(found, a.dtype)


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mul.lo": np.multiply,
    "mul.hi": upper_half,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "div": quotient,
    "div.full": np.divide,
    "rem": lambda a, b: (a - b * quotient(a, b)).astype(a.dtype),
    "shl": lambda a, b: shifted(a, b, True),
    "shr": lambda a, b: shifted(a, b, False),
}
TERNARY = {"fma.rn": fused, "mad.lo": lambda a, b, c: a * b + c, "bfe": field}
MIXED = {"add.rn.f32": (np.add, 1), "sub.rn.f32": (np.subtract, 1), "fma.rn.f32": (fused, 2)}  # and how many are halves
COMPARE = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
COMPARE |= {f"{k}u": sure(v) for k, v in COMPARE.items()}

"""An emulator of PTX: runs compiled GPU kernels on the CPU, in the memory of the process.

A warp is 32 lanes of NumPy arrays. The warps of a program run one after the other, in an order drawn anew between two
barriers, so that it is seen where one reads what another writes without a barrier. Memory has to be aligned as a GPU
asks for, and shared memory holds NaN at first. Branches on which the lanes of a warp disagree are refused. Programs run
one after the other, the last one first.
"""

import ctypes
import random
import re
from functools import cache
from typing import Any

import numpy as np
from ptx_arithmetic import (
    BINARY,
    BITS,
    COMPARE,
    LANE,
    LANES,
    LOGICAL,
    MIXED,
    SHUFFLES,
    TERNARY,
    TYPES,
    UNARY,
    FaultError,
    converted,
    from_lanes,
    product,
)
from ptx_warpgroup import operand

LOWEST, HIGHEST = 1 << 16, 1 << 48  # between them lies the memory of a process


@cache
def memory_of(size: int) -> np.ndarray:
    """All memory from LOWEST on, in cells of some bytes; what is not mapped must not be touched."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * (HIGHEST - LOWEST)).from_address(LOWEST)).view(f"u{size}")


def listed(text: str) -> list[str]:
    """Operands in braces, or one without."""
    return [x.strip() for x in text.strip("{} ").split(",")]


class Registers(list):
    """Registers of a warp, with the numbers that name its lanes and program, and its memory beside the global one."""

    special: dict[str, np.ndarray]
    spaces: dict[str, np.ndarray]


class Kernel:
    """A kernel, ready to run.

    Parameters
    ----------
    text : str
        Its PTX.
    """

    def __init__(self, text: str):
        found = re.search(r"\.entry\s+\w+\((.*?)\)(.*)", text, re.DOTALL)
        assert found, "a kernel has an entry"
        self.registers: dict[str, int] = {}
        self.dtypes: list[np.dtype] = []
        self.labels: dict[str, int] = {}
        self.params: dict[str, int] = {}
        self.param_types: list[np.dtype] = []
        end = 0
        for kind, name in re.findall(r"\.param\s+\.(\w+)(?:\s+\.\w+(?:\s+\d+)?)*\s+(\w+)", found[1]):
            size = TYPES[kind].itemsize
            self.params[name] = -(-end // size) * size
            self.param_types.append(TYPES[kind])
            end = self.params[name] + size
        steps = []
        for line in (re.sub(r"//.*", "", x).strip() for x in found[2].splitlines()):
            if declared := re.match(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>", line):
                dtype = LOGICAL if declared[1] == "pred" else np.dtype(f"u{TYPES[declared[1]].itemsize}")
                for i in range(int(declared[3])):
                    self.registers[f"{declared[2]}{i}"] = len(self.dtypes)
                    self.dtypes.append(dtype)
            elif label := re.match(r"([\w$]+):$", line):
                self.labels[label[1]] = len(steps)
            elif line and line[0] not in ".{}":
                steps.append(line.rstrip(";"))
        self.steps = [self.step(line) for line in steps]

    def value(self, text: str, dtype: np.dtype) -> Any:
        """A function of the registers: an operand as numbers of a type."""
        bits = np.dtype(f"u{dtype.itemsize}")
        if (text := text.strip()) in self.registers:
            i = self.registers[text]
            if self.dtypes[i].itemsize == dtype.itemsize:
                return lambda r: r[i].view(dtype)
            return lambda r: r[i].astype(bits).view(dtype)
        if text.startswith("%"):
            return lambda r: r.special[text]
        if text[:2] in ("0f", "0d"):
            number = int(text[2:], 16)
        elif text in self.params:
            number = self.params[text]
        else:
            number = {"global_smem": 0, "true": 1, "false": 0}.get(text)
            number = int(text, 0) if number is None else number
        constant = np.full(LANES, number % (1 << 8 * dtype.itemsize), bits).view(dtype)
        return lambda r: constant

    def target(self, text: str) -> Any:
        """A function that sets a register, in the lanes of a mask; wider ones too, with their signs."""
        if text.strip() == "_":
            return lambda r, value, mask: None
        i = self.registers[text.strip()]
        own = self.dtypes[i]

        def put(r, value, mask):
            if value.dtype.itemsize != own.itemsize:
                value = value.astype(f"{'i' if value.dtype.kind == 'i' else 'u'}{own.itemsize}")
            value = np.ascontiguousarray(value).view(own)
            r[i] = value if mask is None else np.where(mask, value, r[i])

        return put

    def step(self, line: str) -> tuple[str, Any, Any]:
        """One instruction: its kind, its mask, and what it does or where it goes."""
        found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", line)
        if not found:
            raise FaultError(f"line {line}")
        mask = None
        if found[2]:
            i, turned = self.registers[found[2]], found[1] == "!"
            mask = lambda r: ~r[i] if turned else r[i]  # noqa: E731
        name, operands = found[3], [x.strip() for x in re.split(r",(?![^{]*\})", found[4])]
        if name.startswith(("bra", "ret")):
            return name[:3], mask, operands[0]
        if name.startswith("bar.warp"):
            return "run", None, lambda r, mask: None
        if name.startswith("bar"):
            return "bar", None, None
        try:
            return "run", mask, self.operation(name.split("."), operands)
        except (KeyError, ValueError) as error:
            raise FaultError(f"{line}: {error!r}") from error

    def operation(self, parts: list[str], operands: list[str]) -> Any:
        """What an instruction does."""
        if special := getattr(self, f"on_{parts[0]}", None):
            return special(parts, operands)
        put, kind = self.target(operands[0]), ".".join(parts[:-1])
        if parts[-1] == "f32x2":  # two numbers in a register
            wide, exact = [self.value(x, TYPES["u64"]) for x in operands[1:]], (BINARY | TERNARY)[kind]
            return lambda r, mask: put(r, exact(*[x(r).view(np.float32) for x in wide]).view(np.uint64), mask)
        if kind in MIXED:
            run, n_halves = MIXED[kind]
            types = [parts[-1] if i < n_halves else "f32" for i in range(len(operands) - 1)]
            mixed = [(self.value(x, TYPES[k]), k) for x, k in zip(operands[1:], types, strict=True)]
            return lambda r, mask: put(r, run(*[converted(x(r), "f32", k) for x, k in mixed]), mask)
        dtype = TYPES[parts[-1]]
        if kind in ("mad.wide", "mul.wide"):
            wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
            a, b = (self.value(x, dtype) for x in operands[1:3])
            c = self.value(operands[3] if len(operands) == 4 else "0", wide)
            return lambda r, mask: put(r, a(r).astype(wide) * b(r).astype(wide) + c(r), mask)
        given = [self.value(x, dtype) for x in operands[1:]]
        if kind in ("shl", "shr", "bfe"):
            given[1:] = [self.value(x, BITS) for x in operands[2:]]
        run: Any = (UNARY, BINARY, TERNARY)[len(given) - 1][kind]
        return lambda r, mask: put(r, run(*[x(r) for x in given]), mask)

    def on_setp(self, parts, operands):
        """Compare."""
        put, compare = self.target(operands[0]), COMPARE[parts[1]]
        a, b = (self.value(x, TYPES[parts[-1]]) for x in operands[1:])
        return lambda r, mask: put(r, compare(a(r), b(r)), mask)

    def on_selp(self, parts, operands):
        """Choose."""
        put, p = self.target(operands[0]), self.value(operands[3], LOGICAL)
        a, b = (self.value(x, TYPES[parts[1]]) for x in operands[1:3])
        return lambda r, mask: put(r, np.where(p(r), a(r), b(r)), mask)

    def on_cvt(self, parts, operands):
        """Convert one number, or two into the halves of a register, the first into the high one."""
        put, target, source = self.target(operands[0]), parts[-2], parts[-1]
        given = [self.value(x, TYPES[source]) for x in operands[1:]]
        if not target.endswith("x2"):
            return lambda r, mask: put(r, converted(given[0](r), target, source), mask)

        def both(r, mask):
            high, low = (converted(x(r), target[:-2], source).view(np.uint16).astype(BITS) for x in given)
            put(r, high << 16 | low, mask)

        return both

    def on_mov(self, parts, operands):
        """Copy, split a register into several, or put several into one."""
        dtype = TYPES[parts[1]]
        pieces = [listed(x) for x in operands]
        part = np.dtype(f"u{dtype.itemsize // max(map(len, pieces))}") if dtype != LOGICAL else dtype
        puts = [self.target(x) for x in pieces[0]]
        given = [self.value(x, dtype if len(pieces[1]) == 1 else part) for x in pieces[1]]

        def go(r, mask):
            values = [x(r) for x in given]
            if len(values) > 1:
                values = [np.stack(values, -1).view(dtype)[:, 0]]
            if len(puts) > 1:
                values = np.ascontiguousarray(values[0]).view(part).reshape(LANES, -1).T
            for put, value in zip(puts, values, strict=True):
                put(r, value, mask)

        return go

    def on_shfl(self, parts, operands):
        """Exchange among all lanes of a warp."""
        put, value, lane = self.target(operands[0]), *(self.value(x, BITS) for x in operands[1:3])
        source = SHUFFLES.get((parts[2], *operands[3:]))
        if source is None:
            raise FaultError(f"shuffle {parts} {operands}")
        return lambda r, mask: put(r, value(r)[source(lane(r))], mask)

    def address(self, text: str) -> Any:
        """What stands in brackets: a register or a parameter, with what is added to it."""
        found = re.fullmatch(r"\[\s*([\w%.]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if not found:
            raise FaultError(f"address {text}")
        start = self.value(found[1], TYPES["u64" if found[1].startswith("%rd") else "u32"])
        return lambda r: start(r).astype(np.int64) + int(found[2] or 0)

    def on_ld(self, parts, operands):
        """Load up to four numbers side by side."""
        return self.access(parts, operands[1], [self.target(x) for x in listed(operands[0])], [])

    def on_st(self, parts, operands):
        """Store up to four numbers side by side."""
        return self.access(parts, operands[0], [], [self.value(x, TYPES[parts[-1]]) for x in listed(operands[1])])

    def access(self, parts, place, puts, values):
        """`ld` or `st`, of global or shared memory, or of parameters."""
        at, space, dtype = self.address(place), parts[1].removesuffix("::cta"), TYPES[parts[-1]]
        size, count = dtype.itemsize, max(len(puts), len(values))

        def go(r, mask):
            chosen = np.arange(LANES) if mask is None else np.flatnonzero(mask)
            where = at(r)[chosen]
            if (where % (size * count)).any() or (space == "global" and (where < LOWEST).any()):
                raise FaultError(f"{'.'.join(parts)} at {[hex(x) for x in where]}")
            memory = memory_of(size) if space == "global" else r.spaces[space].view(f"u{size}")
            cells = (where - LOWEST if space == "global" else where) // size
            for i, put in enumerate(puts):
                found = np.zeros(LANES, memory.dtype)
                found[chosen] = memory[cells + i]
                put(r, found.view(dtype), mask)
            for i, value in enumerate(values):
                memory[cells + i] = value(r)[chosen].view(memory.dtype)

        return go

    def on_ldmatrix(self, parts, operands):
        """Load 8 x 8 matrices of 16 bits, whose rows lie where the lanes of each eight say."""
        at, puts = self.address(operands[1]), [self.target(x) for x in listed(operands[0])]
        turned = "trans" in parts

        def go(r, mask):
            rows, memory = at(r), r.spaces["shared"].view(np.uint16)
            for i, put in enumerate(puts):
                matrix = memory[self.row_cells(rows, i)]
                put(r, np.ascontiguousarray(matrix.T if turned else matrix).view(BITS).ravel(), mask)

        return go

    def on_stmatrix(self, parts, operands):
        """Store such matrices."""
        at, values = self.address(operands[0]), [self.value(x, BITS) for x in listed(operands[1])]

        def go(r, mask):
            rows, memory = at(r), r.spaces["shared"].view(np.uint16)
            for i, value in enumerate(values):
                matrix = value(r).view(np.uint16).reshape(8, 8)
                memory[self.row_cells(rows, i)] = matrix.T if "trans" in parts else matrix

        return go

    @staticmethod
    def row_cells(rows: np.ndarray, i: int) -> np.ndarray:
        """Where the i-th matrix lies, in cells of two bytes."""
        own = rows[8 * i : 8 * i + 8]
        if (own % 16).any():
            raise FaultError("a row of a matrix is not aligned")
        return own[:, None] // 2 + np.arange(8)

    def on_mma(self, parts, operands):
        """Multiply 16 x k by k x 8 and add."""
        puts = [self.target(x) for x in listed(operands[0])]
        given = [[self.value(x, BITS) for x in listed(y)] for y in operands[1:]]
        if parts[3] not in ("m16n8k16", "m16n8k8") or (parts[-2] == "tf32") != (parts[3] == "m16n8k8"):
            raise FaultError(f"product {parts}")

        def go(r, mask):
            a, b, c = (np.stack([x(r) for x in group]) for group in given)
            for put, value in zip(puts, product(a, b, c.view(np.float32), parts[-2]), strict=True):
                put(r, value, mask)

        return go

    def on_fence(self, parts, operands):
        """Order memory for the units that copy and multiply by themselves: here all is done at once."""
        return lambda r, mask: None

    def on_wgmma(self, parts, operands):
        """Multiply the 16 rows of this warp, of 64 x k, by k x n and add; waiting for it is nothing."""
        if parts[1] != "mma_async":
            return lambda r, mask: None
        size = re.fullmatch(r"m64n(\d+)k(\d+)", parts[4])
        if not size or parts[5] != "f32" or operands[4:6] != ["1", "1"]:
            raise FaultError(f"product {parts} {operands[4:]}")
        width, depth, kind = int(size[1]), int(size[2]), parts[-1]
        puts = [self.target(x) for x in listed(operands[0])]
        sums = [self.value(x, TYPES["f32"]) for x in listed(operands[0])]
        in_lanes, turned = operands[1].startswith("{"), [x == "1" for x in operands[6:]] or [False, False]
        rows = [self.value(x, BITS) for x in listed(operands[1])] if in_lanes else self.value(operands[1], TYPES["u64"])
        columns, adds = self.value(operands[2], TYPES["u64"]), self.value(operands[3], LOGICAL)

        def go(r, mask):
            shared, first = r.spaces["shared"], r.special["%tid.x"][0] // LANES % 4 * 16
            if in_lanes:
                left = from_lanes(np.stack([x(r) for x in rows]), kind)
            else:
                left = operand(shared, int(rows(r)[0]), 64, depth, kind, turned[0])[first : first + 16]
            found = left @ operand(shared, int(columns(r)[0]), width, depth, kind, turned[-1]).T
            for i, (put, before) in enumerate(zip(puts, sums, strict=True)):
                own = found[LANE // 4 + i // 2 % 2 * 8, i // 4 * 8 + LANE % 4 * 2 + i % 2]
                put(r, (np.where(adds(r), before(r), 0) + own).astype(np.float32), mask)

        return go

    def launch(self, programs: int, warps: int, shared: int, params: list[int]) -> None:
        """Run programs, each of some warps, on parameters in the order of the kernel's."""
        room = np.zeros(8 * len(params), np.uint8)
        for at, dtype, value in zip(self.params.values(), self.param_types, params, strict=True):
            own = np.array([value % (1 << 8 * dtype.itemsize)], f"u{dtype.itemsize}")
            room[at : at + dtype.itemsize] = own.view(np.uint8)
        order = random.Random(0)
        for program in reversed(range(programs)):
            spaces = {"shared": np.full(-(-shared // 16) * 16, 0xFF, np.uint8), "param": room}
            running = [self.warp(i, program, programs, spaces) for i in range(warps)]
            while running:
                order.shuffle(running)
                running = [x for x in running if next(x, "ended") != "ended"]

    def warp(self, number: int, program: int, programs: int, spaces: dict[str, np.ndarray]):
        """Run a warp; yield at barriers."""
        r = Registers([np.zeros(LANES, x) for x in self.dtypes])
        names = {"%tid.x": LANE + LANES * number, "%ctaid.x": program, "%nctaid.x": programs}
        r.special = {k: np.broadcast_to(v, LANES).astype(BITS) for k, v in names.items()}
        r.spaces = spaces
        at = 0
        while at < len(self.steps):
            kind, mask, what = self.steps[at]
            at += 1
            found = None if mask is None else mask(r)
            if kind == "run":
                what(r, found)
            elif kind == "bar":
                yield "barrier"
            elif found is not None and found.any() != found.all():
                raise FaultError("lanes of a warp disagree where to go on")
            elif found is None or found.all():
                if kind == "ret":
                    return
                at = self.labels[what]

"""Calls that allocate and launch and do nothing else, made again without their Python.

What such a call does depends on its arguments by no more than `ops.description` tells. The first call of a kind is
watched; from the second one on its tensors are allocated and its kernels launched, with addresses put in place. A call
that does more, even once, such as copying a tensor, is never shortened.
"""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import driver

from ssmseq_kernels import ops
from ssmseq_kernels import triton_common as common

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
HARMLESS = {"alias", "as_strided", "detach", "expand", "permute", "promote_types", "select", "slice", "squeeze"}
HARMLESS |= {"t", "transpose", "unbind", "unflatten", "unsqueeze", "view"}
NOWHERE = (-1, 0)  # of tensors without elements

Place = tuple[int, int]  # which input or allocation, and bytes from where it begins


class Tape(NamedTuple):
    """What a call does: what it allocates, what it launches, and which allocations it returns."""

    device: int
    allocations: list[tuple | Tensor]  # a tensor without elements is itself, every time
    launches: list[tuple]
    results: Any

    def play(self, places: list[int]) -> Any:
        """Do it again with inputs at other places."""
        made = [
            x if isinstance(x, Tensor) else torch.empty_strided(x[0], x[1], dtype=x[2], device=x[3])
            for x in self.allocations
        ]
        starts = [*places, *[x.data_ptr() for x in made], 0]
        stream = driver.active.get_current_stream(self.device)
        for programs, run, function, packed, pairs, spots, rest in self.launches:
            if pairs:
                found = [tuple([starts[i] + offset for i, offset in own]) for own in spots]
            else:
                found = [starts[i] + offset for i, offset in spots]
            run(programs, 1, 1, stream, function, packed, None, None, None, *found, *rest)
        if isinstance(self.results, tuple):
            return tuple([None if i is None else made[i] for i in self.results])
        return made[self.results]


class Recorder(TorchDispatchMode):
    """Watches a call; `complete` stays true as long as it only allocates and launches."""

    def __init__(self, places: list[int]):
        super().__init__()
        self.inputs = {place: i for i, place in reversed(list(enumerate(places)))}
        self.count = len(places)
        self.made: list[Tensor] = []
        self.launches: list[tuple] = []
        self.complete = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator of torch, and note it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ALLOCATIONS:
            self.made.append(out)
        elif name not in HARMLESS or self.moves(args[0], out):
            self.complete = False
        return out

    def moves(self, x: Any, out: Any) -> bool:
        """Whether a view of an input begins elsewhere: where it does, another input may begin as well."""
        views = [y for y in (out if isinstance(out, list | tuple) else [out]) if isinstance(y, Tensor)]
        return any(y.data_ptr() not in (0, x.data_ptr()) for y in views) and self.allocation(x.data_ptr()) is None

    def allocation(self, address: int) -> int | None:
        """Which allocation holds an address, the latest if memory of an earlier one is used again."""
        for i in reversed(range(len(self.made))):
            start = self.made[i].data_ptr()
            if start and start <= address < start + self.made[i].untyped_storage().nbytes():
                return i
        return None

    def launched(self, known: tuple | None, programs: int, tensors: tuple, numbers: tuple) -> None:
        """Note a launch, and what is known of its kernel."""
        if known is None:
            self.complete = False
            return
        _, run, function, packed, rest = known
        pairs = isinstance(tensors[0], tuple)
        spots = [tuple([self.place(x) for x in own]) for own in tensors] if pairs else [self.place(x) for x in tensors]
        self.launches.append((programs, run, function, packed, pairs, spots, (*numbers, *rest)))

    def place(self, x: Tensor) -> Place:
        """Where a tensor begins, in terms of inputs and allocations."""
        address = x.data_ptr()
        if not address:
            return NOWHERE
        i = self.allocation(address)
        if i is not None:
            return self.count + i, address - self.made[i].data_ptr()
        if address not in self.inputs:
            self.complete = False
            return NOWHERE
        return self.inputs[address], 0

    def index(self, result: Any) -> int | None:
        """Which allocation a result is."""
        if result is None:
            return None
        found = [i for i, x in enumerate(self.made) if looks(x) == looks(result) and x.data_ptr() == result.data_ptr()]
        self.complete &= bool(found)
        return found[-1] if found else None

    def tape(self, device: int, result: Any) -> Tape | None:
        """Return what has been seen, None if it is not all that was done."""
        results = tuple([self.index(x) for x in result]) if isinstance(result, tuple) else self.index(result)
        whole = self.complete and self.launches
        allocations = [looks(x) if x.numel() else x for x in self.made]
        return Tape(device, allocations, self.launches, results) if whole else None


functions: list["Replayed"] = []


def forget() -> None:
    """Watch every call anew, as is needed where a constant that decides how work is laid out has been changed."""
    for function in functions:
        function.known.clear()


def looks(x: Tensor) -> tuple:
    """What an allocation is made by."""
    return tuple(x.shape), x.stride(), x.dtype, x.device


class Replayed:
    """A function of tensors and of values that can be hashed, which allocates, launches, and returns what it allocated.

    Its results are the same as without; where it does more, hooks watch, or another device is current, it runs.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.known: dict[Any, Tape | None] = {}
        self.__doc__ = function.__doc__
        functions.append(self)

    def __call__(self, *args: Any) -> Any:
        """Call the function, or do again what it did."""
        if common.INTERPRETED or torch.version.hip or common.recording.by is not None:
            return self.function(*args)
        key, places = ops.description(args)
        if key not in self.known:
            return self.record(key, places, args)
        tape = self.known[key]
        if tape is None or tape.device != driver.active.get_current_device() or common.watched():
            return self.function(*args)
        return tape.play(places)

    def record(self, key: Any, places: list[int], args: tuple) -> Any:
        """Call the function and keep what it did."""
        recorder = Recorder(places)
        common.recording.by = recorder
        try:
            with recorder:
                result = self.function(*args)
        finally:
            common.recording.by = None
        if len(self.known) >= common.MOST_KINDS:
            self.known.clear()
        device = next(x.get_device() for x in args if isinstance(x, Tensor))
        self.known[key] = recorder.tape(device, result)
        return result

"""Calls that allocate and launch and do nothing else, made again without their Python.

What such a call does depends on shapes, strides, dtypes, devices and alignment of its tensors, on which of them begin
at one place, and on its other arguments. The first call of a kind is watched. From the second one on the compiled
module allocates its tensors and launches its kernels, with addresses put in place. A call that does more, even once,
such as copying a tensor, is never shortened, nor is any without the compiled module.
"""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable
from functools import cache
from typing import Any

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
COMPILED: Any = ops.cpu._cpu if ops.cpu else None
UNKNOWN = common.INTERPRETED or torch.version.hip  # what Triton's launcher is called with

Place = tuple[int, int]  # which input or allocation, and bytes from where it begins


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
        places = [self.place(x) if isinstance(x, Tensor) else tuple([self.place(y) for y in x]) for x in tensors]
        before = (programs, 1, 1, function, packed, None, None, None)  # and the stream, after the grid
        self.launches.append((run, before, places, (*numbers, *rest)))

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

    def index(self, result: Any) -> Any:
        """Which allocation a result is, or each in a tuple of results."""
        if result is None:
            return None
        if isinstance(result, tuple):
            return tuple([self.index(x) for x in result])
        found = [i for i, x in enumerate(self.made) if looks(x) == looks(result) and x.data_ptr() == result.data_ptr()]
        self.complete &= bool(found)
        return found[-1] if found else None

    def tape(self, device: int, result: Any) -> Any:
        """Return what has been seen, False if it is not all that was done."""
        which = self.index(result)
        if not (self.complete and self.launches):
            return False
        allocations = [looks(x) if x.numel() else x for x in self.made]  # without elements it is the same, every time
        return COMPILED.Tape(device, allocations, self.launches, which)


functions: list["Replayed"] = []


def forget() -> None:
    """Watch every call anew, as is needed where a constant that decides how work is laid out has been changed."""
    for function in functions:
        if function.known is not None:
            function.known.clear()


def looks(x: Tensor) -> tuple:
    """What an allocation is made by."""
    return tuple(x.shape), x.stride(), x.dtype, x.device


def flat(args: tuple) -> list[Any]:
    """Arguments, and those in tuples among them."""
    return [y for x in args for y in (flat(x) if isinstance(x, tuple) else [x])]


class Replayed:
    """A function of tensors and of numbers, which allocates, launches, and returns what it allocated.

    Its results are the same as without; where it does more, hooks watch, or another device is current, it runs.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.known: Any = COMPILED.Memory(common.MOST_KINDS) if COMPILED else None
        self.__doc__ = function.__doc__
        functions.append(self)

    def __call__(self, *args: Any) -> Any:
        """Call the function, or do again what it did."""
        if UNKNOWN or self.known is None or common.recording.by is not None or common.watched():
            return self.function(*args)
        active = driver.active
        device = active.get_current_device()
        result = self.known.again(args, device, active.get_current_stream(device))
        if result is None:
            return self.record(args)
        return self.function(*args) if result is False else result

    def record(self, args: tuple) -> Any:
        """Call the function and keep what it did."""
        tensors = [x for x in flat(args) if isinstance(x, Tensor)]
        recorder = Recorder([x.data_ptr() for x in tensors])
        common.recording.by = recorder
        try:
            with recorder:
                result = self.function(*args)
        finally:
            common.recording.by = None
        self.known.keep(args, recorder.tape(tensors[0].get_device(), result))
        return result


@cache
def replayed(function: Callable[..., Any]) -> Replayed:
    """The same function, made again where it can be."""
    return Replayed(function)

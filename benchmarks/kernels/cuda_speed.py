"""The run of the GPU benchmark, and its main part: the time of the scan, ours and the rivals in turn."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from cuda_cases import DTYPES, MODES, NAMES, PER_STEP, SHAPES, Inputs, input_bytes, laid_out, make_inputs, shape_of
from cuda_device import Call, Cuda, Rehearsal
from cuda_peers import METHODS, Method, refusal, tune_associative
from cuda_timing import GRAPH_BELOW, alone, copies_for, first_line, graph_seconds, summary, take_turns
from roofline import Rates, Sizes, against, work_of
from rows import Rows
from torch import Tensor

OURS = METHODS["ours"]
PROBE = 256  # steps of the first trial of a slow method


class OutOfTime(Exception):
    """No cell may be begun any more."""


class DeviceLost(Exception):
    """The device does not answer after an error; only a new process can go on."""


class Bench:
    """What all parts share.

    Parameters
    ----------
    device : Cuda or Rehearsal
    rows : Rows
    dtypes : sequence of str
        Keys of DTYPES.
    repeats : int
        Timed runs of a cell, at most.
    budget : float
        Seconds of a method in a cell, at most; it always has five runs.
    seconds : float
        After so many, no further cell is begun.
    """

    rates: Rates | None = None

    def __init__(
        self,
        device: Cuda | Rehearsal,
        rows: Rows,
        dtypes: Sequence[str] = ("bf16",),
        repeats: int = 50,
        budget: float = 10.0,
        seconds: float = 540.0,
    ):
        self.device, self.rows, self.repeats, self.budget = device, rows, repeats, budget
        self.dtypes = {name: DTYPES[name] for name in dtypes}
        self.ends = time.monotonic() + seconds

    def has(self, cell: dict[str, Any]) -> bool:
        """Whether the cell has been measured; if not, and no time is left, raise OutOfTime."""
        if self.rows.has(cell):
            return True
        if time.monotonic() > self.ends:
            raise OutOfTime
        return False

    def sizes(self, shape: str) -> Sizes:
        """B, L, D, N of a named shape."""
        return shape_of(shape, self.device.rehearsing)

    def guarded(self, measure: Callable[[], Any]) -> tuple[Any, dict[str, str]]:
        """Return what `measure` does and nothing, or None and why it failed: one cell must not end the run."""
        try:
            return measure(), {}
        except torch.OutOfMemoryError:
            reason = {"skipped": "out of memory"}
        except Exception as error:  # of a foreign package or the compiler: the row says what
            reason = {"failed": first_line(error)}
        if self.device.usable():
            self.device.free_memory()
        return None, reason

    def add(self, cell: dict[str, Any], values: dict[str, Any]) -> None:
        """Append a row; raise DeviceLost if it tells of a failure that nothing after it can survive."""
        self.rows.add(cell, values)
        if "failed" in values and not self.device.usable():
            raise DeviceLost

    def attempt(self, cell: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a cell that the file does not have."""
        if not self.has(cell):
            values, reason = self.guarded(measure)
            self.add(cell, values if values is not None else reason)


def make_call(function: Callable[..., Any], args: Iterable[Tensor | None], mode: str) -> Call:
    """Return what runs a function of tensors once: without gradients, its backward pass, or both."""
    given = list(args)
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function(*given)

        return forward
    leaves = [x.requires_grad_() for x in given if x is not None and x.is_floating_point()]
    first = outputs_of(function(*given))
    grads = [torch.randn_like(y) for y in first]
    if mode == "backward":
        return lambda: torch.autograd.grad(first, leaves, grads, retain_graph=True)
    first = None
    return lambda: torch.autograd.grad(outputs_of(function(*given)), leaves, grads)


def outputs_of(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


def measure_speed(bench: Bench, shapes: Sequence[str], names: Sequence[str]) -> None:
    methods = [METHODS[name] for name in names if name in METHODS]
    for shape in (x for x in shapes if x in SHAPES):
        for dtype in bench.dtypes.values():
            for mode in MODES:
                cells = {
                    m: {"what": "speed", "shape": shape, "sizes": bench.sizes(shape), "mode": mode, **m.fields(dtype)}
                    for m in methods
                    if mode in m.modes
                }
                missing = {m: cell for m, cell in cells.items() if not bench.has(cell)}
                if missing:
                    Group(bench, bench.sizes(shape), mode, dtype, missing).measure()
                    bench.device.free_memory()


class Group:
    """Cells of one shape, mode and dtype: kernels are timed in turn with ours, PyTorch's ways one by one after them."""

    ours, per_step = OURS, PER_STEP

    def __init__(self, bench: Bench, sizes: Any, mode: str, dtype: torch.dtype, cells: dict[Method, dict[str, Any]]):
        self.bench, self.device, self.sizes, self.mode, self.dtype = bench, bench.device, sizes, mode, dtype
        self.cells = cells
        copies = copies_for(self.input_bytes(), self.device.cache)
        self.inputs = [self.make_inputs(seed) for seed in range(copies)]
        self.base: float | None = None

    def input_bytes(self) -> int:
        """Bytes of one copy of the inputs."""
        return input_bytes(self.sizes, self.dtype)

    def make_inputs(self, seed: int) -> Inputs:
        """Return one copy of the inputs."""
        return make_inputs(self.sizes, self.dtype, self.device.device, seed)

    def args(self, method: Method, inputs: Inputs) -> list[Tensor | None]:
        """Return the inputs as a method takes them."""
        laid = laid_out(inputs, method.layout, method.dtype(self.dtype))
        return [laid[name] for name in NAMES]

    def tune(self, method: Method, args: list[Any]) -> None:
        """Prepare a method for inputs of these sizes."""
        if method.name == "associative":
            tune_associative(self.device, args)

    def refusal(self, method: Method) -> str | None:
        """Say why a method must not run on this shape; None if it may."""
        return refusal(method, self.mode, self.sizes, self.device.free_memory())

    def columns(self, seconds: float) -> dict[str, Any]:
        """Return what a row says of the work done in so many seconds."""
        return against(seconds, work_of(self.mode, self.sizes, self.dtype.itemsize), self.bench.rates)

    def measure(self) -> None:
        """Add a row for every cell."""
        calls = {}
        for method in dict.fromkeys([self.ours, *(m for m in self.cells if m.kernel)]):
            ways, reason = self._prepared(method, len(self.inputs))
            if ways:
                calls[method] = ways
            elif method in self.cells:
                self.bench.add(self.cells[method], reason)
        self._time_kernels(calls)
        del calls
        for method in (m for m in self.cells if not m.kernel):
            self.bench.add(self.cells[method], self._alone(method))

    def _prepared(self, method: Method, copies: int) -> tuple[list[Call], dict[str, str]]:
        reason = self.refusal(method)
        if reason:
            return [], {"skipped": reason}
        ways, reason = self.bench.guarded(lambda: self._calls(method, copies))
        return ways or [], reason

    def _calls(self, method: Method, copies: int) -> list[Call]:
        args = [self.args(method, inputs) for inputs in self.inputs[:copies]]
        self.tune(method, args[0])
        ways = [make_call(method.scan, x, self.mode) for x in args]
        if method.kernel:
            ways[0]()
            self.device.synchronize()
        return ways

    def _time_kernels(self, calls: dict[Method, list[Call]]) -> None:
        times, reason = self.bench.guarded(
            lambda: take_turns(self.device, calls, self.bench.repeats, self.bench.budget)
        )
        if times is None:
            for method in calls:
                self._add(method, reason)
            return
        self.base = statistics.median(times[self.ours]) if self.ours in times else None
        for method, taken in times.items():
            values = self._values(taken) | {"copies": len(self.inputs)}
            if statistics.median(taken) < GRAPH_BELOW and self.mode != "backward":
                values |= graph_seconds(self.device, calls[method])
            self._add(method, values | self._difference(method))

    def _alone(self, method: Method) -> dict[str, Any]:
        """Time PyTorch's operators; what would not run three times within the budget is not run at all."""
        reason = self.refusal(method)
        if reason:
            return {"skipped": reason}
        budget = self.bench.budget
        foreseen, failure = self.bench.guarded(lambda: self._foreseen(method))
        if foreseen is None:
            return failure
        if 3 * foreseen > budget:
            return {"skipped": f"would take at least {foreseen:.2g} s, of the {budget:g} s for three runs"}
        ways, failure = self._prepared(method, 1)
        if not ways:
            return failure
        taken, failure = self.bench.guarded(lambda: alone(self.device, ways[0], self.bench.repeats, budget))
        return failure if taken is None else self._values(taken) | self._difference(method)

    def _foreseen(self, method: Method) -> float:
        """Seconds of a run, from one over the first steps; the true ones may grow faster than the length."""
        steps = min(PROBE, self.sizes[1])
        begun = {
            name: x.detach()[:, :steps].contiguous() if name in self.per_step else x
            for name, x in self.inputs[0].items()
        }
        call = make_call(method.scan, self.args(method, begun), self.mode)
        call()
        return self.device.timed(call) * self.sizes[1] / steps

    def _values(self, taken: list[float]) -> dict[str, Any]:
        median = statistics.median(taken)
        ratio = {"ratio_to_ours": median / self.base} if self.base else {}
        return summary(taken) | ratio | self.columns(median)

    def _difference(self, method: Method) -> dict[str, Any]:
        """Relative L2 distance of y from ours: a rival that computes something else is no rival."""
        if method is self.ours or self.mode != "forward":
            return {}
        found, reason = self.bench.guarded(lambda: self._distance(method))
        return {"difference": found} if found is not None else {"difference": next(iter(reason.values()))}

    def _distance(self, method: Method) -> float:
        with torch.no_grad():
            y = method.scan(*self.args(method, self.inputs[0]))
            own = self.ours.scan(*self.args(self.ours, self.inputs[0]))
        return distance(y.mT if method.layout == "BDL" else y, own)

    def _add(self, method: Method, values: dict[str, Any]) -> None:
        if method in self.cells:
            self.bench.add(self.cells[method], values)
        elif "failed" in values:
            print(f"{method.name} failed: {values['failed']}", file=sys.stderr)


def distance(y: Tensor, own: Tensor) -> float:
    """Relative L2 distance of y from ours."""
    return ((y.float() - own.float()).norm() / own.float().norm()).item()

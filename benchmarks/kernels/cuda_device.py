"""Clocks, memory and facts of an NVIDIA GPU; and a rehearsal of them on the CPU, to try the benchmark without one."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], object]
HEAD_START = 2.0  # times a call's own host time that the device is kept busy before it, so that no launch is waited for
LONGEST_HEAD_START = 10e-3  # seconds
USUAL_CACHE = 64 << 20  # bytes, where torch does not tell
USUAL_CLOCK = 1.7e9  # Hz


class Cuda:
    """The current CUDA device."""

    rehearsing = False

    def __init__(self):
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.properties: Any = torch.cuda.get_device_properties(self.device)
        self.cache = getattr(self.properties, "L2_cache_size", 0) or USUAL_CACHE
        self.processors = self.properties.multi_processor_count
        self.clock = 1e3 * (getattr(self.properties, "clock_rate", 0) or 0) or USUAL_CLOCK

    def facts(self) -> dict[str, Any]:
        """Return what a row says of the hardware and its driver."""
        import triton

        return {
            "processor": self.properties.name,
            "cores": self.processors,
            "capability": f"{self.properties.major}.{self.properties.minor}",
            "memory_gb": round(self.properties.total_memory / 1e9, 1),
            "cache_mb": round(self.cache / 2**20, 1),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        }

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        torch.cuda.synchronize()

    def timed(self, call: Call, host_seconds: float = 0.0) -> float:
        """Seconds on the device between two events around the call.

        The device first idles in a kernel for a multiple of `host_seconds`, the time that Python needs to launch the
        call's kernels: then these follow one another, and the events do not count the gaps of a slow host.
        """
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        ahead = min(HEAD_START * host_seconds, LONGEST_HEAD_START)
        if ahead and hasattr(torch.cuda, "_sleep"):
            torch.cuda._sleep(int(ahead * self.clock))
        began.record()
        call()
        ended.record()
        ended.synchronize()
        return 1e-3 * began.elapsed_time(ended)

    def graph(self, calls: Sequence[Call]) -> Call:
        """Capture the calls, one after the other, in one graph; return what replays it."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def free_memory(self) -> int:
        """Bytes that can be allocated, those that torch holds for reuse included."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def peak_of(self, call: Call) -> tuple[int, int]:
        """Return the bytes allocated at the highest point of a call: all of them, and those beyond what was there."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del kept
        return peak, peak - before

    def usable(self) -> bool:
        """Whether the device still answers after an error; an illegal access takes it from the process for good."""
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.device).item()
        except RuntimeError:
            return False
        return True


class Rehearsal:
    """Stands for a GPU on the CPU: the same calls, times that mean nothing."""

    rehearsing = True
    device = torch.device("cpu")
    cache, processors = 1 << 6, 2

    def facts(self) -> dict[str, Any]:
        """Return the facts of no GPU."""
        return {
            "processor": "rehearsal on the CPU",
            "cores": os.cpu_count(),
            "driver": None,
            "cuda": None,
            "triton": None,
        }

    def synchronize(self) -> None:
        """Nothing is asynchronous."""

    def timed(self, call: Call, host_seconds: float = 0.0) -> float:
        """Seconds of wall time."""
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def graph(self, calls: Sequence[Call]) -> Call:
        """Return what runs the calls."""
        return lambda: [call() for call in calls]

    def free_memory(self) -> int:
        """A gigabyte."""
        return 1 << 30

    def peak_of(self, call: Call) -> tuple[int, int]:
        """Run the call; nothing is measured."""
        call()
        return 0, 0

    def usable(self) -> bool:
        """Always."""
        return True


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return lines[0] if lines else None

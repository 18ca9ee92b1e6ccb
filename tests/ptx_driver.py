"""A driver for Triton whose GPU is the emulator of PTX, and whose tensors lie in the memory of the CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ptx_arithmetic import word
from ptx_emulator import Kernel

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}


def flat(value: Any) -> list:
    """What tuples hold, at any depth."""
    return [y for x in value for y in flat(x)] if isinstance(value, tuple | list) else [value]


class Driver:
    """What Triton takes for a GPU whose tensors lie in the memory of the CPU.

    Parameters
    ----------
    arch : str
        A key of TARGETS.
    """

    def __init__(self, arch: str):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", TARGETS[arch], 32)
        self.launches: dict[str, int] = {}  # by kernel
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232_448},
            load_binary=lambda *args: (1, 1, 32, 0, 1024),
            unload_module=lambda module: None,
        )

    def get_current_target(self):
        """What to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Where tensors of the CPU say they are."""
        return -1

    def get_current_stream(self, device: int) -> int:
        """None."""
        return 0

    def launcher_cls(self, source, metadata):
        """What Triton launches a compiled kernel by."""
        from triton.runtime.cache import get_cache_manager

        files = get_cache_manager(metadata.hash).get_group(f"{metadata.name}.json")
        kernel = Kernel(Path(next(path for name, path in files.items() if name.endswith(".ptx"))).read_text())
        kinds = flat(tuple(source.signature.values()))

        def launch(x, y, z, stream, function, packed, told, enter, leave, *args):
            given = zip(flat(args), kinds, strict=True)
            values = [word(v, kind) for v, kind in given if kind != "constexpr"]
            values += [0] * (len(kernel.params) - len(values))  # memory that Triton gives to what asks for it: none
            self.launches[metadata.name] = self.launches.get(metadata.name, 0) + 1
            kernel.launch(x * y * z, metadata.num_warps, metadata.shared, values)

        return launch

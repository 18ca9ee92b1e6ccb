"""Memory asked for before it is used: what a training step will hold, and what is free on the device that trains."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

Inputs = Tensor | dict[str, Tensor]
MEMINFO, CGROUPS, OWN_CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
STATES = 4  # per weight: itself, its gradient and the two moments of Adam
HEAP = 1.4  # what a CPU's allocator takes for the tensors of a step, against their bytes: measured 1.2 to 1.8
WIDTHS = {"64-true": 2.0, "16-true": 0.5, "bf16-true": 0.5}  # of a number, against float32's


def apply_network(network: nn.Module, inputs: Inputs) -> Tensor:
    """Call a network on a batch of inputs: a tensor, or tensors by the names of the network's arguments."""
    return network(**inputs) if isinstance(inputs, dict) else network(inputs)


def check_memory(
    network: nn.Module, window: Inputs, batch_size: int, *, device: torch.device, precision: str = "32-true"
) -> None:
    """Refuse a training that cannot fit into the memory that is free now.

    Nothing is checked where the free memory cannot be found out.

    Parameters
    ----------
    network : torch.nn.Module
        On the CPU, in float32. Its weights, buffers and mode stay as they are, and so do the global generators.
    window : Tensor (1, ...) or dict of Tensor (1, ...)
        The inputs of one window.
    batch_size : int
        Windows per step.
    device : torch.device
        The one that will train.
    precision : str
        Of the training, by Lightning's name.

    Raises
    ------
    MemoryError
        Naming the estimate, what is free and the largest `batch_size` that fits.
    """
    free = free_memory(device)
    if free is None:
        return
    window = _like_weights(network, window)
    fixed, per_window = step_bytes(network, window, device=device, precision=precision, limit=free)
    need = fixed + batch_size * per_window
    if need <= free:
        return
    sizes = (next(iter(window.values())) if isinstance(window, dict) else window).shape[1:]
    fits = int((free - fixed) / per_window) if per_window else 0
    remedy = f"set batch_size to at most {fits}"
    if fits < 1:
        remedy = "not even batch_size=1 fits: reduce d_model or another size of the network, or give smaller windows"
    raise MemoryError(
        f"a training step takes about {_size(need)} with batch_size={batch_size} and windows of "
        f"{' x '.join(map(str, sizes))}, but {_size(free)} are free on the device {device}; {remedy}"
    )


def step_bytes(
    network: nn.Module, window: Inputs, *, device: torch.device, precision: str, limit: float = float("inf")
) -> tuple[float, float]:
    """Estimate the bytes of a training step: those that do not depend on the batch, and those that a window adds.

    Forward passes of one window and of two measure what autograd keeps for the backward pass, which frees as much as it
    takes. No pass goes on beyond `limit` bytes; the estimate is then too low, but above the limit.
    """
    mixed = "mixed" in precision
    one = _kept_bytes(network, window, mixed, limit)
    two = 2 * one if 2 * one > limit else _kept_bytes(network, _joined(window, window), mixed, limit)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    width = WIDTHS.get(precision, 1.0)
    heap = HEAP if device.type == "cpu" else 1.0
    per_window = max(two - one, 0)
    return width * (STATES * weights + heap * (one - per_window)), width * heap * per_window


def _like_weights(network: nn.Module, window: Inputs) -> Inputs:
    """Give the numbers the dtype of the weights, which training does itself; counts stay as they are."""
    if isinstance(window, dict):
        return {name: _like_weights(network, x) for name, x in window.items()}  # type: ignore[misc]
    return window.to(next(network.parameters()).dtype) if window.is_floating_point() else window


def _joined(first: Inputs, second: Inputs) -> Inputs:
    if isinstance(first, dict) and isinstance(second, dict):
        return {name: torch.cat([first[name], second[name]]) for name in first}
    return torch.cat([first, second])  # type: ignore[list-item]


class _LimitReached(Exception):
    pass


def _kept_bytes(network: nn.Module, inputs: Inputs, mixed: bool, limit: float) -> int:
    """Return the bytes that autograd keeps of a forward pass, without those of weights and buffers."""
    buffers = {name: b.clone() for name, b in network.named_buffers()}  # the pass may write into them
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *buffers.values())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # until the pass has ended, so that no other storage can take their addresses

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        if sum(kept.values()) > limit:
            raise _LimitReached
        # Were the tensor itself handed back, one that a node has made would keep that node, and the node it: for ever.
        alive.append(tensor.detach())

    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda _: _),
        contextlib.suppress(_LimitReached),
    ):
        arguments = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
        torch.func.functional_call(network, buffers, *arguments).sum()
    return sum(kept.values())


def _size(n_bytes: float) -> str:
    unit, name = (1e9, "GB") if n_bytes >= 1e9 else (1e6, "MB")
    return f"{n_bytes / unit:.1f} {name}"


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a device, or None if that is unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    return min([*_machine_free(), *_cgroups_free()], default=None)


def _machine_free() -> Iterator[int]:
    with contextlib.suppress(OSError, StopIteration):
        lines = MEMINFO.read_text().splitlines()
        yield 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return
    # Elsewhere at least all that the machine has. Of its free pages, caches would hide most.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups_free() -> Iterator[int]:
    """Yield what each control group around this process, of either version, leaves below its limit."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")  # a container may show its own group as the top one, under no such path
        for group in (folder, *folder.parents):
            if group.is_relative_to(top):
                yield from _group_free(group, *names)


def _group_free(group: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit here
        spare = int((group / limit).read_text()) - int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield max(spare + int(stat.get(reclaimable, 0)), 0)  # cached files give way

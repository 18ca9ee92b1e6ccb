"""What Python a small call on a GPU costs, measured without one: all of it but the launch itself.

    python benchmarks/kernels/launch_cost.py [--repeats 1000]

The calls run on small tensors in the memory of the CPU, and end where Triton's launcher would call the driver, which
adds to them what it takes. Medians of wall time, in turn: of the launchers, of the functions a user calls, and of both
as they would be if each call ran its Python and Triton bound the arguments of each launch. Beside them operators of
torch on the CPU, on few numbers, and one of as many tensors as a scan that is written in Python, as
`torch.library.custom_op` does it, and only allocates its result. Mamba-2's functions take turns of their own, because
gradients leave cold caches behind.
"""

import argparse
import itertools
import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import triton
from compile_offline import NoDevice
from torch import Tensor
from triton.runtime import driver

from ssmseq_kernels import (
    bidirectional_selective_scan,
    causal_conv1d,
    cuda,
    ops,
    selective_scan,
    selective_state_update,
    ssd,
    ssd_scan,
    ssd_state_update,
    triton_replay,
)
from ssmseq_kernels.triton_common import Kernel

SHAPE = (32, 11, 512, 32)  # batch, length, channels, states: S-Mamba on ETTh1
HEADS = 8  # of Mamba-2's scan


class NoLaunch(NoDevice):
    """Stands for the driver of a GPU whose tensors lie in the memory of the CPU: loads and launches nothing."""

    def __init__(self, launched=lambda *args: None):
        super().__init__("sm_90")
        self.number = -1  # where tensors of the CPU say they are
        self.launched = launched
        limits, functions = {"max_shared_mem": 232_448}, itertools.count(1)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: limits,
            load_binary=lambda *args: (1, next(functions), 32, 0, 1024),
            unload_module=lambda module: None,
        )

    def launcher_cls(self, source, metadata):
        """What a compiled kernel calls with the grid, the stream, the function, and its arguments."""
        return self.launched


@torch.library.custom_op("launch_cost::allocate", mutates_args=())
def allocate(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """Do nothing with the tensors of a scan."""
    return torch.empty_like(u)


def zeros(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Allocate the gradient of u, and have none of the others."""
    return torch.empty_like(gradient), *[None] * 7


allocate.register_autograd(zeros, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def bound_each_time(kernel: Kernel, programs: int, tensors: tuple, numbers: tuple, named: dict[str, Any]) -> None:
    """Launch as Triton does."""
    kernel.jit[(programs,)](*tensors, *numbers, **named)


def calls() -> dict[str, Any]:
    """What a layer calls, on small tensors, by name: launchers, then functions of the library."""
    n_batch, length, n_channels, n_state = SHAPE
    u, delta, z = (torch.randn(n_batch, length, n_channels, dtype=torch.bfloat16) for _ in range(3))
    B, C = (torch.randn(n_batch, length, 1, n_state, dtype=torch.bfloat16) for _ in range(2))
    A, D, bias = -torch.rand(n_channels, n_state), torch.ones(n_channels), torch.zeros(n_channels)
    tensors = (u, delta, A, B, C, D, z, bias, None, None)
    few, own = torch.ones(2, 8), torch.ones(8)
    few_leaf = few.clone().requires_grad_()
    weight, state = torch.randn(n_channels, 4), torch.zeros(n_batch, n_channels, n_state)
    now: Any = [x if x is None or x.dim() < 3 else x[:, 0] for x in tensors[:8]]
    given: Any = tensors[:8]
    to_differentiate: Any = (u.clone().requires_grad_(), *given[1:])
    x, dt, rates, own_D, own_bias = (
        u.unflatten(2, (HEADS, -1)),
        delta[..., :HEADS],
        A[:HEADS, 0].contiguous(),
        D[:HEADS],
        bias[:HEADS],
    )
    heads: Any = (x, dt, rates, B, C, own_D, None, own_bias)
    step: Any = [x if x is None or x.dim() < 3 else x[:, 0] for x in heads]
    states, leaf = state.unflatten(1, (HEADS, -1)), x.clone().requires_grad_()
    differentiated = torch.empty_like(x)
    return {
        "forward": lambda: cuda.forward(*tensors, True, False, False, True),
        "forward of a pair": lambda: cuda.forward_pair(*tensors, *tensors, True, False, True),
        "convolution": lambda: cuda.conv_forward(u, weight, D, None, None, True, False),
        "step": lambda: cuda.update_checked(state, *now, True),
        "selective_scan": lambda: selective_scan(*given),
        "to be differentiated": lambda: selective_scan(*to_differentiate),
        "bidirectional_selective_scan": lambda: bidirectional_selective_scan(tensors, tensors),
        "causal_conv1d": lambda: causal_conv1d(u, weight, D, activation="silu"),
        "selective_state_update": lambda: selective_state_update(state, *now),
        "ssd_scan": lambda: ssd_scan(*heads),
        "ssd_state_update": lambda: ssd_state_update(states, *step),
        "torch.add": lambda: torch.add(D, D),
        "torch's batch_norm": lambda: F.batch_norm(few, own, own, own, own),
        "torch's to be differentiated": lambda: F.batch_norm(few_leaf, own, own, own, own),
        "an operator in Python": lambda: allocate(*given),
        "one in Python to be differentiated": lambda: allocate(*to_differentiate),
        "ssd_scan and its gradients": lambda: torch.autograd.grad(ssd_scan(leaf, *heads[1:]), leaf, differentiated),
    }


def in_turn(named: dict[str, Any], repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each call as it is, and with every launch bound."""
    made_again, launch = triton_replay.Replayed.__call__, Kernel.launch
    ways = ((made_again, launch), (lambda self, *args: self.function(*args), bound_each_time))
    times = {name: ([], []) for name in named}
    for i in range(2 * repeats):
        for name, call in named.items():
            for kind in (i % 2, 1 - i % 2):  # what is called first finds colder caches
                triton_replay.Replayed.__call__, Kernel.launch = ways[kind]
                began = time.perf_counter()
                call()
                times[name][kind].append(time.perf_counter() - began)
    triton_replay.Replayed.__call__, Kernel.launch = ways[0]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    driver.set_active(NoLaunch())  # type: ignore[arg-type]
    ops.KERNELS["cpu"] = cuda
    for name in ("update", "update_heads"):  # which would serve tensors in the memory of the CPU
        setattr(ops.cpu, name, lambda *args, **named: None)
    ssd.has_scan, ssd.has_tiles = (lambda device: False), (lambda device: True)
    named = calls()
    print(f"triton {triton.__version__}, torch {torch.__version__}\n{'':34}     us  us if bound each time")
    heads = {name for name in named if name.startswith("ssd")}
    for own in (named.keys() - heads, heads | {"an operator in Python"}):
        times = in_turn({name: call for name, call in named.items() if name in own}, repeats)
        for name, taken in times.items():
            print(f"{name:34} " + "  ".join(f"{1e6 * statistics.median(x):6.1f}" for x in taken))


if __name__ == "__main__":
    main()

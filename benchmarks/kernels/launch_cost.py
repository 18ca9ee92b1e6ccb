"""What Python a small call on a GPU costs, measured without one: all of it up to the launch itself.

    python benchmarks/kernels/launch_cost.py [--repeats 2000]

The launchers run on small tensors; Triton's just-in-time compiler finds their specialised kernels, and stops where it
would hand them to a driver. What a driver adds, and autograd or the dispatcher before the launcher, is not in it.
Medians of wall time beside that of one torch operator on the CPU, all in turn, and of finding the kernel by itself.
"""

import argparse
import statistics
import time
from typing import Any

import torch
import triton
from compile_offline import KERNELS, NoDevice
from triton.runtime import driver

from ssmseq_kernels import cuda

SHAPE = (32, 11, 512, 32)  # batch, length, channels, states: S-Mamba on ETTh1


class Unlaunched:
    """Stands for a kernel: finds what a launch would run."""

    spent = 0.0

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.find

    def find(self, *args, **named) -> None:
        """Take the arguments of one launch."""
        began = time.perf_counter()
        self.kernel.run(*args, grid=(1,), warmup=True, **named)
        Unlaunched.spent += time.perf_counter() - began


def calls() -> dict[str, Any]:
    """The launchers of a layer on small tensors, by name."""
    n_batch, length, n_channels, n_state = SHAPE
    u, delta, z = (torch.randn(n_batch, length, n_channels, dtype=torch.bfloat16) for _ in range(3))
    B, C = (torch.randn(n_batch, length, 1, n_state, dtype=torch.bfloat16) for _ in range(2))
    A, D, bias = -torch.rand(n_channels, n_state), torch.ones(n_channels), torch.zeros(n_channels)
    tensors = (u, delta, A, B, C, D, z, bias, None, None)
    weight, state = torch.randn(n_channels, 4), torch.zeros(n_batch, n_channels, n_state)
    now: Any = [x if x is None or x.dim() < 3 else x[:, 0] for x in tensors[:8]]
    return {
        "forward": lambda: cuda.forward(*tensors, True, False, False, True),
        "forward of a pair": lambda: cuda.forward_pair(*tensors, *tensors, True, False, True),
        "convolution": lambda: cuda.conv_forward(u, weight, D, None, None, True, False),
        "step": lambda: cuda.update_checked(state, *now, True),
        "torch.add": lambda: torch.add(D, D),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    driver.set_active(NoDevice("sm_90"))
    for module, names in KERNELS.items():
        for name in names:
            setattr(module, name, Unlaunched(getattr(module, name)))
    named = calls()
    found = {name: ([], []) for name in named}
    for _ in range(repeats):
        for name, call in named.items():
            Unlaunched.spent, began = 0.0, time.perf_counter()
            call()
            found[name][0].append(time.perf_counter() - began)
            found[name][1].append(Unlaunched.spent)
    print(f"triton {triton.__version__}, torch {torch.__version__}\n{'':20}  whole us  of it Triton us")
    for name, (whole, triton_) in found.items():
        print(f"{name:20} {1e6 * statistics.median(whole):9.1f} {1e6 * statistics.median(triton_):13.1f}")


if __name__ == "__main__":
    main()

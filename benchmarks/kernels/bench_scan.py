"""The selective scan, our kernels and their rivals side by side, on a CPU or on an NVIDIA GPU.

python benchmarks/kernels/bench_scan.py                      # the CPU: see cpu_bench.py
python benchmarks/kernels/bench_scan.py --device cuda        # the GPU: see cuda_bench.py
python benchmarks/kernels/bench_scan.py --device cuda -h     # the arguments of that one
"""

import argparse
from importlib import import_module


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_known_args()[0].device
    # Only the one asked for: the CPU's needs the compiled module, the GPU's a CUDA build of torch.
    import_module(f"{device}_bench").main()


if __name__ == "__main__":
    main()

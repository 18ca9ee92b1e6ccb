"""Mamba-2's scan (SSD), ours and its rivals side by side, on a CPU or on an NVIDIA GPU.

python benchmarks/kernels/bench_ssd.py                      # the CPU: see cpu_ssd.py
python benchmarks/kernels/bench_ssd.py --device cuda        # the GPU: the parts of cuda_ssd.py, run by cuda_bench.py
python benchmarks/kernels/bench_ssd.py --device cuda -h     # the arguments of that one
"""

import argparse
from importlib import import_module


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    if parser.parse_known_args()[0].device == "cpu":
        import_module("cpu_ssd").main()
    else:
        bench = import_module("cuda_bench")
        bench.main(what=bench.SSD)


if __name__ == "__main__":
    main()

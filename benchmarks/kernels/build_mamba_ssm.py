"""Build mamba_ssm's CUDA scan from its unpacked source distribution, for this GPU and real numbers only.

    python benchmarks/kernels/build_mamba_ssm.py mamba_ssm-2.3.2.post1 --out peers

Its own setup.py compiles ten files for up to nine architectures. What the benchmark calls is three of them, for one
architecture. The symbols of what is left out are never looked up, because the benchmark loads the module lazily.
Needs nvcc of the CUDA version that torch was built with, and ninja.
"""

import argparse
import os
import shutil
from pathlib import Path

SOURCES = {
    "bf16": ("fwd_bf16", "bwd_bf16_real"),
    "fp16": ("fwd_fp16", "bwd_fp16_real"),
    "fp32": ("fwd_fp32", "bwd_fp32_real"),
}
UNDEFINED = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS")
UNDEFINED += ("BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS")
FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math", "-lineinfo"]


def plan(folder: Path, dtypes: list[str], arch: str) -> dict:
    """Return the arguments of `torch.utils.cpp_extension.load`, with the flags of mamba_ssm's own setup.py."""
    sources = folder / "csrc" / "selective_scan"
    if not sources.is_dir():
        raise FileNotFoundError(f"{sources} is not there: give the folder of the unpacked source distribution")
    names = [f"selective_scan_{name}.cu" for dtype in dtypes for name in SOURCES[dtype]]
    number = arch.removeprefix("sm_")
    target = ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    return {
        "name": "selective_scan_cuda",
        "sources": [str(sources / name) for name in ("selective_scan.cpp", *names)],
        "extra_include_paths": [str(sources)],
        "extra_cflags": ["-O3", "-std=c++17"],
        "extra_cuda_cflags": [*FLAGS, *(f"-U__CUDA_NO_{name}__" for name in UNDEFINED), *target],
        "extra_ldflags": ["-Wl,-z,lazy"],
        "is_python_module": False,
        "verbose": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the unpacked source distribution")
    parser.add_argument("--out", type=Path, required=True, help="goes on PYTHONPATH: module and package are put there")
    parser.add_argument("--dtypes", default="bf16", help=f"of {','.join(SOURCES)}; default bf16")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be compiled")
    args = parser.parse_args()
    arguments = plan(args.folder.resolve(), args.dtypes.split(","), args.arch)
    if args.dry_run:
        print("\n".join(f"{name}: {value}" for name, value in arguments.items()))
        return
    from torch.utils import cpp_extension  # wants a CUDA build of torch

    args.out.mkdir(parents=True, exist_ok=True)
    number = args.arch.removeprefix("sm_")
    os.environ["TORCH_CUDA_ARCH_LIST"] = f"{number[:-1]}.{number[-1]}"
    try:
        cpp_extension.load(**arguments, build_directory=str(args.out.resolve()))
    except (ImportError, OSError) as error:
        # It is loaded at once here, which the left out symbols forbid; built it is all the same.
        if not (args.out / "selective_scan_cuda.so").exists():
            raise
        print(f"built; loading it eagerly fails as expected: {str(error)[:80]}")
    shutil.copytree(args.folder / "mamba_ssm", args.out / "mamba_ssm", dirs_exist_ok=True)
    print(f"now: export PYTHONPATH={args.out.resolve()}:$PYTHONPATH")


if __name__ == "__main__":
    main()

"""What this installation consists of, for bug reports and for the question which scan kernel runs."""

import os
import platform
from importlib import metadata

PACKAGES = (
    "torch", "lightning", "numpy", "pandas", "scikit-learn", "narwhals", "safetensors", "jsonargparse", "optuna",
    "triton", "matplotlib", "polars",
)  # fmt: skip


def describe_environment() -> dict:
    """Return versions, devices and scan kernels.

    Returns
    -------
    dict
        "ssmseq", "python", "platform", "cpus" (usable), "threads" (of torch), "cuda_devices" (names), "packages" (name
        to version, or None where not installed), "scan_kernels" (device to a sentence).
    """
    import torch

    from ssmseq import __version__
    from ssmseq_kernels import available_backends

    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "ssmseq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in cuda],
        "packages": {name: _version(name) for name in PACKAGES},
        "scan_kernels": available_backends(),
    }


def show_versions() -> None:
    """Print versions, devices, and which scan kernel serves which device; paste it into bug reports."""
    found = describe_environment()
    packages, kernels = found.pop("packages"), found.pop("scan_kernels")
    found["cuda_devices"] = ", ".join(found["cuda_devices"]) or "none"
    rows = [*found.items(), *((k, v or "not installed") for k, v in packages.items())]
    rows += [(f"scan on {device}", text) for device, text in kernels.items()]
    width = max(len(str(name)) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

"""What this installation consists of: versions, devices, and which scan kernel serves which device."""

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "lightning", "numpy", "pandas", "scikit-learn", "narwhals", "triton", "matplotlib", "polars")


def describe_environment() -> dict[str, Any]:
    """Collect what a report of a problem should say about the machine.

    Returns
    -------
    dict
        `ssmseq`, `python` and `platform` : str;
        `cpu_count` : int, or None where the platform does not tell it;
        `torch_threads` : int, the threads of one operation;
        `cuda_devices` : list of str, their names;
        `packages` : dict of name to version, None where a package is not installed;
        `scan` : dict of device type to a sentence, see `ssmseq_kernels.available_backends`.
    """
    import torch

    from ssmseq import __version__
    from ssmseq_kernels import available_backends

    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "ssmseq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(n_cuda)],
        "packages": {name: _version(name) for name in PACKAGES},
        "scan": available_backends(),
    }


def show_versions() -> None:
    """Print versions, devices and scan kernels, ready to be pasted into a report.

    Examples
    --------
    >>> import ssmseq
    >>> ssmseq.show_versions()  # doctest: +SKIP
    """
    found = describe_environment()
    packages, scan = found.pop("packages"), found.pop("scan")
    found["cuda_devices"] = ", ".join(found["cuda_devices"]) or "none"
    sections = {"": found, "packages": packages, "selective scan, by device": scan}
    for title, rows in sections.items():
        if title:
            print(f"\n{title}")
        for name, value in rows.items():
            print(f"{name:<14} {'not installed' if value is None and title else value}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""The result file: one JSON line per cell, appended as it comes, so that an interrupted run can be taken up again."""

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import ssmseq_kernels

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
CELL = ("what", "shape", "sizes", "mode", "method", "layout", "dtype", "length", "threads", "isa")
ORIGIN = ("commit", "build", "processor", "cores", "torch")  # rows of one origin may be compared
KEY = (*CELL, *ORIGIN, "repeats", "budget")
FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "asimd", "sve")


class Rows:
    """Rows of one file, and the facts that every new row shares; a row for which `forget` is true is not known."""

    def __init__(
        self,
        path: Path,
        common: dict[str, Any],
        *,
        again: bool = False,
        forget: Callable[[dict[str, Any]], bool] = lambda row: False,
    ):
        self.path, self.common = path, common
        self.known = set() if again else {_key(row) for row in read(path) if not forget(row)}

    def has(self, cell: dict[str, Any]) -> bool:
        """Whether the file held this cell when it was opened, or it has been added since."""
        return _key({**self.common, **cell}) in self.known

    def add(self, cell: dict[str, Any], values: dict[str, Any]) -> None:
        """Append a row, on the disk when this returns, and tell what it says on stderr."""
        now = {"date": datetime.datetime.now().isoformat(timespec="seconds"), "load": round(os.getloadavg()[0], 2)}
        row = {**self.common, **cell, **values, **now}
        self.known.add(_key(row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if _ends_mid_line(file):
                file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")
        shown = [str(cell[name]) for name in CELL if name in cell and name not in ("sizes", "isa")]
        print(" ".join(shown) + ": " + ", ".join(_told(values)), file=sys.stderr, flush=True)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; a line that an interruption cut short is passed over."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def of_one_origin(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the origin measured last, the latest of each cell."""
    rows = list(read(path))
    last = [rows[-1].get(name) for name in ORIGIN] if rows else []
    cells = {json.dumps([row.get(name) for name in CELL]): row for row in rows if [row.get(n) for n in ORIGIN] == last}
    return list(cells.values())


def common_facts() -> dict[str, Any]:
    """Hardware, versions and command, for every row measured on a CPU."""
    from ssmseq_kernels import cpu  # only here: GPUs are measured without the compiled module, too

    info = _cpuinfo()
    return {
        "build": _digest(Path(cpu._cpu.__file__).read_bytes()),
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in (info.get("flags") or info.get("Features") or "").split()],
        "cores": os.cpu_count(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "kernel": ssmseq_kernels.available_backends()["cpu"],
        **software_facts(),
    }


def software_facts() -> dict[str, Any]:
    """Commit, version of torch and command, for every row."""
    return {
        "commit": revision(),
        "torch": torch.__version__,
        "command": " ".join(["python", *(os.path.relpath(a, ROOT) if Path(a).is_file() else a for a in sys.argv)]),
    }


def sources_digest() -> str:
    """Return a digest of the sources of the GPU kernels, which holds where there is no git as well."""
    folder = Path(ssmseq_kernels.__file__).parent
    paths = [folder / "cuda.py", folder / "ssd.py", *sorted(folder.glob("triton_*.py"))]
    return _digest(b"".join(path.read_bytes() for path in paths))


def revision() -> str:
    """Return the git commit, with a digest of what has been changed in the kernels since."""
    commit = _git("rev-parse", "--short", "HEAD").strip() or "unknown"
    changes = _git("diff", "HEAD", "--", "kernels")
    return commit + (f"+{_digest(changes.encode())}" if changes else "")


def _git(*args: str) -> str:
    try:
        return subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT).stdout
    except FileNotFoundError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo; empty on other systems."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    return {name.strip(): value.strip() for name, value in pairs}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row.get(name) for name in KEY])


def _ends_mid_line(file) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _told(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if not isinstance(value, dict):
            yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"

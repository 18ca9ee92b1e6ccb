"""What an installation holds: layout of the repository, the wheel without a compiler, what importing costs."""

import ast
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # lower ones first; a module may import from its own layer and from those before it
    ("ssmseq_kernels",),
    ("ssmseq.nn",),
    (
        "ssmseq.base",
        "ssmseq.cards",
        "ssmseq.checkpoints",
        "ssmseq.fanout",
        "ssmseq.export",
        "ssmseq.formats",
        "ssmseq.memory",
        "ssmseq.plots",
        "ssmseq.pretrained",
        "ssmseq.sampling",
        "ssmseq.schedules",
        "ssmseq.training",
        "ssmseq.persistence",
        "ssmseq.datasets",
    ),
    ("ssmseq.forecasting", "ssmseq.ecg", "ssmseq.dna"),
    ("ssmseq.benchmark", "ssmseq.tuning"),
    ("ssmseq.cli", "ssmseq.environment"),
)


def run_python(code: str, **environment) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, cwd=ROOT / "tests"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_ssmseq_loads_neither_torch_nor_lightning():
    loaded = run_python("import sys, ssmseq; dir(ssmseq); print(*sys.modules)").split()
    assert not {"torch", "lightning", "pandas", "sklearn", "numpy"} & set(loaded)


def test_lightning_is_loaded_by_fit_alone():
    code = (
        "import sys, numpy as np; from ssmseq import NaiveForecaster, SMambaForecaster, load;"
        "SMambaForecaster(); NaiveForecaster(horizon=2, lookback=2).fit(np.eye(9)).predict();"
        "print('lightning' in sys.modules)"
    )
    assert run_python(code).strip() == "False"


def test_every_public_name_can_be_imported():
    import ssmseq

    for name in ssmseq.__all__:
        assert getattr(ssmseq, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ssmseq.nothing_of_the_kind


def test_folders_that_must_not_shadow_packages():
    for folder in ("kernels", "datasets", "benchmarks", "tests", "docs"):
        assert not (ROOT / folder / "__init__.py").exists()


def imports_of(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def layer_of(module: str):
    for depth, names in enumerate(LAYERS):
        if any(module == n or module.startswith(n + ".") for n in names):
            return depth
    return None


def test_imports_go_one_way():
    checked = 0
    for package, folder in (("ssmseq", ROOT / "ssmseq"), ("ssmseq_kernels", ROOT / "kernels" / "ssmseq_kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            own = layer_of(".".join(p for p in parts if p != "__init__"))
            if own is None:  # ssmseq/__init__.py itself, which imports lazily
                continue
            for imported in imports_of(path):
                depth = layer_of(imported)
                assert depth is None or depth <= own, f"{path.relative_to(ROOT)} imports {imported}"
                checked += depth is not None
    assert checked > 10


def test_only_training_imports_lightning():
    users = [p.name for p in (ROOT / "ssmseq").rglob("*.py") if any("lightning" in i for i in imports_of(p))]
    assert users == ["training.py"]


def test_files_read_in_one_sitting():
    for folder, most in (("ssmseq", 400), ("tests", 400), ("benchmarks", 400), ("kernels", 500)):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".h"):
                assert len(path.read_text(encoding="utf-8").splitlines()) <= most, path


def test_install_without_a_compiler(tmp_path):
    """The build falls back to a pure-Python wheel whose scan is the reference, with one warning."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        env=os.environ | {"CC": "/bin/false", "CXX": "/bin/false"},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [n for n in names if n.endswith((".so", ".pyd", ".cpp", ".h"))]
    assert {"ssmseq/py.typed", "ssmseq_kernels/py.typed", "ssmseq/datasets/registry.toml"} <= set(names)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__];"
        "import warnings, torch, ssmseq_kernels as k;"
        "assert k.__file__.startswith(sys.argv[1]), k.__file__;"
        "t = torch.rand; caught = [];\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2): y = k.selective_scan(t(2, 9, 4), t(2, 9, 4), -t(4, 3), t(2, 9, 3), t(2, 9, 3))\n"
        "print(k.available_backends()['cpu']); print(len(caught), tuple(y.shape))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "site"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    backend, result = done.stdout.splitlines()
    assert backend.startswith("reference: the compiled module is missing")
    assert result == "1 (2, 9, 4)"


def test_another_default_dtype_of_torch_is_no_obstacle():
    code = (
        "import sys, numpy as np, torch; from ssmseq import NaiveForecaster, SMambaForecaster;"
        "torch.set_default_dtype(getattr(torch, sys.argv[1])); frame = np.sin(np.arange(60.0))[:, None] + 58;"
        "est = SMambaForecaster(horizon=2, lookback=8, d_model=16, d_ff=16, max_epochs=1, random_state=0);"
        "print(est.fit(frame).predict().dtype, next(est.network_.parameters()).dtype);"
        "print(NaiveForecaster(horizon=1, lookback=2).fit(frame).predict()[0, 0] == frame[-1, 0])"
    )
    for dtype in ("float32", "float64"):
        done = subprocess.run([sys.executable, "-c", code, dtype], capture_output=True, text=True, cwd=ROOT / "tests")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["float64", "torch.float32", "True"]


def test_the_rows_of_benchmarks_name_no_place_of_the_machine():
    """Their commands are for others to repeat; where a script was told to put its files is left out."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
    commands = [row.get("command", "") for file in files for row in map(json.loads, file.read_text().splitlines())]
    assert len(commands) > 100
    assert not [c for c in commands if any(word.startswith("/") or "=/" in word for word in shlex.split(c))]
    written = run_python(
        "import sys; sys.path.insert(0, '../benchmarks'); import rows;"
        "words = ['b/x.py', '--seeds', '0', '--out', '/a/b', '--data=/c', '--set', 'band=[0, 1]', '--plot', 'p'];"
        "print(rows._command(words))"
    )
    assert written.strip() == "python b/x.py --seeds 0 --set 'band=[0, 1]'"

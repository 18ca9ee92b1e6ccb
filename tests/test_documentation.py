"""What the documentation says is run: examples of docstrings, the code of README and pages, commands of the README.

The code runs as it stands, with one change: Lightning's trainer stops an epoch after two steps, and after two epochs.
"""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ecg_cases import unpack_ptbxl

import ssmseq
import ssmseq_kernels

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "kernels/README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
DATA = os.environ.get("SSMSEQ_DATA")


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def modules_with_examples() -> list[str]:
    """Return the modules whose source has a prompt."""
    found = []
    for package in (ssmseq, ssmseq_kernels):
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            if ">>> " in path.read_text():
                found.append(".".join((package.__name__, *path.relative_to(folder).with_suffix("").parts)))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings_hold(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert any(test.examples for test in doctest.DocTestFinder().find(module))
    assert doctest.testmod(module).failed == 0


@pytest.fixture
def short_epochs(monkeypatch):
    """Let an epoch end after two steps, and training after two epochs."""
    import lightning.pytorch as pl

    class Trainer(pl.Trainer):
        def __init__(self, **given):
            given["max_epochs"] = min(given["max_epochs"], 2)
            super().__init__(**{"limit_train_batches": 2, "limit_val_batches": 1, **given})

    monkeypatch.setattr(pl, "Trainer", Trainer)


def waves() -> pd.DataFrame:
    values = np.sin(np.arange(600)[:, None] / [3, 5, 9]) + 0.1 * np.random.default_rng(0).standard_normal((600, 3))
    return pd.DataFrame(values, index=pd.date_range("2021-01-01", periods=600, freq="h"), columns=["a", "b", "c"])


def letters(n: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


def scan_inputs() -> dict:
    random = torch.Generator().manual_seed(0)
    sizes = {"u": (2, 5, 3), "delta": (2, 5, 3), "z": (2, 5, 3), "B": (2, 5, 4), "C": (2, 5, 4), "D": (3,)}
    found = {name: torch.randn(size, generator=random) for name, size in sizes.items()}
    return found | {"A": -torch.rand(3, 4, generator=random), "delta_bias": torch.zeros(3)}


def write_mamba(folder: str) -> None:
    from ssmseq.nn import LanguageModelNetwork, Mamba
    from ssmseq.pretrained import save_pretrained

    mixers = {"M": lambda: Mamba(d_model=16, d_state=4, d_conv=4, expand=2, reverse=False)}
    sizes = {"vocab_size": 50, "d_model": 16, "pattern": "MM", "feed_forwards": None, "eps": 1e-5}
    sizes |= {"residual_in_fp32": False, "tie_embeddings": True}
    save_pretrained(LanguageModelNetwork(mixers=mixers, **sizes), folder)


def given(page: str) -> dict:
    """Return the names, and write the files, that a page takes from its reader."""
    if page == "README.md":
        write_mamba("mamba-130m-hf")
        return {"prompt": torch.randint(0, 50, (1, 5))}
    if page == "docs/dna.md":
        Path("genome.fa").write_text(f">a\n{letters(8_000, 0)}\n")
        Path("other.fa").write_text(f">b\n{letters(700, 1)}\n")
        return {"sequences": [letters(30, i) for i in range(20)], "labels": [0, 1] * 10}
    if page == "docs/ecg.md":
        table = unpack_ptbxl(Path("ptb-xl")) / "ptbxl_database.csv"
        pd.read_csv(table).iloc[::10].to_csv(table, index=False)
        return {}
    return {"df": waves(), **scan_inputs()}


def needs_data(page: str) -> bool:
    return page == "docs/ecg.md" or any("fetch_ett" in code for code in blocks(page, "python"))


# The blocks of docs/serving.md are programs of their own: see test_serving_page.py.
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p != "docs/serving.md"])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, monkeypatch, tmp_path, short_epochs):
    if needs_data(page) and not DATA:
        pytest.skip("SSMSEQ_DATA is not set")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page", **given(page)}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)


def readme_commands() -> list[str]:
    return [line for block in blocks("README.md", "bash") for line in block.splitlines() if line.startswith("ssmseq ")]


@pytest.mark.skipif(not DATA, reason="SSMSEQ_DATA is not set")
def test_the_quick_commands_of_the_readme_end_well(monkeypatch, tmp_path, short_epochs, capsys):
    from ssmseq.cli import main

    monkeypatch.chdir(tmp_path)
    ran = 0
    for command in readme_commands():
        words, _, output = command.partition(" > ")
        if words.startswith("ssmseq benchmark run"):  # in processes of its own, and minutes: the next test
            continue
        try:
            code = main(shlex.split(words, comments=True)[1:])
        except SystemExit as ended:  # --help
            code = ended.code
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.err}"
        if output:
            Path(output.split()[0]).write_text(printed.out)
        ran += 1
    assert ran >= 6
    assert len(pd.read_csv("forecast.csv")) == 96
    assert Path("best.yaml").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="SSMSEQ_DATA is not set")
def test_the_benchmark_of_the_readme_ends_well(tmp_path):
    (command,) = (c for c in readme_commands() if c.startswith("ssmseq benchmark run"))
    words = [sys.executable, "-m", *shlex.split(command, comments=True)]
    subprocess.run(words, cwd=tmp_path, check=True)
    assert (tmp_path / "ssmseq-results" / "quick.jsonl").read_text().count('"status": "ok"') == 14


def test_the_make_targets_that_the_readme_names_exist():
    named = {line.split()[1] for block in blocks("README.md", "bash") for line in block.splitlines() if "make " in line}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    for target in targets:
        path = ((ROOT / page).parent / target.partition("#")[0]).resolve()
        script = Path(str(path).replace("auto_examples", "gallery")).with_suffix(".py")  # what the gallery makes it of
        assert path.exists() or script.exists(), f"{page} links to {target}"


def test_extras_that_the_installation_page_names_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text(), re.MULTILINE))
    assert named == set(project["optional-dependencies"]) - {"dev", "docs", "hub"}

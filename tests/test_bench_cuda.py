"""The GPU benchmark without a GPU: its arithmetic, its books, its rival in the interpreter, a rehearsal of its parts.

Triton's interpreter has to be chosen before anything imports triton; what needs it runs in processes of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks" / "kernels"
R1 = (8, 4096, 2048, 16)
G13 = (8, 4096, 32, 64, 1, 128)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

FAKE_SCAN = "from ssmseq_kernels.compat import selective_scan_fn\n"
FAKE_STEP = """
from ssmseq_kernels import compat
def selective_state_update(state, x, dt, A, *rest, **named):
    if state.dim() == 4:  # what a head shares must come expanded
        assert not any((*dt.stride()[2:], *A.stride()[1:], *named["dt_bias"].stride()[1:]))
    return compat.selective_state_update(state, x, dt, A, *rest, **named)
"""
FAKE_SSD = """
from ssmseq_kernels import ssd_scan
def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False):
    assert chunk_size == 256 and dt_bias is not None
    return ssd_scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus)
"""
FAKE_LAYER = """
from ssmseq.nn import Mamba as Ours
def Mamba(**sizes):
    return Ours(**sizes, reverse=False)
"""
CHECK_RIVAL = """
import sys
import torch
sys.path[:0] = sys.argv[1:]
import associative_peer
from cuda_cases import NAMES, make_inputs
from ssmseq_kernels.reference import selective_scan_reference
for sizes, config in (((2, 37, 12, 5), (16, 8, 4)), ((1, 9, 3, 16), (4, 2, 1)), ((1, 16, 8, 1), (8, 8, 1))):
    inputs = [make_inputs(sizes, torch.float32, torch.device("cpu"))[name] for name in NAMES]
    exact = [x.double() for x in inputs]
    exact[3:5] = [x.unsqueeze(2) for x in exact[3:5]]
    truth = selective_scan_reference(*exact)[0]
    error = ((associative_peer.associative_scan(*inputs, config).double() - truth).norm() / truth.norm()).item()
    assert error < 1e-6, (sizes, error)
try:
    associative_peer.associative_scan(inputs[0].mT.contiguous().mT, *inputs[1:])
except ValueError as error:
    assert "contiguous() on u" in str(error)
else:
    raise AssertionError("a strided tensor was taken")
"""


@pytest.fixture
def modules(monkeypatch):
    """A function that imports modules of the benchmark, whose folder is no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module


def run(*command, path=(), **environment):
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    settings["PYTHONPATH"] = os.pathsep.join([*map(str, path), *sys.path])
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=settings, timeout=600)


@needs_triton
def test_the_associative_rival_equals_the_definition():
    done = run("-c", CHECK_RIVAL, str(BENCHMARKS), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_work_of_the_largest_case_is_what_a_hand_counts(modules):
    roofline = modules("roofline")
    forward = roofline.forward_work(R1, 2)
    channel_steps = 67_108_864  # 8 x 4096 x 2048
    assert forward.bytes == 4 * 2 * channel_steps + 2 * 2 * 8 * 4096 * 16 + 4 * (2048 * 16 + 2 * 2048) == 539_115_520
    assert forward.exps == 19 * channel_steps == 1_275_068_416  # 16 decays, softplus, gate
    assert forward.slots == 160 * channel_steps / 32 == 335_544_320
    assert roofline.kept_bytes(R1) == 4 * 8 * 63 * 16 * 2048 == 66_060_288
    assert roofline.kept_bytes((2, 64, 8, 4)) == roofline.kept_bytes((2, 1, 8, 4)) == 0
    backward = roofline.backward_work(R1, 2)
    assert backward.bytes == 7 * 2 * channel_steps + 4 * 1_048_576 + 8 * (2048 * 16 + 2 * 2048) + 66_060_288
    both = roofline.work_of("forward+backward", R1, 2)
    assert both.bytes == forward.bytes + 66_060_288 + backward.bytes


def test_floors_and_share_on_a_device_of_known_rates(modules):
    roofline = modules("roofline")
    h200 = roofline.Rates(4.3e12, 132 * 16 * 1.98e9, 132 * 4 * 1.98e9)
    row = roofline.against(642e-6, roofline.forward_work(R1, 2), h200)
    assert row["memory_floor_us"] == pytest.approx(125.4, abs=0.1)
    assert row["exp_floor_us"] == pytest.approx(304.9, abs=0.1)
    assert row["issue_floor_us"] == pytest.approx(321.0, abs=0.1)
    assert row["bound_by"] == "issue"
    assert row["share"] == pytest.approx(0.5, abs=1e-3)
    assert "share" not in roofline.against(1.0, roofline.forward_work(R1, 2), None)


def test_a_decode_step_moves_the_state_twice(modules):
    state = 256 * 2048 * 16
    rows = 256 * (4 * 2048 + 2 * 16)
    assert modules("roofline").step_bytes((256, 2048, 16), 2) == 8 * state + 2 * rows + 4 * (2048 * 16 + 2 * 2048)


def test_the_work_of_mamba2_is_what_a_hand_counts(modules):
    ssd, operations = modules("cuda_ssd"), modules("ssd_cases").operations
    # C B^T once for all heads, its product with x, states from B and x, y from C and states
    assert operations(G13) == 32_768 * (2 * 64 * 128 + 32 * (2 * 64 * 64 + 4 * 64 * 128)) == 43_486_543_872
    rows, step_sizes, mixers, weights = 134_217_728, 2_097_152, 2 * 8_388_608, 3 * 4 * 32
    forward = 2 * rows + step_sizes + mixers + weights
    backward = 3 * rows + 2 * (step_sizes + mixers + weights)
    assert ssd.moved_bytes("forward", G13, 2, gated=False) == forward == 287_310_208
    assert ssd.moved_bytes("forward", G13, 2, gated=True) == forward + rows
    assert ssd.moved_bytes("backward", G13, 2, gated=False) == backward
    assert ssd.moved_bytes("forward+backward", G13, 2, gated=True) == forward + backward + 3 * rows
    assert ssd.step_bytes((256, 32, 64, 128), 2) == 8 * 67_108_864 + 2 * 256 * (2 * 2048 + 32 + 256) + weights


def test_other_ways_to_compute_mamba2_equal_the_definition(modules):
    cases = modules("ssd_cases")
    inputs = cases.make_inputs((2, 70, 4, 6, 2, 5), torch.float64)
    for given in (list(inputs.values()), [None if name == "z" else x for name, x in inputs.items()]):
        truth = cases.loop(*given)
        for way in (cases.minimal, cases.products):
            torch.testing.assert_close(way(*given), truth)


def test_the_listing_is_refused_where_memory_would_not_do(modules):
    ssd, too_large = modules("cuda_ssd"), modules("cuda_peers").too_large
    needed = ssd.footprint("minimal", "forward+backward", G13)
    assert 8e9 < needed < 10e9
    assert too_large(needed, int(10e9)) == f"would take about {needed / 1e9:.0f} GB of 10 free"
    assert too_large(needed, int(139e9)) is None


def test_each_command_measures_its_own_parts(modules):
    bench = modules("cuda_bench")
    assert bench.arguments([]).what == list(bench.SCAN)
    assert bench.arguments([], bench.SSD).what == ["ssd_check", "ssd", "ssd_op", "ssd_step"]
    assert bench.arguments(["--methods", "ours,mamba_ssm ssd"], bench.SSD).methods == ["ours", "mamba_ssm ssd"]


def test_inputs_are_rotated_until_they_exceed_the_cache(modules):
    copies_for = modules("cuda_timing").copies_for
    assert copies_for(400 << 20, 50 << 20) == 1
    assert copies_for(30 << 20, 50 << 20) == 5
    assert copies_for(1, 50 << 20) == 64


def test_methods_take_turns_on_other_copies_each_time(modules):
    timing, rehearsal = modules("cuda_timing"), modules("cuda_device").Rehearsal()
    order = []
    calls = {name: [lambda name=name, i=i: order.append((name, i)) for i in range(3)] for name in "ab"}
    times = timing.take_turns(rehearsal, calls, repeats=3, budget=1.0)
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}
    assert order[-6:] == [("a", 0), ("b", 1), ("a", 2), ("b", 0), ("a", 1), ("b", 2)]
    assert timing.summary([3e-6, 1e-6, 2e-6])["median_us"] == pytest.approx(2.0)


def row(what, shape, mode, method, dtype="bfloat16", **values):
    return {"what": what, "shape": shape, "mode": mode, "method": method, "dtype": dtype, **values}


def test_targets_read_their_figures_from_rows(modules):
    rows = [
        row("speed", "R1", "forward", "ours", median_us=500.0),
        row("speed", "R1", "forward", "ours", "float32", median_us=1.0),
        row("speed", "R1", "forward", "mamba_ssm", median_us=1000.0),
        row("speed", "R1", "forward", "eager_loop", "float32", median_us=20000.0),
        row("speed", "R1", "backward", "ours", median_us=2500.0),
        row("speed", "R1", "backward", "mamba_ssm", skipped="not installed: build it"),
        row("saved", "R1", "training", "ours", saved_bytes=87),
        row("saved", "R1", "training", "mamba_ssm, by its source", saved_bytes=100),
        row("decode", "1x2048x16", "step", "ours", median_us=5.0, share=0.1),
        row("decode", "1x2048x16", "step", "mamba_ssm step", median_us=6.0),
        row("decode", "256x2048x16", "step", "ours", median_us=20.0, share=0.85),
        row("decode", "256x2048x16", "step", "mamba_ssm step", median_us=19.0),
        row("cold", "R1", "full cache", "ours", first_s=0.5),
        row("ssd", "G13", "forward", "ours", median_us=1000.0),
        row("ssd", "G13", "forward", "mamba_ssm ssd", median_us=1200.0),
        row("ssd", "G13", "forward", "mamba_ssm ssd", "float32", median_us=9000.0),
        row("ssd", "G13", "forward, gated", "mamba_ssm ssd", median_us=9000.0),
    ]
    lines = modules("cuda_targets").report(rows).splitlines()
    text = {line[:4].strip() or f"after {lines[i - 1][:4].strip()}": line for i, line in enumerate(lines)}
    assert text["G1"].endswith("<= 600 us: 500 us, reached")
    assert text["after G1"].endswith(">= 1.5x: 2x, reached")
    assert text["G2"].endswith("<= 2000 us: 2.5e+03 us, NOT reached")
    assert text["after G2"].endswith("not yet measured (mamba_ssm: not installed: build it)")
    assert text["G6"].endswith("not yet measured")
    assert text["G9"].endswith(">= 1x: 0.95x, NOT reached")
    assert text["after G9"].endswith("0.85, reached")
    assert text["G10"].endswith("0.87x, reached")
    assert text["G11"].endswith("not yet measured")
    assert text["after G12"].endswith(">= 50x: 40x, NOT reached")
    assert text["G13"].endswith(">= 1x: 1.2x, reached")
    assert text["after G13"].endswith(">= 1.3x: 1.2x, NOT reached")
    assert lines[-1].endswith("forward+backward G13, mamba_ssm ssd / ours >= 1.3x: not yet measured")
    assert [name for name in text if name.startswith("G")] == [f"G{i}" for i in range(1, 14)]


def test_tables_show_rows_of_every_part_and_reasons(modules):
    report = modules("cuda_report")
    rows = [
        row("speed", "R1", "forward", "ours", median_us=500.0, share=0.5),
        row("steps", "DNA", "training step", "ours", skipped="out of memory"),
    ]
    text = report.tables(rows)
    assert "| R1 | forward | ours | bfloat16 | 500.0 |  |  |  |  |  | 50% |  |" in text
    assert "| DNA | training step | ours | bfloat16 | out of memory |" in text
    assert report.tables([]) == "no rows yet"


@needs_triton
def test_the_share_of_the_scan_counts_its_kernels_by_name(modules):
    share_of = modules("cuda_steps").share_of
    assert share_of([("forward_kernel", 3.0), ("backward_kernel", 1.0), ("gemm", 4.0)]) == 0.5
    assert share_of([]) is None


def test_a_rival_installed_since_is_measured_after_all(modules, monkeypatch):
    peers = modules("cuda_peers")
    absent = {"method": "mamba_ssm, padded", "skipped": "not installed: build it"}
    monkeypatch.setattr(peers, "missing", lambda name: None)
    assert peers.outdated(absent)
    assert not peers.outdated({"method": "mamba_ssm", "skipped": "out of memory"})
    assert not peers.outdated({"method": "mamba_ssm", "median_us": 1.0})
    monkeypatch.setattr(peers, "missing", lambda name: "not installed: build it")
    assert not peers.outdated(absent)


def test_an_absent_rival_names_its_remedy(modules, monkeypatch):
    peers = modules("cuda_peers")

    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(peers, "mamba_module", fail)
    said = {name: peers.missing.__wrapped__(f"mamba_ssm{name}") for name in ("", " step", " ssd")}
    assert said[""].startswith("not installed: build it")
    assert said[" ssd"].startswith("not installed: put its sources on PYTHONPATH")
    assert said[" ssd"].endswith("(ImportError: ops.triton.ssd_combined)")
    assert said[" step"].endswith("(ImportError: ops.triton.selective_state_update)")


def test_one_failing_cell_does_not_end_the_run(modules, tmp_path):
    speed = modules("cuda_speed")
    rows = modules("rows").Rows(tmp_path / "rows.jsonl", {})
    bench = speed.Bench(modules("cuda_device").Rehearsal(), rows)

    def fail(error):
        raise error

    bench.attempt({"what": "a"}, lambda: fail(torch.OutOfMemoryError("too much")))
    bench.attempt({"what": "b"}, lambda: fail(RuntimeError("no such\nthing")))
    bench.attempt({"what": "b"}, lambda: fail(AssertionError("measured twice")))
    found = [json.loads(line) for line in rows.path.read_text().splitlines()]
    assert [x.get("skipped") or x.get("failed") for x in found] == ["out of memory", "RuntimeError: no such"]
    bench.ends = 0.0
    with pytest.raises(speed.OutOfTime):
        bench.has({"what": "c"})
    bench.device.usable = lambda: False
    bench.ends = float("inf")
    with pytest.raises(speed.DeviceLost):
        bench.attempt({"what": "d"}, lambda: fail(RuntimeError("an illegal memory access")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_and_what_to_do(tmp_path):
    command = [str(BENCHMARKS / "bench_scan.py"), "--device", "cuda", "--out", str(tmp_path / "rows.jsonl")]
    done = run(*command)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
    assert "--rehearse" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()
    done = run(*command, "--targets")
    assert done.returncode == 0
    assert "not yet measured" in done.stdout
    assert "set TRITON_INTERPRET=1" in run(*command, "--rehearse", TRITON_INTERPRET="0").stderr
    assert "give another file" in run(*command[:3], "--rehearse").stderr


@pytest.fixture
def mamba_ssm(tmp_path):
    """A package of that name whose functions are ours: what the benchmark calls, and nothing else that imports."""
    package = tmp_path / "peers" / "mamba_ssm"
    files = {
        "__init__.py": "raise ImportError('every model of the package')\n",
        "ops/__init__.py": "",
        "ops/selective_scan_interface.py": FAKE_SCAN,
        "ops/triton/__init__.py": "",
        "ops/triton/selective_state_update.py": FAKE_STEP,
        "ops/triton/ssd_combined.py": FAKE_SSD,
        "modules/__init__.py": "",
        "modules/mamba_simple.py": FAKE_LAYER,
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package.parent


@needs_triton
def test_a_rehearsal_runs_every_kind_of_cell(mamba_ssm, tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [str(BENCHMARKS / "bench_scan.py"), "--device", "cuda", "--rehearse", "--out", str(out), "--repeats", "1"]
    command += ["--cases", "R1", "--what", "check,speed,op,decode,pair,packed,saved,cold"]
    command += ["--methods", "ours,mamba_ssm,associative,eager_loop", "--dtypes", "fp32"]
    done = run(*command, path=[mamba_ssm], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert not [row for row in rows if "failed" in row]
    assert not [row for row in rows if "skipped" in row]
    assert {row["what"] for row in rows} == {*command[command.index("--what") + 1].split(","), "ceilings"}
    assert all(row["correct"] for row in rows if row["what"] == "check")
    rivals = {row["method"]: row["difference"] for row in rows if "difference" in row}
    assert set(rivals) == {"mamba_ssm", "associative", "eager_loop"}
    assert max(rivals.values()) < 1e-5


@needs_triton
def test_a_rehearsal_runs_the_parts_of_mamba2(mamba_ssm, tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [str(BENCHMARKS / "bench_ssd.py"), "--device", "cuda", "--rehearse", "--out", str(out)]
    done = run(*command, "--cases", "ecg", "--dtypes", "fp32", path=[mamba_ssm], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert not [row for row in rows if "failed" in row or "skipped" in row]
    assert {row["what"] for row in rows} == {"ssd_check", "ssd", "ssd_op", "ssd_step", "ceilings"}
    assert rows[-1]["command"].startswith("python benchmarks/kernels/bench_ssd.py --device cuda")
    assert {row["mode"]: row["correct"] for row in rows if row["what"] == "ssd_check"} == dict.fromkeys(
        ("plain", "reverse", "packed", "groups"), True
    )
    rivals = {(row["method"], row["mode"]): row["difference"] for row in rows if "difference" in row}
    methods = {"mamba_ssm ssd", "minimal", "products"}
    plain = {(method, "forward") for method in methods}
    assert set(rivals) == plain | {("mamba_ssm ssd", "forward, gated"), ("mamba_ssm step", "step")}
    assert max(rivals.values()) < 1e-6


def test_the_build_of_the_rival_names_the_files_of_one_dtype(modules, tmp_path):
    plan = modules("build_mamba_ssm").plan
    (tmp_path / "csrc" / "selective_scan").mkdir(parents=True)
    found = plan(tmp_path, ["bf16"], "sm_90")
    names = [Path(x).name for x in found["sources"]]
    assert names == ["selective_scan.cpp", "selective_scan_fwd_bf16.cu", "selective_scan_bwd_bf16_real.cu"]
    assert "arch=compute_90,code=sm_90" in found["extra_cuda_cflags"]
    with pytest.raises(FileNotFoundError, match="unpacked"):
        plan(tmp_path / "elsewhere", ["bf16"], "sm_90")

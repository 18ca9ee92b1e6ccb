"""The memory of a training step, asked for before training: estimates, what is free, and the remedy that is named."""

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ssmseq import memory
from ssmseq.forecasting.smamba import SMambaNetwork
from ssmseq.forecasting.tokens import InputSizes

N_VARIATES = 321
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Named(nn.Module):
    """Takes its inputs by name; the sums of the known parts of its memory are easily written down."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, past, static=None):
        hidden = torch.relu(self.first(past))
        return self.second(hidden if static is None else hidden * static)


def smamba(**changes) -> SMambaNetwork:
    sizes = InputSizes(n_variates=N_VARIATES, lookback=96, horizon=96, n_past=4)
    options = {"d_model": 256, "d_ff": 256, "n_layers": 2, "d_state": 2, "d_conv": 2, "expand": 1}
    options |= {"dropout": 0.1, "activation": "gelu", "normalize": True}
    return SMambaNetwork(sizes, **options | changes)  # type: ignore[arg-type]


# Estimates ------------------------------------------------------------------------------------------------------------


def test_a_small_network_takes_what_can_be_counted_by_hand():
    network, window = Named(), torch.randn(1, 5, 8)
    weights = 4 * (8 * 16 + 16 + 16 * 4 + 4)
    kept = 4 * 5 * (8 + 16)  # the input, and the hidden layer, which two operations keep: once
    for inputs in (window, {"past": window}):
        assert memory.step_bytes(network, inputs, device=CUDA, precision="32-true") == (4 * weights, kept)
    wider = memory.step_bytes(network, window, device=CUDA, precision="64-true")
    assert wider == (8 * weights, 2 * kept)
    assert memory.step_bytes(network, window, device=CPU, precision="32-true") == (4 * weights, memory.HEAP * kept)
    static = {"past": window, "static": torch.randn(1, 5, 16)}
    with_static = memory.step_bytes(network, static, device=CUDA, precision="32-true")
    assert with_static == (4 * weights, kept + 2 * 4 * 5 * 16)
    fixed, mixed = memory.step_bytes(network, window, device=CUDA, precision="bf16-mixed")
    assert mixed == kept / 2  # what products keep is in bfloat16
    assert fixed == 4 * weights + 2 * 16 * 4  # and so is the copy of the second matrix, for the hidden layer's gradient


@pytest.mark.parametrize("changes", [{}, {"d_model": 512, "n_layers": 3}, {"d_state": 16}], ids=str)
def test_the_estimate_is_what_the_profiler_sees(changes, tmp_path):
    network, n_windows = smamba(**changes), 16
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    inputs = torch.randn(n_windows, N_VARIATES + 4, 96)

    def step():
        optimizer.zero_grad()
        nn.functional.mse_loss(network(inputs), torch.zeros(n_windows, N_VARIATES, 96)).backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    taken, peak = 0, 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        taken += event["args"]["Bytes"]
        peak = max(peak, taken)
    fixed, per_window = memory.step_bytes(network, inputs[:1], device=CUDA, precision="32-true")
    weights = sum(4 * p.numel() for p in network.parameters())
    # Weights and moments were there before. Gradients of weights come while what was kept for them goes.
    assert fixed + n_windows * per_window == pytest.approx(3 * weights + peak, rel=0.2)


RESIDENT = """
import resource, sys, torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from test_memory import CPU, memory, smamba
torch.manual_seed(0)
network, window = smamba(), torch.randn(1, 325, 96)
fixed, per_window = memory.step_bytes(network, window, device=CPU, precision="32-true")
optimizer = torch.optim.Adam(network.parameters(), fused=True)
network(window).sum().backward()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for _ in range(3):
    optimizer.zero_grad()
    nn.functional.mse_loss(network(torch.randn(32, 325, 96)), torch.zeros(32, 321, 96)).backward()
    optimizer.step()
print((fixed + 32 * per_window) / (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_estimate_is_near_what_a_process_takes():
    command = [sys.executable, "-c", RESIDENT, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1, abs=0.25)


def test_a_pass_ends_at_the_limit():
    ran = []
    layers = [nn.Linear(8, 8) for _ in range(10)]
    for layer in layers:
        layer.register_forward_hook(lambda *_: ran.append(1))
    network = nn.Sequential(*layers)
    fixed, per_window = memory.step_bytes(network, torch.randn(1, 100, 8), device=CUDA, precision="32-true", limit=9000)
    assert fixed + per_window > 9000
    assert len(ran) == 2  # the third layer would have kept 3200 bytes more


def test_the_measurement_leaves_no_trace():
    network, window = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(8, 4)), torch.randn(1, 5, 8)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        assert memory.step_bytes(network, window, device=CPU, precision="bf16-mixed")[1] > 0
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
    for name, x in network.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert all(p.grad is None for p in network.parameters())
    assert network.training


def test_nothing_of_the_measurement_stays_in_memory():
    """Nodes of the graph and tensors that they made may keep each other, where no garbage collector sees it."""

    def n_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    network, window = smamba(), {"past": torch.randn(1, N_VARIATES + 4, 96)}
    before = n_tensors()
    assert memory.step_bytes(network, window, device=CPU, precision="32-true")[1] > 1e6
    assert n_tensors() == before


# Refusals -------------------------------------------------------------------------------------------------------------


def free(monkeypatch, n_bytes):
    monkeypatch.setattr("ssmseq.memory.free_memory", lambda device: n_bytes)


def test_a_step_that_does_not_fit_is_refused_with_the_batch_that_does(small, waves, monkeypatch, no_training):
    free(monkeypatch, 200_000)
    pattern = (
        r"a training step takes about (?P<need>[\d.]+) [MG]B with batch_size=64 and windows of 7 x \d+, "
        r"but 0\.2 MB are free on the device cpu; set batch_size to at most (?P<fits>\d+)$"
    )
    with pytest.raises(MemoryError) as error:
        small(batch_size=64).fit(waves)
    found = re.search(pattern, str(error.value))
    assert found, error.value
    assert float(found["need"]) > 0.2
    fits = int(found["fits"])
    assert 1 <= fits < 64
    with pytest.raises(MemoryError, match=f"at most {fits}$"):
        small(batch_size=fits + 1).fit(waves)
    with pytest.raises(AssertionError, match="training began"):
        small(batch_size=fits).fit(waves)


def test_not_even_one_window_fits(small, waves, monkeypatch, no_training):
    for n_bytes in (10_000, 1):
        free(monkeypatch, n_bytes)
        with pytest.raises(MemoryError, match="not even batch_size=1 fits: reduce d_model or .* give smaller windows"):
            small().fit(waves)


def test_enough_memory_and_unknown_memory_pass(small, waves, monkeypatch):
    expected = small().fit(waves).predict()
    for n_bytes in (None, 10**12):
        free(monkeypatch, n_bytes)
        assert (small().fit(waves).predict() == expected).all(axis=None)
    with monkeypatch.context() as patch:
        free(patch, None)
        patch.setattr("ssmseq.memory.step_bytes", None)  # would fail if called
        small(max_epochs=1).fit(waves)


# What is free ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that writes the files of a machine; what it does not write is missing."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def group(folder: Path, names: tuple, *values) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, values, strict=True):
        (folder / name).write_text(f"{value}\n")


V2 = ("memory.max", "memory.current", "memory.stat")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


def test_free_memory_of_a_machine_without_limits(machine):
    machine(meminfo="MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable:   9000 kB\n")
    assert memory.free_memory(CPU) == 9000 * 1024


def test_limits_of_control_groups_count_at_every_level(machine, tmp_path):
    machine(meminfo="MemAvailable: 9000 kB\n", own="0::/a/b\n")
    groups = tmp_path / "groups"
    group(groups / "a" / "b", V2, "max", 5000, "anon 1\ninactive_file 2")
    assert memory.free_memory(CPU) == 9000 * 1024
    group(groups / "a", V2, 8_000_000, 5_000_000, "anon 1\ninactive_file 1000")
    assert memory.free_memory(CPU) == 3_001_000
    group(groups / "a" / "b", V2, 6_000_000, 5_000_000, "inactive_file 0")
    assert memory.free_memory(CPU) == 1_000_000
    group(groups / "a" / "b", V2, 4_000_000, 5_000_000, "inactive_file 0")
    assert memory.free_memory(CPU) == 0


def test_limits_of_the_older_control_groups_and_of_containers(machine, tmp_path):
    machine(meminfo="MemAvailable: 9000 kB\n", own="5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n")
    top = tmp_path / "groups" / "memory"
    group(top, V1, 7_000_000, 2_000_000, "inactive_file 7\ntotal_inactive_file 500")  # as a container sees its own
    assert memory.free_memory(CPU) == 5_000_500
    group(top / "docker" / "1", V1, 2**63 - 4096, 2_000_000, "total_inactive_file 0")
    assert memory.free_memory(CPU) == 5_000_500


def test_other_systems(machine, monkeypatch):
    found = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory, "os", SimpleNamespace(sysconf=found.__getitem__))
    assert memory.free_memory(CPU) == 4096 * 1000
    monkeypatch.setattr(memory, "os", SimpleNamespace())
    assert memory.free_memory(CPU) is None
    assert memory.free_memory(torch.device("mps")) is None


def test_a_gpus_free_memory_includes_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert memory.free_memory(CUDA) == 1300


def test_this_machine_says_what_is_free():
    if sys.platform.startswith("linux"):
        assert 10**7 < memory.free_memory(CPU) < 10**14

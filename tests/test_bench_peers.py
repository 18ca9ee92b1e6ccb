"""The rivals of the scan benchmark compute the same thing, and an interrupted benchmark goes on where it stopped."""

from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from scan_cases import make_inputs, relative_error

from ssmseq_kernels import ops
from ssmseq_kernels.reference import selective_scan_reference, selective_state_update_reference

BENCHMARKS = Path(__file__).parents[1] / "benchmarks" / "kernels"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def load(name):
    spec = spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers = load("peers")


def skip_if_missing(name):
    reason = peers.missing(name)
    if reason:
        pytest.skip(reason)


def without_groups(inputs):
    return [x[:, :, 0] if name in ("B", "C") else x for name, x in inputs.items()]


def gradients(scan, tensors, weights):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = scan(*leaves)
    return [y, *torch.autograd.grad(y, leaves, weights.to(y.dtype))]


@pytest.mark.parametrize("name", peers.SCANS)
def test_rival_agrees_with_the_definition(name, monkeypatch):
    skip_if_missing(name)
    monkeypatch.setattr(
        peers, "STEP", 2 * 24 * 5
    )  # two batch elements at a time, at most nine steps: chunks of two lengths
    monkeypatch.setattr(peers, "CHUNK", 9 * 2 * 24 * 5)
    inputs = make_inputs(4, 37, 24, 5, without=("initial_state",))
    weights = torch.randn(4, 37, 24, generator=torch.Generator().manual_seed(1))
    truth = gradients(
        lambda *x: selective_scan_reference(*x)[0], [inputs[name].double() for name in NAMES], weights.double()
    )
    found = gradients(peers.SCANS[name], without_groups(inputs), weights)
    for what, value, exact in zip(("y", *NAMES), found, truth, strict=True):
        error = relative_error(value.reshape(exact.shape), exact)
        assert error < 1e-5, f"{what}: relative error {error:.2e}"


@pytest.mark.parametrize("name", peers.STEPS)
def test_step_of_a_rival_agrees_with_the_definition(name):
    skip_if_missing(name)
    inputs = make_inputs(3, 1, 24, 5)
    state = inputs.pop("initial_state")
    step = {k: x[:, 0] if k in ("u", "delta", "B", "C", "z") else x for k, x in inputs.items()}
    exact_state = state.double()
    exact = selective_state_update_reference(exact_state, *(x.double() for x in step.values()), delta_softplus=True)
    y = peers.STEPS[name](state, *(x[:, 0] if k in ("B", "C") else x for k, x in step.items()))
    assert relative_error(y, exact) < 1e-5
    assert relative_error(state, exact_state) < 1e-5


@pytest.fixture
def rows():
    if ops.cpu is None:
        pytest.skip(ops.CPU_MISSING)
    return load("rows")


CELL = {"what": "speed", "shape": "etth", "sizes": (32, 7, 512, 16), "mode": "forward", "method": "ours"}
COMMON = {"commit": "abc", "processor": "some", "threads": 1, "repeats": 3}


def test_cells_in_the_file_are_known_for_the_same_commit_and_arguments_only(rows, tmp_path):
    path = tmp_path / "results" / "scan.jsonl"
    first = rows.Rows(path, COMMON)
    assert not first.has(CELL)
    first.add(CELL, {"median_ms": 1.5})
    assert first.has(CELL)
    assert rows.Rows(path, COMMON).has(CELL)
    assert not rows.Rows(path, COMMON).has({**CELL, "mode": "backward"})
    assert not rows.Rows(path, COMMON | {"commit": "def"}).has(CELL)
    assert not rows.Rows(path, COMMON | {"threads": 2}).has(CELL)
    assert not rows.Rows(path, COMMON, again=True).has(CELL)


def test_a_line_cut_short_is_passed_over_and_closed(rows, tmp_path):
    path = tmp_path / "scan.jsonl"
    rows.Rows(path, COMMON).add(CELL, {"median_ms": 1.5})
    with path.open("a") as file:
        file.write('{"what": "spe')
    again = rows.Rows(path, COMMON)
    assert again.has(CELL)
    again.add({**CELL, "mode": "backward"}, {"median_ms": 4.5})
    assert [row["median_ms"] for row in rows.read(path)] == [1.5, 4.5]


def test_the_report_takes_the_latest_rows_of_one_commit(rows, tmp_path):
    path = tmp_path / "scan.jsonl"
    rows.Rows(path, COMMON).add(CELL, {"median_ms": 9.0})
    for median in (2.0, 1.0):
        rows.Rows(path, COMMON | {"commit": "def"}, again=True).add(CELL, {"median_ms": median})
    assert [row["median_ms"] for row in rows.of_one_origin(path)] == [1.0]
    assert rows.of_one_origin(tmp_path / "none.jsonl") == []


@pytest.fixture
def refusal(rows, monkeypatch):
    """The guard of the benchmark with made-up durations: seconds(length) in the place of every trial."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    timing, cases = import_module("timing"), import_module("cases")

    def ask(seconds, budget=30):
        monkeypatch.setattr(timing, "_probe", lambda method, mode, sizes: seconds(sizes[1]))
        return timing.refusal.__wrapped__(cases.Method("chunked"), "forward+backward", (1, 131072, 512, 16), budget)

    return ask


def test_a_long_scan_that_grows_linearly_is_run_whatever_the_first_trials_look_like(refusal):
    assert refusal(lambda length: {32: 1e-3, 128: 8e-3}.get(length, 6e-5 * length)) is None


def test_a_scan_of_quadratic_cost_is_refused_before_a_trial_gets_dear(refusal):
    trials = []
    reason = refusal(lambda length: trials.append(length) or 1e-6 * length**2)
    assert reason.startswith("would take about 17180 s")
    assert max(trials) == 2048

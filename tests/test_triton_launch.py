"""Which Triton serves, and how it launches: without binding after the first time, on the device of the tensors.

What stands for the driver of a GPU compiles as for one, and takes down what would be launched.
"""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import weakref
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ssmseq_kernels import (
    available_backends,
    bidirectional_selective_scan,
    causal_conv1d,
    causal_conv1d_update,
    conv,
    ops,
    selective_scan,
    selective_state_update,
    ssd,
    ssd_scan,
    ssd_state_update,
)

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(ops.cpu is None, reason="the compiled module, which makes calls again, is missing"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter launches nothing"),
]
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks" / "kernels"
SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def plain(value):
    """A value to compare: tensors as their addresses, at any depth."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return tuple(plain(x) for x in value) if isinstance(value, tuple | list) else value


@pytest.fixture(scope="module")
def driver():
    """The driver, which keeps what it launched in `notes`: the arguments of Triton's launcher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        drivers = import_module("triton.runtime").driver
        before, notes = dict(vars(drivers)), []
        stand_in = import_module("launch_cost").NoLaunch(lambda *call: notes.append(plain(call)))
        stand_in.notes = notes
        drivers.set_active(stand_in)
        patch.setitem(ops.KERNELS, "cpu", import_module("ssmseq_kernels.cuda"))
        yield stand_in
        vars(drivers).update(before)


@pytest.fixture
def common(driver, monkeypatch):
    """The module of the launcher, with nothing launched yet, and `taken`, the launches asked for from now on."""
    module = import_module("ssmseq_kernels.triton_common")
    launch, module.taken = module.Kernel.launch, []
    import_module("ssmseq_kernels.triton_replay").forget()

    def note(kernel, *call):
        module.taken.append((kernel, call))
        kernel.known.clear()
        launch(kernel, *call)

    monkeypatch.setattr(module.Kernel, "launch", note)
    driver.notes.clear()
    yield module
    del module.taken


def repeated(common, driver, monkeypatch):
    """Launch what was taken once more, by us and by Triton; yield the kernel and the arguments of both launches."""
    monkeypatch.undo()
    for kernel, (programs, tensors, numbers, named) in common.taken:
        kernel.launch(programs, tensors, numbers, named)
        driver.notes.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common.Kernel, "bind", None)  # which fails if it is called
            kernel.launch(programs, tensors, numbers, named)
        kernel.jit[(programs,)](*tensors, *numbers, **named)
        yield kernel, *driver.notes


def make_scan(length=5, n_channels=8, n_state=2):
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(("u", "delta", "z"), (2, length, n_channels)) | dict.fromkeys(
        ("D", "delta_bias"), (n_channels,)
    )
    shapes |= dict.fromkeys("BC", (2, length, n_state))
    shapes |= {"A": (n_channels, n_state), "initial_state": (2, n_channels, n_state)}
    return {k: torch.randn(shapes[k], generator=generator).requires_grad_() for k in SCAN}


@pytest.fixture
def cut(driver, monkeypatch):
    """Cut time into parts."""
    module = import_module("ssmseq_kernels.triton_common")
    monkeypatch.setattr(module, "LONGEST_UNCUT", 64)
    monkeypatch.setattr(module, "PROGRAMS_WANTED", 100)
    import_module("ssmseq_kernels.triton_replay").forget()
    yield
    import_module("ssmseq_kernels.triton_replay").forget()


def call_everything():
    """Launch every kernel there is, in pairs, too."""
    inputs = make_scan(length=70)
    y, state = selective_scan(**inputs, return_final_state=True)
    (y.sum() + state.sum()).backward()
    pair = bidirectional_selective_scan(tuple(inputs.values()), tuple(inputs.values()))
    (pair[0] + pair[1]).sum().backward()
    weight = torch.randn(8, 3, requires_grad=True)
    causal_conv1d(inputs["u"], weight, activation="silu").sum().backward()
    with torch.no_grad():
        causal_conv1d_update(torch.randn(2, 8), torch.randn(2, 2, 8), weight)
        now = {k: v[:, 0] if v.dim() == 3 else v for k, v in inputs.items() if k != "initial_state"}
        step = [now[k].unsqueeze(1) if k in "BC" else now[k] for k in SCAN[:-1]]
        ops.KERNELS["cpu"].update_checked(inputs["initial_state"], *step, True)
    x, dt, B = torch.randn(1, 20, 2, 16), torch.rand(1, 20, 2), torch.randn(1, 20, 1, 16)
    tensors = [t.requires_grad_() for t in (x, dt, torch.rand(2), B, B.clone(), torch.rand(2), x.clone())]
    matrices = import_module("ssmseq_kernels.triton_ssd")
    options = matrices.Options(softplus=True, limit=(0.1, 1.0), final=True)
    matrices.ssd_chunked(matrices.Inputs(*tensors, None, None), None, options)[0].sum().backward()
    row = (tensors[0][:, 0], dt[:, 0], tensors[2], B[:, 0], B[:, 0], tensors[5], None, None)
    ops.KERNELS["cpu"].update_heads(torch.zeros(1, 2, 16, 16), *row, softplus=True, limit=(0.1, 1.0))


@torch.no_grad()
def call_without_gradients(monkeypatch):
    """Call the functions of the library that are made again as a whole, with tensors of Mamba-2 as on a GPU."""
    inputs, weight = make_scan(length=70), torch.randn(8, 3)
    pair = (tuple(inputs.values()), tuple(inputs.values()))
    for final in (False, True):
        selective_scan(**inputs, return_final_state=final)
        bidirectional_selective_scan(*pair, return_final_state=final)
    causal_conv1d(inputs["u"], weight, activation="silu")
    causal_conv1d_update(torch.randn(2, 8), torch.randn(2, 2, 8), weight)
    for name in ("update", "update_heads"):  # which come first where tensors are on the CPU
        monkeypatch.setattr(ops.cpu, name, lambda *args, **options: None)
    monkeypatch.setattr(ssd, "has_tiles", lambda device: True)
    state = inputs.pop("initial_state")
    selective_state_update(state, **{k: v[:, 0] if v.dim() == 3 else v for k, v in inputs.items()})
    x, dt, B = torch.randn(1, 20, 2, 16), torch.rand(1, 20, 2), torch.randn(1, 20, 1, 16)
    heads = (x, dt, torch.rand(2), B, B.clone(), torch.rand(2), x.clone())
    for limit in (ssd.NO_LIMIT, (0.1, 1.0)):
        ssd_scan(*heads, dt_limit=limit, return_final_state=True)
        row = [t[:, 0] if t.dim() > 2 else t for t in heads]
        ssd_state_update(torch.zeros(1, 2, 16, 16), *row, dt_limit=limit)


def test_the_launch_is_the_one_that_triton_makes(cut, common, driver, monkeypatch):
    call_everything()
    names = []
    for kernel, ours, theirs in repeated(common, driver, monkeypatch):
        assert ours[:6] == theirs[:6]  # grid, stream, function, packed metadata
        assert ours[6:9] == (None, None, None)  # what hooks are told, and no hooks
        assert ours[9:] == theirs[9:]
        names.append(kernel.jit.fn.__name__)
    kernels = [x for modules in import_module("compile_offline").KERNELS.values() for x in modules]
    assert set(names) == set(kernels)


def named(call, inputs, results):
    """A launch with the names of tensors in the place of addresses; those of neither kind by their order."""
    names = {x.data_ptr(): f"result {i}" for i, x in enumerate(results) if x is not None and x.numel()}
    names |= {x.data_ptr(): f"input {i}" for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)}

    def name(value):
        if isinstance(value, tuple):
            return tuple(name(x) for x in value)
        if isinstance(value, int) and value > 1 << 20:  # an address
            return names.setdefault(value, f"scratch {len(names)}")
        return value

    return name(call)


def test_a_call_made_again_launches_the_same(cut, driver, monkeypatch):
    replay = import_module("ssmseq_kernels.triton_replay")
    seen, shortened, within = [], [], []

    def compare(self, *args):
        """Call three times on other tensors each time: as it is, watched, and made again."""
        if within:  # a function that is compared itself
            return self.function(*args)
        within.append(self)
        launched, results = [], []
        for call in (self.function, self.call, self.call):
            own = [torch.empty_like(x).copy_(x) if isinstance(x, torch.Tensor) else x for x in args]
            driver.notes.clear()
            found = call(*own)
            made = replay.flat((found,))
            launched.append([named(note[9:], own, made) for note in driver.notes])
            results.append([None if x is None else (x.shape, x.stride(), x.dtype) for x in made])
        within.pop()
        assert launched[0] == launched[2]
        assert results[0] == results[2]
        seen.append(self.function)
        shortened.append(any(self.known.values()))
        return self.function(*args)

    monkeypatch.setattr(replay.Replayed, "call", replay.Replayed.__call__, raising=False)
    monkeypatch.setattr(replay.Replayed, "__call__", compare)
    call_everything()
    call_without_gradients(monkeypatch)
    assert set(seen) == {x.function for x in replay.functions}
    assert all(shortened)


def test_only_plain_calls_are_made_again(driver, monkeypatch):
    """Not those that are to be differentiated, or that are watched by somebody else."""
    replay, asked = import_module("ssmseq_kernels.triton_replay"), []
    monkeypatch.setattr(replay.Replayed, "__call__", lambda self, *args: asked.append(self) or self.function(*args))
    whole = replay.replayed(conv._convolve)
    x, weight = torch.zeros(1, 3, 4), torch.zeros(4, 2)
    causal_conv1d(x, weight)
    assert asked.pop(0) is whole
    causal_conv1d(x.requires_grad_(), weight)
    with torch.no_grad(), FlopCounterMode(display=False):
        causal_conv1d(x, weight)
    assert whole not in asked
    asked.clear()
    with FakeTensorMode():
        causal_conv1d(torch.zeros(1, 3, 4), torch.zeros(4, 2))
    assert not asked


@pytest.mark.parametrize("both", [False, True])
def test_what_is_kept_of_calls_holds_no_graph(driver, both):
    inputs = make_scan()
    for _ in range(3):
        u = inputs["u"] * 2
        there = weakref.ref(u)
        one = tuple((inputs | {"u": u}).values())
        y = bidirectional_selective_scan(one, one) if both else selective_scan(**inputs | {"u": u})
        del u, y, one
        gc.collect()
        assert there() is None


@pytest.mark.parametrize("order", [(0, 0, 1, 1, 0, 1), (1, 1, 0, 0, 1, 0)])
def test_tensors_given_twice_are_told_apart_later(cut, driver, order):
    for twice in order:
        x, state, weight = torch.zeros(3, 3), torch.zeros(3, 1, 3), torch.zeros(3, 2)
        state = x.view(3, 1, 3) if twice else state
        y = causal_conv1d_update(x, state, weight)
        bias = x  # stands for what is not there
        assert driver.notes[-1][9:14] == tuple(t.data_ptr() for t in (x, state, weight, bias, y))


def test_a_call_that_copies_is_never_shortened(cut, driver):
    step = import_module("ssmseq_kernels.cuda").conv_update
    weight = torch.zeros(2, 4).T  # copied, to become contiguous
    for _ in range(3):
        step.function(torch.zeros(1, 4), torch.zeros(1, 1, 4), weight, None, False)
        step(torch.zeros(1, 4), torch.zeros(1, 1, 4), weight, None, False)
        assert step.known.values() == [False]
        assert driver.notes[-1][11] != weight.data_ptr()


def test_a_view_that_begins_elsewhere_is_not_taken_for_another_tensor(cut, driver):
    replay, step = import_module("ssmseq_kernels.triton_replay"), import_module("ssmseq_kernels.cuda").conv_update
    later = replay.Replayed(lambda x, state, weight: step.function(x[1:], state, weight, None, False))
    replay.functions.remove(later)
    weight = torch.zeros(4, 2)
    for room, state in ((torch.zeros(3, 4), None), (torch.zeros(2, 4), torch.zeros(1, 1, 4))):
        state = room[1].view(1, 1, 4) if state is None else state  # where what is launched begins, at first
        later(room[:2], state, weight)
        assert driver.notes[-1][9:11] == (room[1].data_ptr(), state.data_ptr())
    assert later.known.values() == [False]


def test_what_is_compiled_for_one_kind_serves_no_other(common, driver, monkeypatch):
    def step(n_channels=16, dtype=torch.float32, offset=0, spread=1, width=3):
        room = torch.zeros(2, n_channels * spread + 8, dtype=dtype)
        x = room[:, offset : offset + n_channels * spread : spread]
        causal_conv1d_update(x, torch.zeros(2, width - 1, n_channels, dtype=dtype), torch.ones(n_channels, width))

    step()
    step(offset=1)
    step(offset=4)  # 16 bytes, which are none to a compiler
    step(spread=2)
    step(n_channels=17)
    step(dtype=torch.half)
    step(width=2)
    found = list(repeated(common, driver, monkeypatch))
    assert all(ours[4] == theirs[4] for _, ours, theirs in found)
    assert len({ours[4] for _, ours, _ in found}) == 6
    assert len(found[0][0].known) == 6


def test_hooks_see_every_launch(common, driver, monkeypatch):
    from triton import knobs

    causal_conv1d_update(torch.zeros(1, 4), torch.zeros(1, 1, 4), torch.ones(4, 2))
    kernel, call = common.taken[0]
    monkeypatch.undo()
    kernel.launch(*call)
    assert driver.notes[-1][6:9] == (None, None, None)
    hooks = knobs.runtime.launch_enter_hook
    if hooks is None:
        monkeypatch.setattr(knobs.runtime, "launch_enter_hook", print)
    else:
        monkeypatch.setattr(hooks, "calls", [print])
    kernel.launch(*call)
    assert driver.notes[-1][6] is not None  # what is told to
    assert driver.notes[-1][7] is not None  # the hook
    causal_conv1d_update(torch.zeros(1, 4), torch.zeros(1, 1, 4), torch.ones(4, 2))  # not for the first time
    assert len(driver.notes) == 4
    assert driver.notes[-1][7] is not None


def test_it_happens_on_the_device_of_the_tensors(driver, monkeypatch):
    used = []

    @contextlib.contextmanager
    def device(number):
        before, driver.number = driver.number, number
        used.append(number)
        yield
        driver.number = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(driver, "number", 7)
    for _ in range(2):
        causal_conv1d_update(torch.zeros(1, 4), torch.zeros(1, 1, 4), torch.ones(4, 2))
    assert used == [-1, -1]
    assert driver.number == 7


def test_few_kinds_are_kept(driver, monkeypatch):
    module = import_module("ssmseq_kernels.triton_conv")
    monkeypatch.setattr(import_module("ssmseq_kernels.triton_common"), "MOST_KINDS", 2)
    for n_channels in (4, 5, 6, 7):
        causal_conv1d_update(torch.zeros(1, n_channels), torch.zeros(1, 1, n_channels), torch.ones(n_channels, 2))
        assert 1 <= len(module.step_kernel.known) <= 2


@pytest.mark.parametrize(("version", "serves"), [("3.3.1", False), ("3.4.0", True), ("3.10.0+git1", True)])
def test_an_old_triton_leaves_gpus_to_the_reference(monkeypatch, version, serves):
    ops.cuda_missing.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    try:
        assert ops.has_kernel(torch.device("cuda")) == serves
        assert ("upgrade torch to 2.8" in available_backends()["cuda"]) != serves
    finally:
        ops.cuda_missing.cache_clear()

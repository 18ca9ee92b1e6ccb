"""What is remembered of calls: which are of one kind, and how one is to be run."""

import gc
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssmseq_kernels import ops

pytestmark = pytest.mark.skipif(ops.cpu is None, reason="the compiled module is missing")


class Own(torch.Tensor):
    pass


@pytest.fixture(params=["table", "methods"])
def memory(request):
    """A memory of calls; it looks at tensors through DLPack's table, or through their methods."""
    if request.param == "table" and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no table of DLPack")
    ops.cpu._cpu.use_exchange_table(request.param == "table")
    yield ops.cpu._cpu.Memory(100)
    ops.cpu._cpu.use_exchange_table(True)


def call(offset=0):
    room = torch.zeros(100)
    return room[offset : offset + 6].view(2, 3), None, torch.zeros(4, dtype=torch.int64), True, (False, (0.5, None))


def test_calls_of_one_kind_are_one(memory):
    first = call()
    assert memory.find(first) is None
    memory.keep(first, "kept")
    for other in (first, call(), call(offset=4)):
        assert memory.find(other) == "kept"
    memory.keep(call(), "again")
    assert memory.values() == ["again"]
    memory.clear()
    assert memory.find(first) is None


def test_calls_of_other_kinds_are_others(memory):
    x, y = torch.zeros(2, 6), torch.zeros(2, 6)
    room = torch.zeros(2, 20)
    kinds = [
        (x, y),
        (x, x),
        (x, None),
        (None, x),
        (x, y, None),
        (x, y, True),
        (x, y, False),
        (x, y, 0),
        (x, y, 2),
        (x, y, 0.5),
        (x, y, (0.5,)),
        (x, y, (0.5, 1.0)),
        (x, y, (0.5, (1.0,))),
        (x, y.double()),
        (x, y.half()),
        (x, y.bfloat16()),
        (x, y.int()),
        (x, y[:1]),
        (x, y.view(1, 12)),
        (x, y.view(12)),
        (x, room[:, :6]),
        (x, room[:, :12:2]),
        (x, room[:, 1:7]),
        (x, torch.zeros(6, 2).T),
        (x, y.view(1, 2, 1, 2, 1, 3, 1, 1)),
    ]
    for i, kind in enumerate(kinds):
        assert memory.find(kind) is None, i
        memory.keep(kind, i)
    assert [memory.find(kind) for kind in kinds] == list(range(len(kinds)))


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2).as_subclass(Own), torch.zeros(2, device="meta"), torch.zeros([1] * 9), "text", 1 << 64, [0.5]],
    ids=["derived", "without memory", "nine axes", "text", "large", "list"],
)
def test_what_cannot_be_described_is_not_remembered(memory, x):
    memory.keep((torch.zeros(3), x), "kept")
    assert memory.find((torch.zeros(3), x)) is None
    assert memory.values() == []
    assert memory.again((torch.zeros(3), x), -1, 0) is False  # it has to run, and is not to be watched


def test_the_memory_is_bounded_and_holds_no_more_than_it_has_to():
    memory, kept = ops.cpu._cpu.Memory(2), object()
    before = sys.getrefcount(kept)
    for size in range(5):
        memory.keep((torch.zeros(size),), kept)
        assert 1 <= len(memory.values()) <= 2
    assert sys.getrefcount(kept) == before + len(memory.values())
    del memory
    gc.collect()
    assert sys.getrefcount(kept) == before


def test_doing_it_again_allocates_launches_and_returns(memory):
    """Inputs 0 and 1, then allocations: 2 and 3, of which 3 has no elements and is the same each time."""
    launched, empty = [], torch.empty(0)
    new = ((2, 3), (3, 1), torch.float32, torch.device("cpu"))
    single = (lambda *given: launched.append(given), (7, 1, 1, "function"), [(1, 8), (0, 0), (-1, 0), (2, 4)], (5,))
    pair = (single[0], (8, 1, 1), [((0, 0), (2, 0)), ((1, 0),)], ())
    tape = ops.cpu._cpu.Tape(-1, [new, empty], [single, pair], (0, None, (1, 0)))
    memory.keep((torch.zeros(4), torch.zeros(4), 3), tape)
    for _ in range(3):
        x, y = torch.zeros(4), torch.zeros(4)
        made, nothing, (same, also) = memory.again((x, y, 3), -1, "stream")
        assert made is also
        assert same is empty
        assert nothing is None
        assert (made.shape, made.stride(), made.dtype) == ((2, 3), (3, 1), torch.float32)
        places = y.data_ptr() + 8, x.data_ptr(), 0, made.data_ptr() + 4
        assert launched.pop(0) == (7, 1, 1, "stream", "function", *places, 5)
        assert launched.pop(0) == (8, 1, 1, "stream", (x.data_ptr(), made.data_ptr()), (y.data_ptr(),))
    assert memory.again((x, y, 4), -1, "stream") is None  # never seen
    assert memory.again((x, y, 3), 0, "stream") is False  # another device
    memory.keep((x, y, 4), False)
    assert memory.again((x, y, 4), -1, "stream") is False


def test_an_error_of_a_launch_is_passed_on():
    def fail(*given):
        memory.clear()  # not even what runs is lost by it
        raise RuntimeError("no such stream")

    memory = ops.cpu._cpu.Memory(10)
    x = torch.zeros(4)
    memory.keep((x,), ops.cpu._cpu.Tape(-1, [], [(fail, (1, 1, 1), [(0, 0)], ())] * 2, None))
    with pytest.raises(RuntimeError, match="no such stream"):
        memory.again((x,), -1, 0)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_way_of_a_call_follows_from_its_tensors(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(ops, "cpu", None)
    x, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    rest = None, True, 3, 0.5, (0.5, 1.0), [0.5]
    assert ops.way((x, *rest)) == ops.DIRECT
    for asking in (leaf, leaf * 2, torch.nn.Parameter(x)):
        assert ops.way((x, *rest, asking)) == ops.DIFFERENTIATED
        with torch.no_grad():
            assert ops.way((x, *rest, asking)) == ops.DIRECT
    for derived in (x.as_subclass(Own), leaf.as_subclass(Own)):
        assert ops.way((leaf, *rest, derived)) == ops.DISPATCHED
    with FlopCounterMode(display=False):
        assert ops.way((x, *rest)) == ops.DISPATCHED

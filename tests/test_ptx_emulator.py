"""The emulator of PTX: its arithmetic against torch's, and what it refuses as a GPU would."""

import sys

import numpy as np
import pytest
import torch
from ptx_arithmetic import FaultError, exp2, field, from_bf16, product, quotient, shifted, to_bf16, upper_half, word
from ptx_emulator import Kernel
from ptx_warpgroup import operand

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes the memory of a process as Linux lays it out")
HEAD = """
.visible .entry k(.param .u64 .ptr .global .align 1 k_param_0, .param .u32 k_param_1)
{
    .reg .pred %p<3>;
    .reg .b16 %rs<3>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<9>;
    ld.param.b64 %rd0, [k_param_0];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd1, %rd0, %rd1;
"""


def run(body, given, warps=1, number=0, programs=1):
    """Run a kernel on one array, which it may change; %rd1 is the address of a lane's own number."""
    Kernel(f"{HEAD}{body}\nret;\n}}").launch(programs, warps, 4096, [given.ctypes.data, number])
    return given


def test_rounding_to_bfloat16_is_that_of_torch():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, 3.3895314e38, 1e-40])])
    x = x[~np.isnan(x)]
    expected = torch.from_numpy(x).bfloat16()
    assert np.array_equal(to_bf16(x), expected.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(from_bf16(to_bf16(x)), expected.float().numpy())
    assert np.isnan(from_bf16(to_bf16(np.float32([np.nan])))).all()


def test_doubles_are_rounded_once():
    halfway = 1 + 2.0**-8  # between 1 and the next bfloat16, to even: down
    found = from_bf16(to_bf16(np.array([halfway, halfway + 2.0**-40, halfway - 2.0**-40, -halfway - 2.0**-40])))
    assert found.tolist() == [1.0, 1 + 2.0**-7, 1.0, -1 - 2.0**-7]


@pytest.mark.parametrize(("kind", "depth"), [("bf16", 16), ("f16", 16), ("tf32", 8)])
def test_products_of_matrices(kind, depth):
    generator = torch.Generator().manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}[kind]
    a, b = torch.randn(16, depth, generator=generator), torch.randn(depth, 8, generator=generator)
    if kind == "tf32":
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    a, b, c = a.to(dtype), b.to(dtype), torch.randn(16, 8, generator=generator)
    per = 1 if kind == "tf32" else 2  # numbers of a register
    lane = torch.arange(32)
    rows, first = lane // 4, lane % 4 * per

    def registers(x, places):
        parts = [torch.stack([x[i, j + k] if along else x[i + k, j] for k in range(per)], -1) for i, j, along in places]
        return np.stack([p.contiguous().view(torch.int32).numpy().view(np.uint32).reshape(32) for p in parts])

    half = depth // 2
    left = registers(a, [(rows + 8 * (n % 2), first + half * (n // 2), True) for n in range(4)])
    right = registers(b, [(first + half * n, rows, False) for n in range(2)])
    start = np.stack([c[rows + 8 * (n // 2), lane % 4 * 2 + n % 2].numpy() for n in range(4)])
    found, expected = product(left, right, start, kind), c.double() + a.double() @ b.double()
    for n in range(4):
        assert np.allclose(found[n], expected[rows + 8 * (n // 2), lane % 4 * 2 + n % 2].numpy(), rtol=1e-6, atol=1e-6)


def stored(matrix, span, along, across, start=0):
    """A matrix [rows, bytes] in memory: eight rows are a block, and 16 bytes of a row take turns within it."""
    memory = np.zeros(1 << 16, np.uint8)
    for row, line in enumerate(matrix):
        for i in range(0, len(line), 16):
            turn = row % 8 * span // 128 if span > 16 else 0
            chunk = i % span // 16 ^ turn
            place = start + row // 8 * across + i // span * along + row % 8 * span + chunk * 16
            memory[place : place + 16] = line[i : i + 16]
    return memory


@pytest.mark.parametrize(("swizzle", "span"), [(0, 16), (1, 128), (2, 64), (3, 32)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_matrices_lie_where_descriptors_say(swizzle, span, turned, kind):
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)).bfloat16()  # numbers that tf32 has, too
    given = x.float().numpy() if kind == "tf32" else x.view(torch.int16).numpy()
    lines = np.ascontiguousarray(given.T if turned else given).view(np.uint8)
    along, across, start = 4096, 1024, 8192
    memory = stored(lines, span, along, across, start)
    descriptor = start >> 4 | along >> 4 << 16 | across >> 4 << 32 | swizzle << 62
    assert np.array_equal(operand(memory, descriptor, 32, 16, kind, turned), x.double().numpy())
    with pytest.raises(FaultError, match="base offset"):
        operand(memory, descriptor | 1 << 49, 32, 16, kind, turned)


@pytest.mark.parametrize(("adds", "before"), [("1", 1.0), ("0", 0.0)])
def test_products_of_a_warpgroup(adds, before):
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(64, 16, generator=generator).bfloat16()
    fill = """
    mov.b32 %r2, 0f3F800000;
    mov.b32 %r3, 0f3F800000;
    mov.b32 %r4, 0f3F800000;
    mov.b32 %r5, 0f3F800000;
    shl.b32 %r6, %r0, 4;
    ld.global.v4.b32 { %r7, %r8, %r9, %r10 }, [ %rd2 + 0 ];
    """
    body = f"""
    mul.wide.u32 %rd2, %r0, 16;
    add.s64 %rd2, %rd0, %rd2;
    {fill}
    st.shared.v4.b32 [%r6], {{ %r7, %r8, %r9, %r10 }};
    bar.sync 0;
    fence.proxy.async.shared::cta;
    wgmma.fence.sync.aligned;
    mov.b64 %rd3, {128 >> 4 << 16 | 128 >> 4 << 32};
    mov.b64 %rd4, {128 >> 4 << 16 | 256 >> 4 << 32};
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%r2,%r3,%r4,%r5}}, %rd4, %rd3, {adds}, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    st.global.v4.b32 [ %rd2 + 0 ], {{ %r2, %r3, %r4, %r5 }};
    """
    blocks = left.view(8, 8, 2, 8).transpose(1, 2).contiguous()  # of 8 rows and 16 bytes
    room = blocks.view(torch.int16).numpy().view(np.float32).ravel().copy()
    found = run(body, room, warps=4).reshape(4, 8, 4, 4)  # warp, row, pair of columns, numbers of a lane
    expected = left.double() @ left[:8].double().T + before
    rows = np.concatenate([found[..., :2].reshape(4, 8, 8), found[..., 2:].reshape(4, 8, 8)], 1).reshape(64, 8)
    assert np.allclose(rows, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_whole_numbers():
    a, b = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    assert quotient(a, b).tolist() == [3, -3, -3, 3]
    by = np.array([1, 31, 32, 40], np.uint32)
    assert shifted(a, by, True).tolist() == [14, -(1 << 31), 0, 0]
    assert shifted(a, by, False).tolist() == [3, -1, 0, -1]
    bits = np.array([0b1101_0110], np.uint32)
    assert field(bits, np.uint32([2]), np.uint32([3])).tolist() == [0b101]
    assert field(bits.view(np.int32), np.uint32([2]), np.uint32([3])).tolist() == [-3]
    assert exp2(np.float32([3, -150, -np.inf])).tolist() == [8, 0, 0]


def test_loads_stores_loops_and_masks():
    body = """
    ld.param.b32 %r1, [k_param_1];
    mov.b32 %r2, 0;
    setp.lt.s32 %p1, %r0, 8;
$L__more:
    @%p1 ld.global.b32 { %r3 }, [ %rd1 + 0 ];
    fma.rn.f32 %r3, %r3, 0f40000000, 0f3F800000;
    @%p1 st.global.b32 [ %rd1 + 0 ], { %r3 };
    add.s32 %r2, %r2, 1;
    setp.lt.s32 %p0, %r2, %r1;
    @%p0 bra $L__more;
    """
    found = run(body, np.ones(32, np.float32), number=3)
    assert found.tolist() == [15.0] * 8 + [1.0] * 24


def test_numbers_side_by_side_and_of_two_kinds():
    body = """
    ld.global.b32 { %r1 }, [ %rd1 + 0 ];
    mov.b32 %r2, 0f40400000;
    mov.b64 %rd2, {%r1, %r2};
    fma.rn.f32x2 %rd2, %rd2, %rd2, %rd2;
    mov.b64 {%r1, %r3}, %rd2;
    cvt.rn.bf16.f32 %rs0, %r3;
    add.rn.f32.bf16 %r1, %rs0, %r1;
    st.global.b32 [ %rd1 + 0 ], { %r1 };
    """
    given = np.arange(32, dtype=np.float32)
    assert run(body, given.copy()).tolist() == (given * given + given + 12).tolist()


@pytest.mark.parametrize(
    ("shuffle", "reads"),
    [("bfly.b32 %r2, %r0, 3, 31", [i ^ 3 for i in range(32)]), ("up.b32 %r2, %r0, 2, 0", [0, 1, *range(30)])],
)
def test_lanes_read_one_another(shuffle, reads):
    found = run(f"shfl.sync.{shuffle}, -1;\nst.global.b32 [ %rd1 + 0 ], {{ %r2 }};", np.zeros(32, np.uint32))
    assert found.tolist() == reads


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_upper_halves_of_products(dtype):
    room = np.iinfo(dtype)
    a = np.array([room.min, room.max, room.max, 3, room.max // 3], dtype)
    b = np.array([room.max, room.max, 2, 5, 7], dtype)
    expected = [(int(x) * int(y)) // 2**room.bits for x, y in zip(a, b, strict=True)]
    assert upper_half(a, b).tolist() == expected


def test_arguments_are_passed_as_their_bits():
    assert word(np.inf, "fp32") == 0x7F800000
    assert word(-1, "i32") == -1
    assert word(torch.empty(0), "*fp32") == 0


@pytest.mark.parametrize("barrier", ["", "bar.sync 0;"])
def test_a_missing_barrier_is_seen(barrier):
    body = f"""
    shl.b32 %r1, %r0, 2;
    st.shared.b32 [%r1], %r0;
    {barrier}
    xor.b32 %r2, %r1, 128;
    ld.shared.b32 %r3, [%r2];
    st.global.b32 [ %rd1 + 0 ], {{ %r3 }};
    """
    found = run(body, np.zeros(64, np.uint32), warps=2)
    assert np.array_equal(found, np.arange(64) ^ 32) == bool(barrier)


def test_what_a_gpu_would_not_do():
    room = np.zeros(64, np.float32)
    with pytest.raises(FaultError, match=r"ld.global.v2.b32 at"):
        run("add.s64 %rd2, %rd0, 4;\nld.global.v2.b32 { %r1, %r2 }, [ %rd2 + 0 ];", room)
    with pytest.raises(FaultError, match=r"st.global.b32 at .*0x8"):
        run("mov.b64 %rd2, 8;\nst.global.b32 [ %rd2 + 0 ], { %r0 };", room)
    with pytest.raises(FaultError, match="disagree"):
        run("setp.lt.s32 %p0, %r0, 8;\n@%p0 bra $L__end;\n$L__end:", room)
    with pytest.raises(FaultError, match="vote"):
        run("vote.sync.any.pred %p0, %p1, -1;", room)

"""The least that a scan costs on a GPU: bytes, special functions, instructions, and the time each of them takes.

A channel-step is one channel of one time step. Counts are those of the work itself on tensors that are read and written
once: a cut of time into parts, which does some of it twice, counts against the kernel, as does padding.
"""

from dataclasses import dataclass

CHUNK = 64  # steps between the states that the forward pass of training keeps
WARP = 32
SOFTPLUS, GATE = 2, 1  # special functions of a channel-step beside the decays
WALKS_BACK = 3  # times that the backward pass needs the decays: to find the states of a chunk, of a segment, and back
# Warp instructions for 32 channel-steps and one state: the fewest that a design is known to need, all walks included.
# The kernels as compiled for sm_90 take 10.6 and 41.6 in their loops over steps (16 states, see compile_offline.py).
SLOTS_PER_STATE = 10
SLOTS_PER_STATE_BACK = 36

Sizes = tuple[int, int, int, int]


@dataclass(frozen=True)
class Work:
    """What a run must do: bytes through memory, special functions (exp2 and the like), warp instructions."""

    bytes: float
    exps: float
    slots: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.exps + other.exps, self.slots + other.slots)


@dataclass(frozen=True)
class Rates:
    """What a device does in a second of each; measured, not from a data sheet."""

    bytes: float
    exps: float
    slots: float


def forward_work(sizes: Sizes, itemsize: int, keep: bool = False) -> Work:
    """Work of a forward pass with skip, gate and softplus.

    Parameters
    ----------
    sizes : tuple of int
        B, L, D, N.
    itemsize : int
        Bytes of an element of u, delta, B, C, z and y; weights and states have four.
    keep : bool
        Whether states are written for the backward pass.
    """
    n_batch, length, d, n = sizes
    rows, mixers = n_batch * length * d * itemsize, n_batch * length * n * itemsize
    moved = 4 * rows + 2 * mixers + 4 * (d * n + 2 * d)
    steps = n_batch * length * d
    kept = kept_bytes(sizes) if keep else 0
    return Work(moved + kept, steps * (n + SOFTPLUS + GATE), steps * SLOTS_PER_STATE * n / WARP)


def backward_work(sizes: Sizes, itemsize: int) -> Work:
    """Work of a backward pass: the gradients of all eight tensors from that of y and the kept states."""
    n_batch, length, d, n = sizes
    rows, mixers = n_batch * length * d * itemsize, n_batch * length * n * itemsize
    moved = 7 * rows + 4 * mixers + 8 * (d * n + 2 * d) + kept_bytes(sizes)
    steps = n_batch * length * d
    exps = steps * (WALKS_BACK * (n + SOFTPLUS) + GATE)
    return Work(moved, exps, steps * SLOTS_PER_STATE_BACK * n / WARP)


def kept_bytes(sizes: Sizes) -> int:
    """Bytes of the states (B, chunks - 1, N, D) kept for the backward pass."""
    n_batch, length, d, n = sizes
    return 4 * n_batch * (max(-(-length // CHUNK), 1) - 1) * n * d


def work_of(mode: str, sizes: Sizes, itemsize: int) -> Work:
    """Work of "forward", "backward" or "forward+backward"."""
    if mode == "forward":
        return forward_work(sizes, itemsize)
    if mode == "backward":
        return backward_work(sizes, itemsize)
    return forward_work(sizes, itemsize, keep=True) + backward_work(sizes, itemsize)


def step_bytes(sizes: tuple[int, int, int], itemsize: int) -> int:
    """Bytes of one decode step of B, D, N: the float32 state read and written, rows, mixers and weights."""
    n_batch, d, n = sizes
    return 8 * n_batch * d * n + itemsize * n_batch * (4 * d + 2 * n) + 4 * (d * n + 2 * d)


def floors(work: Work, rates: Rates) -> dict[str, float]:
    """Seconds that each part of the work takes at the device's rates."""
    return {
        "memory": work.bytes / rates.bytes,
        "exp": work.exps / rates.exps,
        "issue": work.slots / rates.slots,
    }


def against(seconds: float, work: Work, rates: Rates | None) -> dict[str, float | str]:
    """Return the columns of a row: the work, its floors in microseconds, and the share of the highest one reached."""
    columns: dict[str, float | str] = {"bytes": work.bytes, "exps": work.exps, "issue_slots": work.slots}
    if rates is None:
        return columns
    found = floors(work, rates)
    highest = max(found, key=lambda name: found[name])
    columns |= {f"{name}_floor_us": round(1e6 * value, 3) for name, value in found.items()}
    return columns | {"bound_by": highest, "share": round(found[highest] / seconds, 4)}

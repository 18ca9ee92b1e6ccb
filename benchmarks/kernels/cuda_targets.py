"""The targets of the GPU kernels, each with the figure that the rows of a result file show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cuda_special import BY_SOURCE, ONE_LAUNCH, PACKED, PACKED_PEER, PAIR_PEER, PEER
from cuda_ssd import SSD_PEER

Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One figure of a target: what is measured, the goal, and how to read it from the rows.

    Parameters
    ----------
    text : str
    goal : float
    at_least : bool
        Whether the figure must not be lower than the goal; otherwise it must not be higher.
    unit : str
    figure : callable
        From the finder of rows to the figure; KeyError says which row is missing.
    """

    text: str
    goal: float
    at_least: bool
    unit: str
    figure: Callable[["Finder"], float]

    def line(self, find: "Finder") -> str:
        """Return the text with the figure reached, or why there is none."""
        goal = f"{'>=' if self.at_least else '<='} {self.goal:g}{self.unit}"
        try:
            value = self.figure(find)
        except KeyError as error:
            return f"{self.text} {goal}: {error.args[0]}"
        reached = value >= self.goal if self.at_least else value <= self.goal
        return f"{self.text} {goal}: {value:.3g}{self.unit}, {'reached' if reached else 'NOT reached'}"


class Finder:
    """Finds a figure in rows by what the row must say."""

    def __init__(self, rows: list[Row], dtype: str = "bfloat16"):
        self.rows, self.dtype = rows, dtype

    def __call__(self, figure: str, what: str, method: str = "ours", shape: str | None = None, mode: str | None = None):
        """Return the figure; KeyError with "not yet measured", or with what the row says instead of figures."""
        wanted = {"what": what, "method": method, "shape": shape, "mode": mode}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        fitting = [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]
        fitting = [row for row in fitting if row.get("dtype") in (self.dtype, None) or method not in OF_DTYPE]
        for row in reversed(fitting):
            if figure in row:
                return row[figure]
        said = [row.get("skipped") or row.get("failed") for row in fitting]
        raise KeyError(f"not yet measured{f' ({method}: {said[-1]})' if any(said) else ''}")


OF_DTYPE = ("ours", PEER, f"{PEER} step", SSD_PEER, "associative")
OF_DTYPE += (ONE_LAUNCH, PACKED, PACKED_PEER, PAIR_PEER, BY_SOURCE)


def speed(shape: str, mode: str, goal_us: float) -> Claim:
    text = f"{mode} {shape}"
    return Claim(text, goal_us, False, " us", lambda find: find("median_us", "speed", shape=shape, mode=mode))


def ratio(shape: str, mode: str, goal: float, rival: str = PEER, what: str = "speed") -> Claim:
    text = f"{mode} {shape}, {rival} / ours"
    return Claim(text, goal, True, "x", lambda find: _ratio(find, rival, shape, mode, what))


def _ratio(find: Finder, rival: str, shape: str, mode: str, what: str) -> float:
    own = find("median_us", what, shape=shape, mode=mode)
    return find("median_us", what, rival, shape, mode) / own


def _pair(find: Finder) -> float:
    own = find("median_us", "pair", ONE_LAUNCH, "R5", "forward+backward")
    return find("median_us", "pair", PAIR_PEER, "R5", "forward+backward") / own


def _packed(find: Finder) -> float:
    own = find("tokens_per_s", "packed", PACKED, "R1", "forward+backward")
    return own / find("tokens_per_s", "packed", PACKED_PEER, "R1", "forward+backward")


def _op_ratio(find: Finder) -> float:
    own = find("op_us", "op", shape="R8", mode="forward")
    return own / find("op_us", "op", PEER, "R8", "forward")


def _decode_ratio(find: Finder) -> float:
    shapes = dict.fromkeys(row["shape"] for row in find.rows if row.get("what") == "decode")
    ratios = [
        find("median_us", "decode", f"{PEER} step", shape) / find("median_us", "decode", shape=shape)
        for shape in shapes
    ]
    if not ratios:
        raise KeyError("not yet measured")
    return min(ratios)


def _saved(find: Finder) -> float:
    return find("saved_bytes", "saved", shape="R1") / find("saved_bytes", "saved", BY_SOURCE, "R1")


TARGETS: dict[str, tuple[Claim, ...]] = {
    "G1": (speed("R1", "forward", 600), ratio("R1", "forward", 1.5)),
    "G2": (speed("R1", "backward", 2000), ratio("R1", "backward", 2.0)),
    "G3": (ratio("R6", "forward+backward", 1.5), ratio("R7", "forward+backward", 1.5)),
    "G4": tuple(ratio(s, mode, goal) for s in ("R3", "R4") for mode, goal in (("forward", 1.0), ("backward", 1.5))),
    "G5": (speed("R2", "forward", 60), ratio("R2", "forward", 1.0)),
    "G6": (Claim("both directions R5 forward+backward, 2 x mamba_ssm with flips / one launch", 2.0, True, "x", _pair),),
    "G7": (
        Claim("whole op R8 forward", 40, False, " us", lambda find: find("op_us", "op", shape="R8", mode="forward")),
        Claim("whole op R8 forward, ours / mamba_ssm", 1.1, False, "x", _op_ratio),
        Claim(
            "under a CUDA graph R8 forward",
            40,
            False,
            " us",
            lambda find: find("graph_us", "speed", shape="R8", mode="forward"),
        ),
    ),
    "G8": (Claim("useful tokens per second, packed / mamba_ssm padded, R1 forward+backward", 3, True, "x", _packed),),
    "G9": (
        Claim("decode step, mamba_ssm / ours, worst batch", 1.0, True, "x", _decode_ratio),
        Claim(
            "decode step at batch 256, share of the copy rate",
            0.8,
            True,
            "",
            lambda find: find("share", "decode", shape="256x2048x16"),
        ),
    ),
    "G10": (Claim("saved for backward R1, ours / mamba_ssm", 0.9, False, "x", _saved),),
    "G11": (
        Claim(
            "first forward+backward R1, empty cache",
            8,
            False,
            " s",
            lambda find: find("first_s", "cold", mode="empty cache"),
        ),
    ),
    "G12": (ratio("R1", "forward", 3, "associative"), ratio("R1", "forward", 50, "eager_loop")),
    "G13": tuple(ratio("G13", m, x, SSD_PEER, "ssd") for m in ("forward", "forward+backward") for x in (1.0, 1.3)),
}


def report(rows: list[Row]) -> str:
    """Return one line per figure of every target."""
    find = Finder(rows)
    lines = []
    for name, claims in TARGETS.items():
        lines += [f"{name if i == 0 else '':4} {claim.line(find)}" for i, claim in enumerate(claims)]
    return "\n".join(lines)

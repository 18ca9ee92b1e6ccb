"""Tables and a picture of the rows that bench_scan.py has measured."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peers

Row = dict[str, Any]
OURS, REST = "#1f6f8b", "#b8bfc6"


def tables(rows: list[Row]) -> str:
    """Return every table that the rows fill, as markdown."""
    if not rows:
        return "no rows yet"
    last = rows[-1]
    head = f"{last['processor']}, {last['cores']} cores, torch {last['torch']}, commit {last['commit']}"
    parts = [head]
    for settings in dict.fromkeys((row["threads"], row["isa"]) for row in rows):
        mine = [row for row in rows if (row["threads"], row["isa"]) == settings]
        title = f"{settings[0]} thread{'s' * (settings[0] > 1)}, {settings[1]}"
        sections = [(name, make([row for row in mine if row["what"] == name])) for name, make in SECTIONS.items()]
        parts += [f"### {name}, {title}\n\n{text}" for name, text in sections if text]
    return "\n\n".join(parts)


def _markdown(heads: list[str], lines: Iterable[Iterable[str]]) -> str:
    body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *body]) if body else ""


def _pivot(rows: list[Row], index: tuple[str, ...], column: Callable[[Row], str], show: Callable[[Row], str]) -> str:
    """One line per value of the index, one column per kind of cell; below, why cells are missing."""
    columns = list(dict.fromkeys(map(column, rows)))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(str(row[name]) for name in index), {})
        line[column(row)] = "skipped" if "skipped" in row else show(row)
    table = _markdown([*index, *columns], ([*key, *(line.get(c, "") for c in columns)] for key, line in lines.items()))
    reasons = [
        f"- {' '.join(str(row[name]) for name in index)}, {column(row)}: {row['skipped']}"
        for row in rows
        if "skipped" in row
    ]
    return table + ("\n\nSkipped:\n\n" + "\n".join(reasons) if reasons else "")


def _listing(rows: list[Row], heads: dict[str, str]) -> str:
    """One line per row, one column per field with its format; rows without the fields say why."""
    lines = []
    for row in rows:
        there = [
            f"{row[name]:{form}}" if name in row and form else str(row.get(name, "")) for name, form in heads.items()
        ]
        lines.append([*there[:-1], row["skipped"] if "skipped" in row else there[-1]])
    return _markdown([name.replace("_", " ") for name in heads], lines)


def _variant(row: Row) -> str:
    """Name the column of a row: the method, and what is unusual about its tensors."""
    unusual = [row["layout"]] * (row["layout"] != "BLD") + [row["dtype"]] * (row["dtype"] != "float32")
    return " ".join([row["method"], *unusual])


def _speed(rows: list[Row]) -> str:
    def show(row: Row) -> str:
        if row["method"] in peers.SCANS:
            return f"{row['ratio_to_ours']:.3g}x"
        return f"{row['median_ms']:.3g} ms ({row['ns_per_bldn']:.3f} ns)"

    return _pivot(rows, ("shape", "mode"), _variant, show)


def _memory(rows: list[Row]) -> str:
    return _pivot(rows, ("shape", "mode"), _variant, lambda row: f"{row['tensors']:.1f}")


def _decode(rows: list[Row]) -> str:
    return _pivot(
        rows,
        ("shape",),
        lambda row: row["method"],
        lambda row: f"{row['median_us']:.1f} us" + (f" ({r:.1f}x)" if (r := row["ratio_to_ours"]) != 1 else ""),
    )


def _accuracy(rows: list[Row]) -> str:
    errors = dict.fromkeys(("y_l2", "y_max", "worst_gradient_l2", "worst_gradient_max"), ".1e")
    return _listing(rows, {"length": "", "dtype": "", "mode": "", **errors})


def _counts(rows: list[Row]) -> str:
    return _listing(rows, {"method": "", "isa": "", "mode": "", "instructions_per_bldn": ".2f"})


def _floors(rows: list[Row]) -> str:
    machine = [row for row in rows if row["shape"] == "machine"]
    shapes = [row for row in rows if row["shape"] != "machine"]
    of_machine = {"gflops": ".0f", "copy_gbs": ".1f", "forward_ns": ".3f", "backward_ns": ".3f"}
    of_shape = {"shape": "", "mode": "", "arithmetic_ns": ".3f", "memory_ns": ".3f", "kernel_ns": ".3f", "share": ".0%"}
    return _listing(machine, of_machine) + "\n\n" + _listing(shapes, of_shape) if machine else ""


def _scaling(rows: list[Row]) -> str:
    return _listing(
        rows,
        {
            "shape": "",
            "method": "",
            "mode": "",
            "one_ms": ".3g",
            "more_ms": ".3g",
            "speedup": ".2f",
            "speedup_of_fastest": ".2f",
        },
    )


SECTIONS = {
    "speed": _speed,
    "memory": _memory,
    "decode": _decode,
    "accuracy": _accuracy,
    "counts": _counts,
    "floors": _floors,
    "scaling": _scaling,
}


def plot(rows: list[Row], path: Path) -> None:
    """Draw forward+backward of ours and every rival, one panel per shape, times on a log scale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    wanted = [r for r in rows if r["what"] == "speed" and r["mode"] == "forward+backward" and r["method"] != "kernel"]
    wanted = [r for r in wanted if r["layout"] == "BLD" and r["dtype"] == "float32" and r["threads"] == 1]
    shapes = list(dict.fromkeys(r["shape"] for r in wanted if "median_ms" in r))
    if not shapes:
        raise ValueError("no rows of forward+backward on one thread to draw: run --what speed --threads 1 first")
    n_rows = (len(shapes) + 1) // 2
    figure, axes = plt.subplots(n_rows, 2, figsize=(11, 0.7 + 2.3 * n_rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shapes) :]:
        axis.set_visible(False)
    for shape, axis in zip(shapes, axes.flat, strict=False):
        _panel(axis, [r for r in wanted if r["shape"] == shape])
    first = wanted[0]
    figure.suptitle(
        f"Selective scan, forward and backward, one thread of {first['processor']} ({first['isa']}), "
        f"torch {first['torch']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis, rows: list[Row]) -> None:
    rows = sorted(rows, key=lambda r: r["method"] != "ours")
    times = [r.get("median_ms") for r in rows]
    known = [t for t in times if t]
    low, high = min(known) / 2, max(known)
    for i, (row, time) in enumerate(zip(rows, times, strict=True)):
        mine = row["method"] == "ours"
        if time:
            axis.barh(i, time - low, left=low, color=OURS if mine else REST, height=0.72)
        if not time:
            text = row["skipped"].split(":")[0]
        else:
            text = f"{time:.3g} ms" if mine else f"{row['ratio_to_ours']:.3g}x"
        axis.text((time or low) * 1.08, i, text, va="center", fontsize=8.5, color="black" if time else "grey")
    b, length, d, n = rows[0]["sizes"]
    name = f"{rows[0]['shape']}: " * ("x" not in rows[0]["shape"])
    axis.set_title(f"{name}batch {b}, {length} steps, {d} channels, {n} states", fontsize=9.5, loc="left")
    axis.set_yticks(range(len(rows)), [r["method"].replace("_", " ") for r in rows], fontsize=8.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_xlim(low, max(high, 20 * low) * (high / low) ** 0.25 * 1.3)
    axis.set_xlabel("ms", fontsize=8.5)
    axis.tick_params(axis="x", labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)

"""Tables of the rows that the GPU benchmark has measured."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
INDEX = ("shape", "mode", "method", "layout", "dtype")
COLUMNS: dict[str, dict[str, str]] = {  # by part: fields and their formats
    "ceilings": {"copy_gbs": ".0f", "exps_per_clock": ".1f", "gexps": ".0f", "gslots": ".0f"},
    "check": {"correct": "", "y_error": ".1e", "gradient_error": ".1e"},
    "speed": {
        "median_us": ".1f",
        "ratio_to_ours": ".2f",
        "graph_us": ".1f",
        "memory_floor_us": ".1f",
        "exp_floor_us": ".1f",
        "issue_floor_us": ".1f",
        "share": ".0%",
        "difference": "",
    },
    "pair": {"median_us": ".1f", "ratio_to_ours": ".2f"},
    "packed": {"median_us": ".1f", "ratio_to_ours": ".2f", "tokens_per_s": ".3g"},
    "decode": {"median_us": ".1f", "graph_us": ".1f", "ratio_to_ours": ".2f", "gbs": ".0f", "share": ".0%"},
    "op": {"op_us": ".1f", "host_us": ".1f", "latency_us": ".1f", "ratio_to_ours": ".2f"},
    "saved": {"saved_bytes": ".4g"},
    "cold": {"import_s": ".2f", "first_s": ".2f", "second_s": ".4f"},
    "layer": {"median_us": ".1f", "tokens_per_s": ".3g", "peak_gb": ".2f", "beyond_gb": ".2f"},
    "steps": {
        "median_us": ".1f",
        "tokens_per_s": ".3g",
        "peak_gb": ".2f",
        "share_of_scan": ".1%",
        "share_by_removal": ".1%",
    },
    "ssd_check": {"correct": "", "y_error": ".1e", "gradient_error": ".1e"},
    "ssd": {
        "median_us": ".1f",
        "ratio_to_ours": ".2f",
        "graph_us": ".1f",
        "tflops": ".0f",
        "memory_floor_us": ".1f",
        "share": ".0%",
        "difference": "",
    },
    "ssd_op": {"op_us": ".1f", "host_us": ".1f", "latency_us": ".1f", "ratio_to_ours": ".2f"},
    "ssd_step": {
        "median_us": ".1f",
        "graph_us": ".1f",
        "ratio_to_ours": ".2f",
        "gbs": ".0f",
        "share": ".0%",
        "difference": "",
    },
}


def tables(rows: Sequence[Row]) -> str:
    """Return one markdown table per part, with the hardware above."""
    if not rows:
        return "no rows yet"
    last = rows[-1]
    versions = ", ".join(f"{name} {last.get(name)}" for name in ("driver", "cuda", "torch", "triton", "commit"))
    parts = [f"{last.get('processor')}, {versions}"]
    for what, columns in COLUMNS.items():
        mine = [row for row in rows if row["what"] == what]
        if mine:
            parts.append(f"### {what}\n\n{_table(mine, columns)}")
    return "\n\n".join(parts)


def _table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    index = [name for name in INDEX if any(name in row for row in rows)]
    lines = [[*index, *columns], ["---"] * (len(index) + len(columns))]
    for row in rows:
        cells = [_shown(row.get(name), form) for name, form in columns.items()]
        reason = row.get("skipped") or row.get("failed")
        lines.append([*(str(row.get(name, "")) for name in index), *([reason] if reason else cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and not form:
        return f"{value:.1e}"
    return str(value) if isinstance(value, str) else f"{value:{form}}"

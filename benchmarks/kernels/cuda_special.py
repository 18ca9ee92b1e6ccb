"""Parts of the GPU benchmark beside plain speed: correctness, both directions, packing, generation, costs around it."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from cuda_cases import (
    DOCUMENTS,
    NAMES,
    PER_STEP,
    SMALL_DOCUMENTS,
    STEP_BATCHES,
    STEP_CHANNELS,
    STEP_STATES,
    input_bytes,
    laid_out,
    make_inputs,
    step_inputs,
)
from cuda_device import Call
from cuda_peers import METHODS, mamba_module, missing
from cuda_speed import OURS, Bench, make_call, outputs_of
from cuda_timing import copies_for, graph_seconds, op_seconds, summary, take_turns
from roofline import CHUNK, step_bytes
from torch import Tensor

import ssmseq_kernels
from ssmseq_kernels.reference import selective_scan_reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative L2 error; a guard, not a test
CHECKS = {  # B, L, D, N; and whether in reverse, and packed
    "plain": ((2, 300, 64, 16), False, False),
    "cut": ((1, 1500, 40, 16), False, False),  # few programs: time is cut into parts
    "reverse": ((2, 300, 64, 32), True, False),
    "packed": ((2, 300, 64, 16), False, True),
}
SMALL_CHECK = (1, 7, 4, 2)
PEER = "mamba_ssm"
PACKED_PEER, PAIR_PEER = f"{PEER}, padded", f"{PEER}, twice with flips"
PADDED, PACKED = "ours, padded", "ours, packed"
ONE_LAUNCH, TWO_LAUNCHES = "ours, one launch", "ours, two launches"
BY_SOURCE = f"{PEER}, by its source"


def fields(method: str, dtype: torch.dtype, layout: str = "BLD") -> dict[str, str]:
    return {"method": method, "layout": layout, "dtype": str(dtype).removeprefix("torch.")}


def measure_check(bench: Bench) -> None:
    """Compare y and every gradient with the definition in float64, before any time is believed."""
    for dtype in dict.fromkeys([torch.float32, *bench.dtypes.values()]):
        for mode, (sizes, reverse, packed) in CHECKS.items():
            sizes = SMALL_CHECK if bench.device.rehearsing else sizes
            cell = {"what": "check", "shape": "x".join(map(str, sizes)), "sizes": sizes, "mode": mode}
            measure = partial(errors, bench.device.device, sizes, dtype, reverse, packed)
            bench.attempt(cell | fields("ours", dtype), measure)


def errors(device, sizes, dtype, reverse, packed) -> dict[str, Any]:
    """Relative L2 errors of y and of the worst gradient."""
    inputs = make_inputs(sizes, dtype, device)
    options: dict[str, Any] = {"reverse": reverse}
    if packed:
        options["seq_idx"] = (torch.arange(sizes[1], device=device) // 5).int().expand(sizes[:2]).contiguous()
    inputs |= {name: inputs[name].unsqueeze(2) for name in ("B", "C")}
    scan = partial(ssmseq_kernels.selective_scan, **options)
    return compared(scan, lambda *args: selective_scan_reference(*args, **options)[0], inputs)


def compared(scan: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: dict[str, Tensor]):
    """Compare y, which is like the first input, and all gradients with those of a reference in float64."""
    first = next(iter(inputs.values()))
    weights = torch.randn_like(first)
    found = _with_gradients(scan, inputs, weights)
    truth = _with_gradients(reference, {name: x.double() for name, x in inputs.items()}, weights)
    worst = {name: ((found[name].double() - x).norm() / x.norm()).item() for name, x in truth.items()}
    gradient = max(value for name, value in worst.items() if name != "y")
    correct = max(worst.values()) < TOLERANCE[first.dtype]
    if not correct:
        print(f"WRONG: relative errors {worst}: no time below means anything", file=sys.stderr)
    return {"correct": correct, "y_error": worst["y"], "gradient_error": gradient}


def _with_gradients(scan: Callable[..., Tensor], inputs: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs.values()]
    y = scan(*leaves)
    grads = torch.autograd.grad(y, leaves, weights.to(y))
    return {"y": y.detach(), **dict(zip(inputs, grads, strict=True))}


def timed_side_by_side(bench: Bench, cells: dict[str, dict], make: Callable[[str, int], Call], copies: int, base: str):
    """Time the methods in turn that run at all; return the columns of each, and why the others have none.

    `make(name, seed)` prepares one call on its own copy of the inputs.
    """
    ways, values = {}, {}
    for name in cells:
        absent = missing(name.split(",")[0])
        found, reason = (
            (None, {"skipped": absent})
            if absent
            else bench.guarded(partial(lambda name: [make(name, seed) for seed in range(copies)], name))
        )
        if found:
            ways[name] = found
        else:
            values[name] = reason
    times, reason = bench.guarded(lambda: take_turns(bench.device, ways, bench.repeats, bench.budget))
    for name in ways:
        if times is None:
            values[name] = reason
            continue
        values[name] = summary(times[name])
        if base in times:
            values[name]["ratio_to_ours"] = statistics.median(times[name]) / statistics.median(times[base])
    return values, ways


def measure_pair(bench: Bench, shape: str = "R5") -> None:
    """Both directions over variates, each with its own tensors: one launch of ours against two of the rival."""
    for dtype in bench.dtypes.values():
        for mode in ("forward", "forward+backward"):
            sizes = bench.sizes(shape)
            cell = {"what": "pair", "shape": shape, "sizes": sizes, "mode": mode}
            layouts = {ONE_LAUNCH: "BLD", TWO_LAUNCHES: "BLD", PAIR_PEER: "BDL"}
            cells = {name: cell | fields(name, dtype, layout) for name, layout in layouts.items()}
            if all(bench.has(x) for x in cells.values()):
                continue

            def make(name: str, seed: int, dtype=dtype, sizes=sizes, mode=mode, layouts=layouts) -> Call:
                both = [make_inputs(sizes, dtype, bench.device.device, 2 * seed + i) for i in (0, 1)]
                args = [laid_out(x, layouts[name], dtype)[n] for x in both for n in NAMES]
                return make_call(PAIRS[name], args, mode)

            copies = copies_for(2 * input_bytes(sizes, dtype), bench.device.cache)
            values, _ = timed_side_by_side(bench, cells, make, copies, ONE_LAUNCH)
            for name, x in cells.items():
                bench.add(x, values[name])


def one_launch(*args: Tensor) -> tuple[Tensor, ...]:
    return ssmseq_kernels.bidirectional_selective_scan(args[:8], args[8:])


def two_launches(*args: Tensor) -> tuple[Tensor, ...]:
    scan = ssmseq_kernels.selective_scan
    return scan(*args[:8]), scan(*args[8:], reverse=True)


def twice_with_flips(*args: Tensor) -> tuple[Tensor, ...]:
    """Scan forwards, then on flipped copies, as networks do whose scan knows one direction; time is the last axis."""
    flipped = [x.flip(-1) if name in PER_STEP else x for name, x in zip(NAMES, args[8:], strict=True)]
    scan = METHODS[PEER].scan
    return scan(*args[:8]), scan(*flipped).flip(-1)


PAIRS = {ONE_LAUNCH: one_launch, TWO_LAUNCHES: two_launches, PAIR_PEER: twice_with_flips}


def measure_packed(bench: Bench, shape: str = "R1") -> None:
    """Eight documents in each row, one after the other, against every document in a row of its own, padded."""
    documents = SMALL_DOCUMENTS if bench.device.rehearsing else DOCUMENTS
    n_rows, _, d, n = bench.sizes(shape)
    length = sum(documents)
    edges = torch.tensor([0, *documents], device=bench.device.device).cumsum(0)
    seq_idx = ssmseq_kernels.sequence_index(edges).expand(n_rows, length).contiguous()
    padded = (n_rows * len(documents), max(documents), d, n)
    plans = {PACKED: ((n_rows, length, d, n), "BLD"), PADDED: (padded, "BLD"), PACKED_PEER: (padded, "BDL")}
    for dtype in bench.dtypes.values():
        for mode in ("forward", "forward+backward"):
            cells = {
                name: {"what": "packed", "shape": shape, "sizes": sizes, "mode": mode} | fields(name, dtype, layout)
                for name, (sizes, layout) in plans.items()
            }
            if all(bench.has(x) for x in cells.values()):
                continue

            def make(name: str, seed: int, dtype=dtype, mode=mode) -> Call:
                sizes, layout = plans[name]
                laid = laid_out(make_inputs(sizes, dtype, bench.device.device, seed), layout, dtype)
                scan = OURS.scan if name == PADDED else METHODS[PEER].scan
                if name == PACKED:
                    scan = partial(ssmseq_kernels.selective_scan, seq_idx=seq_idx)
                return make_call(scan, [laid[x] for x in NAMES], mode)

            copies = copies_for(input_bytes(plans[PACKED][0], dtype), bench.device.cache)
            values, _ = timed_side_by_side(bench, cells, make, copies, PACKED)
            for name, x in cells.items():
                useful = {"documents": documents}
                if "median_us" in values[name]:
                    useful["tokens_per_s"] = 1e6 * n_rows * length / values[name]["median_us"]
                bench.add(x, values[name] | useful)


def measure_decode(bench: Bench) -> None:
    """One step of generation: what it moves, at which rate."""
    batches, d, n = STEP_BATCHES, STEP_CHANNELS, STEP_STATES
    if bench.device.rehearsing:
        batches, d, n = (1, 2), 8, 4
    for dtype in bench.dtypes.values():
        for n_batch in batches:
            kinds = {"ours": dtype, f"{PEER} step": dtype, "eager_step": torch.float32}
            shape = {"what": "decode", "shape": f"{n_batch}x{d}x{n}", "sizes": (n_batch, d, n), "mode": "step"}
            cells = {name: shape | fields(name, kind) for name, kind in kinds.items()}
            if all(bench.has(x) for x in cells.values()):
                continue

            def make(name: str, seed: int, n_batch=n_batch, kinds=kinds) -> Call:
                x = step_inputs(n_batch, d, n, kinds[name], bench.device.device)
                return partial(no_grad_step, STEPS[name], x["state"], [x[key] for key in NAMES])

            moved = step_bytes((n_batch, d, n), dtype.itemsize)
            values, ways = timed_side_by_side(bench, cells, make, copies_for(moved, bench.device.cache), "ours")
            for name, cell in cells.items():
                if name in ways and "median_us" in values[name]:
                    values[name] |= step_rates(bench, moved, values[name]["median_us"], ways[name])
                bench.add(cell, values[name])


def no_grad_step(step: Callable[..., Tensor], state: Tensor, args: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return step(state, *args)


def peer_step(state, u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    step = mamba_module("ops.triton.selective_state_update").selective_state_update
    return step(state, u, delta, A, B, C, D, z=z, dt_bias=delta_bias, dt_softplus=True)


STEPS = {"ours": ssmseq_kernels.selective_state_update, f"{PEER} step": peer_step, "eager_step": peers.eager_step}


def step_rates(bench: Bench, moved: int, median_us: float, ways: list[Call]) -> dict[str, Any]:
    """Time of a step under a graph, and what it moves as a share of the copy rate."""
    found = graph_seconds(bench.device, ways) | {"bytes": moved, "gbs": 1e-3 * moved / median_us}
    best = found.get("graph_us", median_us)
    if bench.rates:
        share = {"share": 1e6 * moved / bench.rates.bytes / median_us}
        found |= share | {"graph_share": 1e6 * moved / bench.rates.bytes / best}
    return found


def measure_op(bench: Bench, shape: str = "R8") -> None:
    """The whole operation as a caller sees it, Python included, where the kernel itself takes microseconds."""
    for dtype in bench.dtypes.values():
        for mode in ("forward", "forward+backward"):
            cell = {"what": "op", "shape": shape, "sizes": bench.sizes(shape), "mode": mode}
            cells = {name: cell | METHODS[name].fields(dtype) for name in ("ours", PEER)}
            if all(bench.has(x) for x in cells.values()):
                continue

            def make(name: str, dtype=dtype, mode=mode) -> Call:
                laid = laid_out(make_inputs(bench.sizes(shape), dtype, bench.device.device), _layout(name), dtype)
                return make_call(METHODS[name].scan, [laid[x] for x in NAMES], mode)

            time_operations(bench, cells, make)


def time_operations(bench: Bench, cells: dict[str, dict], make: Callable[[str], Call]) -> None:
    """Add a row for the whole operation of each method; `make` prepares one."""
    rounds, count = (2, 2) if bench.device.rehearsing else (15, 200)
    calls, values = {}, {}
    for name in cells:
        absent = missing(name)
        found, reason = (None, {"skipped": absent}) if absent else bench.guarded(partial(make, name))
        calls |= {name: found} if found else {}
        values[name] = reason
    times, reason = bench.guarded(partial(op_seconds, bench.device, calls, rounds, count))
    for name, cell in cells.items():
        if name in calls:
            values[name] = reason if times is None else dict(times[name])
        if times and name in times and "ours" in times:
            values[name]["ratio_to_ours"] = times[name]["op_us"] / times["ours"]["op_us"]
        bench.add(cell, values[name])


def _layout(name: str) -> str:
    return METHODS[name].layout


def measure_saved(bench: Bench, shape: str = "R1") -> None:
    """Bytes that a forward pass keeps for the backward pass, inputs included."""
    sizes = bench.sizes(shape)
    for dtype in bench.dtypes.values():
        for name in ("ours", PEER):
            cell = {"what": "saved", "shape": shape, "sizes": sizes, "mode": "training"} | METHODS[name].fields(dtype)
            bench.attempt(cell, partial(_saved, bench, name, sizes, dtype))
        cell = {"what": "saved", "shape": shape, "sizes": sizes, "mode": "training"} | fields(BY_SOURCE, dtype, "BDL")
        bench.attempt(cell, lambda dtype=dtype: {"saved_bytes": saved_by_peer(sizes, dtype.itemsize)})


def _saved(bench: Bench, name: str, sizes, dtype) -> dict[str, Any]:
    if reason := missing(name):
        return {"skipped": reason}
    laid = laid_out(make_inputs(sizes, dtype, bench.device.device), _layout(name), dtype)
    leaves = [laid[x].requires_grad_() for x in NAMES]
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        kept = outputs_of(METHODS[name].scan(*leaves))
    del kept
    return {"saved_bytes": sum(storages.values()), "saved_tensors": len(storages)}


def saved_by_peer(sizes, itemsize: int) -> int:
    """Bytes of u, delta, z, out, B, C, weights, and a pair of float32 for each state of every 2048 steps."""
    n_batch, length, d, n = sizes
    rows, mixers = 4 * n_batch * length * d * itemsize, 2 * n_batch * length * n * itemsize
    return rows + mixers + 4 * (d * n + 2 * d) + 8 * n_batch * d * n * -(-length // (32 * CHUNK))


def measure_cold(bench: Bench, shape: str = "R1") -> None:
    """The first forward and backward pass of a fresh process, without compiled kernels in Triton's cache and with."""
    sizes = bench.sizes(shape)
    for name, dtype in bench.dtypes.items():
        cell = {"what": "cold", "shape": shape, "sizes": sizes} | fields("ours", dtype)
        modes = [cell | {"mode": mode} for mode in ("empty cache", "full cache")]
        if all(bench.has(x) for x in modes):
            continue
        with tempfile.TemporaryDirectory() as cache:
            for x in modes:
                values, reason = bench.guarded(partial(_in_a_child, bench, sizes, name, cache))
                bench.add(x, values or reason)


def _in_a_child(bench: Bench, sizes, dtype: str, cache: str) -> dict[str, Any]:
    script = Path(__file__).with_name("cold_start.py")
    asked = json.dumps({"device": bench.device.device.type, "sizes": sizes, "dtype": dtype})
    environment = os.environ | {"TRITON_CACHE_DIR": cache}
    done = subprocess.run([sys.executable, str(script), asked], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"cold_start.py ended with {done.returncode}: {done.stderr.strip()[-150:]}")
    return json.loads(done.stdout.splitlines()[-1])

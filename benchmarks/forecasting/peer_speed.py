"""S-Mamba's training step and forecast on a CPU beside iTransformer and PatchTST, and beside itself on other scans.

    python benchmarks/forecasting/peer_speed.py                      # both cases, 1 and 2 threads
    python benchmarks/forecasting/peer_speed.py --cases ETTh1 --threads 1 --repeats 40

Seven networks take turns, A B C D E F G A B ...: ours; the same network with nothing but its scan replaced, by that of
mambapy (parallel) or of transformers without CUDA kernels (see benchmarks/kernels/peers.py); the same network with its
Mamba blocks replaced by those of mambapy or transformers; and neuralforecast's iTransformer and PatchTST of the same
width, depth and feed-forward width. A step is forward, mean squared error, backward and Adam on windows that are in
memory; a forecast is the forward pass without gradients. S-Mamba has its four calendar tokens besides the variates, the
others have none; PatchTST takes every variate by itself.

Wall time and CPU time of the process are both taken, as medians with quartiles: on a machine that others use, CPU time
is what a step costs on one thread. Several threads need cores of their own, or OMP_WAIT_POLICY=PASSIVE in the
environment: else they spin while they wait for each other. Ratios are medians over the rounds, each of one round's
times. The networks with other scans or blocks are first seen to forecast what ours does. One row per case and number of
threads is appended to benchmarks/results/peer_speed.jsonl.
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import ssmseq
import ssmseq.nn.bidirectional as bidirectional
from ssmseq.forecasting.smamba import SMambaNetwork
from ssmseq.forecasting.tokens import InputSizes
from ssmseq_kernels import available_backends

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[1] / "results" / "peer_speed.jsonl"
PACKAGES = ("torch", "neuralforecast", "mambapy", "transformers", "pytorch-lightning", "numpy")
LOOKBACK = HORIZON = 96
N_CALENDAR = 4
CASES = {  # the sizes of iTransformer's and S-Mamba's scripts for ETTh1 and Electricity, but for the latter's batch, 16
    "ETTh1": {"n_variates": 7, "batch": 32, "width": 256, "layers": 2, "d_state": 2, "repeats": 40},
    "wide": {"n_variates": 321, "batch": 2, "width": 512, "layers": 3, "d_state": 16, "repeats": 5},
}
OURS = "S-Mamba"
SLOW = 10  # seconds of CPU time


def load_scans():
    spec = importlib.util.spec_from_file_location("scans", HERE.parents[1] / "kernels" / "peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both_ways(scan):
    """Return the scan of two directions, from one that runs forwards."""

    def run(first, second):
        u, delta, A, B, C, D, z, delta_bias = second
        u, delta, B, C, z = (x.flip(1) for x in (u, delta, B, C, z))
        return scan(*first), scan(u, delta, A, B, C, D, z, delta_bias).flip(1)

    return run


@contextlib.contextmanager
def swapped(scan):
    """Let S-Mamba run on another scan."""
    before = bidirectional.bidirectional_selective_scan
    bidirectional.bidirectional_selective_scan = scan or before
    try:
        yield
    finally:
        bidirectional.bidirectional_selective_scan = before


class Contender:
    """A network, its inputs and its optimiser; `scan` replaces that of ours while it runs."""

    def __init__(self, network, inputs, targets, scan=None):
        self.network, self.inputs, self.targets, self.scan = network, inputs, targets, scan
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def forecast(self):
        """Run the forward pass without gradients."""
        with torch.inference_mode(), swapped(self.scan):
            return self.network.eval()(self.inputs)

    def step(self):
        """Train on the windows once."""
        with swapped(self.scan):
            self.network.train()
            self.optimizer.zero_grad(set_to_none=True)
            F.mse_loss(self.network(self.inputs), self.targets).backward()
            self.optimizer.step()


def smamba(case):
    torch.manual_seed(0)
    return SMambaNetwork(
        InputSizes(n_variates=case["n_variates"], lookback=LOOKBACK, horizon=HORIZON, n_past=N_CALENDAR),
        d_model=case["width"],
        d_ff=case["width"],
        d_state=case["d_state"],
        d_conv=2,
        expand=1,
        n_layers=case["layers"],
        dropout=0.1,
        activation="gelu",
        normalize=True,
    )


class Blocks(torch.nn.Module):
    """Blocks of another package with the weights of our mixer, the second on flipped tokens."""

    def __init__(self, mixer, make):
        super().__init__()
        self.forwards, self.backwards = make(), make()
        self.forwards.load_state_dict(mixer.forwards.state_dict())
        self.backwards.load_state_dict(mixer.backwards.state_dict())

    def forward(self, x):
        """Map (B, tokens, d_model) to the same."""
        return self.forwards(x) + self.backwards(x.flip(1)).flip(1)


def smamba_of(package: str, case):
    """Return S-Mamba of a package's Mamba blocks."""
    width, d_state = case["width"], case["d_state"]

    def mambapy():
        module = importlib.import_module("mambapy.mamba")
        config = module.MambaConfig(d_model=width, n_layers=1, d_state=d_state, expand_factor=1, d_conv=2)
        return module.MambaBlock(config)

    def transformers():
        module = importlib.import_module("transformers.models.mamba.modeling_mamba")
        sizes = {"hidden_size": width, "state_size": d_state, "conv_kernel": 2, "expand": 1, "num_hidden_layers": 1}
        return module.MambaMixer(module.MambaConfig(**sizes), layer_idx=0)

    network = smamba(case)
    for layer in network.layers:
        layer.mixer = Blocks(layer.mixer, {"mambapy": mambapy, "transformers": transformers}[package])
    return network


def contenders(case) -> dict[str, Contender]:
    # numba, which neuralforecast imports, would take coverage.py of this folder for the package of that name.
    sys.path = [folder for folder in sys.path if Path(folder).resolve() != HERE.parent]
    from neuralforecast.losses.pytorch import MSE
    from neuralforecast.models import PatchTST, iTransformer

    generator = torch.Generator().manual_seed(1)
    n_windows, n_variates, width = case["batch"], case["n_variates"], case["width"]
    past = torch.randn(n_windows, n_variates + N_CALENDAR, LOOKBACK, generator=generator)
    truth = torch.randn(n_windows, n_variates, HORIZON, generator=generator)
    scans = load_scans()
    found = {OURS: Contender(smamba(case), past, truth)}
    for name in ("mambapy_pscan", "transformers_slow"):
        reason = scans.missing(name)
        if reason:
            sys.exit(f"{name}: {reason}")
        package = scans.PACKAGES[name]
        found[f"{OURS}, {package} scan"] = Contender(smamba(case), past, truth, both_ways(scans.SCANS[name]))
        found[f"{OURS}, {package} blocks"] = Contender(smamba_of(package, case), past, truth)
    shared = {"h": HORIZON, "input_size": LOOKBACK, "hidden_size": width, "n_heads": 8, "dropout": 0.1, "loss": MSE()}
    network = iTransformer(n_series=n_variates, e_layers=case["layers"], d_ff=width, **shared)
    x, y = past[:, :n_variates].transpose(1, 2).contiguous(), truth.transpose(1, 2).contiguous()
    found["iTransformer"] = Contender(Windows(network), x, y)
    network = PatchTST(encoder_layers=case["layers"], linear_hidden_size=width, **shared)
    x, y = past[:, :n_variates].reshape(-1, LOOKBACK, 1), truth.reshape(-1, HORIZON, 1)
    found["PatchTST"] = Contender(Windows(network), x, y)
    return found


class Windows(torch.nn.Module):
    """A network of neuralforecast that takes windows (B, L, series) as they are."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, past):
        """Map (B, L, series) to forecasts."""
        batch = {"insample_y": past, "insample_mask": None, "futr_exog": None, "hist_exog": None, "stat_exog": None}
        return self.network(batch)


def check(found: dict[str, Contender]) -> None:
    """Stop unless the network on other scans and blocks forecasts what it does on ours."""
    first = found[OURS].forecast()
    for name, contender in found.items():
        if name != OURS and name.startswith(OURS):
            error = (contender.forecast() - first).abs().max() / first.abs().max()
            if not error < 1e-4:
                sys.exit(f"{name} forecasts something else: relative error {error:.1e}")


def measure(found: dict[str, Contender], repeats: int) -> dict[str, dict[str, np.ndarray]]:
    """Return wall and CPU seconds (rounds,) of each contender's step and forecast, taken in turn after two rounds.

    A contender whose first step takes more than `SLOW` seconds of CPU time is measured that once.
    """
    times = {what: {name: [] for name in found} for what in ("step", "step CPU", "forecast", "forecast CPU")}
    slow = set()
    for _ in range(repeats + 2):
        for name, contender in found.items():
            for what in ("step", "forecast") if name not in slow else ():
                wall, cpu = time.perf_counter(), time.process_time()
                getattr(contender, what)()
                times[what][name].append(time.perf_counter() - wall)
                times[f"{what} CPU"][name].append(time.process_time() - cpu)
            if times["step CPU"][name][0] > SLOW:
                slow.add(name)
    return {what: {n: np.array(t if n in slow else t[2:]) for n, t in mine.items()} for what, mine in times.items()}


def in_ours(times: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return the others' times in those of ours in the same round, or in our median where they were measured once."""
    ours = times[OURS]
    return {
        name: quartiles(t / (ours if len(t) == len(ours) else np.median(ours)), 3)
        for name, t in times.items()
        if name != OURS
    }


def quartiles(values, digits: int) -> list[float]:
    """Return median, lower and upper quartile."""
    return [round(float(q), digits) for q in np.quantile(values, [0.5, 0.25, 0.75])]


def row_of(case_name: str, case: dict, threads: int, found: dict, times: dict) -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE.parent)
    row = {
        "case": case_name,
        **{k: case[k] for k in ("n_variates", "batch", "width", "layers", "d_state", "repeats")},
        "lookback": LOOKBACK,
        "horizon": HORIZON,
        "threads": threads,
        "rounds": {name: len(t) for name, t in times["step"].items()},
        "parameters": {name: sum(p.numel() for p in c.network.parameters()) for name, c in found.items()},
    }
    per_window = 1e3 / case["batch"]
    row["median, lower and upper quartile"] = {
        "milliseconds per step": {n: quartiles(1e3 * t, 2) for n, t in times["step"].items()},
        "CPU milliseconds per step": {n: quartiles(1e3 * t, 2) for n, t in times["step CPU"].items()},
        "milliseconds per window forecast": {n: quartiles(per_window * t, 4) for n, t in times["forecast"].items()},
        "CPU milliseconds per window forecast": {
            n: quartiles(per_window * t, 4) for n, t in times["forecast CPU"].items()
        },
        **{f"{what}, in ours": in_ours(mine) for what, mine in times.items()},
    }
    return row | {
        "backend": available_backends()["cpu"],
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "versions": {
            "python": platform.python_version(),
            "ssmseq": ssmseq.__version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "commit": commit.stdout.strip(),
        "command": f"python benchmarks/forecasting/peer_speed.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())


def show(row: dict) -> None:
    """Print a row as a table in Markdown."""
    found = row["median, lower and upper quartile"]
    print(f"\n{row['case']}, {row['threads']} threads, load {row['load']}: medians (quartiles)\n")
    print("| network | parameters | ms per step | CPU ms | in ours | ms per window | CPU ms | in ours |")
    print("|" + "---|" * 8)
    for name, size in row["parameters"].items():
        cells = [name, f"{size:,}"]
        for what, unit in (("step", "per step"), ("forecast", "per window forecast")):
            for kind in ("", "CPU "):
                middle, low, high = found[f"{kind}milliseconds {unit}"][name]
                cells.append(f"{middle:.4g} ({low:.4g} to {high:.4g})")
            key = f"{what} CPU, in ours" if row["threads"] == 1 else f"{what}, in ours"
            middle, low, high = found[key].get(name, [1, 1, 1])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, help="rounds; by default those of the case")
    args = parser.parse_args()
    for name in args.cases:
        case = CASES[name] | ({"repeats": args.repeats} if args.repeats else {})
        found = contenders(case)
        check(found)
        for threads in args.threads:
            torch.set_num_threads(threads)
            row = row_of(name, case, threads, found, measure(found, case["repeats"]))
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            show(row)


if __name__ == "__main__":
    main()

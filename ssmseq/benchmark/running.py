"""One run in its own process: `python -m ssmseq.benchmark.running` takes it as JSON on stdin, and prints its row."""

import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ssmseq.benchmark import data as data_sets
from ssmseq.benchmark import models, scores
from ssmseq.benchmark.suites import Run

VERSIONS = ("torch", "lightning", "numpy", "scikit-learn", "triton", "neuralforecast", "statsforecast")


def perform(run: Run, *, device: str = "auto") -> dict[str, Any]:
    """Fit on the training part, choose on the validation part, score every window of the test part.

    Parameters
    ----------
    run : Run
    device : {"auto", "cpu", "gpu"}

    Returns
    -------
    dict
        A line of the results, but for what only the one who started the process knows (suite, command).
    """
    data = data_sets.load(run.dataset, run.data, folder=run.folder, download=False)
    if run.spec.get("covariates") is None:
        data = _without_covariates(data)
    started = time.perf_counter()
    model, selected = _fitted(run, data, device)
    seconds = time.perf_counter() - started
    lookback = model.lookback_
    found = scores.score(model, data, lookback=lookback, horizon=run.horizon)
    if run.seed or run.horizon > 96:  # pictures need one each, and the rows stay short
        found["example"] = None
    return {
        "key": run.key,
        **{name: getattr(run, name) for name in ("dataset", "model", "horizon", "seed")},
        "estimator": run.spec["estimator"],
        "params": {**run.spec["params"], **{k: run.spec[k] for k in ("preset", "covariates") if k in run.spec}},
        "loss": _loss(model),
        "lookback": lookback,
        "status": "ok",
        "reason": None,
        **found,
        "selected": selected,
        "parameters": _parameters(model),
        "epochs": getattr(model, "n_iter_", None),
        "fit_seconds": round(seconds, 2),
        "peak_memory_mb": _peak_memory(),
        **_where(model),
    }


def _fitted(run: Run, data: data_sets.BenchmarkData, device: str) -> tuple[Any, dict[str, Any] | None]:
    if "search" not in run.spec:
        model = models.build(run, data, device=device)
        model.fit(data.train, validation=data.validation)
        chosen = {k: getattr(model, f"{k}_") for k in ("lookback", "alpha") if hasattr(model, "cv_results_")}
        return model, chosen or None
    return _search(run, data, device)


def _search(run: Run, data: data_sets.BenchmarkData, device: str) -> tuple[Any, dict[str, Any]]:
    """Fit as many candidates as the suite has trials; the one with the lowest error on the validation part wins."""
    import math

    import optuna

    space, n_trials = run.spec["search"], run.spec["trials"]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    whole = math.prod(map(len, space.values())) <= n_trials
    sampler = optuna.samplers.GridSampler(space) if whole else optuna.samplers.TPESampler(seed=run.seed)
    best: list[Any] = []

    def objective(trial) -> float:
        chosen = {name: trial.suggest_categorical(name, choices) for name, choices in space.items()}
        model = models.build(run, data, device=device, **chosen)
        model.fit(data.train, validation=data.validation)
        held_out = replace(data, test=data.validation)
        held_out.validation = data.train.iloc[:0]
        error = scores.score(model, held_out, lookback=model.lookback_, horizon=run.horizon)["mse"]
        if not best or error < best[0]:
            best[:] = error, model, chosen
        return error

    optuna.create_study(sampler=sampler).optimize(objective, n_trials=n_trials)
    return best[1], best[2]


def _without_covariates(data: data_sets.BenchmarkData) -> data_sets.BenchmarkData:
    if not data.covariates:
        return data
    parts = {
        part: None if (frame := getattr(data, part)) is None else frame[data.targets]
        for part in ("train", "validation", "test")
    }
    return replace(data, **parts, covariates=[])


def _loss(model) -> str:
    loss = getattr(model, "loss", "mse")
    return f"fredf {model.fredf_weight:g}" if loss == "fredf" else loss


def _parameters(model) -> int | None:
    network = getattr(model, "network_", None)
    if network is None:
        return getattr(model, "n_parameters_", None)
    return sum(p.numel() for p in network.parameters())


def _peak_memory() -> int:
    """Return megabytes: of the process, or of the GPU where one was used."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _where(model) -> dict[str, Any]:
    import torch

    from ssmseq import __version__
    from ssmseq_kernels import available_backends

    gpu = hasattr(model, "_device") and hasattr(model, "network_") and model._device().type == "cuda"
    device = "cuda" if gpu else "cpu"
    versions = {"python": platform.python_version(), "ssmseq": __version__}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "backend": available_backends()[device] if _scans(model) else None,
        "device": device,
        "hardware": torch.cuda.get_device_name() if gpu else _processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": _commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _scans(model) -> bool:
    """Say whether a selective scan is in the network."""
    network = getattr(model, "network_", None)
    return network is not None and any("Mamba" in type(m).__name__ for m in network.modules())


def _processor() -> str:
    """Return the name of the processor and the number of its cores that are ours."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.processor())
    return f"{name or platform.machine()}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """Return the commit of the sources, where they lie in a repository."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return done.stdout.strip() or None


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed in ways that leave it no time to end others."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Read a run from stdin, perform it, print its row on the last line of stdout."""
    asked = json.loads(sys.stdin.read())
    _end_with(asked.pop("parent"))
    device = asked.pop("device")
    asked.pop("key")
    print(json.dumps(perform(Run(**asked), device=device)))


if __name__ == "__main__":
    main()

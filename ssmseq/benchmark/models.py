"""From a run of a suite to the estimator, or the adapter of a peer, that it asks for."""

import inspect
from typing import Any

from ssmseq.benchmark.data import BenchmarkData
from ssmseq.benchmark.suites import Run

PEER_PACKAGES = ("neuralforecast", "statsforecast")


def build(run: Run, data: BenchmarkData, *, device: str = "auto", **changes) -> Any:
    """Return the unfitted estimator of a run.

    Parameters
    ----------
    run : Run
    data : BenchmarkData
    device : {"auto", "cpu", "gpu"}
        Lightning's accelerator, for what trains.
    **changes
        Parameters that win over those of the run, such as a candidate of its search.

    Raises
    ------
    ValueError
        If the run names an estimator, preset or parameter that there is not; the message names the model.
    """
    package, _, name = run.spec["estimator"].rpartition(".")
    params = {**_roles(run, data), **run.spec["params"], **changes}
    lookback = params.pop("lookback", run.lookback)
    params = {k: data.season if v == "season" else v for k, v in params.items()}
    if package:
        return _peer(run, package, name, lookback, params)
    import ssmseq

    if name not in ssmseq.__all__ or not name.endswith("Forecaster"):
        raise ValueError(f"model {run.model}: ssmseq has no estimator {name!r}")
    kind = getattr(ssmseq, name)
    known = inspect.signature(kind).parameters
    unknown = [p for p in params if p not in known]
    if unknown:
        raise ValueError(f"model {run.model}: {name} has no parameter {', '.join(unknown)}")
    params |= {k: v for k, v in {"random_state": run.seed, "accelerator": device}.items() if k in known}
    params |= {"horizon": run.horizon, "lookback": lookback}
    preset = run.spec.get("preset")
    if preset is None:
        return kind(**params)
    named = {"preset": preset} if "preset" in inspect.signature(kind.from_preset).parameters else {}
    return kind.from_preset(**named, dataset=run.dataset, **params)


def why_absent(run: Run) -> str | None:
    """Return why the model of a run cannot be built here, or None: a peer that is not installed."""
    package, _, name = run.spec["estimator"].rpartition(".")
    if package not in PEER_PACKAGES:
        return None
    from ssmseq.benchmark import peers

    return peers.available(name)


def _roles(run: Run, data: BenchmarkData) -> dict[str, Any]:
    covariates = run.spec.get("covariates")
    roles: dict[str, Any] = {"target": data.targets} if data.targets else {}
    if covariates is None:
        return roles
    if covariates not in ("past", "future") or not data.covariates:
        raise ValueError(
            f"model {run.model}: covariates={covariates!r} must be past or future, of a data set that has covariates"
        )
    return roles | {f"{covariates}_covariates": data.covariates}


def _peer(run: Run, package: str, name: str, lookback: int, params: dict) -> Any:
    if package not in PEER_PACKAGES:
        raise ValueError(f"model {run.model}: {package} is not among the peers {', '.join(PEER_PACKAGES)}")
    from ssmseq.benchmark import peers

    params.pop("target", None)
    return peers.Adapter(name, horizon=run.horizon, lookback=lookback, random_state=run.seed, **params)

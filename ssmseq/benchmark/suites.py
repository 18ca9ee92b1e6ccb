"""Suites: YAML files that say which models forecast which data how far ahead, and with which seeds."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "suites"
SUITE_KEYS = {"title", "description", "lookback", "horizons", "seeds", "datasets", "models", "trials", "warnings"}
SUITE_KEYS |= {"unranked"}
DATASET_KEYS = {"lookback", "horizons", "seeds", "csv", "time_col", "splits", "season", "targets", "covariates"}
DATASET_KEYS |= {"generator", "n_rows", "n_variates", "forcing", "dt", "shuffle", "noise"}
MODEL_KEYS = {"estimator", "preset", "params", "datasets", "covariates", "search", "seeds", "only"}
SEEDLESS = ("NaiveForecaster", "RidgeForecaster", "statsforecast.")  # nothing in them is drawn


@dataclass(frozen=True)
class Run:
    """One fit and its evaluation on all test windows: a line of the results."""

    dataset: str
    model: str
    horizon: int
    lookback: int
    seed: int
    spec: dict[str, Any]  # of the model: estimator, preset, params, covariates, search, trials
    data: dict[str, Any] = field(default_factory=dict)  # of the data set, where the suite describes it
    folder: str = ""  # of the suite, which paths of data count from

    @property
    def key(self) -> str:
        """Return what a result is found by: a digest of all that decides the numbers, whatever the model is called."""
        parts = [self.dataset, self.horizon, self.lookback, self.seed, self.spec, self.data]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Return what another process needs to repeat the run."""
        names = ("dataset", "model", "horizon", "lookback", "seed", "spec", "data", "folder")
        return {"key": self.key, **{name: getattr(self, name) for name in names}}


@dataclass
class Suite:
    """A suite as read from its file.

    Attributes
    ----------
    name, title, description : str
    warnings : dict of str to str
        What to know before results on a data set are compared.
    runs : list of Run
        In the order of the file: models first, then data sets and horizons, seeds last.
    unranked : tuple of str
        Data sets that show little of a model; they are reported, and left out of ranks and tests.
    """

    name: str
    title: str
    description: str
    warnings: dict[str, str]
    runs: list[Run]
    unranked: tuple[str, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)  # data set or model -> why it cannot be run here

    @property
    def expected(self) -> list[dict[str, Any]]:
        """Return dataset, model, horizon, seed and key of every run."""
        return [
            {"dataset": r.dataset, "model": r.model, "horizon": r.horizon, "seed": r.seed, "key": r.key}
            for r in self.runs
        ]

    def only(self, **wanted) -> "Suite":
        """Return the suite with the runs whose dataset, model, horizon or seed is among those wanted.

        Raises
        ------
        ValueError
            If the suite has nothing of one of the names.
        """
        runs = self.runs
        for name, values in wanted.items():
            if not values:
                continue
            known = list(dict.fromkeys(getattr(r, name) for r in self.runs))
            unknown = [v for v in values if v not in known]
            if unknown:
                has = ", ".join(map(str, known))
                raise ValueError(f"suite {self.name} has no {name} {', '.join(map(str, unknown))}; it has {has}")
            runs = [r for r in runs if getattr(r, name) in values]
        return replace(self, runs=runs)


def suite_names() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """Read a suite by its name, or from a YAML file.

    Parameters
    ----------
    name : str
        One of `suite_names`, or the path of a file that ends in .yaml.

    Returns
    -------
    Suite

    Raises
    ------
    ValueError
        If there is no such suite, or its file is wrong; the message names the file and the key.
    """
    import yaml

    path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no suite {name!r}: choose one of {', '.join(suite_names())}, or give a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error
    return _parse(path, content)


def _parse(path: Path, content: Any) -> Suite:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a suite is a mapping with {', '.join(sorted(SUITE_KEYS))}")
    _check_keys(path, "the suite", content, SUITE_KEYS, needed=("datasets", "models"))
    datasets = {name: dict(found or {}) for name, found in content["datasets"].items()}
    models = {name: dict(found or {}) for name, found in content["models"].items()}
    for name, found in datasets.items():
        _check_keys(path, f"data set {name}", found, DATASET_KEYS)
    strange = [d for d in content.get("unranked", ()) if d not in datasets]
    if strange:
        raise ValueError(f"{path}: unranked names data sets that the suite lacks: {', '.join(strange)}")
    for name, found in models.items():
        _check_keys(path, f"model {name}", found, MODEL_KEYS, needed=("estimator",))
        unknown = [d for d in (*found.get("only", ()), *found.get("datasets", {})) if d not in datasets]
        if unknown:
            raise ValueError(f"{path}: model {name} names data sets that the suite lacks: {', '.join(unknown)}")
    runs = [run for model in models for run in _runs_of(path, content, datasets, model, models[model])]
    return Suite(
        path.stem,
        content.get("title", path.stem),
        content.get("description", ""),
        {name: text for name, text in (content.get("warnings") or {}).items() if name in datasets},
        runs,
        tuple(content.get("unranked", ())),
    )


def _runs_of(path: Path, content: dict, datasets: dict, model: str, found: dict) -> list[Run]:
    runs = []
    for dataset, described in datasets.items():
        if dataset not in found.get("only", datasets):
            continue
        own = dict(found.get("datasets", {}).get(dataset, {}))
        lookback = described.get("lookback", content.get("lookback"))
        horizons = described.get("horizons", content.get("horizons"))
        if not isinstance(lookback, int) or not horizons:
            raise ValueError(f"{path}: data set {dataset} needs a lookback and horizons, of its own or of the suite")
        preset = own.pop("preset", found.get("preset"))  # null where the preset has nothing for this data set
        spec: dict[str, Any] = {"estimator": found["estimator"], "params": {**found.get("params", {}), **own}}
        spec |= {k: found[k] for k in ("covariates", "search") if k in found}
        spec |= {} if preset is None else {"preset": preset}
        if "search" in spec:
            spec["trials"] = content.get("trials", 8)
        n_seeds = found.get("seeds", described.get("seeds", content.get("seeds", 3)))
        n_seeds = 1 if found["estimator"].startswith(SEEDLESS) else n_seeds
        data = {k: v for k, v in described.items() if k not in ("lookback", "horizons", "seeds")}
        folder = str(path.parent.resolve()) if "csv" in data else ""
        runs += [Run(dataset, model, h, lookback, s, spec, data, folder) for h in horizons for s in range(n_seeds)]
    return runs


def _check_keys(path: Path, what: str, found: dict, known: set[str], needed: tuple[str, ...] = ()) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ValueError(f"{path}: {what} has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    lacking = [key for key in needed if not found.get(key)]
    if lacking:
        raise ValueError(f"{path}: {what} lacks {', '.join(lacking)}")

"""Search spaces: which settings of an estimator are searched, between which bounds, and which are held fixed.

Each estimator has a YAML file beside this one. A file of the user's own has the same two parts: under ``space`` an
entry replaces that of the same name, and null removes it; under ``fixed`` are arguments of the constructor. An entry
is one of

- ``{type: float, low: 0.0001, high: 0.01, log: true}``, with ``step`` in place of ``log`` for a grid,
- ``{type: int, low: 1, high: 4}``, also with ``log`` or ``step``,
- ``{type: categorical, choices: [mse, mae]}``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

FOLDER = Path(__file__).parent / "spaces"
NUMBERS: dict[str, Any] = {"float": FloatDistribution, "int": IntDistribution}
# What decides which errors are measured, or on what: trials that differ in it could not be compared.
MEASURES = {"bidirectional", "horizon", "length", "mask_fraction", "quantiles", "random_state", "sampling_rate"}
MEASURES |= {"scaler", "target", "validation_fraction"}
OWNED = {"callbacks", "checkpoint_folder", "max_epochs", "verbose", "warm_start"}  # by the search itself


@dataclass(frozen=True)
class Space:
    """What is searched, and what is held fixed.

    Attributes
    ----------
    entries : dict of str to optuna distribution
        By the name of the constructor's parameter.
    fixed : dict
        Further arguments of the constructor.
    """

    entries: dict[str, BaseDistribution]
    fixed: dict[str, Any]

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Return the arguments of the constructor for a trial."""
        found = {}
        for name, entry in self.entries.items():
            if isinstance(entry, CategoricalDistribution):
                found[name] = trial.suggest_categorical(name, entry.choices)
            elif isinstance(entry, IntDistribution):
                found[name] = trial.suggest_int(name, entry.low, entry.high, step=entry.step, log=entry.log)
            elif isinstance(entry, FloatDistribution):
                found[name] = trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.log)
        return {**self.fixed, **found}

    def part_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of some parameters that lie in the space."""
        return {name: params[name] for name, e in self.entries.items() if name in params and _has(e, params[name])}

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return the entries in the form of a YAML file."""
        return {name: _plain(entry) for name, entry in self.entries.items()}


def space_names() -> list[str]:
    """Return the names of the estimators that have a search space."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def space_text(estimator: str) -> str:
    """Return the file of an estimator's search space, comments and all."""
    if estimator not in space_names():
        raise ValueError(f"there is no search space for {estimator!r}; there is one for {', '.join(space_names())}")
    return (FOLDER / f"{estimator}.yaml").read_text(encoding="utf-8")


def load_space(estimator: str, changes=None) -> Space:
    """Read the search space of an estimator.

    Parameters
    ----------
    estimator : str
        Name of the class.
    changes : path or dict, optional
        A YAML file, or what such a file holds: ``space`` and ``fixed``, see the module.

    Returns
    -------
    Space

    Raises
    ------
    ValueError
        If there is no such estimator, or a file is wrong; the message names the file and the entry.
    FileNotFoundError
        If there is no such file.
    """
    import yaml

    entries, fixed = _read(f"{estimator}.yaml", yaml.safe_load(space_text(estimator)))
    if changes is not None:
        where, content = ("the changes of the search space", changes)
        if not isinstance(changes, Mapping):
            where = str(changes)
            if not Path(changes).is_file():
                raise FileNotFoundError(f"there is no file {where} with changes of the search space: check the path")
            try:
                content = yaml.safe_load(Path(changes).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                raise ValueError(f"{where} is no YAML file: {error}") from error
        more, given = _read(where, {} if content is None else content)
        _check_names(where, estimator, more, given)
        entries |= more
        fixed = {name: value for name, value in fixed.items() if more.get(name) is None}
        entries = {name: entry for name, entry in entries.items() if name not in given}
        fixed |= given
    searched = {name: entry for name, entry in entries.items() if entry is not None}
    if not searched:
        raise ValueError(f"nothing of {estimator} is left to search: leave an entry in its space")
    return Space(searched, fixed)


def _read(where: str, content) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(content, Mapping) or not set(content) <= {"space", "fixed"}:
        raise ValueError(f"{where} must hold `space` and `fixed` and nothing else; see ssmseq tune --print_space")
    parts = [content.get(name) or {} for name in ("space", "fixed")]
    for name, part in zip(("space", "fixed"), parts, strict=True):
        if not isinstance(part, Mapping):
            raise ValueError(f"{where}: {name} must give values by name, got {part!r}")
    entries = {name: None if e is None else _distribution(f"{where}, {name}", e) for name, e in parts[0].items()}
    return entries, dict(parts[1])


def _check_names(where: str, estimator: str, entries: dict[str, Any], fixed: dict[str, Any]) -> None:
    import ssmseq

    known = set(getattr(ssmseq, estimator)().get_params(deep=False)) | {"preset"}
    for name in (*entries, *fixed):
        if name not in known:
            raise ValueError(f"{where}: {estimator} has no parameter {name!r}; it has {', '.join(sorted(known))}")
        if name in OWNED and (name != "max_epochs" or name in entries):
            raise ValueError(f"{where}: {name} belongs to the search itself; leave it out")
    searched = {name for name, entry in entries.items() if entry is not None}
    for name in sorted(MEASURES & searched):
        raise ValueError(
            f"{where}: {name} cannot be searched, since it decides what trials are measured on: give it one value "
            "under `fixed`"
        )
    for name in sorted(searched & set(fixed)):
        raise ValueError(f"{where}: {name} stands under `space` and under `fixed`; leave one")


def _distribution(where: str, entry) -> BaseDistribution:
    """Return the distribution that an entry describes; an error names the entry."""
    kind = entry.get("type") if isinstance(entry, Mapping) else None
    if kind not in ("float", "int", "categorical"):
        raise ValueError(f"{where}: an entry must have the type float, int or categorical, got {entry!r}")
    rest = {key: value for key, value in entry.items() if key != "type"}
    needed = {"choices"} if kind == "categorical" else {"low", "high"}
    allowed = needed if kind == "categorical" else {*needed, "log", "step"}
    if not needed <= set(rest) or not set(rest) <= allowed:
        raise ValueError(f"{where}: type {kind} takes {', '.join(sorted(allowed))}, got {', '.join(rest) or 'nothing'}")
    if kind != "categorical":
        try:
            return NUMBERS[kind](**rest)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
    choices = rest["choices"]
    plain = isinstance(choices, list | tuple) and all(isinstance(c, bool | int | float | str | None) for c in choices)
    if not plain or not choices:
        raise ValueError(f"{where}: choices must be a list of numbers, words, true, false or null, got {choices!r}")
    return CategoricalDistribution(choices)


def _has(entry: BaseDistribution, value) -> bool:
    if isinstance(entry, CategoricalDistribution):
        return any(value is c or (type(value) is type(c) and value == c) for c in entry.choices)
    if not isinstance(entry, FloatDistribution | IntDistribution) or isinstance(value, bool):
        return False
    kind = int | float if isinstance(entry, FloatDistribution) else int
    inside = isinstance(value, kind) and entry.low <= value <= entry.high
    return inside and (entry.log or entry.step is None or round((value - entry.low) / entry.step, 9) % 1 == 0)


def _plain(entry: BaseDistribution) -> dict[str, Any]:
    if isinstance(entry, CategoricalDistribution):
        return {"type": "categorical", "choices": list(entry.choices)}
    kind = "int" if isinstance(entry, IntDistribution) else "float"
    found = {"type": kind, "low": entry.low, "high": entry.high}  # type: ignore[attr-defined]
    extra = {"log": entry.log or None, "step": None if entry.log else entry.step}  # type: ignore[attr-defined]
    return found | {k: v for k, v in extra.items() if v is not None and (k, v) != ("step", 1)}

"""The search: workers that claim the trials of one study, until there are as many as were asked for.

Claiming a trial, making a new one and taking back that of a lost worker happen under one lock, so that any number of
processes on any number of machines make exactly as many trials as were asked for. What a trial is drawn from depends
on the seed, its number and the trials before it: a study that was stopped goes on as if it had not been.
"""

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ssmseq.sampling import mixed_seed
from ssmseq.tuning.progress import Standing
from ssmseq.tuning.spaces import Space, load_space
from ssmseq.tuning.storage import locked, open_storage
from ssmseq.tuning.tasks import Task, make_task
from ssmseq.tuning.trials import Silence, Worker


class Halving(SuccessiveHalvingPruner):
    """Successive halving by the best loss so far: a fit keeps the weights of its best epoch, not those of its last."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial ends here."""
        curve = trial.intermediate_values
        if not curve:
            return False
        best = min if study.direction == StudyDirection.MINIMIZE else max
        trial = copy.copy(trial)
        trial.intermediate_values = {max(curve): best(curve.values())}
        return super().prune(study, trial)


PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "halving": lambda: Halving(min_resource=2, reduction_factor=10),
    "median": lambda: MedianPruner(n_startup_trials=5, n_warmup_steps=1),
    "none": NopPruner,
}
HEARTBEAT = 30.0  # seconds
LONGEST_WAIT = 5.0  # seconds between looks at what other workers do
COMPARED = ("estimator", "checksum", "metric", "fixed", "space")  # what all workers of a study must agree on
AFTER_LOSS = {"lost": "and it waits again", "failed": "once too often: it failed"}


def tune(
    estimator,
    X,
    y=None,
    *,
    study: str = "ssmseq",
    storage: str | BaseStorage | None = None,
    n_trials: int = 20,
    timeout: float | None = None,
    space=None,
    metric: str | None = None,
    max_epochs: int | None = None,
    seed: int = 0,
    pruner: str = "halving",
    heartbeat: float = HEARTBEAT,
    engine: str = "process",
    workers: int | None = None,
    about: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
    **data,
) -> optuna.Study:
    """Search the settings of an estimator, or go on with a search.

    The first trial has the estimator's own settings, as far as they lie in the space; the others are proposed by a
    tree-structured Parzen estimator [1]_. A trial is cut short when others had a lower validation loss after as many
    epochs [2]_. Any number of processes may call this at the same time with one storage: they share the trials.

    Parameters
    ----------
    estimator : str, class or estimator
        One of `ssmseq.tuning.space_names`. Parameters of an instance that differ from the defaults are held fixed.
    X, y
        Data as `fit` takes them; `y` for classifiers.
    study : str
        Name of the study.
    storage : str or optuna storage, optional
        See `ssmseq.tuning.storage`; by default the memory of this process.
    n_trials : int
        Trials that the study is to have in all, whoever made them.
    timeout : float, optional
        Seconds after which this process begins no further trial.
    space : path or dict, optional
        Changes of the search space, see `ssmseq.tuning.spaces`.
    metric : str, optional
        What trials are compared by: of forecasters "mse" (default) or "mae", of ECGs "macro_auroc" (default),
        "macro_auprc" or "macro_brier", of language models "bits_per_base", of DNA classes "accuracy" (default), "mcc"
        or "log_loss".
    max_epochs : int, optional
        Of a trial; the estimator's own number by default.
    seed : int
        Of the proposals, and the `random_state` of every trial.
    pruner : {"halving", "median", "none"}
        Successive halving keeps the best tenth after 2, 20, 200, ... epochs, by the best loss so far; "median" stops
        what is worse than the median.
    heartbeat : float
        Seconds between signs of life. A trial whose worker gives none for four of them is taken up by another one.
    engine : {"process", "ray"}
        Where the trials are made: in this process, or by workers of the Ray cluster that `ray.init` finds. They open
        `storage` by its address, and read the files that `X` names: a cluster of several machines needs a server, or a
        journal on a disk that they share.
    workers : int, optional
        Of Ray; by default one for each GPU, or else for each machine.
    about : dict of str to str, optional
        Kept with the study, such as the command or the name of the data.
    say : callable, optional
        Called with a line of progress after each trial.
    **data
        Of forecasters nothing; of ECGs `groups` (patients) and `held_out` (n,) of bool; of language models `regions`
        and `validation`; of DNA classes `groups`.

    Returns
    -------
    optuna.Study
        Its user attributes hold the estimator, the data's checksum, the metric and the baselines.

    Raises
    ------
    ValueError
        If an argument or the data cannot be used, or the study was made with others; the message names what differs.
    ImportError
        If the driver of the storage, or Ray for its engine, is not installed.
    OSError
        If workers of Ray are lost again and again.
    KeyboardInterrupt
        If interrupted; the trial in progress waits to be taken up again.

    References
    ----------
    .. [1] Bergstra et al., "Algorithms for hyper-parameter optimization", NIPS 2011.
    .. [2] Li et al., "A system for massively parallel hyperparameter tuning", arXiv 1810.05934.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmseq.tuning import tune
    >>> wave = np.sin(np.arange(300.0) / 5)[:, None]
    >>> space = {"space": {"lookback": {"type": "int", "low": 2, "high": 24}}, "fixed": {"horizon": 3}}
    >>> len(tune("RidgeForecaster", wave, n_trials=3, space=space).trials)
    3
    """
    from ssmseq.base import check_choice, check_number

    check_number("n_trials", n_trials, minimum=1, integer=True)
    check_number("seed", seed, minimum=0, integer=True)
    check_number("heartbeat", heartbeat, above=0)
    check_choice("pruner", pruner, tuple(PRUNERS))
    check_choice("engine", engine, ("process", "ray"))
    if engine == "ray" and not isinstance(storage, str):
        raise ValueError(
            "engine='ray' needs the address of a storage that its workers can open too, such as 'sqlite:///study.db' "
            f"on one machine; got storage={storage!r}"
        )
    if engine != "ray" and workers is not None:
        raise ValueError(f"workers={workers!r} is for engine='ray': leave it out")
    if timeout is not None:
        check_number("timeout", timeout, above=0)
    chosen = choose_space(estimator, space, max_epochs=max_epochs, seed=seed)
    task = make_task(name_of(estimator), chosen.fixed, metric, X, y, **data)
    limits = {"n_trials": n_trials, "timeout": timeout, "heartbeat": heartbeat}
    options = {"study": study, "seed": seed, "pruner": pruner, "about": about, "say": say, **limits}
    if engine == "ray" and isinstance(storage, str):
        from ssmseq.tuning.cluster import search_on_ray

        return search_on_ray(task, chosen, storage, workers=workers, **options)
    place = InMemoryStorage() if storage is None else open_storage(storage) if isinstance(storage, str) else storage
    return search(task, chosen, place, **options)


def search(
    task: Task,
    space: Space,
    storage: BaseStorage,
    *,
    study: str,
    n_trials: int,
    timeout: float | None = None,
    seed: int = 0,
    pruner: str = "halving",
    heartbeat: float = HEARTBEAT,
    about: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> optuna.Study:
    """Take part in a study of a task until it has all its trials; arguments, results and errors as of `tune`."""
    with quiet_optuna():
        found = open_study(study, storage, task, space, about or {}, say)
        found.pruner = PRUNERS[pruner]()
        deadline = None if timeout is None else time.monotonic() + timeout
        _work(Worker(task, space, found, storage, heartbeat), n_trials, seed, deadline, say)
    return found


def name_of(estimator) -> str:
    """Return the name of an estimator's class, from the name, the class or an instance."""
    if isinstance(estimator, str):
        return estimator
    return estimator.__name__ if isinstance(estimator, type) else type(estimator).__name__


def choose_space(estimator, changes=None, *, max_epochs: int | None = None, seed: int = 0) -> Space:
    """Return the search space of an estimator, with everything that trials hold fixed.

    Raises
    ------
    ValueError
        If something fixed cannot be written down, such as an object; and as `load_space`.
    """
    import ssmseq

    space = load_space(name_of(estimator), changes)
    fixed = dict(space.fixed)
    defaults = getattr(ssmseq, name_of(estimator))().get_params(deep=False)
    if not isinstance(estimator, str | type):
        given = estimator.get_params(deep=False)
        differing = {name: value for name, value in given.items() if repr(value) != repr(defaults[name])}
        fixed = {**differing, **fixed}
    if "random_state" in defaults:
        fixed["random_state"] = seed
    if max_epochs is not None:
        if "max_epochs" not in defaults:
            raise ValueError(f"{name_of(estimator)} has no epochs: leave out max_epochs")
        fixed["max_epochs"] = max_epochs
    for name, value in fixed.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                f"{name}={value!r} cannot be kept with a study, nor be written to a file of settings: {error}; give "
                "numbers, words and lists, and a model as the folder that it is saved in"
            ) from error
    return Space({name: entry for name, entry in space.entries.items() if name not in fixed}, fixed)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from a line for each study and trial."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def open_study(name: str, storage: BaseStorage, task: Task, space: Space, about: Mapping[str, str], say):
    """Open or make the study; refuse one that was made for something else."""
    from ssmseq import __version__

    direction = StudyDirection[task.direction.upper()]
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    if study.directions != [direction]:
        raise ValueError(
            f"study {name!r} is to {study.directions[0].name.lower()}, and {task.metric} is to {task.direction}: "
            f"create it with --direction {task.direction}, or let ssmseq create it"
        )
    facts = {
        "estimator": task.estimator_type.__name__,
        "checksum": task.checksum,
        "metric": task.metric,
        "fixed": json.loads(json.dumps(space.fixed)),
        "space": json.loads(json.dumps(space.as_dict())),
    }
    with locked(storage, name):
        kept = study.user_attrs
        for key, value in {**facts, "version": __version__, **about}.items():
            if key not in kept:
                study.set_user_attr(key, value)
    _check_same(study, facts)
    if "baselines" not in kept:
        if say is not None:
            say("measuring the baselines ...")
        study.set_user_attr("baselines", task.baselines())
    return study


def _check_same(study: optuna.Study, facts: dict[str, Any]) -> None:
    """Raise ValueError naming what differs from what the study was made for."""
    kept = study.user_attrs
    for key in COMPARED:
        mine, theirs = facts[key], kept[key]
        if mine == theirs:
            continue
        what = {"checksum": "other data", "fixed": "another fixed setting", "space": "another search space"}
        named = what.get(key, f"another {key}")
        if isinstance(mine, dict):
            part = next(n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n))
            named, mine, theirs = f"{named}, of {part}", mine.get(part), theirs.get(part)
        raise ValueError(
            f"study {study.study_name!r} was made with {named}: {theirs}, and now {mine}. Give this search "
            "another name for its study, or repeat the settings and data of that one"
        )


def _work(worker: Worker, n_trials: int, seed: int, deadline: float | None, say) -> None:
    if worker.task.trains:
        import ssmseq.training  # noqa: F401  Lightning's import would count as time of the first trial

    silence, standing = Silence(), Standing(worker.study, n_trials, deadline)
    while not (deadline is not None and time.monotonic() > deadline):
        with locked(worker.storage, worker.study.study_name):
            trials = worker.study.get_trials(deepcopy=False)[:n_trials]
            for trial in silence.lost([t for t in trials if t.state == TrialState.RUNNING], worker.heartbeat):
                outcome = worker.take_back(trial)
                if say is not None:
                    say(f"trial {trial.number}: its worker was lost, {AFTER_LOSS[outcome]}")
            trial_id = _claim(worker, n_trials)
        if trial_id is None:
            trials = worker.study.get_trials(deepcopy=False)[:n_trials]
            if all(trial.state.is_finished() for trial in trials):
                return
            time.sleep(min(LONGEST_WAIT, worker.heartbeat / 2))
            continue
        number = worker.storage.get_trial_number_from_id(trial_id)
        worker.study.sampler = TPESampler(seed=mixed_seed(seed, number), multivariate=True, constant_liar=True)
        outcome = worker.run(trial_id)
        if outcome == "interrupted":
            raise KeyboardInterrupt
        if say is not None:
            say(standing.line())


def _claim(worker: Worker, n_trials: int) -> int | None:
    """Return a trial that is this worker's now: one that waits, or else a new one; None if there are enough."""
    trials = worker.study.get_trials(deepcopy=False)
    if not trials:
        defaults = worker.task.build(worker.space.fixed).get_params(deep=False)
        worker.study.enqueue_trial(worker.space.part_of(defaults))
        trials = worker.study.get_trials(deepcopy=False)
    for trial in trials[:n_trials]:
        mine = trial.state == TrialState.WAITING
        if mine and worker.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return trial._trial_id
    if len(trials) < n_trials:
        return worker.storage.create_new_trial(worker.storage.get_study_id_from_name(worker.study.study_name))
    return None

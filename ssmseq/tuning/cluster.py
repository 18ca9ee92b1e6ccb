"""A search whose workers run on a Ray cluster: each is a process that takes part in the study by its storage."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import optuna

from ssmseq.fanout import Share, connected, nodes_of, settle, share_of
from ssmseq.tuning.progress import Standing
from ssmseq.tuning.spaces import Space
from ssmseq.tuning.storage import open_storage
from ssmseq.tuning.tasks import Task
from ssmseq.tuning.trials import MOST_LOSSES

LOOKS = 1.0  # seconds between looks at the study
GRACE = 20.0  # seconds that workers have to put their trials back when the search is interrupted


def search_on_ray(
    task: Task,
    space: Space,
    url: str,
    *,
    study: str,
    n_trials: int,
    workers: int | None = None,
    timeout: float | None = None,
    say: Callable[[str], None] | None = None,
    **options,
) -> optuna.Study:
    """Search with workers of a Ray cluster; arguments, results and errors as of `ssmseq.tuning.tune`.

    The study is made and its baselines are measured here. A worker that is lost is replaced; its trial goes back to
    waiting as any other whose signs of life have ceased, so that there are as many trials as were asked for.
    """
    from ssmseq.tuning.search import open_study, quiet_optuna

    with connected() as ray, quiet_optuna():
        _check_reach(url, {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
        about = options.pop("about", None)
        found = open_study(study, open_storage(url), task, space, about or {}, say)
        accelerator = space.fixed.get("accelerator", task.build({}).get_params().get("accelerator", "cpu"))
        share = share_of(nodes_of(ray), workers, accelerator=accelerator, by_node=True)
        remote = ray.remote(num_cpus=share.cores, num_gpus=share.gpus, max_retries=0)(_take_part)
        kept, deadline = ray.put((task, space)), None if timeout is None else time.monotonic() + timeout

        def start() -> Any:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            limits = {"study": study, "n_trials": n_trials, "timeout": left}
            return remote.remote(kept, url, os.getcwd(), share.cores, {**options, **limits})

        standing = Standing(found, n_trials, deadline, workers=share.workers)
        _watch(ray, start, share, (MOST_LOSSES + 1) * n_trials, standing, say or (lambda text: None))
    return found


def _check_reach(url: str, machines: set[str]) -> None:
    """Raise ValueError if the machines of the cluster cannot all open a storage."""
    if url.startswith("sqlite") and len(machines) > 1:
        raise ValueError(
            f"storage {url!r} is a file for one machine, and the Ray cluster has {len(machines)}: give "
            "journal:///FILE on a disk that they share, or postgresql://, mysql:// or grpc://"
        )


def _take_part(kept: tuple[Task, Space], url: str, folder: str, cores: int, options: dict[str, Any]) -> None:
    from ssmseq.tuning.search import quiet_optuna, search

    settle(folder, cores)
    with quiet_optuna():
        storage = open_storage(url)
        try:
            optuna.load_study(study_name=options["study"], storage=storage)
        except KeyError as error:  # it would make a study of its own otherwise
            raise ValueError(
                f"the machine {socket.gethostname()} of the Ray cluster does not see the study {options['study']!r}: a "
                "storage that is a file must lie on a disk that all machines share"
            ) from error
    search(*kept, storage, **options)


def _watch(ray: Any, start: Callable[[], Any], share: Share, most_losses: int, standing: Standing, say) -> None:
    """Keep the workers at work until all of them are through, and end them if this process is interrupted."""
    running, losses, said = [start() for _ in range(share.workers)], 0, 0
    try:
        while running and said < standing.n_trials:  # a worker in place of a lost one may come too late for any trial
            ended, running = ray.wait(running, timeout=LOOKS)
            for reference in ended:
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    losses += 1
                    if losses > most_losses:
                        raise OSError(
                            f"{losses} workers of the Ray cluster were lost, the last one: {error}"
                        ) from error
                    say("a worker of the Ray cluster was lost, and another one takes its place")
                    running.append(start())
            finished = standing.finished()
            if finished > said:
                say(standing.line())
                said = finished
    finally:
        _end(ray, running, interrupt=said < standing.n_trials)


def _end(ray: Any, running: list, *, interrupt: bool) -> None:
    """End tasks, after an interrupt that lets them put their trials back."""
    for force in (False, True) if interrupt else (True,):
        for reference in running:
            ray.cancel(reference, force=force)
        if running:
            _, running = ray.wait(running, num_returns=len(running), timeout=GRACE)

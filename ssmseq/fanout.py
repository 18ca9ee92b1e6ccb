"""Fan-out on Ray: the cluster, the share of it that a worker gets, and one function over many pieces of work.

Ray's actors [1]_ are given the model once, and a piece at a time. Those that die are replaced, and their pieces given
to others. Ray Data does this too, but repeats without end a piece that kills its worker, as by taking all memory, and
needs pyarrow for pieces that are no tables.

.. [1] Moritz et al., "Ray: a distributed framework for emerging AI applications", OSDI 2018.
"""

import contextlib
import os
import socket
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

MOST_LOSSES = 3  # times that a piece is given to another worker; a further loss is likely its own doing


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Give Ray, connected to the cluster that `ray.init` finds, or else to the cores of this machine.

    A connection that was there stays; one made here is ended at the end. Without Ray it is an ImportError.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('the engine "ray" needs Ray: pip install "ssmseq[ray]"') from error

    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        yield ray
    finally:
        ray.shutdown()


class Share(NamedTuple):
    """How many workers there are, and the cores and GPUs (0 or 1) that each of them has for itself."""

    workers: int
    cores: int
    gpus: int


def share_of(
    nodes: Sequence[tuple[int, int]], workers: int | None, *, accelerator: str, by_node: bool = False
) -> Share:
    """Divide a cluster, with as many cores for each worker as let all of them run at the same time.

    There is by default one worker for each GPU if the accelerator, as Lightning calls it, may be one, and otherwise for
    each core, or with `by_node` for each machine; `nodes` are the cores and GPUs of these. Too many workers for the
    cluster are a ValueError.
    """
    gpus = sum(gpu for _, gpu in nodes) if accelerator in ("auto", "gpu", "cuda") else 0
    workers = workers if workers is not None else gpus or sum(min(c, 1) if by_node else c for c, _ in nodes)

    def room(cores: int) -> int:
        return sum(min(here // cores, gpu) if gpus else here // cores for here, gpu in nodes)

    if not 1 <= workers <= room(1):
        has = f"{gpus} GPUs with a core each" if gpus else f"{room(1)} cores"
        raise ValueError(f"workers must be from 1 to what the Ray cluster has, {has}; got {workers}")
    most = max(cores for cores, _ in nodes)
    return Share(workers, max(cores for cores in range(1, most + 1) if room(cores) >= workers), int(gpus > 0))


def nodes_of(ray: Any) -> list[tuple[int, int]]:
    """Return the cores and GPUs of each machine of the cluster."""
    found = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in found]


def settle(folder: str, cores: int) -> None:
    """Make relative paths mean what they do where the work was given out, and use no more cores than are ours."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"the machine {socket.gethostname()} of the Ray cluster has no folder {folder}: start from a folder that "
            "all its machines share"
        )
    os.chdir(folder)
    if "torch" in sys.modules:  # one that is loaded later reads what Ray tells OpenMP
        sys.modules["torch"].set_num_threads(cores)


def fan_out(
    function: Callable[[Any, Any], Any], model, pieces: Sequence, *, workers: int | None = None
) -> Iterator[Any]:
    """Yield ``function(model, piece)`` of each piece, in their order, as workers of a Ray cluster find it.

    Parameters
    ----------
    function : callable
    model : estimator
        Sent to each worker once, which has a GPU if the model's `accelerator` allows it and the cluster has any.
    pieces : sequence
        What can be pickled. The working folder must exist on all machines; relative paths are relative to it.
    workers : int, optional
        By default one for each GPU or else for each core.

    Raises
    ------
    ImportError, ValueError, OSError
        Without Ray, for more workers than the cluster has room for, or if a piece costs the fourth worker its life; and
        whatever `function` raises. Its warnings are repeated, too.
    """
    with connected() as ray:
        share = share_of(nodes_of(ray), workers, accelerator=getattr(model, "accelerator", "cpu"))
        kind = ray.remote(num_cpus=share.cores, num_gpus=share.gpus)(_Worker)
        kept, hired = ray.put((function, model)), []

        def hire() -> Any:
            hired.append(kind.remote(kept, os.getcwd(), share.cores))
            return hired[-1]

        try:
            yield from _in_order(ray, hire, pieces, min(share.workers, len(pieces)))
        finally:
            for worker in hired:
                ray.kill(worker)


def _in_order(ray: Any, hire: Callable[[], Any], pieces: Sequence, n_workers: int) -> Iterator[Any]:
    waiting = list(range(len(pieces)))[::-1]  # the last one comes next
    found: dict[int, Any] = {}
    losses: Counter[int | None] = Counter()
    idle: list[Any] = []
    busy: dict[Any, tuple[int | None, Any]] = {}  # at a piece, or (None) at starting, for which the room may lack

    def start() -> None:
        worker = hire()
        busy[worker.start.remote()] = None, worker

    for _ in range(n_workers):
        start()
    for number in range(len(pieces)):
        while number not in found:
            # How far the others may be ahead of a slow piece is limited, and so are the results that wait for it.
            while idle and waiting and waiting[-1] < number + 8 * n_workers:
                worker, piece = idle.pop(), waiting.pop()
                busy[worker.perform.remote(pieces[piece])] = piece, worker
            (ended, *_), _ = ray.wait(list(busy), num_returns=1)
            piece, worker = busy.pop(ended)
            try:
                result = ray.get(ended)
            except ray.exceptions.RayError as error:
                losses[piece] += 1
                if losses[piece] > MOST_LOSSES:
                    raise OSError(_too_many(piece, error)) from error
                waiting += [] if piece is None else [piece]
                start()
                continue
            idle.append(worker)
            if piece is None:
                losses[None] = 0
            else:
                found[piece] = result
        result, error, seen = found.pop(number)
        for category, message in seen:
            warnings.warn(message, category, stacklevel=3)
        if error is not None:
            raise error
        yield result


def _too_many(piece: int | None, error: Exception) -> str:
    at = "starting" if piece is None else f"piece {piece + 1} of the work"
    return (
        f"{MOST_LOSSES + 1} workers of the Ray cluster died at {at}; too little memory is the usual cause: use fewer "
        f"workers or smaller pieces. Ray says: {' '.join(str(error).split())[:300]}"
    )


class _Worker:
    def __init__(self, kept: tuple[Callable, Any], folder: str, cores: int):
        (self.function, self.model), self.folder, self.cores = kept, folder, cores

    def start(self) -> None:
        """Do nothing, as soon as the cluster has room for this worker."""

    def perform(self, piece) -> tuple[Any, Exception | None, list]:
        """Return what the function does: its result or its error, and its warnings."""
        found, error = None, None
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                settle(self.folder, self.cores)
                found = self.function(self.model, piece)
            except Exception as raised:
                raised.add_note(f"on {socket.gethostname()} of the Ray cluster:\n{traceback.format_exc()}")
                error = raised
        return found, error, [(w.category, str(w.message)) for w in seen]

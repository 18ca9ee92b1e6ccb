"""Where a study lives, by the address of the storage, and the lock that its workers share.

==================================== ==================================================================================
``sqlite:///study.db``               a file, for the processes of one machine; nothing to install
``journal:///shared/study.log``      a file that several machines share over a network file system
``postgresql://user:word@host/name`` a server, for a cluster; also ``mysql://``
``grpc://host:13000``                a proxy in front of a server, for hundreds of workers (`run_grpc_proxy_server` of
                                     Optuna)
==================================== ==================================================================================
"""

import contextlib
import random
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection

DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "pymysql"}
SQLITE_WAIT = 60  # seconds that a process waits for another that writes
OPENINGS = 10
HELD_TOO_LONG = 60.0  # seconds; what is done under the lock takes far less


def default_url(study: str) -> str:
    """Return the address of the file that a study lives in where none is given: in the working directory."""
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in study)
    return f"sqlite:///{kept}.db"


def open_storage(url: str) -> BaseStorage:
    """Open the storage of an address, and make it if it is not there.

    Parameters
    ----------
    url : str
        See the module.

    Returns
    -------
    optuna.storages.BaseStorage

    Raises
    ------
    ValueError
        If the address is of no known kind, or the server or file behind it cannot be used.
    ImportError
        If the driver of the database is not installed; the message names the package.
    """
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme == "journal":
        return _open_journal(url)
    if scheme == "grpc":
        return _open_proxy(url)
    if scheme not in ("sqlite", "postgresql", "mysql", "mariadb"):
        raise ValueError(
            f"storage {url!r} must begin with sqlite:///, journal:///, postgresql://, mysql:// or grpc://, such as "
            "sqlite:///study.db"
        )
    return _open_database(url, is_file=scheme == "sqlite")


def _open_journal(url: str) -> JournalStorage:
    from optuna.storages.journal import JournalFileBackend

    path = Path(url.removeprefix("journal://"))
    if not url.startswith("journal:///") or not path.parent.is_dir():
        raise ValueError(
            f"storage {url!r} must name a file in a folder that exists, such as journal:///shared/study.log"
        )
    return JournalStorage(JournalFileBackend(str(path)))


def _open_proxy(url: str) -> BaseStorage:
    place = urlsplit(url)
    if not place.hostname or not place.port:
        raise ValueError(f"storage {url!r} must name host and port, such as grpc://localhost:13000")
    try:
        from optuna.storages import GrpcStorageProxy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GrpcStorageProxy(host=place.hostname, port=place.port)
    except ImportError as error:
        raise ImportError(f"storage {url!r} needs grpcio and protobuf: pip install grpcio protobuf") from error


def _open_database(url: str, *, is_file: bool) -> RDBStorage:
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    options = {"connect_args": {"timeout": SQLITE_WAIT}} if is_file else {"pool_pre_ping": True}
    for left in reversed(range(OPENINGS)):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except ModuleNotFoundError as error:
            package = DRIVERS.get(error.name or "", error.name)
            raise ImportError(f'storage {_without_password(url)!r} needs a driver: pip install "{package}"') from error
        except ImportError as error:  # Optuna's own words for the same
            missing = getattr(error.__cause__, "name", None) or "psycopg"
            package = DRIVERS.get(missing, missing)
            raise ImportError(f'storage {_without_password(url)!r} needs a driver: pip install "{package}"') from error
        except (ArgumentError, NoSuchModuleError) as error:
            raise ValueError(f"storage {_without_password(url)!r} is no address of a database: {error}") from error
        except DBAPIError as error:
            # Workers that start at the same moment all make the tables; all but one fail, and find them the next time.
            if not left or not _is_race(error):
                reason = str(error.orig).strip()
                raise ValueError(f"storage {_without_password(url)!r} cannot be opened: {reason}") from error
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("the last opening returns or raises")


def _is_race(error: Exception) -> bool:
    text = str(error).lower()
    return any(words in text for words in ("already exists", "unique", "duplicate", "locked", "no such table"))


def _without_password(url: str) -> str:
    place = urlsplit(url)
    return url.replace(f":{place.password}@", ":***@") if place.password else url


@contextlib.contextmanager
def locked(storage: BaseStorage, study: str, *, held_too_long: float = HELD_TOO_LONG) -> Iterator[None]:
    """Keep all other workers of a study out, on whatever machine they are.

    Every storage refuses a second study of one name, whoever comes first: that is the lock, a study that is there as
    long as it is held. Taking a waiting trial has no such guarantee (with SQLite two processes can both succeed).

    Parameters
    ----------
    storage : optuna.storages.BaseStorage
    study : str
        Name of the study.
    held_too_long : float
        Seconds after which the lock counts as that of a worker that died, and is taken away.
    """
    name, seen, since = f"{study} (lock)", None, time.monotonic()
    while True:
        try:
            lock = storage.create_new_study([StudyDirection.MINIMIZE], name)
            break
        except DuplicatedStudyError:
            holder = _holder(storage, name)
            if holder != seen:
                seen, since = holder, time.monotonic()
            elif holder is not None and time.monotonic() - since > held_too_long:
                _delete(storage, holder[0])
        time.sleep(random.uniform(0.01, 0.05))
    try:
        storage.set_study_user_attr(lock, "holder", uuid.uuid4().hex)  # an identifier can come again, this cannot
        yield
    finally:
        _delete(storage, lock)


def _holder(storage: BaseStorage, name: str) -> tuple[int, str | None] | None:
    try:
        lock = storage.get_study_id_from_name(name)
        return lock, storage.get_study_user_attrs(lock).get("holder")
    except KeyError:
        return None


def _delete(storage: BaseStorage, lock: int) -> None:
    with contextlib.suppress(KeyError):  # another worker took it for that of a dead one
        storage.delete_study(lock)

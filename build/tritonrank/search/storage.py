"""Where a study is kept, so that it outlives a process and several can share it.

    study.db, sqlite:///study.db      a SQLite file: processes of one machine
    /shared/study.journal             a journal file: machines that share a folder, NFS too
    postgresql://user@host/database   a database; also mysql:// and redis://, with their drivers

A password never appears where the address is shown. It may be a ``${NAME}`` of the environment.
"""

import os
import random
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from tritonrank.errors import StorageError
from tritonrank.system.database_url import HIDDEN, SECRET_WORDS, VARIABLE, without_password

JOURNALS = (".journal", ".log", ".jsonl")
SQLITE_WAIT_SECONDS = 60
"""How long one process waits for another one's write to the file."""
TABLE_TRIES = 8
DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}
"""What reads a database whose URL names no driver; the first is the one that `tritonrank[databases]` brings."""
PACKAGES = {"psycopg": "tritonrank[databases]", "pymysql": "pymysql", "redis": "redis"}
REDIS = ("redis", "rediss", "unix")
"""By TCP, by TLS, and by the socket of a Redis or Valkey of this machine."""
SCHEMES = ("sqlite", "journal", *REDIS, *DRIVERS)


def quiet_optuna() -> None:
    """Our progress takes the place of Optuna's."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def shown(address: str) -> str:
    """An address as it may be printed."""
    return without_password(address)


def open_storage(address: str) -> BaseStorage:
    """Open what keeps studies; a file is made where there is none.

    Raises:
        StorageError: it cannot be reached, or is of a kind that is not known.
    """
    quiet_optuna()
    scheme, is_url, rest = address.partition("://")
    if not is_url or scheme == "journal":
        path = Path(unquote(urlsplit(address).path) if is_url else address).expanduser()
        if is_url or path.suffix in JOURNALS:
            _make_folder_of(path)
            return JournalStorage(JournalFileBackend(str(path)))
        return _sqlite(path)
    if scheme == "sqlite":
        return _sqlite(Path(unquote(rest.removeprefix("/"))))
    if scheme.partition("+")[0] not in SCHEMES:
        raise StorageError(
            f"--storage {shown(address)}: {scheme}:// is not read. Take a file (study.db, /shared/study.journal) or a "
            "database: postgresql://user@host/database, mysql://..., redis://..."
        )
    with reaching(address):
        url = _with_variables(address)
        if scheme in REDIS:
            return JournalStorage(JournalRedisBackend(url))
        driver = DRIVERS.get(scheme, scheme)
        return _with_tables(f"{driver}://{url.partition('://')[2]}", {"pool_pre_ping": True})


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Errors of the storage as one message without a password.

    Raises:
        StorageError: something in the block failed to reach it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), str(error.name))
        raise StorageError(f"{shown(address)}: needs {error.name}: pip install '{package}'") from None
    except ImportError as error:  # Optuna wraps the missing driver
        raise StorageError(f"{shown(address)}: its driver is missing: {_masked(str(error), address)}") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        reason = _masked(" ".join(str(cause).split()), address)
        raise StorageError(
            f"{shown(address)}: the study cannot be read or written there: {reason}. What was found so far is kept; "
            "run the command again"
        ) from None
    except Exception as error:
        if not type(error).__module__.startswith("redis."):  # redis need not be installed to say which errors it has
            raise
        raise StorageError(f"{shown(address)}: cannot be reached: {_masked(str(error), address)}") from None


def _sqlite(path: Path) -> RDBStorage:
    path = path.expanduser()
    _make_folder_of(path)
    with reaching(str(path)):
        wait = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}}
        return _with_tables(f"sqlite:///{quote(str(path), safe='/ ')}", wait)


def _with_tables(url: str, engine: dict[str, Any]) -> RDBStorage:
    """A database whose tables are made where there are none; another process may be making them just now."""
    for _ in range(TABLE_TRIES):
        try:
            return RDBStorage(url, engine_kwargs=engine)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            is_being_made = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not is_being_made:
                raise
            time.sleep(random.uniform(0.1, 0.5))
    return RDBStorage(url, engine_kwargs=engine)


def _make_folder_of(path: Path) -> None:
    if not path.name or path.is_dir():
        raise StorageError(f"--storage {path}: is a folder; name a file in it: {path / 'study.db'}")
    path.parent.mkdir(parents=True, exist_ok=True)


def _with_variables(address: str) -> str:
    try:
        return VARIABLE.sub(lambda found: quote(os.environ[found[1]], safe=""), address)
    except KeyError as error:
        raise StorageError(f"--storage {shown(address)}: the variable {error.args[0]} is not set") from None


def _masked(text: str, address: str) -> str:
    """A library's message without the password, should it quote it."""
    parts = urlsplit(address)
    written = [parts.password or "", *(value for key, value in parse_qsl(parts.query) if key in SECRET_WORDS)]
    found = {one for secret in written for one in (secret, unquote(secret))}
    found |= {os.environ.get(name, "") for name in VARIABLE.findall(address)}
    for secret in found - {""}:
        text = re.sub(re.escape(secret), HIDDEN, text)
    return text

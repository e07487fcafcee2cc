"""Optuna's storage in a PostgreSQL database: its URL, what never shows its password, and servers that go away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from braintum import storage
from braintum.settings import ConfigError

POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
FORM = "postgresql://USER@HOST/DATABASE"
CONNECT_SECONDS = 5
_WAY_IN = "give the password in ~/.pgpass or PGPASSWORD, or with its special characters as %40 (@), %2F (/), %3A (:)"


class StorageLost(RuntimeError):
    """A database that was there, and has not answered for long enough."""


def read_url(given: str) -> URL:
    """A PostgreSQL URL, for psycopg. Raises ConfigError, which repeats nothing that may be of a password."""
    try:
        url = make_url(given)
    except (SQLAlchemyError, ValueError):
        raise ConfigError(f"--storage postgresql://...: cannot be read; expected {FORM}; {_WAY_IN}") from None
    if "@" in (url.host or "") + (url.database or "") or "password" in url.query:
        raise ConfigError(f"--storage postgresql://...: {_WAY_IN}")
    if not url.database:
        raise ConfigError(f"--storage postgresql://...: names no database; expected {FORM}")
    return url.set(drivername="postgresql+psycopg")


def without_password(url: URL) -> str:
    return URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query).render_as_string()


@contextmanager
def opened(url: URL) -> Iterator[RDBStorage]:
    """Optuna's storage in a database; its tables are made where there are none.

    Raises ConfigError within seconds where it cannot be used, and StorageLost where it goes away later.
    """
    shown = without_password(url)
    store = _open(url, shown)
    try:
        yield store
    except Exception as error:
        cause = _lost(error)
        if cause is None:
            raise
        raise StorageLost(f"{shown}: {cause}; once that is over, the same command with --resume goes on") from error
    finally:
        store.remove_session()
        store.engine.dispose()


def _open(url: URL, shown: str) -> RDBStorage:
    try:
        store = RDBStorage(
            url.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}},
        )
    except ImportError:
        raise ConfigError(f"{shown}: needs psycopg: pip install 'braintum[postgresql]'") from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        reason = getattr(error, "orig", None) or error.__cause__ or error
        raise ConfigError(f"{shown}: cannot be used as Optuna's storage: {' '.join(str(reason).split())}") from None

    @event.listens_for(store.engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Any:
        return _patiently(lambda: dialect.connect(*arguments, **options), shown)

    return store


def _patiently(connect: Callable[[], Any], shown: str) -> Any:
    """Connects again to a server that was there before, as one that is started anew; asks for PATIENCE_SECONDS."""
    until = None
    while True:
        try:
            return connect()
        except Exception as error:  # the driver's own; SQLAlchemy wraps it where it is raised in the end
            if until is None:
                until = time.monotonic() + storage.PATIENCE_SECONDS
                say = f"{shown}: {error}; asking again for {storage.PATIENCE_SECONDS:.0f} s"
                print(f"braintum: {' '.join(say.split())}", file=sys.stderr, flush=True)
            if time.monotonic() > until:
                raise
        time.sleep(1.0)


def _lost(error: BaseException | None) -> str | None:
    """What the server's driver said, where an error comes from that; Optuna and Tune wrap those."""
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError):
            return " ".join(str(error.orig).split())
        error = error.__cause__ or error.__context__
    return None

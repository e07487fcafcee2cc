"""optuna-dashboard on a study, while it runs or later."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from braintum import storage
from braintum.settings import ConfigError
from braintum.tuning.location import Location, location_of, names_storage
from braintum.tuning.storage import FILE, fetch

HOST = "127.0.0.1"
FETCH_SECONDS = 10.0
_log = logging.getLogger(__name__)


def dashboard(study: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until it is interrupted; `say` gets the address. Port 0: any that is free.

    `study`: a study's directory or its URL, or what `search --storage` takes, or `sqlite:///FILE`. A remote directory's
    file is a copy, fetched again every FETCH_SECONDS; of a storage that several studies share, all are shown. Raises
    ConfigError where there are no trials, or the port is taken.
    """
    with _opened(study) as (shown, store):
        if not optuna.get_all_study_names(store):
            raise ConfigError(f"{shown}: holds no trials; a comparison has none, and a search has when it trains")
        try:
            server = make_server(HOST, port, optuna_dashboard.wsgi(store), server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ConfigError(f"--port {port}: {error.strerror}; choose another one, or 0 for any") from None
        with server:
            say(f"http://{HOST}:{server.server_port}/dashboard/ shows {shown}; ^C ends it")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return


@contextmanager
def _opened(study: str) -> Iterator[tuple[str, BaseStorage]]:
    """Optuna's storage of a study, and what to call it. Raises ConfigError."""
    if study.startswith("sqlite://"):
        path = study.partition(":///")[2]
        if not os.path.exists(path):
            raise ConfigError(f"{study}: there is no file {path or '(none named)'}")
        yield study, _storage(study, study)
        return
    location = Location.of(study, None) if names_storage(study) else location_of(storage.resolve(study))
    if location.file is None:
        if location.journal is not None and not os.path.exists(location.journal):
            raise ConfigError(f"{location.journal}: not there; a search writes it when it trains")
        with location.open() as opened:
            yield study if location.shown is None else location.shown, opened.storage
        return
    place = location.file
    missing = f"{place}: not there; give the --out of a search that has begun, or the URL of Optuna's storage"
    if "://" not in study:
        if not os.path.exists(place):
            raise ConfigError(missing)
        yield study, _storage(f"sqlite:///{place}", place)
        return
    with tempfile.TemporaryDirectory(prefix="braintum-dashboard-") as folder:
        copy = os.path.join(folder, FILE)
        try:
            fetch(place, copy)
        except FileNotFoundError:
            raise ConfigError(missing) from None
        ended = threading.Event()

        def refresh() -> None:
            while not ended.wait(FETCH_SECONDS):
                try:
                    fetch(place, copy)
                except Exception as error:  # noqa: BLE001 - object stores raise their own kinds; the next round tries again
                    _log.warning("%s: not fetched: %s", place, error)

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield study, _storage(f"sqlite:///{copy}", place)
        finally:
            ended.set()
            thread.join()


def _storage(url: str, named: str) -> RDBStorage:
    try:
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    except (SQLAlchemyError, RuntimeError) as error:
        raise ConfigError(f"{named}: cannot be opened as Optuna's storage: {str(error).splitlines()[0]}") from None


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks many times a minute."""

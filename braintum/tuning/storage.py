"""Optuna's storage of a study: a SQLite file, on local disk even where the study's directory is not.

No torch, no Ray: reports read it too.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Self

import optuna
from optuna.storages import RDBStorage
from optuna.study import Study

from braintum import storage

FILE = "optuna.db"
COPY_SECONDS = 5.0
_log = logging.getLogger(__name__)


class OptunaFile:
    """`with OptunaFile("s3://bucket/study/optuna.db") as file: file.storage`.

    A local URL is opened in place. Otherwise the file is fetched if it is there, copied back every few seconds while
    it grows, and once more at the end; a copy is a consistent snapshot (SQLite's backup).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._path = url
        if "://" in url:
            self._folder = tempfile.TemporaryDirectory(prefix="braintum-optuna-")
            self._path = os.path.join(self._folder.name, "optuna.db")
            if storage.exists(url):
                with open(self._path, "wb") as file:
                    file.write(storage.read_bytes(url))
        self.storage = RDBStorage(f"sqlite:///{self._path}", engine_kwargs={"connect_args": {"timeout": 60}})
        self._stop = threading.Event()
        self._copying = threading.Lock()
        self._copied = 0.0
        self._thread = threading.Thread(target=self._copy_while_it_grows, daemon=True)

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()
        if self._folder is not None:
            self._stop.set()
            self._thread.join()
            self._copy()
            self._folder.cleanup()

    def safe(self) -> bool:
        """Whether all that was told so far stands at the URL; copies it if it does not."""
        if self._folder is None:
            return True
        with self._copying:
            changed = os.path.getmtime(self._path)
            if changed > self._copied:
                try:
                    self._copy()
                except Exception as error:  # noqa: BLE001 - object stores raise their own kinds; the next round tries again
                    _log.warning("%s: not copied, tried again in %s s: %s", self._url, COPY_SECONDS, error)
                    return False
                self._copied = changed
            return True

    def _copy_while_it_grows(self) -> None:
        while not self._stop.wait(COPY_SECONDS):
            self.safe()

    def _copy(self) -> None:
        snapshot = f"{self._path}.snapshot"
        _back_up(self._path, snapshot)
        with open(snapshot, "rb") as file:
            storage.write_bytes(self._url, file.read())


@contextmanager
def studies_at(url: str) -> Iterator[dict[str, Study]]:
    """The studies by name of an `optuna.db` as it is now: a copy, which whoever writes there is not held up by.

    Raises FileNotFoundError, or StorageError for a file that is no such database.
    """
    with tempfile.TemporaryDirectory(prefix="braintum-optuna-") as folder:
        path = os.path.join(folder, FILE)
        fetch(url, path)
        store = RDBStorage(f"sqlite:///{path}")
        try:
            names = optuna.get_all_study_names(store)
            yield {name: optuna.load_study(study_name=name, storage=store) for name in names}
        finally:
            store.remove_session()
            store.engine.dispose()


def fetch(url: str, path: str) -> None:
    """Writes what an `optuna.db` holds now into the database at a local path, which may be open.

    Raises FileNotFoundError, or StorageError for a file that is no database of Optuna's.
    """
    source = url
    if "://" in url:
        source = f"{path}.fetched"
        with open(source, "wb") as file:
            file.write(storage.read_bytes(url))
    elif not os.path.exists(url):
        raise FileNotFoundError(url)
    try:
        with closing(sqlite3.connect(source)) as database:
            database.execute("SELECT study_name FROM studies LIMIT 1")
        _back_up(source, path)
    except sqlite3.DatabaseError as error:
        raise storage.StorageError(f"{url}: cannot be read as Optuna's storage: {error}") from None


def _back_up(source: str, target: str) -> None:
    """A consistent copy, also of a file that is being written."""
    with closing(sqlite3.connect(source, timeout=60)) as of, closing(sqlite3.connect(target, timeout=60)) as to:
        of.backup(to)

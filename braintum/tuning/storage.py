"""Optuna's storage of a study: a SQLite file, on local disk even where the study's directory is not."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
from types import TracebackType
from typing import Self

from optuna.storages import RDBStorage

from braintum import storage

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
        source, target = sqlite3.connect(self._path, timeout=60), sqlite3.connect(snapshot)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        with open(snapshot, "rb") as file:
            storage.write_bytes(self._url, file.read())

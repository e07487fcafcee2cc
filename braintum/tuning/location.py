"""Where a study keeps its trials: a file of its own in its directory, or what `--storage` names.

No torch, no Ray: reports and the dashboard look there too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from sqlalchemy.engine import URL

from braintum import storage
from braintum.settings import ConfigError
from braintum.tuning.database import FORM, POSTGRESQL, opened, read_url, without_password
from braintum.tuning.records import RECORD
from braintum.tuning.storage import FILE, OptunaFile, studies_at

JOURNAL = ".log"
DATABASES = ("postgresql", "postgres", "mysql", "mariadb")
"""Schemes of URLs that are no directories', and may hold a password."""
_EXPECTED = f"expected {FORM}, or a journal file on this or a shared disk, NAME{JOURNAL}"


class Store(Protocol):
    """An open storage of Optuna's. `safe`: whether all that was told so far outlives this process and its disk."""

    @property
    def storage(self) -> BaseStorage: ...

    def safe(self) -> bool: ...


@dataclass(frozen=True)
class Location:
    """`file`: Optuna's own in the study's directory, at any URL. `journal`: a path. `database`: with its password.

    One of the three. In the latter two, studies of several directories may lie: `prefix` tells the names of this one's.
    A password is in no representation: `shown` is what is said, and written to study.json.
    """

    file: str | None = None
    journal: str | None = None
    database: URL | None = field(default=None, repr=False)
    prefix: str = ""

    @classmethod
    def of(cls, given: str | None, out: str | None) -> Self:
        """What `--storage`, or study.json, says of the study at `out`; None: of all that a storage holds.

        Raises ConfigError, without a password in it.
        """
        if given is None:
            assert out is not None
            return cls(file=storage.join(out, FILE))
        prefix = "" if out is None else storage.join(out, "")
        scheme, mark, _ = given.partition("://")
        if not names_storage(given) or (mark and scheme not in POSTGRESQL):
            raise ConfigError(f"--storage {scheme + mark + '...' if mark else given}: {_EXPECTED}")
        if mark:
            return cls(database=read_url(given), prefix=prefix)
        return cls(journal=os.path.abspath(given), prefix=prefix)

    def of_study(self, out: str) -> Location:
        """The same storage for another study, such as one of a nested study's."""
        if self.file is not None:
            return Location.of(None, out)
        return replace(self, prefix=storage.join(out, ""))

    @property
    def shown(self) -> str | None:
        """What `of` takes, but for the password; None for the file in the study's directory."""
        return self.journal if self.database is None else without_password(self.database)

    def name(self, study: str) -> str:
        """What Optuna calls a study of this directory."""
        return self.prefix + study

    def names(self, store: BaseStorage) -> list[str]:
        """The studies of this directory that a storage holds, by their own names."""
        found = [name for name in optuna.get_all_study_names(store) if name.startswith(self.prefix)]
        names = [name.removeprefix(self.prefix) for name in found]
        return [name for name in names if not self.prefix or "/" not in name]  # those below are of other directories

    @contextmanager
    def open(self) -> Iterator[Store]:
        """Raises ConfigError where it cannot be reached or used. Creates what is not there."""
        if self.file is not None:
            with OptunaFile(self.file) as file:
                yield file
            return
        with self._shared() as store:
            yield _Shared(store)

    @contextmanager
    def studies(self) -> Iterator[dict[str, Study]]:
        """The studies by name as they are now, for who only looks.

        Raises FileNotFoundError where there is no such file, ConfigError or StorageError where it cannot be read.
        """
        if self.file is not None:
            with studies_at(self.file) as found:
                yield found
            return
        if self.journal is not None and not os.path.exists(self.journal):
            raise FileNotFoundError(self.journal)
        with self._shared() as store:
            yield {name: optuna.load_study(study_name=self.name(name), storage=store) for name in self.names(store)}

    def found(self) -> dict[str, dict[str, Any]]:
        """The studies of this directory that `--storage` holds already, and what each says that it is.

        Those of a nested study's parts too. A file that is not there is not created: it only has to be possible. Raises
        ConfigError.
        """
        if self.file is not None:
            return {}
        if self.journal is not None and not os.path.exists(self.journal):
            _refuse_impossible(self.journal)
            return {}
        with self._shared() as store:
            names = [
                name for name in optuna.get_all_study_names(store)
                if name in map(self.name, self.names(store)) or name.startswith(self.name("outer-"))
            ]  # fmt: skip
            return {n: optuna.load_study(study_name=n, storage=store).user_attrs.get(RECORD, {}) for n in names}

    @contextmanager
    def _shared(self) -> Iterator[BaseStorage]:
        if self.journal is not None:
            yield _journal(self.journal)
            return
        assert self.database is not None
        with opened(self.database) as store:
            yield store


def names_storage(given: str) -> bool:
    """Whether it is a storage and no directory, as far as its form tells."""
    scheme, mark, _ = given.partition("://")
    return scheme.partition("+")[0] in DATABASES if mark else given.endswith(JOURNAL)


def location_of(out: str) -> Location:
    """Where the study at `out` keeps its trials, as study.json says. A password is looked for as libpq does."""
    place = storage.join(out, RECORD)
    about = storage.read_json(place) if storage.exists(place) else {}
    return Location.of(about.get("storage") if isinstance(about, dict) else None, out)


@dataclass(frozen=True)
class _Shared:
    storage: BaseStorage

    def safe(self) -> bool:
        return True


def _journal(path: str) -> JournalStorage:
    """Optuna's storage in a journal file. Raises ConfigError for a file that is none, or cannot be written."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return JournalStorage(JournalFileBackend(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be used as a journal of Optuna's: {error}") from None


def _refuse_impossible(path: str) -> None:
    """Raises ConfigError where no file could be created at `path`, in folders that may not be there yet."""
    folder = os.path.dirname(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot be written: {folder} is no folder that can be; give another --storage")

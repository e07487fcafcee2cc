"""Files at any fsspec URL (a local path, `s3://…`): whole files, written so that a reader never sees half of one.

An object store that does not answer, or answers that it cannot just now, is asked again after 0.5, 1, 2, 4 and then
every 8 seconds; PATIENCE_SECONDS after the first failure its error is raised. What it refuses is raised at once. A
command that such a store (a host, a bucket) has not answered yet gets a StorageError after FIRST_SECONDS: the address
may be wrong (`braintum.contact`).
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from braintum.contact import is_stranger, meet

PATIENCE_SECONDS = 120.0
FIRST_SECONDS = 5.0
BUSY = (errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO))
"""What s3fs makes of the answers 409, 500, 502, 503, 504."""

T = TypeVar("T")


class StorageError(ValueError):
    """A URL of a kind that cannot be opened here, or a file that is not what it should be."""


def _ask(url: str, operation: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    """What `operation` gives for the file system and path of a URL.

    An OSError names the URL, where it names no file by itself.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **_options(url))
    except (ValueError, ImportError, OSError) as error:  # the last: FTP and SSH connect at once
        raise StorageError(f"{url}: {error}") from None
    server = "/".join(url.split("/")[:3])
    stranger = is_stranger(server) and not _is_local(url)
    pause, until = 0.5, time.monotonic() + FIRST_SECONDS if stranger else None
    while True:
        try:
            answer = operation(filesystem, path)
        except ValueError as error:  # a setting that s3fs cannot use, as an endpoint without http://
            raise StorageError(f"{url}: {error}") from None
        except Exception as error:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = url
            if _is_local(url) or not _passes(error):
                meet(server)
                raise
            if until is None:
                until = time.monotonic() + PATIENCE_SECONDS
                say = f"{url}: {error}; asking again for {PATIENCE_SECONDS:.0f} s"
                print(f"braintum: {' '.join(say.split())}", file=sys.stderr, flush=True)
            if time.monotonic() + pause > until:
                if stranger:
                    raise StorageError(f"{url}: no answer; is the address right? {error}") from error
                raise
        else:
            meet(server)
            return answer
        time.sleep(pause)
        pause = min(2 * pause, 8.0)


def _options(url: str) -> dict[str, Any]:
    """Of s3fs: one repeat a request of botocore's own, which says nothing and may take 15 s in all by default."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 2}, **configured}}


def _passes(error: Exception) -> bool:
    """Whether an error is of a server that is down, slow or busy, and not of what it was asked for."""
    if isinstance(error, OSError):
        return isinstance(error, TimeoutError | ConnectionError) or error.errno in BUSY
    if type(error).__module__.startswith("botocore."):
        from botocore import exceptions as s3  # there where S3 is used

        return isinstance(error, s3.HTTPClientError | s3.ConnectionError | s3.IncompleteReadError)
    return False


def is_full(error: BaseException | None) -> bool:
    """Whether there was no room, or no more was allowed, where something was written."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def resolve(url: str) -> str:
    """A local path made absolute (a worker's working directory is another one); other URLs unchanged."""
    return url if "://" in url else os.path.abspath(url)


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended."""
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    def operation(filesystem: fsspec.AbstractFileSystem, path: str) -> bool:
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))

    return _ask(url, operation)


def size(url: str) -> int | None:
    """Bytes of a file; None where there is none."""

    def operation(filesystem: fsspec.AbstractFileSystem, path: str) -> int | None:
        filesystem.invalidate_cache()
        try:
            return int(filesystem.size(path))
        except FileNotFoundError:
            return None

    return _ask(url, operation)


def files_under(url: str) -> list[str]:
    """Paths below `url` of all files in that folder, sorted; `[""]` where `url` is a file itself.

    Empty folders are nothing.
    """

    def operation(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
        filesystem.invalidate_cache()
        found = [file.removeprefix(path).lstrip("/") for file in filesystem.find(path)]
        # some object stores list a folder that was emptied, as a file without a name in itself
        return sorted(file for file in found if not file.endswith("/") and (file or filesystem.isfile(path)))

    return _ask(url, operation)


def read_bytes(url: str) -> bytes:
    """Raises FileNotFoundError."""
    return _ask(url, lambda filesystem, path: bytes(filesystem.cat_file(path)))


def write_bytes(url: str, content: bytes | pa.Buffer) -> None:
    """Writes a whole file atomically: local files are renamed into place, object stores put them at once."""

    def operation(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        if not _is_local(url):
            filesystem.pipe_file(path, bytes(content))
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.part"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    _ask(url, operation)


def remove(url: str) -> None:
    """Removes a file or folder, if it is there."""

    def operation(filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        filesystem.invalidate_cache()  # what was listed before may have grown
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)

    _ask(url, operation)


def read_json(url: str) -> Any:
    """Raises FileNotFoundError, or StorageError for a damaged file."""
    try:
        return json.loads(read_bytes(url))
    except ValueError as error:
        raise StorageError(f"{url}: damaged: {error}") from None


def write_json(url: str, value: Any) -> None:
    write_bytes(url, (json.dumps(value, indent=2) + "\n").encode())


def read_table(url: str) -> pa.Table:
    return pq.read_table(io.BytesIO(read_bytes(url)))


def write_table(url: str, table: pa.Table) -> None:
    """Writes a Parquet file (zstd)."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(url, buffer.getvalue())


def write_rows(url: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Writes a Parquet file of rows whose keys may differ; what a row lacks is null.

    `columns` stand first, and are there without any row too.
    """
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    write_table(url, pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}))

"""Files at any fsspec URL (a local path, `s3://…`): whole files, written so that a reader never sees half of one."""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq


class StorageError(ValueError):
    """A URL of a kind that cannot be opened here, or a file that is not what it should be."""


@contextmanager
def _at(url: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system and path of a URL. An OSError from inside names the URL, where it names no file by itself."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StorageError(f"{url}: {error}") from None
    try:
        yield filesystem, path
    except OSError as error:
        if error.filename is None:
            error.filename = url
        raise


def resolve(url: str) -> str:
    """A local path made absolute (a worker's working directory is another one); other URLs unchanged."""
    return url if "://" in url else os.path.abspath(url)


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended."""
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    with _at(url) as (filesystem, path):
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))


def read_bytes(url: str) -> bytes:
    """Raises FileNotFoundError."""
    with _at(url) as (filesystem, path):
        return bytes(filesystem.cat_file(path))


def write_bytes(url: str, content: bytes) -> None:
    """Writes a whole file atomically: local files are renamed into place, object stores put them at once."""
    with _at(url) as (filesystem, path):
        if "://" in url and not url.startswith("file://"):
            filesystem.pipe_file(path, content)
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


def remove(url: str) -> None:
    """Removes a file or folder, if it is there."""
    with _at(url) as (filesystem, path):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


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

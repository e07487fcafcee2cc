from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from example_rows import SIZE

from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.schema import Card, Row
from braintum.data.shards import write_dataset
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data


@pytest.fixture
def write(tmp_path: Any) -> Callable[..., tuple[str, Card]]:
    """Writes rows as a dataset in a temporary folder: (url, card)."""

    def _write(rows: Iterable[Row], out: str | None = None, **options: Any) -> tuple[str, Card]:
        url = out or str(tmp_path / "set")
        about = {"name": "set", "provenance": "a test", "licence": None} | options
        return url, write_dataset(rows, url, **about)

    return _write


@pytest.fixture
def make_table(write: Callable[..., tuple[str, Card]]) -> Callable[..., SliceTable]:
    """A table of rows, as training sees it."""

    def _make(rows: Iterable[Row], **data: Any) -> SliceTable:
        return load_table(write(rows)[0], Data(**({"image_size": SIZE} | data)))

    return _make


@pytest.fixture(scope="session")
def phantom_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("data") / "phantom")
    ingest_phantom(url, cases=24, slices_per_case=3, size=48)
    return url


@pytest.fixture(scope="session")
def phantom(phantom_url: str) -> SliceTable:
    return load_table(phantom_url, Data(image_size=48))

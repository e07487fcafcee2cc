from __future__ import annotations

import pytest
from example_rows import make_row

from braintum.data.schema import DataError
from braintum.data.shards import read_card, write_dataset
from braintum.data.table import load_table
from braintum.parts import Data

pytestmark = pytest.mark.s3
ABOUT = {"name": "set", "provenance": "a test", "licence": None}


def test_a_dataset_lives_on_s3(s3: str, write) -> None:
    rows = [make_row(f"r{i}", "ab"[i % 2]) for i in range(5)]
    url = f"{s3}/there/set"
    card = write_dataset(rows, url, shard_bytes=3000, **ABOUT)
    assert len(card.shards) > 1
    assert read_card(url) == card
    _, local = write(rows, shard_bytes=3000)
    assert card.digest == local.digest
    assert load_table(url, Data(image_size=16)).slice_id_R == [row.slice_id for row in rows]
    with pytest.raises(DataError, match="exists; choose another --out"):
        write_dataset(rows, url, **ABOUT)


def test_nothing_half_written_on_s3(s3: str) -> None:
    import s3fs

    with pytest.raises(DataError, match="duplicate slice id"):
        write_dataset([make_row("x"), make_row("x")], f"{s3}/half/set", shard_bytes=1, **ABOUT)
    left = s3fs.S3FileSystem(skip_instance_cache=True).call_s3("list_objects_v2", Bucket="braintum", Prefix="half")
    assert left["KeyCount"] == 0 or all(each["Size"] == 0 for each in left["Contents"])
    with pytest.raises(DataError, match=r"no card\.json"):
        read_card(f"{s3}/half/set")
    assert write_dataset([make_row("x")], f"{s3}/half/set", **ABOUT).num_slices == 1  # the name is free again


def test_a_wrong_secret_is_said(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    write_dataset([make_row("x")], f"{s3}/secret/set", **ABOUT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match="access refused"):
        read_card(f"{s3}/secret/set")

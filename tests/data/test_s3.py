from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError
from command_line import refused
from example_rows import make_row
from example_source import ABOUT as EXAMPLE
from example_source import SIDE, TWO, Arrays, write_array, write_arrays
from PIL import Image
from ports import free_ports
from s3_server import SECRETS, S3Server

from braintum import storage
from braintum.cli import main
from braintum.contact import first_contact
from braintum.data.ingest import engine
from braintum.data.ingest.engine import ingest
from braintum.data.ingest.folder import ingest_folder
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


def test_ingest_there_and_go_on_there(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SHARD_BYTES", TWO)
    source, names = Arrays(tmp_path / "arrays"), write_arrays(tmp_path / "arrays", 10)
    (source.folder / "02.npy").write_bytes(b"no array")
    url = f"{s3}/ingest/set"

    def stop(name: str) -> None:
        if name == "07.npy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(replace(source, before=stop), names, url, EXAMPLE)
    with pytest.raises(DataError, match=r"no card\.json"):
        read_card(url)
    read: list[str] = []
    write_array(source.folder / "05.npy", 77)
    card = ingest(replace(source, before=read.append), names, url, EXAMPLE)
    assert set(read) == {"00.npy", "01.npy", "04.npy", "05.npy", *names[6:]}
    assert card == ingest(source, names, str(tmp_path / "local"), EXAMPLE)
    assert storage.files_under(url) == storage.files_under(str(tmp_path / "local"))
    assert len(load_table(url, Data(image_size=SIDE))) == 9
    with pytest.raises(DataError, match="exists; choose another --out"):
        ingest(source, names, url, EXAMPLE)


def test_the_server_dies_in_the_middle_of_an_ingest(
    mortal_s3: tuple[S3Server, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It comes back a moment later, and the ingest goes on by itself and loses nothing."""
    monkeypatch.setattr(engine, "SHARD_BYTES", TWO)
    server, s3 = mortal_s3
    source, names = Arrays(tmp_path / "arrays"), write_arrays(tmp_path / "arrays", 12)
    back = threading.Timer(3, server.start)

    def outage(name: str) -> None:
        if name == "05.npy":
            server.kill()
            back.start()

    card = ingest(replace(source, before=outage), names, f"{s3}/set", EXAMPLE)
    assert not back.is_alive()
    assert "asking again for 120 s" in capfd.readouterr().err
    assert card == ingest(source, names, str(tmp_path / "local"), EXAMPLE)
    assert storage.files_under(f"{s3}/set") == storage.files_under(str(tmp_path / "local"))
    assert len(load_table(f"{s3}/set", Data(image_size=SIDE))) == 12


@pytest.mark.slow
def test_a_folder_of_pictures_is_ingested_through_twenty_seconds_without_a_server(
    mortal_s3: tuple[S3Server, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SHARD_BYTES", 2 * 64 * 64)  # a slice a shard
    server, s3 = mortal_s3
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(folder / f"{number:02d}.png")
    lines = [f"{number:02d}.png,{'ab'[number % 2]},{number // 2}" for number in range(40)]
    (folder / "manifest.csv").write_text("\n".join(["image,label,case", *lines]))
    back = threading.Timer(20, server.start)

    def outage() -> None:
        while not storage.exists(f"{s3}/set/slices-00004.parquet"):
            time.sleep(0.02)
        server.kill()
        back.start()

    killer = threading.Thread(target=outage)
    killer.start()
    began = time.monotonic()
    card = ingest_folder(folder, f"{s3}/set")
    killer.join()
    assert time.monotonic() - began > 20, "it was over before the server was gone"
    assert card == ingest_folder(folder, str(tmp_path / "local"))
    assert len(load_table(f"{s3}/set", Data(image_size=32))) == 40


def test_patience_with_a_server_ends(
    mortal_s3: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server, s3 = mortal_s3
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    with first_contact():
        write_dataset([make_row("x")], f"{s3}/set", **ABOUT)
        server.kill()
        with pytest.raises(EndpointConnectionError):
            read_card(f"{s3}/set")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"braintum: {s3}/set/card.json: Could not connect")
    assert line.endswith("asking again for 1 s")


def test_an_address_at_which_nobody_answers_is_said_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only a server that has answered a command is waited for."""
    import s3fs

    (port,) = free_ports(1)
    for name, value in {**SECRETS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(storage, "FIRST_SECONDS", 0.6)
    url, out = "s3://braintum/set", str(tmp_path / "out")
    for command in (
        ["train", "--data", url, "--out", out],
        ["train", "--data", url, "--out", out, "--config", "s3://braintum/best.yaml"],
        ["search", "quick", "--data", url, "--out", out],
        ["ingest", "phantom", "--cases", "4", "--size", "32", "--out", url],
        ["report", url],
    ):
        refused(capfd, command, "no answer; is the address right?", f"127.0.0.1:{port}")
    assert not (tmp_path / "out").exists()


def test_ingest_with_a_wrong_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    assert main(["ingest", "phantom", "--cases", "4", "--size", "32", "--out", f"{s3}/wrong/set"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"braintum: {s3}/wrong/set")
    assert "The request signature we calculated does not match" in line

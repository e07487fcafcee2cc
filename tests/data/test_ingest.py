"""What holds for every source: going on where it was stopped, what cannot be read, the same set however it was made."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import example_source
import numpy as np
import pytest
from example_source import ABOUT, SIDE, TWO, Arrays, write_array, write_arrays
from PIL import Image

from braintum.cli import main
from braintum.data.ingest import engine
from braintum.data.ingest.engine import ingest
from braintum.data.schema import Card, DataError, Row
from braintum.data.shards import read_card
from braintum.data.table import load_table
from braintum.parts import Data


@pytest.fixture
def few_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are cut by the process that ingests, so this holds for Ray's tasks too."""
    monkeypatch.setattr(engine, "SHARD_BYTES", TWO)


@pytest.fixture
def arrays(tmp_path: Path, few_a_shard: None) -> tuple[Arrays, list[str]]:
    """A source of twelve slices, two a shard."""
    return Arrays(tmp_path / "arrays"), write_arrays(tmp_path / "arrays", 12)


def stop_at(name: str) -> Callable[[str], None]:
    """What ^C in the middle does."""
    seen: list[str] = []

    def before(now: str) -> None:
        seen.append(now)
        if now == name:
            raise KeyboardInterrupt

    return before


def interrupted(source: Arrays, names: list[str], out: Path, name: str = "07.npy") -> None:
    with pytest.raises(KeyboardInterrupt):
        ingest(replace(source, before=stop_at(name)), names, str(out), ABOUT)


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("slices-*")}


def listed(out: Path) -> dict[str, str]:
    with (out / "rejected.csv").open() as lines:
        return {line["what"]: line["reason"] for line in csv.DictReader(lines)}


def test_what_cannot_be_read_is_listed_and_counted(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    source, names = arrays
    (source.folder / "03.npy").write_bytes(b"no array")
    (source.folder / "10.npy").unlink()
    card = ingest(source, names, str(tmp_path / "out"), ABOUT)
    assert (card.num_slices, card.num_rejected) == (10, 2)
    assert read_card(str(tmp_path / "out")) == card
    assert list(listed(tmp_path / "out")) == ["03.npy", "10.npy"]
    assert "No such file" in listed(tmp_path / "out")["10.npy"]
    with pytest.raises(DataError, match=r"^03\.npy: "):
        ingest(source, names, str(tmp_path / "strict"), ABOUT, strict=True)
    assert not (tmp_path / "strict").exists()


def test_rejected_on_the_command_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    root.mkdir()
    lines = ["image,label"]
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE), np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,x")
    (root / "manifest.csv").write_text("\n".join(lines))
    (root / "2.png").write_bytes(b"no picture")
    assert main(["ingest", "folder", str(root), "--out", str(tmp_path / "strict"), "--strict"]) == 2
    shown = capfd.readouterr()
    assert shown.err == (
        "braintum: manifest.csv line 4: 2.png does not open: not a PNG, JPEG or TIFF; replace or remove it\n"
    )
    assert main(["ingest", "folder", str(root), "--out", str(out)]) == 0
    assert "rejected 1, listed in rejected.csv" in " ".join(capfd.readouterr().out.split())
    assert listed(out) == {"manifest.csv line 4": "2.png does not open: not a PNG, JPEG or TIFF; replace or remove it"}
    assert main(["ingest", "folder", str(root), "--out", str(tmp_path / "json"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["num_rejected"] == 1
    for number in range(4):
        (root / f"{number}.png").write_bytes(b"no picture")
    assert main(["ingest", "folder", str(root), "--out", str(tmp_path / "none")]) == 2
    assert "manifest.csv line 2: 0.png does not open" in (error := capfd.readouterr().err)
    assert "(and so none of 4 could be read)" in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["json", "out", "raw"]


def test_killed_in_the_middle_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL, on the command line: the same set, and what was whole is not written again."""
    monkeypatch.setattr(engine, "SHARD_BYTES", 16_000)
    out = tmp_path / "out"
    command = ["ingest", "phantom", "--cases", "42", "--slices-per-case", "2", "--size", "32", "--out", str(out)]
    script = (
        "from braintum.data.ingest import engine; engine.SHARD_BYTES = 16_000; from braintum.cli import main; "
        f"raise SystemExit(main({command}))"
    )
    running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out / "slices-00004.parquet").exists():
        assert running.poll() is None, running.stderr.read() if running.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (out / "card.json").exists()
    with pytest.raises(DataError, match=r"no card\.json"):
        read_card(str(out))
    before = times(out)
    noted = {f"slices-{path.stem}.parquet" for path in (out / "ingesting").glob("0*.json")}
    assert len(noted) >= 4
    assert main(command) == 0
    after = times(out)
    assert {name: after[name] for name in noted} == {name: before[name] for name in noted}
    assert len(after) > len(before)
    assert sorted(path.name for path in out.iterdir()) == ["card.json", *sorted(after)]
    undisturbed = [*command[:-1], str(tmp_path / "undisturbed")]
    assert main(undisturbed) == 0
    assert read_card(str(out)) == read_card(str(tmp_path / "undisturbed"))


def test_a_shard_without_its_note_is_written_again(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    """It was killed between the two; or the first of them is not whole, or a note is damaged."""
    source, names = arrays
    out = tmp_path / "out"
    interrupted(source, names, out)
    (out / "ingesting" / "00000.json").unlink()
    (out / "ingesting" / "00001.json").write_text('{"key": ')
    (out / "slices-00002.parquet").write_bytes(b"half")
    (out / "slices-00003.parquet.1a2b3c4d.part").write_bytes(b"what a killed process leaves")
    assert ingest(source, names, str(out), ABOUT) == ingest(source, names, str(tmp_path / "clean"), ABOUT)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "clean").iterdir())


def test_killed_before_its_first_note(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    source, names = arrays
    out = tmp_path / "out"
    interrupted(source, names, out, "02.npy")
    (out / "ingesting" / "00000.json").unlink()
    assert ingest(source, names, str(out), ABOUT).num_slices == 12


def test_a_file_that_changed_is_read_again(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    source, names = arrays
    out = tmp_path / "out"
    (source.folder / "05.npy").write_bytes(b"not yet an array")
    interrupted(source, names, out, "09.npy")
    before = times(out)
    assert len(before) == 4
    write_array(source.folder / "03.npy", 99)
    write_array(source.folder / "05.npy", 98)
    card = ingest(source, names, str(out), ABOUT)
    after = times(out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"slices-00001.parquet", "slices-00002.parquet"}
    assert card == ingest(source, names, str(tmp_path / "clean"), ABOUT)
    assert (card.num_slices, card.num_rejected) == (12, 0)


def test_what_was_rejected_is_remembered(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    source, names = arrays
    (source.folder / "01.npy").write_bytes(b"no array")
    for name in ("04.npy", "05.npy"):  # a chunk without a shard
        (source.folder / name).unlink()
    out, read = tmp_path / "out", list[str]()
    interrupted(source, names, out, "09.npy")
    card = ingest(replace(source, before=read.append), names, str(out), ABOUT)
    # the first two that can be read tell how many fill a shard, and how long they take
    assert set(read) == {"00.npy", "01.npy", "02.npy", *names[8:]}
    assert list(listed(out)) == ["01.npy", "04.npy", "05.npy"]
    assert card == ingest(source, names, str(tmp_path / "clean"), ABOUT)
    interrupted(source, names, tmp_path / "strict", "09.npy")
    with pytest.raises(DataError, match=r"^01\.npy"):
        ingest(source, names, str(tmp_path / "strict"), ABOUT, strict=True)


@pytest.mark.parametrize("change", ["option", "items", "source"])
def test_another_ingest_over_an_unfinished_one_is_not_mixed_in(
    arrays: tuple[Arrays, list[str]], tmp_path: Path, change: str
) -> None:
    source, names = arrays
    out = tmp_path / "out"
    interrupted(source, names, out, "11.npy")
    (out / "rejected.csv").write_text("of the other\n")
    if change == "option":
        source = replace(source, add=1)
    elif change == "items":
        names = names[:3]
    else:
        write_arrays(tmp_path / "others", 3)
        source, names = Arrays(tmp_path / "others"), names[:3]
    card = ingest(source, names, str(out), ABOUT)
    assert card == ingest(source, names, str(tmp_path / "clean"), ABOUT)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "clean").iterdir())
    load_table(str(out), Data(image_size=SIDE))


def test_notes_that_were_left_are_not_seen_and_go(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    """It was killed behind the card, before its notes went: the set is whole."""
    source, names = arrays
    out = tmp_path / "out"
    card = ingest(source, names, str(out), ABOUT)
    interrupted(source, names, tmp_path / "other")
    (tmp_path / "other" / "ingesting").rename(out / "ingesting")
    assert read_card(str(out)) == card
    assert len(load_table(str(out), Data(image_size=SIDE))) == 12
    with pytest.raises(DataError, match="exists; choose another --out"):
        ingest(source, names, str(out), ABOUT)
    assert not (out / "ingesting").exists()
    assert read_card(str(out)) == card


def test_a_folder_that_only_looks_unfinished_is_kept(arrays: tuple[Arrays, list[str]], tmp_path: Path) -> None:
    source, names = arrays
    (tmp_path / "mine" / "ingesting").mkdir(parents=True)
    (tmp_path / "mine" / "ingesting" / "precious.txt").write_text("keep")
    with pytest.raises(DataError, match="exists; choose another --out"):
        ingest(source, names, str(tmp_path / "mine"), ABOUT)
    assert (tmp_path / "mine" / "ingesting" / "precious.txt").read_text() == "keep"


class Generated:
    """Slices made when they are asked for: 64 of a megabyte of pixels each."""

    def __repr__(self) -> str:
        return "Generated()"

    def where(self, item: int) -> str:
        return str(item)

    def files(self, item: int) -> list[Path]:
        return []

    def read(self, item: int) -> list[Row]:
        image_CHW = np.random.default_rng(item).integers(0, 255, (3, 512, 512), np.uint8)
        return [Row(slice_id=str(item), group=str(item), image_CHW=image_CHW, mask_HW=None, label="a")]


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        ingest(Generated(), range(count), str(tmp_path / str(count)), ABOUT)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    monkeypatch.setattr(engine, "SHARD_BYTES", 4 * 2**20)
    assert peak(64) < 1.2 * peak(8)


@pytest.fixture
def sent_whole() -> Iterator[None]:
    """Ray's tasks do not find modules of tests: the source travels with them."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(example_source)
    yield
    cloudpickle.unregister_pickle_by_value(example_source)


@pytest.mark.usefixtures("ray_cluster")
class TestInParallel:
    """As Ray tasks, on a cluster that is there: three shards are enough to use it."""

    @pytest.fixture(autouse=True)
    def on_a_cluster(self, sent_whole: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "auto")

    def alone(self, source: Arrays, names: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
        with monkeypatch.context() as here:
            here.delenv("RAY_ADDRESS")
            return ingest(source, names, str(out), ABOUT)

    def test_the_set_is_the_same(
        self, arrays: tuple[Arrays, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, names = arrays
        (source.folder / "03.npy").write_bytes(b"no array")
        (source.folder / "11.npy").unlink()
        out, readers = tmp_path / "out", tmp_path / "readers"
        readers.mkdir()
        card = ingest(replace(source, before=lambda _: (readers / str(os.getpid())).touch()), names, str(out), ABOUT)
        assert len({path.name for path in readers.iterdir()} - {str(os.getpid())}) >= 1
        assert card == self.alone(source, names, tmp_path / "alone", monkeypatch)
        assert listed(out) == listed(tmp_path / "alone")
        assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in (tmp_path / "alone").iterdir())

    def test_strict_is_one_line_and_what_was_done_is_kept(
        self, arrays: tuple[Arrays, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, names = arrays
        out = tmp_path / "out"
        (source.folder / "11.npy").write_bytes(b"no array")
        with pytest.raises(DataError, match=r"^11\.npy: ") as error:
            ingest(source, names, str(out), ABOUT, strict=True)
        assert "\n" not in str(error.value)
        before = times(out)
        write_array(source.folder / "11.npy", 11)
        card = ingest(source, names, str(out), ABOUT, strict=True)
        after = times(out)
        assert {name: after[name] for name in before} == before
        assert len(before) == 5
        assert card == self.alone(source, names, tmp_path / "alone", monkeypatch)


@pytest.mark.usefixtures("ray_cluster", "sent_whole")
def test_what_would_take_long_is_read_by_several_processes(
    arrays: tuple[Arrays, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six chunks are few for pictures; of volumes they are minutes."""
    source, names = arrays

    def readers(out: str) -> set[str]:
        folder = tmp_path / f"{out}-pids"
        folder.mkdir()
        watched = replace(source, before=lambda name: (folder / str(os.getpid())).touch())
        ingest(watched, names, str(tmp_path / out), ABOUT)
        return {file.name for file in folder.iterdir()}

    assert readers("quick") == {str(os.getpid())}
    monkeypatch.setattr(engine, "LONG_SECONDS", 0.0)
    assert readers("slow") > {str(os.getpid())}, "the first items, and then Ray's workers"
    assert read_card(str(tmp_path / "slow")) == read_card(str(tmp_path / "quick"))


NO_CORES = """
import sys
from example_source import ABOUT, TWO, Arrays, write_arrays
from pathlib import Path
from braintum.connect import start_local
from braintum.data.ingest import engine
engine.SHARD_BYTES, engine.FEW = TWO, 0
folder = Path(sys.argv[1])
names = write_arrays(folder / "arrays", 6)
start_local(num_cpus=0)
print(engine.ingest(Arrays(folder / "arrays"), names, str(folder / "out"), ABOUT).num_slices)
"""


@pytest.mark.ray
def test_a_head_that_offers_no_cores_reads_its_own_files(tmp_path: Path) -> None:
    """As heads of clusters are set up, so that nothing is trained on them."""
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", NO_CORES, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, ["6"]), done.stderr[-2000:]

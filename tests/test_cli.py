"""The command line: exit codes, one line for a user's mistake, nothing left behind, JSON on stdout."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from ports import free_ports

from braintum import storage
from braintum.cli import main
from braintum.config import Experiment

QUICK = [
    "--set",
    "data.image_size=32",
    "--set",
    "model.width=4",
    "--set",
    "model.depth=2",
    "--set",
    "training.batch_size=8",
]

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "phantom"
    size = ["--cases", "20", "--slices-per-case", "2", "--size", "32"]
    assert main(["ingest", "phantom", "--out", str(out), *size]) == 0
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight slices with masks, two labels, two folds, two slices a case; what to do with them is manifest.csv's."""
    root = tmp_path / "slices"
    root.mkdir()
    generator = np.random.default_rng(0)
    rows: Rows = []
    for i in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 8 + i : 16 + i] = 255
        Image.fromarray(generator.integers(0, 255, (32, 32), np.uint8)).save(root / f"{i}.png")
        Image.fromarray(mask).save(root / f"{i}_mask.png")
        case, fold = f"c{i // 2}", str(i // 4)
        label = "glioma" if i // 2 % 2 else "pituitary"
        rows.append(
            {"slice_id": f"s{i}", "image": f"{i}.png", "mask": f"{i}_mask.png", "label": label, "case": case}
            | {"fold": fold}
        )
    write_manifest(root, rows)
    return root


def write_manifest(root: Path, rows: Rows) -> None:
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def change(root: Path, line: int, **cells: str) -> None:
    """Replaces cells of one row of the manifest."""
    with (root / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[line] |= cells
    write_manifest(root, rows)


def refused(capfd: pytest.CaptureFixture[str], command: list[str], *says: str) -> None:
    """The command ends with 2 and one line on stderr, and prints nothing else."""
    capfd.readouterr()
    code = main(command)
    shown = capfd.readouterr()
    assert (code, shown.out) == (2, ""), shown.err
    assert shown.err.startswith("braintum: ")
    assert shown.err.count("\n") == 1, shown.err
    for text in says:
        assert text in shown.err


# What a manifest can have wrong: a change of the folder, and what the line says.
def unreadable(root: Path) -> None:
    (root / "3.png").write_bytes(b"this is no image")


def missing(root: Path) -> None:
    (root / "3.png").unlink()


def other_size(root: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "3_mask.png")


def two_folds(root: Path) -> None:
    change(root, 1, fold="1")


def twice(root: Path) -> None:
    change(root, 3, slice_id="s0")


def outside(root: Path) -> None:
    change(root, 3, image="../../secret.png")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unreadable, ("line 5", "3.png")),
        (missing, ("line 5", "3.png")),
        (other_size, ("line 5", "16", "32")),
        (two_folds, ("c0", "fold")),
        (twice, ("s0", "line")),
        (outside, ("line 5", "secret.png")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_ingested(
    capfd: pytest.CaptureFixture[str], folder: Path, spoil: Callable[[Path], None], says: tuple[str, ...]
) -> None:
    spoil(folder)
    out = folder.parent / "out"
    refused(capfd, ["ingest", "folder", str(folder), "--out", str(out)], *says)
    assert not out.exists()
    assert {path.name for path in folder.parent.iterdir()} == {"slices"}


def test_a_folder_that_is_not_there(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capfd, ["ingest", "folder", str(tmp_path / "no"), "--out", str(tmp_path / "out")], "no such folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "crossval"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim.lrr=1", "optim.lrr: no such field; fields: name, lr"),
        ("model.name=vgg", "'vgg' is not an architecture; known: attention_unet"),
        ("optim.lr", "expected path=value"),
    ],
)
def test_a_setting_that_is_not_there(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str, setting: str, says: str
) -> None:
    out = tmp_path / "out"
    refused(capfd, [command, "--data", "nowhere", "--out", str(out), "--set", setting], says)
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "--data", "x"], "Missing option '--out'"),
        (["trian"], "No such command 'trian'"),
        (["train", "--data", "x", "--out", "y", "--wrokers", "2"], "No such option"),
        (["train", "--data", "x", "--out", "y", "--workers", "0"], "--workers"),
        (["train", "--data", "x", "--out", "y", "--config", "nothing"], "recipes: fast, papers/braintumnet"),
        (["search", "nothing.yaml", "--data", "x", "--out", "y"], "nothing.yaml: no such file"),
        (["search", "search_spaces/quick.yaml", "--data", "x", "--out", "y", "--trials", "2"], "too few for 4"),
    ],
)
def test_a_command_line_that_cannot_be_read(capfd: pytest.CaptureFixture[str], command: list[str], says: str) -> None:
    refused(capfd, command, says)


def test_a_dataset_whose_server_does_not_answer(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    refused(
        capfd, ["train", "--data", f"http://127.0.0.1:{port}/set", "--out", str(tmp_path / "x")], f":{port}/set/card"
    )


def test_what_a_job_would_write_into_its_own_copy_of_the_working_directory(
    capfd: pytest.CaptureFixture[str], phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as Ray does for a job's driver
    refused(capfd, ["crossval", "--data", str(phantom), "--out", "out/cv"], "give an absolute path or a URL")


def test_the_address_of_a_dashboard_is_no_cluster(tmp_path: Path, phantom: Path) -> None:
    """In a process of its own: this one may be on a cluster already."""
    command = [sys.executable, "-m", "braintum.cli", "train", "--data", str(phantom), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "is for `ray job`; unset it" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_of_ingest_that_exists(capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep")
    for source in (["phantom"], ["folder", str(folder)]):
        refused(capfd, ["ingest", *source, "--out", str(tmp_path / "out")], "exists; choose another --out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file/out", "file/out: Not a directory"),
        ("x" * 300, "xx: File name too long"),
        ("nowhere://out", "nowhere://out: Protocol not known"),
    ],
)
def test_an_output_that_cannot_be_written(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, place: str, says: str
) -> None:
    (tmp_path / "file").touch()
    out = place if "://" in place else str(tmp_path / place)
    for source in (["phantom", "--cases", "4", "--size", "32"], ["folder", str(folder)]):
        refused(capfd, ["ingest", *source, "--out", out], says)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "slices"}


def test_a_config_at_a_url(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad, good = "memory://best/bad.yaml", "memory://best/good.yaml"
    fsspec.filesystem("memory").pipe({bad: b"optim: {lrr: 1}", good: Experiment.load("fast").to_yaml().encode()})
    for command in ("train", "crossval"):
        start = [command, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--config"]
        refused(capfd, [*start, bad], f"{bad}: optim.lrr: no such field")
        refused(capfd, [*start, good, "--set", "model.widht=8"], f"{good}: model: widht: no such field")
        refused(capfd, [*start, good], "no card.json")  # which is looked for with settings in hand
        refused(capfd, [*start, "memory://best/none.yaml"], "memory://best/none.yaml: no such file")
        refused(capfd, [*start, "nowhere://x.yaml"], "nowhere://x.yaml: Protocol not known")


@pytest.mark.s3
def test_a_config_on_s3(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    url = f"{s3}/study/best/unet.yaml"
    storage.write_bytes(url, b"optim: {lrr: 1}")
    command = ["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--config"]
    refused(capfd, [*command, url], f"{url}: optim.lrr: no such field")
    refused(capfd, [*command, f"{s3}/none.yaml"], f"{s3}/none.yaml: no such file")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    refused(capfd, [*command, url], url)
    refused(capfd, ["ingest", "phantom", "--cases", "4", "--size", "32", "--out", f"{s3}/denied"], "signature")


def test_an_interrupt_promises_no_resume_that_is_not_there(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path
) -> None:
    assert phantom.exists()  # so that the interrupt below does not come in the middle of an import
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert main(["ingest", "phantom", "--cases", "1000000", "--out", str(tmp_path / "out")]) == 130
    assert capfd.readouterr().err == "braintum: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_a_demo_whose_space_is_not_there(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capfd, ["demo"], "search_spaces/smoke.yaml: no such file")
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capfd, ["report", str(tmp_path)], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["train", "crossval", "search"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Each command that trains, ready for --data and --out."""
    if request.param != "search":
        return [request.param, *QUICK]
    space = tmp_path / "space.yaml"
    space.write_text(
        "{name: s, architectures: [joint_unet], base: fast, folds: 2, trials: 1, "
        "overrides: {data.image_size: 32, model.width: 4, model.depth: 2, training.batch_size: 8}, "
        "scheduler: {name: none}, "
        "parameters: {optim.lr: {uniform: [0.001, 0.01]}}}"
    )
    return ["search", str(space)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestDataThatCannotBeTrainedOn:
    """Every command that trains refuses it alike, and leaves no output."""

    def test_a_dataset_without_a_card(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        shutil.copytree(phantom, data)
        (data / "card.json").unlink()
        refused(capfd, [*command, "--data", str(data), "--out", str(out)], str(data), "no card.json")
        assert not out.exists()

    def test_a_shard_whose_digest_is_wrong(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        shutil.copytree(phantom, data)
        shard = next(data.glob("*.parquet"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        refused(capfd, [*command, "--data", str(data), "--out", str(out)], shard.name, "expected", "ingest")
        assert not out.exists()

    def test_a_label_missing_from_the_classes(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        out = tmp_path / "out"
        wrong = ["--set", "data.classes=[glioma, lymphoma]", "--data", str(phantom), "--out", str(out)]
        refused(capfd, [*command, *wrong], "'lymphoma'", "glioma", "meningioma", "pituitary")
        assert not out.exists()

    def test_a_fold_with_no_slice_of_a_class(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, command: list[str]
    ) -> None:
        for line in (6, 7):  # the only gliomas of fold 1
            change(folder, line, label="pituitary")
        data, out = tmp_path / "data", tmp_path / "out"
        assert main(["ingest", "folder", str(folder), "--out", str(data)]) == 0
        fold = ["--fold", "1"] if command[0] == "train" else []
        refused(capfd, [*command, *fold, "--data", str(data), "--out", str(out)], "fold", "'glioma'")
        assert not out.exists()

    def test_an_output_that_exists(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path, command: list[str]
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "precious.txt").write_text("keep")
        refused(capfd, [*command, "--data", str(phantom), "--out", str(out)], str(out), "exists", "--out")
        refused(capfd, [*command, "--data", str(phantom), "--out", str(out), "--resume"], str(out))
        assert [path.name for path in out.iterdir()] == ["precious.txt"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_unknown_fold(capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    assert main(["ingest", "folder", str(folder), "--out", str(data)]) == 0
    refused(capfd, ["train", *QUICK, "--fold", "7", "--data", str(data), "--out", str(out)], "'7'", "0, 1")
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_train_and_report_with_json(capfd: pytest.CaptureFixture[str], tmp_path: Path, phantom: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "--config", "fast", *QUICK, "--set", "training.epochs=1", "--data", str(phantom)]
    capfd.readouterr()
    assert main([*command, "--out", str(out), "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["epochs"] == 1

    assert main(["report", str(out), "--json"]) == 0
    page = json.loads(capfd.readouterr().out)["report"]
    assert Path(page) == out / "report" / "report.html"
    assert Path(page).read_text().lstrip().lower().startswith("<!doctype html>")


def test_ingest_prints_its_card(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["ingest", "phantom", "--cases", "7", "--slices-per-case", "3", "--size", "48", "--out", str(out)]) == 0
    shown = {" ".join(line.split()) for line in capfd.readouterr().out.splitlines()}
    assert shown >= {"slices 21", "cases 7", "pixels 48×48, 1 × uint8", "masks tumour"}
    shutil.rmtree(out)
    assert main(["ingest", "phantom", "--cases", "8", "--slices-per-case", "1", "--out", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads((out / "card.json").read_text())


def test_models_and_schema_are_for_programs_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listing = json.loads(capfd.readouterr().out)
    assert listing["joint_unet"]["tasks"] == ["classification", "segmentation"]
    assert listing["attention_unet"]["options"]["attention"]["default"] == "gate"
    assert main(["models"]) == 0
    shown = capfd.readouterr().out
    assert all(name in shown for name in listing)
    assert main(["schema"]) == 0
    assert set(json.loads(capfd.readouterr().out)["properties"]) == set(Experiment.model_fields)


@pytest.mark.parametrize("job", ["ingest", "train", "crossval", "search", "report"])
def test_a_job_is_the_command_of_its_name(job: str) -> None:
    done = subprocess.run([sys.executable, f"jobs/{job}.py", "--help"], capture_output=True, text=True, check=True)
    assert f"Usage: braintum {job}" in done.stdout

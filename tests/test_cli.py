"""The command line: exit codes, one line for a user's mistake, nothing left behind, JSON on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from command_line import QUICK, refused
from ports import free_ports

from braintum import storage
from braintum.cli import main
from braintum.config import Experiment


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "phantom"
    size = ["--cases", "20", "--slices-per-case", "2", "--size", "32"]
    assert main(["ingest", "phantom", "--out", str(out), *size]) == 0
    return out


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


@pytest.mark.parametrize("command", ["train", "crossval"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ["model.name=unet", "loss.label_smoothing=.1"],
            "--set loss.label_smoothing: has no effect on unet, which has segmentation only; leave it out",
        ),
        (["model.name=classifier", "loss.segmentation=dice_ce"], "on classifier, which has classification only"),
        (["data.validation=.1"], "--set data.validation: has no effect where nothing is chosen by it (weights best"),
    ],
)
def test_a_setting_without_effect(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, command: str, settings: list[str], says: str
) -> None:
    out = tmp_path / "out"
    given = [word for setting in settings for word in ("--set", setting)]
    refused(capfd, [command, "--config", "fast", *given, "--data", "nowhere", "--out", str(out)], says)
    assert not out.exists()
    best = ["--set", "training.half_size=0", "--set", "training.weights=best", "--set", "data.validation=.1"]
    refused(capfd, [command, "--config", "fast", *best, "--data", "nowhere", "--out", str(out)], "no card.json")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "--data", "x"], "Missing option '--out'"),
        (["trian"], "No such command 'trian'"),
        (["train", "--data", "x", "--out", "y", "--wrokers", "2"], "No such option"),
        (["train", "--data", "x", "--out", "y", "--workers", "0"], "--workers"),
        (["train", "--data", "x", "--out", "y", "--config", "nothing"], "recipes: fast, papers/braintumnet"),
        (
            ["train", "--data", "", "--out", "y"],
            "--data: is empty, as of a variable that is not set; give a file, folder",
        ),
        (["crossval", "--data", "x", "--out", " "], "--out: is empty"),
        (["crossval", "--data", "x", "--out", "y", "--config", ""], "--config: is empty"),
        (["search", "search_spaces/quick.yaml", "--data", "x", "--out", "", "--resume"], "--out: is empty"),
        (["search", "", "--data", "x", "--out", "y"], "space: is empty"),
        (["ingest", "phantom", "--out", ""], "--out: is empty"),
        (["ingest", "folder", "", "--out", "y"], "path: is empty"),
        (["report", ""], "directory: is empty"),
        (["report", "x", "--out", ""], "--out: is empty"),
        (["demo", "--out", ""], "--out: is empty"),
        (["search", "nothing.yaml", "--data", "x", "--out", "y"], "nothing.yaml: no such file"),
        (["search", "search_spaces/quick.yaml", "--data", "x", "--out", "y", "--trials", "2"], "too few for 4"),
    ],
)
def test_a_command_line_that_cannot_be_read(capfd: pytest.CaptureFixture[str], command: list[str], says: str) -> None:
    refused(capfd, command, says)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "no card.json"),  # which is looked for with both parts in hand
        (["--set", "optim.lr=1"], "--set optim.lr=1: expected segmenter.part.field=value, or classifier.part.field="),
        (["--set", "segmenter.optim.lrr=1"], "segmenter: fast: optim.lrr: no such field"),
        (["--set", "segmenter.model.name=classifier"], "segmenter: model.name: classifier has classification only"),
        (["--set", "segmenter.data.region=crop"], "segmenter: fast: data.region: 'crop' would show joint_unet what"),
        (["--set", "classifier.model.name=unet"], "classifier: model.name: unet has segmentation only; choose anot"),
        (["--set", "classifier.model.name=joint_unet"], "joint_unet segments too, and would be shown what it has to"),
        (["--set", "classifier.loss.segmentation=dice"], "classifier: --set loss.segmentation: has no effect"),
        (["--set", "classifier.data.region=whole"], "classifier: data.region: 'whole': a cascade's classifier sees"),
    ],
)
def test_two_parts_that_make_no_cascade(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, more: list[str], says: str
) -> None:
    command = ["cascade", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--segmenter", "fast"]
    refused(capfd, [*command, "--classifier", "fast", "--set", "classifier.model.name=classifier", *more], says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--classifier", "fast"], "--segmenter: missing; give a configuration, or at least --set segmenter.model.nam"),
        (["--segmenter", "fast", "--set", "classifier.model.width=8"], "--classifier: missing; give a configuration"),
        (["--set", "segmenter.model.name=unet", "--set", "classifier.model.name=classifier"], "no card.json"),
    ],
)
def test_a_cascade_without_one_of_its_parts(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, more: list[str], says: str
) -> None:
    refused(capfd, ["cascade", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *more], says)


@pytest.mark.parametrize(
    ("region", "says"), [("tumour", "classifier: data.region: 'tumour'"), ("whole", "no card.json")]
)
def test_a_classifiers_config_that_names_a_region(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, region: str, says: str
) -> None:
    """A study's best classifier says `whole`, as every resolved configuration does; another region is a mistake."""
    file = tmp_path / "classifier.yaml"
    file.write_text(Experiment.load("fast", {"model.name": "classifier", "data.region": region}).to_yaml())
    command = ["cascade", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--segmenter", "fast"]
    refused(capfd, [*command, "--classifier", str(file)], says)


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


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "is for `ray job`; unset it"),
        ("foo", "RAY_ADDRESS: 'foo': Invalid address format"),
        ("foo:bar", "RAY_ADDRESS: 'foo:bar': Unable to parse port"),
    ],
)
def test_an_address_of_no_cluster(tmp_path: Path, phantom: Path, address: str, says: str) -> None:
    """In a process of its own: this one may be on a cluster already."""
    command = [sys.executable, "-m", "braintum.cli", "train", "--data", str(phantom), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


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


def test_an_interrupted_ingest_goes_on_with_the_same_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "braintum", "ingest", "phantom", "--cases", "6000", "--out", str(out)]
    # A process of its own: here the interrupt may meet hypothesis' callback of the collector, which swallows it.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if out.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    saved = "what was saved stays, and the same command goes on from it"
    assert said.splitlines()[-1] == f"braintum: interrupted; {saved}"
    assert [path.name for path in out.iterdir()] == ["ingesting"]


def test_a_demo_whose_space_is_not_there(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capfd, ["demo", "--space", "nothing.yaml"], "nothing.yaml: no such file")
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(capfd, ["report", str(tmp_path)], str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    for name in ("experiment.json", "summary.json"):
        (tmp_path / name).write_text("{}")
    refused(capfd, ["report", str(tmp_path)], "experiment.json: experiment.model.name is not there: damaged")
    (tmp_path / "study.json").write_text("[]")
    refused(capfd, ["report", str(tmp_path)], "study.json: space.name is not there: damaged")
    assert not (tmp_path / "report").exists()


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


def test_models_and_schema_are_for_programs_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listing = json.loads(capfd.readouterr().out)
    assert listing["joint_unet"]["tasks"] == ["classification", "segmentation"]
    assert listing["cascade"]["composition"] == ["segmenter", "classifier"]
    assert listing["attention_unet"]["options"]["attention"]["default"] == "gate"
    assert main(["models"]) == 0
    shown = capfd.readouterr().out
    assert all(name in shown for name in listing)
    assert "braintum models NAME" in shown
    assert main(["models", "cascade", "unet"]) == 0
    shown = capfd.readouterr().out
    assert "cascade: classification and segmentation, by any segmenter, then any classifier" in shown
    assert "none, gate, cbam, se" in shown
    assert listing["unet"]["options"]["depth"]["values"] == "≥ 1, ≤ 7"
    assert main(["models", "classifier", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"classifier": listing["classifier"]}
    assert main(["models", "cascade", "unet", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {name: listing[name] for name in ("cascade", "unet")}
    command = "'cascade' is not an architecture, but a command of its own: braintum cascade --help; known: attention_u"
    refused(capfd, ["models", "cascade", "--benchmark"], command)
    refused(capfd, ["train", "--data", "x", "--out", "y", "--set", "model.name=cascade"], command)
    refused(capfd, ["models", "--size", "64"], "--size 64: has no effect without --benchmark")
    for flags in ([], ["--benchmark"]):
        refused(capfd, ["models", "vgg", *flags], "'vgg' is not an architecture; known: attention_unet")
    assert main(["schema"]) == 0
    assert set(json.loads(capfd.readouterr().out)["properties"]) == set(Experiment.model_fields)


@pytest.mark.parametrize("job", ["ingest", "train", "crossval", "cascade", "search", "report"])
def test_a_job_is_the_command_of_its_name(job: str) -> None:
    done = subprocess.run([sys.executable, f"jobs/{job}.py", "--help"], capture_output=True, text=True, check=True)
    assert f"Usage: braintum {job}" in done.stdout

"""Searches that cannot be: one line, and 2, before a cluster is joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from command_line import refused
from ports import free_ports
from small_study import SMALL

from braintum import storage
from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.shards import read_card
from braintum.training.run import prepare_out
from braintum.tuning.begin import record
from braintum.tuning.location import Location
from braintum.tuning.records import RECORD
from braintum.tuning.space import SearchSpace

LR: dict[str, Any] = {"log_uniform": [1e-5, 1e-2]}


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> str:
    """A RAY_ADDRESS that is refused: what a command says that gets as far as joining a cluster."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    return "RAY_ADDRESS: http://127.0.0.1:8265: is for `ray job`"


def written(folder: Path, **changes: Any) -> str:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(file)


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parameters": {"optim.lrr": LR}}, "parameters.optim.lrr: no such field of unet; did you mean optim.lr"),
        (
            {"parameters": {"optim.lr": {**LR, "when": {"model.atention": "gate"}}}},
            "when.model.atention: no such field; did you mean model.attention",
        ),
        ({"parameters": {"optim.lr": {"uniform": [-1.0, 1.0]}}}, "parameters.optim.lr: unet: optim.lr: -1.0: Input"),
        ({"objectives": ["dice", "dice"]}, "objectives: ['dice', 'dice']: 'dice' stands there twice; remove one"),
        ({"parameters": {"data.image_size": {"int": [16, 17]}}}, "data.image_size: 17 is not divisible by 4"),
        ({"parameters": {"augment.rotate_degrees": {"uniform": [0.0, 400.0]}}}, "augment.rotate_degrees: "),
    ],
)
def test_a_space_that_cannot_be_searched(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_phantom: str, changes: dict[str, Any], says: str
) -> None:
    running, out = ray.is_initialized(), tmp_path / "study"
    refused(capfd, ["search", written(tmp_path, **changes), "--data", tiny_phantom, "--out", str(out)], says)
    assert ray.is_initialized() == running
    assert not out.exists()


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("kept_at", "says"),
    [
        ("postgresql://me:s3cret@127.0.0.1:{port}/db", "postgresql://me@127.0.0.1:{port}/db: cannot be used as Optuna"),
        ("postgresql://me:s3cret@host.invalid/db", "postgresql://me@host.invalid/db: cannot be used as Optuna's"),
        ("postgresql://me:s3cret@w@host/db", "special characters as %40"),
        (
            "postgresql://me:s3cret@host:port/db",
            "postgresql://...: cannot be read; expected postgresql://USER@HOST/DAT",
        ),
        ("postgresql://me@host/db?password=s3cret", "give the password in ~/.pgpass or PGPASSWORD"),
        ("postgresql://me:s3cret@host", "names no database"),
        ("mysql://me:s3cret@host/db", "--storage mysql://...: expected postgresql://USER@HOST/DATABASE, or a journal"),
        ("s3://bucket/optuna.log", "--storage s3://...: expected postgresql://"),
        ("optuna.db", "--storage optuna.db: expected postgresql://"),
        (" ", "--storage: is empty"),
        ("/dev/null/optuna.log", "/dev/null/optuna.log: cannot be written: /dev/null is no folder"),
    ],
)
def test_a_storage_that_cannot_be_used(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_phantom: str, kept_at: str, says: str
) -> None:
    running, out, port = ray.is_initialized(), tmp_path / "study", free_ports(1)[0]
    command = ["search", written(tmp_path), "--data", tiny_phantom, "--out", str(out)]
    refused(capfd, [*command, "--storage", kept_at.format(port=port)], says.format(port=port), without="s3cret")
    assert ray.is_initialized() == running
    assert not out.exists()


@pytest.fixture(scope="module")
def other_phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("other") / "set")
    ingest_phantom(url, cases=24, slices_per_case=2, size=32, seed=1)
    return url


def test_another_study_than_the_one_that_is_resumed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, tiny_phantom: str, other_phantom: str, no_cluster: str
) -> None:
    """What differs is said with the values there and now, all of it where it is little."""
    out = tmp_path / "study"

    def resumed(says: str, *more: str, data: str = tiny_phantom, **changes: Any) -> None:
        file = written(tmp_path, **changes)
        refused(capfd, ["search", file, "--data", data, "--out", str(out), "--resume", *more], says)

    space = SearchSpace.load(written(tmp_path))
    digests = [read_card(url).digest for url in (tiny_phantom, other_phantom)]
    about = record(space, tiny_phantom, digests[0], Location.of(None, str(out)))
    prepare_out(str(out), about, resume=False, record=RECORD)
    running, before = ray.is_initialized(), (out / RECORD).read_bytes()
    resumed(
        f"{out}/study.json: space.folds was 2 there and is 3 now, space.sampler.seed was 0 there and is 7 now; choose",
        folds=3,
        sampler={"seed": 7},
    )
    resumed(
        "space.parameters.optim.lr.log_uniform was [1e-05, 0.01] there and is [1e-05, 0.1] now, "
        "space.parameters.optim.weight_decay was not there and is {",
        parameters={"optim.lr": {"log_uniform": [1e-5, 1e-1]}, "optim.weight_decay": {"choice": [0.0, 0.1]}},
    )
    resumed("space.objectives was not there and is ['dice_all', 'accuracy'] now; ", objectives=["dice_all", "accuracy"])
    more = {"training.batch_size": 3, "optim.weight_decay": 0.5, "optim.clip_norm": 2.0, "model.attention": "se"}
    resumed(
        "space.folds was 2 there and is 3 now and 1 more; choose another --out",
        folds=3,
        sampler={"seed": 7},
        overrides={**SMALL["overrides"], **more},
    )
    resumed(f"data.digest was {digests[0]!r} there and is {digests[1]!r} now; choose another --out", data=other_phantom)
    resumed(f"storage was None there and is '{tmp_path}/a.log' now; choose", "--storage", f"{tmp_path}/a.log")
    resumed("nested was False there and is True now", "--nested")
    assert (ray.is_initialized(), (out / RECORD).read_bytes()) == (running, before)
    (tmp_path / "other").mkdir()
    space_of_its_own = ["search", written(tmp_path), "--data", tiny_phantom, "--resume"]
    says = "study.json: not there, so "
    refused(capfd, [*space_of_its_own, "--out", str(tmp_path / "other")], says)
    if not running:  # and the one that it is goes on to the cluster
        refused(capfd, [*space_of_its_own, "--out", str(out), "--trials", "9"], no_cluster)
    assert storage.read_json(str(out / RECORD)) == about

"""What a study makes of machines that fail: it ends truthfully or goes on, and a resume finds what was undisturbed."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_study import SMALL, command, outcome, rows_of, space, studies_of
from tiny import quiet, wait_for, workers_of

from braintum.cli import main
from braintum.tuning.study import search

pytestmark = pytest.mark.ray

ONE_AT_A_TIME: dict[str, Any] = {
    "architectures": ["joint_unet"], "trials": 3, "resources": {"max_concurrent": 1},
    "overrides": {**SMALL["overrides"], "training.epochs": 4},
    "scheduler": {"name": "asha", "grace_epochs": 3, "reduction": 2},
}  # fmt: skip

OUTSIDE = Path(__file__).parent / "outside"  # as `pip install` would lay it out
GREEDY: dict[str, Any] = {
    "name": "greedy",
    "architectures": ["greedy_net"],
    "base": "fast",
    "overrides": {"data.image_size": 32, "training.epochs": 3, "training.device": "cpu"},
    "folds": 2,
    "trials": 6,
    "resources": {"trials_per_gpu": 2, "gpus_per_worker": 1},
    "score": {"dice_all": 1.0},
    "scheduler": {"name": "none"},
    "sampler": {"name": "random", "seed": 1},
    "parameters": {"model.appetite": {"choice": [1, 2]}},
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system to fill: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no room on a disk."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_ends_the_study_and_no_trial(
    capfd: pytest.CaptureFixture[str], tiny_phantom: str, tmp_path: Path, small_disk: Path
) -> None:
    calm, out = tmp_path / "calm", small_disk / "study"
    undisturbed = search(space(tmp_path, **ONE_AT_A_TIME), tiny_phantom, str(calm), progress=quiet())
    second = out / "trials" / "joint_unet-1"

    def fill_up() -> Path:
        wait_for(lambda: len(rows_of(second)) >= 2)
        return fill(small_disk)

    arguments = command(tmp_path, tiny_phantom, out)[3:]
    with ThreadPoolExecutor(1) as pool:
        filling = pool.submit(fill_up)
        assert main(arguments) == 2
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("braintum:")][-1].endswith("No space left on device")
    trained = rows_of(second)
    assert [trial.state.name for trial in studies_of(out)["joint_unet"].trials][1] == "RUNNING"
    filling.result().unlink()
    resumed = search(space(tmp_path, **ONE_AT_A_TIME), tiny_phantom, str(out), resume=True, progress=quiet())
    assert outcome(out) == outcome(calm)
    assert rows_of(second)[: len(trained) - 1] == trained[:-1], "no saved epoch is trained again"
    assert resumed["best"]["joint_unet"]["crossval"] == undisturbed["best"]["joint_unet"]["crossval"]
    assert not [*out.rglob("*.part")]


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_is_killed_leaves_the_one_beside_it_alone(tiny_phantom: str, tmp_path: Path) -> None:
    """kill -9 of one of two trials' processes: the other goes on in its own, and no epoch is trained twice."""
    changes: dict[str, Any] = {
        "architectures": ["joint_unet"], "trials": 2, "resources": {"max_concurrent": 2},
        "overrides": {**SMALL["overrides"], "training.epochs": 30}, "scheduler": {"name": "none"},
    }  # fmt: skip
    out = tmp_path / "study"
    trials = [out / "trials" / f"joint_unet-{number}" for number in range(2)]

    def kill_one() -> list[list[dict[str, Any]]]:
        wait_for(lambda: all(len(rows_of(trial)) >= 3 for trial in trials))
        victim, _ = workers_of("OneWorkerTrial")
        victim.kill()
        victim.wait(10)
        return [rows_of(trial) for trial in trials]

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_one)
        search(space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
    before, after = killing.result(), [rows_of(trial) for trial in trials]
    assert all(len(rows) < 60 for rows in before), "a trial had ended before"
    assert [trial.state.name for trial in studies_of(out)["joint_unet"].trials] == ["COMPLETE"] * 2
    for rows, known in zip(after, before, strict=True):
        assert rows[: len(known) - 1] == known[:-1], "no saved epoch is trained again"
    assert [[row["epoch"] for row in rows] for rows in after] == [list(range(1, 61))] * 2
    waits = sorted(max(b["began"] - a["ended"] for a, b in itertools.pairwise(rows)) for rows in after)
    assert waits[0] < waits[1] / 2, "one was never without its process"
    wait_for(lambda: not workers_of("OneWorkerTrial"), 60)


WITH_A_GPU = """
import sys, json
from braintum.connect import start_local
start_local(num_cpus=2, num_gpus=1)
from braintum.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_who_has_no_memory_beside_others_is_trained_again_alone(tiny_phantom: str, tmp_path: Path) -> None:
    """Two trials share what Ray takes for a GPU. Who asks for more than a whole one fails, with the reason."""
    (tmp_path / "room").mkdir()
    path = os.pathsep.join([str(OUTSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "GREEDY_ROOM": str(tmp_path / "room")}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(GREEDY))
    arguments = command(tmp_path, tiny_phantom, tmp_path / "study")[3:]
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_GPU, *arguments], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    trials = studies_of(tmp_path / "study")["greedy_net"].trials
    again = [trial for trial in trials if trial.user_attrs.get("alone")]
    assert again, "two trials did not meet"
    assert "had not enough GPU memory beside others: it is trained again, alone" in done.stderr
    for trial in trials:
        if trial.params["model.appetite"] == 1:
            assert trial.state.name == "COMPLETE"
        else:
            assert trial.state.name == "FAIL"
            assert "out of memory" in trial.user_attrs["failure"]
    assert {len(trial.user_attrs["placed"]) for trial in again} == {2}
    last = max(again, key=lambda trial: trial.number).user_attrs["placed"][0]
    after = [trial for trial in trials if trial.user_attrs["placed"][0] > last]
    assert not {trial.number for trial in after} & {trial.number for trial in again}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_head_that_dies_takes_its_driver_along_and_no_result(tiny_phantom: str, tmp_path: Path) -> None:
    """kill -9 of the process that knows of all others (the GCS). Nothing goes on training; a new cluster does."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    undisturbed = search(space(tmp_path, **ONE_AT_A_TIME), tiny_phantom, str(calm), progress=quiet())
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    process = subprocess.Popen(command(tmp_path, tiny_phantom, killed), env=environment, stderr=subprocess.PIPE)
    second = killed / "trials" / "joint_unet-1"
    wait_for(lambda: len(rows_of(second)) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    (gcs,) = (child for child in children if child.name() == "gcs_server")
    gcs.kill()
    said = process.communicate(timeout=120)[1].decode()
    assert process.returncode not in (0, 2), said
    _, alive = psutil.wait_procs(children, timeout=30)
    left = [child.name() for child in alive]
    for child in alive:
        child.kill()
    assert set(left) <= {"ray::RuntimeEnvAgent"}, "what trains ends too; that agent of Ray's notices later"
    done = rows_of(second)
    resumed = search(space(tmp_path, **ONE_AT_A_TIME), tiny_phantom, str(killed), resume=True, progress=quiet())
    assert outcome(killed) == outcome(calm)
    assert rows_of(second)[: len(done) - 1] == done[:-1], "no saved epoch is trained again"
    assert resumed["best"]["joint_unet"]["crossval"] == undisturbed["best"]["joint_unet"]["crossval"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_of_two_workers_survives_one_of_them(tiny_phantom: str, tmp_path: Path) -> None:
    changes = {**ONE_AT_A_TIME, "trials": 1, "resources": {"workers": 2}, "scheduler": {"name": "none"}}
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    search(space(tmp_path, **changes), tiny_phantom, str(calm), progress=quiet())
    trial = killed / "trials" / "joint_unet-0"
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search, space(tmp_path, **changes), tiny_phantom, str(killed), progress=quiet())
        wait_for(lambda: len(rows_of(trial)) >= 2)
        done = rows_of(trial)
        workers_of("RayTrainWorker")[0].kill()
        searching.result()
    assert outcome(killed) == outcome(calm)
    assert rows_of(trial)[: len(done) - 1] == done[:-1], "no saved epoch is trained again"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_only_living_trials_have_checkpoints(tiny_phantom: str, tmp_path: Path) -> None:
    """Two trials at a time, of eight: what a study takes of a disk does not grow with its trials, but for records."""
    out, most = tmp_path / "study", []
    changes = {**ONE_AT_A_TIME, "trials": 8, "resources": {"max_concurrent": 2}}
    with ThreadPoolExecutor(1) as pool:
        searching = pool.submit(search, space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
        while not searching.done():
            most.append(len([*out.glob("trials/*/state.pt")]))
            time.sleep(0.05)
        searching.result()
    assert 0 < max(most) <= 3, "those that train, and one whose end is not yet told"
    assert not [*out.glob("trials/**/*.pt"), *out.glob("trials/**/*.safetensors")]
    assert max(file.stat().st_size for file in out.glob("trials/**/*") if file.is_file()) < 100_000

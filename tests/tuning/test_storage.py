"""Where trials are kept: Optuna's file at any URL, a journal, PostgreSQL; whose are whose, and passwords."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import yaml
from command_line import refused
from postgres_server import PASSWORD, QUOTED, PostgresServer
from small_study import SMALL, outcome, space
from tiny import interrupted_when, quiet

from braintum import storage
from braintum.cli import main
from braintum.data.shards import read_card
from braintum.settings import ConfigError
from braintum.tuning.begin import record
from braintum.tuning.database import StorageLost
from braintum.tuning.location import Location, location_of
from braintum.tuning.nested import nested_search
from braintum.tuning.records import RECORD
from braintum.tuning.storage import OptunaFile

ONE_BY_ONE: dict[str, Any] = {
    "architectures": ["unet"], "trials": 3, "resources": {"max_concurrent": 1},
    "overrides": {**SMALL["overrides"], "training.epochs": 2},
}  # fmt: skip
"""A study that is a function of its seed."""
SHARED = ["journal", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture
def kept_at(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `--storage` takes, with its password."""
    if request.param == "journal":
        return str(tmp_path / "trials" / "optuna.log")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url_with_password


@pytest.mark.s3
def test_a_study_is_found_again_on_s3(s3: str) -> None:
    url = f"{s3}/optuna/optuna.db"
    with OptunaFile(url) as file:
        study = optuna.create_study(storage=file.storage, study_name="unet", direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("optim.lr", 1e-4, 1e-2), n_trials=3)
        assert file.safe()
        with OptunaFile(url) as seen_by_another:
            copy = optuna.load_study(storage=seen_by_another.storage, study_name="unet")
            assert len(copy.trials) == 3, "before the first driver ends"
        study.optimize(lambda trial: 1.0, n_trials=1)
        best = study.best_trial
    with OptunaFile(url) as file:
        assert optuna.load_study(storage=file.storage, study_name="unet").best_trial == best


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kept_at", SHARED, indirect=True)
def test_a_study_goes_on_wherever_it_is_kept(
    kept_at: str, tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted, reported and resumed it is the study that keeps its trials in a file of its own."""
    space(tmp_path, **ONE_BY_ONE)
    calm, out = tmp_path / "calm", tmp_path / "study"
    command = ["search", str(tmp_path / "space.yaml"), "--data", tiny_phantom, "--json", "--out"]
    assert main([*command, str(calm)]) == 0
    history = out / "trials" / "unet-1" / "history.json"
    with interrupted_when(lambda: history.exists()):
        assert main([*command, str(out), "--storage", kept_at]) == 130
    if "://" in kept_at:
        refused(capfd, ["report", str(out)], "fe_sendauth: no password supplied")
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert main(["report", str(out)]) == 0
    assert "This study has not finished" in (out / "report" / "report.html").read_text()
    assert main([*command, str(out), "--resume"]) == 0, "it knows where its trials are"
    shown = capfd.readouterr()
    with location_of(str(out)).studies() as studies:
        found = [(t.number, t.state.name, t.params, t.intermediate_values) for t in studies["unet"].trials]
    assert found == [trial[1:] for trial in outcome(calm)]
    assert not list(out.rglob("optuna.db"))
    written = [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    for secret in (PASSWORD, QUOTED):
        assert secret not in shown.out + shown.err
        assert not any(secret.encode() in content for content in written)


@pytest.mark.parametrize("kept_at", SHARED, indirect=True)
def test_studies_that_share_a_storage_do_not_mix(
    kept_at: str, tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One below the directory of another too. A directory that is gone leaves trials, which no other study takes."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # refused by what gets as far as joining a cluster
    small, digest = space(tmp_path, **ONE_BY_ONE), read_card(tiny_phantom).digest
    outs = [str(tmp_path / name) for name in ("study", "study/below", "other")]
    for number, out in enumerate(outs):
        location = Location.of(kept_at, out)
        about = record(small, tiny_phantom, digest, location)
        storage.write_json(storage.join(out, RECORD), about)
        with location.open() as store:
            study = optuna.create_study(storage=store.storage, study_name=location.name("unet"), direction="maximize")
            study.set_user_attr(RECORD, about)
            study.optimize(lambda trial, n=number: float(n), n_trials=number + 1)  # type: ignore[misc]
    for number, out in enumerate(outs):
        location = Location.of(kept_at, out)
        with location.studies() as studies:
            assert {name: [trial.value for trial in study.trials] for name, study in studies.items()} == {
                "unet": [number] * (number + 1)
            }
        assert list(location.found().values()) == [storage.read_json(storage.join(out, RECORD))]
    command = ["search", str(tmp_path / "space.yaml"), "--data", tiny_phantom, "--storage", kept_at, "--out", outs[0]]
    if not ray.is_initialized():
        refused(capfd, [*command, "--resume"], "RAY_ADDRESS: http://127.0.0.1:8265: is for `ray job`")
        refused(capfd, [*command[:-1], str(tmp_path / "new")], "RAY_ADDRESS: http://127.0.0.1:8265: is for `ray job`")
    shutil.rmtree(outs[0])
    refused(capfd, [*command, "--resume"], f"holds study {outs[0]}/unet, whose directory is not there; choose another")
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SMALL, **ONE_BY_ONE, "folds": 3}))
    refused(capfd, command, f"study {outs[0]}/unet: space.folds was 2 there and is 3 now; choose another --out")


@pytest.mark.usefixtures("ray_cluster")
def test_a_nested_study_keeps_those_of_its_parts_there(
    tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "study", str(tmp_path / "optuna.log")
    short = {**SMALL["overrides"], "training.epochs": 1}
    asked = space(tmp_path, **{**ONE_BY_ONE, "trials": 1, "overrides": short, "scheduler": {"name": "none"}})
    summary = nested_search(asked, tiny_phantom, str(out), kept_at=journal, progress=quiet())
    assert summary["trials"]["complete"] == 2
    assert not list(out.rglob("optuna.db"))
    assert {*Location.of(journal, str(out)).found()} == {f"{out}/outer-{fold}/unet" for fold in (1, 2)}
    assert nested_search(asked, tiny_phantom, str(out), resume=True, progress=quiet()) == summary
    shutil.rmtree(out)
    again = ["search", str(tmp_path / "space.yaml"), "--data", tiny_phantom, "--out", str(out), "--nested"]
    refused(capfd, [*again, "--storage", journal], f"holds study {out}/outer-1/unet, whose directory is not there")


def test_a_journal_that_is_none(tmp_path: Path) -> None:
    for number, content in enumerate((b"\xff\xfe\n" * 3, b"a log of something\n" * 3, b"[]\n{}\n")):
        file = tmp_path / f"{number}.log"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{number}.log: cannot be used as a journal of Optuna's"):
            Location.of(str(file), str(tmp_path)).found()


@pytest.mark.postgres
def test_a_server_that_is_started_anew_is_waited_for(
    mortal_postgres: PostgresServer, capfd: pytest.CaptureFixture[str]
) -> None:
    location = Location.of(mortal_postgres.url_with_password, "/out")
    with location.open() as store:
        study = optuna.create_study(storage=store.storage, study_name=location.name("unet"), direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("optim.lr", 1e-4, 1e-2), n_trials=2)
        mortal_postgres.stop()
        threading.Timer(2, mortal_postgres.start).start()
        study.optimize(lambda trial: trial.suggest_float("optim.lr", 1e-4, 1e-2), n_trials=1)
    with location.studies() as studies:
        assert [trial.state.name for trial in studies["unet"].trials] == ["COMPLETE"] * 3
    shown = capfd.readouterr().err
    assert f"{mortal_postgres.url}: " in shown
    assert "asking again for 120 s" in shown
    assert PASSWORD not in shown + repr(location)


@pytest.mark.postgres
def test_a_server_that_is_lost(mortal_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    location = Location.of(mortal_postgres.url_with_password, "/out")

    def ask_in_vain() -> None:
        with location.open() as store:
            study = optuna.create_study(storage=store.storage, study_name=location.name("unet"))
            mortal_postgres.stop()
            study.ask()

    with pytest.raises(StorageLost, match=r"Connection refused.*; once that is over, the same command") as lost:
        ask_in_vain()
    assert str(lost.value).startswith(f"{mortal_postgres.url}: ")
    assert QUOTED not in str(lost.value)

"""`--warm-start`: which trials of an older study are taken, what they do, and what they must not do."""

from __future__ import annotations

import json
import shutil
from math import log10
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from command_line import refused
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from small_study import SMALL, outcome, space, studies_of
from tiny import quiet

from braintum import storage
from braintum.cli import main
from braintum.data.shards import read_card
from braintum.settings import ConfigError
from braintum.tuning.begin import open_studies, record
from braintum.tuning.location import Location
from braintum.tuning.records import RECORD, SPEC, WARM_START, own_trials
from braintum.tuning.samplers import build_sampler
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search
from braintum.tuning.warm_start import warm_start

ONE: dict[str, Any] = {"architectures": ["unet"], "trials": 3, "resources": {"max_concurrent": 1}}
LR = FloatDistribution(1e-9, 1.0, log=True)


def about(searched: SearchSpace, data: str, out: str) -> dict[str, Any]:
    return record(searched, data, read_card(data).digest, Location.of(None, out))


def older(searched: SearchSpace, data: str, out: Path, rates: dict[float, float], **more: Any) -> Path:
    """A study of which every trial has a rate and a score; a score below 0 is that of a stopped one."""
    storage.write_json(str(out / RECORD), about(searched, data, str(out)))
    for name in searched.shares():
        study = optuna.create_study(storage=f"sqlite:///{out}/optuna.db", study_name=name, direction="maximize")
        for number, (rate, score) in enumerate(rates.items()):
            values = {"optim.lr": rate, "training.seed": number, **more}
            spec = {"architecture": name, "experiment": searched.experiment(name, values).to_dict()}
            study.add_trial(create_trial(
                state=TrialState.COMPLETE if score > 0 else TrialState.PRUNED, value=abs(score),
                intermediate_values={1: abs(score)}, params={"optim.lr": rate}, distributions={"optim.lr": LR},
                user_attrs={SPEC: json.dumps(spec)},
            ))  # fmt: skip
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={SPEC: "{}"}))
    return out


def test_what_the_new_space_could_have_proposed_is_taken(tiny_phantom: str, tmp_path: Path) -> None:
    """One architecture of two, a narrower range, a setting that was fixed there and is searched here."""
    old = older(space(tmp_path), tiny_phantom, tmp_path / "old", {1e-3: 0.5, 2e-3: -0.2, 0.5: 0.4})
    new = space(
        tmp_path / "new", **ONE,
        parameters={"optim.lr": {"uniform": [1e-3, 1e-2]}, "model.width": {"choice": [4, 2]}},
    )  # fmt: skip
    found = warm_start(str(old), new, about(new, tiny_phantom, "new"))
    assert [(t.state.name, t.value, t.params, t.user_attrs) for t in found.trials["unet"]] == [
        ("COMPLETE", 0.5, {"optim.lr": 1e-3, "model.width": 2}, {WARM_START: f"{old}#unet-0"}),
        ("PRUNED", 0.2, {"optim.lr": 2e-3, "model.width": 2}, {WARM_START: f"{old}#unet-1"}),
    ]
    says = "left out are 3: joint_unet is not searched; 1: optim.lr is outside of what is searched"
    assert found.said == f"warm start: 2 of 6 finished trials of {old} taken; {says}"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"folds": 3}, "3: space.folds was 2 there and is 3 now"),
        ({"score": {"dice_all": 1.0}}, "3: space.score.dice was 0.5 there and is not there now, space.score"),
        ({"overrides": {**SMALL["overrides"], "optim.clip_norm": 3.0}}, "3: optim.clip_norm was "),
        ({"parameters": {"optim.lr": {"choice": [1e-6, 1e-7]}}}, "3: optim.lr is outside of what is searched"),
        ({"architectures": ["classifier"]}, "3: unet is not searched"),
    ],
)
def test_what_means_something_else_is_refused(
    tiny_phantom: str, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    old = older(space(tmp_path, **ONE), tiny_phantom, tmp_path / "old", {1e-3: 0.5, 2e-3: 0.2, 3e-3: -0.4})
    new = space(tmp_path / "new", **{**ONE, **changes})
    with pytest.raises(ConfigError) as refusal:
        warm_start(str(old), new, about(new, tiny_phantom, "new"))
    assert f"--warm-start {old}: none of 3 finished trials can be used: {says}" in str(refusal.value)


def test_the_command_refuses_before_a_cluster_is_joined(
    capfd: pytest.CaptureFixture[str], tiny_phantom: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # refused by what gets as far as joining a cluster
    old, out = tmp_path / "old", tmp_path / "study"
    new = space(tmp_path, **ONE)
    command = ["search", str(tmp_path / "space.yaml"), "--data", tiny_phantom, "--out", str(out), "--warm-start"]
    refused(capfd, [*command, str(old)], f"--warm-start {old}: no study.json there; give the --out of a search")
    older(new, tiny_phantom, old, {1e-3: 0.5})
    if not ray.is_initialized():
        refused(capfd, [*command, str(old)], "RAY_ADDRESS: http://127.0.0.1:8265: is for `ray job`")
    refused(
        capfd, [*command, str(old), "--nested"], "--warm-start: its trials have seen the folds that --nested leaves"
    )
    (old / "optuna.db").unlink()
    refused(capfd, [*command, str(old)], "optuna.db is not there: the search had not begun")
    secret = "postgresql://me:s3cret@127.0.0.1:1/db"
    refused(capfd, [*command, secret], "postgresql://me@127.0.0.1:1/db: cannot be used", without="s3cret")
    few = {name: value for name, value in SMALL.items() if name not in ("trials", "scheduler", "parameters")}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(few))
    refused(capfd, [*command, str(old)], "--warm-start: has no effect without parameters")
    assert not out.exists()


def test_the_sampler_learns_from_it(tiny_phantom: str, tmp_path: Path) -> None:
    """Twenty trials say that the best rate is 1e-4: what is proposed lies nearer there than without them."""
    rates = {10 ** (-5 + 0.15 * i): 1 - abs(-1 + 0.15 * i) / 4 for i in range(20)}
    searched = space(tmp_path, **ONE)
    old = older(searched, tiny_phantom, tmp_path / "old", rates)
    told = about(searched, tiny_phantom, "new")
    distances = {}
    for warm in (None, warm_start(str(old), searched, told)):
        location = Location.of(None, str(tmp_path / f"new-{warm is not None}"))
        Path(str(location.file)).parent.mkdir()
        with location.open() as store:
            (study,) = open_studies(searched, location, store, told, warm).values()
            asked = [study.ask()]  # the recipe's own, first
            assert asked[0].suggest_float("optim.lr", 1e-5, 1e-2, log=True) == pytest.approx(
                searched.experiment("unet", {}).optim.lr
            )
            study.tell(asked[0], 0.1)
            for number in range(1, 9):
                study.sampler = build_sampler(searched, "unet", number)
                asked.append(study.ask())
                searched.suggest(asked[-1], "unet")
                study.tell(asked[-1], 0.1)
            distances[warm is not None] = sum(abs(log10(t.params["optim.lr"]) + 4) for t in asked[1:])
            assert len(own_trials(study)) == 9
    assert distances[True] < distances[False] / 2


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_that_was_warm_is_its_own(tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Trials that were taken are none of those asked for, win nothing though they score best, and stop nobody."""
    searched, out = space(tmp_path, **ONE), tmp_path / "study"
    old = older(searched, tiny_phantom, tmp_path / "old", {1e-3: 0.999, 2e-3: 0.998, 3e-3: -0.997})
    command = ["search", str(tmp_path / "space.yaml"), "--data", tiny_phantom, "--out", str(out)]
    assert main([*command, "--warm-start", str(old), "--trials", "1"]) == 0
    assert f"warm start: 3 of 3 finished trials of {old} taken" in capfd.readouterr().err
    shutil.rmtree(old)
    assert main([*command, "--resume"]) == 0, "the older study is not read again"
    trials = studies_of(out)["unet"].trials
    assert [WARM_START in trial.user_attrs for trial in trials] == [True] * 3 + [False] * 3
    summary = storage.read_json(str(out / "summary.json"))
    assert sum(summary["trials"].values()) == 3
    assert summary["best"]["unet"]["trial"] in (3, 4, 5)
    assert summary["best"]["unet"]["score"] < 0.99
    assert {row["number"] for row in pq.read_table(out / "trials.parquet").to_pylist()} == {3, 4, 5}
    assert storage.read_json(str(out / RECORD))["warm_start"] == str(old)
    refused(capfd, [*command, "--resume", "--warm-start", str(out)], f"warm_start was '{old}' there and is '{out}' now")
    assert main(["report", str(out)]) == 0
    again = space(tmp_path / "again", **{**ONE, "scheduler": {"name": "none"}})
    first = search(again, tiny_phantom, str(tmp_path / "first"), warm_start_from=str(out), progress=quiet())
    assert first["trials"] == {"complete": 3, "pruned": 0, "failed": 0}
    taken = [trial for trial in outcome(tmp_path / "first") if trial[1] < 3]
    assert [trial[2:] for trial in taken] == [trial[2:] for trial in outcome(out) if trial[1] >= 3], "and not the rest"

"""Budgets: which trials are placed, what is counted, what is refused, and a study on real Ray that ends early."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from ray.tune.search import Searcher
from small_study import SMALL, command, space, studies_of
from tiny import quiet, wait_for

from braintum import storage
from braintum.cli import main
from braintum.console import print_study
from braintum.reporting.html import report
from braintum.settings import ConfigError
from braintum.tuning.budget import Allowance
from braintum.tuning.parts import Budget
from braintum.tuning.records import HISTORY
from braintum.tuning.searcher import OptunaSearcher
from braintum.tuning.slots import Places, Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import FILE, Spending, Spent
from braintum.tuning.study import search
from braintum.tuning.trial import TrialSpec
from braintum.tuning.winner import StudyFailed

FOLDS, EPOCHS = 2, 3
MINUTE = 60.0
"""An epoch of a U-Net: a trial of it takes 6, and so does its winner."""


class Driver:
    """A search without Ray: a real searcher on real studies, and trials of which the time of an epoch is given.

    What earlier starts have spent is given too, and no time passes.
    """

    def __init__(self, folder: Path, spent: Spent, places: Places | None = None, **changes: Any) -> None:
        self.folder, self.places = folder, places or Places()
        overrides = {**SMALL["overrides"], "training.epochs": EPOCHS, "training.half_size": 0.0}
        self.space = space(folder, **{"trials": 40, "overrides": overrides, "scheduler": {"name": "none"}, **changes})
        self.studies = {name: optuna.create_study(direction="maximize") for name in self.space.shares()}
        self.placed: dict[str, tuple[TrialSpec, float]] = {}
        self.start(spent)

    def start(self, spent: Spent) -> None:
        storage.write_json(str(self.folder / FILE), asdict(spent))
        self.spending = Spending(str(self.folder))
        allowance = Allowance(self.space, self.studies, self.spending, lambda: self.places, FOLDS)
        self.searcher = OptunaSearcher(self.space, self.studies, self._place, allowance, Slots(1, 1, {"CPU": 1.0}))

    def _place(self, architecture: str, number: int, name: str, values: dict[str, Any]) -> TrialSpec:
        settings = self.space.experiment(architecture, values).to_dict()
        out = str(self.folder / f"{name}-{number}")
        return TrialSpec(architecture, number, settings, "", out, FOLDS, self.space.score)

    def ask(self, key: str) -> str | None:
        """The architecture of the trial that is placed under that key; None: asked again later; FINISHED."""
        proposed = self.searcher.suggest(key)
        if not isinstance(proposed, dict):
            return proposed
        self.placed[key] = TrialSpec(**proposed["trial"]), proposed["placed"]
        return self.placed[key][0].architecture

    def train(self, key: str, seconds: float, epochs: int = FOLDS * EPOCHS) -> None:
        """That many epochs of the trial, and its end."""
        spec, placed = self.placed[key]
        ends = [placed + (number + 1) * seconds for number in range(epochs)]
        rows = [
            {"epoch": number, "score": 0.5, "began": end - seconds, "ended": end, "finished": number == FOLDS * EPOCHS}
            for number, end in enumerate(ends, start=1)
        ]
        storage.write_json(storage.join(spec.out, HISTORY), rows)
        for row in rows[:-1]:
            self.searcher.on_trial_result(key, row)
        self.searcher.on_trial_complete(key, rows[-1])


ONE: dict[str, Any] = {"architectures": ["unet"]}


@pytest.mark.parametrize(
    ("budget", "spent", "fits"),
    [
        ({"hours": 1}, Spent(seconds=48 * MINUTE - 1), True),
        ({"hours": 1}, Spent(seconds=48 * MINUTE + 1), False),
        ({"cost": 120, "price_per_node_hour": 60}, Spent(node_seconds=84 * MINUTE - 1), True),
        ({"cost": 120, "price_per_node_hour": 60}, Spent(node_seconds=84 * MINUTE + 1), False),
        ({"hours": 1, "cost": 120, "price_per_node_hour": 60}, Spent(48 * MINUTE - 1, 0, 84 * MINUTE + 1), False),
        ({"price_per_node_hour": 60}, Spent(seconds=1e9, node_seconds=1e9), True),
    ],
)
def test_a_trial_is_placed_where_it_and_the_winner_still_fit(
    tmp_path: Path, budget: dict[str, float], spent: Spent, fits: bool
) -> None:
    """Six minutes each; a cost is of three nodes, for those twelve minutes."""
    driver = Driver(tmp_path, Spent(), budget=budget, **ONE)
    assert driver.ask("a") == "unet"
    driver.train("a", MINUTE)
    driver.start(spent)  # which knows from what is stored how fast the first one was
    driver.spending.nodes = 3
    assert driver.ask("b") == ("unet" if fits else Searcher.FINISHED)


def test_what_is_placed_counts_and_what_is_stopped_early_leaves_room(tmp_path: Path) -> None:
    """A trial holds two GPUs for six minutes, and its winner's two folds one for three minutes each."""
    changes = {"budget": {"gpu_hours": 1}, "resources": {"max_concurrent": 8}, **ONE}
    driver = Driver(tmp_path, Spent(), Places(4, 2, trial_gpus=2.0, winner_gpus=1.0), **changes)
    driver.ask("measured")
    driver.train("measured", MINUTE)
    assert [driver.ask(key) for key in "abcd"] == ["unet"] * 4, "54 GPU minutes, the winner's 6 among them"
    assert [driver.ask("e"), driver.ask("e")] == [None, None], "asked again: something may be stopped early"
    driver.train("b", MINUTE, epochs=1)
    assert driver.ask("e") == "unet"
    assert driver.ask("f") is None


@pytest.mark.parametrize(("places", "placed"), [(1, 8), (2, 18)])
def test_trials_that_wait_for_room_take_their_turn(tmp_path: Path, places: int, placed: int) -> None:
    """Six minutes each, one or two at a time, in 59 minutes less the winner's six (three where both folds train)."""
    driver = Driver(tmp_path, Spent(), Places(places, places), budget={"hours": 1}, **ONE)
    driver.ask("measured")
    driver.train("measured", MINUTE)
    driver.start(Spent(seconds=MINUTE))
    assert [driver.ask(f"{number}") for number in range(placed + 1)] == ["unet"] * placed + [None]


def test_while_nothing_is_measured_trials_are_placed_until_the_budget_is_spent(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Spent(seconds=59 * MINUTE), budget={"hours": 1}, **ONE)
    assert [driver.ask(key) for key in "ab"] == ["unet"] * 2
    driver.start(Spent(seconds=61 * MINUTE))
    assert [driver.ask(key) for key in "abc"] == ["unet", "unet", None], "what has begun is finished"


def test_trials_of_a_cheaper_architecture_may_still_fit(tmp_path: Path) -> None:
    driver = Driver(tmp_path, Spent(), budget={"hours": 1}, trials=8)
    assert [driver.ask(key) for key in "ab"] == ["unet", "joint_unet"]
    driver.train("a", MINUTE)
    driver.train("b", MINUTE / 6)
    driver.start(Spent(seconds=51.9 * MINUTE))
    for key in "cde":
        assert driver.ask(key) == "joint_unet", "one minute, and seven for both winners"
        driver.train(key, MINUTE / 6)
    assert driver.ask("f") == Searcher.FINISHED, "it has its share of the trials"


def test_seeds_and_more_trainings_at_a_time_change_what_is_kept_for_winners(tmp_path: Path) -> None:
    def fits(seeds: int, winners: int, minutes: float) -> bool:
        driver = Driver(tmp_path, Spent(), Places(winners=winners), budget={"hours": 1}, seeds=seeds, **ONE)
        driver.ask("a")
        driver.train("a", MINUTE)
        driver.start(Spent(seconds=(60 - minutes) * MINUTE))
        return driver.ask("b") == "unet"

    assert (fits(3, 1, 24.1), fits(3, 1, 23.9)) == (True, False), "6 and 3 × 6 minutes"
    assert (fits(3, 4, 12.1), fits(3, 4, 11.9)) == (True, False), "6 and two rounds of 3 minutes"


def test_longer_trainings_that_may_be_asked_for_are_reckoned_with(tmp_path: Path) -> None:
    parameters = {**SMALL["parameters"], "training.epochs": {"choice": [EPOCHS, 3 * EPOCHS]}}
    driver = Driver(tmp_path, Spent(), budget={"hours": 1}, parameters=parameters, **ONE)
    driver.ask("a")
    driver.train("a", MINUTE)
    driver.start(Spent(seconds=25 * MINUTE))
    assert driver.ask("b") == Searcher.FINISHED, "18 and 18 minutes"


def test_a_start_that_is_killed_has_written_what_it_spent(tmp_path: Path) -> None:
    def seconds() -> float:
        return Spending(str(tmp_path)).now().seconds

    with Spending(str(tmp_path)) as spending:
        spending.begin(time.monotonic() - MINUTE, Budget(), lambda: 3, quiet())
        wait_for((tmp_path / FILE).exists)
        assert seconds() >= MINUTE, "as a next start would read it"
        spending.hold("a", 2.0)
        time.sleep(0.01)
        spending.hold("b", 0.5)
        spending.release("a")
        spending.release("b")
        before = spending.now()
        spent = spending.now()
        assert spent.node_seconds == pytest.approx(3 * spent.seconds)
        assert 0.02 <= spent.gpu_seconds == before.gpu_seconds < 2.5 * (spent.seconds - MINUTE)
    first = Spending(str(tmp_path)).now()
    assert first.seconds >= spent.seconds
    with Spending(str(tmp_path)) as spending:
        assert spending.now() == first, "a start that does nothing costs nothing"
        spending.begin(time.monotonic() - MINUTE, Budget(), lambda: 3, quiet())
    assert seconds() >= first.seconds + MINUTE


def test_an_inner_study_gets_an_equal_share_of_what_is_left() -> None:
    budget = Budget.model_validate({"hours": 4, "cost": 8, "price_per_node_hour": 2})
    share = budget.share(Spent(seconds=3600, node_seconds=3600).amounts(2.0), 3)
    assert (share.limits, share.price_per_node_hour) == ({"hours": 1.0, "cost": 2.0}, 2.0)


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, ["--cost", "40"], "budget: cost: 40: what does a node cost? Set budget.price_per_node_hour in the space"),
        ({"budget": {"cost": 40}}, [], "budget: cost: 40: what does a node cost?"),
        ({}, ["--hours", "0"], "budget.hours: 0.0: Input should be greater than 0"),
        ({}, ["--gpu-hours", "nan"], "budget.gpu_hours: "),
        ({"budget": {"ours": 2}}, [], "budget.ours: no such field; fields: hours, gpu_hours, cost"),
        ({"budget": 3}, ["--hours", "1"], "budget"),
        (
            {"parameters": {}, "trials": 0, "scheduler": {"name": "asha"}}, ["--hours", "1"],
            "budget: has no effect without parameters: nothing is searched. Leave it out",
        ),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_kept_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], options: list[str], says: str
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
    asked = command(tmp_path, str(tmp_path / "none"), tmp_path / "study")
    assert main([*asked[3:], *options]) == 2
    assert says in capfd.readouterr().err


def test_options_replace_what_the_space_says_of_the_budget(tmp_path: Path) -> None:
    priced = {"hours": 2.0, "cost": 40, "price_per_node_hour": 3.2}
    plain = space(tmp_path, budget=priced)
    loaded = SearchSpace.load(tmp_path / "space.yaml", budget={"cost": 10, "gpu_hours": 4})
    assert loaded.budget.given == {"hours": 2.0, "gpu_hours": 4, "cost": 10, "price_per_node_hour": 3.2}
    assert loaded.digest == plain.digest == space(tmp_path).digest, "it may change when a study is resumed"


@pytest.mark.usefixtures("ray_cluster")
def test_gpu_hours_without_gpus_are_refused(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with pytest.raises(ConfigError, match=r"budget\.gpu_hours: 8: a budget of GPU hours has no effect without GPUs"):
        search(space(tmp_path, budget={"gpu_hours": 8}), tiny_phantom, str(out), progress=quiet())
    assert not out.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_ends_when_its_hours_do_and_goes_on_with_more(
    tiny_phantom: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"

    def go_on(trials: int, **budget: float) -> dict[str, Any]:
        asked = space(tmp_path, **ONE, trials=trials, budget=budget, scheduler={"name": "none"})
        return search(asked, tiny_phantom, str(out), resume=out.exists(), progress=quiet())

    with pytest.raises(
        StudyFailed, match=r"no more fit into the budget \(.* of 1e-06 hours spent\): give more --hours"
    ):
        go_on(1, hours=1e-6)
    first = go_on(1, price_per_node_hour=3.2)
    assert (first["stopped_by"], sum(first["trials"].values())) == ("trials", 1)
    assert first["spent"]["cost"] == pytest.approx(3.2 * first["spent"]["hours"]), "of one node"
    assert first["spent"]["gpu_hours"] == 0
    hours = first["spent"]["hours"] + 4 / 3600
    second = go_on(10_000, hours=hours)
    ended = sum(second["trials"].values())
    assert 1 <= ended < 10_000
    assert (second["stopped_by"], second["budget"]) == ("hours", {"trials": 10_000, "hours": hours})
    assert second["spent"]["hours"] > first["spent"]["hours"], "of all starts"
    assert second["best"]["unet"]["crossval"]["dice_all"]["n"] == FOLDS
    assert {trial.state.name for trial in studies_of(out)["unet"].trials} == {"COMPLETE"}, "none was cut off"
    print_study(second)
    line = f"{ended} of 10000 trials: {second['spent']['hours']:.3g} of {hours:g} hours spent; no more would have ended"
    assert line in capsys.readouterr().out
    assert line in Path(report(str(out))).read_text()
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.*") if file.is_file()}
    assert go_on(10_000, hours=hours) == second
    assert times == {file: file.stat().st_mtime_ns for file in times}, "nothing is searched or written again"
    third = go_on(ended + 2, hours=24.0)
    assert (third["stopped_by"], sum(third["trials"].values())) == ("trials", ended + 2)
    assert third["spent"]["hours"] > second["spent"]["hours"]

"""What a sampler proposes again is answered, not trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher
from small_study import outcome, space, studies_of
from tiny import quiet

from braintum import storage
from braintum.reporting.html import report
from braintum.tuning.begin import open_studies, record
from braintum.tuning.budget import Allowance
from braintum.tuning.location import Location
from braintum.tuning.records import HISTORY, REPEATS, own_trials
from braintum.tuning.repeats import is_exhausted, repeats
from braintum.tuning.searcher import OptunaSearcher
from braintum.tuning.slots import Places, Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending
from braintum.tuning.study import search
from braintum.tuning.trial import FAILED, TrialSpec

FOUR: dict[str, Any] = {
    "architectures": ["unet"], "trials": 12, "scheduler": {"name": "none"}, "resources": {"max_concurrent": 1},
    "sampler": {"name": "random", "seed": 0},
    "parameters": {"optim.lr": {"choice": [1e-3, 1e-2]}, "model.attention": {"choice": ["none", "gate"]}},
}  # fmt: skip
"""More trials than there are settings."""


class Driver:
    """A search in a file of Optuna's, without Ray: what Tune would ask its searcher, and tell it."""

    def __init__(self, searched: SearchSpace, out: Path) -> None:
        self._space, self._out = searched, out
        out.mkdir(exist_ok=True)
        location = Location.of(None, str(out))
        about = record(searched, "data", "digest", location)
        self._opened = location.open()
        self.studies = open_studies(searched, location, self._opened.__enter__(), about, None)
        allowance = Allowance(searched, self.studies, Spending(str(out)), Places, 2)
        self.searcher = OptunaSearcher(searched, self.studies, self._place, allowance, Slots(1, 1, {"CPU": 1.0}))
        self._asked = 0

    def close(self) -> None:
        self._opened.__exit__(None, None, None)

    def ask(self) -> tuple[str, dict[str, Any]] | None:
        """The next trial and its Experiment but for the seed; None where Tune would ask again later, or not."""
        self._asked += 1
        found = self.searcher.suggest(str(self._asked))
        if found is None or found == Searcher.FINISHED:
            return None
        del found["trial"]["experiment"]["training"]["seed"]
        return str(self._asked), found["trial"]["experiment"]

    def finish(self, key: str, score: float) -> None:
        self.searcher.on_trial_result(key, {"epoch": 1, "score": score / 2, "again": True})
        self.searcher.on_trial_complete(key, {"epoch": 2, "score": score, "finished": True, "again": True})

    def _place(self, architecture: str, number: int, name: str, values: dict[str, Any]) -> TrialSpec:
        experiment = self._space.experiment(architecture, {"training.seed": number, **values})
        out = str(self._out / "trials" / str(number))
        return TrialSpec(architecture, number, experiment.to_dict(), "", out, 2, self._space.score)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_every_setting_is_trained_once(tmp_path: Path, sampler: str) -> None:
    """What is known is told with its values; the study ends when nothing new comes, here and when it is resumed."""
    searched = space(tmp_path, **{**FOUR, "sampler": {"name": sampler, "seed": 0}})
    driver, trained = Driver(searched, tmp_path / "out"), []
    while (asked := driver.ask()) is not None:
        trained.append(asked[1])
        driver.finish(asked[0], len(trained) / 10)
    study = driver.studies["unet"]
    assert len(own_trials(study)) == len(trained) <= 4
    assert all(trained.count(settings) == 1 for settings in trained)
    assert sampler != "random" or len(trained) == 4, "and it finds them all"
    assert is_exhausted(study.get_trials())
    for trial in study.trials:
        if REPEATS in trial.user_attrs:
            known = study.trials[trial.user_attrs[REPEATS]]
            assert (trial.params, trial.value, trial.intermediate_values, trial.state) == (
                known.params, known.value, known.intermediate_values, known.state,
            )  # fmt: skip
    driver.close()
    again = Driver(searched, tmp_path / "out")
    assert again.ask() is None
    assert repeats(again.studies["unet"]) == len(study.trials) - len(trained), "it does not ask anew"
    again.close()


def test_a_search_that_is_stopped_between_trials_is_the_undisturbed_one(tmp_path: Path) -> None:
    searched = space(tmp_path, **FOUR)
    for name in ("calm", "stopped"):
        driver = Driver(searched, tmp_path / name)
        while (asked := driver.ask()) is not None:
            driver.finish(asked[0], asked[1]["optim"]["lr"])
            if name == "stopped":
                driver.close()
                driver = Driver(searched, tmp_path / name)
        driver.close()
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "calm")


def test_what_did_not_finish_may_be_tried_again(tmp_path: Path) -> None:
    driver = Driver(space(tmp_path, **FOUR), tmp_path / "out")
    trained = []
    while (asked := driver.ask()) is not None:
        trained.append(json.dumps(asked[1]))
        if len(trained) % 2:
            failed = {"outcome": FAILED, "failure": "no memory", "epoch": 0, "score": 0.0, "finished": False}
            driver.searcher.on_trial_complete(asked[0], failed)
        else:
            last = {"epoch": 1, "score": 0.1, "finished": False, "again": True}
            driver.searcher.on_trial_complete(asked[0], last)  # a scheduler stopped it
    assert len(trained) == 12 > len(set(trained))
    assert repeats(driver.studies["unet"]) == 0
    driver.close()


def test_what_was_stopped_after_a_fold_is_gone_on_with(tmp_path: Path) -> None:
    one = space(tmp_path, **{**FOUR, "parameters": {"optim.lr": {"choice": [1e-3]}}, "trials": 4})
    driver, specs = Driver(one, tmp_path / "out"), []
    for number in range(4):
        found = driver.searcher.suggest(str(number))
        assert isinstance(found, dict)
        specs.append(found["trial"])
        if number:  # the first one is stopped in its first fold
            row = {"epoch": 1, "fold": "1", "epoch_in_fold": 1, "kept_epoch": 1, "fold_score": 0.1, "folds_done": 1}
            storage.write_json(str(Path(specs[-1]["out"]) / HISTORY), [row])
        last = {"epoch": 1, "score": 0.1, "finished": False, "again": True}
        driver.searcher.on_trial_complete(str(number), last)
        if number == 2:
            driver.close()
            driver = Driver(one, tmp_path / "out")
    driver.close()
    assert [spec["after"] for spec in specs] == [None, None, specs[1]["out"], specs[2]["out"]]
    assert [spec["experiment"]["training"]["seed"] for spec in specs] == [0, 1, 1, 1]


def test_nothing_is_trained_twice_at_a_time(tmp_path: Path) -> None:
    """While it runs, what is proposed again is put off: Tune asks again, and hears of other trials in between."""
    driver = Driver(space(tmp_path, **FOUR), tmp_path / "out")
    running = [asked for asked in (driver.ask() for _ in range(20)) if asked is not None]
    assert len(running) == len({json.dumps(settings) for _, settings in running}) == 4
    put_off = [trial for trial in driver.studies["unet"].trials if REPEATS in trial.user_attrs]
    assert len(put_off) == 16
    assert {trial.state.name for trial in put_off} == {"FAIL"}
    for key, _ in running:
        driver.finish(key, 0.5)
    assert [trial.state.name for trial in own_trials(driver.studies["unet"])] == ["COMPLETE"] * 4
    driver.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_of_few_settings_ends_with_them(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    two = space(tmp_path, **{**FOUR, "parameters": {"optim.lr": {"choice": [1e-3, 1e-2]}}})
    summary = search(two, tiny_phantom, str(out), progress=quiet())
    assert summary["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert summary["repeats"] == {"unet": len(studies_of(out)["unet"].trials) - 2}
    names = {trial["directory"] for trial in storage.read_table(str(out / "trials.parquet")).to_pylist()}
    assert names == {str(place) for place in (out / "trials").iterdir()}
    assert len(names) == 2
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.*") if file.is_file()}
    assert search(two, tiny_phantom, str(out), resume=True, progress=quiet()) == summary
    assert written == {file: file.stat().st_mtime_ns for file in written}
    assert Path(report(str(out))).exists()
    assert optuna.importance.get_param_importances(studies_of(out)["unet"]), "the dashboard has what it needs"

"""Every sampler, through the searcher that asks it: what it may propose, and that it is a function of the study."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
import yaml
from command_line import refused
from ray.tune.search import Searcher
from scipy.stats.qmc import discrepancy
from small_study import SMALL, space

from braintum.tuning.budget import Allowance
from braintum.tuning.parameter import same
from braintum.tuning.parts import Sampler
from braintum.tuning.records import OBJECTIVES
from braintum.tuning.samplers import build_sampler, seed_of
from braintum.tuning.searcher import OptunaSearcher
from braintum.tuning.slots import Places, Slots
from braintum.tuning.space import SearchSpace
from braintum.tuning.spending import Spending
from braintum.tuning.trial import FAILED, TrialSpec

SAMPLERS = get_args(Sampler.model_fields["name"].annotation)
MIXED: dict[str, Any] = {
    "optim.lr": {"log_uniform": [1e-5, 1e-1]},
    "loss.segmentation_weight": {"uniform": [0.5, 2.0]},
    "model.width": {"int": [1, 3]},
    "model.attention": {"choice": ["none", "gate", "se"]},
    "model.attention_width": {"choice": [0.25, 0.5], "when": {"model.attention": ["gate", "se"]}},
}


class Search:
    """A search without Ray in a file of Optuna's, one trial at a time; `value` is what a trial's parameters score."""

    def __init__(self, folder: Path, sampler: str, **changes: Any) -> None:
        numbers = {} if sampler == "grid" else MIXED
        listed = {path: of for path, of in MIXED.items() if "int" in of or "choice" in of}
        changes = {"trials": 12, "scheduler": {"name": "none"}, "parameters": numbers or listed, **changes}
        self.space: SearchSpace = space(folder, sampler={"name": sampler, "seed": 3}, **changes)
        self.file, self.asked = folder / "optuna.db", 0
        self.open()

    def open(self) -> None:
        """As a driver that starts, or that starts again."""
        storage = f"sqlite:///{self.file}"
        self.studies = {}
        for name in self.space.shares():
            known = self.file.exists() and name in optuna.get_all_study_names(storage)
            self.studies[name] = study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
            if not known:
                for architecture in self.space.architectures if self.space.joint else [name]:
                    study.enqueue_trial(self.space.defaults(architecture))
        allowance = Allowance(self.space, self.studies, Spending(str(self.file.parent)), Places, 2)
        self.searcher = OptunaSearcher(self.space, self.studies, self._place, allowance, Slots(1, 1, {"CPU": 1.0}))

    def _place(self, architecture: str, number: int, name: str, values: dict[str, Any]) -> TrialSpec:
        settings = self.space.experiment(architecture, values).to_dict()
        return TrialSpec(architecture, number, settings, "", "/none", 2, self.space.score)

    def run(self, most: int = 10_000, value: Any = None) -> list[dict[str, Any]]:
        """The parameters of the next so many trials; each third one fails."""
        found = []
        for _ in range(most):
            key = str(self.asked)
            proposed = self.searcher.suggest(key)
            if proposed == Searcher.FINISHED:
                break
            assert isinstance(proposed, dict)
            self.asked += 1
            found.append(proposed["params"])
            number = proposed["trial"]["number"]
            if value is None and number % 3 == 2:
                result = {"outcome": FAILED, "failure": "nan", "finished": False, "epoch": 0, "score": 0.0}
            else:
                score = math.sin(number) if value is None else value(proposed["params"])
                result = {"epoch": 6, "score": score, "finished": True, "began": 0.0, "ended": 1.0}
            self.searcher.on_trial_complete(key, result)
        return found


@pytest.mark.parametrize("sampler", SAMPLERS)
class TestSampler:
    @pytest.mark.parametrize("joint", [False, True])
    def test_proposes_what_the_space_allows(self, tmp_path: Path, sampler: str, joint: bool) -> None:
        search = Search(tmp_path, sampler, joint=joint, architectures=["unet", "attention_unet"], score={"dice": 1.0})
        found = search.run()
        assert len(found) == 12
        for params in found:
            assert all(params[path] in of for path, of in search.space.parameters.items() if path in params)
            assert ("model.attention_width" in params) == (params["model.attention"] != "none")
            assert ("model.name" in params) == joint
        assert len({str(params) for params in found}) > 5, "it does not propose the same again and again"

    def test_a_study_that_was_resumed_asks_as_if_undisturbed(self, tmp_path: Path, sampler: str) -> None:
        calm = Search(tmp_path / "calm", sampler, architectures=["joint_unet"]).run()
        disturbed = Search(tmp_path / "disturbed", sampler, architectures=["joint_unet"])
        found = []
        for most in (1, 4, 2, 5):
            disturbed.open()
            found += disturbed.run(most)
        assert found == calm, "bit for bit"
        other = Search(tmp_path / "other", sampler, architectures=["joint_unet"])
        other.space = other.space.model_copy(update={"sampler": Sampler(name=sampler, seed=4)})
        other.open()
        assert other.run()[1:] != calm[1:], "another seed"

    def test_leaves_no_pickle_in_the_storage(self, tmp_path: Path, sampler: str) -> None:
        search = Search(tmp_path, sampler, architectures=["joint_unet"])
        search.run(value=lambda params: params["model.width"])
        with contextlib.closing(sqlite3.connect(search.file)) as database:
            attributes = [
                str(row)
                for table in ("trial_system_attributes", "study_system_attributes")
                for row in database.execute(f"SELECT key, value_json FROM {table}")
            ]
        assert not [text for text in attributes if "cma" in text or "8004" in text]


def sphere(params: dict[str, Any]) -> float:
    """Best at a learning rate of 0.003 and a weight of 1.6."""
    return (
        -((math.log10(params["optim.lr"] / 0.003) / 4) ** 2) - ((params["loss.segmentation_weight"] - 1.6) / 1.5) ** 2
    )


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "tpe"])
def test_what_models_the_score_finds_the_best_sooner_than_chance(tmp_path: Path, sampler: str) -> None:
    two = {path: MIXED[path] for path in ("optim.lr", "loss.segmentation_weight")}
    lasts = {}
    for name in (sampler, "random"):
        search = Search(tmp_path / name, name, architectures=["joint_unet"], trials=60, parameters=two)
        lasts[name] = float(np.mean([sphere(params) for params in search.run(value=sphere)[-15:]]))
    assert lasts[sampler] > lasts["random"] / 4, lasts


def test_nsga2_looks_at_every_objective_and_not_at_the_score(tmp_path: Path) -> None:
    """Dice wants a large weight, macro F1 a small one, a low learning rate is good for both; the score says nothing."""
    two = {path: MIXED[path] for path in ("optim.lr", "loss.segmentation_weight")}
    found = {}
    for name, objectives in (("both", ["dice", "macro_f1"]), ("none", [])):
        searched = space(
            tmp_path, sampler={"name": "nsga2", "seed": 3}, parameters=two, architectures=["joint_unet"],
            objectives=objectives,
        )  # fmt: skip
        study = optuna.create_study(direction="maximize")
        for number in range(200):
            study.sampler = build_sampler(searched, "joint_unet", number)
            trial = study.ask()
            _, params = searched.suggest(trial, "joint_unet")
            rate = (math.log10(params["optim.lr"]) + 5) / 4
            weight = (params["loss.segmentation_weight"] - 0.5) / 1.5
            reached = {"dice": weight - rate, "macro_f1": 1 - weight - rate}
            trial.set_user_attr(OBJECTIVES, {objective: reached[objective] for objective in objectives})
            study.tell(trial, 0.5)
        last = [trial.params for trial in study.trials[-60:]]
        weights = [params["loss.segmentation_weight"] for params in last]
        found[name] = (
            float(np.median([math.log10(params["optim.lr"]) for params in last])), min(weights), max(weights)
        )  # fmt: skip
    assert found["both"][0] < -4, "half of a random draw are above -3"
    assert found["both"][1] < 0.8, "a front reaches from one end"
    assert found["both"][2] > 1.7, "to the other"
    assert found["none"][0] > -3.5, "nothing leads there but the objectives"


def test_sobol_covers_the_space_more_evenly_than_chance(tmp_path: Path) -> None:
    two = {path: MIXED[path] for path in ("optim.lr", "loss.segmentation_weight")}
    uneven = {}
    for name in ("sobol", "random"):
        found = Search(tmp_path / name, name, architectures=["joint_unet"], trials=64, parameters=two).run()
        points = [[math.log10(p["optim.lr"] / 1e-5) / 4, (p["loss.segmentation_weight"] - 0.5) / 1.5] for p in found]
        uneven[name] = discrepancy(np.array(points[1:]))
    assert uneven["sobol"] < uneven["random"] / 2, uneven


@pytest.mark.parametrize("joint", [False, True])
def test_a_grid_takes_every_combination_once_and_ends(tmp_path: Path, joint: bool) -> None:
    """3 widths × (no attention, or 2 kinds × 2 widths) of each architecture, however many trials are asked for."""
    both = {"architectures": ["unet", "attention_unet"], "score": {"dice": 1.0}}
    search = Search(tmp_path, "grid", joint=joint, trials=500, **both)
    found = search.run()
    architectures = 2
    assert len(found) == 15 * architectures
    if joint:
        assert len({str(sorted(params.items())) for params in found}) == 30
    assert sum("model.attention_width" in params for params in found) == 12 * architectures
    search.open()
    assert search.run() == [], "a resume finds nothing left"


def test_a_grid_begins_with_the_bases_own_settings(tmp_path: Path) -> None:
    search = Search(tmp_path, "grid", architectures=["joint_unet"])
    first = search.run(1)[0]
    own = search.space.defaults("joint_unet")
    assert all(same(first[path], value) for path, value in own.items())


@pytest.mark.parametrize(
    ("sampler", "parameters", "says"),
    [
        ("grid", {"optim.lr": MIXED["optim.lr"]}, "parameters.optim.lr: sampler.name: grid: has no end of values"),
        ("grid", {"training.epochs": {"int": [1, 200_000]}}, "combinations are too many to list; use sobol"),
        ("cmaes", {"optim.lr": MIXED["optim.lr"]}, "cmaes: needs two numbers or more that every trial of unet has"),
        ("cmaes", {"model.attention": MIXED["model.attention"]}, "and there are none; use tpe"),
    ],
)
def test_what_a_sampler_cannot_search_is_refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, sampler: str, parameters: dict[str, Any], says: str
) -> None:

    file = tmp_path / "space.yaml"
    changes = {"sampler": {"name": sampler}, "parameters": parameters, "scheduler": {"name": "none"}}
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    refused(capfd, ["search", str(file), "--data", str(tmp_path), "--out", str(tmp_path / "out")], says)


def test_seeds_depend_on_every_part() -> None:
    assert len({seed_of(0, "ask", "unet", 1), seed_of(1, "ask", "unet", 1), seed_of(0, "ask", "unet", 2)}) == 3

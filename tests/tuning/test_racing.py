"""Who loses a race: by constructed shares, by chance, and in a study on real Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_study import outcome, space, studies_of
from tiny import TINY, interrupted_when, quiet

from braintum import storage
from braintum.config import Experiment
from braintum.data.table import load_table
from braintum.parts import Data
from braintum.reporting.html import report
from braintum.settings import ConfigError
from braintum.tuning.racing import Lost, Race, refuse_powerless, unit_of
from braintum.tuning.study import search
from braintum.tuning.trial import HISTORY, FoldShares, TrialSpec, write_shares

CASES = 12
FOLDS = 3


class Course:
    """Trials of a race whose slices' shares are given: two slices a case, so that a share is a case's too."""

    def __init__(self, folder: Path, level: float = 0.05) -> None:
        self.folder, self.race = folder, Race(level, FOLDS)
        self.rows: dict[int, list[dict[str, Any]]] = {}

    def spec(self, number: int) -> TrialSpec:
        return TrialSpec("unet", number, {}, "", str(self.folder / str(number)), FOLDS, {"dice": 1.0})

    def row(self, number: int, shares: np.ndarray | float, *, cases: bool = True, score: float | None = None) -> Any:
        """The last epoch of the trial's next fold; `score`: of the fold, where it is not the shares' mean."""
        rows = self.rows.setdefault(number, [])
        fold = len(rows) + 1
        share_R = np.repeat(np.broadcast_to(shares, CASES), 2)
        names = [f"{fold}-{i}" for i in range(2 * CASES)]
        of_case = [f"{fold}-{i // 2}" if cases else None for i in range(2 * CASES)]
        write_shares(self.spec(number).out, str(fold), FoldShares(names, of_case, share_R.tolist()))
        before = rows[-1]["score"] * (fold - 1) if rows else 0.0
        mean = float(share_R.mean()) if score is None else score
        rows.append({"epoch": fold, "folds_done": fold, "fold": str(fold), "score": (before + mean) / fold})
        storage.write_json(storage.join(self.spec(number).out, HISTORY), rows)
        return rows[-1]

    def ends_fold(self, number: int, shares: np.ndarray | float, **more: Any) -> Lost | None:
        return self.race.lost(self.spec(number), self.row(number, shares, **more))


SLOPE = np.linspace(0.4, 0.6, CASES)


def test_a_loser_is_stopped_after_its_first_fold_and_an_equal_trial_is_not(tmp_path: Path) -> None:
    course = Course(tmp_path)
    assert [course.ends_fold(0, SLOPE) for _ in range(FOLDS)] == [None] * FOLDS, "nobody to be beaten by"
    assert course.ends_fold(1, SLOPE) is None, "it ties on every case"
    lost = course.ends_fold(2, SLOPE - np.linspace(0.01, 0.1, CASES))
    assert lost is not None
    assert (lost.to, lost.folds, lost.difference) == (0, 1, pytest.approx(-0.055))
    assert lost.p == pytest.approx(2**-CASES * 2), "two looks, one rival that is as far"
    better = SLOPE + 0.1
    assert course.ends_fold(3, better) is None
    assert course.ends_fold(3, SLOPE - 0.3) is not None, "what it was in its first fold does not save it"


def test_a_trial_that_is_behind_on_few_cases_goes_on(tmp_path: Path) -> None:
    course = Course(tmp_path)
    for _ in range(FOLDS):
        course.ends_fold(0, SLOPE)
    swapped = SLOPE[::-1] - 0.001
    assert course.ends_fold(1, swapped) is None


def test_a_trial_whose_score_is_not_below_goes_on(tmp_path: Path) -> None:
    """Macro F1 may say otherwise than whether single classes are right."""
    course = Course(tmp_path)
    for _ in range(FOLDS):
        course.ends_fold(0, SLOPE)
    assert course.ends_fold(1, SLOPE - 0.1, score=0.9) is None


def test_the_one_to_beat_is_the_best_of_those_that_are_furthest(tmp_path: Path) -> None:
    course = Course(tmp_path, level=0.2)
    for _ in range(FOLDS):
        course.ends_fold(0, SLOPE)
        course.ends_fold(1, SLOPE + 0.001)
    course.ends_fold(2, SLOPE + 0.2)  # lucky so far: it has not won yet
    lost = course.ends_fold(3, SLOPE - 0.1)
    assert lost is not None
    assert (lost.to, lost.p) == (1, pytest.approx(2**-CASES * 2 * 2)), "two looks, two complete rivals"
    course.race.drop(1)
    lost = course.ends_fold(4, SLOPE - 0.1)
    assert lost is not None
    assert lost.to == 0, "who has failed can no longer win"


def test_slices_stand_for_cases_that_are_not_known(tmp_path: Path) -> None:
    course = Course(tmp_path)
    for _ in range(FOLDS):
        course.ends_fold(0, SLOPE, cases=False)
    lost = course.ends_fold(1, SLOPE - 0.1, cases=False)
    assert lost is not None
    assert lost.p < 2**-CASES * 2, "more units, as if slices of a case were independent"


def test_who_resumes_does_not_ask_again_what_was_survived(tmp_path: Path) -> None:
    """Trial 1 ends its first fold before trial 0 is there to be lost to; told again of it, nobody stops it."""
    course = Course(tmp_path)
    told = course.row(1, SLOPE - 0.1)
    assert course.race.lost(course.spec(1), told) is None
    for _ in range(FOLDS):
        course.ends_fold(0, SLOPE)
    resumed = Race(0.05, FOLDS)
    resumed.refill(course.spec(0), [1, 2, 3])
    resumed.refill(course.spec(1), [1])
    assert resumed.lost(course.spec(1), told) is None
    unheard = course.row(1, SLOPE - 0.1)
    assert resumed.lost(course.spec(1), unheard) == course.race.lost(course.spec(1), unheard) != None  # noqa: E711


def test_of_equal_trials_no_more_are_stopped_than_the_level_says(tmp_path: Path) -> None:
    """Four trials of equal worth, one after another; the last is looked at after two folds, against three rivals."""
    draw, level, rounds = np.random.default_rng(0), 0.2, 250
    stopped = 0
    for number in range(rounds):
        course = Course(tmp_path / str(number), level)
        case_FC = draw.normal(0.5, 0.2, (FOLDS, CASES))
        for trial in range(4):
            looks = [course.ends_fold(trial, case_FC[fold] + draw.normal(0, 0.1, CASES)) for fold in range(FOLDS)]
        stopped += any(looks)
    assert stopped <= rounds * level + 3 * np.sqrt(rounds * level * (1 - level))
    assert stopped > 0, "the level is there to be used"


def test_a_level_that_nobody_can_reach_is_refused(tiny_phantom: str) -> None:
    table = load_table(tiny_phantom, Data(image_size=32))
    assert unit_of(table) == "case"
    refuse_powerless(1e-4, table, 3)
    with pytest.raises(ConfigError, match=r"^racing\.level: 1e-05: no trial could ever be stopped: 16 cases .*"):
        refuse_powerless(1e-5, table, 3)


RACED: dict[str, Any] = {
    "architectures": ["unet"], "trials": 5, "folds": 3, "score": {"pixel_accuracy": 1.0},
    "resources": {"max_concurrent": 1}, "sampler": {"name": "random", "seed": 1}, "scheduler": {"name": "none"},
    "overrides": {**TINY, "training.epochs": 3, "training.batch_size": 4, "optim.lr": 3e-2},
    "parameters": {"optim.lr": {"choice": [3e-2, 1e-9]}},
    "racing": {"level": 0.1},
}  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_a_bad_configuration_is_stopped_after_its_first_fold_resumed_or_not(tiny_phantom: str, tmp_path: Path) -> None:
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    raced = space(tmp_path, **RACED)
    summary = search(raced, tiny_phantom, str(calm), progress=quiet())
    bad = {t.number for t in studies_of(calm)["unet"].trials if t.params["optim.lr"] == 1e-9}
    assert len(bad) >= 3
    racing = summary["racing"]
    after = {trial["trial"]: trial["folds"] for trial in racing["stopped"]}
    assert {number: after.get(number) for number in bad} == dict.fromkeys(bad, 1)
    for trial in studies_of(calm)["unet"].trials:
        assert trial.state.name == ("PRUNED" if trial.number in after else "COMPLETE")
        assert max(trial.intermediate_values) == 3 * after.get(trial.number, 3)
    assert all(trial["p"] <= 0.1 and trial["difference"] < 0 for trial in racing["stopped"])
    assert (racing["unit"], racing["looks"]) == ("case", 2)
    saved = sum(3 * (3 - folds) for folds in after.values())
    assert racing["epochs"] == {"all": 5 * 9, "saved": saved}
    assert f"{saved} of the 45 epochs" in Path(report(str(calm))).read_text()

    second = stopped / "trials" / "unet-2" / HISTORY
    with pytest.raises(KeyboardInterrupt), interrupted_when(second.exists):
        search(raced, tiny_phantom, str(stopped), progress=quiet())
    assert len(json.loads(second.read_text())) < 9, "it had ended before it was stopped"
    resumed = search(raced, tiny_phantom, str(stopped), resume=True, progress=quiet())
    assert outcome(stopped) == outcome(calm)
    assert resumed["racing"] == racing


@pytest.mark.usefixtures("ray_cluster")
def test_costs_are_objectives_and_the_knee_of_the_front_wins(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    changes: dict[str, Any] = {
        "architectures": ["unet"], "trials": 3, "scheduler": {"name": "none"}, "score": {"dice_all": 1.0},
        "overrides": {**TINY, "training.epochs": 1}, "objectives": ["dice_all", "latency", "parameters"],
        "sampler": {"name": "random", "seed": 0}, "parameters": {"model.width": {"choice": [2, 4]}},
    }  # fmt: skip
    energy = space(tmp_path, **{**changes, "objectives": ["dice_all", "energy"]})
    with pytest.raises(ConfigError, match=r"^objectives: energy: a CPU does not report it; leave it out.*") as refused:
        search(energy, tiny_phantom, str(out), progress=quiet())
    assert "\n" not in str(refused.value)
    assert not out.exists()
    summary = search(space(tmp_path, **changes), tiny_phantom, str(out), progress=quiet())
    front = summary["pareto"]["unet"]
    (chosen,) = [point for point in front if point["chosen"]]
    assert summary["best"]["unet"]["trial"] == chosen["trial"]
    experiment = Experiment.from_dict(summary["best"]["unet"]["experiment"])
    table = load_table(tiny_phantom, experiment.data)
    network = experiment.model.build(1, len(table.classes), len(table.masks))
    assert chosen["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert all(0 < point["latency"] < 1 for point in front)
    page = Path(report(str(out))).read_text()
    assert f"parameters {chosen['parameters']:,}, chosen" in page
    assert "(the knee)" in page


def test_several_objectives_of_one_name_and_shared_gpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'latency' stands there twice; remove one"):
        space(tmp_path, objectives=["dice", "latency", "latency"])
    with pytest.raises(ConfigError, match="energy: a GPU reports that of all its trials"):
        space(tmp_path, objectives=["dice", "energy"], resources={"trials_per_gpu": 2})
    with pytest.raises(ConfigError, match="'latency' is not known after every epoch"):
        space(tmp_path, score={"latency": 1.0})
    assert space(tmp_path).digest == space(tmp_path, trials=8).digest != space(tmp_path, racing={}).digest
    assert space(tmp_path, racing={}).racing == space(tmp_path, racing={"level": 0.05}).racing

"""Nested studies on real Ray: no search sees what its winners are scored on, and each goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import SMALL, outcome, space
from tiny import TINY, interrupted_when, quiet

from braintum import storage
from braintum.cli import main
from braintum.console import print_nested
from braintum.data.ingest.phantom import phantom_rows
from braintum.data.schema import DataError, Row
from braintum.data.shards import write_dataset
from braintum.evaluation.summary import summarise
from braintum.reporting.html import report
from braintum.settings import ConfigError
from braintum.training.checkpoint import load_model
from braintum.tuning.nested import nested_search
from braintum.tuning.study import search

CHANGES: dict[str, Any] = {
    "architectures": ["joint_unet"],
    "overrides": {**TINY, "training.epochs": 1},
    "trials": 2,
    "resources": {"max_concurrent": 1},
    "scheduler": {"name": "none"},
}


def with_folds(out: Path, changed: Callable[[Row], Row] = lambda row: row) -> str:
    """A phantom set of three folds of its own, cut by case; every class is in each."""
    rows = list(phantom_rows(cases=24, slices_per_case=2, size=32, seed=0))
    folds = [replace(row, source_fold=str(1 + index // 8 % 3)) for index, row in enumerate(rows)]
    write_dataset(map(changed, folds), str(out), name="folds", provenance="a test", licence=None)
    return str(out)


@pytest.fixture(scope="module")
def nested(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nested study that nobody disturbed: two outer folds of three, two trials each."""
    folder = tmp_path_factory.mktemp("nested")
    out = folder / "study"
    asked = space(folder, **CHANGES, budget={"hours": 24, "price_per_node_hour": 2})
    nested_search(asked, with_folds(folder / "set"), str(out), progress=quiet())
    return out


def test_winners_are_scored_on_folds_that_their_search_never_saw(nested: Path) -> None:
    summary = storage.read_json(str(nested / "summary.json"))
    found = summary["nested"]["joint_unet"]
    assert sum(summary["trials"].values()) == 4
    inner_studies = [storage.read_json(str(nested / f"outer-{fold}" / "summary.json")) for fold in ("1", "2")]
    shares, spent = zip(*((study["budget"]["hours"], study["spent"]["hours"]) for study in inner_studies), strict=True)
    assert (summary["stopped_by"], summary["budget"]["hours"]) == ("trials", 24)
    assert (shares[0], shares[1]) == (12, pytest.approx(24 - spent[0], rel=1e-3)), "what is left, shared out"
    assert summary["spent"]["hours"] >= sum(spent)
    assert list(found["outer"]) == ["1", "2"]
    predictions = storage.read_table(str(nested / "predictions.parquet"))
    again = summarise(predictions)
    assert found["over_folds"] == again["over_folds"]
    for fold, winner in found["outer"].items():
        assert winner["metrics"] == again["folds"][fold]
        scored = (winner["metrics"]["dice"] + winner["metrics"]["macro_f1"]) / 2
        assert winner["nested"] == pytest.approx(scored), "the space's own score"
        inner = nested / f"outer-{fold}"
        history = storage.read_table(str(inner / "history.parquet"))
        assert set(history["fold"].to_pylist()) == {"1", "2", "3"} - {fold}
        chosen = storage.read_json(str(inner / "summary.json"))["best"]["joint_unet"]
        assert (winner["trial"], winner["selection"]) == (chosen["trial"], chosen["score"])
        ids = {row["slice_id"] for row in predictions.to_pylist() if row["fold"] == fold}
        assert len(ids) == 16, "all slices of the fold"
        (trained,) = load_model(
            str(inner / "crossval" / "joint_unet" / f"fold-{fold}" / "model.safetensors")
        ).trained_on
        assert trained is not None
        assert trained.slices == f"all but fold {fold} of the source"
    means = {key: sum(winner[key] for winner in found["outer"].values()) / 2 for key in ("selection", "nested")}
    expected = {**means, "difference": means["selection"] - means["nested"]}
    assert found["optimism"] == pytest.approx(expected)


def test_a_report_has_the_nested_score_beside_the_optimistic_one(
    nested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = storage.read_json(str(nested / "summary.json"))
    optimism = summary["nested"]["joint_unet"]["optimism"]
    print_nested(summary)
    printed = capsys.readouterr().out
    assert f"{optimism['selection']:.3f} │ {optimism['nested']:.3f}" in " ".join(printed.split())
    assert "trials of 2 studies: 4 complete" in printed
    assert f"4 of 4 trials: {summary['spent']['hours']:.3g} of 24 hours, " in printed
    page = Path(report(str(nested))).read_text()
    assert f"joint_unet: {optimism['selection']:.3f} chosen, {optimism['nested']:.3f} nested" in page
    assert "braintum search space.yaml --nested" in page
    again = yaml.safe_load((nested / "report" / "space.yaml").read_text())
    assert (again["trials"], again["seeds"]) == (2, 1)
    inner = Path(report(str(nested / "outer-2"))).read_text()
    assert "the search never saw fold 2" in inner
    assert "braintum train --config settings/joint_unet.yaml --fold 2 --folds 2" in inner


def test_what_is_left_out_changes_nothing_and_a_stopped_study_goes_on(nested: Path, tmp_path: Path) -> None:
    """Another dataset in which every slice of fold 1 is another picture, with another label; stopped in the middle."""

    def changed(row: Row) -> Row:
        if row.source_fold != "1":
            return row
        following = {"glioma": "meningioma", "meningioma": "pituitary", "pituitary": "glioma", "no_tumor": "no_tumor"}
        return replace(row, image_CHW=255 - row.image_CHW, label=following[str(row.label)])

    data, out = with_folds(tmp_path / "set", changed), tmp_path / "study"
    asked = space(tmp_path, **CHANGES)
    first = out / "outer-2" / "trials" / "joint_unet-0" / "history.json"
    with pytest.raises(KeyboardInterrupt), interrupted_when(first.exists):
        nested_search(asked, data, str(out), progress=quiet())
    with pytest.raises(DataError, match="not finished"):
        report(str(out))
    times = {file: file.stat().st_mtime_ns for file in (out / "outer-1").rglob("*.*") if file.is_file()}
    assert out / "outer-1" / "summary.json" in times
    resumed = nested_search(asked, data, str(out), resume=True, progress=quiet())
    assert times == {file: file.stat().st_mtime_ns for file in times}, "what is finished is not trained again"
    assert outcome(out / "outer-1") == outcome(nested / "outer-1"), "bit for bit"
    assert outcome(out / "outer-2") != outcome(nested / "outer-2"), "the others learn from fold 1"
    before, now = (
        storage.read_json(str(study / "summary.json"))["nested"]["joint_unet"]["outer"]["1"] for study in (nested, out)
    )
    assert before["experiment"] == now["experiment"]
    assert before["metrics"] != now["metrics"], "it is scored on other slices"
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.*") if file.is_file()}
    assert nested_search(asked, data, str(out), resume=True, progress=quiet()) == resumed
    assert times == {file: file.stat().st_mtime_ns for file in times}
    with pytest.raises(ConfigError, match=r"study\.json: nested was True there and is False now"):
        search(asked, data, str(out), resume=True, progress=quiet())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_joint_study_of_folds_that_are_cut_here(tiny_phantom: str, tmp_path: Path) -> None:
    """What each inner study chose is one architecture; folds are made of the cases that are left."""
    out = tmp_path / "study"
    both = {**CHANGES, "architectures": ["unet", "attention_unet"], "joint": True, "seeds": 2}
    summary = nested_search(space(tmp_path, **both), tiny_phantom, str(out), progress=quiet())
    found = summary["nested"]["tiny"]
    assert found["seeds"]["n"] == 2
    predictions = storage.read_table(str(out / "predictions.parquet"))
    assert len(predictions) == 2 * 48, "every slice, once a seed"
    assert found["over_folds"] == summarise(predictions)["over_folds"]
    for fold, winner in found["outer"].items():
        scores = {}
        with contextlib.closing(sqlite3.connect(out / f"outer-{fold}" / "optuna.db")) as database:
            (specs,) = zip(
                *database.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'spec'"), strict=True
            )
        assert all(json.loads(json.loads(spec))["outer"] == [fold, 2] for spec in specs)
        for row in storage.read_table(str(out / f"outer-{fold}" / "trials.parquet")).to_pylist():
            scores[row["score"]] = row["architecture"]
        assert winner["architecture"] == scores[max(scores)]
        assert [path.name for path in (out / f"outer-{fold}" / "crossval").iterdir()] == [winner["architecture"]]
    assert "Selection scores beside them: tiny: " in Path(report(str(out))).read_text()


def test_nested_without_parameters_is_refused(
    tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "space.yaml"
    kept = {field: value for field, value in SMALL.items() if field not in ("parameters", "trials", "scheduler")}
    file.write_text(yaml.safe_dump(kept))
    asked = ["search", str(file), "--nested", "--data", tiny_phantom, "--out", str(tmp_path / "study")]
    assert main(asked) == 2
    assert capfd.readouterr().err == (
        "braintum: --nested: has no effect without parameters: nothing is searched. Leave it out\n"
    )
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_folds_that_leave_nothing_to_search_on_are_refused(tmp_path: Path) -> None:
    def grouped(row: Row) -> Row:
        fold = "1" if row.source_fold == "1" else "2"
        return replace(row, source_fold=fold, group=fold, case_id=None)

    data = with_folds(tmp_path / "set", grouped)
    with pytest.raises(DataError, match="--nested: without outer fold 1: folds: 2: the data has only 1 groups"):
        nested_search(space(tmp_path, **CHANGES), data, str(tmp_path / "study"), progress=quiet())
    assert not (tmp_path / "study").exists()

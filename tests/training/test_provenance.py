"""What a checkpoint says that it was trained on, and that none starts a training that holds out what it has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, quiet

from braintum import storage
from braintum.config import Experiment
from braintum.data.folds import split
from braintum.data.table import SliceTable, load_table
from braintum.settings import ConfigError
from braintum.training.checkpoint import load_model, save_model
from braintum.training.crossval import fold_specs, leave_results
from braintum.training.fit import Fit
from braintum.training.progress import Progress
from braintum.training.provenance import UNKNOWN, TrainedOn, name_of
from braintum.training.run import RunSpec, run, say_start, say_start_of


def experiment_of(init_from: str | None = None, **settings: Any) -> Experiment:
    fixed = {"training.weights": "last", "training.early_stopping": None, "schedule.name": "constant"}
    return Experiment.load(
        None, {"model.name": "unet", **TINY, **fixed, "training.epochs": 1, "model.init_from": init_from, **settings}
    )


@pytest.fixture(scope="module")
def table(tiny_phantom: str) -> SliceTable:
    return load_table(tiny_phantom, experiment_of().data)


@pytest.fixture(scope="module")
def kept(tiny_phantom: str, table: SliceTable, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a run that holds out fold 1 of 3."""
    out = str(tmp_path_factory.mktemp("kept") / "run")
    list(run(RunSpec.of(experiment_of(), tiny_phantom, out, "1", 3), table))
    return f"{out}/model.safetensors"


def spec_of(url: str, data: str, fold: str | None, folds: int | None) -> RunSpec:
    return RunSpec.of(experiment_of(url), data, "/nowhere", fold, folds)


def moved(table: SliceTable, fold_R: list[str | None]) -> SliceTable:
    return replace(table, source_fold_R=fold_R)


def test_a_checkpoint_says_what_it_was_trained_on(table: SliceTable, kept: str) -> None:
    rows = split(table, "1", 3, seed=0).train
    assert load_model(kept).trained_on == (TrainedOn(table.digest, name_of(table, rows), "1", 3),)


def test_the_same_fold_is_taken_and_handed_on(
    tiny_phantom: str, table: SliceTable, kept: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = replace(spec_of(kept, tiny_phantom, "1", 3), out=str(tmp_path / "run"))
    say_start_of([spec], table, Progress("test"))
    assert "% of the weights; left fresh: none; not used: none\n" in capfd.readouterr().err
    list(run(spec, table))
    first = load_model(kept).trained_on
    assert load_model(f"{spec.out}/model.safetensors").trained_on == first + first
    assert storage.read_json(f"{spec.out}/summary.json")["init_from"]["trained_on"][0]["fold"] == "1"


@pytest.mark.parametrize(("fold", "folds"), [("2", 3), ("1", 4), (None, None)])
def test_what_has_seen_the_part_held_out_is_refused(
    tiny_phantom: str, table: SliceTable, kept: str, fold: str | None, folds: int | None
) -> None:
    spec = spec_of(kept, tiny_phantom, fold, folds)
    says = (
        f"^model.init_from: {kept}: trained on this dataset with fold 1 of 3 held out.*; train with --fold 1 --folds 3"
    )
    with pytest.raises(ConfigError, match=says):
        say_start_of([spec], table, quiet())
    with pytest.raises(ConfigError, match=says):  # by a worker, too
        Fit(experiment_of(kept), table, spec.split(table).train).run_epoch()


def test_a_crossval_and_a_trial_of_all_folds_are_refused(tiny_phantom: str, table: SliceTable, kept: str) -> None:
    specs = fold_specs(spec_of(kept, tiny_phantom, None, 3), table, 1)
    with pytest.raises(ConfigError, match="may have seen what is held out now"):
        say_start_of(specs, table, quiet())
    with pytest.raises(ConfigError, match="may have seen what is held out now"):
        say_start(experiment_of(kept), table, quiet())
    other = replace(table, digest="of another dataset")
    say_start_of(specs, other, quiet())
    say_start(experiment_of(kept), other, quiet())


def test_the_other_split_and_what_came_before_count_too(
    tiny_phantom: str, table: SliceTable, kept: str, tmp_path: Path
) -> None:
    url, rows = str(tmp_path / "model.safetensors"), split(table, None, None, seed=0).train
    model = load_model(kept)
    begun = (TrainedOn("of another dataset", "", None, None), TrainedOn(table.digest, name_of(table, rows), None, None))
    about: dict[str, Any] = {"in_channels": 1, "classes": model.classes, "masks": model.masks}
    save_model(url, model.model.state_dict(), model.experiment, **about, trained_on=begun)
    say_start_of([spec_of(url, tiny_phantom, None, None)], table, quiet())
    with pytest.raises(ConfigError, match=r"with 20 % held out, .*; train with no --fold and the same data.classes"):
        say_start_of([spec_of(url, tiny_phantom, "1", 3)], table, quiet())


def test_a_checkpoint_that_does_not_say_is_taken_and_that_is_said(
    tiny_phantom: str, table: SliceTable, kept: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, model = str(tmp_path / "model.safetensors"), load_model(kept)
    weights = model.model.state_dict()
    about: dict[str, Any] = {"in_channels": 1, "classes": model.classes, "masks": model.masks}
    save_model(url, weights, model.experiment, **about)
    content = Path(url).read_bytes()
    assert load_model(url).trained_on == UNKNOWN
    old = content.replace(b', \\"trained_on\\": [null]', b"")  # as they were before
    size = int.from_bytes(old[:8], "little") - (len(content) - len(old))
    Path(url).write_bytes(size.to_bytes(8, "little") + old[8:])
    loaded = load_model(url)
    assert len(old) < len(content)
    assert loaded.trained_on == UNKNOWN
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    say_start_of([spec_of(url, tiny_phantom, "2", 3)], table, Progress("test"))
    assert "not used: none; what it was trained on is not known\n" in capfd.readouterr().err


def test_names_of_slices(table: SliceTable) -> None:
    """A fold of the source's is the same whatever classes are looked at; one that is cut is not."""
    rows = np.arange(len(table))
    source = moved(table, [("test", "a", "b", "c")[row % 4] for row in rows])
    less = moved(table, [None if fold == "c" else fold for fold in source.source_fold_R])
    all_but_a = rows[[fold in ("b", "c") for fold in source.source_fold_R]]
    assert name_of(source, all_but_a) == "all but fold a of the source"
    assert name_of(less, rows[[fold in ("b", None) for fold in less.source_fold_R]]) == name_of(source, all_but_a)
    assert len({name_of(source, all_but_a), name_of(source, all_but_a[1:]), name_of(table, all_but_a)}) == 3
    assert name_of(table, rows[::-1]) == name_of(table, rows)
    one = moved(table, [("1", None)[row % 2] for row in rows])  # folds are cut, whatever this is called
    assert name_of(one, rows[1::2]) == name_of(table, rows[1::2])


def test_folds_that_began_with_different_weights_are_not_averaged(
    tiny_phantom: str, table: SliceTable, kept: str, tmp_path: Path
) -> None:
    url = str(tmp_path / "model.safetensors")
    model = load_model(kept)
    whole = RunSpec.of(experiment_of(url), tiny_phantom, str(tmp_path / "out"), None, 3)
    specs = fold_specs(whole, table, 1)[:2]
    about: dict[str, Any] = {"in_channels": 1, "classes": model.classes, "masks": model.masks}
    for scale, spec in enumerate(specs, start=1):
        weights = {name: scale * value for name, value in model.model.state_dict().items()}
        save_model(url, weights, model.experiment, **about)
        list(run(spec, table))
    with pytest.raises(ConfigError, match=rf"{url}: has changed between the folds: {specs[0].out} .*, {specs[1].out} "):
        leave_results(whole.out, specs, {})
    assert not storage.exists(f"{whole.out}/summary.json")
    storage.remove(specs[0].out)
    list(run(specs[0], table))
    leave_results(whole.out, specs, {})
    assert storage.exists(f"{whole.out}/summary.json")

"""A cascade, cross-validated: its segmenter and its classifier of crops as ordinary runs, then both as one.

OUT/experiment.json  segmenter/ classifier/ (a cross-validation each)  history.parquet  predictions.parquet
summary.json

The classifier learns from crops around true tumours; the cascade is scored on crops around what the segmenter of the
same fold found on the slices held out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import torch

from braintum import storage
from braintum.config import Experiment, digest_of
from braintum.connect import connect, end_tasks
from braintum.data.folds import DEFAULT_FOLDS
from braintum.data.shards import read_card
from braintum.data.shared import share_table
from braintum.data.table import SliceTable, class_index, class_names
from braintum.evaluation.cascade import NAME, as_one, classified_crops
from braintum.settings import ConfigError
from braintum.training.checkpoint import MODEL, load_model
from braintum.training.crossval import crossval, fold_specs, leave_results, outcome
from braintum.training.device import autocast_dtype, keep_freed_memory, memory_format, pick_device
from braintum.training.progress import Progress
from braintum.training.run import RunSpec, about_run, prepare_out, refuse_at_once, say_start_of
from braintum.training.worker import MAX_FAILURES, cpus_per_worker, gpus_for, refuse_unplaceable

OF_PART = ("experiment", "architecture", "metrics", "over_folds", "slices_per_second")
"""What a cascade's summary says of each part by itself."""


def cascade(
    segmenter: Experiment,
    classifier: Experiment,
    data_url: str,
    out: str,
    *,
    folds: int | None = None,
    workers: int = 1,
    resume: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Cross-validates both parts (`crossval`), scores them as one, and returns the cascade's summary.

    The summary is that of a cross-validation; `parts` has the metrics of each part by itself, the classifier's on crops
    around true tumours. What is finished is read, not trained again. Raises as `crossval` does, and ConfigError for
    parts that make no cascade.
    """
    refuse_parts(segmenter, classifier)
    parts = {"segmenter": segmenter, "classifier": classifier}
    whole = RunSpec.of(segmenter, data_url, out, None, folds)
    of_part = {
        part: replace(whole, experiment=experiment.to_dict(), out=storage.join(whole.out, part))
        for part, experiment in parts.items()
    }
    refuse_at_once(whole.data_url, whole.out, resume=resume)
    _refuse_other_classes(segmenter, classifier, whole.data_url)
    connect(progress.say)
    for experiment in parts.values():
        refuse_unplaceable(workers, experiment.training.device)
    side_by_side = 1 if workers > 1 else folds or DEFAULT_FOLDS
    shared = {
        part: share_table(whole.data_url, experiment.data, trainings=side_by_side) for part, experiment in parts.items()
    }
    tables: dict[str, SliceTable] = {part: ray.get(reference) for part, reference in shared.items()}
    specs = {part: fold_specs(spec, tables[part], workers) for part, spec in of_part.items()}
    settings = {"model": {"name": NAME}, **{part: spec.experiment for part, spec in of_part.items()}}
    for part in parts:
        say_start_of(specs[part], tables[part], progress)
    prepare_out(whole.out, about_run(replace(whole, experiment=settings), tables["segmenter"].digest), resume=resume)
    if not storage.exists(storage.join(whole.out, "summary.json")):
        results = {}
        for part, experiment in parts.items():
            place = of_part[part].out
            if not storage.exists(storage.join(place, "experiment.json")):
                storage.remove(place)  # stopped before anything was written
            results[part] = crossval(
                experiment, whole.data_url, place,
                folds=folds, workers=workers, table_ref=shared[part], resume=True, progress=progress,
            )  # fmt: skip
        progress.say("scoring both parts as one")
        digest = digest_of(settings)
        predictions = _scored(specs["segmenter"], specs["classifier"], digest)
        about = {
            "experiment": digest,
            "architecture": NAME,
            "data": {"url": whole.data_url, "digest": tables["segmenter"].digest},
            "parts": {part: {key: result[key] for key in OF_PART} for part, result in results.items()},
        }
        leave_results(whole.out, [*specs["segmenter"], *specs["classifier"]], about, predictions)
    summary: dict[str, Any] = storage.read_json(storage.join(whole.out, "summary.json"))
    return summary


def refuse_parts(segmenter: Experiment, classifier: Experiment) -> None:
    """Raises ConfigError where the two are no segmenter and classifier of crops."""
    for part, experiment, task in (
        ("segmenter", segmenter, "segmentation"),
        ("classifier", classifier, "classification"),
    ):
        name, tasks = experiment.model.name, experiment.model.tasks
        if task not in tasks:
            raise ConfigError(f"{part}: model.name: {name} has {' and '.join(sorted(tasks))} only; choose another")
    if "segmentation" in classifier.model.tasks:
        raise ConfigError(
            f"classifier: model.name: {classifier.model.name} segments too, and would be shown what it has to find; "
            "choose one that only classifies"
        )
    if classifier.data.region != "crop":
        raise ConfigError(
            f"classifier: data.region: {classifier.data.region!r}: a cascade's classifier sees crops around what its "
            "segmenter finds; set it to crop"
        )


def _refuse_other_classes(segmenter: Experiment, classifier: Experiment, data_url: str) -> None:
    """Raises ConfigError where the two do not make the same classes of the dataset's labels, in the same order."""
    card = read_card(data_url)
    ours, theirs = (
        (class_names(card, part.data), class_index(card, part.data, data_url)) for part in (segmenter, classifier)
    )
    if ours != theirs:
        raise ConfigError(
            "classifier: data.classes: not the segmenter's, so that folds would differ, and one part learn from what "
            "the other is scored on; give both the same"
        )


def _scored(segmenters: list[RunSpec], classifiers: list[RunSpec], digest: str) -> pa.Table:
    """The prediction table of all folds, each by the runs that did not see it."""
    gpus = gpus_for(Experiment.from_dict(classifiers[0].experiment).training.device)
    cpus = cpus_per_worker(len(classifiers))
    task = _score_fold.options(num_gpus=gpus, num_cpus=1 if gpus else cpus)
    running = [task.remote(*pair, digest, cpus) for pair in zip(segmenters, classifiers, strict=True)]
    try:
        return pa.concat_tables([outcome(t, spec) for t, spec in zip(running, classifiers, strict=True)])
    finally:
        end_tasks(running)


@ray.remote(max_retries=MAX_FAILURES)
def _score_fold(segmenter: RunSpec, classifier: RunSpec, digest: str, threads: int) -> pa.Table:
    """The segmenter's part stands in its run's predictions, made by the weights that it keeps."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    masks = storage.read_table(storage.join(segmenter.out, "predictions.parquet"))
    kept = load_model(storage.join(classifier.out, MODEL))
    training = kept.experiment.training
    device = pick_device(training)
    autocast = autocast_dtype(training, device)
    model = kept.model.to(device, memory_format=memory_format(device, autocast))  # type: ignore[call-overload]
    classes = classified_crops(
        masks, model, kept.experiment, classifier.data_url, fold=classifier.fold, device=device, autocast_dtype=autocast
    )
    return as_one(masks, classes, experiment=digest, architecture=NAME)

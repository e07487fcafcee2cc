"""Every registered architecture, small, learns eight slices by heart: the proof that its parts are wired to learn."""

from __future__ import annotations

import numpy as np
import pytest

from braintum.config import Experiment
from braintum.data.ingest.phantom import ingest_phantom
from braintum.data.table import SliceTable, load_table
from braintum.models.registry import architectures, model_config_class
from braintum.parts import Augment
from braintum.training.fit import Fit

REACHED = {"segmentation": {"dice": 0.95, "dice_all": 0.95}, "classification": {"accuracy": 1.0}}

SIDE, STEPS = 64, 600
SETTINGS = {
    "data": {"image_size": SIDE},
    "optim": {"name": "adam", "lr": 1e-3},
    "schedule": {"name": "constant"},
    "augment": dict.fromkeys((name for name in Augment.model_fields if name != "test_time"), 0),
    "training": {"epochs": STEPS, "batch_size": 8, "early_stopping": None, "weights": "last", "device": "cpu",
                 "precision": "float32"},
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> SliceTable:
    url = str(tmp_path_factory.mktemp("overfit") / "set")
    ingest_phantom(url, cases=8, slices_per_case=1, size=SIDE)
    return load_table(url, Experiment.from_dict(SETTINGS).data)


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_it_overfits_eight_slices(name: str, table: SliceTable) -> None:
    cls = model_config_class(name)
    both = {"classify": True, "dropout": 0.0} if "classify" in cls.model_fields else {}
    experiment = Experiment.from_dict({**SETTINGS, "model": {**cls.SMALL, **both, "name": name}})
    fit, rows = Fit(experiment, table, np.arange(len(table))), np.arange(len(table))
    wanted = {metric: least for task in experiment.model.tasks for metric, least in REACHED[task].items()}
    reached: dict[str, float] = {}
    for metrics in fit:
        if metrics["epoch"] % 20 == 0:
            reached = fit.score_rows(rows)
            if all(reached[metric] >= least for metric, least in wanted.items()):
                return
    pytest.fail(f"{name} reached {reached} in {STEPS} steps")

"""The views of a dataset that a space can ask for: each that occurs, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from braintum.tuning.space import SearchSpace
from braintum.tuning.views import views_of

REGION = {"choice": ["whole", "tumour", "crop"], "when": {"tasks": "classification"}}
MARGIN = {"choice": [0.1, 0.5], "when": {"data.region": "crop"}}
WIDTH = {"int": [4, 5]}


@pytest.mark.parametrize(
    ("parameters", "seen"),
    [
        ({"model.width": WIDTH}, {("whole", None, 64)}),
        ({"data.region": REGION}, {("whole", None, 64), ("tumour", None, 64), ("crop", 0.25, 64)}),
        (
            {"data.region": REGION, "data.margin": MARGIN},
            {("whole", None, 64), ("tumour", None, 64), ("crop", 0.1, 64), ("crop", 0.5, 64)},
        ),
        (
            {"model.width": WIDTH, "data.image_size": {"choice": [32], "when": {"model.width": 4}}},
            {("whole", None, 64), ("whole", None, 32)},
        ),
    ],
)
def test_views_are_those_that_conditions_leave(
    tmp_path: Path, parameters: dict[str, Any], seen: set[tuple[str, float | None, int]]
) -> None:
    file = tmp_path / "space.yaml"
    space = {
        "name": "views", "architectures": ["unet", "classifier"], "base": "fast", "trials": 4, "folds": 2,
        "overrides": {"data.image_size": 64}, "parameters": parameters,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(space, sort_keys=False))
    views = views_of(SearchSpace.load(file)).values()
    assert {(data.region, data.margin, data.image_size) for data in views} == seen

"""What `make demo` trains: hard enough to mean something, easy enough to be learned in minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braintum.data.folds import split
from braintum.data.table import SliceTable, load_table
from braintum.training.fit import Fit
from braintum.tuning.space import SearchSpace

SMOKE = SearchSpace.load(Path(__file__).parents[1] / "search_spaces" / "smoke.yaml")


@pytest.fixture(scope="module")
def table(demo_phantom: str) -> SliceTable:
    return load_table(demo_phantom, SMOKE.experiment(SMOKE.architectures[0], {}).data)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SMOKE.architectures)
def test_demo_models_land_between_useless_and_solved(architecture: str, table: SliceTable) -> None:
    """The search's first trial of each architecture, on a held-out half of the cases.

    Its settings were chosen on sets of seeds 7, 11 and 13 (14 epochs after a first demo on this set had shown that 10
    leave the classifier at 0.49), the phantom itself was drawn harder and easier until this set's scores lay in range:
    what is tested is that they stay there.
    """
    torch.set_num_threads(1)
    rows = split(table, "1", SMOKE.folds, seed=0)
    fit = Fit(SMOKE.experiment(architecture, {}), table, rows.train)
    list(fit)
    metrics = fit.score_rows(rows.held_out)
    scores = {name: metrics[name] for name in ("dice", "accuracy") if name in metrics}
    assert scores
    for name, value in scores.items():
        assert 0.5 < value < 0.95, f"{name}: {value}"

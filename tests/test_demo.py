"""What `make demo` trains: hard enough to mean something, easy enough to be learned in minutes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from tiny import TINY

from braintum import storage
from braintum.cli import run_demo
from braintum.data.folds import split
from braintum.data.table import SliceTable, load_table
from braintum.training.fit import Fit
from braintum.tuning.space import SearchSpace

SPACE = Path(__file__).parents[1] / "search_spaces" / "smoke.yaml"
SMOKE = SearchSpace.load(SPACE)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_demo_ends_in_a_report_of_every_architecture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own space, with networks, slices and trials as few and small as they come."""
    small = yaml.safe_load(SPACE.read_text())
    small["overrides"] |= {**TINY, "training.epochs": 1}
    space, out = tmp_path / "space.yaml", tmp_path / "demo"
    space.write_text(yaml.safe_dump({**small, "trials": len(SMOKE.architectures), "scheduler": {"name": "none"}}))
    capfd.readouterr()
    run_demo(str(out), str(space), as_json=True, cases=16, slices_per_case=2, size=32)
    printed = capfd.readouterr()
    summary = storage.read_json(str(out / "study" / "summary.json"))
    assert summary["trials"] == {"complete": len(SMOKE.architectures), "pruned": 0, "failed": 0}
    assert summary["best"].keys() == set(SMOKE.architectures)
    assert summary["failed"] == {}
    report = out / "study" / "report"
    rows = {row["architecture"]: row for row in csv.DictReader((report / "tables" / "leaderboard.csv").open())}
    assert rows.keys() == summary["best"].keys()
    for name, best in summary["best"].items():
        for metric, found in best["crossval"].items():
            if f"{metric}_mean" in rows[name]:
                assert float(rows[name][f"{metric}_mean"]) == found["mean"]
    assert "</html>" in (report / "report.html").read_text()
    card = storage.read_json(str(out / "phantom" / "card.json"))
    assert json.loads(printed.out) == {"data": card, "study": summary, "report": f"{report}/report.html"}
    for_people = printed.err
    assert "slices 32" in " ".join(for_people.split())
    assert all(name in for_people for name in [*SMOKE.architectures, f"report: {report}/report.html"])


@pytest.fixture(scope="module")
def table(demo_phantom: str) -> SliceTable:
    return load_table(demo_phantom, SMOKE.experiment(next(iter(SMOKE.architectures)), {}).data)


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

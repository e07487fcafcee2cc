"""What architectures cost: what is counted, and that one that does not take a size does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import TINY
from torch import nn

from braintum.cli import main
from braintum.config import Experiment
from braintum.console import benchmark_cells
from braintum.models.registry import architectures
from braintum.training.benchmark import BATCH, Steps, counts, slices_per_second


def test_a_convolution_is_counted_as_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1, stride=2))
    found = counts(network, torch.zeros(1, 3, 16, 16))
    assert found["parameters"] == (3 * 9 + 1) * 8 + (8 + 1) * 2
    assert found["gflops"] == pytest.approx(2 * (16 * 16 * 8 * 3 * 9 + 8 * 8 * 2 * 8) / 1e9)


def test_the_unet_of_the_paper() -> None:
    """Multiply-adds of its convolutions, stage by stage; nothing is computed on the meta device."""
    with torch.device("meta"):
        found = counts(Experiment.load("papers/unet").model.build(1, 3, 1), torch.empty(1, 1, 256, 256))
    assert found["parameters"] == 31_036_481
    pixels, width = [(256 >> stage) ** 2 for stage in range(5)], [64 << stage for stage in range(5)]
    encoder = sum(p * 9 * w * (c + w) for p, w, c in zip(pixels, width, [1, *width], strict=False))
    decoder = sum(p * (2 * w * w + 9 * w * (2 * w + w)) for p, w in zip(pixels[:4], width, strict=False))
    assert found["gflops"] == pytest.approx(2 * (encoder + decoder + pixels[0] * width[0]) / 1e9)


def test_steps_train_and_infer() -> None:
    steps = Steps(Experiment.load(None, {"model.name": "joint_unet", **TINY, "optim.lr": 1e-2}))
    before = [parameter.detach().clone() for parameter in steps.network.parameters()]
    ran: list[bool] = []
    assert slices_per_second(steps.infer, lambda: ran.append(steps.network.training), seconds=0) > 0
    assert ran == [False, False], "one to warm up, one to measure"
    assert all(torch.equal(a, b) for a, b in zip(before, steps.network.parameters(), strict=True))
    assert slices_per_second(steps.train, steps.wait, seconds=0) > 0
    assert not any(torch.equal(a, b) for a, b in zip(before, steps.network.parameters(), strict=True))


def test_the_readme_says_what_was_recorded() -> None:
    root = Path(__file__).parents[2]
    recorded = json.loads((root / "benchmarks" / "results" / "architectures.json").read_text())["results"]
    assert list(recorded["architectures"]) == list(architectures())
    lines = (root / "README.md").read_text().splitlines()
    for name, row in recorded["architectures"].items():
        assert f"| {' | '.join([name, ', '.join(row['tasks']), *benchmark_cells(row)])} |" in lines

    recorded = json.loads((root / "benchmarks" / "results" / "joint_or_two.json").read_text())["results"]
    for name in ("joint", "two", "cascade"):
        row = recorded[name]
        cells = [
            f"{row[key]['mean']:.3f} ± {row[key]['sd']:.3f}" for key in ("dice", "accuracy", "macro_f1", "both_right")
        ]
        cells += [f"{row['weights']:,}", f"{row['ms_a_slice']:.1f}", f"{row['memory_mb']:.1f}"]
        assert f"| {name} | {' | '.join(cells)} |" in lines


def test_a_size_that_none_takes(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["models", "unet", "classifier", "--benchmark", "--size", "40"]) == 2
    refused = capfd.readouterr().err
    assert (
        "unet: data.image_size: 40 is not divisible by 16, which unet needs with these options; nearest are " in refused
    )


@pytest.mark.slow
def test_models_are_measured_each_in_its_own_process(capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["models", "swin_unet", "classifier", "--benchmark", "--size", "48", "--json"]) == 0
    measured = json.loads(capfd.readouterr().out)
    assert (measured["side"], measured["batch"]) == (48, BATCH)
    swin, row = measured["architectures"].values()
    assert "data.image_size: 48 is not divisible by 32" in swin["refused"]
    assert (row["tasks"], row["parameters"]) == (["classification"], 19_109_187)
    assert row["inference_slices_per_second"] > row["train_slices_per_second"] > 0
    weights_mb = row["parameters"] * 4 / 1e6
    assert row["peak_memory_mb"] > 4 * weights_mb, "weights, gradients and the two moments of Adam"
    assert row["peak_memory_mb"] < 20 * weights_mb

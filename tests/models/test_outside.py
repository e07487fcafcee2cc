"""An architecture of another installed package: no change in braintum, and it is known everywhere, to workers too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OUTSIDE = Path(__file__).parent / "outside"  # as `pip install` would lay it out


def braintum(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(OUTSIDE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "braintum.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_it_is_listed_with_its_options() -> None:
    listed = braintum("models", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["threshold_net"]["options"]["kernel"]["default"] == 3


@pytest.mark.ray
def test_it_trains_on_workers(tiny_phantom: str, tmp_path: Path) -> None:
    settings = ["model.name=threshold_net", "model.classify=true", "data.image_size=32", "training.epochs=1"]
    options = [option for setting in settings for option in ("--set", setting)]
    done = braintum(
        "crossval", "--folds", "2", "--data", tiny_phantom, "--out", str(tmp_path / "cv"), *options, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"] == "threshold_net"


def test_without_that_package_it_is_unknown() -> None:
    listed = subprocess.run([sys.executable, "-m", "braintum.cli", "models", "--json"], capture_output=True, text=True)
    assert "threshold_net" not in json.loads(listed.stdout)

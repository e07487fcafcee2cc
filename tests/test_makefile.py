"""The Makefile's own steps, with a command that stands in for minutes of training."""

from __future__ import annotations

import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_a_second_demo_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    demo = tmp_path / "bin" / "braintum"
    demo.parent.mkdir()
    demo.write_text('#!/bin/sh\ntest ! -e "$3" && mkdir -p "$3/phantom" "$3/study/new"\n')
    demo.chmod(0o755)
    out = tmp_path / "out" / "demo"
    make = ["make", "-f", str(MAKEFILE), "-o", "venv", "BIN=bin", "demo"]
    assert subprocess.run(make, cwd=tmp_path, check=False).returncode == 0
    (out / "study" / "new").rename(out / "study" / "old")
    assert subprocess.run(make, cwd=tmp_path, check=False).returncode == 0
    assert [path.name for path in (out / "study").iterdir()] == ["new"]
    (out / "mine.txt").touch()
    assert subprocess.run(make, cwd=tmp_path, check=False).returncode != 0  # the folder is there: the demo refuses it
    assert (out / "mine.txt").exists()

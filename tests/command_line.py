"""What tests of the command line share."""

from __future__ import annotations

import pytest

from braintum.cli import main

QUICK = [
    "--set",
    "data.image_size=32",
    "--set",
    "model.width=4",
    "--set",
    "model.depth=2",
    "--set",
    "training.batch_size=8",
]


def refused(capfd: pytest.CaptureFixture[str], command: list[str], *says: str, without: str | None = None) -> None:
    """The command ends with 2 and one line on stderr, and prints nothing else. The line has nothing of `without`."""
    capfd.readouterr()
    code = main(command)
    shown = capfd.readouterr()
    assert (code, shown.out) == (2, ""), shown.err
    assert shown.err.startswith("braintum: ")
    assert shown.err.count("\n") == 1, shown.err
    for text in says:
        assert text in shown.err
    assert without is None or without not in shown.err

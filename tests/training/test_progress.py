"""What a person sees of a training: how long it still takes, and lines where there is no terminal."""

from __future__ import annotations

import time

import pytest

from braintum.config import Experiment
from braintum.training.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("done", [0, 50])
def test_time_left_is_at_the_pace_of_the_epochs_trained_here(clock: list[float], done: int) -> None:
    progress = Progress("run", quiet=True)
    progress.update("a", state="waiting", epoch_costs=[1.0] * 100)
    clock[0] += 30
    progress.update("a", state="training")
    assert progress.rows["a"].seconds_left is None
    for epoch in (done + 1, done + 2):
        clock[0] += 60
        progress.update("a", state="training", epoch=epoch)
        assert progress.rows["a"].seconds_left == 60 * (100 - epoch)
    clock[0] += 20
    assert progress.rows["a"].seconds_left == 60 * (98 - done) - 20


def test_time_left_knows_that_epochs_at_half_size_cost_a_quarter(clock: list[float]) -> None:
    training = Experiment.load("fast", {"training.epochs": 12, "training.half_size": 0.5}).training
    progress = Progress("run", quiet=True)
    progress.update("a", state="waiting", epoch_costs=training.epoch_costs)
    progress.update("a", state="training")
    clock[0] += 10
    progress.update("a", epoch=1)
    assert progress.rows["a"].seconds_left == 5 * 10 + 6 * 40


def test_a_line_for_each_change_and_every_ten_seconds(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("run") as progress:
        progress.update("a", what="unet", state="training", epoch_costs=[1.0] * 9)
        for epoch in range(1, 5):
            clock[0] += 4
            progress.update("a", epoch=epoch, score=0.5)
        progress.update("a", state="complete")
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("  ")[3:5] for line in lines] == [
        ["training", "epoch 0/9"], ["training", "epoch 3/9"], ["complete", "epoch 4/9"],
    ]  # fmt: skip


def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    with Progress("a[/b]") as progress:
        progress.update("fold [low]", what="unet", state="training", fold="[/x]")
        progress.say("no [/such] tag")
    shown = capfd.readouterr().err
    assert all(words in shown for words in ("a[/b]", "fold [low]", "[/x]", "training", "no [/such] tag"))

"""What a person sees of a training: how long it still takes, and lines where there is no terminal."""

from __future__ import annotations

import re
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


def search(progress: Progress, clock: list[float], seconds: float) -> None:
    """Eight trials: two had ended before, three end here after that long each, and two train for half of it."""
    progress.earlier({"complete": 1, "failed": 1})
    progress.best("unet", 0.41, "trial 0")
    progress.expect(6)
    for number, (state, score) in enumerate((("complete", 0.5), ("pruned", 0.6), ("complete", 0.4))):
        progress.update(f"unet-{number}", what="unet", state="training", epoch_costs=[1.0] * 10)
        clock[0] += seconds
        progress.update(f"unet-{number}", epoch=10 if state == "complete" else 3, score=score)
        if state == "complete":
            progress.best("unet", score, f"trial {number}")
        progress.update(f"unet-{number}", state=state)
    progress.note("spent 1.5 of 4 GPU-hours")
    for number in (3, 4):
        progress.update(f"unet-{number}", what="unet", state="training", epoch_costs=[1.0] * 10)
    clock[0] += seconds / 2
    progress.update("unet-3", epoch=1, score=0.2)


def test_time_left_is_as_long_as_those_took_that_ended(clock: list[float]) -> None:
    progress = Progress("search", quiet=True)
    assert progress.seconds_left is None
    search(progress, clock, 60)
    assert progress.seconds_left == (30 + 30 + 60) / 2, "two half done, one to come, two at a time"


def test_a_budget_ends_what_would_take_longer(clock: list[float]) -> None:
    progress = Progress("search", quiet=True)
    progress.at_most(500)
    assert progress.seconds_left == 500, "before any row has ended"
    search(progress, clock, 60)
    assert progress.seconds_left == 60
    progress.at_most(40)
    clock[0] += 10
    assert progress.seconds_left == 30
    clock[0] += 100
    assert progress.seconds_left == 0


def test_a_search_is_summed_up_without_a_terminal_too(clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("search", score="selection score") as progress:
        search(progress, clock, 40)
        progress.update("unet-4", epoch=1)
        clock[0] += 5
        progress.update("unet-4", state="failed")
    lines = capfd.readouterr().err.splitlines()
    whole = [i for i, line in enumerate(lines) if line.startswith("search · ")]
    assert len(whole) == 2, "once a minute"
    assert lines[whole[1] : whole[1] + 3] == [
        "search · 5/8 done · 2:20, about 0:40 left · 3 complete · 1 pruned · 1 failed · 2 training",
        "best selection score: unet 0.500 (trial 0)",
        "spent 1.5 of 4 GPU-hours",
    ]
    assert "search  unet-1  unet  pruned  epoch 3/10  selection score 0.600" in lines


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_it_without_cutting_anything(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], capfd: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress("search", score="selection score") as progress:
        search(progress, clock, 60)
        progress.update("attention_unet-11", what="attention_unet", state="training", epoch_costs=[1.0] * 128)
        progress.update("attention_unet-11", epoch=100, fold="10", score=0.123, slices_per_second=2345.6)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err).replace("\r", "")
    assert all(len(line) <= columns for line in shown.splitlines())
    assert "…" not in shown
    for words in ("selection score", "attention_unet-11", "100/128", "0.123", "best selection score: unet 0.500"):
        assert words in shown
    assert ("2346" in shown) == (columns == 120)


def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    with Progress("a[/b]") as progress:
        progress.update("fold [low]", what="unet", state="training", fold="[/x]")
        progress.say("no [/such] tag")
    shown = capfd.readouterr().err
    assert all(words in shown for words in ("a[/b]", "fold [low]", "[/x]", "training", "no [/such] tag"))

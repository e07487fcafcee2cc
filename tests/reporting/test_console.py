"""What the terminal shows of results, and that it agrees with the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from braintum import storage
from braintum.console import print_crossval, print_run, print_study


def cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.replace("│", "|").replace("┃", "|").split("|")[1:-1]]


def test_a_studys_leaderboard_is_its_reports(
    study: Path, study_report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (study_report.parent / "tables" / "leaderboard.md").read_text()
    heading, _, *rows = (cells(line) for line in table.splitlines())
    print_study(storage.read_json(str(study / "summary.json")))
    shown = [cells(line) for line in capsys.readouterr().out.splitlines() if line[:1] in "│┃" and line]
    assert [[row[0], *row[2:]] for row in shown] == [heading, *rows]
    assert "HD95 (mm)" in heading


def test_a_cross_validation_ends_with_mean_and_sd_over_folds(
    crossval: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = storage.read_json(str(crossval / "summary.json"))
    print_crossval(summary)
    heading, *_, last = (cells(line) for line in capsys.readouterr().out.splitlines() if line[:1] in "│┃" and line)
    found = summary["over_folds"]
    assert last[heading.index("Dice")] == f"{found['dice']['mean']:.3f} ± {found['dice']['sd']:.3f}"
    assert last[heading.index("HD95 (mm)")] == f"{found['hd95']['mean']:.1f} ± {found['hd95']['sd']:.1f}"


def test_a_run_says_what_it_was_scored_on(
    single_run: Path, split_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for directory, words in ((single_run, "scored on fold 1"), (split_run, "scored on the slices held out")):
        print_run(storage.read_json(str(directory / "summary.json")))
        assert words in capsys.readouterr().out

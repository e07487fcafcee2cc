"""Reports of real, very small results: what they hold, and what they say when something is missing."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from braintum import storage
from braintum.data.schema import DataError
from braintum.reporting.html import report
from braintum.reporting.results import read_results


class Page(HTMLParser):
    """Checks that tags are closed, and gathers headings, links out and text."""

    VOID = frozenset(("meta", "br", "img", "link", "hr", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="session")
def study_report(study: Path) -> Path:
    return Path(report(str(study)))


@pytest.fixture(scope="session")
def page(study_report: Path) -> Page:
    return Page(study_report.read_text())


def test_a_study_has_all_its_parts(study_report: Path, page: Page) -> None:
    assert study_report.name == "report.html"
    assert study_report.parent.name == "report"
    assert page.headings == [
        "Results", "Pictures", "Classes", "Every metric", "Training", "Search", "Settings",
    ]  # fmt: skip
    for words in ("three small ones", "joint_unet", "Wilcoxon", "± ", "mm", "selection score"):
        assert words in page.text


def test_a_page_is_one_file(page: Page) -> None:
    for source in page.sources:
        assert source.startswith(("#", "data:")), source


def test_selection_scores_are_no_results(study_report: Path, page: Page) -> None:
    assert "they are no results" in page.text
    tables = study_report.parent / "tables"
    assert "selection score" in (tables / "trials.csv").read_text()
    assert "score" not in (tables / "leaderboard.csv").read_text()


def test_the_leaderboard_is_the_cross_validations(study: Path, study_report: Path) -> None:
    rows = list(csv.DictReader((study_report.parent / "tables" / "leaderboard.csv").open()))
    assert {row["architecture"] for row in rows} == {"unet", "joint_unet", "classifier"}
    for row in rows:
        over_folds = storage.read_json(str(study / "crossval" / row["architecture"] / "summary.json"))["over_folds"]
        for metric in ("dice", "accuracy"):
            written = row[f"{metric}_mean"], row[f"{metric}_sd"]
            if metric in over_folds:
                assert [float(x) for x in written] == [over_folds[metric]["mean"], over_folds[metric]["sd"]]
            else:
                assert written == ("", "")


def test_every_table_comes_in_three_forms(study_report: Path) -> None:
    tables = study_report.parent / "tables"
    names = {path.stem for path in tables.glob("*.csv")}
    assert {"leaderboard", "comparison", "trials", "metrics_unet", "classes_joint_unet"} <= names
    assert names == {path.stem for path in tables.glob("*.md")} == {path.stem for path in tables.glob("*.tex")}
    for name in names:
        columns = len((tables / f"{name}.md").read_text().splitlines()[0].split("|")) - 2
        latex = (tables / f"{name}.tex").read_text()
        assert latex.startswith(rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}" + "\n" + r"\toprule")
        for line in latex.splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        assert not re.search(r"(?<!\\)[_%#]", latex)


def test_macros_are_latex_names_once_each(study_report: Path) -> None:
    lines = (study_report.parent / "macros.tex").read_text().splitlines()
    found = [re.fullmatch(r"\\newcommand\{\\(bt[A-Za-z]+)\}\{-?[\d.]+\}", line) for line in lines]
    assert all(found)
    names = [match.group(1) for match in found if match]
    assert len(names) == len(set(names))
    assert {"btJointUnetDiceMean", "btUnetHdNineFiveSd", "btUnetFoldOneDice"} <= set(names)


def test_figures_are_pictures(study_report: Path) -> None:
    figures = {path.stem: Image.open(path).size for path in (study_report.parent / "figures").glob("*.png")}
    assert {
        "overlays", "fold_scores", "dice_by_class", "confusion", "training_joint_unet", "search_history", "parameters",
    } <= set(figures)  # fmt: skip
    assert all(min(size) > 200 for size in figures.values())


def test_a_cross_validation(crossval: Path, tmp_path: Path) -> None:
    written = Path(report(str(crossval), str(tmp_path / "report")))
    page = Page(written.read_text())
    assert "Search" not in page.headings
    assert "over folds" in page.text
    assert "Wilcoxon" not in page.text
    first = written.read_bytes()
    assert Path(report(str(crossval), str(tmp_path / "report"))).read_bytes() == first


def test_a_run(single_run: Path, tmp_path: Path) -> None:
    page = Page(Path(report(str(single_run), str(tmp_path / "report"))).read_text())
    assert "Pictures" in page.headings
    assert "±" not in (tmp_path / "report" / "tables" / "leaderboard.md").read_text()


def test_entries_are_ranked_by_dice(study: Path) -> None:
    entries = read_results(str(study)).entries
    dice = [entry.metric("dice") for entry in entries]
    assert dice[-1] is None
    assert dice[0] >= dice[1]  # type: ignore[operator]


def test_without_the_dataset_the_page_says_so(crossval: Path, phantom: str, tmp_path: Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(crossval, copy)
    about = storage.read_json(str(copy / "experiment.json"))
    about["data"]["url"] = str(tmp_path / "nowhere")
    storage.write_json(str(copy / "experiment.json"), about)
    text = Page(Path(report(str(copy))).read_text()).text
    assert "could not be read" in text
    assert "nowhere" in text
    about["data"] = {"url": phantom, "digest": "another"}
    storage.write_json(str(copy / "experiment.json"), about)
    assert "is not the dataset of these results" in Page(Path(report(str(copy))).read_text()).text


def test_what_is_no_result_is_refused(tmp_path: Path, crossval: Path) -> None:
    with pytest.raises(DataError, match=r"no experiment\.json or study\.json"):
        report(str(tmp_path))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(crossval, unfinished)
    (unfinished / "summary.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        report(str(unfinished))
    assert not (unfinished / "report").exists()


def test_names_are_escaped(crossval: Path, tmp_path: Path) -> None:
    copy = tmp_path / "<b>bold & co"
    shutil.copytree(crossval, copy)
    text = Path(report(str(copy))).read_text()
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold &amp; co" in text


def test_reporting_needs_neither_torch_nor_ray() -> None:
    code = "import sys, braintum.reporting.html; print({'torch', 'ray'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

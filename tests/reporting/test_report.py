"""Reports of real, very small results: what they hold, and what they say when something is missing."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pyarrow as pa
import pytest
from optuna.trial import TrialState
from PIL import Image
from unfinished import tell_trial, write_unfinished

from braintum import storage
from braintum.config import Experiment
from braintum.data.schema import DataError
from braintum.reporting.html import report
from braintum.reporting.results import read_results
from braintum.tuning.space import SearchSpace


class Page(HTMLParser):
    """Checks that tags are closed, and gathers headings, facts at the top, links out and text."""

    VOID = frozenset(("meta", "br", "img", "link", "hr", "input"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.facts: dict[str, str] = {}
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
        if "dt" in self.open:
            self.facts[data] = ""
        if "dd" in self.open:
            self.facts[list(self.facts)[-1]] += data


@pytest.fixture(scope="session")
def page(study_report: Path) -> Page:
    return Page(study_report.read_text())


def test_a_study_has_all_its_parts(study_report: Path, page: Page) -> None:
    assert study_report.name == "report.html"
    assert study_report.parent.name == "report"
    assert page.headings == [
        "Results", "Pictures", "Classes", "Every metric", "Training", "Search", "Settings",
    ]  # fmt: skip
    for words in (
        "three_small_ones",
        "48 slices, 16 cases",
        "each of 2 folds in turn: 1, 2",
        "torch 2.",
        "(UTC)",
        "joint_unet",
        "Wilcoxon",
        "± ",
        "mm",
        "selection score",
    ):
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
    names = macro_names(study_report.parent)
    assert {"btJointUnetDiceMean", "btUnetHdNineFiveSd", "btUnetFoldOneDice"} <= names


@pytest.mark.filterwarnings("ignore:Glyph")  # no font for 脑膜瘤 here
def test_any_class_and_fold_has_macros_of_its_own(crossval: Path, tmp_path: Path) -> None:
    copy = renamed(crossval, tmp_path, ["glioma_1", "glioma-1", "脑膜瘤", "垂体瘤 50 % $_2$"], ["a", "a_pixel"])
    out = Path(report(str(copy))).parent
    names = macro_names(out)
    classes = {match.group(1) for name in names if (match := re.search(r"Class(\w+)Sensitivity", name))}
    assert len(classes) == 4
    assert {"GliomaOne", "GliomaOneTwo"} <= classes
    assert "% joint_unet, class 脑膜瘤" in (out / "macros.tex").read_text()


def renamed(crossval: Path, tmp_path: Path, classes: list[str], folds: list[str]) -> Path:
    """A copy of a cross-validation with other names of its classes and folds."""
    copy = tmp_path / "renamed"
    shutil.copytree(crossval, copy)
    place = str(copy / "predictions.parquet")
    predictions = storage.read_table(place)
    old = [name.removeprefix("probability_") for name in predictions.schema.names if name.startswith("probability_")]
    spelled = dict(zip([*old, "1", "2"], [*classes, *folds], strict=True))
    columns = {name: "probability_" + spelled[name.removeprefix("probability_")] for name in predictions.schema.names
               if name.startswith("probability_")}  # fmt: skip
    predictions = predictions.rename_columns([columns.get(name, name) for name in predictions.schema.names])
    for column in ("label", "predicted", "fold"):
        values = [spelled.get(value) for value in predictions[column].to_pylist()]
        at = predictions.schema.get_field_index(column)
        predictions = predictions.set_column(at, column, pa.array(values, pa.string()))
    storage.write_table(place, predictions)
    return copy


def test_names_of_classes_are_no_markup(crossval: Path, tmp_path: Path) -> None:
    names = ["[low] <i>", "*b* &lt; c", "a|b\\", "_50 %_ #1"]
    page = Path(report(str(renamed(crossval, tmp_path, names, ["a_b", "c"]))))
    assert all(name in Page(page.read_text()).text for name in names)
    tables = page.parent / "tables"
    rows = (tables / "classes_joint_unet.md").read_text().splitlines()[2:]
    written = [r"\[low\] \<i>", r"\*b\* \&lt; c", r"a\|b\\", r"\_50 %\_ #1"]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in written]
    assert "| fold a_b | fold c |" in (tables / "metrics_joint_unet.md").read_text()
    rows = (tables / "classes_joint_unet.tex").read_text().splitlines()[4:-2]
    written = [r"{[}low] $<$i$>$", r"{*}b{*} \&lt; c", r"a\textbar{}b\textbackslash{}", r"\_50 \%\_ \#1"]
    assert [row.split(" & ")[0] for row in rows] == written


def macro_names(out: Path) -> set[str]:
    """The names in macros.tex: letters only, no two alike."""
    lines = [line for line in (out / "macros.tex").read_text().splitlines() if not line.startswith("% ")]
    found = [re.fullmatch(r"\\newcommand\{\\(bt[A-Za-z]+)\}\{-?[\d.]+\}", line) for line in lines]
    names = [match.group(1) for match in found if match]
    assert len(lines) == len(names) == len(set(names))
    return set(names)


def test_figures_are_pictures(study_report: Path) -> None:
    figures = {path.stem: Image.open(path).size for path in (study_report.parent / "figures").glob("*.png")}
    assert {
        "overlays", "fold_scores", "dice_by_class", "confusion", "training_joint_unet", "search_history", "timeline",
        "importance", "pareto", "slices_unet", "slices_classifier", "parallel_joint_unet",
    } <= set(figures)  # fmt: skip
    assert all(min(size) > 200 for size in figures.values())


def test_how_two_tasks_got_on_is_shown(crossval: Path, study: Path, tmp_path: Path) -> None:
    """The cosine of their gradients, and their weights where these are not fixed; nothing of the kind of one task."""
    copy = tmp_path / "learned"
    shutil.copytree(crossval, copy, ignore=shutil.ignore_patterns("report"))
    fixed = Path(report(str(copy))).read_text()
    assert ("Task cosine" in fixed, "Task weights" in fixed) == (True, False)
    history = storage.read_table(str(copy / "history.parquet"))
    weights = pa.array([1 + 0.1 * epoch for epoch in history["epoch"].to_pylist()])
    column = history.schema.get_field_index("weight_segmentation")
    storage.write_table(str(copy / "history.parquet"), history.set_column(column, "weight_segmentation", weights))
    assert "Task weights" in Path(report(str(copy))).read_text()
    alone = Path(report(str(study / "crossval" / "unet"), str(tmp_path / "unet"))).read_text()
    assert "Task " not in alone


def test_an_unfinished_study_shows_what_there_is(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "running"
    studies = write_unfinished(study, out)
    kept = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    page = Page(Path(report(str(out), str(tmp_path / "report"))).read_text())
    assert kept == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}, "it may be running"
    assert page.headings[:2] == ["Not finished", "Results"]
    assert page.headings[-2:] == ["Search", "Settings"]
    assert "6 trials have ended, 3 have begun and not ended. There are cross-validated results of unet;" in page.text
    assert "braintum search" not in page.text, "it would be another study than this one will be"
    with (tmp_path / "report" / "tables" / "trials.csv").open() as file:
        states = [(row["architecture"], row["trial"], row["state"]) for row in csv.DictReader(file)]
    assert [row for row in states if row[0] == "unet"] == [
        ("unet", "0", "complete"), ("unet", "1", "pruned"), ("unet", "2", "open"),
    ]  # fmt: skip
    assert {"search_history", "timeline", "slices_unet"} <= {
        path.stem for path in (tmp_path / "report" / "figures").glob("*.png")
    }
    other = Experiment.load(None, {"model.name": "unet", "optim.lr": 0.5}).to_dict()
    tell_trial(studies["unet"], out, 3, other, TrialState.COMPLETE, score=0.9)
    page = Page(Path(report(str(out), str(tmp_path / "report"))).read_text())
    assert page.headings == ["Not finished", "Search"], "what was cross-validated is the best no longer"
    assert "cross-validated results of none yet" in page.text


def test_a_study_that_has_only_begun(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "begun"
    out.mkdir()
    shutil.copy(study / "study.json", out)
    with pytest.raises(DataError, match=r"optuna\.db: not there, so the study had not begun"):
        report(str(out))
    (out / "optuna.db").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"optuna\.db: cannot be read as Optuna's storage"):
        report(str(out))
    (out / "optuna.db").unlink()
    optuna.create_study(storage=f"sqlite:///{out}/optuna.db", study_name="unet")
    assert Page(Path(report(str(out))).read_text()).headings == ["Not finished"]


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
    assert page.facts["held out"] == "fold 1"


def test_a_run_without_a_fold_says_what_was_held_out(split_run: Path) -> None:
    page = Page(Path(report(str(split_run))).read_text())
    assert page.facts["held out"] == "4 whole groups, 25 % of the slices"
    assert "held-out" not in page.text


def test_what_a_report_says_makes_its_results_again(study: Path, study_report: Path, page: Page) -> None:
    out = study_report.parent
    about = storage.read_json(str(study / "study.json"))
    space = SearchSpace.load(out / "space.yaml")
    assert (space.digest, space.trials) == (about["digest"], 15)
    assert f"braintum search space.yaml --data {about['data']['url']} --out {study}-again" in page.text
    for name in ("unet", "joint_unet", "classifier"):
        trained = storage.read_json(str(study / "crossval" / name / "experiment.json"))
        assert Experiment.load(out / "settings" / f"{name}.yaml").to_dict() == trained["experiment"]
        assert f"braintum crossval --config settings/{name}.yaml --folds 2 --data" in page.text


def test_the_command_of_a_run_names_its_fold(single_run: Path, phantom: str, tmp_path: Path) -> None:
    text = Page(Path(report(str(single_run), str(tmp_path / "report"))).read_text()).text
    command = next(line for line in text.splitlines() if line.startswith("braintum train"))
    assert shlex.split(command)[2:] == [
        "--config", "settings/joint_unet.yaml", "--fold", "1", "--folds", "2", "--data", phantom,
        "--out", f"{single_run}-again",
    ]  # fmt: skip


def test_a_failure_leaves_no_part_of_a_report(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(study, copy, ignore=shutil.ignore_patterns("report"))
    summary = storage.read_json(str(copy / "summary.json"))
    storage.write_json(str(copy / "summary.json"), {**summary, "seconds": None})
    with pytest.raises(TypeError):
        report(str(copy))
    (copy / "trials.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"trials\.parquet: cannot be read"):
        report(str(copy))
    assert not (copy / "report").exists()


def test_where_nothing_can_be_read_or_written_is_said(crossval: Path) -> None:
    with pytest.raises(DataError, match="choose another --out"):
        report(str(crossval), str(crossval / "summary.json"))
    for directory, out in (("nosuch://bucket/study", None), (str(crossval), "nosuch://bucket/report")):
        with pytest.raises(DataError, match="nosuch"):
            report(directory, out)


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
    shutil.copy(crossval / "summary.json", unfinished)
    about = storage.read_json(str(crossval / "experiment.json"))
    for model, says in (({"name": "/../../x"}, "'/../../x' is no architecture"), ({}, "experiment.model.name is not")):
        storage.write_json(str(unfinished / "experiment.json"), {**about, "experiment": {"model": model}})
        with pytest.raises(DataError, match=says):
            report(str(unfinished))
    storage.write_json(str(unfinished / "experiment.json"), about)
    storage.write_table(str(unfinished / "predictions.parquet"), pa.table({"dice": [0.5]}))
    with pytest.raises(DataError, match=r"predictions\.parquet: no column 'fold'"):
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

"""`report`: one readable HTML file, and tables, macros and figures beside it, from result files alone."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from braintum import storage
from braintum.data.schema import DataError
from braintum.data.shards import read_card
from braintum.reporting import tables
from braintum.reporting.canvas import Figure
from braintum.reporting.comparison import comparison_table, limits
from braintum.reporting.figures import confusion, dice_by_class, fold_scores, training_curves
from braintum.reporting.overlays import PREDICTED, TRUE, overlays
from braintum.reporting.results import Results, read_results
from braintum.reporting.search_figures import parameter_effects, search_history
from braintum.reporting.tables import Table
from braintum.reporting.writers import macros, to_csv, to_latex, to_markdown


@dataclass(frozen=True)
class Section:
    """A part of the page: words, then tables and figures."""

    id: str
    title: str
    words: list[str]
    tables: list[Table]
    figures: list[Figure]

    @property
    def empty(self) -> bool:
        return not (self.words or self.tables or self.figures)


def report(directory: str, out: str | None = None) -> str:
    """Writes the report of a run, a cross-validation or a study, and returns the URL of its report.html.

    `out` is a folder, `DIRECTORY/report` unless given; a report that is there is replaced. Beside the page: `tables/`
    (CSV, Markdown, LaTeX for booktabs), `macros.tex`, `figures/` (PNG). Raises DataError for a directory without
    results. Needs no dataset; without it the page has no pictures and says so.
    """
    results = read_results(directory)
    out = out or storage.join(directory, "report")
    sections = _sections(results)
    for table in (table for section in sections for table in section.tables):
        for suffix, write in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
            storage.write_bytes(storage.join(out, "tables", f"{table.name}.{suffix}"), write(table).encode())
    for figure in (figure for section in sections for figure in section.figures):
        storage.write_bytes(storage.join(out, "figures", f"{figure.name}.png"), figure.png)
    storage.write_bytes(storage.join(out, "macros.tex"), macros(results).encode())
    page = storage.join(out, "report.html")
    storage.write_bytes(page, _render(results, sections).encode())
    return page


def _sections(results: Results) -> list[Section]:
    pictures, why_none = overlays(results)
    entries = results.entries
    compared = comparison_table(results)
    sections = [
        Section(
            "results",
            "Results",
            _caveats(results) + limits(results),
            [tables.leaderboard(results)] if entries else [],
            _present(fold_scores(results)),
        ),
        Section("pictures", "Pictures", [why_none] if why_none else [], [], _present(pictures)),
        Section(
            "classes",
            "Classes",
            [],
            [table for entry in entries if (table := tables.classes(entry))],
            _present(dice_by_class(results), confusion(results)),
        ),
        Section("metrics", "Every metric", [], [tables.every_metric(entry) for entry in entries], []),
        Section("training", "Training", [], [], training_curves(results)),
    ]
    if compared:
        sections[0].tables.append(compared)
    trials = tables.trials(results)
    if trials:
        figures = _present(search_history(results), parameter_effects(results))
        sections.append(Section("search", "Search", _search_words(results), [trials], figures))
    return [section for section in sections if not section.empty]


def _caveats(results: Results) -> list[str]:
    """What a reader must know before believing the numbers."""
    if not results.entries:
        return ["No architecture finished a trial on all folds, so nothing was cross-validated."]
    words = []
    if results.study:
        words.append(
            "Each architecture's best configuration was trained again on every fold and scored on the part held out. "
            "The search chose these configurations by their scores on the same folds, so the numbers lean to the "
            "optimistic side; slices that no search has seen would tell by how much."
        )
    counts = [entry.summary["counts"] for entry in results.entries]
    undefined = {entry.name: n for entry, c in zip(results.entries, counts, strict=True) if (n := c["hd_undefined"])}
    if undefined:
        named = ", ".join(f"{name} {n}" for name, n in undefined.items())
        words.append(f"Tumour slices on which nothing was drawn have no Hausdorff distance (left out): {named}.")
    if any(c["hd_other_unit"] for c in counts):
        words.append("Distances are in mm; slices of unknown pixel spacing are left out of them.")
    return words


def _search_words(results: Results) -> list[str]:
    assert results.study is not None
    summary = results.study.summary
    counts = summary["trials"]
    words = f"{counts['complete']} trials finished all folds, {counts['pruned']} were stopped early, "
    words += f"{counts['failed']} failed."
    if summary.get("busy_share") is not None:
        words += f" The places for trials were busy training {100 * summary['busy_share']:.0f} % of the time."
    return [words]


def _render(results: Results, sections: list[Section]) -> str:
    environment = Environment(
        loader=PackageLoader("braintum.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        sections=sections,
        facts=_facts(results),
        settings=[(entry.name, yaml.safe_dump(entry.experiment, sort_keys=False)) for entry in results.entries],
        svg=lambda figure: Markup(figure.svg),  # noqa: S704 - drawn here, by matplotlib, which escapes text
        outline={"true": TRUE, "predicted": PREDICTED},
    )


def _facts(results: Results) -> dict[str, str]:
    """What the page says about itself at the top."""
    facts = {"data": _data_words(results)}
    if results.entries:
        counts = results.entries[0].summary["counts"]
        facts["slices scored"] = f"{counts['slices']:,}, {counts['with_tumour']:,} with tumour"
        cases = results.entries[0].summary["cases"]
        if cases:
            facts["cases"] = f"{cases['cases']:,}"
        facts["held out"] = _held_out(list(results.entries[0].summary["folds"]))
    if results.study:
        facts["trials"] = str(len(results.study.trials))
        facts["time"] = _duration(results.study.summary["seconds"])
        facts["versions"] = ", ".join(f"{k} {v}" for k, v in results.study.summary["versions"].items())
    return facts


def _data_words(results: Results) -> str:
    try:
        name = read_card(results.data_url).name
    except (DataError, OSError):  # the page says so where the pictures would be
        name = results.data_url
    return f"{name}, digest {results.data_digest[:12]}"


def _held_out(folds: list[str]) -> str:
    return f"{len(folds)} folds: {', '.join(folds)}" if len(folds) > 1 else folds[0]


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _present(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]

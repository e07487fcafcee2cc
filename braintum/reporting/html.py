"""`report`: one readable HTML file, and tables, macros and figures beside it, from result files alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

from braintum import storage
from braintum.data.schema import Card, DataError
from braintum.data.shards import filesystem, read_card
from braintum.reporting import tables
from braintum.reporting.canvas import Figure
from braintum.reporting.commands import commands, settings_files
from braintum.reporting.comparison import comparison_table
from braintum.reporting.figures import confusion, dice_by_class, fold_scores, training_curves
from braintum.reporting.noise import lead_words, leads_table, optimism_table, outer_table, seeds_table
from braintum.reporting.overlays import overlays
from braintum.reporting.page import Section, render
from braintum.reporting.parameter_figures import importance, parallel_coordinates, slices
from braintum.reporting.results import Entry, Results, read_results
from braintum.reporting.search_figures import pareto_fronts, search_history
from braintum.reporting.timeline import timeline
from braintum.reporting.writers import macros, to_csv, to_latex, to_markdown


def report(directory: str, out: str | None = None) -> str:
    """Writes the report of a run, a cross-validation or a study, and returns the URL of its report.html.

    `out` is a folder, `DIRECTORY/report` unless given; a report that is there is replaced. Beside the page: `tables/`
    (CSV, Markdown, LaTeX for booktabs), `macros.tex`, `figures/` (PNG), `settings/` and `space.yaml` (what the commands
    on the page read). Raises DataError for a directory without results and for a folder that cannot be written; nothing
    is written before everything is drawn. Needs no dataset; without it the page has no pictures and says so. Of a study
    that has not finished it shows what there is, and says so.
    """
    results = read_results(directory)
    out = storage.resolve(out or storage.join(directory, "report"))
    filesystem(out)  # refuses an unknown protocol
    files = _files(results)
    try:
        for name, content in files.items():
            storage.write_bytes(storage.join(out, name), content)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}; choose another --out") from None
    return storage.join(out, "report.html")


def _files(results: Results) -> dict[str, bytes]:
    """The content of every file of a report, by its place in the report's folder; the page last."""
    sections = _sections(results)
    settings = settings_files(results)
    files = {name: content.encode() for name, content in settings.items()}
    for table in (table for section in sections for table in section.tables):
        for suffix, write in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
            files[f"tables/{table.name}.{suffix}"] = write(table).encode()
    for figure in (figure for section in sections for figure in section.figures):
        files[f"figures/{figure.name}.png"] = figure.png
    files["macros.tex"] = macros(results).encode()
    files["report.html"] = _render(results, sections, settings).encode()
    return files


def _sections(results: Results) -> list[Section]:
    sections = [] if results.finished else [Section("unfinished", "Not finished", _unfinished_words(results), [], [])]
    if results.entries:
        sections += _result_sections(results)
    trials = tables.trials(results)
    if trials:
        figures = _present(search_history(results), timeline(results), importance(results), pareto_fronts(results))
        figures += [*slices(results), *parallel_coordinates(results)]
        sections.append(Section("search", "Search", _search_words(results), [trials], figures))
    leaks = results.summary.get("leaks")
    if leaks:
        warning = tables.leak_words(leaks)
        sections = [replace(section, tables=[replace(table, warning=warning) for table in section.tables])
                    for section in sections]  # fmt: skip
    return [section for section in sections if not section.empty]


def _result_sections(results: Results) -> list[Section]:
    pictures, why_none = overlays(results)
    entries = results.entries
    found = (write(results) for write in (outer_table, optimism_table, comparison_table, leads_table, seeds_table))
    return [
        Section(
            "results",
            "Results",
            [*_caveats(results), *lead_words(results)],
            [tables.leaderboard(results), *(table for table in found if table)],
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


def _unfinished_words(results: Results) -> list[str]:
    """What there is of a study that runs, or was stopped, and how it goes on."""
    assert results.study is not None
    counts, trials = results.summary["trials"], results.study.trials
    open_ = sum(trial.state == "open" for trial in trials)
    words = f"This study has not finished: it runs, or it was stopped. {sum(counts.values())} trials have ended, "
    words += f"{open_} {'has' if open_ == 1 else 'have'} begun and not ended. "
    which = f"of {', '.join(entry.name for entry in results.entries)}" if results.entries else "of none yet"
    words += f"There are cross-validated results {which}; all other scores are selection scores. "
    return [words + "One that was stopped goes on with the command that began it, and --resume."]


def _caveats(results: Results) -> list[str]:
    """What a reader must know before believing the numbers."""
    if not results.study:
        return []
    if results.kind == "nested study":
        found = results.summary["nested"].items()
        words = (f"{name}: {o['selection']:.3f} chosen, {o['nested']:.3f} nested" for name, about in found
                 for o in [about["optimism"]])  # fmt: skip
        return [
            "Each fold was left out in turn: a search of its own chose settings on the rest, which were trained again "
            "on all the rest and scored on the fold. These are scores of the search, on slices that it never saw, and "
            "not of one configuration.",
            f"Selection scores beside them: {'; '.join(words)}. The difference is what choosing flatters.",
        ]
    if results.study.about.get("outer") is not None:
        return [
            f"A part of a nested study: the search never saw fold {results.study.about['outer']['fold']}, on which its "
            "winners are scored."
        ]
    if not results.study.trials:
        return [
            "A comparison: nothing was searched. Whether the settings were chosen on these slices before, this page "
            "cannot know; then the numbers lean to the optimistic side."
        ]
    return [
        "Each architecture's best configuration was trained again on every fold and scored on the part held out. "
        "The search chose these configurations by their scores on the same folds, so the numbers lean to the "
        "optimistic side; slices that no search has seen would tell by how much."
    ]


def _search_words(results: Results) -> list[str]:
    counts = results.summary["trials"]
    words = f"{counts['complete']} trials finished all folds, {counts['pruned']} were stopped early (pruned), "
    words += f"{counts['failed']} failed."
    if results.summary["busy_share"] is not None:
        words += f" The places for trials were busy training {100 * results.summary['busy_share']:.0f} % of the time."
    return [words, *([tables.racing_words(results.summary["racing"])] if "racing" in results.summary else [])]


def _render(results: Results, sections: list[Section], settings: dict[str, str]) -> str:
    return render(
        "report.html.j2",
        kind=results.kind if results.finished else f"{results.kind}, not finished",
        title=results.name,
        facts=_facts(results),
        sections=sections,
        results=results,
        settings=settings,
        commands=commands(results),
    )


def _facts(results: Results) -> dict[str, str]:
    """What the page says about itself at the top."""
    card = _card(results)
    facts = {"data": f"{card.name if card else results.data_url}, digest {results.data_digest[:12]}"}
    if card:
        facts["in the data"] = _contents(card)
    if results.entries:
        facts |= _scored(results, card)
    studies = 1
    if results.study and results.kind == "nested study":
        studies = len(results.entries[0].summary["folds"])
        facts["trials"] = f"{sum(results.summary['trials'].values())}, in {studies} studies"
    elif results.study and results.study.trials:
        facts["trials"] = str(len(results.study.trials))
    if of_budget := tables.budget_words(results.summary, studies):
        facts["budget"] = of_budget
    if results.entries and results.entries[0].seeds > 1:
        facts["seeds"] = str(results.entries[0].seeds)
    spent = {
        "run": "training time",
        "cross-validation": "training time, sum of folds",
        "study": "time since the last start" if results.finished else "from the first epoch to the last",
        "nested study": "time since the last start",
    }
    facts[spent[results.kind]] = _duration(results.summary["seconds"])
    if "versions" in results.summary:
        facts["trained with"] = ", ".join(f"{name} {number}" for name, number in results.summary["versions"].items())
    made = "%Y-%m-%d" if results.finished else "%Y-%m-%d %H:%M"
    facts["report made"] = f"{datetime.now(UTC):{made}} (UTC), by braintum {version('braintum')}"
    return facts


def _scored(results: Results, card: Card | None) -> dict[str, str]:
    """On which slices the results were scored."""
    entry = results.entries[0]
    counts, cases = entry.summary["counts"], entry.summary["cases"]
    with_tumour = "all" if counts["with_tumour"] == counts["slices"] else f"{counts['with_tumour']:,}"
    scored = f"{counts['slices']:,} slices, {with_tumour} with tumour"
    facts = {"scored": scored + (f", of {cases['cases']:,} cases" if cases else "")}
    facts["held out"] = _held_out(entry, card)
    regions = _regions(results)
    if regions:
        facts["seen of a slice"] = regions
    return facts


def _card(results: Results) -> Card | None:
    """The card of the dataset, if that is still where it was."""
    try:
        card = read_card(results.data_url)
    except (DataError, OSError):  # the page says so where the pictures would be
        return None
    return card if card.digest == results.data_digest else None


def _contents(card: Card) -> str:
    cases = "cases not known" if card.num_cases is None else f"{card.num_cases:,} cases"
    folds = f", {len(card.slices_per_fold)} folds of their own" if card.slices_per_fold else ""
    return f"{card.num_slices:,} slices, {cases}{folds}"


def _held_out(entry: Entry, card: Card | None) -> str:
    folds = list(entry.summary["folds"])
    if len(folds) > 1:
        return f"each of {len(folds)} folds in turn: {', '.join(folds)}"
    if entry.about["fold"] is not None:
        return f"fold {entry.about['fold']}"
    groups = len(set(entry.predictions["group"].to_pylist()))
    share = f", {100 * len(entry.predictions) / card.num_slices:.0f} % of the slices" if card else ""
    return f"{groups:,} whole group{'s' if groups > 1 else ''}{share}"


def _regions(results: Results) -> str:
    """What the classifiers see of a slice, and how many slices show it; nothing where that is all of every slice."""
    region_of = {
        entry.name: entry.about["experiment"].get("data", {}).get("region", "whole") for entry in results.entries
    }
    found = set(region_of.values())
    if found == {"whole"}:
        return ""
    if len(found) > 1:
        return ", ".join(f"{name}: {region}" for name, region in region_of.items())
    shown = results.summary.get("data", {})
    counts = f", on {shown['shown']:,} of {shown['slices']:,} slices" if "shown" in shown else ""
    return f"{found.pop()}{counts}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _present(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]

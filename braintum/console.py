"""Results printed for people, by rich. Programs read `--json` or summary.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from braintum import storage
from braintum.reporting import contents
from braintum.reporting.results import standing
from braintum.reporting.tables import budget_words, heading, leak_words, mean_sd, racing_words, shown, text, unit_of


def print_card(card: Mapping[str, Any]) -> None:
    """A dataset's card: size, classes, masks, digest."""
    table = Table("", card["name"], box=None, show_header=True)
    table.add_row("slices", f"{card['num_slices']:,}")
    if card["num_cases"] is not None:
        table.add_row("cases", f"{card['num_cases']:,}")
    table.add_row("pixels", f"{card['height']}×{card['width']}, {card['channels']} × {card['dtype']}")
    table.add_row("classes", ", ".join(card["classes"]) or "none")
    table.add_row("masks", ", ".join(card["masks"]) or "none")
    if card["slices_per_plane"]:
        table.add_row("planes", ", ".join(f"{count:,} {plane}" for plane, count in card["slices_per_plane"].items()))
    if card["num_rejected"]:
        table.add_row("rejected", f"{card['num_rejected']:,}, listed in rejected.csv")
    table.add_row("digest", card["digest"][:16])
    _print(table)


def print_checked(checked: Mapping[str, Any]) -> None:
    """What the doctor found of a cluster: a row per node, and a line per problem."""
    nodes = Table("node", "GPUs", "network, MB/s", "storage, MB/s", "clock, s", "disk free", box=None)
    for node in checked["nodes"]:
        name = node["name"]
        storage_speed = ", ".join(f"{what} {speed:,.0f}" for what, speed in node["storage_mb_s"].items()) or "-"
        nodes.add_row(
            name, f"{checked['gpus'][name]:g}", f"{checked['mb_s'][name]:,.0f}", storage_speed,
            f"{checked['ahead'][name]:+.2f}", f"{node['disk_free']:.0%}",
        )  # fmt: skip
    _print(nodes)
    versions = checked["nodes"][0]["versions"]
    print(", ".join(f"{package} {version}" for package, version in versions.items()))
    for problem in checked["problems"]:
        print(f"{problem['where']}: {problem['what']}. {problem['remedy'][0].upper()}{problem['remedy'][1:]}.")
    print(f"{len(checked['problems'])} problems" if checked["problems"] else "nothing is wrong")


def print_overview(summary: Mapping[str, Any]) -> None:
    """What is in a dataset."""
    about = Table("", summary["name"], box=None, show_header=True)
    for name, words in contents.facts(summary).items():
        about.add_row(name, words)
    _print(about)
    for found in contents.tables(summary):
        table = Table(*found.columns, title=found.title)
        for i, row in enumerate(found.rows):
            table.add_row(*(found.words(i, j) for j in range(len(row))))
        _print(table)
    print(f"slices to look at, histograms: {storage.join(summary['out'], 'card.html')}")


def print_audit(summary: Mapping[str, Any]) -> None:
    """What an audit found, and where it stands."""
    words = {
        "datasets": "in two datasets", "test": "in the test set and outside of it", "folds": "in two folds",
        "groups": "in two groups, which a split may part",
    }  # fmt: skip
    table = Table("found", "", box=None, show_header=False)
    for name, count in summary["slices"].items():
        table.add_row("slices", f"{count:,} of {name}")
    for parted, count in summary["pairs"].items():
        table.add_row("pairs that look alike", f"{count:,} {words[parted]}")
    if not summary["pairs"]:
        table.add_row("pairs that look alike", "none " + ("that a split parts" if len(summary["slices"]) == 1 else
                      "in two datasets, or that a split parts"))  # fmt: skip
    if summary["copies"]:
        table.add_row("of them copies", f"{summary['copies']:,}, {summary['same_picture']:,} pixel by pixel")
    if summary["two_labels"]:
        table.add_row("of them with two labels", f"{summary['two_labels']:,}")
    for kind, count in summary["same_ids"].items():
        table.add_row(f"same {kind} id in two datasets", f"{count:,}: one patient in both, or a name that both use")
    for kind, count in summary["findings"].items():
        table.add_row(kind, f"{count:,}")
    if summary["merged_groups"]:
        table.add_row("groups kept together now", f"{summary['merged_groups']:,}")
    if summary["excluded"]:
        table.add_row("slices not used from now on", f"{summary['excluded']:,}")
    _print(table)
    print(f"lists and pictures: {summary['out']}")
    if summary["pairs"].get("groups") and not summary["merged_groups"]:
        print("to keep such groups together: the audit of that dataset alone, with --group-near-duplicates")
    if summary["to_exclude"]:
        listed, count = storage.join(summary["out"], "exclude.csv"), f"{summary['to_exclude']:,}"
        print(f"to leave {count} slices out, so that no such pair is left: the same command with --exclude {listed}")


def print_run(summary: Mapping[str, Any]) -> None:
    """A run's metrics on the slices held out."""
    held_out = "the slices held out" if summary["fold"] is None else f"fold {summary['fold']}"
    table = Table("metric", "value", title=summary["architecture"])
    for name, value in summary["metrics"].items():
        table.add_row(heading(name, summary.get("hd_unit")), text(value, name))
    _print(table)
    took = f"{summary['epochs']} epochs in {summary['seconds']:.0f} s, {summary['slices_per_second']:.0f} slices/s"
    print(f"scored on {held_out}; {took}")


def print_crossval(summary: Mapping[str, Any]) -> None:
    """A cross-validation: each fold, then mean ± SD over folds."""
    over_folds = summary["over_folds"]
    names = shown([over_folds])
    headings = [heading(name, summary["hd_unit"]) for name in names]
    table = Table("fold", *headings, title=f"{summary['architecture']}, cross-validated")
    for fold, metrics in summary["folds"].items():
        table.add_row(fold, *(text(metrics.get(name), name) for name in names))
    table.add_section()
    table.add_row("mean ± SD", *(text(mean_sd(over_folds[name]), name) for name in names))
    _print(table)


def print_study(summary: Mapping[str, Any]) -> None:
    """A study's leaderboard, as in its report: the winner of each architecture, by its cross-validation."""
    ranked = sorted(summary["best"].items(), key=lambda named: standing(named[1]["crossval"]))
    names = shown(best["crossval"] for _, best in ranked)
    unit = unit_of(best["hd_unit"] for _, best in ranked)
    headings = [heading(name, unit) for name in names]
    seeds = ranked[0][1]["seeds"]["n"]
    table = Table("architecture", "trial", *headings, title=f"Winners, cross-validated ({_sds(seeds)})")
    for name, best in ranked:
        cells = (_score(best["crossval"], best["seeds"], metric) for metric in names)
        table.add_row(name, "–" if best["trial"] is None else str(best["trial"]), *cells)
    _print(table)
    if summary.get("leaks"):
        print(leak_words(summary["leaks"]))
    for name, reason in summary.get("failed", {}).items():
        print(f"not ranked: {name}, {reason}")
    for name, front in summary.get("pareto", {}).items():
        chosen = next(point["trial"] for point in front if point["chosen"])
        numbers = ", ".join(str(point["trial"]) for point in front)
        print(f"Pareto front of {name}: trials {numbers}; chosen: {chosen}, {summary['chosen_by']}")
    if "racing" in summary:
        print(racing_words(summary["racing"]))
    if spent := budget_words(summary):
        print(spent)
    states = ", ".join(f"{count} {state}" for state, count in summary["trials"].items())
    busy = summary["busy_share"]
    print(f"trials: {states}; {summary['seconds']:.0f} s" + ("" if busy is None else f", workers busy {busy:.0%}"))


def print_nested(summary: Mapping[str, Any]) -> None:
    """What a search finds scores on folds that it never saw, beside the selection scores by which it chose."""
    ranked = sorted(summary["nested"].items(), key=lambda named: standing(named[1]["over_folds"]))
    names = shown(found["over_folds"] for _, found in ranked)
    unit = unit_of(found["hd_unit"] for _, found in ranked)
    seeds = ranked[0][1]["seeds"]["n"]
    headings = ["selection score", "nested score", "difference", *(heading(name, unit) for name in names)]
    table = Table("search", *headings, title=f"Winners on the folds left out ({_sds(seeds)})")
    for name, found in ranked:
        optimism = (text(found["optimism"][key], key) for key in ("selection", "nested", "difference"))
        table.add_row(name, *optimism, *(_score(found["over_folds"], found["seeds"], metric) for metric in names))
    _print(table)
    if summary["leaks"]:
        print(leak_words(summary["leaks"]))
    for name, reason in summary["failed"].items():
        print(f"not ranked: {name}, {reason}")
    studies = len(ranked[0][1]["outer"])
    if spent := budget_words(summary, studies):
        print(spent)
    states = ", ".join(f"{count} {state}" for state, count in summary["trials"].items())
    print(f"trials of {studies} studies: {states}; {summary['seconds']:.0f} s")


def _sds(seeds: int) -> str:
    """What the numbers of `_score` are."""
    return "mean ± SD over folds" + (f"; ± SD over {seeds} seeds" if seeds > 1 else "")


def _score(over_folds: Mapping[str, Any], seeds: Mapping[str, Any], metric: str) -> str:
    """A metric's mean, its SD over folds and, where there are several, over seeds."""
    words = text(mean_sd(over_folds.get(metric)), metric)
    moved = seeds["over_seeds"].get(metric, {"sd": None})["sd"]
    return words if moved is None else f"{words}; ± {text(moved, metric)}"


def print_models(listing: Mapping[str, Any]) -> None:
    """The registered architectures and compositions, a line each."""
    table = Table("architecture", "tasks", "")
    for name, model in listing.items():
        more = " (or both: model.classify)" if model["options"].get("classify", {}).get("default") is False else ""
        table.add_row(name, ", ".join(model["tasks"]) + more, model["about"])
    _print(table)
    print("options of one: braintum models NAME")


def print_options(listing: Mapping[str, Any]) -> None:
    """The options of architectures; of a composition its parts."""
    for name, model in listing.items():
        if "composition" in model:
            print(f"{name}: {' and '.join(model['tasks'])}, by any {', then any '.join(model['composition'])}")
            print(f"a command of its own: braintum {name} --help")
            continue
        title = f"{name}: {' and '.join(model['tasks'])}"
        table = Table("option", "default", "values", "", title=title, title_justify="left")
        for option, about in model["options"].items():
            table.add_row(f"model.{option}", _yaml(about["default"]), about["values"], about["description"])
        _print(table)


def _yaml(value: Any) -> str:
    """A setting as it stands in a file."""
    return json.dumps(value).strip('"')


def allowed(option: Mapping[str, Any]) -> str:
    """What an option's JSON Schema allows, beside null, in words."""
    words = []
    for kind in option.get("anyOf", [option]):
        if "enum" in kind:
            words.append(", ".join(map(_yaml, kind["enum"])))
        elif kind.get("type") == "boolean":
            words.append("true, false")
        elif kind.get("type") in ("integer", "number"):
            bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
            words.append(", ".join(f"{sign} {kind[bound]:g}" for bound, sign in bounds.items() if bound in kind))
        elif kind.get("type") == "array":
            words.append("a list")
    return " or ".join(filter(None, words))


def print_benchmark(measured: Mapping[str, Any]) -> None:
    """What each architecture costs, and on which machine; below, why some could not be measured."""
    side, rows = measured["side"], measured["architectures"]
    table = Table("architecture", "tasks", title=f"Slices of {side}×{side}, batches of {measured['batch']}")
    for name in BENCHMARK_COLUMNS:
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, ", ".join(row["tasks"]), *benchmark_cells(row))
    _print(table)
    print(machine_line(measured["machine"]))
    for name, row in rows.items():
        if "failure" in row:
            print(f"failed: {name}, {row['failure']}")
        if "refused" in row:
            print(f"not measured: {row['refused']}")


BENCHMARK_COLUMNS = ("parameters", "GFLOPs a slice", "training, slices/s", "inference, slices/s", "peak memory, MB")


def benchmark_cells(row: Mapping[str, Any]) -> list[str]:
    """The numbers of one architecture's row; a dash for each where it could not be measured."""
    formats: dict[str, Callable[[float], str]] = {
        "parameters": "{:,}".format,
        "gflops": "{:,.1f}".format,
        "train_slices_per_second": _three_digits,
        "inference_slices_per_second": _three_digits,
        "peak_memory_mb": "{:,.0f}".format,
    }
    return [form(row[key]) if key in row else "–" for key, form in formats.items()]


def machine_line(machine: Mapping[str, Any]) -> str:
    """Where a benchmark ran."""
    cpu = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"{cpu}; on {machine['device']} in {machine['precision']}; torch {machine['torch']}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _print(table: Table) -> None:
    console = Console(markup=False, emoji=False)  # [b] and :brain: in a label are the label
    if not console.is_terminal:
        console.width = 160  # rich takes 80 for a pipe or a file, and would cut columns
    console.print(table)

"""The commands that make results again, and the files that they need: from what the result files hold, no more."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from braintum.reporting.results import Entry, Results

SPACE = "space.yaml"


def settings_files(results: Results) -> dict[str, str]:
    """YAML by file name: the Experiment of each configuration, and a finished study's search space, with its number of
    trials.

    `train`, `crossval`, `cascade` and `search` read them.
    """
    nested = results.kind == "nested study"  # its winners' settings stand in the inner studies
    entries = [] if nested else results.entries
    files = {file: _yaml(settings) for entry in entries for file, settings in _experiments(entry).values()}
    if results.study and results.finished:
        space = results.study.about["space"]
        parameters = {path: _given(parameter) for path, parameter in space["parameters"].items()}
        studies = len(results.entries[0].summary["folds"]) if nested else 1
        written = {
            **space, "scheduler": _given(space["scheduler"]), "parameters": parameters,
            "trials": sum(results.summary["trials"].values()) // studies,
            "seeds": results.entries[0].seeds, "resources": results.summary["resources"],
        }  # fmt: skip
        files[SPACE] = _yaml(written)
    return files


def commands(results: Results) -> dict[str, str]:
    """What to run where the files of `settings_files` lie, by what it makes."""
    again = f"{results.url}-again"
    if results.kind == "nested study":
        return {"the nested study": _line("search", SPACE, "--nested", "--data", results.data_url, "--out", again)}
    found = {}
    outer = results.study.about.get("outer") if results.study else None
    if results.study and results.finished and outer is None:
        found["the whole study"] = _line("search", SPACE, "--data", results.data_url, "--out", again)
    for entry in results.entries:
        fold, folds = (outer or entry.about)["fold"], entry.about["folds"]
        one = results.kind == "run" or outer is not None
        said = [
            "cascade" if "config" not in _experiments(entry) else "train" if one else "crossval",
            *(word for option, (file, _) in _experiments(entry).items() for word in (f"--{option}", file)),
            *(() if fold is None else ("--fold", fold)),
            *(() if folds is None else ("--folds", str(folds))),
            *("--data", results.data_url),
            *("--out", f"{again}-{entry.name}" if results.study else again),
        ]
        what = "the training" if outer is not None else "the cross-validation"
        found[f"{what} of {entry.name}" if results.study else f"this {results.kind}"] = _line(*said)
    return found


def _experiments(entry: Entry) -> dict[str, tuple[str, dict[str, Any]]]:
    """By the option that takes it: the file of an Experiment and its settings; a cascade has one of each part."""
    experiment = entry.about["experiment"]
    parts = [part for part in ("segmenter", "classifier") if part in experiment]
    if parts:
        return {part: (f"settings/{entry.name}_{part}.yaml", experiment[part]) for part in parts}
    return {"config": (f"settings/{entry.name}.yaml", experiment)}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a part of a search space that are set."""
    return {name: value for name, value in fields.items() if value is not None and value != {}}


def _line(*words: str) -> str:
    return shlex.join(["braintum", *words])


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)

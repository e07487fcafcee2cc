"""What the commands have in common: options, the Experiment that --config and --set say, what goes to stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer

from braintum.config import Experiment, merge, parse_overrides, parse_settings, read_settings
from braintum.settings import ConfigError


def given(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Refuses what a shell makes of a variable that is not set; as a path it would be the current folder."""
    if value is not None and not value.strip():
        raise ConfigError(
            f"{parameter.opts[0]}: is empty, as of a variable that is not set; give a file, folder or URL"
        )
    return value


def outlives_a_job(parameter: typer.CallbackParam, place: str | None) -> str | None:
    """A Ray job's relative paths lie in its own copy of its working directory, which Ray deletes."""
    given(parameter, place)
    inside = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside and place is not None and "://" not in place and not os.path.isabs(place):
        raise ConfigError(
            f"{parameter.opts[0]} {place}: is in the job's copy of its working directory, deleted later; "
            "give an absolute path or a URL"
        )
    return place


DataUrl = Annotated[str, typer.Option("--data", callback=given, help="Dataset: a folder or URL that `ingest` wrote.")]
NewUrl = Annotated[
    str, typer.Option("--out", callback=outlives_a_job, help="Folder or URL to write; must not exist yet.")
]
OutUrl = Annotated[
    str,
    typer.Option(
        "--out", callback=outlives_a_job, help="Folder or URL to write; must not exist yet, but with --resume."
    ),
]
Config = Annotated[
    str | None,
    typer.Option("--config", callback=given, help="A .yaml file or URL, or a recipe, such as papers/unet."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, such as optim.lr=3e-4; repeatable.")]
Folds = Annotated[int | None, typer.Option(min=2, help="Number of folds; the source's own, else 5.")]
Hours = Annotated[
    float | None, typer.Option(help="Wall time that the study may take over all its starts; else what the space says.")
]
GpuHours = Annotated[float | None, typer.Option(help="Hours of GPUs that it may hold; the same.")]
Cost = Annotated[
    float | None, typer.Option(help="What its nodes may cost, at budget.price_per_node_hour of the space; the same.")
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes of a training.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what --out holds.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at what cannot be read or used, instead of listing it in rejected.csv.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, all else to stderr.")]


def experiment_of(config: str | None, settings: list[str] | None) -> Experiment:
    """What --config and --set say; a --set without effect is refused."""
    overrides = parse_overrides(settings or [])
    experiment = Experiment.from_dict(merge(_settings(config), overrides), config or "defaults")
    for path in overrides:
        if path in experiment.without_effect:
            raise ConfigError(f"--set {path}: has no effect {experiment.without_effect[path]}; leave it out")
    return experiment


def writable(out: str | None, url: str, name: str) -> str:
    """Where what is said of a dataset goes: to `out`, else to the folder `name` inside of the dataset.

    Raises ConfigError where that cannot be written, before the work is done.
    """
    from braintum.storage import join

    place = out or join(url, name)
    refuse_unwritable(place, "give another --out" if out else "give a folder of yours with --out")
    return place


def refuse_unwritable(folder: str, way_out: str) -> None:
    """Raises ConfigError for a folder or URL that takes no file; tries, as permissions do not tell."""
    from braintum import storage

    trial = storage.join(folder, f".{uuid.uuid4().hex[:8]}")
    try:
        storage.write_bytes(trial, b"")
        storage.remove(trial)
    except storage.StorageError:
        raise
    except Exception as error:  # every file system says it with an error of its own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{folder}: cannot be written to ({reason}); {way_out}") from error


def sees_whole(config: str | None) -> bool:
    """Whether a configuration says `data.region: whole`, or nothing about it."""
    data = _settings(config).get("data")
    return not isinstance(data, dict) or data.get("region", "whole") == "whole"


def _settings(config: str | None) -> dict[str, Any]:
    """A URL is read here: the package's configurations know no file systems."""
    if config is None or "://" not in config:
        return read_settings(config)
    from braintum.storage import read_bytes

    try:
        text = read_bytes(config)
    except FileNotFoundError:
        raise ConfigError(f"{config}: no such file") from None
    return parse_settings(text, config)


@contextlib.contextmanager
def stdout_for(as_json: bool) -> Iterator[None]:
    """With JSON the process's stdout is stderr while a command works, because Ray prints to it too."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a sys.stdout that is not the process's, too
            yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def show(result: Mapping[str, Any], as_json: bool, printed: Callable[[Mapping[str, Any]], None]) -> None:
    """A command's result on stdout, as JSON or as `printed` shows it."""
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        printed(result)

"""`braintum ...`: each command is one call into the package, made with what the command line says.

Exit codes: 0 done; 2 the user's mistake, said in one line on stderr (where braintum raises a ValueError of its own,
or a file or URL cannot be read or written); 1 a failure of ours; 130 interrupted (^C or SIGTERM), with the state saved.
With `--json` a command prints one JSON document to stdout and everything else to stderr. What a command needs is
imported inside it, so that `--help` and a refused setting come at once.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeGuard

import typer

from braintum.cli_cluster import cluster
from braintum.cli_ingest import ingest, ingest_phantom
from braintum.config import Experiment, json_schema, parse_overrides
from braintum.contact import first_contact
from braintum.models.registry import architectures, model_config_class
from braintum.options import (
    Config,
    Cost,
    DataUrl,
    Folds,
    GpuHours,
    Hours,
    Json,
    NewUrl,
    OutUrl,
    Resume,
    Set,
    Workers,
    experiment_of,
    given,
    outlives_a_job,
    refuse_unwritable,
    sees_whole,
    show,
    stdout_for,
    writable,
)
from braintum.settings import ConfigError

app = typer.Typer(
    help="Trains and searches multi-task brain-tumour models on MRI slices.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(ingest, name="ingest")
app.add_typer(cluster, name="cluster")

RESUMABLE = ("train", "crossval", "cascade", "search")


@app.command()
def card(
    url: Annotated[str, typer.Argument(metavar="DATA", help="Dataset.")],
    out: Annotated[
        str | None, typer.Option(callback=given, help="Folder to write; else `card` inside the dataset.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Shows a dataset: counts by class, case, fold and plane, slices to look at, histograms, licence, provenance."""
    from braintum.console import print_overview
    from braintum.data.overview import look
    from braintum.data.shards import read_card
    from braintum.reporting.card import write_card_page

    with stdout_for(as_json):
        read_card(url)  # nothing is written where there is no dataset
        folder = writable(out, url, "card")
        summary = write_card_page(look(url), url, folder)
    show(summary, as_json, print_overview)


@app.command()
def audit(
    urls: Annotated[list[str], typer.Argument(help="Datasets; several are also compared with each other.")],
    out: Annotated[
        str | None, typer.Option(callback=given, help="Folder to write; else `audit` inside the first dataset.")
    ] = None,
    group_near_duplicates: Annotated[
        bool,
        typer.Option(
            "--group-near-duplicates", help="Write into the dataset that its splits keep such slices together."
        ),
    ] = False,
    exclude: Annotated[
        str | None,
        typer.Option(
            callback=given,
            help="CSV of slices never to be used from now on, as exclude.csv of an audit; written into the dataset.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Looks for one picture on two sides of a split, which makes scores too good, and for odd masks and images.

    Of several datasets also for ids of patients that stand in two. The way out of pairs: --group-near-duplicates for
    two groups, --exclude for two folds, two datasets, or the test set and the rest.
    """
    from braintum.console import print_audit
    from braintum.data import audit as audits
    from braintum.data.exclusions import read_exclusions
    from braintum.data.shards import exclude_slices, merge_groups
    from braintum.data.table import load_table
    from braintum.parts import Data
    from braintum.reporting.audit import write_audit

    if group_near_duplicates and len(urls) > 1:
        raise ConfigError("--group-near-duplicates: is for one dataset at a time; name one")
    named = dict(zip(_short_names(urls), urls, strict=True))
    with stdout_for(as_json):
        audits.refuse_same(urls)
        excluded = {name: ids for name, ids in read_exclusions(exclude, named).items() if ids} if exclude else {}
        folder = writable(out, urls[0], "audit")
        for url in [*(urls if group_near_duplicates else []), *(named[name] for name in excluded)]:
            refuse_unwritable(url, "copy the dataset to where you may write, and name the copy")
        for name, ids in excluded.items():
            exclude_slices(named[name], ids)
        tables = {name: load_table(url, Data(image_size=audits.THUMB)) for name, url in named.items()}
        found = audits.audit(tables)
        summary = write_audit(found, folder, named)
        merged = audits.merged_groups(found.pairs) if group_near_duplicates else {}
        if merged:
            merge_groups(urls[0], merged)
    changed = {"merged_groups": len(merged), "excluded": sum(map(len, excluded.values()))}
    show({**summary, **changed}, as_json, print_audit)


def _short_names(urls: list[str]) -> list[str]:
    """The last parts of URLs, as far as they tell them apart."""
    names = [url.rstrip("/").rpartition("/")[2] for url in urls]
    return names if len(set(names)) == len(names) else urls


@app.command()
def train(
    data: DataUrl,
    out: OutUrl,
    config: Config = None,
    settings: Set = None,
    fold: Annotated[str | None, typer.Option(help="Fold to hold out; else a stratified, grouped 80/20 split.")] = None,
    folds: Folds = None,
    workers: Workers = 1,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Trains one Experiment and scores it once on the slices held out."""
    experiment = experiment_of(config, settings)
    from braintum.console import print_run
    from braintum.training.progress import Progress
    from braintum.training.worker import train as run

    with stdout_for(as_json), Progress("train") as progress:
        summary = run(experiment, data, out, fold=fold, folds=folds, workers=workers, resume=resume, progress=progress)
    show(summary, as_json, print_run)


@app.command()
def crossval(
    data: DataUrl,
    out: OutUrl,
    config: Config = None,
    settings: Set = None,
    folds: Folds = None,
    workers: Workers = 1,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Trains one Experiment once a fold, and scores each fold by the training that did not see it."""
    experiment = experiment_of(config, settings)
    from braintum.console import print_crossval
    from braintum.training.crossval import crossval as run
    from braintum.training.progress import Progress

    with stdout_for(as_json), Progress("crossval") as progress:
        summary = run(experiment, data, out, folds=folds, workers=workers, resume=resume, progress=progress)
    show(summary, as_json, print_crossval)


@app.command()
def cascade(
    data: DataUrl,
    out: OutUrl,
    segmenter: Annotated[
        str | None, typer.Option(callback=given, help="The first stage: what --config of train takes.")
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(callback=given, help="The second: the same; its data.region is crop where it is whole there."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A part's setting, such as classifier.optim.lr=3e-4; repeatable."),
    ] = None,
    folds: Folds = None,
    workers: Workers = 1,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Trains a segmenter and a classifier of the crop that it finds, once a fold each, and scores them as one model."""
    of_part: dict[str, list[str]] = {"segmenter": [], "classifier": []}
    for setting in settings or []:
        part, _, assignment = setting.partition(".")
        if part not in of_part:
            raise ConfigError(f"--set {setting}: expected segmenter.part.field=value, or classifier.part.field=value")
        of_part[part].append(assignment)
    stages = {}
    for part, config in (("segmenter", segmenter), ("classifier", classifier)):
        if config is None and not any(setting.partition("=")[0].strip() == "model.name" for setting in of_part[part]):
            raise ConfigError(f"--{part}: missing; give a configuration, or at least --set {part}.model.name=NAME")
        try:
            stages[part] = (_of_crops if part == "classifier" else experiment_of)(config, of_part[part])
        except ConfigError as error:
            raise ConfigError(f"{part}: {error}") from None
    from braintum.console import print_crossval
    from braintum.training.cascade import cascade as run
    from braintum.training.progress import Progress

    with stdout_for(as_json), Progress("cascade") as progress:
        summary = run(**stages, data_url=data, out=out, folds=folds, workers=workers, resume=resume, progress=progress)
    show(summary, as_json, print_crossval)


def _of_crops(config: str | None, settings: list[str]) -> Experiment:
    """A configuration of whole slices shown crops, but one that segments too, for the cascade to refuse, as it is."""
    if not sees_whole(config):
        return experiment_of(config, settings)
    try:
        return experiment_of(config, ["data.region=crop", *settings])
    except ConfigError:
        as_it_is = experiment_of(config, settings)
        if "segmentation" in as_it_is.model.tasks:
            return as_it_is
        raise


@app.command()
def search(
    space: Annotated[
        str,
        typer.Argument(callback=given, help="A search space: a .yaml file, its URL, or one of braintum's, as quick."),
    ],
    data: DataUrl,
    out: OutUrl,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; else what the space says.")] = None,
    folds: Folds = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings of each winner with another seed; else what the space says, or 1."),
    ] = None,
    hours: Hours = None,
    gpu_hours: GpuHours = None,
    cost: Cost = None,
    nested: Annotated[
        bool, typer.Option("--nested", help="Search once for each fold without it, and score the winner on it.")
    ] = False,
    settings: Set = None,
    kept_at: Annotated[
        str | None,
        typer.Option(
            "--storage",
            callback=outlives_a_job,
            help="Where to keep trials: postgresql://USER@HOST/DATABASE (password: ~/.pgpass or PGPASSWORD), or a "
            "journal file, NAME.log; else optuna.db in --out, or as the study was begun.",
        ),
    ] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            callback=given,
            help="An older study, or its --storage: trials that this space could propose teach the sampler.",
        ),
    ] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Search though copies of slices are on two sides of a split.")
    ] = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Searches the architectures of a space, and cross-validates the winner of each."""
    from braintum.tuning.space import SearchSpace

    overrides = parse_overrides(settings or [])
    limits = {"hours": hours, "gpu_hours": gpu_hours, "cost": cost}
    budget = {name: value for name, value in limits.items() if value is not None}
    loaded = SearchSpace.load(space, trials=trials, folds=folds, seeds=seeds, budget=budget, overrides=overrides)
    from braintum.console import print_nested, print_study
    from braintum.training.progress import Progress
    from braintum.tuning.nested import nested_search
    from braintum.tuning.study import search as plain_search

    if nested and warm_start is not None:
        raise ConfigError(
            "--warm-start: its trials have seen the folds that --nested leaves out; leave out one of both"
        )
    run = nested_search if nested else partial(plain_search, warm_start_from=warm_start)
    with stdout_for(as_json), Progress(loaded.name, score="selection score") as progress:
        summary = run(loaded, data, out, kept_at=kept_at, resume=resume, allow_leak=allow_leak, progress=progress)
    show(summary, as_json, print_nested if nested else print_study)


@app.command()
def report(
    directory: Annotated[str, typer.Argument(callback=given, help="Folder of a study, a cross-validation or a run.")],
    out: Annotated[
        str | None, typer.Option(callback=given, help="Folder to write; else `report` inside the directory.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Writes tables, figures and report.html from the result files of a directory."""
    from braintum.reporting.html import report as write

    with stdout_for(as_json):
        page = str(write(directory, out))
    show({"report": page}, as_json, lambda shown: print(f"report: {shown['report']}"))


@app.command()
def dashboard(
    study: Annotated[
        str, typer.Argument(callback=given, help="Folder or URL of a study, or the URL of Optuna's storage.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free.")] = 8080,
) -> None:
    """Opens optuna-dashboard on a study, also while it runs: its trials by parameter, importance and time."""
    from braintum.tuning.dashboard import dashboard as serve

    serve(study, port, lambda text: print(text, flush=True))


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Architectures; all of them if none is named.")] = None,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Measure what each costs on this machine.")] = False,
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a side with --benchmark; 256 if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists the architectures and `cascade`, or the options of those named; or measures size, GFLOPs, speed, memory."""
    if benchmark:
        _benchmark(names or architectures(), 256 if size is None else size, as_json)
        return
    if size is not None:
        raise ConfigError(f"--size {size}: has no effect without --benchmark; leave it out")
    from braintum.console import print_models, print_options

    listing = {
        name: _CASCADE if name == "cascade" else _about_model(name) for name in names or [*architectures(), "cascade"]
    }
    show(listing, as_json, print_options if names else print_models)


_CASCADE: dict[str, Any] = {
    "about": "Any segmenter, then any classifier on the crop around what it found; a command of its own.",
    "tasks": ["classification", "segmentation"],
    "options": {},
    "composition": ["segmenter", "classifier"],
}


def _about_model(name: str) -> dict[str, Any]:
    """What an architecture is, its tasks, and its options at the default size of slices."""
    from braintum.console import allowed

    cls, model = model_config_class(name), Experiment.load(None, {"model.name": name}).model
    schema = cls.model_json_schema()["properties"]
    return {
        "about": (cls.__doc__ or "").partition("\n")[0],
        "tasks": sorted(model.tasks),
        "options": {
            field: {
                "default": getattr(model, field), "values": allowed(schema[field]),
                "description": info.description or "",
            }
            for field, info in cls.model_fields.items()
            if field != "name"
        },
    }  # fmt: skip


def _benchmark(names: list[str], side: int, as_json: bool) -> None:
    """Exits with 1 where the measuring of an architecture failed. Raises ConfigError where none takes the size."""
    from braintum.console import print_benchmark
    from braintum.training.benchmark import benchmark
    from braintum.training.progress import Progress

    with stdout_for(as_json), Progress("models") as progress:
        measured = benchmark(names, side, progress)
    refused = [row["refused"] for row in measured["architectures"].values() if "refused" in row]
    if len(refused) == len(measured["architectures"]):
        raise ConfigError(refused[0])
    show(measured, as_json, print_benchmark)
    if any("failure" in row for row in measured["architectures"].values()):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Prints the JSON Schema of an Experiment, for editors and other programs."""
    print(json.dumps(json_schema(), indent=2))


@app.command()
def demo(
    out: NewUrl = "out/demo",
    space: Annotated[str, typer.Option(callback=given, help="Search space to run.")] = "search_spaces/smoke.yaml",
    as_json: Json = False,
) -> None:
    """The whole path on data it draws itself: ingest, search, cross-validate, report."""
    run_demo(out, space, as_json)


def run_demo(out: str, space: str, as_json: bool = False, **phantom: Any) -> None:
    """`braintum demo` on a phantom of other options, which are those of `ingest phantom`.

    Its JSON holds what the commands' would: {"data": card, "study": summary, "report": page}.
    """
    from braintum import storage
    from braintum.tuning.space import SearchSpace

    if Path(out).exists():
        raise ConfigError(f"{out} exists; choose another --out")
    SearchSpace.load(space)
    data, study = f"{out}/phantom", f"{out}/study"
    with stdout_for(as_json):
        ingest_phantom(data, **phantom)
        search(space, data, study)
        report(study)
    if as_json:
        card, summary = storage.read_json(f"{data}/card.json"), storage.read_json(f"{study}/summary.json")
        print(json.dumps({"data": card, "study": summary, "report": f"{study}/report/report.html"}, indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name; None: the process's own) and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A shell starts background commands, and so a job its driver, with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        # Not standalone: Typer would print its own several lines, and end the process.
        with first_contact():
            code = app(args=words or ["--help"], prog_name="braintum", standalone_mode=False)
        if code == 130:  # what Typer makes of a KeyboardInterrupt
            saved = "; what was saved stays, and the same command {}goes on from it"
            again = saved.format("with --resume ") if words[0] in RESUMABLE else saved.format("")
            return _say("interrupted" + again * (words[0] in (*RESUMABLE, "ingest")), 130)
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        return _say(f"{error.format_message().rstrip('.')}; see braintum --help", 2)
    except Exception as error:
        cause = getattr(error, "cause", None) or error  # what Ray wraps when a task raises it
        if _of_a_place(cause):
            while _of_a_place(cause.__context__):
                cause = cause.__context__  # a later one is what cleaning up ran into
            where = f"{cause.filename}: " if cause.filename else ""
            return _say(where + (cause.strerror or " ".join(map(str, cause.args))), 2)
        if type(cause).__module__.startswith("botocore."):  # S3's credentials or address
            return _say(str(cause), 2)
        if not type(cause).__module__.startswith("braintum."):
            raise
        return _say(str(cause), 2 if isinstance(cause, ValueError) else 1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What stops a container or a batch job (SIGTERM) does what ^C does, while Ray Train has its own way with that too.

    Called, not raised as a signal: Ray blocks SIGINT in the drivers of its jobs.
    """
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(number, frame)


def _of_a_place(error: object) -> TypeGuard[OSError]:
    """Whether a file or URL cannot be read or written; other OSErrors (a socket's, a process's) are ours."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.filename is not None)


def _say(message: str, code: int) -> int:
    print(f"braintum: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

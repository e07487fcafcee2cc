"""Search spaces: what is refused before anything starts, conditions, and what Optuna is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import optuna
import pytest
import yaml

from braintum.config import Experiment, recipes
from braintum.models.registry import architectures
from braintum.settings import ConfigError
from braintum.tuning.space import SearchSpace

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "search_spaces").glob("*.yaml"))
SMALL: dict[str, Any] = {
    "name": "small",
    "architectures": ["unet", "joint_unet"],
    "base": "fast",
    "folds": 2,
    "trials": 4,
    "parameters": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
}

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a small space with some fields replaced; `None` leaves a field out."""

    def write(**fields: Any) -> Path:
        settings = {key: value for key, value in {**SMALL, **fields}.items() if value is not None}
        file = tmp_path / "space.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        return file

    return write


def ask(space: SearchSpace, architecture: str | None, number: int = 200) -> list[tuple[str, dict[str, Any]]]:
    """What a random search would try."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask(), architecture) for _ in range(number)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_space_gives_valid_experiments(path: Path) -> None:
    space = SearchSpace.load(path)
    assert space.name == path.stem
    assert f"braintum search search_spaces/{path.name}" in path.read_text()
    for architecture in space.architectures:
        for name, values in ask(space, architecture, 50):
            experiment = space.experiment(name, values)
            assert experiment.model.name == space.model_name(architecture)
            assert all(getattr(getattr(experiment, p.split(".")[0]), p.split(".")[1]) == v for p, v in values.items())


@pytest.mark.parametrize("name", ["smoke", "search_spaces/smoke.yaml"])
def test_a_shipped_space_is_known_everywhere_by_its_name(
    name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert SearchSpace.load(name) == SearchSpace.load(ROOT / "search_spaces" / "smoke.yaml")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make().rename(tmp_path / name)
    assert SearchSpace.load(name).name == "small"  # a file comes first


def test_architectures_may_have_overrides_of_their_own(make: Make) -> None:
    own = {"unet": {"model.width": 2, "training.epochs": 3}, "joint_unet": {}}
    space = SearchSpace.load(make(architectures=own, overrides={"model.width": 4, "training.epochs": 5}))
    widths = {name: space.experiment(name, {}).to_dict()["model"]["width"] for name in space.architectures}
    assert widths == {"unet": 2, "joint_unet": 4}
    assert space.experiment("unet", {"training.epochs": 7}).training.epochs == 7  # what is searched comes last
    assert space.shares() == {"unet": 2, "joint_unet": 2}
    set_by_hand = SearchSpace.load(make(architectures=own), overrides={"training.epochs": 9})
    assert {set_by_hand.experiment(name, {}).training.epochs for name in own} == {9}
    assert (
        SearchSpace.load(make(architectures=["unet"])).digest
        == SearchSpace.load(make(architectures={"unet": {}})).digest
    )


def test_an_architecture_may_stand_there_under_several_names(make: Make) -> None:
    entries = {"unet": {}, "narrow": {"model.name": "unet", "model.width": 4}}
    parameters = {"model.attention": {"choice": ["none", "gate"], "when": {"model.name": "unet"}}}
    space = SearchSpace.load(make(architectures=entries, overrides={"model.width": 8}, parameters=parameters))
    models = {name: space.experiment(name, {"model.attention": "gate"}).to_dict()["model"] for name in entries}
    assert {name: (model["name"], model["width"]) for name, model in models.items()} == {
        "unet": ("unet", 8), "narrow": ("unet", 4)
    }  # fmt: skip
    assert all("model.attention" in values for name in entries for _, values in ask(space, name, 2))


def test_an_ablation_switches_off_one_idea_at_a_time() -> None:
    space = SearchSpace.load("braintumnet_ablation")
    models = {name: space.experiment(name, {}).model.model_dump() for name in space.architectures}
    whole = models.pop("braintumnet")
    switches = {field for field, value in whole.items() if value is True and field != "classify"}
    assert {name.removeprefix("no_") for name in models} == switches
    without_transformer = models.pop("no_transformer")
    assert (without_transformer["transformer"], without_transformer["adaptive_mask"]) == (False, None)
    for name, model in models.items():
        assert {field for field in switches if model[field] is not True} == {name.removeprefix("no_")}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_architectures_of_one_family_compare_at_one_size(path: Path) -> None:
    """A base's own options go on for its architecture alone: `fast` is a joint_unet of depth 5."""
    space = SearchSpace.load(path)
    family = [space.experiment(name, {}).model for name in space.architectures]
    unets = [model.model_dump() for model in family if model.name in ("unet", "attention_unet", "joint_unet")]
    assert len({(unet["width"], unet["depth"], unet["norm"]) for unet in unets}) <= 1


def test_every_question_has_its_space() -> None:
    questions = {"learning_rate", "attention", "loss_weighting", "task_balancing", "augmentation", "capacity", "joint"}
    questions |= {"all_architectures", "braintumnet_ablation"}
    assert {path.stem for path in SHIPPED} >= {"quick", "smoke", "paper_brisc", "paper_braintumnet", *questions}
    assert set(recipes()) >= {"papers/unet", "papers/braintumnet", "fast"}


@pytest.mark.parametrize("name", ["all_architectures", "all_architectures_small"])
def test_all_architectures_are_searched(name: str) -> None:
    assert set(SearchSpace.load(name).architectures) == set(architectures())


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_network_that_a_shipped_space_asks_for_runs(path: Path) -> None:
    """On the meta device, whole and at half size: what a check of the options alone cannot see."""
    import torch

    space, tried = SearchSpace.load(path), set()
    for architecture in space.architectures:
        for name, values in [(architecture, {}), *(ask(space, architecture, 20) if space.parameters else [])]:
            experiment = space.experiment(name, values)
            if experiment.model in tried:
                continue
            tried.add(experiment.model)
            with torch.device("meta"):
                model = experiment.model.build(1, 3, 1)
                for side in (experiment.data.image_size, experiment.half_side):
                    model(torch.rand(2, 1, side, side))


def test_base_overrides_and_values_in_this_order(make: Make) -> None:
    space = SearchSpace.load(make(overrides={"model.width": 8, "optim.lr": 5e-3, "training.epochs": 7}))
    experiment = space.experiment("joint_unet", {"optim.lr": 2e-3})
    assert experiment == Experiment.load(
        "fast", {"model.name": "joint_unet", "model.width": 8, "training.epochs": 7, "optim.lr": 2e-3}
    )


def test_a_space_with_all_that_there_is(tmp_path: Path) -> None:
    file = tmp_path / "attention.yaml"
    file.write_text("""
name: attention
architectures: [unet, joint_unet]
base: papers/unet
overrides: {training.epochs: 30, data.image_size: 128, model.width: 16}
folds: 4
trials: 24
seeds: 3
resources: {workers: 1, gpus_per_worker: auto, trials_per_gpu: 1, max_concurrent: auto}
score: {dice: 0.5, macro_f1: 0.5}
objectives: [dice, macro_f1]
sampler: {name: tpe, seed: 0}
scheduler: {name: asha, grace_epochs: 5, reduction: 3}
racing: {level: 0.05}
budget: {hours: 2.0, gpu_hours: 8, cost: 40, price_per_node_hour: 3.2}
parameters:
  optim.lr: {log_uniform: [1.0e-5, 1.0e-2]}
  model.attention: {choice: [none, gate, cbam, se]}
  model.attention_width: {choice: [0.25, 0.5], when: {model.attention: [gate, cbam]}}
  loss.classification_weight: {uniform: [0.1, 2.0], when: {tasks: both}}
""")
    space = SearchSpace.load(file)
    assert space.objectives == ("dice", "macro_f1")
    assert set(yaml.safe_load(file.read_text())) == set(SearchSpace.model_fields) - {"joint"}


def test_trials_are_shared_out_and_replaced(make: Make) -> None:
    assert SearchSpace.load(make(trials=5)).shares() == {"unet": 3, "joint_unet": 2}
    assert SearchSpace.load(make(), trials=9).shares() == {"unet": 5, "joint_unet": 4}
    joint = make(architectures=["unet", "attention_unet"], joint=True)
    assert SearchSpace.load(joint).shares() == {"small": 4}
    assert SearchSpace.load(make(), folds=3).folds == 3


def test_a_fixed_setting_replaces_an_override(make: Make) -> None:
    space = SearchSpace.load(make(overrides={"training.epochs": 9}), overrides={"training.epochs": 8})
    assert space.experiment("unet", {}).training.epochs == 8
    with pytest.raises(ConfigError, match=r"--set optim\.lr: is searched"):
        SearchSpace.load(make(), overrides={"optim.lr": 1e-3})


def test_a_fixed_setting_without_effect_in_any_trial_is_refused(make: Make) -> None:
    smoothing = {"loss.label_smoothing": 0.1}
    assert SearchSpace.load(make(), overrides=smoothing).experiment("joint_unet", {}).loss.label_smoothing == 0.1
    SearchSpace.load(make(architectures=["unet"], overrides=smoothing))  # a space's may be for other architectures
    with pytest.raises(ConfigError, match=r"--set loss\.label_smoothing: has no effect on unet"):
        SearchSpace.load(make(architectures=["unet"]), overrides=smoothing)
    validation = {"data.validation": 0.1}
    with pytest.raises(ConfigError, match=r"--set data\.validation: has no effect where nothing is chosen by it"):
        SearchSpace.load(make(), overrides=validation)
    half = {"training.half_size": 0}
    schedules = {"schedule.name": {"choice": ["plateau", "one_cycle"]}}
    SearchSpace.load(make(overrides=half, parameters=schedules), overrides=validation)


def test_a_condition_on_a_parameter(make: Make) -> None:
    space = SearchSpace.load(
        make(
            parameters={
                "model.attention": {"choice": ["none", "gate", "cbam"]},
                "model.attention_width": {"choice": [0.25, 0.5], "when": {"model.attention": ["gate", "cbam"]}},
            }
        )
    )
    asked = [values for _, values in ask(space, "unet")]
    assert {values["model.attention"] for values in asked} == {"none", "gate", "cbam"}
    assert all(("model.attention_width" in values) == (values["model.attention"] != "none") for values in asked)


def test_a_condition_on_a_condition(make: Make) -> None:
    space = SearchSpace.load(
        make(
            parameters={
                "optim.name": {"choice": ["adam", "sgd"]},
                "optim.nesterov": {"choice": [True, False], "when": {"optim.name": "sgd"}},
                "optim.momentum": {"uniform": [0.5, 0.9], "when": {"optim.nesterov": True}},
            }
        )
    )
    asked = [values for _, values in ask(space, "unet")]
    assert {frozenset(values) for values in asked} == {
        frozenset({"optim.name"}),
        frozenset({"optim.name", "optim.nesterov"}),
        frozenset({"optim.name", "optim.nesterov", "optim.momentum"}),
    }
    assert all(values.get("optim.nesterov", False) == ("optim.momentum" in values) for values in asked)


@pytest.mark.parametrize(
    ("when", "users"),
    [
        ({"tasks": "both"}, {"joint_unet"}),
        ({"tasks": ["segmentation", "both"]}, {"unet", "attention_unet", "joint_unet"}),
        ({"model.name": "attention_unet"}, {"attention_unet"}),
        ({"model.attention": "gate"}, {"attention_unet"}),
        ({"model.attention": ["none", "gate"], "tasks": "segmentation"}, {"unet", "attention_unet"}),
    ],
)
def test_a_condition_on_the_architecture(make: Make, when: dict[str, Any], users: set[str]) -> None:
    names = ["unet", "attention_unet", "classifier", "joint_unet"]
    space = SearchSpace.load(
        make(architectures=names, parameters={"augment.rotate": {"uniform": [0, 30], "when": when}})
    )
    assert {name for name in names if any(values for _, values in ask(space, name, 3))} == users


def test_a_joint_study_asks_for_the_architecture_first(make: Make) -> None:
    parameters = {
        "optim.lr": {"log_uniform": [1e-4, 1e-2]},
        "model.attention_width": {"choice": [0.25, 0.5], "when": {"model.name": "attention_unet"}},
    }
    space = SearchSpace.load(make(architectures=["unet", "attention_unet"], joint=True, parameters=parameters))
    asked = ask(space, None)
    assert {name for name, _ in asked} == {"unet", "attention_unet"}
    assert all(("model.attention_width" in values) == (name == "attention_unet") for name, values in asked)
    assert space.defaults("unet") == {"model.name": "unet", "optim.lr": 1e-2}


def test_distributions_are_those_of_the_file(make: Make) -> None:
    space = SearchSpace.load(
        make(
            parameters={
                "optim.lr": {"log_uniform": [1e-4, 1e-2]},
                "augment.rotate": {"uniform": [0, 30]},
                "training.epochs": {"int": [4, 6]},
                "optim.clip_norm": {"choice": [None, 1.0]},
            }
        )
    )
    trial = optuna.create_study().ask()
    space.suggest(trial, "unet")
    assert trial.distributions == {
        "optim.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "augment.rotate": optuna.distributions.FloatDistribution(0, 30),
        "training.epochs": optuna.distributions.IntDistribution(4, 6),
        "optim.clip_norm": optuna.distributions.CategoricalDistribution((None, 1.0)),
    }


def test_a_base_that_is_a_file_lies_beside_the_space(make: Make, tmp_path: Path) -> None:
    """At a path and at a URL alike; the settings are written down, so that nothing later depends on the file."""
    base = tmp_path / "mine" / "base.yaml"
    base.parent.mkdir()
    base.write_text("optim: {name: adamw, lr: 0.003}")
    file = make(base="mine/base.yaml")
    space = SearchSpace.load(file)
    fs = fsspec.filesystem("memory")
    fs.pipe({"/spaces/space.yaml": file.read_bytes(), "/spaces/mine/base.yaml": base.read_bytes()})
    remote = SearchSpace.load("memory://spaces/space.yaml")
    absolute = SearchSpace.load(make(base=str(base)))
    base.unlink()
    written = SearchSpace.load(make(base=space.settings()["base"]))
    for loaded in (space, remote, absolute, written):
        assert loaded.experiment("unet", {}).optim.lr == 0.003
        assert loaded.digest == space.digest
    with pytest.raises(ConfigError, match=rf"space\.yaml: base: {tmp_path}/mine/base\.yaml: no such file"):
        SearchSpace.load(make(base="mine/base.yaml"))
    with pytest.raises(ConfigError, match=r"memory://spaces/none\.yaml: no such file"):
        SearchSpace.load("memory://spaces/none.yaml")


def test_the_first_trial_is_the_base_recipe(make: Make) -> None:
    parameters = {
        "optim.lr": {"log_uniform": [1e-4, 1e-2]},
        "training.epochs": {"int": [4, 6]},  # the recipe's lie outside
        "model.attention": {"choice": ["none", "gate"]},
        "model.attention_width": {"choice": [0.25, 0.5], "when": {"model.attention": "gate"}},
    }
    space = SearchSpace.load(make(parameters=parameters))
    defaults = space.defaults("unet")
    assert defaults == {"optim.lr": 1e-2, "model.attention": "none"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(defaults)
    _, values = space.suggest(study.ask(), "unet")
    assert values.items() >= defaults.items()
    assert 4 <= values["training.epochs"] <= 6


def test_digest_is_of_what_a_trial_means(make: Make) -> None:
    digest = SearchSpace.load(make()).digest
    assert SearchSpace.load(make(trials=50, resources={"max_concurrent": 3})).digest == digest
    for change in (
        {"objectives": ["dice", "iou"]},
        {"racing": {"level": 0.05}},
        {"folds": 3},
        {"base": "papers/unet"},
        {"sampler": {"seed": 1}},
        {"overrides": {"model.width": 8}},
    ):
        assert SearchSpace.load(make(**change)).digest != digest


LR = {"log_uniform": [1e-4, 1e-2]}
ATTENTION = {"choice": ["none", "gate"]}
ALL = ["unet", "classifier", "joint_unet"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"trails": 3}, "trails: no such field; fields: name, architectures"),
        ({"architectures": ["unet", "vgg"]}, "'vgg' is not an architecture; known: attention_unet"),
        ({"architectures": {"unet": {"model.widht": 8}}}, "unet: model: widht: no such field"),
        ({"architectures": {"unet": {"model.name": "joint_unet"}}}, "no other architecture's name"),
        ({"architectures": {"../up": {"model.name": "unet"}}}, "'../up' cannot stand for unet: expected letters"),
        ({"architectures": {"plain": {"model.name": "vgg"}}}, "'vgg' is not an architecture"),
        ({"architectures": {"plain": {}}}, "says which it is: {model.name: attention_unet}"),
        ({"architectures": ["cascade"]}, "braintum cascade --help"),
        ({"architectures": {"unet": {"training.seed": 1}}}, "training.seed: has no effect"),
        ({"architectures": ["unet", "unet"]}, "an architecture stands there twice"),
        ({"architectures": None}, "architectures: missing"),
        ({"name": "a/b"}, "space.yaml: name: 'a/b': expected letters A to Z, digits, _ and -, a letter or digit first"),
        ({"architectures": []}, "architectures: expected 1 or more, found none"),
        ({"base": 3}, "space.yaml: base: 3: Input should be a valid string or an object"),
        ({"base": "papers/vgg"}, "recipes: fast"),
        ({"overrides": {"training.seed": 5}}, "training.seed: has no effect"),
        ({"overrides": {"optim.lrr": 1}}, "optim.lrr: no such field"),
        ({"overrides": {"model.name": "unet"}}, "listed under `architectures`"),
        ({"trials": 1}, "trials: 1: too few for 2 architectures"),
        ({"trials": None}, "trials: expected 1 or more, found none"),
        ({"parameters": None}, "trials: has no effect without parameters"),
        ({"parameters": None, "trials": None, "joint": True}, "joint: has no effect without parameters"),
        ({"parameters": None, "trials": None, "scheduler": {"name": "none"}}, "scheduler: has no effect without"),
        ({"parameters": None, "trials": None, "score": {"dice": 1.0}}, "score: has no effect without parameters"),
        ({"parameters": None, "trials": None, "sampler": {"name": "gp"}}, "sampler.name: has no effect without"),
        ({"folds": 1}, "folds: 1: Input should be greater than or equal to 2"),
        ({"resources": {"gpu": 1}}, "resources.gpu: no such field; fields: workers, gpus_per_worker"),
        ({"resources": {"workers": 2, "trials_per_gpu": 2}}, "trials share a GPU only with workers: 1"),
        (
            {"resources": {"max_concurrent": "x"}},
            "yaml: resources.max_concurrent: 'x': Input should be 'auto' or a valid int",
        ),
        ({"resources": {"max_concurrent": 0}}, "max_concurrent: 0: expected auto or a number from 1"),
        ({"score": {"loss": 1.0}}, "'loss' is not known after every epoch; choose from dice"),
        ({"score": {"dice": -1.0}}, "dice: -1.0: the weight must be above 0"),
        ({"score": {"macro_f1": 1.0}}, "score: macro_f1: unet has none of these metrics"),
        ({"objectives": ["dice", "loss"]}, "objectives: ['dice', 'loss']: 'loss' is not known; choose from dice"),
        ({"objectives": ["dice", "dice"]}, "objectives: ['dice', 'dice']: 'dice' stands there twice; remove one"),
        ({"racing": {"level": 1.0}}, "racing.level: 1.0: Input should be less than 1"),
        ({"racing": {"folds": 1}}, "racing.folds: no such field; fields: level"),
        ({"parameters": None, "trials": None, "racing": {}}, "racing: has no effect without parameters"),
        ({"objectives": ["dice", "accuracy"], "architectures": ["unet"]}, "the architectures are unet"),
        ({"joint": True}, "scores of architectures with different tasks do not compare"),
        ({"sampler": {"name": "annealing"}}, "sampler.name: 'annealing'"),
        ({"scheduler": {"name": "none", "grace_epochs": 3}}, "grace_epochs has no effect with name=none"),
        ({"scheduler": {"grace_epochs": 12}, "overrides": {"training.epochs": 6}}, "the epochs of a trial, 12"),
        ({"parameters": {"optim.lrr": LR}}, "parameters.optim.lrr: no such field of unet; did you mean optim.lr"),
        ({"parameters": {"zzz.q": LR}}, "no such field of unet; parts: data, model"),
        ({"parameters": {"model.name": ATTENTION}}, "listed under `architectures`"),
        ({"parameters": {"optim.lr": {"log_uniform": [1e-4, 100]}}}, "optim.lr: 100"),
        ({"parameters": {"optim.lr": {"log_uniform": [0, 1]}}}, "must start above 0"),
        ({"parameters": {"optim.lr": {"uniform": [1, 0.1]}}}, "the first number must be less than the second"),
        ({"parameters": {"optim.lr": {"uniform": [0.1, 1], "choice": [1]}}}, "expected one of log_uniform"),
        ({"parameters": {"optim.lr": {}}}, "expected one of log_uniform, uniform, int, choice; found none"),
        ({"parameters": {"optim.lr": {"normal": [0, 1]}}}, "optim.lr.normal: no such field; fields: log_uniform"),
        ({"parameters": {"model.attention": {"choice": ["none", "gated"]}}}, "attention: 'gated'"),
        ({"parameters": {"model.attention": {"choice": []}}}, "attention.choice: []: expected 1 or more, found none"),
        (
            {"parameters": {"model.attention": {"choice": [["gate"]]}}},
            "space.yaml: parameters.model.attention.choice.0: ['gate']: Input should be a valid string or a valid",
        ),
        ({"parameters": {"optim.lr": {"uniform": [1]}}}, "optim.lr.uniform.1: missing"),
        ({"parameters": {"optim.lr": {"uniform": [1, 2, 3]}}}, "uniform: [1, 2, 3]: expected 2, found 3"),
        (
            {"parameters": {"training.epochs": {"uniform": [2, 4.5]}}},
            "training.epochs: 2.0: Input should be a valid integer",
        ),
        ({"parameters": {"data.image_size": {"int": [64, 96]}}}, "65 is not divisible by 16"),
        (
            {"architectures": ALL, "parameters": {"model.attention": ATTENTION}},
            "when: {model.name: [unet, joint_unet]}",
        ),
        ({"parameters": {"loss.classification_weight": LR}}, "has no effect on unet, which has segmentation only"),
        (
            {"parameters": {"data.validation": {"uniform": [0.1, 0.3]}}},
            "parameters.data.validation: has no effect where nothing is chosen by it",
        ),
        (
            {"parameters": {"model.attention_width": {"choice": [0.5], "when": {"model.attention": "gate"}}}},
            "when: holds for no architecture of unet, joint_unet",
        ),
        (
            {"parameters": {"optim.lr": {**LR, "when": {"model.attention": "gate"}}, "model.attention": ATTENTION}},
            "when.model.attention: must stand before optim.lr",
        ),
        (
            {"parameters": {"model.attention": ATTENTION, "optim.lr": {**LR, "when": {"model.attention": "cbma"}}}},
            "'cbma' cannot occur; it is one of none, gate",
        ),
        (
            {"parameters": {"optim.lr": {**LR, "when": {"model.atention": "gate"}}}},
            "parameters.optim.lr.when.model.atention: no such field; did you mean model.attention",
        ),
        ({"parameters": {"optim.lr": {**LR, "when": {"tasks": "joint"}}}}, "'joint' cannot occur"),
        ({"parameters": {"optim.lr": {**LR, "when": {"optim.lr": 1}}}}, "optim.lr"),
        ({"parameters": {"model.classify": {"choice": [True, False]}}}, "changes the tasks of unet"),
        (
            {"parameters": {"data.image_size": {"choice": [96, 128]}, "model.depth": {"int": [3, 6]}}},
            "data.image_size: 96 is not divisible by 64",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(make: Make, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        SearchSpace.load(make(**fields))
    assert says in str(refusal.value)
    assert "space.yaml: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a: [", "bad.yaml: not valid YAML: line 1, column 5: expected the node content, but found the end$"),
        (b"a: &a [*a]", "Circular"),
        (b"[]", "expected a search space"),
        (b"\xfc", "not UTF-8"),
        (b"name: a\ntrials: 4\ntrials: 8", "bad.yaml: line 3: trials: stands there twice, first in line 2"),
        (b"parameters: {optim.lr: {choice: [1], choice: [2]}}", "line 1: choice: stands there twice"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=says):
        SearchSpace.load(file)
    with pytest.raises(ConfigError, match=r"no such file; .* or one of braintum's: all_architectures, all_archi"):
        SearchSpace.load(tmp_path / "none.yaml")
    (tmp_path / "dd.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"dd\.yaml: a folder; give a \.yaml file in it"):
        SearchSpace.load(tmp_path / "dd.yaml")

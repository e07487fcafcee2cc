"""Experiment: what is refused and how it says so, overrides, recipes, digest, JSON Schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from braintum.config import Experiment, json_schema, parse_overrides, recipes
from braintum.models.registry import ModelConfig, architectures, register
from braintum.settings import ConfigError


def test_defaults_are_the_u_net_papers() -> None:
    experiment = Experiment()
    assert (experiment.optim.name, experiment.optim.lr, experiment.training.batch_size) == ("adam", 1e-4, 16)
    assert (experiment.schedule.name, experiment.schedule.factor, experiment.schedule.patience) == ("plateau", 0.5, 7)
    assert (experiment.training.epochs, experiment.training.early_stopping) == (100, 15)
    assert (experiment.data.image_size, experiment.augment.rotate) == (256, 15)
    assert experiment == Experiment.load("papers/unet")


def test_recipe_of_the_braintumnet_paper() -> None:
    experiment = Experiment.load("papers/braintumnet")
    assert (experiment.optim.name, experiment.optim.lr, experiment.training.batch_size) == ("adam", 1e-4, 16)
    assert (experiment.schedule.name, experiment.training.epochs) == ("cosine", 250)
    assert (experiment.loss.segmentation_weight, experiment.loss.classification_weight) == (1.0, 0.7)
    assert (experiment.augment.rotate, experiment.augment.flip_horizontal, experiment.augment.flip_vertical) == (
        30,
        0.5,
        0.5,
    )
    assert not experiment.needs_validation


@pytest.mark.parametrize("recipe", recipes())
def test_shipped_recipe_loads_for_every_architecture(recipe: str) -> None:
    for architecture in architectures():
        assert Experiment.load(recipe, {"model.name": architecture}).model.name == architecture


@pytest.mark.parametrize("architecture", architectures())
def test_reading_back_what_was_written_changes_nothing(architecture: str) -> None:
    experiment = Experiment.load("fast", {"model.name": architecture, "optim.weight_decay": 3})
    read = Experiment.from_dict(yaml.safe_load(experiment.to_yaml()))
    assert read == experiment
    assert read.digest == experiment.digest


def test_early_stopping_that_is_off_stays_off(tmp_path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(Experiment.load("fast").to_yaml())
    assert Experiment.load(file).training.early_stopping is None


def test_digest_is_that_of_the_resolved_settings(tmp_path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("optim: {name: adam, beta1: 0.9}\n")  # both are defaults
    assert Experiment.load(file).digest == Experiment().digest
    assert Experiment.load(file, {"optim.beta1": 0.95}).digest != Experiment().digest


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("optim.lrr=1", "optim.lrr: no such field; fields: name, lr,"),
        ("optimizer.lr=1", "'optimizer' is not a part; parts: data, model,"),
        ("lr=1", "lr: expected a path of two parts, such as optim.lr"),
        ("model.name=vgg", "'vgg' is not an architecture; known: attention_unet, "),
        ("model.widht=8", "widht: no such field; fields of unet: name, init_from,"),
        ("model.width=0", "width: 0: Input should be greater than or equal to 1"),
        ("optim.lr=fast", "optim.lr: 'fast': Input should be a valid number"),
        ("optim.name=lion", "optim.name: 'lion': Input should be 'adam', 'adamw' or 'sgd'"),
        ("optim.momentum=0.9", "momentum has no effect with name=adam; it belongs to sgd. Leave it out"),
        ("schedule.warmup_epochs=3", "warmup_epochs has no effect with name=plateau; it belongs to cosine"),
        ("data.region=tumour", "data.region: 'tumour' would show unet what it has to find; set it to whole"),
        ("data.region=skull", "data.region: 'skull': Input should be 'whole', 'tumour', 'oedema' or 'crop'"),
        ("data.margin=0.5", "margin has no effect with region=whole; it belongs to crop. Leave it out"),
        ("training.average_decay=0.9", "average_decay has no effect with weights=best; it belongs to average"),
        (
            "loss.tversky_beta=0.5",
            "tversky_beta has no effect with segmentation=bce_dice; it belongs to tversky, focal_",
        ),
        (
            "loss.balancing_lr=0.1",
            "balancing_lr has no effect with balancing=fixed; it belongs to uncertainty, gradnorm",
        ),
        ("loss.balancing=sum", "loss.balancing: 'sum': Input should be 'fixed', 'uncertainty', 'dwa', "),
        ("training.batch_size=1.5", "training.batch_size: 1.5: Input should be a valid integer"),
        ("training.batch_size=true", "training.batch_size: True: Input should be a valid integer"),
        ("data.image_size=100", "data.image_size: 100 is not divisible by 16, which unet needs"),
        ("loss.segmentation_weight=0", "loss: every task of unet has weight 0, so nothing would be trained"),
        ("data.classes=[glioma]", "classes: a classifier needs two or more classes"),
        ("data.classes={a: [x], b: [x]}", "classes: label 'x' is in two classes"),
        ("model.attention_width=0.5", "attention_width has no effect with attention=none"),
        ("data.classes={a: x, b: y}", "data.classes.a: 'x': Input should be a valid"),
        ("data.classes=[1, 2]", "data.classes: [1, 2]: Input should be"),
        ("data.classes=[[glioma], [meningioma]]", "data.classes: [['glioma'], ['meningioma']]: Input should be"),
        (
            "data.classes={g: [glioma], m: [meningioma], ghost: []}",
            "data.classes: class 'ghost' has no labels; list them",
        ),
        ("optim.lr=2026-01-31", "optim.lr: '2026-01-31': Input should be a valid number"),
        ("optim.lr=!!float x", "--set optim.lr=!!float x: not valid YAML: could not convert string to float: 'x'"),
        ("optim.lr=!!binary eA==", "bytes"),
        ("optim.lr=&a [*a]", "Circular"),
        ("optim.lr=[1", "--set optim.lr=[1: not valid YAML: line 1, column 3: expected ',' or ']', but got the end"),
        ("optim.lr=\0", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("optim.lr=null", "optim.lr: None: Input should be a valid number"),
        ("optim.name=[adam]", "optim.name: ['adam']: Input should be 'adam', 'adamw' or 'sgd'"),
        ("training.seed=4294967296", "training.seed: 4294967296: Input should be less than 4294967296"),
        ("optim.lr=.nan", "optim.lr"),
        ("optim.weight_decay=.inf", "optim.weight_decay"),
        ("loss.classification_weight=.inf", "loss.classification_weight"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Experiment.load(None, parse_overrides([assignment]))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_wrong_fields_are_both_named() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr: .*; training\.epochs: "):
        Experiment.load(None, {"optim.lr": -1, "training.epochs": 0})


def test_cosine_warmup_must_end() -> None:
    changes = {"schedule.name": "cosine", "schedule.warmup_epochs": 5, "training.epochs": 5}
    with pytest.raises(ConfigError, match=r"schedule\.warmup_epochs: must be less than training\.epochs"):
        Experiment.load(None, changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            b"optim:\n  lr: [",
            r"bad.yaml: not valid YAML: line 2, column 8: expected the node content, but found the end$",
        ),
        (b"- 1", "expected settings"),
        (b"optim: {lr: 1}\nloss: {}\noptim: {}", "bad.yaml: line 3: optim: stands there twice, first in line 1"),
        (b"optim:\n  lr: 1\n  lr: 2", "line 3: lr: stands there twice, first in line 2; remove one"),
        (b"optim: 3", "optim: 3: Input should be an object"),
        (b"optim: [1]", "optim: .* Input should be an object"),
        (b"optimm:", "optimm: no such field"),
        (b"# \xfc", r"not UTF-8 text \(byte 2\); save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("overrides", [{}, {"optim.lr": 1e-3}, {"optim.name": "sgd"}])
def test_a_file_that_is_no_experiment_is_refused(tmp_path, text: bytes, says: str, overrides: dict[str, Any]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=says) as refusal:
        Experiment.load(file, overrides)
    assert "\n" not in str(refusal.value)
    assert "bad.yaml" in str(refusal.value)


def test_a_part_without_content_has_its_defaults(tmp_path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("optim:\nmodel:\n")
    assert Experiment.load(file) == Experiment()
    assert Experiment.load(file, {"optim.lr": 1e-3}) == Experiment.load(None, {"optim.lr": 1e-3})


def test_an_option_that_is_null_is_not_given() -> None:
    assert Experiment.load(None, {"optim.beta1": None, "optim.momentum": None, "optim.clip_norm": None}) == Experiment()


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere.yaml", "no such file"), ("papers/unett", "recipes: fast, papers/braintumnet, papers/unet")],
)
def test_a_recipe_that_is_not_there(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Experiment.load(name)


def test_a_folder_is_no_file(tmp_path) -> None:
    (tmp_path / "dd.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"dd\.yaml: a folder; give a \.yaml file in it"):
        Experiment.load(tmp_path / "dd.yaml")


def test_numbers_are_read_as_people_write_them() -> None:
    assert parse_overrides(["optim.lr=1e-4", "a.b=none", "c.d=null", "e.f=[x, y]"]) == {
        "optim.lr": 1e-4,
        "a.b": "none",
        "c.d": None,
        "e.f": ["x", "y"],
    }
    with pytest.raises(ConfigError, match="expected path=value"):
        parse_overrides(["optim.lr"])


def test_a_variable_that_is_not_set_is_no_value() -> None:
    for assignment in ("model.init_from=", "model.init_from= "):
        with pytest.raises(ConfigError, match="no value, as of a variable that is not set; give null for none"):
            parse_overrides([assignment])
    with pytest.raises(ConfigError, match="init_from"):
        Experiment.load(None, parse_overrides(["model.init_from=''"]))
    assert Experiment.load(None, parse_overrides(["model.init_from=null"])).model.init_from is None


def test_a_path_is_seen_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given, meant in (("~/a", f"{tmp_path}/home/a"), ("a", f"{tmp_path}/a"), ("s3://x/~/a", "s3://x/~/a")):
        assert Experiment.load(None, parse_overrides([f"model.init_from={given}"])).model.init_from == meant


def test_another_name_starts_that_part_afresh() -> None:
    experiment = Experiment.load("fast", {"optim.lr": 0.1, "optim.name": "sgd"})
    assert (experiment.optim.name, experiment.optim.lr, experiment.optim.momentum) == ("sgd", 0.1, 0.9)
    assert (experiment.optim.beta1, experiment.optim.weight_decay) == (None, 0.0)
    assert experiment.training == Experiment.load("fast").training


def test_the_same_name_keeps_the_part(tmp_path) -> None:
    assert Experiment.load("fast", {"optim.name": "adamw"}) == Experiment.load("fast")
    file = tmp_path / "x.yaml"
    file.write_text("optim: {lr: 0.5}\nmodel: {width: 8}\n")
    assert Experiment.load(file, {"optim.name": "adam", "model.name": "unet"}) == Experiment.load(file)


def test_classes_as_a_list_are_short_for_a_map() -> None:
    experiment = Experiment.load(None, parse_overrides(["data.classes=[glioma, meningioma]"]))
    assert experiment.data.classes == {"glioma": ("glioma",), "meningioma": ("meningioma",)}


def test_classes_can_be_merged() -> None:
    experiment = Experiment.load(
        None, parse_overrides(["data.classes={tumour: [glioma, meningioma], none: [no_tumor]}"])
    )
    assert experiment.data.classes == {"tumour": ("glioma", "meningioma"), "none": ("no_tumor",)}
    assert Experiment.from_dict(experiment.to_dict()) == experiment


def test_an_option_of_the_default_architecture_needs_no_name() -> None:
    assert Experiment.load(None, {"model.width": 8}).model.model_dump()["width"] == 8


def test_validation_is_needed_where_something_is_chosen() -> None:
    fixed = {"training.weights": "last", "training.early_stopping": None, "schedule.name": "constant"}
    assert not Experiment.load(None, fixed).needs_validation
    for change in ({"training.weights": "best"}, {"training.early_stopping": 3}, {"schedule.name": "plateau"}):
        assert Experiment.load(None, {**fixed, **change}).needs_validation


def test_presets_are_options_of_one_network() -> None:
    presets = {name: Experiment.load(None, {"model.name": name}).model for name in ("unet", "attention_unet")}
    assert presets["attention_unet"].model_dump(exclude={"name"}) == {
        **presets["unet"].model_dump(exclude={"name"}),
        "attention": "gate",
    }
    assert Experiment.load(None, {"model.name": "joint_unet"}).model.tasks == {"segmentation", "classification"}


def test_an_architecture_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'unet' is registered twice"):

        @register("unet")
        class Second(ModelConfig):
            pass


def test_schema_names_every_field_of_every_architecture() -> None:
    schema = json_schema()
    assert {option["$ref"].removeprefix("#/$defs/model_") for option in schema["properties"]["model"]["oneOf"]} == set(
        architectures()
    )
    assert schema["$defs"]["model_attention_unet"]["properties"]["attention"]["default"] == "gate"
    assert set(schema["properties"]) == set(Experiment.model_fields)


def test_schema_accepts_what_experiment_accepts() -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    good = [
        *(Experiment.load(recipe, {"model.name": name}).to_dict() for recipe in recipes() for name in architectures()),
        {"model": {"width": 8}, "optim": {"lr": 1}},
        {"model": {"name": "classifier", "hidden": 8}},
        {"data": {"classes": ["glioma", "meningioma"]}},
        {"data": {"classes": {"tumour": ["glioma", "meningioma"], "none": ["no_tumor"]}}},
    ]
    bad: list[dict[str, Any]] = [
        {"model": {"name": "vgg"}},
        {"model": {"hidden": 8}},
        {"data": {"classes": [1, 2]}},
        {"data": {"classes": {"glioma": ["glioma"], "meningioma": ["meningioma"], "ghost": []}}},
        {"optim": {"lr": None}},
    ]
    for settings in good:
        schema.validate(settings)
        Experiment.from_dict(settings)
    for settings in bad:
        assert not schema.is_valid(settings)
        with pytest.raises(ConfigError):
            Experiment.from_dict(settings)


def test_checking_a_configuration_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, braintum.config, braintum.models, braintum.tuning.space, braintum.cli\n"
        "braintum.config.Experiment.load('papers/unet')\n"
        "braintum.tuning.space.SearchSpace.load('search_spaces/all_architectures.yaml')\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'optuna', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("architecture", ["joint_unet", "classifier"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_deepest_stage_of_one_pixel_has_no_norm_over_pixels(architecture: str, norm: str) -> None:
    settings = {"model.name": architecture, "data.image_size": 16}
    with pytest.raises(ConfigError, match=f"16 is too small for {architecture} with these options, which needs 32"):
        Experiment.load(None, {**settings, "model.norm": norm})
    assert Experiment.load(None, {**settings, "model.norm": "group"}).data.image_size == 16


def test_predictions_are_averaged_over_flips_only_where_there_are_flips() -> None:
    with pytest.raises(ConfigError, match="test_time has no effect without flips"):
        Experiment.load("fast", {"augment.flip_horizontal": 0.0, "augment.flip_vertical": 0.0})


@pytest.mark.parametrize(
    "settings",
    [
        {"training.weights": "best"},
        {"schedule.name": "plateau"},
        {"training.early_stopping": 3},
    ],
)
def test_nothing_is_chosen_among_epochs_of_two_sizes(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training.half_size: choices inside a run compare its epochs"):
        Experiment.load("fast", {"training.half_size": 0.5, **settings})
    assert Experiment.load("fast", {"training.half_size": 0, **settings}).needs_validation


@pytest.mark.parametrize(("size", "half"), [(128, 64), (64, 32), (48, 32), (240, 128), (32, 32)])
def test_half_size_is_one_that_the_model_takes(size: int, half: int) -> None:
    assert Experiment.load("fast", {"data.image_size": size, "model.depth": 4}).half_side == half


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim: nesterov needs a momentum above 0"):
        Experiment.load(None, {"optim.name": "sgd", "optim.momentum": 0.0})
    Experiment.load(None, {"optim.name": "sgd", "optim.momentum": 0.0, "optim.nesterov": False})


def test_other_weights_leave_the_decay_of_averaged_ones_behind() -> None:
    recipe = Experiment.load("fast", {"training.weights": "last"})
    assert recipe.training.average_decay is None
    assert Experiment.load("fast").with_overrides({"training.weights": "last"}) == recipe


def test_each_choice_of_a_loss_has_options_of_its_own() -> None:
    joint = {"model.name": "joint_unet"}
    loss = Experiment.load("fast", {**joint, "loss.segmentation": "focal_tversky", "loss.balancing": "gradnorm"}).loss
    assert (loss.tversky_beta, loss.focal_gamma, loss.boundary_weight) == (0.7, pytest.approx(4 / 3), None)
    assert (loss.balancing_lr, loss.gradnorm_asymmetry, loss.dwa_temperature) == (0.025, 1.5, None)
    assert (loss.segmentation_weight, loss.classification_weight) == (None, None), "the recipe's belonged to fixed"
    with pytest.raises(
        ConfigError, match="classification_weight has no effect with balancing=mgda; it belongs to fixed"
    ):
        Experiment.load("fast", {"loss.balancing": "mgda", "loss.classification_weight": 0.3})
    both = {"loss.segmentation": "tversky", "loss.balancing": "cagrad"}
    with pytest.raises(ConfigError, match="cagrad_c has no effect with balancing=mgda"):
        Experiment.load(None, {**joint, **both, "loss.balancing": "mgda", "loss.cagrad_c": 0.1})


def test_another_choice_leaves_the_options_of_the_last_one_behind() -> None:
    """A shared name too: what was right for one is not for another."""
    uncertain = Experiment.load("fast", {"loss.balancing": "uncertainty"})
    assert uncertain.loss.balancing_lr == 0.01
    assert uncertain.with_overrides({"loss.balancing": "gradnorm"}).loss.balancing_lr == 0.025
    assert uncertain.with_overrides({"loss.balancing": "fixed"}).loss.classification_weight == 1.0
    slow = uncertain.with_overrides({"loss.balancing_lr": 0.5})
    assert slow.with_overrides({"loss.balancing": "uncertainty", "optim.lr": 0.1}).loss.balancing_lr == 0.5
    assert Experiment.load("fast", {"loss.balancing": "fixed"}).loss.classification_weight == 0.3
    tversky = Experiment.load("fast", {"loss.segmentation": "tversky", "loss.tversky_beta": 0.6})
    assert tversky.loss.classification_weight == 0.3, "of another choice"
    assert tversky.with_overrides({"loss.segmentation": "focal_tversky"}).loss.tversky_beta == 0.7
    assert Experiment.from_dict(tversky.to_dict()) == tversky


def test_two_tasks_are_balanced_where_there_are_two() -> None:
    for name, tasks in (("unet", "segmentation"), ("classifier", "classification")):
        without = Experiment.load("fast", {"model.name": name}).without_effect
        for field in ("balancing", "balancing_lr", "dwa_temperature", "gradnorm_asymmetry", "cagrad_c"):
            assert without[f"loss.{field}"] == f"on {name}, which has {tasks} only"
    joint = Experiment.load("fast", {"model.name": "joint_unet"}).without_effect
    assert not any(path.startswith("loss.") for path in joint)
    classifier = Experiment.load("fast", {"model.name": "classifier"}).without_effect
    assert {"loss.tversky_beta", "loss.focal_gamma", "loss.boundary_weight"} <= set(classifier)
    assert "loss.segmentation_weight" not in Experiment.load("fast", {"model.name": "unet"}).without_effect


def test_weights_of_zero_are_refused_where_they_are_used() -> None:
    zero = {"loss.segmentation_weight": 0.0, "loss.classification_weight": 0.0}
    with pytest.raises(ConfigError, match="every task of joint_unet has weight 0"):
        Experiment.load("fast", zero)
    Experiment.load("fast", {"loss.balancing": "dwa"})


def test_a_crop_has_a_margin_of_its_own() -> None:
    crop = Experiment.load(None, {"model.name": "classifier", "data.region": "crop"})
    assert crop.data.margin == 0.25
    assert Experiment.from_dict(crop.to_dict()) == crop
    assert crop.with_overrides({"data.margin": 0.5}).data.margin == 0.5
    assert crop.with_overrides({"data.region": "tumour"}).data.margin is None, "it belonged to the crop"
    with pytest.raises(ConfigError, match="margin has no effect"):
        crop.with_overrides({"data.region": "tumour", "data.margin": 0.5})
    for region in ("crop", "tumour", "oedema"):
        with pytest.raises(ConfigError, match=f"data.region: '{region}' would show joint_unet what it has to find"):
            Experiment.load("fast", {"data.region": region})

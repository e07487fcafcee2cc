"""What every registered architecture must do, as small as it comes and under every option that changes its network.

The cases come from the registry and from the options' own types: an architecture that is added is tested here without
being named here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.losses.objective import Objective
from braintum.models.output import Output
from braintum.models.registry import ModelConfig, architectures, model_config_class
from braintum.settings import ConfigError

NUM_CLASSES = 3
SIDE = 32
SIDES = (SIDE, 2 * SIDE, 4 * SIDE)


def small_model(options: dict[str, Any], side: int = SIDE) -> ModelConfig:
    small = {**model_config_class(options["name"]).SMALL, **options}
    return Experiment.from_dict({"data": {"image_size": side}, "model": small}).model


def _values(kind: Any) -> tuple[Any, ...]:
    """What an option can be set to, where its type lists that."""
    if kind is bool:
        return (True, False)
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(value for member in get_args(kind) for value in _values(member))


def _variants() -> Iterator[dict[str, Any]]:
    """Every architecture with each listed option, and of its VARIANTS; presets of the same options only once."""
    seen: list[ModelConfig] = []
    for name in architectures():
        cls = model_config_class(name)
        listed = [{field: value} for field, info in cls.model_fields.items() for value in _values(info.annotation)]
        for changed in [*listed, *cls.VARIANTS]:
            options = {"name": name, **changed}
            try:
                config = small_model(options, side_of(options))
            except ConfigError as error:
                if "no effect" not in str(error):
                    raise
                continue  # an option that needs another one
            anonymous = config.model_copy(update={"name": ""})
            if config != small_model({"name": name}) and anonymous not in seen:
                seen.append(anonymous)
                yield options


def side_of(options: dict[str, Any]) -> int:
    """The first of SIDES that an architecture takes with these options."""
    for side in SIDES[:-1]:
        try:
            small_model(options, side)
        except ConfigError as error:
            if "too small" not in str(error):
                raise
        else:
            return side
    return SIDES[-1]


def _ids(options: dict[str, Any]) -> str:
    return "-".join(str(value) if key == "name" else f"{key}={value}" for key, value in options.items())


ARCHITECTURES = [{"name": name} for name in architectures()]
VARIANTS = list(_variants())


@pytest.fixture(params=ARCHITECTURES, ids=_ids)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """Every architecture, small."""
    return small_model(request.param)


@pytest.fixture(params=ARCHITECTURES + VARIANTS, ids=_ids)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every architecture, small, and every one of its listed options."""
    return dict(request.param)


@pytest.fixture
def side(options: dict[str, Any]) -> int:
    return side_of(options)


@pytest.fixture
def variant(options: dict[str, Any], side: int) -> ModelConfig:
    return small_model(options, side)


def build(config: ModelConfig, in_channels: int = 1, num_masks: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return config.build(in_channels, NUM_CLASSES, num_masks)


def images(batch: int = 2, channels: int = 1, side: int = SIDE) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


class Rows:
    """Two rows; each has a target for one task only, and for those that are named."""

    def __init__(self, side: int, targets: tuple[str, ...] = ("masks", "labels")) -> None:
        self.mask_BKHW = (images(side=side) > 0.5).float()
        self.has_mask_B = torch.tensor(["masks" in targets, False])
        self.global_label_B = self.label_B = torch.tensor([-1, 1 if "labels" in targets else -1])
        self.num_masks, self.num_labels = int("masks" in targets), int("labels" in targets)


def tensors(output: Output) -> list[Tensor]:
    """The logits of the output and of its auxiliary outputs."""
    own = [x for x in (output.mask_logits_BKHW, output.class_logits_BN) if x is not None]
    return [*own, *(x for _, auxiliary in output.aux for x in tensors(auxiliary))]


def assert_shapes(config: ModelConfig, channels: int, masks: int, side: int) -> None:
    output = build(config, channels, masks)(images(2, channels, side))
    assert (output.mask_logits_BKHW is not None) == ("segmentation" in config.tasks)
    assert (output.class_logits_BN is not None) == ("classification" in config.tasks)
    if output.mask_logits_BKHW is not None:
        assert output.mask_logits_BKHW.shape == (2, masks, side, side)
    if output.class_logits_BN is not None:
        assert output.class_logits_BN.shape == (2, NUM_CLASSES)
    for weight, auxiliary in output.aux:
        assert weight > 0
        assert all(len(x) == 2 and x.shape[1] in (masks, NUM_CLASSES) for x in tensors(auxiliary))


@pytest.mark.parametrize(("channels", "masks"), [(1, 1), (3, 2)])
def test_outputs_are_logits_of_its_tasks(variant: ModelConfig, side: int, channels: int, masks: int) -> None:
    assert_shapes(variant, channels, masks, side)


@pytest.mark.slow
def test_outputs_at_another_size(options: dict[str, Any], side: int) -> None:
    """Built for twice the side, and given slices of half of that, as a training that begins at half size does."""
    config = small_model(options, 2 * side)
    assert_shapes(config, 3, 2, 2 * side)
    assert_shapes(config, 1, 1, max(config.smallest, side))


def test_outputs_are_logits_not_probabilities(config: ModelConfig) -> None:
    """With weights three times as large, logits leave [0, 1] on both sides; probabilities could not.

    Of several networks: the few logits of one untrained classifier may all have one sign.
    """
    outputs = []
    for seed in range(4):
        model = build(config, num_masks=2, seed=seed).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
            outputs += tensors(model(images(8)))
    for values in outputs:
        assert values.min() < 0 or values.max() > 1
    assert torch.cat([x.flatten() for x in outputs]).min() < 0
    assert torch.cat([x.flatten() for x in outputs]).max() > 1


@pytest.mark.parametrize("targets", [("masks", "labels"), ("masks",), ("labels",), ()], ids="-".join)
def test_every_parameter_gets_a_gradient(config: ModelConfig, targets: tuple[str, ...]) -> None:
    """Whatever targets a batch lacks, or DDP would wait for gradients that never come."""
    model = build(config)
    losses = Objective(Experiment().loss)(model(images()), Rows(SIDE, targets)).losses
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_every_parameter_matters(variant: ModelConfig, side: int) -> None:
    """With targets for all outputs the gradient is not just there: it is not zero (but behind a dead ReLU)."""
    model = build(variant).double().train()
    loss = sum((x**2).sum() for x in tensors(model(images(4, side=side).double())))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_same_seed_same_weights(config: ModelConfig) -> None:
    first, second, other = (build(config, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_saved_weights_give_the_same_answer(config: ModelConfig) -> None:
    model, other = build(config, seed=0), build(config, seed=1)
    model(images())  # moves running statistics, which must be saved too
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    for a, b in zip(tensors(model.eval()(images())), tensors(other.eval()(images())), strict=True):
        assert torch.equal(a, b)


def test_a_row_in_eval_does_not_depend_on_the_others(config: ModelConfig) -> None:
    model = build(config).eval()
    with torch.inference_mode():
        whole, again, alone = model(images(3)), model(images(3)), model(images(3)[:1])
    assert whole.aux == ()
    for a, b, c in zip(tensors(whole), tensors(again), tensors(alone), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a[:1], c, rtol=1e-3, atol=1e-3)


def test_dropout_is_before_the_classes_and_in_training_only(config: ModelConfig) -> None:
    """With other random layers off, which options say: without any dropout, training has nothing random."""
    fields = type(config).model_fields
    if "dropout" not in fields:
        pytest.skip("has no dropout")
    options = {"name": config.name, **{field: 0.0 for field in fields if "drop" in field}}
    options |= {"classify": True} if "classify" in fields else {}

    def agree(dropout: float, training: bool) -> bool:
        model = build(small_model({**options, "dropout": dropout})).train(training)
        first, second = (model(images(8)).class_logits_BN for _ in range(2))
        return torch.equal(first, second)

    assert agree(0.0, training=True)
    assert not agree(0.9, training=True)
    assert agree(0.9, training=False)


def test_memory_format_changes_nothing(config: ModelConfig) -> None:
    model = build(config).eval()
    with torch.inference_mode():
        expected = tensors(model(images()))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        actual = tensors(model(images().to(memory_format=torch.channels_last)))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)  # another order of sums, magnified by the norms


def test_bfloat16_is_finite(variant: ModelConfig, side: int) -> None:
    model = build(variant)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(side=side))
    loss = sum((x.float() ** 2).mean() for x in tensors(output))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert all(torch.isfinite(x).all() for x in tensors(output))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_size_it_cannot_take_is_refused(config: ModelConfig) -> None:
    if config.divisor == 1:
        pytest.skip("takes every size")
    settings = {"data": {"image_size": SIDE + 1}, "model": config.model_dump(mode="json", exclude_none=True)}
    with pytest.raises(ConfigError, match=f"data.image_size: {SIDE + 1} is not divisible by {config.divisor}"):
        Experiment.from_dict(settings)


def test_the_smallest_slices_and_batch_train(options: dict[str, Any], variant: ModelConfig, side: int) -> None:
    """What is not refused trains: batch norm, for one, has no statistics of one value."""
    smallest = small_model(options, variant.smallest)
    assert smallest.smallest <= variant.smallest
    output = build(smallest)(images(smallest.smallest_batch, side=variant.smallest))
    sum((x**2).sum() for x in tensors(output)).backward()
    with pytest.raises(ConfigError, match=r"too small|not divisible|greater than or equal"):
        small_model(options, variant.smallest - 1)


def test_what_follows_from_the_size_follows_another_size(options: dict[str, Any], side: int) -> None:
    """Also in an Experiment that was saved with what had been filled in."""
    made = Experiment.from_dict({"data": {"image_size": 4 * side}, "model": {"name": options["name"]}})
    other = Experiment.from_dict({"data": {"image_size": 8 * side}, "model": {"name": options["name"]}})
    assert made.with_overrides({"data.image_size": 8 * side}) == other
    small = {**model_config_class(options["name"]).SMALL, "name": options["name"]}
    saved = Experiment.from_dict({"data": {"image_size": 2 * side}, "model": small})
    overrides = {f"model.{field}": value for field, value in options.items() if field != "name"}
    assert saved.with_overrides(overrides).model == small_model(options, 2 * side)


def test_its_small_options_are_small() -> None:
    """SMALL is what tests and first looks on a CPU use: under half a million weights each."""
    for options in ARCHITECTURES:
        count = sum(p.numel() for p in build(small_model(options)).parameters())
        assert count < 500_000, f"{options['name']}: {count:,}"


@pytest.mark.slow
def test_exports(variant: ModelConfig, side: int) -> None:
    model, image = build(variant).eval(), images(5, side=side)
    shapes = {"image_BCHW": {0: torch.export.Dim("batch")}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (images(side=side),), dynamic_shapes=shapes), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for a, b in zip(tensors(loaded(image)), tensors(model(image)), strict=True):
        torch.testing.assert_close(a, b)

"""What every registered architecture must do, under every option that changes its network."""

from __future__ import annotations

from typing import Any

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

SMALL = {"width": 4, "hidden": 8}
NUM_CLASSES, SIZE = 3, 32

UNET_OPTIONS: list[dict[str, Any]] = [
    {"name": "joint_unet", "norm": "instance"},
    {"name": "joint_unet", "norm": "group", "depth": 2, "dropout": 0.1},
    {"name": "joint_unet", "attention": "gate", "attention_width": 0.25},
    {"name": "joint_unet", "attention": "cbam"},
    {"name": "joint_unet", "attention": "se", "norm": "instance"},
    {"name": "classifier", "norm": "instance", "dropout": 0.0},
]
CASES = [{"name": name} for name in architectures()] + UNET_OPTIONS


def small_model(case: dict[str, Any]) -> ModelConfig:
    fields = model_config_class(case["name"]).model_fields
    small = {field: value for field, value in SMALL.items() if field in fields}
    return Experiment.from_dict({"data": {"image_size": SIZE}, "model": {**small, **case}}).model


def build(config: ModelConfig, in_channels: int = 1, num_masks: int = 1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return config.build(in_channels, NUM_CLASSES, num_masks)


def images(batch: int = 2, channels: int = 1) -> Tensor:
    return torch.rand(batch, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Rows:
    """Two rows, each with a target for one task only."""

    mask_BKHW = (images() > 0.5).float()
    has_mask_B = torch.tensor([True, False])
    label_B = torch.tensor([-1, 1])
    global_label_B = label_B
    num_masks = 1
    num_labels = 1


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return small_model(request.param)


def tensors(output: Output) -> list[Tensor]:
    return [x for x in (output.mask_logits_BKHW, output.class_logits_BN) if x is not None]


@pytest.mark.parametrize(("channels", "masks"), [(1, 1), (3, 2)])
def test_outputs_are_logits_of_its_tasks(config: ModelConfig, channels: int, masks: int) -> None:
    output = build(config, channels, masks)(images(2, channels))
    assert (output.mask_logits_BKHW is not None) == ("segmentation" in config.tasks)
    assert (output.class_logits_BN is not None) == ("classification" in config.tasks)
    if output.mask_logits_BKHW is not None:
        assert output.mask_logits_BKHW.shape == (2, masks, SIZE, SIZE)
    if output.class_logits_BN is not None:
        assert output.class_logits_BN.shape == (2, NUM_CLASSES)


def test_outputs_are_logits_not_probabilities(config: ModelConfig) -> None:
    """With weights three times as large, logits leave [0, 1] on both sides; probabilities could not."""
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        values = torch.cat([x.flatten() for x in tensors(model(images(8)))])
    assert values.min() < 0
    assert values.max() > 1


def test_every_parameter_gets_a_gradient(config: ModelConfig) -> None:
    model = build(config)
    Objective(Experiment().loss)(model(images()), Rows()).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_every_parameter_matters(config: ModelConfig) -> None:
    """With targets for both tasks the gradient is not just there: it is not zero (but behind a dead ReLU)."""
    model = build(config).double().eval()
    loss = sum((x**2).sum() for x in tensors(model(images(4).double())))
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


def test_memory_format_changes_nothing(config: ModelConfig) -> None:
    model = build(config).eval()
    with torch.inference_mode():
        expected = tensors(model(images()))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        actual = tensors(model(images().to(memory_format=torch.channels_last)))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)  # another order of sums, magnified by the norms


def test_bfloat16_is_finite(config: ModelConfig) -> None:
    model = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images())
    loss = sum((x.float() ** 2).mean() for x in tensors(output))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert all(torch.isfinite(x).all() for x in tensors(output))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_size_it_cannot_take_is_refused(config: ModelConfig) -> None:
    if config.divisor == 1:
        pytest.skip("takes every size")
    settings = {"data": {"image_size": SIZE + 1}, "model": config.model_dump(mode="json", exclude_none=True)}
    with pytest.raises(ConfigError, match=f"data.image_size: {SIZE + 1} is not divisible by {config.divisor}"):
        Experiment.from_dict(settings)


@pytest.mark.parametrize("name", architectures())
def test_exports(name: str) -> None:
    model = build(small_model({"name": name})).eval()
    program = torch.export.export(model, (images(),), dynamic_shapes={"image_BCHW": {0: torch.export.Dim("batch")}})
    for a, b in zip(tensors(program.module()(images(5))), tensors(model(images(5))), strict=True):
        torch.testing.assert_close(a, b)

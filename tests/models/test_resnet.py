"""ResNet as published: sizes, torchvision's weights."""

from __future__ import annotations

import pytest
import torch
from sizes import num_parameters, on_meta
from torch import nn
from torchvision_layout import Weights, resnet_stages

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError


def options(side: int = 64, **model: object) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "resnet", **model}}).model


@pytest.mark.parametrize(("layers", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_it_has_its_published_size(layers: int, published: int) -> None:
    assert num_parameters(on_meta("resnet", in_channels=3, num_classes=1000, layers=layers)) == published


def test_without_options_it_has_fifty_layers() -> None:
    assert options() == options(layers=50, width=64, max_pool=True, dropout=0.0)


def test_it_is_two_dimensional() -> None:
    network = options(width=4).build(1, 3, 1)
    assert {m.weight.dim() for m in network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)} == {4}
    assert not [m for m in network.modules() if isinstance(m, nn.MaxPool3d | nn.BatchNorm3d | nn.AdaptiveAvgPool3d)]


@pytest.mark.parametrize("layers", [18, 50])
def test_torchvisions_weights_give_torchvisions_numbers(layers: int) -> None:
    torch.manual_seed(0)
    weights, image = Weights(), torch.rand(2, 3, 80, 80)
    deepest = resnet_stages(weights, image, layers, width=4)[-1]
    expected = weights.linear("fc", deepest.mean((2, 3)), 5)
    network = options(layers=layers, width=4).build(3, 5, 1).eval()
    network.load_state_dict(network.pretrained({**weights, "layer5.0.conv1.weight": torch.zeros(1)}))
    torch.testing.assert_close(network(image).class_logits_BN, expected, rtol=1e-4, atol=1e-4)
    head = [name for name in weights if name.startswith("fc.")]
    encoder = {name: value for name, value in weights.items() if name not in head}
    assert network.load_state_dict(network.pretrained(encoder), strict=False).missing_keys == head


@pytest.mark.parametrize(
    ("side", "model", "message"),
    [
        (64, {"layers": 20}, "layers: 20: "),
        (64, {"dropout": 1.0}, "dropout: 1.0: "),
        (32, {}, "32 is too small for resnet with these options, which needs 33 or more"),
        (16, {"max_pool": False}, "16 is too small for resnet with these options, which needs 17 or more"),
    ],
)
def test_impossible_options_are_refused(side: int, model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(side, **model)

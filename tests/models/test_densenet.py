"""DenseNet as published: sizes, torchvision's weights."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from sizes import num_parameters, on_meta
from torch import Tensor, nn
from torchvision_layout import Weights

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError


def options(side: int = 64, **model: object) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "densenet", **model}}).model


@pytest.mark.parametrize(
    ("model", "published"),
    [({}, 7_978_856), ({"blocks": [6, 12, 32, 32]}, 14_149_480), ({"blocks": [6, 12, 48, 32]}, 20_013_928)],
)
def test_it_has_its_published_size(model: dict[str, object], published: int) -> None:
    assert num_parameters(on_meta("densenet", in_channels=3, num_classes=1000, **model)) == published


def test_it_is_two_dimensional() -> None:
    network = options(width=4, growth=2).build(1, 3, 1)
    assert {m.weight.dim() for m in network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)} == {4}
    assert not [m for m in network.modules() if isinstance(m, nn.MaxPool3d | nn.BatchNorm3d | nn.AvgPool3d)]


def torchvision_densenet(weights: Weights, x: Tensor, blocks: tuple[int, ...], width: int, growth: int) -> Tensor:
    x = F.relu(weights.norm("features.norm0", weights.conv("features.conv0", x, width, 7, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for b, count in enumerate(blocks, 1):
        for i in range(1, count + 1):
            layer = f"features.denseblock{b}.denselayer{i}"
            y = weights.conv(f"{layer}.conv1", F.relu(weights.norm(f"{layer}.norm1", x)), 4 * growth, 1)
            y = weights.conv(f"{layer}.conv2", F.relu(weights.norm(f"{layer}.norm2", y)), growth, 3)
            x = torch.cat([x, y], 1)
        if b < len(blocks):
            x = F.relu(weights.norm(f"features.transition{b}.norm", x))
            x = F.avg_pool2d(weights.conv(f"features.transition{b}.conv", x, x.shape[1] // 2, 1), 2)
    x = F.relu(weights.norm("features.norm5", x))
    return weights.linear("classifier", x.mean((2, 3)), 5)


@pytest.mark.parametrize("dotted", [False, True], ids=["timm", "torchvision's files"])
def test_torchvisions_weights_give_torchvisions_numbers(dotted: bool) -> None:
    torch.manual_seed(0)
    blocks, image = (2, 3, 2, 2), torch.rand(2, 3, 80, 80)
    weights = Weights()
    expected = torchvision_densenet(weights, image, blocks, width=6, growth=4)
    if dotted:
        weights = Weights((re.sub(r"(layer\d+\.(norm|conv))", r"\1.", name), value) for name, value in weights.items())
        assert "features.denseblock1.denselayer1.norm.1.weight" in weights
    network = options(blocks=list(blocks), width=6, growth=4).build(3, 5, 1).eval()
    network.load_state_dict(network.pretrained({**weights, "features.conv9.weight": torch.zeros(1)}))
    torch.testing.assert_close(network(image).class_logits_BN, expected, rtol=1e-4, atol=1e-4)
    head = [name for name in weights if name.startswith("classifier.")]
    encoder = {name: value for name, value in weights.items() if name not in head}
    assert network.load_state_dict(network.pretrained(encoder), strict=False).missing_keys == head


@pytest.mark.parametrize(
    ("side", "model", "message"),
    [
        (64, {"blocks": []}, r"blocks: \[\]: expected 1 or more"),
        (64, {"blocks": [6, 0]}, "blocks.1: 0: "),
        (64, {"growth": 0}, "growth: 0: "),
        (32, {}, "32 is too small for densenet with these options, which needs 61 or more"),
    ],
)
def test_impossible_options_are_refused(side: int, model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(side, **model)

"""ResNet as published: sizes, the smallest slice, torchvision's weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision_layout import Weights

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError

COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def options(side: int = 64, **model: object) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "resnet", **model}}).model


@pytest.mark.parametrize(("layers", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_it_has_its_published_size(layers: int, published: int) -> None:
    with torch.device("meta"):
        network = options(layers=layers).build(in_channels=3, num_classes=1000, num_masks=1)
    assert sum(p.numel() for p in network.parameters()) == published


def test_without_options_it_has_fifty_layers() -> None:
    assert options() == options(layers=50, width=64, max_pool=True, dropout=0.0)


def test_it_is_two_dimensional() -> None:
    network = options(width=4).build(1, 3, 1)
    assert {m.weight.dim() for m in network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)} == {4}
    assert not [m for m in network.modules() if isinstance(m, nn.MaxPool3d | nn.BatchNorm3d | nn.AdaptiveAvgPool3d)]


def torchvision_resnet(weights: Weights, x: Tensor, layers: int, width: int) -> Tensor:
    x = F.relu(weights.norm("bn1", weights.conv("conv1", x, width, 7, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(COUNTS[layers]):
        inner = width * 2**stage
        for i in range(count):
            block, stride = f"layer{stage + 1}.{i}", 2 if stage and not i else 1
            if layers == 50:
                y = F.relu(weights.norm(f"{block}.bn1", weights.conv(f"{block}.conv1", x, inner, 1)))
                y = F.relu(weights.norm(f"{block}.bn2", weights.conv(f"{block}.conv2", y, inner, 3, stride)))
                y = weights.norm(f"{block}.bn3", weights.conv(f"{block}.conv3", y, 4 * inner, 1))
            else:
                y = F.relu(weights.norm(f"{block}.bn1", weights.conv(f"{block}.conv1", x, inner, 3, stride)))
                y = weights.norm(f"{block}.bn2", weights.conv(f"{block}.conv2", y, inner, 3))
            if x.shape != y.shape:
                shortcut = weights.conv(f"{block}.downsample.0", x, y.shape[1], 1, stride)
                x = weights.norm(f"{block}.downsample.1", shortcut)
            x = F.relu(x + y)
    return weights.linear("fc", x.mean((2, 3)), 5)


@pytest.mark.parametrize("layers", [18, 50])
def test_torchvisions_weights_give_torchvisions_numbers(layers: int) -> None:
    torch.manual_seed(0)
    weights, image = Weights(), torch.rand(2, 3, 80, 80)
    expected = torchvision_resnet(weights, image, layers, width=4)
    network = options(layers=layers, width=4).build(3, 5, 1).eval()
    network.load_state_dict(network.pretrained({**weights, "layer5.0.conv1.weight": torch.zeros(1)}))
    torch.testing.assert_close(network(image).class_logits_BN, expected, rtol=1e-4, atol=1e-4)
    head = [name for name in weights if name.startswith("fc.")]
    encoder = {name: value for name, value in weights.items() if name not in head}
    assert network.load_state_dict(network.pretrained(encoder), strict=False).missing_keys == head


@pytest.mark.parametrize("max_pool", [True, False])
def test_a_single_slice_can_be_trained_on_from_the_smallest_size(max_pool: bool) -> None:
    config = options(layers=18, width=4, max_pool=max_pool)
    network = config.build(1, 3, 1)
    network(torch.rand(1, 1, config.smallest, config.smallest)).class_logits_BN.sum().backward()
    with pytest.raises(ValueError, match="more than 1 value"):
        network(torch.rand(1, 1, config.smallest - 1, config.smallest - 1))


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

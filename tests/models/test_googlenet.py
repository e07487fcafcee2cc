"""GoogLeNet as torchvision has it: sizes, auxiliary heads, weights."""

from __future__ import annotations

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

MODULES = {  # channels at the published width of 64: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def options(side: int = 64, **model: object) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "googlenet", **model}}).model


def size(**model: object) -> int:
    return num_parameters(on_meta("googlenet", in_channels=3, num_classes=1000, **model))


def test_it_has_its_published_size() -> None:
    assert size() == 13_004_888
    assert size(auxiliary=False) == 6_624_904
    assert size(width=32) < size() / 2


def auxiliary(network: nn.Module) -> list[tuple[float, torch.Size]]:
    output = network(torch.rand(2, 1, 64, 64))
    return [(weight, aux.class_logits_BN.shape) for weight, aux in output.aux]


def test_auxiliary_heads_are_for_training() -> None:
    network = options(width=8).build(1, 3, 1)
    assert auxiliary(network) == [(0.3, (2, 3)), (0.3, (2, 3))]
    assert auxiliary(network.eval()) == []
    assert auxiliary(options(width=8, auxiliary=False).build(1, 3, 1)) == []


def test_auxiliary_heads_have_a_dropout_of_their_own() -> None:
    network, image = options(width=8, dropout=0.0).build(1, 3, 1), torch.rand(2, 1, 64, 64)
    first, second = network(image), network(image)
    assert torch.equal(first.class_logits_BN, second.class_logits_BN)
    for (_, a), (_, b) in zip(first.aux, second.aux, strict=True):
        assert not torch.equal(a.class_logits_BN, b.class_logits_BN)


def torchvision_googlenet(weights: Weights, x: Tensor, width: int) -> Tensor:
    def layer(name: str, x: Tensor, channels: int, kernel: int, stride: int = 1) -> Tensor:
        y = weights.conv(f"{name}.conv", x, channels * width // 64, kernel, stride)
        return F.relu(weights.norm(f"{name}.bn", y, eps=1e-3))

    def head(name: str, x: Tensor) -> None:
        y = layer(f"{name}.conv", F.adaptive_avg_pool2d(x, 4), 128, 1).flatten(1)
        weights.linear(f"{name}.fc2", weights.linear(f"{name}.fc1", y, 1024 * width // 64), 5)

    x = F.max_pool2d(layer("conv1", x, 64, 7, 2), 3, 2, ceil_mode=True)
    x = layer("conv3", layer("conv2", x, 64, 1), 192, 3)
    for name, channels in MODULES.items():
        if name in ("3a", "4a", "5a"):
            x = F.max_pool2d(x, 2 if name == "5a" else 3, 2, ceil_mode=True)
        own = f"inception{name}"
        branches = [layer(f"{own}.branch1", x, channels[0], 1)]
        for branch, (reduced, out) in (("branch2", channels[1:3]), ("branch3", channels[3:5])):
            branches.append(layer(f"{own}.{branch}.1", layer(f"{own}.{branch}.0", x, reduced, 1), out, 3))
        branches.append(layer(f"{own}.branch4.1", F.max_pool2d(x, 3, 1, 1), channels[5], 1))
        x = torch.cat(branches, 1)
        if name in ("4a", "4d"):
            head("aux1" if name == "4a" else "aux2", x)
    return weights.linear("fc", x.mean((2, 3)), 5)


@pytest.mark.parametrize("with_heads", [True, False])
def test_torchvisions_weights_give_torchvisions_numbers(with_heads: bool) -> None:
    torch.manual_seed(0)
    weights, image = Weights(), torch.rand(2, 3, 90, 90)
    expected = torchvision_googlenet(weights, image, width=8)
    network = options(width=8, auxiliary=with_heads).build(3, 5, 1).eval()
    found = network.load_state_dict(network.pretrained({**weights, "conv4.weight": torch.zeros(1)}), strict=False)
    assert not found.unexpected_keys
    assert {name.split(".")[0] for name in found.missing_keys} == ({"aux1", "aux2"} if with_heads else set())
    torch.testing.assert_close(network(image).class_logits_BN, expected, rtol=1e-4, atol=1e-4)
    assert {name for name in weights if with_heads or not name.startswith("aux")} <= network.state_dict().keys()


@pytest.mark.parametrize(
    ("side", "model", "message"),
    [
        (64, {"width": 0}, "width: 0: "),
        (64, {"auxiliary": 2}, "auxiliary: 2: "),
        (32, {}, "32 is too small for googlenet with these options, which needs 47 or more"),
        (16, {"max_pool": False}, "16 is too small for googlenet with these options, which needs 23 or more"),
    ],
)
def test_impossible_options_are_refused(side: int, model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(side, **model)

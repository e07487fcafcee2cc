"""DeepLabv3+ as published: its size, its encoder's names, what dilation keeps, its decoder."""

from __future__ import annotations

import pytest
import torch
from sizes import num_parameters, on_meta
from torch import nn
from torchvision_layout import Weights, resnet_stages

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.networks.deeplabv3plus import ASPP
from braintum.settings import ConfigError

SMALL = {"layers": 18, "width": 4, "aspp_width": 16}


def network(in_channels: int = 1, **model: object) -> nn.Module:
    torch.manual_seed(0)
    config = Experiment.from_dict({"model": {"name": "deeplabv3plus", **model}}).model
    return config.build(in_channels, num_classes=4, num_masks=1)


def published(**model: object) -> nn.Module:
    return on_meta("deeplabv3plus", in_channels=3, **model)


def test_it_has_the_published_size() -> None:
    """26.7 M: what segmentation_models.pytorch 0.6.0 counts for a ResNet-50, three channels and one mask."""
    assert num_parameters(published()) == 26_677_585
    assert num_parameters(published(output_stride=8)) == 26_677_585
    assert num_parameters(published(classify=True)) == 26_677_585 + 2048 * 4 + 4


@pytest.mark.parametrize(
    ("layers", "size", "last"), [(18, 11_689_512, 512), (34, 21_797_672, 512), (50, 25_557_032, 2048)]
)
def test_the_encoder_is_the_published_resnet(layers: int, size: int, last: int) -> None:
    """torchvision's counts, without its last layer of 1,000 classes."""
    assert num_parameters(published(layers=layers).encoder) == size - (last * 1000 + 1000)


def test_the_encoder_has_torchvisions_names() -> None:
    state = published().encoder.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["bn1.running_mean"] == (64,)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.weight"] == (256,)
    assert shapes["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["layer4.2.bn3.bias"] == (2048,)
    assert len(shapes) == 320 - 2  # of torchvision's resnet50, without fc
    assert "layer1.0.downsample.0.weight" not in published(layers=34).encoder.state_dict()


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("layers", [18, 50])
def test_the_encoder_computes_what_the_strided_resnet_does(layers: int, stride: int) -> None:
    """With torchvision's weights: its first stage, and at every other (fourth) pixel of the deepest, its last stage."""
    torch.manual_seed(0)
    weights, image = Weights(), torch.rand(2, 3, 96, 96)
    stages = resnet_stages(weights, image, layers, width=4)
    encoder = network(3, **{**SMALL, "layers": layers, "output_stride": stride}).encoder.eval()
    encoder.load_state_dict(weights)
    with torch.inference_mode():
        fine, deep = encoder(image)
    assert deep.shape[2:] == (96 // stride, 96 // stride)
    torch.testing.assert_close(fine, stages[0], rtol=1e-4, atol=1e-4)
    step = 32 // stride
    torch.testing.assert_close(deep[:, :, ::step, ::step], stages[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_the_aspp_has_the_published_rates(stride: int, rates: tuple[int, ...]) -> None:
    convolutions = [m for m in published(output_stride=stride).aspp.modules() if isinstance(m, nn.Conv2d)]
    assert tuple(m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)) == rates


def test_an_atrous_branch_reads_pixels_at_its_rate() -> None:
    """What one pixel of the input changes: the centre and its eight neighbours at the rate."""
    torch.manual_seed(0)
    branch = ASPP(1, 2, (3,)).eval().atrous[0][:2]  # without norm and ReLU
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    reached = branch(point)[0].abs().sum(0).nonzero()
    assert reached.tolist() == [[y, x] for y in (1, 4, 7) for x in (1, 4, 7)]


def test_the_image_pooling_reaches_every_pixel() -> None:
    """A change in one corner changes the opposite one, 31 features away, beyond the atrous branches."""
    torch.manual_seed(0)
    aspp = ASPP(4, 8, (2, 3)).eval()
    features = torch.rand(1, 4, 32, 32)
    changed = features.clone()
    changed[:, :, 0, 0] += 100
    assert not torch.allclose(aspp(features)[..., -1, -1], aspp(changed)[..., -1, -1])


def test_the_decoder_reduces_the_skip_to_48_channels() -> None:
    model = published()
    assert model.skip[0].weight.shape == (48, 256, 1, 1)
    assert model.decoder[0].weight.shape == (304, 1, 3, 3)


@pytest.mark.parametrize("layers", [18, 50])
def test_logits_start_at_order_one(layers: int) -> None:
    model = network(layers=layers, width=8, aspp_width=32, classify=True, dropout=0.0)
    output = model(torch.rand(4, 1, 64, 64))
    assert 0.1 < output.mask_logits_BKHW.std() < 10
    assert 0.1 < output.class_logits_BN.std() < 10


@pytest.mark.parametrize(
    ("side", "model", "message"),
    [
        (64, {"layers": 101}, "layers: 101"),
        (64, {"output_stride": 4}, "output_stride: 4"),
        (64, {"dropout": 0.5}, "dropout has no effect with classify=false"),
        (72, {}, "72 is not divisible by 16"),
        (16, {}, "16 is too small for deeplabv3plus with these options, which needs 32"),
    ],
)
def test_impossible_options_are_refused(side: int, model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "deeplabv3plus", **model}})

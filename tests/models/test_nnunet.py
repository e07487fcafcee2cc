"""nnU-Net as published: its size, its plan, and what its own package computes with the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sizes import num_parameters, on_meta
from torch import Tensor, nn

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.losses.objective import Objective
from braintum.models.networks.blocks import make_norm
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError

PUBLISHED = 33_471_820
"""Parameters of PlainConvUNet: 7 stages, one input channel, two output channels."""


def options(side: int = 256, **model: object) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "nnunet", **model}}).model


def network(side: int = 256, masks: int = 1, **model: object) -> nn.Module:
    torch.manual_seed(0)
    return options(side, **model).build(in_channels=1, num_classes=4, num_masks=masks)


def small(side: int = 64, masks: int = 1, **model: object) -> nn.Module:
    return network(side, masks, **{"width": 4, "max_width": 16, **model})


def test_it_has_the_published_size_but_for_what_has_no_effect() -> None:
    ours = on_meta("nnunet", num_masks=2)
    channels = [32, 64, 128, 256, 512, 512, 512]
    idle_biases = 2 * sum(channels) + 2 * sum(channels[:-1])  # of convolutions before an instance norm
    coarsest_output = 512 * 2 + 2  # weight 0
    assert num_parameters(ours) + idle_biases + coarsest_output == PUBLISHED


def test_classify_adds_a_linear_layer() -> None:
    assert num_parameters(on_meta("nnunet", classify=True)) == num_parameters(on_meta("nnunet")) + 512 * 4 + 4


@pytest.mark.parametrize(
    ("side", "stages"),
    [(16, 4), (32, 4), (63, 5), (64, 5), (128, 6), (224, 6), (240, 7), (256, 7), (512, 8), (2048, 10)],
)
def test_the_plan_is_nnunets(side: int, stages: int) -> None:
    """As `get_pool_and_conv_props` of nnunetv2 2.8.1 gives it; below 32 pixels one stage more."""
    assert options(side).model_dump()["stages"] == stages


def test_stages_that_are_given_stay() -> None:
    assert options(256, stages=5).model_dump()["stages"] == 5


def test_deep_supervision_has_nnunets_weights_and_sizes() -> None:
    model, image = small(128, masks=2), torch.rand(2, 1, 128, 128)
    output = model(image)
    assert [weight for weight, _ in output.aux] == [1 / 2, 1 / 4, 1 / 8]  # 1/16, of the coarsest, is left out
    sizes = [tuple(auxiliary.mask_logits_BKHW.shape) for _, auxiliary in output.aux]
    assert sizes == [(2, 2, 64, 64), (2, 2, 32, 32), (2, 2, 16, 16)]
    assert model.eval()(image).aux == ()
    assert small(128, deep_supervision=False)(image).aux == ()


def test_masks_are_the_same_without_deep_supervision() -> None:
    image, model = torch.rand(2, 1, 64, 64), small()
    other = small(deep_supervision=False)
    other.load_state_dict({name: value for name, value in model.state_dict().items() if name in other.state_dict()})
    torch.testing.assert_close(other(image).mask_logits_BKHW, model(image).mask_logits_BKHW)


def test_a_size_that_cannot_be_halved_so_often_is_padded_with_zeros() -> None:
    model, image = small(50), torch.rand(2, 1, 50, 50)
    padded = torch.zeros(2, 1, 56, 56)
    padded[:, :, :50, :50] = image
    output, expected = model(image), model(padded)
    torch.testing.assert_close(output.mask_logits_BKHW, expected.mask_logits_BKHW[:, :, :50, :50])
    torch.testing.assert_close(output.aux[0][1].mask_logits_BKHW, expected.aux[0][1].mask_logits_BKHW[:, :, :25, :25])


def test_the_objective_takes_every_output_of_an_odd_size() -> None:
    image = torch.rand(2, 1, 75, 75)

    class Rows:
        mask_BKHW = (image > 0.5).float()
        has_mask_B = torch.tensor([True, True])
        label_B = global_label_B = torch.tensor([-1, -1])
        num_masks, num_labels = 2, 0

    output = small(75)(image)
    assert [auxiliary.mask_logits_BKHW.shape[-1] for _, auxiliary in output.aux] == [38, 19]
    assert torch.isfinite(Objective(Experiment().loss)(output, Rows()).losses["segmentation"])


def test_rows_of_a_training_batch_are_independent() -> None:
    model, image = small(), torch.rand(4, 1, 64, 64)
    whole, alone = model(image).mask_logits_BKHW, model(image[:1]).mask_logits_BKHW
    torch.testing.assert_close(whole[:1], alone, rtol=1e-3, atol=1e-3)


def test_its_norm_is_instance_norm() -> None:
    """monai's blocks are given a group norm of one channel a group: nothing else is in the network."""
    norms = [module for module in small().modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 2 * (5 + 4)
    assert all(str(norm) == str(make_norm("instance", norm.num_channels)) for norm in norms)


@pytest.mark.parametrize("width", [4, 32])
def test_logits_start_at_order_one(width: int) -> None:
    model = network(64, width=width, classify=True, dropout=0.0)
    output = model(torch.rand(4, 1, 64, 64))
    for logits in (output.mask_logits_BKHW, output.class_logits_BN, *(x.mask_logits_BKHW for _, x in output.aux)):
        assert 0.05 < logits.std() < 10


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"max_width": 16}, "max_width: 16 is less than width, 32"),
        ({"stages": 3}, "stages: 3"),
        ({"dropout": 0.5}, "dropout has no effect with classify=false"),
        ({"stages": 8, "width": 4}, "data.image_size: 128 is too small for nnunet with these options"),
    ],
)
def test_impossible_options_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(128, **model)


@pytest.fixture
def plain_conv_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """nnU-Net's own network, installed without its dependencies beside this environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    install = subprocess.run([*command, "dynamic-network-architectures==0.4.1"], capture_output=True, text=True)
    if install.returncode:
        pytest.skip(f"pip cannot install dynamic-network-architectures: {install.stderr.strip().splitlines()[-1:]}")
    monkeypatch.syspath_prepend(tmp_path)
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet


def published(cls: type[nn.Module], channels: list[int], masks: int) -> nn.Module:
    """As nnU-Net v2 plans it (`conv_bias`, InstanceNorm, LeakyReLU, two convolutions a stage)."""
    return cls(
        1, len(channels), channels, nn.Conv2d, 3, [1] + [2] * (len(channels) - 1), 2, masks, 2,
        conv_bias=True, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def our_name(name: str, stages: int) -> str | None:
    """What we call a parameter of PlainConvUNet; None for what has no effect: see the network's docstring."""
    match name.split("."):
        case ["encoder", "stages", _, "0", "convs", _, "conv", "bias"]:
            return None
        case ["encoder", "stages", stage, "0", "convs", i, "conv", "weight"]:
            return f"encoder.{stage}.conv{int(i) + 1}.conv.weight"
        case ["encoder", "stages", stage, "0", "convs", i, "norm", kind]:
            return f"encoder.{stage}.norm{int(i) + 1}.{kind}"
        case ["decoder", "transpconvs", up, kind]:
            return f"decoder.{stages - 2 - int(up)}.transp_conv.conv.{kind}"
        case ["decoder", "stages", _, "convs", _, "conv", "bias"]:
            return None
        case ["decoder", "stages", up, "convs", i, "conv", "weight"]:
            return f"decoder.{stages - 2 - int(up)}.conv_block.conv{int(i) + 1}.conv.weight"
        case ["decoder", "stages", up, "convs", i, "norm", kind]:
            return f"decoder.{stages - 2 - int(up)}.conv_block.norm{int(i) + 1}.{kind}"
        case ["decoder", "seg_layers", "0", _]:
            return None
        case ["decoder", "seg_layers", up, kind]:
            return f"masks.{stages - 2 - int(up)}.conv.conv.{kind}"
    raise AssertionError(f"unknown parameter {name}")


@pytest.mark.slow
def test_it_computes_what_nnunets_own_package_does(plain_conv_unet: type[nn.Module]) -> None:
    with torch.device("meta"):
        theirs = published(plain_conv_unet, [32, 64, 128, 256, 512, 512, 512], masks=2)
    assert num_parameters(theirs) == PUBLISHED

    torch.manual_seed(0)
    ours = small(128, masks=2).double()
    theirs = published(plain_conv_unet, [4, 8, 16, 16, 16, 16], masks=2).double()
    copied: dict[str, Tensor] = {}
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)  # the idle biases too
        if (mine := our_name(name, stages=6)) is not None:
            copied[mine] = parameter.detach()
    ours.load_state_dict(copied)

    image = torch.rand(2, 1, 128, 128).double()
    output, expected = ours(image), theirs(image)
    actual = [output.mask_logits_BKHW, *(auxiliary.mask_logits_BKHW for _, auxiliary in output.aux)]
    assert len(expected) == len(actual) + 1  # the coarsest, of weight 0
    for a, b in zip(actual, expected, strict=False):
        torch.testing.assert_close(a, b)

"""The U-Net family as published: sizes, presets, options."""

from __future__ import annotations

import pytest
import torch
from sizes import num_parameters, on_meta
from torch import nn

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.networks.blocks import make_norm
from braintum.settings import ConfigError


def test_the_published_unet_has_its_published_size() -> None:
    """64 to 1024 channels with BatchNorm, convolutions without bias (Ronneberger's U-Net as it is built today)."""
    assert num_parameters(on_meta("unet")) == 31_036_481


def test_the_presets_are_one_network() -> None:
    unet = num_parameters(on_meta("unet"))
    assert num_parameters(on_meta("joint_unet")) == unet + 1024 * 4 + 4
    # A gate at C skip channels, C/2 inside: 2×2 on the skip, 1×1 with bias on the 2C of the gating signal, 1×1 to one.
    gates = sum(4 * c * c // 2 + 2 * c * c // 2 + c // 2 + c // 2 + 1 for c in (64, 128, 256, 512))
    assert num_parameters(on_meta("attention_unet")) == unet + gates
    assert num_parameters(on_meta("unet", attention="gate")) == unet + gates
    assert num_parameters(on_meta("joint_unet", attention="gate")) == unet + gates + 1024 * 4 + 4


def test_the_classifier_has_the_unets_encoder() -> None:
    def encoder(name: str) -> dict[str, torch.Size]:
        state = on_meta(name).state_dict()
        return {key: value.shape for key, value in state.items() if key.startswith("encoder.")}

    assert encoder("classifier") == encoder("unet")
    assert num_parameters(on_meta("classifier", hidden=128)) < num_parameters(on_meta("classifier"))


@pytest.mark.parametrize(("attention", "share"), [("gate", 1.0), ("se", 0.5), ("cbam", 0.5)])
def test_attention_width_widens_the_attention(attention: str, share: float) -> None:
    default = num_parameters(on_meta("unet", attention=attention))
    assert num_parameters(on_meta("unet", attention=attention, attention_width=share)) > default


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_activations_keep_their_scale(norm: str) -> None:
    """Logits of an untrained net are of order one at any width: neither vanished nor exploded on the way."""
    torch.manual_seed(0)
    model = Experiment.from_dict({"model": {"name": "joint_unet", "width": 16, "norm": norm}}).model.build(1, 4, 1)
    output = model(torch.rand(4, 1, 64, 64))
    assert 0.1 < output.mask_logits_BKHW.std() < 10
    assert 0.05 < output.class_logits_BN.std() < 10


def test_only_batch_norm_ties_the_rows_of_a_training_batch() -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 1, 32, 32)
    tied = {}
    for norm in ("batch", "instance", "group"):
        model = Experiment.from_dict({"model": {"name": "unet", "width": 8, "norm": norm}}).model.build(1, 4, 1)
        whole, half = model(image).mask_logits_BKHW, model(image[:2]).mask_logits_BKHW
        tied[norm] = not torch.allclose(whole[:2], half, rtol=1e-4, atol=1e-4)
    assert tied == {"batch": True, "instance": False, "group": False}


def test_instance_norm_is_pytorchs() -> None:
    """It is built as a group norm, for speed: the same numbers, the same gradients."""
    image, norm = torch.randn(3, 6, 5, 5), make_norm("instance", 6)
    expected = nn.InstanceNorm2d(6, affine=True)
    expected.load_state_dict({"weight": torch.rand(6), "bias": torch.rand(6)})
    norm.load_state_dict(expected.state_dict())
    gradients = []
    for layer in (norm, expected):
        x = image.clone().requires_grad_()
        y = layer(x)
        (y**3).sum().backward()
        gradients.append((y.detach(), x.grad, *(p.grad for p in layer.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "unet", "attention_width": 0.5}, "attention_width has no effect with attention=none"),
        ({"name": "unet", "dropout": 0.5}, "dropout has no effect with classify=false"),
        ({"name": "unet", "norm": "layer"}, "norm: 'layer'"),
        ({"name": "unet", "attention": "self"}, "attention: 'self'"),
        ({"name": "classifier", "attention": "gate"}, "attention: no such field"),
    ],
)
def test_impossible_options_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.from_dict({"model": model})

"""BrainTumNet: its size, its switches, what they refuse, and the mask that guides the classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sizes import num_parameters, on_meta
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.networks.braintumnet import MultiKernel
from braintum.models.networks.masked_transformer import Attention, MaskedTransformer
from braintum.models.networks.t_inception import TInceptionNet, guide_from, guided_mean
from braintum.models.registry import ModelConfig
from braintum.settings import ConfigError

SWITCHES = ("transformer", "adaptive_mask", "cbam", "pyramid", "inception", "mask_guidance")
SMALL = {"width": 8, "depth": 3}


def options(side: int = 256, **model: Any) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "braintumnet", **model}}).model


def network(side: int = 256, num_masks: int = 1, **model: Any) -> nn.Module:
    torch.manual_seed(0)
    return options(side, **model).build(in_channels=1, num_classes=4, num_masks=num_masks)


def gigaflops(model: nn.Module) -> float:
    """Of one slice of 256×256."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.rand(1, 1, 256, 256))
    return counter.get_total_flops() / 1e9


def images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(1))


def test_size_and_work_compare_with_the_u_nets() -> None:
    """The paper gives no number; the U-Net has 31.0 million weights and takes 96 GFLOP."""
    assert num_parameters(on_meta("braintumnet")) == 22_546_545
    assert gigaflops(on_meta("braintumnet")) < 2 * 96


def test_every_switch_takes_its_idea_away() -> None:
    everything = num_parameters(on_meta("braintumnet"))
    removed = {switch: everything - num_parameters(on_meta("braintumnet", **{switch: False})) for switch in SWITCHES}
    assert removed.pop("mask_guidance") == 0  # it has no weights: see below
    assert all(weights > 0 for weights in removed.values()), removed
    assert removed["adaptive_mask"] < removed["transformer"]


@pytest.mark.parametrize("switch", [switch for switch in SWITCHES if switch != "inception"])
def test_every_switch_changes_the_answer(switch: str) -> None:
    """With the same weights. Not `inception`: the two classifiers have no weight in common."""
    model, without = network(32, **SMALL).eval(), network(32, **SMALL, **{switch: False}).eval()
    assert not without.load_state_dict(model.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        (mask, label, _), (other_mask, other_label, _) = model(images()), without(images())
    assert torch.allclose(mask, other_mask) == (switch == "mask_guidance")
    assert not torch.allclose(label, other_label)


@pytest.mark.parametrize("inception", [True, False])
def test_the_predicted_mask_guides_the_classifier_and_learns_from_it(inception: bool) -> None:
    """End to end: the class's loss alone moves the mask's own weights, where the mask guides."""
    moved = {}
    for guided in (True, False):
        model = network(32, **SMALL, inception=inception, mask_guidance=guided)
        model(images()).class_logits_BN.square().sum().backward()
        gradient = model.mask.weight.grad
        moved[guided] = gradient is not None and bool(gradient.any())
    assert moved == {True: True, False: False}


def test_the_guide_shows_the_tumour_and_all_where_there_is_none() -> None:
    logits = torch.full((3, 2, 32, 32), -9.0)
    logits[0, 0, 8:16, 8:16] = 9.0
    logits[1, 0, 8:10, 8:10] = 0.0  # small and unsure
    logits[2, 1] = 9.0  # another mask than the tumour's
    guide = guide_from(logits, 8)
    assert guide.shape == (3, 1, 4, 4)
    for row in (0, 1):
        assert guide[row, 0, 1, 1] == 1
        around = guide[row, 0].flatten()[torch.arange(16) != 5]
        assert (around < 0.3).all()
    assert guide[0, 0].sum() < 1.2
    torch.testing.assert_close(guide[2], torch.ones(1, 4, 4))
    features = torch.rand(3, 5, 4, 4)
    pooled = guided_mean(features, guide)
    torch.testing.assert_close(pooled[0], features[0, :, 1, 1], rtol=0, atol=0.15)
    torch.testing.assert_close(pooled[2], features[2].mean((1, 2)))


def test_an_empty_mask_starves_nothing() -> None:
    """A slice with no predicted tumour gives the classifier features and gradients of the usual size."""
    gradients = {}
    for bias in (0.0, -30.0):
        model = network(32, **SMALL).eval()
        nn.init.constant_(model.mask.bias, bias)
        model(images()).class_logits_BN.square().sum().backward()
        gradients[bias] = model.stages[0].joint[0].weight.grad.norm()
    assert gradients[-30.0] > 0.1 * gradients[0.0]


def test_the_classifiers_region_is_that_of_the_mask() -> None:
    """What lies outside of the predicted tumour hardly changes the class."""
    features, logits = torch.rand(1, 5, 4, 4), torch.full((1, 1, 32, 32), -9.0)
    logits[..., 8:16, 8:16] = 9.0
    guide = guide_from(logits, 8)
    elsewhere, inside = features.clone(), features.clone()
    elsewhere[..., 3, 3] += 1
    inside[..., 1, 1] += 1
    before = guided_mean(features, guide)
    assert (guided_mean(elsewhere, guide) - before).max() < 0.02
    assert (guided_mean(inside, guide) - before).min() > 0.8


def test_t_inception_looks_where_the_guide_points() -> None:
    """Surroundings are scaled by the guide as features, and again as they are pooled: 0.01 each.

    Without transformers, whose attention sees the whole slice; and where no convolution reaches from the region.
    """
    torch.manual_seed(0)
    classifier = TInceptionNet(options(32, **SMALL, transformer=False), channels=32, num_classes=4).eval()
    fine, deepest, logits = torch.rand(1, 32, 8, 8), torch.rand(1, 64, 4, 4), torch.full((1, 1, 32, 32), -9.0)
    logits[..., 8:16, 8:16] = 9.0

    def answer(*brighter: slice) -> Tensor:
        """With both features brighter on these cells of the deepest's grid."""
        brightness = torch.ones(1, 1, 4, 4)
        brightness[..., *brighter] += 1
        both = fine * F.interpolate(brightness, scale_factor=2.0), deepest * brightness
        logits_BN: Tensor = classifier(*both, guide_from(logits, 4))
        return logits_BN

    unchanged = answer(slice(0), slice(0))
    inside = (answer(slice(1, 2), slice(1, 2)) - unchanged).norm()
    outside = (answer(slice(3, 4), slice(3, 4)) - unchanged).norm()
    assert inside > 0.1 * unchanged.norm()
    assert outside < 1e-3 * inside


def class_logits(guide_B1HW: Tensor | None, **model: Any) -> Tensor:
    """Of T-InceptionNet for one and the same features, its features and pooling unguided."""
    config = options(32, **SMALL, **model)
    torch.manual_seed(0)
    classifier = TInceptionNet(config, channels=32, num_classes=4).eval()
    x_BCHW = torch.rand(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    for block in classifier.blocks:
        x_BCHW = block(x_BCHW, guide_B1HW)
    logits_BN: Tensor = classifier.head(x_BCHW.mean((2, 3)))
    return logits_BN


def test_the_guide_masks_the_classifiers_attention_only_where_attention_is_masked() -> None:
    """And no patch of the classifier is dropped: a guide that is the same everywhere is none, to any keep ratio."""
    guide = guide_from(torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 9, 4)
    unmasked = class_logits(None)
    assert not torch.allclose(class_logits(guide), unmasked)
    torch.testing.assert_close(class_logits(guide, adaptive_mask=False), unmasked)
    torch.testing.assert_close(class_logits(guide, keep_ratio=0.25), class_logits(guide))
    torch.testing.assert_close(class_logits(torch.ones_like(guide), keep_ratio=0.25), unmasked)


def test_keeping_fewer_patches_saves_work() -> None:
    work = [gigaflops(on_meta("braintumnet", keep_ratio=keep_ratio)) for keep_ratio in (1.0, 0.5, 0.25)]
    assert work[1] < 0.8 * work[0]
    assert work[2] < 0.7 * work[0]
    assert num_parameters(on_meta("braintumnet", keep_ratio=0.25)) == num_parameters(on_meta("braintumnet"))


def test_kept_patches_are_a_share_of_the_slice_at_hand() -> None:
    """It is built for one size and takes others; windows that do not fit reach over the edge."""
    model = network(64, **SMALL, keep_ratio=0.3, window=3)
    for side in (32, 40, 64):
        output = model(images(2, side))
        assert output.mask_logits_BKHW.shape == (2, 1, side, side)
        assert output.class_logits_BN.isfinite().all()


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_logits_start_of_order_one(norm: str) -> None:
    output = network(64, **SMALL, norm=norm)(images(4, 64))
    assert 0.1 < output.mask_logits_BKHW.std() < 10
    assert 0.05 < output.class_logits_BN.std() < 10


def test_it_starts_with_small_corrections_and_even_shares() -> None:
    """Gain 2 where a ReLU follows and 1 elsewhere; positions hardly change patches; modes of attention share evenly."""
    model = network(64, **SMALL)
    for module in model.modules():
        if isinstance(module, Attention):
            assert not module.share.weight.any()
            assert not module.share.bias.any()
        if isinstance(module, MaskedTransformer):
            patches = module.embed(torch.rand(2, module.embed.in_channels, 32, 32))
            assert module.position(patches).std() < 0.2 * patches.std()
    gains = {"parallel": 2, "joint.0": 2, "join.0": 2, "smooth.0": 2, "branches": 2, "embed": 1, "reduce": 1, "up": 1}
    squares: dict[str, list[Tensor]] = {part: [] for part in gains}
    for name, weight in model.named_parameters():
        for part in gains:
            if weight.dim() == 4 and f".{part}." in f".{name}":
                fan_in = weight.shape[0] if part == "up" else weight[0].numel()
                squares[part].append(weight.detach().square().flatten() * fan_in)
    for part, gain in gains.items():
        assert torch.cat(squares[part]).mean() == pytest.approx(gain, rel=0.2), part


@pytest.mark.parametrize("width", [4, 6, 7])
def test_kernels_share_any_number_of_channels(width: int) -> None:
    assert [c.out_channels for c in MultiKernel(1, width, "batch").parallel] == [1, width - 2, 1]


def test_the_window_follows_from_the_slice() -> None:
    assert [options(side).window for side in (64, 128, 256, 512)] == [4, 4, 8, 16]
    assert options(256, window=4).window == 4
    assert options(256, transformer=False).window is None


def test_a_window_larger_than_the_slice_is_refused() -> None:
    """It would be the network of the largest window: one that holds all patches of the finest grid."""
    assert options(256, window=64).window == 64
    with pytest.raises(ConfigError, match=r"window: 65 is more than all patches along 256 pixels\. Give 64 or less"):
        options(256, window=65)


def test_what_has_an_effect_is_written_down() -> None:
    written = options().model_dump(exclude_none=True)
    assert {switch: written[switch] for switch in SWITCHES} == dict.fromkeys(SWITCHES, True)
    assert (written["keep_ratio"], written["heads"], written["transformer_depth"], written["window"]) == (1.0, 4, 2, 8)
    assert options(**written) == options()
    assert "keep_ratio" not in options(adaptive_mask=False).model_dump(exclude_none=True)


def test_without_classify_it_is_a_segmenter() -> None:
    assert options(classify=False).tasks == {"segmentation"}
    assert options().tasks == {"segmentation", "classification"}
    assert network(32, **SMALL, classify=False)(images()).class_logits_BN is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"transformer": False, "adaptive_mask": True}, "adaptive_mask has no effect without transformer"),
        ({"transformer": False, "heads": 2}, "heads has no effect without transformer"),
        ({"transformer": False, "window": 4}, "window has no effect without transformer"),
        ({"transformer": False, "transformer_depth": 1}, "transformer_depth has no effect without transformer"),
        ({"transformer": False, "keep_ratio": 0.5}, "keep_ratio has no effect without adaptive_mask"),
        ({"adaptive_mask": False, "keep_ratio": 0.5}, "keep_ratio has no effect without adaptive_mask"),
        ({"classify": False, "inception": True}, "inception has no effect without classify"),
        ({"classify": False, "mask_guidance": False}, "mask_guidance has no effect without classify"),
        ({"classify": False, "dropout": 0.5}, "dropout has no effect with classify=false"),
        ({"keep_ratio": 0.0}, "keep_ratio: 0.0"),
        ({"heads": 7}, "heads: 7 do not divide 160"),
        ({"depth": 2}, "depth: 2"),
    ],
)
def test_impossible_options_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**model)

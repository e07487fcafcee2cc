"""MedFormer as published: its size, attention in both directions, semantic maps, options.

B batch, C channels, H W, M tokens of a semantic map.
"""

from __future__ import annotations

import pytest
import torch
from sizes import num_parameters, on_meta
from torch import Tensor, nn

from braintum.config import Experiment
from braintum.models.medformer import MedFormerConfig
from braintum.models.networks.medformer_blocks import BidirectionalAttention, MapFusion, MapGeneration
from braintum.settings import ConfigError

SMALL = {"name": "medformer", **MedFormerConfig.SMALL}


def build(num_masks: int = 1, **model: object) -> nn.Module:
    return Experiment.from_dict({"model": {"name": "medformer", **model}}).model.build(1, 4, num_masks)


def size(num_masks: int = 1, **model: object) -> int:
    return num_parameters(on_meta("medformer", num_masks=num_masks, **model))


def test_it_has_the_published_size_but_for_what_nothing_reads() -> None:
    """The authors' 2D code as configured for ACDC (one channel, four classes, deep supervision): 19,187,560.

    It reduces the map that leaves the last attending stage (128 channels) to the channels of the two stages above,
    which have no attention; and so that stage's last block, too, makes values and an output of the map for nobody.
    """
    reductions = 128 * 64 + 64 * 32
    values, output = 128 * 128, 128 * 128
    assert size(num_masks=4) == 19_187_560 - (reductions + values + output)


def test_options_change_what_they_name() -> None:
    whole = size()
    attending = (128, 256, 512)
    assert size(map_size=4) - whole == sum(9 * c * (4**2 - 3**2) for c in attending)
    assert whole - size(deep_supervision=False) == 128 + 1
    assert size(classify=True) - whole == 512 * 4 + 4
    # Norms, two attentions with biases at their outputs, two layers of the feed-forward.
    assert whole - size(fusion_depth=1) == 4 * 512 + 6 * 512**2 + 3 * 512
    # In two stages of 64 and one of 32 channels: two norms and two convolutions.
    assert size(conv_blocks=3) - whole == sum(2 * (2 * c + 9 * c * c) for c in (64, 64, 32))
    assert size(heads=8) == whole


def reference_attention(
    attention: BidirectionalAttention, feature_CHW: Tensor, map_CM: Tensor
) -> tuple[Tensor, Tensor]:
    """One slice, head by head, pixel by pixel, token by token."""
    channels, height, width = feature_CHW.shape
    tokens, inner = map_CM.shape[1], attention.head_channels
    query, value = attention.feature_in(feature_CHW[None])[0].split(channels)
    map_query, map_value = attention.map_in(map_CM[None])[0].split(channels)
    to_feature, to_map = torch.zeros_like(feature_CHW), torch.zeros_like(map_CM)
    for start in range(0, channels, inner):
        head = slice(start, start + inner)
        scores = torch.empty(height, width, tokens, dtype=feature_CHW.dtype)
        for y in range(height):
            for x in range(width):
                for token in range(tokens):
                    scores[y, x, token] = query[head, y, x] @ map_query[head, token] / inner**0.5
                to_feature[head, y, x] = map_value[head] @ torch.softmax(scores[y, x], 0)
        for token in range(tokens):
            share_HW = scores[:, :, token].exp() / scores[:, :, token].exp().sum()
            to_map[head, token] = (value[head] * share_HW).sum((1, 2))
    assert attention.map_out is not None
    return attention.feature_out(to_feature[None])[0], attention.map_out(to_map[None])[0]


@torch.no_grad()
def test_attention_goes_both_ways() -> None:
    torch.manual_seed(0)
    attention = BidirectionalAttention(6, head_channels=2, updates_map=True).double()
    feature_BCHW, map_BCM = torch.randn(2, 6, 3, 5).double() * 3, torch.randn(2, 6, 4).double() * 3
    feature, semantic = attention(feature_BCHW, map_BCM)
    for row in range(2):
        expected_feature, expected_map = reference_attention(attention, feature_BCHW[row], map_BCM[row])
        torch.testing.assert_close(feature[row], expected_feature)
        torch.testing.assert_close(semantic[row], expected_map)


@torch.no_grad()
def test_tokens_have_no_order() -> None:
    """Tokens in another order leave the features as they were, and come back in that order."""
    torch.manual_seed(0)
    order = torch.tensor([3, 0, 8, 1, 2, 7, 5, 4, 6])
    attention = BidirectionalAttention(8, head_channels=4, updates_map=True).double()
    feature_BCHW, map_BCM = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 8, 9).double()
    feature, semantic = attention(feature_BCHW, map_BCM)
    other_feature, other_map = attention(feature_BCHW, map_BCM[:, :, order])
    torch.testing.assert_close(other_feature, feature)
    torch.testing.assert_close(other_map, semantic[:, :, order])

    fusion = MapFusion([8, 12], MedFormerConfig.model_validate(SMALL)).double()
    maps = [torch.randn(2, c, 9).double() for c in (8, 12)]
    fused, reordered = fusion(maps), fusion([maps[0][:, :, order], maps[1]])
    torch.testing.assert_close(reordered[0], fused[0][:, :, order])
    torch.testing.assert_close(reordered[1], fused[1])
    assert not torch.allclose(fusion([maps[0] + 1, maps[1]])[1], fused[1])  # a map learns from the others


@torch.no_grad()
def test_tokens_are_weighted_means_over_the_slice() -> None:
    torch.manual_seed(0)
    generate = MapGeneration(5, size=3).double()
    feature_BCHW = torch.randn(2, 5, 6, 7).double()
    projected_BCHW = generate.project(feature_BCHW)
    map_BCM = generate(feature_BCHW)
    assert map_BCM.shape == (2, 5, 9)
    assert (map_BCM < projected_BCHW.amax((2, 3))[..., None]).all()
    assert (map_BCM > projected_BCHW.amin((2, 3))[..., None]).all()

    # A projection that is the same everywhere is what every token says, whatever the weights.
    nn.init.zeros_(generate.project.weight)
    generate.project.weight[:, :, 1, 1] = torch.eye(5)
    constant_BCHW = torch.randn(2, 5, 1, 1).double().expand(2, 5, 6, 7)
    torch.testing.assert_close(generate(constant_BCHW), constant_BCHW[:, :, 0, :1].expand(2, 5, 9))

    # Without a preference a token is the plain mean; with a strong one, the pixel of that token's greatest weight.
    strong = generate.weigh.weight * 1e4
    nn.init.zeros_(generate.weigh.weight)
    mean_BC1 = feature_BCHW.mean((2, 3))[..., None]
    torch.testing.assert_close(generate(feature_BCHW), mean_BC1.expand(2, 5, 9))
    generate.weigh.weight.copy_(strong)
    pixel_B1M = generate.weigh(feature_BCHW).flatten(2).argmax(2)[:, None]
    torch.testing.assert_close(generate(feature_BCHW), feature_BCHW.flatten(2).gather(2, pixel_B1M.expand(2, 5, 9)))


def test_deep_supervision_is_a_second_mask_of_full_size_in_training() -> None:
    torch.manual_seed(0)
    model, image_BCHW = build(num_masks=2, **SMALL), torch.rand(2, 1, 32, 48)
    output = model(image_BCHW)
    ((weight, auxiliary),) = output.aux
    assert weight == 1
    assert auxiliary.class_logits_BN is None
    assert auxiliary.mask_logits_BKHW.shape == output.mask_logits_BKHW.shape == (2, 2, 32, 48)
    assert model.eval()(image_BCHW).aux == ()
    assert build(**SMALL, deep_supervision=False)(image_BCHW).aux == ()


def test_activations_keep_their_scale() -> None:
    """Logits of an untrained net are of order one: neither vanished nor exploded on the way."""
    torch.manual_seed(0)
    output = build(classify=True, width=8, fusion_width=64)(torch.rand(4, 1, 64, 64))
    assert 0.1 < output.mask_logits_BKHW.std() < 10
    assert 0.05 < output.class_logits_BN.std() < 10


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"heads": 3}, "heads: 3 must divide 4 × width = 128"),
        ({"width": 3, "heads": 8}, "heads: 8 must divide 4 × width = 12"),
        ({"fusion_width": 40}, "fusion_heads: 16 must divide fusion_width = 40"),
        ({"map_size": 1}, "map_size: 1"),
        ({"dropout": 0.5}, "dropout has no effect with classify=false"),
        ({"depth": 3}, "depth: no such field"),
    ],
)
def test_impossible_options_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.from_dict({"model": {"name": "medformer", **model}})


def test_a_deepest_stage_of_one_pixel_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 32 or more"):
        Experiment.from_dict({"data": {"image_size": 16}, "model": {"name": "medformer"}})

"""TransUNet as published: its size, its blocks against their formulas, positions at other sizes, weights of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sizes import num_parameters, on_meta
from torch import Tensor, nn

from braintum.config import Experiment
from braintum.models.networks.transunet import Attention, TransUNet, resize_positions
from braintum.models.networks.transunet_resnet import ResNet, StdConv2d
from braintum.models.transunet import TransUNetConfig
from braintum.settings import ConfigError


def options(side: int, **model: Any) -> TransUNetConfig:
    config = Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "transunet", **model}}).model
    assert isinstance(config, TransUNetConfig)
    return config


def published(num_masks: int) -> nn.Module:
    return on_meta("transunet", in_channels=3, num_masks=num_masks, side=224)


def small(side: int, **model: Any) -> TransUNet:
    network = options(side, **{**TransUNetConfig.SMALL, **model}).build(1, 4, 1)
    assert isinstance(network, TransUNet)
    return network


def in_encoder(name: str) -> bool:
    return not name.startswith(("decoder.", "mask."))


def test_it_has_its_published_size() -> None:
    """At 224×224 the count that is quoted for the public code is the one with two output channels."""
    assert num_parameters(published(2)) == 105_276_066
    assert num_parameters(published(9)) == 105_276_066 + 7 * (16 * 3 * 3 + 1) == 105_277_081


def test_its_encoder_is_vits_hybrid() -> None:
    """97,888,576: timm's `vit_base_r50_s16_224` without class token, its position (768 each) and head."""
    state = published(2).state_dict()
    assert sum(x.numel() for name, x in state.items() if in_encoder(name)) == 97_888_576
    of_a_layer = ["norm1.weight", "attn.qkv.bias", "attn.proj.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias"]
    of_a_bottleneck = ["conv1.weight", "norm1.weight", "conv2.weight", "norm2.bias", "conv3.weight", "norm3.bias"]
    names = {
        *("pos_embed", "norm.weight", "norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"),
        *(f"patch_embed.backbone.stem.{name}" for name in ("conv.weight", "norm.weight", "norm.bias")),
        *(f"patch_embed.backbone.stages.0.blocks.0.downsample.{name}" for name in ("conv.weight", "norm.bias")),
        *(f"patch_embed.backbone.stages.2.blocks.8.{name}" for name in of_a_bottleneck),
        *(f"blocks.11.{name}" for name in of_a_layer),
    }
    assert names - set(state) == set()


def test_attention_is_softmax_attention() -> None:
    attention = Attention(hidden=12, heads=3, dropout=0.0).double()
    x_BTD = torch.randn(2, 5, 12).double()
    query, key, value = (
        x_BTD @ weight.T + bias
        for weight, bias in zip(attention.qkv.weight.split(12), attention.qkv.bias.split(12), strict=True)
    )
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights_BTT = (query[..., part] @ key[..., part].mT / 4**0.5).softmax(-1)
        heads.append(weights_BTT @ value[..., part])
    torch.testing.assert_close(attention(x_BTD), attention.proj(torch.cat(heads, -1)))


def test_attention_drops_out_in_training_only() -> None:
    attention, x_BTD = Attention(hidden=12, heads=3, dropout=0.5), torch.randn(2, 5, 12)
    assert not torch.equal(attention(x_BTD), attention(x_BTD))
    attention.eval()
    assert torch.equal(attention(x_BTD), attention(x_BTD))


def test_convolutions_of_the_resnet_do_not_see_their_weights_scale_and_mean() -> None:
    conv, image = StdConv2d(3, 4, 3).double(), torch.randn(2, 3, 6, 6).double()
    weight = conv.weight.detach()
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    standard = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(conv(image), F.conv2d(image, standard, padding=1))
    before = conv(image)
    with torch.no_grad():
        conv.weight.mul_(10).add_(1)
    torch.testing.assert_close(conv(image), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [32, 48, 224])
def test_skips_have_the_decoders_sizes(side: int) -> None:
    """The first stage lacks a row and a column, as in the public code: its skip has zeros there, and only there."""
    last_BCHW, skips = ResNet(1, 4, (1, 1, 1))(torch.rand(1, 1, side, side))
    assert last_BCHW.shape == (1, 64, side // 16, side // 16)
    assert [tuple(x.shape[1:]) for x in skips] == [
        (channels, side // stride, side // stride) for channels, stride in ((4, 2), (16, 4), (32, 8))
    ]
    assert not skips[1][:, :, -1].any()
    assert not skips[1][..., -1].any()
    assert skips[1][:, :, :-1, :-1].amax(1).all()


def test_the_transformer_drops_out_of_its_first_tokens_and_in_its_mlps() -> None:
    network, given = small(64, transformer_dropout=0.5), []
    network.blocks.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    network(torch.rand(2, 1, 64, 64))
    assert (given[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)

    for layer in network.blocks:
        once, again = (layer.mlp(given[0]) for _ in range(2))
        assert (once == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
        kept_by_both = (once != 0) & (again != 0)
        assert not torch.isclose(once[kept_by_both], again[kept_by_both]).all()  # units inside drop out too


def test_grid_follows_from_the_slices_size() -> None:
    assert options(224).grid == 14
    assert options(64, **TransUNetConfig.SMALL).grid == 4
    assert options(64, grid=14).grid == 14
    config = TransUNetConfig().for_size(64)
    assert config.for_size(128) == config


@pytest.mark.parametrize("shape", [(32, 32), (96, 96), (48, 64)])
def test_other_sizes_than_it_was_built_for(shape: tuple[int, int]) -> None:
    network = small(64, classify=True).eval()
    output = network(torch.rand(2, 1, *shape))
    assert output.mask_logits_BKHW.shape == (2, 1, *shape)
    assert output.class_logits_BN.shape == (2, 4)


def test_positions_keep_their_place_at_another_size() -> None:
    """An embedding that grows down and across the slice still does so, from and to the same values, at each size."""
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    position_1TD = torch.stack([(y + 0.5) / 4, (x + 0.5) / 4], -1).reshape(1, 16, 2)
    assert resize_positions(position_1TD, 4, 4) is position_1TD
    y_HW, x_HW = resize_positions(position_1TD, 2, 8).reshape(2, 8, 2).unbind(-1)
    torch.testing.assert_close(y_HW, torch.tensor([0.25, 0.75])[:, None].expand(2, 8))
    torch.testing.assert_close(x_HW[:, 1:-1], ((torch.arange(1, 7) + 0.5) / 8).expand(2, 6))  # edges are repeated


def test_position_is_seen() -> None:
    """Without its embeddings the transformer could not tell one token from another of the same look."""
    network = small(64, classify=True).eval()
    image = torch.rand(1, 1, 64, 64)
    before = network(image).class_logits_BN
    with torch.no_grad():
        network.pos_embed.copy_(network.pos_embed.flip(1) + torch.randn_like(network.pos_embed))
    assert not torch.allclose(network(image).class_logits_BN, before)


def test_logits_are_of_order_one_at_the_start() -> None:
    torch.manual_seed(0)
    network = small(64, classify=True, width=16, hidden=64, depth=6)
    output = network(torch.rand(4, 1, 64, 64))
    assert 0.1 < output.mask_logits_BKHW.std() < 10
    assert 0.05 < output.class_logits_BN.std() < 10


def test_the_masks_convolution_starts_with_gain_one() -> None:
    torch.manual_seed(0)
    mask = options(64, **TransUNetConfig.SMALL).build(1, 4, 99).mask
    assert mask.weight.std().item() == pytest.approx((mask.in_channels * 9) ** -0.5, rel=0.05)


def encoder_in_timms_names(grid: int) -> dict[str, Tensor]:
    """Random weights of a small hybrid with a class token and a head, as timm stores them."""
    torch.manual_seed(1)
    own = small(16 * grid).state_dict()
    weights = {name: torch.randn_like(x) for name, x in own.items() if in_encoder(name)}
    weights["pos_embed"] = torch.randn(1, 1 + grid * grid, 32)
    return {
        **weights,
        "cls_token": torch.randn(1, 1, 32),
        "head.weight": torch.randn(10, 32),
        "mask.bias": own["norm.bias"],
    }


def test_weights_of_the_hybrid_fill_the_encoder() -> None:
    network, weights = small(64), encoder_in_timms_names(grid=4)
    found = network.pretrained(weights)
    encoder = set(filter(in_encoder, network.state_dict()))
    assert set(found) == encoder
    assert torch.equal(found["pos_embed"], weights["pos_embed"][:, 1:])
    assert all(torch.equal(found[name], weights[name]) for name in encoder - {"pos_embed"})
    network.load_state_dict(found, strict=False)


def test_pretrained_positions_are_resized_to_the_grid() -> None:
    weights = encoder_in_timms_names(grid=6)
    found = small(64).pretrained(weights)
    torch.testing.assert_close(found["pos_embed"], resize_positions(weights["pos_embed"][:, 1:], 4, 4))


def test_weights_of_the_plain_vit_fill_the_transformer_alone() -> None:
    """Its patch embedding sees 16×16 pixels, this one a pixel of the ResNet's map."""
    weights = {name: x for name, x in encoder_in_timms_names(grid=4).items() if not name.startswith("patch_embed.")}
    patches = {"patch_embed.proj.weight": torch.randn(32, 3, 16, 16), "patch_embed.proj.bias": torch.randn(32)}
    transformer = {name for name in weights if name.startswith(("blocks.", "norm.", "pos_embed"))}
    assert set(small(64).pretrained({**weights, **patches})) == transformer
    del patches["patch_embed.proj.bias"]
    assert set(small(64).pretrained({**weights, **patches})) == transformer


OF_A_LAYER = {  # PyTorch's name, torchvision's, ours
    "self_attn.in_proj_weight": ("self_attention.in_proj_weight", "attn.qkv.weight"),
    "self_attn.in_proj_bias": ("self_attention.in_proj_bias", "attn.qkv.bias"),
    "self_attn.out_proj.weight": ("self_attention.out_proj.weight", "attn.proj.weight"),
    "self_attn.out_proj.bias": ("self_attention.out_proj.bias", "attn.proj.bias"),
    "linear1.weight": ("mlp.0.weight", "mlp.fc1.weight"),
    "linear1.bias": ("mlp.0.bias", "mlp.fc1.bias"),
    "linear2.weight": ("mlp.3.weight", "mlp.fc2.weight"),
    "linear2.bias": ("mlp.3.bias", "mlp.fc2.bias"),
    "norm1.weight": ("ln_1.weight", "norm1.weight"),
    "norm1.bias": ("ln_1.bias", "norm1.bias"),
    "norm2.weight": ("ln_2.weight", "norm2.weight"),
    "norm2.bias": ("ln_2.bias", "norm2.bias"),
}


@torch.no_grad()
@pytest.mark.parametrize("mlp", [("mlp.0.", "mlp.3."), ("mlp.linear_1.", "mlp.linear_2.")], ids=["new", "old"])
def test_torchvisions_vit_gives_its_numbers(mlp: tuple[str, str]) -> None:
    """A file in the layout of `vit_b_16`, its layers those of PyTorch, which torchvision builds them of."""
    torch.manual_seed(0)
    network = small(64).eval()
    layers = [nn.TransformerEncoderLayer(32, 2, 128, 0, "gelu", 1e-6, batch_first=True, norm_first=True) for _ in "12"]
    weights = {
        "class_token": torch.randn(1, 1, 32),
        "conv_proj.weight": torch.randn(32, 3, 16, 16),
        "conv_proj.bias": torch.randn(32),
        "encoder.pos_embedding": torch.randn(1, 1 + 16, 32),
        "encoder.ln.weight": torch.randn(32),
        "encoder.ln.bias": torch.randn(32),
        "heads.head.weight": torch.randn(10, 32),
        "heads.head.bias": torch.randn(10),
    }
    expected = {
        "pos_embed": "encoder.pos_embedding",
        "norm.weight": "encoder.ln.weight",
        "norm.bias": "encoder.ln.bias",
    }
    for number, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            nn.init.normal_(parameter, std=0.3)
            theirs, ours = OF_A_LAYER[name]
            theirs = theirs.replace("mlp.0.", mlp[0]).replace("mlp.3.", mlp[1])
            weights[f"encoder.layers.encoder_layer_{number}.{theirs}"] = parameter.clone()
            expected[f"blocks.{number}.{ours}"] = f"encoder.layers.encoder_layer_{number}.{theirs}"
    found = network.pretrained(weights)
    assert set(found) == set(expected)
    for ours, theirs in expected.items():
        assert torch.equal(found[ours], weights[theirs][:, 1:] if ours == "pos_embed" else weights[theirs])
    network.load_state_dict(found, strict=False)
    tokens_BTD = torch.randn(2, 5, 32)
    torch.testing.assert_close(
        network.blocks(tokens_BTD), nn.Sequential(*layers).eval()(tokens_BTD), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"heads": 5}, "heads must divide hidden, and 5 does not divide 768"),
        ({"hidden": 100}, "heads must divide hidden, and 12 does not divide 100"),
        ({"dropout": 0.5}, "dropout has no effect with classify=false"),
        ({"blocks": [3, 4]}, "blocks.2: missing"),
        ({"blocks": [3, 4, 0]}, "blocks.2: 0: Input should be greater than 0"),
        ({"decoder": [512, 256, 128, 64]}, "decoder.4: missing"),
        ({"grid": 0}, "grid: 0"),
        ({"transformer_dropout": 1.0}, "transformer_dropout: 1.0"),
    ],
)
def test_impossible_options_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(64, **model)


@pytest.mark.parametrize(("side", "message"), [(16, "too small for transunet"), (40, "not divisible by 16")])
def test_sizes_it_cannot_take_are_refused(side: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(side)

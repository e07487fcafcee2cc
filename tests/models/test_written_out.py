"""Networks whose wiring no published weights prove, against their forwards written out over their own weights.

Attention, and what else is written out in a network's own tests, is the network's own here.

B batch, C channels, H W, A attention heads, T tokens, M tokens of a semantic map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_layers import PlainLayers, telling
from torch import Tensor, nn

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.networks.t_inception import guide_from
from braintum.models.registry import model_config_class


def plain_swin_unet(network: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Three stages of two blocks; attention alone is the network's own."""
    plain = PlainLayers(network)

    def blocks(name: str, x: Tensor) -> Tensor:
        for i, block in enumerate((f"{name}.blocks.0", f"{name}.blocks.1")):
            attention = network.get_submodule(f"{block}.attn")
            x = x + attention(plain.layer_norm(f"{block}.norm1", x), shifted=i == 1)
            inner = F.gelu(plain.linear(f"{block}.mlp.fc1", plain.layer_norm(f"{block}.norm2", x)))
            x = x + plain.linear(f"{block}.mlp.fc2", inner)
        return x

    def expand(name: str, x: Tensor, factor: int) -> Tensor:
        parts = plain.linear(f"{name}.expand", x).chunk(factor**2, -1)
        fine = x.new_empty(x.shape[0], factor * x.shape[1], factor * x.shape[2], parts[0].shape[-1])
        for i, part in enumerate(parts):
            fine[:, i // factor :: factor, i % factor :: factor] = part
        return plain.layer_norm(f"{name}.norm", fine)

    embedded = plain.conv("encoder.patch_embed.proj", image_BCHW, 4, stride=4).permute(0, 2, 3, 1)
    x = plain.layer_norm("encoder.patch_embed.norm", embedded)
    skips = []
    for stage in range(3):
        layer = f"encoder.layers.{stage}"
        if stage:
            four = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = plain.linear(f"{layer}.downsample.reduction", plain.layer_norm(f"{layer}.downsample.norm", four))
        skips.append(x)
        x = blocks(layer, x)
    x = plain.layer_norm("encoder.norm", x)
    class_logits = plain.linear("classifier.1", x.mean((1, 2)))
    for stage in (1, 0):
        joined = torch.cat([expand(f"decoder.{stage}.expand", x, 2), skips[stage]], -1)
        x = blocks(f"decoder.{stage}", plain.linear(f"decoder.{stage}.join", joined))
    pixels = expand("expand", plain.layer_norm("norm", x), 4)
    return plain.conv("mask", pixels.permute(0, 3, 1, 2), 1), class_logits


def plain_transunet(network: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Stages of 1, 2 and 1 bottlenecks, two layers of the transformer; attention alone is the network's own."""
    plain, resnet = PlainLayers(network), "patch_embed.backbone"
    for name, weight in plain.of.items():
        if name.startswith(resnet) and weight.dim() == 4:
            centred = weight - weight.mean((1, 2, 3), keepdim=True)
            plain.of[name] = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()

    def normed(place: str, number: str, x: Tensor, kernel: int, stride: int = 1) -> Tensor:
        x, norm = plain.conv(f"{place}.conv{number}", x, kernel, stride), f"{place}.norm{number}"
        groups = math.gcd(32, x.shape[1])
        return F.group_norm(x, groups, plain.of[f"{norm}.weight"], plain.of[f"{norm}.bias"], eps=1e-6)

    x = F.relu(normed(f"{resnet}.stem", "", image_BCHW, 7, 2))
    skips = [x]
    x = F.max_pool2d(x, 3, 2)
    for stage, i in ((0, 0), (1, 0), (1, 1), (2, 0)):
        block, stride = f"{resnet}.stages.{stage}.blocks.{i}", 2 if stage and not i else 1
        y = F.relu(normed(block, "1", x, 1))
        y = F.relu(normed(block, "2", y, 3, stride))
        shortcut = x if i else normed(f"{block}.downsample", "", x, 1, stride)
        x = F.relu(normed(block, "3", y, 1) + shortcut)
        if (stage, i) in ((0, 0), (1, 1)):
            skips.append(F.pad(x, (0, 1, 0, 1)) if stage == 0 else x)

    tokens = plain.conv("patch_embed.proj", x, 1).flatten(2).mT + plain.of["pos_embed"]
    for layer in ("blocks.0", "blocks.1"):
        attention = network.get_submodule(f"{layer}.attn")
        tokens = tokens + attention(plain.layer_norm(f"{layer}.norm1", tokens, 1e-6))
        inner = F.gelu(plain.linear(f"{layer}.mlp.fc1", plain.layer_norm(f"{layer}.norm2", tokens, 1e-6)))
        tokens = tokens + plain.linear(f"{layer}.mlp.fc2", inner)
    tokens = plain.layer_norm("norm", tokens, 1e-6)

    def convolved(place: str, number: int, x: Tensor) -> Tensor:
        return F.relu(plain.batch_norm(f"{place}.{number + 1}", plain.conv(f"{place}.{number}", x, 3)))

    x = convolved("decoder.first", 0, tokens.mT.unflatten(2, (4, 4)))
    for i in range(4):
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        x = torch.cat([x, skips.pop()], 1) if skips else x
        x = convolved(f"decoder.up.{i}", 3, convolved(f"decoder.up.{i}", 0, x))
    return plain.conv("mask", x, 3), plain.linear("classifier.1", tokens.mean(1))


def plain_medformer(network: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """One block and one fusing layer of two heads everywhere; attention both ways and the maps' making are its own."""
    plain = PlainLayers(network)

    def activated(name: str, x: Tensor) -> Tensor:
        return F.gelu(plain.batch_norm(name, x))

    def basic(name: str, x: Tensor) -> Tensor:
        y = plain.conv(f"{name}.change.2", activated(f"{name}.change.0", x), 3)
        return x + plain.conv(f"{name}.change.5", activated(f"{name}.change.3", y), 3)

    def merge(name: str, x: Tensor) -> Tensor:
        y = plain.batch_norm(f"{name}.1", F.pixel_unshuffle(x, 2))
        return plain.conv(f"{name}.2.1", plain.conv(f"{name}.2.0", y, 3), 1)

    def join(name: str, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        return plain.conv(f"{name}.reduce", plain.batch_norm(f"{name}.norm", torch.cat([x, skip], 1)), 1)

    def project(name: str, map_BCM: Tensor) -> Tensor:
        return plain.of[f"{name}.weight"][..., 0] @ map_BCM

    def attend(name: str, x: Tensor, map_BCM: Tensor, updates_map: bool = True) -> tuple[Tensor, Tensor]:
        attention, feed = network.get_submodule(f"{name}.attention"), f"{name}.feedforward"
        feature_in, map_in = plain.batch_norm(f"{name}.feature_norm", x), plain.batch_norm(f"{name}.map_norm", map_BCM)
        change, map_change = attention(feature_in, map_in)
        x = x + change
        y = plain.conv(f"{feed}.expand.2", activated(f"{feed}.expand.0", x), 1)
        y = plain.conv(f"{feed}.expand.5", activated(f"{feed}.expand.3", y), 3)
        squeezed = F.relu(plain.conv(f"{feed}.excite.0", y.mean((2, 3), keepdim=True), 1))
        y = y * torch.sigmoid(plain.conv(f"{feed}.excite.2", squeezed, 1))
        x = x + plain.conv(f"{feed}.project.1", plain.batch_norm(f"{feed}.project.0", y), 1)
        return x, map_BCM + map_change if updates_map else map_BCM

    def fuse(maps: list[Tensor]) -> list[Tensor]:
        layer = "fusion.layers.0"
        x = torch.cat([project(f"fusion.project_in.{i}", map_BCM) for i, map_BCM in enumerate(maps)], 2).mT
        qkv = plain.linear(f"{layer}.qkv", plain.layer_norm(f"{layer}.norm", x)).unflatten(2, (3, 2, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
        x = x + plain.linear(f"{layer}.out", attended.transpose(1, 2).flatten(2))
        y = plain.linear(f"{layer}.feedforward.1", plain.layer_norm(f"{layer}.feedforward.0", x))
        x = x + plain.linear(f"{layer}.feedforward.3", F.gelu(y))
        return [project(f"fusion.project_out.{i}", fused) for i, fused in enumerate(x.mT.chunk(3, 2))]

    skips = [basic("stem.1", plain.conv("stem.0", image_BCHW, 3))]
    skips.append(basic("convolve_down.1", merge("convolve_down.0", skips[0])))
    maps = []
    for stage in ("encoder.0", "encoder.1", "encoder.2"):
        x = merge(f"{stage}.merge", skips[-1])
        x, map_BCM = attend(f"{stage}.blocks.0", x, network.get_submodule(f"{stage}.map")(x))
        skips.append(x)
        maps.append(map_BCM)
    *maps, map_BCM = fuse(maps)
    x = skips.pop()
    class_logits = plain.linear("classifier.1", x.mean((2, 3)))
    for stage in ("decoder.0", "decoder.1"):
        x = join(f"{stage}.join", x, skips.pop())
        map_BCM = project(f"{stage}.map", torch.cat([map_BCM, maps.pop()], 1))
        x, map_BCM = attend(f"{stage}.blocks.0", x, map_BCM, updates_map=stage == "decoder.0")
    for stage in ("convolve_up.0", "convolve_up.1"):
        x = basic(f"{stage}.blocks.0", join(f"{stage}.join", x, skips.pop()))
    return plain.conv("mask", x, 1), class_logits


def plain_braintumnet(network: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Depth 3; attention, its masks, CBAM and the guide are the network's own."""
    plain = PlainLayers(network)

    def convolved(name: str, x: Tensor, kernel: int | tuple[int, int]) -> Tensor:
        return F.relu(plain.batch_norm(f"{name}.1", plain.conv(f"{name}.0", x, kernel)))

    def multi_kernel(name: str, x: Tensor) -> Tensor:
        parallel = [plain.conv(f"{name}.parallel.{i}", x, kernel) for i, kernel in enumerate((1, 3, 5))]
        return convolved(f"{name}.joint", F.relu(plain.batch_norm(f"{name}.norm", torch.cat(parallel, 1))), 3)

    def bt_block(name: str, x_BCHW: Tensor, log_mask_BAT: Tensor) -> Tensor:
        attention, grid = network.get_submodule(f"{name}.attention"), x_BCHW.shape[2:]
        x = x_BCHW.flatten(2).mT
        x = x + attention(plain.layer_norm(f"{name}.norms.0", x), grid, log_mask_BAT)
        inner = F.gelu(plain.linear(f"{name}.mlp.0", plain.layer_norm(f"{name}.norms.1", x)))
        return (x + plain.linear(f"{name}.mlp.2", inner)).mT.unflatten(2, grid)

    def transformer(name: str, x: Tensor, patch: int, depth: int, low: Tensor, high: Tensor) -> Tensor:
        x = plain.conv(f"{name}.embed", x, patch, stride=patch)
        x = x + plain.conv(f"{name}.position", x, 3)
        log_mask_BAT = network.get_submodule(f"{name}.masks")(low, high, x.shape[2:])
        for i in range(depth):
            x = bt_block(f"{name}.blocks.{i}", x, log_mask_BAT)
        return plain.layer_norm(f"{name}.norm", x.movedim(1, -1)).movedim(-1, 1)

    features = [multi_kernel("stages.0", image_BCHW)]
    features.append(multi_kernel("stages.1", F.max_pool2d(features[0], 2)))
    fine = multi_kernel("stages.2", F.max_pool2d(features[1], 2))
    patches = transformer("branch.transformer", image_BCHW, 4, 2, features[1], fine)
    features.append(convolved("branch.join", torch.cat([fine, patches], 1), 1))
    deepest = multi_kernel("stages.3", F.max_pool2d(features[2], 2))

    maps = [deepest]
    for up, skip, patch in zip(("decoder.0", "decoder.1", "decoder.2"), features[::-1], (1, 2, 4), strict=True):
        attended = network.get_submodule(f"{up}.attention")(skip, maps[-1])
        x = multi_kernel(f"{up}.convolve", torch.cat([attended, plain.up(f"{up}.up", maps[-1], 2)], 1))
        corrections = transformer(f"{up}.refine.transformer", x, patch, 1, skip, maps[-1])
        maps.append(x + plain.up(f"{up}.refine.restore", corrections, patch))
    total = plain.conv("pyramid.reduce.0", maps[0], 1)
    for i in (1, 2, 3):
        total = F.interpolate(total, scale_factor=2.0) + plain.conv(f"pyramid.reduce.{i}", maps[i], 1)
    mask_logits = plain.conv("mask", convolved("pyramid.smooth", total, 3), 1)

    guide = guide_from(mask_logits, 4)
    x = convolved("inception.join", torch.cat([features[2], F.interpolate(deepest, scale_factor=2.0)], 1) * guide, 1)
    for block in ("inception.blocks.0", "inception.blocks.1"):
        kernels = enumerate(((1, 1), (3, 3), (1, 3), (3, 1)))
        x = x + torch.cat([convolved(f"{block}.branches.{i}", x, kernel) for i, kernel in kernels], 1)
        x = bt_block(f"{block}.transformer", x, guide.log().flatten(2).expand(-1, 4, -1))
    pooled = (x * guide).sum((2, 3)) / guide.sum((2, 3))
    return mask_logits, plain.linear("inception.head.3", F.relu(plain.linear("inception.head.0", pooled)))


Plain = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
CASES: list[tuple[Plain, dict[str, Any]]] = [
    (plain_swin_unet, {}),
    (plain_transunet, {"blocks": [1, 2, 1]}),
    (plain_medformer, {}),
    (plain_braintumnet, {}),
]


@torch.no_grad()
@pytest.mark.parametrize(("plain", "options"), CASES)
def test_a_network_computes_what_is_written_out(plain: Plain, options: dict[str, Any]) -> None:
    name = plain.__name__.removeprefix("plain_")
    model = {**model_config_class(name).SMALL, "name": name, "classify": True, **options}
    torch.manual_seed(0)
    network = telling(Experiment.from_dict({"data": {"image_size": 64}, "model": model}).model.build(1, 3, 1))
    image_BCHW = torch.rand(2, 1, 64, 64).double()
    mask_logits, class_logits = plain(network, image_BCHW)
    output = network(image_BCHW)
    torch.testing.assert_close(output.mask_logits_BKHW, mask_logits)
    torch.testing.assert_close(output.class_logits_BN, class_logits, rtol=1e-5, atol=1e-5)  # guides are float32

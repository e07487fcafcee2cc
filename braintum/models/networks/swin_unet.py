"""Swin-Unet (Cao et al. 2021), for slices of any multiple of the divisor.

B batch, C channels, H W, K mask channels, N classes, D width of a token; maps of tokens are [B, H, W, D].
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from braintum.models.networks.blocks import class_head
from braintum.models.networks.swin_blocks import Block, initialise, resize_bias
from braintum.models.output import Output
from braintum.models.swin_unet import PATCH, SwinUNetConfig


class SwinUNet(nn.Module):
    """Encoder, mirrored decoder with skips, expansion to pixels; with `config.classify` a head on the mean token.

    A window of `config.window` tokens a side is cut down to maps that are smaller than it.
    """

    def __init__(self, config: SwinUNetConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        self.window = config.option("window")
        self.encoder = Encoder(config, in_channels)
        self.decoder = nn.ModuleList(DecoderStage(config, stage) for stage in range(config.stages - 1))
        self.norm = nn.LayerNorm(config.width)
        self.expand = PatchExpand(config.width, config.width, PATCH)
        self.mask = nn.Conv2d(config.width, num_masks, 1, bias=False)
        self.classifier = class_head(config, config.width << (config.stages - 1), num_classes)
        initialise(self)

    def forward(self, image_BCHW: Tensor) -> Output:
        x, skips = self.encoder(image_BCHW)
        class_logits_BN = None if self.classifier is None else self.classifier(x.mean((1, 2)))
        for stage in range(len(self.decoder) - 1, -1, -1):
            x = self.decoder[stage](x, skips[stage])
        pixels_BHWD = self.expand(self.norm(x))
        return Output(self.mask(pixels_BHWD.permute(0, 3, 1, 2)), class_logits_BN)

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A Swin classifier's weights (timm's, torchvision's or Microsoft's names) under this network's names.

        Only what this network has: the classes, blocks and stages beyond its own, and then the last norm, are left
        out. As in the published code a stage's blocks start the decoder's blocks of that stage too. Position biases of
        another window are interpolated; other shapes are not looked at.
        """
        own = self.state_dict()
        found: dict[str, Tensor] = {}
        for name, value in self.resized(_timm_names(weights)).items():
            if name.startswith("norm.") and value.shape != self.encoder.norm.weight.shape:
                continue
            places = (f"encoder.{name}", f"decoder.{name.removeprefix('layers.')}")
            found |= {place: value for place in places if place in own}
        return found

    def resized(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Position biases for this network's window, interpolated; the rest as it is."""
        return {
            name: resize_bias(value, self.window) if name.endswith(".relative_position_bias_table") else value
            for name, value in weights.items()
        }


class Encoder(nn.Module):
    """Patch embedding, then stages that begin with a merging of patches (but the first). Parameters as timm names them.

    Returns the normalised map of the last stage and what each stage's blocks were given: as in the published code
    (the paper does not say), these are the skips.
    """

    def __init__(self, config: SwinUNetConfig, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, config.width)
        self.layers = nn.ModuleList(EncoderStage(config, stage) for stage in range(config.stages))
        self.norm = nn.LayerNorm(config.width << (config.stages - 1))

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.patch_embed(image_BCHW)
        skips = []
        for layer in self.layers:
            skip, x = layer(x)
            skips.append(skip)
        return self.norm(x), skips


class EncoderStage(nn.Module):
    """Halves the map's side and doubles the width (but in the first stage), then blocks. Returns what they get, too."""

    def __init__(self, config: SwinUNetConfig, stage: int) -> None:
        super().__init__()
        self.downsample = PatchMerging(config.width << (stage - 1)) if stage else nn.Identity()
        self.blocks = make_blocks(config, stage)

    def forward(self, x_BHWD: Tensor) -> tuple[Tensor, Tensor]:
        x_BHWD = self.downsample(x_BHWD)
        return x_BHWD, self.blocks(x_BHWD)


class DecoderStage(nn.Module):
    """Doubles the map's side and halves the width, joins the skip by a linear layer, then blocks."""

    def __init__(self, config: SwinUNetConfig, stage: int) -> None:
        super().__init__()
        width = config.width << stage
        self.expand = PatchExpand(2 * width, width, 2)
        self.join = nn.Linear(2 * width, width)
        self.blocks = make_blocks(config, stage)

    def forward(self, coarse_BHWD: Tensor, skip_BHWD: Tensor) -> Tensor:
        x: Tensor = self.blocks(self.join(torch.cat([self.expand(coarse_BHWD), skip_BHWD], -1)))
        return x


def make_blocks(config: SwinUNetConfig, stage: int) -> nn.Sequential:
    """The blocks of a stage. Their drop path grows linearly with the depth in the encoder; the decoder mirrors it."""
    last = config.stages * config.depth - 1
    return nn.Sequential(
        *(
            Block(
                width=config.width << stage,
                heads=config.heads << stage,
                window=config.option("window"),
                shifted=index % 2 == 1,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path * (stage * config.depth + index) / last,
            )
            for index in range(config.depth)
        )
    )


class PatchEmbed(nn.Module):
    """A token for each patch of 4×4 pixels: [B, C, H, W] → [B, H/4, W/4, D]."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BHWD: Tensor = self.norm(self.proj(image_BCHW).permute(0, 2, 3, 1))
        return x_BHWD


class PatchMerging(nn.Module):
    """Four neighbours side by side, then reduced to twice the width: [B, H, W, D] → [B, H/2, W/2, 2D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        neighbours = x_BHWD.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        x: Tensor = self.reduction(self.norm(neighbours))
        return x


class PatchExpand(nn.Module):
    """`factor`² tokens of `out_width` out of each: [B, H, W, width] → [B, factor·H, factor·W, out_width]."""

    def __init__(self, width: int, out_width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(width, factor**2 * out_width, bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        x = self.expand(x_BHWD).unflatten(-1, (self.factor, self.factor, -1))
        x_BHWD = self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))
        return x_BHWD


def _timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under timm's names, whose stages begin with the merging of patches; Microsoft's end with it.

    torchvision counts merging and stages in one list: `features.1` and `3` are stages, `2` merges between them.
    """
    late = "layers.0.downsample.reduction.weight" in weights

    def translated(name: str) -> str:
        if late:
            return re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
        place = re.match(r"features\.(\d+)\.(\d+|norm|reduction)\.(.*)", name)
        if place is None:
            return name
        number, part, rest = int(place[1]), place[2], place[3]
        if number == 0:
            return f"patch_embed.{'proj' if part == '0' else 'norm'}.{rest}"
        if number % 2 == 0:
            return f"layers.{number // 2}.downsample.{part}.{rest}"
        rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        return f"layers.{number // 2}.blocks.{part}.{rest}"

    return {translated(name): value for name, value in weights.items()}

"""TransUNet (Chen et al. 2021): ResNet, transformer, decoder with skips.

B batch, C channels, H W, K mask channels, N classes; T tokens (the pixels of the ResNet's last map, row by row), D
their width. Parameters of the ResNet and the transformer have timm's names (`vit_base_r50_s16_224`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.networks.blocks import ConvBlock, class_head, initialise
from braintum.models.output import Output
from braintum.models.transunet import TransUNetConfig


class TransUNet(nn.Module):
    """The image becomes tokens of 16×16 pixels; what the transformer makes of them is brought back up, past the skips.

    Height and width must be multiples of 16, not less than 32. Where they are not 16 × `grid` the position embeddings
    are interpolated. The classification head sees the mean of the transformer's last tokens. Weights begin as those of
    the U-Net do: the public code always begins with pre-trained ones; position embeddings as in ViT (std 0.02).
    """

    def __init__(self, config: TransUNetConfig, grid: int, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = HybridEmbed(in_channels, config.width, config.blocks, config.hidden)
        self.pos_embed = nn.Parameter(torch.empty(1, grid * grid, config.hidden))
        self.dropout = nn.Dropout(config.transformer_dropout)
        self.blocks = nn.Sequential(*(TransformerLayer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.hidden, eps=1e-6)
        self.decoder = Decoder(config.hidden, self.patch_embed.backbone.skip_channels, config.decoder)
        self.mask = nn.Conv2d(config.decoder[-1], num_masks, 3, padding=1)
        self.classifier = class_head(config, config.hidden, num_classes)
        initialise(self)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, image_BCHW: Tensor) -> Output:
        embedded_BDHW, skips = self.patch_embed(image_BCHW)
        height, width = embedded_BDHW.shape[2:]
        position_1TD = resize_positions(self.pos_embed, height, width)
        tokens_BTD = self.dropout(embedded_BDHW.flatten(2).transpose(1, 2) + position_1TD)
        tokens_BTD = self.norm(self.blocks(tokens_BTD))
        class_logits_BN = None if self.classifier is None else self.classifier(tokens_BTD.mean(1))
        encoded_BDHW = tokens_BTD.transpose(1, 2).unflatten(2, (height, width))
        return Output(self.mask(self.decoder(encoded_BDHW, skips)), class_logits_BN)

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of timm's `vit_base_r50_s16_224` or `vit_base_patch16_224` that this network has a place for.

        Class token and head are left out, position embeddings resized to this grid. A patch embedding of larger
        patches is left out too: here it stands on the ResNet's map. Other shapes are as given, not compared.
        """
        encoder = ("patch_embed.", "pos_embed", "blocks.", "norm.")
        own = {name for name in self.state_dict() if name.startswith(encoder)}
        found = {name: x for name, x in weights.items() if name in own}
        projection = found.get("patch_embed.proj.weight")
        if projection is not None and projection.shape[2:] != (1, 1):
            del found["patch_embed.proj.weight"], found["patch_embed.proj.bias"]
        if "pos_embed" in found:
            position_1TD = found["pos_embed"]
            num_positions = math.isqrt(position_1TD.shape[1]) ** 2  # what stands before these is the class token's
            found["pos_embed"] = resize_positions(position_1TD[:, -num_positions:], self.grid, self.grid)
        return found


def resize_positions(position_1TD: Tensor, height: int, width: int) -> Tensor:
    """Embeddings of a square grid of positions for another one: [1, height × width, D]; bilinear, as in public code."""
    side = math.isqrt(position_1TD.shape[1])
    if (height, width) == (side, side):
        return position_1TD
    grid_1DHW = position_1TD.transpose(1, 2).unflatten(2, (side, side))
    grid_1DHW = F.interpolate(grid_1DHW, size=(height, width), mode="bilinear", align_corners=False)
    return grid_1DHW.flatten(2).transpose(1, 2)


class HybridEmbed(nn.Module):
    """[B, D, H/16, W/16], a linear map of each pixel of the ResNet's last stage, and the ResNet's skips."""

    def __init__(self, in_channels: int, width: int, blocks: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.backbone = ResNet(in_channels, width, blocks)
        self.proj = nn.Conv2d(16 * width, hidden, 1)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        x_BCHW, skips = self.backbone(image_BCHW)
        return self.proj(x_BCHW), skips


class ResNet(nn.Module):
    """BiT's ResNet without its last stage (Kolesnikov et al. 2020), as in ViT's hybrid: [B, 16 width, H/16, W/16].

    Also returns the skips, finest first: `skip_channels` at 1/2, 1/4, 1/8 of the side. As in the public code the
    pooling is not padded, so that the first stage lacks a row and a column, which its skip gets as zeros.
    """

    def __init__(self, in_channels: int, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.skip_channels = (width, 4 * width, 8 * width)
        self.stem = ConvNorm(in_channels, width, 7, stride=2)
        channels = (width, *(4 * width << stage for stage in range(len(blocks))))
        self.stages = nn.ModuleList(
            ResNetStage(channels[i], channels[i + 1], num_blocks, stride=1 if i == 0 else 2)
            for i, num_blocks in enumerate(blocks)
        )

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        stem_BCHW = F.relu(self.stem(image_BCHW))
        features = [F.max_pool2d(stem_BCHW, 3, stride=2)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        _, quarter_BCHW, eighth_BCHW, last_BCHW = features
        return last_BCHW, [stem_BCHW, F.pad(quarter_BCHW, (0, 1, 0, 1)), eighth_BCHW]


class ResNetStage(nn.Sequential):
    """Bottlenecks, the first of which changes channels and stride."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, stride: int) -> None:
        first = Bottleneck(in_channels, out_channels, stride)
        others = (Bottleneck(out_channels, out_channels, 1) for _ in range(num_blocks - 1))
        super().__init__(OrderedDict(blocks=nn.Sequential(first, *others)))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, ReLU after each and after the sum; a quarter inside."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1, self.norm1 = StdConv2d(in_channels, inner, 1), group_norm(inner)
        self.conv2, self.norm2 = StdConv2d(inner, inner, 3, stride), group_norm(inner)
        self.conv3, self.norm3 = StdConv2d(inner, out_channels, 1), group_norm(out_channels)
        self.downsample: ConvNorm | None = None
        if in_channels != out_channels or stride != 1:
            self.downsample = ConvNorm(in_channels, out_channels, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        x_BCHW = F.relu(self.norm2(self.conv2(x_BCHW)))
        return F.relu(self.norm3(self.conv3(x_BCHW)) + shortcut_BCHW)


class ConvNorm(nn.Sequential):
    """A convolution and its norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        conv = StdConv2d(in_channels, out_channels, kernel_size, stride)
        super().__init__(OrderedDict(conv=conv, norm=group_norm(out_channels)))


class StdConv2d(nn.Conv2d):
    """A convolution whose weights are standardised per output channel (Qiao et al. 2019, eq. 11); ε as in public code.

    No bias; sides are divided by `stride`, rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x_BCHW, weight, None, self.stride, self.padding)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or the largest power of two below that divides the channels.

    TransUNet's public code has one channel a group on shortcuts, and loads there weights trained with 32 groups (ViT's
    hybrid); here they meet the groups they were trained with.
    """
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class TransformerLayer(nn.Module):
    """Attention and MLP, a norm before and a shortcut beside each (the paper, eq. 2 and 3; Dosovitskiy et al. 2021)."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden, eps=1e-6)
        self.attn = Attention(config.hidden, config.heads, config.attention_dropout)
        self.norm2 = nn.LayerNorm(config.hidden, eps=1e-6)
        self.mlp = MLP(config.hidden, config.mlp_ratio * config.hidden, config.transformer_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        x_BTD = x_BTD + self.mlp(self.norm2(x_BTD))
        return x_BTD


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017, section 3.2); dropout on its weights and its output."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        query, key, value = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.qkv(x_BTD).chunk(3, 2))
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        x_BTD = self.dropout(self.proj(attended.transpose(1, 2).flatten(2)))
        return x_BTD


class MLP(nn.Sequential):
    """Two layers on each token, dropout after both."""

    def __init__(self, hidden: int, inner: int, dropout: float) -> None:
        fc1, fc2 = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        drop1, drop2 = nn.Dropout(dropout), nn.Dropout(dropout)
        super().__init__(OrderedDict(fc1=fc1, activation=nn.GELU(), drop1=drop1, fc2=fc2, drop2=drop2))


class Decoder(nn.Module):
    """The cascaded upsampler (the paper, section 3.2.2): `channels` at 1/16, 1/8, 1/4, 1/2 and all of the side.

    A 3×3 convolution, then four times: sides doubled (bilinear, corners aligned, as in the public code), the skip
    joined where there is one, two 3×3 convolutions.
    """

    def __init__(self, in_channels: int, skip_channels: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
        )
        skips = (*reversed(skip_channels), 0)
        self.up = nn.ModuleList(
            ConvBlock(coarse + skip, fine, "batch")
            for coarse, skip, fine in zip(channels[:-1], skips, channels[1:], strict=True)
        )

    def forward(self, x_BDHW: Tensor, skips: list[Tensor]) -> Tensor:
        x_BCHW: Tensor = self.first(x_BDHW)
        for convolve, skip_BCHW in zip(self.up, [*reversed(skips), None], strict=True):
            x_BCHW = F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=True)
            x_BCHW = convolve(x_BCHW if skip_BCHW is None else torch.cat([x_BCHW, skip_BCHW], 1))
        return x_BCHW

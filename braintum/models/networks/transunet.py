"""TransUNet (Chen et al. 2021): ResNet, transformer, decoder with skips.

B batch, C channels, H W, K mask channels, N classes; T tokens (the pixels of the ResNet's last map, row by row), D
their width. Parameters of the ResNet and the transformer have timm's names (`vit_base_r50_s16_224`).
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.networks.blocks import ConvBlock, ConvNormReLU, class_head, initialise
from braintum.models.networks.transunet_resnet import ResNet
from braintum.models.output import Output
from braintum.models.transunet import TransUNetConfig


class TransUNet(nn.Module):
    """The image becomes tokens of 16×16 pixels; what the transformer makes of them is brought back up, past the skips.

    Height and width must be multiples of 16, not less than 32. Where they are not 16 × `grid` the position embeddings
    are interpolated. The classification head sees the mean of the transformer's last tokens. Weights begin as those of
    the U-Net do: the public code always begins with pre-trained ones; position embeddings as in ViT (std 0.02).

    The published count at 224×224, 105,276,066 parameters, is the one with two output channels; the public code's nine
    have 105,277,081.
    """

    def __init__(self, config: TransUNetConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        self.grid = config.option("grid")
        self.patch_embed = HybridEmbed(in_channels, config.width, config.blocks, config.hidden)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid**2, config.hidden))
        self.dropout = nn.Dropout(config.transformer_dropout)
        self.blocks = nn.Sequential(*(TransformerLayer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.hidden, eps=1e-6)
        self.decoder = Decoder(config.hidden, self.patch_embed.backbone.skip_channels, config.decoder)
        self.mask = nn.Conv2d(config.decoder[-1], num_masks, 3, padding=1)
        self.classifier = class_head(config, config.hidden, num_classes)
        initialise(self)
        nn.init.kaiming_normal_(self.mask.weight, nonlinearity="linear")  # no ReLU stands behind it
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
        """The tensors of a ViT-B/16 that this network has a place for: timm's `vit_base_r50_s16_224` (with the ResNet)
        and `vit_base_patch16_224`, torchvision's `vit_b_16`.

        Class token and head are left out, position embeddings resized to this grid. A patch embedding of larger
        patches is left out too: here it stands on the ResNet's map. Other shapes are as given, not compared.
        """
        encoder = ("patch_embed.", "pos_embed", "blocks.", "norm.")
        own = {name for name in self.state_dict() if name.startswith(encoder)}
        found = {name: x for name, x in _timm_names(weights).items() if name in own}
        projection = found.get("patch_embed.proj.weight")
        if projection is not None and projection.shape[2:] != (1, 1):
            found = {name: x for name, x in found.items() if not name.startswith("patch_embed.proj.")}
        if "pos_embed" in found:
            position_1TD = found["pos_embed"]
            num_positions = math.isqrt(position_1TD.shape[1]) ** 2  # what stands before these is the class token's
            found["pos_embed"] = position_1TD[:, -num_positions:]
        return self.resized(found)

    def resized(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Position embeddings for this network's grid, interpolated; the rest as it is."""
        return {
            name: resize_positions(x, self.grid, self.grid) if name == "pos_embed" else x for name, x in weights.items()
        }


def _timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under timm's names; torchvision's are translated.

    Its older files call the layers of an MLP `linear_1` and `linear_2`, the others `0` and `3`.
    """

    def translated(name: str) -> str:
        layer = re.match(r"encoder\.layers\.encoder_layer_(\d+)\.(.*)", name)
        if layer is not None:
            number, rest = layer.groups()
            for pattern, ours in _OF_A_LAYER:
                rest = re.sub(pattern, ours, rest)
            return f"blocks.{number}.{rest}"
        return _OUTSIDE_LAYERS.get(name, name)

    return {translated(name): x for name, x in weights.items()}


_OF_A_LAYER = (
    (r"^ln_([12])\.", r"norm\1."),
    (r"^self_attention\.in_proj_", "attn.qkv."),
    (r"^self_attention\.out_proj\.", "attn.proj."),
    (r"^mlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"^mlp\.(3|linear_2)\.", "mlp.fc2."),
)
_OUTSIDE_LAYERS = {
    "conv_proj.weight": "patch_embed.proj.weight",
    "conv_proj.bias": "patch_embed.proj.bias",
    "encoder.pos_embedding": "pos_embed",
    "encoder.ln.weight": "norm.weight",
    "encoder.ln.bias": "norm.bias",
}
"""torchvision's names, timm's."""


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
        self.first = ConvNormReLU(in_channels, channels[0], 3)
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

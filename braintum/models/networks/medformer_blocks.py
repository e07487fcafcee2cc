"""Blocks that MedFormer is made of: attention between features and semantic maps, and convolutions.

B batch, C channels, H W, P pixels (H × W), M tokens of a semantic map, L tokens of all maps, G heads, D channels of a
head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.medformer import MedFormerConfig


class AttentionBlock(nn.Module):
    """Attention in both directions, then a feed-forward of the features; each adds to what it reads."""

    def __init__(self, channels: int, config: MedFormerConfig, updates_map: bool = True) -> None:
        super().__init__()
        self.feature_norm, self.map_norm = nn.BatchNorm2d(channels), nn.BatchNorm1d(channels)
        self.attention = BidirectionalAttention(channels, 4 * config.width // config.heads, updates_map)
        self.feedforward = InvertedBottleneck(channels, config.expansion)

    def forward(self, feature_BCHW: Tensor, map_BCM: Tensor) -> tuple[Tensor, Tensor]:
        change, map_change = self.attention(self.feature_norm(feature_BCHW), self.map_norm(map_BCM))
        return self.feedforward(feature_BCHW + change), map_BCM if map_change is None else map_BCM + map_change


class BidirectionalAttention(nn.Module):
    """One matrix of scores read both ways: each pixel takes a mean of the map's tokens, each token one of the pixels.

    Its cost is linear in the number of pixels. Features are projected by separable convolutions, so that no position
    embedding is needed. Without `updates_map` the tokens take nothing.
    """

    def __init__(self, channels: int, head_channels: int, updates_map: bool) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.feature_in = SeparableConv(channels, (2 if updates_map else 1) * channels)
        self.map_in = nn.Conv1d(channels, 2 * channels, 1, bias=False)
        self.feature_out = SeparableConv(channels, channels)
        self.map_out = nn.Conv1d(channels, channels, 1, bias=False) if updates_map else None

    def forward(self, feature_BCHW: Tensor, map_BCM: Tensor) -> tuple[Tensor, Tensor | None]:
        query_BGDP, *value_BGDP = self._heads(self.feature_in(feature_BCHW), feature_BCHW.shape[1])
        map_query_BGDM, map_value_BGDM = self._heads(self.map_in(map_BCM), map_BCM.shape[1])
        scores_BGPM = query_BGDP.mT @ map_query_BGDM * self.head_channels**-0.5
        taken_BGDP = map_value_BGDM @ scores_BGPM.softmax(3).mT
        feature = self.feature_out(taken_BGDP.reshape(feature_BCHW.shape))
        if self.map_out is None:
            return feature, None
        return feature, self.map_out((value_BGDP[0] @ scores_BGPM.softmax(2)).reshape(map_BCM.shape))

    def _heads(self, projected: Tensor, channels: int) -> list[Tensor]:
        """Queries, and values where there are any, each as [batch, heads, channels of a head, places]."""
        return [x.unflatten(1, (-1, self.head_channels)) for x in projected.flatten(2).split(channels, 1)]


class MapGeneration(nn.Module):
    """A semantic map: each of its size² tokens is a mean of projected features, weighted by a softmax over pixels."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.weigh = nn.Conv2d(channels, size**2, 3, padding=1, bias=False)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        weight_BMP = self.weigh(feature_BCHW).flatten(2).softmax(2)
        map_BCM: Tensor = self.project(feature_BCHW).flatten(2) @ weight_BMP.mT
        return map_BCM


class MapFusion(nn.Module):
    """A pre-norm transformer over the tokens of all stages' maps; every map comes back in its own channels."""

    def __init__(self, channels: list[int], config: MedFormerConfig) -> None:
        super().__init__()
        width = config.fusion_width
        self.project_in = nn.ModuleList(nn.Conv1d(c, width, 1, bias=False) for c in channels)
        self.layers = nn.ModuleList(FusionLayer(width, config.fusion_heads) for _ in range(config.fusion_depth))
        self.project_out = nn.ModuleList(nn.Conv1d(width, c, 1, bias=False) for c in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        token_BLC = torch.cat([project(x) for project, x in zip(self.project_in, maps, strict=True)], 2).mT
        for layer in self.layers:
            token_BLC = layer(token_BLC)
        fused = token_BLC.mT.chunk(len(maps), 2)
        return [project(x) for project, x in zip(self.project_out, fused, strict=True)]


class FusionLayer(nn.Module):
    """Self-attention and a feed-forward as wide as its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, token_BLC: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(token_BLC)).chunk(3, 2)
        q_BGLD, k_BGLD, v_BGLD = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in qkv)
        attended_BGLD = F.scaled_dot_product_attention(q_BGLD, k_BGLD, v_BGLD)
        token_BLC = token_BLC + self.out(attended_BGLD.transpose(1, 2).flatten(2))
        fed: Tensor = token_BLC + self.feedforward(token_BLC)
        return fed


class InvertedBottleneck(nn.Module):
    """MBConv with norms before convolutions: expand, 3×3 per channel, squeeze and excite, project; a residual."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.expand = nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.GELU(), nn.Conv2d(channels, inner, 1, bias=False)),
            *(nn.BatchNorm2d(inner), nn.GELU(), nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)),
        )
        self.excite = nn.Sequential(
            nn.Conv2d(inner, inner // 4, 1), nn.ReLU(), nn.Conv2d(inner // 4, inner, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.BatchNorm2d(inner), nn.Conv2d(inner, channels, 1, bias=False))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.expand(x_BCHW)
        projected: Tensor = self.project(x * self.excite(x.mean((2, 3), keepdim=True)))
        return x_BCHW + projected


class BasicBlock(nn.Module):
    """(norm, GELU, 3×3 convolution) twice, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)),
            *(nn.BatchNorm2d(channels), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        changed: Tensor = x_BCHW + self.change(x_BCHW)
        return changed


class PatchMerging(nn.Sequential):
    """Half the side, twice the channels: 2×2 neighbours become channels, which are normed and projected."""

    def __init__(self, channels: int) -> None:
        merged = 4 * channels
        super().__init__(nn.PixelUnshuffle(2), nn.BatchNorm2d(merged), SeparableConv(merged, 2 * channels))


class SeparableConv(nn.Sequential):
    """A 3×3 convolution of each channel, then a 1×1 convolution across them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

"""The adaptive masked transformer (the BrainTumNet paper, section 2.2, and section 5 on its mask and its cost).

The paper states the parts in prose, without an equation, and its figure 2 without a number. What each part is here:

- *Patch embedding* (2.2): a convolution of stride and size `patch`. Positions: a depthwise 3×3 convolution added to
  the embedding (Chu et al. 2021, "Conditional positional encodings"); the paper is silent, and this needs no table of
  a fixed size.
- *Mask generator* (2.2, 5): "a lightweight MLP network to predict patch importance scores", "jointly optimized using
  low-level and high-level semantic features", and "unique soft masks for each attention head", "continuously
  distributed between 0 and 1". One hidden layer over both features of a patch, a sigmoid for each head. A patch's
  importance is the mean of its masks.
- *Masked attention* (2.2): attention over all patches, each key's weight scaled by its mask and the weights normalised
  again, so that masks of 1 leave it as it is. Of this "global sparse attention" only the `keep_ratio` most important
  patches take part, as queries and as keys. Which to keep has no gradient; how much the kept ones weigh has.
- *Self-attention* (2.2): plain, "local window attention"; for every patch, so those that are not kept still see their
  surroundings. No shifted windows: section 5 counts them against Swin-UNet.
- *BT Block*: "both local window attention and global sparse attention modes, automatically selecting the most suitable
  computational approach for the current input features through learnable weight parameters" (2.2): a linear layer on
  the mean patch gives each head of each slice a share in (0, 1). Then an MLP. Pre-norm with residuals, as every ViT
  since the first.

Where this departs from the paper's words, and why:

- It "restricts attention to local regions within prediction masks" (2.2): no predicted mask bounds attention here.
  Masks are learnt from features, as the next sentences have it, and values between 0 and 1 exclude nothing; the
  prediction exists only behind the last decoder layer. Only the classifier's attention has it: see `t_inception`.
- Both modes are computed and mixed, not one of them selected: a choice would have no gradient.
- A block contains "Masked attention, self-attention mechanisms" (2.2): one layer here, whose modes share queries, keys
  and values, since the same section has one "self-attention computation layer" that "incorporates both".
- "Faster inference speeds through efficient sparse matrix operations" (5): the kept patches are gathered for a dense
  kernel. All are kept unless told, since the paper gives no ratio.

B batch, C channels, H W, T patches (tokens), S kept patches, D width of a patch, A heads, E width of a head. `grid`:
patches along height and width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.braintumnet import BrainTumNetConfig

Grid = tuple[int, int]

MLP_RATIO = 4
"""Hidden width of a block's MLP over a patch's width, as in ViT."""


def masked_attention(query_BATE: Tensor, key_BATE: Tensor, value_BATE: Tensor, log_mask_BAT: Tensor | None) -> Tensor:
    """softmax(query keyᵀ / √E) with each key's weight times its mask, normalised again; applied to the values, BATE.

    The logarithm of the mask enters as one more dimension of keys, for which queries have a 1. So no T×T mask exists
    and every fused kernel can be used; zeros round the width up to what those kernels want, a multiple of 8.
    """
    if log_mask_BAT is None:
        return F.scaled_dot_product_attention(query_BATE, key_BATE, value_BATE)
    width = query_BATE.shape[-1]
    more = 8 - width % 8
    query = torch.cat([query_BATE * width**-0.5, torch.ones_like(query_BATE[..., :1])], -1)
    key = torch.cat([key_BATE, log_mask_BAT[..., None].to(key_BATE.dtype)], -1)
    query, key, value = F.pad(query, (0, more - 1)), F.pad(key, (0, more - 1)), F.pad(value_BATE, (0, more))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :width]


def window_attention(query_BATE: Tensor, key_BATE: Tensor, value_BATE: Tensor, grid: Grid, window: int) -> Tensor:
    """Plain softmax attention within windows of `window`×`window` patches, BATE; the last ones may reach over the edge.

    What lies there takes no part: its keys have a mask of (nearly) zero.
    """
    side = min(window, grid[0]), min(window, grid[1])
    padding = -grid[0] % side[0], -grid[1] % side[1]
    rows, columns = (grid[0] + padding[0]) // side[0], (grid[1] + padding[1]) // side[1]

    def split(x_BATE: Tensor) -> Tensor:
        x_BAHWE = x_BATE.unflatten(2, grid)
        if any(padding):
            x_BAHWE = F.pad(x_BAHWE, (0, 0, 0, padding[1], 0, padding[0]))
        x = x_BAHWE.unflatten(3, (columns, side[1])).unflatten(2, (rows, side[0]))
        windows: Tensor = x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)
        return windows

    log_mask = None
    if any(padding):
        log_mask = (split(torch.ones_like(query_BATE[..., :1]))[..., 0] - 1) * 1e4
    mixed = masked_attention(split(query_BATE), split(key_BATE), split(value_BATE), log_mask)
    mixed = mixed.unflatten(2, side).unflatten(0, (-1, rows, columns))  # B rows columns A H W E, H W of a window
    mixed_BAHWE = mixed.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    inside: Tensor = mixed_BAHWE[:, :, : grid[0], : grid[1]].flatten(2, 3)
    return inside


class MaskGenerator(nn.Module):
    """Scores the patches of a grid from low- and high-level features at any resolution: log masks [B, A, T].

    Features that are finer than the grid are averaged, coarser ones repeated.
    """

    def __init__(self, low_channels: int, high_channels: int, heads: int) -> None:
        super().__init__()
        hidden = max(8, low_channels // 4)
        self.low = nn.Conv2d(low_channels, hidden, 1)
        self.high = nn.Conv2d(high_channels, hidden, 1, bias=False)
        self.score = nn.Conv2d(hidden, heads, 1)

    def forward(self, low_BCHW: Tensor, high_BCHW: Tensor, grid: Grid) -> Tensor:
        hidden = self.low(to_grid(low_BCHW, grid)) + self.high(to_grid(high_BCHW, grid))
        return F.logsigmoid(self.score(F.gelu(hidden))).flatten(2)


def to_grid(x_BCHW: Tensor, grid: Grid) -> Tensor:
    """A map averaged down or repeated up to a grid that is an integer factor coarser or finer."""
    if x_BCHW.shape[2] > grid[0]:
        return F.avg_pool2d(x_BCHW, x_BCHW.shape[2] // grid[0])
    return F.interpolate(x_BCHW, size=grid) if x_BCHW.shape[2] < grid[0] else x_BCHW


class Attention(nn.Module):
    """Window attention and masked attention over the kept patches; the slice's mean patch says each head's mixture.

    Without a mask every patch is kept and attention over all is plain. A patch that is not kept has its window's
    result alone.
    """

    def __init__(self, width: int, heads: int, window: int, keep_ratio: float) -> None:
        super().__init__()
        self.heads, self.window, self.keep_ratio = heads, window, keep_ratio
        self.qkv = nn.Linear(width, 3 * width)
        self.share = nn.Linear(width, heads)  # of attention over all, before the sigmoid
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, grid: Grid, log_mask_BAT: Tensor | None) -> Tensor:
        query, key, value = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        near_BATE = window_attention(query, key, value, grid, self.window)
        share_BA11 = torch.sigmoid(self.share(x_BTD.mean(1)))[..., None, None]
        num_kept = math.ceil(self.keep_ratio * x_BTD.shape[1])
        if log_mask_BAT is None or num_kept == x_BTD.shape[1]:
            mixed = torch.lerp(near_BATE, masked_attention(query, key, value, log_mask_BAT), share_BA11)
        else:
            kept_BS = log_mask_BAT.detach().exp().mean(1).topk(num_kept, sorted=False).indices
            kept_BAS = kept_BS[:, None].expand(-1, self.heads, -1)
            kept_BASE = kept_BAS[..., None].expand(-1, -1, -1, near_BATE.shape[-1])
            query, key, value = (x.gather(2, kept_BASE) for x in (query, key, value))
            far_BASE = masked_attention(query, key, value, log_mask_BAT.gather(2, kept_BAS))
            mixed_BASE = torch.lerp(near_BATE.gather(2, kept_BASE), far_BASE, share_BA11)
            mixed = near_BATE.scatter(2, kept_BASE, mixed_BASE)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected


class BTBlock(nn.Module):
    """Masked attention and self-attention, then an MLP, each behind a layer norm and added to what it read."""

    def __init__(self, width: int, config: BrainTumNetConfig, keep_ratio: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, config.option("heads"), config.option("window"), keep_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def forward(self, x_BTD: Tensor, grid: Grid, log_mask_BAT: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norms[0](x_BTD), grid, log_mask_BAT)
        x_BTD = x_BTD + self.mlp(self.norms[1](x_BTD))
        return x_BTD


class MaskedTransformer(nn.Module):
    """Patches of a map, `depth` BT blocks that share one mask generator, a layer norm: the patches' grid, BDHW.

    `low_channels` and `high_channels` are those of the features that the masks are made from.
    """

    def __init__(
        self,
        config: BrainTumNetConfig,
        channels: int,
        width: int,
        patch: int,
        depth: int,
        *,
        low_channels: int,
        high_channels: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.masks: nn.Module | None = None
        if config.adaptive_mask:
            self.masks = MaskGenerator(low_channels, high_channels, config.option("heads"))
        keep_ratio = 1.0 if config.keep_ratio is None else config.keep_ratio
        self.blocks = nn.ModuleList(BTBlock(width, config, keep_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, map_BCHW: Tensor, low_BCHW: Tensor, high_BCHW: Tensor) -> Tensor:
        x_BDHW = self.embed(map_BCHW)
        x_BDHW = x_BDHW + self.position(x_BDHW)
        grid = (x_BDHW.shape[2], x_BDHW.shape[3])
        log_mask_BAT = None if self.masks is None else self.masks(low_BCHW, high_BCHW, grid)
        x_BTD = x_BDHW.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x_BTD = block(x_BTD, grid, log_mask_BAT)
        patches_BDHW: Tensor = self.norm(x_BTD).transpose(1, 2).unflatten(2, grid)
        return patches_BDHW


class Refine(nn.Module):
    """One BT block on patches of a map, as a correction that is added to it: the decoder's. The map's shape stays."""

    def __init__(
        self, config: BrainTumNetConfig, channels: int, patch: int, *, low_channels: int, high_channels: int
    ) -> None:
        super().__init__()
        width = channels * patch
        self.transformer = MaskedTransformer(
            config, channels, width, patch, 1, low_channels=low_channels, high_channels=high_channels
        )
        self.restore = nn.ConvTranspose2d(width, channels, patch, stride=patch)

    def forward(self, x_BCHW: Tensor, low_BCHW: Tensor, high_BCHW: Tensor) -> Tensor:
        correction_BCHW: Tensor = self.restore(self.transformer(x_BCHW, low_BCHW, high_BCHW))
        return x_BCHW + correction_BCHW


def initialise_transformers(network: nn.Module) -> None:
    """Draws the weights of BT blocks, of positions, and of what adds them to a map, with deviation 0.02 (as in ViT).

    So each starts as a small correction to what it reads. With the gain of 1 that the rest starts with, no mask was
    learnt in the time in which convolutions alone learn it, and positions outweighed the patches. Both modes of
    attention start with a share of a half.
    """
    for module in network.modules():
        if isinstance(module, Refine):
            nn.init.trunc_normal_(module.restore.weight, std=0.02)
        if isinstance(module, MaskedTransformer):
            nn.init.trunc_normal_(module.position.weight, std=0.02)
        if isinstance(module, BTBlock):
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(module.attention.share.weight)

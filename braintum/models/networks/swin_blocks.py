"""Swin blocks (Liu et al. 2021): attention in windows, shifted in every second block, on maps of any size.

B batch, H W, D width of a token, M windows of a map, T tokens of a window, A attention heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention in windows and an MLP, each behind a norm and beside a residual path (Liu et al., eq. 3).

    In training each path is skipped, slice by slice, with probability `drop_path`.
    """

    def __init__(
        self, width: int, heads: int, window: int, shifted: bool, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.shifted, self.drop_path = shifted, drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, round(width * mlp_ratio))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        x_BHWD = x_BHWD + self._dropped(self.attn(self.norm1(x_BHWD), self.shifted))
        return x_BHWD + self._dropped(self.mlp(self.norm2(x_BHWD)))

    def _dropped(self, x_BHWD: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x_BHWD
        kept_B111 = x_BHWD.new_empty(x_BHWD.shape[0], 1, 1, 1).bernoulli_(1 - self.drop_path)
        return x_BHWD * (kept_B111 / (1 - self.drop_path))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        x: Tensor = self.fc2(F.gelu(self.fc1(x_BHWD)))
        return x


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window, with a bias for every relative position and head."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BHWD: Tensor, shifted: bool) -> Tensor:
        windows = Windows(x_BHWD.shape[1], x_BHWD.shape[2], self.window, shifted)
        x_BMTD = windows.cut(x_BHWD)
        num_windows = x_BMTD.shape[1]
        # Windows stand beside the heads, so that bias and mask are one tensor that all slices of the batch share.
        qkv = self.qkv(x_BMTD).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias_MATT = self._bias_ATT(windows.side).expand(num_windows, -1, -1, -1)
        apart_MTT = windows.apart_MTT(x_BHWD.device)
        if apart_MTT is not None:
            bias_MATT = bias_MATT.masked_fill(apart_MTT[:, None], -math.inf)
        attended = F.scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], attn_mask=bias_MATT.flatten(0, 1)[None].to(qkv.dtype)
        )
        attended_BMTD = attended.unflatten(1, (num_windows, self.heads)).transpose(2, 3).flatten(3)
        x: Tensor = self.proj(windows.join(attended_BMTD))
        return x

    def _bias_ATT(self, side: tuple[int, int]) -> Tensor:
        """The table's entry for the way from each token of a window to each other, by rows first."""
        step_y, step_x = (
            torch.arange(n, device=self.relative_position_bias_table.device)[:, None]
            - torch.arange(n, device=self.relative_position_bias_table.device)
            + (self.window - 1)
            for n in side
        )
        index = step_y[:, None, :, None] * (2 * self.window - 1) + step_x[None, :, None, :]
        # The gradient of indexing with [] is summed in no fixed order by several CPU threads; that of embedding is.
        bias = F.embedding(index.reshape(side[0] * side[1], -1), self.relative_position_bias_table)
        return bias.permute(2, 0, 1)


class Windows:
    """How a map of height × width tokens is cut into windows.

    A map is padded at its end to a multiple of the window; one smaller than the window is a window. `shifted` moves
    the grid by half a window, by rolling the map around (Liu et al., section 3.2) where there is more than one window.
    """

    def __init__(self, height: int, width: int, window: int, shifted: bool) -> None:
        self.map = (height, width)
        self.side = (min(height, window), min(width, window))
        self.grid = (math.ceil(height / self.side[0]), math.ceil(width / self.side[1]))
        self.shift = (
            window // 2 if shifted and self.grid[0] > 1 else 0,
            window // 2 if shifted and self.grid[1] > 1 else 0,
        )
        self.padding = (self.grid[0] * self.side[0] - height, self.grid[1] * self.side[1] - width)

    def cut(self, x_BHWD: Tensor) -> Tensor:
        """[B, H, W, D] → [B, M, T, D], padded with zeros."""
        if any(self.padding):
            x_BHWD = F.pad(x_BHWD, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        if any(self.shift):
            x_BHWD = x_BHWD.roll((-self.shift[0], -self.shift[1]), (1, 2))
        return self._cut(x_BHWD)

    def _cut(self, x_BHWD: Tensor) -> Tensor:
        x: Tensor = x_BHWD.unflatten(2, (self.grid[1], self.side[1])).unflatten(1, (self.grid[0], self.side[0]))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, x_BMTD: Tensor) -> Tensor:
        """[B, M, T, D] → [B, H, W, D], without the padding."""
        x: Tensor = x_BMTD.unflatten(2, self.side).unflatten(1, self.grid)
        x_BHWD = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(self.shift):
            x_BHWD = x_BHWD.roll(self.shift, (1, 2))
        return x_BHWD[:, : self.map[0], : self.map[1]]

    def apart_MTT(self, device: torch.device) -> Tensor | None:
        """Which tokens of a window must not see each other, None if all may.

        Those are tokens that only rolling has brought together, and the map's own and padding. Padding sees itself:
        a token that sees nothing would be not a number.
        """
        if not any(self.shift) and not any(self.padding):
            return None
        region_H, region_W = (
            self._region(axis, torch.arange(self.grid[axis] * self.side[axis], device=device)) for axis in (0, 1)
        )
        region_MT = self._cut((3 * region_H[:, None] + region_W)[None, :, :, None])[0, :, :, 0]
        return region_MT[:, :, None] != region_MT[:, None, :]

    def _region(self, axis: int, rolled: Tensor) -> Tensor:
        """0, or 1 where rolling moved a token from the map's start to its end, or 2 for padding."""
        position = (rolled + self.shift[axis]) % len(rolled)
        return torch.where(position < self.map[axis], (rolled > position).long(), 2)


def initialise(network: nn.Module) -> None:
    """As published: linear layers and position biases from a normal of 0.02, biases zero, convolutions as PyTorch's."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def resize_bias(table: Tensor, window: int) -> Tensor:
    """The position biases of a window [(2·w − 1)², A] for another one, bicubic (Liu et al., section A2.1)."""
    before, after = math.isqrt(len(table)), 2 * window - 1
    if before == after:
        return table
    bias_1AHW = table.float().T.unflatten(1, (before, before))[None]
    resized = F.interpolate(bias_1AHW, size=(after, after), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)

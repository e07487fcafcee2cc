"""The adaptive masked transformer against plain attention, written out: masks, windows, kept patches.

B batch, A heads, T patches, E width of a head, D width of a patch.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from braintum.models.braintumnet import BrainTumNetConfig
from braintum.models.networks.masked_transformer import (
    Attention,
    MaskedTransformer,
    MaskGenerator,
    masked_attention,
    window_attention,
)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask_BAT: Tensor | None = None) -> Tensor:
    """Attention as it is written in papers; a mask scales the weights, which then sum to one again."""
    weight = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1)
    if mask_BAT is not None:
        weight = weight * mask_BAT[:, :, None]
        weight = weight / weight.sum(-1, keepdim=True)
    return weight @ value


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(patches: int, width: int = 5, heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = random(3, 2, heads, patches, width)
    return query, key, value


@pytest.mark.parametrize("width", [5, 7, 8, 20])
def test_a_mask_scales_the_attention(width: int) -> None:
    query, key, value = qkv(12, width)
    mask = torch.sigmoid(random(2, 3, 12, seed=1))
    torch.testing.assert_close(
        masked_attention(query, key, value, mask.log()), softmax_attention(query, key, value, mask)
    )


def test_masks_of_one_are_no_masks() -> None:
    query, key, value = qkv(12)
    plain = softmax_attention(query, key, value)
    torch.testing.assert_close(masked_attention(query, key, value, torch.ones(2, 3, 12).log()), plain)
    torch.testing.assert_close(masked_attention(query, key, value, None), plain)


def test_a_mask_near_zero_takes_a_patch_out() -> None:
    query, key, value = qkv(12)
    log_mask = torch.zeros(2, 3, 12)
    log_mask[..., 7:] = -1e4
    expected = softmax_attention(query, key[:, :, :7], value[:, :, :7])
    torch.testing.assert_close(masked_attention(query, key, value, log_mask), expected)


def test_one_window_is_plain_attention() -> None:
    query, key, value = qkv(4 * 6)
    expected = softmax_attention(query, key, value)
    for window in (6, 8):
        torch.testing.assert_close(window_attention(query, key, value, (4, 6), window), expected)


@pytest.mark.parametrize(("grid", "window"), [((4, 6), 2), ((5, 7), 3), ((6, 4), 4)])
def test_windows_see_themselves_only(grid: tuple[int, int], window: int) -> None:
    """Whether or not they divide the grid."""
    query, key, value = qkv(grid[0] * grid[1])
    actual = window_attention(query, key, value, grid, window)
    index = torch.arange(grid[0] * grid[1]).reshape(grid)
    for top in range(0, grid[0], window):
        for left in range(0, grid[1], window):
            inside = index[top : top + window, left : left + window].flatten()
            expected = softmax_attention(query[:, :, inside], key[:, :, inside], value[:, :, inside])
            torch.testing.assert_close(actual[:, :, inside], expected)


def attention(keep_ratio: float, share: float = 0.0, grid: tuple[int, int] = (6, 6)) -> Attention:
    """`share` of the result that attention over all patches makes up, before the sigmoid, whatever comes in."""
    torch.manual_seed(0)
    layer = Attention(24, heads=3, window=3, keep_ratio=keep_ratio).double()
    torch.nn.init.zeros_(layer.share.weight)
    torch.nn.init.constant_(layer.share.bias, share)
    return layer


def test_only_kept_patches_take_part_in_attention_over_all() -> None:
    """They attend to one another as if there were no others; the rest have what their windows say."""
    x_BTD, log_mask = random(2, 36, 24), -random(2, 3, 36, seed=1).abs()
    layer, near = attention(0.25, share=50.0), attention(0.25, share=-50.0)
    actual, windows_only = layer(x_BTD, (6, 6), log_mask), near(x_BTD, (6, 6), log_mask)
    kept_BS = log_mask.exp().mean(1).topk(9).indices
    query, key, value = layer.qkv(x_BTD).reshape(2, 36, 3, 3, 8).permute(2, 0, 3, 1, 4)
    for row in range(2):
        kept = kept_BS[row]
        mixed = softmax_attention(
            query[row : row + 1, :, kept], key[row : row + 1, :, kept], value[row : row + 1, :, kept],
            log_mask[row : row + 1, :, kept].exp(),
        )  # fmt: skip
        torch.testing.assert_close(actual[row, kept], layer.out(mixed.transpose(1, 2).flatten(2))[0])
        left = torch.ones(36, dtype=torch.bool).index_fill(0, kept, False)
        torch.testing.assert_close(actual[row, left], windows_only[row, left])
        assert not torch.isclose(actual[row, kept], windows_only[row, kept]).any()


def test_keeping_all_patches_is_keeping_none_back() -> None:
    x_BTD, log_mask = random(2, 36, 24), torch.zeros(2, 3, 36).double()
    expected = attention(1.0)(x_BTD, (6, 6), None)
    torch.testing.assert_close(attention(1.0)(x_BTD, (6, 6), log_mask), expected)
    torch.testing.assert_close(attention(0.99)(x_BTD, (6, 6), log_mask), expected)  # 35.6 of 36, rounded up


def test_modes_are_mixed_by_a_share_of_each_head_and_slice() -> None:
    x_BTD, log_mask = random(2, 36, 24), -random(2, 3, 36, seed=1).abs()
    near, both, far = (attention(1.0, share)(x_BTD, (6, 6), log_mask) for share in (-50.0, 0.0, 50.0))
    torch.testing.assert_close(both, (near + far) / 2)
    layer = attention(1.0)
    layer(x_BTD, (6, 6), log_mask).square().sum().backward()
    assert layer.share.weight.grad is not None
    assert layer.share.weight.grad.any(1).all()


@pytest.mark.parametrize("keep_ratio", [1.0, 0.25])
def test_the_share_of_the_modes_follows_from_the_slice(keep_ratio: float) -> None:
    """A slice's mean patch says what each of its heads mixes, and no other slice does."""
    x_BTD, log_mask = random(2, 36, 24), -random(2, 3, 36, seed=1).abs()
    near, mixing, far = (attention(keep_ratio, share) for share in (-50.0, 0.0, 50.0))
    torch.nn.init.normal_(mixing.share.weight)
    for layer in (near, mixing, far):
        torch.nn.init.eye_(layer.out.weight)  # so that heads stay apart
    near_BTAE, mixed_BTAE, far_BTAE = (
        layer(x_BTD, (6, 6), log_mask).unflatten(2, (3, 8)) for layer in (near, mixing, far)
    )
    share_BA = torch.sigmoid(x_BTD.mean(1) @ mixing.share.weight.T)
    assert (share_BA[0] - share_BA[1]).abs().min() > 0.01
    torch.testing.assert_close(mixed_BTAE, near_BTAE + share_BA[:, None, :, None] * (far_BTAE - near_BTAE))
    alone = mixing(x_BTD[:1], (6, 6), log_mask[:1])
    torch.testing.assert_close(alone, mixed_BTAE[:1].flatten(2))


def test_kept_masks_learn_and_the_others_wait() -> None:
    log_mask = (-random(2, 3, 36, seed=1).abs()).requires_grad_()
    attention(0.25)(random(2, 36, 24), (6, 6), log_mask).square().sum().backward()
    kept_BS = log_mask.exp().mean(1).topk(9).indices
    kept_BT = torch.zeros(2, 36, dtype=torch.bool).scatter(1, kept_BS, True)
    assert log_mask.grad is not None
    assert torch.equal(log_mask.grad.all(1), kept_BT)
    assert torch.equal(log_mask.grad.any(1), kept_BT)


ALL_PAIRS = 4 * 1024**2 * 24 * 4
"""FLOPs of 1024 patches: 24 for a head of 16 and the mask, 4 heads, queries with keys and weights with values."""


def test_keeping_fewer_patches_saves_work() -> None:
    """A half of the patches is a quarter of the pairs; projections and windows stay."""
    flops = {}
    for keep_ratio in (1.0, 0.5, 0.25):
        with torch.device("meta"):
            layer, x_BTD, log_mask = Attention(64, 4, 8, keep_ratio), torch.rand(1, 1024, 64), torch.rand(1, 4, 1024)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x_BTD, (32, 32), log_mask)
        flops[keep_ratio] = counter.get_total_flops()
    assert flops[1.0] - flops[0.5] == ALL_PAIRS * 3 // 4
    assert flops[1.0] - flops[0.25] == ALL_PAIRS * 15 // 16


def test_every_block_of_a_transformer_keeps_the_share_it_was_told() -> None:
    flops = {}
    for keep_ratio in (1.0, 0.25):
        config = BrainTumNetConfig(keep_ratio=keep_ratio, window=8)
        with torch.device("meta"):
            transformer = MaskedTransformer(config, 1, 64, patch=8, depth=2, low_channels=4, high_channels=8)
            maps = torch.rand(1, 1, 256, 256), torch.rand(1, 4, 128, 128), torch.rand(1, 8, 32, 32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            transformer(*maps)
        flops[keep_ratio] = counter.get_total_flops()
    assert flops[1.0] - flops[0.25] == 2 * ALL_PAIRS * 15 // 16


def test_masks_come_from_low_and_high_level_features() -> None:
    torch.manual_seed(0)
    generator = MaskGenerator(low_channels=4, high_channels=6, heads=3).double()
    low, high = random(2, 4, 16, 16), random(2, 6, 2, 2, seed=1)
    mask = generator(low, high, (4, 4)).exp()
    assert mask.shape == (2, 3, 16)
    assert ((mask > 0) & (mask < 1)).all()
    assert not torch.allclose(mask[:, 0], mask[:, 1])  # of its own for each head
    assert not torch.allclose(generator(low + 1, high, (4, 4)).exp(), mask)
    assert not torch.allclose(generator(low, high + 1, (4, 4)).exp(), mask)

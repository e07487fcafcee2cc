"""Swin-Unet: its published size, its attention against one written out token by token, weights of Swin classifiers.

B batch, H W, D width of a token, A attention heads, T tokens.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from sizes import num_parameters, on_meta
from torch import Tensor, nn

import braintum.models  # noqa: F401 - registers the architectures
from braintum.config import Experiment
from braintum.models.networks.swin_blocks import Block, WindowAttention
from braintum.models.registry import ModelConfig
from braintum.models.swin_unet import SwinUNetConfig
from braintum.settings import ConfigError


def options(side: int = 224, **model: object) -> ModelConfig:
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": "swin_unet", **model}}).model


def small(side: int = 64, **model: object) -> nn.Module:
    torch.manual_seed(0)
    return options(side, **{**SwinUNetConfig.SMALL, **model}).build(1, 3, 1)


def random_attention(width: int, heads: int, window: int) -> WindowAttention:
    """With a position bias that tells."""
    torch.manual_seed(0)
    attention = WindowAttention(width, heads, window).double()
    nn.init.normal_(attention.relative_position_bias_table)
    return attention


def test_swin_t_has_its_published_size() -> None:
    published = partial(on_meta, "swin_unet", in_channels=3, num_masks=9, side=224)
    assert num_parameters(published()) == 27_168_900
    assert num_parameters(published(classify=True)) == 27_168_900 + 768 * 4 + 4


@pytest.mark.parametrize(
    ("side", "stages", "window"),
    [
        (224, 4, 7),
        (448, 4, 7),
        (128, 4, 8),
        (256, 4, 8),
        (352, 4, 8),
        (512, 4, 8),
        (240, 3, 6),
        (304, 3, 4),
        (88, 2, 7),
    ],
)
def test_windows_follow_from_the_slice(side: int, stages: int, window: int) -> None:
    filled = options(side, stages=stages)
    assert isinstance(filled, SwinUNetConfig)
    assert filled.window == window
    assert filled.for_size(2 * side) == filled
    assert options(side, stages=stages, window=5).model_dump()["window"] == 5


def written_out(attention: WindowAttention, x_HWD: Tensor, shifted: bool) -> Tensor:
    """The same, token by token: a softmax over the tokens of its window; no padding, no rolling, no masks."""
    height, width, _ = x_HWD.shape
    window, heads = attention.window, attention.heads
    shift = [window // 2 if shifted and side > window else 0 for side in (height, width)]
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in attention.qkv(x_HWD).chunk(3, -1))

    def place(y: int, x: int) -> tuple[int, int]:
        return (y - shift[0]) // window, (x - shift[1]) // window

    out = torch.empty_like(x_HWD)
    tokens = [(y, x) for y in range(height) for x in range(width)]
    for y, x in tokens:
        seen = [token for token in tokens if place(*token) == place(y, x)]
        scores = torch.stack([(q[y, x] * k[token]).sum(-1) for token in seen]) / math.sqrt(q.shape[-1])
        rows = [(y - b + window - 1) * (2 * window - 1) + x - a + window - 1 for b, a in seen]
        weights_TA = (scores + attention.relative_position_bias_table[rows]).softmax(0)
        out[y, x] = (weights_TA[..., None] * torch.stack([v[token] for token in seen])).sum(0).flatten()
    result: Tensor = attention.proj(out)
    return result


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("height", "width"),
    [(4, 4), (8, 8), (8, 12), (6, 9), (5, 5), (2, 2), (3, 1), (3, 8)],
    ids=["one window", "four", "six", "padded", "padding of almost a window", "smaller", "one row", "smaller one way"],
)
def test_attention_is_a_softmax_within_each_window(height: int, width: int, shifted: bool) -> None:
    """On maps that the window divides, that need padding, and that are smaller than it: padding is never seen."""
    attention = random_attention(6, 2, 4)
    x_BHWD = torch.randn(2, height, width, 6, dtype=torch.double)
    with torch.no_grad():
        expected = torch.stack([written_out(attention, x_HWD, shifted) for x_HWD in x_BHWD])
        torch.testing.assert_close(attention(x_BHWD, shifted), expected)


def test_one_window_is_plain_attention() -> None:
    """softmax(q kᵀ / √d + bias) v over all tokens, the bias by heads and by the way from one token to the other."""
    attention = random_attention(6, 2, 3)
    x_BHWD = torch.randn(2, 3, 3, 6, dtype=torch.double)
    q, k, v = attention.qkv(x_BHWD.reshape(2, 9, 6)).reshape(2, 9, 3, 2, 3).permute(2, 0, 3, 1, 4)
    bias_ATT = torch.empty(2, 9, 9, dtype=torch.double)
    for i in range(9):
        for j in range(9):
            row = (i // 3 - j // 3 + 2) * 5 + (i % 3 - j % 3 + 2)
            bias_ATT[:, i, j] = attention.relative_position_bias_table[row]
    expected = ((q @ k.mT / math.sqrt(3) + bias_ATT).softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 3, 6)
    for shifted in (False, True):
        torch.testing.assert_close(attention(x_BHWD, shifted), attention.proj(expected))


@pytest.mark.parametrize("side", [8, 7])
def test_a_shifted_block_mixes_only_within_its_windows(side: int) -> None:
    """Change one token: exactly those of its shifted window change, none of the other side that rolling brings near."""
    torch.manual_seed(0)
    block = Block(width=8, heads=2, window=4, shifted=True).double()
    x_BHWD = torch.randn(1, side, side, 8, dtype=torch.double)
    window = [(position - 2) // 4 for position in range(side)]
    for y, x in ((0, 0), (0, side - 1), (side - 1, side - 1), (1, 3), (2, 2), (5, 6)):
        other = x_BHWD.clone()
        other[0, y, x] += torch.randn(8, dtype=torch.double)
        with torch.no_grad():
            changed_HW = (block(other) != block(x_BHWD)).any(-1)[0]
        near_HW = torch.tensor([[window[b] == window[y] and window[a] == window[x] for a in range(side)]
                                for b in range(side)])  # fmt: skip
        assert torch.equal(changed_HW, near_HW)


def test_other_sizes_than_built_for() -> None:
    """Smaller maps than the window, maps that it does not divide, a deepest map of one token, an oblong slice."""
    model = small(128)
    model.eval()
    for height, width in ((128, 128), (64, 64), (80, 80), (16, 16), (48, 112)):
        output = model(torch.rand(1, 1, height, width))
        assert output.mask_logits_BKHW.shape == (1, 1, height, width)
        assert output.mask_logits_BKHW.isfinite().all()


def test_stochastic_depth_skips_whole_slices() -> None:
    torch.manual_seed(0)
    block = Block(width=8, heads=2, window=4, shifted=False, drop_path=0.5).double()
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)  # leaves the attention's path
    x_BHWD = torch.randn(1, 4, 4, 8, dtype=torch.double).expand(400, -1, -1, -1)
    with torch.no_grad():
        step = block.train()(x_BHWD) - x_BHWD
        always = block.eval()(x_BHWD) - x_BHWD
    skipped_B = (step == 0).flatten(1).all(1)
    assert 150 < skipped_B.sum() < 250
    torch.testing.assert_close(step[~skipped_B], 2 * always[~skipped_B])


def test_stochastic_depth_grows_towards_the_bottom() -> None:
    model = small(drop_path=0.3)
    stages = [[b.drop_path for b in stage.blocks] for stage in (*model.encoder.layers, *model.decoder)]
    assert stages[0] == pytest.approx([0, 0.06])
    assert stages[1] == pytest.approx([0.12, 0.18])
    assert stages[2] == pytest.approx([0.24, 0.3])
    assert stages[3:] == stages[:2]


DEPTHS = (2, 2, 6, 2)


def swin_weights(layout: str, width: int = 8, window: int = 7) -> dict[str, Tensor]:
    """The weights of a Swin classifier of four stages and one head in the first, under the names of `layout`."""
    generator = torch.Generator().manual_seed(0)
    torchvision = layout == "torchvision"
    weights = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator)
        if bias:
            weights[f"{name}.bias"] = torch.randn(shape[:1], generator=generator)

    add("features.0.0" if torchvision else "patch_embed.proj", width, 3, 4, 4)
    add("features.0.2" if torchvision else "patch_embed.norm", width)
    for stage, depth in enumerate(DEPTHS):
        d = width << stage
        if stage:
            merge = {"timm": f"layers.{stage}.downsample", "microsoft": f"layers.{stage - 1}.downsample",
                     "torchvision": f"features.{2 * stage}"}[layout]  # fmt: skip
            add(f"{merge}.reduction", d, 2 * d, bias=False)
            add(f"{merge}.norm", 2 * d)
        for index in range(depth):
            block = f"features.{2 * stage + 1}.{index}" if torchvision else f"layers.{stage}.blocks.{index}"
            add(f"{block}.norm1", d)
            table = torch.randn(((2 * window - 1) ** 2, 1 << stage), generator=generator)
            weights[f"{block}.attn.relative_position_bias_table"] = table
            weights[f"{block}.attn.relative_position_index"] = torch.zeros(window**4, dtype=torch.long)
            add(f"{block}.attn.qkv", 3 * d, d)
            add(f"{block}.attn.proj", d, d)
            add(f"{block}.norm2", d)
            add(f"{block}.mlp.0" if torchvision else f"{block}.mlp.fc1", 4 * d, d)
            add(f"{block}.mlp.3" if torchvision else f"{block}.mlp.fc2", d, 4 * d)
    add("norm", 8 * width)
    add("head.fc" if layout == "timm" else "head", 1000, 8 * width)
    return weights


@pytest.mark.parametrize("layout", ["timm", "torchvision", "microsoft"])
def test_weights_of_a_swin_classifier_fill_the_encoder(layout: str) -> None:
    model = options(64, width=8, heads=1, window=7).build(3, 4, 1)
    source, loaded = swin_weights(layout), model.pretrained(swin_weights(layout))
    own = model.state_dict()
    assert {name: value.shape for name, value in loaded.items()} == {name: own[name].shape for name in loaded}
    new = [name for name in own if name.startswith("encoder.") or ".blocks." in name]
    assert sorted(loaded) == sorted(new)
    names = {  # a few, by hand
        "encoder.patch_embed.proj.weight": ("patch_embed.proj.weight", "features.0.0.weight"),
        "encoder.patch_embed.norm.bias": ("patch_embed.norm.bias", "features.0.2.bias"),
        "encoder.layers.2.blocks.1.attn.qkv.weight": ("layers.2.blocks.1.attn.qkv.weight",
                                                      "features.5.1.attn.qkv.weight"),
        "encoder.layers.3.blocks.0.mlp.fc2.bias": ("layers.3.blocks.0.mlp.fc2.bias", "features.7.0.mlp.3.bias"),
        "encoder.layers.3.downsample.norm.weight": ("layers.3.downsample.norm.weight", "features.6.norm.weight"),
        "encoder.norm.weight": ("norm.weight", "norm.weight"),
        "decoder.1.blocks.0.attn.relative_position_bias_table": (
            "layers.1.blocks.0.attn.relative_position_bias_table",
            "features.3.0.attn.relative_position_bias_table",
        ),
    }  # fmt: skip
    if layout == "microsoft":
        names["encoder.layers.3.downsample.norm.weight"] = ("layers.2.downsample.norm.weight", "")
    for name, (timm, torchvision) in names.items():
        assert torch.equal(loaded[name], source[torchvision if layout == "torchvision" else timm])


def test_weights_of_a_larger_swin_fill_a_smaller_network() -> None:
    model = options(64, width=8, heads=1, window=7, stages=3, depth=1).build(3, 4, 1)
    loaded = model.pretrained(swin_weights("timm"))
    assert set(model.state_dict()) - set(loaded) >= {"encoder.norm.weight", "norm.weight"}
    model.load_state_dict(model.state_dict() | loaded)
    assert not any(".blocks.1." in name or "layers.3" in name for name in loaded)


def test_position_biases_of_another_window_are_interpolated() -> None:
    """A bias that is a slope along the columns stays one, as steep over the whole window."""
    model = options(64, width=8, heads=1, window=4).build(3, 4, 1)
    source = swin_weights("timm")
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    source[name] = torch.linspace(-1, 1, 13).expand(13, -1).reshape(169, 1).half()
    table = model.pretrained(source)[f"encoder.{name}"]
    assert table.dtype == torch.half
    slope_HW = table.float().reshape(7, 7)
    torch.testing.assert_close(slope_HW, slope_HW[:1].expand(7, -1))
    torch.testing.assert_close(slope_HW[0], -slope_HW[0].flip(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(slope_HW[0, 2:5], torch.tensor([-13 / 42, 0, 13 / 42]), atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"heads": 5}, "width 96 is not divisible by heads 5"),
        ({"window": 1}, "window: 1"),
        ({"stages": 1}, "stages: 1"),
        ({"drop_path": 1.0}, "drop_path: 1.0"),
        ({"mlp_ratio": 0}, "mlp_ratio: 0"),
        ({"dropout": 0.5}, "dropout has no effect with classify=false"),
        ({"norm": "batch"}, "norm: no such field"),
    ],
)
def test_impossible_options_are_refused(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**model)


@pytest.mark.parametrize(("side", "reason"), [(32, "too small"), (100, "not divisible by 32")])
def test_slices_it_cannot_take_are_refused(side: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        options(side)

"""Attention of skips against the papers' formulas, written out slice by slice and pixel by pixel; initial weights.

C channels, H W, I inner units; `skip` has twice the side of `gating`, which has 2C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from braintum.models.networks.blocks import CBAM, AttentionGate, ConvNormReLU, SqueezeExcitation, initialise

CHANNELS, HEIGHT, WIDTH = 6, 6, 8


def random_weights(block: nn.Module) -> None:
    """Large enough that ReLUs cut some units, and that sigmoids are not all about 0.5."""
    for parameter in block.parameters():
        nn.init.normal_(parameter)


def maps(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    skip_BCHW = torch.randn(3, CHANNELS, HEIGHT, WIDTH).double()
    return skip_BCHW, torch.randn(3, 2 * CHANNELS, HEIGHT // 2, WIDTH // 2).double()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def doubling(size: int) -> Tensor:
    """Linear interpolation from `size` pixels to twice as many, [2 size, size]; edges are repeated."""
    weights = torch.zeros(2 * size, size).double()
    for target in range(2 * size):
        source = min(max((target + 0.5) / 2 - 0.5, 0), size - 1)
        below = math.floor(source)
        weights[target, below] += 1 - (source - below)
        weights[target, min(below + 1, size - 1)] += source - below
    return weights


def attention_gate(gate: AttentionGate, skip_CHW: Tensor, gating_CHW: Tensor) -> Tensor:
    """Oktay et al. 2018: q = ψᵀ relu(Wxᵀ x + Wgᵀ g + b_g) + b_ψ (eq. 1), α = sigmoid(q) (eq. 2), on g's grid; α x."""
    wx_ICyx, wg_IC, psi_I = gate.skip.weight, gate.gate.weight[:, :, 0, 0], gate.coefficient.weight[0, :, 0, 0]
    alpha_HW = torch.empty(HEIGHT // 2, WIDTH // 2).double()
    for y in range(HEIGHT // 2):
        for x in range(WIDTH // 2):
            patch_Cyx = skip_CHW[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            inner_I = torch.einsum("icyx,cyx->i", wx_ICyx, patch_Cyx) + wg_IC @ gating_CHW[:, y, x] + gate.gate.bias
            alpha_HW[y, x] = sigmoid(psi_I @ relu(inner_I) + gate.coefficient.bias[0])
    return skip_CHW * (doubling(HEIGHT // 2) @ alpha_HW @ doubling(WIDTH // 2).T)


def squeeze_excitation(block: SqueezeExcitation, skip_CHW: Tensor, _: Tensor) -> Tensor:
    """Hu et al. 2018: z = mean over the map (eq. 2), s = sigmoid(W2 relu(W1 z)) (eq. 3), s x (eq. 4); with biases."""
    first, _, second, _ = block.scale
    z_C = torch.stack([channel_HW.sum() / (HEIGHT * WIDTH) for channel_HW in skip_CHW])
    s_C = sigmoid(second.weight @ relu(first.weight @ z_C + first.bias) + second.bias)
    return torch.stack([s * channel_HW for s, channel_HW in zip(s_C, skip_CHW, strict=True)])


def cbam(block: CBAM, skip_CHW: Tensor, _: Tensor) -> Tensor:
    """Woo et al. 2018: F' = Mc(F) F and F'' = Ms(F') F' (eq. 1).

    Mc = sigmoid(MLP(mean) + MLP(max)) over the map (eq. 2), Ms = sigmoid(7×7 convolution of [mean; max]) over the
    channels (eq. 3).
    """
    first, _, second = block.channel

    def mlp(x_C: Tensor) -> Tensor:
        return second.weight @ relu(first.weight @ x_C + first.bias) + second.bias

    flat_CP = skip_CHW.flatten(1)
    scale_C = sigmoid(mlp(flat_CP.mean(1)) + mlp(flat_CP.max(1).values))
    scaled_CHW = torch.einsum("c,chw->chw", scale_C, skip_CHW)
    padded_2HW = torch.zeros(2, HEIGHT + 6, WIDTH + 6).double()
    padded_2HW[0, 3:-3, 3:-3] = scaled_CHW.mean(0)
    padded_2HW[1, 3:-3, 3:-3] = scaled_CHW.max(0).values
    out_CHW = torch.empty_like(scaled_CHW)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            seen = (padded_2HW[:, y : y + 7, x : x + 7] * block.spatial.weight[0]).sum()
            out_CHW[:, y, x] = scaled_CHW[:, y, x] * sigmoid(seen)
    return out_CHW


@torch.no_grad()
@pytest.mark.parametrize(
    ("block", "formula"),
    [(AttentionGate, attention_gate), (SqueezeExcitation, squeeze_excitation), (CBAM, cbam)],
    ids=lambda x: x.__name__,
)
@pytest.mark.parametrize("share", [None, 0.5])
def test_attention_of_a_skip_is_its_papers(block: type, formula: Callable[..., Tensor], share: float | None) -> None:
    for seed in range(3):
        skip_BCHW, gating_BCHW = maps(seed)
        attention = block(CHANNELS, share).double()
        random_weights(attention)
        before = skip_BCHW.clone()
        actual = attention(skip_BCHW, gating_BCHW)
        assert torch.equal(skip_BCHW, before)
        expected = [formula(attention, *pair) for pair in zip(skip_BCHW, gating_BCHW, strict=True)]
        torch.testing.assert_close(actual, torch.stack(expected))


@pytest.mark.parametrize("kernel", [1, 3, (1, 3), (5, 1)], ids=str)
def test_a_convolution_with_norm_and_relu_keeps_the_side(kernel: int | tuple[int, int]) -> None:
    x_BCHW = ConvNormReLU(4, 6, kernel)(torch.randn(2, 4, 7, 9))
    assert x_BCHW.shape == (2, 6, 7, 9)
    assert x_BCHW.min() == 0


def test_initial_weights_keep_the_variance() -> None:
    """Gain 2 for 3×3 convolutions, which stand before a ReLU, 1 for all else; biases zero."""
    torch.manual_seed(0)
    layers = {
        "3×3": (nn.Conv2d(64, 32, 3), (2 / (64 * 9)) ** 0.5),
        "1×1": (nn.Conv2d(256, 64, 1), 256**-0.5),
        "transposed": (nn.ConvTranspose2d(128, 32, 2, stride=2), 128**-0.5),
        "dense": (nn.Linear(256, 64), 256**-0.5),
    }
    network = nn.ModuleList(layer for layer, _ in layers.values())
    initialise(network)
    for name, (layer, std) in layers.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03), name
        assert not layer.bias.any(), name
    initialise(network, lambda convolution: nn.init.ones_(convolution.weight))
    assert [bool((layer.weight == 1).all()) for layer, _ in layers.values()] == [True, True, True, False]

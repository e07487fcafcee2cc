"""DeepLabv3+ (Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution", section 3).

B batch, C channels, H W, K mask channels, N classes. The encoder is a ResNet (He et al. 2016) whose parameters have
torchvision's names below `encoder.`, so that weights published under those names fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.deeplabv3plus import DeepLabV3PlusConfig
from braintum.models.networks.blocks import ConvNormReLU, class_head, initialise
from braintum.models.output import Output


class DeepLabV3Plus(nn.Module):
    """Masks out of the ASPP's features at the output stride, joined with the ResNet's first stage at stride 4.

    The decoder has the two 3×3 convolutions of 256 channels that the paper found best (section 4.1); its output is
    interpolated by 4. 3×3 convolutions of ASPP and decoder are separable (section 3.1), which the paper does with
    Xception, and segmentation_models.pytorch with a ResNet too. With `config.classify` a head reads the ResNet's
    deepest features.
    """

    def __init__(self, config: DeepLabV3PlusConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        width = config.aspp_width
        low = width * 48 // 256  # the paper's 48 beside 256: few, so that they do not outweigh the ASPP's
        self.encoder = ResNet(config, in_channels)
        self.aspp = ASPP(self.encoder.channels[-1], width, (6, 12, 18) if config.output_stride == 16 else (12, 24, 36))
        self.skip = ConvNormReLU(self.encoder.channels[0], low, 1)
        self.decoder = nn.Sequential(*_separable(low + width, width), *_separable(width, width))
        self.mask = nn.Conv2d(width, num_masks, 1)
        self.classifier = class_head(config, self.encoder.channels[-1], num_classes)
        initialise(self, _draw)

    def forward(self, image_BCHW: Tensor) -> Output:
        fine, deep = self.encoder(image_BCHW)
        skip = self.skip(fine)
        x = torch.cat([_resize(self.aspp(deep), skip), skip], 1)
        class_logits_BN = None if self.classifier is None else self.classifier(deep.mean((2, 3)))
        return Output(_resize(self.mask(self.decoder(x)), image_BCHW), class_logits_BN)


class ASPP(nn.Module):
    """A 1×1 convolution, a separable 3×3 convolution of each rate, and the image's mean, joined by a 1×1 convolution.

    Without dropout: the paper names none.
    """

    def __init__(self, in_channels: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.point = ConvNormReLU(in_channels, width, 1)
        self.atrous = nn.ModuleList(nn.Sequential(*_separable(in_channels, width, rate)) for rate in rates)
        self.image = ConvNormReLU(in_channels, width, 1)
        self.project = ConvNormReLU((2 + len(rates)) * width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        image_BC11 = self.image(x_BCHW.mean((2, 3), keepdim=True))
        branches = [self.point(x_BCHW), *(atrous(x_BCHW) for atrous in self.atrous)]
        joined: Tensor = self.project(torch.cat([*branches, image_BC11.expand_as(branches[0])], 1))
        return joined


class ResNet(nn.Module):
    """The features of the first and the last of its four stages, at strides 4 and `config.output_stride`.

    Where a stage would go below the output stride, its convolutions are dilated instead: each then sees the pixels
    that it would have seen, and weights trained without dilation fit.
    """

    def __init__(self, config: DeepLabV3PlusConfig, in_channels: int) -> None:
        super().__init__()
        width = config.width
        block = Bottleneck if config.layers == 50 else BasicBlock
        self.channels = [width * 2**stage * block.expansion for stage in range(4)]
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, current_stride, dilation = width, 4, 1
        stages = []
        for stage, depth in enumerate((2, 2, 2, 2) if config.layers == 18 else (3, 4, 6, 3)):
            stride, first_dilation = 1, dilation
            if stage and current_stride < config.output_stride:
                stride, current_stride = 2, 2 * current_stride
            elif stage:
                dilation *= 2
            blocks: list[nn.Module] = [block(channels, width * 2**stage, stride, first_dilation, dilation)]
            channels = self.channels[stage]
            blocks += [block(channels, width * 2**stage, 1, dilation, dilation) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(image_BCHW)), inplace=True)
        fine = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))
        return fine, self.layer4(self.layer3(self.layer2(fine)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, width, 3, stride, padding=first_dilation, dilation=first_dilation, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 beside a shortcut (He et al. 2016, figure 5 right).

    The 3×3 convolution has the stride, as in torchvision and the weights that there are; the paper strides the first.
    In the first block of a dilated stage the dilation is still that of the stage before (`first_dilation`), as its
    input is.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=first_dilation, dilation=first_dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """A 1×1 convolution where a block changes the shape; None for the identity."""
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _separable(in_channels: int, out_channels: int, rate: int = 1) -> list[nn.Module]:
    """A 3×3 convolution of each channel (figure 3), then a 1×1 convolution with norm and ReLU."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False)
    return [depthwise, *ConvNormReLU(in_channels, out_channels, 1)]


def _resize(x_BCHW: Tensor, like_BCHW: Tensor) -> Tensor:
    """Bilinearly to another's height and width."""
    return F.interpolate(x_BCHW, size=like_BCHW.shape[2:], mode="bilinear", align_corners=False)


def _draw(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """A ReLU stands behind every convolution but the depthwise ones and the one with a bias, which makes the masks."""
    before_relu = convolution.groups == 1 and convolution.bias is None
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu" if before_relu else "linear")

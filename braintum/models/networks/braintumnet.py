"""BrainTumNet: segmentation and classification by one network, end to end (the BrainTumNet paper, section 2.2).

Stated, and what each statement is here:

- "Multi-layer convolutions with downsampling structures, using different-sized convolutional layers": stages of
  parallel 1×1, 3×3 and 5×5 convolutions and a 3×3 over them, max-pooling between. The sizes are not given.
- "The branch consists of multiple BT Blocks", a "dual-path feature extraction module" (section 1): patches of the image
  itself, on the grid of the last but one stage, joined to its features there, so that the deepest stage reads both.
  The masks come from the first downsampled stage (low level) and the last but one (high level).
- In the decoder, "each layer including upsampling, skip-connection fusion CBAM modules, and BT Blocks": a transposed
  convolution, CBAM on the skip, a stage of the encoder's kind, one BT Block whose masks come from the skip (low level)
  and the coarser map (high level). Its patches are 4 pixels wide where a map is finer: attention over single pixels of
  a whole slice could not be computed.
- "Symmetric upsampling Pyramid multi-scale feature fusion": every scale of the decoder, reduced to the finest one's
  channels, is added to the next finer one, as in Lin et al. 2017, and a 3×3 convolution follows at the end.
- Classifier: see `t_inception`; BT Blocks and their masks: see `masked_transformer`.

Where this departs from the paper's words, or they from each other:

- "The model adopts a two-stage cascade structure, performing segmentation followed by classification" (2.2), but is "an
  end-to-end one-stop model" (1), and section 3 finds "the end-to-end multi-task model" better than "two-stage methods".
  Here classification follows segmentation within one forward pass, and both learn together.
- "CBAM channel attention modules" (2.2): CBAM as published, with its spatial attention.
- "The decoder's Skip-Transformer" (2.2) is named once and not described: taken to be the decoder's BT Blocks, whose
  masks read the skip. No transformer lies on the skips themselves.
- "Pre-trained encoders" (3, 4; on what is not said): no published encoder fits this one. It starts from random weights,
  or from those of another BrainTumNet (`model.init_from`).
- Deep supervision is not mentioned and not here.

B batch, C channels, H W, K mask channels, N classes, D width of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from braintum.models.braintumnet import FINEST, BrainTumNetConfig
from braintum.models.networks.blocks import (
    CBAM,
    ConvNormReLU,
    Norm,
    class_head,
    draw_convolution,
    initialise,
    make_norm,
)
from braintum.models.networks.masked_transformer import MaskedTransformer, Refine, initialise_transformers
from braintum.models.networks.t_inception import TInceptionNet, guide_from, guided_mean
from braintum.models.output import Output


class BrainTumNet(nn.Module):
    """Height and width must be multiples of `config.divisor`. Works in either memory format."""

    def __init__(self, config: BrainTumNetConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        self.config = config
        channels = [config.width * 2**stage for stage in range(config.depth + 1)]
        self.stages = nn.ModuleList(
            MultiKernel(c_in, c_out, config.norm)
            for c_in, c_out in zip([in_channels, *channels], channels, strict=False)
        )
        self.branch = Branch(config, in_channels, channels) if config.transformer else None
        self.decoder = nn.ModuleList(Up(config, stage) for stage in reversed(range(config.depth)))
        self.pyramid = Pyramid(channels[::-1], config.norm) if config.pyramid else None
        self.mask = nn.Conv2d(config.width, num_masks, 1)
        self.inception: nn.Module | None = None
        self.classifier: nn.Module | None = None
        if config.inception:
            self.inception = TInceptionNet(config, channels[-2], num_classes)
        else:
            self.classifier = class_head(config, channels[-1], num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Convolutions have gain 2 before a ReLU, 1 elsewhere."""
        before_relu = {module[0] for module in self.modules() if isinstance(module, ConvNormReLU)}
        for module in self.modules():
            if isinstance(module, MultiKernel):
                before_relu.update(module.parallel)

        def draw(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
            if isinstance(convolution, nn.ConvTranspose2d):
                draw_convolution(convolution)
            else:
                nn.init.kaiming_normal_(
                    convolution.weight, nonlinearity="relu" if convolution in before_relu else "linear"
                )

        initialise(self, draw)
        initialise_transformers(self)

    def forward(self, image_BCHW: Tensor) -> Output:
        features = [self.stages[0](image_BCHW)]
        for stage in self.stages[1:-1]:
            features.append(stage(F.max_pool2d(features[-1], 2)))
        if self.branch is not None:
            features[-1] = self.branch(image_BCHW, features[1], features[-1])
        deepest = self.stages[-1](F.max_pool2d(features[-1], 2))

        maps = [deepest]
        for up, skip in zip(self.decoder, reversed(features), strict=True):
            maps.append(up(maps[-1], skip))
        mask_logits = self.mask(maps[-1] if self.pyramid is None else self.pyramid(maps))
        return Output(mask_logits, self._classify(features[-1], deepest, mask_logits))

    def _classify(self, fine_BCHW: Tensor, deepest_BCHW: Tensor, mask_logits_BKHW: Tensor) -> Tensor | None:
        guided = self.config.mask_guidance
        stride = self.config.divisor
        if self.inception is not None:
            logits_BN: Tensor = self.inception(
                fine_BCHW, deepest_BCHW, guide_from(mask_logits_BKHW, stride // 2) if guided else None
            )
            return logits_BN
        if self.classifier is None:
            return None
        logits_BN = self.classifier(guided_mean(deepest_BCHW, guide_from(mask_logits_BKHW, stride) if guided else None))
        return logits_BN


class MultiKernel(nn.Module):
    """1×1, 3×3 and 5×5 convolutions side by side, then a 3×3 over all.

    1×1 and 5×5 make a quarter of the channels each, rounded down, 3×3 the rest.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        quarter = out_channels // 4
        self.parallel = nn.ModuleList(
            nn.Conv2d(in_channels, share, kernel, padding=kernel // 2, bias=False)
            for kernel, share in ((1, quarter), (3, out_channels - 2 * quarter), (5, quarter))
        )
        self.norm = make_norm(norm, out_channels)
        self.joint = ConvNormReLU(out_channels, out_channels, 3, norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.norm(torch.cat([convolve(x_BCHW) for convolve in self.parallel], 1)))
        joint_BCHW: Tensor = self.joint(x_BCHW)
        return joint_BCHW


class Branch(nn.Module):
    """The transformer beside the convolutions: patches of the image, joined to the last but one stage's features."""

    def __init__(self, config: BrainTumNetConfig, in_channels: int, channels: list[int]) -> None:
        super().__init__()
        fine = channels[-2]
        self.transformer = MaskedTransformer(
            config,
            in_channels,
            fine,
            config.divisor // 2,
            config.option("transformer_depth"),
            low_channels=channels[1],
            high_channels=fine,
        )
        self.join = ConvNormReLU(2 * fine, fine, 1, config.norm)

    def forward(self, image_BCHW: Tensor, low_BCHW: Tensor, fine_BCHW: Tensor) -> Tensor:
        global_BDHW = self.transformer(image_BCHW, low_BCHW, fine_BCHW)
        joined_BCHW: Tensor = self.join(torch.cat([fine_BCHW, global_BDHW], 1))
        return joined_BCHW


class Up(nn.Module):
    """A decoder's layer: twice the side, the channels of encoder stage `stage`, its skip joined in."""

    def __init__(self, config: BrainTumNetConfig, stage: int) -> None:
        super().__init__()
        channels = config.width * 2**stage
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.attention = CBAM(channels, None) if config.cbam else None
        self.convolve = MultiKernel(2 * channels, channels, config.norm)
        self.refine: nn.Module | None = None
        if config.transformer:
            patch = 2 ** max(FINEST - stage, 0)
            self.refine = Refine(config, channels, patch, low_channels=channels, high_channels=2 * channels)

    def forward(self, coarse_BCHW: Tensor, skip_BCHW: Tensor) -> Tensor:
        attended = skip_BCHW if self.attention is None else self.attention(skip_BCHW, coarse_BCHW)
        x_BCHW: Tensor = self.convolve(torch.cat([attended, self.up(coarse_BCHW)], 1))
        return x_BCHW if self.refine is None else self.refine(x_BCHW, skip_BCHW, coarse_BCHW)


class Pyramid(nn.Module):
    """Adds all maps up, coarsest first, each twice the side of the one before; the channels and side of the last."""

    def __init__(self, channels: list[int], norm: Norm) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(c, channels[-1], 1) for c in channels)
        self.smooth = ConvNormReLU(channels[-1], channels[-1], 3, norm)

    def forward(self, maps_BCHW: list[Tensor]) -> Tensor:
        total = self.reduce[0](maps_BCHW[0])
        for reduce, finer in zip(self.reduce[1:], maps_BCHW[1:], strict=True):
            total = F.interpolate(total, scale_factor=2.0) + reduce(finer)
        smooth_BCHW: Tensor = self.smooth(total)
        return smooth_BCHW

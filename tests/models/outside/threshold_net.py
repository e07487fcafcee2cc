"""A user's own architecture, in a package of its own: nothing in braintum names it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from braintum.models.output import Output
from braintum.models.registry import SegmenterConfig, register


@register("threshold_net")
class ThresholdNetConfig(SegmenterConfig):
    """One convolution: hardly more than a threshold on intensities."""

    SMALL: ClassVar[dict[str, Any]] = {}

    name: str = "threshold_net"
    kernel: int = 3

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        return ThresholdNet(self, in_channels, num_classes, num_masks)


class ThresholdNet(nn.Module):
    def __init__(self, config: ThresholdNetConfig, in_channels: int, num_classes: int, num_masks: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(in_channels, num_masks, config.kernel, padding=config.kernel // 2)
        self.classifier = nn.Linear(in_channels, num_classes) if config.classify else None

    def forward(self, image_BCHW: Tensor) -> Output:
        labels = None if self.classifier is None else self.classifier(image_BCHW.mean((2, 3)))
        return Output(self.mask(image_BCHW), labels)

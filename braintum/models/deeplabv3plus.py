"""Options of `deeplabv3plus`: DeepLabv3+ (Chen et al. 2018, ECCV) on a ResNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("deeplabv3plus")
class DeepLabV3PlusConfig(SegmenterConfig):
    """A dilated ResNet, atrous spatial pyramid pooling (ASPP) and a decoder of one skip."""

    SMALL: ClassVar[dict[str, Any]] = {"layers": 18, "width": 8, "aspp_width": 64}

    name: str = "deeplabv3plus"
    layers: Literal[18, 34, 50] = Field(50, description="of the ResNet")
    width: int = Field(64, ge=1, description="channels of the ResNet's stem")
    output_stride: Literal[8, 16] = Field(16, description="sides of a slice over sides of the deepest features")
    aspp_width: int = Field(256, ge=8, description="channels of each branch of the ASPP, and of the decoder")

    @property
    def divisor(self) -> int:
        return self.output_stride

    @property
    def smallest(self) -> int:
        """Deepest features of one pixel would be their own mean, and the image pooling would add nothing."""
        return 2 * self.output_stride

    @property
    def smallest_batch(self) -> int:
        """The ASPP's image pooling has one value a channel and slice, and batch norm has no statistics of one value."""
        return 2

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.deeplabv3plus import DeepLabV3Plus

        return DeepLabV3Plus(self, in_channels, num_classes, num_masks)

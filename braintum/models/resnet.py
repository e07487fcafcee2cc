"""Options of `resnet`: the residual network of He et al. 2016 ("Deep Residual Learning for Image Recognition")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from braintum.models.registry import SliceClassifierConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("resnet")
class ResNetConfig(SliceClassifierConfig):
    """A stem and four stages of residual blocks (table 1 of the paper).

    The BrainTumNet paper compares with "ResNet" and does not say which: 50 layers are chosen here.
    """

    SMALL: ClassVar[dict[str, Any]] = {"layers": 18, "width": 8, "max_pool": False}

    name: str = "resnet"
    layers: Literal[18, 34, 50] = Field(50, description="18 and 34 have blocks of two convolutions, 50 of three")
    width: int = Field(64, ge=1, description="channels of the stem and of the first stage's 3×3 convolutions")
    max_pool: bool = Field(True, description="in the stem; without it all stages have twice the side: for small slices")

    @property
    def smallest(self) -> int:
        """Batch norm cannot train on a last stage of one pixel in a batch of one slice: it needs two pixels."""
        return 33 if self.max_pool else 17

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.resnet import ResNet

        return ResNet(self, in_channels, num_classes)

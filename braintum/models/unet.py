"""Options of the U-Net family: `unet`, `attention_unet`, `joint_unet` (the U-Net paper, section II-D) are presets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("unet")
@register("attention_unet", attention="gate")
@register("joint_unet", classify=True)
class UNetConfig(SegmenterConfig):
    """U-Net; attention_unet has gates on its skips, joint_unet both tasks.

    A symmetric encoder-decoder with skip concatenations; channels double at each of `depth` downsamplings.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 4}

    name: str = "unet"
    width: int = Field(64, ge=1, description="channels of the first stage")
    depth: int = Field(4, ge=1, le=7, description="downsamplings; 4 gives 64 to 1024 channels at width 64")
    norm: Literal["batch", "instance", "group"] = Field("batch", description="behind every convolution of the stages")
    attention: Literal["none", "gate", "cbam", "se"] = Field("none", description="what filters each skip")
    attention_width: float | None = Field(
        None, gt=0, le=1, description="inner channels of the attention, as a share of the skip's; needs attention"
    )

    @model_validator(mode="after")
    def _attention_width_has_an_effect(self) -> Self:
        if self.attention_width is not None and self.attention == "none":
            raise ValueError("attention_width has no effect with attention=none. Leave it out")
        return self

    @property
    def divisor(self) -> int:
        return 1 << self.depth

    @property
    def smallest(self) -> int:
        """A deepest stage of one pixel is zero after instance norm, and after batch norm in a batch of one slice."""
        return self.divisor * (1 if self.norm == "group" else 2)

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.unet import UNet

        return UNet(self, in_channels, num_classes, num_masks)

"""Options of the U-Net family: `unet`, `attention_unet`, `joint_unet` (the U-Net paper, section II-D) are presets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from braintum.models.registry import ModelConfig, Task, register

if TYPE_CHECKING:
    from torch import nn


@register("unet")
@register("attention_unet", attention="gate")
@register("joint_unet", classify=True)
class UNetConfig(ModelConfig):
    """A symmetric encoder-decoder with skip concatenations; channels double at each of `depth` downsamplings."""

    name: str = "unet"
    width: int = Field(64, ge=1, description="channels of the first stage")
    depth: int = Field(4, ge=1, le=7, description="downsamplings; 4 gives 64 to 1024 channels at width 64")
    norm: Literal["batch", "instance", "group"] = "batch"
    attention: Literal["none", "gate", "cbam", "se"] = Field("none", description="what filters each skip")
    attention_width: float | None = Field(
        None, gt=0, le=1, description="inner channels of the attention, as a share of the skip's; needs attention"
    )
    classify: bool = Field(False, description="a classification head on the bottleneck")
    dropout: float | None = Field(None, ge=0, lt=1, description="before the last layer of the head; needs classify")

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.attention_width is not None and self.attention == "none":
            raise ValueError("attention_width has no effect with attention=none. Leave it out")
        if self.dropout is not None and not self.classify:
            raise ValueError("dropout has no effect with classify=false. Leave it out")
        return self

    @property
    def tasks(self) -> frozenset[Task]:
        return frozenset(("segmentation", "classification") if self.classify else ("segmentation",))

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

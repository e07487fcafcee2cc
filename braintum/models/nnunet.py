"""Options of `nnunet`: nnU-Net's 2D network (Isensee et al. 2021, Nature Methods 18), as version 2 plans it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn

LEAST_STAGES = 4
"""With fewer there is no output between the finest and the coarsest, so nothing to supervise deeply. nnU-Net plans
fewer for slices of less than 32 pixels only."""


@register("nnunet")
class NnUNetConfig(SegmenterConfig):
    """nnU-Net's plain U-Net: strided convolutions, instance norm, deep supervision, stages from the size.

    Of nnU-Net only the network is here: its preprocessing, augmentation, loss, schedule and ensemble are not. Slices
    are square and taken as isotropic, so that every kernel is 3×3 and every stride 2.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 8, "max_width": 64}

    name: str = "nnunet"
    width: int = Field(32, ge=1, description="channels of the first stage; they double from stage to stage")
    max_width: int = Field(512, ge=1, description="most channels of a stage")
    stages: int | None = Field(
        None,
        ge=LEAST_STAGES,
        le=10,
        description="resolutions; left out, as many as nnU-Net plans: sides are halved while 4 pixels or more are left",
    )
    deep_supervision: bool = Field(True, description="train the decoder's coarser stages on smaller masks as well")

    @model_validator(mode="after")
    def _max_width_is_no_less_than_width(self) -> Self:
        if self.max_width < self.width:
            raise ValueError(f"max_width: {self.max_width} is less than width, {self.width}. Raise it")
        return self

    def for_size(self, side: int) -> Self:
        """The plan of nnU-Net v2 for isotropic slices (`get_pool_and_conv_props`, least edge of a feature map 4)."""
        if self.stages is not None:
            return self
        edge, stages = side, 1
        while edge >= 8:
            edge, stages = -(-edge // 2), stages + 1
        return self.model_copy(update={"stages": max(stages, LEAST_STAGES)})

    @property
    def padded_to(self) -> int:
        """The network pads height and width to multiples of this, as nnU-Net does."""
        stages: int = self.option("stages")
        return 1 << (stages - 1)

    @property
    def smallest(self) -> int:
        """A deepest stage of one pixel is zero after instance norm."""
        return 2 * self.padded_to

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.nnunet import NnUNet

        return NnUNet(self, in_channels, num_classes, num_masks)

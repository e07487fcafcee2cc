"""Options of `nnunet`: nnU-Net's 2D network (Isensee et al. 2021, Nature Methods 18), as version 2 plans it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn

LEAST_STAGES = 4
"""With fewer there is no output between the finest and the coarsest, so nothing to supervise deeply."""


@register("nnunet")
class NnUNetConfig(SegmenterConfig):
    """A plain U-Net with strided convolutions, instance norm and deep supervision.

    Of nnU-Net only the network is here: its preprocessing, augmentation, loss, schedule and ensemble are not. Slices
    are square and taken as isotropic, so that every kernel is 3×3 and every stride 2.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 8, "max_width": 32}

    name: str = "nnunet"
    width: int = Field(32, ge=1, description="channels of the first stage; they double from stage to stage")
    max_width: int = Field(512, ge=1, description="most channels of a stage")
    stages: int | None = Field(
        None,
        ge=LEAST_STAGES,
        le=10,
        description="resolutions; left out, as many as nnU-Net plans: sides are halved while 4 pixels or more remain",
    )
    deep_supervision: bool = Field(True, description="train the decoder's coarser stages on smaller masks as well")

    @model_validator(mode="after")
    def _max_width_is_no_less_than_width(self) -> Self:
        if self.max_width < self.width:
            raise ValueError(f"max_width: {self.max_width} is less than width, {self.width}. Raise it")
        return self

    def for_size(self, side: int) -> Self:
        """The plan of nnU-Net v2 for isotropic slices (`get_pool_and_conv_props`, least edge of a feature map 4).

        nnU-Net pads a slice whose side cannot be halved so often; here that raises ValueError.
        """
        if self.stages is not None:
            return self
        edge, halvings = side, 0
        while edge >= 8:
            edge, halvings = -(-edge // 2), halvings + 1
        halvings = max(halvings, LEAST_STAGES - 1)
        divisor = 1 << halvings
        if side % divisor:
            padded = -(-side // divisor) * divisor
            most = (side & -side).bit_length()  # stages until a side is odd
            fewer = f", or model.stages to {most}" if most >= LEAST_STAGES else ""
            raise ValueError(
                f"stages: nnU-Net plans {halvings + 1} for slices of {side} pixels and pads them to {padded}: "
                f"set data.image_size to {padded}{fewer}"
            )
        return self.model_copy(update={"stages": halvings + 1})

    @property
    def divisor(self) -> int:
        stages: int = self.option("stages")
        return 1 << (stages - 1)

    @property
    def smallest(self) -> int:
        """A deepest stage of one pixel is zero after instance norm."""
        return 2 * self.divisor

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.nnunet import NnUNet

        return NnUNet(self, in_channels, num_classes, num_masks)

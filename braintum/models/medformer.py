"""Options of `medformer` (Gao et al. 2022): a U-shaped network whose features attend to small semantic maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from braintum.models.registry import SegmenterConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("medformer")
class MedFormerConfig(SegmenterConfig):
    """Attention both ways between features and a small semantic map, in 2D.

    The defaults are the authors' configuration for ACDC (config/acdc/medformer_2d.yaml).

    Stages of full and half side are convolutional, those of a quarter, an eighth and a sixteenth attend. Where the
    authors list a number per stage, it is one number here: their stages of a kind are alike.
    """

    SMALL: ClassVar[dict[str, Any]] = {
        "width": 6,
        "conv_blocks": 1,
        "transformer_blocks": 1,
        "fusion_depth": 1,
        "fusion_width": 32,
        "fusion_heads": 2,
    }

    name: str = "medformer"
    width: int = Field(32, ge=1, description="channels at full side; they double at each of the four downsamplings")
    conv_blocks: int = Field(2, ge=1, description="residual blocks of each convolutional stage but the stem")
    transformer_blocks: int = Field(2, ge=1, description="in each of the three encoder and two decoder stages")
    heads: int = Field(4, ge=1, description="at a quarter of the side; they double with the channels")
    expansion: int = Field(2, ge=2, description="channels inside the feed-forward, in multiples of the block's")
    map_size: int = Field(3, ge=2, description="a semantic map has map_size² tokens")
    fusion_depth: int = Field(2, ge=1, description="transformer layers over the tokens of all three maps")
    fusion_width: int = Field(512, ge=1, description="channels of these layers")
    fusion_heads: int = Field(16, ge=1, description="heads of these layers")
    deep_supervision: bool = Field(True, description="in training, a second mask from a quarter of the side")

    @model_validator(mode="after")
    def _heads_share_the_channels(self) -> Self:
        if 4 * self.width % self.heads:
            raise ValueError(f"heads: {self.heads} must divide 4 × width = {4 * self.width}")
        if self.fusion_width % self.fusion_heads:
            raise ValueError(f"fusion_heads: {self.fusion_heads} must divide fusion_width = {self.fusion_width}")
        return self

    @property
    def divisor(self) -> int:
        return 16

    @property
    def smallest(self) -> int:
        """A deepest stage of one pixel is zero after batch norm in a batch of one slice."""
        return 2 * self.divisor

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.medformer import MedFormer

        return MedFormer(self, in_channels, num_classes, num_masks)

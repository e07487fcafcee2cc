"""Options of `densenet`: Huang et al. 2017, "Densely Connected Convolutional Networks" (DenseNet-BC)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from braintum.models.registry import SliceClassifierConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("densenet")
class DenseNetConfig(SliceClassifierConfig):
    """Blocks of layers that each see all layers before, and transitions that halve (table 1 of the paper).

    The BrainTumNet paper compares with "DenseNet" and does not say which: 121 layers are chosen here.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 16, "growth": 8, "blocks": [2, 4, 4]}

    name: str = "densenet"
    width: int = Field(64, ge=1, description="channels of the stem; published: twice the growth")
    growth: int = Field(32, ge=1, description="channels that each layer adds")
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (6, 12, 24, 16),
        min_length=1,
        description="layers of each block; 6, 12, 24, 16 is DenseNet-121; 6, 12, 32, 32 is DenseNet-169",
    )

    @property
    def smallest(self) -> int:
        """Batch norm cannot train on a last block of one pixel in a batch of one slice: it needs two pixels.

        The stem rounds up twice (two strides of 2), transitions round down.
        """
        return (4 << len(self.blocks)) - 3

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.densenet import DenseNet

        return DenseNet(self, in_channels, num_classes)

"""Options of `googlenet`: Szegedy et al. 2015, "Going Deeper with Convolutions"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from braintum.models.registry import SliceClassifierConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("googlenet")
class GoogLeNetConfig(SliceClassifierConfig):
    """A stem, nine Inception modules and auxiliary heads (table 1 of the paper).

    With batch norm after every convolution, as it is built since Ioffe & Szegedy 2015.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 8, "max_pool": False}

    name: str = "googlenet"
    width: int = Field(64, ge=1, description="channels of the stem; all others, published at 64, change with it")
    auxiliary: bool = Field(True, description="in training, two more heads halfway, each of weight 0.3 to the last's 1")
    max_pool: bool = Field(True, description="the first; without it all modules have twice the side: for small slices")
    dropout: float = Field(0.4, ge=0, lt=1, description="before the last layer; 0.4 as published, torchvision has 0.2")

    @property
    def smallest(self) -> int:
        """Batch norm cannot train on last modules of one pixel in a batch of one slice: it needs two pixels."""
        return 47 if self.max_pool else 23

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.googlenet import GoogLeNet

        return GoogLeNet(self, in_channels, num_classes)

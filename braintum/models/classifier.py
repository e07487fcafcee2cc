"""Options of `classifier`: the U-Net's encoder with dense layers (the U-Net paper, section II-D c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from braintum.models.registry import SliceClassifierConfig, register

if TYPE_CHECKING:
    from torch import nn


@register("classifier")
class ClassifierConfig(SliceClassifierConfig):
    """The U-Net's encoder, global average pooling, a hidden dense layer, dropout, the classes.

    The paper says "dense layers" with dropout and gives neither number, width nor rate: one hidden layer of 256 and
    0.5 are chosen here.
    """

    SMALL: ClassVar[dict[str, Any]] = {"width": 4, "hidden": 8}

    name: str = "classifier"
    width: int = Field(64, ge=1, description="channels of the first stage")
    depth: int = Field(4, ge=1, le=7, description="downsamplings; 4 gives 64 to 1024 channels at width 64")
    norm: Literal["batch", "instance", "group"] = Field("batch", description="behind every convolution of the stages")
    hidden: int = Field(256, ge=1, description="units of the hidden dense layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="before the last dense layer")

    @property
    def divisor(self) -> int:
        return 1 << self.depth

    @property
    def smallest(self) -> int:
        """A deepest stage of one pixel is zero after instance norm, and after batch norm in a batch of one slice."""
        return self.divisor * (1 if self.norm == "group" else 2)

    def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
        from braintum.models.networks.classifier import Classifier

        return Classifier(self, in_channels, num_classes)
